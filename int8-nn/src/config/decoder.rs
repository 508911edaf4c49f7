//! The description of a decoder that every family is mapped onto.

use int8_core::FloatType;

use super::{
    AttentionGate, Buckets, ComputedTable, Disentangled, ExpertsConfig, HeadShape, Indexer, LatentAttention,
    LayerInputs, Mixer, RawConfig, RecurrentMixer, Rotary, SharedTransformer, Sinusoids, Streams, ValueHeads,
};
use crate::Error;

/// A decoder-only transformer, as [`crate::decoder`] runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// The family's `model_type`.
    pub family: &'static str,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads (grouped-query attention when fewer than `heads`; `heads` must be a multiple).
    pub kv_heads: usize,
    /// Width of one head.
    pub head_size: usize,
    /// Width of the MLP's hidden layer.
    pub intermediate_size: usize,
    /// Most positions a sequence can have.
    pub max_positions: usize,
    /// Kind of normalisation.
    pub norm: NormKind,
    /// ε, added to the variance or mean square before the root.
    pub norm_eps: f32,
    /// Where the normalisations are.
    pub block: BlockKind,
    /// One normalisation feeds attention and MLP of a parallel block.
    pub shared_norm: bool,
    /// The outputs of attention and MLP are normalised before the residual addition.
    pub branch_norms: bool,
    /// Queries and keys are normalised before they are rotated.
    pub query_key_norms: Option<QueryKeyNorms>,
    /// How positions enter.
    pub positions: Positions,
    /// The MLP's activation.
    pub activation: Activation,
    /// `down(act(gate(x)) · up(x))` instead of `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// Number of latest positions that attention sees, the query's own included; all without it. An encoder sees as many later
    /// ones, too.
    pub sliding_window: Option<usize>,
    /// Blocks whose `positions` and `sliding_window` differ from those above.
    pub alternate: Option<AlternateAttention>,
    /// Attention scores are divided by the square root of this; by that of the head size without it.
    pub attention_divisor: Option<f64>,
    /// `c·tanh(score/c)` on the attention scores.
    pub attention_softcap: Option<f32>,
    /// Norms store `g − 1`.
    pub norm_gain_less_one: bool,
    /// The token embedding is multiplied by this.
    pub embedding_scale: Option<f32>,
    /// `embedding_scale` multiplies the token embedding before learned positions are added.
    pub scales_tokens_alone: bool,
    /// The logits are multiplied by this.
    pub logit_scale: Option<f32>,
    /// `c·tanh(logit/c)` on the logits.
    pub logit_softcap: Option<f32>,
    /// A mixture of experts instead of one MLP, in some blocks or all.
    pub experts: Option<ExpertsConfig>,
    /// The head is the token embedding.
    pub tied_embeddings: bool,
    /// Width of the token embedding; where it is not `hidden_size`, linear layers project in and out (OPT-350m).
    pub embedding_size: usize,
    /// Tokens that end a text, from `config.json`.
    pub eos_token_ids: Vec<u32>,
    /// Which linear layers add a bias where the checkpoint has one; other biases are not part of the model.
    pub biases: Biases,
    /// Normalisations have gains (and biases); without them they only normalise.
    pub norm_gains: bool,
    /// The last block is followed by a normalisation.
    pub final_norm: bool,
    /// LayerNorms add a bias where the checkpoint has one.
    pub norm_bias: bool,
    /// The attention scores of block `i` are divided by `i + 1`.
    pub scores_by_layer: bool,
    /// Queries, keys and values are clamped to `[−c, c]`, after the norms and before the rotation.
    pub qkv_limit: Option<f32>,
    /// Blocks whose window differs from that of `sliding_window` and `alternate`: these have this one, and all others none.
    pub windows: Option<(BlockSet, usize)>,
    /// Generation computes a text anew, keys and values included, when it grows beyond this length: where the rotary
    /// frequencies change, and the family does not keep the former ones.
    pub recomputed_beyond: Option<usize>,
    /// The outputs of attention and MLP are multiplied by this before the residual addition.
    pub residual_multiplier: Option<f32>,
    /// The norms of queries and keys follow the rotation instead of going before it; each head alone.
    pub norms_after_rotation: bool,
    /// Blocks whose queries are multiplied by a factor that grows with their position.
    pub query_growth: Option<(BlockSet, QueryGrowth)>,
    /// Queries, keys and values go through latents.
    pub latent: Option<LatentAttention>,
    /// Each query head has a learned score that takes its share of the softmax and has no value.
    pub attention_sinks: bool,
    /// Blocks whose tokens see only those since the last multiple of this number of positions.
    pub chunks: Option<(BlockSet, usize)>,
    /// Experts compute `down((up(x) + 1)·g·σ(α·g))` with limits instead of `down(act(gate(x))·up(x))`.
    pub clamped_gate: Option<ClampedGate>,
    /// The table of [`Positions::Learned`] is computed.
    pub computed_positions: Option<ComputedTable>,
    /// Each block has a table of [`Positions::Relative`] of its own.
    pub bias_by_layer: bool,
    /// A token that has no position of its own, and that no text may hold.
    pub unplaced_token: Option<u32>,
    /// The heads' output is multiplied by a gate before the output projection.
    pub attention_gate: Option<AttentionGate>,
    /// The inputs of the output projection of attention and of the MLP's contraction are normalised.
    pub inner_norms: bool,
    /// The MLP's activation is [`Xielu`](super::Xielu), with numbers of its own in each block.
    pub learned_activation: bool,
    /// Blocks whose attention has other heads.
    pub shapes: Option<(BlockSet, HeadShape)>,
    /// For each block the one whose keys and values it attends to: its own, or those of an earlier block. Empty: all their own.
    pub sources: Vec<usize>,
    /// Blocks without a window have no projection of values: the keys' is used for both, before the keys are normalised.
    pub values_are_keys: bool,
    /// Each head of values is normalised, without gains.
    pub value_norms: bool,
    /// Blocks whose MLP has another width than `intermediate_size`.
    pub wide_mlps: Option<(BlockSet, usize)>,
    /// Blocks whose MLP drops most of its gates: before the activation a gate `g` becomes `max(g − mean − m·deviation, 0)`, mean
    /// and deviation over all gates of the token, with this m.
    pub sparse_gates: Option<(BlockSet, f32)>,
    /// Each block gets an embedding of its own for each token.
    pub layer_inputs: Option<LayerInputs>,
    /// Several residual streams, of which a block computes one.
    pub streams: Option<Streams>,
    /// The residual stream is multiplied by a learned number at the end of each block.
    pub layer_scalars: bool,
    /// The experts are beside the MLP instead of in its place.
    pub experts_beside: bool,
    /// Experts see the input of a block's MLP, and the next block adds their output at its end.
    pub experts_ahead: bool,
    /// The latent of keys and values is multiplied by this after its norm.
    pub latent_scale: Option<f32>,
    /// Attention sees the keys that an indexer selects.
    pub indexer: Option<Indexer>,
    /// Heads of values have another width than those of keys.
    pub values: Option<ValueHeads>,
    /// The heads' output is multiplied by this.
    pub value_scale: Option<f32>,
    /// The head's input goes through a linear layer, this activation and a norm.
    pub head_activation: Option<Activation>,
    /// The mixer of each block; attention in all without it.
    pub mixers: Option<Vec<Mixer>>,
    /// The mixer with a recurrent state, of the blocks that have one.
    pub recurrent: Option<RecurrentMixer>,
    /// Blocks that have an MLP or experts; all without it.
    pub mlps: Option<BlockSet>,
    /// The transformers of blocks with [`Mixer::SharedThenRecurrent`].
    pub shared: Option<SharedTransformer>,
    /// Factors within the branches of a block.
    pub branch_factors: Option<BranchFactors>,
    /// Factors of the residual stream where the outputs of attention, of a recurrent mixer and of the MLP are added to it.
    pub residual_factors: Option<[f32; 3]>,
}

