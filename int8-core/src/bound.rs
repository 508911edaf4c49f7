//! The permitted deviation of a backend's `y` from [`linear()`](crate::linear()), derived from the backend's roundings.
//!
//! Integers (codes, accumulators, zero points) and scales must be *equal*; the bound is for `y` alone. Let
//! `γ_n(u) = n·u/(1 − n·u)` (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1), `u = 2⁻²⁴` (f32), G the groups of
//! K (1 without group granularity), p the outlier columns, `w` the roundoff of the outlier weights as stored, `w₀` their absolute
//! error below the normal range, `a` the roundoff of one addition of the outlier sum, and `acc` the accumulator after the
//! zero-point correction. Before the last rounding a result may differ by
//!
//! ```text
//! e = γ_{G+5}(u)·Σ_g|int8 part|                acc → f32, two divisions by 127 or one factor, two or three products,
//!                                              and G − 1 additions
//!   + (γ_{p+3}(a) + w)·Σ|x·W|                  p products and additions in any order, weights rounded once
//!   + w₀·Σ|x|                                    weights that underflow
//!   + γ_2(u)·(Σ_g|int8 part| + Σ|x·W| + |bias|)  the two additions of the epilogue
//!   + (Σ_g|acc| + p + G + 1)·2⁻¹²⁶             products that underflow, flushed or not
//! ```
//!
//! and after it by `e + u_T·(|y| + e) + η_T`, η_T the smallest subnormal of the output type. Within `e` of the overflow
//! threshold both ±inf and the largest finite number are right. The derivation assumes that no intermediate overflows f32
//! (`acc·s_x·s_w` does not when the scales are multiplied first).

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::{Element, LinearOutput, convert};

/// Roundoffs of a backend's outlier product.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arithmetic {
    /// Roundoff of one addition of the outlier sum: 2⁻²⁴ for IEEE f32, 2⁻²³ for tensor cores, which truncate.
    pub accumulate: f64,
    /// Roundoff of a *dequantised* outlier weight: 2⁻²² in f32 (two roundings), `T::UNIT_ROUNDOFF` more if rounded to 16 bits.
    pub outlier_weight: f64,
    /// Absolute error of a dequantised outlier weight below the normal range of the type it is stored in.
    pub outlier_weight_floor: f64,
}

const F32: f64 = <f32 as Element>::UNIT_ROUNDOFF;

/// 2⁻¹²⁶, of f32 and bf16: the error of flushing subnormals to zero.
const SMALLEST_NORMAL: f64 = f64::from_bits((1023 - 126) << 52);

impl Arithmetic {
    /// Everything in IEEE f32.
    pub const F32: Self =
        Self { accumulate: F32, outlier_weight: 4.0 * F32, outlier_weight_floor: SMALLEST_NORMAL };

    /// 16-bit tensor cores: products exact, sums in f32 truncated, dequantised weights rounded to `T`.
    pub const fn tensor_core<T: Element>() -> Self {
        Self {
            accumulate: 2.0 * F32,
            outlier_weight: 4.0 * F32 + T::UNIT_ROUNDOFF,
            outlier_weight_floor: T::MIN_SUBNORMAL.max(SMALLEST_NORMAL),
        }
    }
}

/// The permitted absolute deviation `[M, N]` of a backend's `y` from [`LinearOutput::exact`].
pub fn linear_bound<T: Element>(
    reference: &LinearOutput<T>,
    bias: Option<ArrayView1<f32>>,
    arithmetic: Arithmetic,
) -> Array2<f64> {
    let columns = convert::count(reference.outliers.columns().len());
    let groups = convert::count(reference.products.dim().0);
    let outlier_share = gamma(columns + 3.0, arithmetic.accumulate) + arithmetic.outlier_weight;
    Array2::from_shape_fn(reference.exact.dim(), |index| {
        let int8_part = reference.int8_magnitude[index];
        let outlier_part = reference.outlier_magnitude[index];
        let bias = bias.map_or(0.0, |bias| f64::from(bias[index.1].abs()));
        let products = (0..reference.products.dim().0).map(|g| reference.products[[g, index.0, index.1]]);
        let accumulators: f64 = products.map(|product| convert::i64_to_f64(product).abs()).sum();
        let underflow = (accumulators + columns + groups + 1.0) * SMALLEST_NORMAL
            + arithmetic.outlier_weight_floor * reference.outlier_input[index.0];
        let before_rounding = gamma(groups + 5.0, F32) * int8_part
            + outlier_share * outlier_part
            + gamma(2.0, F32) * (int8_part + outlier_part + bias)
            + underflow;
        before_rounding
            + T::UNIT_ROUNDOFF * (reference.exact[index].abs() + before_rounding)
            + T::MIN_SUBNORMAL
    })
}

/// The result of comparing a backend's output with the reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// The largest deviation as a share of its bound: at most 1 if the backend is right, +∞ for a misplaced NaN or infinity.
    pub worst_share: f64,
    /// Its row and column.
    pub at: (usize, usize),
}

