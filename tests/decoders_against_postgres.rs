//! PostgreSQL as the judge of the decoders and of filters.

use ruvector::cli::private_postgres::{PrivatePostgres, Settings};
use ruvector::model::{Cell, ColumnType, FilterColumn, Value, pgtype};
use ruvector::query::filter;
use ruvector::replication::copy_rows::{CopyError, CopyRows};
use ruvector::replication::pgoutput::{self, Message, TupleCell};
use std::pin::pin;
use tokio_postgres::{Client, NoTls};

use futures_util::TryStreamExt;

/// A server of the test's own, which ends with it.
async fn server() -> (PrivatePostgres, Client) {
    let server = PrivatePostgres::start(Settings::default()).expect("a private server");
    let (client, connection) = tokio_postgres::connect(&server.dsn(), NoTls).await.expect("connect");
    tokio::spawn(connection);
    client.batch_execute("SET timezone = 'UTC'").await.expect("settings");
    (server, client)
}

/// The rows of a query, by binary COPY, a column as its type says.
async fn copied(client: &Client, sql: &str, kinds: &[ColumnType]) -> Vec<Vec<Cell>> {
    let stream = client.copy_out(&format!("COPY ({sql}) TO STDOUT (FORMAT binary)")).await.expect(sql);
    let mut stream = pin!(stream);
    let mut decoder = CopyRows::new(kinds.len());
    let mut rows = Vec::new();
    while let Some(chunk) = stream.try_next().await.expect("chunk") {
        let mut sink = |fields: &[Option<&[u8]>]| {
            let cell = |(field, kind): (&Option<&[u8]>, &ColumnType)| {
                field.map_or(Cell::Null, |bytes| pgtype::decode_binary(*kind, bytes))
            };
            rows.push(fields.iter().zip(kinds).map(cell).collect());
            Ok::<(), CopyError>(())
        };
        decoder.feed(&chunk, &mut sink).expect("rows");
    }
    assert_eq!(decoder.finish(), Ok(rows.len() as u64));
    rows
}

/// A literal of the type: its binary form, its text form and our reading of it agree, and our text means the same.
async fn check_literal(client: &Client, kind: ColumnType, literal: &str) {
    let quoted = ruvector::model::quote_literal(literal);
    let expression = format!("{quoted}::{kind}");
    let rows = copied(client, &format!("SELECT {expression}"), &[kind]).await;
    let Cell::Value(binary) = rows[0][0].clone() else { panic!("{expression}: {:?}", rows[0][0]) };
    let shown: String = client.query_one(&format!("SELECT {expression}::text"), &[]).await.expect("text").get(0);
    let same = |other: &Value| format!("{other:?}") == format!("{binary:?}");
    let Cell::Value(text) = pgtype::decode_text(kind, shown.as_bytes()) else { panic!("{expression} {shown}") };
    assert!(same(&text), "{expression}: {text:?} {binary:?}");
    assert!(same(&pgtype::parse_literal(kind, literal).expect(literal)), "{expression}");
    for ours in [pgtype::to_text_as(kind, &binary), pgtype::to_text(&binary)] {
        // `[...]` is pgvector's form; and bounds, which we drop, make arrays differ.
        if kind.is_vector() && (ours.starts_with('[') || literal.starts_with('[')) {
            continue;
        }
        let sql = format!("SELECT $1::text::{kind} IS NOT DISTINCT FROM {expression}");
        let agrees: bool = client.query_one(&sql, &[&ours]).await.expect(&sql).get(0);
        assert!(agrees, "{expression}: {ours}");
    }
    let floats = kind.is_vector() || matches!(kind, ColumnType::Float4 | ColumnType::Float8);
    if kind != ColumnType::Bool && !floats {
        assert_eq!(pgtype::to_text_as(kind, &binary), shown, "{expression}");
    }
}

