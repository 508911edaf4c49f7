//! What a machine must be able to do to run a model: a dozen operations at the granularity at which they can be fused.
//!
//! A decoder step is a fixed sequence of these calls on activations that were allocated before, so that
//! - nothing is allocated and nothing returns to the host between `set_step` and `read`;
//! - every argument that changes from step to step (ids, positions, lengths) lives inside [`Backend::Step`], on the
//!   device: a GPU backend can capture [`Backend::run`]'s body once as a graph and replay it;
//! - normalisation, activation and residual addition are arguments of the projection they surround ([`Input`],
//!   [`Output`]), so that a backend can fold them into its quantisation pass and its epilogue.
//!
//! Activations are row-major `[rows, width]`, one row a token; the residual stream is at least f32.

pub mod cpu;

use std::ops::Range;

use int8_core::{Config, Encoding, Granularity, OutlierGranularity, OutlierRule, RowStatistic, Scheme};
pub use int8_cpu::float::KvCacheType;
use ndarray::Array2;

use crate::Error;
use crate::block::LinearRole;
use crate::config::{Activation, DecoderConfig, NormKind, Positions};
use crate::weights::{FloatMatrix, LinearSource};

/// One stretch of one sequence that a step computes.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Which of the cache's sequences.
    pub sequence: usize,
    /// Position of the first token.
    pub position: usize,
    /// The tokens.
    pub ids: &'a [u32],
}

/// How the weights of linear layers are held and multiplied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Precision {
    /// As stored, 16- or 32-bit; products and sums in f32.
    Float,
    /// int8 with these settings.
    Int8(Quantization),
}

/// Settings of the int8 layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantization {
    /// Codes, granularities, outlier rule.
    pub config: Config,
    /// What outliers are multiplied with.
    pub outlier_weights: OutlierWeights,
    /// Outlier rule of the inputs that come straight out of a normalisation (those of queries, keys, values and of the MLPs'
    /// expansions), where it differs from that of `config`: they are light-tailed, so that a smaller threshold takes few
    /// values out, and every error in them is multiplied by what follows.
    pub normed_rule: Option<OutlierRule>,
    /// Whether the output head becomes int8, too. bitsandbytes leaves it alone; of a small model it is a good part of what a token
    /// reads. An embedding table that is also the head stays as it is for the embedding, so that its int8 copy is added.
    pub int8_head: bool,
}

impl Quantization {
    /// The same settings for every layer.
    pub fn new(config: Config, outlier_weights: OutlierWeights) -> Self {
        Self { config, outlier_weights, normed_rule: None, int8_head: false }
    }

    /// The setting called `best`, the same for every model: constants and zero points for groups of K, single values
    /// out by the relative rule, exact weights for them. A weight that is int8 already keeps its constants. `docs/quality.md` has what it was chosen from, and what it costs.
    pub fn best() -> Self {
        let relative = |tau| OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MedianAbs };
        let config = Config {
            input_granularity: Granularity::Group,
            weight_encoding: Encoding::Zeropoint,
            weight_granularity: Granularity::Group,
            rule: relative(BEST_TAU),
            outlier_granularity: OutlierGranularity::Value,
            ..Scheme::LlmInt8Zeropoint.config()
        };
        Self { normed_rule: Some(relative(BEST_NORMED_TAU)), ..Self::new(config, OutlierWeights::Exact) }
    }
}

impl Precision {
    /// The precision of a layer that is there for this.
    pub fn of(&self, role: LinearRole) -> Self {
        match *self {
            Self::Int8(Quantization { config, outlier_weights, normed_rule: Some(rule), .. })
                if matches!(role, LinearRole::Qkv | LinearRole::Up) =>
            {
                Self::Int8(Quantization::new(Config { rule, ..config }, outlier_weights))
            }
            other => other,
        }
    }
}

/// τ of [`Quantization::best`] for the inputs of attention outputs and contractions: next to nothing. Their outliers are
/// large, but there a constant belongs to 32 values.
const BEST_TAU: f32 = 64.0;

/// τ of the inputs that come out of a normalisation: 0.1 to 0.2 % of their values leave the int8 product.
const BEST_NORMED_TAU: f32 = 14.0;

