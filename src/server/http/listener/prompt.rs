//! A connection whose client must take what it is sent.

use super::PIECE;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// A connection whose client must take what it is sent: [`PIECE`] by piece, each within a limit, and all of an answer at a rate.
pub(super) struct Prompt<S> {
    stream: S,
    pace: Pace,
    /// Armed when the client lets us wait: until when it has to have taken a piece, and how much it took since.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
    /// When the client first let us wait for this answer, and how much it took since.
    behind: Option<(Instant, u64)>,
}

/// How fast a client takes what it is sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// A [`PIECE`] within this time.
    pub piece: Duration,
    /// After that time, so many bytes a second of the whole answer.
    pub rate: u64,
}

impl<S> Prompt<S> {
    pub(super) fn new(stream: S, pace: Pace) -> Prompt<S> {
        Prompt { stream, pace, waiting: None, behind: None }
    }

    /// Is the answer taken so slowly that its end is not worth what it holds?
    fn drags(&mut self, bytes: usize) -> bool {
        let Some((since, taken)) = &mut self.behind else { return false };
        *taken += bytes as u64;
        let elapsed = since.elapsed();
        elapsed > self.pace.piece && (*taken as f64) < elapsed.as_secs_f64() * self.pace.rate as f64
    }

    fn watch(&mut self, context: &mut Context<'_>, written: Poll<Result<usize>>) -> Poll<Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written
            && self.drags(*bytes)
        {
            return Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client takes its answer too slowly")));
        }
        match (&written, &mut self.waiting) {
            (Poll::Ready(Ok(bytes)), Some((_, taken))) => {
                *taken += bytes;
                if *taken >= PIECE {
                    self.waiting = None;
                }
                return written;
            }
            (Poll::Ready(_), _) => return written,
            (Poll::Pending, Some(_)) => {}
            (Poll::Pending, none) => {
                let now = Instant::now();
                self.behind.get_or_insert((now, 0));
                *none = Some((Box::pin(tokio::time::sleep_until(now + self.pace.piece)), 0));
            }
        }
        if let Some((sleep, _)) = &mut self.waiting {
            ready!(sleep.as_mut().poll(context));
        }
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the client does not take its answer")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prompt<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prompt<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        // Everything was taken: nothing is waited for any more.
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        (self.waiting, self.behind) = (None, None);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
