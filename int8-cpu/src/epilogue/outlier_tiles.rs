//! Whole outlier columns on tiles of bf16, to the precision of f32: numbers are sums of bf16.
//!
//! ```text
//! x = x₁ + x₂ + x₃, of 8 bits each          w = w₁ (codes, bf16) or w₁ + w₂ (f16)
//! Σ_o x·w = Σ_o x₃·w₁ + x₂·w₂ + x₂·w₁ + x₁·w₂ + x₁·w₁   without x₃·w₂, below 2⁻²⁴ of x·w
//! ```
//!
//! Codes are multiplied as they are, and their sums with the scale of the output channel. A part below 1.2·10⁻³⁸ counts as 0.

use half::bf16;
use rayon::prelude::*;

use super::outliers::{Columns, ExactColumn, codes_of_column};
use crate::gemm::bf16::{Bf16Product, Block, Fragment, STEP};
use crate::gemm::operands::Tile;
use crate::layout::{MAX_MR, NR};
use crate::pack::weight::PackedWeight;
use crate::simd::{Instructions, LANES, Vectorize, Vectorized};

/// Parts of x.
const PARTS: usize = 3;

/// Fewest rows and columns for which tiles are faster than products in f32.
const LEAST_ROWS: usize = 16;
const LEAST_COLUMNS: usize = 8;

/// Numbers of x that the calling thread splits, some 10 µs, and rows that a task does.
const SERIAL_NUMBERS: usize = 1 << 14;
const TASK_ROWS: usize = 64;

/// The outlier columns of one input, and how they are multiplied.
pub(crate) struct OutlierTiles {
    /// `[rows + 31, steps, PARTS]`: a tile may begin at any row.
    x: Vec<Block>,
    steps: usize,
    /// Parts of w.
    parts: usize,
    /// Blocks of x and fragments of w that are multiplied, the least ones first.
    pairs: Vec<(usize, usize)>,
}

impl OutlierTiles {
    /// Of `x [rows, columns]`; `None` where tiles cannot do it, or are not faster.
    pub(crate) fn new(
        tiles: impl Vectorize,
        x: &[f32],
        columns: &Columns,
        weight: &PackedWeight,
    ) -> Option<Self> {
        let count = columns.len();
        let rows = x.len() / count.max(1);
        if rows < LEAST_ROWS || count < LEAST_COLUMNS {
            return None;
        }
        let parts = match columns {
            Columns::Dequantized(_) if weight.groups().is_some() => return None,
            Columns::Dequantized(_) => 1,
            Columns::Exact(columns) => columns.iter().try_fold(1, |most, column| match column {
                ExactColumn::Bf16(_) => Some(most),
                ExactColumn::F16(_) => Some(2),
                ExactColumn::F32(_) => None,
            })?,
        };
        let steps = count.div_ceil(STEP);
        let mut packed = vec![Block::ZERO; (rows + MAX_MR - 1) * steps * PARTS];
        let split = |(x, blocks): (&[f32], &mut [Block])| tiles.vectorize(Split { x, count, steps, blocks });
        let (rows_of_x, rows_of_blocks) = (TASK_ROWS * count, TASK_ROWS * steps * PARTS);
        if x.len() >= SERIAL_NUMBERS && rayon::current_num_threads() > 1 {
            x.par_chunks(rows_of_x).zip(packed.par_chunks_mut(rows_of_blocks)).for_each(split);
        } else {
            x.chunks(rows_of_x).zip(packed.chunks_mut(rows_of_blocks)).for_each(split);
        }
        let products: &[(usize, usize)] =
            if parts == 1 { &[(2, 0), (1, 0), (0, 0)] } else { &[(2, 0), (1, 1), (1, 0), (0, 1), (0, 0)] };
        let pairs = products
            .iter()
            .flat_map(|(i, j)| (0..steps).map(move |step| (step * PARTS + i, step * parts + j)))
            .collect();
        Some(Self { x: packed, steps, parts, pairs })
    }

