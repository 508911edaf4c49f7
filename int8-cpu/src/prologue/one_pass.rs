//! Rows quantised in one pass in the usual setting: absmax of a row without the outlier columns, where a column is one if any
//! of its values reaches a threshold.
//!
//! The outlier columns are known only after the last row. They are guessed from the first rows: features with outliers have
//! them in many rows (Dettmers et al. 2022, section 4). Each row is then quantised by what is below the threshold outside the
//! guessed columns. Only if other columns turn up, or a NaN, rows are corrected: the codes of all these columns become those
//! of 0, and a row whose scale was a value of one of them is computed and quantised again. With many outlier columns, x is
//! quantised in two passes.
//!
//! The key of a value is `(bits & 0x7FFF_FFFF) − threshold_bits (mod 2³²)`; ascending: outliers, NaN, below the threshold. The
//! least key of a row or column finds outliers, the largest of a row is its absmax below the threshold.

use std::ops::Range as Span;
use std::sync::atomic::{AtomicBool, Ordering};

use int8_core::Encoding;

use super::encode::{self, BLOCK, Keep, scratch_length};
use super::outliers::Outliers;
use super::parameters::{Parameters, Range};
use super::quantizer::{Encoded, Quantizer, Workspace, parts, refill};
use super::rows::RowScratch;
use super::terms::RowTerms;
use crate::convert;
use crate::layout::row_stride;
use crate::pool;
use crate::simd::{Instructions, Vectorize, Vectorized};

/// One column in so many may hold outliers: with more, correcting single codes takes as long as quantising again.
const COLUMNS_FOR_OUTLIERS: usize = 32;

/// One column in so many may hold outliers that the first rows have not, in the rows of a task.
const UNEXPECTED_COLUMNS: usize = 4 * COLUMNS_FOR_OUTLIERS;

/// One column in so many may hold outliers in the first rows.
const GUESSED_COLUMNS: usize = 2 * COLUMNS_FOR_OUTLIERS;

/// Elements of x below which rows are corrected by the calling thread: at most some 10 µs, if all are quantised again.
const SERIAL_CORRECTION: usize = 1 << 17;

/// Rows that columns are guessed from: the first ones, which the calling thread quantises next.
pub(super) const SAMPLES: usize = 4;

/// All bits but the sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;

/// The bits of +∞; those of NaNs are larger.
const INFINITY: u32 = 0x7F80_0000;

impl<K: Vectorize> Quantizer<'_, K> {
    /// Quantises the rows, each read once unless columns were guessed wrong.
    pub(super) fn in_one_pass(&self, workspace: Workspace, threshold: f32) -> Encoded {
        let Workspace { mut codes, mut terms, groups, mut dense, kept } = workspace;
        let again = |codes, terms, dense, groups, kept| {
            self.knowing_columns(Workspace { codes, terms, groups, dense, kept })
        };
        let (rows, inner) = (self.rows.len(), self.rows.inner);
        // Positive: rules are validated.
        let (stride, least) = (row_stride(inner), threshold.to_bits());
        let mut keys = vec![u32::MAX; inner];
        let samples = 0..SAMPLES.min(rows);
        self.kernel.vectorize(Sample { quantizer: self, rows: samples, least, keys: &mut keys });
        let mut columns = SpecialColumns::new(least, &keys).outliers;
        // Later rows add to them: rather no guess than one that fails after most rows are quantised.
        if columns.len() * GUESSED_COLUMNS > inner {
            return again(codes, terms, dense, groups, kept);
        }
        refill(&mut terms, rows);
        refill(&mut dense, rows * columns.len());
        let mut below = vec![0; rows];
        let all_codes = &mut codes.codes_mut()[..rows * stride];
        let all = Part { codes: all_codes, terms: &mut terms, below: &mut below, dense: &mut dense };
        let (expected, failed) = (columns.as_slice(), &AtomicBool::new(false));
        let unexpected = self.in_tasks(self.serial(), expected.len(), all, |rows, part| {
            self.kernel.vectorize(Guess { quantizer: self, rows, least, expected, failed, part })
        });
        if failed.load(Ordering::Relaxed) {
            return again(codes, terms, dense, groups, kept);
        }
        if let Some(unexpected) = unexpected.into_iter().flatten().reduce(lesser) {
            let found = SpecialColumns::new(least, &lesser(keys, unexpected));
            if too_many(&found.outliers, inner) {
                return again(codes, terms, dense, groups, kept);
            }
            refill(&mut dense, rows * found.outliers.len());
            let all_codes = &mut codes.codes_mut()[..rows * stride];
            let all = Part { codes: all_codes, terms: &mut terms, below: &mut below, dense: &mut dense };
            let serial = self.serial() || rows * inner < SERIAL_CORRECTION;
            self.in_tasks(serial, found.outliers.len(), all, |rows, part| {
                self.kernel.vectorize(Correct { quantizer: self, rows, found: &found, part });
            });
            columns = found.outliers;
        }
        let outliers = match dense.len() {
            0 => Outliers::None,
            count => Outliers::Dense { values: dense, count, whole: true },
        };
        Encoded { codes, stride, terms, groups: Vec::new(), group_count: 0, columns, outliers, kept }
    }

    /// Does a job for all rows, at once or in tasks, in the order of the rows; `dense` has so many `columns`.
    pub(super) fn in_tasks<R: Send>(
        &self,
        serial: bool,
        columns: usize,
        all: Part<'_>,
        job: impl Fn(Span<usize>, Part<'_>) -> R + Sync,
    ) -> Vec<R> {
        let count = self.rows.len();
        if serial {
            return vec![job(0..count, all)];
        }
        let (task_rows, stride) = (self.task_rows(), row_stride(self.rows.inner));
        let Part { codes, terms, below, dense } = all;
        let dense = parts(dense, task_rows * columns, count.div_ceil(task_rows));
        let rows = terms.chunks_mut(task_rows).zip(below.chunks_mut(task_rows));
        let tasks = codes.chunks_mut(task_rows * stride).zip(rows).zip(dense).enumerate();
        let mut results: Vec<Option<R>> = Vec::new();
        results.resize_with(count.div_ceil(task_rows), || None);
        pool::for_each(
            tasks.zip(&mut results).collect(),
            || (),
            |(), ((task, ((codes, (terms, below)), dense)), result)| {
                let first = task * task_rows;
                *result = Some(job(first..first + terms.len(), Part { codes, terms, below, dense }));
            },
        );
        results.into_iter().flatten().collect()
    }
}