/// What the outliers of an activation are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutlierWeights {
    /// The weight's column as the checkpoint stores it. It is fetched from the checkpoint when the column first holds an
    /// outlier and kept from then on; a checkpoint that is int8 itself has no exact columns.
    #[default]
    Exact,
    /// The column's int8 codes, dequantised: what bitsandbytes does, with its one constant for each output row. A scheme
    /// whose int8 product has one constant for the whole weight uses such row-wise codes for the outliers all the same.
    Dequantized,
}

/// Rows of a step's activations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowSelection {
    /// The last row of each segment: what the next token is chosen from.
    LastOfSegments,
    /// These rows, counted over all segments.
    Range(Range<usize>),
}

/// A normalisation with its weights.
#[derive(Debug, Clone)]
pub struct NormSpec {
    /// Kind.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// Gain `[width]`.
    pub gain: Vec<f32>,
    /// Bias `[width]`.
    pub bias: Option<Vec<f32>>,
}

/// Which tokens of its sequence a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and those before it.
    Causal,
    /// All: what an encoder needs. A sequence is one segment of one step then, and nothing of it is kept, so that all
    /// blocks can share one layer of a cache.
    Full,
}

/// A bias on attention scores that is learned for each head and distance (T5); distances beyond the table have the bias at
/// its end.
#[derive(Debug, Clone, PartialEq)]
pub struct DistanceBias {
    /// `f32 [heads, 2·reach + 1]`: the bias for `key position − query position` from `−reach` to `reach`.
    pub table: Array2<f32>,
    /// Largest distance that has a bias of its own.
    pub reach: usize,
}

/// What attention needs to know about its model.
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// What differs between the blocks, one entry a layer of the cache.
    pub layers: Vec<LayerAttention>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Which tokens are seen.
    pub mask: Mask,
    /// Factor of the scores: `1/√head_size`, or 1 for T5.
    pub scale: f32,
    /// `c·tanh(score/c)` on the scaled scores, before biases are added.
    pub softcap: Option<f32>,
    /// Added to the scores.
    pub bias: Option<DistanceBias>,
    /// The type in which keys and values are kept. A number that it would round to infinity is an error of the step that
    /// brings it.
    pub kv_cache: KvCacheType,
}

/// The attention of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAttention {
    /// How positions enter.
    pub positions: Positions,
    /// Number of latest positions seen, itself included.
    pub sliding_window: Option<usize>,
}

/// A mixture of experts: `y = Σ w_e(x)·down_e(act(up_e(x)))` over the experts that the router chooses for a token.
#[derive(Debug)]
pub struct Experts<B: Backend> {
    /// Logits of the experts, in floating point; with a shared expert, the logit of its gate behind them.
    pub router: B::Linear,
    /// Experts a token, without the shared one.
    pub chosen: usize,
    /// The weights `w_e`, a softmax over all experts, are divided by the sum over the chosen ones.
    pub normalized: bool,
    /// Each expert's expansion (and gate).
    pub up: Vec<B::Linear>,
    /// Each expert's contraction.
    pub down: Vec<B::Linear>,
    /// The last of the experts sees every token, with the logistic function of its logit as weight.
    pub shared: bool,
    /// The activation.
    pub activation: Activation,
    /// `act(gate)·up` instead of `act(up)`.
    pub gated: bool,
}

