//! `config.json`, read with checks, and the normalised description of a decoder that every family is mapped onto.

mod encoder;
mod relative;
mod rotary;
mod seq2seq;

use serde_json::Value;

use crate::Error;
use crate::checkpoint::Source;

pub use encoder::EncoderConfig;
pub use relative::Buckets;
pub(crate) use rotary::RotaryDefaults;
pub use rotary::{Rotary, RotaryPrecision, RotaryScaling};
pub use seq2seq::Seq2SeqConfig;

/// A parsed `config.json` that knows its name, so that each complaint can name file and key.
#[derive(Debug, Clone)]
pub struct RawConfig {
    file: String,
    json: Value,
}

impl RawConfig {
    /// Reads `config.json` of a checkpoint.
    ///
    /// # Errors
    /// When the file is missing or is not a JSON object.
    pub fn read(source: &Source) -> Result<Self, Error> {
        Self::from_json(source.label("config.json"), source.read_config()?)
    }

    /// Takes a JSON value; `file` is the name used in error messages.
    ///
    /// # Errors
    /// When the value is not an object.
    pub fn from_json(file: String, json: Value) -> Result<Self, Error> {
        let config = Self { file, json };
        if config.json.is_object() {
            Ok(config)
        } else {
            Err(config.problem("(top level)", "is not a JSON object"))
        }
    }

    /// Name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Whether the key is there, be it with the value `null`.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.json.get(key).is_some()
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// An error about a key of this file; `problem` completes the sentence "`key` …".
    pub fn problem(&self, key: &str, problem: impl Into<String>) -> Error {
        Error::Config { file: self.file.clone(), key: key.to_owned(), problem: problem.into() }
    }

    /// A size: an integer from 1 to 2³¹ − 1.
    ///
    /// # Errors
    /// When the key is absent or no such integer.
    pub fn size(&self, key: &str) -> Result<usize, Error> {
        let value = self.get(key).ok_or_else(|| self.problem(key, "is missing"))?;
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .filter(|size| (1..=0x7FFF_FFFF).contains(size))
            .ok_or_else(|| self.problem(key, format!("is {value}; expected an integer from 1 to 2^31 - 1")))
    }

    /// Like [`size`](Self::size), with a value for an absent key.
    ///
    /// # Errors
    /// When the key is present and no such integer.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    /// A finite positive number, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no such number.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => self.positive(key, value),
        }
    }

    /// Checks that `value`, found under `key`, is a finite positive number.
    ///
    /// # Errors
    /// When it is not.
    pub fn positive(&self, key: &str, value: &Value) -> Result<f64, Error> {
        value
            .as_f64()
            .filter(|number| number.is_finite() && *number > 0.0)
            .ok_or_else(|| self.problem(key, format!("is {value}; expected a positive number")))
    }

    /// A boolean, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no boolean.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.problem(key, format!("is {value}; expected true or false"))),
        }
    }

    /// A string, or `default` if the key is absent.
    ///
    /// # Errors
    /// When the key is present and no string.
    pub fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_str().ok_or_else(|| self.problem(key, format!("is {value}; expected a string")))
            }
        }
    }

    /// Token ids: one integer or a list of them; empty if the key is absent.
    ///
    /// # Errors
    /// When the key is present and neither.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| self.problem(key, format!("holds {value}; expected a token id")))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            Some(value) => Ok(vec![id(value)?]),
        }
    }

    /// The blocks with sliding-window attention of `layers`, from `layer_types`, or `default` without that key.
    pub(crate) fn sliding_blocks(&self, layers: usize, default: BlockSet) -> Result<BlockSet, Error> {
        const KEY: &str = "layer_types";
        let Some(value) = self.get(KEY) else { return Ok(default) };
        let types = value.as_array().filter(|types| types.len() == layers);
        let types = types.ok_or_else(|| {
            self.problem(KEY, format!("is no list of the types of {layers} layers, as many as the model has"))
        })?;
        let sliding = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => {
                Err(self.problem(KEY, format!("has {kind}; implemented: full_attention, sliding_attention")))
            }
        };
        Ok(BlockSet::Marked(types.iter().map(sliding).collect::<Result<_, _>>()?))
    }

    /// The object under `key` as a configuration of its own, or this one without that key.
    pub(crate) fn section(&self, key: &str) -> Result<Self, Error> {
        match self.get(key) {
            None => Ok(self.clone()),
            Some(json) => Self::from_json(format!("{}: {key}", self.file), json.clone()),
        }
    }

    /// The activation function under `key`.
    ///
    /// # Errors
    /// When it is none of those that are implemented.
    pub fn activation(&self, key: &str, default: &str) -> Result<Activation, Error> {
        let name = self.text_or(key, default)?;
        Activation::from_name(name).ok_or_else(|| {
            self.problem(
                key,
                format!("is {name:?}; implemented: relu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, silu"),
            )
        })
    }
}

