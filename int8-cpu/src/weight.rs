//! A weight packed once, at load, in the layout of the kernel that will read it.

use half::bf16;
use int8_core::{
    Element, Encoding, Error as CoreError, GROUP, Granularity, QuantizedMatrix, product, quantize,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use crate::arena::ArenaSlice;
use crate::convert;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::layout::{K_STEP, Layout, NR, WeightGroups, padded, padded_groups};
use crate::matrix::{Source, rows_of};
use crate::prologue::encode::{EncodeGroups, EncodeRow, RowRange};
use crate::prologue::parameters::{Parameters, Range};
use crate::simd::{Dispatch, Instructions, LANES, Vectorize};

/// `W [N, K]` as int8 codes in panels of 32 rows, with a scale and a zero point for each row, or for each group of
/// [`GROUP`] values of a row.
///
/// The value of a code is `(q − z)·s/127`, as in [`QuantizedMatrix`]. The packing remembers its layout; a kernel that
/// reads another one is refused.
#[derive(Clone)]
pub struct PackedWeight {
    kernel: Kernel,
    layout: Layout,
    outputs: usize,
    inner: usize,
    /// Panels of `NR * padded_inner` bytes; rows and columns of padding hold zero codes.
    panels: ArenaSlice<i8>,
    columns: ColumnTerms,
    /// Where the constants are those of groups; scales, steps and zero points of `columns` are then 0.
    groups: Option<WeightGroups>,
}

/// What the epilogue needs of each output column, padded with zeros to whole panels.
#[derive(Clone)]
pub(crate) struct ColumnTerms {
    /// Scales as stored (absmax or half range).
    pub(crate) scales: Vec<f32>,
    /// `s/127`.
    pub(crate) steps: Vec<f32>,
    /// `Σ_k q`, at most 127·133,144 < 2³¹.
    pub(crate) sums: Vec<i32>,
    /// In [−127, 127].
    pub(crate) zero_points: Vec<i32>,
    /// Whether any zero point is not 0.
    pub(crate) has_zero_points: bool,
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
        kernel.dispatch(Quantize { kernel, w: Source::new(w, "W")?, encoding, granularity })
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
        let (outputs, inner) = codes.dim();
        let groups = quantize::parameters_per_row(codes.dim(), scales.len())?;
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
        let bad_row =
            (0..outputs).into_par_iter().find_first(|row| codes.row(*row).iter().any(|q| *q == i8::MIN));
        if let Some(row) = bad_row {
            let column = codes.row(row).iter().position(|q| *q == i8::MIN).unwrap_or(0);
            return Err(CoreError::CodeOutOfRange { what: "W", row, column }.into());
        }
        pack(kernel, outputs, inner, groups, |row, target, constants| {
            let source = codes.row(row);
            // `target` is padded; the padding stays zero.
            let mut sum = 0;
            for (target, code) in target.iter_mut().zip(source) {
                *target = *code;
                sum += i32::from(*code);
            }
            for (group, constant) in constants.iter_mut().enumerate() {
                let at = row * groups + group;
                *constant = (scales[at], zero_points.map_or(0, |z| z[at]));
            }
            sum
        })
    }

    /// Packs a weight that the reference quantised.
    ///
    /// # Errors
    /// The reference's `AccumulatorOverflow` when K exceeds 133,144.
    pub fn from_quantized(kernel: Kernel, weight: &QuantizedMatrix) -> Result<Self, Error> {
        Self::from_codes(kernel, weight.codes(), weight.scales(), Some(weight.zero_points()))
    }

    /// `(N, K)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.outputs, self.inner)
    }

    /// The kernel that reads it.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// How its codes lie in memory.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Hands the weight to another kernel that reads the same layout, without moving a byte.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`]; [`repack`](Self::repack) then does it.
    pub fn with_kernel(mut self, kernel: Kernel) -> Result<Self, Error> {
        if kernel.layout() != self.layout {
            return Err(Error::LayoutMismatch {
                kernel: kernel.name(),
                expected: kernel.layout(),
                found: self.layout,
            });
        }
        self.kernel = kernel;
        Ok(self)
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

    /// Codes `[N, K]`, row-major, for saving.
    pub fn codes(&self) -> Array2<i8> {
        let mut codes = Array2::zeros(self.dim());
        let panels: Vec<_> = codes.axis_chunks_iter_mut(Axis(0), NR).collect();
        panels.into_par_iter().enumerate().for_each(|(panel, mut rows)| {
            let panel = self.panel(panel);
            for (n, mut row) in rows.rows_mut().into_iter().enumerate() {
                for (k, code) in row.iter_mut().enumerate() {
                    *code = panel[self.layout.position(n, k, padded(self.inner))];
                }
            }
        });
        codes
    }

    /// One scale for each output row, the absmax (`SCB`) or, for zero-point, half the range; or
    /// [`groups_per_row`](Self::groups_per_row) for each row, row-major.
    pub fn scales(&self) -> Array1<f32> {
        match &self.groups {
            None => Array1::from(self.columns.scales[..self.outputs].to_vec()),
            Some(groups) => self.row_major(|at| groups.scales[at].to_f32()),
        }
    }

    /// A zero point for each scale; 0 for absmax.
    pub fn zero_points(&self) -> Array1<i32> {
        match &self.groups {
            None => Array1::from(self.columns.zero_points[..self.outputs].to_vec()),
            Some(groups) => self.row_major(|at| groups.zero_points.get(at).map_or(0, |z| i32::from(*z))),
        }
    }

    /// Parameters of each row: ⌈K/[`GROUP`]⌉ for group granularity, else 1.
    pub fn groups_per_row(&self) -> usize {
        if self.groups.is_some() { quantize::group_count(self.inner) } else { 1 }
    }

    /// The constants of groups in the order of rows.
    fn row_major<T>(&self, constant: impl Fn(usize) -> T) -> Array1<T> {
        let (groups, padded) = (self.groups_per_row(), padded_groups(self.inner));
        let at = |row: usize, group| ((row / NR) * padded + group) * NR + row % NR;
        (0..self.outputs).flat_map(|row| (0..groups).map(move |group| at(row, group))).map(constant).collect()
    }

    /// `Σ_k q` for each output row.
    pub fn code_sums(&self) -> ArrayView1<'_, i32> {
        ArrayView1::from(&self.columns.sums[..self.outputs])
    }

    /// Codes, scales and zero points as the reference holds them.
    ///
    /// # Errors
    /// None that a packed weight can cause; the signature is that of the reference's constructor.
    pub fn to_quantized(&self) -> Result<QuantizedMatrix, Error> {
        Ok(QuantizedMatrix::from_parts(self.codes(), self.scales(), Some(self.zero_points()))?)
    }

    /// Bytes that the packed codes, scales, sums and zero points take.
    pub fn bytes(&self) -> usize {
        let of_groups = |groups: &WeightGroups| groups.scales.len() * 2 + groups.zero_points.len();
        let of_rows = self.columns.steps.len() * 16;
        self.panels.len() + of_rows + self.groups.as_ref().map_or(0, of_groups)
    }

    /// The constants of its groups, if it has such.
    pub(crate) fn groups(&self) -> Option<&WeightGroups> {
        self.groups.as_ref()
    }

    /// Whether any zero point is not 0.
    pub(crate) fn has_zero_points(&self) -> bool {
        self.columns.has_zero_points
            || self.groups.as_ref().is_some_and(|groups| !groups.zero_points.is_empty())
    }

    /// Step and zero point of 16 outputs of a panel, for column `k`.
    #[inline(always)]
    pub(crate) fn constants<I: Instructions>(
        &self,
        simd: I,
        panel: usize,
        half: usize,
        k: usize,
    ) -> (I::Floats, I::Ints) {
        let Some(groups) = &self.groups else {
            let at = 2 * panel + half;
            let steps = simd.load(&self.columns.steps.as_chunks::<LANES>().0[at]);
            return (steps, simd.load_int(&self.columns.zero_points.as_chunks::<LANES>().0[at]));
        };
        let at = 2 * (panel * padded_groups(self.inner) + k / GROUP) + half;
        let scales = simd.load_bf16(&groups.scales.as_chunks::<LANES>().0[at]);
        let zeros =
            groups.zero_points.as_chunks::<LANES>().0.get(at).map_or([0; LANES], |z| z.map(i32::from));
        (simd.divide(scales, simd.splat(127.0)), simd.load_int(&zeros))
    }

    /// Bytes between two rows of a panel; 0 where it is laid out in quads.
    pub(crate) fn row_bytes(&self) -> usize {
        if self.layout == Layout::Rows { padded(self.inner) } else { 0 }
    }

    pub(crate) fn columns(&self) -> &ColumnTerms {
        &self.columns
    }

    pub(crate) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(NR)
    }

    /// The codes of one panel, `NR * padded K` bytes.
    pub(crate) fn panel(&self, index: usize) -> &[i8] {
        let bytes = NR * padded(self.inner);
        &self.panels[index * bytes..(index + 1) * bytes]
    }
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight [{}, {}] for {} ({:?})", self.outputs, self.inner, self.kernel, self.layout)
    }
}

