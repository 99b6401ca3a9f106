//! `ruvector key new`: API keys for HTTP.

use crate::server::http::keys::{self, Hash};

/// `ruvector key`
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a key. It is printed once and kept nowhere; the lines below it, which have its hash, go into the configuration.
    New(New),
}

/// Arguments of `key new`.
#[derive(clap::Args)]
pub struct New {
    /// What the configuration and the log call it.
    #[arg(long, default_value = "app", value_parser = name)]
    name: String,
}

/// Runs what the arguments say.
pub fn run(command: &Command) {
    let Command::New(New { name }) = command;
    let key = keys::generate();
    say!("{key}");
    say!("");
    say!("[http.keys.{name}]\nhash = [\"{}\"]\nscopes = [\"read\"]", Hash::of(&key));
}

fn name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match !text.is_empty() && text.len() <= 63 && text.bytes().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("1 to 63 of a-z, A-Z, 0-9, _ and -".to_owned()),
    }
}