#[tokio::test]
async fn literals_of_every_type() {
    use ColumnType::*;
    let (_server, client) = server().await;
    let cases: &[(ColumnType, &[&str])] = &[
        (Bool, &["t", "f", "yes", "of", " TRUE ", "0"]),
        (Int2, &["-32768", " 32767 "]),
        (Int4, &["-2147483648", "+5"]),
        (Int8, &["-9223372036854775808", "9223372036854775807"]),
        (Float4, &["0.1", "-0", "NaN", "inf", "-Infinity", "3.4028235e38", "1e-45", "16777217", "1e-7", "123456.7"]),
        (Float8, &["0.1", "5e-324", "1.7976931348623157e308", "nan", "Infinity", "1e22", "123456789012345680"]),
        (Text, &["", "it's", "ünï 🦀\t\n\\", " x "]),
        (Varchar, &["x"]),
        (Uuid, &["{A0EEBC99-9C0B4EF8-BB6D6BB9-BD380A11}", "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11"]),
        (
            Date,
            &["2000-01-01", "0001-12-31 BC", "4714-11-24 BC", "5874897-12-31", "infinity", "-infinity", "1582-10-10"],
        ),
        (Date, &["2024-02-29 23:00:00", "0100-03-01 AD", "0005-02-29 BC"]),
        (Timestamp, &["294276-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC", "1969-12-31 23:59:59.5", "infinity"]),
        (Timestamp, &["2024-01-01T12:00", "2024-01-01 24:00:00", "2024-01-01 12:00:60", "2024-01-01 12:00:00+05"]),
        (Timestamptz, &["2024-01-01 12:00:00+05:30", "2024-01-01 12:00 -0830", "0044-03-15 12:00:00.25+00:19:32 BC"]),
        (Timestamptz, &["2024-01-01 12:00:00Z", "2024-01-01 12:00:00 UTC", "2024-01-01", "-infinity"]),
        (Timestamptz, &["2024-01-01 12:00:00.1234564", "2024-01-01 12:00:00.1234567"]),
        (Float4Array, &["{1,2.5,-3,NaN,Infinity}", "[0:1]={1,2}", "{ \"1\" , 2 }", "{0.1,1e-7}"]),
        (Float8Array, &["{0.5}", "{1,2}"]),
        (Varbit, &["0", "0110", "b01", "B101101110", "x0aF"]),
        (Jsonb, &["[1, 2.50, -3]", "[1e-7]", " [ 0.1,1E3 ] "]),
    ];
    for (kind, literals) in cases {
        for literal in *literals {
            check_literal(&client, *kind, literal).await;
        }
    }
}

/// Every moment reads the same from its text in any zone as from its binary form, and the other way round.
#[tokio::test]
async fn moments_in_many_zones() {
    use ColumnType::{Date, Text, Timestamp, Timestamptz};
    let (_server, client) = server().await;
    for zone in ["UTC", "Asia/Kolkata", "America/New_York", "Europe/Amsterdam", "Asia/Kathmandu", "Pacific/Apia"] {
        client.batch_execute(&format!("SET timezone = '{zone}'")).await.expect("zone");
        let moment = "to_timestamp((random() - 0.02) * (CASE WHEN i % 2 = 0 THEN 9e12 ELSE 4e9 END))";
        let sql = format!(
            "SELECT t, t::text, t::timestamp, t::timestamp::text, t::date, t::date::text \
             FROM generate_series(1, 3000) i, LATERAL (SELECT {moment} AS t) m WHERE t < '294276-01-01'"
        );
        for row in copied(&client, &sql, &[Timestamptz, Text, Timestamp, Text, Date, Text]).await {
            for (pair, kind) in row.chunks(2).zip([Timestamptz, Timestamp, Date]) {
                let [Cell::Value(value), Cell::Value(Value::Text(text))] = pair else { panic!("{pair:?}") };
                assert_eq!(pgtype::parse_literal(kind, text).as_ref(), Ok(value), "{zone} {text}");
                if kind != Timestamptz || zone == "UTC" {
                    assert_eq!(pgtype::to_text_as(kind, value), **text, "{zone}");
                }
            }
        }
    }
}

