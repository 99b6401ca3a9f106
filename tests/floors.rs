//! The floors of the source, read from the source: who imports whom, and where async, `unwrap` and `unsafe` may be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every module of `src/` and its floor. Imports go down; neighbours on a floor are strangers.
const FLOORS: [(&str, u8); 17] = [
    ("model", 0),
    ("failpoint", 0),
    ("telemetry", 0),
    ("storage", 1),
    ("source", 1),
    ("integrity", 2),
    ("tenancy", 2),
    ("replication", 3),
    ("engine", 3),
    ("consistency", 4),
    ("cluster", 4),
    ("query", 5),
    ("healing", 5),
    ("server", 6),
    ("config", 7),
    ("node", 8),
    ("cli", 9),
];

/// Where `unsafe` may be.
const UNSAFE: [&str; 7] = [
    "engine/arena.rs",
    "engine/codes/",
    "engine/distance/",
    "engine/hnsw/",
    // Kills its own process, which the standard library does not offer.
    "failpoint.rs",
    // Maps files that are ours alone.
    "storage/files.rs",
    // Reads the process' clocks, which the standard library does not offer.
    "cli/bench_ann.rs",
];

/// Floors without async.
const SYNCHRONOUS: [&str; 2] = ["engine/", "storage/"];

/// Where our files are reached through the seam alone, and who makes it; the data directory's lock is beside it.
const THROUGH_THE_SEAM: [&str; 3] = ["engine/", "storage/", "node/"];
const THE_SEAM: [&str; 3] = ["storage/files.rs", "storage/data_dir.rs", "storage/ownership.rs"];

/// The crate itself, which only joins the modules.
const ROOTS: [&str; 2] = ["lib.rs", "main.rs"];

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The same text with comments and the contents of literals blanked out, line by line and column by column.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skip = if rest.starts_with(b"//") {
            rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| at == 0 || !is_word(bytes[at - 1])) {
            length
        } else if rest[0] == b'"' {
            quoted(rest, b'"')
        } else if rest[0] == b'\'' && is_char_literal(rest) {
            quoted(rest, b'\'')
        } else {
            at += 1;
            continue;
        };
        code[at..at + skip].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at += skip;
    }
    String::from_utf8(code).expect("whole characters were blanked")
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn block_comment(text: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Length of the raw string that starts here, if one does.
fn raw_string(text: &[u8]) -> Option<usize> {
    let start = if text.starts_with(b"br") { 2 } else { usize::from(text.starts_with(b"r")) };
    let hashes = text.get(start..).filter(|_| start > 0)?.iter().take_while(|&&byte| byte == b'#').count();
    let open = start + hashes;
    (text.get(open) == Some(&b'"')).then_some(())?;
    let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let end = text[open + 1..].windows(close.len()).position(|window| window == close);
    Some(end.map_or(text.len(), |end| open + 1 + end + close.len()))
}

fn quoted(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// Or a lifetime?
fn is_char_literal(text: &[u8]) -> bool {
    match text.get(1) {
        Some(b'\\') => true,
        Some(&byte) if byte.is_ascii() => text.get(2) == Some(&b'\''),
        Some(_) => true,
        None => false,
    }
}

/// Places where `word` stands by itself.
fn words<'t>(code: &'t str, word: &'t str) -> impl Iterator<Item = usize> + 't {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let free = |byte: Option<&u8>| byte.is_none_or(|&byte| !is_word(byte));
        free(at.checked_sub(1).and_then(|at| bytes.get(at))) && free(bytes.get(at + word.len()))
    })
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The first names of the tree that follows `crate::`: one, or those of a list in braces. `None` when it has none that
/// can be read.
fn first_names(tree: &str) -> Option<Vec<&str>> {
    let tree = tree.trim_start();
    let Some(list) = tree.strip_prefix('{') else {
        let end = tree.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(tree.len());
        return (end > 0).then(|| vec![&tree[..end]]);
    };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in list.char_indices() {
        let ends = depth == 0 && (c == ',' || c == '}');
        if ends && !list[start..at].trim().is_empty() {
            names.extend(first_names(&list[start..at])?);
        }
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(names),
            '}' => depth -= 1,
            ',' if depth == 0 => start = at + 1,
            _ => {}
        }
    }
    None
}

