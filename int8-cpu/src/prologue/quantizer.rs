//! The input of a layer, quantised straight into the rows that the tiles read, with its outliers taken out.

use std::ops::Range as Span;

use half::{bf16, f16};
use int8_core::{
    Config, Encoding, FloatSlice, FloatType, GROUP, Granularity, OutlierGranularity, OutlierRule, RowMaximum,
};
use ndarray::aview1;
use rayon::prelude::*;

use super::encode::{self, BLOCK, Keep, scratch_length};
use super::float16::{self, Float16};
use super::outliers::{Outliers, flag_outliers, list_outliers, union};
use super::parameters::{Parameters, Range};
use super::statistics::relative_threshold;
use super::terms::{GroupTerms, RowTerms};
use crate::buffer::{Buffer, LINE};
use crate::layout::{padded_groups, row_stride};
use crate::matrix::Source;
use crate::simd::{Instructions, Vectorize, Vectorized};

/// Elements of `x` below which preparing it is left to the calling thread: some 10 µs of work, about what waking a
/// sleeping thread costs.
const SERIAL_ELEMENTS: usize = 1 << 15;

/// The same for finding the columns of outliers among 16-bit values, whose bits are compared: with AVX-512 up to 4 µs.
const SERIAL_ELEMENTS_16: usize = 1 << 18;

/// Tasks of each thread: with more, some hundred nanoseconds for each add up.
const TASKS_PER_THREAD: usize = 2;

/// A quantised input.
pub(crate) struct Input {
    /// `i8 [M, stride]`, with the kernel's offset added. Beyond K each row holds arbitrary bytes up to padded K: they
    /// meet the zero codes of the weight's padding.
    pub(crate) codes: Buffer,
    pub(crate) stride: usize,
    pub(crate) terms: Vec<RowTerms>,
    /// `[M, group_count]`: where constants are those of groups, they are here and `terms` are zero.
    pub(crate) groups: Vec<GroupTerms>,
    pub(crate) group_count: usize,
    /// Outlier columns, ascending.
    pub(crate) columns: Vec<usize>,
    pub(crate) outliers: Outliers,
}

/// Whether the product needs constants for groups of K.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum InputGroups {
    None,
    Plain,
    /// With [`GroupTerms::rest`], which zero points of the weight are multiplied with.
    WithRests,
}

impl Input {
    /// The terms of the groups of these rows; nothing where there are none.
    pub(crate) fn group_terms(&self, rows: Span<usize>) -> &[GroupTerms] {
        &self.groups[rows.start * self.group_count..rows.end * self.group_count]
    }

    /// How many values left the int8 product.
    pub(crate) fn outlier_values(&self) -> usize {
        match &self.outliers {
            Outliers::None => 0,
            Outliers::Dense { count, .. } => *count,
            Outliers::Sparse(rows) => rows.iter().map(Vec::len).sum(),
        }
    }
}

/// Scratch of one thread: a row widened to f32, and magnitudes for a median.
#[derive(Default)]
struct Scratch {
    row: Vec<f32>,
    magnitudes: Vec<u32>,
}

/// One call's quantisation.
pub(crate) struct Quantizer<'a, K> {
    pub(crate) x: Source<'a>,
    pub(crate) config: &'a Config,
    pub(crate) groups: InputGroups,
    /// Whether [`RowTerms::sum`] is wanted, which zero points of the weight are multiplied with.
    pub(crate) sums: bool,
    pub(crate) tile: K,
}

