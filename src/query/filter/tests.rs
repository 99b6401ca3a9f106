//! What is taken, what it means, what is refused and why, and what hostile text does.

use super::*;
use crate::model::{Cell, ColumnType, Value, pgtype};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

pub(super) fn columns() -> Vec<FilterColumn> {
    use ColumnType::*;
    let of = |name: &str, kind| FilterColumn { name: name.into(), kind };
    vec![
        of("age", Int4),
        of("name", Text),
        of("active", Bool),
        of("score", Float8),
        of("born", Date),
        of("seen", Timestamptz),
        of("owner", Uuid),
        of("userId", Int8),
        of("weird \"col", Varchar),
        of("ratio", Float4),
        of("noted", Timestamp),
        of("embedding", Vector),
    ]
}

pub(super) const UUID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";

/// A row that has a value in every filter column.
pub(super) fn row() -> Vec<Cell> {
    let texts = [
        "41",
        "it's",
        "t",
        "0.5",
        "2000-01-10",
        "2024-01-01 12:00:00+00",
        UUID,
        "9007199254740993",
        "x",
        "0.1",
        "2000-01-10 00:00:00",
    ];
    let cell = |(text, column): (&&str, FilterColumn)| pgtype::decode_text(column.kind, text.as_bytes());
    texts.iter().zip(columns()).map(cell).chain([Cell::Null]).collect()
}

