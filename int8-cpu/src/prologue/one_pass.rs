//! Rows of 16-bit floats quantised in one pass over x, in the usual setting: absmax of a row without whole columns of outliers,
//! where a column is one if any of its values reaches a threshold.
//!
//! Which columns those are is known when all rows have been read. The first rows are looked at beforehand: features with outliers
//! have them in many rows (Dettmers et al. 2022, section 4). All rows are then quantised as if there were no other columns. Only
//! where others turn up, or NaN, are rows corrected: the codes in all these columns are set to zero, and a row whose scale was a
//! value in one of them is quantised again. With many columns x is quantised in two passes.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range as Span;

use half::{bf16, f16};
use int8_core::{FloatType, OutlierRule};
use rayon::prelude::*;

use super::encode::scratch_length;
use super::float16::{self, Float16, ROWS_AHEAD, SpecialColumns};
use super::outliers::Outliers;
use super::quantizer::{Input, Quantizer, parts};
use super::terms::RowTerms;
use crate::buffer::Buffer;
use crate::convert;
use crate::layout::row_stride;
use crate::matrix::Source;
use crate::simd::{Instructions, Vectorize, Vectorized};

/// One column in so many may have outliers: with more, all rows are quantised again, which takes no longer than setting single
/// codes to zero.
const COLUMNS_FOR_OUTLIERS: usize = 32;

/// Elements of x below which rows are corrected by the calling thread: at most some 10 µs, if all are quantised again.
const SERIAL_CORRECTION: usize = 1 << 17;

/// Rows that are looked at before their codes are written.
const ROWS_AT_ONCE: usize = 4;

/// Rows that are looked at before all. They are the first ones, which the calling thread quantises next: others would be fetched
/// twice.
const SAMPLES: usize = 4;

impl<K: Vectorize> Quantizer<'_, K> {
    /// Quantises `x`, reusing the memory of `codes`.
    pub(crate) fn run(&self, mut codes: Buffer) -> Input {
        // A tile may read whole steps of rows beyond the last one.
        codes.reserve((self.x.rows + K::MR_STEP) * row_stride(self.x.columns));
        match (self.one_pass_threshold(), self.x.float_type()) {
            (Some(threshold), FloatType::F16) => self.in_one_pass::<f16>(codes, threshold),
            (Some(threshold), FloatType::Bf16) => self.in_one_pass::<bf16>(codes, threshold),
            _ => self.in_two_passes(codes, self.outlier_columns()),
        }
    }

    /// The threshold, where rows can be quantised in one pass.
    pub(crate) fn one_pass_threshold(&self) -> Option<f32> {
        match self.config.rule {
            OutlierRule::Absolute(threshold) if self.without_widening() && !self.sums => Some(threshold),
            _ => None,
        }
    }

    /// As [`run`](Self::run), for x of elements T.
    pub(crate) fn in_one_pass<T: Float16>(&self, mut codes: Buffer, threshold: f32) -> Input {
        let (rows, inner) = (self.x.rows, self.x.columns);
        let (stride, least) = (row_stride(inner), float16::least_reaching::<T>(threshold));
        let (mut excesses, samples) = (vec![u16::MAX; inner], 0..SAMPLES.min(rows));
        let (x, _elements) = (self.x, PhantomData::<T>);
        self.tile.vectorize(Sample { x, rows: samples, least, excesses: &mut excesses, _elements });
        let expected = SpecialColumns::new::<T>(least, &excesses).outliers;
        if too_many(&expected, inner) {
            return self.in_two_passes(codes, self.outlier_columns());
        }
        let (mut terms, mut below) = (vec![RowTerms::default(); rows], vec![0; rows]);
        let mut dense = vec![0.0_f32; rows * expected.len()];
        let all_codes = &mut codes.codes_mut()[..rows * stride];
        let all = Part { codes: all_codes, terms: &mut terms, below: &mut below, dense: &mut dense };
        let unexpected = self.guess::<T>(least, &expected, all);
        let mut columns = expected;
        if let Some(unexpected) = unexpected {
            let found = SpecialColumns::new::<T>(least, &lesser(excesses, unexpected));
            if too_many(&found.outliers, inner) {
                // Not these: a task that meets too many does not go on.
                return self.in_two_passes(codes, self.outlier_columns());
            }
            dense = vec![0.0; rows * found.outliers.len()];
            let all_codes = &mut codes.codes_mut()[..rows * stride];
            let all = Part { codes: all_codes, terms: &mut terms, below: &mut below, dense: &mut dense };
            self.correct::<T>(&found, all);
            columns = found.outliers;
        }
        let outliers = match dense.len() {
            0 => Outliers::None,
            count => Outliers::Dense { values: dense, count },
        };
        Input { codes, stride, terms, groups: Vec::new(), group_count: 0, columns, outliers }
    }

    /// Quantises all rows by what is below the threshold and not in the columns that are expected, whose values go to `dense`.
    /// Returns the excesses of rows with other outliers, or NaN; where that are too many columns, not all rows have been quantised.
    fn guess<T: Float16>(&self, least: u16, expected: &[usize], all: Part<'_>) -> Option<Vec<u16>> {
        let mask = float16::mask(self.x.columns, expected);
        let mask = mask.as_slice();
        let excesses = self.in_tasks(self.serial(), expected.len(), all, |rows, part| {
            let (quantizer, _elements) = (self, PhantomData::<T>);
            self.tile.vectorize(Guess { quantizer, rows, least, expected, mask, part, _elements })
        });
        excesses.into_iter().flatten().reduce(lesser)
    }

    /// Takes these columns out of rows that were quantised without knowing all of them; their values go to `dense`.
    fn correct<T: Float16>(&self, found: &SpecialColumns, all: Part<'_>) {
        let mask = float16::mask(self.x.columns, &found.outliers);
        let mask = mask.as_slice();
        let serial = self.serial() || self.x.rows * self.x.columns < SERIAL_CORRECTION;
        self.in_tasks(serial, found.outliers.len(), all, |rows, part| {
            let (quantizer, _elements) = (self, PhantomData::<T>);
            self.tile.vectorize(Correct { quantizer, rows, found, mask, part, _elements });
        });
    }

    /// Does a job for all rows, at once or cut into tasks, in the order of the rows; `dense` has so many `columns`.
    fn in_tasks<R: Send>(
        &self,
        serial: bool,
        columns: usize,
        all: Part<'_>,
        job: impl Fn(Span<usize>, Part<'_>) -> R + Sync,
    ) -> Vec<R> {
        if serial {
            return vec![job(0..self.x.rows, all)];
        }
        let (task_rows, stride) = (self.task_rows(), row_stride(self.x.columns));
        let Part { codes, terms, below, dense } = all;
        let dense = parts(dense, task_rows * columns, self.x.rows.div_ceil(task_rows));
        let rows = terms.par_chunks_mut(task_rows).zip(below.par_chunks_mut(task_rows));
        let tasks = codes.par_chunks_mut(task_rows * stride).zip(rows).zip(dense).enumerate();
        let results = tasks.map(|(task, ((codes, (terms, below)), dense))| {
            let first = task * task_rows;
            job(first..first + terms.len(), Part { codes, terms, below, dense })
        });
        results.collect()
    }
}

