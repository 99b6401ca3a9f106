//! The examples: each tells its story to the end, every claim in it holds, and nothing is left of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn tells_its_story(name: &str) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    // As root, the server runs in another account, which must be able to enter.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777)).expect("ours");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).join("run.sh");
    let mut command = Command::new("bash");
    command.arg(script).env("RUVECTOR_BIN", env!("CARGO_BIN_EXE_ruvector")).env("TMPDIR", folder.path());
    let output = command.output().expect("bash starts");
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("ok    "), "{said}{failed}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).expect("readable").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_join_in_one_statement() {
    tells_its_story("fdw_join");
}

#[test]
fn tenants_with_row_security() {
    tells_its_story("rls_multitenant");
}

#[test]
fn ones_own_writes() {
    tells_its_story("read_your_writes");
}

#[test]
fn first_steps_with_curl() {
    tells_its_story("quickstart");
}
