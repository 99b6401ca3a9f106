//! The doctor's checks while the service runs: at start, from time to time, when the configured collections change and
//! when the source is back. Changes are logged, the last findings shown.

use crate::model::CollectionSpec;
use crate::node::Options;
use crate::replication::progress::Progress;
use crate::source::preflight::{self, Depth, Finding, Latest, Severity, Subject};
use crate::storage::ownership;
use crate::telemetry::names;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The start itself comes first.
const AFTER_START: Duration = Duration::from_secs(1);
/// Reasons to look again are waited for so long after the first.
const TOGETHER: Duration = Duration::from_millis(200);
/// Checks that take longer are given up: the source has other things to do.
const LONGEST: Duration = Duration::from_secs(120);
/// A source that was away at the first time is looked at again after this.
const AGAIN: Duration = Duration::from_secs(30);

/// Checks until stopped. `specs` are the configured collections as they are now.
pub async fn run(
    options: Options,
    mut specs: watch::Receiver<Vec<CollectionSpec>>,
    progress: Arc<Progress>,
    root: PathBuf,
    latest: Arc<Latest>,
    stop: CancellationToken,
) {
    let mut content: Option<Vec<Finding>> = None;
    let mut streams = progress.streams();
    let roles: Vec<_> = options.viewers.roles.iter().cloned().collect();
    let mut pause = Some(AFTER_START);
    loop {
        let changed = tokio::select! {
            () = sleep(pause) => false,
            Ok(()) = specs.changed() => true,
            Ok(()) = streams.changed() => false,
            () = stop.cancelled() => return,
        };
        if changed {
            // Other tables have other contents.
            content = None;
        }
        // What comes at once with it is seen together with it.
        tokio::time::sleep(TOGETHER).await;
        streams.borrow_and_update();
        let collections = specs.borrow_and_update().clone();
        let known = ownership::slots(&root).unwrap_or_default();
        let slot = ownership::slot_followed(&root).ok().flatten().unwrap_or_else(|| options.slot.clone());
        let subject = Subject {
            dsn: &options.dsn,
            slot: &slot,
            base: &options.slot,
            known: Some(&known),
            publication: &options.publication,
            create: options.create_publication,
            collections: &collections,
            roles: &roles,
        };
        let depth = if content.is_none() { Depth::Start } else { Depth::Again };
        let mut findings = tokio::select! {
            checked = tokio::time::timeout(LONGEST, preflight::run(&subject, depth)) => match checked {
                Ok(findings) => findings,
                Err(_) => vec![preflight::finding(
                    "D05",
                    Severity::Warning,
                    "connection",
                    format!("the checks were not done within {} s", LONGEST.as_secs()),
                    "see whether the source is overloaded; `ruvector doctor` waits for as long as it takes",
                )],
            },
            () = stop.cancelled() => return,
        };
        let reached = findings.iter().any(|finding| finding.code == "D02");
        match &content {
            Some(content) => findings.extend(content.iter().cloned()),
            None if reached => {
                let only_then = |finding: &&Finding| preflight::ONLY_AT_START.contains(&finding.code);
                content = Some(findings.iter().filter(only_then).cloned().collect());
            }
            None => {}
        }
        tell(&latest.findings(), &findings);
        latest.set(findings);
        pause = match options.doctor_interval {
            Some(interval) if reached => Some(interval),
            Some(interval) => Some(interval.min(AGAIN)),
            None if reached => None,
            None => Some(AGAIN),
        };
    }
}

/// For so long, or without end.
async fn sleep(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Logs what is new and what is no more, and counts.
fn tell(before: &[Finding], now: &[Finding]) {
    let same = |a: &Finding, b: &Finding| (a.code, &a.check, a.severity) == (b.code, &b.check, b.severity);
    let bad = |finding: &&Finding| finding.severity != Severity::Ok;
    for finding in now.iter().filter(bad).filter(|one| !before.iter().any(|other| same(one, other))) {
        let (code, check, observed) = (finding.code, &finding.check, &finding.observed);
        let fix = finding.fix.as_deref().unwrap_or_default();
        match finding.severity {
            Severity::Error => tracing::warn!(code, check, observed, fix, "the doctor found"),
            _ => tracing::info!(code, check, observed, fix, "the doctor found"),
        }
    }
    for finding in before.iter().filter(bad) {
        let still = now.iter().filter(bad).any(|other| (other.code, &other.check) == (finding.code, &finding.check));
        if !still {
            tracing::info!(code = finding.code, check = finding.check, "the doctor no longer finds");
        }
    }
    let mut counts: BTreeMap<_, u32> = BTreeMap::new();
    for finding in before.iter().filter(bad) {
        counts.insert((finding.code, finding.severity.name()), 0);
    }
    for finding in now.iter().filter(bad) {
        *counts.entry((finding.code, finding.severity.name())).or_default() += 1;
    }
    for ((code, severity), count) in counts {
        metrics::gauge!(names::DOCTOR_FINDINGS, "code" => code, "severity" => severity).set(count);
    }
}