/// The input of a projection: activations and what is done to them on the way.
#[derive(Debug)]
pub enum Input<'a, B: Backend> {
    /// `x [rows, K]`
    Plain(&'a B::Activations),
    /// `norm(x) [rows, K]`
    Normed(&'a B::Activations, &'a B::Norm),
    /// `act(x) [rows, K]`
    Activated(&'a B::Activations, Activation),
    /// `act(x[:, ..K]) · x[:, K..]`, `x [rows, 2K]`
    Gated(&'a B::Activations, Activation),
}

/// Where a projection's result goes.
#[derive(Debug)]
pub enum Output<'a, B: Backend> {
    /// `out = y`
    Store(&'a mut B::Activations),
    /// `out += y`: the residual addition.
    Add(&'a mut B::Activations),
}

/// What the linear layers of a backend have met since they were built or [`Backend::reset_statistics`] was called.
#[derive(Debug, Clone, Default)]
pub struct LinearStatistics {
    /// Name of the layer in the checkpoint.
    pub name: String,
    /// Inputs K.
    pub inputs: usize,
    /// Calls of the layer.
    pub calls: u64,
    /// Sum over the calls of the number of columns with outliers.
    pub outlier_columns: u64,
    /// Sum over the calls of the number of values that left the int8 product.
    pub outlier_values: u64,
    /// Sum over the calls of all values.
    pub values: u64,
    /// For each input column: in how many calls it held an outlier.
    pub column_calls: Vec<u64>,
    /// Columns kept exactly.
    pub exact_columns: usize,
}

/// A machine that runs models. See the module's documentation for the rules its operations keep.
pub trait Backend: Sized + Send + Sync {
    /// Activations `[rows, width]` on the device, allocated for a largest number of rows.
    type Activations: Send + Sync + std::fmt::Debug;
    /// Weights of a linear layer.
    type Linear: Send + Sync + std::fmt::Debug;
    /// Weights of a normalisation.
    type Norm: Send + Sync + std::fmt::Debug;
    /// A table of rows looked up by id.
    type Embedding: Send + Sync + std::fmt::Debug;
    /// Keys and values of past tokens, for all blocks and sequences.
    type Cache: Send + Sync + std::fmt::Debug;
    /// Ids, positions and lengths of the step at hand.
    type Step: Send + Sync + std::fmt::Debug;

    /// One line that names the device and what computes there.
    fn describe(&self) -> String;

    /// Refuses a model that this backend cannot run, before its weights are read.
    ///
    /// # Errors
    /// [`Error::Unsupported`].
    fn accept(&self, config: &DecoderConfig) -> Result<(), Error> {
        let _ = config;
        Ok(())
    }

    // Building a model.

    /// Reads (and quantises) a linear layer.
    ///
    /// # Errors
    /// When the checkpoint's tensors are not what they should be, or the device refuses; so for all that follow.
    fn linear(&self, source: &LinearSource, precision: &Precision) -> Result<Self::Linear, Error>;
    /// The linear layer whose weight is an embedding table: the tied head.
    fn tied(&self, embedding: &Self::Embedding) -> Result<Self::Linear, Error>;
    /// A normalisation.
    fn norm(&self, spec: &NormSpec) -> Result<Self::Norm, Error>;
    /// An embedding table `[rows, width]`.
    fn embedding(&self, table: FloatMatrix) -> Result<Self::Embedding, Error>;

    // Preparing a session.

    /// Activations for at most `max_rows` rows.
    fn activations(&self, max_rows: usize, width: usize) -> Result<Self::Activations, Error>;
    /// A cache for `sequences` sequences of at most `max_positions` tokens: for [`attention`](Self::attention), or, with
    /// [`Mask::Full`], for [`remember`](Self::remember) and [`recall`](Self::recall).
    ///
    /// # Errors
    /// Also when the backend does not have what the specification asks for.
    fn cache(
        &self,
        spec: &AttentionSpec,
        sequences: usize,
        max_positions: usize,
    ) -> Result<Self::Cache, Error>;
    /// Bytes of keys and values that a cache holds now.
    fn cache_bytes(&self, cache: &Self::Cache) -> usize;
    /// Room for a step of at most `max_rows` tokens.
    fn step(&self, max_rows: usize) -> Result<Self::Step, Error>;

    // A step.

    /// Says what the next step computes. Ids and positions were checked by the caller.
    fn set_step(&self, step: &mut Self::Step, segments: &[Segment<'_>]) -> Result<(), Error>;
    /// Runs a step's operations. A backend may record them, and replay the record when a later step has as many rows in
    /// as many segments.
    fn run(
        &self,
        step: &Self::Step,
        body: &mut (dyn FnMut() -> Result<(), Error> + Send),
    ) -> Result<(), Error> {
        let _ = step;
        body()
    }
    /// `out[r] (+)= tokens[id[r]] + positions[position[r] + offset]`, either of the tables or both.
    fn embed(
        &self,
        step: &Self::Step,
        tokens: Option<&Self::Embedding>,
        positions: Option<(&Self::Embedding, usize)>,
        out: Output<'_, Self>,
    ) -> Result<(), Error>;
    /// `x = norm(x)` in place, for the normalisations that no projection follows.
    fn normalize(&self, x: &mut Self::Activations, norm: &Self::Norm) -> Result<(), Error>;
    /// Cuts the columns `columns` of `x` into stretches of the norm's width and normalises each in place: queries or keys,
    /// head by head or all heads together.
    fn normalize_columns(
        &self,
        x: &mut Self::Activations,
        columns: Range<usize>,
        norm: &Self::Norm,
    ) -> Result<(), Error> {
        let _ = (x, columns, norm);
        Err(self.cannot("normalised queries and keys"))
    }
    /// `x += norm(y)`, or `x += y`: the residual addition of a branch that no projection ends.
    fn add(
        &self,
        x: &mut Self::Activations,
        y: &Self::Activations,
        norm: Option<&Self::Norm>,
    ) -> Result<(), Error> {
        let _ = (x, y, norm);
        Err(self.cannot("normalised branches or mixtures of experts"))
    }
    /// `x = factor·x` in place.
    fn scale(&self, x: &mut Self::Activations, factor: f32) -> Result<(), Error> {
        let _ = (x, factor);
        Err(self.cannot("scaled embeddings"))
    }
    /// `out = experts(input)`; each expert computes only the rows it was chosen for.
    fn experts(
        &self,
        input: Input<'_, Self>,
        experts: &Experts<Self>,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (input, experts, out);
        Err(self.cannot("mixtures of experts"))
    }
    /// The error of an operation that this backend lacks.
    fn cannot(&self, what: &str) -> Error {
        Error::Unsupported(format!("{} runs no models with {what}; use --device cpu", self.describe()))
    }
    /// `out (+)= input · Wᵀ + b`
    fn project(
        &self,
        input: Input<'_, Self>,
        linear: &Self::Linear,
        output: Output<'_, Self>,
    ) -> Result<(), Error>;
    /// Rotates (in place) or biases as the model's positions say, writes keys and values to the cache of block `layer`,
    /// and attends as its mask says: `qkv [rows, (heads + 2·kv_heads)·head_size]` → `out [rows, heads·head_size]`.
    fn attention(
        &self,
        step: &Self::Step,
        layer: usize,
        qkv: &mut Self::Activations,
        cache: &mut Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error>;
    /// Cross-attention, once for a sequence: keeps `kv [rows, 2·kv_heads·head_size]`, the keys and values of the step's
    /// tokens (the source text), in block `layer` of the cache in place of what it held for these sequences.
    fn remember(
        &self,
        step: &Self::Step,
        layer: usize,
        kv: &Self::Activations,
        cache: &mut Self::Cache,
    ) -> Result<(), Error> {
        let _ = (step, layer, kv, cache);
        Err(self.cannot("cross-attention"))
    }
    /// Cross-attention, at every step: `q [rows, heads·head_size]` attends to all that was remembered for its sequence in
    /// block `layer` → `out [rows, heads·head_size]`.
    fn recall(
        &self,
        step: &Self::Step,
        layer: usize,
        q: &Self::Activations,
        cache: &Self::Cache,
        out: &mut Self::Activations,
    ) -> Result<(), Error> {
        let _ = (step, layer, q, cache, out);
        Err(self.cannot("cross-attention"))
    }
    /// Copies some rows: `out [selected, width]`.
    fn select(
        &self,
        step: &Self::Step,
        x: &Self::Activations,
        rows: &RowSelection,
        out: &mut Self::Activations,
    ) -> Result<(), Error>;

    // Back to the host.

    /// Copies activations to the host, row-major, replacing what `out` held: the only synchronisation of a step.
    fn read(&self, x: &Self::Activations, out: &mut Vec<f32>) -> Result<(), Error>;
    /// What a linear layer has met.
    fn statistics(&self, linear: &Self::Linear) -> LinearStatistics;
    /// Forgets what a linear layer has met.
    fn reset_statistics(&self, linear: &Self::Linear);
    /// Bytes of a linear layer's weights on the device, all constants and exact columns included.
    fn linear_bytes(&self, linear: &Self::Linear) -> usize;
    /// Bytes of an embedding table on the device.
    fn embedding_bytes(&self, embedding: &Self::Embedding) -> usize;
}
