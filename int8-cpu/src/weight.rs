//! A weight packed once, at load, in the layout of the kernel that will read it.

use int8_core::{Element, Encoding, Error as CoreError, Granularity, QuantizedMatrix, product};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::kernel::{Dispatch, Kernel, Layout};
use crate::matrix::Source;
use crate::rows::{Constants, EncodeRow, Range, RowRange, scratch_length};
use crate::tile::{K_STEP, PANEL, TileKernel};
use crate::{Error, convert, rows_of};

/// `W [N, K]` as int8 codes in panels of 32 rows, with one scale, zero point and code sum for each row.
///
/// The value of a code is `(q − z)·s/127`, as in [`QuantizedMatrix`]. The packing remembers its layout; a kernel that
/// reads another one is refused.
#[derive(Clone)]
pub struct PackedWeight {
    kernel: Kernel,
    layout: Layout,
    outputs: usize,
    inner: usize,
    /// Panels of `PANEL * padded_inner` bytes; rows and columns of padding hold zero codes.
    panels: Buffer,
    columns: ColumnTerms,
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

/// K rounded up to whole tile rows.
pub(crate) fn padded(inner: usize) -> usize {
    inner.div_ceil(K_STEP) * K_STEP
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

    /// Packs codes `[N, K]` with their scales and zero points (none means 0), as read from a checkpoint.
    ///
    /// # Errors
    /// [`Error::NotRowMajor`]; the reference's `Length`, `CodeOutOfRange` for a code of −128, and
    /// `AccumulatorOverflow` when K exceeds 133,144.
    pub fn from_codes(
        kernel: Kernel,
        codes: ArrayView2<'_, i8>,
        scales: ArrayView1<'_, f32>,
        zero_points: Option<ArrayView1<'_, i32>>,
    ) -> Result<Self, Error> {
        rows_of(codes, "W")?;
        let (outputs, inner) = codes.dim();
        let lengths = [("scales", Some(scales.len())), ("zero points", zero_points.map(|z| z.len()))];
        for (what, found) in lengths.into_iter().filter_map(|(what, found)| Some((what, found?))) {
            if found != outputs {
                return Err(CoreError::Length { what, expected: outputs, found }.into());
            }
        }
        let bad_row =
            (0..outputs).into_par_iter().find_first(|row| codes.row(*row).iter().any(|q| *q == i8::MIN));
        if let Some(row) = bad_row {
            let column = codes.row(row).iter().position(|q| *q == i8::MIN).unwrap_or(0);
            return Err(CoreError::CodeOutOfRange { what: "W", row, column }.into());
        }
        pack(kernel, outputs, inner, |row, target| {
            let source = codes.row(row);
            // `target` is padded; the padding stays zero.
            let mut sum = 0;
            for (target, code) in target.iter_mut().zip(source) {
                *target = *code;
                sum += i32::from(*code);
            }
            (scales[row], zero_points.map_or(0, |z| z[row]), sum)
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
        Self::from_codes(kernel, codes.view(), self.scales(), Some(self.zero_points()))
    }

    /// Codes `[N, K]`, row-major, for saving.
    pub fn codes(&self) -> Array2<i8> {
        let mut codes = Array2::zeros(self.dim());
        let panels: Vec<_> = codes.axis_chunks_iter_mut(Axis(0), PANEL).collect();
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

    /// One scale for each output row: the absmax (`SCB`) or, for zero-point, half the range.
    pub fn scales(&self) -> ArrayView1<'_, f32> {
        ArrayView1::from(&self.columns.scales[..self.outputs])
    }

    /// One zero point for each output row; 0 for absmax.
    pub fn zero_points(&self) -> ArrayView1<'_, i32> {
        ArrayView1::from(&self.columns.zero_points[..self.outputs])
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
        let zero_points = Array1::from_iter(self.zero_points().iter().copied());
        Ok(QuantizedMatrix::from_parts(self.codes(), self.scales().to_owned(), Some(zero_points))?)
    }

    /// Bytes that the packed codes, scales, sums and zero points take.
    pub fn bytes(&self) -> usize {
        self.panels.codes().len() + self.columns.steps.len() * 16
    }

    pub(crate) fn columns(&self) -> &ColumnTerms {
        &self.columns
    }

    pub(crate) fn panel_count(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// The codes of one panel, `PANEL * padded K` bytes.
    pub(crate) fn panel(&self, index: usize) -> &[i8] {
        let bytes = PANEL * padded(self.inner);
        &self.panels.codes()[index * bytes..(index + 1) * bytes]
    }
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight [{}, {}] for {} ({:?})", self.outputs, self.inner, self.kernel, self.layout)
    }
}

impl Layout {
    /// Where in its panel the code of row `n` and column `k` lies.
    pub(crate) fn position(self, n: usize, k: usize, padded_inner: usize) -> usize {
        match self {
            Self::Rows => n * padded_inner + k,
            Self::Quads => (k / 4) * (4 * PANEL) + n * 4 + k % 4,
        }
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

    fn run<K: TileKernel>(self, tile: K) -> Self::Output {
        let Self { kernel, w, encoding, granularity } = self;
        let (outputs, inner) = (w.rows, w.columns);
        let whole = (granularity == Granularity::Tensor).then(|| {
            let ranges = (0..outputs).into_par_iter().map_init(
                || vec![0.0; scratch_length(inner)],
                |scratch, row| tile.vectorize(RowRange { row: w.row(row), scratch, encoding }),
            );
            Constants::new(ranges.reduce(|| Range::EMPTY, Range::union), encoding)
        });
        pack(kernel, outputs, inner, |row, codes| {
            let mut scratch = vec![0.0; scratch_length(inner)];
            let job = EncodeRow {
                row: w.row(row),
                scratch: &mut scratch,
                constants: whole,
                encoding,
                codes: &mut *codes,
            };
            let (constants, sum) = tile.vectorize(job);
            (constants.scale, constants.zero_point, sum)
        })
    }
}

/// Packs rows that `fill` writes as codes `[padded K]`, zero behind K, returning their scale, zero point and sum. One task a panel.
fn pack(
    kernel: Kernel,
    outputs: usize,
    inner: usize,
    fill: impl Fn(usize, &mut [i8]) -> (f32, i32, i32) + Sync,
) -> Result<PackedWeight, Error> {
    if inner > product::MAX_INNER {
        return Err(CoreError::AccumulatorOverflow { inner, max: product::MAX_INNER }.into());
    }
    let (layout, padded_inner) = (kernel.layout(), padded(inner));
    let (panels, panel_bytes) = (outputs.div_ceil(PANEL), PANEL * padded_inner);
    let mut buffer = Buffer::zeroed(panels * panel_bytes);
    let mut columns = ColumnTerms {
        scales: vec![0.0; panels * PANEL],
        steps: vec![0.0; panels * PANEL],
        sums: vec![0; panels * PANEL],
        zero_points: vec![0; panels * PANEL],
        has_zero_points: false,
    };
    // With K = 0 there are no bytes to cut into panels, but scales and sums there are.
    let mut targets: Vec<&mut [i8]> = Vec::with_capacity(panels);
    let mut rest = &mut buffer.codes_mut()[..panels * panel_bytes];
    for _ in 0..panels {
        let (panel, tail) = rest.split_at_mut(panel_bytes);
        targets.push(panel);
        rest = tail;
    }
    let terms = columns
        .scales
        .par_chunks_mut(PANEL)
        .zip(columns.steps.par_chunks_mut(PANEL))
        .zip(columns.sums.par_chunks_mut(PANEL))
        .zip(columns.zero_points.par_chunks_mut(PANEL));
    targets.into_par_iter().zip(terms).enumerate().for_each(
        |(panel, (target, (((scales, steps), sums), zeros)))| {
            let mut staging = match layout {
                Layout::Rows => Vec::new(),
                Layout::Quads => vec![0_i8; panel_bytes],
            };
            for n in 0..PANEL.min(outputs - panel * PANEL) {
                let rows = if layout == Layout::Rows { &mut *target } else { &mut staging };
                let row = &mut rows[n * padded_inner..][..padded_inner];
                (scales[n], zeros[n], sums[n]) = fill(panel * PANEL + n, row);
                steps[n] = scales[n] / 127.0;
            }
            if layout == Layout::Quads {
                interleave(&staging, padded_inner, target);
            }
        },
    );
    columns.has_zero_points = columns.zero_points.iter().any(|z| *z != 0);
    Ok(PackedWeight { kernel, layout, outputs, inner, panels: buffer, columns })
}

/// `i8 [PANEL, K] → i8 [K/4, PANEL, 4]`.
fn interleave(rows: &[i8], padded_inner: usize, panel: &mut [i8]) {
    if padded_inner == 0 {
        return;
    }
    // One cache line of each row at a time: the 2 KiB of the panel it goes to stay in L1 until they are full.
    for (block, target) in panel.chunks_exact_mut(PANEL * K_STEP).enumerate() {
        for n in 0..PANEL {
            let quads = rows[n * padded_inner + block * K_STEP..][..K_STEP].as_chunks::<4>().0;
            for (quad, target) in quads.iter().zip(target.chunks_exact_mut(4 * PANEL)) {
                target[4 * n..4 * n + 4].copy_from_slice(quad);
            }
        }
    }
}

/// K, as i64 for the wide correction.
pub(crate) fn inner_length(weight: &PackedWeight) -> i64 {
    convert::length(weight.inner)
}
