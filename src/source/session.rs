//! A session in PostgreSQL's protocol without a client library on top: start-up, authentication, statements, raw
//! messages. What `tokio_postgres` does not do (replication) stands on it.

use crate::source::conninfo::{ChannelBinding, ConnInfo, Secret, Target};
use crate::source::protocol::{Opened, Protocol, ServerState};
use crate::source::socket::Socket;
use crate::source::{Result, SourceError, policy, tls};
use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{AuthenticationSaslBody, DataRowBody, ErrorFields, Header, Message};
use postgres_protocol::message::frontend;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

/// PostgreSQL's own limit for one message.
const LONGEST_MESSAGE: usize = 1 << 30;
/// The same before anybody has said who he is.
const LONGEST_GREETING: usize = 64 * 1024;
/// Read so much at once.
const CHUNK: usize = 128 * 1024;
/// With less room than this the buffer gets a new chunk.
const LEAST_ROOM: usize = 16 * 1024;
/// Bytes of ours that may wait for the network; beyond, the other end no longer reads.
const LONGEST_OUTPUT: usize = 64 * 1024;
/// Rows that one statement may answer with.
const MOST_ROWS: usize = 10_000;

/// An authenticated session.
pub struct Session {
    socket: Socket,
    input: BytesMut,
    output: BytesMut,
    longest: usize,
    state: ServerState,
    target: Target,
}

/// A row of a statement's answer, as text.
pub type Row = Vec<Option<String>>;

/// A replication session: in the database, and able to stream from a logical slot.
pub(super) struct Replication;

impl Protocol for Replication {
    type Session = Session;

    async fn open(
        &self,
        socket: Socket,
        info: &ConnInfo,
        target: &Target,
        password: Option<Secret>,
    ) -> Result<Opened<Session>> {
        let mut session = Session {
            socket,
            input: BytesMut::new(),
            output: BytesMut::new(),
            longest: LONGEST_GREETING,
            state: ServerState::default(),
            target: target.clone(),
        };
        session.start(info).await?;
        session.authenticate(info, password).await?;
        session.greet().await?;
        session.longest = LONGEST_MESSAGE;
        let state = session.state;
        Ok(Opened { session, state })
    }
}

impl Session {
    async fn start(&mut self, info: &ConnInfo) -> Result<()> {
        let mut parameters = vec![
            ("user", info.user.as_str()),
            ("database", &info.database),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", &info.application_name),
        ];
        parameters.extend(info.options.as_deref().map(|options| ("options", options)));
        self.send(|out| frontend::startup_message(parameters, out)).await
    }

