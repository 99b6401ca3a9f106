//! Where a password comes from, asked anew for every connection: the connection string, a credential command,
//! `PGPASSWORD`, or a password file. None is ever printed.

use crate::source::conninfo::{ConnInfo, Secret, Target};
use crate::source::{Result, SourceError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Longest run of a credential command.
const COMMAND_LIMIT: Duration = Duration::from_secs(15);
/// Longest output of one. Tokens of cloud providers have some kilobytes.
const LONGEST_PASSWORD: u64 = 64 * 1024;
const LONGEST_PASSFILE: u64 = 1 << 20;

/// The password for one connection, before it is known to which of the hosts.
pub(super) enum Password {
    /// Wherever we connect.
    Known(Secret),
    /// By the host: lines of a password file.
    File(String),
    /// There is none.
    None,
}

impl Password {
    /// Asks the sources in order. A command beats what lies around in the environment: somebody configured it.
    pub async fn obtain(info: &ConnInfo, command: Option<&str>) -> Result<Password> {
        if let Some(password) = &info.password {
            return Ok(Password::Known(password.clone()));
        }
        if let Some(command) = command {
            return run(command, COMMAND_LIMIT).await.map(Password::Known);
        }
        if let Ok(password) = std::env::var("PGPASSWORD")
            && !password.is_empty()
        {
            return Ok(Password::Known(Secret::new(password)));
        }
        let named = info.passfile.clone().or_else(|| std::env::var_os("PGPASSFILE").map(PathBuf::from));
        let text = match named.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => Some(read_passfile(&path)?),
            // As in libpq one that nobody named may be missing or unfit.
            None => std::env::home_dir().and_then(|home| read_passfile(&home.join(".pgpass")).ok()),
        };
        Ok(text.map_or(Password::None, Password::File))
    }

    /// What to send to this host.
    pub fn for_target(&self, info: &ConnInfo, target: &Target) -> Option<Secret> {
        match self {
            Password::Known(password) => Some(password.clone()),
            Password::File(text) => look_up(text, info, target).map(Secret::new),
            Password::None => None,
        }
    }
}

/// Runs a credential command; its trimmed standard output is the password. What it says to people goes to our own
/// standard error.
async fn run(command: &str, limit: Duration) -> Result<Secret> {
    let remedy = "run source.password_command by hand: it must print the password and nothing else, and end with 0";
    let unavailable = |what: String| SourceError::Unavailable(format!("source.password_command {what}"));
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = shell.spawn().map_err(|error| unavailable(format!("cannot be run: {error}")))?;
    let mut output = Vec::new();
    let stdout = child.stdout.take();
    let whole = async {
        if let Some(stdout) = stdout {
            stdout.take(LONGEST_PASSWORD + 1).read_to_end(&mut output).await?;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(limit, whole).await {
        Err(_) => return Err(unavailable(format!("did not end within {limit:?}"))),
        Ok(Err(error)) => return Err(unavailable(format!("failed: {error}"))),
        Ok(Ok(status)) => status,
    };
    match status.code() {
        Some(0) => {}
        // It was cut short by us; what it says of that does not matter.
        _ if output.len() as u64 > LONGEST_PASSWORD => {}
        // What a shell says where there is no such program, or none that can be run.
        Some(code @ (126 | 127)) => {
            return Err(SourceError::refused(format!("source.password_command ended with {code}"), remedy));
        }
        _ => return Err(unavailable(format!("failed: {status}"))),
    }
    let text = String::from_utf8(output).ok().filter(|text| text.len() as u64 <= LONGEST_PASSWORD);
    match text.as_deref().map(str::trim) {
        Some(password) if !password.is_empty() => Ok(Secret::new(password)),
        _ => Err(SourceError::refused("source.password_command printed no password", remedy)),
    }
}

/// Refuses what others could have read or written, as libpq does.
fn read_passfile(path: &Path) -> Result<String> {
    let shown = path.display();
    let refuse = |problem: String| {
        let remedy = format!("put host:port:database:user:password lines into it, and: chmod 600 {shown}");
        SourceError::refused(problem, remedy)
    };
    let cannot = |error| refuse(format!("cannot read the password file {shown}: {error}"));
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() || metadata.len() > LONGEST_PASSFILE {
        return Err(refuse(format!("the password file {shown} is no plain small file")));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refuse(format!("the password file {shown} can be read by others than its owner")));
    }
    std::fs::read_to_string(path).map_err(cannot)
}

/// The first line that fits: `host:port:database:user:password`, `*` for anything, `\` before `:` and `\`.
fn look_up(text: &str, info: &ConnInfo, target: &Target) -> Option<String> {
    let host = match (target.host.as_str(), &target.address) {
        ("", Some(address)) => address,
        // The server's usual places: there libpq looks for a host of its own.
        ("/tmp" | "/var/run/postgresql", None) => "localhost",
        (host, _) => host,
    };
    let wanted = [host, &target.port.to_string(), &info.database, &info.user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for wanted in wanted {
            let (field, after) = field(rest)?;
            if field.raw != "*" && field.text != wanted {
                return None;
            }
            rest = after;
        }
        let password = field(rest).map_or_else(|| unescape(rest), |(field, _)| field.text);
        (!password.is_empty()).then_some(password)
    })
}

