//! The demo's documents and queries: real texts with real embeddings, compiled in, so that the binary needs no checkout.

use crate::cli::npy::{self, Matrix};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::cmp::Ordering;

/// What the data are is told by `examples/data/README.md`.
macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../../examples/data/", $name))
    };
}

/// Documents there are.
pub const DOCUMENTS: usize = 4000;

/// One text.
#[derive(Deserialize)]
pub struct Text {
    /// Row of its vector.
    pub id: i64,
    /// The package it describes.
    pub name: String,
    /// The part of the archive the package is in.
    pub section: String,
    /// What it says.
    pub text: String,
}

/// Documents, queries, and who is nearest to whom.
pub struct Data {
    /// The documents; the id is the place.
    pub documents: Vec<Text>,
    /// Their vectors.
    pub vectors: Matrix<f32>,
    /// Texts that are not among the documents.
    pub queries: Vec<Text>,
    /// Their vectors.
    pub query_vectors: Matrix<f32>,
    /// The ten nearest documents of each query, best first.
    truth: Vec<Vec<i64>>,
}

impl Data {
    /// The first `wanted` documents and all queries.
    pub fn load(wanted: usize) -> Result<Data> {
        let mut documents = texts(file!("docs.jsonl")).context("docs.jsonl")?;
        let vectors = npy::f32_from(file!("docs.f16.npy")).context("docs.f16.npy")?;
        let queries = texts(file!("queries.jsonl")).context("queries.jsonl")?;
        let query_vectors = npy::f32_from(file!("queries.f32.npy")).context("queries.f32.npy")?;
        ensure!(documents.len() == vectors.rows && queries.len() == query_vectors.rows, "texts and vectors differ");
        documents.truncate(wanted);
        let mut data = Data { documents, vectors, queries, query_vectors, truth: Vec::new() };
        data.truth = if data.documents.len() == data.vectors.rows {
            let stored = npy::ids_from(file!("truth.i32.npy")).context("truth.i32.npy")?;
            (0..stored.rows).map(|row| stored.row(row).to_vec()).collect()
        } else {
            data.computed_truth()
        };
        Ok(data)
    }

    /// The ten nearest documents of a query, best first.
    pub fn truth(&self, query: usize) -> &[i64] {
        &self.truth[query]
    }

    /// Documents that there are of the section.
    pub fn in_section(&self, section: &str) -> usize {
        self.documents.iter().filter(|document| document.section == section).count()
    }

    /// The section with the fewest documents that still fill a page of ten.
    pub fn rare_section(&self) -> &str {
        let sections = self.documents.iter().map(|document| (self.in_section(&document.section), &document.section));
        sections.filter(|(count, _)| *count >= 10).min().map_or("libs", |(_, section)| section)
    }

    /// What the stored truth holds, for a part of the documents.
    fn computed_truth(&self) -> Vec<Vec<i64>> {
        let documents = self.documents.iter().map(|document| (document.id, self.vectors.row(document.id as usize)));
        let documents: Vec<_> = documents.collect();
        (0..self.queries.len()).map(|query| nearest(self.query_vectors.row(query), &documents, 10)).collect()
    }
}

fn texts(lines: &[u8]) -> Result<Vec<Text>> {
    let texts: Vec<Text> = serde_json::Deserializer::from_slice(lines).into_iter().collect::<Result<_, _>>()?;
    ensure!(texts.iter().enumerate().all(|(place, text)| text.id == place as i64), "an id is not its place");
    Ok(texts)
}

/// The ids of the `k` vectors nearest to the query by cosine, best first: every one is compared, in double precision.
pub fn nearest(query: &[f32], vectors: &[(i64, &[f32])], k: usize) -> Vec<i64> {
    let mut all: Vec<(f64, i64)> = vectors.iter().map(|(id, vector)| (-cosine(query, vector), *id)).collect();
    all.sort_by(|a, b| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    all.into_iter().take(k).map(|(_, id)| id).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum() };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_truth_is_the_truth() {
        let data = Data::load(DOCUMENTS).expect("the data are compiled in");
        assert_eq!((data.documents.len(), data.queries.len()), (DOCUMENTS, 50));
        assert_eq!(data.truth, data.computed_truth());
    }

    #[test]
    fn a_part_has_its_own_truth() {
        let data = Data::load(500).expect("the data are compiled in");
        assert!(data.truth.iter().all(|ids| ids.len() == 10 && ids.iter().all(|&id| id < 500)));
        assert!(data.in_section(data.rare_section()) >= 10);
    }
}
