//! Rows of 16-bit floats quantised in one pass over x, in the usual setting: absmax of a row without whole columns of outliers,
//! where a column is one if any of its values reaches a threshold.
//!
//! Which columns those are is known when all rows have been read. Until then a row is quantised as if none of its values
//! below the threshold were in such a column. Afterwards the codes in those columns are set to zero; a row whose scale was a
//! value in one of them is quantised again. With many columns all rows are.

use std::marker::PhantomData;
use std::ops::Range as Span;

use int8_core::OutlierRule;
use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::convert;
use crate::halves::{self, Columns, Half, ROWS_AHEAD};
use crate::input::{Input, Outliers, Quantizer, RowTerms, row_stride};
use crate::rows::{Constants, scratch_length};
use crate::tile::{Instructions, TileKernel, Vectorized};

/// Of so many columns one may have outliers: with more, all rows are quantised again, which takes no longer than setting single
/// codes to zero.
const COLUMNS_FOR_OUTLIERS: usize = 32;

/// Elements of x below which rows are corrected by the calling thread: at most some 10 µs, if all are quantised again.
const SERIAL_CORRECTION: usize = 1 << 17;

/// Rows that are looked at before their codes are written.
const ROWS: usize = 4;

impl<K: TileKernel> Quantizer<'_, K> {
    /// The threshold, where rows can be quantised in one pass.
    pub(crate) fn one_pass_threshold(&self) -> Option<f32> {
        match self.config.rule {
            OutlierRule::Absolute(threshold) if self.without_widening() && !self.sums => Some(threshold),
            _ => None,
        }
    }

    /// As [`run`](Self::run), for x of elements T.
    pub(crate) fn in_one_pass<T: Half>(&self, mut codes: Buffer, threshold: f32) -> Input {
        let (rows, inner) = (self.x.rows, self.x.columns);
        let (stride, least) = (row_stride(inner), halves::least_reaching::<T>(threshold));
        let mut results = vec![GuessedRow::default(); rows];
        let task_rows = self.task_rows();
        let guess = |first: usize, codes: &mut [i8], results: &mut [GuessedRow]| {
            let mut excesses = vec![u16::MAX; inner];
            let rows = first..first + results.len();
            self.tile.vectorize(Guess::<T, K> {
                quantizer: self,
                rows,
                least,
                codes,
                results,
                excesses: &mut excesses,
                _elements: PhantomData,
            });
            excesses
        };
        let lesser = |mut all: Vec<u16>, other: Vec<u16>| {
            all.iter_mut().zip(other).for_each(|(all, other)| *all = (*all).min(other));
            all
        };
        let all_codes = &mut codes.codes_mut()[..rows * stride];
        let excesses = if self.serial() {
            guess(0, all_codes, &mut results)
        } else {
            let tasks = all_codes.par_chunks_mut(task_rows * stride).zip(results.par_chunks_mut(task_rows));
            let excesses =
                tasks.enumerate().map(|(task, (codes, results))| guess(task * task_rows, codes, results));
            excesses.reduce_with(lesser).unwrap_or_default()
        };
        let Columns { outliers: columns, nan } = Columns::new::<T>(least, &excesses);
        if columns.len() * COLUMNS_FOR_OUTLIERS > inner {
            return self.in_two_passes(codes, columns);
        }
        let mut dense = vec![0.0_f32; rows * columns.len()];
        if !columns.is_empty() || !nan.is_empty() {
            let mask = halves::mask(inner, &columns);
            let (columns, nan, mask) = (columns.as_slice(), nan.as_slice(), mask.as_slice());
            let all_codes = &mut codes.codes_mut()[..rows * stride];
            let correct = |first: usize, codes: &mut [i8], results: &mut [GuessedRow], dense: &mut [f32]| {
                let rows = first..first + results.len();
                self.tile.vectorize(Correct::<T, K> {
                    quantizer: self,
                    rows,
                    columns,
                    nan,
                    mask,
                    codes,
                    results,
                    dense,
                    _elements: PhantomData,
                });
            };
            // Without columns there are rows of NaN to correct, which need not be fast.
            if self.serial() || columns.is_empty() || rows * inner < SERIAL_CORRECTION {
                correct(0, all_codes, &mut results, &mut dense);
            } else {
                let tasks =
                    all_codes.par_chunks_mut(task_rows * stride).zip(results.par_chunks_mut(task_rows));
                let tasks = tasks.zip(dense.par_chunks_mut(task_rows * columns.len())).enumerate();
                tasks.for_each(|(task, ((codes, results), dense))| {
                    correct(task * task_rows, codes, results, dense);
                });
            }
        }
        let terms = results.iter().map(|row| row.terms).collect();
        let outliers = match dense.len() {
            0 => Outliers::None,
            count => Outliers::Dense { values: dense, count },
        };
        Input { codes, stride, terms, groups: Vec::new(), group_count: 0, columns, outliers }
    }
}

/// What is known of a row.
#[derive(Clone, Copy, Default)]
struct GuessedRow {
    terms: RowTerms,
    /// The bits of its largest magnitude below the threshold.
    below: u16,
}

impl GuessedRow {
    fn set_terms(&mut self, constants: Constants) {
        self.terms = RowTerms { step: constants.scale / 127.0, zero_point: 0, sum: 0 };
    }
}

