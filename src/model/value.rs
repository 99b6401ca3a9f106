//! Values of columns as this service understands them, and the column types it can take.

use crate::model::sparse::{MAX_SPARSE_DIMENSIONS, SparseVector};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Largest number of dimensions of a dense vector, pgvector's own limit for storage.
pub const MAX_DIMENSIONS: usize = 16_000;
/// Largest number of dimensions of a bit string as a vector, pgvector's limit for indexes.
pub const MAX_BITS: usize = 64_000;

/// The column types this service replicates. Everything else is refused by name at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `text`
    Text,
    /// `character varying`
    Varchar,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    Timestamptz,
    /// pgvector's `vector`
    Vector,
    /// `real[]`
    Float4Array,
    /// `double precision[]`
    Float8Array,
    /// pgvector's `halfvec`
    Halfvec,
    /// pgvector's `sparsevec`
    Sparsevec,
    /// `bit`
    Bit,
    /// `bit varying`
    Varbit,
    /// `jsonb` that holds arrays of numbers
    Jsonb,
}

impl ColumnType {
    /// The type with this schema and name in `pg_type`, if it is one of ours. pgvector's types are known by their
    /// names, whatever schema its extension lives in.
    pub fn from_catalog(schema: &str, name: &str) -> Option<ColumnType> {
        Some(match (schema, name) {
            (_, "vector") => ColumnType::Vector,
            (_, "halfvec") => ColumnType::Halfvec,
            (_, "sparsevec") => ColumnType::Sparsevec,
            ("pg_catalog", "bool") => ColumnType::Bool,
            ("pg_catalog", "int2") => ColumnType::Int2,
            ("pg_catalog", "int4") => ColumnType::Int4,
            ("pg_catalog", "int8") => ColumnType::Int8,
            ("pg_catalog", "float4") => ColumnType::Float4,
            ("pg_catalog", "float8") => ColumnType::Float8,
            ("pg_catalog", "text") => ColumnType::Text,
            ("pg_catalog", "varchar") => ColumnType::Varchar,
            ("pg_catalog", "uuid") => ColumnType::Uuid,
            ("pg_catalog", "date") => ColumnType::Date,
            ("pg_catalog", "timestamp") => ColumnType::Timestamp,
            ("pg_catalog", "timestamptz") => ColumnType::Timestamptz,
            ("pg_catalog", "_float4") => ColumnType::Float4Array,
            ("pg_catalog", "_float8") => ColumnType::Float8Array,
            ("pg_catalog", "bit") => ColumnType::Bit,
            ("pg_catalog", "varbit") => ColumnType::Varbit,
            ("pg_catalog", "jsonb") => ColumnType::Jsonb,
            _ => return None,
        })
    }

    /// The built-in type with this OID (`pg_type.dat`; these OIDs never change).
    pub fn from_builtin_oid(oid: u32) -> Option<ColumnType> {
        Some(match oid {
            16 => ColumnType::Bool,
            21 => ColumnType::Int2,
            23 => ColumnType::Int4,
            20 => ColumnType::Int8,
            700 => ColumnType::Float4,
            701 => ColumnType::Float8,
            25 => ColumnType::Text,
            1043 => ColumnType::Varchar,
            2950 => ColumnType::Uuid,
            1082 => ColumnType::Date,
            1114 => ColumnType::Timestamp,
            1184 => ColumnType::Timestamptz,
            1021 => ColumnType::Float4Array,
            1022 => ColumnType::Float8Array,
            1560 => ColumnType::Bit,
            1562 => ColumnType::Varbit,
            3802 => ColumnType::Jsonb,
            _ => return None,
        })
    }

    /// How SQL names the type; also the cast that turns a text parameter into it.
    pub fn sql_name(self) -> &'static str {
        match self {
            ColumnType::Bool => "boolean",
            ColumnType::Int2 => "smallint",
            ColumnType::Int4 => "integer",
            ColumnType::Int8 => "bigint",
            ColumnType::Float4 => "real",
            ColumnType::Float8 => "double precision",
            ColumnType::Text => "text",
            ColumnType::Varchar => "character varying",
            ColumnType::Uuid => "uuid",
            ColumnType::Date => "date",
            ColumnType::Timestamp => "timestamp without time zone",
            ColumnType::Timestamptz => "timestamp with time zone",
            ColumnType::Vector => "vector",
            ColumnType::Float4Array => "real[]",
            ColumnType::Float8Array => "double precision[]",
            ColumnType::Halfvec => "halfvec",
            ColumnType::Sparsevec => "sparsevec",
            ColumnType::Bit => "bit",
            ColumnType::Varbit => "bit varying",
            ColumnType::Jsonb => "jsonb",
        }
    }

    /// Can a column of this type hold embeddings?
    pub fn is_vector(self) -> bool {
        use ColumnType::*;
        matches!(self, Vector | Float4Array | Float8Array | Halfvec | Sparsevec | Bit | Varbit | Jsonb)
    }

    /// Vectors of bits?
    pub fn is_bits(self) -> bool {
        matches!(self, ColumnType::Bit | ColumnType::Varbit)
    }

    /// Does the type modifier, where there is one, say how many dimensions every value has?
    pub fn has_dimensions(self) -> bool {
        use ColumnType::*;
        matches!(self, Vector | Halfvec | Sparsevec | Bit)
    }

    /// Most dimensions a vector of this type can have here.
    pub fn max_dimensions(self) -> usize {
        match self {
            ColumnType::Bit | ColumnType::Varbit => MAX_BITS,
            ColumnType::Sparsevec => MAX_SPARSE_DIMENSIONS,
            _ => MAX_DIMENSIONS,
        }
    }

    /// Can a column of this type be part of a key?
    pub fn is_key(self) -> bool {
        use ColumnType::*;
        matches!(self, Int2 | Int4 | Int8 | Text | Varchar | Uuid)
    }

    /// Do `<` and `>` mean here what they mean in Postgres? Text order depends on the column's collation, which this
    /// service does not have.
    pub fn is_ordered(self) -> bool {
        !matches!(self, ColumnType::Text | ColumnType::Varchar) && !self.is_vector()
    }
}

