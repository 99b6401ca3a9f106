//! Distance metrics: what their numbers mean, which types and which vectors they are for.

use crate::model::sparse::SparseVector;
use crate::model::value::ColumnType;
use serde::{Deserialize, Serialize};

/// How two vectors are compared. Distances are always "smaller is nearer" and equal pgvector's operators where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
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
    /// How many bits differ, `<~>`.
    Hamming,
    /// `1 - |a and b| / |a or b|` of bits, `<%>`; 1 where no bit is set in both, also of two that have none at all.
    Jaccard,
    /// Distance in the Poincaré ball of curvature -1 (Nickel and Kiela, 2017):
    /// `arcosh(1 + 2 |a - b|^2 / ((1 - |a|^2) (1 - |b|^2)))`, for vectors of a norm below 1.
    Poincare,
    /// Distance on the hyperboloid of curvature -1 (Nickel and Kiela, 2018): `arcosh(-<a, b>)`, where
    /// `<a, b> = a1 b1 + a2 b2 + ... - a0 b0`, for vectors with `-<a, a> = 1` and `a0 > 0`. On the hyperboloid
    /// `-<a, b> = 1 + <a - b, a - b> / 2`, and that is how it is computed: exact also for near ones.
    Lorentz,
}

/// How far `-<a, a>` may be from 1, as a share of `a0^2`: what rounding every element to half precision makes of it.
const HYPERBOLOID: f64 = 2e-3;

impl Metric {
    /// Every metric, in the order of documentation.
    pub const ALL: [Metric; 8] = [
        Metric::L2,
        Metric::Cosine,
        Metric::Ip,
        Metric::L1,
        Metric::Hamming,
        Metric::Jaccard,
        Metric::Poincare,
        Metric::Lorentz,
    ];

    /// Those that any finite vectors of numbers can be compared by, dense or sparse.
    pub const PLAIN: [Metric; 4] = [Metric::L2, Metric::Cosine, Metric::Ip, Metric::L1];

