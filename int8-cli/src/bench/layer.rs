//! The integer product and the complete layer, timed against the same in 16 and 32 bit.

use std::hint::black_box;

use half::bf16;
use int8_core::corpus::Random;
use int8_core::quantize::group_count;
use int8_core::{Config, Element, Encoding, Granularity, Scheme};
use int8_cpu::{
    ArenaSlice, Error, Kernel, OutlierWeights, PackedWeight, Store, int8_product_into, linear, probe,
};
use ndarray::{Array1, Array2, ArrayViewMut2};

use super::race::{Contestant, Effort, race};
use crate::convert::real;

/// Peak and bandwidth of the machine, measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    /// The kernel whose instruction was probed.
    pub(crate) kernel: Kernel,
    /// Threads of the pool.
    pub(crate) threads: usize,
    /// Multiply-adds per second of all threads, where the kernel has one instruction that can be probed. A machine with other
    /// work, or a virtual one, may not reach it later: see [`Times::peak`].
    pub(crate) peak: Option<f64>,
    /// Bytes per second that all threads read together.
    pub(crate) bandwidth: f64,
}

impl Machine {
    /// Takes a second or two.
    pub(crate) fn probe(kernel: Kernel) -> Self {
        let threads = rayon::current_num_threads();
        let peak = probe::peak_per_thread(kernel).map(|peak| peak * real(threads));
        Self { kernel, threads, peak, bandwidth: probe::read_bandwidth() }
    }
}

/// `y [rows, outputs] = x [rows, inner] · Wᵀ`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// M.
    pub(crate) rows: usize,
    /// N.
    pub(crate) outputs: usize,
    /// K.
    pub(crate) inner: usize,
}

impl Shape {
    /// Multiply-adds.
    pub(crate) fn work(&self) -> f64 {
        real(self.rows) * self.weight_bytes()
    }

    /// Bytes of the int8 weight.
    pub(crate) fn weight_bytes(&self) -> f64 {
        real(self.outputs) * real(self.inner)
    }
}

/// Seconds of one call each.
#[derive(Debug, Clone)]
pub(crate) struct Times {
    /// The rounds that count, of the contestant with the fewest, and the share of all that do: see [`Timed`](super::race::Timed).
    #[allow(dead_code, reason = "the bench `layer` reports it")]
    pub(crate) rounds: usize,
    /// See `rounds`.
    #[allow(dead_code, reason = "the bench `layer` reports it")]
    pub(crate) counted: f64,
    /// Multiply-adds per second of all threads with the kernel's instruction on registers alone ([`probe::dot_products`]), in turns
    /// with the others: the peak in the same rounds.
    pub(crate) peak: Option<f64>,
    /// The integer product: i8 in, i32 out.
    pub(crate) raw: f64,
    /// The complete layer, bf16 in and out.
    pub(crate) layer: f64,
    /// f32 in and out, bf16 weights: [`int8_cpu::float::product`].
    pub(crate) bf16: f64,
    /// f32 in and out, f32 weights.
    pub(crate) f32: f64,
    /// The contestants of the caller.
    #[allow(dead_code, reason = "the bench `layer` reports them")]
    pub(crate) others: Vec<f64>,
}

/// The operands of one shape.
#[derive(Debug)]
pub(crate) struct Problem {
    /// The shape.
    pub(crate) shape: Shape,
    /// Codes of x, i8 `[rows, inner]`.
    pub(crate) a: Array2<i8>,
    /// Codes of W, i8 `[outputs, inner]`.
    pub(crate) w: Array2<i8>,
    /// x with outlier columns, bf16 `[rows, inner]`.
    pub(crate) x: Array2<bf16>,
}

impl Problem {
    /// Random operands, with so many outlier columns.
    pub(crate) fn new(shape: Shape, outlier_columns: usize) -> Self {
        let mut random = Random::new(1);
        let w = codes(&mut random, shape.outputs, shape.inner);
        let a = codes(&mut random, shape.rows, shape.inner);
        let x = activations(&mut random, shape.rows, shape.inner, outlier_columns);
        Self { shape, a, w, x }
    }

