//! Stage 1: one activation matrix quantised for every weight that reads it.

use std::cell::RefCell;

use int8_core::{Config, Element, Error as CoreError, Granularity};
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;

use crate::error::Error;
use crate::kernel::Kernel;
use crate::matrix::{Source, Target};
use crate::pack::weight::PackedWeight;
use crate::pool;
use crate::prologue::quantizer::{Encoded, InputGroups, Quantizer, SERIAL_ELEMENTS, Workspace};
use crate::prologue::rows::{ApplyRow, Prologue, Rows};
use crate::simd::{Dispatch, Vectorize, run};

/// Rows of a task of [`apply_prologue`].
const TASK_ROWS: usize = 16;

/// Workspaces that a thread keeps: more activations are rarely alive at once.
const SPARE_WORKSPACES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Workspace>> = const { RefCell::new(Vec::new()) };
}

/// The buffers of earlier activations of this thread.
pub(crate) fn take_workspace() -> Workspace {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Keeps buffers for the next activations of this thread.
pub(crate) fn give_back(workspace: Workspace) {
    // Where the thread is being torn down, they are freed.
    let _ = SPARE.try_with(|spare| {
        let mut spare = spare.borrow_mut();
        if spare.len() < SPARE_WORKSPACES {
            spare.push(workspace);
        }
    });
}

/// What quantisation found in its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinearStats {
    /// Columns of `x` that hold at least one outlier.
    pub outlier_columns: usize,
    /// Outlier values: whole columns, or single values, as the granularity says.
    pub outlier_values: usize,
}

/// `x [M, K]` as codes in the rows that the microkernels read, with its outliers apart: stage 1 of a layer, computed once for
/// all weights that read it.
///
/// ```text
/// x[m,k] ≈ (q[m,k] − z[m])·s[m]/127   where (m,k) is no outlier
/// x[m,k]                              where it is: exact, as f32
/// ```
///
/// Bit for bit the codes, scales, zero points and outliers of [`int8_core::QuantizedActivations`].
pub struct QuantizedActivations {
    kernel: Kernel,
    inner: usize,
    /// Whether `config` has groups, whatever the weights have.
    input_groups: bool,
    groups: InputGroups,
    sums: bool,
    encoded: Encoded,
}

impl QuantizedActivations {
    /// Applies `prologue` to each row of `x` in f32 and quantises the result as `config` says, in parallel on the current rayon
    /// pool.
    ///
    /// `x` is row-major, `[M, K]`, or `[M, 2·K]` for a [gate](Prologue::Gate). `weights` are all that will read it: they decide
    /// the kernel, and what is computed beside the codes (code sums, groups).
    ///
    /// # Errors
    /// [`Error::NoWeights`]; [`Error::WeightsDiffer`] when they were packed for different kernels, or some have quantization
    /// parameters for groups of K and some do not (unless `config` has groups); the reference's `InnerDimension` when K differs,
    /// `Length` for a gain or bias that has not K values, and `Threshold`; [`Error::NotRowMajor`].
    pub fn new<X: Element>(
        x: ArrayView2<'_, X>,
        prologue: Prologue<'_>,
        config: &Config,
        weights: &[&PackedWeight],
    ) -> Result<Self, Error> {
        let first = weights.first().ok_or(Error::NoWeights)?;
        let kernel = first.kernel();
        config.rule.validate()?;
        let (rows, columns) = x.dim();
        let inner = prologue.inner(columns)?;
        let input_groups = config.input_granularity == Granularity::Group;
        for weight in weights {
            let (outputs, w_inner) = weight.dim();
            if w_inner != inner {
                let (operation, x_inner) = ("linear", inner);
                return Err(CoreError::InnerDimension { operation, rows, x_inner, outputs, w_inner }.into());
            }
            if weight.kernel() != kernel {
                let (first, other) = (kernel.to_string(), weight.kernel().to_string());
                return Err(Error::WeightsDiffer { what: "their kernel", first, other });
            }
            if !input_groups && weight.groups().is_some() != first.groups().is_some() {
                let granularity = |weight: &PackedWeight| granularity(weight.groups().is_some()).to_owned();
                let (first, other) = (granularity(first), granularity(weight));
                return Err(Error::WeightsDiffer { what: "their quantization parameters", first, other });
            }
        }
        let sums = weights.iter().any(|weight| weight.has_zero_points());
        // Groups on one side are enough: the product is then cut along K.
        let groups = match (input_groups || first.groups().is_some(), sums) {
            (false, _) => InputGroups::None,
            (true, false) => InputGroups::Plain,
            (true, true) => InputGroups::WithRests,
        };
        let rows = Rows { x: Source::new(x, "x")?, prologue, inner };
        // Taken here, where it will be given back: the pool may run the job on another thread.
        let job = Quantize { rows, config, groups, sums, workspace: take_workspace() };
        let encoded = pool::enter(is_parallel(&rows), || {
            let kernel = if groups == InputGroups::None { kernel } else { kernel.for_groups(rows.len()) };
            kernel.dispatch(job)
        });
        Ok(Self { kernel, inner, input_groups, groups, sums, encoded })
    }

