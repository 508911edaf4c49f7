//! The layer: its three stages one after the other, and each for itself.

use std::marker::PhantomData;
use std::ops::Range;

use int8_core::{Config, Element, Error as CoreError};
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::activations::{self, LinearStats, QuantizedActivations};
use crate::buffer::Buffer;
use crate::epilogue::dequantize::{Epilogue, OutlierPart, PanelTerms, SparseRow};
#[cfg(target_arch = "x86_64")]
use crate::epilogue::outlier_tiles::OutlierTiles;
use crate::epilogue::outliers::{Columns, FillPanel, OutlierWeights};
use crate::error::Error;
#[cfg(target_arch = "x86_64")]
use crate::gemm::bf16::Fragment;
use crate::gemm::dispatch::{DispatchGemm, DispatchGroups};
use crate::gemm::groups::Grouped;
use crate::gemm::integer;
use crate::gemm::microkernel::{GroupMicrokernel, Microkernel};
use crate::gemm::operands::{OuterOperands, Tile};
use crate::gemm::panel::{PanelProduct, Whole};
use crate::gemm::schedule::{self, Block, Factors, Grid};
use crate::layout::{MAX_MR, NR};
use crate::matrix::{IntegerTarget, Store, Target, rows_of};
use crate::pack::weight::PackedWeight;
use crate::pool;
use crate::prologue::outliers::Outliers;
use crate::prologue::quantizer::Encoded;
use crate::prologue::rows::Prologue;
#[cfg(target_arch = "x86_64")]
use crate::tokens::AmxBf16;

/// `y [M, N] = x [M, K] · Wᵀ + bias [N]`, with the decomposition of `config`, in f32 arithmetic after the exact integer
/// product; `y` is stored to `out` once, rounded half to even (of subnormal bf16 on `amx-int8`: see the crate).
///
/// [`QuantizedActivations::new`] for this weight alone, and [`multiply`]. Encoding, granularity, outlier rule and row maximum
/// of `x` are those of `config`; encoding and granularity of `W` were fixed when it was packed. `x` and `out` may have
/// different element types. The result is the same for any number of threads; work runs on the current rayon pool, small
/// problems on the calling thread.
///
/// # Errors
/// The reference's `InnerDimension`, `Length` (bias), `Shape` (out) and `Threshold`; [`Error::NotRowMajor`];
/// [`Error::ExactColumns`] and [`Error::ExactColumnCount`].
pub fn linear<X: Element, Y: Element>(
    x: ArrayView2<'_, X>,
    weight: &PackedWeight,
    outlier_weights: OutlierWeights<'_>,
    bias: Option<&[f32]>,
    config: &Config,
    store: Store,
    out: ArrayViewMut2<'_, Y>,
) -> Result<LinearStats, Error> {
    let (rows, x_inner) = x.dim();
    check_operands((rows, x_inner), weight, bias, out.dim())?;
    rows_of(out.view(), "out")?;
    // The pool is entered once for both stages.
    pool::enter(Grid::new(rows, weight).is_parallel(), || {
        let x = QuantizedActivations::new(x, Prologue::None, config, &[weight])?;
        multiply(&x, weight, outlier_weights, bias, store, out)?;
        Ok(x.stats())
    })
}

/// Stages 2 and 3 for one of the weights that `x` was quantised for: `out [M, N] (+)= x · Wᵀ + bias [N]`, as [`linear`].
///
/// # Errors
/// The reference's `InnerDimension`, `Length` (bias) and `Shape` (out); [`Error::ActivationsMismatch`] for a weight that needs
/// what `x` was quantised without; [`Error::NotRowMajor`]; [`Error::ExactColumns`] and [`Error::ExactColumnCount`].
pub fn multiply<Y: Element>(
    x: &QuantizedActivations,
    weight: &PackedWeight,
    outlier_weights: OutlierWeights<'_>,
    bias: Option<&[f32]>,
    store: Store,
    mut out: ArrayViewMut2<'_, Y>,
) -> Result<(), Error> {
    check_operands(x.dim(), weight, bias, out.dim())?;
    x.check(weight)?;
    let target = Target::new(&mut out, "out")?;
    let input = x.encoded();
    let columns = Columns::resolve(weight, outlier_weights, &input.columns)?;
    let job = Multiply { input, weight, columns: &columns, bias, store, target };
    pool::enter(Grid::new(x.dim().0, weight).is_parallel(), || {
        if x.is_grouped() {
            weight.kernel().for_groups(x.dim().0).dispatch_groups(job);
        } else {
            weight.kernel().dispatch_gemm(job);
        }
    });
    Ok(())
}