    /// Copies of the packed weight to rotate through, with the quantization parameters of `config`.
    ///
    /// # Errors
    /// As [`PackedWeight::from_codes`].
    pub(crate) fn weights(
        &self,
        kernel: Kernel,
        config: &Config,
        effort: &Effort,
    ) -> Result<Vec<PackedWeight>, Error> {
        let in_groups = config.weight_granularity == Granularity::Group;
        let groups = if in_groups { group_count(self.shape.inner) } else { 1 };
        let scales = Array1::from_elem(self.shape.outputs * groups, 0.5);
        let zero_point = if config.weight_encoding == Encoding::Zeropoint { 3 } else { 0 };
        let zero_points = Array1::from_elem(scales.len(), zero_point);
        (0..effort.copies(self.w.len()))
            .map(|_| PackedWeight::from_codes(kernel, self.w.view(), scales.view(), Some(zero_points.view())))
            .collect()
    }

    /// Product and layer with the paper's settings, the same in 16 and 32 bit, and `others`, in one run.
    ///
    /// # Errors
    /// When the shape is one that no layer has.
    ///
    /// # Panics
    /// If the timed product is wrong.
    pub(crate) fn measure(
        &self,
        kernel: Kernel,
        effort: &Effort,
        others: Vec<Contestant<'_>>,
    ) -> Result<Times, Error> {
        // Multiply-adds: 40 µs of AMX, 400 µs of VNNI.
        const LEAST_WORK: usize = 1 << 27;
        let Shape { rows, outputs, inner } = self.shape;
        let config = Scheme::LlmInt8Absmax.config();
        let weights = self.weights(kernel, &config, effort)?;
        // As many bytes of each type.
        let share = |times: usize| weights.len().div_ceil(times);
        let w_bf16: Vec<Array2<bf16>> =
            (0..share(2)).map(|_| self.w.mapv(|code| bf16::from_f32(f32::from(code)))).collect();
        let w_f32: Vec<Array2<f32>> = (0..share(4)).map(|_| self.w.mapv(f32::from)).collect();
        let x = self.x.mapv(bf16::to_f32);
        // All results begin on a cache line: the alignment that `malloc` happens to choose changes times by a tenth.
        let (mut raw, mut y) =
            (ArenaSlice::zeroed(rows * outputs), ArenaSlice::<bf16>::zeroed(rows * outputs));
        let (mut y_bf16, mut y_f32) =
            (ArenaSlice::zeroed(rows * outputs), ArenaSlice::zeroed(rows * outputs));
        let mut raw = matrix(&mut raw, self.shape);
        let (mut y, mut y_bf16) = (matrix(&mut y, self.shape), matrix(&mut y_bf16, self.shape));
        let mut y_f32 = matrix(&mut y_f32, self.shape);
        // Once outside the timing, for the errors.
        int8_product_into(self.a.view(), &weights[0], raw.view_mut())?;
        // Another copy than the product has just read, which a large cache still holds.
        let mut layer = |i: usize| {
            let i = i + weights.len() / 2;
            let (weight, outliers) = (&weights[i % weights.len()], OutlierWeights::Dequantized);
            linear(self.x.view(), weight, outliers, None, &config, Store::Overwrite, y.view_mut())
        };
        layer(0)?;
        // As much as the product, but enough that distributing it to the threads is a small part.
        let share = (rows * outputs * inner / rayon::current_num_threads()).max(LEAST_WORK);
        let mut work = None;
        let mut contestants: Vec<Contestant<'_>> = vec![
            Box::new(|_| {
                work = rayon::broadcast(|_| probe::dot_products(kernel, share)).into_iter().sum();
            }),
            Box::new(|i| {
                let _ = int8_product_into(self.a.view(), &weights[i % weights.len()], raw.view_mut());
            }),
            Box::new(|i| {
                let _ = layer(i);
            }),
            Box::new(|i| {
                let w = w_bf16[i % w_bf16.len()].view();
                let _ =
                    int8_cpu::float::product(kernel, x.view(), w, None, Store::Overwrite, y_bf16.view_mut());
            }),
            Box::new(|i| {
                let w = w_f32[i % w_f32.len()].view();
                let _ =
                    int8_cpu::float::product(kernel, x.view(), w, None, Store::Overwrite, y_f32.view_mut());
            }),
        ];
        contestants.extend(others);
        let times = race(&mut contestants, effort);
        drop(contestants);
        black_box((&y, &y_bf16, &y_f32));
        if let (Some(found), Some(a), Some(w)) =
            (raw.first(), self.a.rows().into_iter().next(), self.w.rows().into_iter().next())
        {
            let expected: i32 = a.iter().zip(w).map(|(a, w)| i32::from(*a) * i32::from(*w)).sum();
            assert_eq!(*found, expected, "the timed product is wrong");
        }
        let rounds = times.iter().map(|timed| timed.rounds).min().unwrap_or(0);
        let counted = times.iter().map(|timed| timed.counted).sum::<f64>() / real(times.len());
        let seconds: Vec<f64> = times.iter().map(|timed| timed.seconds).collect();
        let [peak, raw, layer, bf16, f32, ref others @ ..] = seconds[..] else {
            unreachable!("as many times as contestants")
        };
        let peak = work.map(|work: usize| real(work) / peak);
        Ok(Times { rounds, counted, peak, raw, layer, bf16, f32, others: others.to_vec() })
    }
}

