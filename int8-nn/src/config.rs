//! `config.json`, read with checks, and the one description that all families are mapped onto.

mod computed_table;
mod decoder;
mod disentangled;
mod encoder;
mod experts;
mod gates;
mod latent;
mod layers;
mod linear_attention;
mod quantile;
mod raw;
mod recurrent;
mod relative;
mod rotary;
mod seq2seq;
mod shared;
mod sinusoids;
mod sizes;

pub use computed_table::ComputedTable;
pub use decoder::{
    Activation, AlternateAttention, Biases, BlockKind, BlockSet, Branch, BranchFactors, ClampedGate,
    DecoderConfig, NormKind, Positions, QueryGrowth, QueryKeyNorms,
};
pub use disentangled::Disentangled;
pub use encoder::EncoderConfig;
pub use experts::{ExpertGroups, ExpertsConfig, Scores};
pub(crate) use gates::softplus;
pub use gates::{AttentionGate, GateFunction, Xielu};
pub use latent::LatentAttention;
pub use layers::{HeadShape, IndexShape, Indexer, LayerInputs, Streams, ValueHeads};
pub(crate) use linear_attention::Widths;
pub use linear_attention::{GatedConvolution, GatedDelta, Lightning};
pub(crate) use quantile::normal_quantile;
pub use raw::RawConfig;
pub use recurrent::{GatedNorm, Mixer, ParameterNorms, RecurrentMixer, Scan, StateSpace};
pub use relative::Buckets;
pub(crate) use rotary::RotaryDefaults;
pub use rotary::{Rotary, RotaryScaling};

/// The former name of the type of [`Rotary::precision`].
pub type RotaryPrecision = int8_core::FloatType;
pub use seq2seq::Seq2SeqConfig;
pub use shared::SharedTransformer;
pub use sinusoids::Sinusoids;
pub(crate) use sizes::{SizeKeys, listed_layers};
