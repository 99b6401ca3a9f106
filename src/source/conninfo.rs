//! Connection strings as libpq takes them: `postgresql://` URIs and `key=value` words -> hosts to try and how.
//!
//! Differences from libpq, all on purpose. A host must be named: a service has no silent default. Of the environment only
//! `PGPASSWORD`, `PGPASSFILE` and `~/.pgpass` are read (`password.rs`): a stray `PGHOST` must not point the service at
//! another server. Nothing below `~/.postgresql` is read: whom we trust stands in the string. `connect_timeout` is 10 s
//! where it is absent, and always has an end.

use crate::source::{Result, SourceError};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

const REMEDY: &str = "expected postgresql://user:password@host:port/database?sslmode=verify-full or host=... user=... \
                      dbname=..., as libpq takes them";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// What libpq calls waiting for ever.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(600);
const DEFAULT_PORT: u16 = 5432;

/// Something that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes it in.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// Hands it to whoever sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name: what a certificate must say, what a password file is searched for. A path for a unix socket.
    pub host: String,
    /// The address to connect to where the name is not to be looked up.
    pub address: Option<String>,
    /// TCP port, or the socket's number.
    pub port: u16,
}

impl Target {
    /// Is it a socket in a directory (or, with `@`, an abstract one)?
    pub fn is_unix(&self) -> bool {
        self.address.is_none() && self.host.starts_with(['/', '@'])
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.is_empty() { self.address.as_deref().unwrap_or("?") } else { &self.host };
        match host.contains(':') {
            true => write!(f, "[{host}]:{}", self.port),
            false => write!(f, "{host}:{}", self.port),
        }
    }
}

/// `sslmode`, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server insists.
    Allow,
    /// TLS where the server can; libpq's default.
    Prefer,
    /// TLS, whoever answers.
    Require,
    /// TLS with a certificate of a trusted authority.
    VerifyCa,
    /// The same, and made out for this host.
    VerifyFull,
}

/// Whom we trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The authorities of the operating system.
    System,
    /// A file of certificates.
    File(PathBuf),
}

/// Everything about TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssl {
    /// How much of it; `Require` with `roots` has become `VerifyCa`, as in libpq.
    pub mode: SslMode,
    /// Present wherever certificates are verified.
    pub roots: Option<Roots>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// `channel_binding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where the server offers it.
    Prefer,
    /// Or no connection.
    Require,
}

/// `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// Whoever answers.
    Any,
    /// Takes writes.
    ReadWrite,
    /// Takes none.
    ReadOnly,
    /// Not in hot standby.
    Primary,
    /// In hot standby.
    Standby,
    /// A standby where there is one, else anybody.
    PreferStandby,
}

/// Settings of the TCP socket; `None` leaves the system's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tcp {
    /// `keepalives=0`.
    pub no_keepalives: bool,
    /// `keepalives_idle`.
    pub idle: Option<Duration>,
    /// `keepalives_interval`.
    pub interval: Option<Duration>,
    /// `keepalives_count`.
    pub count: Option<u32>,
    /// `tcp_user_timeout`.
    pub user_timeout: Option<Duration>,
}

/// A connection string, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnInfo {
    /// The servers, in the order to try. At least one.
    pub targets: Vec<Target>,
    /// Role.
    pub user: String,
    /// Password, where the string has it.
    pub password: Option<Secret>,
    /// Password file, where the string names one.
    pub passfile: Option<PathBuf>,
    /// Database.
    pub database: String,
    /// TLS.
    pub ssl: Ssl,
    /// Channel binding.
    pub channel_binding: ChannelBinding,
    /// For one address, from the first packet to the end of the authentication.
    pub connect_timeout: Duration,
    /// How the server lists us.
    pub application_name: String,
    /// Command-line options for the server's session.
    pub options: Option<String>,
    /// The socket.
    pub tcp: Tcp,
    /// Which kind of server.
    pub session: SessionKind,
}

impl ConnInfo {
    /// Understands a connection string. Errors name the key, never a value.
    pub fn parse(text: &str) -> Result<ConnInfo> {
        let words = match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
            Some(rest) => Uri(rest).words(),
            None => key_values(text),
        };
        words.and_then(build).map_err(|problem| SourceError::refused(format!("source.dsn: {problem}"), REMEDY))
    }
}

