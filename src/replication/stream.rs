//! The WAL transport: socket -> frames. Status flows on its own timer even while intake is shut.

use crate::model::{Lsn, quote_ident};
use crate::replication::ReplicationError;
use crate::replication::frame::Frame;
use crate::replication::progress::Progress;
use crate::replication::start::fork_point;
use crate::source::SourceError;
use crate::source::connect::Dsn;
use crate::storage::changelog::LogTail;
use pg_walstream::PgReplicationConnection;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A source of frames. The second implementation is the tests'.
pub trait WalSource: Send {
    /// The next frame. Cancel-safe: dropping the future loses nothing.
    fn next_frame(&mut self) -> impl Future<Output = Result<Frame, ReplicationError>> + Send;

    /// Tells the source how far we are. `flushed` is what it may forget.
    fn send_status(
        &mut self,
        received: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> impl Future<Output = Result<(), ReplicationError>> + Send;
}

/// `pg_walstream`'s connection and raw frames; nothing else of that crate is used.
pub struct PgWalSource {
    connection: PgReplicationConnection,
    never: CancellationToken,
}

/// Who answers at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemFacts {
    /// `system_identifier`.
    pub system_id: String,
    /// Current timeline.
    pub timeline: u32,
    /// Where its WAL ends.
    pub current: Lsn,
}

/// A slot just made, and the snapshot that shows exactly what comes before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSlot {
    /// Where the slot starts.
    pub consistent_point: Lsn,
    /// Name of the exported snapshot; it lives until the next command on the connection.
    pub snapshot: String,
}

impl PgWalSource {
    /// Connects in replication mode. Blocks its thread for the handshake: needs the multi-thread runtime.
    pub async fn connect(dsn: &Dsn) -> Result<PgWalSource, ReplicationError> {
        let conninfo = dsn.for_replication();
        let connect = tokio::task::spawn_blocking(move || PgReplicationConnection::connect(&conninfo));
        let connection = connect.await.map_err(|error| ReplicationError::Transport(error.to_string()))??;
        Ok(PgWalSource { connection, never: CancellationToken::new() })
    }

    /// Who answers, and where.
    pub fn identify(&mut self) -> Result<SystemFacts, ReplicationError> {
        let answer = self.connection.identify_system()?;
        let field = |at| answer.get_value(0, at).unwrap_or_default();
        let bad = || ReplicationError::Transport("IDENTIFY_SYSTEM answered nothing we understand".into());
        Ok(SystemFacts {
            system_id: field(0),
            timeline: field(1).parse().map_err(|_| bad())?,
            current: field(2).parse().map_err(|_| bad())?,
        })
    }

    /// Where an earlier timeline ended, by the history of the current one.
    pub fn forked_at(&mut self, earlier: u32, current: u32) -> Result<Option<Lsn>, ReplicationError> {
        let answer = self.connection.exec(&format!("TIMELINE_HISTORY {current}"))?;
        Ok(fork_point(&answer.get_value(0, 1).unwrap_or_default(), earlier))
    }

    /// Makes a slot and exports its snapshot. Waits for older transactions at most `lock_timeout`.
    pub fn create_slot(
        &mut self,
        name: &str,
        version: i32,
        lock_timeout: Duration,
    ) -> Result<NewSlot, ReplicationError> {
        self.connection.exec(&format!("SET lock_timeout = {}", lock_timeout.as_millis()))?;
        let export = if version >= 150_000 { "(SNAPSHOT 'export')" } else { "EXPORT_SNAPSHOT" };
        let sql = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {export}", quote_ident(name));
        let answer = self.connection.exec(&sql)?;
        let field = |at| answer.get_value(0, at).unwrap_or_default();
        let consistent_point = field(1).parse();
        let consistent_point = consistent_point
            .map_err(|_| ReplicationError::Transport("CREATE_REPLICATION_SLOT gave no position".into()))?;
        Ok(NewSlot { consistent_point, snapshot: field(2) })
    }

    /// Starts streaming. The server never sends what the slot has confirmed, and moves an earlier `from` up silently:
    /// the caller has compared the two.
    pub fn start(&mut self, slot: &str, publication: &str, from: Lsn) -> Result<(), ReplicationError> {
        let publications = quote_ident(publication);
        let options = [("proto_version", "1"), ("publication_names", publications.as_str()), ("binary", "true")];
        Ok(self.connection.start_replication(slot, from.0, &options)?)
    }
}

impl WalSource for PgWalSource {
    async fn next_frame(&mut self) -> Result<Frame, ReplicationError> {
        let bytes = self.connection.get_copy_data_async(&self.never).await?;
        Frame::decode(&bytes).map_err(|error| ReplicationError::Protocol(error.to_string()))
    }