struct Field<'a> {
    raw: &'a str,
    text: String,
}

/// Up to the next `:` that is not escaped, and what follows it.
fn field(line: &str) -> Option<(Field<'_>, &str)> {
    let mut escaped = false;
    for (at, byte) in line.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b':' => return Some((Field { raw: &line[..at], text: unescape(&line[..at]) }, &line[at + 1..])),
            _ => {}
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn lines_of_a_password_file() {
        let file = "# db.example:*:*:*:comment\n\
                    db.example:5433:app:me:by port\n\
                    db.example:*:app:me:wild\n\
                    \\*:*:*:*:a star\n\
                    2001\\:db8\\:\\:7:5432:app:me:with \\: and \\\\\n\
                    localhost:5432:app:me:socket\n\
                    other:5432:*:*:pass:ignored\n\
                    short:5432:app\n\
                    *:*:other:*:\n\
                    *:*:other:*:fallback";
        let cases = [
            ("host=db.example port=5433 dbname=app user=me", Some("by port")),
            ("host=db.example dbname=app user=me", Some("wild")),
            ("host=db.example dbname=app user=you", None),
            ("host=2001:db8::7 dbname=app user=me", Some("with : and \\")),
            ("hostaddr=2001:db8::7 dbname=app user=me", Some("with : and \\")),
            ("host=/tmp dbname=app user=me", Some("socket")),
            ("host=/elsewhere dbname=app user=me", None),
            ("host=other dbname=x user=y", Some("pass")),
            ("host=short dbname=app user=me", None),
            ("host=any dbname=other user=y", Some("fallback")),
        ];
        for (text, expected) in cases {
            let info = ConnInfo::parse(text).expect(text);
            assert_eq!(look_up(file, &info, &info.targets[0]).as_deref(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn a_password_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pass");
        std::fs::write(&path, "*:*:*:*:secret\n").expect("write");
        let info = ConnInfo::parse(&format!("host=h user=u passfile={}", path.display())).expect("valid");
        for (mode, fits) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o602, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
            let password = Password::obtain(&info, None).await;
            let password = password.map(|password| password.for_target(&info, &info.targets[0]));
            match fits {
                true => assert_eq!(password.expect("fits"), Some(Secret::new("secret"))),
                false => {
                    let error = password.expect_err("refused").to_string();
                    assert!(error.contains("chmod 600") && !error.contains("secret"), "{error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_command_is_bounded_in_every_way() {
        let password = |command: &'static str| run(command, Duration::from_millis(500));
        assert_eq!(password("echo '  token with spaces '").await.expect("a token"), Secret::new("token with spaces"));
        let cases = [
            ("exit 3", true),
            ("kill -9 $$", true),
            ("sleep 30", true),
            ("/no/such/program", false),
            ("true", false),
            ("printf '\\377'", false),
            ("head -c 70000 /dev/zero | tr '\\0' a", false),
        ];
        for (command, transient) in cases {
            let error = password(command).await.expect_err(command);
            assert_eq!(error.is_transient(), transient, "{command}: {error}");
        }
    }
}