    async fn authenticate(&mut self, info: &ConnInfo, password: Option<Secret>) -> Result<()> {
        // Without one the server says so, with its SQLSTATE.
        let password = password.unwrap_or_else(|| Secret::new(""));
        let password = password.expose().as_bytes();
        let unbound = || match info.channel_binding {
            ChannelBinding::Require => Err(no_channel_binding()),
            _ => Ok(()),
        };
        match self.message().await? {
            Message::AuthenticationOk => return unbound(),
            Message::AuthenticationCleartextPassword => {
                unbound()?;
                self.send(|out| frontend::password_message(password, out)).await?;
            }
            Message::AuthenticationMd5Password(body) => {
                unbound()?;
                let hash = md5_hash(info.user.as_bytes(), password, body.salt());
                self.send(|out| frontend::password_message(hash.as_bytes(), out)).await?;
            }
            Message::AuthenticationSasl(body) => self.scram(info, &body, password).await?,
            Message::AuthenticationGss
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential
            | Message::AuthenticationSspi => {
                let problem = "the source asks for GSSAPI, SSPI or another authentication that is not supported";
                let remedy =
                    "give this role a line in pg_hba.conf with scram-sha-256, cert, or another kind of password";
                return Err(SourceError::refused(problem, remedy));
            }
            _ => return Err(self.unexpected("during the authentication")),
        }
        match self.message().await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(self.unexpected("after the authentication")),
        }
    }

    async fn scram(&mut self, info: &ConnInfo, offer: &AuthenticationSaslBody, password: &[u8]) -> Result<()> {
        let mechanisms: Vec<&str> = offer.mechanisms().collect().map_err(|error| self.broken(error))?;
        let (mechanism, binding) = choose(&mechanisms, info.channel_binding, self.socket.end_point())?;
        let mut scram = sasl::ScramSha256::new(password, binding);
        self.send(|out| frontend::sasl_initial_response(mechanism, scram.message(), out)).await?;
        let Message::AuthenticationSaslContinue(body) = self.message().await? else {
            return Err(self.unexpected("in the middle of SCRAM"));
        };
        scram.update(body.data()).map_err(not_the_server)?;
        self.send(|out| frontend::sasl_response(scram.message(), out)).await?;
        let Message::AuthenticationSaslFinal(body) = self.message().await? else {
            return Err(self.unexpected("at the end of SCRAM"));
        };
        scram.finish(body.data()).map_err(not_the_server)
    }

    /// What the server tells of itself before the first statement.
    async fn greet(&mut self) -> Result<()> {
        loop {
            match self.message().await? {
                Message::ParameterStatus(body) => {
                    let name = body.name().map_err(|error| self.broken(error))?;
                    let value = body.value().map_err(|error| self.broken(error))?;
                    self.state.learn(name, value);
                }
                Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                _ => return Err(self.unexpected("before the first statement")),
            }
        }
    }

    /// Runs statements and gives all rows. Not cancel-safe.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Row>> {
        self.send(|out| frontend::query(sql, out)).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.message().await {
                Err(error @ SourceError::Sql { .. }) => failure = Some(error),
                Err(error) => return Err(error),
                Ok(Message::DataRow(body)) if rows.len() < MOST_ROWS => {
                    rows.push(text_row(&body).map_err(|error| self.broken(error))?);
                }
                Ok(Message::ReadyForQuery(_)) => return failure.map_or(Ok(rows), Err),
                Ok(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse
                    | Message::ParameterStatus(_),
                ) => {}
                Ok(_) => return Err(self.unexpected("in the answer to a statement")),
            }
        }
    }

    /// Runs a statement that turns the session into a stream of copy data in both directions. Not cancel-safe.
    pub async fn copy_both(&mut self, sql: &str) -> Result<()> {
        const COPY_BOTH_RESPONSE: u8 = b'W';
        self.send(|out| frontend::query(sql, out)).await?;
        loop {
            let message = poll_fn(|cx| self.poll_raw(cx)).await?;
            match message[0] {
                COPY_BOTH_RESPONSE => return Ok(()),
                NOTICE | PARAMETER_STATUS => {}
                ERROR => return Err(self.server_error(message)),
                _ => return Err(self.unexpected("instead of a stream")),
            }
        }
    }

    /// The next message of copy data, or `None` where the server ended the copy. Cancel-safe. What waits to be sent goes
    /// out meanwhile.
    pub async fn copy_data(&mut self) -> Result<Option<Bytes>> {
        const COPY_DATA: u8 = b'd';
        const COPY_DONE: u8 = b'c';
        const COMMAND_COMPLETE: u8 = b'C';
        const READY: u8 = b'Z';
        loop {
            let mut message = poll_fn(|cx| {
                if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                    return Poll::Ready(Err(error));
                }
                self.poll_raw(cx)
            })
            .await?;
            match message[0] {
                COPY_DATA => {
                    message.advance(HEADER);
                    return Ok(Some(message));
                }
                COPY_DONE | COMMAND_COMPLETE | READY => return Ok(None),
                NOTICE | PARAMETER_STATUS => {}
                ERROR => return Err(self.server_error(message)),
                _ => return Err(self.unexpected("in the stream")),
            }
        }
    }

    /// Puts copy data on its way and does not wait for a network that takes none now: reading goes on with it.
    /// Cancel-safe.
    pub async fn send_copy_data(&mut self, data: &[u8]) -> Result<()> {
        let message = frontend::CopyData::new(data).map_err(|error| self.broken(error))?;
        message.write(&mut self.output);
        if self.output.len() > LONGEST_OUTPUT {
            return Err(SourceError::Unavailable(format!("{} no longer reads what we send", self.target)));
        }
        poll_fn(|cx| match self.poll_send(cx) {
            Poll::Pending => Poll::Ready(Ok(())),
            ready => ready,
        })
        .await
    }

    /// Ends the copy and the session in the protocol's way, so that the server need not find out. Reads until the server
    /// has closed; the caller bounds the time.
    pub async fn end(mut self) {
        let said = self.send(|out| {
            frontend::copy_done(out);
            frontend::terminate(out);
            Ok(())
        });
        if said.await.is_ok() {
            while poll_fn(|cx| self.poll_raw(cx)).await.is_ok() {}
        }
    }

    /// Writes a message and waits until the network has it.
    async fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<()> {
        write(&mut self.output).map_err(|error| SourceError::refused(error.to_string(), "correct source.dsn"))?;
        poll_fn(|cx| self.poll_send(cx)).await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while !self.output.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.output));
            match written {
                Ok(0) => return Poll::Ready(Err(self.closed())),
                Ok(count) => self.output.advance(count),
                Err(error) => return Poll::Ready(Err(self.failed(&error))),
            }
        }
        let flushed = ready!(Pin::new(&mut self.socket).poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| self.failed(&error)))
    }

    /// The next message with its header, whatever it is. It shares the buffer's memory.
    fn poll_raw(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes>> {
        loop {
            let length = match self.next_length() {
                Ok(length) => length,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if let Some(length) = length.filter(|length| self.input.len() >= *length) {
                return Poll::Ready(Ok(self.input.split_to(length).freeze()));
            }
            let missing = length.map_or(0, |length| length - self.input.len());
            if self.input.capacity() - self.input.len() < missing.max(LEAST_ROOM) {
                self.input.reserve(missing.max(CHUNK));
            }
            let read = ready!(poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.input));
            match read {
                Ok(0) => return Poll::Ready(Err(self.closed())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(self.failed(&error))),
            }
        }
    }

    /// Length of the first message in the buffer, header included, once it can be seen.
    fn next_length(&self) -> Result<Option<usize>> {
        let header = Header::parse(&self.input).map_err(|error| self.broken(error))?;
        let Some(header) = header else { return Ok(None) };
        let length = usize::try_from(header.len()).unwrap_or(usize::MAX).saturating_add(1);
        match length <= self.longest {
            true => Ok(Some(length)),
            false => Err(self.broken(io::Error::other(format!("a message of {length} bytes")))),
        }
    }

    /// The next message that is not a notice, parsed; a server's error as ours.
    async fn message(&mut self) -> Result<Message> {
        loop {
            let raw = poll_fn(|cx| self.poll_raw(cx)).await?;
            match raw[0] {
                ERROR => return Err(self.server_error(raw)),
                NOTICE => continue,
                _ => {}
            }
            let parsed = Message::parse(&mut BytesMut::from(raw)).map_err(|error| self.broken(error))?;
            return parsed.ok_or_else(|| self.unexpected("of no length"));
        }
    }

    fn server_error(&self, raw: Bytes) -> SourceError {
        match Message::parse(&mut BytesMut::from(raw)) {
            Ok(Some(Message::ErrorResponse(body))) => error_of(body.fields()),
            _ => self.broken(io::Error::other("an error that cannot be read")),
        }
    }

    fn closed(&self) -> SourceError {
        SourceError::Unavailable(format!("{} closed the connection", self.target))
    }

    fn failed(&self, error: &io::Error) -> SourceError {
        match tls::cause(error) {
            // In TLS 1.3 a server refuses our certificate only after the handshake.
            Some(_) => tls::explain(error, Some(&self.target)),
            None => SourceError::Unavailable(format!("{}: {error}", self.target)),
        }
    }

    fn broken(&self, error: impl std::fmt::Display) -> SourceError {
        SourceError::Unavailable(format!("{} does not speak PostgreSQL's protocol: {error}", self.target))
    }

    fn unexpected(&self, place: &str) -> SourceError {
        self.broken(format!("an unexpected message {place}"))
    }
}

