//! Quantisation of all rows of an input, in two passes where outlier columns must be known first, in one where they need not.

use std::ops::Range as Span;

use half::{bf16, f16};
use int8_core::{
    Config, Encoding, FloatSlice, FloatType, GROUP, Granularity, OutlierGranularity, OutlierRule, RowMaximum,
};
use ndarray::{ArrayView2, aview1, s};
use rayon::prelude::*;

use super::encode::{self, BLOCK, Keep, scratch_length};
use super::float16::{self, Float16};
use super::outliers::{Outliers, flag_outliers, list_outliers, union};
use super::parameters::{Parameters, Range};
use super::rows::{ApplyRow, Prologue, RowScratch, Rows};
use super::statistics::relative_threshold;
use super::terms::{GroupTerms, RowTerms};
use crate::buffer::{Buffer, LINE};
use crate::layout::{padded_groups, row_stride};
use crate::matrix::Source;
use crate::pool;
use crate::simd::{Instructions, Vectorize, Vectorized};

/// Elements of `x` below which quantisation stays on the calling thread: some 10 µs of work, about what waking a parked
/// thread costs.
pub(crate) const SERIAL_ELEMENTS: usize = 1 << 15;

/// The same for finding outlier columns among 16-bit values, whose bits are compared: with AVX-512 up to 4 µs.
const SERIAL_ELEMENTS_16: usize = 1 << 18;

/// Bytes of rows after a normalisation that are kept for a second pass, the L2 of a core: more are computed again, in less time
/// than they take to come back from L3.
const KEPT_BYTES: usize = 2 << 20;

/// Tasks of each thread: with more, some hundred nanoseconds for each add up.
const TASKS_PER_THREAD: usize = 2;

/// Buffers that one quantisation leaves to the next: fresh ones would cost page faults.
#[derive(Default)]
pub(crate) struct Workspace {
    pub(crate) codes: Buffer,
    pub(crate) terms: Vec<RowTerms>,
    pub(crate) groups: Vec<GroupTerms>,
    pub(crate) dense: Vec<f32>,
    /// Rows between two passes.
    pub(crate) kept: Buffer,
}

/// The rows of `x` as codes, with their outliers apart.
#[derive(Default)]
pub(crate) struct Encoded {
    /// `i8 [M, stride]`, with the kernel's offset added. Beyond K each row holds arbitrary bytes up to padded K: they
    /// meet the zero codes of the weight's padding.
    pub(crate) codes: Buffer,
    pub(crate) stride: usize,
    pub(crate) terms: Vec<RowTerms>,
    /// `[M, group_count]`: quantization parameters of groups, if they are needed; `terms` are zero then.
    pub(crate) groups: Vec<GroupTerms>,
    pub(crate) group_count: usize,
    /// Outlier columns, ascending.
    pub(crate) columns: Vec<usize>,
    pub(crate) outliers: Outliers,
    /// Nothing but memory for the next quantisation.
    pub(crate) kept: Buffer,
}

/// Which quantization parameters the product needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InputGroups {
    /// Those of rows.
    None,
    /// Those of groups of K.
    Plain,
    /// With [`GroupTerms::rest`], the factor of the weight's zero points.
    WithRests,
}

impl Encoded {
    /// The terms of the groups of these rows; nothing where there are none.
    pub(crate) fn group_terms(&self, rows: Span<usize>) -> &[GroupTerms] {
        &self.groups[rows.start * self.group_count..rows.end * self.group_count]
    }

    /// Number of outlier values.
    pub(crate) fn outlier_values(&self) -> usize {
        match &self.outliers {
            Outliers::None => 0,
            Outliers::Dense { count, .. } => *count,
            Outliers::Sparse(rows) => rows.iter().map(Vec::len).sum(),
        }
    }

    /// Its buffers, for the next quantisation.
    pub(crate) fn into_workspace(self) -> Workspace {
        let Self { codes, terms, groups, outliers, kept, .. } = self;
        let dense = if let Outliers::Dense { values, .. } = outliers { values } else { Vec::new() };
        Workspace { codes, terms, groups, dense, kept }
    }
}

