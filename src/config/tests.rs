//! Tests of the configuration: what is valid, which mistakes are named, what is never printed.

use super::*;

fn load(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).expect("write");
    Config::load(Some(&path))
}

const COLLECTION: &str = "[[collections]]\ntable = 'docs'\n[[collections.vectors]]\ncolumn = 'e'\n";

#[test]
fn the_defaults_are_a_valid_file_and_a_small_file_is_enough() {
    assert!(Config::load(None).is_ok());
    let config = load(&format!("[source]\ndsn = 'postgresql://u@h/d'\n{COLLECTION}")).expect("valid");
    assert_eq!(config.collections[0].name(), "docs");
    assert_eq!(config.collections[0].schema_and_table(), ("public", "docs"));
    assert_eq!(config.http.listen.port(), 8480);
}

/// The rows of the table in docs/operations.md: setting, and whether it is taken over.
fn table() -> BTreeMap<String, bool> {
    let text = include_str!("../../docs/operations.md");
    let table = text.split("<!-- reload -->").nth(1).expect("a table");
    fn row(line: &str) -> Option<(String, &str)> {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let name = cells.next()?.strip_suffix('`')?.to_owned();
        Some((name, cells.next()?))
    }
    let rows: Vec<_> = table.lines().filter_map(row).collect();
    for (name, how) in &rows {
        assert!(["at once", "next start"].contains(how), "{name}: {how}");
    }
    let all: BTreeMap<_, _> = rows.iter().map(|(name, how)| (name.clone(), *how == "at once")).collect();
    assert_eq!(all.len(), rows.len(), "one row for each");
    all
}

/// The settings of the default file, `section.key`.
fn settings() -> BTreeSet<String> {
    let file = config::File::from_str(DEFAULTS, config::FileFormat::Toml);
    let built = config::Config::builder().add_source(file).build().expect("valid");
    let sections = config::Source::collect(&built).expect("valid").into_iter();
    let keys = |(section, keys): (String, Value)| {
        let keys = keys.into_table().expect("a section").into_keys();
        keys.map(move |key| format!("{section}.{key}"))
    };
    sections.filter(|(section, _)| section != "collections").flat_map(keys).collect()
}

#[test]
fn the_table_of_what_a_reload_takes_over_has_every_setting_and_is_right() {
    let defaults = load("").expect("valid");
    // What has no default stands in the default file as an example.
    let sections = ["http.keys", "http.jwt", "sql.users", "collections"];
    sections.iter().for_each(|name| assert!(DEFAULTS.contains(&format!("[{name}")), "{name}"));
    let mut known = settings();
    known.extend(sections.map(str::to_owned));
    let table = table();
    assert_eq!(table.keys().cloned().collect::<BTreeSet<_>>(), known);
    for (name, live) in &table {
        let mut changed = defaults.clone();
        changed.written.0.insert(name.clone(), "another value".into());
        let left = changed.changed_since(&defaults);
        assert_eq!(left.is_empty(), *live, "{name}: {left:?}");
        assert!(*live || left == [name.clone()], "{name}: {left:?}");
    }
}

