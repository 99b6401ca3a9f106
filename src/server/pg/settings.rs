//! A session's settings: what clients set is accepted and shown again; a few names mean something here.

use crate::model::{Exactness, Lsn, MAX_EF, Recheck};
use crate::server::problem::{self, Problem};
use std::collections::BTreeMap;
use std::time::Duration;

/// What clients are told of at start, in this order.
pub const REPORTED: [(&str, &str); 10] = [
    ("server_version", SERVER_VERSION),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
];

/// postgres_fdw sends older forms to older servers.
pub const SERVER_VERSION: &str = concat!("16.6 (ruvector ", env!("CARGO_PKG_VERSION"), ")");

/// What SHOW knows beside what was set and what is reported.
const FIXED: [(&str, &str); 8] = [
    ("transaction_isolation", "read committed"),
    ("default_transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
    ("search_path", "ruvector, collections"),
    ("server_version_num", "160006"),
    ("max_identifier_length", "63"),
    ("jit", "off"),
    ("extra_float_digits", "3"),
];

/// Most settings that a session keeps, and the longest, name and value, in bytes.
const MOST_SET: usize = 1_000;
const LONGEST: usize = 16 << 10;

/// What clients call the one encoding that is spoken; ASCII is a part of it.
const UTF8: [&str; 5] = ["utf8", "utf-8", "unicode", "sql_ascii", "auto"];

/// Settings of one session, by name in lower case.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    set: BTreeMap<String, String>,
    /// For the transaction only, and before the others.
    local: BTreeMap<String, String>,
    /// As they were at the start of the transaction.
    before: Option<BTreeMap<String, String>>,
    /// What RESET goes back to.
    started: BTreeMap<String, String>,
}

impl Settings {
    /// With what the start-up message says, `options` included.
    pub fn new(parameters: &BTreeMap<String, String>) -> Result<Settings, Problem> {
        let mut settings = Settings::default();
        for (name, value) in parameters {
            match name.as_str() {
                "user" | "database" | "replication" => {}
                "options" => {
                    for (name, value) in options(value) {
                        settings.set(&name, &value, false)?;
                    }
                }
                name => settings.set(name, value, false)?,
            }
        }
        settings.started.clone_from(&settings.set);
        Ok(settings)
    }

    /// SET, or SET LOCAL, which does nothing outside of a transaction.
    pub fn set(&mut self, name: &str, value: &str, local: bool) -> Result<(), Problem> {
        let (name, value) = (name.to_lowercase(), value.trim());
        let bad = |hint: &str| {
            let detail = format!("invalid value for parameter \"{name}\": {value:?}");
            Err(Problem::new(problem::BAD_SETTING, detail).hint(hint))
        };
        match name.as_str() {
            // asyncpg sends it in quotes.
            "client_encoding" if !UTF8.contains(&&*value.trim_matches('\'').to_lowercase()) => {
                return bad("only UTF8 is spoken here");
            }
            "ruvector.recheck" if recheck(value).is_none() && !value.is_empty() => {
                return bad("none, exists or exact");
            }
            "ruvector.recheck_role" if value.contains('\0') => return bad("the name of a role"),
            "ruvector.recheck_settings" if texts(value).is_none() && !value.is_empty() => {
                return bad("a JSON object of texts: {\"app.tenant\": \"7\"}");
            }
            "ruvector.ef_search" | "hnsw.ef_search" if !value.parse().is_ok_and(|ef| (1..=MAX_EF).contains(&ef)) => {
                return bad("a number from 1 to 100000");
            }
            "ruvector.search_exactness" if exactness(value).is_none() && !value.is_empty() => {
                return bad("fast, balanced or exact");
            }
            "ruvector.min_lsn" if value.parse::<Lsn>().is_err() && !value.is_empty() => {
                return bad("an LSN, as pg_current_wal_lsn() gives it");
            }
            "statement_timeout" if milliseconds(value).is_none() => return bad("a time, such as 5000 or '5s'"),
            _ => {}
        }
        let is_new = !self.set.contains_key(&name) && !self.local.contains_key(&name);
        if name.len() + value.len() > LONGEST || is_new && self.set.len() + self.local.len() >= MOST_SET {
            let detail = format!("a session keeps {MOST_SET} settings of {LONGEST} bytes");
            return Err(Problem::new(problem::BAD_SETTING, detail).hint("RESET ALL forgets them"));
        }
        match (local, self.before.is_some()) {
            (true, true) => drop(self.local.insert(name, value.to_owned())),
            (true, false) => {}
            (false, _) => {
                self.local.remove(&name);
                self.set.insert(name, value.to_owned());
            }
        }
        Ok(())
    }

