//! The WAL transport: our replication connection, from the first statement to the clean end of the stream.

use crate::model::{Lsn, quote_ident};
use crate::replication::ReplicationError;
use crate::replication::frame::Frame;
use crate::replication::start::fork_point;
use crate::replication::stream::WalSource;
use crate::source::connect::Dsn;
use crate::source::session::{Row, Session};
use bytes::{BufMut, BytesMut};
use std::time::{Duration, SystemTime};
use tokio::time::timeout;

/// Longest wait for an answer that waits for nothing.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for a server to take leave.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);
/// A status message: kind, three positions, the time, whether an answer is wanted.
const STATUS: usize = 1 + 4 * 8 + 1;
/// 2000-01-01, where PostgreSQL's clock starts, as seconds of the Unix epoch.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// A replication connection to a real server.
pub struct PgWalSource {
    session: Session,
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
    /// Connects in replication mode.
    pub async fn connect(dsn: &Dsn) -> Result<PgWalSource, ReplicationError> {
        Ok(PgWalSource { session: dsn.connect_replication().await? })
    }

    /// Who answers, and where.
    pub async fn identify(&mut self) -> Result<SystemFacts, ReplicationError> {
        let rows = self.ask("IDENTIFY_SYSTEM", ANSWER_LIMIT).await?;
        let facts = || {
            let [system_id, timeline, current, ..] = first(&rows)? else { return None };
            Some(SystemFacts {
                system_id: system_id.clone()?,
                timeline: timeline.as_ref()?.parse().ok()?,
                current: current.as_ref()?.parse().ok()?,
            })
        };
        facts().ok_or_else(|| not_understood("IDENTIFY_SYSTEM"))
    }

    /// Where an earlier timeline ended, by the history of the current one.
    pub async fn forked_at(&mut self, earlier: u32, current: u32) -> Result<Option<Lsn>, ReplicationError> {
        let rows = self.ask(&format!("TIMELINE_HISTORY {current}"), ANSWER_LIMIT).await?;
        match first(&rows) {
            Some([_, Some(history), ..]) => Ok(fork_point(history, earlier)),
            _ => Err(not_understood("TIMELINE_HISTORY")),
        }
    }

    /// Makes a slot and exports its snapshot. Waits for older transactions, for each at most `lock_timeout`. A temporary
    /// one goes with the connection.
    pub async fn create_slot(
        &mut self,
        name: &str,
        temporary: bool,
        version: i32,
        lock_timeout: Duration,
    ) -> Result<NewSlot, ReplicationError> {
        self.ask(&format!("SET lock_timeout = {}", lock_timeout.as_millis()), ANSWER_LIMIT).await?;
        let export = if version >= 150_000 { "(SNAPSHOT 'export')" } else { "EXPORT_SNAPSHOT" };
        let temporary = if temporary { "TEMPORARY " } else { "" };
        let sql = format!("CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput {export}", quote_ident(name));
        // A slot is found consistent in up to three rounds of waiting; the server ends each.
        let rows = self.ask(&sql, lock_timeout * 3 + ANSWER_LIMIT).await?;
        let slot = || {
            let [_, consistent_point, snapshot, ..] = first(&rows)? else { return None };
            Some(NewSlot { consistent_point: consistent_point.as_ref()?.parse().ok()?, snapshot: snapshot.clone()? })
        };
        slot().ok_or_else(|| not_understood("CREATE_REPLICATION_SLOT"))
    }

    /// Starts streaming. The server never sends what the slot has confirmed, and moves an earlier `from` up silently:
    /// the caller has compared the two.
    pub async fn start(&mut self, slot: &str, publication: &str, from: Lsn) -> Result<(), ReplicationError> {
        // The name is an identifier inside a literal: quoted for the one, then for the other.
        let publications = quote_ident(publication).replace('\'', "''");
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names '{publications}', binary 'true')",
            quote_ident(slot)
        );
        let started = timeout(ANSWER_LIMIT, self.session.copy_both(&sql)).await;
        Ok(started.map_err(|_| no_answer("START_REPLICATION"))??)
    }

    async fn ask(&mut self, sql: &str, limit: Duration) -> Result<Vec<Row>, ReplicationError> {
        let command = sql.split_whitespace().next().unwrap_or_default();
        Ok(timeout(limit, self.session.query(sql)).await.map_err(|_| no_answer(command))??)
    }
}

fn first(rows: &[Row]) -> Option<&[Option<String>]> {
    rows.first().map(Vec::as_slice)
}

fn no_answer(command: &str) -> ReplicationError {
    ReplicationError::Transport(format!("no answer to {command}"))
}

fn not_understood(command: &str) -> ReplicationError {
    ReplicationError::Transport(format!("{command} answered nothing we understand"))
}

impl WalSource for PgWalSource {
    async fn next_frame(&mut self) -> Result<Frame, ReplicationError> {
        match self.session.copy_data().await? {
            Some(bytes) => Frame::decode(&bytes).map_err(|error| ReplicationError::Protocol(error.to_string())),
            None => Err(ReplicationError::Transport("the source ended the stream".into())),
        }
    }

    async fn send_status(&mut self, received: Lsn, flushed: Lsn, reply: bool) -> Result<(), ReplicationError> {
        Ok(self.session.send_copy_data(&status(received, flushed, reply)).await?)
    }

    async fn close(self) {
        if timeout(LEAVE_LIMIT, self.session.end()).await.is_err() {
            tracing::debug!("the source did not take leave in time");
        }
    }
}

/// Standby status update: written, flushed and applied are all what is durable here, but for the first.
fn status(received: Lsn, flushed: Lsn, reply: bool) -> BytesMut {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut message = BytesMut::with_capacity(STATUS);
    message.put_u8(b'r');
    [received, flushed, flushed].iter().for_each(|lsn| message.put_u64(lsn.0));
    message.put_u64(now.saturating_sub(POSTGRES_EPOCH).as_micros() as u64);
    message.put_u8(reply.into());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_message() {
        let message = status(Lsn(0x0102), Lsn(3), true);
        assert_eq!(message.len(), STATUS);
        assert_eq!(message[..25], [b'r', 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(message[STATUS - 1], 1);
    }
}
