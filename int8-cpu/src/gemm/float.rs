//! Products with weights in floating point: `y = x · Wᵀ + b`, the weight held in its stored type.

use gemm_common::Parallelism;
use int8_core::{Element, Error as CoreError, FloatSlice};
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::convert;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::matrix::{Source, Store, Target, rows_of};
use crate::pool;
use crate::prefetch;
use crate::simd::functions::{add_lanes, padded};
use crate::simd::{Instructions, LANES, Lane, Vectorized, run};

/// Rows of x up to which each output is a dot product, the weights read once and widened on the way: beyond, widening a
/// block of them and packing it for the matrix product costs less than it saves.
const DOT_ROWS: usize = 16;

/// Most rows of x that share a load of the weights: with two chains of two registers each, 12 of AVX2's 16 hold sums. A fourth
/// row's did not stay there: 27 GFLOP/s a core instead of 37.
const GROUP: usize = 3;

/// The same with 32 registers, of which 16 hold sums.
const WIDE_GROUP: usize = 8;

/// Outputs that a thread takes at a time: in 16 bits and K = 576, 36 KiB of weights.
const DOT_OUTPUTS: usize = 32;

/// Weights below which dot products stay on the calling thread: some 10 µs, about what waking a sleeping thread costs.
const SERIAL_WEIGHTS: usize = 1 << 16;

/// Rows and outputs of a task of the matrix product: its widened weights, 1 MiB at K = 2048, fit an L2 cache.
const TASK_ROWS: usize = 256;
const TASK_OUTPUTS: usize = 128;

/// Independent sums of a dot product. The same for any number of rows, so that a row's result does not depend on others.
const CHAINS: usize = 2;

/// `out [M, N] (+)= x [M, K] · Wᵀ + bias [N]`, W `[N, K]` in f32, f16 or bf16, products and sums in f32.
///
/// Up to 16 rows of x: dot products that read the weights once. More: the `gemm-f32` crate on blocks of W widened to f32.
///
/// # Errors
/// The reference's `InnerDimension`, `Length` (bias) and `Shape` (out); [`Error::NotRowMajor`].
pub fn product<W: Element>(
    kernel: Kernel,
    x: ArrayView2<'_, f32>,
    w: ArrayView2<'_, W>,
    bias: Option<&[f32]>,
    store: Store,
    mut out: ArrayViewMut2<'_, f32>,
) -> Result<(), Error> {
    let ((rows, x_inner), (outputs, w_inner)) = (x.dim(), w.dim());
    if x_inner != w_inner {
        let operation = "float product";
        return Err(CoreError::InnerDimension { operation, rows, x_inner, outputs, w_inner }.into());
    }
    if let Some(bias) = bias
        && bias.len() != outputs
    {
        return Err(CoreError::Length { what: "bias", expected: outputs, found: bias.len() }.into());
    }
    if out.dim() != (rows, outputs) {
        return Err(CoreError::Shape { what: "out", expected: (rows, outputs), found: out.dim() }.into());
    }
    rows_of(x, "x")?;
    let job = Product {
        kernel,
        w: Source::new(w, "W")?,
        x,
        x_rows: Source::new(x, "x")?,
        bias,
        store,
        target: Target::new(&mut out, "out")?,
    };
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    if rows <= DOT_ROWS {
        job.by_dots()
    } else {
        job.by_blocks()
    }
    Ok(())
}

struct Product<'a> {
    kernel: Kernel,
    x: ArrayView2<'a, f32>,
    x_rows: Source<'a>,
    w: Source<'a>,
    bias: Option<&'a [f32]>,
    store: Store,
    /// Of f32.
    target: Target<'a>,
}

