//! `POST /v1/admin/snapshots`: what answers now, as files in a directory of the service's machine.

use crate::consistency::blocking;
use crate::consistency::frontier::Serving;
use crate::model::Lsn;
use crate::replication::progress::{Progress, Retention};
use crate::server::http::access::Who;
use crate::server::http::json::parse;
use crate::server::http::{App, Shared};
use crate::server::problem::{self, Problem};
use crate::storage::StorageError;
use crate::storage::data_dir::EpochId;
use crate::storage::snapshot::{self, Frozen, Making, Manifest, Retained, SnapshotError};
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::oneshot;

/// Longest retention: nobody means to keep the source's WAL for longer.
const LONGEST_RETENTION_S: u64 = 30 * 86_400;

/// Where to.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Snapshot")]
pub struct Body {
    /// An absolute path on the service's machine, of nothing or of an empty directory.
    to: PathBuf,
    /// For so many seconds the slot stays at the snapshot's position: a restore then goes on from there, and the source keeps
    /// the WAL since. A later snapshot takes this one's place. Nothing more is kept when left out.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_592_000))]
    retain_s: u64,
}

/// What was made.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SnapshotMade")]
pub struct Made {
    /// Where it is.
    to: PathBuf,
    /// Everything that ended at or before it is in it.
    lsn: Lsn,
    /// The slot it belongs to.
    slot: String,
    /// Names of the collections.
    collections: Vec<String>,
    /// How many files it has.
    files: usize,
    /// Their bytes.
    bytes: u64,
    /// Those of them that it shares with the data directory.
    linked_bytes: u64,
    /// What it took.
    took_ms: f64,
    /// Seconds since 1970 until which the slot stays there, where that was asked for.
    retained_until: Option<u64>,
}

impl From<SnapshotError> for Problem {
    fn from(error: SnapshotError) -> Problem {
        let detail = error.to_string();
        match error {
            SnapshotError::Place(..) => Problem::new(problem::SNAPSHOT, detail)
                .hint("name a directory on the service's machine that is not there yet, outside of storage.dir"),
            SnapshotError::Storage(StorageError::Io { .. }) => Problem::new(problem::SNAPSHOT, detail)
                .hint("the service's user must be able to write there, and there must be room"),
            _ => Problem::new(problem::INTERNAL, detail),
        }
    }
}

