//! The outer frames of streaming replication: what one CopyData message of the walsender is (PostgreSQL manual,
//! "Streaming Replication Protocol").

use crate::model::Lsn;
use bytes::Bytes;

/// One CopyData message of the walsender. Times are microseconds since 2000-01-01 UTC by the server's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Output of the decoding plugin.
    XLogData {
        /// Where the WAL record of the payload is; zero for Relation and Type messages.
        start: Lsn,
        /// End of the WAL on the server.
        wal_end: Lsn,
        /// When it was sent.
        server_time: i64,
        /// One message of the plugin.
        payload: Bytes,
    },
    /// A sign of life, with the position up to which everything was sent.
    Keepalive {
        /// That position.
        wal_end: Lsn,
        /// When it was sent.
        server_time: i64,
        /// The server wants an answer now, or it ends the connection.
        reply_requested: bool,
    },
}

/// A CopyData message that is no frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Nothing in it.
    #[error("an empty replication frame")]
    Empty,
    /// Neither `w` nor `k`.
    #[error("a replication frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// Too short, or a keepalive that goes on.
    #[error("a replication frame of kind {kind:?} with {length} bytes")]
    BadLength {
        /// Which kind.
        kind: char,
        /// Length of the whole frame.
        length: usize,
    },
}

const XLOG_HEADER: usize = 1 + 8 + 8 + 8;
const KEEPALIVE: usize = 1 + 8 + 8 + 1;

impl Frame {
    /// The frame in one CopyData message. The payload shares the message's memory.
    pub fn decode(bytes: &Bytes) -> Result<Frame, FrameError> {
        let length = bytes.len();
        match bytes.first() {
            None => Err(FrameError::Empty),
            Some(b'w') => xlog_data(bytes).ok_or(FrameError::BadLength { kind: 'w', length }),
            Some(b'k') => keepalive(bytes).ok_or(FrameError::BadLength { kind: 'k', length }),
            Some(&kind) => Err(FrameError::UnknownKind(kind)),
        }
    }
}

fn xlog_data(bytes: &Bytes) -> Option<Frame> {
    Some(Frame::XLogData {
        start: Lsn(u64_at(bytes, 1)?),
        wal_end: Lsn(u64_at(bytes, 9)?),
        server_time: u64_at(bytes, 17)? as i64,
        payload: bytes.slice(XLOG_HEADER..),
    })
}

fn keepalive(bytes: &[u8]) -> Option<Frame> {
    let frame = Frame::Keepalive {
        wal_end: Lsn(u64_at(bytes, 1)?),
        server_time: u64_at(bytes, 9)? as i64,
        reply_requested: *bytes.get(17)? != 0,
    };
    (bytes.len() == KEEPALIVE).then_some(frame)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_be_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, numbers: &[u64], tail: &[u8]) -> Bytes {
        let mut bytes = vec![kind];
        numbers.iter().for_each(|number| bytes.extend(number.to_be_bytes()));
        bytes.extend(tail);
        bytes.into()
    }

    #[test]
    fn both_kinds() {
        assert_eq!(
            Frame::decode(&frame(b'w', &[1, 2, -3i64 as u64], b"payload")),
            Ok(Frame::XLogData { start: Lsn(1), wal_end: Lsn(2), server_time: -3, payload: Bytes::from("payload") })
        );
        for (byte, reply_requested) in [(0, false), (1, true)] {
            assert_eq!(
                Frame::decode(&frame(b'k', &[7, 8], &[byte])),
                Ok(Frame::Keepalive { wal_end: Lsn(7), server_time: 8, reply_requested })
            );
        }
    }

    #[test]
    fn wrong_lengths_and_kinds() {
        assert_eq!(Frame::decode(&Bytes::new()), Err(FrameError::Empty));
        assert_eq!(Frame::decode(&Bytes::from("x")), Err(FrameError::UnknownKind(b'x')));
        for (kind, good, longer_is_good) in
            [(b'w', frame(b'w', &[1, 2, 3], b""), true), (b'k', frame(b'k', &[1, 2], &[0]), false)]
        {
            for length in 1..good.len() {
                let error = FrameError::BadLength { kind: kind.into(), length };
                assert_eq!(Frame::decode(&good.slice(..length)), Err(error));
            }
            let longer = Bytes::from([&good[..], &[0]].concat());
            assert_eq!(Frame::decode(&longer).is_ok(), longer_is_good);
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frame::decode(&Bytes::from(bytes));
        }
    }
}
