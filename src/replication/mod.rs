//! WAL -> change log: transport, decoding, transaction assembly, start decisions, initial copy.

pub mod assemble;
pub mod copy;
pub mod copy_rows;
pub mod definitions;
pub mod frame;
pub mod guard;
pub mod pgoutput;
pub mod poison;
pub mod progress;
pub mod spool;
pub mod start;
pub mod stream;
pub mod transport;

use crate::model::{LogRecord, Lsn};
use crate::replication::assemble::{AssembleError, Assembler};
use crate::replication::definitions::Definitions;
use crate::replication::frame::Frame;
use crate::replication::pgoutput::Message;
use crate::replication::progress::Progress;
use crate::replication::spool::Spool;
use crate::replication::stream::{Intake, Queued, WalSource};
use crate::source::connect::Dsn;
use crate::source::policy::{Backoff, Policy};
use crate::source::{SourceError, catalog};
use crate::storage::StorageError;
use crate::storage::changelog::ChangeLog;
use crate::telemetry::names;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Why following the source ended, named for what must happen.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// Connect again.
    #[error("the WAL stream broke: {0}")]
    Transport(String),
    /// Connect again; if it comes back, a person must look.
    #[error("the WAL stream is not understood: {0}")]
    Protocol(String),
    /// What the source said decides.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Our disk failed: stop, nothing written since can be trusted.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// We were told to end.
    #[error("stopped")]
    Stopped,
}

impl From<AssembleError> for ReplicationError {
    fn from(error: AssembleError) -> Self {
        ReplicationError::Protocol(error.to_string())
    }
}

impl ReplicationError {
    /// What follows it.
    pub fn policy(&self) -> Policy {
        match self {
            ReplicationError::Transport(_) | ReplicationError::Protocol(_) => Policy::Retry,
            ReplicationError::Source(error) => error.policy(),
            ReplicationError::Storage(_) => Policy::Refuse { remedy: "see the error of the disk" },
            ReplicationError::Stopped => Policy::Refuse { remedy: "start the service again" },
        }
    }

    /// May connecting again help without anybody's doing?
    pub fn is_transient(&self) -> bool {
        self.policy().is_transient()
    }

    /// All that [`ReplicationError::label`] says.
    pub const LABELS: [&str; 10] = [
        "transport",
        "protocol",
        "storage",
        "stopped",
        "unavailable",
        "refused",
        "source_full",
        "source_stopping",
        "slot",
        "other",
    ];

    /// One word for metrics.
    pub fn label(&self) -> &'static str {
        match self {
            ReplicationError::Transport(_) => "transport",
            ReplicationError::Protocol(_) => "protocol",
            ReplicationError::Storage(_) => "storage",
            ReplicationError::Stopped => "stopped",
            ReplicationError::Source(SourceError::Unavailable(_)) => "unavailable",
            ReplicationError::Source(SourceError::Refused { .. }) => "refused",
            ReplicationError::Source(SourceError::Sql { code, .. }) => match code.get(..2) {
                Some("08") => "unavailable",
                Some("53") => "source_full",
                Some("57") => "source_stopping",
                Some("55") => "slot",
                Some("28" | "42") => "refused",
                _ => "other",
            },
        }
    }

    /// The server's code, where it was the server that answered.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            ReplicationError::Source(error) => error.sqlstate(),
            _ => None,
        }
    }
}