impl<K: Vectorize> Quantizer<'_, K> {
    /// Quantises `x`, reusing the memory of `codes`, with these outlier columns.
    pub(crate) fn in_two_passes(&self, mut codes: Buffer, columns: Vec<usize>) -> Input {
        let (rows, inner) = (self.x.rows, self.x.columns);
        let stride = row_stride(inner);
        let mut mask = vec![u32::MAX; if columns.is_empty() { 0 } else { scratch_length(inner) }];
        columns.iter().for_each(|column| mask[*column] = 0);
        let unwidened = self.x.float_type() != FloatType::F32 && self.without_widening();
        let mask16 = if unwidened { float16::mask(inner, &columns) } else { Vec::new() };

        let constants = self.tensor_constants(&mask);
        let mut results: Vec<RowResult> = Vec::new();
        results.resize_with(rows, RowResult::default);
        let mut dense = vec![0.0_f32; rows * columns.len()];
        let group_count = if self.groups == InputGroups::None { 0 } else { padded_groups(inner) };
        let mut groups = vec![GroupTerms::default(); rows * group_count];
        let task_codes = &mut codes.codes_mut()[..rows * stride];
        let job = |span: Span<usize>, scratch: &mut Scratch, part: Part<'_>| {
            self.tile.vectorize(EncodeRows {
                quantizer: self,
                span,
                scratch,
                mask: &mask,
                mask16: &mask16,
                columns: &columns,
                constants,
                part,
            });
        };
        if self.serial() {
            job(
                0..rows,
                &mut Scratch::default(),
                Part { codes: task_codes, results: &mut results, groups: &mut groups, dense: &mut dense },
            );
        } else {
            let task_rows = self.task_rows();
            let tasks = rows.div_ceil(task_rows);
            let dense_parts = parts(&mut dense, task_rows * columns.len(), tasks);
            let group_parts = parts(&mut groups, task_rows * group_count, tasks);
            let tasks = task_codes.par_chunks_mut(task_rows * stride).zip(results.par_chunks_mut(task_rows));
            tasks.zip(dense_parts).zip(group_parts).enumerate().for_each_init(
                Scratch::default,
                |scratch, (task, (((codes, results), dense), groups))| {
                    let first = task * task_rows;
                    job(first..first + results.len(), scratch, Part { codes, results, groups, dense });
                },
            );
        }
        let terms = results.iter().map(|row| row.terms).collect();
        if !columns.is_empty() {
            return Input {
                codes,
                stride,
                terms,
                groups,
                group_count,
                columns,
                outliers: Outliers::Dense { count: dense.len(), values: dense },
            };
        }
        let lists: Vec<_> = results.into_iter().map(|row| row.outliers).collect();
        let (columns, outliers) = union(inner, lists);
        Input { codes, stride, terms, groups, group_count, columns, outliers }
    }

    /// Rows that one task prepares.
    pub(crate) fn task_rows(&self) -> usize {
        let tasks = if self.serial() { 1 } else { TASKS_PER_THREAD * rayon::current_num_threads() };
        self.x.rows.div_ceil(tasks).max(1)
    }

    pub(crate) fn serial(&self) -> bool {
        // With one thread in the pool, handing it the work would only mean waiting for it to wake up.
        self.x.rows * self.x.columns < SERIAL_ELEMENTS || rayon::current_num_threads() == 1
    }

    /// Whether rows of 16-bit floats can be quantised as they are: an absmax scale for each, and whole columns that take no
    /// part, or none.
    pub(crate) fn without_widening(&self) -> bool {
        let config = self.config;
        let by_column = config.outlier_granularity == OutlierGranularity::Column;
        self.groups == InputGroups::None
            && config.input_encoding == Encoding::Absmax
            && config.input_granularity == Granularity::Row
            && (config.rule == OutlierRule::None || by_column)
            && !self.by_threshold()
    }

    /// The columns that leave as a whole.
    pub(crate) fn outlier_columns(&self) -> Vec<usize> {
        if self.config.outlier_granularity == OutlierGranularity::Value
            || self.config.rule == OutlierRule::None
        {
            return Vec::new();
        }
        let (rows, inner) = (self.x.rows, self.x.columns);
        let flag = |span: Span<usize>| {
            let mut flags = vec![0_u8; inner];
            let mut scratch = Scratch::default();
            self.tile.vectorize(FlagColumns {
                quantizer: self,
                span,
                scratch: &mut scratch,
                flags: &mut flags,
            });
            flags
        };
        let on_bits =
            self.x.float_type() != FloatType::F32 && matches!(self.config.rule, OutlierRule::Absolute(_));
        let flags = if self.serial() || (on_bits && rows * inner < SERIAL_ELEMENTS_16) {
            flag(0..rows)
        } else {
            let task = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
            let tasks =
                (0..rows.div_ceil(task)).into_par_iter().map(|i| flag(i * task..rows.min((i + 1) * task)));
            tasks.reduce(
                || vec![0; inner],
                |mut all, flags| {
                    all.iter_mut().zip(flags).for_each(|(all, flag)| *all |= flag);
                    all
                },
            )
        };
        // Most stretches hold none: looked at in vectors.
        let stretches = flags
            .chunks(LINE)
            .enumerate()
            .filter(|(_, flags)| flags.iter().fold(0, |any, flag| any | flag) != 0);
        let columns = stretches.flat_map(|(stretch, flags)| (stretch * LINE..).zip(flags));
        columns.filter(|(_, flag)| **flag != 0).map(|(column, _)| column).collect()
    }

    /// The constants of the whole matrix, where the configuration wants one for all rows.
    fn tensor_constants(&self, mask: &[u32]) -> Option<Parameters> {
        if self.config.input_granularity != Granularity::Tensor {
            return None;
        }
        let rows = 0..self.x.rows;
        let range_of = |scratch: &mut Scratch, row| {
            self.tile.vectorize(RangeOfRow { quantizer: self, row, scratch, mask })
        };
        let whole = if self.serial() {
            let mut scratch = Scratch::default();
            rows.fold(Range::EMPTY, |range, row| range.union(range_of(&mut scratch, row)))
        } else {
            rows.into_par_iter().map_init(Scratch::default, range_of).reduce(|| Range::EMPTY, Range::union)
        };
        Some(Parameters::new(whole, self.config.input_encoding))
    }

    /// The magnitude from which on a value of this row is an outlier.
    #[inline(always)]
    fn threshold<I: Instructions>(&self, simd: I, blocks: &[[f32; BLOCK]], magnitudes: &mut Vec<u32>) -> f32 {
        match self.config.rule {
            OutlierRule::None => f32::NAN,
            OutlierRule::Absolute(threshold) => threshold,
            OutlierRule::RelativeToRow { tau, statistic } => {
                relative_threshold(simd, blocks, self.x.columns, tau, statistic, magnitudes)
            }
            // A rule that the reference got after this crate: its own, slower answer.
            ref other => other.threshold(aview1(&blocks.as_flattened()[..self.x.columns])),
        }
    }

    /// Whether a row's threshold matters once the outlier columns are known.
    fn by_threshold(&self) -> bool {
        let by_column = self.config.outlier_granularity == OutlierGranularity::Column;
        self.config.rule != OutlierRule::None && !(by_column && self.config.row_maximum == RowMaximum::Paper)
    }

    /// Which values count for the range, and which of them get a code of their own.
    #[inline(always)]
    fn kept<'m>(&self, threshold: f32, mask: &'m [u32]) -> (Keep<'m>, Keep<'m>) {
        let masked = if mask.is_empty() { Keep::All } else { Keep::Masked(mask) };
        match (self.config.rule, self.config.outlier_granularity, self.config.row_maximum) {
            (OutlierRule::None, ..) => (Keep::All, Keep::All),
            (_, OutlierGranularity::Value, _) => (Keep::Below(threshold), Keep::Below(threshold)),
            (_, OutlierGranularity::Column, RowMaximum::Paper) => (masked, masked),
            (_, OutlierGranularity::Column, RowMaximum::Bitsandbytes) => (Keep::Below(threshold), masked),
        }
    }
}