/// What Postgres refuses is refused here, as far as we claim the same grammar.
#[tokio::test]
async fn literals_that_are_none() {
    use ColumnType::*;
    let (_server, client) = server().await;
    let cases: &[(ColumnType, &[&str])] = &[
        (Bool, &["", "o", "2", "truee"]),
        (Int2, &["32768", "1.5", ""]),
        (Int8, &["9223372036854775808", "1e3"]),
        (Float4, &["1e39", "x", ""]),
        (Float8, &["1e400"]),
        (Uuid, &["a0e-ebc999c0b4ef8bb6d6bb9bd380a11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11"]),
        (Date, &["2023-02-29", "0000-01-01", "4714-11-23 BC", "5874898-01-01"]),
        (Timestamp, &["294277-01-01", "2024-01-01 24:00:01", "2024-01-01 12:60"]),
        (Timestamptz, &["2024-01-01 12:00+16"]),
        (Float4Array, &["{1,,2}", "1,2"]),
        (Varbit, &["012", "x0g", "0 1"]),
        (Jsonb, &["[1,,2]", "[1", "1,2"]),
    ];
    for (kind, literals) in cases {
        for literal in *literals {
            let sql = format!("SELECT {}::{kind}", ruvector::model::quote_literal(literal));
            assert!(client.simple_query(&sql).await.is_err(), "{sql}");
            assert!(pgtype::parse_literal(*kind, literal).is_err(), "{kind} {literal}");
        }
    }
}

fn filter_columns() -> Vec<FilterColumn> {
    use ColumnType::*;
    let kinds = [
        ("small", Int2),
        ("age", Int4),
        ("Big", Int8),
        ("ratio", Float4),
        ("score", Float8),
        ("active", Bool),
        ("name", Text),
        ("code", Varchar),
        ("owner", Uuid),
        ("born", Date),
        ("noted", Timestamp),
        ("seen", Timestamptz),
    ];
    kinds.map(|(name, kind)| FilterColumn { name: name.into(), kind }).into()
}

/// Constants as they may stand beside each column; some fit it only loosely.
fn constants(column: usize) -> &'static [&'static str] {
    match column {
        0..=2 => &[
            "0",
            "1",
            "-1",
            "2",
            "1.0",
            "0.5",
            "-0.5",
            "1e0",
            "40000",
            "-3000000000",
            "9007199254740993",
            "'1'",
            "1::bigint",
            "'1'::smallint",
            "0.99999999999999999999",
            "9223372036854775807",
            "9223372036854775808",
            "-9223372036854775809",
            "1e30",
            "NULL",
            "1.5::numeric",
        ],
        3 | 4 => &[
            "0",
            "1",
            "0.1",
            "'0.1'",
            "-0.5",
            "1e10",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0.1::real",
            "0.1::float8",
            "1::int",
            "16777217",
            "9007199254740993",
            "NULL",
        ],
        5 => &["TRUE", "false", "'yes'", "'0'", "NULL", "'t'::boolean"],
        6 | 7 => &["''", "'a'", "'it''s'", "'🦀'", "NULL", "'a'::text", "'a'::varchar"],
        8 => &["'00000000-0000-0000-0000-000000000000'", "'{A0EEBC999C0B4EF8BB6D6BB9BD380A11}'", "NULL"],
        9 => &["'2000-01-01'", "DATE '1999-12-31'", "'infinity'", "'0001-01-01 BC'", "NULL"],
        10 => &["'2000-01-01'", "TIMESTAMP '2000-01-01 00:00:00.000001'", "DATE '2000-01-01'", "'-infinity'", "NULL"],
        _ => &["'2000-01-01'", "TIMESTAMPTZ '2000-01-01 05:30+05:30'", "'infinity'", "'2000-01-01 00:00:00.5'", "NULL"],
    }
}