    /// Fragments of w that [`fill`](Self::fill) writes.
    pub(crate) fn fragments(&self) -> usize {
        self.steps * self.parts
    }

    /// The columns of one panel of the weight, as codes if they are dequantised.
    pub(crate) fn fill(
        &self,
        tiles: impl Vectorize,
        columns: &Columns,
        weight: &PackedWeight,
        panel: usize,
        fragments: &mut [Fragment],
    ) {
        tiles.vectorize(Fill { parts: self.parts, columns, weight, panel, fragments });
    }

    /// `sums[r][n] = Σ_o x[first + r, o]·w[o, n]`.
    ///
    /// # Safety
    /// The contract of [`Bf16Product`].
    pub(crate) unsafe fn multiply(
        &self,
        tiles: impl Bf16Product,
        first: usize,
        rows: usize,
        fragments: &[Fragment],
        sums: &mut Tile<f32>,
    ) {
        let blocks = self.steps * PARTS;
        let x = &self.x[first * blocks..];
        // SAFETY: passed on.
        unsafe { tiles.product_of_blocks(rows, x, blocks, fragments, &self.pairs, sums) };
    }
}

/// `x` as sums of bf16.
struct Split<'a> {
    x: &'a [f32],
    count: usize,
    steps: usize,
    blocks: &'a mut [Block],
}

impl Vectorized for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { x, count, steps, blocks } = self;
        for (x, blocks) in x.chunks_exact(count).zip(blocks.chunks_exact_mut(steps * PARTS)) {
            for (x, parts) in x.chunks(STEP).zip(blocks.chunks_exact_mut(PARTS)) {
                let mut padded = [0.0; STEP];
                padded[..x.len()].copy_from_slice(x);
                let mut rest = [simd.load(first_half(&padded)), simd.load(second_half(&padded))];
                for part in parts {
                    rest = take_bf16(simd, rest, &mut part.0);
                }
            }
        }
    }
}

fn first_half<T>(row: &[T; 2 * LANES]) -> &[T; LANES] {
    &row.as_chunks().0[0]
}

fn second_half<T>(row: &[T; 2 * LANES]) -> &[T; LANES] {
    &row.as_chunks().0[1]
}

/// Stores numbers as bf16; returns what is left of them.
#[inline(always)]
fn take_bf16<I: Instructions>(simd: I, values: [I::Floats; 2], to: &mut [bf16; 2 * LANES]) -> [I::Floats; 2] {
    simd.store_bf16_pair(values, to);
    let minus = simd.splat(-1.0);
    [
        simd.multiply_add(simd.load_bf16(first_half(to)), minus, values[0]),
        simd.multiply_add(simd.load_bf16(second_half(to)), minus, values[1]),
    ]
}

/// The columns of a panel as the right operand of tiles.
struct Fill<'a> {
    parts: usize,
    columns: &'a Columns,
    weight: &'a PackedWeight,
    panel: usize,
    /// `[steps, parts]`.
    fragments: &'a mut [Fragment],
}

impl Vectorized for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { parts, columns, weight, panel, fragments } = self;
        let count = columns.len();
        for (step, fragments) in fragments.chunks_exact_mut(parts).enumerate() {
            for pair in 0..STEP / 2 {
                let first = step * STEP + 2 * pair;
                // Of both columns of the pair, all parts.
                let mut rows = [[[bf16::ZERO; NR]; 2]; 2];
                for (index, rows) in rows.iter_mut().enumerate() {
                    if first + index < count {
                        let mut rest = column(simd, columns, weight, panel, first + index);
                        for row in rows.iter_mut().take(parts) {
                            rest = take_bf16(simd, rest, row);
                        }
                    }
                }
                for (part, fragment) in fragments.iter_mut().enumerate() {
                    let target = &mut fragment.0.as_chunks_mut::<{ 2 * NR }>().0[pair];
                    simd.interleave_bf16([&rows[0][part], &rows[1][part]], target);
                }
            }
        }
    }
}

