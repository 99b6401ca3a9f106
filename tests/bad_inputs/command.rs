//! Bad inputs of the command line and of its configuration files: exit code, and what standard error says.

use crate::table::{Case, Names, written_out};
use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Whatever hangs is ended, with 124.
const LIMIT_S: &str = "60";

/// Words as a shell takes them apart, but for escapes: blanks between them, `'...'` around one.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

/// The lines of a case by their first word: `env NAME=value`, `in text`, `out file`; the rest is its own.
struct Lines {
    env: Vec<(String, String)>,
    input: String,
    out: Option<String>,
    rest: Vec<String>,
}

fn lines(case: &Case, names: &Names) -> Lines {
    let mut lines = Lines { env: Vec::new(), input: String::new(), out: None, rest: Vec::new() };
    for line in case.input.iter().map(|line| written_out(line, names)) {
        match line.split_once(' ') {
            Some(("env", rest)) => {
                let (name, value) = rest.split_once('=').expect("NAME=value");
                lines.env.push((name.to_owned(), value.to_owned()));
            }
            Some(("in", rest)) => lines.input = rest.to_owned(),
            Some(("out", rest)) => lines.out = Some(rest.to_owned()),
            _ => lines.rest.push(line),
        }
    }
    lines
}

fn run(arguments: &[String], lines: &Lines, dir: &str) -> Output {
    let mut command = Command::new("timeout");
    command.args([LIMIT_S, env!("CARGO_BIN_EXE_ruvector")]).args(arguments).current_dir(dir);
    command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "1").envs(lines.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stderr(Stdio::piped());
    match &lines.out {
        Some(file) => command.stdout(File::options().write(true).open(file).expect("a file to write to")),
        None => command.stdout(Stdio::piped()),
    };
    let mut child = command.spawn().expect("it starts");
    // Not everything reads it.
    let _ = child.stdin.take().expect("piped").write_all(lines.input.as_bytes());
    child.wait_with_output().expect("it ends")
}

fn judged(case: &Case, names: &Names, output: &Output) -> Result<(), String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let told = || format!("exit {:?}\n{said}", output.status.code());
    let words = &case.expected.words;
    assert!(!words.is_empty(), "{}: the table says nothing of what it must say", case.place);
    let crashed = ["panicked", "stack backtrace", "RUST_BACKTRACE"].iter().any(|word| said.contains(word));
    let begins = said.starts_with("ruvector: ") || said.starts_with("error: ") || said.contains("Usage: ruvector");
    // What the tables call so is one.
    let told_a_secret = said.contains("secret");
    let has_all = words.iter().all(|word| said.contains(&written_out(word, names)));
    let ends = output.status.code().is_some_and(|code| code.to_string() == case.expected.outcome);
    match ends && !crashed && !told_a_secret && begins && has_all {
        true => Ok(()),
        false => Err(told()),
    }
}

/// Runs the command of a case.
pub fn check(case: &Case, names: &Names) -> Result<(), String> {
    let lines = lines(case, names);
    let arguments = words(&lines.rest.join(" "));
    judged(case, names, &run(&arguments, &lines, &names["DIR"]))
}

/// What the check of this configuration says, with these variables.
pub fn config_check(text: &str, env: &[(&str, &str)]) -> Output {
    let env = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let lines = Lines { env, input: String::new(), out: None, rest: vec![text.to_owned()] };
    let file = tempfile::NamedTempFile::new().expect("a file");
    checked(&file, &lines, "/")
}

fn checked(file: &tempfile::NamedTempFile, lines: &Lines, dir: &str) -> Output {
    std::fs::write(file.path(), lines.rest.join("\n") + "\n").expect("writable");
    let arguments = ["config", "check", "--config", &file.path().display().to_string()].map(str::to_owned);
    run(&arguments, lines, dir)
}

/// Writes the configuration of a case, and has it checked by the command.
pub fn check_config(case: &Case, names: &Names) -> Result<(), String> {
    let lines = lines(case, names);
    let file = tempfile::NamedTempFile::new().expect("a file");
    judged(case, names, &checked(&file, &lines, &names["DIR"]))
}