/// What a decoder-only transformer is, in the terms of the one implementation that runs them all.
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
    /// Added to the variance (or mean square) before the root.
    pub norm_eps: f32,
    /// Where the normalisations stand.
    pub block: BlockKind,
    /// One normalisation feeds attention and MLP of a parallel block.
    pub shared_norm: bool,
    /// What attention and MLP compute is normalised before it is added to the residual stream.
    pub branch_norms: bool,
    /// Queries and keys are normalised before they are rotated.
    pub query_key_norms: Option<QueryKeyNorms>,
    /// How positions enter.
    pub positions: Positions,
    /// The MLP's activation.
    pub activation: Activation,
    /// `down(act(gate(x)) · up(x))` instead of `down(act(up(x)))`.
    pub gated_mlp: bool,
    /// Attention sees only this many latest positions, itself included.
    pub sliding_window: Option<usize>,
    /// Blocks whose attention sees and places positions in another way; `positions` and `sliding_window` hold for the
    /// others.
    pub alternate: Option<AlternateAttention>,
    /// Attention scores are divided by the square root of this; the head size unless a family says otherwise.
    pub attention_divisor: Option<f64>,
    /// `c·tanh(score/c)` on the attention scores.
    pub attention_softcap: Option<f32>,
    /// Gains of RMSNorms are stored less one.
    pub norm_gain_less_one: bool,
    /// The token embedding is multiplied by this.
    pub embedding_scale: Option<f32>,
    /// The logits are multiplied by this.
    pub logit_scale: Option<f32>,
    /// `c·tanh(logit/c)` on the logits.
    pub logit_softcap: Option<f32>,
    /// Some blocks have a mixture of experts instead of one MLP.
    pub experts: Option<ExpertsConfig>,
    /// The head is the token embedding.
    pub tied_embeddings: bool,
    /// Width of the token embedding where it differs from `hidden_size` (OPT-350m projects in and out).
    pub embedding_size: usize,
    /// Tokens that end a text, from `config.json`.
    pub eos_token_ids: Vec<u32>,
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
}

/// What a normalisation of queries or keys goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorms {
    /// Each head for itself, with the same gains.
    PerHead,
    /// All heads together.
    Whole,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A table with `offset` rows before position 0 is added to the token embedding.
    Learned {
        /// Rows of the table before position 0 (2 for OPT).
        offset: usize,
    },
    /// A bias `−slope(head)·distance` on the attention scores (Press, Smith, Lewis, 2022).
    Alibi,
    /// Pairs of a head's dimensions are rotated by an angle proportional to the position (Su et al., 2021).
    Rotary(Rotary),
    /// A learned bias on the attention scores for each head and bucket of distances (Raffel et al., 2020).
    Relative(Buckets),
    /// Not at all; the causal mask alone tells positions apart.
    None,
}

/// Attention that alternates from block to block.
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
    /// Those marked, the marks taken over and over.
    Marked(Vec<bool>),
}

impl BlockSet {
    /// Whether block `index` is one of them.
    pub fn contains(&self, index: usize) -> bool {
        match self {
            Self::AllButEach { period } => !(index + 1).is_multiple_of(*period),
            Self::From { first } => index >= *first,
            Self::Marked(marks) => !marks.is_empty() && marks[index % marks.len()],
        }
    }
}