/// Quantises rows by what is below the threshold.
struct Guess<'a, 'q, T, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    /// The bits of the least magnitude that reaches the threshold.
    least: u16,
    codes: &'a mut [i8],
    results: &'a mut [GuessedRow],
    excesses: &'a mut [u16],
    _elements: PhantomData<T>,
}

impl<T: Half, K: TileKernel> Vectorized for Guess<'_, '_, T, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer: Quantizer { x, .. }, rows, least, codes, results, excesses, .. } = self;
        let (stride, length) = (row_stride(x.columns), scratch_length(x.columns));
        let mut targets = codes.chunks_mut(stride).zip(results);
        for first in rows.clone().step_by(ROWS) {
            // All before their codes: what is largest takes as long to get out of the vectors of a short row as its codes take
            // to compute.
            let mut below = [0; ROWS];
            for (row, below) in (first..rows.end).zip(&mut below) {
                if row + ROWS_AHEAD < rows.end {
                    halves::fetch_row(T::of(x.row(row + ROWS_AHEAD)));
                }
                *below = halves::look(T::of(x.row(row)), least, excesses);
            }
            for ((row, below), (codes, result)) in (first..rows.end).zip(below).zip(&mut targets) {
                let constants = halves::absmax::<T>(below);
                let row = T::of(x.row(row));
                halves::encode::<I, T, false>(simd, row, None, constants, K::OFFSET, &mut codes[..length]);
                *result = GuessedRow { below, ..GuessedRow::default() };
                result.set_terms(constants);
            }
        }
    }
}

/// Takes the columns of outliers out of rows that were quantised without knowing them.
struct Correct<'a, 'q, T, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    columns: &'a [usize],
    /// Columns with a NaN, and no outlier.
    nan: &'a [usize],
    /// From [`halves::mask`].
    mask: &'a [u16],
    codes: &'a mut [i8],
    results: &'a mut [GuessedRow],
    /// f32 `[rows, columns]`, row-major: the values in those columns.
    dense: &'a mut [f32],
    _elements: PhantomData<T>,
}

impl<T: Half, K: TileKernel> Vectorized for Correct<'_, '_, T, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, rows, columns, nan, mask, codes, results, mut dense, .. } = self;
        let stride = row_stride(quantizer.x.columns);
        for ((row, codes), result) in rows.zip(codes.chunks_mut(stride)).zip(results) {
            let row = T::of(quantizer.x.row(row));
            let (values, rest) = dense.split_at_mut(columns.len());
            dense = rest;
            // NaN is no outlier: it makes all of a row NaN, unless it is in a column of outliers.
            let mut again = nan.iter().any(|column| halves::magnitude(row[*column]) > T::INFINITY);
            for (column, value) in columns.iter().zip(values) {
                *value = row[*column].to_f32();
                codes[*column] = convert::code_byte(0, K::OFFSET);
                again |= halves::magnitude(row[*column]) == result.below;
            }
            if again {
                let codes = &mut codes[..scratch_length(row.len())];
                let (constants, _) = halves::quantize::<I, T, false>(simd, row, mask, K::OFFSET, codes);
                result.set_terms(constants);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};
    use int8_core::corpus::Random;
    use int8_core::{Config, Scheme};
    use ndarray::{Array2, ArrayView2};

    use super::*;
    use crate::input::InputGroups;
    use crate::kernel::{Dispatch, Kernel};
    use crate::matrix::Source;

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

    impl<T: Half> Dispatch for BothWays<'_, T> {
        type Output = [Quantised; 2];

        fn run<K: TileKernel>(self, tile: K) -> Self::Output {
            let (rows, inner) = self.x.dim();
            let x = Source::new(self.x, "x").expect("rows");
            let groups = InputGroups::None;
            let quantizer = Quantizer { x, config: &self.config, groups, sums: false, tile };
            assert_eq!(quantizer.one_pass_threshold(), Some(self.threshold));
            let codes = || Buffer::zeroed((rows + K::ROW_STEP) * row_stride(inner));
            let once = quantizer.in_one_pass::<T>(codes(), self.threshold);
            let twice = quantizer.in_two_passes(codes(), quantizer.outlier_columns());
            [parts_of(&once, rows, inner), parts_of(&twice, rows, inner)]
        }
    }

    fn both_ways<T: Half>() {
        let mut random = Random::new(31);
        let special = [f32::NAN, f32::INFINITY, -65_504.0, 1e-40, 0.0, -6.0, 5.97].map(T::from_f32);
        let shapes = [(1, 1), (1, 70), (3, 64), (5, 200), (7, 95), (9, 320), (300, 130)];
        // 8, 9 and 10 meet every special value: as many rounds as there are, no multiple of three.
        let shapes = if cfg!(miri) { &shapes[..4] } else { &shapes };
        for &(rows, inner) in shapes {
            let cases = (0..8).chain(special.iter().flat_map(|_| 8..11)).enumerate();
            for (number, case) in cases {
                let special = special[number % special.len()];
                let threshold = if case == 7 { 0.01 } else { 6.0 };
                let mut x = Array2::from_shape_simple_fn((rows, inner), || T::from_f32(random.normal()));
                let column = inner / 3;
                match case {
                    // A column of outliers, alone or with the largest of what is below the threshold beside them.
                    1 | 2 => x.column_mut(column).fill(T::from_f32(-9.5)),
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