type Words = BTreeMap<String, String>;
type Parsed<T> = std::result::Result<T, String>;

fn insert(words: &mut Words, key: &str, value: String) -> Parsed<()> {
    if value.contains('\0') {
        return Err(format!("{key} has a zero byte"));
    }
    // Of several the last wins, as in libpq; `ssl=true` is how JDBC says it.
    match (key, value.as_str()) {
        ("ssl", "true") => words.insert("sslmode".into(), "require".into()),
        _ => words.insert(key.to_owned(), value),
    };
    Ok(())
}

/// `key = value` words; quotes and backslashes as in libpq.
fn key_values(text: &str) -> Parsed<Words> {
    let mut words = Words::new();
    let mut rest = text.trim_start();
    let mut previous = String::new();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            // The word itself may be the rest of a password with a space in it.
            let place = if previous.is_empty() { "at its start".into() } else { format!("after {previous}") };
            return Err(format!("a word without = {place}; put values with spaces in '...'"));
        };
        if key.is_empty() {
            return Err("a = without a key before it".into());
        }
        let (value, after) = value(after.trim_start()).ok_or_else(|| format!("the quotes of {key} do not end"))?;
        insert(&mut words, key, value)?;
        previous = key.to_owned();
        rest = after.trim_start();
    }
    Ok(words)
}

/// A value and what follows; `None` where a quote does not end.
fn value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut out = String::new();
    let mut chars = text.char_indices();
    if quoted {
        chars.next();
    }
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Some((out, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Some((out, &text[at..])),
            c => out.push(c),
        }
    }
    (!quoted).then_some((out, ""))
}

/// What follows the scheme.
struct Uri<'a>(&'a str);

impl<'a> Uri<'a> {
    fn until(&mut self, stops: &[char]) -> &'a str {
        let (found, rest) = self.0.split_at(self.0.find(stops).unwrap_or(self.0.len()));
        self.0 = rest;
        found
    }

    fn eat(&mut self, c: char) -> bool {
        self.0.strip_prefix(c).inspect(|rest| self.0 = rest).is_some()
    }

    fn words(mut self) -> Parsed<Words> {
        let mut words = Words::new();
        self.user(&mut words)?;
        self.hosts(&mut words)?;
        if self.eat('/') {
            let name = self.until(&['?']);
            if !name.is_empty() {
                insert(&mut words, "dbname", decode(name, "dbname")?)?;
            }
        }
        if self.eat('?') {
            self.parameters(&mut words)?;
        }
        Ok(words)
    }

    /// Only an `@` before the first `/` ends a user: later ones belong to values.
    fn user(&mut self, words: &mut Words) -> Parsed<()> {
        let Some(end) = self.0.find(['@', '/']).filter(|end| self.0[*end..].starts_with('@')) else { return Ok(()) };
        let (user, password) = match self.0[..end].split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (&self.0[..end], None),
        };
        if !user.is_empty() {
            insert(words, "user", decode(user, "user")?)?;
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            insert(words, "password", decode(password, "password")?)?;
        }
        self.0 = &self.0[end + 1..];
        Ok(())
    }

    fn hosts(&mut self, words: &mut Words) -> Parsed<()> {
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        loop {
            let host = match self.eat('[') {
                true => {
                    let address = self.until(&[']']);
                    if address.is_empty() || !self.eat(']') {
                        return Err("an address in [] is empty or does not end".into());
                    }
                    if !self.0.is_empty() && !self.0.starts_with([':', '/', '?', ',']) {
                        return Err("something follows an address in []".into());
                    }
                    address
                }
                false => self.until(&[':', '/', '?', ',']),
            };
            if host.contains('@') {
                return Err("a host with @ in it: write %40 for the @ of a user or password".into());
            }
            hosts.push(decode(host, "host")?);
            ports.push(if self.eat(':') { self.until(&['/', '?', ',']) } else { "" });
            if !self.eat(',') {
                break;
            }
        }
        if hosts.iter().any(|host| !host.is_empty()) {
            insert(words, "host", hosts.join(","))?;
        }
        if ports.iter().any(|port| !port.is_empty()) {
            insert(words, "port", decode(&ports.join(","), "port")?)?;
        }
        Ok(())
    }

    fn parameters(&mut self, words: &mut Words) -> Parsed<()> {
        for parameter in self.0.split('&').filter(|parameter| !parameter.is_empty()) {
            let Some((key, value)) = parameter.split_once('=') else {
                return Err("a parameter of the URI has no =".into());
            };
            let key = decode(key, "a key")?;
            insert(words, &key, decode(value, &key)?)?;
        }
        Ok(())
    }
}