/// Factors of the inputs and outputs of a block's branches: each is multiplied by its own before the residual addition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BranchFactors {
    /// Of the input of attention.
    pub attention_input: f32,
    /// Of the output of attention.
    pub attention: f32,
    /// Of the input of a recurrent mixer.
    pub recurrent_input: f32,
    /// Of the output of a recurrent mixer.
    pub recurrent: f32,
    /// Of the MLP's gate, before its activation.
    pub gate: f32,
    /// Of the output of the MLP.
    pub mlp: f32,
}

/// What adds to the residual stream in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branch {
    /// Attention.
    Attention,
    /// A mixer with a recurrent state.
    Recurrent,
    /// The MLP or the experts.
    Mlp,
}

/// The gate of gpt-oss: `(u + 1)·g·σ(α·g)` with `g = min(gate(x), limit)`, `u = max(−limit, min(limit, up(x)))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClampedGate {
    /// α
    pub alpha: f32,
    /// The limit.
    pub limit: f32,
}

impl ClampedGate {
    /// Of one gate and one expansion.
    pub fn apply(self, gate: f32, up: f32) -> f32 {
        let (gate, up) = (gate.min(self.limit), up.clamp(-self.limit, self.limit));
        (up + 1.0) * gate / (1.0 + (-self.alpha * gate).exp())
    }
}