struct Quantize<'a> {
    kernel: Kernel,
    w: Source<'a>,
    encoding: Encoding,
    granularity: Granularity,
}

impl Dispatch for Quantize<'_> {
    type Output = Result<PackedWeight, Error>;

    fn run<K: Vectorize>(self, tile: K) -> Self::Output {
        let Self { kernel, w, encoding, granularity } = self;
        let (outputs, inner) = (w.rows, w.columns);
        let whole = (granularity == Granularity::Tensor).then(|| {
            let ranges = (0..outputs).into_par_iter().map_init(Vec::new, |scratch, row| {
                tile.vectorize(RowRange { row: w.row(row), scratch, encoding })
            });
            Parameters::new(ranges.reduce(|| Range::EMPTY, Range::union), encoding)
        });
        let groups = if granularity == Granularity::Group { quantize::group_count(inner) } else { 1 };
        pack(kernel, outputs, inner, groups, |row, codes, constants| {
            let mut scratch = Vec::new();
            let row = w.row(row);
            if granularity == Granularity::Group {
                return tile.vectorize(EncodeGroups {
                    row,
                    scratch: &mut scratch,
                    encoding,
                    codes,
                    parameters: constants,
                });
            }
            let job = EncodeRow { row, scratch: &mut scratch, parameters: whole, encoding, codes };
            let (found, sum) = tile.vectorize(job);
            constants.fill((found.scale, found.zero_point));
            sum
        })
    }
}

