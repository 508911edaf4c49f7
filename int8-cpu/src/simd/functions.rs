//! Elementary functions on sixteen lanes. A NaN stays one.

use super::instructions::{Instructions, LANES};
use super::vectorize::{Vectorized, run};
use crate::kernel::Kernel;

/// Below, `exp` would be subnormal; it returns its value here, 1.2e-38.
const EXP_LOW: f32 = -87.336_54;
/// Above, 2ⁿ would need an exponent that f32 does not have; `exp` returns its value here, 1.7e38.
const EXP_HIGH: f32 = 88.02;

/// ln 2 in two parts: the upper one has nine bits, so that its product with an exponent is exact.
const LN2_UPPER: f32 = 0.693_359_4;
const LN2_LOWER: f32 = -2.121_944_4e-4;

/// `eˣ` to 2 units in the last place, for x in [−87.3, 88.0]; beyond, the value at the nearer end.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2/2`, and `eʳ` by its Taylor polynomial: the first omitted term is `r⁸/8! < 5.2e-9`.
#[inline(always)]
pub(crate) fn exp<I: Instructions>(simd: I, x: I::Floats) -> I::Floats {
    const COEFFICIENTS: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let x = simd.minimum(simd.splat(EXP_HIGH), simd.maximum(simd.splat(EXP_LOW), x));
    let n = simd.round(simd.multiply(x, simd.splat(std::f32::consts::LOG2_E)));
    let exponent = simd.to_floats(n);
    let r = simd.multiply_add(exponent, simd.splat(-LN2_UPPER), x);
    let r = simd.multiply_add(exponent, simd.splat(-LN2_LOWER), r);
    simd.multiply(polynomial(simd, r, &COEFFICIENTS), simd.power_of_two(n))
}

/// Below, [`exp2_coarse`] returns its value here.
#[cfg(any(target_arch = "x86_64", test))]
const EXP2_LOW: f32 = -125.0;

/// `2ˣ` with a relative error below 2⁻¹⁸, for what is rounded to bf16 then: x ≤ 127; 1 for 0. Half of the operations of [`exp`].
///
/// `x = n + t` with `|t| ≤ ½`, and the polynomial of degree 4 with the least relative error to `2ᵗ` among those that are 1 at 0.
#[inline(always)]
#[cfg(any(target_arch = "x86_64", test))]
pub(crate) fn exp2_coarse<I: Instructions>(simd: I, x: I::Floats) -> I::Floats {
    const COEFFICIENTS: [f32; 4] = [0.055_906_426, 0.240_240_99, 0.693_124_2, 1.0];
    let x = simd.maximum(simd.splat(EXP2_LOW), x);
    let n = simd.round(x);
    let t = simd.multiply_add(simd.to_floats(n), simd.splat(-1.0), x);
    let mut value = simd.splat(0.009_582_853);
    for coefficient in COEFFICIENTS {
        value = simd.multiply_add(value, t, simd.splat(coefficient));
    }
    simd.multiply(value, simd.power_of_two(n))
}

/// By Horner's rule, the highest power first.
#[inline(always)]
pub(crate) fn polynomial<I: Instructions>(simd: I, x: I::Floats, coefficients: &[f32]) -> I::Floats {
    let mut value = simd.splat(0.0);
    for coefficient in coefficients {
        value = simd.multiply_add(value, x, simd.splat(*coefficient));
    }
    value
}

/// `tanh x = (1 − e⁻²ˣ)/(1 + e⁻²ˣ)`, to 1e-7.
#[inline(always)]
pub(crate) fn tanh<I: Instructions>(simd: I, x: I::Floats) -> I::Floats {
    let (one, power) = (simd.splat(1.0), exp(simd, simd.multiply(x, simd.splat(-2.0))));
    simd.divide(simd.multiply_add(power, simd.splat(-1.0), one), simd.add(one, power))
}

