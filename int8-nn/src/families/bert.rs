//! BERT (Devlin et al., 2019), RoBERTa and XLM-RoBERTa (other positions), DistilBERT (other names, no token types); MiniLM, E5
//! and other sentence models are among them. Learned positions, LayerNorm after each residual addition, biases everywhere.

use super::{EncoderFamily, EncoderNames, LayerNames, Module};
use crate::Error;
use crate::config::{BlockKind, DecoderConfig, EncoderConfig, Positions, RawConfig, SizeKeys};

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
    // RoBERTa's positions begin after the padding token's id; its table has rows for those before.
    let offset = if family == "bert" {
        0
    } else {
        // Positions count from behind it.
        let padding = raw.index_or("pad_token_id", 1)?;
        padding + 1
    };
    let max_positions = table.checked_sub(offset).filter(|positions| *positions > 0).ok_or_else(|| {
        raw.problem("max_position_embeddings", format!("is {table}; the first {offset} are not used"))
    })?;
    let network = DecoderConfig {
        family,
        intermediate_size: raw.size("intermediate_size")?,
        max_positions,
        norm_eps: raw.float_or("layer_norm_eps", 1e-12)?,
        block: BlockKind::PostNorm,
        positions: Positions::Learned { offset },
        activation: raw.activation("hidden_act", "gelu")?,
        ..DecoderConfig::sized_encoder(raw, SizeKeys::default())?
    };
    Ok(EncoderConfig {
        network: network.validate(raw)?,
        token_types: raw.size_or("type_vocab_size", 2)?,
        position_table: true,
        position_offset: offset,
        order: None,
    })
}

pub(super) fn names(_: &EncoderConfig) -> EncoderNames {
    let layer = |layer| {
        let block = Module::new(format!("encoder.layer.{layer}"));
        LayerNames::new(
            block.parts(["attention.self.query", "attention.self.key", "attention.self.value"]),
            block.part("attention.output.dense"),
            block.mlp(["intermediate.dense"], "output.dense"),
        )
        .norms(block.name("attention.output.LayerNorm"), block.name("output.LayerNorm"))
    };
    EncoderNames {
        token_type_embedding: Some("embeddings.token_type_embeddings"),
        ..EncoderNames::new(&["", "bert.", "roberta."], layer)
    }
}

fn distilbert_config(raw: &RawConfig) -> Result<EncoderConfig, Error> {
    let network = DecoderConfig {
        family: "distilbert",
        intermediate_size: raw.size("hidden_dim")?,
        max_positions: raw.size("max_position_embeddings")?,
        norm_eps: 1e-12,
        block: BlockKind::PostNorm,
        positions: Positions::Learned { offset: 0 },
        activation: raw.activation("activation", "gelu")?,
        ..DecoderConfig::sized_encoder(raw, SizeKeys { hidden: "dim", layers: "n_layers", heads: "n_heads" })?
    };
    Ok(EncoderConfig { position_table: true, ..EncoderConfig::of(network.validate(raw)?) })
}

fn distilbert_names(_: &EncoderConfig) -> EncoderNames {
    EncoderNames::new(&["", "distilbert."], |layer| {
        let block = Module::new(format!("transformer.layer.{layer}"));
        LayerNames::new(
            block.parts(["attention.q_lin", "attention.k_lin", "attention.v_lin"]),
            block.part("attention.out_lin"),
            block.mlp(["ffn.lin1"], "ffn.lin2"),
        )
        .norms(block.name("sa_layer_norm"), block.name("output_layer_norm"))
    })
}
