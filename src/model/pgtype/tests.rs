//! Both forms of every type against each other, and against hostile bytes.

use super::*;
use proptest::prelude::*;
use serde_json::json;

const KINDS: [ColumnType; 20] = [
    ColumnType::Bool,
    ColumnType::Int2,
    ColumnType::Int4,
    ColumnType::Int8,
    ColumnType::Float4,
    ColumnType::Float8,
    ColumnType::Text,
    ColumnType::Varchar,
    ColumnType::Uuid,
    ColumnType::Date,
    ColumnType::Timestamp,
    ColumnType::Timestamptz,
    ColumnType::Vector,
    ColumnType::Float4Array,
    ColumnType::Float8Array,
    ColumnType::Halfvec,
    ColumnType::Sparsevec,
    ColumnType::Bit,
    ColumnType::Varbit,
    ColumnType::Jsonb,
];

fn text(kind: ColumnType, text: &str) -> Value {
    parse_literal(kind, text).unwrap_or_else(|reason| panic!("{kind} {text:?}: {reason}"))
}

fn invalid(cell: Cell) -> String {
    match cell {
        Cell::Invalid(reason) => reason.into(),
        other => panic!("{other:?} should be invalid"),
    }
}

/// What the send function writes.
fn encode(kind: ColumnType, value: &Value) -> Vec<u8> {
    match (kind, value) {
        (_, Value::Bool(v)) => vec![u8::from(*v)],
        (ColumnType::Int2, Value::Int(v)) => (*v as i16).to_be_bytes().to_vec(),
        (ColumnType::Int4, Value::Int(v)) => (*v as i32).to_be_bytes().to_vec(),
        (_, Value::Int(v)) => v.to_be_bytes().to_vec(),
        (ColumnType::Float4, Value::Float(v)) => (*v as f32).to_be_bytes().to_vec(),
        (_, Value::Float(v)) => v.to_be_bytes().to_vec(),
        (_, Value::Text(v)) => v.as_bytes().to_vec(),
        (_, Value::Uuid(v)) => v.to_vec(),
        (_, Value::Date(v)) => v.to_be_bytes().to_vec(),
        (_, Value::Timestamp(v)) => v.to_be_bytes().to_vec(),
        (ColumnType::Vector, Value::Vector(v)) => {
            let mut bytes = (v.len() as u16).to_be_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(v.iter().flat_map(|item| item.to_be_bytes()));
            bytes
        }
        (ColumnType::Halfvec, Value::Vector(v)) => {
            let mut bytes = (v.len() as u16).to_be_bytes().to_vec();
            bytes.extend([0, 0]);
            bytes.extend(v.iter().flat_map(|item| f16::from_f32(*item).to_be_bytes()));
            bytes
        }
        (ColumnType::Bit | ColumnType::Varbit, Value::Vector(v)) => {
            let byte = |bits: &[f32]| (0..).zip(bits).map(|(at, bit)| (*bit as u8) << (7 - at)).sum::<u8>();
            [&(v.len() as i32).to_be_bytes()[..], &v.chunks(8).map(byte).collect::<Vec<_>>()].concat()
        }
        (ColumnType::Jsonb, Value::Vector(_)) => [&[1], to_text(value).as_bytes()].concat(),
        (_, Value::Sparse(v)) => {
            let words = [v.dimensions() as u32, v.indices().len() as u32, 0].into_iter().chain(v.indices().to_vec());
            words.chain(v.values().iter().map(|item| item.to_bits())).flat_map(u32::to_be_bytes).collect()
        }
        (ColumnType::Float4Array, Value::Vector(v)) => {
            array_bytes(array::FLOAT4, v.iter().map(|item| Some(item.to_be_bytes().to_vec())))
        }
        (_, Value::Vector(v)) => {
            array_bytes(array::FLOAT8, v.iter().map(|item| Some(f64::from(*item).to_be_bytes().to_vec())))
        }
    }
}

fn array_bytes(oid: u32, items: impl ExactSizeIterator<Item = Option<Vec<u8>>>) -> Vec<u8> {
    let mut bytes = [1i32, 0, oid as i32, items.len() as i32, 1].map(i32::to_be_bytes).concat();
    for item in items {
        bytes.extend(item.as_ref().map_or(-1, |item| item.len() as i32).to_be_bytes());
        bytes.extend(item.unwrap_or_default());
    }
    bytes
}

