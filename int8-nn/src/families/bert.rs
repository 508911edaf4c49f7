//! BERT (Devlin et al., 2019) and the encoders built like it: RoBERTa and XLM-RoBERTa (other positions), DistilBERT (other
//! names, one token type). Sentence models such as MiniLM and E5 are one of these. Learned positions, LayerNorm after each
//! addition, biases everywhere.

use super::{EncoderFamily, EncoderNames, LayerNames, MlpNames};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, EncoderConfig, NormKind, Positions, RawConfig, head_size};
use crate::weights::Part;

pub(crate) const FAMILY: EncoderFamily =
    EncoderFamily { model_types: &["bert", "roberta", "xlm-roberta", "camembert"], config, names };

pub(crate) const DISTILBERT: EncoderFamily =
    EncoderFamily { model_types: &["distilbert"], config: distilbert_config, names: distilbert_names };

pub(super) fn config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let positions = raw.text_or("position_embedding_type", "absolute")?;
    if positions != "absolute" {
        return Err(
            raw.problem("position_embedding_type", format!("is {positions:?}; implemented: absolute"))
        );
    }
    if raw.flag_or("is_decoder", false)? {
        return Err(raw.problem("is_decoder", "is true; of this family only the encoder is implemented"));
    }
    let family = match raw.text_or("model_type", "bert")? {
        "roberta" => "roberta",
        "mpnet" => "mpnet",
        "xlm-roberta" => "xlm-roberta",
        "camembert" => "camembert",
        _ => "bert",
    };
    let table = raw.size("max_position_embeddings")?;
    // RoBERTa counts positions from the one after the padding token's id, and its table has rows for those before.
    let offset = if family == "bert" {
        0
    } else {
        let padding = raw.token_ids("pad_token_id")?.first().copied().unwrap_or(1);
        crate::convert::index(padding) + 1
    };
    let max_positions = table.checked_sub(offset).filter(|positions| *positions > 0).ok_or_else(|| {
        raw.problem("max_position_embeddings", format!("is {table}; the first {offset} are not used"))
    })?;
    let hidden_size = raw.size("hidden_size")?;
    let heads = raw.size("num_attention_heads")?;
    let network = DecoderConfig {
        family,
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("num_hidden_layers")?,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "num_attention_heads", hidden_size, heads)?,
        intermediate_size: raw.size("intermediate_size")?,
        max_positions,
        norm: NormKind::LayerNorm,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_eps", 1e-12)?),
        block: BlockKind::PostNorm,
        positions: Positions::Learned { offset },
        activation: raw.activation("hidden_act", "gelu")?,
        embedding_size: hidden_size,
        ..DecoderConfig::default()
    };
    Ok(EncoderConfig {
        network: network.validate(raw)?,
        token_types: raw.size_or("type_vocab_size", 2)?,
        position_offset: offset,
    })
}

pub(super) fn names(_: &EncoderConfig) -> EncoderNames {
    EncoderNames {
        roots: &["", "bert.", "roberta."],
        token_embedding: "embeddings.word_embeddings",
        position_embedding: "embeddings.position_embeddings",
        token_type_embedding: Some("embeddings.token_type_embeddings"),
        embedding_norm: "embeddings.LayerNorm",
        distance_bias: None,
        layer: Box::new(|layer| {
            let name = |part: &str| format!("encoder.layer.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("attention.output.LayerNorm")),
                mlp_norm: Some(name("output.LayerNorm")),
                branch_norms: None,
                query_key_norms: None,
                qkv: ["query", "key", "value"]
                    .map(|part| Part::new(&name(&format!("attention.self.{part}"))))
                    .into(),
                attention_output: Part::new(&name("attention.output.dense")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("intermediate.dense"))],
                    down: Part::new(&name("output.dense")),
                },
            }
        }),
    }
}

fn distilbert_config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let hidden_size = raw.size("dim")?;
    let heads = raw.size("n_heads")?;
    let network = DecoderConfig {
        family: "distilbert",
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size("n_layers")?,
        heads,
        kv_heads: heads,
        head_size: head_size(raw, "n_heads", hidden_size, heads)?,
        intermediate_size: raw.size("hidden_dim")?,
        max_positions: raw.size("max_position_embeddings")?,
        norm: NormKind::LayerNorm,
        norm_eps: 1e-12,
        block: BlockKind::PostNorm,
        positions: Positions::Learned { offset: 0 },
        activation: raw.activation("activation", "gelu")?,
        embedding_size: hidden_size,
        ..DecoderConfig::default()
    };
    Ok(EncoderConfig { network: network.validate(raw)?, token_types: 0, position_offset: 0 })
}

fn distilbert_names(_: &EncoderConfig) -> EncoderNames {
    EncoderNames {
        roots: &["", "distilbert."],
        token_embedding: "embeddings.word_embeddings",
        position_embedding: "embeddings.position_embeddings",
        token_type_embedding: None,
        embedding_norm: "embeddings.LayerNorm",
        distance_bias: None,
        layer: Box::new(|layer| {
            let name = |part: &str| format!("transformer.layer.{layer}.{part}");
            LayerNames {
                attention_norm: Some(name("sa_layer_norm")),
                mlp_norm: Some(name("output_layer_norm")),
                branch_norms: None,
                query_key_norms: None,
                qkv: ["q_lin", "k_lin", "v_lin"]
                    .map(|part| Part::new(&name(&format!("attention.{part}"))))
                    .into(),
                attention_output: Part::new(&name("attention.out_lin")),
                mlp: MlpNames::Dense {
                    up: vec![Part::new(&name("ffn.lin1"))],
                    down: Part::new(&name("ffn.lin2")),
                },
            }
        }),
    }
}
