//! Whisper (Radford et al., 2022): an encoder of log-mel spectra behind two convolutions, and BART's blocks with the norms first. Keys
//! have no bias.

use super::{CrossNames, LayerNames, Module, Seq2SeqFamily, Seq2SeqNames, SourceNames, TensorNames};
use crate::Error;
use crate::config::{DecoderConfig, Positions, RawConfig, Seq2SeqConfig, SizeKeys};
use crate::weights::Part;

pub(crate) const FAMILY: Seq2SeqFamily = Seq2SeqFamily { model_types: &["whisper"], config, names };

fn config(raw: &RawConfig) -> Result<Seq2SeqConfig, Error> {
    let stack = |layers, heads, wide: &str, positions: &str| -> Result<_, Error> {
        DecoderConfig {
            family: "whisper",
            intermediate_size: raw.size(wide)?,
            max_positions: raw.size(positions)?,
            positions: Positions::Learned { offset: 0 },
            activation: raw.activation("activation_function", "gelu")?,
            tied_embeddings: raw.flag_or("tie_word_embeddings", true)?,
            ..DecoderConfig::sized(raw, SizeKeys { hidden: "d_model", layers, heads })?
        }
        .validate(raw)
    };
    let encoder =
        stack("encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "max_source_positions")?;
    let decoder =
        stack("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim", "max_target_positions")?;
    let start_token = super::start_token(raw, &decoder, "bos_token_id")?;
    Ok(Seq2SeqConfig { encoder, start_token, decoder, mel_bins: Some(raw.size("num_mel_bins")?) })
}

fn names(_: &DecoderConfig) -> Seq2SeqNames {
    let block = |stack: &'static str| {
        move |layer| {
            let block = Module::new(format!("{stack}.layers.{layer}"));
            let [query, key, value] = attention(&block, "self_attn");
            LayerNames::new(
                vec![query, key, value],
                block.part("self_attn.out_proj"),
                block.mlp(["fc1"], "fc2"),
            )
            .norms(block.name("self_attn_layer_norm"), block.name("final_layer_norm"))
        }
    };
    let decoder =
        TensorNames::new(&["model.", ""], "decoder.embed_tokens", "decoder.layer_norm", block("decoder"));
    Seq2SeqNames {
        decoder: TensorNames {
            position_embedding: Some("decoder.embed_positions"),
            head: "proj_out",
            ..decoder
        },
        stack_embeddings: &[],
        decoder_bias: None,
        cross: Box::new(|layer| {
            let block = Module::new(format!("decoder.layers.{layer}"));
            let [query, key, value] = attention(&block, "encoder_attn");
            CrossNames {
                norm: block.name("encoder_attn_layer_norm"),
                query,
                key_value: vec![key, value],
                output: block.part("encoder_attn.out_proj"),
            }
        }),
        encoder: SourceNames {
            position_embedding: Some("encoder.embed_positions"),
            norm: Some("encoder.layer_norm"),
            convolutions: &["encoder.conv1", "encoder.conv2"],
            ..SourceNames::new(block("encoder"))
        },
    }
}

/// Queries, keys and values.
fn attention(block: &Module, name: &str) -> [Part; 3] {
    let part = |projection: &str| block.part(&format!("{name}.{projection}"));
    [part("q_proj"), part("k_proj").biased(false), part("v_proj")]
}