/// Every module of the crate that this file names, with the line.
fn imports(file: &str, code: &str) -> Result<Vec<(String, usize)>, String> {
    let mut found = Vec::new();
    for root in ["crate", "ruvector"] {
        for at in words(code, root) {
            let line = line_of(code, at);
            let after = code[at + root.len()..].trim_start();
            match after.strip_prefix("::") {
                Some(tree) => {
                    let names = first_names(tree).ok_or_else(|| format!("{file}:{line}: unreadable import"))?;
                    found.extend(names.into_iter().map(|name| (name.to_owned(), line)));
                }
                None if root == "crate" && !after.starts_with(')') => {
                    return Err(format!("{file}:{line}: name the module plainly, as in crate::module"));
                }
                None => {}
            }
        }
    }
    // In a module's own file `super` is the crate; further up nothing should need to climb.
    let depth = file.matches('/').count() - usize::from(file.ends_with("/mod.rs"));
    for at in words(code, "super") {
        let line = line_of(code, at);
        let tree = code[at..].trim_start_matches("super").trim_start().strip_prefix("::").unwrap_or_default();
        let names = first_names(tree).unwrap_or_default();
        if names.contains(&"super") {
            return Err(format!("{file}:{line}: super::super; name the module plainly, as in crate::module"));
        }
        if depth == 0 {
            let modules = names.into_iter().filter(|name| floor(name).is_some());
            found.extend(modules.map(|name| (name.to_owned(), line)));
        }
    }
    Ok(found)
}

fn module_of(file: &str) -> &str {
    let first = file.split('/').next().unwrap_or(file);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// What breaches the floors in one file.
fn import_breaches(file: &str, text: &str) -> Vec<String> {
    if ROOTS.contains(&file) {
        return Vec::new();
    }
    let own = module_of(file);
    let Some(own_floor) = floor(own) else { return vec![format!("{file}: module {own} is on no floor")] };
    let imports = match imports(file, &code_only(text)) {
        Ok(imports) => imports,
        Err(unreadable) => return vec![unreadable],
    };
    let breach = |(name, line): (String, usize)| match floor(&name) {
        _ if name == own => None,
        Some(floor) if floor < own_floor => None,
        Some(floor) => Some(format!("{file}:{line}: {own} (floor {own_floor}) imports {name} (floor {floor})")),
        None => Some(format!("{file}:{line}: {name} is on no floor")),
    };
    imports.into_iter().filter_map(breach).collect()
}

/// The code outside `#[cfg(test)]`, and the files of test modules that it names.
fn without_tests(file: &str, code: &str) -> (String, Vec<String>) {
    let (mut kept, mut files) = (code.to_owned(), Vec::new());
    while let Some(start) = kept.find("#[cfg(test)]") {
        let rest = &kept[start..];
        let (semicolon, brace) = (rest.find(';').unwrap_or(rest.len()), rest.find('{').unwrap_or(rest.len()));
        let end = if semicolon < brace {
            let name = rest[..semicolon].rsplit(' ').next().unwrap_or_default();
            let dir = file.strip_suffix("mod.rs").map(str::to_owned);
            let dir = dir.unwrap_or_else(|| format!("{}/", file.trim_end_matches(".rs")));
            files.push(format!("{dir}{name}.rs"));
            semicolon + 1
        } else {
            let mut depth = 0;
            let close = rest.char_indices().skip_while(|(at, _)| *at < brace).find(|(_, c)| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth == 0
            });
            close.map_or(rest.len(), |(at, _)| at + 1)
        };
        let blank: String = kept[start..start + end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        kept.replace_range(start..start + end, &blank);
    }
    (kept, files)
}

/// What else breaches the rules in one file; `is_test` for the file of a test module.
fn rule_breaches(file: &str, text: &str, is_test: bool) -> Vec<String> {
    let code = code_only(text);
    let mut breaches = Vec::new();
    if !text.starts_with("//! ") {
        breaches.push(format!("{file}:1: the first line says what the file owns, after //!"));
    }
    if SYNCHRONOUS.iter().any(|floor| file.starts_with(floor)) {
        let found = words(&code, "async").chain(code.match_indices(".await").map(|(at, _)| at));
        breaches.extend(found.map(|at| format!("{file}:{}: no async on this floor", line_of(&code, at))));
    }
    if !is_test {
        let (product, _) = without_tests(file, &code);
        let found = product.match_indices(".unwrap()");
        breaches.extend(found.map(|(at, _)| format!("{file}:{}: unwrap; expect states why", line_of(&product, at))));
        if THROUGH_THE_SEAM.iter().any(|place| file.starts_with(place)) && !THE_SEAM.contains(&file) {
            let found = product.match_indices("std::fs");
            let why = "our files are reached through storage/files.rs";
            breaches.extend(found.map(|(at, _)| format!("{file}:{}: {why}", line_of(&product, at))));
        }
    }
    let may_be_unsafe = UNSAFE.iter().any(|place| file.starts_with(place));
    for at in words(&code, "unsafe") {
        let line = line_of(&code, at);
        if !may_be_unsafe {
            breaches.push(format!("{file}:{line}: no unsafe here"));
        } else if !is_argued(text, line, &code[at..]) {
            breaches.push(format!("{file}:{line}: unsafe without SAFETY above"));
        }
    }
    breaches
}

/// Does a comment right above say why this is sound? Types of functions need none; an unsafe function and trait say what
/// they ask for.
fn is_argued(text: &str, line: usize, from: &str) -> bool {
    let after = from.trim_start_matches("unsafe").trim_start();
    let is_item = after.starts_with("fn") || after.starts_with("trait");
    if after.strip_prefix("fn").is_some_and(|rest| rest.trim_start().starts_with('(')) {
        return true;
    }
    let above = text.lines().take(line - 1).collect::<Vec<_>>();
    let above = above
        .iter()
        .rev()
        .map(|line| line.trim())
        .take_while(|line| line.starts_with("//") || line.starts_with("#[") || line.starts_with("$(#["));
    let wanted = if is_item { "# Safety" } else { "SAFETY:" };
    above.into_iter().any(|line| line.contains(wanted))
}

fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut dirs) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("src can be read") {
            let path: PathBuf = entry.expect("src can be read").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                let name = path.strip_prefix(&root).expect("below src").to_str().expect("plain names").to_owned();
                files.insert(name, std::fs::read_to_string(&path).expect("src can be read"));
            }
        }
    }
    files
}

