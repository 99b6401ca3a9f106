//! The listener of HTTP: who is let in and how long each may take for what. `axum::serve` has no limit of connections, no
//! time-out for heads, handshakes and slow readers, and no TLS.

mod places;
mod prompt;

use crate::server::problem::{self, Problem};
use crate::server::tls::Files;
use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use places::{Place, Places};
use prompt::{Pace, Prompt};
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a listener allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; for a further one the connection is closed that has not asked for the longest time, and where
    /// requests are worked on everywhere it is refused.
    pub max_connections: usize,
    /// How long a handshake may take, and then the head of the first request.
    pub first: Duration,
    /// How long the head of a later request may take, and so how long a connection may idle between two.
    pub head: Duration,
    /// How long the client may take for each [`PIECE`] that is sent to it.
    pub write: Duration,
    /// Bytes a second at which a client takes an answer that it let us wait with for longer than that.
    pub rate: u64,
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
    places: Arc<Places>,
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
    let places = Places::new(limits.max_connections);
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
        match self.places.take() {
            Some(place) => {
                connections.spawn(async move {
                    let received = tokio::select! {
                        received = self.receive(tcp, &place, stop) => received,
                        () = place.evicted() => Err(Error::new(ErrorKind::TimedOut, "its place was needed, and it idled longest")),
                    };
                    if let Err(error) = received {
                        tracing::debug!(%error, %from, "an HTTP connection broke off");
                    }
                });
            }
            None => {
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

    async fn receive(&self, tcp: TcpStream, place: &Arc<Place>, stop: CancellationToken) -> Result<()> {
        tcp.set_nodelay(true)?;
        // A client that vanished without a word is noticed.
        socket2::SockRef::from(&tcp).set_keepalive(true)?;
        let stream = Prompt::new(tcp, Pace { piece: self.limits.write, rate: self.limits.rate });
        let Some(tls) = &self.tls else { return self.talk(stream, place, stop).await };
        let shaken = timeout(self.limits.first, TlsAcceptor::from(tls.current()).accept(stream));
        let shaken = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            shaken = shaken => shaken,
        };
        let shaken = shaken.map_err(|_| Error::new(ErrorKind::TimedOut, "the handshake took too long"))??;
        self.talk(shaken, place, stop).await
    }

    async fn talk(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin,
        place: &Arc<Place>,
        stop: CancellationToken,
    ) -> Result<()> {
        let mut protocol = http1::Builder::new();
        protocol.timer(TokioTimer::new()).header_read_timeout(self.limits.head).max_buf_size(MOST_HEAD);
        let router = TowerToHyperService::new(self.router.clone());
        let service = service_fn(|request| {
            let (work, answer) = (place.work(), router.call(request));
            async move {
                let answer = answer.await;
                drop(work);
                answer
            }
        });
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        let first = async {
            sleep(self.limits.first).await;
            if place.has_asked() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(Error::other),
            () = first => return Err(Error::new(ErrorKind::TimedOut, "the first request took too long")),
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await.map_err(Error::other)
    }
}

/// Tells a client that there is no place. What it sends is read, or its system would drop the answer.
async fn refuse(mut tcp: TcpStream) -> Result<()> {
    let problem = Problem::new(problem::OVERLOADED, "there are as many connections as may be");
    let problem = problem.hint("ask for less at once, or raise http.max_connections");
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

#[cfg(test)]
mod tests;
