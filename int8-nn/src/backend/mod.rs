//! The operations that a device must have to run a model, at the granularity at which they can be fused.
//!
//! A forward is a fixed sequence of calls on activations that were allocated before. The rules, which a strict mock backend
//! in the tests checks:
//! - every buffer has its capacity when it is made; no operation allocates or returns to the host between
//!   [`set_batch`](Backend::set_batch) and [`read`](Backend::read) or [`sample`](Backend::sample);
//! - all that changes from forward to forward (ids, positions, lengths, selected rows, pages) lies in [`Backend::Batch`] and
//!   [`Backend::Cache`], on the device. [`run`](Backend::run) is told a [`GraphKey`] that names the phase and its row counts:
//!   a backend may record the operations under it, and replay the record without calling the closure again;
//! - normalisation, activation and residual addition are arguments of the projection they surround ([`Input`], [`Output`]),
//!   and one input serves several weights, so that it is quantised once;
//! - a linear layer is told its [`Site`];
//! - the KV cache is a pool of pages: reserved, released and forked by sequence;
//! - the next tokens are chosen on the device: logits leave it only when asked for;
//! - what is lacking is in [`Capabilities`], asked before weights are read: no operation refuses a model in the middle;
//! - no type of one backend is part of this module.
//!
//! Activations are row-major `[rows, width]`, one row a token; the residual stream is at least f32.

mod capabilities;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod linear_attention;
mod observer;
mod pages;
pub mod parallel;
mod positions;
mod recurrent;
mod routing;
mod spec;

use std::ops::Range;
use std::sync::Arc;

pub use capabilities::{Capabilities, Feature};
pub use int8_core::{FloatType, KvType};
pub use linear_attention::{GatedDeltaRule, LightningAttention, ShortConvolution};
use ndarray::{Array2, ArrayView2};
pub use observer::Observer;
pub use pages::{PageCopy, PageTables};
pub use recurrent::{Convolution, HeadScan, Operand, Recurrence, RecurrentLayer, SelectiveScan};
pub use routing::SharedWeight;
pub use spec::{
    ActivationRole, AttentionSpec, BatchCapacity, CacheCapacity, ColumnCopy, DistanceBias, DistanceVectors,
    Experts, GraphKey, Input, LayerAttention, LinearStatistics, Mask, NormSpec, Output, Phase, Routing,
    RowSelection, Segment,
};

use crate::Error;
use crate::config::{Activation, ClampedGate, DecoderConfig, GateFunction, Xielu};
use crate::group::Group;
pub use crate::precision::{LinearRole, OutlierWeights, Precision, Quantization, Site, Stack};
use crate::sampler::Sampler;
use crate::weights::{LinearSource, RowTable};

/// A device that runs models. See the module's documentation for the rules its operations keep.
pub trait Backend: Sized + Send + Sync {
    /// Activations `[rows, width]` on the device, allocated for a largest number of rows.
    type Activations: Send + Sync + std::fmt::Debug;
    /// Weights of a linear layer.
    type Linear: Send + Sync + std::fmt::Debug;
    /// Weights of a normalisation.
    type Norm: Send + Sync + std::fmt::Debug;
    /// A table of rows looked up by id.
    type Embedding: Send + Sync + std::fmt::Debug;
    /// Keys and values for all blocks and sequences, in pages, and the recurrent states of blocks that have one.
    type Cache: Send + Sync + std::fmt::Debug;
    /// Ids, positions, lengths and selected rows of the forward at hand.
    type Batch: Send + Sync + std::fmt::Debug;

    /// One line that names the device and its kernels.
    fn describe(&self) -> String;
    /// What this backend implements.
    fn capabilities(&self) -> Capabilities;

    // Building a model.

    /// Called once, before the weights of a model with this description are made.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the backend cannot hold such a model.
    fn prepare(&self, config: &DecoderConfig) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    /// Reads (and quantises) a linear layer.
    ///
    /// # Errors
    /// When the checkpoint's tensors are not what they should be, or the device refuses; so for all that follow.
    fn linear(&self, site: Site, source: &LinearSource, precision: &Precision)
    -> Result<Self::Linear, Error>;
    /// The head whose weight is an embedding table.
    fn tied(&self, site: Site, embedding: &Self::Embedding) -> Result<Self::Linear, Error>;
    /// A normalisation.
    fn norm(&self, spec: &NormSpec) -> Result<Self::Norm, Error>;
    /// An embedding `[rows, width]`.
    fn embedding(&self, table: &RowTable) -> Result<Self::Embedding, Error>;

