//! Recommendation: one query vector from examples of what is wanted and what is not.

use crate::model::Metric;

/// The vector to search by: mean(positive) + (mean(positive) - mean(negative)), so away from what is not wanted. `None`
/// when the examples cancel each other out.
///
/// Under cosine only directions count: examples are scaled to length 1 first, so that none weighs more for being long,
/// and so is the result. All vectors have one length; `positive` is not empty.
pub fn average(metric: Metric, positive: &[Vec<f32>], negative: &[Vec<f32>]) -> Option<Vec<f32>> {
    let by_direction = metric == Metric::Cosine;
    let liked = mean(positive, by_direction)?;
    let target = match negative {
        [] => liked,
        _ => {
            let disliked = mean(negative, by_direction)?;
            liked.iter().zip(&disliked).map(|(&liked, &disliked)| 2.0 * liked - disliked).collect()
        }
    };
    let length = norm(&target);
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
        let length = if by_direction { norm(&vector) } else { 1.0 };
        if length == 0.0 {
            return None;
        }
        sum.iter_mut().zip(&vector).for_each(|(sum, element)| *sum += element / length);
    }
    sum.iter_mut().for_each(|sum| *sum /= vectors.len() as f64);
    Some(sum)
}

fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|element| element * element).sum::<f64>().sqrt()
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
}
