//! `config.json`, read with checks, and the one description that all families are mapped onto.

mod decoder;
mod encoder;
mod experts;
mod latent;
mod raw;
mod recurrent;
mod relative;
mod rotary;
mod seq2seq;
mod shared;
mod sizes;

pub use decoder::{
    Activation, AlternateAttention, Biases, BlockKind, BlockSet, Branch, BranchFactors, ClampedGate,
    DecoderConfig, NormKind, Positions, QueryGrowth, QueryKeyNorms,
};
pub use encoder::EncoderConfig;
pub use experts::{ExpertGroups, ExpertsConfig, Scores};
pub use latent::LatentAttention;
pub use raw::RawConfig;
pub use recurrent::{GatedNorm, Mixer, ParameterNorms, RecurrentMixer, Scan, StateSpace};
pub use relative::Buckets;
pub(crate) use rotary::RotaryDefaults;
pub use rotary::{Rotary, RotaryScaling};

/// The former name of the type of [`Rotary::precision`].
pub type RotaryPrecision = int8_core::FloatType;
pub use seq2seq::Seq2SeqConfig;
pub use shared::SharedTransformer;
pub(crate) use sizes::{SizeKeys, listed_layers};