    /// `(M, K)`.
    pub fn dim(&self) -> (usize, usize) {
        (self.encoded.terms.len(), self.inner)
    }

    /// How many outliers it has.
    pub fn stats(&self) -> LinearStats {
        LinearStats {
            outlier_columns: self.encoded.columns.len(),
            outlier_values: self.encoded.outlier_values(),
        }
    }

    /// Whether the product needs quantization parameters for groups of K.
    pub(crate) fn is_grouped(&self) -> bool {
        self.groups != InputGroups::None
    }

    pub(crate) fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    /// Checks that everything that a weight of the same K needs was computed.
    ///
    /// # Errors
    /// [`Error::ActivationsMismatch`].
    pub(crate) fn check(&self, weight: &PackedWeight) -> Result<(), Error> {
        let needs_groups = self.input_groups || weight.groups().is_some();
        let checks = [
            ("codes for", weight.kernel().name(), self.kernel.name()),
            ("quantization parameters for", granularity(needs_groups), granularity(self.is_grouped())),
            ("code sums:", "yes", if self.sums || !weight.has_zero_points() { "yes" } else { "no" }),
        ];
        match checks.into_iter().find(|(_, expected, found)| expected != found) {
            Some((what, expected, found)) => Err(Error::ActivationsMismatch { what, expected, found }),
            None => Ok(()),
        }
    }
}

/// What quantization parameters are for.
fn granularity(groups: bool) -> &'static str {
    if groups { "groups of K" } else { "rows" }
}

impl Drop for QuantizedActivations {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.encoded).into_workspace());
    }
}

impl std::fmt::Debug for QuantizedActivations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ((rows, inner), stats) = (self.dim(), self.stats());
        write!(f, "QuantizedActivations [{rows}, {inner}] for {} ({stats:?})", self.kernel)
    }
}

struct Quantize<'a> {
    rows: Rows<'a>,
    config: &'a Config,
    groups: InputGroups,
    sums: bool,
    workspace: Workspace,
}

impl Dispatch for Quantize<'_> {
    type Output = Encoded;

    fn run<K: Vectorize>(self, kernel: K) -> Encoded {
        let Self { rows, config, groups, sums, workspace } = self;
        Quantizer { rows, config, groups, sums, kernel }.run(workspace)
    }
}

fn is_parallel(rows: &Rows<'_>) -> bool {
    rows.len() * rows.inner >= SERIAL_ELEMENTS && rayon::current_num_threads() > 1
}

/// Computes a prologue into `out`, f32 `[M, K]`, of which nobody else has a slice.
fn apply(kernel: Kernel, rows: &Rows<'_>, out: &Target<'_>) {
    let task = |first: usize| {
        let mut widened = Vec::new();
        for row in first..rows.len().min(first + TASK_ROWS) {
            // SAFETY: each row is written by one task, and the matrix is f32 [M, K].
            let out = unsafe { out.slice::<f32>(row, 0, rows.inner) };
            let (prologue, row) = (rows.prologue, rows.x.row(row));
            run(kernel, ApplyRow { prologue, row, widened: &mut widened, out });
        }
    };
    let tasks = (0..rows.len().div_ceil(TASK_ROWS)).map(|task| task * TASK_ROWS);
    if is_parallel(rows) {
        tasks.collect::<Vec<_>>().into_par_iter().for_each(task);
    } else {
        tasks.for_each(task);
    }
}

/// `out [M, K] = prologue(x)`, row by row in f32, in parallel on the current rayon pool: for float weights, and for observers.
///
/// `x` is row-major, `[M, K]`, or `[M, 2·K]` for a [gate](Prologue::Gate).
///
/// # Errors
/// The reference's `Length` for a gain or bias that has not K values, and `Shape` (out); [`Error::NotRowMajor`].
pub fn apply_prologue(
    kernel: Kernel,
    x: ArrayView2<'_, f32>,
    prologue: Prologue<'_>,
    mut out: ArrayViewMut2<'_, f32>,
) -> Result<(), Error> {
    let inner = prologue.inner(x.ncols())?;
    if out.dim() != (x.nrows(), inner) {
        return Err(CoreError::Shape { what: "out", expected: (x.nrows(), inner), found: out.dim() }.into());
    }
    let rows = Rows { x: Source::new(x, "x")?, prologue, inner };
    let target = Target::new(&mut out, "out")?;
    pool::enter(is_parallel(&rows), || apply(kernel, &rows, &target));
    Ok(())
}