impl std::fmt::Display for ColumnType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.sql_name())
    }
}

/// One non-NULL value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A boolean.
    Bool(bool),
    /// Any of the integer types.
    Int(i64),
    /// Any of the floating point types.
    Float(f64),
    /// Any of the text types.
    Text(Box<str>),
    /// A UUID's 16 bytes.
    Uuid([u8; 16]),
    /// Days since 2000-01-01; `i32::MIN` and `i32::MAX` are `-infinity` and `infinity`.
    Date(i32),
    /// Microseconds since 2000-01-01 00:00 (UTC where the type has a zone); the extremes of `i64` are the infinities.
    Timestamp(i64),
    /// An embedding, bits as 0 and 1. Finite or not, of any length: the collection decides what it takes.
    Vector(Box<[f32]>),
    /// An embedding that is mostly zeros.
    Sparse(Box<SparseVector>),
}

impl From<SparseVector> for Value {
    fn from(vector: SparseVector) -> Value {
        Value::Sparse(Box::new(vector))
    }
}

impl Value {
    /// Postgres' order of two values of one column; `None` for values of different kinds. NaN is greatest and equal to
    /// itself, as in Postgres.
    pub fn compare(&self, other: &Value) -> Option<Ordering> {
        Some(match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => compare_floats(*a, *b),
            (Value::Int(a), Value::Float(b)) => compare_int_float(*a, *b),
            (Value::Float(a), Value::Int(b)) => compare_int_float(*b, *a).reverse(),
            (Value::Text(a), Value::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Value::Uuid(a), Value::Uuid(b)) => a.cmp(b),
            (Value::Date(a), Value::Date(b)) => a.cmp(b),
            (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(b),
            _ => return None,
        })
    }
}

fn compare_floats(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Exact, also where the integer has no f64 of its own.
fn compare_int_float(a: i64, b: f64) -> Ordering {
    if b.is_nan() || b >= 9_223_372_036_854_775_808.0 {
        return Ordering::Less;
    }
    if b < -9_223_372_036_854_775_808.0 {
        return Ordering::Greater;
    }
    let floor = b.floor();
    a.cmp(&(floor as i64)).then(if b > floor { Ordering::Less } else { Ordering::Equal })
}

/// What the stream or the copy says about one column of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// SQL NULL.
    Null,
    /// A TOASTed value that the UPDATE did not touch: keep what is stored. The normal case for embeddings.
    Unchanged,
    /// A value.
    Value(Value),
    /// Bytes that are no value of the column's type, or a value this service cannot take; with the reason.
    Invalid(Box<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_and_floats_compare_exactly() {
        let cases = [
            (1, 1.0, Ordering::Equal),
            (1, 1.5, Ordering::Less),
            (-1, -1.5, Ordering::Greater),
            (i64::MAX, 9_223_372_036_854_775_807.0, Ordering::Less),
            (9_007_199_254_740_993, 9_007_199_254_740_992.0, Ordering::Greater),
            (i64::MIN, f64::NEG_INFINITY, Ordering::Greater),
            (i64::MAX, f64::NAN, Ordering::Less),
        ];
        for (int, float, expected) in cases {
            assert_eq!(Value::Int(int).compare(&Value::Float(float)), Some(expected), "{int} {float}");
            assert_eq!(Value::Float(float).compare(&Value::Int(int)), Some(expected.reverse()), "{float} {int}");
        }
    }

    #[test]
    fn nan_is_greatest_and_equal_to_itself() {
        let nan = Value::Float(f64::NAN);
        assert_eq!(nan.compare(&nan), Some(Ordering::Equal));
        assert_eq!(nan.compare(&Value::Float(f64::INFINITY)), Some(Ordering::Greater));
    }
}