/// Queries at position `p` are multiplied by `1 + β·ln(1 + ⌊(p + offset)/period⌋)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// β
    pub beta: f32,
    /// Positions from one step to the next.
    pub period: usize,
    /// Added to the position.
    pub offset: usize,
}

impl QueryGrowth {
    /// The factor at `position`.
    pub fn factor(&self, position: usize) -> f32 {
        let steps = crate::convert::f64_from((position + self.offset) / self.period);
        crate::convert::f32_from(1.0 + f64::from(self.beta) * steps.ln_1p())
    }
}

/// Linear layers that may have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The output projection of attention.
    pub attention_output: bool,
    /// The MLP's expansion and gate.
    pub up: bool,
    /// The MLP's contraction.
    pub down: bool,
    /// The output head.
    pub head: bool,
    /// The routers of mixtures of experts.
    pub router: bool,
    /// The linear layer before the head.
    pub head_transform: bool,
}

impl Biases {
    /// All layers of the blocks or none; the head has none.
    pub const fn blocks(all: bool) -> Self {
        Self::of(all, all)
    }

    /// Those of attention, and those of the MLP; the head has none.
    pub const fn of(attention: bool, mlp: bool) -> Self {
        Self {
            qkv: attention,
            attention_output: attention,
            up: mlp,
            down: mlp,
            head: false,
            router: false,
            head_transform: false,
        }
    }
}

/// Kind of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `(x − mean)/√(var + ε)·g + b`
    LayerNorm,
    /// `x/√(mean(x²) + ε)·g`
    RmsNorm,
}

/// How a block joins attention and MLP to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// `x += attn(norm₁(x)); x += mlp(norm₂(x))`
    PreNorm,
    /// `x = norm₁(x + attn(x)); x = norm₂(x + mlp(x))`
    PostNorm,
    /// `x += attn(norm₁(x)) + mlp(norm₂(x))`
    Parallel,
    /// `x = norm₁(x); x += attn(x); x = norm₂(x); x += mlp(x)`
    NormedResidual,
}

