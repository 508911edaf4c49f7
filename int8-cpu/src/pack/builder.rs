//! A packed weight built from rows as they arrive: floating-point rows are quantised, codes are copied, both straight into
//! the layout of the kernel.
//!
//! Rows are appended part by part: a layer stacked from several stored weights is one builder and one `append` for each.
//! Within a part, panels are filled in parallel. Beside the packed weight a thread holds one row in f32 and, for the
//! `VnniK4` layout, the codes of one panel.

use std::ops::Range as Span;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use int8_core::{
    Element, Encoding, Error as CoreError, FloatSlice, Granularity, QuantizedMatrix, product, quantize,
};
use ndarray::{ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use super::weight::{ColumnTerms, PackedWeight};
use crate::arena::ArenaSlice;
use crate::convert;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::layout::{K_STEP, Layout, NR, WeightGroups, padded, padded_groups};
use crate::matrix::rows_of;
use crate::prologue::encode::{EncodeGroups, EncodeRow, RowRange};
use crate::prologue::parameters::{Parameters, Range};
use crate::simd::{Dispatch, Vectorize};

/// The rows of a floating-point matrix `[N, K]`, wherever they lie: in memory, or mapped from a file in any order.
pub trait WeightRows: Sync {
    /// Their number N.
    fn count(&self) -> usize;

    /// Calls `row` once for each row of `rows`, in order, with its K elements.
    ///
    /// Several threads read different ranges at once. A matrix may be read more than once.
    fn read(&self, rows: Span<usize>, row: &mut dyn FnMut(FloatSlice<'_>));
}

impl<T: Element> WeightRows for ArrayView2<'_, T> {
    fn count(&self) -> usize {
        self.nrows()
    }

    /// Rows that are not contiguous are copied.
    fn read(&self, rows: Span<usize>, row: &mut dyn FnMut(FloatSlice<'_>)) {
        for index in rows {
            match self.row(index).to_slice() {
                Some(values) => row(T::slice(values)),
                None => row(T::slice(&self.row(index).to_vec())),
            }
        }
    }
}

/// Builds a [`PackedWeight`] `[N, K]` from its rows, in order.
///
/// ```
/// use int8_core::{Encoding, Granularity};
/// use int8_cpu::{Kernel, PackedWeightBuilder};
/// use ndarray::array;
///
/// let (kernel, q, k) = (Kernel::best(), array![[0.5_f32, -1.0]], array![[3.0_f32, 1.5]]);
/// let mut builder = PackedWeightBuilder::new(kernel, (2, 2), Encoding::Absmax, Granularity::Row)?;
/// builder.append(&q.view())?;
/// builder.append(&k.view())?;
/// let weight = builder.finish()?;
/// assert_eq!(weight.codes(), array![[64, -127], [127, 64]]);
/// assert_eq!(weight.scales(), array![1.0, 3.0]);
/// # Ok::<(), int8_cpu::Error>(())
/// ```
#[derive(Debug)]
pub struct PackedWeightBuilder {
    /// Zero codes where no row has been appended yet.
    weight: PackedWeight,
    encoding: Encoding,
    granularity: Granularity,
    /// Rows appended.
    filled: usize,
}

impl PackedWeightBuilder {
    /// For `outputs` rows of `inner` values, to be quantised with `encoding` and `granularity` and packed for `kernel`.
    ///
    /// # Errors
    /// The reference's `AccumulatorOverflow` when K exceeds 133,144.
    pub fn new(
        kernel: Kernel,
        (outputs, inner): (usize, usize),
        encoding: Encoding,
        granularity: Granularity,
    ) -> Result<Self, Error> {
        if inner > product::MAX_INNER {
            return Err(CoreError::AccumulatorOverflow { inner, max: product::MAX_INNER }.into());
        }
        let rows = outputs.div_ceil(NR) * NR;
        // Where K is a single group, its parameters are those of the row.
        let has_groups = granularity == Granularity::Group && quantize::group_count(inner) > 1;
        let groups = has_groups.then(|| WeightGroups {
            scales: ArenaSlice::zeroed(padded_groups(inner) * rows),
            zero_points: ArenaSlice::zeroed(padded_groups(inner) * rows),
        });
        let columns = ColumnTerms {
            scales: vec![0.0; rows],
            steps: vec![0.0; rows],
            sums: vec![0; rows],
            zero_points: vec![0; rows],
            has_zero_points: false,
        };
        let panels = ArenaSlice::zeroed(rows * padded(inner));
        let weight =
            PackedWeight { kernel, layout: kernel.layout(), outputs, inner, panels, columns, groups };
        Ok(Self { weight, encoding, granularity, filled: 0 })
    }

    /// Quantises the next rows. With [`Granularity::Tensor`] the rows of one call share one scale and zero point, and are
    /// read twice.
    ///
    /// # Errors
    /// The reference's `Length` when there are more rows than the weight has left.
    ///
    /// # Panics
    /// If `rows` passes on another number of rows than requested, or one without K elements.
    pub fn append(&mut self, rows: &dyn WeightRows) -> Result<(), Error> {
        let first = self.take(rows.count())?;
        self.weight.kernel.dispatch(Quantize { builder: self, first, rows });
        Ok(())
    }

    /// Copies the next `count` rows, which are codes already: `codes(n)` has the K codes of row `n` of them. There is one scale and zero point (none means 0) for each row, or for each group of a row if the builder's granularity is
    /// [`Granularity::Group`].
    ///
    /// # Errors
    /// The reference's `Length` for a number of scales or zero points that does not fit, or more rows than the weight has left;
    /// `GroupScale`, `ZeroPointOutOfRange`, `CodeOutOfRange` for a code of −128. The weight is of no use then.
    ///
    /// # Panics
    /// If a row has not K codes.
    pub fn append_codes<'c>(
        &mut self,
        count: usize,
        codes: &(dyn Fn(usize) -> &'c [i8] + Sync),
        scales: ArrayView1<'_, f32>,
        zero_points: Option<ArrayView1<'_, i32>>,
    ) -> Result<(), Error> {
        let groups = self.weight.groups_per_row();
        if scales.len() != count * groups {
            let (expected, found) = (count * groups, scales.len());
            return Err(CoreError::Length { what: "scales", expected, found }.into());
        }
        quantize::check_group_scales(scales, groups)?;
        if let Some(zero_points) = zero_points {
            if zero_points.len() != scales.len() {
                let (expected, found) = (scales.len(), zero_points.len());
                return Err(CoreError::Length { what: "zero points", expected, found }.into());
            }
            let outside = |z: &i32| !(-127..=127).contains(z);
            if let Some(at) = zero_points.iter().position(outside) {
                return Err(
                    CoreError::ZeroPointOutOfRange { row: at / groups, value: zero_points[at] }.into()
                );
            }
        }
        let first = self.take(count)?;
        let inner = self.weight.inner;
        let bad_row = AtomicUsize::new(usize::MAX);
        self.fill(first, count, |rows, panel, _| {
            for row in rows {
                let source = codes(row);
                let (target, parameters) = panel.next();
                target[..inner].copy_from_slice(source);
                for (group, parameters) in parameters.iter_mut().enumerate() {
                    let at = row * groups + group;
                    *parameters = (scales[at], zero_points.map_or(0, |z| z[at]));
                }
                if source.iter().fold(false, |found, code| found | (*code == i8::MIN)) {
                    bad_row.fetch_min(row, Ordering::Relaxed);
                }
                panel.put(source.iter().map(|code| i32::from(*code)).sum());
            }
        });
        match bad_row.into_inner() {
            usize::MAX => Ok(()),
            row => {
                let column = codes(row).iter().position(|code| *code == i8::MIN).unwrap_or(0);
                Err(CoreError::CodeOutOfRange { what: "W", row, column }.into())
            }
        }
    }

    /// The weight, once all its rows have been appended.
    ///
    /// # Errors
    /// The reference's `Length` when there are fewer.
    pub fn finish(self) -> Result<PackedWeight, Error> {
        let Self { mut weight, filled, .. } = self;
        if filled != weight.outputs {
            return Err(
                CoreError::Length { what: "rows of W", expected: weight.outputs, found: filled }.into()
            );
        }
        weight.columns.has_zero_points = weight.columns.zero_points.iter().any(|z| *z != 0);
        if let Some(groups) = &mut weight.groups
            && groups.zero_points.iter().all(|z| *z == 0)
        {
            groups.zero_points = ArenaSlice::default();
        }
        Ok(weight)
    }

    /// The first of the next `count` rows.
    fn take(&mut self, count: usize) -> Result<usize, Error> {
        let first = self.filled;
        let end = first.saturating_add(count);
        if end > self.weight.outputs {
            return Err(
                CoreError::Length { what: "rows of W", expected: self.weight.outputs, found: end }.into()
            );
        }
        self.filled = end;
        Ok(first)
    }

    /// Calls `fill` for the rows `first..first + count`, panel by panel, in parallel: with the numbers of the panel's rows,
    /// counted from `first`, and the panel, which takes them in this order.
    fn fill(
        &mut self,
        first: usize,
        count: usize,
        fill: impl Fn(Span<usize>, &mut Panel<'_>, &mut Vec<f32>) + Sync,
    ) {
        let PackedWeight { layout, inner, panels, columns, groups, .. } = &mut self.weight;
        let padded_inner = padded(*inner);
        let (group_count, group_size) = match groups {
            Some(_) => (quantize::group_count(*inner), padded_groups(*inner) * NR),
            None => (1, 0),
        };
        let (group_scales, group_zeros): (&mut [bf16], &mut [i8]) = match groups {
            Some(groups) => (&mut groups.scales, &mut groups.zero_points),
            None => Default::default(),
        };
        let end = first + count;
        // With K = 0 a panel has no bytes, but scales and sums it has.
        let codes = pieces(panels, NR * padded_inner);
        let terms = columns.scales.chunks_mut(NR).zip(columns.steps.chunks_mut(NR));
        let terms = terms.zip(columns.sums.chunks_mut(NR)).zip(columns.zero_points.chunks_mut(NR));
        let groups = pieces(group_scales, group_size).zip(pieces(group_zeros, group_size));
        let targets = codes.zip(terms).zip(groups).enumerate();
        let targets: Vec<_> = targets.skip(first / NR).take(end.div_ceil(NR) - first / NR).collect();
        targets.into_par_iter().for_each_init(
            Scratch::default,
            |scratch, (index, ((codes, (((scales, steps), sums), zeros)), groups))| {
                let rows = first.max(index * NR)..end.min((index + 1) * NR);
                let Scratch { staging, parameters, floats } = scratch;
                parameters.resize(group_count, (0.0, 0));
                if *layout == Layout::VnniK4 {
                    staging.resize(NR * padded_inner, 0);
                }
                let mut panel = Panel {
                    next: rows.start - index * NR,
                    padded_inner,
                    codes: if *layout == Layout::Rows { &mut *codes } else { &mut *staging },
                    parameters,
                    has_groups: group_size != 0,
                    scales,
                    steps,
                    sums,
                    zeros,
                    groups,
                };
                fill(rows.start - first..rows.end - first, &mut panel, floats);
                assert_eq!(index * NR + panel.next, rows.end, "as many rows as requested");
                if *layout == Layout::VnniK4 {
                    let rows = rows.start - index * NR..rows.end - index * NR;
                    interleave(staging, rows, padded_inner, codes);
                }
            },
        );
    }
}

impl PackedWeight {
    /// Quantises `w [N, K]` (f32, f16 or bf16, row-major) and packs it for `kernel`, in parallel.
    ///
    /// # Errors
    /// [`Error::NotRowMajor`]; the reference's `AccumulatorOverflow` when K exceeds 133,144.
    pub fn quantize<T: Element>(
        kernel: Kernel,
        w: ArrayView2<'_, T>,
        encoding: Encoding,
        granularity: Granularity,
    ) -> Result<Self, Error> {
        rows_of(w, "W")?;
        let mut builder = PackedWeightBuilder::new(kernel, w.dim(), encoding, granularity)?;
        builder.append(&w)?;
        builder.finish()
    }

    /// Packs codes `[N, K]` with their scales and zero points (none means 0), as read from a checkpoint: one for each
    /// row, or, as in [`QuantizedMatrix`], one for each group of a row.
    ///
    /// # Errors
    /// [`Error::NotRowMajor`]; the reference's `Length`, `GroupScale`, `CodeOutOfRange` for a code of −128,
    /// `ZeroPointOutOfRange`, and `AccumulatorOverflow` when K exceeds 133,144.
    pub fn from_codes(
        kernel: Kernel,
        codes: ArrayView2<'_, i8>,
        scales: ArrayView1<'_, f32>,
        zero_points: Option<ArrayView1<'_, i32>>,
    ) -> Result<Self, Error> {
        rows_of(codes, "W")?;
        let groups = quantize::parameters_per_row(codes.dim(), scales.len())?;
        let granularity = if groups > 1 { Granularity::Group } else { Granularity::Row };
        let mut builder = PackedWeightBuilder::new(kernel, codes.dim(), Encoding::Absmax, granularity)?;
        let row = |index| codes.index_axis_move(Axis(0), index).to_slice().expect("contiguous rows");
        builder.append_codes(codes.nrows(), &row, scales, zero_points)?;
        builder.finish()
    }

    /// Packs a weight that the reference quantised.
    ///
    /// # Errors
    /// The reference's `AccumulatorOverflow` when K exceeds 133,144.
    pub fn from_quantized(kernel: Kernel, weight: &QuantizedMatrix) -> Result<Self, Error> {
        Self::from_codes(kernel, weight.codes(), weight.scales(), Some(weight.zero_points()))
    }

    /// The same weight packed for any kernel.
    ///
    /// # Errors
    /// None that a packed weight can cause; the signature is that of packing.
    pub fn repack(&self, kernel: Kernel) -> Result<Self, Error> {
        let codes = self.codes();
        let (scales, zero_points) = (self.scales(), self.zero_points());
        Self::from_codes(kernel, codes.view(), scales.view(), Some(zero_points.view()))
    }
}

/// What a thread needs to fill panels.
#[derive(Default)]
struct Scratch {
    /// Codes `[NR, padded K]` on their way to another layout; zero behind K.
    staging: Vec<i8>,
    /// Scale and zero point of each group of a row.
    parameters: Vec<(f32, i32)>,
    /// A row in f32.
    floats: Vec<f32>,
}

/// One panel that is being filled.
struct Panel<'a> {
    /// The row of the panel that comes next.
    next: usize,
    padded_inner: usize,
    /// `[NR, padded K]`.
    codes: &'a mut [i8],
    parameters: &'a mut [(f32, i32)],
    has_groups: bool,
    scales: &'a mut [f32],
    steps: &'a mut [f32],
    sums: &'a mut [i32],
    zeros: &'a mut [i32],
    /// Scales and zero points `[padded groups, NR]`.
    groups: (&'a mut [bf16], &'a mut [i8]),
}

impl Panel<'_> {
    /// Where the codes `[padded K]` and the parameters of the next row go.
    fn next(&mut self) -> (&mut [i8], &mut [(f32, i32)]) {
        (&mut self.codes[self.next * self.padded_inner..][..self.padded_inner], self.parameters)
    }

    /// Ends a row whose codes have this sum.
    fn put(&mut self, sum: i32) {
        let n = self.next;
        self.sums[n] = sum;
        if self.has_groups {
            for (group, (scale, zero_point)) in self.parameters.iter().enumerate() {
                self.groups.0[group * NR + n] = bf16::from_f32(*scale);
                self.groups.1[group * NR + n] = convert::small(*zero_point);
            }
        } else {
            (self.scales[n], self.zeros[n]) = self.parameters[0];
            self.steps[n] = self.scales[n] / 127.0;
        }
        self.next += 1;
    }
}

struct Quantize<'a> {
    builder: &'a mut PackedWeightBuilder,
    first: usize,
    rows: &'a dyn WeightRows,
}

impl Dispatch for Quantize<'_> {
    type Output = ();

    fn run<K: Vectorize>(self, tile: K) {
        let Self { builder, first, rows } = self;
        let (encoding, granularity, inner) = (builder.encoding, builder.granularity, builder.weight.inner);
        let count = rows.count();
        let whole = (granularity == Granularity::Tensor).then(|| {
            let ranges = (0..count.div_ceil(NR)).into_par_iter().map_init(Vec::new, |scratch, panel| {
                let mut range = Range::EMPTY;
                rows.read(panel * NR..count.min((panel + 1) * NR), &mut |row| {
                    range =
                        range.union(tile.vectorize(RowRange { row: checked(row, inner), scratch, encoding }));
                });
                range
            });
            Parameters::new(ranges.reduce(|| Range::EMPTY, Range::union), encoding)
        });
        builder.fill(first, count, |span, panel, scratch| {
            rows.read(span, &mut |row| {
                let row = checked(row, inner);
                let (codes, parameters) = panel.next();
                let sum = if granularity == Granularity::Group {
                    tile.vectorize(EncodeGroups { row, scratch, encoding, codes, parameters })
                } else {
                    let job = EncodeRow { row, scratch, parameters: whole, encoding, codes };
                    let (found, sum) = tile.vectorize(job);
                    parameters.fill((found.scale, found.zero_point));
                    sum
                };
                panel.put(sum);
            });
        });
    }
}

