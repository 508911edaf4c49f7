//! Elementary functions on sixteen lanes. A NaN stays one.

use crate::tile::{Instructions, LANES};

/// A function of one variable.
pub(super) trait Unary: Copy {
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats;
}

/// Below, `exp` would leave the normal numbers; it returns its value here, 1.2e-38.
const EXP_LOW: f32 = -87.336_54;
/// Above, 2ⁿ would need an exponent that f32 does not have; `exp` returns its value here, 1.7e38.
const EXP_HIGH: f32 = 88.02;

/// ln 2 in two parts: the upper one has nine bits, so that its product with an exponent is exact.
const LN2_UPPER: f32 = 0.693_359_4;
const LN2_LOWER: f32 = -2.121_944_4e-4;

/// `eˣ` to 2 units in the last place, for x in [−87.3, 88.0]; beyond, the value at the nearer end.
///
/// `x = n·ln 2 + r` with `|r| ≤ ln 2/2`, and `eʳ` by its Taylor polynomial: the first term left out is `r⁸/8! < 5.2e-9`.
#[inline(always)]
pub(super) fn exp<I: Instructions>(simd: I, x: I::Floats) -> I::Floats {
    const COEFFICIENTS: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let x = simd.minimum(simd.splat(EXP_HIGH), simd.maximum(simd.splat(EXP_LOW), x));
    let n = simd.round(simd.multiply(x, simd.splat(std::f32::consts::LOG2_E)));
    let exponent = simd.to_floats(n);
    let r = simd.multiply_add(exponent, simd.splat(-LN2_UPPER), x);
    let r = simd.multiply_add(exponent, simd.splat(-LN2_LOWER), r);
    simd.multiply(polynomial(simd, r, &COEFFICIENTS), simd.power_of_two(n))
}

/// By Horner's rule, the highest power first.
#[inline(always)]
fn polynomial<I: Instructions>(simd: I, x: I::Floats, coefficients: &[f32]) -> I::Floats {
    let mut value = simd.splat(0.0);
    for coefficient in coefficients {
        value = simd.multiply_add(value, x, simd.splat(*coefficient));
    }
    value
}

/// `tanh x = (1 − e⁻²ˣ)/(1 + e⁻²ˣ)`, to 1e-7.
#[inline(always)]
pub(super) fn tanh<I: Instructions>(simd: I, x: I::Floats) -> I::Floats {
    let (one, power) = (simd.splat(1.0), exp(simd, simd.multiply(x, simd.splat(-2.0))));
    simd.divide(simd.multiply_add(power, simd.splat(-1.0), one), simd.add(one, power))
}

/// `max(x, 0)`
#[derive(Clone, Copy)]
pub(super) struct Relu;

impl Unary for Relu {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        simd.maximum(simd.splat(0.0), x)
    }
}

/// `x·σ(x) = x/(1 + e⁻ˣ)`
#[derive(Clone, Copy)]
pub(super) struct Silu;

impl Unary for Silu {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        let power = exp(simd, simd.multiply(x, simd.splat(-1.0)));
        simd.divide(x, simd.add(simd.splat(1.0), power))
    }
}

/// `x/2·(1 + tanh u) = x/(1 + e⁻²ᵘ)` with `u = √(2/π)(x + 0.044715x³)`
#[derive(Clone, Copy)]
pub(super) struct GeluTanh;

impl Unary for GeluTanh {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        // −2·√(2/π)
        const SCALE: f32 = -1.595_769;
        let square = simd.multiply(x, x);
        let factor = simd.multiply_add(square, simd.splat(SCALE * 0.044_715), simd.splat(SCALE));
        let power = exp(simd, simd.multiply(x, factor));
        simd.divide(x, simd.add(simd.splat(1.0), power))
    }
}

/// `x·Φ(x)`, Φ the distribution function of the normal distribution, which is known to 2e-7.
///
/// `Φ(−|x|) = ½·erfc(z)` with `z = |x|/√2`, and `erfc(z) = e^(−z²)·t·P(t)` with `t = 1/(1 + 0.3z)`: the form of
/// Abramowitz and Stegun 7.1.26 with a polynomial of degree 8, fitted to a relative error of 2e-8 on z in [0, 10].
#[derive(Clone, Copy)]
pub(super) struct Gelu;

impl Unary for Gelu {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        const STEP: f32 = 0.3;
        const COEFFICIENTS: [f32; 9] = [
            -0.129_522_76,
            0.485_562_47,
            -0.512_276_6,
            0.547_718_3,
            -0.094_649_55,
            0.214_925_57,
            0.148_339_3,
            0.170_715_21,
            0.169_188_01,
        ];
        let one = simd.splat(1.0);
        let magnitude = simd.maximum(simd.multiply(x, simd.splat(-1.0)), x);
        let z = simd.multiply(magnitude, simd.splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = simd.divide(one, simd.multiply_add(z, simd.splat(STEP), one));
        let power = exp(simd, simd.multiply(simd.multiply(x, x), simd.splat(-0.5)));
        let tail = simd.multiply(simd.multiply(polynomial(simd, t, &COEFFICIENTS), t), power);
        // x·Φ(x) is max(x, 0) − |x|·Φ(−|x|) on both sides of 0.
        let missing = simd.multiply(magnitude, simd.multiply(tail, simd.splat(-0.5)));
        simd.add(simd.maximum(simd.splat(0.0), x), missing)
    }
}

/// The sum of the lanes, added pairwise.
#[inline(always)]
pub(super) fn add_lanes<I: Instructions>(simd: I, value: I::Floats) -> f32 {
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

/// Up to sixteen values, and `fill` behind the last one.
#[inline(always)]
pub(super) fn padded<T: Copy>(values: &[T], fill: T) -> [T; LANES] {
    let mut lanes = [fill; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}
