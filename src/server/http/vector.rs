//! Query vectors: JSON as the searched column's type takes it -> the model's.

use crate::model::{CollectionDef, ColumnType, Embedding, MAX_DIMENSIONS, VectorColumn, pgtype};
use crate::server::problem::{self, Problem};
use serde_json::Value as Json;
use serde_json::value::RawValue;

/// What [`parse`] takes, for the document of routes.
#[derive(schemars::JsonSchema)]
#[schemars(untagged, rename = "Vector")]
#[expect(dead_code, reason = "only its schema is used")]
pub enum Forms {
    /// Numbers.
    Dense(Vec<f64>),
    /// Any vector in the form of its type as text: `0110` for bits, `{1:0.5,3:2}/5` for a sparse one.
    Text(String),
    /// A sparse vector. Indices start at 0.
    Sparse {
        /// Where it is not zero.
        indices: Vec<u64>,
        /// What it is there.
        values: Vec<f64>,
        /// Dimensions.
        dim: u64,
    },
}

/// Reads a query vector: an array of numbers, a string of the digits 0 and 1 for a column of bits, an object of indices,
/// values and `dim` for a sparse one, or any vector as text in the form of its type. Fit to be compared by the column's
/// metric, except that its dimensions are not checked. Where there is no such column, which is told later, it is an array
/// of numbers.
pub fn parse(def: &CollectionDef, using: Option<&str>, json: &RawValue) -> Result<Embedding, Problem> {
    let column = def.vector(using).map(|(_, column)| column);
    let plain = |kind: ColumnType| !kind.is_bits() && kind != ColumnType::Sparsevec;
    let vector = match column {
        Some(column) if !plain(column.kind) || !json.get().starts_with('[') => typed(column, json)?,
        _ => {
            let vector: Result<Vec<f32>, _> = serde_json::from_str(json.get());
            let vector = vector.map_err(|error| {
                Problem::new(problem::MALFORMED, format!("query.vector: {error}")).hint("send an array of numbers")
            })?;
            vector.into()
        }
    };
    checked(def, using, vector)
}

/// A query vector fit to be compared by the column's metric, except that its dimensions are not checked.
pub fn checked(def: &CollectionDef, using: Option<&str>, vector: Embedding) -> Result<Embedding, Problem> {
    // What a sparse one may be was checked when it was made, and it is compared as it is.
    let Embedding::Dense(vector) = vector else { return Ok(vector) };
    let column = def.vector(using).map(|(_, column)| column);
    let most = column.map_or(MAX_DIMENSIONS, |column| column.kind.max_dimensions());
    if vector.len() > most {
        let detail = format!("the query has {} dimensions; at most {most} are taken", vector.len());
        return Err(Problem::new(problem::DIMENSIONS, detail));
    }
    match column.filter(|_| vector.iter().all(|element| element.is_finite())) {
        Some(column) => fit(column, vector).map(Embedding::Dense),
        // Whoever answers says which element is not finite.
        None => Ok(vector.into()),
    }
}

fn typed(column: &VectorColumn, json: &RawValue) -> Result<Embedding, Problem> {
    let name = &column.name;
    let bad = |detail: String| {
        let hint = format!("{name:?} is of type {}", column.kind);
        Problem::new(problem::MALFORMED, format!("query.vector: {detail}")).hint(hint)
    };
    let json: Json = serde_json::from_str(json.get()).map_err(|error| bad(error.to_string()))?;
    let value = pgtype::from_json(column.kind, &json).map_err(bad)?;
    value.and_then(|value| Embedding::try_from(value).ok()).ok_or_else(|| bad("null is no vector".into()))
}

