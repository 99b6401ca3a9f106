//! Messages written by hand from the manual, messages written by another encoder, and messages that are broken.

use super::*;
use pg_walstream::{
    ColumnData, ColumnInfo, LogicalReplicationMessage as Theirs, StreamingReplicationMessage, TupleData,
};
use proptest::prelude::*;

/// Writes fields one after the other.
#[derive(Default, Clone)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn tag(tag: u8) -> Bytes {
        Bytes(vec![tag])
    }
    fn u8(mut self, v: u8) -> Bytes {
        self.0.push(v);
        self
    }
    fn i16(mut self, v: i16) -> Bytes {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn i32(mut self, v: i32) -> Bytes {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn i64(mut self, v: i64) -> Bytes {
        self.0.extend(v.to_be_bytes());
        self
    }
    fn text(mut self, v: &str) -> Bytes {
        self.0.extend(v.as_bytes());
        self.u8(0)
    }
    fn raw(mut self, v: &[u8]) -> Bytes {
        self.0.extend(v);
        self
    }
    /// Two columns: a text and a NULL.
    fn tuple(self) -> Bytes {
        self.i16(2).u8(b't').i32(2).raw(b"ab").u8(b'n')
    }
}

const TUPLE: [TupleCell<'static>; 2] = [TupleCell::Text(b"ab"), TupleCell::Null];

fn decoded(bytes: &Bytes) -> Message<'_> {
    decode(&bytes.0, false).unwrap_or_else(|error| panic!("{error}"))
}

fn items() -> Relation {
    let column = |is_key, name: &str, type_oid, typmod| RelationColumn { is_key, name: name.into(), type_oid, typmod };
    Relation {
        oid: 16_400,
        schema: "public".into(),
        name: "items".into(),
        replica_identity: b'd',
        columns: vec![column(true, "id", 20, -1), column(false, "embedding", 17_000, 768)],
    }
}

fn relation_bytes(start: Bytes) -> Bytes {
    start
        .i32(16_400)
        .text("public")
        .text("items")
        .u8(b'd')
        .i16(2)
        .u8(1)
        .text("id")
        .i32(20)
        .i32(-1)
        .u8(0)
        .text("embedding")
        .i32(17_000)
        .i32(768)
}

#[test]
fn transactions() {
    assert_eq!(
        decoded(&Bytes::tag(b'B').i64(100).i64(-5).i32(77)),
        Message::Begin { final_lsn: CommitLsn(100), commit_time: -5, xid: 77 }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'C').u8(0).i64(100).i64(148).i64(9)),
        Message::Commit { flags: 0, commit: CommitLsn(100), end: Lsn(148), time: 9 }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'O').i64(3).text("elsewhere")),
        Message::Origin { commit: CommitLsn(3), name: "elsewhere" }
    );
}

#[test]
fn tables_and_types() {
    assert_eq!(decoded(&relation_bytes(Bytes::tag(b'R'))), Message::Relation { xid: None, relation: items() });
    assert_eq!(
        decoded(&Bytes::tag(b'Y').i32(17_000).text("public").text("vector")),
        Message::Type { xid: None, oid: 17_000, schema: "public", name: "vector" }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'Y').i32(16).text("").text("bool")),
        Message::Type { xid: None, oid: 16, schema: "pg_catalog", name: "bool" }
    );
}

#[test]
fn rows() {
    let relation = 5;
    let cells = Bytes::tag(b'I').i32(5).u8(b'N').i16(4).u8(b'n').u8(b'u').u8(b't').i32(0).u8(b'b').i32(1).u8(7);
    let new = vec![TupleCell::Null, TupleCell::Unchanged, TupleCell::Text(b""), TupleCell::Binary(&[7])];
    assert_eq!(decoded(&cells), Message::Insert { xid: None, relation, new });

    let (xid, new) = (None, TUPLE.to_vec());
    assert_eq!(
        decoded(&Bytes::tag(b'U').i32(5).u8(b'N').tuple()),
        Message::Update { xid, relation, old: None, new: new.clone() }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'U').i32(5).u8(b'K').tuple().u8(b'N').tuple()),
        Message::Update { xid, relation, old: Some(OldTuple::Key(new.clone())), new: new.clone() }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'U').i32(5).u8(b'O').tuple().u8(b'N').tuple()),
        Message::Update { xid, relation, old: Some(OldTuple::Full(new.clone())), new: new.clone() }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'D').i32(5).u8(b'K').tuple()),
        Message::Delete { xid, relation, old: OldTuple::Key(new.clone()) }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'D').i32(5).u8(b'O').tuple()),
        Message::Delete { xid, relation, old: OldTuple::Full(new) }
    );
}