/// Makes one.
pub async fn make(
    State(app): Shared,
    Who(who): Who,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Made>, Problem> {
    if who.collections.is_some() {
        return Err(Problem::new(
            problem::FORBIDDEN,
            "a snapshot is of all collections, and some only are for this key",
        ));
    }
    let Body { to, retain_s } = parse(body, "to, retain_s")?;
    if retain_s > LONGEST_RETENTION_S {
        return Err(Problem::new(problem::MALFORMED, format!("retain_s is {retain_s}; at most {LONGEST_RETENTION_S}")));
    }
    allowed(&app, &to)?;
    let one = app.snapshotting.clone().lock_owned().await;
    let serving = app.query.frontier.serving().ok_or_else(not_whole)?;
    if !serving.kept.load(Ordering::Relaxed) {
        return Err(not_whole());
    }
    let progress = app.query.frontier.progress.clone();
    let made = async move {
        // Whoever asked may be gone before it is whole.
        let _one = one;
        work(serving, progress, to, retain_s).await
    };
    tokio::spawn(made).await.map_err(|panic| Problem::new(problem::INTERNAL, panic.to_string()))?.map(Json)
}

/// Is there a directory that snapshots must be in?
fn allowed(app: &App, to: &Path) -> Result<(), Problem> {
    match &app.options.snapshot_dir {
        Some(dir) if !to.starts_with(dir) || to == dir => {
            let detail = format!("{}: snapshots are made in directories of {}", to.display(), dir.display());
            Err(Problem::new(problem::SNAPSHOT, detail).hint("storage.snapshot_dir says where"))
        }
        _ => Ok(()),
    }
}

fn not_whole() -> Problem {
    Problem::new(problem::COPYING, "what is being copied is in no snapshot")
        .hint("GET /v1/collections shows how far the copy is; ask again when it is whole")
}

async fn work(serving: Arc<Serving>, progress: Arc<Progress>, to: PathBuf, retain_s: u64) -> Result<Made, Problem> {
    let started = Instant::now();
    if retain_s > 0 && serving.slot != progress.slot() {
        return Err(Problem::new(problem::COPYING, "what answers is being replaced: its slot will go")
            .hint("ask again when GET /v1/status says that nothing is copied, or without retain_s"));
    }
    let held = Hold::begin(&progress, (retain_s > 0).then_some(&*serving.slot));
    let (root, epoch) = place_of(&serving)?;
    let making = {
        let (to, root) = (to.clone(), root.clone());
        run(move || Making::begin(&to, &root)).await?
    };
    let frozen = gather(&serving, &making).await?;
    let lsn = frozen.lsn;
    let manifest = {
        let (making, root) = (making.clone(), root.clone());
        run(move || {
            let finished = making.clone().finish(frozen, epoch, &root);
            if finished.is_err() {
                making.discard();
            }
            Ok(finished?)
        })
        .await?
    };
    let retained_until = match retain_s {
        0 => None,
        _ => Some(held.keep(&root, &serving.slot, lsn, retain_s)?),
    };
    tracing::info!(to = %to.display(), %lsn, retain_s, took = ?started.elapsed(), "a snapshot was made");
    Ok(made(to, manifest, started.elapsed(), retained_until))
}

fn made(to: PathBuf, manifest: Manifest, took: Duration, retained_until: Option<u64>) -> Made {
    let bytes = |linked: bool| manifest.files.iter().filter(|file| file.linked || !linked).map(|file| file.bytes).sum();
    Made {
        lsn: manifest.lsn,
        files: manifest.files.len(),
        bytes: bytes(false),
        linked_bytes: bytes(true),
        slot: manifest.identity.slot,
        collections: manifest.collections,
        took_ms: took.as_secs_f64() * 1000.0,
        to,
        retained_until,
    }
}

/// The data directory and the number of the epoch.
fn place_of(serving: &Serving) -> Result<(PathBuf, EpochId), Problem> {
    let dir = serving.engine.dir();
    let number = dir.file_name().and_then(|name| name.to_str()?.strip_prefix("epoch-")?.parse().ok());
    match (dir.parent(), number) {
        (Some(root), Some(number)) => Ok((root.to_owned(), EpochId(number))),
        _ => Err(Problem::new(problem::INTERNAL, format!("{} is no epoch", dir.display()))),
    }
}

async fn gather(serving: &Serving, making: &Making) -> Result<Frozen, Problem> {
    let gathered = serving.engine.freeze(making.clone()).await;
    let frozen = match gathered {
        Ok(Some(Ok(frozen))) => Ok(frozen),
        Ok(None) => Err(not_whole()),
        Ok(Some(Err(error))) | Err(error) => Err(SnapshotError::from(error).into()),
    };
    if frozen.is_err() {
        making.discard();
    }
    frozen
}

async fn run<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, Problem> {
    let (sender, done) = oneshot::channel();
    // Not one of the runtime's: a stop waits for those, and a snapshot that is not whole is worth nothing.
    let thread = std::thread::Builder::new().name("snapshot".into()).spawn(move || drop(sender.send(work())));
    let broken = |error: String| Problem::new(problem::INTERNAL, error);
    thread.map_err(|error| broken(error.to_string()))?;
    done.await.map_err(|_| broken("the snapshot's thread ended; see the log".into()))?.map_err(Problem::from)
}

/// Nothing is confirmed while a snapshot that is to be retained is made; what was retained before is again, if that fails.
struct Hold<'p> {
    progress: &'p Progress,
    before: Option<Option<Retention>>,
}

impl<'p> Hold<'p> {
    fn begin(progress: &'p Progress, slot: Option<&str>) -> Hold<'p> {
        let nothing = |slot: &str| Retention { slot: slot.to_owned(), at: None };
        Hold { progress, before: slot.map(|slot| progress.retain(Some(nothing(slot)))) }
    }

    /// From now on what ended at or before `lsn` may be confirmed, and for so many seconds no more.
    fn keep(mut self, root: &Path, slot: &str, lsn: Lsn, seconds: u64) -> Result<u64, Problem> {
        let slot = slot.to_owned();
        if slot != self.progress.slot() {
            let why = "the slot was replaced while the snapshot was made: it is there, and nothing is retained for it";
            return Err(Problem::new(problem::COPYING, why).hint("make another one when the copy is whole"));
        }
        let at = SystemTime::now() + Duration::from_secs(seconds);
        let until = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let retained = Retained { slot: slot.clone(), lsn, until };
        blocking(|| snapshot::set_retained(root, Some(&retained))).map_err(SnapshotError::from)?;
        self.progress.retain(Some(Retention { slot, at: Some((lsn, at)) }));
        self.before = None;
        Ok(until)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.progress.retain(before);
        }
    }
}
