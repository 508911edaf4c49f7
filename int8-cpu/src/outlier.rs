//! The outlier part of a weight: where the exact columns come from, and the panel of them that a tile reads.

use std::sync::Arc;

use half::{bf16, f16};

use crate::Error;
use crate::convert;
use crate::kernel::Layout;
use crate::tile::{Instructions, PANEL, Vectorized};
use crate::weight::{PackedWeight, padded};

/// What the outliers of `x` are multiplied with.
#[derive(Clone, Copy, Default)]
pub enum OutlierWeights<'a> {
    /// The int8 weight, dequantised where it is needed.
    #[default]
    Dequantized,
    /// The weight as it was before quantisation. Only the columns that a call finds to be outliers are asked for.
    Exact(&'a dyn ExactColumns),
}

/// Where the exact columns of a weight come from: a memory-mapped checkpoint, a cache, a matrix in memory.
pub trait ExactColumns: Sync {
    /// The columns of `W [N, K]` with these indices (ascending, below K), in this order, N values each.
    ///
    /// Called at most once for each call of the layer, on the calling thread, only when there are outliers.
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
    /// Asks the source for the columns and checks what it returns.
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

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Dequantized(columns) => columns.len(),
            Self::Exact(columns) => columns.len(),
        }
    }
}

/// Writes `f32 [O, PANEL]`: the outlier columns of one panel of the weight, zero beyond N.
pub(crate) struct FillPanel<'a> {
    pub(crate) columns: &'a Columns,
    pub(crate) weight: &'a PackedWeight,
    pub(crate) panel: usize,
    pub(crate) target: &'a mut [f32],
}

impl Vectorized for FillPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn call<I: Instructions>(self, instructions: I) {
        let Self { columns, weight, panel, target } = self;
        let (rows, _) = target.as_chunks_mut::<PANEL>();
        let first = panel * PANEL;
        match columns {
            Columns::Dequantized(columns) => {
                let terms = weight.columns();
                let zeros = &terms.zero_points[first..first + PANEL];
                let steps = &terms.steps[first..first + PANEL];
                let codes = weight.panel(panel);
                for (row, &k) in rows.iter_mut().zip(columns) {
                    let column = panel_column(weight.layout(), codes, k, padded(weight.dim().1));
                    for (((value, code), zero), step) in row.iter_mut().zip(column).zip(zeros).zip(steps) {
                        *value = convert::steps(code - zero) * step;
                    }
                }
            }
            Columns::Exact(columns) => {
                for (row, column) in rows.iter_mut().zip(columns) {
                    let last = (first + PANEL).min(column.len());
                    row[last - first..].fill(0.0);
                    let row = &mut row[..last - first];
                    match column {
                        ExactColumn::F32(values) => row.copy_from_slice(&values[first..last]),
                        ExactColumn::F16(values) => {
                            instructions.widen(&values[first..last], row);
                        }
                        ExactColumn::Bf16(values) => {
                            for (row, value) in row.iter_mut().zip(&values[first..last]) {
                                *row = convert::bf16_to_f32(*value);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Column `k` of a panel as integers.
#[inline(always)]
fn panel_column(layout: Layout, codes: &[i8], k: usize, padded_inner: usize) -> [i32; PANEL] {
    let mut column = [0; PANEL];
    match layout {
        Layout::Rows => {
            for (n, value) in column.iter_mut().enumerate() {
                *value = i32::from(codes[n * padded_inner + k]);
            }
        }
        Layout::Quads => {
            let lane = convert::index(k % 4);
            let (quads, _) = codes[(k / 4) * (4 * PANEL)..][..4 * PANEL].as_chunks::<4>();
            for (value, quad) in column.iter_mut().zip(quads) {
                *value = convert::quad_lane(u32::from_le_bytes(quad.map(i8::cast_unsigned)), lane);
            }
        }
    }
    column
}
