//! Recommendation: one query vector from examples of what is wanted and what is not.

use crate::model::{Embedding, Metric, SparseVector};
use std::collections::BTreeMap;

/// The vector to search by, of examples that are all sparse or all dense. An error says why there is none.
pub fn target(metric: Metric, positive: Vec<Embedding>, negative: Vec<Embedding>) -> Result<Embedding, String> {
    let none = "the examples have no direction: one is a zero vector, or they cancel each other out";
    let sparse = |examples: &[Embedding]| -> Vec<SparseVector> {
        let sparse = |example: &Embedding| match example {
            Embedding::Sparse(vector) => Some(vector.clone()),
            Embedding::Dense(_) => None,
        };
        examples.iter().filter_map(sparse).collect()
    };
    if let [Embedding::Sparse(first), ..] = &positive[..] {
        let elements = average_sparse(metric, &sparse(&positive), &sparse(&negative)).ok_or(none)?;
        let vector = SparseVector::new(first.dimensions(), elements);
        return vector.map(Embedding::Sparse).map_err(|reason| format!("the examples together: {reason}"));
    }
    let dense = |examples: &[Embedding]| -> Vec<Vec<f32>> {
        examples.iter().filter_map(|example| example.dense().map(<[f32]>::to_vec)).collect()
    };
    Ok(average(metric, &dense(&positive), &dense(&negative)).ok_or(none)?.into())
}

/// [`average`] of sparse vectors: indices and values.
fn average_sparse(metric: Metric, positive: &[SparseVector], negative: &[SparseVector]) -> Option<Vec<(u32, f32)>> {
    let by_direction = metric == Metric::Cosine;
    let mut sum = BTreeMap::<u32, f64>::new();
    let times = if negative.is_empty() { 1.0 } else { 2.0 };
    let weight = times / positive.len() as f64;
    let liked = positive.iter().map(|vector| (vector, weight));
    for (vector, weight) in liked.chain(negative.iter().map(|vector| (vector, -1.0 / negative.len() as f64))) {
        let length = if by_direction { norm(vector.values().iter().map(|&value| value.into())) } else { 1.0 };
        if length == 0.0 {
            return None;
        }
        vector.iter().for_each(|(index, value)| *sum.entry(index).or_default() += weight * f64::from(value) / length);
    }
    let length = norm(sum.values().copied());
    if by_direction && length < 1e-6 {
        return None;
    }
    let scale = if by_direction { 1.0 / length } else { 1.0 };
    let elements: Vec<_> = sum.into_iter().map(|(index, value)| (index, (value * scale) as f32)).collect();
    elements.iter().all(|(_, value)| value.is_finite()).then_some(elements)
}

/// The vector to search by: mean(positive) + (mean(positive) - mean(negative)), so away from what is not wanted. `None`
/// when the examples cancel each other out.
///
/// Under cosine only directions count: examples are scaled to length 1 first, so that none weighs more for being long,
/// and so is the result. All vectors have one length; `positive` is not empty.
fn average(metric: Metric, positive: &[Vec<f32>], negative: &[Vec<f32>]) -> Option<Vec<f32>> {
    let by_direction = metric == Metric::Cosine;
    let liked = mean(positive, by_direction)?;
    let target = match negative {
        [] => liked,
        _ => {
            let disliked = mean(negative, by_direction)?;
            liked.iter().zip(&disliked).map(|(&liked, &disliked)| 2.0 * liked - disliked).collect()
        }
    };
    let length = norm(target.iter().copied());
    let scale = if by_direction { 1.0 / length } else { 1.0 };
    // What is left of examples that cancel each other out is the rounding of their elements.
    if by_direction && length < 1e-6 {
        return None;
    }
    let vector: Vec<_> = target.iter().map(|element| (element * scale) as f32).collect();
    vector.iter().all(|element| element.is_finite()).then_some(vector)
}

