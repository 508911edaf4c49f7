//! A weight packed once, at load, in the layout of the kernel that will read it.

use int8_core::{GROUP, QuantizedMatrix, quantize};
use ndarray::{Array1, Array2, ArrayView1, Axis};
use rayon::prelude::*;

use crate::arena::ArenaSlice;
use crate::convert;
use crate::error::Error;
use crate::kernel::Kernel;
use crate::layout::{Layout, NR, WeightGroups, padded, padded_groups};
use crate::simd::{Instructions, LANES};

/// `W [N, K]` as int8 codes in panels of 32 rows, with a scale and a zero point for each row, or for each group of
/// [`GROUP`] values of a row.
///
/// The value of a code is `(q − z)·s/127`, as in [`QuantizedMatrix`]. The layout is part of the weight; a kernel that
/// reads another one is refused.
#[derive(Clone)]
pub struct PackedWeight {
    pub(crate) kernel: Kernel,
    pub(crate) layout: Layout,
    pub(crate) outputs: usize,
    pub(crate) inner: usize,
    /// Panels of `NR * padded(inner)` bytes; the padding of N and K holds zero codes.
    pub(crate) panels: ArenaSlice<i8>,
    pub(crate) columns: ColumnTerms,
    /// Scales and zero points of groups; those of `columns` are then 0.
    pub(crate) groups: Option<WeightGroups>,
}

/// What the epilogue needs of each output channel, padded with zeros to whole panels.
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

    /// Scales of each row: ⌈K/[`GROUP`]⌉ for group granularity, else 1.
    pub fn groups_per_row(&self) -> usize {
        if self.groups.is_some() { quantize::group_count(self.inner) } else { 1 }
    }

    /// A parameter of each group, by its place as stored, in the order of rows.
    fn row_major<T>(&self, parameter: impl Fn(usize) -> T) -> Array1<T> {
        let (groups, padded) = (self.groups_per_row(), padded_groups(self.inner));
        let at = |row: usize, group| ((row / NR) * padded + group) * NR + row % NR;
        (0..self.outputs)
            .flat_map(|row| (0..groups).map(move |group| at(row, group)))
            .map(parameter)
            .collect()
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

    /// The scales and zero points of its groups, if it has such.
    pub(crate) fn groups(&self) -> Option<&WeightGroups> {
        self.groups.as_ref()
    }

    /// Whether any zero point is not 0.
    pub(crate) fn has_zero_points(&self) -> bool {
        self.columns.has_zero_points
            || self.groups.as_ref().is_some_and(|groups| !groups.zero_points.is_empty())
    }

    /// Step `s/127` and zero point of 16 output channels of a panel, for input feature `k`.
    #[inline(always)]
    pub(crate) fn step_and_zero_point<I: Instructions>(
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

    /// Bytes between two rows of a panel; 0 where rows are interleaved.
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

/// K, as i64 for the wide correction.
pub(crate) fn inner_length(weight: &PackedWeight) -> i64 {
    convert::length(weight.inner)
}
