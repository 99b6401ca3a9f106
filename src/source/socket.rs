//! A socket to the source: TCP, unix or TLS, opened as the connection string says.

use crate::source::conninfo::{Ssl, Target, Tcp};
use crate::source::{Result, SourceError, tls};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

/// Where to connect to, after names are looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(String),
}

impl Address {
    /// All addresses of a server.
    pub async fn of(target: &Target) -> Result<Vec<Address>> {
        if target.is_unix() {
            // An abstract socket's name begins with a zero byte.
            let directory = match target.host.strip_prefix('@') {
                Some(name) => format!("\0{name}"),
                None => target.host.clone(),
            };
            return Ok(vec![Address::Unix(format!("{directory}/.s.PGSQL.{}", target.port))]);
        }
        let name = target.address.as_deref().unwrap_or(&target.host);
        let found = tokio::net::lookup_host((name, target.port)).await;
        let found = found.map_err(|error| SourceError::Unavailable(format!("cannot look up {target}: {error}")))?;
        Ok(found.map(Address::Tcp).collect())
    }
}

/// An open socket.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls { stream: Box<tokio_rustls::client::TlsStream<TcpStream>>, end_point: Option<Vec<u8>> },
}

impl Socket {
    /// Opens it, without a word to the server.
    pub async fn open(address: &Address, tcp: &Tcp) -> io::Result<Socket> {
        match address {
            Address::Unix(path) => UnixStream::connect(path).await.map(Socket::Unix),
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                // A port of this machine that nobody listens on may be given to ourselves.
                if stream.local_addr()? == stream.peer_addr()? {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                set(&stream, tcp)?;
                Ok(Socket::Tcp(stream))
            }
        }
    }

    /// Asks the server for TLS. The same socket comes back where it has none.
    pub async fn secure(self, ssl: &Ssl, target: &Target) -> Result<Socket> {
        let Socket::Tcp(mut tcp) = self else { return Ok(self) };
        let broken = |error: io::Error| SourceError::Unavailable(format!("{target}: {error}"));
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        tcp.write_all(&request).await.map_err(broken)?;
        match tcp.read_u8().await.map_err(broken)? {
            b'S' => {
                let stream = tls::handshake(tcp, ssl, target).await?;
                let end_point = tls::end_point(&stream);
                Ok(Socket::Tls { stream: Box::new(stream), end_point })
            }
            b'N' => Ok(Socket::Tcp(tcp)),
            // An error message in the clear: its text is anybody's.
            _ => Err(SourceError::Unavailable(format!("{target} did not answer the question for TLS"))),
        }
    }

    /// The hash of the server's certificate, for channel binding.
    pub fn end_point(&self) -> Option<&[u8]> {
        match self {
            Socket::Tls { end_point, .. } => end_point.as_deref(),
            _ => None,
        }
    }

    /// Is all that passes encrypted?
    pub fn is_secure(&self) -> bool {
        matches!(self, Socket::Tls { .. })
    }
}

fn set(stream: &TcpStream, tcp: &Tcp) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    if !tcp.no_keepalives {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = tcp.idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = tcp.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = tcp.count {
            keepalive = keepalive.with_retries(count);
        }
        socket.set_keepalive(true)?;
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if tcp.user_timeout.is_some() {
        socket.set_tcp_user_timeout(tcp.user_timeout)?;
    }
    Ok(())
}

macro_rules! each {
    ($socket:expr, $stream:ident => $do:expr) => {
        match $socket.get_mut() {
            Socket::Tcp($stream) => $do,
            Socket::Unix($stream) => $do,
            Socket::Tls { stream: $stream, .. } => $do,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl TlsStream for Socket {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, |hash| ChannelBinding::tls_server_end_point(hash.to_vec()))
    }
}

/// For `tokio_postgres`: the socket has had its handshake already.
pub(super) struct Secured;

impl TlsConnect<Socket> for Secured {
    type Stream = Socket;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Socket>>;

    fn connect(self, socket: Socket) -> Self::Future {
        std::future::ready(Ok(socket))
    }
}