#[test]
fn truncates_of_several_tables() {
    for (options, cascade, restart_identity) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)]
    {
        assert_eq!(
            decoded(&Bytes::tag(b'T').i32(2).u8(options).i32(5).i32(6)),
            Message::Truncate { xid: None, relations: vec![5, 6], cascade, restart_identity }
        );
    }
}

#[test]
fn streamed_changes_keep_the_number_of_their_subtransaction() {
    let bytes = Bytes::tag(b'I').i32(901).i32(5).u8(b'N').tuple();
    let expected = Message::Insert { xid: Some(901), relation: 5, new: TUPLE.to_vec() };
    assert_eq!(decode(&bytes.0, true), Ok(expected));
    let bytes = relation_bytes(Bytes::tag(b'R').i32(902));
    assert_eq!(decode(&bytes.0, true), Ok(Message::Relation { xid: Some(902), relation: items() }));
    let bytes = Bytes::tag(b'M').i32(903).u8(1).i64(8).text("p").i32(1).raw(b"c");
    let expected = Message::Message { xid: Some(903), transactional: true, lsn: Lsn(8), prefix: "p", content: b"c" };
    assert_eq!(decode(&bytes.0, true), Ok(expected));
}

#[test]
fn streams() {
    assert_eq!(decoded(&Bytes::tag(b'S').i32(9).u8(1)), Message::StreamStart { xid: 9, first_segment: true });
    assert_eq!(decoded(&Bytes::tag(b'E')), Message::StreamStop);
    assert_eq!(
        decoded(&Bytes::tag(b'c').i32(9).u8(0).i64(100).i64(148).i64(7)),
        Message::StreamCommit { xid: 9, flags: 0, commit: CommitLsn(100), end: Lsn(148), time: 7 }
    );
    assert_eq!(decoded(&Bytes::tag(b'A').i32(9).i32(10)), Message::StreamAbort { xid: 9, subxid: 10, at: None });
    assert_eq!(
        decoded(&Bytes::tag(b'A').i32(9).i32(10).i64(5).i64(6)),
        Message::StreamAbort { xid: 9, subxid: 10, at: Some((Lsn(5), 6)) }
    );
}

#[test]
fn prepared_transactions() {
    let prepared = Prepared { prepare: Lsn(1), end: Lsn(2), time: 3, xid: 4, gid: "g" };
    let body = |start: Bytes| start.i64(1).i64(2).i64(3).i32(4).text("g");
    assert_eq!(decoded(&body(Bytes::tag(b'b'))), Message::BeginPrepare(prepared));
    assert_eq!(decoded(&body(Bytes::tag(b'P').u8(0))), Message::Prepare(prepared));
    assert_eq!(decoded(&body(Bytes::tag(b'p').u8(0))), Message::StreamPrepare(prepared));
    assert_eq!(
        decoded(&body(Bytes::tag(b'K').u8(0))),
        Message::CommitPrepared { commit: CommitLsn(1), end: Lsn(2), time: 3, xid: 4, gid: "g" }
    );
    assert_eq!(
        decoded(&Bytes::tag(b'r').u8(0).i64(1).i64(2).i64(3).i64(4).i32(5).text("g")),
        Message::RollbackPrepared {
            prepare_end: Lsn(1),
            rollback_end: Lsn(2),
            prepare_time: 3,
            rollback_time: 4,
            xid: 5,
            gid: "g"
        }
    );
}