pub(super) fn too_many(columns: &[usize], inner: usize) -> bool {
    columns.len() * COLUMNS_FOR_OUTLIERS > inner
}

/// The lesser of each pair of numbers.
fn lesser(mut all: Vec<u32>, other: Vec<u32>) -> Vec<u32> {
    all.iter_mut().zip(other).for_each(|(all, other)| *all = (*all).min(other));
    all
}

/// The results of rows, all or those of a task.
pub(super) struct Part<'a> {
    pub(super) codes: &'a mut [i8],
    pub(super) terms: &'a mut [RowTerms],
    /// The bits of their largest magnitude below the threshold.
    pub(super) below: &'a mut [u32],
    /// f32 `[rows, columns]`, row-major: the values of outlier columns.
    pub(super) dense: &'a mut [f32],
}

/// The columns that the least keys of all columns tell.
struct SpecialColumns {
    /// Those with an outlier, ascending.
    outliers: Vec<usize>,
    /// Those with a NaN and without an outlier.
    nan: Vec<usize>,
}

impl SpecialColumns {
    fn new(least: u32, keys: &[u32]) -> Self {
        let (outlier_limit, nan_limit) = (INFINITY - least, MAGNITUDE - least);
        let mut columns = Self { outliers: Vec::new(), nan: Vec::new() };
        for (i, block) in keys.chunks(BLOCK).enumerate() {
            // Most hold none: tested in vectors.
            if block.iter().fold(u32::MAX, |least, key| least.min(*key)) > nan_limit {
                continue;
            }
            for (column, key) in (i * BLOCK..).zip(block) {
                match *key {
                    key if key <= outlier_limit => columns.outliers.push(column),
                    key if key <= nan_limit => columns.nan.push(column),
                    _ => {}
                }
            }
        }
        columns
    }
}

/// Lowers the keys of columns to those of a row where they are less.
#[inline(always)]
fn lower_keys(row: &[f32], least: u32, keys: &mut [u32]) {
    for (value, key) in row.iter().zip(keys) {
        *key = (value.to_bits() & MAGNITUDE).wrapping_sub(least).min(*key);
    }
}

/// The bits of the largest magnitude of a row below the threshold, and whether it holds an outlier or a NaN.
#[inline(always)]
fn scan(blocks: &[[f32; BLOCK]], least: u32) -> (u32, bool) {
    let (mut largest, mut smallest) = (0_u32, u32::MAX);
    for value in blocks.as_flattened() {
        let key = (value.to_bits() & MAGNITUDE).wrapping_sub(least);
        largest = largest.max(key);
        smallest = smallest.min(key);
    }
    let below = if largest >= least.wrapping_neg() { largest.wrapping_add(least) } else { 0 };
    (below, smallest <= MAGNITUDE - least)
}