/// Which dimensions a normalisation of queries or keys spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorms {
    /// Each head alone, all with the same gains.
    PerHead,
    /// Each head alone, with gains of its own.
    EachHead,
    /// All heads together.
    Whole,
    /// Each head alone, without gains. Such norms commute with the rotation.
    WithoutGains,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A table with `offset` rows before position 0 is added to the token embedding.
    Learned {
        /// Rows of the table before position 0 (2 for OPT).
        offset: usize,
    },
    /// Sines and cosines are added to the token embedding.
    Sinusoidal(Sinusoids),
    /// A bias `−slope(head)·distance` on the attention scores (Press, Smith, Lewis, 2022).
    Alibi,
    /// Pairs of a head's dimensions are rotated by `position·frequency` (Su et al., 2021).
    Rotary(Rotary),
    /// A learned bias on the attention scores for each head and bucket of distances (Raffel et al., 2020).
    Relative(Buckets),
    /// Embedded distances add to the attention scores by the contents of query and key.
    Disentangled(Disentangled),
    /// Not at all, but for the causal mask.
    None,
}

/// Attention that differs in some blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct AlternateAttention {
    /// Which blocks.
    pub blocks: BlockSet,
    /// How positions enter these blocks.
    pub positions: Positions,
    /// Number of latest positions these blocks see, itself included.
    pub sliding_window: Option<usize>,
}

/// Some of a model's blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockSet {
    /// All but each `period`-th: with 6, blocks 0 to 4, 6 to 10, …
    AllButEach {
        /// The period.
        period: usize,
    },
    /// From block `first` on.
    From {
        /// The first one.
        first: usize,
    },
    /// Those marked; the marks repeat.
    Marked(Vec<bool>),
}

impl BlockSet {
    /// Whether block `index` is in the set.
    pub fn contains(&self, index: usize) -> bool {
        match self {
            Self::AllButEach { period } => !(index + 1).is_multiple_of(*period),
            Self::From { first } => index >= *first,
            Self::Marked(marks) => !marks.is_empty() && marks[index % marks.len()],
        }
    }
}