#[test]
fn errors_say_where() {
    let cases = [
        (Bytes::default(), ' ', "tag", 0, Problem::CutShort),
        (Bytes::tag(b'?'), '?', "tag", 0, Problem::UnknownTag(b'?')),
        (Bytes::tag(b'B').i64(1).i32(1), 'B', "commit time", 9, Problem::CutShort),
        (Bytes::tag(b'E').u8(1), 'E', "end", 1, Problem::Trailing(1)),
        (Bytes::tag(b'I').i32(5).u8(b'K'), 'I', "tuple tag", 5, Problem::UnknownTag(b'K')),
        (Bytes::tag(b'I').i32(5).u8(b'N').i16(-1), 'I', "number of columns", 6, Problem::Negative),
        (Bytes::tag(b'I').i32(5).u8(b'N').i16(2).u8(b'n'), 'I', "number of columns", 6, Problem::TooMany(2)),
        (Bytes::tag(b'I').i32(5).u8(b'N').i16(1).u8(b'x'), 'I', "column tag", 8, Problem::UnknownTag(b'x')),
        (Bytes::tag(b'I').i32(5).u8(b'N').i16(1).u8(b'b').i32(-1), 'I', "column binary", 9, Problem::Negative),
        (Bytes::tag(b'I').i32(5).u8(b'N').i16(1).u8(b't').i32(9).u8(1), 'I', "column text", 9, Problem::CutShort),
        (Bytes::tag(b'U').i32(5).u8(b'K').tuple(), 'U', "tuple tag", 16, Problem::CutShort),
        (
            Bytes::tag(b'T').i32(i32::MAX).u8(0).i32(5),
            'T',
            "number of relations",
            1,
            Problem::TooMany(i32::MAX as usize),
        ),
        (Bytes::tag(b'T').i32(-1).u8(0), 'T', "number of relations", 1, Problem::Negative),
        (Bytes::tag(b'O').i64(1).raw(b"abc"), 'O', "origin", 9, Problem::CutShort),
        (Bytes::tag(b'O').i64(1).raw(&[0xFF, 0]), 'O', "origin", 9, Problem::NotUtf8),
    ];
    for (bytes, message, field, offset, problem) in cases {
        assert_eq!(decode(&bytes.0, false), Err(DecodeError { message, field, offset, problem }));
    }
    let shown = decode(b"B1", false).expect_err("cut short").to_string();
    assert_eq!(shown, "pgoutput message 'B', field `final LSN` at byte 1: the message is cut short");
}

