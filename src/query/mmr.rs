//! Diversity: the order of rows by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

/// The places of at most `limit` candidates in the order chosen; `between` is the distance of two. Each is the one with the
/// least `lambda * distance(query) - (1 - lambda) * distance(nearest chosen one)`; ties by place. The first is the nearest.
///
/// With similarity as `-distance` (under cosine `1 - distance`, which differs by a constant) this is the textbook's
/// `lambda * sim(query) - (1 - lambda) * max sim(chosen)`.
pub fn order(distances: &[f64], between: impl Fn(usize, usize) -> f64, lambda: f64, limit: usize) -> Vec<usize> {
    let mut left: Vec<_> = (0..distances.len()).collect();
    // By place: distance to the nearest chosen one.
    let mut apart = vec![f64::INFINITY; distances.len()];
    let mut chosen: Vec<usize> = Vec::with_capacity(limit.min(left.len()));
    while chosen.len() < limit && !left.is_empty() {
        let cost = |&place: &usize| {
            let nearest = if chosen.is_empty() { 0.0 } else { apart[place] };
            let cost =
                if chosen.is_empty() { distances[place] } else { lambda * distances[place] - (1.0 - lambda) * nearest };
            // Who has no distance comes last.
            if cost.is_nan() { f64::INFINITY } else { cost }
        };
        let best = (0..left.len()).min_by(|&a, &b| cost(&left[a]).total_cmp(&cost(&left[b])));
        let place = left.remove(best.expect("some are left"));
        for &other in &left {
            apart[other] = apart[other].min(between(place, other));
        }
        chosen.push(place);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Metric;

    /// Two close together near the query, one farther on the other side.
    fn line() -> (Vec<f64>, Vec<Vec<f32>>) {
        let places = [1.0f32, 1.1, 1.2, -3.0];
        (places.iter().map(|place| f64::from(place.abs())).collect(), places.iter().map(|&place| vec![place]).collect())
    }

    #[test]
    fn lambda_weighs_nearness_against_difference() {
        let (distances, vectors) = line();
        let between = |a: usize, b: usize| Metric::L2.distance(&vectors[a], &vectors[b]);
        let order = |lambda, limit| order(&distances, between, lambda, limit);
        assert_eq!(order(1.0, 4), [0, 1, 2, 3], "nearness alone");
        assert_eq!(order(0.0, 2), [0, 3], "difference alone, from the nearest on");
        assert_eq!(order(0.4, 3), [0, 3, 2]);
        assert_eq!(order(0.5, 9).len(), 4, "there are no more");
    }

    #[test]
    fn equal_rows_come_in_their_order_and_undefined_ones_last() {
        let vectors = [vec![0.0, 0.0], vec![1.0, 0.0], vec![1.0, 0.0]];
        let distances = [f64::NAN, 0.5, 0.5];
        let between = |a: usize, b: usize| Metric::Cosine.distance(&vectors[a], &vectors[b]);
        assert_eq!(order(&distances, between, 0.7, 3), [1, 2, 0]);
    }
}