/// As the source would compare it: `halfvec` rounds, and hyperbolic metrics have no distance from just anywhere.
fn fit(column: &VectorColumn, mut vector: Vec<f32>) -> Result<Vec<f32>, Problem> {
    if let Err(at) = pgtype::round_to(column.kind, &mut vector) {
        let detail = format!("element {} of the query vector is out of range for {}", at + 1, column.kind);
        return Err(Problem::new(problem::NOT_FINITE, detail));
    }
    match column.metric.outside(&vector) {
        Some(reason) => Err(Problem::new(problem::OUTSIDE, format!("the query vector has {reason}"))
            .hint(format!("{:?} is compared by {}", column.name, column.metric))),
        None => Ok(vector),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CollectionId, Metric, SparseVector};

    fn parsed(kind: ColumnType, metric: Metric, json: &str) -> Result<Embedding, Problem> {
        let column = VectorColumn {
            name: "v".into(),
            kind,
            metric,
            dimensions: None,
            m: 16,
            ef_construction: 200,
            encoding: Default::default(),
            index: Default::default(),
            lists: None,
        };
        let def = CollectionDef {
            id: CollectionId(0),
            name: "c".into(),
            schema: "s".into(),
            table: "t".into(),
            oid: 1,
            partitioned: false,
            key: vec![],
            vectors: vec![column],
            filters: vec![],
        };
        parse(&def, None, serde_json::from_str(json).expect("JSON"))
    }

    #[test]
    fn every_type_has_its_form() {
        use ColumnType::*;
        for (kind, metric, json, wanted) in [
            (Vector, Metric::L2, "[1, 0.1]", vec![1.0, 0.1]),
            (Vector, Metric::L2, "\"[1,0.1]\"", vec![1.0, 0.1]),
            (Float8Array, Metric::L2, "\"{1,0.1}\"", vec![1.0, 0.1]),
            (Halfvec, Metric::L2, "[1, 0.1]", vec![1.0, 0.099975586]),
            (Jsonb, Metric::L2, "[1, 0.1]", vec![1.0, 0.1]),
            (Bit, Metric::Hamming, "\"0110\"", vec![0.0, 1.0, 1.0, 0.0]),
            (Varbit, Metric::Jaccard, "\"x5\"", vec![0.0, 1.0, 0.0, 1.0]),
            (Vector, Metric::Poincare, "[0.5, 0.5]", vec![0.5, 0.5]),
            // Told by who answers.
            (Vector, Metric::Poincare, "[1e39]", vec![f32::INFINITY]),
        ] {
            assert_eq!(parsed(kind, metric, json).expect(json), wanted.into(), "{kind} {json}");
        }
        let sparse = SparseVector::new(5, vec![(0, 0.5), (2, 2.0)]).expect("a vector");
        for json in [r#"{"indices": [2, 0], "values": [2, 0.5], "dim": 5}"#, r#""{1:0.5,3:2}/5""#] {
            assert_eq!(parsed(Sparsevec, Metric::Ip, json).expect(json), sparse.clone().into());
        }
    }

    #[test]
    fn what_does_not_fit_is_told_with_a_code() {
        use ColumnType::*;
        for (kind, metric, json, code) in [
            (Vector, Metric::L2, "[\"a\"]", problem::MALFORMED),
            (Vector, Metric::L2, "5", problem::MALFORMED),
            (Vector, Metric::L2, "null", problem::MALFORMED),
            (Vector, Metric::L2, "\"0110\"", problem::MALFORMED),
            (Bit, Metric::Hamming, "[0, 1]", problem::MALFORMED),
            (Bit, Metric::Hamming, "\"012\"", problem::MALFORMED),
            (Bit, Metric::Hamming, "\"\"", problem::MALFORMED),
            (Sparsevec, Metric::L2, "[0, 1]", problem::MALFORMED),
            (Sparsevec, Metric::L2, "\"[0, 1]\"", problem::MALFORMED),
            (Sparsevec, Metric::L2, r#"{"indices": [5], "values": [2], "dim": 5}"#, problem::MALFORMED),
            (Vector, Metric::L2, r#"{"indices": [0], "values": [2], "dim": 5}"#, problem::MALFORMED),
            (Halfvec, Metric::L2, "[1, 70000]", problem::NOT_FINITE),
            (Vector, Metric::Poincare, "[1, 0]", problem::OUTSIDE),
            (Jsonb, Metric::Lorentz, "[1, 1]", problem::OUTSIDE),
        ] {
            let found = parsed(kind, metric, json).expect_err(json);
            assert_eq!(found.kind.code, code.code, "{kind} {json}: {found:?}");
            assert!(found.kind == problem::NOT_FINITE || found.hint.is_some(), "{kind} {json}");
        }
        let long = format!("[{}1]", "1,".repeat(16_000));
        assert_eq!(parsed(Vector, Metric::L2, &long).expect_err("too long").kind, problem::DIMENSIONS);
    }
}