fn too_many(columns: &[usize], inner: usize) -> bool {
    columns.len() * COLUMNS_FOR_OUTLIERS > inner
}

/// The lesser of each pair of numbers.
fn lesser(mut all: Vec<u16>, other: Vec<u16>) -> Vec<u16> {
    all.iter_mut().zip(other).for_each(|(all, other)| *all = (*all).min(other));
    all
}

/// What is known of rows, all or those of a task.
struct Part<'a> {
    codes: &'a mut [i8],
    terms: &'a mut [RowTerms],
    /// The bits of their largest magnitude below the threshold.
    below: &'a mut [u16],
    /// f32 `[rows, columns]`, row-major: the values in columns that leave.
    dense: &'a mut [f32],
}

/// Writes the least excess of each column in some rows.
struct Sample<'a, T> {
    x: Source<'a>,
    rows: Span<usize>,
    least: u16,
    excesses: &'a mut [u16],
    _elements: PhantomData<T>,
}

impl<T: Float16> Vectorized for Sample<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, _: I) {
        float16::lower_by_rows::<T>(self.x, self.rows, self.least, self.excesses);
    }
}

/// Quantises rows by what is below the threshold.
struct Guess<'a, 'q, T, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    /// The bits of the least magnitude that reaches the threshold.
    least: u16,
    /// The columns that outliers are expected in.
    expected: &'a [usize],
    /// Of those columns, from [`float16::mask`].
    mask: &'a [u16],
    part: Part<'a>,
    _elements: PhantomData<T>,
}

