//! The intake: frames -> queue. Status flows on its own timer even while intake is shut.

use crate::model::Lsn;
use crate::replication::ReplicationError;
use crate::replication::frame::Frame;
use crate::replication::progress::Progress;
use crate::storage::changelog::LogTail;
use futures_util::FutureExt;
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
    /// Bytes of streamed transactions that may wait for their end in memory; more goes to files.
    pub spool_bytes: usize,
}

/// Frames on their way to the log, with their share of the queue's budget.
pub struct Queued {
    /// The frames, in order.
    pub frames: Vec<Frame>,
    _budget: OwnedSemaphorePermit,
}

/// Batches that may wait, whatever their size.
const QUEUE_BATCHES: usize = 256;
/// Frames, and units of size, after which a batch goes off.
const BATCH_FRAMES: usize = 512;
const BATCH_UNITS: usize = 1024;
/// Bytes of WAL at the source that are not durable here, above which we are catching up rather than following.
const FAR_BEHIND: u64 = 16 << 20;
/// The budget is counted in units of this many bytes.
const UNIT: usize = 1024;

/// The queue between the socket and the log.
pub fn queue() -> (mpsc::Sender<Queued>, mpsc::Receiver<Queued>) {
    mpsc::channel(QUEUE_BATCHES)
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
    let ended = take_in(&mut source, intake, queue, log.clone(), progress, stop).await;
    log.set_behind(false);
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
    let mut pending: Option<Batch> = None;
    loop {
        if stop.is_cancelled() {
            return Err(ReplicationError::Stopped);
        }
        if Instant::now() >= next_status {
            let durable = log.durable().lsn;
            crate::failpoint!("stream.before_status");
            let flushed = progress.may_confirm(durable);
            source.send_status(received.max(durable), flushed, true).await?;
            crate::failpoint!("stream.status_sent");
            if flushed > Lsn::ZERO {
                progress.set_confirmed(flushed);
            }
            log.set_behind(progress.source_end().0.saturating_sub(durable.0) > FAR_BEHIND);
            next_status = Instant::now() + intake.status_interval;
        }
        let wait = next_status.saturating_duration_since(Instant::now());
        if let Some(batch) = pending.take() {
            let permits = timeout(wait, budget.clone().acquire_many_owned(batch.units)).await;
            // No life can be seen while we do not look.
            last_heard = Instant::now();
            let Ok(permits) = permits else {
                pending = Some(batch);
                continue;
            };
            let budget = permits.map_err(|_| ReplicationError::Stopped)?;
            let Batch { frames, units, broken } = batch;
            match timeout(wait, queue.reserve()).await {
                Ok(Ok(place)) => place.send(Queued { frames, _budget: budget }),
                Ok(Err(_)) => return Err(ReplicationError::Stopped),
                Err(_) => {
                    pending = Some(Batch { frames, units, broken });
                    continue;
                }
            }
            crate::failpoint!("stream.batch_queued");
            match broken {
                Some(error) => return Err(error),
                None => continue,
            }
        }
        let first = tokio::select! {
            frame = timeout(wait, source.next_frame()) => frame,
            () = progress.nudged() => {
                next_status = Instant::now();
                continue;
            }
            () = queue.closed() => return Err(ReplicationError::Stopped),
            () = stop.cancelled() => return Err(ReplicationError::Stopped),
        };
        let Ok(first) = first else {
            if last_heard.elapsed() > intake.silence_limit {
                return Err(ReplicationError::Transport(format!("no sign of life for {:?}", intake.silence_limit)));
            }
            continue;
        };
        let batch = Batch::gather(source, first?, units);
        crate::failpoint!("stream.batch_received");
        last_heard = Instant::now();
        for frame in &batch.frames {
            match frame {
                // What was sent, not what there is: a sender that is behind says so in no keepalive.
                Frame::Keepalive { wal_end, reply_requested, .. } => {
                    received = received.max(*wal_end);
                    if *reply_requested {
                        next_status = last_heard;
                    }
                }
                Frame::XLogData { start, .. } => received = received.max(*start),
            }
        }
        progress.set_received(received);
        pending = Some(batch);
    }
}

/// Frames that came together, and what ended the stream behind them.
struct Batch {
    frames: Vec<Frame>,
    units: u32,
    broken: Option<ReplicationError>,
}

impl Batch {
    /// The first frame and all that can be had without waiting: a frame at a time would cost a timer, a permit and a
    /// wake-up each.
    fn gather(source: &mut impl WalSource, first: Frame, most_units: usize) -> Batch {
        let mut units = size(&first);
        let mut batch = Batch { frames: vec![first], units: 0, broken: None };
        while batch.frames.len() < BATCH_FRAMES && units < BATCH_UNITS {
            match source.next_frame().now_or_never() {
                Some(Ok(frame)) => {
                    units += size(&frame);
                    batch.frames.push(frame);
                }
                Some(Err(error)) => {
                    batch.broken = Some(error);
                    break;
                }
                None => break,
            }
        }
        batch.units = units.clamp(1, most_units) as u32;
        batch
    }
}

fn size(frame: &Frame) -> usize {
    match frame {
        Frame::XLogData { payload, .. } => payload.len().div_ceil(UNIT),
        Frame::Keepalive { .. } => 1,
    }
}