impl Product<'_> {
    fn by_dots(&self) {
        let outputs = self.w.rows;
        let task = |first: usize, last: usize| run(self.kernel, Dots { product: self, first, last });
        let threads = rayon::current_num_threads();
        if outputs * self.w.columns < SERIAL_WEIGHTS || threads == 1 {
            return task(0, outputs);
        }
        // Each output is computed by itself, so the result does not depend on who computes it.
        pool::partition(outputs.div_ceil(DOT_OUTPUTS), threads, |taken| {
            for (block, _) in taken {
                task(block * DOT_OUTPUTS, outputs.min((block + 1) * DOT_OUTPUTS));
            }
        });
    }

    fn by_blocks(&self) {
        let (rows, outputs) = (self.x.nrows(), self.w.rows);
        let row_tasks = rows.div_ceil(TASK_ROWS);
        let tasks = row_tasks * outputs.div_ceil(TASK_OUTPUTS);
        let task = |scratch: &mut Vec<f32>, task: usize| {
            let (row, output) = (task % row_tasks * TASK_ROWS, task / row_tasks * TASK_OUTPUTS);
            self.block(row, TASK_ROWS.min(rows - row), output, TASK_OUTPUTS.min(outputs - output), scratch);
        };
        pool::partition(tasks, rayon::current_num_threads(), |taken| {
            let mut scratch = Vec::new();
            taken.for_each(|(number, _)| task(&mut scratch, number));
        });
    }

    /// `rows × outputs` results from `(row, output)` on.
    fn block(&self, row: usize, rows: usize, output: usize, outputs: usize, scratch: &mut Vec<f32>) {
        let inner = self.w.columns;
        let stride = scratch_stride(inner);
        scratch.resize(outputs * stride, 0.0);
        run(self.kernel, Widen { w: &self.w, first: output, target: scratch, stride });
        if self.store == Store::Overwrite || self.bias.is_some() {
            for row in row..row + rows {
                // SAFETY: blocks do not overlap and lie in the matrix, which is of f32.
                let target = unsafe { self.target.slice::<f32>(row, output, outputs) };
                match (self.bias, self.store) {
                    (None, _) => target.fill(0.0),
                    (Some(bias), Store::Overwrite) => target.copy_from_slice(&bias[output..output + outputs]),
                    (Some(bias), Store::Accumulate) => {
                        target.iter_mut().zip(&bias[output..]).for_each(|(target, bias)| *target += bias);
                    }
                }
            }
        }
        // SAFETY: as above; one element is enough for the address, and the slice is not kept.
        let first = unsafe { self.target.slice::<f32>(row, output, 1) }.as_mut_ptr();
        // SAFETY: `first` begins a block of rows × outputs with the target's row stride that no other task touches;
        // x holds `rows` rows of K contiguous values from `row` on; the scratch holds outputs rows of at least K values.
        unsafe {
            // Of the transposed matrices, whose columns are contiguous as the kernels want them.
            gemm_f32::gemm::f32::get_gemm_fn()(
                outputs,
                rows,
                inner,
                first,
                self.target.stride(),
                1,
                true,
                scratch.as_ptr(),
                1,
                convert::offset(stride),
                self.x.as_ptr().offset(convert::offset(row) * self.x.strides()[0]),
                self.x.strides()[0],
                1,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

/// All rows of x times rows `first..last` of W.
struct Dots<'a, 'p> {
    product: &'a Product<'p>,
    first: usize,
    last: usize,
}

impl Vectorized for Dots<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let rows = self.product.x_rows.rows;
        let most = if I::REGISTERS >= 32 { WIDE_GROUP } else { GROUP };
        // Of sizes that differ by one at most: a group of one row converts the weights for itself.
        let groups = rows.div_ceil(most).max(1);
        let (smaller, larger) = (rows / groups, rows % groups);
        for n in self.first..self.last {
            let mut first = 0;
            for group in 0..groups {
                let size = smaller + usize::from(group < larger);
                match size {
                    1 => self.group::<I, 1>(simd, first, n),
                    2 => self.group::<I, 2>(simd, first, n),
                    3 => self.group::<I, 3>(simd, first, n),
                    _ if I::REGISTERS < 32 => unreachable!("groups of at most {GROUP} rows"),
                    4 => self.group::<I, 4>(simd, first, n),
                    5 => self.group::<I, 5>(simd, first, n),
                    6 => self.group::<I, 6>(simd, first, n),
                    7 => self.group::<I, 7>(simd, first, n),
                    _ => self.group::<I, WIDE_GROUP>(simd, first, n),
                }
                first += size;
            }
        }
    }
}

impl Dots<'_, '_> {
    /// Output n of R rows.
    #[inline(always)]
    fn group<I: Instructions, const R: usize>(&self, simd: I, first: usize, n: usize) {
        let Product { x_rows, w, bias, store, target, .. } = self.product;
        let mut x: [&[f32]; R] = [&[]; R];
        for (m, x) in x.iter_mut().enumerate() {
            if let FloatSlice::F32(row) = x_rows.row(first + m) {
                *x = row;
            }
        }
        let values = match w.row(n) {
            FloatSlice::F32(w) => dots(simd, x, w),
            FloatSlice::F16(w) => dots(simd, x, w),
            FloatSlice::Bf16(w) => dots(simd, x, w),
        };
        let bias = bias.map_or(0.0, |bias| bias[n]);
        for (m, value) in values.into_iter().enumerate() {
            // SAFETY: tasks write different outputs, inside the matrix, which is of f32.
            for target in unsafe { target.slice::<f32>(first + m, n, 1) } {
                let value = value + bias;
                *target = if *store == Store::Accumulate { *target + value } else { value };
            }
        }
    }
}

/// Dot products of R rows, all as long as `w`.
#[inline(always)]
fn dots<I: Instructions, W: Lane, const R: usize>(simd: I, x: [&[f32]; R], w: &[W]) -> [f32; R] {
    let mut sums = [[simd.splat(0.0); CHAINS]; R];
    let (w_blocks, w_rest) = w.as_chunks::<{ CHAINS * LANES }>();
    let x = x.map(|x| x.as_chunks::<{ CHAINS * LANES }>());
    for (i, w) in w_blocks.iter().enumerate() {
        // The next outputs' weights follow these.
        prefetch::prefetch_behind(w.as_ptr(), w.len());
        for (chain, w) in w.as_chunks::<LANES>().0.iter().enumerate() {
            let w = W::load(simd, w);
            for (sums, (x, _)) in sums.iter_mut().zip(&x) {
                let x = simd.load(&x[i].as_chunks::<LANES>().0[chain]);
                sums[chain] = simd.multiply_add(x, w, sums[chain]);
            }
        }
    }
    for (chain, w) in w_rest.chunks(LANES).enumerate() {
        let w = W::load(simd, &padded(w, W::default()));
        for (sums, (_, x)) in sums.iter_mut().zip(&x) {
            let x = x.chunks(LANES).nth(chain).unwrap_or_default();
            sums[chain] = simd.multiply_add(simd.load(&padded(x, 0.0)), w, sums[chain]);
        }
    }
    let mut totals = [0.0; R];
    for (total, [a, b]) in totals.iter_mut().zip(sums) {
        *total = add_lanes(simd, simd.add(a, b));
    }
    totals
}

/// `target [rows, K] = W[first..]`, as many rows as the target holds.
struct Widen<'a, 'w> {
    w: &'a Source<'w>,
    first: usize,
    target: &'a mut [f32],
    /// Floats between two rows of the target.
    stride: usize,
}

/// Floats between two rows of the scratch: an odd number of cache lines, so that those that are packed side by side do not all
/// fall into the same set of an L1 cache, as they would with K a power of two: 64×1024×1024 took 2.6 times as long, 512 rows 1.5 times.
fn scratch_stride(inner: usize) -> usize {
    let lines = inner.div_ceil(LANES);
    (lines + 1 - lines % 2) * LANES
}

impl Vectorized for Widen<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        for (n, target) in self.target.chunks_exact_mut(self.stride).enumerate() {
            let target = &mut target[..self.w.columns];
            match self.w.row(self.first + n) {
                FloatSlice::F32(row) => target.copy_from_slice(row),
                FloatSlice::F16(row) => widen(simd, row, target),
                FloatSlice::Bf16(row) => widen(simd, row, target),
            }
        }
    }
}