fn read(sql: &str, params: &[Json]) -> Filter {
    parse(sql, params, &columns()).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

fn refused(sql: &str, params: &[Json]) -> FilterError {
    match parse(sql, params, &columns()) {
        Ok(filter) => panic!("{sql} should be refused: {filter:?}"),
        Err(error) => error,
    }
}

/// What PostgreSQL says about the row, and what it says about a row of NULLs.
#[test]
fn meaning() {
    let cases: &[(&str, &str)] = &[
        ("age = 41", "t?"),
        ("41 = age", "t?"),
        ("40 < age AND 42 > age AND 41 <= age AND 41 >= age", "t?"),
        ("age <> 41", "f?"),
        ("age != 41", "f?"),
        ("NOT age = 41", "f?"),
        ("NOT NOT age = 41", "t?"),
        ("age=-41 or age>-1", "t?"),
        ("age<>-41 and age<+42", "t?"),
        ("AGE = 41 and \"age\" = 41", "t?"),
        ("age = 41 OR name = 'x' AND name = 'y'", "t?"),
        ("(age = 41 OR name = 'x') AND name = 'y'", "f?"),
        ("((age)) = (41)", "t?"),
        ("age IN (1, 41)", "t?"),
        ("age IN (1, NULL)", "??"),
        ("age NOT IN (1, NULL)", "??"),
        ("age NOT IN (41, NULL)", "f?"),
        ("age NOT IN (1, 2)", "t?"),
        ("age BETWEEN 41 AND 41", "t?"),
        ("age NOT BETWEEN 1 AND 40 AND active", "t?"),
        ("age IS NULL", "ft"),
        ("age IS NOT NULL", "tf"),
        ("(age = 41) IS NULL", "ft"),
        ("active", "t?"),
        ("NOT active", "f?"),
        ("active = TRUE AND active <> false", "t?"),
        ("active IS TRUE", "tf"),
        ("active IS NOT TRUE", "ft"),
        ("active IS FALSE", "ff"),
        ("active IS NOT FALSE", "tt"),
        ("active IS UNKNOWN", "ft"),
        ("active IS NOT UNKNOWN", "tf"),
        ("(age = 41 AND name = 'x') IS FALSE", "tf"),
        ("(age = 41 OR NOT active) IS TRUE", "tf"),
        ("(NOT (age IN (1, NULL))) IS FALSE", "ff"),
        ("(age IN (41, NULL)) IS TRUE", "tf"),
        ("(age IS NULL) IS TRUE", "ft"),
        ("age = NULL", "??"),
        ("NULL = age", "??"),
        ("NULL", "??"),
        ("TRUE", "tt"),
        ("FALSE OR age = 41", "t?"),
        ("TRUE OR NULL", "tt"),
        ("NULL IS NULL", "tt"),
        ("5 IS NULL", "ff"),
        // Integers against numbers that are none of theirs.
        ("age < 3000000000", "t?"),
        ("age > -99999999999999999999", "t?"),
        ("age = 41.0", "t?"),
        ("age = 4.1e1", "t?"),
        ("age = 410e-1", "t?"),
        ("age < 41.5 AND age > 40.5", "t?"),
        ("age > 40.99999999999999999999", "t?"),
        ("age = 40.99999999999999999999", "f?"),
        ("age < 1e999999999999999999999", "t?"),
        ("age > 1e-999999999999999999999", "t?"),
        ("age = 41::numeric AND age = '41'::numeric AND age = '41'::smallint", "t?"),
        ("\"userId\" = 9007199254740993", "t?"),
        ("\"userId\" = 9007199254740992", "f?"),
        ("\"userId\" = 9007199254740992.0", "f?"),
        ("\"userId\" < 9223372036854775807.5", "t?"),
        ("\"userId\" > -9223372036854775809", "t?"),
        // Floats.
        ("score = 0.5 AND score = .5 AND score < 1", "t?"),
        ("score < 'NaN'", "t?"),
        ("ratio = 0.1", "f?"),
        ("ratio = '0.1'", "t?"),
        ("ratio = 0.1::real", "t?"),
        ("ratio = 0.1::float8", "f?"),
        ("ratio IN (0.1)", "f?"),
        ("ratio IN (0.1, 7)", "t?"),
        ("ratio IN (7, 0.1::numeric, NULL)", "t?"),
        ("ratio IN (0.1, '0.1', 7::float8)", "f?"),
        ("ratio IN (0.1::real, 7::float8)", "t?"),
        ("ratio = ANY(ARRAY[0.1, 7])", "f?"),
        // Strings.
        ("name = 'it''s'", "t?"),
        ("name = $$it's$$", "t?"),
        ("name = 'it''s'::text AND name = 'it''s'::varchar AND name = CAST('it''s' AS text)", "t?"),
        ("\"weird \"\"col\" = 'x'", "t?"),
        ("age = '41' AND age = '41'::text::int", "t?"),
        ("active = 'yes'", "t?"),
        ("owner = 'A0EEBC999C0B4EF8BB6D6BB9BD380A11'", "t?"),
        ("owner > '00000000-0000-0000-0000-000000000000'::uuid", "t?"),
        // Times.
        ("born = DATE '2000-01-10' AND born = '2000-01-10'", "t?"),
        ("born < 'infinity' AND born > '0044-03-15 BC'", "t?"),
        ("seen = TIMESTAMPTZ '2024-01-01 17:30:00+05:30'", "t?"),
        ("seen = timestamp with time zone '2024-01-01 12:00' AND seen = '2024-01-01 12:00'", "t?"),
        ("noted = TIMESTAMP '2000-01-10' AND noted = DATE '2000-01-10'", "t?"),
        ("noted = timestamp without time zone '2000-01-10 00:00'", "t?"),
        // Lists.
        ("age = ANY(ARRAY[1, 41])", "t?"),
        ("age = SOME (ARRAY[1])", "f?"),
        ("age <> ALL (ARRAY[1, 2])", "t?"),
        ("age = ANY(ARRAY[])", "ff"),
        ("age <> ALL (ARRAY[])", "tt"),
        ("name IN ('a', $x$it's$x$)", "t?"),
        ("embedding IS NULL", "tt"),
        ("age = 41 -- a comment\n AND /* another /* inside */ */ active", "t?"),
    ];
    let nulls = vec![Cell::Null; columns().len()];
    for (sql, expected) in cases {
        let filter = read(sql, &[]);
        let found = [truth(&filter, &row()), truth(&filter, &nulls)].concat();
        assert_eq!(found, *expected, "{sql}: {filter:?}");
        assert_rendered_means_the_same(&filter);
    }
}

pub(super) fn truth(filter: &Filter, cells: &[Cell]) -> &'static str {
    let negated = Filter::Not(Box::new(filter.clone()));
    match (filter.passes(cells), negated.passes(cells)) {
        (true, _) => "t",
        (_, true) => "f",
        _ => "?",
    }
}

