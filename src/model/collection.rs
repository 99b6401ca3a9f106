//! What a collection is: one published table, its key, its vector columns, its filter columns.

use crate::model::change::CollectionId;
use crate::model::encoding::Encoding;
use crate::model::index_kind::IndexKind;
use crate::model::key::KeyColumn;
use crate::model::metric::Metric;
use crate::model::sparse::SparseVector;
use crate::model::value::{ColumnType, Value};
use serde::{Deserialize, Serialize};

/// Vector and filter columns a collection can have.
pub const MAX_COLUMNS: usize = 63;

/// A vector column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct VectorColumn {
    /// As in the source.
    pub name: String,
    /// One of the vector types.
    pub kind: ColumnType,
    /// How it is compared.
    pub metric: Metric,
    /// Length of every vector; `None` until the first valid one is seen.
    pub dimensions: Option<usize>,
    /// Links per node of the graph (twice that on the lowest level).
    pub m: usize,
    /// Width of the search while linking a node.
    pub ef_construction: usize,
    /// What walks compare. Collections of before there was a choice get what new ones get: their files hold no codes.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub encoding: Encoding,
    /// How searches find their way.
    #[serde(default, skip_serializing_if = "is_usual")]
    pub index: IndexKind,
    /// Lists of a sealed segment, where there are lists; the square root of its rows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lists: Option<usize>,
}

fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl VectorColumn {
    /// Why this vector cannot be indexed, if so.
    pub fn refuse(&self, vector: &[f32]) -> Option<String> {
        let most = self.kind.max_dimensions();
        if vector.is_empty() || vector.len() > most {
            return Some(format!("{} dimensions; 1 to {most} can be indexed", vector.len()));
        }
        if let Some(wanted) = self.dimensions.filter(|&wanted| wanted != vector.len()) {
            return Some(format!("{} dimensions instead of {wanted}", vector.len()));
        }
        if let Some(bad) = vector.iter().position(|element| !element.is_finite()) {
            return Some(format!("element {} is {}", bad + 1, vector[bad]));
        }
        self.metric.outside(vector)
    }

    /// Why this value of the column cannot be indexed, if so.
    pub fn refuse_value(&self, value: &Value) -> Option<String> {
        match value {
            Value::Vector(vector) if self.kind != ColumnType::Sparsevec => self.refuse(vector),
            Value::Sparse(vector) if self.kind == ColumnType::Sparsevec => self.refuse_sparse(vector),
            _ => Some(format!("not a {}", self.kind)),
        }
    }

    /// What a sparse vector may be at most is checked where it is made.
    fn refuse_sparse(&self, vector: &SparseVector) -> Option<String> {
        if let Some(wanted) = self.dimensions.filter(|&wanted| wanted != vector.dimensions()) {
            return Some(format!("{} dimensions instead of {wanted}", vector.dimensions()));
        }
        let (index, value) = vector.iter().find(|(_, value)| !value.is_finite())?;
        Some(format!("element {} is {value}", index + 1))
    }
}

/// A replicated column that filters can use and answers can show without asking the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FilterColumn {
    /// As in the source.
    pub name: String,
    /// Its type.
    pub kind: ColumnType,
}

/// The definition of a collection, resolved against the source's catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectionDef {
    /// Its number in this epoch.
    pub id: CollectionId,
    /// What callers say.
    pub name: String,
    /// Schema of the table.
    pub schema: String,
    /// The table.
    pub table: String,
    /// OID of the table when it was resolved.
    pub oid: u32,
    /// Is it a partitioned table, whose rows are in its partitions?
    pub partitioned: bool,
    /// The replica identity, in the order of the index.
    pub key: Vec<KeyColumn>,
    /// At least one.
    pub vectors: Vec<VectorColumn>,
    /// Any number.
    pub filters: Vec<FilterColumn>,
}

impl CollectionDef {
    /// The table's name, quoted for SQL.
    pub fn quoted_table(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.table))
    }

    /// What to select from: a partitioned table with its partitions, any other without tables that inherit from it (their
    /// rows are not in the stream under this table's name).
    pub fn from_clause(&self) -> String {
        format!("{}{}", if self.partitioned { "" } else { "ONLY " }, self.quoted_table())
    }

    /// The vector column with this name, or the first one when none is named.
    pub fn vector(&self, name: Option<&str>) -> Option<(usize, &VectorColumn)> {
        self.vectors.iter().enumerate().find(|(_, column)| name.is_none_or(|wanted| wanted == column.name))
    }

    /// The same definition apart from what the service learned by itself or from what changes when a table is made
    /// anew: does the data built for `self` serve `other`?
    pub fn serves(&self, other: &CollectionDef) -> bool {
        let plain = |def: &CollectionDef| {
            let mut def = def.clone();
            def.id = CollectionId(0);
            def.vectors.iter_mut().for_each(|column| column.dimensions = None);
            def
        };
        let same_dimensions = self
            .vectors
            .iter()
            .zip(&other.vectors)
            .all(|(a, b)| a.dimensions.is_none() || b.dimensions.is_none() || a.dimensions == b.dimensions);
        plain(self) == plain(other) && same_dimensions
    }
}

/// An identifier quoted for SQL.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string literal quoted for SQL (`standard_conforming_strings` is on everywhere since 9.1).
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
