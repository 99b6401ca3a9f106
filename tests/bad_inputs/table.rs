//! The tables of bad inputs: text that is read as it is written down in `README.md` beside this file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What a case must come to.
#[derive(Debug, Clone)]
pub struct Expected {
    /// HTTP status, exit code, or SQLSTATE.
    pub outcome: String,
    /// Our code of the error: `RV1001`; none where the table says `bare`, and for the command line.
    pub code: Option<String>,
    /// What the answer must have in it.
    pub words: Vec<String>,
}

/// One bad input.
#[derive(Debug, Clone)]
pub struct Case {
    /// Where it stands.
    pub place: String,
    /// What is wrong.
    pub what: String,
    /// What the last `@` line before it says.
    pub under: String,
    /// Its lines.
    pub input: Vec<String>,
    pub expected: Expected,
}

/// What `$NAME` stands for.
pub type Names = BTreeMap<&'static str, String>;

/// All cases of a table of this folder. No two of them are the same.
pub fn read(name: &str) -> Vec<Case> {
    let path = folder().join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut cases, mut under, mut what, mut input) = (Vec::new(), String::new(), None, Vec::new());
    for (at, line) in text.lines().enumerate() {
        let place = format!("{name}:{}", at + 1);
        let inner = line.trim_start();
        match (line.strip_prefix("@ "), inner.strip_prefix("-> ")) {
            _ if inner.is_empty() || line.starts_with('#') => {}
            (Some(rest), _) => under = rest.to_owned(),
            (None, Some(rest)) => {
                let what: String = what.take().unwrap_or_else(|| panic!("{place}: an outcome of nothing"));
                let expected = expected(rest, &place);
                cases.push(Case { place, what, under: under.clone(), input: std::mem::take(&mut input), expected });
            }
            _ if inner.len() < line.len() => input.push(inner.to_owned()),
            _ => {
                assert!(what.is_none(), "{place}: the case before has no outcome");
                what = Some(line.to_owned());
            }
        }
    }
    assert!(what.is_none() && input.is_empty(), "{name}: the last case has no outcome");
    let mut seen = BTreeSet::new();
    for case in &cases {
        assert!(seen.insert((&case.under, &case.input)), "{}: the input was there before", case.place);
    }
    cases
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_inputs")
}

/// `400 RV1001 "word" "another"`
fn expected(text: &str, place: &str) -> Expected {
    let (head, quoted) = text.split_once('"').map_or((text, ""), |(head, rest)| (head, rest));
    let words = quoted.split('"').step_by(2).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let mut head = head.split_whitespace();
    let outcome = head.next().unwrap_or_else(|| panic!("{place}: no outcome")).to_owned();
    let code = head.next().filter(|code| *code != "bare").map(str::to_owned);
    assert!(head.next().is_none(), "{place}: {text}");
    Expected { outcome, code, words }
}

impl Case {
    /// Its lines as one text, with everything that stands for something replaced.
    pub fn text(&self, names: &Names) -> String {
        self.input.iter().map(|line| written_out(line, names)).collect::<Vec<_>>().join("\n")
    }
}

/// `$NAME` -> its text, longer names first; `$<3000 (>` -> 3000 parentheses.
pub fn written_out(text: &str, names: &Names) -> String {
    let mut text = text.to_owned();
    let mut by_length: Vec<_> = names.iter().collect();
    by_length.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, value) in by_length {
        text = text.replace(&format!("${name}"), value);
    }
    while let Some((before, rest)) = text.split_once("$<") {
        let (inner, after) = rest.split_once('>').expect("a repetition ends with >");
        let (count, what) = inner.split_once(' ').expect("a number and what is repeated");
        text = format!("{before}{}{after}", what.repeat(count.parse().expect("a number")));
    }
    text
}

/// `\r`, `\n`, `\t`, `\0`, `\\` and `\xff` -> bytes; anything else is itself.
pub fn bytes(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.as_bytes());
        let (byte, length) = match after.as_bytes() {
            [b'r', ..] => (b'\r', 1),
            [b'n', ..] => (b'\n', 1),
            [b't', ..] => (b'\t', 1),
            [b'0', ..] => (0, 1),
            [b'x', ..] => (u8::from_str_radix(&after[1..3], 16).expect("two digits"), 3),
            _ => (b'\\', usize::from(after.starts_with('\\'))),
        };
        bytes.push(byte);
        rest = &after[length..];
    }
    bytes.extend(rest.as_bytes());
    bytes
}