    async fn send_status(&mut self, received: Lsn, flushed: Lsn, reply: bool) -> Result<(), ReplicationError> {
        Ok(self.connection.send_standby_status_update(received.0, flushed.0, flushed.0, reply).await?)
    }
}

/// Settings of the intake.
#[derive(Debug, Clone, Copy)]
pub struct Intake {
    /// How often status goes out, and a sign of life is asked for.
    pub status_interval: Duration,
    /// Without any sign of life for so long the connection is given up.
    pub silence_limit: Duration,
    /// Bytes of frames that may wait for the log.
    pub queue_bytes: usize,
}

/// A frame on its way to the log, with its share of the queue's budget.
pub struct Queued {
    /// The frame.
    pub frame: Frame,
    _budget: OwnedSemaphorePermit,
}

/// Frames that may wait, whatever their size.
const QUEUE_FRAMES: usize = 4096;
/// The budget is counted in units of this many bytes.
const UNIT: usize = 1024;

/// The queue between the socket and the log.
pub fn queue() -> (mpsc::Sender<Queued>, mpsc::Receiver<Queued>) {
    mpsc::channel(QUEUE_FRAMES)
}

/// Moves frames from the socket to the queue and status from the log to the source, until an error, until told to stop or
/// until nobody takes frames any more. Never blocks on the log: when the queue is full, only intake stops.
pub async fn receive<S: WalSource>(
    mut source: S,
    intake: Intake,
    queue: mpsc::Sender<Queued>,
    log: Arc<LogTail>,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<(), ReplicationError> {
    let units = (intake.queue_bytes / UNIT).max(1);
    let budget = Arc::new(Semaphore::new(units));
    let mut received = log.durable().lsn;
    let mut next_status = Instant::now();
    let mut last_heard = Instant::now();
    let mut pending: Option<(Frame, u32)> = None;
    loop {
        if stop.is_cancelled() {
            return Err(ReplicationError::Stopped);
        }
        if Instant::now() >= next_status {
            let durable = log.durable().lsn;
            source.send_status(received.max(durable), durable, true).await?;
            progress.set_confirmed(durable);
            next_status = Instant::now() + intake.status_interval;
        }
        let wait = next_status.saturating_duration_since(Instant::now());
        if let Some((_, size)) = &pending {
            let permits = timeout(wait, budget.clone().acquire_many_owned(*size)).await;
            // No life can be seen while we do not look.
            last_heard = Instant::now();
            let Ok(permits) = permits else { continue };
            let permits = permits.map_err(|_| ReplicationError::Stopped)?;
            let Some((frame, _)) = pending.take() else { continue };
            let sent = queue.try_send(Queued { frame, _budget: permits });
            match sent {
                Ok(()) => continue,
                Err(mpsc::error::TrySendError::Closed(_)) => return Err(ReplicationError::Stopped),
                Err(mpsc::error::TrySendError::Full(queued)) => {
                    let size = queued._budget.num_permits() as u32;
                    pending = Some((queued.frame, size));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            }
        }
        let frame = tokio::select! {
            frame = timeout(wait, source.next_frame()) => frame,
            () = progress.nudged() => {
                next_status = Instant::now();
                continue;
            }
            () = queue.closed() => return Err(ReplicationError::Stopped),
            () = stop.cancelled() => return Err(ReplicationError::Stopped),
        };
        let Ok(frame) = frame else {
            if last_heard.elapsed() > intake.silence_limit {
                return Err(ReplicationError::Transport(format!("no sign of life for {:?}", intake.silence_limit)));
            }
            continue;
        };
        let frame = frame?;
        last_heard = Instant::now();
        match &frame {
            Frame::Keepalive { wal_end, reply_requested, .. } => {
                // What was sent, not what there is: a sender that is behind says so in no keepalive.
                received = received.max(*wal_end);
                if *reply_requested {
                    next_status = last_heard;
                }
            }
            Frame::XLogData { start, .. } => received = received.max(*start),
        }
        progress.set_received(received);
        let size = match &frame {
            Frame::XLogData { payload, .. } => payload.len().div_ceil(UNIT).clamp(1, units),
            Frame::Keepalive { .. } => 1,
        };
        pending = Some((frame, size as u32));
    }
}

impl From<pg_walstream::ReplicationError> for ReplicationError {
    /// The transport's classes; SQLSTATEs it only writes into its text.
    fn from(error: pg_walstream::ReplicationError) -> Self {
        use pg_walstream::ReplicationError as E;
        let text = error.to_string();
        match error {
            E::Authentication(_) | E::PermanentConnection(_) | E::Config(_) => {
                ReplicationError::Source(SourceError::refused(text, "check source.dsn and the role's rights"))
            }
            E::Protocol(_) | E::Buffer(_) => ReplicationError::Protocol(text),
            _ => ReplicationError::Transport(text),
        }
    }
}