    /// SHOW
    pub fn show(&self, name: &str) -> Result<String, Problem> {
        let name = name.to_lowercase();
        let known = |list: &[(&str, &str)]| {
            list.iter().find(|(other, _)| other.to_lowercase() == name).map(|(_, value)| (*value).to_owned())
        };
        let found = self
            .local
            .get(&name)
            .or_else(|| self.set.get(&name))
            .cloned()
            .or_else(|| known(&REPORTED))
            .or_else(|| known(&FIXED));
        found.ok_or_else(|| {
            let detail = format!("unrecognized configuration parameter \"{name}\"");
            Problem::new(problem::BAD_SETTING, detail)
                .hint("what was never set is not known here; docs/sql.md lists the settings")
        })
    }

    /// Is the client told when this changes? The name as it is told.
    pub fn reported(name: &str) -> Option<&'static str> {
        let also = ["application_name"];
        let names = REPORTED.iter().map(|(name, _)| *name).chain(also);
        names.into_iter().find(|other| other.eq_ignore_ascii_case(name))
    }

    /// RESET name, or RESET ALL.
    pub fn reset(&mut self, name: Option<&str>) {
        match name.map(str::to_lowercase) {
            None => {
                self.local.clear();
                self.set.clone_from(&self.started);
            }
            Some(name) => {
                self.local.remove(&name);
                self.set.remove(&name);
                if let Some(value) = self.started.get(&name) {
                    self.set.insert(name, value.clone());
                }
            }
        }
    }

    /// A transaction begins: what is set in it is forgotten when it is rolled back.
    pub fn begin(&mut self) {
        self.before = Some(self.set.clone());
    }

    /// It ends.
    pub fn end(&mut self, committed: bool) {
        self.local.clear();
        if let Some(before) = self.before.take().filter(|_| !committed) {
            self.set = before;
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.local.get(name).or_else(|| self.set.get(name)).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Search width.
    pub fn ef(&self) -> Option<usize> {
        self.get("ruvector.ef_search").or_else(|| self.get("hnsw.ef_search")).and_then(|value| value.parse().ok())
    }

    /// How much is compared with full vectors.
    pub fn exactness(&self) -> Option<Exactness> {
        self.get("ruvector.search_exactness").and_then(exactness)
    }

    /// How sure answers have to be.
    pub fn recheck(&self) -> Option<Recheck> {
        self.get("ruvector.recheck").and_then(recheck)
    }

    /// With whose eyes the source is asked.
    pub fn recheck_role(&self) -> Option<&str> {
        self.get("ruvector.recheck_role")
    }

    /// Settings that hold for the question.
    pub fn recheck_settings(&self) -> BTreeMap<String, String> {
        self.get("ruvector.recheck_settings").and_then(texts).unwrap_or_default()
    }

    /// How new answers have to be.
    pub fn min_lsn(&self) -> Option<Lsn> {
        self.get("ruvector.min_lsn").and_then(|value| value.parse().ok())
    }

    /// How long a statement may take.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.get("statement_timeout").and_then(milliseconds).filter(|ms| *ms > 0).map(Duration::from_millis)
    }
}

fn exactness(value: &str) -> Option<Exactness> {
    match value.to_lowercase().as_str() {
        "fast" => Some(Exactness::Fast),
        "balanced" => Some(Exactness::Balanced),
        "exact" => Some(Exactness::Exact),
        _ => None,
    }
}