/// What one row gives besides its codes.
#[derive(Default)]
struct RowResult {
    terms: RowTerms,
    outliers: Vec<(u32, f32)>,
}

/// Where one task writes.
struct Part<'a> {
    codes: &'a mut [i8],
    results: &'a mut [RowResult],
    groups: &'a mut [GroupTerms],
    dense: &'a mut [f32],
}

struct FlagColumns<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    span: Span<usize>,
    scratch: &'a mut Scratch,
    flags: &'a mut [u8],
}

impl<K: Vectorize> Vectorized for FlagColumns<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, span, scratch, flags } = self;
        let x = quantizer.x;
        match (&quantizer.config.rule, x.float_type()) {
            (OutlierRule::Absolute(threshold), FloatType::F16) => {
                return float16::flag_outliers::<f16>(x, span, *threshold, flags);
            }
            (OutlierRule::Absolute(threshold), FloatType::Bf16) => {
                return float16::flag_outliers::<bf16>(x, span, *threshold, flags);
            }
            _ => {}
        }
        for row in span {
            let blocks = encode::widen(simd, x.row(row), &mut scratch.row);
            let threshold = quantizer.threshold(simd, blocks, &mut scratch.magnitudes);
            flag_outliers(simd, &blocks.as_flattened()[..x.columns], threshold, flags);
        }
    }
}

struct RangeOfRow<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    row: usize,
    scratch: &'a mut Scratch,
    mask: &'a [u32],
}

impl<K: Vectorize> Vectorized for RangeOfRow<'_, '_, K> {
    type Output = Range;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Range {
        let blocks = encode::widen(simd, self.quantizer.x.row(self.row), &mut self.scratch.row);
        let threshold = if self.quantizer.by_threshold() {
            self.quantizer.threshold(simd, blocks, &mut self.scratch.magnitudes)
        } else {
            f32::NAN
        };
        encode::range(
            simd,
            blocks,
            self.quantizer.kept(threshold, self.mask).0,
            self.quantizer.config.input_encoding,
        )
    }
}