/// Our own SQL is within the subset: reading it back must give the same conditions.
fn assert_rendered_means_the_same(filter: &Filter) {
    let mut params = Vec::new();
    let sql = to_sql(filter, &columns(), 1, &mut params);
    let json: Vec<_> = params.iter().map(|text| Json::String(text.clone())).collect();
    let again = read(&sql, &json);
    let nulls = vec![Cell::Null; columns().len()];
    for cells in [row(), nulls] {
        assert_eq!(truth(&again, &cells), truth(filter, &cells), "{sql} {params:?}");
    }
}

#[test]
fn parameters() {
    let cases = [
        ("age = $1", vec![json!(41)]),
        ("age = $1", vec![json!("41")]),
        ("age = $1", vec![json!(41.0)]),
        ("age > $1 AND age < $2", vec![json!(40.5), json!(1e300)]),
        ("name = $2 AND age = $1 AND age = $1", vec![json!(41), json!("it's")]),
        ("active = $1", vec![json!(true)]),
        ("ratio = $1 AND score = $2", vec![json!(0.1), json!(0.5)]),
        ("age = ANY($1)", vec![json!([1, "41", null])]),
        ("owner = ANY($1::uuid[])", vec![json!([UUID])]),
        ("age <> ALL($1)", vec![json!([1, 2])]),
        ("seen = $1", vec![json!("2024-01-01T12:00:00Z")]),
        ("age = $1::int AND born = $2::text::date", vec![json!("41"), json!("2000-01-10")]),
        ("$1 IS NULL OR age = $1", vec![json!(41)]),
        ("$1 IS NULL OR age = $1", vec![json!(null)]),
        ("age IN ($1, $2)", vec![json!(1), json!(41)]),
        ("age BETWEEN $1 AND $2", vec![json!(1), json!(41)]),
    ];
    for (sql, params) in cases {
        let filter = read(sql, &params);
        assert!(filter.passes(&row()), "{sql} {params:?}: {filter:?}");
        assert_rendered_means_the_same(&filter);
    }
}