#[test]
fn imports_go_down() {
    let sources = sources();
    let breaches: Vec<_> = sources.iter().flat_map(|(file, text)| import_breaches(file, text)).collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
    let read = sources.iter().map(|(file, text)| imports(file, &code_only(text)).map_or(0, |imports| imports.len()));
    assert!(read.sum::<usize>() > 200, "the imports were found at all");
}

#[test]
fn every_module_is_on_a_floor() {
    let root = &sources()["lib.rs"];
    let declared = root.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    let declared: Vec<_> = declared.map(|name| name.trim_end_matches(';').to_owned()).collect();
    assert!(declared.len() >= 12, "{declared:?}");
    for module in declared.iter().map(String::as_str).chain(sources().keys().map(|file| module_of(file))) {
        let known = floor(module).is_some() || ROOTS.contains(&format!("{module}.rs").as_str());
        assert!(known, "module {module} is on no floor");
    }
}

#[test]
fn async_unwrap_and_unsafe_stay_where_they_belong() {
    let sources = sources();
    let tests: Vec<_> = sources.iter().flat_map(|(file, text)| without_tests(file, &code_only(text)).1).collect();
    assert!(!tests.is_empty() && tests.iter().all(|file| sources.contains_key(file)), "{tests:?}");
    let check = |(file, text): (&String, &String)| rule_breaches(file, text, tests.contains(file));
    let breaches: Vec<_> = sources.iter().flat_map(check).collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn upward_and_sideways_imports_are_found_however_they_are_written() {
    let breach = |file: &str, text: &str| import_breaches(file, text).len();
    for text in [
        "use crate::query::plan;",
        "use crate::{model::Lsn, query::{plan, filter}};",
        "use crate::{\n    model::{self, Lsn},\n    source,\n    consistency as c,\n};",
        "fn f() { crate::node::run() }",
        "fn f(x: &'static crate :: server::App) {}",
        "use ruvector::cli;",
        "use crate::*;",
        "use crate as us;",
        "use crate::unheard_of;",
        "use super::super::query;",
        "const Q: char = '\"'; use crate::server; const R: char = '\"';",
        "/* a /* nested */ comment */ use crate::server;",
        "const S: &str = r#\"\"\"#; use crate::server;",
    ] {
        assert!(breach("engine/hnsw/mod.rs", text) > 0, "{text}");
    }
    assert_eq!(breach("engine/mod.rs", "use crate::replication::stream;"), 1, "a neighbour is a stranger");
    assert_eq!(breach("engine/mod.rs", "use super::query;"), 1, "super is the crate here");
    assert_eq!(breach("engine.rs", "use super::{query, model};"), 1, "and here");
    assert_eq!(breach("extras/mod.rs", ""), 1, "an unknown module");
    for text in [
        "use crate::{engine::{query, node}, storage::{self, state::State}, model};",
        "use super::search; // use crate::node;",
        "/* crate::node */ const S: &str = \"crate::node\"; const R: &str = r#\"\" crate::node\"#;",
        "pub(crate) fn f<'crate_>() { crate::telemetry::names::X }",
        "macro_rules! m { () => { $crate::model::Lsn } }",
    ] {
        assert_eq!(import_breaches("engine/hnsw/mod.rs", text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn breaches_of_the_other_rules_are_found() {
    let breaches = |file: &str, text: &str| rule_breaches(file, &format!("//! Owns it.\n{text}"), false).len();
    for (file, text, expected) in [
        ("engine/a.rs", "async fn f() {}", 1),
        ("storage/a.rs", "fn f() { g().await }", 1),
        ("storage/a.rs", "// async\nfn asynchronous() {}", 0),
        ("server/a.rs", "async fn f() { g().await }", 0),
        ("query/a.rs", "fn f() { x.unwrap() }", 1),
        ("query/a.rs", "fn f() { x.unwrap_or(1) } // .unwrap()", 0),
        ("query/a.rs", "#[cfg(test)]\nmod tests { fn f() { x.unwrap() } }", 0),
        ("query/a.rs", "#[cfg(test)]\nmod tests { fn f() { \"}\"; x } }\nfn g() { x.unwrap() }", 1),
        ("query/a.rs", "// SAFETY: no.\nfn f() { unsafe { g() } }", 1),
        ("engine/hnsw/a.rs", "fn f() { unsafe { g() } }", 1),
        ("engine/hnsw/a.rs", "// SAFETY: yes.\nlet x = unsafe { g() };", 0),
        ("engine/hnsw/a.rs", "// SAFETY: yes.\n\nlet x = unsafe { g() };", 1),
        ("engine/hnsw/a.rs", "/// # Safety\n/// Care.\n#[inline]\npub unsafe fn g() {}", 0),
        ("engine/hnsw/a.rs", "/// Care.\npub unsafe fn g() {}", 1),
        ("engine/hnsw/a.rs", "type F = unsafe fn(u8);", 0),
        ("engine/arena.rs", "unsafe impl Send for A {}", 1),
        ("engine/a.rs", "fn f() { std::fs::remove_file(x) }", 1),
        ("cli/a.rs", "fn f() { std::fs::remove_file(x) }", 0),
    ] {
        assert_eq!(breaches(file, text), expected, "{file}: {text}");
    }
    assert_eq!(rule_breaches("query/a.rs", "use std::io;", false).len(), 1, "no first line");
    assert_eq!(rule_breaches("query/tests.rs", "//! Tests.\nfn f() { x.unwrap() }", true).len(), 0);
    let (_, files) = without_tests("query/filter.rs", "#[cfg(test)]\nmod tests;\nmod truth;");
    assert_eq!(files, ["query/filter/tests.rs"]);
    let (_, files) = without_tests("engine/hnsw/mod.rs", "#[cfg(test)]\nmod tests;");
    assert_eq!(files, ["engine/hnsw/tests.rs"]);
}