/// Outlier column `index` of a panel.
#[inline(always)]
fn column<I: Instructions>(
    simd: I,
    columns: &Columns,
    weight: &PackedWeight,
    panel: usize,
    index: usize,
) -> [I::Floats; 2] {
    match columns {
        Columns::Dequantized(columns) => codes_of_column(simd, weight, panel, columns[index]).0,
        Columns::Exact(columns) => columns[index].panel(simd, panel * NR),
    }
}

const _: () = assert!(STEP == 2 * LANES && STEP == NR, "a block is two vectors, and a panel as wide");

#[cfg(test)]
mod tests {
    use half::f16;
    use int8_core::corpus::Random;
    use int8_core::{Element, Encoding, Granularity};
    use ndarray::Array2;

    use super::*;
    use crate::gemm::bf16::definition::{Definition, processor};
    use crate::kernel::Kernel;

    fn outliers(random: &mut Random, rows: usize, count: usize) -> Array2<f32> {
        // Columns of outliers have small values, too.
        random.matrix(rows, count, 1.0).mapv(|x| x * x * x * 30.0)
    }

    #[test]
    fn numbers_are_the_sums_of_their_parts() {
        let mut random = Random::new(61);
        let (rows, count) = (17, 40);
        let x = outliers(&mut random, rows, count);
        let columns = Columns::Dequantized((0..count).collect());
        let w = random.matrix(33, count, 1.0);
        let weight = PackedWeight::quantize(Kernel::best(), w.view(), Encoding::Absmax, Granularity::Row)
            .expect("a weight");
        let values = x.as_slice().expect("row-major");
        let tiles = OutlierTiles::new(Definition, values, &columns, &weight).expect("enough columns");
        let steps = count.div_ceil(STEP);
        for (row, x) in x.rows().into_iter().enumerate() {
            for (o, x) in x.iter().enumerate() {
                let part =
                    |part: usize| tiles.x[(row * steps + o / STEP) * PARTS + part].0[o % STEP].to_f32();
                assert_eq!(part(0) + (part(1) + part(2)), *x, "row {row}, column {o}");
            }
        }
    }

