//! 16-bit rows without a prologue in one pass: as [`super::one_pass`], with keys of 16 bits, 32 to a register, and without
//! widening rows in memory. Of layers with bf16 input it takes 1 to 8 % less time (`docs/benchmarks/cpu-prologue.md`).

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range as Span;

use super::encode::scratch_length;
use super::float16::{self, Float16, ROWS_AHEAD, SpecialColumns};
use super::one_pass::{Part, SAMPLES, too_many};
use super::outliers::Outliers;
use super::quantizer::{Encoded, Quantizer, Workspace, refill};
use super::terms::RowTerms;
use crate::convert;
use crate::layout::row_stride;
use crate::matrix::Source;
use crate::simd::{Instructions, Vectorize, Vectorized};

/// Elements of x below which rows are corrected by the calling thread: at most some 10 µs, if all are quantised again.
const SERIAL_CORRECTION: usize = 1 << 17;

/// Rows that are scanned before their codes are written.
const ROWS_AT_ONCE: usize = 4;

impl<K: Vectorize> Quantizer<'_, K> {
    /// As [`in_one_pass`](Self::in_one_pass), of 16-bit rows without a prologue, of type T.
    pub(super) fn in_one_pass_16<T: Float16>(&self, workspace: Workspace, threshold: f32) -> Encoded {
        let Workspace { mut codes, mut terms, groups, mut dense, kept } = workspace;
        let again = |codes, terms, dense, groups, kept| {
            let workspace = Workspace { codes, terms, groups, dense, kept };
            self.in_two_passes(workspace, self.outlier_columns())
        };
        let (rows, inner) = (self.rows.len(), self.rows.inner);
        let (stride, least) = (row_stride(inner), float16::least_reaching::<T>(threshold));
        let (mut keys, samples) = (vec![u16::MAX; inner], 0..SAMPLES.min(rows));
        let (x, _elements) = (self.rows.x, PhantomData::<T>);
        self.kernel.vectorize(Sample { x, rows: samples, least, keys: &mut keys, _elements });
        let mut columns = SpecialColumns::new::<T>(least, &keys).outliers;
        if too_many(&columns, inner) {
            return again(codes, terms, dense, groups, kept);
        }
        refill(&mut terms, rows);
        refill(&mut dense, rows * columns.len());
        let mut below = vec![0; rows];
        let all_codes = &mut codes.codes_mut()[..rows * stride];
        let all = Part { codes: all_codes, terms: &mut terms, below: &mut below, dense: &mut dense };
        if let Some(unexpected) = self.guess::<T>(least, &columns, all) {
            let found = SpecialColumns::new::<T>(least, &lesser(keys, unexpected));
            if too_many(&found.outliers, inner) {
                // Not all of them are known: a task that meets too many stops.
                return again(codes, terms, dense, groups, kept);
            }
            refill(&mut dense, rows * found.outliers.len());
            let all_codes = &mut codes.codes_mut()[..rows * stride];
            let all = Part { codes: all_codes, terms: &mut terms, below: &mut below, dense: &mut dense };
            self.correct::<T>(&found, all);
            columns = found.outliers;
        }
        let outliers = match dense.len() {
            0 => Outliers::None,
            count => Outliers::Dense { values: dense, count, whole: true },
        };
        Encoded { codes, stride, terms, groups: Vec::new(), group_count: 0, columns, outliers, kept }
    }

    /// Quantises all rows by what is below the threshold and not in the columns that are expected, whose values go to `dense`.
    /// Returns the keys of rows with other outliers, or NaN; where that are too many columns, not all rows have been quantised.
    fn guess<T: Float16>(&self, least: u16, expected: &[usize], all: Part<'_>) -> Option<Vec<u16>> {
        let mask = float16::mask(self.rows.inner, expected);
        let mask = mask.as_slice();
        let keys = self.in_tasks(self.serial(), expected.len(), all, |rows, part| {
            let (quantizer, _elements) = (self, PhantomData::<T>);
            self.kernel.vectorize(Guess { quantizer, rows, least, expected, mask, part, _elements })
        });
        keys.into_iter().flatten().reduce(lesser)
    }

    /// Takes these columns out of rows that were quantised without knowing all of them; their values go to `dense`.
    fn correct<T: Float16>(&self, found: &SpecialColumns, all: Part<'_>) {
        let mask = float16::mask(self.rows.inner, &found.outliers);
        let mask = mask.as_slice();
        let serial = self.serial() || self.rows.len() * self.rows.inner < SERIAL_CORRECTION;
        self.in_tasks(serial, found.outliers.len(), all, |rows, part| {
            let (quantizer, _elements) = (self, PhantomData::<T>);
            self.kernel.vectorize(Correct { quantizer, rows, found, mask, part, _elements });
        });
    }
}