/// Packs rows that `fill` writes as codes `[padded K]`, zero behind K, with the scales and zero points of their groups,
/// returning the sum of the codes. One task a panel.
fn pack(
    kernel: Kernel,
    outputs: usize,
    inner: usize,
    groups: usize,
    fill: impl Fn(usize, &mut [i8], &mut [(f32, i32)]) -> i32 + Sync,
) -> Result<PackedWeight, Error> {
    if inner > product::MAX_INNER {
        return Err(CoreError::AccumulatorOverflow { inner, max: product::MAX_INNER }.into());
    }
    let (layout, padded_inner) = (kernel.layout(), padded(inner));
    let (panels, panel_bytes) = (outputs.div_ceil(NR), NR * padded_inner);
    let mut codes = ArenaSlice::<i8>::zeroed(panels * panel_bytes);
    let mut columns = ColumnTerms {
        scales: vec![0.0; panels * NR],
        steps: vec![0.0; panels * NR],
        sums: vec![0; panels * NR],
        zero_points: vec![0; panels * NR],
        has_zero_points: false,
    };
    // Where K is a single group, its constants are those of the row.
    let padded_groups = if groups > 1 { padded_groups(inner) } else { 0 };
    let mut group_scales = ArenaSlice::<bf16>::zeroed(panels * padded_groups * NR);
    let mut group_zeros = ArenaSlice::<i8>::zeroed(group_scales.len());
    // With K = 0 there are no bytes to cut into panels, but scales and sums there are.
    let mut targets: Vec<&mut [i8]> = Vec::with_capacity(panels);
    let mut rest = &mut codes[..];
    for _ in 0..panels {
        let (panel, tail) = rest.split_at_mut(panel_bytes);
        targets.push(panel);
        rest = tail;
    }
    let terms = columns
        .scales
        .par_chunks_mut(NR)
        .zip(columns.steps.par_chunks_mut(NR))
        .zip(columns.sums.par_chunks_mut(NR))
        .zip(columns.zero_points.par_chunks_mut(NR));
    let group_terms: Vec<_> = if groups > 1 {
        let size = padded_groups * NR;
        group_scales.chunks_mut(size).zip(group_zeros.chunks_mut(size)).collect()
    } else {
        (0..panels).map(|_| Default::default()).collect()
    };
    targets.into_par_iter().zip(terms).zip(group_terms).enumerate().for_each(
        |(panel, ((target, (((scales, steps), sums), zeros)), (group_scales, group_zeros)))| {
            let mut constants = vec![(0.0, 0); groups];
            let mut staging = match layout {
                Layout::Rows => Vec::new(),
                Layout::VnniK4 => vec![0_i8; panel_bytes],
            };
            for n in 0..NR.min(outputs - panel * NR) {
                let rows = if layout == Layout::Rows { &mut *target } else { &mut staging };
                let row = &mut rows[n * padded_inner..][..padded_inner];
                sums[n] = fill(panel * NR + n, row, &mut constants);
                if groups == 1 {
                    (scales[n], zeros[n]) = constants[0];
                    steps[n] = scales[n] / 127.0;
                    continue;
                }
                for (group, (scale, zero_point)) in constants.iter().enumerate() {
                    group_scales[group * NR + n] = bf16::from_f32(*scale);
                    group_zeros[group * NR + n] = convert::small(*zero_point);
                }
            }
            if layout == Layout::VnniK4 {
                interleave(&staging, padded_inner, target);
            }
        },
    );
    columns.has_zero_points = columns.zero_points.iter().any(|z| *z != 0);
    if group_zeros.iter().all(|z| *z == 0) {
        group_zeros = ArenaSlice::default();
    }
    let groups = (groups > 1).then_some(WeightGroups { scales: group_scales, zero_points: group_zeros });
    Ok(PackedWeight { kernel, layout, outputs, inner, panels: codes, columns, groups })
}

/// `i8 [NR, K] → i8 [K/4, NR, 4]`.
fn interleave(rows: &[i8], padded_inner: usize, panel: &mut [i8]) {
    if padded_inner == 0 {
        return;
    }
    // One cache line of each row at a time: the 2 KiB of the panel it goes to stay in L1 until they are full.
    for (block, target) in panel.chunks_exact_mut(NR * K_STEP).enumerate() {
        for n in 0..NR {
            let quads = rows[n * padded_inner + block * K_STEP..][..K_STEP].as_chunks::<4>().0;
            for (quad, target) in quads.iter().zip(target.chunks_exact_mut(4 * NR)) {
                target[4 * n..4 * n + 4].copy_from_slice(quad);
            }
        }
    }
}

/// K, as i64 for the wide correction.
pub(crate) fn inner_length(weight: &PackedWeight) -> i64 {
    convert::length(weight.inner)
}
