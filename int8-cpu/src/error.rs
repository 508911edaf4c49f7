//! What can go wrong, in three families: the caller's mistake, unsupported here, failure of the caller's column source.

use crate::layout::Layout;

/// An error of this crate, with the operands' shapes in its message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, thresholds, code ranges and K limits are those of the reference.
    #[error(transparent)]
    Core(#[from] int8_core::Error),
    /// A matrix whose rows are not contiguous.
    #[error(
        "{what} [{rows}, {columns}] must be row-major with contiguous rows; its strides are {strides:?} (copy it with `as_standard_layout`)"
    )]
    NotRowMajor {
        /// Which matrix.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        columns: usize,
        /// Its strides in elements.
        strides: Vec<isize>,
    },
    /// A weight packed in the layout of another kind of kernel.
    #[error(
        "the weight is packed as {found:?} and kernel `{kernel}` reads {expected:?}; pack it again for that kernel"
    )]
    LayoutMismatch {
        /// The kernel.
        kernel: &'static str,
        /// The layout it reads.
        expected: Layout,
        /// The layout of the weight.
        found: Layout,
    },
    /// A name that is no kernel's.
    #[error("unknown kernel `{name}`; known: {known}")]
    UnknownKernel {
        /// Name given.
        name: String,
        /// All names, separated by commas.
        known: String,
    },
    /// A kernel that exists but that this processor cannot run.
    #[error(
        "kernel `{name}` needs {needs}, which this processor does not offer; available here: {available}"
    )]
    KernelUnavailable {
        /// Name given.
        name: String,
        /// Processor features it needs.
        needs: &'static str,
        /// Names of the kernels that run here.
        available: String,
    },
    /// The source of exact outlier columns failed.
    #[error("cannot get the exact columns of W [{outputs}, {inner}]: {source}")]
    ExactColumns {
        /// Rows of W.
        outputs: usize,
        /// Columns of W.
        inner: usize,
        /// What the source said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Activations quantised for no weight: there is no kernel to quantise them for.
    #[error(
        "activations are quantised for the kernel of the weights that read them, and no weight was given"
    )]
    NoWeights,
    /// Weights that cannot read the same quantised activations.
    #[error("weights that read the same quantised activations differ in {what}: {first} and {other}")]
    WeightsDiffer {
        /// In what they differ.
        what: &'static str,
        /// That of the first weight.
        first: String,
        /// That of another one.
        other: String,
    },
    /// Activations that were quantised for other weights than the one that reads them.
    #[error(
        "the activations were quantised with {what} {found}, and the weight needs {expected}; pass it to `QuantizedActivations::new`"
    )]
    ActivationsMismatch {
        /// What does not fit.
        what: &'static str,
        /// What the weight needs.
        expected: &'static str,
        /// What the activations have.
        found: &'static str,
    },
    /// A key or value that the type of the cache cannot hold.
    #[error(
        "{what}: {value} is beyond {largest}, the largest number of {element}; keep keys and values in another type: f32 has room for all"
    )]
    CacheRange {
        /// Keys or values.
        what: &'static str,
        /// The number.
        value: f32,
        /// Name of the cache's type.
        element: &'static str,
        /// Largest number of that type.
        largest: f64,
    },
    /// The source of exact outlier columns returned the wrong number of columns.
    #[error("the source of exact columns was asked for {expected} columns and returned {found}")]
    ExactColumnCount {
        /// Columns requested.
        expected: usize,
        /// Columns returned.
        found: usize,
    },
    /// Memory for the pages of a KV cache that the system does not have, or more than there are addresses.
    #[error(
        "cannot reserve {pages} pages of a KV cache ({layers} layers, {kv_heads} KV heads of {head_size}): {source}"
    )]
    KvPages {
        /// Number of pages.
        pages: usize,
        /// Layers of a page.
        layers: usize,
        /// KV heads of a layer.
        kv_heads: usize,
        /// Size of a head.
        head_size: usize,
        /// What the system said.
        source: std::io::Error,
    },
}