/// The lesser of each pair of numbers.
fn lesser(mut all: Vec<u16>, other: Vec<u16>) -> Vec<u16> {
    all.iter_mut().zip(other).for_each(|(all, other)| *all = (*all).min(other));
    all
}

/// Writes the least key of each column in some rows.
struct Sample<'a, T> {
    x: Source<'a>,
    rows: Span<usize>,
    least: u16,
    keys: &'a mut [u16],
    _elements: PhantomData<T>,
}

impl<T: Float16> Vectorized for Sample<'_, T> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, _: I) {
        float16::lower_by_rows::<T>(self.x, self.rows, self.least, self.keys);
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
    /// The keys of rows with outliers in other columns, or with NaN.
    type Output = Option<Vec<u16>>;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Self::Output {
        let Self { quantizer, rows, least, expected, mask, part, .. } = self;
        let Part { codes, terms, below, mut dense } = part;
        let x = quantizer.rows.x;
        let mut mask = Cow::Borrowed(mask);
        let (stride, length) = (row_stride(x.columns), scratch_length(x.columns));
        rows.clone().take(ROWS_AHEAD).for_each(|row| float16::prefetch_row(T::of(x.row(row))));
        let mut keys = None;
        let mut targets = codes.chunks_mut(stride).zip(terms);
        for (first, below) in rows.clone().step_by(ROWS_AT_ONCE).zip(below.chunks_mut(ROWS_AT_ONCE)) {
            // All before their codes: what is largest takes as long to get out of the vectors of a short row as its codes take
            // to compute.
            for (row, below) in (first..).zip(&mut *below) {
                if row + ROWS_AHEAD < rows.end {
                    float16::prefetch_row(T::of(x.row(row + ROWS_AHEAD)));
                }
                let row = T::of(x.row(row));
                let found = float16::scan(row, &mask, least);
                *below = u32::from(found.below);
                if found.others {
                    let keys = keys.get_or_insert_with(|| vec![u16::MAX; x.columns]);
                    float16::lower_keys(row, least, keys);
                    // From here on these columns are expected, too.
                    let columns = SpecialColumns::new::<T>(least, keys).outliers;
                    if too_many(&columns, x.columns) {
                        return Some(std::mem::take(keys));
                    }
                    columns.into_iter().for_each(|column| mask.to_mut()[column] = 0);
                }
            }
            let mask = (keys.is_some() || !expected.is_empty()).then_some(&*mask);
            for ((row, below), (codes, terms)) in (first..).zip(below).zip(&mut targets) {
                let parameters = float16::absmax::<T>(*below);
                let row = T::of(x.row(row));
                float16::encode::<I, T, false>(
                    simd,
                    row,
                    mask,
                    parameters,
                    K::CODE_OFFSET,
                    &mut codes[..length],
                );
                *terms = RowTerms::new(parameters, 0);
                let (values, rest) = dense.split_at_mut(expected.len());
                dense = rest;
                float16::gather(row, expected, values);
            }
        }
        keys
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
        let stride = row_stride(quantizer.rows.x.columns);
        for (((row, codes), terms), below) in rows.zip(codes.chunks_mut(stride)).zip(terms).zip(below) {
            let row = T::of(quantizer.rows.x.row(row));
            let (values, rest) = dense.split_at_mut(columns.len());
            dense = rest;
            // NaN is no outlier: it makes all of a row NaN, unless it is in a column of outliers.
            let mut again = nan.iter().any(|column| float16::magnitude(row[*column]) > T::INFINITY);
            float16::gather(row, columns, values);
            for column in columns {
                codes[*column] = convert::code_byte(0, K::CODE_OFFSET);
                again |= u32::from(float16::magnitude(row[*column])) == *below;
            }
            if again {
                let codes = &mut codes[..scratch_length(row.len())];
                let (parameters, _) =
                    float16::quantize::<I, T, false>(simd, row, mask, K::CODE_OFFSET, codes);
                *terms = RowTerms::new(parameters, 0);
            }
        }
    }
}