/// Time of the layer over time of the raw product, at each of these shares of outlier columns.
///
/// # Errors
/// When the shape is one that no layer has.
pub(crate) fn outlier_costs(
    kernel: Kernel,
    shape: Shape,
    config: &Config,
    per_mille: &[usize],
    effort: &Effort,
) -> Result<Vec<f64>, Error> {
    let problem = Problem::new(shape, 0);
    let weights = problem.weights(kernel, config, effort)?;
    let (weights, (rows, outputs)) = (&weights, (shape.rows, shape.outputs));
    let mut raw = ArenaSlice::zeroed(rows * outputs);
    let mut raw = matrix(&mut raw, shape);
    int8_product_into(problem.a.view(), &weights[0], raw.view_mut())?;
    let mut contestants: Vec<Contestant<'_>> = vec![Box::new(|i| {
        let _ = int8_product_into(problem.a.view(), &weights[i % weights.len()], raw.view_mut());
    })];
    let mut random = Random::new(2);
    for (place, share) in (1..).zip(per_mille) {
        // Each reads a copy that no other contestant has just read.
        let ahead = place * weights.len() / (per_mille.len() + 1);
        let columns = (share * shape.inner + 500) / 1000;
        let x = activations::<bf16>(&mut random, rows, shape.inner, columns);
        let mut y = ArenaSlice::<bf16>::zeroed(rows * outputs);
        contestants.push(Box::new(move |i| {
            let i = i + ahead;
            let (weight, outliers) = (&weights[i % weights.len()], OutlierWeights::Dequantized);
            let y = matrix(&mut y, shape);
            let _ = linear(x.view(), weight, outliers, None, config, Store::Overwrite, y);
        }));
    }
    let times = race(&mut contestants, effort);
    Ok(times[1..].iter().map(|timed| timed.seconds / times[0].seconds).collect())
}

/// The results of one shape.
fn matrix<T>(values: &mut [T], shape: Shape) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((shape.rows, shape.outputs), values).expect("as many values as results")
}

/// Random codes in [−127, 127]: all bit patterns but −128.
pub(crate) fn codes(random: &mut Random, rows: usize, columns: usize) -> Array2<i8> {
    Array2::from_shape_simple_fn((rows, columns), || random.bits().to_le_bytes()[0].cast_signed().max(-127))
}

/// Roughly normal activations with so many one-sided outlier columns. A table is repeated: values, not quality, matter
/// here.
pub(crate) fn activations<T: Element>(
    random: &mut Random,
    rows: usize,
    columns: usize,
    outliers: usize,
) -> Array2<T> {
    let table: Vec<f32> = (0..4093).map(|_| random.normal()).collect();
    let mut at = 0;
    let mut x = Array2::from_shape_simple_fn((rows, columns), || {
        at = (at + 1) % table.len();
        T::from_f32(table[at])
    });
    for o in 0..outliers {
        x.column_mut(o * columns / outliers + columns / outliers / 2).fill(T::from_f32(-9.5));
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_can_be_measured() {
        let shape = Shape { rows: 3, outputs: 40, inner: 70 };
        for kernel in Kernel::available() {
            let mut called = 0;
            let others: Vec<Contestant<'_>> = vec![Box::new(|_| called += 1)];
            let times = Problem::new(shape, 2).measure(kernel, &Effort::ONCE, others).expect("a shape");
            assert!([times.raw, times.layer, times.bf16, times.f32].iter().all(|time| *time > 0.0));
            assert_eq!((times.others.len(), called), (1, 1));
            assert_eq!(times.peak.is_some(), probe::peak_per_thread(kernel).is_some());
            assert!(times.peak.is_none_or(|peak| peak > 1e6));
            let config = Scheme::LlmInt8Absmax.config();
            let costs = outlier_costs(kernel, shape, &config, &[0, 200], &Effort::ONCE).expect("a shape");
            assert_eq!(costs.len(), 2);
        }
    }
}