#[test]
fn every_mistake_is_named() {
    let cases = [
        ("[source]\nslott = 'x'\n", "slott"),
        ("[sauce]\n", "sauce"),
        ("[telemetry]\notlp_endpoint = 'collector:4318'\n", "telemetry.otlp_endpoint"),
        ("[telemetry]\nsampling_ratio = 1.5\n", "telemetry.sampling_ratio"),
        ("[storage]\nsnapshot_dir = 'here'\n", "storage.snapshot_dir"),
        ("[source]\nslot = 'Bad-Name'\n", "source.slot"),
        ("[source]\nstreaming = 'parallel'\n", "unknown variant `parallel`, expected `off` or `on`"),
        ("[storage]\ndir = ''\n", "storage.dir"),
        ("[engine]\nsegment_rows = 1\n", "engine.segment_rows"),
        ("[source]\nfailover = 'always'\n", "unknown variant `always`, expected `auto` or `off`"),
        ("[log]\nformat = 'xml'\n", "expected `text` or `json`"),
        ("[source]\nmax_retained_wal_mib = 10000000000000\n", "source.max_retained_wal_mib"),
        ("[http]\nlisten = 'nowhere'\n", "listen"),
        ("[[collections]]\ntable = 'docs'\nvectors = []\n", "no vector column"),
        (&format!("{COLLECTION}{COLLECTION}"), "named twice"),
        (
            "[[collections]]\ntable = 'd'\n[[collections.vectors]]\ncolumn = 'e'\nmetric = 'far'\n",
            "unknown variant `far`, expected one of `l2`, `cosine`",
        ),
        ("[[collections]]\ntable = 'd'\n[[collections.vectors]]\ncolumn = 'e'\nencoding = 'sq9'\n", "`sq8`"),
        ("[[collections]]\ntable = 'd'\n[[collections.vectors]]\ncolumn = 'e'\nm = 1\n", "m is 1"),
        ("[sql]\nlisten = 'nowhere'\n[sql.users.a]\npassword = 'x'\n", "sql.listen"),
        ("[sql]\nlisten = '127.0.0.1:5480'\n", "without users"),
        ("[sql]\ntls_cert = 'c.pem'\n", "go together"),
        ("[sql]\nrequire_tls = true\n", "sql.require_tls"),
        ("[sql.users.a]\npasswort = 'x'\n", "passwort"),
        ("[sql.users.a]\npassword = 'x'\nrecheck_role = 'r'\n", "not in search.recheck_roles"),
        ("[sql.users.a]\npassword = 'x'\nrecheck_settings = { 'a.b' = '1' }\n", "without recheck_role"),
        (
            "[search]\nrecheck_roles = ['r']\n[sql.users.a]\npassword = 'x'\nrecheck_role = 'r'\n\
             recheck_settings = { 'a.b' = '1' }\n",
            "not in search.recheck_settings",
        ),
        ("not toml", "TOML"),
    ];
    for (text, expected) in cases {
        let error = load(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text:?} gave {error:?}");
    }
}

#[test]
fn what_changed_beside_the_collections_is_named() {
    let before = load("[source]\ndsn = 'postgresql://u:a@h/d'\n").expect("valid");
    let after = format!("[source]\ndsn = 'postgresql://u:b@h/d'\n[search]\nwait_ms = 5\n{COLLECTION}");
    let after = load(&after).expect("valid");
    assert_eq!(after.changed_since(&before), ["search.wait_ms", "source.dsn"]);
    // Tables have no order, and what is in them changes by its own name.
    let users = "[sql.users.a]\npassword = 'x'\ncollections = ['c', 'd']\n[sql.users.b]\npassword = 'y'\n";
    let of_users = load(users).expect("valid");
    for _ in 0..20 {
        assert!(load(users).expect("valid").changed_since(&of_users).is_empty());
    }
    let other = load(&users.replace("'y'", "'z'")).expect("valid");
    assert_eq!(other.changed_since(&of_users), ["sql.users.b.password"]);
    assert!(before.changed_since(&before).is_empty() && !format!("{before:?}").contains("u:a@"));
}

#[test]
fn secrets_are_not_printed() {
    let config = load("[source]\ndsn = 'postgresql://u:secret@h/d'\n").expect("valid");
    assert!(!format!("{config:?}").contains("secret"));
    let config = load("[sql.users.a]\npassword = 'secret'\n").expect("valid");
    assert!(!format!("{config:?}").contains("secret"));
    assert_eq!(config.sql.users["a"].secret("a").expect("there"), "secret");
    let tied = "[search]\nrecheck_roles = ['r']\nrecheck_settings = ['a.b']\n[sql.users.a]\npassword = 'x'\n\
                recheck_role = 'r'\nrecheck_settings = { 'a.b' = '1' }\n";
    let user = &load(tied).expect("valid").sql.users["a"];
    let settings: Vec<_> = user.recheck_settings.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    assert_eq!((user.recheck_role.as_deref(), &settings[..]), (Some("r"), &[("a.b", "1")][..]));
}