/// `%XX` -> bytes, which must be UTF-8.
fn decode(text: &str, key: &str) -> Parsed<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err(format!("{key} has a % that is not followed by two hexadecimal digits; write %25")),
        }
    }
    String::from_utf8(out).map_err(|_| format!("{key} is not UTF-8"))
}

/// Keys of libpq that we have no use for or cannot honour; the second is what may be said without changing anything.
const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("client_encoding", &["utf8", "UTF8", "utf-8", "UTF-8", "auto"]),
    ("gssencmode", &["disable", "prefer"]),
    ("gssdelegation", &["0"]),
    ("gsslib", &[]),
    ("krbsrvname", &[]),
    ("load_balance_hosts", &["disable"]),
    ("replication", &[]),
    ("require_auth", &[]),
    ("requirepeer", &[]),
    ("service", &[]),
    ("sslcertmode", &["allow"]),
    ("sslcompression", &["0"]),
    ("sslcrl", &[]),
    ("sslcrldir", &[]),
    ("sslkeylogfile", &[]),
    ("sslnegotiation", &["postgres"]),
    ("sslpassword", &[]),
    ("sslsni", &["1"]),
    ("ssl_max_protocol_version", &["TLSv1.3"]),
    ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2"]),
];

fn build(mut words: Words) -> Parsed<ConnInfo> {
    // An empty value is an absent one, as in libpq.
    words.retain(|_, value| !value.is_empty());
    let mut take = |key: &str| words.remove(key);
    let targets = targets(take("host"), take("hostaddr"), take("port"))?;
    let application_name = take("application_name").or(take("fallback_application_name"));
    let channel_binding = match take("channel_binding") {
        None => ChannelBinding::Prefer,
        Some(value) => one_of("channel_binding", &value, CHANNEL_BINDINGS)?,
    };
    let ssl = ssl(take("sslmode"), take("sslrootcert"), take("sslcert"), take("sslkey"))?;
    if channel_binding == ChannelBinding::Require && ssl.mode == SslMode::Disable {
        return Err("channel_binding=require needs TLS, which sslmode=disable forbids".into());
    }
    let user = take("user").or_else(|| ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()));
    let user = user.ok_or("names no user")?;
    let info = ConnInfo {
        targets,
        password: take("password").map(Secret),
        passfile: take("passfile").map(PathBuf::from),
        database: take("dbname").unwrap_or_else(|| user.clone()),
        user,
        ssl,
        channel_binding,
        connect_timeout: connect_timeout(take("connect_timeout"))?,
        application_name: application_name.unwrap_or_else(|| "ruvector".into()),
        options: take("options"),
        tcp: tcp(&mut take)?,
        session: match take("target_session_attrs") {
            None => SessionKind::Any,
            Some(value) => one_of("target_session_attrs", &value, SESSION_KINDS)?,
        },
    };
    words.into_iter().try_for_each(|(key, value)| left_over(&key, &value))?;
    Ok(info)
}

fn left_over(key: &str, value: &str) -> Parsed<()> {
    match UNSUPPORTED.iter().find(|(known, _)| *known == key) {
        Some((_, harmless)) if harmless.contains(&value) => Ok(()),
        Some((_, [])) => Err(format!("{key} is not supported")),
        Some((_, harmless)) => Err(format!("{key} can only be {} here", harmless.join(" or "))),
        None => Err(format!("unknown key {key:?}")),
    }
}

const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

const CHANNEL_BINDINGS: &[(&str, ChannelBinding)] =
    &[("disable", ChannelBinding::Disable), ("prefer", ChannelBinding::Prefer), ("require", ChannelBinding::Require)];

const SESSION_KINDS: &[(&str, SessionKind)] = &[
    ("any", SessionKind::Any),
    ("read-write", SessionKind::ReadWrite),
    ("read-only", SessionKind::ReadOnly),
    ("primary", SessionKind::Primary),
    ("standby", SessionKind::Standby),
    ("prefer-standby", SessionKind::PreferStandby),
];