fn check_operands(
    (rows, x_inner): (usize, usize),
    weight: &PackedWeight,
    bias: Option<&[f32]>,
    out: (usize, usize),
) -> Result<(), Error> {
    let (outputs, w_inner) = weight.dim();
    if x_inner != w_inner {
        return Err(CoreError::InnerDimension { operation: "linear", rows, x_inner, outputs, w_inner }.into());
    }
    if let Some(bias) = bias
        && bias.len() != outputs
    {
        return Err(CoreError::Length { what: "bias", expected: outputs, found: bias.len() }.into());
    }
    if out != (rows, outputs) {
        return Err(CoreError::Shape { what: "out", expected: (rows, outputs), found: out }.into());
    }
    Ok(())
}

struct Multiply<'a> {
    input: &'a Encoded,
    weight: &'a PackedWeight,
    columns: &'a Columns,
    bias: Option<&'a [f32]>,
    store: Store,
    target: Target<'a>,
}

impl DispatchGemm for Multiply<'_> {
    type Output = ();

    fn run<K: Microkernel>(self, kernel: K) {
        self.run_with(kernel, true, || Whole::new(kernel));
    }
}

impl DispatchGroups for Multiply<'_> {
    type Output = ();

    fn run<K: GroupMicrokernel>(self, kernel: K) {
        let weight = self.weight;
        // Tiles of groups, where there are any, are not those of bf16.
        self.run_with(kernel, false, || Grouped::new(kernel, weight));
    }
}

impl Multiply<'_> {
    /// Computes all blocks, each thread with a product of its own.
    fn run_with<K: Microkernel, P: PanelProduct>(
        self,
        kernel: K,
        configured: bool,
        product: impl Fn() -> P + Sync,
    ) {
        let Self { input, weight, columns, bias, store, target } = self;
        #[cfg(target_arch = "x86_64")]
        let tiles = match &input.outliers {
            Outliers::Dense { values, whole: true, .. } if configured => weight
                .kernel()
                .bf16_tiles()
                .and_then(|tiles| Some((tiles, OutlierTiles::new(tiles, values, columns, weight)?))),
            _ => None,
        };
        let layer = Layer {
            tile: kernel,
            input,
            weight,
            columns,
            #[cfg(target_arch = "x86_64")]
            tiles,
            bias,
            store,
            target,
        };
        let grid = Grid::new(input.terms.len(), weight);
        schedule::for_each_thread(grid, kernel, |blocks| layer.compute(blocks, &mut product()));
    }
}

/// Everything a thread needs to compute blocks of the output.
struct Layer<'a, K> {
    tile: K,
    input: &'a Encoded,
    weight: &'a PackedWeight,
    columns: &'a Columns,
    /// The outliers of whole columns, where tiles multiply them.
    #[cfg(target_arch = "x86_64")]
    tiles: Option<(AmxBf16, OutlierTiles)>,
    bias: Option<&'a [f32]>,
    store: Store,
    target: Target<'a>,
}

/// The outlier columns of one panel of the weight, for one thread.
#[derive(Default)]
struct OutlierPanel {
    /// `f32 [O, NR]`.
    floats: Buffer,
    #[cfg(target_arch = "x86_64")]
    fragments: Vec<Fragment>,
}

