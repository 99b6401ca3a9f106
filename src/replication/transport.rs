//! The WAL transport: our replication connection, from the first statement to the clean end of the stream.

use crate::model::{Lsn, quote_ident, quote_literal};
use crate::replication::ReplicationError;
use crate::replication::frame::Frame;
use crate::replication::start::fork_point;
use crate::replication::stream::WalSource;
use crate::source::connect::{Dsn, without_limits};
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

/// The first server that streams transactions which have not ended.
const FIRST_WITH_STREAMING: u32 = 140_000;

/// How transactions come that are too large for the source's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Streaming {
    /// When they commit (protocol 1).
    Off,
    /// While they are open (protocol 2).
    On,
}

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

/// How long a slot is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    /// As long as the connection that made it.
    Temporary,
    /// Until it is dropped.
    Kept {
        /// Standbys can keep it in step, where the version can.
        failover: bool,
    },
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

    /// Makes a slot and exports its snapshot. Waits for older transactions, for each at most `lock_timeout`.
    pub async fn create_slot(
        &mut self,
        name: &str,
        kind: SlotKind,
        version: i32,
        lock_timeout: Duration,
    ) -> Result<NewSlot, ReplicationError> {
        // The snapshot is an idle transaction until somebody has taken it up.
        self.ask(&without_limits(false), ANSWER_LIMIT).await?;
        self.ask(&format!("SET lock_timeout = {}", lock_timeout.as_millis()), ANSWER_LIMIT).await?;
        let sql = create_slot_sql(name, version, kind);
        // A slot is found consistent in up to three rounds of waiting; the server ends each.
        let rows = self.ask(&sql, lock_timeout * 3 + ANSWER_LIMIT).await?;
        crate::failpoint!("transport.slot_made");
        let slot = || {
            let [_, consistent_point, snapshot, ..] = first(&rows)? else { return None };
            Some(NewSlot { consistent_point: consistent_point.as_ref()?.parse().ok()?, snapshot: snapshot.clone()? })
        };
        slot().ok_or_else(|| not_understood("CREATE_REPLICATION_SLOT"))
    }

    /// Makes a slot of before version 17, or of before `source.failover`, one that standbys can keep in step. What does not
    /// work now is tried at the next connection.
    pub async fn keep_in_step(&mut self, slot: &str) {
        let name = quote_ident(slot);
        let sql = format!(
            "SELECT 1 FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = {} AND NOT pg_catalog.pg_is_in_recovery()
                AND pg_catalog.to_jsonb(s) OPERATOR(pg_catalog.->>) 'failover' = 'false'",
            quote_literal(slot)
        );
        let changed = async {
            if !self.ask(&sql, ANSWER_LIMIT).await?.is_empty() {
                self.ask(&format!("ALTER_REPLICATION_SLOT {name} (FAILOVER true)"), ANSWER_LIMIT).await?;
                tracing::info!(slot, "standbys can keep the slot in step from now on");
            }
            Ok::<(), ReplicationError>(())
        };
        if let Err(error) = changed.await {
            tracing::warn!(slot, %error, "standbys cannot keep the slot in step");
        }
    }

    /// Starts the stream of committed transactions. The server never sends what the slot has confirmed, and moves an
    /// earlier `from` up silently: the caller has compared the two.
    pub async fn start(&mut self, slot: &str, publication: &str, from: Lsn) -> Result<(), ReplicationError> {
        self.start_with(slot, publication, from, Streaming::Off).await
    }

    /// The same, with a say in how large transactions come.
    pub async fn start_with(
        &mut self,
        slot: &str,
        publication: &str,
        from: Lsn,
        streaming: Streaming,
    ) -> Result<(), ReplicationError> {
        let protocol = match streaming {
            Streaming::On if self.server_version().await? >= FIRST_WITH_STREAMING => {
                "proto_version '2', streaming 'on'"
            }
            Streaming::On => {
                tracing::warn!("source.streaming is on, but the source is older than PostgreSQL 14: it is not used");
                "proto_version '1'"
            }
            Streaming::Off => "proto_version '1'",
        };
        // The name is an identifier inside a literal: quoted for the one, then for the other.
        let publications = quote_ident(publication).replace('\'', "''");
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} ({protocol}, publication_names '{publications}', binary 'true')",
            quote_ident(slot)
        );
        let started = timeout(ANSWER_LIMIT, self.session.copy_both(&sql)).await;
        started.map_err(|_| no_answer("START_REPLICATION"))??;
        crate::failpoint!("transport.stream_started");
        Ok(())
    }

    async fn server_version(&mut self) -> Result<u32, ReplicationError> {
        let rows = self.ask("SHOW server_version_num", ANSWER_LIMIT).await?;
        let version = first(&rows).and_then(|row| row.first()?.as_ref()?.parse().ok());
        version.ok_or_else(|| not_understood("SHOW"))
    }

    async fn ask(&mut self, sql: &str, limit: Duration) -> Result<Vec<Row>, ReplicationError> {
        let command = sql.split_whitespace().next().unwrap_or_default();
        Ok(timeout(limit, self.session.query(sql)).await.map_err(|_| no_answer(command))??)
    }
}

fn create_slot_sql(name: &str, version: i32, kind: SlotKind) -> String {
    let options = match version {
        170_000.. if kind == (SlotKind::Kept { failover: true }) => "(SNAPSHOT 'export', FAILOVER)",
        150_000.. => "(SNAPSHOT 'export')",
        _ => "EXPORT_SNAPSHOT",
    };
    let temporary = if kind == SlotKind::Temporary { "TEMPORARY " } else { "" };
    format!("CREATE_REPLICATION_SLOT {} {temporary}LOGICAL pgoutput {options}", quote_ident(name))
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
        crate::failpoint!("transport.before_leave");
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
    fn slots_survive_a_failover_where_the_version_can() {
        let cases = [
            (140_020, true, "EXPORT_SNAPSHOT"),
            (150_000, true, "(SNAPSHOT 'export')"),
            (169_999, true, "(SNAPSHOT 'export')"),
            (170_000, true, "(SNAPSHOT 'export', FAILOVER)"),
            (180_004, true, "(SNAPSHOT 'export', FAILOVER)"),
            (180_004, false, "(SNAPSHOT 'export')"),
        ];
        for (version, failover, options) in cases {
            let expected = format!("CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput {options}");
            assert_eq!(create_slot_sql("s", version, SlotKind::Kept { failover }), expected, "{version} {failover}");
        }
    }

    #[test]
    fn a_status_message() {
        let message = status(Lsn(0x0102), Lsn(3), true);
        assert_eq!(message.len(), STATUS);
        assert_eq!(message[..25], [b'r', 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(message[STATUS - 1], 1);
    }
}