/// One call's quantisation.
pub(crate) struct Quantizer<'a, K> {
    pub(crate) rows: Rows<'a>,
    pub(crate) config: &'a Config,
    pub(crate) groups: InputGroups,
    /// Whether [`RowTerms::sum`] is needed, the factor of the weight's zero points.
    pub(crate) sums: bool,
    pub(crate) kernel: K,
}

impl<K: Vectorize> Quantizer<'_, K> {
    /// Quantises the rows, each read once, or twice for tensor granularity, with these outlier columns.
    pub(crate) fn in_two_passes(&self, workspace: Workspace, columns: Vec<usize>) -> Encoded {
        let Workspace { mut codes, mut terms, mut groups, mut dense, kept } = workspace;
        let (rows, inner) = (self.rows.len(), self.rows.inner);
        let stride = row_stride(inner);
        let mut mask = vec![u32::MAX; if columns.is_empty() { 0 } else { scratch_length(inner) }];
        columns.iter().for_each(|column| mask[*column] = 0);
        let mask16 = if self.is_16_bit() && self.without_widening() {
            float16::mask(inner, &columns)
        } else {
            Vec::new()
        };

        let parameters = self.tensor_parameters(&mask);
        let group_count = if self.groups == InputGroups::None { 0 } else { padded_groups(inner) };
        refill(&mut terms, rows);
        refill(&mut groups, rows * group_count);
        refill(&mut dense, rows * columns.len());
        let mut lists = vec![Vec::new(); if self.by_value() { rows } else { 0 }];
        let task_codes = &mut codes.codes_mut()[..rows * stride];
        let job = |span: Span<usize>, scratch: &mut RowScratch, part: Part<'_>| {
            self.kernel.vectorize(EncodeRows {
                quantizer: self,
                span,
                scratch,
                mask: &mask,
                mask16: &mask16,
                columns: &columns,
                parameters,
                part,
            });
        };
        let all = Part {
            codes: task_codes,
            terms: &mut terms,
            lists: &mut lists,
            groups: &mut groups,
            dense: &mut dense,
        };
        if self.serial() {
            job(0..rows, &mut RowScratch::default(), all);
        } else {
            let task_rows = self.task_rows();
            let tasks = rows.div_ceil(task_rows);
            let dense_parts = parts(all.dense, task_rows * columns.len(), tasks);
            let group_parts = parts(all.groups, task_rows * group_count, tasks);
            let list_parts = parts(all.lists, if self.by_value() { task_rows } else { 0 }, tasks);
            let tasks = all.codes.chunks_mut(task_rows * stride).zip(all.terms.chunks_mut(task_rows));
            let tasks = tasks.zip(dense_parts).zip(group_parts).zip(list_parts).enumerate();
            pool::for_each(
                tasks.collect(),
                RowScratch::default,
                |scratch, (task, ((((codes, terms), dense), groups), lists))| {
                    let first = task * task_rows;
                    job(first..first + terms.len(), scratch, Part { codes, terms, lists, groups, dense });
                },
            );
        }
        if !columns.is_empty() {
            let outliers = Outliers::Dense { count: dense.len(), values: dense, whole: true };
            return Encoded { codes, stride, terms, groups, group_count, columns, outliers, kept };
        }
        let (columns, outliers) = union(inner, lists);
        Encoded { codes, stride, terms, groups, group_count, columns, outliers, kept }
    }

    /// In two passes: outlier columns or the range of the whole matrix first, codes second.
    pub(crate) fn knowing_columns(&self, workspace: Workspace) -> Encoded {
        let bytes = self.rows.len() * self.rows.inner * size_of::<f32>();
        if self.computes() && (self.rows.prologue.is_costly() || bytes <= KEPT_BYTES) {
            return self.keeping_rows(workspace);
        }
        self.in_two_passes(workspace, self.outlier_columns())
    }

    /// Whether there is a prologue to compute.
    pub(crate) fn computes(&self) -> bool {
        !matches!(self.rows.prologue, Prologue::None)
    }

    /// In two passes that compute the prologue once: its rows are kept in f32 for the second.
    pub(crate) fn keeping_rows(&self, mut workspace: Workspace) -> Encoded {
        let (rows, inner) = (self.rows.len(), self.rows.inner);
        let stride = scratch_length(inner);
        let mut kept = std::mem::take(&mut workspace.kept);
        kept.reserve(rows * stride * size_of::<f32>());
        let values = &mut kept.floats_mut()[..rows * stride];
        let keep = |first: usize, out: &mut [f32]| {
            let mut flags = vec![0_u8; if self.has_outlier_columns() { inner } else { 0 }];
            self.kernel.vectorize(KeepRows { quantizer: self, first, out, flags: &mut flags });
            flags
        };
        let flags = if self.serial() {
            keep(0, values)
        } else {
            let task_rows = self.task_rows();
            let tasks = values.par_chunks_mut(task_rows * stride).enumerate();
            tasks.map(|(task, out)| keep(task * task_rows, out)).reduce(Vec::new, either)
        };
        const CONTIGUOUS: &str = "M rows of whole blocks";
        let x = ArrayView2::from_shape((rows, stride), &*values).expect(CONTIGUOUS);
        let x = Source::new(x.slice(s![.., ..inner]), "x").expect(CONTIGUOUS);
        let rows = Rows { x, prologue: Prologue::None, inner };
        let Self { config, groups, sums, kernel, .. } = *self;
        let quantizer = Quantizer { rows, config, groups, sums, kernel };
        let encoded = quantizer.in_two_passes(workspace, flagged(&flags));
        Encoded { kept, ..encoded }
    }

    /// Makes room for the codes of all rows.
    pub(crate) fn reserve(&self, codes: &mut Buffer) {
        // A tile may read beyond the last row, up to a multiple of MR_STEP.
        codes.reserve((self.rows.len() + K::MR_STEP) * row_stride(self.rows.inner));
    }

    /// Rows of one task.
    pub(crate) fn task_rows(&self) -> usize {
        let tasks = if self.serial() { 1 } else { TASKS_PER_THREAD * rayon::current_num_threads() };
        self.rows.len().div_ceil(tasks).max(1)
    }

    pub(crate) fn serial(&self) -> bool {
        // A pool of one thread would only add the wait for that thread to wake up.
        self.rows.len() * self.rows.inner < SERIAL_ELEMENTS || rayon::current_num_threads() == 1
    }

    /// Whether the rows are 16-bit floats as they are quantised.
    pub(crate) fn is_16_bit(&self) -> bool {
        self.rows.x.float_type() != FloatType::F32 && matches!(self.rows.prologue, Prologue::None)
    }

    /// Whether rows of 16-bit floats can be quantised without being widened: an absmax scale for each row, and whole outlier
    /// columns or none.
    pub(crate) fn without_widening(&self) -> bool {
        let config = self.config;
        let by_column = config.outlier_granularity == OutlierGranularity::Column;
        self.groups == InputGroups::None
            && config.input_encoding == Encoding::Absmax
            && config.input_granularity == Granularity::Row
            && (config.rule == OutlierRule::None || by_column)
            && !self.by_threshold()
    }

    /// Whether single values are outliers, not whole columns.
    pub(crate) fn by_value(&self) -> bool {
        self.config.outlier_granularity == OutlierGranularity::Value && self.config.rule != OutlierRule::None
    }

    /// Whether whole columns are outliers.
    fn has_outlier_columns(&self) -> bool {
        self.config.rule != OutlierRule::None && !self.by_value()
    }

    /// Whether each row can be quantised without knowing the others: no outlier columns and no scale of the whole matrix.
    pub(crate) fn is_row_local(&self) -> bool {
        !self.has_outlier_columns() && self.config.input_granularity != Granularity::Tensor
    }

    /// The columns that are outliers as a whole.
    pub(crate) fn outlier_columns(&self) -> Vec<usize> {
        if !self.has_outlier_columns() {
            return Vec::new();
        }
        let (rows, inner) = (self.rows.len(), self.rows.inner);
        let flag = |span: Span<usize>| {
            let mut flags = vec![0_u8; inner];
            let mut scratch = RowScratch::default();
            self.kernel.vectorize(FlagColumns {
                quantizer: self,
                span,
                scratch: &mut scratch,
                flags: &mut flags,
            });
            flags
        };
        let on_bits = self.is_16_bit() && matches!(self.config.rule, OutlierRule::Absolute(_));
        let flags = if self.serial() || (on_bits && rows * inner < SERIAL_ELEMENTS_16) {
            flag(0..rows)
        } else {
            let task = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
            let tasks =
                (0..rows.div_ceil(task)).into_par_iter().map(|i| flag(i * task..rows.min((i + 1) * task)));
            tasks.reduce(Vec::new, either)
        };
        flagged(&flags)
    }

    /// The quantization parameters of the whole matrix, for tensor granularity.
    fn tensor_parameters(&self, mask: &[u32]) -> Option<Parameters> {
        if self.config.input_granularity != Granularity::Tensor {
            return None;
        }
        let rows = 0..self.rows.len();
        let range_of = |scratch: &mut RowScratch, row| {
            self.kernel.vectorize(RangeOfRow { quantizer: self, row, scratch, mask })
        };
        let whole = if self.serial() {
            let mut scratch = RowScratch::default();
            rows.fold(Range::EMPTY, |range, row| range.union(range_of(&mut scratch, row)))
        } else {
            rows.into_par_iter().map_init(RowScratch::default, range_of).reduce(|| Range::EMPTY, Range::union)
        };
        Some(Parameters::new(whole, self.config.input_encoding))
    }

    /// The magnitude from which on a value of this row is an outlier.
    #[inline(always)]
    fn threshold<I: Instructions>(&self, simd: I, blocks: &[[f32; BLOCK]]) -> f32 {
        match self.config.rule {
            OutlierRule::None => f32::NAN,
            OutlierRule::Absolute(threshold) => threshold,
            OutlierRule::RelativeToRow { tau, statistic } => {
                relative_threshold(simd, blocks, self.rows.inner, tau, statistic)
            }
            // A rule that the reference got after this crate: its own, slower answer.
            ref other => other.threshold(aview1(&blocks.as_flattened()[..self.rows.inner])),
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

/// `count` default values in the memory that `values` has.
pub(crate) fn refill<T: Clone + Default>(values: &mut Vec<T>, count: usize) {
    values.clear();
    values.resize(count, T::default());
}

/// Where one task writes.
struct Part<'a> {
    codes: &'a mut [i8],
    terms: &'a mut [RowTerms],
    /// The outliers of each row by column, or nothing.
    lists: &'a mut [Vec<(u32, f32)>],
    groups: &'a mut [GroupTerms],
    dense: &'a mut [f32],
}

struct FlagColumns<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    span: Span<usize>,
    scratch: &'a mut RowScratch,
    flags: &'a mut [u8],
}

