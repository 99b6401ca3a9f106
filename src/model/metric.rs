//! Distance metrics and what their numbers mean.

use serde::{Deserialize, Serialize};

/// How two vectors are compared. Distances are always "smaller is nearer" and equal pgvector's operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Euclidean distance, `<->`.
    L2,
    /// `1 - cosine similarity`, `<=>`; a zero vector has no direction, so its distance is NaN and it sorts last.
    Cosine,
    /// Negative inner product, `<#>`.
    Ip,
    /// Taxicab distance, `<+>`.
    L1,
}

impl Metric {
    /// Every metric, in the order of documentation.
    pub const ALL: [Metric; 4] = [Metric::L2, Metric::Cosine, Metric::Ip, Metric::L1];

    /// The name used in configuration, HTTP and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::Cosine => "cosine",
            Metric::Ip => "ip",
            Metric::L1 => "l1",
        }
    }

    /// The reference: plain f64 arithmetic, the meaning every kernel is tested against.
    pub fn distance(self, a: &[f32], b: &[f32]) -> f64 {
        debug_assert_eq!(a.len(), b.len());
        let pairs = || a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
        let dot = || pairs().map(|(x, y)| x * y).sum::<f64>();
        match self {
            Metric::L2 => pairs().map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt(),
            Metric::L1 => pairs().map(|(x, y)| (x - y).abs()).sum(),
            Metric::Ip => -dot(),
            Metric::Cosine => {
                let square = |v: &[f32]| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
                1.0 - (dot() / (square(a) * square(b)).sqrt()).clamp(-1.0, 1.0)
            }
        }
    }
}

impl std::fmt::Display for Metric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_pgvectors() {
        let (a, b) = ([0.0, 0.0], [3.0, 4.0]);
        assert_eq!(Metric::L2.distance(&a, &b), 5.0);
        assert_eq!(Metric::L1.distance(&a, &b), 7.0);
        assert_eq!(Metric::Ip.distance(&[1.0, 2.0], &b), -11.0);
        assert_eq!(Metric::Cosine.distance(&[1.0, 0.0], &[0.0, 1.0]), 1.0);
        assert!(Metric::Cosine.distance(&a, &b).is_nan());
    }
}