/// Moves the values of these columns to `values`, leaving zeros, whose code is that of a column that takes no part.
#[inline(always)]
fn take_columns(blocks: &mut [[f32; BLOCK]], columns: &[usize], values: &mut [f32]) {
    let row = blocks.as_flattened_mut();
    for (column, value) in columns.iter().zip(values) {
        *value = std::mem::take(&mut row[*column]);
    }
}

/// Lowers the keys of the columns to the least of some rows.
struct Sample<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    least: u32,
    keys: &'a mut [u32],
}

impl<K: Vectorize> Vectorized for Sample<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, rows, least, keys } = self;
        let mut scratch = RowScratch::default();
        for row in rows {
            let blocks = quantizer.rows.blocks(simd, quantizer.kernel, row, &mut scratch);
            lower_keys(&blocks.as_flattened()[..keys.len()], least, keys);
        }
    }
}

/// Quantises rows by what is below the threshold.
struct Guess<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    /// The bits of the threshold.
    least: u32,
    /// The columns that outliers are expected in.
    expected: &'a [usize],
    /// Set by the first task that meets too many other columns, so that none goes on in vain.
    failed: &'a AtomicBool,
    part: Part<'a>,
}

impl<K: Vectorize> Vectorized for Guess<'_, '_, K> {
    /// The keys of rows with outliers in other columns, or with NaN; `None` if there are no such rows. Incomplete if the guess
    /// failed.
    type Output = Option<Vec<u32>>;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Self::Output {
        let Self { quantizer, rows, least, expected, failed, part } = self;
        let Part { codes, terms, below, mut dense } = part;
        let inner = quantizer.rows.inner;
        let (stride, length) = (row_stride(inner), scratch_length(inner));
        let mut scratch = RowScratch::default();
        let (mut keys, mut unexpected, mut unused) = (None, Vec::new(), Vec::new());
        let targets = codes.chunks_mut(stride).zip(terms).zip(below);
        for (row, ((codes, terms), below)) in rows.zip(targets) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            let blocks = quantizer.rows.materialize(quantizer.kernel, row, &mut scratch);
            let (values, rest) = dense.split_at_mut(expected.len());
            dense = rest;
            take_columns(blocks, expected, values);
            take_columns(blocks, &unexpected, &mut unused);
            let special;
            (*below, special) = scan(blocks, least);
            if special {
                let keys = keys.get_or_insert_with(|| vec![u32::MAX; inner]);
                lower_keys(&blocks.as_flattened()[..inner], least, keys);
                // From here on these columns are expected, too.
                unexpected = SpecialColumns::new(least, keys).outliers;
                if unexpected.len() * UNEXPECTED_COLUMNS > inner {
                    failed.store(true, Ordering::Relaxed);
                }
                unused.resize(unexpected.len(), 0.0);
            }
            let parameters = absmax(*below);
            encode::encode_in_range(simd, blocks, parameters, K::CODE_OFFSET, &mut codes[..length]);
            *terms = RowTerms::new(parameters, 0);
        }
        keys
    }
}

/// The parameters of values whose largest magnitude has these bits.
#[inline(always)]
fn absmax(largest: u32) -> Parameters {
    Parameters::new(Range::up_to(f32::from_bits(largest)), Encoding::Absmax)
}

/// Takes outlier columns out of rows that were quantised without knowing all of them.
struct Correct<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    rows: Span<usize>,
    found: &'a SpecialColumns,
    part: Part<'a>,
}

impl<K: Vectorize> Vectorized for Correct<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, rows, found, part } = self;
        let Part { codes, terms, below, mut dense } = part;
        let SpecialColumns { outliers: columns, nan } = found;
        let inner = quantizer.rows.inner;
        let (stride, length) = (row_stride(inner), scratch_length(inner));
        let mut scratch = RowScratch::default();
        for (row, ((codes, terms), below)) in rows.zip(codes.chunks_mut(stride).zip(terms).zip(below)) {
            let blocks = quantizer.rows.materialize(quantizer.kernel, row, &mut scratch);
            let (values, rest) = dense.split_at_mut(columns.len());
            dense = rest;
            // A NaN is no outlier: it makes its whole row NaN, unless its column holds outliers.
            let row = blocks.as_flattened();
            let mut again = nan.iter().any(|column| row[*column].is_nan());
            take_columns(blocks, columns, values);
            for (column, value) in columns.iter().zip(values) {
                codes[*column] = convert::code_byte(0, K::CODE_OFFSET);
                again |= value.to_bits() & MAGNITUDE == *below;
            }
            if again {
                let parameters = Parameters::new(
                    encode::range(simd, blocks, Keep::All, Encoding::Absmax),
                    Encoding::Absmax,
                );
                let codes = &mut codes[..length];
                encode::encode(simd, blocks, inner, Keep::All, parameters, K::CODE_OFFSET, codes);
                *terms = RowTerms::new(parameters, 0);
            }
        }
    }
}