    /// `n·2⁻²⁴·Σ|x·w|` for the sums of n products in f32, and what is left out, in the same terms.
    fn check(
        tiles: impl Bf16Product,
        columns: &Columns,
        weight: &PackedWeight,
        x: &Array2<f32>,
        w: &Array2<f32>,
    ) {
        let count = columns.len();
        let values = x.as_slice().expect("row-major");
        let outliers = OutlierTiles::new(tiles, values, columns, weight).expect("enough columns");
        let mut fragments = vec![Fragment::ZERO; outliers.fragments()];
        let steps = weight.scales().mapv(|scale| scale / 127.0);
        for panel in 0..weight.panel_count() {
            outliers.fill(tiles, columns, weight, panel, &mut fragments);
            for (first, rows) in [(0, 16), (16, 32), (5, x.nrows() - 5 - 1), (x.nrows() - 1, 1)] {
                let rows = rows.min(MAX_MR).min(x.nrows() - first);
                let mut sums = Tile([[f32::NAN; NR]; MAX_MR]);
                // SAFETY: inside `scoped`.
                tiles.scoped(|| unsafe { outliers.multiply(tiles, first, rows, &fragments, &mut sums) });
                for (row, sums) in sums.0.iter().enumerate().take(rows) {
                    for (n, sum) in sums.iter().enumerate().take(weight.dim().0 - panel * NR) {
                        let n = panel * NR + n;
                        let scale = if let Columns::Dequantized(_) = columns { steps[n] } else { 1.0 };
                        let (mut expected, mut all) = (0.0, 0.0);
                        for o in 0..count {
                            let term = f64::from(x[[first + row, o]]) * f64::from(w[[o, n]]);
                            (expected, all) = (expected + term, all + term.abs());
                        }
                        let terms = f64::from(u32::try_from(8 * count + 16).expect("few"));
                        let bound = terms * all / f64::from(1 << 24);
                        let error = (f64::from(sum * scale) - expected).abs();
                        assert!(error <= bound, "row {row} of {first}, {n}: {error:e} > {bound:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_f32() {
        let mut random = Random::new(62);
        for count in [8, 23, 32, 33, 70] {
            let x = outliers(&mut random, 53, count);
            let inner = 2 * count + 3;
            let w = random.matrix(70, inner, 0.5);
            let indices: Vec<usize> = (0..count).map(|o| 2 * o + 1).collect();
            for encoding in [Encoding::Absmax, Encoding::Zeropoint] {
                let weight = PackedWeight::quantize(Kernel::best(), w.view(), encoding, Granularity::Row)
                    .expect("a weight");
                let quantized = weight.to_quantized().expect("a weight");
                let of = |o: usize, n: usize| {
                    let code = f32::from(quantized.codes()[[n, indices[o]]]);
                    let zero: f32 = convert(quantized.zero_points()[n]);
                    (code - zero) * (quantized.scales()[n] / 127.0)
                };
                let dequantized = Array2::from_shape_fn((count, 70), |(o, n)| of(o, n));
                let columns = Columns::Dequantized(indices.clone());
                check(Definition, &columns, &weight, &x, &dequantized);
                if let Some(tiles) = processor() {
                    check(tiles, &columns, &weight, &x, &dequantized);
                }
            }
            let weight = PackedWeight::quantize(Kernel::best(), w.view(), Encoding::Absmax, Granularity::Row)
                .expect("a weight");
            let column = |o: &usize| w.column(*o).to_vec();
            let halves = |o| column(o).iter().map(|w| f16::from_f32(*w)).collect::<Vec<_>>();
            let brains = |o| column(o).iter().map(|w| bf16::from_f32(*w)).collect::<Vec<_>>();
            let f16s = indices.iter().map(|o| ExactColumn::F16(halves(o).into())).collect();
            let bf16s = indices.iter().map(|o| ExactColumn::Bf16(brains(o).into())).collect();
            let rounded = [
                Array2::from_shape_fn((count, 70), |(o, n)| f16::from_f32(w[[n, indices[o]]]).to_f32()),
                Array2::from_shape_fn((count, 70), |(o, n)| bf16::from_f32(w[[n, indices[o]]]).to_f32()),
            ];
            for (columns, w) in [Columns::Exact(f16s), Columns::Exact(bf16s)].iter().zip(&rounded) {
                check(Definition, columns, &weight, &x, w);
                if let Some(tiles) = processor() {
                    check(tiles, columns, &weight, &x, w);
                }
            }
        }
    }

    fn convert(code: i32) -> f32 {
        Element::from_f64(f64::from(code))
    }

    /// Columns in f32, scales for groups of K, few rows or columns stay with products in f32.
    #[test]
    fn what_tiles_cannot_do_is_left() {
        let mut random = Random::new(63);
        let w = random.matrix(40, 64, 1.0);
        let weight = |granularity| {
            PackedWeight::quantize(Kernel::best(), w.view(), Encoding::Absmax, granularity).expect("a weight")
        };
        let x = vec![1.0; 16 * 8];
        let new = |x: &[f32], columns: &Columns, granularity| {
            OutlierTiles::new(Definition, x, columns, &weight(granularity)).is_some()
        };
        let columns = Columns::Dequantized((0..8).collect());
        assert!(new(&x, &columns, Granularity::Row));
        assert!(!new(&x, &columns, Granularity::Group));
        assert!(!new(&x[..15 * 8], &columns, Granularity::Row));
        assert!(!new(&x, &Columns::Dequantized((0..7).collect()), Granularity::Row));
        let floats = Columns::Exact(vec![ExactColumn::F32(vec![1.0; 40].into()); 8]);
        assert!(!new(&x, &floats, Granularity::Row));
    }
}