/// The sum of the lanes, added pairwise.
#[inline(always)]
pub(crate) fn add_lanes<I: Instructions>(simd: I, value: I::Floats) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(value, &mut lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest lane; with a NaN among them, any lane.
#[inline(always)]
pub(crate) fn largest_lane<I: Instructions>(simd: I, value: I::Floats) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(value, &mut lanes);
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            // Not `f32::max`, which treats a NaN in a way that no instruction does.
            lanes[lane] = if lanes[lane] > lanes[lane + width] { lanes[lane] } else { lanes[lane + width] };
        }
        width /= 2;
    }
    lanes[0]
}

/// Up to sixteen values, and `fill` behind the last one.
#[inline(always)]
pub(crate) fn padded<T: Copy>(values: &[T], fill: T) -> [T; LANES] {
    let mut lanes = [fill; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

/// `Σ exp(x − shift)`, the sums of at most 256 in f32, those of them in f64.
pub fn exp_sum(kernel: Kernel, x: &[f32], shift: f32) -> f64 {
    run(kernel, ExpSum { x, shift })
}

struct ExpSum<'a> {
    x: &'a [f32],
    shift: f32,
}

impl Vectorized for ExpSum<'_> {
    type Output = f64;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> f64 {
        let shift = simd.splat(-self.shift);
        let mut total = 0.0;
        for block in self.x.chunks(256) {
            let mut sum = simd.splat(0.0);
            let (vectors, rest) = block.as_chunks::<LANES>();
            for x in vectors {
                sum = simd.add(sum, exp(simd, simd.add(simd.load(x), shift)));
            }
            total += f64::from(add_lanes(simd, sum));
            let mut lanes = [0.0; LANES];
            simd.store(exp(simd, simd.add(simd.load(&padded(rest, 0.0)), shift)), &mut lanes);
            total += lanes[..rest.len()].iter().map(|value| f64::from(*value)).sum::<f64>();
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;

    #[test]
    fn powers_of_two_are_good_for_bf16() {
        struct Powers<'a>(&'a mut [f32; LANES]);
        impl Vectorized for Powers<'_> {
            type Output = ();
            fn call<I: Instructions>(self, simd: I) {
                simd.store(exp2_coarse(simd, simd.load(self.0)), self.0);
            }
        }
        let mut random = Random::new(4);
        for kernel in Kernel::available() {
            let mut largest = 0.0_f64;
            for _ in 0..1000 {
                let x: [f32; LANES] = std::array::from_fn(|_| -30.0 * random.normal().abs());
                let mut powers = x;
                run(kernel, Powers(&mut powers));
                for (x, power) in x.iter().zip(powers) {
                    let expected = f64::from(x.max(EXP2_LOW)).exp2();
                    largest = largest.max((f64::from(power) / expected - 1.0).abs());
                }
            }
            assert!(largest < 2.0_f64.powi(-18), "{kernel}: {largest:e}");
            let mut ends = [0.0; LANES];
            ends[1..4].copy_from_slice(&[f32::NEG_INFINITY, f32::NAN, -1e30]);
            run(kernel, Powers(&mut ends));
            assert_eq!((ends[0], ends[1], ends[3]), (1.0, EXP2_LOW.exp2(), EXP2_LOW.exp2()), "{kernel}");
            assert!(ends[2].is_nan(), "{kernel}");
        }
    }

    #[test]
    fn sums_of_exponentials() {
        let mut random = Random::new(3);
        for kernel in Kernel::available() {
            for length in [0, 1, 15, 16, 17, 255, 256, 257, 1000] {
                let x: Vec<f32> = (0..length).map(|_| 3.0 * random.normal()).collect();
                let expected: f64 = x.iter().map(|x| (f64::from(*x) - 2.0).exp()).sum();
                let found = exp_sum(kernel, &x, 2.0);
                assert!(
                    (found - expected).abs() <= 1e-6 * expected,
                    "{kernel} {length}: {found}, {expected}"
                );
            }
            assert!(exp_sum(kernel, &[1.0, f32::NAN], 0.0).is_nan());
        }
    }
}
