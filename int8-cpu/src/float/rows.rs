//! Row by row: normalisations, activations, sums of exponentials.

use super::functions::{Gelu, GeluTanh, Relu, Silu, Unary, add_lanes, exp, padded};
use super::run;
use crate::convert;
use crate::kernel::Kernel;
use crate::tile::{Instructions, LANES, Vectorized};

/// Vectors that a reduction keeps apart: enough independent chains to hide the latency of an addition.
const CHAINS: usize = 4;

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
}

/// `x = x·gain/√(mean(x²) + eps)`
///
/// # Panics
/// If `gain` is shorter than `x`.
pub fn rms_norm(kernel: Kernel, x: &mut [f32], gain: &[f32], eps: f32) {
    let gain = &gain[..x.len()];
    run(kernel, Normalize { x, gain, bias: None, eps, centred: false });
}

/// `x = (x − mean(x))·gain/√(variance(x) + eps) + bias`
///
/// # Panics
/// If `gain` or `bias` is shorter than `x`.
pub fn layer_norm(kernel: Kernel, x: &mut [f32], gain: &[f32], bias: Option<&[f32]>, eps: f32) {
    let (gain, bias) = (&gain[..x.len()], bias.map(|bias| &bias[..x.len()]));
    run(kernel, Normalize { x, gain, bias, eps, centred: true });
}

/// `out = f(x)`, as many as both have.
pub fn activate(kernel: Kernel, function: Function, x: &[f32], out: &mut [f32]) {
    run(kernel, Activate { function, x, factors: None, out });
}

/// `out = f(x)·factors`, as many as all have.
pub fn gate(kernel: Kernel, function: Function, x: &[f32], factors: &[f32], out: &mut [f32]) {
    run(kernel, Activate { function, x, factors: Some(factors), out });
}

/// `Σ exp(x − shift)`, the sums of at most 256 in f32, those of them in f64.
pub fn exp_sum(kernel: Kernel, x: &[f32], shift: f32) -> f64 {
    run(kernel, ExpSum { x, shift })
}

struct Normalize<'a> {
    x: &'a mut [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
}

impl Vectorized for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { x, gain, bias, eps, centred } = self;
        let count = convert::real(x.len());
        let mean = if centred { sum(simd, x) / count } else { 0.0 };
        let variance = squares(simd, x, mean) / count;
        let inverse = simd.splat(1.0 / (variance + eps).sqrt());
        let shift = simd.splat(-mean);
        let (vectors, rest) = x.as_chunks_mut::<LANES>();
        let (gains, last_gain) = gain.as_chunks::<LANES>();
        for (i, (x, gain)) in vectors.iter_mut().zip(gains).enumerate() {
            let value = simd.multiply(simd.multiply(simd.add(simd.load(x), shift), inverse), simd.load(gain));
            match bias {
                Some(bias) => simd.store(simd.add(value, simd.load(&bias.as_chunks().0[i])), x),
                None => simd.store(value, x),
            }
        }
        if !rest.is_empty() {
            let values = simd.add(simd.load(&padded(rest, 0.0)), shift);
            let value = simd.multiply(simd.multiply(values, inverse), simd.load(&padded(last_gain, 0.0)));
            let last_bias = bias.map_or([0.0; LANES], |bias| padded(bias.as_chunks::<LANES>().1, 0.0));
            let mut lanes = [0.0; LANES];
            simd.store(simd.add(value, simd.load(&last_bias)), &mut lanes);
            rest.copy_from_slice(&lanes[..rest.len()]);
        }
    }
}

#[inline(always)]
fn sum<I: Instructions>(simd: I, x: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.0); CHAINS];
    let (blocks, rest) = x.as_chunks::<{ CHAINS * LANES }>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block.as_chunks::<LANES>().0) {
            *sum = simd.add(*sum, simd.load(x));
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(LANES)) {
        *sum = simd.add(*sum, simd.load(&padded(x, 0.0)));
    }
    add_chains(simd, sums)
}

/// `Σ (x − mean)²`
#[inline(always)]
fn squares<I: Instructions>(simd: I, x: &[f32], mean: f32) -> f32 {
    let shift = simd.splat(-mean);
    let mut sums = [simd.splat(0.0); CHAINS];
    let (blocks, rest) = x.as_chunks::<{ CHAINS * LANES }>();
    for block in blocks {
        for (sum, x) in sums.iter_mut().zip(block.as_chunks::<LANES>().0) {
            let x = simd.add(simd.load(x), shift);
            *sum = simd.multiply_add(x, x, *sum);
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest.chunks(LANES)) {
        let x = simd.add(simd.load(&padded(x, mean)), shift);
        *sum = simd.multiply_add(x, x, *sum);
    }
    add_chains(simd, sums)
}

#[inline(always)]
fn add_chains<I: Instructions>(simd: I, sums: [I::Floats; CHAINS]) -> f32 {
    let [a, b, c, d] = sums;
    add_lanes(simd, simd.add(simd.add(a, b), simd.add(c, d)))
}

struct Activate<'a> {
    function: Function,
    x: &'a [f32],
    factors: Option<&'a [f32]>,
    out: &'a mut [f32],
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
                        error <= bound * x.abs().max(1e-30),
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
            for function in [Function::Relu, Function::Gelu, Function::GeluTanh, Function::Silu] {
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

    #[test]
    fn normalisations_are_their_formulas() {
        let mut random = Random::new(4);
        for kernel in Kernel::available() {
            for length in [1, 15, 16, 17, 64, 100] {
                let mut draw = || -> Vec<f32> { (0..length).map(|_| 1.0 + random.normal()).collect() };
                let (x, gain, bias) = (draw(), draw(), draw());
                let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
                let count = convert::count(length);
                let mean = wide(&x).iter().sum::<f64>() / count;
                let square = |shift: f64| wide(&x).iter().map(|x| (x - shift).powi(2)).sum::<f64>() / count;
                let (mut rms, mut layer) = (x.clone(), x.clone());
                rms_norm(kernel, &mut rms, &gain, 1e-5);
                layer_norm(kernel, &mut layer, &gain, Some(&bias), 1e-5);
                let (rms_root, layer_root) = ((square(0.0) + 1e-5).sqrt(), (square(mean) + 1e-5).sqrt());
                for i in 0..length {
                    let [x, gain, bias] = [x[i], gain[i], bias[i]].map(f64::from);
                    let expected = [x * gain / rms_root, (x - mean) * gain / layer_root + bias];
                    for (found, expected) in [rms[i], layer[i]].into_iter().zip(expected) {
                        let error = (f64::from(found) - expected).abs();
                        // Of one value, the difference to the mean is rounding noise over √eps.
                        assert!(
                            error <= 1e-5 * expected.abs().max(1.0),
                            "{kernel} {length}: {found}, {expected}"
                        );
                    }
                }
            }
        }
    }
}