/// NaN is not equal to itself, its text is.
fn same(a: &Value, b: &Value) -> bool {
    a == b || format!("{a:?}") == format!("{b:?}")
}

#[test]
fn text_binary_and_back() {
    use ColumnType::*;
    let cases: &[(ColumnType, &[&str])] = &[
        (Bool, &["t", "f"]),
        (Int2, &["0", "-32768", "32767"]),
        (Int4, &["-2147483648", "2147483647"]),
        (Int8, &["-9223372036854775808", "9223372036854775807"]),
        (Float4, &["0", "-0", "1.5", "0.1", "1e-45", "3.4028235e38", "NaN", "Infinity", "-Infinity"]),
        (Float8, &["0.1", "5e-324", "1.7976931348623157e308", "123456789.125", "NaN", "Infinity", "-Infinity"]),
        (Text, &["", " padded ", "it's \"quoted\" \\ ünïcode 🦀\n"]),
        (Varchar, &["x"]),
        (Uuid, &["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"]),
        (Date, &["2000-01-01", "1999-12-31", "0001-01-01", "0001-12-31 BC", "4714-11-24 BC", "5874897-12-31"]),
        (Date, &["infinity", "-infinity", "2024-02-29", "1900-02-28", "0045-02-28 BC", "0005-02-29 BC"]),
        (Timestamp, &["2024-02-29 23:59:59.999999", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999"]),
        (Timestamp, &["2000-01-01 00:00:00", "1969-12-31 23:59:59.5", "infinity", "-infinity"]),
        (Timestamptz, &["2024-03-10 12:00:00+00", "0044-03-15 12:00:00.25+00 BC", "infinity"]),
        (Vector, &["[1,2.5,-3]", "[0]", "[1e-7,3.4028235e38]"]),
        (Float4Array, &["{1,2.5,NaN,Infinity,-Infinity}"]),
        (Float8Array, &["{0.5}"]),
        (Halfvec, &["[1,2.5,-3]", "[65504,5.9604645e-8,0.099975586,-0]"]),
        (Sparsevec, &["{1:0.5,3:2}/5", "{}/1", "{1000000000:-1e-45}/1000000000"]),
        (Bit, &["0", "1", "10110111", "101101110"]),
        (Varbit, &["0110"]),
        (Jsonb, &["[1,2.5,-3]", "[1e-7]"]),
    ];
    for (kind, texts) in cases {
        for shown in *texts {
            let value = text(*kind, shown);
            let Cell::Value(from_binary) = decode_binary(*kind, &encode(*kind, &value)) else {
                panic!("{kind} {shown}: binary form refused")
            };
            assert!(same(&from_binary, &value), "{kind} {shown}: {from_binary:?} {value:?}");
            assert_eq!(to_text_as(*kind, &value), *shown, "{kind}");
            let array = matches!(kind, Float4Array | Float8Array | Bit | Varbit);
            let reread = parse_literal(if array { Vector } else { *kind }, &to_text(&value)).expect(shown);
            assert!(same(&reread, &value), "{kind} {shown}: {}", to_text(&value));
        }
    }
}

#[test]
fn input_spellings() {
    use ColumnType::*;
    let uuid = text(Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11");
    for shown in [
        "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
        "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
        "a0eebc999c0b4ef8bb6d6bb9bd380a11",
        "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
        "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
    ] {
        assert_eq!(text(Uuid, shown), uuid, "{shown}");
    }
    for shown in [
        "",
        "{a0eebc99",
        "a0e-ebc999c0b4ef8bb6d6bb9bd380a11",
        "a0eebc999c0b4ef8bb6d6bb9bd380a1",
        "a0eebc999c0b4ef8bb6d6bb9bd380a11-",
    ] {
        assert!(parse_literal(Uuid, shown).is_err(), "{shown}");
    }
    for shown in ["t", "TRUE", "tr", "y", "Yes", "on", "1", " true "] {
        assert_eq!(text(Bool, shown), Value::Bool(true), "{shown}");
    }
    for shown in ["f", "fal", "n", "no", "of", "OFF", "0"] {
        assert_eq!(text(Bool, shown), Value::Bool(false), "{shown}");
    }
    for shown in ["", "o", "2", "truee", "nope"] {
        assert!(parse_literal(Bool, shown).is_err(), "{shown}");
    }
    assert_eq!(text(Int4, " +7 "), Value::Int(7));
    assert_eq!(text(Vector, "[ 1 , 2 ]"), Value::Vector([1.0, 2.0].into()));
    assert_eq!(text(Float4Array, "[0:1]={1,\"2\"}"), Value::Vector([1.0, 2.0].into()));
    assert_eq!(text(Jsonb, "[1, 2.50, -3]"), Value::Vector([1.0, 2.5, -3.0].into()));
    assert_eq!(text(Bit, "b01"), Value::Vector([0.0, 1.0].into()));
    assert_eq!(text(Varbit, "XF0a"), text(Varbit, "111100001010"));
    assert_eq!(text(Sparsevec, " { 3 : 2 , 1 : 0.5, 2:0 } / 5 "), text(Sparsevec, "{1:0.5,3:2}/5"));
}

#[test]
fn known_dates() {
    use ColumnType::*;
    assert_eq!(text(Date, "1970-01-01"), Value::Date(-10_957));
    assert_eq!(text(Date, "4714-11-24 BC"), Value::Date(-2_451_545));
    assert_eq!(text(Date, "5874897-12-31"), Value::Date(2_145_031_948));
    assert_eq!(text(Timestamp, "1970-01-01 00:00:00"), Value::Timestamp(-946_684_800_000_000));
    let noon = text(Timestamptz, "2024-01-01 12:00:00+00");
    for shown in [
        "2024-01-01T12:00:00Z",
        "2024-01-01 12:00",
        "2024-01-01 17:30:00+05:30",
        "2024-01-01 17:30:00 +0530",
        "2024-01-01 04:00:00-08",
        "2024-01-01 12:19:32+00:19:32",
        "2024-01-01 12:00:00.0000001 UTC",
        "2024-01-01 11:59:59.9999999",
    ] {
        assert_eq!(text(Timestamptz, shown), noon, "{shown}");
    }
    assert_eq!(text(Timestamp, "2024-01-01 12:00:00+05"), noon, "the zone is ignored");
    assert_eq!(text(Timestamp, "2024-01-01 24:00:00"), text(Timestamp, "2024-01-02"));
    assert_eq!(text(Timestamp, "2023-12-31 23:59:60"), text(Timestamp, "2024-01-01"));
    for shown in [
        "",
        "2023-02-29",
        "2024-13-01",
        "2024-00-01",
        "2024-01-00",
        "0000-01-01",
        "24-01-01",
        "2024-01-01x",
        "4714-11-23 BC",
        "5874898-01-01",
        "now",
        "2024-01-01 BCE",
        "99999999999-01-01",
        "２０２４-01-01",
    ] {
        assert!(parse_literal(Date, shown).is_err(), "{shown}");
    }
    for shown in [
        "2024-01-01 24:00:01",
        "2024-01-01 12:60",
        "2024-01-01 12:00:61",
        "294277-01-01",
        "2024-01-01 12:00+16",
        "2024-01-01 12:00 Europe/Berlin",
        "2024-01-01 12:00:00.",
        "2024-01-01 12",
    ] {
        assert!(parse_literal(Timestamptz, shown).is_err(), "{shown}");
    }
    assert!(invalid(decode_binary(Date, &(i32::MIN + 1).to_be_bytes())).contains("range"));
    assert!(invalid(decode_binary(Timestamp, &(i64::MAX - 1).to_be_bytes())).contains("range"));
}

#[test]
fn every_day_of_four_centuries_and_back() {
    let mut expected = (1600, 1, 1);
    for days in days_since_epoch(1600)..days_since_epoch(2001) {
        let shown = datetime::date_text(days as i32);
        assert_eq!(shown, format!("{:04}-{:02}-{:02}", expected.0, expected.1, expected.2));
        assert_eq!(text(ColumnType::Date, &shown), Value::Date(days as i32));
        expected = next_day(expected);
    }
}

fn days_since_epoch(year: i64) -> i64 {
    match text(ColumnType::Date, &format!("{year}-01-01")) {
        Value::Date(days) => days.into(),
        other => panic!("{other:?}"),
    }
}

fn next_day((year, month, day): (i32, i32, i32)) -> (i32, i32, i32) {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let length = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize - 1];
    match (month, day) {
        (12, 31) => (year + 1, 1, 1),
        (_, day) if day == length => (year, month + 1, 1),
        _ => (year, month, day + 1),
    }
}

#[test]
fn arrays_that_are_no_embedding_say_why() {
    use ColumnType::*;
    let long = format!("{{{}1}}", "1,".repeat(16_000));
    for (kind, shown, reason) in [
        (Float4Array, "{}", "empty array"),
        (Float4Array, "{1,NULL}", "element 2 is NULL"),
        (Float8Array, "{{1,2},{3,4}}", "more than one dimension"),
        (Float8Array, "{1e39}", "element 1 is out of range"),
        (Float4Array, "{1,,2}", "element 2 is not a number"),
        (Float4Array, long.as_str(), "16001 elements; at most 16000"),
        (Vector, "[]", "empty array"),
        (Vector, "1,2", "not a vector"),
    ] {
        let found = invalid(decode_text(kind, shown.as_bytes()));
        assert!(found.contains(reason), "{kind}: {found}");
    }
    let one = Some(1f32.to_be_bytes().to_vec());
    let cases = [
        ([0i32, 0, 700].map(i32::to_be_bytes).concat(), "empty array"),
        ([2i32, 0, 700, 1, 1, 1, 1].map(i32::to_be_bytes).concat(), "2 dimensions"),
        ([1i32, 0, 700, 0, 1].map(i32::to_be_bytes).concat(), "empty array"),
        ([1i32, 0, 700, i32::MAX, 1].map(i32::to_be_bytes).concat(), "at most 16000"),
        ([1i32, 0, 700, -5, 1].map(i32::to_be_bytes).concat(), "negative"),
        (array_bytes(23, [one.clone()].into_iter()), "elements of type 23"),
        (array_bytes(700, [one.clone(), None].into_iter()), "element 2 is NULL"),
        (array_bytes(700, [Some(vec![0; 8])].into_iter()), "element 1 has 8 bytes"),
        ([array_bytes(700, [one].into_iter()), vec![0]].concat(), "after the array"),
    ];
    for (bytes, reason) in cases {
        let found = invalid(decode_binary(Float4Array, &bytes));
        assert!(found.contains(reason), "{found}");
    }
    let wide = array_bytes(701, [Some(1e39f64.to_be_bytes().to_vec())].into_iter());
    assert!(invalid(decode_binary(Float8Array, &wide)).contains("element 1 is out of range"));
    for bytes in [&[][..], &[0, 0, 0, 0], &[0, 1, 0, 0], &[0, 1, 0, 1, 0, 0, 0, 0], &[0, 1, 0, 0, 0, 0, 0, 0, 0]] {
        invalid(decode_binary(Vector, bytes));
    }
}

#[test]
fn what_is_no_vector_of_its_type_says_why() {
    use ColumnType::*;
    let long = |item: &str, count: usize| format!("[{}{item}]", format!("{item},").repeat(count - 1));
    let ones = "1".repeat(64_001);
    for (kind, shown, reason) in [
        (Halfvec, "[65520]", "element 1 is out of range for halfvec"),
        (Halfvec, "[]", "empty array"),
        (Bit, "", "no bits"),
        (Bit, "012", "not a string of the digits 0 and 1"),
        (Varbit, "x0g", "not hexadecimal digits"),
        (Varbit, &ones, "64001 bits; at most 64000"),
        (Jsonb, "{\"a\": 1}", "not a vector (jsonb)"),
        (Jsonb, "null", "not a vector (jsonb)"),
        (Jsonb, "[1, null]", "element 2 is not a number (jsonb)"),
        (Jsonb, "[1, \"2\"]", "element 2 is not a number (jsonb)"),
        (Jsonb, "[[1, 2]]", "element 1 is not a number (jsonb)"),
        (Jsonb, "[]", "empty array (jsonb)"),
        (Jsonb, &long("1", 16_001), "16001 elements; at most 16000 (jsonb)"),
        (Sparsevec, "[1]", "not a sparsevec"),
        (Sparsevec, "{1:2}", "not a sparsevec"),
        (Sparsevec, "{0:2}/3", "index 0: they count from 1"),
        (Sparsevec, "{4:2}/3", "index 3 (from 0) for 3 dimensions"),
        (Sparsevec, "{1:2,1:3}/3", "index 0 stands there twice"),
        (Sparsevec, "{1:x}/3", "element 1 is not a number"),
        (Sparsevec, "{}/1000000001", "1000000001 dimensions; 1 to 1000000000 can be"),
    ] {
        assert_eq!(invalid(decode_text(kind, shown.as_bytes())), reason, "{kind} {:.30}", shown);
    }
    for (kind, bytes, reason) in [
        (Halfvec, &[0, 2, 0, 0, 0, 0][..], "2 bytes for 2 dimensions"),
        (Bit, &[0, 0, 0, 9, 1], "1 bytes for 9 bits"),
        (Bit, &[0, 0, 0, 0], "no bits"),
        (Varbit, &[0xff, 0, 0, 0], "a negative length"),
        (Jsonb, &[2, b'[', b'1', b']'], "jsonb in an unknown format"),
        (Jsonb, &[], "jsonb in an unknown format"),
        (Sparsevec, &[0; 11], "a sparsevec without its header"),
        (Sparsevec, &[0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0], "0 bytes for 1 elements"),
        (Sparsevec, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1], "a sparsevec in an unknown format"),
    ] {
        assert_eq!(invalid(decode_binary(kind, bytes)), reason, "{kind} {bytes:?}");
    }
}

#[test]
fn vectors_are_taken_up_to_their_limits() {
    for (kind, count) in [(ColumnType::Halfvec, 16_000), (ColumnType::Jsonb, 16_000), (ColumnType::Bit, 64_000)] {
        let value = Value::Vector((0..count).map(|at| (at % 3 % 2) as f32).collect());
        assert_eq!(decode_binary(kind, &encode(kind, &value)), Cell::Value(value.clone()), "{kind}");
        assert_eq!(decode_text(kind, to_text_as(kind, &value).as_bytes()), Cell::Value(value), "{kind}");
    }
    let elements = (0..16_000).map(|at| (at * 60_000 + 7, at as f32 - 0.5)).collect();
    let value = Value::from(crate::model::SparseVector::new(1_000_000_000, elements).expect("a vector"));
    assert_eq!(decode_binary(ColumnType::Sparsevec, &encode(ColumnType::Sparsevec, &value)), Cell::Value(value));
}

#[test]
fn sparse_vectors_in_json_count_from_0() {
    let wanted = text(ColumnType::Sparsevec, "{1:0.5,3:2}/5");
    let json = json!({ "indices": [2, 0], "values": [2, 0.5], "dim": 5 });
    assert_eq!(from_json(ColumnType::Sparsevec, &json), Ok(Some(wanted.clone())));
    assert_eq!(from_json(ColumnType::Sparsevec, &to_json(&wanted)), Ok(Some(wanted)));
    for wrong in [
        json!([1, 2]),
        json!({ "indices": [0], "values": [1] }),
        json!({ "indices": [0], "values": [1], "dim": 5, "other": 1 }),
        json!({ "indices": [0, 1], "values": [1], "dim": 5 }),
        json!({ "indices": [-1], "values": [1], "dim": 5 }),
        json!({ "indices": [5], "values": [1], "dim": 5 }),
        json!({ "indices": [0], "values": ["x"], "dim": 5 }),
        json!({ "indices": [0], "values": [1e39], "dim": 5 }),
        json!({ "indices": [0], "values": [1], "dim": 0 }),
    ] {
        assert!(from_json(ColumnType::Sparsevec, &wrong).is_err(), "{wrong}");
    }
}

#[test]
fn floats_out_of_range_are_refused_not_rounded() {
    assert!(parse_literal(ColumnType::Float4, "1e39").is_err());
    assert!(parse_literal(ColumnType::Float8, "1e400").is_err());
    assert!(parse_literal(ColumnType::Text, "a\0b").is_err());
    assert!(invalid(decode_text(ColumnType::Text, &[0xFF])).contains("UTF-8"));
}

#[test]
fn json_in() {
    use ColumnType::*;
    let good = [
        (Int2, json!(5), Value::Int(5)),
        (Int4, json!(5.0), Value::Int(5)),
        (Int8, json!("9223372036854775807"), Value::Int(i64::MAX)),
        (Float4, json!(0.1), Value::Float(f64::from(0.1f32))),
        (Float8, json!(3), Value::Float(3.0)),
        (Float8, json!("Infinity"), Value::Float(f64::INFINITY)),
        (Bool, json!(true), Value::Bool(true)),
        (Text, json!("x"), Value::Text("x".into())),
        (Date, json!("2000-01-02"), Value::Date(1)),
        (Timestamptz, json!("2000-01-01 00:00:01"), Value::Timestamp(1_000_000)),
        (Vector, json!([1, 2.5]), Value::Vector([1.0, 2.5].into())),
    ];
    for (kind, json, expected) in good {
        assert_eq!(from_json(kind, &json), Ok(Some(expected)), "{kind} {json}");
    }
    for kind in KINDS {
        assert_eq!(from_json(kind, &json!(null)), Ok(None));
        assert!(from_json(kind, &json!({})).is_err());
    }
    let bad = [
        (Int2, json!(40_000), "expected a value of type smallint: out of range"),
        (Int4, json!(1.5), "not an integer"),
        (Int8, json!(u64::MAX), "out of range"),
        (Int8, json!(1e300), "not an integer"),
        (Float4, json!(1e300), "out of range for real"),
        (Text, json!(5), "expected a string: found a number"),
        (Bool, json!(1), "boolean"),
        (Uuid, json!("x"), "uuid"),
        (Date, json!(20240101), "YYYY-MM-DD"),
        (Vector, json!([1, null]), "an array of numbers"),
        (Float8, json!([1]), "found an array"),
    ];
    for (kind, json, reason) in bad {
        let found = from_json(kind, &json).expect_err(&json.to_string());
        assert!(found.contains(reason), "{kind} {json}: {found}");
    }
}

#[test]
fn json_out() {
    assert_eq!(to_json(&Value::Vector([0.1, 1.0].into())), json!([0.1, 1.0]));
    assert_eq!(to_json(&Value::Float(f64::NAN)), json!("NaN"));
    assert_eq!(to_json(&Value::Int(i64::MIN)), json!(i64::MIN));
    assert_eq!(to_json(&Value::Timestamp(0)), json!("2000-01-01 00:00:00+00"));
    assert_eq!(to_json_as(ColumnType::Timestamp, &Value::Timestamp(0)), json!("2000-01-01 00:00:00"));
    assert_eq!(to_json_as(ColumnType::Float4, &Value::Float(f64::from(0.1f32))), json!(0.1));
    assert_eq!(to_json_as(ColumnType::Float4, &Value::Float(f64::INFINITY)), json!("Infinity"));
}

fn any_kind() -> impl Strategy<Value = ColumnType> {
    (0..KINDS.len()).prop_map(|i| KINDS[i])
}

proptest! {
    #[test]
    fn any_bytes_are_a_value_or_invalid(kind in any_kind(), bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_binary(kind, &bytes);
        decode_text(kind, &bytes);
    }

    #[test]
    fn any_text_is_a_value_or_invalid(kind in any_kind(), text in "[-+:0-9TZ. eBCnaif{}\\[\\],\"NUL]{0,40}") {
        if let Ok(value) = parse_literal(kind, &text) {
            let again = parse_literal(kind, &to_text_as(kind, &value));
            prop_assert!(again.is_ok_and(|again| same(&again, &value)), "{:?}", value);
        }
    }

    #[test]
    fn any_binary_value_has_a_text(kind in any_kind(), bytes in proptest::collection::vec(any::<u8>(), 16)) {
        let width = match kind { ColumnType::Uuid => 16, ColumnType::Int2 => 2, ColumnType::Bool => 1,
            ColumnType::Int4 | ColumnType::Float4 | ColumnType::Date => 4, _ => 8 };
        if let Cell::Value(value) = decode_binary(kind, &bytes[..width]) {
            let again = parse_literal(kind, &to_text(&value));
            prop_assert!(again.is_ok_and(|again| same(&again, &value)), "{:?} {}", value, to_text(&value));
            let json = from_json(kind, &to_json(&value));
            prop_assert!(json.is_ok_and(|json| json.is_some_and(|json| same(&json, &value))), "{:?}", value);
        }
    }

    #[test]
    fn vectors_survive_both_forms(bits in proptest::collection::vec(any::<u32>(), 1..64)) {
        let value = Value::Vector(bits.iter().map(|bits| f32::from_bits(*bits)).collect());
        for kind in [ColumnType::Vector, ColumnType::Float4Array] {
            let Cell::Value(binary) = decode_binary(kind, &encode(kind, &value)) else { panic!("{kind}") };
            prop_assert!(same(&binary, &value));
            prop_assert!(same(&text(kind, &to_text_as(kind, &value)), &value));
        }
    }
}