impl Comparison {
    /// Whether every element is within its bound.
    pub fn within_bound(&self) -> bool {
        self.worst_share <= 1.0
    }
}

/// Compares `actual [M, N]` with the reference, element by element.
///
/// # Panics
/// If the shapes differ.
pub fn compare<T: Element>(
    actual: ArrayView2<T>,
    reference: &LinearOutput<T>,
    bias: Option<ArrayView1<f32>>,
    arithmetic: Arithmetic,
) -> Comparison {
    assert_eq!(actual.dim(), reference.exact.dim(), "compare: actual and reference have different shapes");
    let bound = linear_bound(reference, bias, arithmetic);
    let mut worst = Comparison { worst_share: 0.0, at: (0, 0) };
    for (at, actual) in actual.indexed_iter() {
        let share = share_of_bound::<T>(f64::from(actual.to_f32()), reference.exact[at], bound[at]);
        if share > worst.worst_share {
            worst = Comparison { worst_share: share, at };
        }
    }
    worst
}

/// `|actual − exact| / bound`, +∞ for a NaN or infinity that only one side has.
fn share_of_bound<T: Element>(actual: f64, exact: f64, bound: f64) -> f64 {
    if exact.is_nan() || actual.is_nan() {
        return if exact.is_nan() && actual.is_nan() { 0.0 } else { f64::INFINITY };
    }
    if exact.is_infinite() {
        return if actual == exact { 0.0 } else { f64::INFINITY };
    }
    if actual.is_infinite() {
        // Half an ulp above the largest finite number rounds to infinity.
        let overflow = T::MAX * (1.0 + T::UNIT_ROUNDOFF);
        let reachable = exact.abs() + bound >= overflow * (1.0 - T::UNIT_ROUNDOFF);
        return if reachable && actual.signum() == exact.signum() { 0.0 } else { f64::INFINITY };
    }
    (actual - exact).abs() / bound
}

/// `γ_n(u) = n·u/(1 − n·u)`; +∞ where `n·u ≥ 1`.
fn gamma(n: f64, u: f64) -> f64 {
    if n * u < 1.0 { n * u / (1.0 - n * u) } else { f64::INFINITY }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use ndarray::Array1;

    use super::*;
    use crate::{Scheme, Weight, corpus, linear};

    /// The reference passes; a deviation beyond the bound, in either direction, fails.
    fn fails_on_a_perturbation<T: Element>() {
        let case = corpus::random(7);
        let (x, w) = (case.x.mapv(T::from_f32), case.w.mapv(T::from_f32));
        let config = Scheme::LlmInt8Absmax.config();
        let weight = Weight::quantize(w.view(), &config);
        let bias = Array1::from_elem(w.nrows(), 0.25);
        let reference = linear(x.view(), &weight, Some(bias.view()), &config).expect("a valid case");
        let arithmetic = Arithmetic::F32;
        let same = compare(reference.y.view(), &reference, Some(bias.view()), arithmetic);
        assert!(same.within_bound(), "{}: {same:?}", T::NAME);

        let bound = linear_bound(&reference, Some(bias.view()), arithmetic);
        for at in [(0, 0), (x.nrows() - 1, w.nrows() - 1)] {
            for sign in [-1.0, 1.0] {
                let mut perturbed = reference.y.clone();
                let beyond =
                    bound[at] + 2.0 * T::UNIT_ROUNDOFF * reference.exact[at].abs() + T::MIN_SUBNORMAL;
                perturbed[at] = T::from_f64(reference.exact[at] + sign * 1.01 * beyond);
                let found = compare(perturbed.view(), &reference, Some(bias.view()), arithmetic);
                assert!(!found.within_bound() && found.at == at, "{}: {found:?}", T::NAME);
            }
            for wrong in [f64::NAN, f64::INFINITY] {
                let mut perturbed = reference.y.clone();
                perturbed[at] = T::from_f64(wrong);
                let found = compare(perturbed.view(), &reference, Some(bias.view()), arithmetic);
                assert_eq!(found.worst_share, f64::INFINITY, "{}", T::NAME);
            }
        }
    }

    #[test]
    fn comparator_fails_on_a_perturbation() {
        fails_on_a_perturbation::<f32>();
        fails_on_a_perturbation::<f16>();
        fails_on_a_perturbation::<bf16>();
    }

    #[test]
    fn overflow_to_infinity_is_right_only_near_the_threshold() {
        assert_eq!(share_of_bound::<f16>(f64::INFINITY, 65_519.0, 2.0), 0.0);
        assert_eq!(share_of_bound::<f16>(f64::INFINITY, 60_000.0, 2.0), f64::INFINITY);
        assert_eq!(share_of_bound::<f16>(f64::NEG_INFINITY, 65_519.0, 2.0), f64::INFINITY);
        assert_eq!(share_of_bound::<f16>(f64::NAN, f64::NAN, 2.0), 0.0);
        assert_eq!(share_of_bound::<f16>(1.0, f64::NAN, 2.0), f64::INFINITY);
    }
}
