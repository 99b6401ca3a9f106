//! Filters in JSON mean what the same filters in SQL mean, and what is refused says where.

use super::Written;
use crate::model::{Cell, ColumnType, Comparison, Filter, Value, pgtype};
use crate::query::filter::tests::{UUID, columns, row, truth};
use crate::query::filter::{FilterError, MAX_DEPTH, MAX_NODES, parse, read, to_sql};
use proptest::prelude::*;
use serde_json::{Value as Json, json};

fn written(json: &Json) -> Result<Filter, FilterError> {
    let written: Written = serde_json::from_str(&json.to_string()).expect("a filter");
    read(&written, &[], &columns())
}

fn refused(json: &Json) -> FilterError {
    match written(json) {
        Ok(filter) => panic!("{json} should be refused: {filter:?}"),
        Err(error) => error,
    }
}

#[test]
fn json_means_what_sql_means() {
    let cases = [
        (json!({}), "TRUE"),
        (json!({"age": 41}), "age = 41"),
        (json!({"age": {"$eq": 41}, "name": "it's"}), "age = 41 AND name = 'it''s'"),
        (json!({"age": {"$gt": 40, "$lt": 42}}), "age > 40 AND age < 42"),
        (json!({"age": {"$gte": 41, "$lte": 41}}), "age BETWEEN 41 AND 41"),
        (json!({"age": {"$ne": 41}}), "age <> 41"),
        (json!({"age": null}), "age IS NULL"),
        (json!({"age": {"$ne": null}}), "age IS NOT NULL"),
        (json!({"embedding": {"$exists": false}}), "embedding IS NULL"),
        (json!({"age": {"$exists": true}}), "age IS NOT NULL"),
        (json!({"age": {"$in": [1, 41]}}), "age IN (1, 41)"),
        (json!({"age": {"$nin": [1, 2]}}), "age NOT IN (1, 2)"),
        (json!({"age": {"$in": []}}), "FALSE"),
        (json!({"age": {"$nin": []}}), "TRUE"),
        (json!({"age": {"$not": {"$gt": 50}}}), "NOT age > 50"),
        (json!({"age": {"$not": {"$gt": 30, "$lt": 50}}}), "NOT (age > 30 AND age < 50)"),
        (json!({"$not": {"age": 1, "active": true}}), "NOT (age = 1 AND active)"),
        (json!({"$or": [{"age": 1}, {"active": true}], "name": "x"}), "(age = 1 OR active) AND name = 'x'"),
        (json!({"$or": []}), "FALSE"),
        (json!({"$and": []}), "TRUE"),
        (json!({"$and": [{"age": {"$gt": 1}}, {"age": {"$gt": 2}}]}), "age > 1 AND age > 2"),
        (json!({"owner": UUID, "born": "2000-01-10"}), "owner = $1 AND born = '2000-01-10'"),
        (json!({"seen": {"$lt": "2024-01-01T13:00:00Z"}}), "seen < '2024-01-01 13:00+00'"),
        (json!({"ratio": 0.1}), "ratio = 0.1::real"),
        (json!({"ratio": {"$in": [0.1, 0.2]}}), "ratio IN (0.1, 0.2)"),
        (json!({"userId": 9007199254740993u64, "age": {"$lt": 3e9}}), "\"userId\" = 9007199254740993 AND age < 3e9"),
        (json!({"weird \"col": "x"}), "\"weird \"\"col\" = 'x'"),
    ];
    for (json, sql) in cases {
        let params = if sql.contains("$1") { vec![json!(UUID)] } else { vec![] };
        let expected = parse(sql, &params, &columns()).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let found = written(&json).unwrap_or_else(|error| panic!("{json}: {error:?}"));
        for cells in [row(), vec![Cell::Null; columns().len()]] {
            assert_eq!(truth(&found, &cells), truth(&expected, &cells), "{json}: {found:?}");
        }
    }
}

