//! `ruvector demo`: every step passes, and nothing is left behind, however it ends.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A demo whose directories are all in `folder`.
fn demo(folder: &Path) -> Child {
    // As root, the server runs in another account, which must be able to enter.
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o1777)).expect("ours");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ruvector"));
    command.args(["demo", "--json", "--docs", "2500"]).env("TMPDIR", folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the demo starts")
}

/// What lies in the folder, but for the template that later clusters are copied from.
fn left_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("readable").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.contains("-template-")).collect()
}

#[test]
fn every_step_passes_and_nothing_is_left() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let output = demo(folder.path()).wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 9, "{text}");
    assert!(lines.iter().all(|line| line["pass"] == true), "{text}");
    assert_eq!(left_in(folder.path()), [""; 0]);
}

#[test]
fn a_killed_demo_takes_everything_along() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut demo = demo(folder.path());
    let mut out = BufReader::new(demo.stdout.take().expect("stdout is piped"));
    let mut first = String::new();
    out.read_line(&mut first).expect("the first step is told");
    assert!(first.contains("\"pass\":true"), "{first}");
    assert_eq!(left_in(folder.path()).len(), 2, "PostgreSQL's directory and the service's");
    demo.kill().expect("it runs");
    demo.wait().expect("it is dead");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !left_in(folder.path()).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", left_in(folder.path()));
        std::thread::sleep(Duration::from_millis(20));
    }
}