/// Longest wait for the source's position.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// However many wait, the source is not asked more often.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// Asks the source again and again where its WAL ends, until stopped. Keepalives cannot tell: they carry what was sent,
/// and a sender that is an hour behind would make us believe that we are not.
///
/// `slot` tells the slot that is followed now.
pub async fn watch_source(
    dsn: &Dsn,
    interval: Duration,
    slot: impl Fn() -> Option<String>,
    progress: &Progress,
    stop: &CancellationToken,
) {
    let mut backoff = Backoff::default();
    while !stop.is_cancelled() {
        let watched = async {
            let client = dsn.connect().await?;
            let mut before: Option<(Lsn, Instant)> = None;
            loop {
                let asked = Instant::now();
                let name = slot().unwrap_or_default();
                let facts = tokio::time::timeout(ANSWER_LIMIT, catalog::sender(&client, &name)).await;
                // A half-open connection says nothing, for ever.
                let late = |_| SourceError::Unavailable(format!("no answer within {ANSWER_LIMIT:?}"));
                let facts = facts.map_err(late)??;
                backoff.reset();
                // Another server, or the same one put back to an earlier day, proves nothing about what we have.
                if facts.followed {
                    progress.hear(facts.flushed, asked);
                }
                // Waiting at the same position twice, and for so long: it was not only about to be woken for what came before
                // the first. Looks that somebody's wait brings follow each other too fast to tell.
                match (facts.waiting_at, before) {
                    (Some(now), Some((earlier, at))) if now == earlier => {
                        if asked.duration_since(at) >= interval {
                            progress.hear_caught_up(now, at);
                            before = Some((now, asked));
                        }
                    }
                    (waiting_at, _) => before = waiting_at.map(|sent| (sent, asked)),
                }
                progress.tell_heard();
                tokio::time::sleep(LEAST_PAUSE.min(interval)).await;
                // Somebody who waits does not wait for the next look.
                let _ = tokio::time::timeout(interval.saturating_sub(LEAST_PAUSE), progress.asked()).await;
            }
        };
        let ended: Result<(), SourceError> = tokio::select! {
            ended = watched => ended,
            () = stop.cancelled() => return,
        };
        let Err(error) = ended else { return };
        tracing::debug!(%error, "cannot ask the source for its position");
        tokio::select! {
            () = tokio::time::sleep(backoff.next(error.policy())) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Unsynced time after which the log is synced although more is waiting: bounds how old a searchable row can be.
const SYNC_AFTER: Duration = Duration::from_millis(20);

/// Line one up to the durable log: socket -> frames -> messages -> transactions -> records, until an error or a stop.
/// The log comes back with whatever ended it.
pub async fn follow<S: WalSource>(
    source: S,
    intake: Intake,
    definitions: Arc<Definitions>,
    mut log: ChangeLog,
    progress: &Progress,
    stop: &CancellationToken,
) -> (ChangeLog, ReplicationError) {
    // The last connection may have broken in the middle of a transaction that now comes again.
    crate::failpoint!("follow.before_cut");
    if let Err(error) = log.cut_to_durable() {
        return (log, error.into());
    }
    crate::failpoint!("follow.cut");
    let tail = log.tail();
    let (sender, receiver) = stream::queue();
    let spool = Spool::new(log.dir(), intake.spool_bytes);
    let writer = tokio::task::spawn_blocking(move || write(log, &definitions, spool, receiver));
    let received = stream::receive(source, intake, sender, tail, progress, stop).await;
    // The queue is closed now: the writer ends after what it has.
    match (writer.await, received) {
        (Ok((log, Err(error))), _) => (log, error),
        (Ok((log, Ok(()))), received) => (log, received.err().unwrap_or(ReplicationError::Stopped)),
        // A panic loses the log's handle; there is nothing to go on with.
        (Err(panic), _) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// The log's own thread: decodes, assembles, appends, syncs in groups.
fn write(
    mut log: ChangeLog,
    definitions: &Definitions,
    mut spool: Spool,
    mut queue: mpsc::Receiver<Queued>,
) -> (ChangeLog, Result<(), ReplicationError>) {
    let mut assembler = Assembler::new(&[], log.durable());
    let result = write_all(&mut log, &mut assembler, definitions, &mut spool, &mut queue);
    (log, result)
}

fn write_all(
    log: &mut ChangeLog,
    assembler: &mut Assembler,
    definitions: &Definitions,
    spool: &mut Spool,
    queue: &mut mpsc::Receiver<Queued>,
) -> Result<(), ReplicationError> {
    let mut unsynced: Option<Instant> = None;
    let mut generation = 0;
    loop {
        // Whoever asked waits for a place in the log from which on the changes of his collections are in it.
        if !assembler.in_transaction() && definitions.generation() != generation {
            log.sync()?;
            generation = definitions.take_effect(assembler, log.tail().durable().position);
        }
        let next = match queue.try_recv() {
            Ok(queued) => Some(queued),
            Err(mpsc::error::TryRecvError::Disconnected) => None,
            Err(mpsc::error::TryRecvError::Empty) => {
                if unsynced.take().is_some() {
                    log.sync()?;
                }
                queue.blocking_recv()
            }
        };
        let Some(queued) = next else {
            if unsynced.is_some() {
                log.sync()?;
            }
            return Ok(());
        };
        for frame in queued.frames {
            if take_frame(log, assembler, spool, frame)? {
                unsynced.get_or_insert_with(Instant::now);
            }
            if let Some(xid) = assembler.take_registered() {
                definitions.note_registered(xid);
            }
            if !assembler.in_transaction() && definitions.generation() != generation {
                log.sync()?;
                generation = definitions.take_effect(assembler, log.tail().durable().position);
            }
        }
        if unsynced.is_some_and(|since| since.elapsed() >= SYNC_AFTER) {
            log.sync()?;
            unsynced = None;
        }
    }
}

/// True when something was appended.
fn take_frame(
    log: &mut ChangeLog,
    assembler: &mut Assembler,
    spool: &mut Spool,
    frame: Frame,
) -> Result<bool, ReplicationError> {
    let mut appended = false;
    let mut append = |record: LogRecord| {
        appended = true;
        log.append(&record).map_err(ReplicationError::from)
    };
    match frame {
        // The position of a keepalive counts only between transactions.
        Frame::Keepalive { wal_end, .. } => {
            if !assembler.in_transaction() && !spool.in_block() && assembler.moves_to(wal_end) {
                append(LogRecord::Progress { upto: wal_end })?;
            }
        }
        Frame::XLogData { payload, .. } => {
            spool.take(&payload, &mut |message| {
                crate::failpoint!("follow.message_decoded");
                count(&message);
                assembler.push(message, &mut append)
            })?;
        }
    }
    crate::failpoint!("follow.frame_taken");
    Ok(appended)
}

fn count(message: &Message<'_>) {
    let op = match message {
        Message::Commit { .. } => {
            metrics::counter!(names::TRANSACTIONS).increment(1);
            return;
        }
        Message::Insert { .. } => "insert",
        Message::Update { .. } => "update",
        Message::Delete { .. } => "delete",
        Message::Truncate { .. } => "truncate",
        _ => return,
    };
    metrics::counter!(names::CHANGES_RECEIVED, "op" => op).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn every_label_is_among_those_that_are_known_before() {
        let sql = |code: &str| SourceError::Sql { code: code.into(), message: String::new() };
        let codes = ["08006", "53300", "57P01", "55000", "28P01", "42501", "22023", ""].map(sql);
        let of_source =
            codes.into_iter().chain([SourceError::refused("", ""), SourceError::Unavailable(String::new())]);
        let text = String::new;
        let all = [ReplicationError::Stopped, ReplicationError::Transport(text()), ReplicationError::Protocol(text())];
        for error in all.into_iter().chain(of_source.map(ReplicationError::from)) {
            assert!(ReplicationError::LABELS.contains(&error.label()), "{error}");
        }
    }

    #[test]
    fn a_keepalive_counts_between_the_blocks_of_a_streamed_transaction_and_not_inside_one() {
        let dir = tempfile::tempdir().expect("dir");
        let mut log = ChangeLog::create(&dir.path().join("log"), Lsn(5)).expect("log");
        let (mut assembler, mut spool) = (Assembler::new(&[], Lsn(5)), Spool::new(dir.path(), 1 << 10));
        let mut take = |frame| take_frame(&mut log, &mut assembler, &mut spool, frame).expect("taken");
        let message = |payload: &'static [u8]| Frame::XLogData {
            start: Lsn(0),
            wal_end: Lsn(0),
            server_time: 0,
            payload: Bytes::from_static(payload),
        };
        let keepalive = |at| Frame::Keepalive { wal_end: Lsn(at), server_time: 0, reply_requested: false };
        take(message(b"S\0\0\0\x07\x01"));
        assert!(!take(keepalive(10)), "the block is not whole");
        take(message(b"E"));
        // The transaction is open; all that committed before this position was sent.
        assert!(take(keepalive(10)));
        assert!(!take(keepalive(10)), "nothing new");
        take(message(b"S\0\0\0\x07\0"));
        assert!(!take(keepalive(20)));
        take(message(b"E"));
        take(message(b"A\0\0\0\x07\0\0\0\x07"));
        assert!(take(keepalive(20)));
        log.sync().expect("sync");
        assert_eq!(log.durable(), Lsn(20));
    }
}