impl<K: Vectorize> Vectorized for FlagColumns<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, span, scratch, flags } = self;
        let x = quantizer.rows.x;
        if quantizer.is_16_bit()
            && let OutlierRule::Absolute(threshold) = quantizer.config.rule
        {
            return match x.float_type() {
                FloatType::F16 => float16::flag_outliers::<f16>(x, span, threshold, flags),
                _ => float16::flag_outliers::<bf16>(x, span, threshold, flags),
            };
        }
        for row in span {
            let blocks = quantizer.rows.blocks(simd, quantizer.kernel, row, scratch);
            let threshold = quantizer.threshold(simd, blocks);
            flag_outliers(simd, &blocks.as_flattened()[..quantizer.rows.inner], threshold, flags);
        }
    }
}

/// The flags of either; nothing stands for none.
fn either(mut all: Vec<u8>, flags: Vec<u8>) -> Vec<u8> {
    if all.is_empty() {
        return flags;
    }
    all.iter_mut().zip(flags).for_each(|(all, flag)| *all |= flag);
    all
}

/// The columns whose flag is set.
fn flagged(flags: &[u8]) -> Vec<usize> {
    // Most lines of flags hold none: tested in vectors.
    let lines =
        flags.chunks(LINE).enumerate().filter(|(_, flags)| flags.iter().fold(0, |any, flag| any | flag) != 0);
    let columns = lines.flat_map(|(line, flags)| (line * LINE..).zip(flags));
    columns.filter(|(_, flag)| **flag != 0).map(|(column, _)| column).collect()
}