#[test]
fn refusals_say_why() {
    let cases: &[(&str, &str, &str)] = &[
        ("", "empty", "leave it out"),
        ("  -- nothing", "empty", ""),
        ("nope = 1", "no replicated column \"nope\"", "\"age\", \"name\", \"active\""),
        ("userId = 1", "no replicated column \"userid\"", "folded to lower case; write \"userId\""),
        ("\"Age\" = 1", "no replicated column \"Age\"", "in quotes case matters; write \"age\""),
        ("name < 'x'", "< is not supported on column \"name\"", "collation"),
        ("name BETWEEN 'a' AND 'b'", ">= is not supported", "collation"),
        ("'x' >= \"weird \"\"col\"", "<= is not supported", "collation"),
        ("embedding = '[1]'", "cannot be compared", "IS NULL"),
        ("embedding IN ('[1]')", "cannot be compared", ""),
        ("lower(name) = 'x'", "the function lower", "compare columns"),
        ("pg_sleep(10) IS NULL", "the function pg_sleep", ""),
        ("age IN (SELECT 1)", "a sub-select", "as a parameter"),
        ("age = (SELECT 1)", "a sub-select", ""),
        ("EXISTS (SELECT 1)", "a sub-select", ""),
        ("age = ANY(SELECT 1)", "a sub-select", ""),
        ("age = score", "comparing two columns", "with a constant"),
        ("age IN (1, score)", "comparing two columns", ""),
        ("age BETWEEN 1 AND score", "comparing two columns", ""),
        ("1 = 1", "without a column", ""),
        ("1 IN (1)", "without a column", ""),
        ("(age = 1) = TRUE", "comparing conditions", "IS TRUE"),
        ("name LIKE 'a%'", "pattern matching", ""),
        ("name NOT ILIKE 'a%'", "pattern matching", ""),
        ("name SIMILAR TO 'a'", "pattern matching", ""),
        ("name ~ 'a'", "the operator ~", "BETWEEN"),
        ("age + 1 = 2", "arithmetic", "compute"),
        ("-age = 2", "arithmetic", ""),
        ("age * 2 = 2", "the operator *", ""),
        ("name || 'x' = 'y'", "the operator ||", ""),
        ("age::text = '1'", "casting anything but a constant", ""),
        ("t.age = 1", "a qualified name", "without their table"),
        ("CASE WHEN active THEN true END", "CASE", ""),
        ("age IS DISTINCT FROM 1", "IS DISTINCT FROM", ""),
        ("(age, score) = (1, 2)", "a row of several values", ""),
        ("age = 1 COLLATE \"C\"", "COLLATE", ""),
        ("seen AT TIME ZONE 'UTC' = '2024-01-01'", "AT TIME ZONE", ""),
        ("age", "column \"age\" of type integer is not a condition", "compare"),
        ("5", "a constant is not a condition", ""),
        ("NOT 5", "a constant is not a condition", ""),
        ("age = 'x'", "column \"age\" (integer) does not fit: not a number", ""),
        ("age = '3000000000'", "out of range for integer", ""),
        ("age = TRUE", "it is a boolean", ""),
        ("name = 5", "it is a number", ""),
        ("age < 1::float8", "it is of type double precision", ""),
        ("ratio IN (1, 'x')", "not a number", ""),
        ("active = 1", "it is a number", ""),
        ("born = '2024-02-30'", "not a date", ""),
        ("born = TIMESTAMP '2024-01-01'", "it is of type timestamp", ""),
        ("seen = DATE '2024-01-01'", "it is of type date", ""),
        ("seen = TIMESTAMP '2024-01-01'", "it is of type timestamp without time zone", ""),
        ("owner = 'x'", "not a UUID", ""),
        ("score = 1e400", "out of range", ""),
        ("\"userId\" = 9007199254740993.5", "more digits", ""),
        ("age = '1'::int::bigint", "cast twice", ""),
        ("age = '1'::money", "the type money", ""),
        ("name = 'x'::varchar(1)", "a modifier", ""),
        ("age > ANY(ARRAY[1])", "this operator with ANY", "= ANY and <> ALL"),
        ("age = ANY('{1}')", "need an array", "JSON array"),
        ("age = 1 age = 2", "found \"age\" where AND", ""),
        ("age = 1; DROP TABLE x", "found ; where", ""),
        ("age = 1 = 2", "found = where", ""),
        ("age =", "found the end of the filter", ""),
        ("(age = 1", "found the end of the filter where )", ""),
        ("age = 1)", "found ) where", ""),
        ("age IN ()", "found ) where a column or a constant", ""),
        ("age IN (1,)", "found ) where", ""),
        ("AND age = 1", "found \"and\"", ""),
        ("age IS 5", "found a constant where NULL, TRUE", ""),
        ("age NOT 5", "where IN or BETWEEN", ""),
        ("name = 'x", "unterminated string", ""),
        ("name = E'x'", "found E'x' where", ""),
        ("age = $0", "not numbered", "$1, $2"),
        ("age = $x", "not numbered", ""),
        ("age = $1", "parameter $1 has no value; 0 were sent", ""),
        ("age = 1\0", "zero byte", ""),
    ];
    for (sql, message, hint) in cases {
        let error = refused(sql, &[]);
        assert!(error.message.contains(message), "{sql}: {error:?}");
        assert!(hint.is_empty() || error.hint.as_deref().is_some_and(|found| found.contains(hint)), "{sql}: {error:?}");
    }
    let with_params = [
        ("age = $1", vec![json!(1), json!(2)], "parameter $2 is not used"),
        ("age = 1", vec![json!(1)], "parameter $1 is not used"),
        ("age = $3", vec![json!(1), json!(2)], "parameter $3 has no value; 2 were sent"),
        ("age = $1", vec![json!([1])], "write column = ANY($n)"),
        ("age IN ($1)", vec![json!([1])], "write column = ANY($n)"),
        ("age = $1", vec![json!({})], "an object"),
        ("age = ANY($1)", vec![json!(1)], "need an array"),
        ("age = ANY($1)", vec![json!([[1]])], "an array"),
        ("name = $1", vec![json!(5)], "it is a number"),
        ("age = $1", vec![json!("x")], "not a number"),
        ("name = $1", vec![json!("a\0b")], "zero byte"),
    ];
    for (sql, params, message) in with_params {
        let error = refused(sql, &params);
        assert!(error.message.contains(message), "{sql}: {error:?}");
    }
}

#[test]
fn errors_point_at_the_place() {
    for (sql, position) in [
        ("nope = 1", 1),
        ("age = 1 AND nope = 1", 13),
        ("age = 1\nAND\n  nope = 1", 15),
        ("name = 'ünïcödé' AND name < 'x'", 22),
        ("age = 'x'", 7),
        ("(age = 1", 9),
        ("age = 1 AND (SELECT 1)", 14),
        ("age =- 'x'", 6),
    ] {
        assert_eq!(refused(sql, &[]).position, Some(position), "{sql}");
    }
}

