//! Normalisations of a row.

use crate::convert;
use crate::kernel::Kernel;
use crate::simd::functions::{add_lanes, padded};
use crate::simd::{Instructions, LANES, Vectorized, run};

/// Vectors that a reduction keeps apart: enough independent chains to hide the latency of an addition.
const CHAINS: usize = 4;

/// `x = x·gain/√(mean(x²) + eps)`
///
/// # Panics
/// If `gain` is shorter than `x`.
pub fn rms_norm(kernel: Kernel, x: &mut [f32], gain: &[f32], eps: f32) {
    let gain = &gain[..x.len()];
    run(kernel, NormalizeInPlace { x, gain, bias: None, eps, centred: false });
}

/// `x = (x − mean(x))·gain/√(variance(x) + eps) + bias`
///
/// # Panics
/// If `gain` or `bias` is shorter than `x`.
pub fn layer_norm(kernel: Kernel, x: &mut [f32], gain: &[f32], bias: Option<&[f32]>, eps: f32) {
    let (gain, bias) = (&gain[..x.len()], bias.map(|bias| &bias[..x.len()]));
    run(kernel, NormalizeInPlace { x, gain, bias, eps, centred: true });
}

/// A row normalised into `out`, all as long as `x`.
pub(crate) struct Normalize<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) gain: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) eps: f32,
    /// Whether the mean is subtracted.
    pub(crate) centred: bool,
    pub(crate) out: &'a mut [f32],
}

impl Vectorized for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { x, gain, bias, eps, centred, out } = self;
        let moments = Moments::new(simd, x, eps, centred);
        let (vectors, rest) = x.as_chunks::<LANES>();
        let (targets, last) = out.as_chunks_mut::<LANES>();
        for (i, ((x, gain), to)) in vectors.iter().zip(gain.as_chunks::<LANES>().0).zip(targets).enumerate() {
            let value = moments.normalized(simd, x, gain);
            match bias {
                Some(bias) => simd.store(simd.add(value, simd.load(&bias.as_chunks().0[i])), to),
                None => simd.store(value, to),
            }
        }
        moments.last(simd, rest, gain, bias, last);
    }
}

/// The same in place.
struct NormalizeInPlace<'a> {
    x: &'a mut [f32],
    gain: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    centred: bool,
}

impl Vectorized for NormalizeInPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { x, gain, bias, eps, centred } = self;
        let moments = Moments::new(simd, x, eps, centred);
        let (vectors, rest) = x.as_chunks_mut::<LANES>();
        for (i, (x, gain)) in vectors.iter_mut().zip(gain.as_chunks::<LANES>().0).enumerate() {
            let value = moments.normalized(simd, x, gain);
            match bias {
                Some(bias) => simd.store(simd.add(value, simd.load(&bias.as_chunks().0[i])), x),
                None => simd.store(value, x),
            }
        }
        let before = padded(rest, 0.0);
        moments.last(simd, &before[..rest.len()], gain, bias, rest);
    }
}

/// `−mean` and `1/√(variance + eps)` of a row.
struct Moments<I: Instructions> {
    shift: I::Floats,
    inverse: I::Floats,
}

impl<I: Instructions> Moments<I> {
    #[inline(always)]
    fn new(simd: I, x: &[f32], eps: f32, centred: bool) -> Self {
        let count = convert::real(x.len());
        let mean = if centred { sum(simd, x) / count } else { 0.0 };
        let variance = squares(simd, x, mean) / count;
        Self { shift: simd.splat(-mean), inverse: simd.splat(1.0 / (variance + eps).sqrt()) }
    }

    #[inline(always)]
    fn normalized(&self, simd: I, x: &[f32; LANES], gain: &[f32; LANES]) -> I::Floats {
        let centred = simd.add(simd.load(x), self.shift);
        simd.multiply(simd.multiply(centred, self.inverse), simd.load(gain))
    }

    /// The values behind the last whole vector of a row; gain and bias are those of the whole row.
    #[inline(always)]
    fn last(&self, simd: I, x: &[f32], gain: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        if x.is_empty() {
            return;
        }
        let rest = |values: &[f32]| padded(values.as_chunks::<LANES>().1, 0.0);
        let value = self.normalized(simd, &padded(x, 0.0), &rest(gain));
        let bias = bias.map_or([0.0; LANES], rest);
        let mut lanes = [0.0; LANES];
        simd.store(simd.add(value, simd.load(&bias)), &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
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

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;

    use super::*;

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
