//! BART (Lewis et al., 2019) and the encoder-decoders with its tensor names: mBART, PEGASUS, Marian, M2M100 and NLLB. LayerNorm and
//! biases everywhere; they differ in where the norms are and in their positions.

use super::{CrossNames, LayerNames, Module, Seq2SeqFamily, Seq2SeqNames, SourceNames, TensorNames};
use crate::Error;
use crate::config::{BlockKind, ComputedTable, DecoderConfig, Positions, RawConfig, Seq2SeqConfig, SizeKeys};
use crate::convert;

pub(crate) const FAMILY: Seq2SeqFamily =
    Seq2SeqFamily { model_types: &["bart", "mbart", "pegasus", "marian", "m2m_100"], config, names };

/// The first position's row in a learned table.
const OFFSET: usize = 2;

fn config(raw: &RawConfig) -> Result<Seq2SeqConfig, Error> {
    let model_type = raw.text_or("model_type", "bart")?;
    let scaled = raw.flag_or("scale_embedding", model_type == "m2m_100")?;
    let activation = if model_type == "m2m_100" { "relu" } else { "gelu" };
    let padding = raw.index_or("pad_token_id", 1)?;
    let (family, block, positions, computed) = match model_type {
        "mbart" => ("mbart", BlockKind::PreNorm, OFFSET, None),
        "pegasus" => ("pegasus", BlockKind::PreNorm, 0, Some(ComputedTable::Double)),
        "marian" => ("marian", BlockKind::PostNorm, 0, Some(ComputedTable::Double)),
        "m2m_100" => ("m2m_100", BlockKind::PreNorm, padding + 1, Some(ComputedTable::Single)),
        _ => ("bart", BlockKind::PostNorm, OFFSET, None),
    };
    if !raw.flag_or("share_encoder_decoder_embeddings", true)? {
        return Err(raw.problem(
            "share_encoder_decoder_embeddings",
            "is false; an encoder and a decoder with different embeddings are not implemented",
        ));
    }
    let stack = |layers, heads, wide: &str| -> Result<_, Error> {
        let base = DecoderConfig::sized(raw, SizeKeys { hidden: "d_model", layers, heads })?;
        let scale = convert::f32_from(convert::f64_from(base.hidden_size).sqrt());
        DecoderConfig {
            family,
            intermediate_size: raw.size(wide)?,
            max_positions: raw.size("max_position_embeddings")?,
            block,
            positions: Positions::Learned { offset: positions },
            computed_positions: computed,
            activation: raw.activation("activation_function", activation)?,
            embedding_scale: scaled.then_some(scale),
            scales_tokens_alone: true,
            final_norm: block == BlockKind::PreNorm,
            tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
            // Its positions count the tokens that are no padding.
            unplaced_token: (family == "m2m_100").then_some(convert::token_id(padding)),
            ..base
        }
        .validate(raw)
    };
    let encoder = stack("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim")?;
    let decoder = stack("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")?;
    let start_token = super::start_token(raw, &decoder, "bos_token_id")?;
    Ok(Seq2SeqConfig { encoder, start_token, decoder, mel_bins: None })
}

fn names(config: &DecoderConfig) -> Seq2SeqNames {
    let normed = ["bart", "mbart"].contains(&config.family);
    let embedding_norm = |name| normed.then_some(name);
    let norm = |name| config.final_norm.then_some(name);
    let block = |stack: &'static str| {
        move |layer| {
            let block = Module::new(format!("{stack}.layers.{layer}"));
            LayerNames::new(
                block.parts(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                block.part("self_attn.out_proj"),
                block.mlp(["fc1"], "fc2"),
            )
            .norms(block.name("self_attn_layer_norm"), block.name("final_layer_norm"))
        }
    };
    let decoder = TensorNames::new(&["model.", ""], "shared", "decoder.layer_norm", block("decoder"));
    Seq2SeqNames {
        decoder: TensorNames {
            position_embedding: Some("decoder.embed_positions"),
            embedding_norm: embedding_norm("decoder.layernorm_embedding"),
            final_norm: norm("decoder.layer_norm"),
            logit_bias: (config.family != "m2m_100").then_some("final_logits_bias"),
            ..decoder
        },
        stack_embeddings: &["decoder.embed_tokens", "encoder.embed_tokens"],
        decoder_bias: None,
        cross: Box::new(cross),
        encoder: SourceNames {
            position_embedding: Some("encoder.embed_positions"),
            embedding_norm: embedding_norm("encoder.layernorm_embedding"),
            norm: norm("encoder.layer_norm"),
            ..SourceNames::new(block("encoder"))
        },
    }
}

/// The cross-attention of a decoder's block.
fn cross(layer: usize) -> CrossNames {
    let block = Module::new(format!("decoder.layers.{layer}"));
    CrossNames {
        norm: block.name("encoder_attn_layer_norm"),
        query: block.part("encoder_attn.q_proj"),
        key_value: block.parts(["encoder_attn.k_proj", "encoder_attn.v_proj"]),
        output: block.part("encoder_attn.out_proj"),
    }
}