const HEADER: usize = 5;
const ERROR: u8 = b'E';
const NOTICE: u8 = b'N';
const PARAMETER_STATUS: u8 = b'S';

/// SCRAM with channel binding wherever both can. Where only the server cannot, it is told that we could: a man in the
/// middle who took the offer away is found out by that.
fn choose(
    offered: &[&str],
    wanted: ChannelBinding,
    end_point: Option<&[u8]>,
) -> Result<(&'static str, sasl::ChannelBinding)> {
    let hash = end_point.filter(|_| wanted != ChannelBinding::Disable);
    let plus = offered.contains(&sasl::SCRAM_SHA_256_PLUS);
    match (hash, plus) {
        (Some(hash), true) => {
            return Ok((sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash.to_vec())));
        }
        _ if wanted == ChannelBinding::Require => return Err(no_channel_binding()),
        _ => {}
    }
    if !offered.contains(&sasl::SCRAM_SHA_256) {
        let problem = format!("the source offers only {}", offered.join(", "));
        return Err(SourceError::refused(problem, "give this role a line in pg_hba.conf with scram-sha-256"));
    }
    match hash {
        Some(_) => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested())),
        None => Ok((sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported())),
    }
}

/// `channel_binding=require` cannot be had.
pub(super) fn no_channel_binding() -> SourceError {
    SourceError::refused(
        "channel_binding=require, but the source authenticates without channel binding",
        "use TLS and a role whose password is stored as scram-sha-256, or channel_binding=prefer",
    )
}

