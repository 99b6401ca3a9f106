//! ARCHITECTURE.md is a tour of real files: what it names exists.

use std::path::Path;

/// Endings of what is taken for a file of ours.
const ENDINGS: [&str; 6] = [".rs", ".md", ".toml", ".sql", ".sh", ".yml"];
/// Files each of the two lines names at least.
const LINE_FILES: usize = 8;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn document() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is at the root")
}

/// What stands in backticks, outside of code blocks.
fn quoted(text: &str) -> Vec<&str> {
    let mut in_block = false;
    let lines = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    });
    lines.flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Is it the path of a file or of a folder, rather than code?
fn is_path(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let slash = name.contains('/') && !name.starts_with('/');
    plain && (ENDINGS.iter().any(|ending| name.ends_with(ending)) || slash)
}

fn exists(name: &str) -> bool {
    root().join(name).exists() || root().join("src").join(name).exists()
}

/// The files named in the tables of the section whose heading starts so.
fn files_of<'t>(document: &'t str, heading: &str) -> Vec<&'t str> {
    let section = document.split("\n## ").find(|section| section.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("a section {heading:?}"));
    let rows = section.lines().filter(|line| line.starts_with('|'));
    let mut files: Vec<_> = rows.flat_map(quoted).filter(|name| name.ends_with(".rs")).collect();
    files.sort_unstable();
    files.dedup();
    files
}

#[test]
fn every_file_and_folder_named_exists() {
    let document = document();
    let named: Vec<_> = quoted(&document).into_iter().filter(|name| is_path(name)).collect();
    assert!(named.len() >= 2 * LINE_FILES, "{named:?}");
    let missing: Vec<_> = named.into_iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty(), "named and not there: {missing:?}");
}

#[test]
fn both_lines_name_their_files() {
    let document = document();
    for heading in ["Line one", "Line two"] {
        let files = files_of(&document, heading);
        assert!(files.len() >= LINE_FILES, "{heading} names {files:?}");
    }
}

#[test]
fn names_that_lead_nowhere_are_found() {
    let text =
        "see `replication/stream.rs`, `src/engine/hnsw/`, `docs/nowhere.md` and `Lsn`\n```\n`not/this.rs`\n```\n";
    let named: Vec<_> = quoted(text).into_iter().filter(|name| is_path(name)).collect();
    assert_eq!(named, ["replication/stream.rs", "src/engine/hnsw/", "docs/nowhere.md"]);
    assert_eq!(named.into_iter().filter(|name| !exists(name)).collect::<Vec<_>>(), ["docs/nowhere.md"]);
    let document =
        "# A\n\n## Line one: x\n\n| `a.rs`, `b/c.rs` | `d` |\nnot in a row `e.rs`\n\n## Line two\n| `f.rs` |\n";
    assert_eq!(files_of(document, "Line one"), ["a.rs", "b/c.rs"]);
}

/// Is it a test, or run by one: a fault of the table in tests/soak_faults, a step of the story in tests/majors.rs?
fn is_run(source: &str, name: &str) -> bool {
    let Some(at) = source.find(&format!("fn {name}(")) else { return false };
    let attribute = source[..at].trim_end_matches("async ").trim_end().lines().next_back().unwrap_or_default().trim();
    let is_test = attribute.starts_with("#[test]") || attribute.starts_with("#[tokio::test");
    is_test || source.contains(&format!("(\"{name}\", Kind::")) || source.contains(&format!("story.{name}("))
}

#[test]
fn what_is_only_a_function_is_not_taken_for_a_test() {
    let source = "#[test]\nfn a() {}\n\nfn b() {}\n\n    #[tokio::test]\n    async fn c() {}\nfn d() {}\nconst F: X = [(\"d\", Kind::Usual, d)];\nfn e(&self) {}\nstory.e();";
    let run: Vec<_> = ["a", "b", "c", "d", "e", "f"].into_iter().filter(|name| is_run(source, name)).collect();
    assert_eq!(run, ["a", "c", "d", "e"]);
}

#[test]
fn every_hard_case_is_told_and_its_tests_exist() {
    let document = std::fs::read_to_string(root().join("docs/hard-cases.md")).expect("docs/hard-cases.md");
    let numbers = document.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<usize>().ok());
    let numbers: Vec<_> = numbers.collect();
    assert_eq!(numbers, (1..=numbers.len()).collect::<Vec<_>>());
    assert!(numbers.len() >= 65, "all that we know of");
    let named = quoted(&document).into_iter().filter_map(|name| name.split_once("::"));
    let missing: Vec<_> = named
        .filter(|(file, test)| {
            let source = std::fs::read_to_string(root().join(file)).unwrap_or_default();
            !is_run(&source, test)
        })
        .collect();
    assert!(missing.is_empty(), "there is no {missing:?}");
}