impl<T: Float16, K: Vectorize> Vectorized for Guess<'_, '_, T, K> {
    /// The excesses of rows with outliers in other columns, or with NaN.
    type Output = Option<Vec<u16>>;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Self::Output {
        let Self { quantizer: Quantizer { x, .. }, rows, least, expected, mask, part, .. } = self;
        let Part { codes, terms, below, mut dense } = part;
        let mut mask = Cow::Borrowed(mask);
        let (stride, length) = (row_stride(x.columns), scratch_length(x.columns));
        rows.clone().take(ROWS_AHEAD).for_each(|row| float16::prefetch_row(T::of(x.row(row))));
        let mut excesses = None;
        let mut targets = codes.chunks_mut(stride).zip(terms);
        for (first, below) in rows.clone().step_by(ROWS_AT_ONCE).zip(below.chunks_mut(ROWS_AT_ONCE)) {
            // All before their codes: what is largest takes as long to get out of the vectors of a short row as its codes take
            // to compute.
            for (row, below) in (first..).zip(&mut *below) {
                if row + ROWS_AHEAD < rows.end {
                    float16::prefetch_row(T::of(x.row(row + ROWS_AHEAD)));
                }
                let row = T::of(x.row(row));
                let look = float16::look(row, &mask, least);
                *below = look.below;
                if look.others {
                    let excesses = excesses.get_or_insert_with(|| vec![u16::MAX; x.columns]);
                    float16::lower_excesses(row, least, excesses);
                    // From here on these columns are expected, too.
                    let columns = SpecialColumns::new::<T>(least, excesses).outliers;
                    if too_many(&columns, x.columns) {
                        return Some(std::mem::take(excesses));
                    }
                    columns.into_iter().for_each(|column| mask.to_mut()[column] = 0);
                }
            }
            let mask = (excesses.is_some() || !expected.is_empty()).then_some(&*mask);
            for ((row, below), (codes, terms)) in (first..).zip(below).zip(&mut targets) {
                let constants = float16::absmax::<T>(*below);
                let row = T::of(x.row(row));
                float16::encode::<I, T, false>(
                    simd,
                    row,
                    mask,
                    constants,
                    K::CODE_OFFSET,
                    &mut codes[..length],
                );
                *terms = RowTerms::new(constants, 0);
                let (values, rest) = dense.split_at_mut(expected.len());
                dense = rest;
                float16::gather(row, expected, values);
            }
        }
        excesses
    }
}

/// Takes the columns of outliers out of rows that were quantised without knowing all of them.
struct Correct<'a, 'q, T, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    found: &'a SpecialColumns,
    /// Of the columns of outliers, from [`float16::mask`].
    mask: &'a [u16],
    part: Part<'a>,
    _elements: PhantomData<T>,
}