fn not_the_server(error: io::Error) -> SourceError {
    SourceError::refused(
        format!("the source does not prove that it knows the password: {error}"),
        "check that source.dsn names the right server and that nobody is in between",
    )
}

fn text_row(body: &DataRowBody) -> io::Result<Row> {
    let ranges = body.ranges();
    let text = |range: std::ops::Range<usize>| String::from_utf8_lossy(&body.buffer()[range]).into_owned();
    ranges.map(|range| Ok(range.map(text))).collect()
}

fn error_of(mut fields: ErrorFields<'_>) -> SourceError {
    let (mut code, mut message, mut detail) = (String::new(), String::new(), String::new());
    while let Ok(Some(field)) = fields.next() {
        let value = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = value,
            b'M' => message = value,
            b'D' => detail = value,
            _ => {}
        }
    }
    if !detail.is_empty() && policy::of_sqlstate(&code) != policy::Policy::Retry {
        message = format!("{message} ({detail})");
    }
    SourceError::Sql { code, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_binding_is_used_wherever_both_can() {
        use ChannelBinding::{Disable, Prefer, Require};
        let both = &[sasl::SCRAM_SHA_256_PLUS, sasl::SCRAM_SHA_256][..];
        let plain = &[sasl::SCRAM_SHA_256][..];
        let hash: Option<&[u8]> = Some(&[1; 32]);
        let cases = [
            (both, Prefer, hash, Ok("SCRAM-SHA-256-PLUS p=")),
            (both, Require, hash, Ok("SCRAM-SHA-256-PLUS p=")),
            (both, Disable, hash, Ok("SCRAM-SHA-256 n,")),
            (both, Prefer, None, Ok("SCRAM-SHA-256 n,")),
            (plain, Prefer, hash, Ok("SCRAM-SHA-256 y,")),
            (plain, Prefer, None, Ok("SCRAM-SHA-256 n,")),
            (both, Require, None, Err("channel_binding")),
            (plain, Require, hash, Err("channel_binding")),
            (&["SCRAM-SHA-512"], Prefer, hash, Err("SCRAM-SHA-512")),
        ];
        for (offered, wanted, end_point, expected) in cases {
            let chosen = choose(offered, wanted, end_point).map(|(mechanism, binding)| {
                let first = sasl::ScramSha256::new(b"", binding).message().to_vec();
                format!("{mechanism} {}", String::from_utf8_lossy(&first[..2]))
            });
            match (chosen, expected) {
                (Ok(chosen), Ok(expected)) => assert_eq!(chosen, expected, "{offered:?} {wanted:?}"),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (chosen, expected) => panic!("{offered:?} {wanted:?}: {chosen:?}, not {expected:?}"),
            }
        }
    }
}
