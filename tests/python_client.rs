//! The Python client: its types, its tests and the examples on its page, by `clients/python/check.sh`. Its packages come from PyPI;
//! where these cannot be had the test says so and is left out.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

#[test]
fn the_python_client_does_what_its_page_says() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    // As root, the server runs in another account, which must be able to enter.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o1777)).expect("ours");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/check.sh");
    let target = Path::new(env!("CARGO_BIN_EXE_ruvector")).ancestors().nth(2).expect("target/profile/binary");
    let mut command = Command::new("bash");
    command.arg(script).env("RUVECTOR_BIN", env!("CARGO_BIN_EXE_ruvector")).env("CARGO_TARGET_DIR", target);
    let output = command.env("TMPDIR", folder.path()).output().expect("bash starts");
    let (said, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(3) {
        println!("SKIPPED: the packages cannot be installed here: {failed}");
        return;
    }
    assert!(output.status.success() && said.contains("ok    "), "{said}{failed}");
}
