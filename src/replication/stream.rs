//! The intake: frames -> queue. Status flows on its own timer even while intake is shut.

use crate::model::Lsn;
use crate::replication::ReplicationError;
use crate::replication::frame::Frame;
use crate::replication::progress::Progress;
use crate::storage::changelog::LogTail;
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

    /// Takes leave, in bounded time, so that the source frees the slot at once.
    fn close(self) -> impl Future<Output = ()> + Send
    where
        Self: Sized,
    {
        async {}
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
    let ended = take_in(&mut source, intake, queue, log, progress, stop).await;
    if matches!(ended, Err(ReplicationError::Stopped)) {
        source.close().await;
    }
    ended
}

async fn take_in<S: WalSource>(
    source: &mut S,
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