/// Checks that a row has K elements.
pub(crate) fn checked(row: FloatSlice<'_>, inner: usize) -> FloatSlice<'_> {
    assert_eq!(row.len(), inner, "a row of K elements");
    row
}

/// A slice cut into pieces of `size`; of size 0 there is no end of them.
fn pieces<T>(mut rest: &mut [T], size: usize) -> impl Iterator<Item = &mut [T]> {
    std::iter::from_fn(move || {
        let (piece, tail) = std::mem::take(&mut rest).split_at_mut_checked(size)?;
        rest = tail;
        Some(piece)
    })
}

/// `i8 [NR, K] → i8 [K/4, NR, 4]`, of these rows.
fn interleave(codes: &[i8], rows: Span<usize>, padded_inner: usize, panel: &mut [i8]) {
    if padded_inner == 0 {
        return;
    }
    // One cache line of each row at a time: the 2 KiB of the panel it goes to stay in L1 until they are full.
    for (block, target) in panel.chunks_exact_mut(NR * K_STEP).enumerate() {
        for n in rows.clone() {
            let fours = codes[n * padded_inner + block * K_STEP..][..K_STEP].as_chunks::<4>().0;
            for (four, target) in fours.iter().zip(target.chunks_exact_mut(4 * NR)) {
                target[4 * n..4 * n + 4].copy_from_slice(four);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use int8_core::QuantizedMatrix;
    use int8_core::corpus::Random;
    use ndarray::{Array2, Axis, concatenate};

    use super::*;

    /// Panels of whole and of few rows, several parts in one panel, K around a group and a block.
    const PARTS: [&[usize]; 6] = [&[1], &[32], &[33, 0], &[5, 40, 19], &[64, 7, 32], &[]];
    const INNER: [usize; 7] = [0, 1, 32, 33, 64, 65, 200];
    const GRANULARITIES: [Granularity; 3] = [Granularity::Tensor, Granularity::Row, Granularity::Group];

    /// A transposed matrix whose rows are taken in another order, as a source that has to copy.
    struct Reversed<'a>(ArrayView2<'a, f32>);

    impl WeightRows for Reversed<'_> {
        fn count(&self) -> usize {
            self.0.ncols()
        }

        fn read(&self, rows: Span<usize>, row: &mut dyn FnMut(FloatSlice<'_>)) {
            let mut values = Vec::new();
            for index in rows {
                values.clear();
                values.extend(self.0.column(self.0.ncols() - 1 - index));
                row(FloatSlice::F32(&values));
            }
        }
    }

    fn cases() -> impl Iterator<Item = (&'static [usize], usize, Encoding, Granularity)> {
        let encodings = [Encoding::Absmax, Encoding::Zeropoint];
        // Miri takes a minute for a million multiply-adds.
        let (parts, inner) = if cfg!(miri) { (&PARTS[3..4], &INNER[3..4]) } else { (&PARTS[..], &INNER[..]) };
        parts.iter().flat_map(move |parts| {
            inner.iter().flat_map(move |inner| {
                let pairs = encodings.into_iter().flat_map(|e| GRANULARITIES.map(|g| (e, g)));
                pairs.map(move |(encoding, granularity)| (*parts, *inner, encoding, granularity))
            })
        })
    }

    /// Every byte where its layout says, zero in the padding, and all that is derived of the codes.
    fn check(weight: &PackedWeight, parts: &[QuantizedMatrix], case: &dyn std::fmt::Debug) {
        let views: Vec<_> = parts.iter().map(QuantizedMatrix::codes).collect();
        let codes = concatenate(Axis(0), &views).unwrap_or(Array2::zeros((0, weight.dim().1)));
        assert_eq!(weight.codes(), codes, "{case:?}");
        let scales: Vec<u32> = parts.iter().flat_map(|part| part.scales().mapv(f32::to_bits)).collect();
        assert_eq!(weight.scales().mapv(f32::to_bits).to_vec(), scales, "{case:?}");
        let zero_points: Vec<i32> = parts.iter().flat_map(|part| part.zero_points().to_owned()).collect();
        assert_eq!(weight.zero_points().to_vec(), zero_points, "{case:?}");
        assert_eq!(weight.has_zero_points(), zero_points.iter().any(|z| *z != 0), "{case:?}");
        let (outputs, inner) = weight.dim();
        for panel in 0..weight.panel_count() {
            let mut expected = vec![0; weight.panel(panel).len()];
            for n in 0..NR.min(outputs - panel * NR) {
                for k in 0..inner {
                    expected[weight.layout().position(n, k, padded(inner))] = codes[[panel * NR + n, k]];
                }
            }
            assert!(weight.panel(panel) == expected, "{case:?}, panel {panel}");
        }
        let sums = codes.map_axis(Axis(1), |row| row.iter().map(|code| i32::from(*code)).sum::<i32>());
        assert_eq!(weight.code_sums().to_vec(), sums.to_vec(), "{case:?}");
        let steps = weight.columns().scales.iter().map(|scale| scale / 127.0);
        assert!(
            steps.zip(&weight.columns().steps).all(|(expected, step)| step.to_bits() == expected.to_bits())
        );
    }

    #[test]
    fn parts_are_quantised_each_by_itself() {
        let mut random = Random::new(21);
        for (parts, inner, encoding, granularity) in cases() {
            let mut matrices: Vec<Array2<f32>> = parts
                .iter()
                .zip(1_u8..)
                .map(|(rows, scale)| random.matrix(*rows, inner, f32::from(scale)))
                .collect();
            if let Some(value) = matrices.last_mut().and_then(|w| w.first_mut()) {
                *value = f32::NAN;
            }
            let expected: Vec<_> =
                matrices.iter().map(|w| QuantizedMatrix::quantize(w.view(), encoding, granularity)).collect();
            let outputs = parts.iter().sum();
            for kernel in Kernel::available() {
                let case = (kernel, parts, inner, encoding, granularity);
                let build = |threads| {
                    let mut builder =
                        PackedWeightBuilder::new(kernel, (outputs, inner), encoding, granularity)?;
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                    pool.install(|| matrices.iter().try_for_each(|w| builder.append(&w.view())))?;
                    builder.finish()
                };
                let weight = build(3).unwrap_or_else(|error| panic!("{case:?}: {error}"));
                if matrices.iter().all(|w| w.iter().all(|value| value.is_finite())) {
                    check(&weight, &expected, &case);
                } else {
                    // A NaN as scale has no one pattern of bits.
                    let found = weight.scales();
                    let expected: Vec<f32> =
                        expected.iter().flat_map(|part| part.scales().to_vec()).collect();
                    let same = |(found, expected): (&f32, &f32)| {
                        found == expected || found.is_nan() && expected.is_nan()
                    };
                    assert!(found.iter().zip(&expected).all(same), "{case:?}");
                }
                let alone = build(1).expect("as before");
                assert!(alone.panels[..] == weight.panels[..], "{case:?}");
            }
        }
    }

    /// Whatever the order in memory, and the element type.
    #[test]
    fn rows_may_lie_anywhere() {
        let mut random = Random::new(22);
        for (parts, inner, encoding, granularity) in cases() {
            let Some(rows) = parts.iter().max() else { continue };
            let w = random.matrix(inner, *rows, 1.0);
            let mut plain = w.t().to_owned();
            plain.invert_axis(Axis(0));
            for kernel in Kernel::available() {
                let case = (kernel, rows, inner, encoding, granularity);
                let build = |rows: &dyn WeightRows| {
                    let mut builder =
                        PackedWeightBuilder::new(kernel, (rows.count(), inner), encoding, granularity)?;
                    builder.append(rows)?;
                    builder.finish()
                };
                let weight = build(&Reversed(w.view())).expect("a weight");
                check(&weight, &[QuantizedMatrix::quantize(plain.view(), encoding, granularity)], &case);
                let narrow = plain.mapv(f16::from_f32);
                let weight = build(&narrow.view()).expect("a weight");
                check(&weight, &[QuantizedMatrix::quantize(narrow.view(), encoding, granularity)], &case);
            }
        }
    }

    /// int8 parts beside floating-point ones, in any order.
    #[test]
    fn codes_and_floats_are_stacked() {
        let mut random = Random::new(23);
        for (parts, inner, encoding, granularity) in cases() {
            if granularity == Granularity::Tensor {
                continue;
            }
            let matrices: Vec<_> = parts.iter().map(|rows| random.matrix(*rows, inner, 1.0)).collect();
            let expected: Vec<_> =
                matrices.iter().map(|w| QuantizedMatrix::quantize(w.view(), encoding, granularity)).collect();
            for kernel in Kernel::available() {
                for float in [0, 1] {
                    let dim = (parts.iter().sum(), inner);
                    let mut builder =
                        PackedWeightBuilder::new(kernel, dim, encoding, granularity).expect("a builder");
                    for (index, (w, int8)) in matrices.iter().zip(&expected).enumerate() {
                        if index % 2 == float {
                            builder.append(&w.view()).expect("a part");
                            continue;
                        }
                        let codes = int8.codes();
                        let row = |n| codes.index_axis_move(Axis(0), n).to_slice().expect("contiguous");
                        let zero_points = Some(int8.zero_points());
                        builder.append_codes(w.nrows(), &row, int8.scales(), zero_points).expect("a part");
                    }
                    let weight = builder.finish().expect("all rows");
                    check(&weight, &expected, &(kernel, parts, inner, encoding, granularity, float));
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let length = |result: Result<(), Error>, what: &str, expected: usize, found: usize| {
            let message = format!("{:?}", CoreError::Length { what: "", expected, found })
                .replace("\"\"", &format!("{what:?}"));
            assert_eq!(format!("{:?}", result.expect_err("an error")), format!("Core({message})"));
        };
        let kernel = Kernel::best();
        let builder =
            || PackedWeightBuilder::new(kernel, (3, 2), Encoding::Absmax, Granularity::Row).expect("small");
        let w = Array2::<f32>::ones((2, 2));
        let mut short = builder();
        short.append(&w.view()).expect("two of three");
        length(short.append(&w.view()), "rows of W", 3, 4);
        length(short.finish().map(drop), "rows of W", 3, 2);
        let codes = [[1_i8, 2], [3, i8::MIN], [i8::MIN, 4]];
        let scales = ndarray::array![1.0, 1.0, 1.0];
        let append = |zero_points: &[i32], scales: ArrayView1<'_, f32>| {
            let zero_points = (!zero_points.is_empty()).then(|| ArrayView1::from(zero_points));
            builder().append_codes(3, &|n| &codes[n], scales, zero_points)
        };
        length(append(&[], scales.slice(ndarray::s![..2])), "scales", 3, 2);
        length(append(&[0], scales.view()), "zero points", 3, 1);
        let outside = append(&[0, 128, -200], scales.view());
        assert!(matches!(outside, Err(Error::Core(CoreError::ZeroPointOutOfRange { row: 1, value: 128 }))));
        let code = append(&[], scales.view());
        assert!(
            matches!(code, Err(Error::Core(CoreError::CodeOutOfRange { row: 1, column: 1, .. }))),
            "{code:?}"
        );
        let too_long =
            PackedWeightBuilder::new(kernel, (0, product::MAX_INNER + 1), Encoding::Absmax, Granularity::Row);
        assert!(matches!(too_long, Err(Error::Core(CoreError::AccumulatorOverflow { .. }))));
    }
}
