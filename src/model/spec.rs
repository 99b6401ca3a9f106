//! What the operator asks for: a collection before it is resolved against the source's catalog.

use crate::model::encoding::Encoding;
use crate::model::index_kind::IndexKind;
use crate::model::metric::Metric;
use crate::model::tier::TierPolicy;
use serde::de::{Error, IntoDeserializer, value};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// A vector column as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorSpec {
    /// Column name.
    pub column: String,
    /// How vectors are compared.
    #[serde(default = "default_metric", deserialize_with = "by_name")]
    pub metric: Metric,
    /// Length of the vectors; learned from the source when absent.
    #[serde(default)]
    pub dimensions: Option<usize>,
    /// Links per node of the graph.
    #[serde(default = "default_m")]
    pub m: usize,
    /// Width of the search while linking.
    #[serde(default = "default_ef_construction")]
    pub ef_construction: usize,
    /// What walks compare.
    #[serde(default, deserialize_with = "by_name")]
    pub encoding: Encoding,
    /// How searches find their way.
    #[serde(default, deserialize_with = "by_name")]
    pub index: IndexKind,
    /// Lists of a sealed segment, where there are lists; the square root of its rows when absent.
    #[serde(default)]
    pub lists: Option<usize>,
}

/// A value that has a name, such as a variant of an enum: a name that is none is answered with those there are, which not
/// every format does by itself.
pub fn by_name<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    let name = String::deserialize(deserializer)?;
    T::deserialize(name.into_deserializer()).map_err(|error: value::Error| D::Error::custom(error))
}

fn default_metric() -> Metric {
    Metric::Cosine
}

fn default_m() -> usize {
    16
}

fn default_ef_construction() -> usize {
    200
}

/// A collection as configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectionSpec {
    /// `schema.table`, or `table` for schema `public`. Taken literally: no quotes, no case folding.
    pub table: String,
    /// What callers say; the table's name when absent.
    #[serde(default)]
    pub name: Option<String>,
    /// At least one.
    pub vectors: Vec<VectorSpec>,
    /// Columns that filters can use and answers can show without asking the source.
    #[serde(default)]
    pub filter_columns: Vec<String>,
    /// How rows are kept in memory by how they are used; all alike when absent.
    #[serde(default)]
    pub tiers: Option<TierPolicy>,
}

impl CollectionSpec {
    /// Schema and table.
    pub fn schema_and_table(&self) -> (&str, &str) {
        self.table.split_once('.').unwrap_or(("public", &self.table))
    }

    /// The collections that have tiers, by name.
    pub fn tiers(specs: &[CollectionSpec]) -> BTreeMap<String, TierPolicy> {
        let tiers = |spec: &CollectionSpec| Some((spec.name().to_owned(), spec.tiers.clone()?));
        specs.iter().filter_map(tiers).collect()
    }

    /// What callers say.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.table)
    }
}