/// A JSON object of texts.
fn texts(value: &str) -> Option<BTreeMap<String, String>> {
    let texts: BTreeMap<String, String> = serde_json::from_str(value).ok()?;
    texts.values().all(|text| !text.contains('\0')).then_some(texts)
}

fn recheck(value: &str) -> Option<Recheck> {
    match value.to_lowercase().as_str() {
        "none" => Some(Recheck::None),
        "exists" => Some(Recheck::Exists),
        "exact" => Some(Recheck::Exact),
        _ => None,
    }
}

/// `5000`, `5s`, `1min`
fn milliseconds(value: &str) -> Option<u64> {
    let digits = value.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match value[digits.len()..].trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// `-c name=value --name=value`, with backslashes before blanks.
fn options(text: &str) -> Vec<(String, String)> {
    let (mut words, mut word, mut chars) = (Vec::new(), String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => word.extend(chars.next()),
            c if c.is_ascii_whitespace() => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    let mut settings = Vec::new();
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = match word.as_str() {
            "-c" => words.next(),
            word => word.strip_prefix("-c").or_else(|| word.strip_prefix("--")).map(str::to_owned),
        };
        if let Some((name, value)) = setting.as_deref().and_then(|setting| setting.split_once('=')) {
            settings.push((name.replace('-', "_"), value.to_owned()));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(options: &str) -> Result<Settings, Problem> {
        Settings::new(&BTreeMap::from([("options".to_owned(), options.to_owned())]))
    }

    #[test]
    fn options_of_the_start_are_settings() {
        let settings = started(r"-c statement_timeout=5s -c ruvector.recheck=exact --hnsw.ef-search=70 -cx=a\ b");
        let mut settings = settings.expect("understood");
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(5)));
        assert_eq!((settings.recheck(), settings.ef()), (Some(Recheck::Exact), Some(70)));
        assert_eq!(settings.show("X").map_err(|problem| problem.detail), Ok("a b".into()));
        settings.set("statement_timeout", "0", false).expect("a time");
        assert_eq!(settings.statement_timeout(), None);
        settings.reset(None);
        assert_eq!(settings.statement_timeout(), Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_a_transaction_sets_is_rolled_back_with_it() {
        let mut settings = Settings::default();
        settings.begin();
        settings.set("ruvector.min_lsn", "0/10", false).expect("an LSN");
        settings.end(false);
        assert_eq!(settings.min_lsn(), None);
        settings.begin();
        settings.set("hnsw.ef_search", "7", true).expect("a number");
        assert_eq!(settings.ef(), Some(7));
        settings.end(true);
        assert_eq!(settings.ef(), None, "what was local ends with a commit, too");
    }

    #[test]
    fn there_is_an_end_to_what_a_session_keeps() {
        let mut settings = Settings::default();
        assert!(settings.set("a.b", &"x".repeat(LONGEST), false).is_err());
        for number in 0..MOST_SET {
            settings.set(&format!("a.b{number}"), "1", false).expect("room");
        }
        assert!(settings.set("a.c", "1", false).is_err_and(|problem| problem.hint.is_some()));
        settings.set("a.b7", "2", false).expect("one that is there");
    }

    #[test]
    fn wrong_values_are_refused() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("ruvector.recheck", "sometimes"),
            ("ruvector.min_lsn", "x"),
            ("ruvector.recheck_settings", "app.tenant=7"),
            ("ruvector.recheck_settings", r#"{"app.tenant": 7}"#),
            ("hnsw.ef_search", "many"),
            ("ruvector.search_exactness", "slow"),
            ("client_encoding", "LATIN1"),
            ("statement_timeout", "soon"),
        ] {
            assert!(settings.set(name, value, false).is_err_and(|problem| problem.hint.is_some()), "{name}");
        }
        assert!(settings.show("never.set").is_err());
        assert!(started("-c ruvector.recheck=never").is_err());
    }
}
