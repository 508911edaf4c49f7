//! The outlier part of a weight: where the exact columns come from, and the panel of them that a tile reads.

use std::sync::Arc;

use half::{bf16, f16};

use crate::convert;
use crate::error::Error;
use crate::layout::{Layout, NR, padded};
use crate::pack::weight::PackedWeight;
use crate::prefetch;
use crate::simd::{Instructions, LANES, Lane, Vectorized};

/// What the outliers of `x` are multiplied with.
#[derive(Clone, Copy, Default)]
pub enum OutlierWeights<'a> {
    /// The int8 weight, dequantised where it is needed.
    #[default]
    Dequantized,
    /// The weight as it was before quantisation. Only the outlier columns of a call are requested.
    Exact(&'a dyn ExactColumns),
}

/// Where the exact columns of a weight come from: a memory-mapped checkpoint, a cache, a matrix in memory.
pub trait ExactColumns: Sync {
    /// The columns of `W [N, K]` with these indices (ascending, below K), in this order, N values each.
    ///
    /// Called at most once for each call of the layer, only when there are outliers, on the calling thread or on one
    /// of the current rayon pool.
    ///
    /// # Errors
    /// Whatever kept the source from reading them; the layer fails with it.
    fn columns(
        &self,
        columns: &[usize],
    ) -> Result<Vec<ExactColumn>, Box<dyn std::error::Error + Send + Sync>>;
}

/// One exact column of a weight: N values, shared with whoever keeps them.
#[derive(Debug, Clone)]
pub enum ExactColumn {
    /// In f32.
    F32(Arc<[f32]>),
    /// In f16.
    F16(Arc<[f16]>),
    /// In bf16.
    Bf16(Arc<[bf16]>),
}

impl ExactColumn {
    /// Its number of values.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// The values of the panel that begins with this row of the weight.
    #[inline(always)]
    pub(super) fn panel<I: Instructions>(&self, simd: I, first: usize) -> [I::Floats; 2] {
        match self {
            Self::F32(values) => load_panel(simd, &values[first..]),
            Self::F16(values) => load_panel(simd, &values[first..]),
            Self::Bf16(values) => load_panel(simd, &values[first..]),
        }
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The outlier columns of one call, resolved.
pub(crate) enum Columns {
    Dequantized(Vec<usize>),
    Exact(Vec<ExactColumn>),
}

impl Columns {
    /// Requests the columns from the source and checks the result.
    pub(crate) fn resolve(
        weight: &PackedWeight,
        source: OutlierWeights<'_>,
        columns: &[usize],
    ) -> Result<Self, Error> {
        let source = match source {
            OutlierWeights::Exact(source) if !columns.is_empty() => source,
            _ => return Ok(Self::Dequantized(columns.to_vec())),
        };
        let (outputs, inner) = weight.dim();
        let exact =
            source.columns(columns).map_err(|source| Error::ExactColumns { outputs, inner, source })?;
        if exact.len() != columns.len() {
            return Err(Error::ExactColumnCount { expected: columns.len(), found: exact.len() });
        }
        if let Some(column) = exact.iter().find(|column| column.len() != outputs) {
            let error =
                int8_core::Error::Length { what: "exact column", expected: outputs, found: column.len() };
            return Err(error.into());
        }
        Ok(Self::Exact(exact))
    }

    /// Prefetches what [`FillPanel`] reads of a panel, unless it lies in the weight itself.
    pub(crate) fn prefetch(&self, panel: usize) {
        let Self::Exact(columns) = self else { return };
        for column in columns {
            match column {
                ExactColumn::F32(values) => {
                    let values = &values[panel * NR..];
                    prefetch::prefetch(values.as_ptr());
                    prefetch::prefetch(values.as_ptr().wrapping_add(LANES));
                }
                ExactColumn::F16(values) => prefetch::prefetch(values[panel * NR..].as_ptr()),
                ExactColumn::Bf16(values) => prefetch::prefetch(values[panel * NR..].as_ptr()),
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Dequantized(columns) => columns.len(),
            Self::Exact(columns) => columns.len(),
        }
    }
}

/// Writes `f32 [O, NR]`: the outlier columns of one panel of the weight, zero beyond N.
pub(crate) struct FillPanel<'a> {
    pub(crate) columns: &'a Columns,
    pub(crate) weight: &'a PackedWeight,
    pub(crate) panel: usize,
    pub(crate) target: &'a mut [f32],
}

impl Vectorized for FillPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, simd: I) {
        let Self { columns, weight, panel, target } = self;
        let (rows, _) = target.as_chunks_mut::<NR>();
        let first = panel * NR;
        match columns {
            Columns::Dequantized(columns) => {
                for (row, &k) in rows.iter_mut().zip(columns) {
                    let (codes, steps) = codes_of_column(simd, weight, panel, k);
                    for (half, row) in row.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
                        simd.store(simd.multiply(codes[half], steps[half]), row);
                    }
                }
            }
            Columns::Exact(columns) => {
                for (row, column) in rows.iter_mut().zip(columns) {
                    for (half, row) in column.panel(simd, first).into_iter().zip(row.as_chunks_mut().0) {
                        simd.store(half, row);
                    }
                }
            }
        }
    }
}

/// `code − zero point` of input feature `k` in the channels of a panel, and the channels' steps.
#[inline(always)]
pub(super) fn codes_of_column<I: Instructions>(
    simd: I,
    weight: &PackedWeight,
    panel: usize,
    k: usize,
) -> ([I::Floats; 2], [I::Floats; 2]) {
    let codes = weight.panel(panel);
    let [mut all, mut steps] = [[simd.splat(0.0); 2]; 2];
    for (half, (all, step)) in all.iter_mut().zip(&mut steps).enumerate() {
        let code = match weight.layout() {
            Layout::Rows => {
                let mut column = [0; LANES];
                for (n, code) in column.iter_mut().enumerate() {
                    let n = half * LANES + n;
                    *code = i32::from(codes[Layout::Rows.position(n, k, padded(weight.dim().1))]);
                }
                simd.load_int(&column)
            }
            Layout::VnniK4 => {
                let k4 = codes[(k / 4) * (4 * NR) + half * 4 * LANES..].as_chunks::<4>().0;
                match k4.first_chunk::<LANES>() {
                    Some(k4) => simd.byte_of_k4(k4, convert::index(k % 4)),
                    None => continue,
                }
            }
        };
        let zero;
        (*step, zero) = weight.step_and_zero_point(simd, panel, half, k);
        *all = simd.to_floats(simd.subtract_product(code, zero, simd.splat_int(1)));
    }
    (all, steps)
}

/// `NR` values, or fewer and zeros behind them.
#[inline(always)]
fn load_panel<I: Instructions, T: Lane>(simd: I, values: &[T]) -> [I::Floats; 2] {
    let mut padded = [T::default(); NR];
    let whole = match values.first_chunk() {
        Some(whole) => whole,
        None => {
            padded[..values.len()].copy_from_slice(values);
            &padded
        }
    };
    let vectors = whole.as_chunks::<LANES>().0;
    [T::load(simd, &vectors[0]), T::load(simd, &vectors[1])]
}