#[test]
fn constants_never_become_sql() {
    let hostile = ["x' OR 1=1 --", "\\'; DROP TABLE items; --", "$1", "\"", "'", "{}", "a\nb", "🦀", "$$"];
    for text in hostile {
        for filter in [
            read("name = $1", &[json!(text)]),
            read(&format!("name = '{}'", text.replace('\'', "''")), &[]),
            read("name = ANY($1)", &[json!([text])]),
        ] {
            let mut params = Vec::new();
            let sql = to_sql(&filter, &columns(), 3, &mut params);
            assert_eq!(params, [text]);
            assert!(sql == "(\"name\" = $3::text)" || sql == "(\"name\" IN ($3::text))", "{sql}");
        }
    }
}

#[test]
fn sql_for_the_source() {
    let cases = [
        (
            "age = 1 AND NOT active",
            "((\"age\" = $2::text::integer) AND (NOT (\"active\" = $3::text::boolean)))",
            vec!["1", "t"],
        ),
        ("age < 3000000000", "(\"age\" < $2::text::bigint)", vec!["3000000000"]),
        ("age < 1.5", "(\"age\" < $2::text::numeric)", vec!["1.5"]),
        ("ratio < 0.1", "(\"ratio\" < $2::text::double precision)", vec!["0.1"]),
        ("ratio < 0.5", "(\"ratio\" < $2::text::real)", vec!["0.5"]),
        ("\"userId\" IN (1, NULL)", "(\"userId\" IN ($2::text::bigint, NULL))", vec!["1"]),
        ("age IN (1, 1.5)", "((\"age\" = $2::text::integer) OR (\"age\" = $3::text::numeric))", vec!["1", "1.5"]),
        ("\"weird \"\"col\" IS NULL", "(\"weird \"\"col\" IS NULL)", vec![]),
        ("\"weird \"\"col\" = 'x'", "(\"weird \"\"col\" = $2::text::character varying)", vec!["x"]),
        (
            "seen = '2024-01-01 01:00+01'",
            "(\"seen\" = $2::text::timestamp with time zone)",
            vec!["2024-01-01 00:00:00+00"],
        ),
        ("TRUE", "TRUE", vec![]),
        ("FALSE", "FALSE", vec![]),
    ];
    for (sql, expected, constants) in cases {
        let mut params = Vec::new();
        assert_eq!(to_sql(&read(sql, &[]), &columns(), 2, &mut params), expected);
        assert_eq!(params, constants, "{sql}");
    }
    let stray = Filter::Compare { column: 99, op: crate::model::Comparison::Eq, value: Some(Value::Int(1)) };
    assert_eq!(to_sql(&stray, &columns(), 1, &mut Vec::new()), "(NULL = $1::text)");
}

#[test]
fn an_unchanged_integer_keeps_its_kind() {
    let value = |sql: &str| match read(sql, &[]) {
        Filter::Compare { value, .. } => value,
        other => panic!("{other:?}"),
    };
    assert_eq!(value("age = 3000000000"), Some(Value::Int(3_000_000_000)));
    assert_eq!(value("age = 1.25"), Some(Value::Float(1.25)));
    assert_eq!(value("age = -0.25"), Some(Value::Float(-0.25)));
    assert_eq!(value("score = 1"), Some(Value::Float(1.0)));
    assert_eq!(value("age = -0"), Some(Value::Int(0)));
}