    /// Called once, when all linear layers of a model have been made: `forwards` runs forwards over a fixed text, in which these
    /// layers see the inputs that the model has. A backend that has nothing to learn from them does not call it.
    fn calibrate(
        &self,
        linears: &[&Self::Linear],
        forwards: &mut dyn FnMut() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _ = (linears, forwards);
        Ok(())
    }

    /// What a user should know of the model that was loaded, before it runs.
    ///
    /// # Errors
    /// When the device fails.
    fn note(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    // Preparing a session.

    /// Activations for at most `max_rows` rows.
    fn activations(
        &self,
        max_rows: usize,
        width: usize,
        role: ActivationRole,
    ) -> Result<Self::Activations, Error>;
    /// A cache of this capacity: for [`attention`](Self::attention), or, with [`Mask::Full`], for
    /// [`write_cross_kv`](Self::write_cross_kv) and [`cross_attention`](Self::cross_attention).
    fn cache(&self, spec: &AttentionSpec, capacity: CacheCapacity) -> Result<Self::Cache, Error>;
    /// Bytes of the pages that hold keys and values now, and of recurrent states.
    fn cache_bytes(&self, cache: &Self::Cache) -> usize;
    /// Calls `read` with the page tables of a cache: who holds which pages, and how many are free.
    fn page_tables(&self, cache: &Self::Cache, read: &mut dyn FnMut(&PageTables));
    /// A batch of at most this size.
    fn batch(&self, capacity: BatchCapacity) -> Result<Self::Batch, Error>;

    // The pages of the KV cache. Between forwards.

    /// Makes these positions of different sequences writable, as [`PageTables::reserve`].
    ///
    /// # Errors
    /// [`Error::Input`] when too few pages are free. Nothing has changed then.
    fn reserve(&self, cache: &mut Self::Cache, ranges: &[(usize, Range<usize>)]) -> Result<(), Error>;
    /// Gives the pages of a sequence back, and forgets its recurrent states.
    fn release(&self, cache: &mut Self::Cache, sequence: usize) -> Result<(), Error>;
    /// Makes `to` begin with the first `positions` positions of `from`, on the same pages until either writes to them. A recurrent
    /// state is copied.
    ///
    /// # Errors
    /// [`Error::Input`] when a recurrent state is not that of these positions: they must end with a forward, the last one or the
    /// one before. Nothing has changed then.
    fn fork(&self, cache: &mut Self::Cache, from: usize, to: usize, positions: usize) -> Result<(), Error>;

    // A forward.

    /// Describes the next forward. Ids and positions were checked, and their pages reserved, by the caller.
    fn set_batch(&self, batch: &mut Self::Batch, segments: &[Segment<'_>]) -> Result<(), Error>;
    /// Selects rows of the batch, ascending, for [`gather`](Self::gather). They were checked by the caller.
    fn set_selection(&self, batch: &mut Self::Batch, rows: &[usize]) -> Result<(), Error>;
    /// Runs the operations of a phase. A backend may record them under `key` with this batch, and replay the record instead
    /// of calling `body` when the key comes again.
    fn run(
        &self,
        key: GraphKey,
        batch: &Self::Batch,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        let _ = (key, batch);
        body()
    }
    /// `out[r] (+)= tokens[id[r]] + positions[position[r] + offset]`, either of the tables or both.
    fn embed(
        &self,
        batch: &Self::Batch,
        tokens: Option<&Self::Embedding>,
        positions: Option<(&Self::Embedding, usize)>,
        out: Output<'_, Self>,
    ) -> Result<(), Error>;
    /// `x = norm(x)` in place, for the normalisations that no projection follows.
    fn normalize(&self, x: &mut Self::Activations, norm: &Self::Norm) -> Result<(), Error>;
    /// Normalises, in place, each run of the norm's width among `columns` of `x`: queries or keys, head by head or all heads
    /// together.
    fn normalize_columns(
        &self,
        x: &mut Self::Activations,
        columns: Range<usize>,
        norm: &Self::Norm,
    ) -> Result<(), Error>;
    /// `x += norm(y)`, or `x += y`: the residual addition of a branch that no projection ends.
    fn add(
        &self,
        x: &mut Self::Activations,
        y: &Self::Activations,
        norm: Option<&Self::Norm>,
    ) -> Result<(), Error>;
    /// `x = factor·x`, then, with a cap, `x = cap·tanh(x/cap)`, in place.
    fn scale(&self, x: &mut Self::Activations, factor: Option<f32>, cap: Option<f32>) -> Result<(), Error>;
    /// `x = max(−limit, min(limit, x))` in place. Only backends with [`Feature::ClampedProjections`] are asked for it.
    fn clamp(&self, x: &mut Self::Activations, limit: f32) -> Result<(), Error> {
        let _ = (x, limit);
        Err(Error::Unsupported("clamped activations on this backend".to_owned()))
    }
    /// `x[:, columns] = factor·x[:, columns]` in place. Only backends with [`Feature::StateSpace`] are asked for it.
    fn scale_columns(
        &self,
        x: &mut Self::Activations,
        columns: Range<usize>,
        factor: f32,
    ) -> Result<(), Error> {
        let _ = (x, columns, factor);
        Err(Error::Unsupported("scaled columns on this backend".to_owned()))
    }
    /// `x = act(gate[:, columns])·x` in place. Only backends with [`Feature::StateSpace`] or [`Feature::LinearAttention`] are asked
    /// for it.
    fn gate(
        &self,
        x: &mut Self::Activations,
        gate: &Self::Activations,
        columns: Range<usize>,
        activation: Activation,
    ) -> Result<(), Error> {
        let _ = (x, gate, columns, activation);
        Err(Error::Unsupported("gates of a mixer on this backend".to_owned()))
    }
    /// The [`Convolution`] of block `layer` of the cache, in place on its columns of `x`, each segment after the inputs of its
    /// sequence's earlier tokens. Only backends with [`Feature::StateSpace`] or [`Feature::LinearAttention`] are asked for it.
    fn convolve(
        &self,
        batch: &Self::Batch,
        layer: usize,
        x: &mut Self::Activations,
        cache: &mut Self::Cache,
    ) -> Result<(), Error> {
        let _ = (batch, layer, x, cache);
        Err(Error::Unsupported("convolutions on this backend".to_owned()))
    }
    /// The [`Recurrence`] of block `layer` of the cache over the batch's tokens, each segment from the state of its sequence:
    /// the columns of `inputs` that it names → `out [rows, outputs]`. Only backends with the [`Feature`] of such mixers are asked for
    /// it.
    fn recur(
        &self,
        batch: &Self::Batch,
        layer: usize,
        inputs: &[&Self::Activations],
        cache: &mut Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (batch, layer, inputs, cache, out);
        Err(Error::Unsupported("recurrences on this backend".to_owned()))
    }
    /// `x[m, n] = x[m, n]·f(gate[m, n/run])` in place. Only backends with [`Feature::AttentionGate`] are asked for it.
    fn gate_heads(
        &self,
        x: &mut Self::Activations,
        gate: &Self::Activations,
        function: GateFunction,
        run: usize,
    ) -> Result<(), Error> {
        let _ = (x, gate, function, run);
        Err(Error::Unsupported("gates of attention on this backend".to_owned()))
    }
    /// `out = act(x)`, or `out = act(x[:, ..K])·x[:, K..]` where `gated`: for activations that a normalisation follows. Only
    /// backends with [`Feature::InnerNorms`] are asked for it.
    fn activate(
        &self,
        x: &Self::Activations,
        activation: Activation,
        gated: bool,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (x, activation, gated, out);
        Err(Error::Unsupported("activations that are normalised on this backend".to_owned()))
    }
    /// `out = gate.apply(x[:, ..K], x[:, K..])`: a clamped gate that a projection follows. Only backends with
    /// [`Feature::ClampedGates`] are asked for it, and those in dense MLPs.
    fn clamp_gate(
        &self,
        x: &Self::Activations,
        gate: ClampedGate,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (x, gate, out);
        Err(Error::Unsupported("gates with limits on this backend".to_owned()))
    }
    /// `out = x[:, ..K] − factor·x[:, K..]`. Only backends with [`Feature::ValueHeads`] are asked for it.
    fn subtract_half(
        &self,
        x: &Self::Activations,
        factor: f32,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (x, factor, out);
        Err(Error::Unsupported("differential attention on this backend".to_owned()))
    }
    /// `x = xielu(x)` in place. Only backends with [`Feature::LearnedActivation`] are asked for it.
    fn xielu(&self, x: &mut Self::Activations, function: Xielu) -> Result<(), Error> {
        let _ = (x, function);
        Err(Error::Unsupported("learned activations on this backend".to_owned()))
    }
    /// `out[r] = factor·table[id[r]]`, or of row 0 where the table has no row of this id. Only backends with
    /// [`Feature::LayerInputs`] are asked for it, and for the next.
    fn embed_known(
        &self,
        batch: &Self::Batch,
        table: &Self::Embedding,
        factor: f32,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (batch, table, factor, out);
        Err(Error::Unsupported("embeddings for each block on this backend".to_owned()))
    }
    /// `x[m, n] = act(x[m, n])·factors[m, first + n]` in place.
    fn activate_by(
        &self,
        x: &mut Self::Activations,
        activation: Activation,
        factors: &Self::Activations,
        first: usize,
    ) -> Result<(), Error> {
        let _ = (x, activation, factors, first);
        Err(Error::Unsupported("embeddings for each block on this backend".to_owned()))
    }
    /// `x[m, n] = max(x[m, n] − mean − multiplier·deviation, 0)` for `n < width`, in place; mean and deviation of these columns of
    /// row m. Only backends with [`Feature::SparseGates`] are asked for it.
    fn sparsify(&self, x: &mut Self::Activations, width: usize, multiplier: f32) -> Result<(), Error> {
        let _ = (x, width, multiplier);
        Err(Error::Unsupported("sparse gates on this backend".to_owned()))
    }
    /// `xₛ = xₛ + Σ_t c[s, t]·x_t`, with `c [rows, S·S]` of each row = `prediction [S·S, S]·tanh(modes [rows, S])`, S streams. Only
    /// backends with [`Feature::Streams`] are asked for it, and for the next three.
    fn predict_streams(
        &self,
        streams: &mut [&mut Self::Activations],
        modes: &Self::Activations,
        prediction: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let _ = (streams, modes, prediction);
        Err(Error::Unsupported("several residual streams on this backend".to_owned()))
    }
    /// `xₛ = xₛ + (1 + c[s])·(computed − x₀)`, with `c [S]` of each row = `correction [S, S]·tanh(modes [rows, S])` and x₀ as it was.
    fn correct_streams(
        &self,
        streams: &mut [&mut Self::Activations],
        computed: &Self::Activations,
        modes: &Self::Activations,
        correction: ArrayView2<'_, f32>,
    ) -> Result<(), Error> {
        let _ = (streams, computed, modes, correction);
        Err(Error::Unsupported("several residual streams on this backend".to_owned()))
    }
    /// `x = x·√(mean(y²)/max(mean(x²), 1e-5))` row by row, in place.
    fn match_magnitude(&self, x: &mut Self::Activations, y: &Self::Activations) -> Result<(), Error> {
        let _ = (x, y);
        Err(Error::Unsupported("several residual streams on this backend".to_owned()))
    }
    /// `x[m, n] = x[m, n]·factors[n]` in place.
    fn scale_by(&self, x: &mut Self::Activations, factors: &[f32]) -> Result<(), Error> {
        let _ = (x, factors);
        Err(Error::Unsupported("several residual streams on this backend".to_owned()))
    }
    /// `out [rows, width]`: the columns of `from` that `copies` say, and zeros elsewhere. Only backends with
    /// [`Feature::LatentAttention`] are asked for it.
    fn copy_columns(
        &self,
        from: &[&Self::Activations],
        copies: &[ColumnCopy],
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (from, copies, out);
        Err(Error::Unsupported("copies of columns on this backend".to_owned()))
    }
    /// `out = experts(input)`; each expert computes only the rows it was chosen for.
    fn experts(
        &self,
        input: Input<'_, Self>,
        experts: &Experts<Self>,
        out: &mut Self::Activations,
    ) -> Result<(), Error>;
    /// `outᵢ (+)= input · Wᵢᵀ + bᵢ` for each target: the input is quantised once for all weights with equal settings.
    fn project(
        &self,
        input: Input<'_, Self>,
        targets: &mut [(&Self::Linear, Output<'_, Self>)],
    ) -> Result<(), Error>;
    /// Selects the keys that [`attention`](Self::attention) of block `layer`, and of the blocks after it until the next selection,
    /// sees: rotates the leading dimensions of `queries [rows, heads·size]` and `keys [rows, size]` as those of the block's heads,
    /// keeps the keys, and takes for each row the positions t ≤ its own with the largest
    /// `Σ_h weights[row, h]·max(queries[row, h]·keys[t], 0)`. Only backends with [`Feature::KeySelection`] are asked for it.
    fn select_keys(
        &self,
        batch: &Self::Batch,
        layer: usize,
        queries: &mut Self::Activations,
        keys: &mut Self::Activations,
        weights: &Self::Activations,
        cache: &mut Self::Cache,
    ) -> Result<(), Error> {
        let _ = (batch, layer, queries, keys, weights, cache);
        Err(Error::Unsupported("selected keys on this backend".to_owned()))
    }
    /// Rotates (in place) or biases as the model's positions say, writes keys and values to the cache of block `layer`,
    /// and attends as its mask says: `qkv [rows, (heads + 2·kv_heads)·head_size]` → `out [rows, heads·head_size]`.
    fn attention(
        &self,
        batch: &Self::Batch,
        layer: usize,
        qkv: &mut Self::Activations,
        cache: &mut Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error>;
    /// Cross-attention, once for a source text: writes `kv [rows, 2·kv_heads·head_size]`, keys and values of the batch's tokens,
    /// to block `layer` of the cache.
    fn write_cross_kv(
        &self,
        batch: &Self::Batch,
        layer: usize,
        kv: &Self::Activations,
        cache: &mut Self::Cache,
    ) -> Result<(), Error>;
    /// Cross-attention, in every forward: `q [rows, heads·head_size]` attends to all that was written for its sequence in block
    /// `layer` → `out [rows, heads·head_size]`.
    fn cross_attention(
        &self,
        batch: &Self::Batch,
        layer: usize,
        q: &Self::Activations,
        cache: &Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error>;
    /// Copies the selected rows: `out [selected, width]`.
    fn gather(
        &self,
        batch: &Self::Batch,
        x: &Self::Activations,
        out: &mut Self::Activations,
    ) -> Result<(), Error>;

    /// Between forwards' phases, where a model's blocks lie on several devices: copies activations of another backend of this kind.
    /// What was enqueued there before is done before the copy, and what is enqueued there after follows it.
    fn receive(&self, from: &Self, x: &Self::Activations, out: &mut Self::Activations) -> Result<(), Error>;

    // Back to the host: the only synchronisation of a forward.

    /// Chooses a token from each row of `logits [rows, vocabulary]`, with one sampler a row.
    ///
    /// # Errors
    /// [`Error::Input`] when a row holds NaN.
    fn sample(&self, logits: &Self::Activations, samplers: &mut [Sampler]) -> Result<Vec<u32>, Error>;
    /// Activations on the host, row-major: those of `x` where they are there, or else copied to `host`, in place of its content.
    fn read<'a>(&self, x: &'a Self::Activations, host: &'a mut Vec<f32>) -> Result<&'a [f32], Error>;

    // Looking at a model.

    /// The processes that compute together, where this backend has a part of the model alone.
    fn group(&self) -> Option<&Arc<Group>> {
        None
    }
    /// Name of a linear layer in the checkpoint.
    fn linear_name<'a>(&self, linear: &'a Self::Linear) -> &'a str;
    /// `y [M, N] = x [M, K] · Wᵀ + b` from and to the host, outside of a forward and not counted in statistics.
    ///
    /// # Errors
    /// When `x` has not K columns or its rows are not contiguous.
    fn multiply(&self, linear: &Self::Linear, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, Error>;
    /// From now on `observer` sees the input of every projection; `None` ends that. While there is an observer nothing is recorded
    /// or replayed, and it may call [`multiply`](Self::multiply).
    fn observe(&self, observer: Option<Arc<dyn Observer>>);
    /// What a linear layer has counted.
    fn statistics(&self, linear: &Self::Linear) -> LinearStatistics;
    /// Sets the counts of a linear layer to zero.
    fn reset_statistics(&self, linear: &Self::Linear);
    /// Bytes of a linear layer's weights on the device, quantization parameters and exact columns included.
    fn linear_bytes(&self, linear: &Self::Linear) -> usize;
    /// Bytes of an embedding table on the device.
    fn embedding_bytes(&self, embedding: &Self::Embedding) -> usize;
}
