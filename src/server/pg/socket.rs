//! The connection to a client: its greeting, encryption, messages in and out.

use crate::server::pg::wire::{Malformed, Message, Output, decode};
use bytes::{Buf, Bytes, BytesMut};
use rustls::ServerConfig;
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// Longest start-up message, PostgreSQL's own limit; also of messages before anybody is let in.
const LONGEST_GREETING: usize = 10_000;
/// Longest message afterwards.
const LONGEST_MESSAGE: usize = 16 << 20;
/// Output that is sent without being asked to.
pub const FULL: usize = 64 << 10;

const TLS: u32 = 80_877_103;
const GSS: u32 = 80_877_104;
const CANCEL: u32 = 80_877_102;
/// Protocol 3.0; a newer minor version is answered with this one.
const VERSION: u32 = 3 << 16;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A client, once it has said what it wants.
pub enum Greeting {
    /// A session with these parameters.
    Session(Connection, BTreeMap<String, String>),
    /// Cancel what this process with this secret is doing.
    Cancel(u32, u32),
    /// Another protocol, or nothing at all.
    Gone,
}

/// An open connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: BytesMut,
    /// What is to be sent.
    pub output: Output,
    longest: usize,
    /// How long the client may take nothing while something is sent; none: as long as it wants.
    pub stall: Option<Duration>,
    /// Is it encrypted?
    pub encrypted: bool,
}

/// Reads a client's greeting. `tls`: how to encrypt, where that is configured.
pub async fn greet(tcp: TcpStream, tls: Option<Arc<ServerConfig>>) -> Result<Greeting> {
    let mut first = [0];
    // A TLS record at once is `sslnegotiation=direct`.
    if tcp.peek(&mut first).await? == 1 && first == [0x16] {
        let Some(tls) = tls else { return Ok(Greeting::Gone) };
        return encrypted(Box::new(tcp), tls).await?.session(None).await;
    }
    Connection::new(Box::new(tcp), false).session(tls).await
}

async fn encrypted(stream: Box<dyn Stream>, tls: Arc<ServerConfig>) -> Result<Connection> {
    let stream = TlsAcceptor::from(tls).accept(stream).await?;
    Ok(Connection::new(Box::new(stream), true))
}

impl Connection {
    fn new(stream: Box<dyn Stream>, encrypted: bool) -> Connection {
        let (input, output) = (BytesMut::new(), Output::default());
        Connection { stream, input, output, longest: LONGEST_GREETING, stall: None, encrypted }
    }

    async fn session(mut self, mut tls: Option<Arc<ServerConfig>>) -> Result<Greeting> {
        // Each kind of encryption may be asked for once.
        for _ in 0..4 {
            let Some(mut packet) = self.packet().await? else { return Ok(Greeting::Gone) };
            match packet.try_get_u32().map_err(|_| bad("a short greeting"))? {
                TLS => match tls.take().filter(|_| !self.encrypted) {
                    None => self.stream.write_all(b"N").await?,
                    Some(tls) => {
                        // What was sent in the clear behind the question must not be taken for what comes encrypted.
                        if !self.input.is_empty() {
                            return Err(bad("bytes behind SSLRequest"));
                        }
                        self.stream.write_all(b"S").await?;
                        self = encrypted(self.stream, tls).await?;
                    }
                },
                GSS => self.stream.write_all(b"N").await?,
                CANCEL if packet.len() == 8 => return Ok(Greeting::Cancel(packet.get_u32(), packet.get_u32())),
                version if version >> 16 == VERSION >> 16 => {
                    let parameters = parameters(packet).ok_or_else(|| bad("start-up parameters"))?;
                    self.negotiate(version, &parameters);
                    return Ok(Greeting::Session(self, parameters));
                }
                _ => return Err(bad("another protocol")),
            }
        }
        Err(bad("one greeting after the other"))
    }

    /// Tells a newer client what is not known here.
    fn negotiate(&mut self, version: u32, parameters: &BTreeMap<String, String>) {
        let unknown: Vec<_> = parameters.keys().filter(|name| name.starts_with("_pq_.")).collect();
        if version > VERSION || !unknown.is_empty() {
            self.output.negotiate(VERSION, &unknown);
        }
    }

    /// A message without a type.
    async fn packet(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(head) = self.input.first_chunk::<4>() {
                let length = u32::from_be_bytes(*head) as usize;
                if !(8..=LONGEST_GREETING).contains(&length) {
                    return Err(bad("a greeting of that length"));
                }
                if self.input.len() >= length {
                    return Ok(Some(self.input.split_to(length).freeze().slice(4..)));
                }
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The client is let in: longer messages are taken.
    pub fn trust(&mut self) {
        self.longest = LONGEST_MESSAGE;
    }

    /// The next message; none when the client is gone. Cancel-safe: a message that is not whole stays.
    pub async fn message(&mut self) -> Result<Option<std::result::Result<Message, Malformed>>> {
        loop {
            if let Some(&[tag, a, b, c, d]) = self.input.first_chunk::<5>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if length < 4 || length > self.longest {
                    return Err(bad("a message of that length"));
                }
                if self.input.len() > length {
                    let body = self.input.split_to(length + 1).freeze().slice(5..);
                    return Ok(Some(decode(tag, body)));
                }
                self.input.reserve(length + 1 - self.input.len());
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Sends what there is. Cancel-safe: what was not sent yet stays.
    pub async fn flush(&mut self) -> Result<()> {
        let stall = self.stall.unwrap_or(Duration::MAX);
        let stalled = |_| Error::new(ErrorKind::TimedOut, "the client takes nothing any more");
        while !self.output.0.is_empty() {
            timeout(stall, self.stream.write_buf(&mut self.output.0)).await.map_err(stalled)??;
        }
        timeout(stall, self.stream.flush()).await.map_err(stalled)?
    }
}

fn bad(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// Pairs of texts with an end.
fn parameters(body: Bytes) -> Option<BTreeMap<String, String>> {
    let pairs = body.strip_suffix(b"\0")?;
    let mut parameters = BTreeMap::new();
    if pairs.is_empty() {
        return Some(parameters);
    }
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let mut texts = pairs.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    while let Some(name) = texts.next() {
        parameters.insert(text(name).filter(|name| !name.is_empty())?, text(texts.next()?)?);
    }
    Some(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_parameters_are_read() {
        let read = |bytes: &'static [u8]| parameters(Bytes::from_static(bytes));
        let wanted = BTreeMap::from([("options".to_owned(), String::new()), ("user".to_owned(), "a".to_owned())]);
        assert_eq!(read(b"user\0a\0options\0\0\0"), Some(wanted));
        assert_eq!(read(b"\0"), Some(BTreeMap::new()));
        for broken in [&b""[..], b"user\0a", b"user\0\0", b"\xff\0a\0\0", b"\0a\0\0"] {
            assert_eq!(read(broken), None, "{broken:?}");
        }
    }
}