impl<K: Microkernel> Layer<'_, K> {
    fn compute(&self, blocks: schedule::Blocks<'_>, product: &mut impl PanelProduct) {
        let Encoded { codes, stride, .. } = self.input;
        let factors = Factors { codes: codes.codes(), stride: *stride, weight: self.weight };
        let mut outlier_panel = self.outlier_panel();
        let mut outlier_sums = Tile([[0.0_f32; NR]; MAX_MR]);
        for Block { rows, panel, next } in blocks {
            self.fill(panel, &mut outlier_panel);
            let terms = PanelTerms::new(self.weight, panel, self.bias);
            if let Some(next) = next {
                PanelTerms::prefetch(self.weight, next);
                self.columns.prefetch(next);
            }
            let (first, width) = terms.columns();
            let to = |row| self.target.destination(row, first, width);
            let tiles = rows.tiles();
            let operands = factors.operands::<K>(panel, next, tiles.len(), to);
            // SAFETY: lines 1 to 3: see `Factors`; line 4: threads are run inside `scoped`.
            unsafe { product.start(panel, tiles.clone().enumerate().map(operands)) };
            for (tile, rows) in tiles.enumerate() {
                let group_terms = self.input.group_terms(rows.clone());
                // SAFETY: as before, and these are the operands of that number; line 9: the terms of these rows.
                let product = unsafe { product.tile(tile, operands((tile, rows.clone())), group_terms) };
                // SAFETY: as before.
                let outliers = unsafe { self.outlier_part(rows.clone(), &outlier_panel, &mut outlier_sums) };
                self.tile.vectorize(Epilogue::<K> {
                    kernel: PhantomData,
                    product,
                    outliers,
                    rows: rows.clone(),
                    terms: &self.input.terms[rows],
                    panel: &terms,
                    store: self.store,
                    target: &self.target,
                });
            }
        }
    }

    fn outlier_panel(&self) -> OutlierPanel {
        #[cfg(target_arch = "x86_64")]
        if let Some((_, outliers)) = &self.tiles {
            let fragments = vec![Fragment::ZERO; outliers.fragments()];
            return OutlierPanel { fragments, ..OutlierPanel::default() };
        }
        OutlierPanel { floats: Buffer::zeroed(self.columns.len() * NR * 4), ..OutlierPanel::default() }
    }

    /// Reads the outlier columns of a panel.
    fn fill(&self, panel: usize, target: &mut OutlierPanel) {
        let Self { columns, weight, .. } = *self;
        if columns.len() == 0 {
            return;
        }
        #[cfg(target_arch = "x86_64")]
        if let Some((tiles, outliers)) = &self.tiles {
            return outliers.fill(*tiles, columns, weight, panel, &mut target.fragments);
        }
        self.tile.vectorize(FillPanel { columns, weight, panel, target: target.floats.floats_mut() });
    }

    /// The outlier part of these rows.
    ///
    /// # Safety
    /// The call is made inside [`scoped`](Microkernel::scoped), on the same thread.
    unsafe fn outlier_part<'s>(
        &'s self,
        rows: Range<usize>,
        panel: &'s OutlierPanel,
        sums: &'s mut Tile<f32>,
    ) -> OutlierPart<'s> {
        #[cfg(target_arch = "x86_64")]
        if let Some((tiles, outliers)) = &self.tiles {
            // SAFETY: `amx-int8` configures all tiles in `scoped`, as those of bf16 are.
            unsafe { outliers.multiply(*tiles, rows.start, rows.len(), &panel.fragments, sums) };
            return match self.columns {
                Columns::Dequantized(_) => OutlierPart::Codes(sums),
                Columns::Exact(_) => OutlierPart::Sums(sums),
            };
        }
        let panel = panel.floats.floats();
        match &self.input.outliers {
            Outliers::None => OutlierPart::None,
            Outliers::Dense { values: x, .. } => {
                let count = self.columns.len();
                if let ([w], 1) = (panel.as_chunks().0, count) {
                    return OutlierPart::One { x: &x[rows], w };
                }
                let operands = OuterOperands {
                    x: x[rows.start * count..rows.end * count].as_ptr(),
                    ldx: count,
                    rows: rows.len(),
                    w: panel.as_ptr(),
                    count,
                    streamed: false,
                };
                // SAFETY: line 5: the slice above; line 6: the panel was made for `count` columns, in a line-aligned
                // buffer, and tiles have 1 to ROWS rows.
                unsafe { self.tile.outer(operands, sums) };
                OutlierPart::Sums(sums)
            }
            Outliers::Sparse(lists) => {
                let (panel, _) = panel.as_chunks::<NR>();
                for (row, sums) in lists[rows].iter().zip(&mut sums.0) {
                    self.tile.vectorize(SparseRow { outliers: row, panel, sums });
                }
                OutlierPart::Sums(sums)
            }
        }
    }
}

/// The integer product alone: `a [M, K] · Wᵀ → i32 [M, N]` on the kernel of the weight. Exact.
///
/// # Errors
/// As [`int8_product_into`].
pub fn int8_product(a: ArrayView2<'_, i8>, weight: &PackedWeight) -> Result<Array2<i32>, Error> {
    let mut out = Array2::zeros((a.nrows(), weight.dim().0));
    int8_product_into(a, weight, out.view_mut())?;
    Ok(out)
}

/// As [`int8_product`], into an existing matrix `[M, N]`.
///
/// # Errors
/// The reference's `InnerDimension`, `Shape` (out) and `CodeOutOfRange` for a code of −128; [`Error::NotRowMajor`].
pub fn int8_product_into(
    a: ArrayView2<'_, i8>,
    weight: &PackedWeight,
    mut out: ArrayViewMut2<'_, i32>,
) -> Result<(), Error> {
    let ((rows, x_inner), (outputs, w_inner)) = (a.dim(), weight.dim());
    if x_inner != w_inner {
        let operation = "int8_product";
        return Err(CoreError::InnerDimension { operation, rows, x_inner, outputs, w_inner }.into());
    }
    if out.dim() != (rows, outputs) {
        return Err(CoreError::Shape { what: "out", expected: (rows, outputs), found: out.dim() }.into());
    }
    rows_of(a, "x")?;
    let target = IntegerTarget::new(&mut out, "out")?;
    let done = pool::enter(Grid::new(rows, weight).is_parallel(), || {
        let mut workspace = activations::take_workspace();
        let codes = &mut workspace.codes;
        let done = weight.kernel().dispatch_gemm(integer::Product { a, weight, target, codes });
        activations::give_back(workspace);
        done
    });
    if done {
        return Ok(());
    }
    let place = a.indexed_iter().find(|(_, code)| **code == i8::MIN);
    let (row, column) = place.map(|(place, _)| place).unwrap_or_default();
    Err(CoreError::CodeOutOfRange { what: "x", row, column }.into())
}

#[cfg(test)]
mod tests;
