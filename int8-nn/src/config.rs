//! `config.json`, read with checks, and the one description that all families are mapped onto.

mod decoder;
mod encoder;
mod experts;
mod latent;
mod linear_attention;
mod raw;
mod recurrent;
mod relative;
mod rotary;
mod seq2seq;
mod sizes;

pub use decoder::{
    Activation, AlternateAttention, AttentionGate, Biases, BlockKind, BlockSet, Branch, BranchFactors,
    ClampedGate, DecoderConfig, NormKind, Positions, QueryGrowth, QueryKeyNorms,
};
pub use encoder::EncoderConfig;
pub use experts::{ExpertGroups, ExpertsConfig, Scores};
pub use latent::LatentAttention;
pub(crate) use linear_attention::Widths;
pub use linear_attention::{GatedConvolution, GatedDelta, Lightning};
pub use raw::RawConfig;
pub use recurrent::{GatedNorm, Mixer, ParameterNorms, RecurrentMixer, Scan, StateSpace};
pub use relative::Buckets;
pub(crate) use rotary::RotaryDefaults;
pub use rotary::{Rotary, RotaryScaling};

/// The former name of the type of [`Rotary::precision`].
pub type RotaryPrecision = int8_core::FloatType;
pub use seq2seq::Seq2SeqConfig;
pub(crate) use sizes::SizeKeys;