/// `target = row`, exactly.
#[inline(always)]
pub(crate) fn widen<I: Instructions, W: Lane>(simd: I, row: &[W], target: &mut [f32]) {
    let (vectors, rest) = row.as_chunks::<LANES>();
    let (targets, last) = target.as_chunks_mut::<LANES>();
    for (values, target) in vectors.iter().zip(targets) {
        simd.store(W::load(simd, values), target);
    }
    if !rest.is_empty() {
        let mut lanes = [0.0; LANES];
        simd.store(W::load(simd, &padded(rest, W::default())), &mut lanes);
        last.copy_from_slice(&lanes[..last.len()]);
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use int8_core::corpus::Random;
    use ndarray::{Array2, s};

    use super::*;

    /// Against f64 sums, for all kernels and element types, at the edges of rows, tasks and vectors, with strides.
    #[test]
    fn products_are_sums() {
        let mut random = Random::new(11);
        let mut check = |(rows, outputs, inner): (usize, usize, usize)| {
            let wide_x = random.matrix(rows, inner + 3, 1.0);
            let x = wide_x.slice(s![.., 2..inner + 2]);
            let w = random.matrix(outputs, inner, 1.0).mapv(bf16::from_f32);
            let bias: Vec<f32> = (0..outputs).map(|_| random.normal()).collect();
            let expected = x.mapv(f64::from).dot(&w.mapv(|w| f64::from(w.to_f32())).t());
            for kernel in Kernel::available() {
                for (bias, store) in [
                    (Some(&bias[..]), Store::Overwrite),
                    (Some(&bias), Store::Accumulate),
                    (None, Store::Overwrite),
                    (None, Store::Accumulate),
                ] {
                    let mut found = [(); 3].map(|()| Array2::from_elem((rows, outputs), 0.5));
                    let [a, b, c] = &mut found;
                    product(kernel, x, w.view(), bias, store, a.view_mut()).expect("valid shapes");
                    product(
                        kernel,
                        x,
                        w.mapv(|w| f16::from_f32(w.to_f32())).view(),
                        bias,
                        store,
                        b.view_mut(),
                    )
                    .expect("valid shapes");
                    product(kernel, x, w.mapv(bf16::to_f32).view(), bias, store, c.view_mut())
                        .expect("valid shapes");
                    for found in &found {
                        for ((m, n), found) in found.indexed_iter() {
                            let start = if store == Store::Accumulate { 0.5 } else { 0.0 };
                            let expected =
                                expected[[m, n]] + f64::from(start + bias.map_or(0.0, |bias| bias[n]));
                            let error = (f64::from(*found) - expected).abs();
                            assert!(
                                error < 1e-5 * convert::count(inner + 4),
                                "{kernel} {rows}×{outputs}×{inner}"
                            );
                        }
                    }
                }
            }
        };
        for inner in [0, 1, 15, 16, 17, 63, 64, 65, 130] {
            for rows in [0, 1, 3, 4, 6, 7, 8, 9, 13, DOT_ROWS, DOT_ROWS + 1] {
                check((rows, 33, inner));
            }
        }
        check((TASK_ROWS + 1, 3, 20));
        check((DOT_ROWS + 1, TASK_OUTPUTS + 1, 20));
        check((3, 700, 100));
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let kernel = Kernel::best();
        let (x, w) = (Array2::<f32>::zeros((2, 4)), Array2::<f32>::zeros((3, 4)));
        let mut out = Array2::zeros((2, 3));
        let mut call = |x: ArrayView2<'_, f32>, bias: Option<&[f32]>| {
            product(kernel, x, w.view(), bias, Store::Overwrite, out.view_mut())
        };
        assert!(call(x.view(), None).is_ok());
        assert!(matches!(
            call(x.slice(s![.., ..3]), None),
            Err(Error::Core(CoreError::InnerDimension { .. }))
        ));
        assert!(matches!(call(x.slice(s![..1, ..]), None), Err(Error::Core(CoreError::Shape { .. }))));
        assert!(matches!(call(x.view(), Some(&[0.0; 2])), Err(Error::Core(CoreError::Length { .. }))));
        let transposed = Array2::<f32>::zeros((4, 2));
        assert!(matches!(call(transposed.t(), None), Err(Error::NotRowMajor { .. })));
    }
}