/// Computes the prologue of rows, and flags the columns in which they have outliers.
struct KeepRows<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    first: usize,
    /// Whole blocks of each row.
    out: &'a mut [f32],
    /// Empty where there are no outlier columns.
    flags: &'a mut [u8],
}

impl<K: Vectorize> Vectorized for KeepRows<'_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, first, out, flags } = self;
        let Rows { x, prologue, inner } = quantizer.rows;
        let mut widened = Vec::new();
        for (row, out) in (first..).zip(out.chunks_exact_mut(scratch_length(inner).max(1))) {
            let (values, padding) = out.split_at_mut(inner);
            padding.fill(0.0);
            let row = x.row(row);
            quantizer.kernel.vectorize(ApplyRow { prologue, row, widened: &mut widened, out: values });
            if !flags.is_empty() {
                let threshold = quantizer.threshold(simd, out.as_chunks().0);
                flag_outliers(simd, &out[..inner], threshold, flags);
            }
        }
    }
}

struct RangeOfRow<'a, 'q, K> {
    quantizer: &'a Quantizer<'q, K>,
    row: usize,
    scratch: &'a mut RowScratch,
    mask: &'a [u32],
}

impl<K: Vectorize> Vectorized for RangeOfRow<'_, '_, K> {
    type Output = Range;

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) -> Range {
        let quantizer = self.quantizer;
        let blocks = quantizer.rows.blocks(simd, quantizer.kernel, self.row, self.scratch);
        let threshold = if quantizer.by_threshold() { quantizer.threshold(simd, blocks) } else { f32::NAN };
        encode::range(simd, blocks, quantizer.kept(threshold, self.mask).0, quantizer.config.input_encoding)
    }
}