/// `None` when a direction is asked of a zero vector.
fn mean(vectors: &[Vec<f32>], by_direction: bool) -> Option<Vec<f64>> {
    let mut sum = vec![0.0; vectors.first()?.len()];
    for vector in vectors {
        let vector: Vec<_> = vector.iter().map(|&element| f64::from(element)).collect();
        let length = if by_direction { norm(vector.iter().copied()) } else { 1.0 };
        if length == 0.0 {
            return None;
        }
        sum.iter_mut().zip(&vector).for_each(|(sum, element)| *sum += element / length);
    }
    sum.iter_mut().for_each(|sum| *sum /= vectors.len() as f64);
    Some(sum)
}

fn norm(elements: impl Iterator<Item = f64>) -> f64 {
    elements.map(|element| element * element).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_lies_beyond_the_liked_seen_from_the_disliked() {
        let vectors = |rows: &[[f32; 2]]| rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>();
        let (liked, disliked) = (vectors(&[[1.0, 0.0], [3.0, 2.0]]), vectors(&[[0.0, 1.0]]));
        for metric in [Metric::L2, Metric::Ip, Metric::L1] {
            assert_eq!(average(metric, &liked, &[]), Some(vec![2.0, 1.0]));
            assert_eq!(average(metric, &liked, &disliked), Some(vec![4.0, 1.0]));
        }
        // Long examples weigh no more than short ones.
        let (long, short) = (vectors(&[[100.0, 0.0], [0.0, 1.0]]), vectors(&[[1.0, 0.0], [0.0, 1.0]]));
        assert_eq!(average(Metric::Cosine, &long, &[]), average(Metric::Cosine, &short, &[]));
        let half = std::f32::consts::FRAC_1_SQRT_2;
        assert_eq!(average(Metric::Cosine, &short, &[]), Some(vec![half, half]));
    }

    #[test]
    fn examples_without_a_direction_are_refused() {
        let (one, two) = (vec![vec![1.0, 2.0]], vec![vec![-1.0, -2.0]]);
        assert_eq!(average(Metric::Cosine, &[one[0].clone(), two[0].clone()], &[]), None);
        assert_eq!(average(Metric::L2, &[one[0].clone(), two[0].clone()], &[]), Some(vec![0.0, 0.0]));
        assert_eq!(average(Metric::Cosine, &[vec![0.0, 0.0]], &[]), None);
        assert_eq!(average(Metric::Cosine, &one, &[vec![0.0, 0.0]]), None);
        assert_eq!(average(Metric::L2, &[vec![f32::MAX]], &[vec![f32::MIN]]), None, "beyond what an element holds");
    }

    #[test]
    fn sparse_examples_have_the_target_that_they_have_in_full() {
        let (liked, disliked) = ([[1.0, 0.0, 2.0], [3.0, 0.0, -2.0]], [[0.0, 5.0, 0.5]]);
        let full = |rows: &[[f32; 3]]| rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>();
        let sparse = |row: &[f32]| SparseVector::new(3, (0..).zip(row.iter().copied()).collect()).expect("a vector");
        let thin = |rows: &[[f32; 3]]| rows.iter().map(|row| Embedding::Sparse(sparse(row))).collect::<Vec<_>>();
        for metric in Metric::PLAIN {
            for disliked in [&disliked[..], &[]] {
                let wanted = average(metric, &full(&liked), &full(disliked)).expect("a target");
                let Ok(Embedding::Sparse(found)) = target(metric, thin(&liked), thin(disliked)) else { panic!("none") };
                let apart = metric.sparse_distance(&found, &sparse(&wanted)).abs();
                let far = if metric == Metric::Ip { f64::INFINITY } else { 1e-6 };
                assert!(apart < far && found.indices() == sparse(&wanted).indices(), "{metric}: {found:?} {wanted:?}");
            }
        }
        assert!(target(Metric::Cosine, thin(&[[0.0; 3]]), vec![]).is_err());
        assert!(target(Metric::Cosine, thin(&[[1.0, 2.0, 0.0], [-1.0, -2.0, 0.0]]), vec![]).is_err());
        // Each fits, all together do not.
        let long = |from: u32| SparseVector::new(40_000, (from..from + 10_000).map(|at| (at, 1.0)).collect());
        let many = vec![long(0).expect("fits").into(), long(10_000).expect("fits").into()];
        assert!(target(Metric::L2, many, vec![]).expect_err("too many").contains("at most 16000"));
    }
}
