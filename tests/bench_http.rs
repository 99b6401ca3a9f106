//! What the README's figures of HTTP come from, in small: it measures every way it promises.

use std::process::Command;

#[test]
fn every_level_of_recheck_is_measured() {
    let output = Command::new(env!("CARGO_BIN_EXE_ruvector"))
        .args(["bench", "http", "--rows", "500", "--dim", "16", "--connections", "1,2", "--seconds", "0.2"])
        .args(["--rounds", "1", "--json"])
        .output()
        .expect("it runs");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    for way in ["none", "exists", "exact"] {
        assert!(said.contains(&format!("\"{way}\"")), "{way}: {said}");
    }
}