struct EncodeRows<'a, 'q, 'p, K> {
    quantizer: &'a Quantizer<'q, K>,
    span: Span<usize>,
    scratch: &'a mut Scratch,
    mask: &'a [u32],
    /// Of rows that are quantised [without being widened](Quantizer::without_widening); empty else.
    mask16: &'a [u16],
    columns: &'a [usize],
    constants: Option<Parameters>,
    part: Part<'p>,
}

impl<K: Vectorize> Vectorized for EncodeRows<'_, '_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, span, scratch, mask, mask16, columns, constants, mut part } = self;
        let config = quantizer.config;
        let stride = row_stride(quantizer.x.columns);
        let by_value =
            config.outlier_granularity == OutlierGranularity::Value && config.rule != OutlierRule::None;
        for (i, row) in span.enumerate() {
            let row = quantizer.x.row(row);
            match row {
                FloatSlice::F16(row) if !mask16.is_empty() => {
                    row16::<K, _, _>(simd, quantizer.sums, row, mask16, columns, i, &mut part);
                    continue;
                }
                FloatSlice::Bf16(row) if !mask16.is_empty() => {
                    row16::<K, _, _>(simd, quantizer.sums, row, mask16, columns, i, &mut part);
                    continue;
                }
                _ => {}
            }
            let blocks = encode::widen(simd, row, &mut scratch.row);
            let threshold = if quantizer.by_threshold() {
                quantizer.threshold(simd, blocks, &mut scratch.magnitudes)
            } else {
                f32::NAN
            };
            let (counted, encoded) = quantizer.kept(threshold, mask);
            let codes = &mut part.codes[i * stride..(i + 1) * stride];
            let result = &mut part.results[i];
            let constants = match constants {
                None if config.input_granularity == Granularity::Group => None,
                None => {
                    let range = encode::range(simd, blocks, counted, config.input_encoding);
                    Some(Parameters::new(range, config.input_encoding))
                }
                whole => whole,
            };
            match constants {
                Some(constants) if quantizer.groups == InputGroups::None => {
                    let inner = quantizer.x.columns;
                    let sum = encode::encode(simd, blocks, inner, encoded, constants, K::CODE_OFFSET, codes);
                    result.terms = RowTerms::new(constants, sum);
                }
                constants => {
                    let count = blocks.len() * BLOCK / GROUP;
                    let job = encode::Groups {
                        constants,
                        counted,
                        encoded,
                        encoding: config.input_encoding,
                        offset: K::CODE_OFFSET,
                        rests: quantizer.groups == InputGroups::WithRests,
                    };
                    job.encode(simd, blocks, codes, &mut part.groups[i * count..(i + 1) * count]);
                }
            }
            if by_value {
                list_outliers(simd, blocks, threshold, &mut result.outliers);
            }
            for (o, column) in columns.iter().enumerate() {
                part.dense[i * columns.len() + o] = blocks.as_flattened()[*column];
            }
        }
    }
}

/// Row `i` of the task.
#[inline(always)]
fn row16<K: Vectorize, I: Instructions, T: Float16>(
    simd: I,
    sums: bool,
    row: &[T],
    mask: &[u16],
    columns: &[usize],
    i: usize,
    part: &mut Part<'_>,
) {
    let stride = row_stride(row.len());
    // Behind K, up to the last block, the codes are zero.
    let codes = &mut part.codes[i * stride..][..scratch_length(row.len())];
    let (constants, sum) = if sums {
        float16::quantize::<I, T, true>(simd, row, mask, K::CODE_OFFSET, codes)
    } else {
        float16::quantize::<I, T, false>(simd, row, mask, K::CODE_OFFSET, codes)
    };
    part.results[i].terms = RowTerms::new(constants, sum);
    float16::gather(row, columns, &mut part.dense[i * columns.len()..]);
}

/// `count` pieces of `size` elements; also when the size is 0, where `chunks` has no answer.
pub(crate) fn parts<E: Send>(mut slice: &mut [E], size: usize, count: usize) -> Vec<&mut [E]> {
    (0..count)
        .map(|_| {
            let all = std::mem::take(&mut slice);
            let end = size.min(all.len());
            let (part, rest) = all.split_at_mut(end);
            slice = rest;
            part
        })
        .collect()
}
