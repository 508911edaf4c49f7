//! EuroBERT (Boizard et al., 2025): LLaMA's blocks, in which every token sees its whole sequence.

use serde_json::json;

use super::{EncoderFamily, EncoderNames, llama};
use crate::Error;
use crate::config::{Biases, DecoderConfig, EncoderConfig, RawConfig, RotaryDefaults};

pub(crate) const FAMILY: EncoderFamily = EncoderFamily { model_types: &["eurobert"], config, names };

fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let raw = &raw.with_defaults(&[
        ("vocab_size", json!(128_256)),
        ("hidden_size", json!(768)),
        ("num_hidden_layers", json!(12)),
        ("num_attention_heads", json!(12)),
        ("intermediate_size", json!(3072)),
        ("max_position_embeddings", json!(8192)),
        ("rms_norm_eps", json!(1e-5)),
    ]);
    let biases = Biases::of(raw.flag_or("attention_bias", false)?, raw.flag_or("mlp_bias", false)?);
    let network =
        DecoderConfig { family: "eurobert", biases, ..llama::base(raw, RotaryDefaults::default())? };
    Ok(EncoderConfig::of(network.validate(raw)?))
}

fn names(config: &EncoderConfig) -> EncoderNames {
    let network = config.network.clone();
    EncoderNames {
        token_embedding: "embed_tokens",
        embedding_norm: None,
        final_norm: Some("norm"),
        ..EncoderNames::new(&["model.", ""], move |index| llama::layer(index, &network))
    }
}
