//! The listener of HTTP: who is let in and how long each may take for what. `axum::serve` has no limit of connections, no
//! time-out for heads, handshakes and slow readers, and no TLS.

use crate::server::problem::{self, Problem};
use crate::server::tls::Files;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; further ones are refused.
    pub max_connections: usize,
    /// How long a handshake may take, then a request's head, and so how long a connection may idle between two.
    pub head: Duration,
    /// How long the client may take for each [`PIECE`] that is sent to it.
    pub write: Duration,
}

/// Bytes of an answer that a client takes within [`Limits::write`].
const PIECE: usize = 64 << 10;
/// Longest head of a request, which is read before anybody is known.
const MOST_HEAD: usize = 64 << 10;
/// Connections beyond the limit that are told so; the others are closed.
const MOST_REFUSALS: usize = 64;
/// How long one that is refused is listened to, so that it can read why.
const REFUSAL: Duration = Duration::from_secs(1);

/// Who serves.
struct Server {
    router: Router,
    tls: Option<Arc<Files>>,
    limits: Limits,
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

/// Serves until `stop` is cancelled: requests under way are finished, idle connections are closed. With `tls` nothing is
/// answered unencrypted.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    tls: Option<Arc<Files>>,
    limits: Limits,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let refusals = Arc::new(Semaphore::new(MOST_REFUSALS));
    let server = Arc::new(Server { router, tls, limits, places, refusals });
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, from)) => server.clone().admit(tcp, from, &connections, stop.clone()),
            // Gone before it was accepted.
            Err(error) if is_of_one(&error) => {}
            Err(error) => {
                // Out of file handles, most likely.
                tracing::warn!(%error, "an HTTP connection was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // New ones are refused by the system while the last ones are served.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Does this concern one connection only?
fn is_of_one(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

impl Server {
    /// Never waits: whoever is accepted next is not held up.
    fn admit(self: Arc<Self>, tcp: TcpStream, from: SocketAddr, connections: &TaskTracker, stop: CancellationToken) {
        match self.places.clone().try_acquire_owned() {
            Ok(place) => {
                connections.spawn(async move {
                    if let Err(error) = self.receive(tcp, stop).await {
                        tracing::debug!(%error, %from, "an HTTP connection broke off");
                    }
                    drop(place);
                });
            }
            Err(_) => {
                let told = self.refusals.clone().try_acquire_owned();
                // Who expects TLS does not understand it.
                if let (None, Ok(told)) = (&self.tls, told) {
                    connections.spawn(async move {
                        let _ = timeout(REFUSAL, refuse(tcp)).await;
                        drop(told);
                    });
                }
            }
        }
    }

    async fn receive(&self, tcp: TcpStream, stop: CancellationToken) -> Result<()> {
        tcp.set_nodelay(true)?;
        // A client that vanished without a word is noticed.
        socket2::SockRef::from(&tcp).set_keepalive(true)?;
        let stream = Prompt::new(tcp, self.limits.write);
        let Some(tls) = &self.tls else { return self.talk(stream, stop).await };
        let shaken = timeout(self.limits.head, TlsAcceptor::from(tls.current()).accept(stream));
        let shaken = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            shaken = shaken => shaken,
        };
        self.talk(shaken.map_err(|_| Error::new(ErrorKind::TimedOut, "the handshake took too long"))??, stop).await
    }

    async fn talk(&self, stream: impl AsyncRead + AsyncWrite + Unpin, stop: CancellationToken) -> Result<()> {
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(self.limits.head).max_buf_size(MOST_HEAD);
        let service = TowerToHyperService::new(self.router.clone());
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(Error::other),
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.map_err(Error::other)
    }
}

/// Tells a client that there is no place. What it sends is read, or its system would drop the answer.
async fn refuse(mut tcp: TcpStream) -> Result<()> {
    let problem = Problem::new(problem::OVERLOADED, "there are as many connections as may be");
    let problem = problem.hint("close connections that idle, or raise http.max_connections");
    let body = serde_json::to_string(&problem).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {} Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\
         retry-after: 1\r\nconnection: close\r\n\r\n{body}",
        problem.kind.status,
        body.len()
    );
    tcp.write_all(answer.as_bytes()).await?;
    tcp.shutdown().await?;
    let mut rest = [0; 4096];
    while tcp.read(&mut rest).await? > 0 {}
    Ok(())
}

/// A connection whose client must take what it is sent: [`PIECE`] by piece, each within a limit.
struct Prompt<S> {
    stream: S,
    limit: Duration,
    /// Armed when the client lets us wait: until when it has to have taken a piece, and how much it took since.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Prompt<S> {
    fn new(stream: S, limit: Duration) -> Prompt<S> {
        Prompt { stream, limit, waiting: None }
    }

    fn watch(&mut self, context: &mut Context<'_>, written: Poll<Result<usize>>) -> Poll<Result<usize>> {
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
                *none = Some((Box::pin(tokio::time::sleep_until(Instant::now() + self.limit)), 0));
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
        self.waiting = None;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