impl<T: Float16, K: Vectorize> Vectorized for Correct<'_, '_, T, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, rows, found, mask, part, .. } = self;
        let Part { codes, terms, below, mut dense } = part;
        let SpecialColumns { outliers: columns, nan } = found;
        let stride = row_stride(quantizer.x.columns);
        for (((row, codes), terms), below) in rows.zip(codes.chunks_mut(stride)).zip(terms).zip(below) {
            let row = T::of(quantizer.x.row(row));
            let (values, rest) = dense.split_at_mut(columns.len());
            dense = rest;
            // NaN is no outlier: it makes all of a row NaN, unless it is in a column of outliers.
            let mut again = nan.iter().any(|column| float16::magnitude(row[*column]) > T::INFINITY);
            float16::gather(row, columns, values);
            for column in columns {
                codes[*column] = convert::code_byte(0, K::CODE_OFFSET);
                again |= float16::magnitude(row[*column]) == *below;
            }
            if again {
                let codes = &mut codes[..scratch_length(row.len())];
                let (constants, _) = float16::quantize::<I, T, false>(simd, row, mask, K::CODE_OFFSET, codes);
                *terms = RowTerms::new(constants, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use int8_core::corpus::Random;
    use int8_core::{Config, Scheme};
    use ndarray::{Array2, ArrayView2};

    use super::*;
    use crate::kernel::Kernel;
    use crate::prologue::quantizer::InputGroups;
    use crate::simd::Dispatch;

    /// x quantised in one pass and in two.
    struct BothWays<'a, T> {
        x: ArrayView2<'a, T>,
        config: Config,
        threshold: f32,
    }

    type Quantised = (Vec<usize>, Vec<u32>, Vec<Vec<i8>>, Vec<u32>);

    fn parts_of(input: &Input, rows: usize, inner: usize) -> Quantised {
        let values = match &input.outliers {
            Outliers::Dense { values, .. } => values.iter().map(|value| value.to_bits()).collect(),
            Outliers::None => Vec::new(),
            Outliers::Sparse(_) => panic!("whole columns"),
        };
        let row = |row| input.codes.codes()[row * input.stride..][..scratch_length(inner)].to_vec();
        let steps = input.terms.iter().map(|terms| terms.step.to_bits()).collect();
        (input.columns.clone(), steps, (0..rows).map(row).collect(), values)
    }

    impl<T: Float16> Dispatch for BothWays<'_, T> {
        type Output = [Quantised; 2];

        fn run<K: Vectorize>(self, tile: K) -> Self::Output {
            let (rows, inner) = self.x.dim();
            let x = Source::new(self.x, "x").expect("rows");
            let groups = InputGroups::None;
            let quantizer = Quantizer { x, config: &self.config, groups, sums: false, tile };
            assert_eq!(quantizer.one_pass_threshold(), Some(self.threshold));
            let codes = || Buffer::zeroed((rows + K::MR_STEP) * row_stride(inner));
            let once = quantizer.in_one_pass::<T>(codes(), self.threshold);
            let twice = quantizer.in_two_passes(codes(), quantizer.outlier_columns());
            [parts_of(&once, rows, inner), parts_of(&twice, rows, inner)]
        }
    }

    fn both_ways<T: Float16>() {
        let mut random = Random::new(31);
        let special = [f32::NAN, f32::INFINITY, -65_504.0, 1e-40, 0.0, -6.0, 5.97].map(T::from_f32);
        // The last is corrected by several threads.
        let shapes = [(1, 1), (1, 70), (3, 64), (5, 200), (7, 95), (9, 320), (300, 130), (440, 300)];
        // 8, 9 and 10 meet every special value: as many rounds as there are, no multiple of three.
        let shapes = if cfg!(miri) { &shapes[..4] } else { &shapes };
        for &(rows, inner) in shapes {
            let cases = (0..8).chain(special.iter().flat_map(|_| 8..11)).chain(11..14).enumerate();
            for (number, case) in cases {
                let special = special[number % special.len()];
                let threshold = match case {
                    7 => 0.01,
                    11 => f32::INFINITY,
                    _ => 6.0,
                };
                let mut x = Array2::from_shape_simple_fn((rows, inner), || T::from_f32(random.normal()));
                let column = inner / 3;
                match case {
                    // A column of outliers, but in the last row, which has one in another; one with little else.
                    1 => {
                        x.column_mut(column).fill(T::from_f32(-9.5));
                        x[[rows - 1, column]] = T::from_f32(0.5);
                        x[[rows - 1, inner - 1]] = T::from_f32(7.5);
                    }
                    2 => x.column_mut(column).fill(T::from_f32(-9.5)),
                    3 => {
                        x.column_mut(column).fill(T::from_f32(5.5));
                        x[[rows / 2, column]] = T::from_f32(7.0);
                    }
                    // The same magnitude in a column that stays.
                    4 => {
                        x.column_mut(column).fill(T::from_f32(-5.5));
                        x.column_mut(inner - 1).fill(T::from_f32(5.5));
                        x[[rows - 1, column]] = T::from_f32(7.0);
                    }
                    // Special values, in a column of outliers and in others.
                    8 => x[[rows / 2, column]] = special,
                    9 => {
                        x.column_mut(column).fill(T::from_f32(-9.5));
                        x[[rows - 1, column]] = special;
                    }
                    10 => {
                        x.column_mut(column).fill(T::from_f32(-9.5));
                        x[[0, inner - 1]] = special;
                    }
                    // Rows of zeros, and of nothing but outliers.
                    5 => x.row_mut(rows / 2).fill(T::from_f32(0.0)),
                    6 => x.row_mut(rows / 2).fill(T::from_f32(100.0)),
                    // Each row has an outlier in another column.
                    13 => (0..rows).for_each(|row| x[[row, row % inner]] = T::from_f32(9.0)),
                    // A NaN and an outlier in the same column.
                    12 => {
                        x[[0, column]] = T::from_f32(f32::NAN);
                        x[[rows - 1, column]] = T::from_f32(7.0);
                    }
                    _ => {}
                }
                if case == 2 {
                    x.mapv_inplace(|value| if value.to_f32().abs() < 3.0 { T::from_f32(0.0) } else { value });
                }
                let config =
                    Config { rule: OutlierRule::Absolute(threshold), ..Scheme::LlmInt8Absmax.config() };
                for kernel in Kernel::available() {
                    let [once, twice] = kernel.dispatch(BothWays { x: x.view(), config, threshold });
                    assert_eq!(once, twice, "{kernel}, {rows}x{inner}, case {case}: {x:?}");
                }
            }
        }
    }

    #[test]
    fn one_pass_gives_what_two_give() {
        both_ways::<f16>();
        both_ways::<bf16>();
    }
}