#[test]
fn refusals_say_where_and_why() {
    let cases = [
        (json!({"nope": 1}), "nope", "no replicated column", "\"age\""),
        (json!({"Age": 1}), "Age", "no replicated column", "write \"age\""),
        (json!({"$nor": []}), "$nor", "is no operator here", "$and, $or, $not"),
        (json!({"$or": {"age": 1}}), "$or", "found an object where a list", ""),
        (json!({"$or": [{"age": 1}, 5]}), "$or[1]", "found a number where a filter", ""),
        (json!({"$or": [{"age": 1}, {"score": {"$lt": "x"}}]}), "$or[1].score.$lt", "does not fit: not a number", ""),
        (json!({"age": {}}), "age", "nothing to compare with", "$eq"),
        (json!({"age": {"lt": 5}}), "age.lt", "is no operator here", "$lt"),
        (json!({"age": {"$regex": "x"}}), "age.$regex", "is no operator here", "$in"),
        (json!({"age": [1, 2]}), "age", "found a list where a constant", "$in"),
        (json!({"age": {"$eq": {}}}), "age.$eq", "found an object where a constant", ""),
        (json!({"age": {"$in": 5}}), "age.$in", "found a number where a list", ""),
        (json!({"age": {"$in": [1, "x"]}}), "age.$in[1]", "not a number", ""),
        (json!({"age": {"$nin": [1, null]}}), "age.$nin[1]", "found null", "$or"),
        (json!({"age": {"$in": [[1]]}}), "age.$in[0]", "found a list where a constant", ""),
        (json!({"age": {"$lt": null}}), "age.$lt", "found null", "nothing is less"),
        (json!({"age": {"$exists": 1}}), "age.$exists", "true or false", ""),
        (json!({"age": {"$not": 5}}), "age.$not", "an object of operators", ""),
        (json!({"name": {"$lt": "x"}}), "name.$lt", "< is not supported on column \"name\"", "collation"),
        (json!({"name": 5}), "name", "it is a number", ""),
        (json!({"active": 1}), "active", "it is a number", ""),
        (json!({"age": true}), "age", "it is a boolean", ""),
        (json!({"born": "2024-02-30"}), "born", "not a date", ""),
        (json!({"name": "a\u{0}b"}), "name", "zero byte", ""),
        (json!({"embedding": "[1]"}), "embedding", "cannot be compared", ""),
        (json!({"age": "3000000000"}), "age", "out of range", ""),
    ];
    for (json, path, message, hint) in cases {
        let error = refused(&json);
        assert_eq!(error.path.as_deref(), Some(path), "{json}: {error:?}");
        assert!(error.message.contains(message) && error.position.is_none(), "{json}: {error:?}");
        assert!(
            hint.is_empty() || error.hint.as_deref().is_some_and(|found| found.contains(hint)),
            "{json}: {error:?}"
        );
    }
    let object: Written = serde_json::from_str("{\"age\": 1}").expect("a filter");
    let error = read(&object, &[json!(1)], &columns()).expect_err("parameters");
    assert!(error.message.contains("params"), "{error:?}");
}

#[test]
fn a_condition_that_comes_twice_is_not_lost_but_refused() {
    let cases = [
        r#"{"age": 1, "age": 2}"#,
        r#"{"age": {"$lt": 1, "$lt": 2}}"#,
        r#"{"$or": [{"age": 1, "age": 2}]}"#,
        r#"{"age": 1, "\u0061ge": 2}"#,
    ];
    for text in cases {
        let error = serde_json::from_str::<Written>(text).expect_err("refused").to_string();
        assert!(error.contains("twice"), "{text}: {error}");
    }
    for text in ["[]", "5", "true"] {
        assert!(serde_json::from_str::<Written>(text).is_err(), "{text}");
    }
}

#[test]
fn size_and_depth_are_bounded() {
    let nested = |depth: usize| (0..depth).fold(json!({"age": 1}), |inner, _| json!({"$not": inner}));
    let object = |json: Json| match json {
        Json::Object(fields) => Written::Json(fields),
        _ => panic!("no object"),
    };
    let read = |json| read(&object(json), &[], &columns());
    assert!(read(nested(MAX_DEPTH)).is_ok());
    assert!(read(nested(MAX_DEPTH + 1)).is_err_and(|error| error.message.contains("nested more than")));
    let list = |length: usize| json!({"age": {"$in": vec![1; length]}});
    assert!(read(list(MAX_NODES - 1)).is_ok());
    assert!(read(list(MAX_NODES)).is_err_and(|error| error.message.contains("more than")));
    let parts = json!({"$or": vec![json!({"age": 1}); MAX_NODES]});
    assert!(read(parts).is_err_and(|error| error.message.contains("more than")));
    let long = refused(&json!({"x".repeat(100_000): 1}));
    assert!(long.message.len() < 500 && long.path.is_some_and(|path| path.len() < 100));
    let deep = format!("{}1{}", "{\"$not\":".repeat(50_000), "}".repeat(50_000));
    assert!(serde_json::from_str::<Written>(&deep).is_err());
}

/// A value that a column can have, small so that rows and filters meet.
fn value(column: usize) -> BoxedStrategy<Value> {
    let text = |kind, text: &str| match pgtype::decode_text(kind, text.as_bytes()) {
        Cell::Value(value) => value,
        other => panic!("{text}: {other:?}"),
    };
    let kind = columns()[column].kind;
    match kind {
        ColumnType::Int4 | ColumnType::Int8 => (-2i64..3).prop_map(Value::Int).boxed(),
        ColumnType::Float4 | ColumnType::Float8 => (-4i32..5).prop_map(|n| Value::Float(f64::from(n) / 4.0)).boxed(),
        ColumnType::Bool => any::<bool>().prop_map(Value::Bool).boxed(),
        ColumnType::Date => (10..13).prop_map(move |day| text(kind, &format!("2000-01-{day}"))).boxed(),
        ColumnType::Timestamptz => (10..13).prop_map(move |h| text(kind, &format!("2000-01-01 {h}:00:00+00"))).boxed(),
        ColumnType::Timestamp => (10..13).prop_map(move |h| text(kind, &format!("2000-01-01 {h}:00:00"))).boxed(),
        ColumnType::Uuid => (0..3).prop_map(move |n| text(kind, &UUID.replace("11", &format!("1{n}")))).boxed(),
        _ => {
            prop_oneof![Just("a"), Just("it's"), Just("$1"), Just("")].prop_map(|text| Value::Text(text.into())).boxed()
        }
    }
}