fn one_of<T: Copy>(key: &str, value: &str, table: &[(&str, T)]) -> Parsed<T> {
    let found = table.iter().find(|(name, _)| *name == value).map(|(_, meaning)| *meaning);
    let names = || table.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| format!("{key} must be one of {}", names()))
}

fn ssl(mode: Option<String>, roots: Option<String>, cert: Option<String>, key: Option<String>) -> Parsed<Ssl> {
    let roots = roots.map(|file| match file.as_str() {
        "system" => Roots::System,
        _ => Roots::File(file.into()),
    });
    let mode = match (mode, &roots) {
        (Some(mode), _) => one_of("sslmode", &mode, SSL_MODES)?,
        (None, Some(Roots::System)) => SslMode::VerifyFull,
        (None, _) => SslMode::Prefer,
    };
    // Anybody can have a certificate of a public authority: without the host's name it proves nothing.
    if roots == Some(Roots::System) && mode != SslMode::VerifyFull {
        return Err("sslrootcert=system needs sslmode=verify-full".into());
    }
    if mode >= SslMode::VerifyCa && roots.is_none() {
        return Err(
            "sslmode=verify-ca and verify-full need sslrootcert: a file, or system for public authorities".into()
        );
    }
    let mode = if mode == SslMode::Require && roots.is_some() { SslMode::VerifyCa } else { mode };
    let identity = match (cert, key) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        _ => return Err("sslcert and sslkey belong together".into()),
    };
    Ok(Ssl { mode, roots, identity })
}

fn targets(hosts: Option<String>, addresses: Option<String>, ports: Option<String>) -> Parsed<Vec<Target>> {
    let list = |text: &Option<String>| -> Vec<String> {
        text.iter().flat_map(|text| text.split(',')).map(|item| item.trim().to_owned()).collect()
    };
    let (hosts, addresses) = (list(&hosts), list(&addresses));
    let ports: Vec<u16> = list(&ports).iter().map(|text| port(text)).collect::<Parsed<_>>()?;
    let count = hosts.len().max(addresses.len());
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(format!("{} in host, but {} in hostaddr", hosts.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("{} in port for {count} hosts", ports.len()));
    }
    let target = |at: usize| {
        let host = hosts.get(at).cloned().unwrap_or_default();
        let address = addresses.get(at).filter(|address| !address.is_empty()).cloned();
        if host.is_empty() && address.is_none() {
            return Err("an empty host".to_owned());
        }
        if address.as_ref().is_some_and(|address| address.parse::<std::net::IpAddr>().is_err()) {
            return Err("hostaddr must be an IP address; names go into host".to_owned());
        }
        Ok(Target { host, address, port: ports.get(at).or(ports.first()).copied().unwrap_or(DEFAULT_PORT) })
    };
    match count {
        0 => Err("names no host".into()),
        _ => (0..count).map(target).collect(),
    }
}

fn port(text: &str) -> Parsed<u16> {
    match text.is_empty() {
        true => Ok(DEFAULT_PORT),
        false => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "port must be 1 to 65535".to_owned()),
    }
}

fn number<T: std::str::FromStr>(key: &str, value: Option<String>) -> Parsed<Option<T>> {
    let parse = |value: String| value.trim().parse().map_err(|_| format!("{key} must be a whole number"));
    value.map(parse).transpose()
}

fn connect_timeout(value: Option<String>) -> Parsed<Duration> {
    Ok(match number::<i64>("connect_timeout", value)? {
        None => DEFAULT_TIMEOUT,
        Some(..=0) => LONGEST_TIMEOUT,
        Some(seconds) => Duration::from_secs(seconds.unsigned_abs()).min(LONGEST_TIMEOUT),
    })
}