/// The MLP's activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x·Φ(x)` with the error function.
    Gelu,
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715x³)))`
    GeluTanh,
    /// `x·σ(x)`
    Silu,
    /// `max(x, 0)²`
    ReluSquared,
    /// `min(x·Φ(x), 10)`
    GeluClipped,
    /// `x·σ(1.702x)`
    QuickGelu,
    /// `tanh x`
    Tanh,
    /// `σ(x) = 1/(1 + e⁻ˣ)`
    Sigmoid,
    /// `x·tanh(ln(1 + eˣ))`
    Mish,
}

impl Activation {
    /// Whether this is one of the four that nearly all models have.
    pub const fn is_common(self) -> bool {
        matches!(self, Self::Relu | Self::Gelu | Self::GeluTanh | Self::Silu)
    }

    /// By its name in `config.json`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "relu" => Some(Self::Relu),
            "gelu" | "gelu_python" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => {
                Some(Self::GeluTanh)
            }
            "silu" | "swish" => Some(Self::Silu),
            "relu2" => Some(Self::ReluSquared),
            "gelu_10" => Some(Self::GeluClipped),
            "quick_gelu" => Some(Self::QuickGelu),
            "tanh" => Some(Self::Tanh),
            "sigmoid" => Some(Self::Sigmoid),
            "mish" => Some(Self::Mish),
            _ => None,
        }
    }
}

impl Default for DecoderConfig {
    /// LayerNorm before each branch, GELU, no positions; all sizes are 0.
    fn default() -> Self {
        Self {
            family: "",
            vocab_size: 0,
            hidden_size: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_size: 0,
            intermediate_size: 0,
            max_positions: 0,
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            block: BlockKind::PreNorm,
            shared_norm: false,
            branch_norms: false,
            query_key_norms: None,
            positions: Positions::None,
            activation: Activation::Gelu,
            gated_mlp: false,
            sliding_window: None,
            alternate: None,
            attention_divisor: None,
            attention_softcap: None,
            norm_gain_less_one: false,
            embedding_scale: None,
            scales_tokens_alone: false,
            logit_scale: None,
            logit_softcap: None,
            experts: None,
            tied_embeddings: false,
            embedding_size: 0,
            eos_token_ids: Vec::new(),
            biases: Biases::blocks(true),
            norm_gains: true,
            final_norm: true,
            norm_bias: true,
            scores_by_layer: false,
            qkv_limit: None,
            windows: None,
            recomputed_beyond: None,
            residual_multiplier: None,
            norms_after_rotation: false,
            query_growth: None,
            attention_sinks: false,
            latent: None,
            chunks: None,
            clamped_gate: None,
            computed_positions: None,
            bias_by_layer: false,
            unplaced_token: None,
            mixers: None,
            recurrent: None,
            mlps: None,
            shared: None,
            branch_factors: None,
            attention_gate: None,
            inner_norms: false,
            learned_activation: false,
            shapes: None,
            sources: Vec::new(),
            values_are_keys: false,
            value_norms: false,
            wide_mlps: None,
            sparse_gates: None,
            layer_inputs: None,
            streams: None,
            layer_scalars: false,
            experts_beside: false,
            experts_ahead: false,
            latent_scale: None,
            indexer: None,
            values: None,
            value_scale: None,
            head_activation: None,
            residual_factors: None,
        }
    }
}

impl DecoderConfig {
    /// Positions and sliding window of block `index`.
    pub fn attention(&self, index: usize) -> (&Positions, Option<usize>) {
        let (positions, window) = match &self.alternate {
            Some(alternate) if alternate.blocks.contains(index) => {
                (&alternate.positions, alternate.sliding_window)
            }
            _ => (&self.positions, self.sliding_window),
        };
        match &self.windows {
            Some((blocks, size)) => (positions, blocks.contains(index).then_some(*size)),
            None => (positions, window),
        }
    }

    /// The mixer of block `index`.
    pub fn mixer(&self, index: usize) -> Mixer {
        self.mixers.as_ref().and_then(|mixers| mixers.get(index).copied()).unwrap_or(Mixer::Attention)
    }

    /// Whether block `index` has an MLP or experts.
    pub fn has_mlp(&self, index: usize) -> bool {
        self.mlps.as_ref().is_none_or(|mlps| mlps.contains(index))
    }

    /// The factor of the output of a branch.
    pub fn branch_factor(&self, branch: Branch) -> Option<f32> {
        let own = self.branch_factors.map(|factors| match branch {
            Branch::Attention => factors.attention,
            Branch::Recurrent => factors.recurrent,
            Branch::Mlp => factors.mlp,
        });
        own.or(self.residual_multiplier)
    }

    /// The factor of the residual stream where a branch is added to it.
    pub fn residual_factor(&self, branch: Branch) -> Option<f32> {
        let [attention, recurrent, mlp] = self.residual_factors?;
        Some(match branch {
            Branch::Attention => attention,
            Branch::Recurrent => recurrent,
            Branch::Mlp => mlp,
        })
    }

    /// Whether a sequence has a state that cannot be taken back to fewer tokens.
    pub fn has_recurrent_state(&self) -> bool {
        self.recurrent.is_some()
    }

    /// The heads of block `index`.
    pub fn shape(&self, index: usize) -> HeadShape {
        match &self.shapes {
            Some((blocks, shape)) if blocks.contains(index) => *shape,
            _ => HeadShape { heads: self.heads, kv_heads: self.kv_heads, head_size: self.head_size },
        }
    }

    /// The block whose keys and values block `index` attends to.
    pub fn source(&self, index: usize) -> usize {
        self.sources.get(index).copied().unwrap_or(index)
    }

    /// Something that one block hands to another beside the residual stream: then all must be on one device.
    pub fn on_one_device(&self) -> Option<&'static str> {
        let shares_selection =
            |indexer: &Indexer| !(0..self.layers).all(|layer| indexer.blocks.contains(layer));
        [
            (!self.sources.is_empty(), "keys and values shared between blocks"),
            (self.layer_inputs.is_some(), "embeddings for each block"),
            (self.streams.is_some(), "several residual streams"),
            (self.experts_ahead, "experts whose output a later block adds"),
            (self.indexer.as_ref().is_some_and(shares_selection), "selections of keys shared between blocks"),
        ]
        .into_iter()
        .find_map(|(has, what)| has.then_some(what))
    }

    /// Width of the MLP's hidden layer in block `index`.
    pub fn intermediate(&self, index: usize) -> usize {
        match &self.wide_mlps {
            Some((blocks, width)) if blocks.contains(index) => *width,
            _ => self.intermediate_size,
        }
    }

    /// The rotary settings of all blocks, each kind once.
    pub(crate) fn rotary(&self) -> impl Iterator<Item = &Rotary> {
        let alternate = self.alternate.as_ref().map(|alternate| &alternate.positions);
        std::iter::once(&self.positions).chain(alternate).filter_map(|positions| match positions {
            Positions::Rotary(rotary) => Some(rotary),
            _ => None,
        })
    }

    /// Limits the positions to those up to which no rotary frequency depends on the length of the text: for a backend that has
    /// one table of frequencies.
    pub(crate) fn limit_to_fixed_frequencies(&mut self) {
        self.max_positions = self.fixed_positions();
    }

    /// The most positions up to which no rotary frequency depends on the length of the text.
    pub fn fixed_positions(&self) -> usize {
        let least = self.rotary().filter_map(Rotary::fixed_positions).min();
        least.map_or(self.max_positions, |least| least.min(self.max_positions))
    }

    /// Rotated dimensions of a head, the most of any block.
    pub(crate) fn rotated_dims(&self) -> usize {
        self.rotary().map(|rotary| rotary.dims).max().unwrap_or_default()
    }

    /// Sets the precision of all rotary frequencies.
    pub(crate) fn set_rotary_precision(&mut self, precision: FloatType) {
        let alternate = self.alternate.as_mut().map(|alternate| &mut alternate.positions);
        for positions in std::iter::once(&mut self.positions).chain(alternate) {
            if let Positions::Rotary(rotary) = positions {
                rotary.precision = precision;
            }
        }
    }

    /// Checks that the sizes fit each other.
    ///
    /// # Errors
    /// [`Error::Config`], naming the key of `raw` at fault.
    pub fn validate(self, raw: &RawConfig) -> Result<Self, Error> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(raw.problem(
                "num_key_value_heads",
                format!("is {}; it must divide the {} attention heads", self.kv_heads, self.heads),
            ));
        }
        match &self.shapes {
            None => self.rotary().try_for_each(|rotary| rotary.validate(raw, self.head_size))?,
            Some((_, other)) => {
                if !other.heads.is_multiple_of(other.kv_heads) {
                    let problem = format!("gives {} heads of keys for {}", other.kv_heads, other.heads);
                    return Err(raw.problem("num_key_value_heads", problem));
                }
                for layer in 0..self.layers {
                    if let Positions::Rotary(rotary) = self.attention(layer).0 {
                        rotary.validate(raw, self.shape(layer).head_size)?;
                    }
                }
            }
        }
        if let Some(experts) = &self.experts {
            experts.validate(raw)?;
        }
        if let Some(recurrent) = &self.recurrent {
            recurrent.validate(raw)?;
            if !matches!(self.block, BlockKind::PreNorm | BlockKind::NormedResidual) {
                return Err(raw.problem("model_type", "has recurrent states in blocks that are not pre-norm"));
            }
        }
        if self.residual_multiplier.is_some() && self.block != BlockKind::PreNorm {
            return Err(
                raw.problem("residual_multiplier", "is set; it is implemented for pre-norm blocks alone")
            );
        }
        Ok(self)
    }
}