/// A mixture of experts (Shazeer et al., 2017): a router in floating point chooses for each token the MLPs that see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertsConfig {
    /// Number of experts that the router chooses from.
    pub count: usize,
    /// Experts a token.
    pub chosen: usize,
    /// The weights of the chosen experts are divided by their sum.
    pub normalized: bool,
    /// Width of an expert's hidden layer.
    pub intermediate_size: usize,
    /// Width of the hidden layer of an expert that sees every token, weighted by the logistic function of a gate of its own.
    pub shared_intermediate_size: Option<usize>,
    /// Only each `period`-th block has experts.
    pub period: usize,
    /// Blocks that have none all the same, by their index.
    pub dense_blocks: Vec<usize>,
}

impl ExpertsConfig {
    /// Whether block `index` has experts.
    pub fn in_block(&self, index: usize) -> bool {
        (index + 1).is_multiple_of(self.period) && !self.dense_blocks.contains(&index)
    }
}

/// Activation functions of the MLP.
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
}

impl Activation {
    /// By the name Hugging Face's `config.json` uses.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "relu" => Some(Self::Relu),
            "gelu" => Some(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Some(Self::GeluTanh),
            "silu" | "swish" => Some(Self::Silu),
            _ => None,
        }
    }
}

impl Default for DecoderConfig {
    /// A pre-norm decoder without anything special, and without sizes: what a family does not mention.
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
            logit_scale: None,
            logit_softcap: None,
            experts: None,
            tied_embeddings: false,
            embedding_size: 0,
            eos_token_ids: Vec::new(),
        }
    }
}

impl DecoderConfig {
    /// How positions enter block `index`, and how many it sees.
    pub fn attention(&self, index: usize) -> (&Positions, Option<usize>) {
        match &self.alternate {
            Some(alternate) if alternate.blocks.contains(index) => {
                (&alternate.positions, alternate.sliding_window)
            }
            _ => (&self.positions, self.sliding_window),
        }
    }

    /// Dimensions of a head that are rotated in any block.
    pub(crate) fn rotated_dims(&self) -> usize {
        let alternate = self.alternate.as_ref().map(|alternate| &alternate.positions);
        let dims = |positions: &Positions| match positions {
            Positions::Rotary(rotary) => rotary.dims,
            _ => 0,
        };
        std::iter::once(&self.positions).chain(alternate).map(dims).max().unwrap_or_default()
    }

    /// Holds all rotary frequencies in this precision.
    pub(crate) fn set_rotary_precision(&mut self, precision: RotaryPrecision) {
        let alternate = self.alternate.as_mut().map(|alternate| &mut alternate.positions);
        for positions in std::iter::once(&mut self.positions).chain(alternate) {
            if let Positions::Rotary(rotary) = positions {
                rotary.precision = precision;
            }
        }
    }

    /// Checks what every family needs: sizes that fit each other.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key of `raw` that is at fault.
    pub fn validate(self, raw: &RawConfig) -> Result<Self, Error> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(raw.problem(
                "num_key_value_heads",
                format!("is {}; it must divide the {} attention heads", self.kv_heads, self.heads),
            ));
        }
        let alternate = self.alternate.as_ref().map(|alternate| &alternate.positions);
        for positions in std::iter::once(&self.positions).chain(alternate) {
            if let Positions::Rotary(rotary) = positions {
                rotary.validate(raw, self.head_size)?;
            }
        }
        if let Some(experts) = &self.experts
            && experts.chosen > experts.count
        {
            return Err(raw.problem(
                "num_experts_per_tok",
                format!("is {}; there are only {} experts", experts.chosen, experts.count),
            ));
        }
        Ok(self)
    }
}

/// `hidden_size / heads`, checked.
///
/// # Errors
/// [`Error::Config`] when it is no integer.
pub(crate) fn head_size(
    raw: &RawConfig,
    key: &str,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, Error> {
    if hidden_size.is_multiple_of(heads) {
        Ok(hidden_size / heads)
    } else {
        Err(raw.problem(key, format!("is {heads}; it must divide the hidden size {hidden_size}")))
    }
}