/// Those that have values to compare.
const COMPARED: usize = 11;

fn comparison(column: usize) -> BoxedStrategy<Filter> {
    let ops = match columns()[column].kind.is_ordered() {
        true => vec![Comparison::Eq, Comparison::Ne, Comparison::Lt, Comparison::Le, Comparison::Gt, Comparison::Ge],
        false => vec![Comparison::Eq, Comparison::Ne],
    };
    let op = proptest::sample::select(ops);
    let compare = (op, value(column)).prop_map(move |(op, value)| Filter::Compare { column, op, value: Some(value) });
    let list = proptest::collection::vec(value(column).prop_map(Some), 1..4);
    let list = list.prop_map(move |values| Filter::In { column, values });
    prop_oneof![4 => compare, 2 => list, 1 => Just(Filter::IsNull { column })].boxed()
}

fn filters() -> impl Strategy<Value = Filter> {
    let leaf = (0..COMPARED).prop_flat_map(comparison);
    leaf.prop_recursive(4, 40, 4, |inner| {
        let parts = proptest::collection::vec(inner.clone(), 0..4);
        prop_oneof![
            parts.clone().prop_map(Filter::And),
            parts.prop_map(Filter::Or),
            inner.prop_map(|part| Filter::Not(Box::new(part))),
        ]
    })
}

fn rows() -> impl Strategy<Value = Vec<Cell>> {
    let cell = |column| prop_oneof![3 => value(column).prop_map(Cell::Value), 1 => Just(Cell::Null)];
    let cells: Vec<_> = (0..COMPARED).map(cell).collect();
    cells.prop_map(|mut cells| {
        cells.push(Cell::Null);
        cells
    })
}

/// The tree as a caller would write it.
fn to_json(filter: &Filter) -> Json {
    let constant = |column: usize, value: &Value| match value {
        Value::Int(v) => json!(v),
        Value::Float(v) => json!(v),
        Value::Bool(v) => json!(v),
        other => pgtype::to_json_as(columns()[column].kind, other),
    };
    let name = |column: usize| columns()[column].name.clone();
    match filter {
        Filter::And(parts) => json!({"$and": parts.iter().map(to_json).collect::<Vec<_>>()}),
        Filter::Or(parts) => json!({"$or": parts.iter().map(to_json).collect::<Vec<_>>()}),
        Filter::Not(part) => json!({"$not": to_json(part)}),
        Filter::Compare { column, op, value } => {
            let op = match op {
                Comparison::Eq => "$eq",
                Comparison::Ne => "$ne",
                Comparison::Lt => "$lt",
                Comparison::Le => "$lte",
                Comparison::Gt => "$gt",
                Comparison::Ge => "$gte",
            };
            json!({name(*column): {op: constant(*column, value.as_ref().expect("a value"))}})
        }
        Filter::In { column, values } => {
            json!({name(*column): {"$in": values.iter().flatten().map(|value| constant(*column, value)).collect::<Vec<_>>()}})
        }
        Filter::IsNull { column } => json!({name(*column): null}),
    }
}

proptest! {
    #[test]
    fn a_filter_passes_the_same_rows_in_sql_and_in_json(
        filter in filters(), rows in proptest::collection::vec(rows(), 1..20),
    ) {
        let mut params = Vec::new();
        let sql = to_sql(&filter, &columns(), 1, &mut params);
        let params: Vec<_> = params.into_iter().map(Json::String).collect();
        let from_sql = parse(&sql, &params, &columns()).map_err(|error| TestCaseError::fail(format!("{sql}: {error:?}")))?;
        let json = to_json(&filter);
        let from_json = written(&json).map_err(|error| TestCaseError::fail(format!("{json}: {error:?}")))?;
        for cells in rows {
            prop_assert_eq!(truth(&from_json, &cells), truth(&filter, &cells), "{}", json);
            prop_assert_eq!(truth(&from_sql, &cells), truth(&filter, &cells), "{}", sql);
        }
    }

    #[test]
    fn any_json_is_a_filter_or_an_error(text in "[{}\\[\\]\":,$a-e0-9 ]{0,60}") {
        if let Ok(written) = serde_json::from_str::<Written>(&text) {
            let _ = read(&written, &[], &columns());
        }
    }
}
