//! How the weights of a model are held: precision, quantisation settings, and the site of each linear layer.

use int8_core::{Config, Encoding, Granularity, OutlierGranularity, OutlierRule, RowStatistic, Scheme};

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
    /// Encodings, granularities, outlier rule.
    pub config: Config,
    /// Weights of the outlier product.
    pub outlier_weights: OutlierWeights,
    /// Outlier rule where the input comes straight out of a normalisation ([`LinearRole::Qkv`], [`LinearRole::Up`]), if it
    /// differs from that of `config`. Such inputs are light-tailed: a smaller threshold makes few values outliers.
    pub normed_rule: Option<OutlierRule>,
    /// Whether the output head is int8, too. bitsandbytes leaves it in floating point; of a small model it is a good part
    /// of the bytes a token reads. A tied embedding keeps its own copy.
    pub int8_head: bool,
    /// Whether the routed experts of a mixture stay in floating point, as transformers' `load_in_8bit` leaves those that it holds
    /// stacked in one tensor: their int8 rounding adds to that of the router's input, which chooses other experts for some tokens.
    pub float_experts: bool,
}

/// Weights of the outlier product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutlierWeights {
    /// The column of the weight as the checkpoint stores it. A CPU reads it when it first holds an outlier, and keeps it; a
    /// GPU keeps those with the largest outliers in a calibration at load, one in 32 at most, and dequantises the others. A
    /// checkpoint that is int8 itself has none, or those stored beside the codes.
    #[default]
    Exact,
    /// The int8 codes of the column, dequantised with one scale an output channel, as bitsandbytes does. A scheme with one
    /// scale a tensor keeps such row-wise codes for its outliers.
    Dequantized,
}

/// The part a linear layer plays in a block, or around the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinearRole {
    /// Queries, keys and values.
    Qkv,
    /// Output of the attention.
    AttentionOutput,
    /// The expansion (and gate) of an MLP or expert.
    Up,
    /// The contraction of an MLP or expert.
    Down,
    /// Between the projections of a state-space mixer: Δ, B and C.
    StateSpace,
    /// Logits of the experts.
    Router,
    /// Between an embedding and a residual stream of another width.
    Embedding,
    /// The output head.
    Head,
}

/// Where a linear layer stands in a model: what placement, sharding, precision and names depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Site {
    /// Its stack of blocks.
    pub stack: Stack,
    /// Index of its block; `None` for the head and the projections around the embedding.
    pub layer: Option<usize>,
    /// Its part in the block.
    pub role: LinearRole,
    /// Index of its expert.
    pub expert: Option<usize>,
    /// Whether it belongs to cross-attention.
    pub cross: bool,
}

/// A stack of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stack {
    /// Every token sees its whole sequence.
    Encoder,
    /// A token sees those before it.
    Decoder,
}

impl Site {
    /// In block `layer`: self-attention or the MLP.
    pub fn block(stack: Stack, layer: usize, role: LinearRole) -> Self {
        Self { stack, layer: Some(layer), role, expert: None, cross: false }
    }

    /// Outside the blocks.
    pub fn outside(role: LinearRole) -> Self {
        Self { stack: Stack::Decoder, layer: None, role, expert: None, cross: false }
    }

    /// The same layer of an expert.
    pub fn of_expert(self, expert: usize) -> Self {
        Self { expert: Some(expert), ..self }
    }

    /// The same layer of cross-attention.
    pub fn of_cross_attention(self) -> Self {
        Self { cross: true, ..self }
    }
}

impl Quantization {
    /// The same settings for every layer.
    pub fn new(config: Config, outlier_weights: OutlierWeights) -> Self {
        Self { config, outlier_weights, normed_rule: None, int8_head: false, float_experts: false }
    }

    /// The setting called `best`, the same for every model: group granularity and zero points on both sides, single outlier
    /// values by the relative rule, exact outlier weights. A weight that is int8 already keeps its scales. `docs/quality.md`
    /// has the study behind it and its loss.
    pub fn best() -> Self {
        let rows = Self::relative(BEST_TAU, BEST_NORMED_TAU);
        let config = Config {
            input_granularity: Granularity::Group,
            weight_encoding: Encoding::Zeropoint,
            weight_granularity: Granularity::Group,
            ..rows.config
        };
        Self { config, ..rows }
    }

    /// As [`best`](Self::best) with one scale a row, for devices without group granularity: zero points for inputs, and smaller
    /// thresholds. It loses more (`docs/quality.md`) at the speed of the paper's setting.
    pub fn best_rows() -> Self {
        Self::relative(ROWS_TAU, ROWS_NORMED_TAU)
    }

    /// Zero-point rows, single outlier values above `tau` medians of their row (`normed` for inputs that come out of a
    /// normalisation), exact weights for them.
    fn relative(tau: f32, normed: f32) -> Self {
        let rule = |tau| OutlierRule::RelativeToRow { tau, statistic: RowStatistic::MedianAbs };
        let config = Config {
            rule: rule(tau),
            outlier_granularity: OutlierGranularity::Value,
            ..Scheme::LlmInt8Zeropoint.config()
        };
        Self { normed_rule: Some(rule(normed)), ..Self::new(config, OutlierWeights::Exact) }
    }
}

impl Precision {
    /// The precision of a layer with this role.
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

    /// The precision of the output head, whose input comes out of a normalisation.
    pub(crate) fn of_head(&self) -> Self {
        match self {
            Self::Int8(Quantization { int8_head: true, .. }) => self.of(LinearRole::Up),
            _ => Self::Float,
        }
    }
}

/// τ of [`Quantization::best`] for the inputs of attention outputs and contractions: their outliers are large, but a scale
/// belongs to 32 values only.
const BEST_TAU: f32 = 64.0;

/// τ for inputs that come out of a normalisation: 0.1 to 0.2 % of their values are outliers.
const BEST_NORMED_TAU: f32 = 14.0;

/// τ of [`Quantization::best_rows`] for the inputs of attention outputs and contractions.
const ROWS_TAU: f32 = 30.0;

/// τ for inputs that come out of a normalisation.
const ROWS_NORMED_TAU: f32 = 10.0;