    /// The name used in configuration, HTTP and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::Cosine => "cosine",
            Metric::Ip => "ip",
            Metric::L1 => "l1",
            Metric::Hamming => "hamming",
            Metric::Jaccard => "jaccard",
            Metric::Poincare => "poincare",
            Metric::Lorentz => "lorentz",
        }
    }

    /// pgvector's operator, where it has one.
    pub fn operator(self) -> Option<&'static str> {
        match self {
            Metric::L2 => Some("<->"),
            Metric::Cosine => Some("<=>"),
            Metric::Ip => Some("<#>"),
            Metric::L1 => Some("<+>"),
            Metric::Hamming => Some("<~>"),
            Metric::Jaccard => Some("<%>"),
            Metric::Poincare | Metric::Lorentz => None,
        }
    }

    /// Those that vectors of this type can be compared by; none where it is no type of vectors.
    pub fn of_type(kind: ColumnType) -> Vec<Metric> {
        let fits = |metric: &Metric| match metric {
            _ if !kind.is_vector() => false,
            Metric::L2 | Metric::Cosine | Metric::Ip | Metric::L1 => !kind.is_bits(),
            Metric::Hamming | Metric::Jaccard => kind.is_bits(),
            Metric::Poincare | Metric::Lorentz => !kind.is_bits() && kind != ColumnType::Sparsevec,
        };
        Metric::ALL.into_iter().filter(fits).collect()
    }

    /// Why no distance from this finite vector is defined, if so.
    pub fn outside(self, vector: &[f32]) -> Option<String> {
        let squares = |v: &[f32]| v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        match (self, vector) {
            (Metric::Poincare, _) if squares(vector) >= 1.0 => {
                Some(format!("a norm of {}; poincare takes vectors inside the unit ball only", squares(vector).sqrt()))
            }
            (Metric::Lorentz, [time, space @ ..]) => {
                let square = f64::from(*time) * f64::from(*time);
                let form = square - squares(space);
                let on = *time > 0.0 && (form - 1.0).abs() <= HYPERBOLOID * square;
                let what = "lorentz takes vectors of the hyperboloid only: x0^2 - x1^2 - x2^2 - ... = 1 and x0 > 0";
                (!on).then(|| format!("x0 is {time} and the form is {form}; {what}"))
            }
            _ => None,
        }
    }

    /// The reference: plain f64 arithmetic, the meaning every kernel is tested against. Bits are 0 and 1. Both vectors have
    /// one length and are not [`Metric::outside`].
    pub fn distance(self, a: &[f32], b: &[f32]) -> f64 {
        debug_assert_eq!(a.len(), b.len());
        let pairs = || a.iter().zip(b).map(|(&x, &y)| (f64::from(x), f64::from(y)));
        match self {
            Metric::Poincare => {
                let room = |v: &[f32]| 1.0 - v.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
                let square: f64 = pairs().map(|(x, y)| (x - y) * (x - y)).sum();
                // arcosh(1 + 2u) = 2 arsinh(sqrt(u)), which loses nothing where u is small.
                2.0 * (square / (room(a) * room(b))).sqrt().asinh()
            }
            Metric::Lorentz => {
                let sign = |at| if at == 0 { -1.0 } else { 1.0 };
                let square: f64 = pairs().enumerate().map(|(at, (x, y))| sign(at) * (x - y) * (x - y)).sum();
                2.0 * (square.max(0.0).sqrt() / 2.0).asinh()
            }
            _ => self.of_pairs(pairs),
        }
    }

    /// [`Metric::distance`] of sparse vectors of one length, by one of [`Metric::PLAIN`].
    pub fn sparse_distance(self, a: &SparseVector, b: &SparseVector) -> f64 {
        debug_assert!(a.dimensions() == b.dimensions() && Metric::PLAIN.contains(&self));
        self.of_pairs(|| a.pairs(b).map(|(x, y)| (f64::from(x), f64::from(y))))
    }

    /// Those where an element that is zero in both changes nothing, and the elements' order neither.
    fn of_pairs<I: Iterator<Item = (f64, f64)>>(self, pairs: impl Fn() -> I) -> f64 {
        let dot = || pairs().map(|(x, y)| x * y).sum::<f64>();
        match self {
            Metric::L2 => pairs().map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt(),
            Metric::L1 | Metric::Hamming => pairs().map(|(x, y)| (x - y).abs()).sum(),
            Metric::Ip => -dot(),
            Metric::Cosine => {
                let (square_a, square_b) = pairs().fold((0.0, 0.0), |(a, b), (x, y)| (a + x * x, b + y * y));
                1.0 - (dot() / (square_a * square_b).sqrt()).clamp(-1.0, 1.0)
            }
            Metric::Jaccard => {
                let either: f64 = pairs().map(|(x, y)| x.max(y)).sum();
                if dot() == 0.0 { 1.0 } else { 1.0 - dot() / either }
            }
            Metric::Poincare | Metric::Lorentz => f64::NAN,
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
        let (c, d, none) = ([1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0], [0.0; 4]);
        assert_eq!(Metric::Hamming.distance(&c, &d), 2.0);
        assert_eq!(Metric::Jaccard.distance(&c, &d), 0.5);
        assert_eq!((Metric::Jaccard.distance(&none, &none), Metric::Jaccard.distance(&c, &c)), (1.0, 0.0));
    }

    #[test]
    fn sparse_distances_are_those_of_the_same_vectors_in_full() {
        let (a, b) = ([0.0, 2.0, 0.0, -1.0, 0.5], [3.0, 0.0, 0.0, -4.0, 0.25]);
        let sparse = |v: &[f32]| SparseVector::new(v.len(), (0..).zip(v.iter().copied()).collect()).expect("a vector");
        for metric in Metric::PLAIN {
            assert_eq!(metric.sparse_distance(&sparse(&a), &sparse(&b)), metric.distance(&a, &b), "{metric}");
            assert_eq!(metric.sparse_distance(&sparse(&b), &sparse(&a)), metric.distance(&b, &a), "{metric}");
        }
        assert!(Metric::Cosine.sparse_distance(&sparse(&a), &sparse(&[0.0; 5])).is_nan());
    }

    /// Points on one line through the origin at known distances from it, in both models.
    #[test]
    fn hyperbolic_distances_are_those_along_a_line() {
        for (s, t) in [(0.0f64, 1.0f64), (0.5, 2.5), (-1.5, 1.0), (3.0, 3.0), (1.0, 1.0005)] {
            let ball = |r: f64| [(r / 2.0).tanh() as f32, 0.0, 0.0];
            let sheet = |r: f64| [r.cosh() as f32, 0.0, r.sinh() as f32];
            let want = (s - t).abs();
            for (metric, a, b) in [(Metric::Poincare, ball(s), ball(t)), (Metric::Lorentz, sheet(s), sheet(t))] {
                let got = metric.distance(&a, &b);
                assert!((got - want).abs() < 1e-5 * (1.0 + want), "{metric} {s} {t}: {got}");
                assert_eq!(metric.outside(&a), None);
            }
        }
        // Off the axes: the two models agree by the stereographic projection x -> (1 + |x|^2, 2x) / (1 - |x|^2).
        let (a, b) = ([0.1f32, -0.6, 0.3], [0.5f32, 0.2, -0.7]);
        let lift = |v: &[f32; 3]| {
            let square: f32 = v.iter().map(|x| x * x).sum();
            [1.0 + square, 2.0 * v[0], 2.0 * v[1], 2.0 * v[2]].map(|x| x / (1.0 - square))
        };
        let (ball, sheet) = (Metric::Poincare.distance(&a, &b), Metric::Lorentz.distance(&lift(&a), &lift(&b)));
        assert!((ball - sheet).abs() < 1e-5, "{ball} {sheet}");
    }

    #[test]
    fn vectors_without_a_distance_are_told() {
        for (metric, bad) in [
            (Metric::Poincare, vec![1.0, 0.0]),
            (Metric::Poincare, vec![0.8, -0.8]),
            (Metric::Lorentz, vec![-1.0, 0.0]),
            (Metric::Lorentz, vec![1.0, 1.0]),
            (Metric::Lorentz, vec![2.0, 1.0]),
        ] {
            assert!(metric.outside(&bad).is_some(), "{metric} {bad:?}");
            assert_eq!(Metric::L2.outside(&bad), None);
        }
        assert_eq!(Metric::Poincare.outside(&[0.0, 0.999]), None);
        assert_eq!(Metric::Lorentz.outside(&[2.0, 3f32.sqrt()]), None);
    }

    #[test]
    fn every_vector_type_has_metrics_and_no_other_type() {
        assert_eq!(Metric::of_type(ColumnType::Varbit), [Metric::Hamming, Metric::Jaccard]);
        assert_eq!(Metric::of_type(ColumnType::Sparsevec), Metric::PLAIN);
        assert_eq!(Metric::of_type(ColumnType::Jsonb).len(), 6);
        assert!(Metric::of_type(ColumnType::Text).is_empty());
    }
}
