//! A vector to compare rows with, as it was asked for or as a row has it.

use crate::model::metric::Metric;
use crate::model::sparse::SparseVector;
use crate::model::value::Value;

/// A vector.
#[derive(Debug, Clone, PartialEq)]
pub enum Embedding {
    /// All elements; bits are 0 and 1.
    Dense(Vec<f32>),
    /// Those that are not zero.
    Sparse(SparseVector),
}

impl Embedding {
    /// How many dimensions it has.
    pub fn dimensions(&self) -> usize {
        match self {
            Embedding::Dense(vector) => vector.len(),
            Embedding::Sparse(vector) => vector.dimensions(),
        }
    }

    /// How many elements it takes to write it down: what comparing with it costs.
    pub fn elements(&self) -> usize {
        match self {
            Embedding::Dense(vector) => vector.len(),
            Embedding::Sparse(vector) => vector.indices().len(),
        }
    }

    /// All elements, where it is written so.
    pub fn dense(&self) -> Option<&[f32]> {
        match self {
            Embedding::Dense(vector) => Some(vector),
            Embedding::Sparse(_) => None,
        }
    }

    /// Place, from 0, of an element that is NaN or infinite.
    pub fn not_finite(&self) -> Option<usize> {
        match self {
            Embedding::Dense(vector) => vector.iter().position(|element| !element.is_finite()),
            Embedding::Sparse(vector) => vector.iter().find(|(_, value)| !value.is_finite()).map(|(at, _)| at as usize),
        }
    }

    /// Distance from another vector of the column in double precision.
    pub fn apart(&self, metric: Metric, other: &Embedding) -> f64 {
        match (self, other) {
            (Embedding::Dense(a), Embedding::Dense(b)) => metric.distance(a, b),
            (Embedding::Sparse(a), Embedding::Sparse(b)) => metric.sparse_distance(a, b),
            _ => f64::NAN,
        }
    }

    /// Distance from a row's value in double precision; `None` where that is no vector of the same kind and dimensions.
    pub fn distance(&self, metric: Metric, value: &Value) -> Option<f64> {
        match (self, value) {
            (Embedding::Dense(a), Value::Vector(b)) if a.len() == b.len() => Some(metric.distance(a, b)),
            (Embedding::Sparse(a), Value::Sparse(b)) if a.dimensions() == b.dimensions() => {
                Some(metric.sparse_distance(a, b))
            }
            _ => None,
        }
    }
}

impl From<Vec<f32>> for Embedding {
    fn from(vector: Vec<f32>) -> Embedding {
        Embedding::Dense(vector)
    }
}

impl From<SparseVector> for Embedding {
    fn from(vector: SparseVector) -> Embedding {
        Embedding::Sparse(vector)
    }
}

impl From<Embedding> for Value {
    fn from(embedding: Embedding) -> Value {
        match embedding {
            Embedding::Dense(vector) => Value::Vector(vector.into()),
            Embedding::Sparse(vector) => vector.into(),
        }
    }
}

/// Any other value is given back.
impl TryFrom<Value> for Embedding {
    type Error = Value;

    fn try_from(value: Value) -> Result<Embedding, Value> {
        match value {
            Value::Vector(vector) => Ok(Embedding::Dense(vector.into())),
            Value::Sparse(vector) => Ok(Embedding::Sparse(*vector)),
            other => Err(other),
        }
    }
}
