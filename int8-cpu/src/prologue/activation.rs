//! Activations, and gates: an activation times another factor.

use crate::kernel::Kernel;
use crate::simd::functions::{exp, padded, polynomial, tanh};
use crate::simd::{Instructions, LANES, Vectorized, run};

/// A nonlinear function between two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Function {
    /// `max(x, 0)`
    Relu,
    /// `x·Φ(x)` with the error function.
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715x³)))`
    GeluTanh,
    /// `x·σ(x)`
    Silu,
    /// `max(x, 0)²`
    ReluSquared,
    /// `min(x·Φ(x), 10)`
    GeluClipped,
    /// `x·σ(1.702x)`
    QuickGelu,
    /// `tanh x`
    Tanh,
    /// `σ(x) = 1/(1 + e⁻ˣ)`
    Sigmoid,
    /// `x·tanh(ln(1 + eˣ))`
    Mish,
}

/// `out = f(x)`, as many as both have.
pub fn activate(kernel: Kernel, function: Function, x: &[f32], out: &mut [f32]) {
    run(kernel, Activate { function, x, factors: None, out });
}

/// `out = f(x)·factors`, as many as all have.
pub fn gate(kernel: Kernel, function: Function, x: &[f32], factors: &[f32], out: &mut [f32]) {
    run(kernel, Activate { function, x, factors: Some(factors), out });
}

/// `out = f(x)`, or `f(x)·factors`.
pub(crate) struct Activate<'a> {
    pub(crate) function: Function,
    pub(crate) x: &'a [f32],
    pub(crate) factors: Option<&'a [f32]>,
    pub(crate) out: &'a mut [f32],
}

impl Vectorized for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        match self.function {
            Function::Relu => self.each(simd, Relu),
            Function::Gelu => self.each(simd, Gelu),
            Function::GeluTanh => self.each(simd, GeluTanh),
            Function::Silu => self.each(simd, Silu),
            Function::ReluSquared => self.each(simd, ReluSquared),
            Function::GeluClipped => self.each(simd, GeluClipped),
            Function::QuickGelu => self.each(simd, QuickGelu),
            Function::Tanh => self.each(simd, Tanh),
            Function::Sigmoid => self.each(simd, Sigmoid),
            Function::Mish => self.each(simd, Mish),
        }
    }
}

impl Activate<'_> {
    #[inline(always)]
    fn each<I: Instructions>(self, simd: I, function: impl Unary) {
        let Self { x, factors, out, .. } = self;
        let length = x.len().min(out.len()).min(factors.map_or(usize::MAX, <[f32]>::len));
        let (vectors, rest) = x[..length].as_chunks::<LANES>();
        let (targets, last_target) = out[..length].as_chunks_mut::<LANES>();
        for (i, (x, target)) in vectors.iter().zip(targets).enumerate() {
            let value = function.at(simd, simd.load(x));
            match factors {
                Some(factors) => {
                    simd.store(simd.multiply(value, simd.load(&factors.as_chunks().0[i])), target);
                }
                None => simd.store(value, target),
            }
        }
        if !rest.is_empty() {
            let last = factors.map_or([1.0; LANES], |f| padded(f[..length].as_chunks::<LANES>().1, 0.0));
            let value = function.at(simd, simd.load(&padded(rest, 0.0)));
            let mut lanes = [0.0; LANES];
            simd.store(simd.multiply(value, simd.load(&last)), &mut lanes);
            last_target.copy_from_slice(&lanes[..last_target.len()]);
        }
    }
}

/// A function of one variable.
trait Unary: Copy {
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats;
}

/// `max(x, 0)`
#[derive(Clone, Copy)]
struct Relu;

impl Unary for Relu {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        simd.maximum(simd.splat(0.0), x)
    }
}

/// `x·σ(x) = x/(1 + e⁻ˣ)`
#[derive(Clone, Copy)]
struct Silu;

impl Unary for Silu {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        let power = exp(simd, simd.multiply(x, simd.splat(-1.0)));
        simd.divide(x, simd.add(simd.splat(1.0), power))
    }
}

/// `x/2·(1 + tanh u) = x/(1 + e⁻²ᵘ)` with `u = √(2/π)(x + 0.044715x³)`
#[derive(Clone, Copy)]
struct GeluTanh;

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
struct Gelu;

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

/// `max(x, 0)²`
#[derive(Clone, Copy)]
struct ReluSquared;

impl Unary for ReluSquared {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        let positive = simd.maximum(simd.splat(0.0), x);
        simd.multiply(positive, positive)
    }
}

/// `min(x·Φ(x), 10)`
#[derive(Clone, Copy)]
struct GeluClipped;

impl Unary for GeluClipped {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        simd.minimum(simd.splat(10.0), Gelu.at(simd, x))
    }
}

/// `x·σ(1.702x) = x/(1 + e^(−1.702x))`
#[derive(Clone, Copy)]
struct QuickGelu;

impl Unary for QuickGelu {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        let power = exp(simd, simd.multiply(x, simd.splat(-1.702)));
        simd.divide(x, simd.add(simd.splat(1.0), power))
    }
}

/// `tanh x`
#[derive(Clone, Copy)]
struct Tanh;

impl Unary for Tanh {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        tanh(simd, x)
    }
}

/// `1/(1 + e⁻ˣ)`
#[derive(Clone, Copy)]
struct Sigmoid;

impl Unary for Sigmoid {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        let (one, power) = (simd.splat(1.0), exp(simd, simd.multiply(x, simd.splat(-1.0))));
        simd.divide(one, simd.add(one, power))
    }
}

/// `x·tanh(ln(1 + eˣ)) = x·n/(n + 2)` with `n = eˣ(eˣ + 2)`; from x = 20 on the quotient is 1 in f32.
#[derive(Clone, Copy)]
struct Mish;

impl Unary for Mish {
    #[inline(always)]
    fn at<I: Instructions>(self, simd: I, x: I::Floats) -> I::Floats {
        let (two, power) = (simd.splat(2.0), exp(simd, simd.minimum(simd.splat(20.0), x)));
        let n = simd.multiply(power, simd.add(power, two));
        simd.multiply(x, simd.divide(n, simd.add(n, two)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> Vec<f32> {
        let mut points: Vec<f32> = (-1200_i16..=1200).map(|i| f32::from(i) / 100.0).collect();
        points.extend([1e-30, -1e-30, -86.0, 87.0, 40.0, -40.0, 0.0, -0.0]);
        points
    }

    /// Each function against its definition in f64, for every kernel and with a rest behind the last vector.
    #[test]
    fn functions_are_what_they_say() {
        let points = points();
        for kernel in Kernel::available() {
            let check = |name: &str, function: Function, expected: &dyn Fn(f64) -> f64, bound: f64| {
                let (mut found, mut gated) = (vec![0.0; points.len()], vec![0.0; points.len()]);
                activate(kernel, function, &points, &mut found);
                gate(kernel, function, &points, &vec![2.0; points.len()], &mut gated);
                for ((x, found), gated) in points.iter().zip(found).zip(gated) {
                    let (x, y) = (f64::from(*x), f64::from(found));
                    let error = (y - expected(x)).abs();
                    assert!(
                        error <= if bound < 0.0 { -bound } else { bound * x.abs().max(1e-30) },
                        "{kernel} {name}({x}) = {y}, {}",
                        expected(x)
                    );
                    assert_eq!(gated, 2.0 * found);
                }
            };
            check("relu", Function::Relu, &|x| x.max(0.0), 0.0);
            check("silu", Function::Silu, &|x| x / (1.0 + (-x).exp()), 3e-7);
            let tanh =
                |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044715 * x * x * x)).tanh());
            check("gelu_tanh", Function::GeluTanh, &tanh, 4e-7);
            check("gelu", Function::Gelu, &|x| x * normal_distribution(x), 3e-7);
            check("relu_squared", Function::ReluSquared, &|x| x.max(0.0) * x.max(0.0), 1e-6);
            check("gelu_clipped", Function::GeluClipped, &|x| (x * normal_distribution(x)).min(10.0), 3e-7);
            check("quick_gelu", Function::QuickGelu, &|x| x / (1.0 + (-1.702 * x).exp()), 5e-7);
            check("mish", Function::Mish, &|x| x * x.exp().ln_1p().tanh(), 5e-7);
            // A negative bound is absolute: these two are not proportional to x.
            check("tanh", Function::Tanh, &f64::tanh, -2e-7);
            check("sigmoid", Function::Sigmoid, &|x| 1.0 / (1.0 + (-x).exp()), -2e-7);
            for function in [
                Function::Relu,
                Function::Gelu,
                Function::GeluTanh,
                Function::Silu,
                Function::ReluSquared,
                Function::GeluClipped,
                Function::QuickGelu,
                Function::Tanh,
                Function::Sigmoid,
                Function::Mish,
            ] {
                let mut found = [0.0];
                activate(kernel, function, &[f32::NAN], &mut found);
                assert!(found[0].is_nan(), "{kernel} {function:?}");
            }
        }
    }

    /// Φ by its series (Abramowitz and Stegun 26.2.10) near 0, by the continued fraction 26.2.14 beyond.
    fn normal_distribution(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        if x.abs() < 3.0 {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while term.abs() > 1e-17 {
                term *= x * x / (2.0 * n + 1.0);
                sum += term;
                n += 1.0;
            }
            return 0.5 + density * sum;
        }
        let mut fraction = x.abs();
        for n in (1..=60_u32).rev() {
            fraction = x.abs() + f64::from(n) / fraction;
        }
        let tail = density / fraction;
        if x < 0.0 { tail } else { 1.0 - tail }
    }
}