fn tcp(take: &mut impl FnMut(&str) -> Option<String>) -> Parsed<Tcp> {
    let mut seconds = |key: &str| -> Parsed<Option<u64>> {
        Ok(number::<i64>(key, take(key))?.filter(|n| *n > 0).map(i64::unsigned_abs))
    };
    let (idle, interval) = (seconds("keepalives_idle")?, seconds("keepalives_interval")?);
    let (count, user_timeout) = (seconds("keepalives_count")?, seconds("tcp_user_timeout")?);
    Ok(Tcp {
        no_keepalives: number::<i64>("keepalives", take("keepalives"))? == Some(0),
        idle: idle.map(Duration::from_secs),
        interval: interval.map(Duration::from_secs),
        count: count.map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        user_timeout: user_timeout.map(Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> ConnInfo {
        ConnInfo::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn places(text: &str) -> Vec<String> {
        parsed(text).targets.iter().map(Target::to_string).collect()
    }

    #[test]
    fn hosts_and_ports_in_both_forms() {
        let cases: &[(&str, &[&str])] = &[
            ("postgresql://u@db.example/d", &["db.example:5432"]),
            ("postgres://u@db.example:6432", &["db.example:6432"]),
            ("postgresql://u@[2001:db8::7]:6432/d", &["[2001:db8::7]:6432"]),
            ("postgresql://u@[::1]/d", &["[::1]:5432"]),
            ("postgresql://u@one:1,two,[::3]:3/d", &["one:1", "two:5432", "[::3]:3"]),
            ("postgresql://u@%2Ftmp%2Fsock/d", &["/tmp/sock:5432"]),
            ("postgresql://u@/d?host=/tmp&port=7", &["/tmp:7"]),
            ("postgresql:///d?user=u&host=h", &["h:5432"]),
            ("postgresql://u@h?port=7", &["h:7"]),
            ("host=h user=u", &["h:5432"]),
            ("host=a,b port=1 user=u", &["a:1", "b:1"]),
            ("host=a,b port=1,2 user=u", &["a:1", "b:2"]),
            ("host=a,b port=,2 user=u", &["a:5432", "b:2"]),
            ("hostaddr=::1 user=u", &["[::1]:5432"]),
            ("host=db.example hostaddr=127.0.0.1 user=u", &["db.example:5432"]),
            ("host=first host=last user=u", &["last:5432"]),
        ];
        for (text, expected) in cases {
            assert_eq!(places(text), *expected, "{text}");
        }
        let both = &parsed("host=db.example hostaddr=127.0.0.1 user=u").targets[0];
        assert_eq!((both.host.as_str(), both.address.as_deref()), ("db.example", Some("127.0.0.1")));
        let unix = |text| parsed(text).targets[0].is_unix();
        assert!(unix("host=/tmp user=u") && unix("host=@abstract user=u") && !unix("host=h user=u"));
    }

    #[test]
    fn quotes_escapes_and_percent_signs() {
        let text = r"host = h user='it\'s me' password = 'a \\ b' dbname=a\ b  options='-c x=1 -c y=2'";
        let info = parsed(text);
        assert_eq!((info.user.as_str(), info.database.as_str()), ("it's me", "a b"));
        assert_eq!(info.password, Some(Secret::new(r"a \ b")));
        assert_eq!(info.options.as_deref(), Some("-c x=1 -c y=2"));
        let info = parsed("postgresql://%C3%BC:p%40%2F%25%3A@h/d%20b?options=-c%20x%3D1&application_name=me");
        assert_eq!((info.user.as_str(), info.database.as_str()), ("ü", "d b"));
        assert_eq!(info.password, Some(Secret::new("p@/%:")));
        assert_eq!((info.options.as_deref(), info.application_name.as_str()), (Some("-c x=1"), "me"));
        // A password may hold ? and : as they are, a database name an @.
        let info = parsed("postgresql://u:a?b:c@h/x@y");
        assert_eq!((info.password, info.database.as_str()), (Some(Secret::new("a?b:c")), "x@y"));
        assert_eq!(parsed("host=h user=u password=''").password, None);
    }

    #[test]
    fn defaults_are_libpqs_or_documented() {
        let info = parsed("postgresql://u@h");
        assert_eq!((info.database.as_str(), info.application_name.as_str()), ("u", "ruvector"));
        assert_eq!(info.ssl, Ssl { mode: SslMode::Prefer, roots: None, identity: None });
        assert_eq!((info.channel_binding, info.session), (ChannelBinding::Prefer, SessionKind::Any));
        assert_eq!((info.connect_timeout, info.tcp), (Duration::from_secs(10), Tcp::default()));
        assert_eq!(parsed("host=h user=u connect_timeout=0").connect_timeout, LONGEST_TIMEOUT);
        assert_eq!(parsed("host=h user=u connect_timeout=3").connect_timeout, Duration::from_secs(3));
    }

    #[test]
    fn tls_settings() {
        let mode = |text: &str| parsed(&format!("host=h user=u {text}")).ssl.mode;
        for (name, expected) in &SSL_MODES[..4] {
            assert_eq!(mode(&format!("sslmode={name}")), *expected);
        }
        assert_eq!(mode("sslmode=require sslrootcert=/ca.pem"), SslMode::VerifyCa);
        assert_eq!(mode("sslmode=prefer sslrootcert=/ca.pem"), SslMode::Prefer);
        assert_eq!(mode("sslrootcert=system"), SslMode::VerifyFull);
        assert_eq!(parsed("postgresql://u@h/?ssl=true").ssl.mode, SslMode::Require);
        let full = parsed("postgresql://u@h/?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem");
        assert_eq!(full.ssl.roots, Some(Roots::File("/ca.pem".into())));
        assert_eq!(full.ssl.identity, Some(("/c.pem".into(), "/k.pem".into())));
    }

    #[test]
    fn sockets_and_sessions() {
        let text = "host=h user=u keepalives=1 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 \
                    tcp_user_timeout=1500 target_session_attrs=read-write channel_binding=require sslmode=require";
        let info = parsed(text);
        let tcp = Tcp {
            no_keepalives: false,
            idle: Some(Duration::from_secs(5)),
            interval: Some(Duration::from_secs(2)),
            count: Some(3),
            user_timeout: Some(Duration::from_millis(1500)),
        };
        assert_eq!((info.tcp, info.session), (tcp, SessionKind::ReadWrite));
        assert_eq!(info.channel_binding, ChannelBinding::Require);
        assert!(parsed("host=h user=u keepalives=0").tcp.no_keepalives);
        for (name, kind) in SESSION_KINDS {
            assert_eq!(parsed(&format!("host=h user=u target_session_attrs={name}")).session, *kind);
        }
    }

    #[test]
    fn mistakes_are_named_and_secrets_are_not() {
        let cases = [
            ("", "names no host"),
            ("user=u", "names no host"),
            ("postgresql://u@", "names no host"),
            ("nonsense", "a word without ="),
            ("host=h user=u password=my secret", "after password"),
            ("host=h user=u password='secret", "quotes of password"),
            ("=secret", "without a key"),
            ("host=h user=u sslmod=require", "\"sslmod\""),
            ("postgresql://u@h?sslmod=secret", "\"sslmod\""),
            ("postgresql://u@h?secret", "no ="),
            ("postgresql://u:sec%rets@h", "password has a %"),
            ("postgresql://u:secret%FF@h", "password is not UTF-8"),
            ("postgresql://u:secret%00@h", "password has a zero byte"),
            ("postgresql://u:p@secret@h", "%40"),
            ("postgresql://u@[::1/d", "[]"),
            ("postgresql://u@[::1]x/d", "[]"),
            ("postgresql://u@h:0/d", "port must be"),
            ("postgresql://u@h:65536/d", "port must be"),
            ("host=a,b port=1,2,3 user=u", "3 in port for 2 hosts"),
            ("host=a,b hostaddr=::1 user=u", "hostaddr"),
            ("host=h hostaddr=name user=u", "hostaddr must be"),
            ("host=a,,b user=u", "an empty host"),
            ("host=h user=u sslmode=secret", "sslmode must be one of disable, allow"),
            ("host=h user=u sslmode=verify-full", "sslrootcert"),
            ("host=h user=u sslmode=require sslrootcert=system", "verify-full"),
            ("host=h user=u sslcert=/c", "belong together"),
            ("host=h user=u sslcrl=/c", "sslcrl is not supported"),
            ("host=h user=u gssencmode=require", "gssencmode can only be disable or prefer"),
            ("host=h user=u channel_binding=require sslmode=disable", "needs TLS"),
            ("host=h user=u connect_timeout=soon", "connect_timeout must be"),
            ("host=h user=u target_session_attrs=master", "target_session_attrs must be one of any"),
        ];
        for (text, expected) in cases {
            let error = ConnInfo::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
            assert!(!error.contains("secret"), "{text:?} gave {error:?}");
        }
        assert!(!format!("{:?}", parsed("postgresql://u:secret@h")).contains("secret"));
    }
}