struct EncodeRows<'a, 'q, 'p, K> {
    quantizer: &'a Quantizer<'q, K>,
    span: Span<usize>,
    scratch: &'a mut RowScratch,
    mask: &'a [u32],
    /// Of rows that are quantised [without being widened](Quantizer::without_widening); empty else.
    mask16: &'a [u16],
    columns: &'a [usize],
    parameters: Option<Parameters>,
    part: Part<'p>,
}

impl<K: Vectorize> Vectorized for EncodeRows<'_, '_, '_, K> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { quantizer, span, scratch, mask, mask16, columns, parameters, mut part } = self;
        let (config, inner) = (quantizer.config, quantizer.rows.inner);
        let stride = row_stride(inner);
        let by_value = quantizer.by_value();
        for (i, row) in span.enumerate() {
            if !mask16.is_empty() {
                match quantizer.rows.x.row(row) {
                    FloatSlice::F16(row) => {
                        row16::<K, _, _>(simd, quantizer.sums, row, mask16, columns, i, &mut part);
                    }
                    FloatSlice::Bf16(row) => {
                        row16::<K, _, _>(simd, quantizer.sums, row, mask16, columns, i, &mut part);
                    }
                    FloatSlice::F32(_) => unreachable!("a mask of 16 bits for rows of 32"),
                }
                continue;
            }
            let blocks = quantizer.rows.blocks(simd, quantizer.kernel, row, scratch);
            let threshold =
                if quantizer.by_threshold() { quantizer.threshold(simd, blocks) } else { f32::NAN };
            let (counted, encoded) = quantizer.kept(threshold, mask);
            let codes = &mut part.codes[i * stride..(i + 1) * stride];
            let parameters = match parameters {
                None if config.input_granularity == Granularity::Group => None,
                None => {
                    let range = encode::range(simd, blocks, counted, config.input_encoding);
                    Some(Parameters::new(range, config.input_encoding))
                }
                whole => whole,
            };
            match parameters {
                Some(parameters) if quantizer.groups == InputGroups::None => {
                    let sum = encode::encode(simd, blocks, inner, encoded, parameters, K::CODE_OFFSET, codes);
                    part.terms[i] = RowTerms::new(parameters, sum);
                }
                parameters => {
                    let count = blocks.len() * BLOCK / GROUP;
                    let job = encode::Groups {
                        parameters,
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
                list_outliers(simd, blocks, threshold, &mut part.lists[i]);
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
    let (parameters, sum) = if sums {
        float16::quantize::<I, T, true>(simd, row, mask, K::CODE_OFFSET, codes)
    } else {
        float16::quantize::<I, T, false>(simd, row, mask, K::CODE_OFFSET, codes)
    };
    part.terms[i] = RowTerms::new(parameters, sum);
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