/// A small generator: what matters is that a failure can be run again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides as u64) as usize
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    fn condition(&mut self, depth: usize) -> String {
        if depth > 0 && self.roll(3) > 0 {
            let (left, right) = (self.condition(depth - 1), self.condition(depth - 1));
            return match self.roll(5) {
                0 => format!("NOT ({left})"),
                1 => {
                    format!("({left}) IS {}", self.pick(&["TRUE", "FALSE", "UNKNOWN", "NOT TRUE", "NOT FALSE", "NULL"]))
                }
                2 | 3 => format!("({left} AND {right})"),
                _ => format!("({left} OR {right})"),
            };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> String {
        let column = self.roll(12);
        let name = ruvector::model::quote_ident(&filter_columns()[column].name);
        let ordered = !matches!(column, 6 | 7);
        let op = self.pick(if ordered { &["=", "<>", "<", "<=", ">", ">="] } else { &["=", "<>"] });
        let mut constant = || self.pick(constants(column));
        let (a, b, c) = (constant(), constant(), constant());
        match self.roll(8) {
            0 => format!("{name} IS NULL"),
            1 => format!("{name} IN ({a}, {b}, {c})"),
            2 => format!("{name} NOT IN ({a}, {b})"),
            3 if ordered => format!("{name} BETWEEN {a} AND {b}"),
            4 if ordered => format!("{name} NOT BETWEEN {a} AND {b}"),
            5 => format!("{a} {op} {name}"),
            _ => format!("{name} {op} {a}"),
        }
    }
}

const ROWS: &str = "
    CREATE TABLE items (id bigint PRIMARY KEY, small smallint, age integer, \"Big\" bigint, ratio real,
        score double precision, active boolean, name text, code varchar, owner uuid, born date, noted timestamp,
        seen timestamptz);
    INSERT INTO items SELECT i,
        (ARRAY[0, 1, -1, 2, 32767, NULL])[1 + (i * 7 % 6)], (ARRAY[0, 1, -1, 40000, 2147483647, NULL])[1 + (i * 5 % 6)],
        (ARRAY[0, 1, 9007199254740993, 9007199254740992, 9223372036854775807, -9223372036854775808, NULL])[1 + (i % 7)],
        (ARRAY[0, 1, 0.1, -0.5, 'NaN', 'Infinity', '-Infinity', 16777216, NULL]::real[])[1 + (i % 9)],
        (ARRAY[0, 1, 0.1, -0.5, 'NaN', 'Infinity', '-Infinity', 0.1::real, NULL]::float8[])[1 + (i % 9)],
        (ARRAY[true, false, NULL])[1 + (i % 3)], (ARRAY['', 'a', 'it''s', '🦀', NULL])[1 + (i % 5)],
        (ARRAY['', 'a', 'it''s', '🦀', NULL])[1 + (i * 3 % 5)],
        (ARRAY['00000000-0000-0000-0000-000000000000', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', NULL]::uuid[])[1 + (i % 3)],
        (ARRAY['2000-01-01', '1999-12-31', 'infinity', '0001-01-01 BC', NULL]::date[])[1 + (i % 5)],
        (ARRAY['2000-01-01', '2000-01-01 00:00:00.000001', '-infinity', NULL]::timestamp[])[1 + (i % 4)],
        (ARRAY['2000-01-01', '2000-01-01 00:00:00.5', 'infinity', NULL]::timestamptz[])[1 + (i % 4)]
        FROM generate_series(0, 299) i";

/// The same rows pass here, in Postgres as the caller wrote it, and in Postgres as we render it.
#[tokio::test]
async fn random_filters() {
    let (_server, client) = server().await;
    client.batch_execute(ROWS).await.expect("rows");
    let columns = filter_columns();
    let kinds: Vec<_> = columns.iter().map(|column| column.kind).collect();
    let names: Vec<_> = columns.iter().map(|column| ruvector::model::quote_ident(&column.name)).collect();
    let rows = copied(&client, &format!("SELECT {} FROM items ORDER BY id", names.join(", ")), &kinds).await;
    let rounds = std::env::var("RUVECTOR_TEST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2_000);
    for seed in 0..rounds {
        let sql = Dice(seed).condition(3);
        let parsed = filter::parse(&sql, &[], &columns).unwrap_or_else(|error| panic!("seed {seed}: {sql}: {error:?}"));
        let ours: Vec<_> = (0..300i64).filter(|id| parsed.passes(&rows[*id as usize])).collect();
        let theirs = ids(&client, &sql, &[]).await;
        assert_eq!(ours, theirs, "seed {seed}: {sql}");
        let mut params = Vec::new();
        let rendered = filter::to_sql(&parsed, &columns, 1, &mut params);
        assert_eq!(ids(&client, &rendered, &params).await, theirs, "seed {seed}: {sql}: {rendered} {params:?}");
    }
}

async fn ids(client: &Client, condition: &str, params: &[String]) -> Vec<i64> {
    let sql = format!("SELECT id FROM items WHERE {condition} ORDER BY id");
    let params: Vec<_> = params.iter().map(|param| param as &(dyn tokio_postgres::types::ToSql + Sync)).collect();
    let rows = client.query(&sql, &params).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get(0)).collect()
}

/// Every message of a slot can be read, in text and in binary, whole and streamed.
#[tokio::test]
async fn messages_of_a_slot() {
    let (_server, client) = server().await;
    client
        .batch_execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, body text, embedding real[]); \
        ALTER TABLE items ALTER embedding SET STORAGE EXTERNAL; CREATE TYPE mood AS ENUM ('ok'); \
        CREATE TABLE whole (id int, feeling mood); ALTER TABLE whole REPLICA IDENTITY FULL; \
        CREATE PUBLICATION pub FOR TABLE items, whole",
        )
        .await
        .expect("tables");
    client
        .batch_execute("SELECT pg_create_logical_replication_slot('ruvector_slot_test', 'pgoutput', false, true)")
        .await
        .expect("slot");
    write_changes(&client).await;
    client.batch_execute("SET logical_decoding_work_mem = '64kB'").await.expect("settings");
    for (binary, version, streaming) in [(false, 1, false), (true, 1, false), (true, 3, true)] {
        let two_phase = if version >= 3 { ", 'two_phase', 'true'" } else { "" };
        let sql = format!(
            "SELECT data FROM pg_logical_slot_peek_binary_changes('ruvector_slot_test', NULL, NULL, \
            'proto_version', '{version}', 'publication_names', 'pub', 'binary', '{binary}', \
            'messages', 'true', 'streaming', '{streaming}'{two_phase})"
        );
        let rows = client.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        check_messages(&rows.iter().map(|row| row.get(0)).collect::<Vec<Vec<u8>>>(), binary, streaming);
    }
    client.batch_execute("SELECT pg_drop_replication_slot('ruvector_slot_test')").await.expect("drop");
}

async fn write_changes(client: &Client) {
    for sql in [
        "INSERT INTO items SELECT 1, NULL, array_agg(i) FROM generate_series(1, 768) i",
        "UPDATE items SET body = 'x' WHERE id = 1",
        "UPDATE items SET id = 2 WHERE id = 1",
        "DELETE FROM items WHERE id = 2",
        "INSERT INTO whole VALUES (1, 'ok')",
        "UPDATE whole SET id = 2",
        "DELETE FROM whole",
        "SELECT pg_logical_emit_message(true, 'p', 'content'), pg_logical_emit_message(false, 'p', 'now')",
        "TRUNCATE items, whole RESTART IDENTITY CASCADE",
        "BEGIN; INSERT INTO items SELECT i, repeat('x', 500) FROM generate_series(100, 1500) i; SAVEPOINT s; \
         INSERT INTO items SELECT i, repeat('y', 500) FROM generate_series(2000, 3000) i; ROLLBACK TO s; \
         INSERT INTO items VALUES (5000); COMMIT",
        "BEGIN; INSERT INTO items VALUES (6000); PREPARE TRANSACTION 'ruvector one'; COMMIT PREPARED 'ruvector one'",
        "BEGIN; INSERT INTO items VALUES (6001); PREPARE TRANSACTION 'ruvector two'; ROLLBACK PREPARED 'ruvector two'",
    ] {
        for statement in sql.split("; ") {
            client.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        }
    }
}

fn check_messages(raw: &[Vec<u8>], binary: bool, streaming: bool) {
    let mut in_stream = false;
    let mut kinds = std::collections::BTreeSet::new();
    for bytes in raw {
        let message = pgoutput::decode(bytes, in_stream).unwrap_or_else(|error| panic!("{error}: {bytes:?}"));
        match &message {
            Message::StreamStart { .. } => in_stream = true,
            Message::StreamStop => in_stream = false,
            Message::Insert { new, xid, .. } => {
                assert_eq!(xid.is_some(), in_stream);
                check_embedding(new, binary);
            }
            _ => {}
        }
        kinds.insert(char::from(bytes[0]));
    }
    let expected = if streaming { "BCDEIKMPRSTUYbcr" } else { "BCDIMRTUY" };
    let found: String = kinds.into_iter().collect();
    assert!(expected.chars().all(|kind| found.contains(kind)), "{found} should have {expected}");
}

fn check_embedding(tuple: &[TupleCell<'_>], binary: bool) {
    let cell = match (tuple.get(2), binary) {
        (Some(TupleCell::Binary(bytes)), true) => pgtype::decode_binary(ColumnType::Float4Array, bytes),
        (Some(TupleCell::Text(bytes)), false) => pgtype::decode_text(ColumnType::Float4Array, bytes),
        (Some(TupleCell::Null) | None, _) => return,
        other => panic!("{other:?}"),
    };
    assert_eq!(cell, Cell::Value(Value::Vector((1..=768).map(|i| i as f32).collect())));
}