#[test]
fn every_truncation_is_an_error() {
    for message in their_messages() {
        let bytes = pg_walstream::encode_message_to_bytes(&message, 4);
        // A stream abort without its position is the older form of the message.
        let shorter_form = matches!(message, Theirs::StreamAbort { .. }).then_some(9);
        for length in (0..bytes.len()).filter(|length| Some(*length) != shorter_form) {
            assert!(decode(&bytes[..length], false).is_err(), "{message:?} {length}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat(), false).is_err(), "{message:?}");
    }
}

fn their_tuple() -> TupleData {
    let (text, binary) = (ColumnData::text(b"ab".to_vec()), ColumnData::binary(vec![1, 2, 3]));
    TupleData::new(vec![ColumnData::null(), ColumnData::unchanged(), text, binary])
}

fn our_tuple() -> Tuple<'static> {
    vec![TupleCell::Null, TupleCell::Unchanged, TupleCell::Text(b"ab"), TupleCell::Binary(&[1, 2, 3])]
}

/// One of each kind; the expectations below are in the same order.
fn their_messages() -> Vec<Theirs> {
    let gid = || "g".to_owned();
    let (tuple, relation_id) = (their_tuple, 5);
    let columns = vec![ColumnInfo::new(1, "id".into(), 20, -1), ColumnInfo::new(0, "embedding".into(), 17_000, 768)];
    vec![
        Theirs::Begin { final_lsn: 1, timestamp: 2, xid: 3 },
        Theirs::Commit { flags: 0, commit_lsn: 1, end_lsn: 2, timestamp: 3 },
        Theirs::Origin { origin_lsn: 1, origin_name: "o".into() },
        Theirs::StreamStart { xid: 1, first_segment: false },
        Theirs::StreamStop,
        Theirs::StreamCommit { xid: 1, flags: 0, commit_lsn: 2, end_lsn: 3, timestamp: 4 },
        Theirs::StreamAbort { xid: 1, subtransaction_xid: 2, abort_lsn: Some(3), abort_timestamp: Some(4) },
        Theirs::BeginPrepare { prepare_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::Prepare { flags: 0, prepare_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::CommitPrepared { flags: 0, commit_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::RollbackPrepared {
            flags: 0,
            prepare_end_lsn: 1,
            rollback_end_lsn: 2,
            prepare_timestamp: 3,
            rollback_timestamp: 4,
            xid: 5,
            gid: gid(),
        },
        Theirs::StreamPrepare { flags: 0, prepare_lsn: 1, end_lsn: 2, timestamp: 3, xid: 4, gid: gid() },
        Theirs::Relation {
            relation_id: 16_400,
            namespace: "public".into(),
            relation_name: "items".into(),
            replica_identity: b'd',
            columns,
        },
        Theirs::Type { type_id: 9, namespace: "s".into(), type_name: "t".into() },
        Theirs::Insert { relation_id, tuple: tuple() },
        Theirs::Update { relation_id, old_tuple: None, new_tuple: tuple(), key_type: None },
        Theirs::Update { relation_id, old_tuple: Some(tuple()), new_tuple: tuple(), key_type: Some('K') },
        Theirs::Update { relation_id, old_tuple: Some(tuple()), new_tuple: tuple(), key_type: Some('O') },
        Theirs::Delete { relation_id, old_tuple: tuple(), key_type: 'K' },
        Theirs::Delete { relation_id, old_tuple: tuple(), key_type: 'O' },
        Theirs::Truncate { relation_ids: vec![5, 6], flags: 1 },
        Theirs::Message { flags: 0, lsn: 1, prefix: "p".into(), content: "c".into() },
    ]
}

/// The number of messages that never carry the number of a subtransaction comes first.
const UNSTREAMED: usize = 12;

fn our_messages(xid: Option<u32>) -> Vec<Message<'static>> {
    let prepared = Prepared { prepare: Lsn(1), end: Lsn(2), time: 3, xid: 4, gid: "g" };
    let (new, relation) = (our_tuple, 5);
    vec![
        Message::Begin { final_lsn: CommitLsn(1), commit_time: 2, xid: 3 },
        Message::Commit { flags: 0, commit: CommitLsn(1), end: Lsn(2), time: 3 },
        Message::Origin { commit: CommitLsn(1), name: "o" },
        Message::StreamStart { xid: 1, first_segment: false },
        Message::StreamStop,
        Message::StreamCommit { xid: 1, flags: 0, commit: CommitLsn(2), end: Lsn(3), time: 4 },
        Message::StreamAbort { xid: 1, subxid: 2, at: Some((Lsn(3), 4)) },
        Message::BeginPrepare(prepared),
        Message::Prepare(prepared),
        Message::CommitPrepared { commit: CommitLsn(1), end: Lsn(2), time: 3, xid: 4, gid: "g" },
        Message::RollbackPrepared {
            prepare_end: Lsn(1),
            rollback_end: Lsn(2),
            prepare_time: 3,
            rollback_time: 4,
            xid: 5,
            gid: "g",
        },
        Message::StreamPrepare(prepared),
        Message::Relation { xid, relation: items() },
        Message::Type { xid, oid: 9, schema: "s", name: "t" },
        Message::Insert { xid, relation, new: new() },
        Message::Update { xid, relation, old: None, new: new() },
        Message::Update { xid, relation, old: Some(OldTuple::Key(new())), new: new() },
        Message::Update { xid, relation, old: Some(OldTuple::Full(new())), new: new() },
        Message::Delete { xid, relation, old: OldTuple::Key(new()) },
        Message::Delete { xid, relation, old: OldTuple::Full(new()) },
        Message::Truncate { xid, relations: vec![5, 6], cascade: true, restart_identity: false },
        Message::Message { xid, transactional: false, lsn: Lsn(1), prefix: "p", content: b"c" },
    ]
}

#[test]
fn what_another_encoder_writes() {
    for (theirs, ours) in their_messages().iter().zip(our_messages(None)) {
        let bytes = pg_walstream::encode_message_to_bytes(theirs, 4);
        assert_eq!(decode(&bytes, false), Ok(ours));
    }
    let streamed = their_messages().into_iter().zip(our_messages(Some(31))).skip(UNSTREAMED);
    for (theirs, ours) in streamed {
        let theirs = StreamingReplicationMessage::new_streaming(theirs, 31);
        let bytes = pg_walstream::encode_streaming_message_to_bytes(&theirs, 4);
        assert_eq!(decode(&bytes, true), Ok(ours));
    }
}

proptest! {
    #[test]
    fn any_bytes(tag in "[BCORYIUDTMSEcAbPKrp]", bytes in proptest::collection::vec(any::<u8>(), 0..80), in_stream: bool) {
        let _ = decode(&bytes, in_stream);
        let _ = decode(&[tag.as_bytes(), &bytes].concat(), in_stream);
    }

    #[test]
    fn mutations(which in 0usize..22, at in 0usize..200, byte: u8, cut in 0usize..200, in_stream: bool) {
        let mut bytes = pg_walstream::encode_message_to_bytes(&their_messages()[which], 4).to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = decode(&bytes, in_stream);
        bytes.truncate(cut);
        let _ = decode(&bytes, in_stream);
    }
}