#[test]
fn hostile_sizes_are_errors_not_overflows() {
    let nested = |depth: usize| format!("{}age = 1{}", "(".repeat(depth), ")".repeat(depth));
    read(&nested(MAX_DEPTH), &[]);
    read(&format!("{}active", "NOT ".repeat(MAX_DEPTH)), &[]);
    for sql in [
        nested(MAX_DEPTH + 1),
        nested(30_000),
        format!("{}active", "NOT ".repeat(10_000)),
        "(".repeat(60_000),
        format!("age = {}1", "CAST(".repeat(10_000)),
        format!("age = 1{}", "::int".repeat(10_000)),
        format!("age = {}1", "- ".repeat(10_000)),
        format!("active{}", " OR active".repeat(MAX_NODES)),
        format!("age IN (1{})", ",1".repeat(MAX_NODES)),
        "a".repeat(1 << 20),
        format!("name = '{}'", "x".repeat(1 << 20)),
        "/*".repeat(30_000),
        "🦀".repeat(10_000),
        "\u{202e}\u{0}\u{feff}".repeat(100),
        format!("{} = 1", "é".repeat(30_000)),
    ] {
        let error = refused(&sql, &[]);
        assert!(error.message.len() < 500 && error.hint.is_none_or(|hint| hint.len() < 500), "{}", error.message.len());
    }
    let many = read(&format!("active{}", " OR active".repeat(5_000)), &[]);
    assert!(many.passes(&row()));
    let list = json!((0..MAX_NODES - 1).collect::<Vec<_>>());
    assert!(read("age = ANY($1)", std::slice::from_ref(&list)).passes(&row()));
    let list = json!((0..=MAX_NODES).collect::<Vec<_>>());
    assert!(refused("age = ANY($1)", std::slice::from_ref(&list)).message.contains("more than"));
}

#[test]
fn repeated_truth_tests_cannot_grow_without_bound() {
    let tests =
        |test: &str, depth: usize| format!("{}age = 1{}", "(".repeat(depth), format!(") IS {test}").repeat(depth));
    read(&tests("TRUE", MAX_DEPTH), &[]);
    assert!(refused(&tests("UNKNOWN", MAX_DEPTH), &[]).message.contains("more than"));
}

#[test]
fn a_small_stack_is_enough() {
    let run = || {
        let deep = format!("{}age = 1{}", "NOT (".repeat(MAX_DEPTH / 2), ")".repeat(MAX_DEPTH / 2));
        let filter = read(&deep, &[]);
        to_sql(&filter, &columns(), 1, &mut Vec::new());
        refused(&"(".repeat(60_000), &[]);
        refused(&"NOT ".repeat(16_000), &[]);
    };
    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(run);
    thread.expect("a thread").join().expect("no overflow");
}

/// Texts that are nearly filters.
fn nearly_a_filter() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(vec![
        "age",
        "name",
        "active",
        "\"userId\"",
        "=",
        "<",
        ">=",
        "<>",
        "AND",
        "OR",
        "NOT",
        "(",
        ")",
        "IN",
        "BETWEEN",
        "IS",
        "NULL",
        "TRUE",
        "FALSE",
        "1",
        "-2.5",
        "'x'",
        "'41'",
        "$1",
        "$2",
        ",",
        "::int",
        "DATE",
        "ANY",
        "ALL",
        "ARRAY",
        "[",
        "]",
        ".",
        "CAST",
        "AS",
        "LIKE",
        "UNKNOWN",
        "--",
        "/*",
        "$$",
        "E'",
        "\u{0}",
        "é",
    ]);
    proptest::collection::vec(word, 0..30).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn any_text_is_a_filter_or_an_error(sql in ".{0,200}") {
        let _ = parse(&sql, &[json!(1)], &columns());
    }

    #[test]
    fn nearly_filters(sql in nearly_a_filter(), first in 0i64..50, list: bool) {
        let params = [if list { json!([first]) } else { json!(first) }, json!("x")];
        for count in 0..=2 {
            if let Ok(filter) = parse(&sql, &params[..count], &columns()) {
                assert_rendered_means_the_same(&filter);
            }
        }
    }

    #[test]
    fn decimals_beside_integers_compare_as_they_should(
        whole in prop_oneof![-1000i64..1000, any::<i64>()], fraction in 0u32..1000, probe in -1i64..2,
    ) {
        let sql = format!("\"userId\" < {whole}.{fraction:03}");
        let cell = whole.saturating_add(probe);
        let mut cells = row();
        cells[7] = Cell::Value(Value::Int(cell));
        // Exactly, in thousandths.
        let part = i128::from(fraction) * if whole < 0 { -1 } else { 1 };
        let expected = i128::from(cell) * 1000 < i128::from(whole) * 1000 + part;
        match parse(&sql, &[], &columns()) {
            Ok(filter) => prop_assert_eq!(filter.passes(&cells), expected, "{} {}", sql, cell),
            Err(error) => prop_assert!(error.message.contains("more digits"), "{:?}", error),
        }
    }
}
