//! T5 (Raffel et al., 2020), T5 1.1 and FLAN-T5 (gated), mT5, ByT5: RMSNorm, no biases, unscaled attention scores, and a
//! relative position bias that the first block holds for all.

use super::{CrossNames, LayerNames, Module, Seq2SeqFamily, Seq2SeqNames, TensorNames};
use crate::Error;
use crate::config::{
    Activation, Biases, Buckets, DecoderConfig, NormKind, Positions, RawConfig, Seq2SeqConfig, SizeKeys,
};

pub(crate) const FAMILY: Seq2SeqFamily = Seq2SeqFamily { model_types: &["t5", "mt5"], config, names };

const KEYS: SizeKeys = SizeKeys { hidden: "d_model", layers: "num_layers", heads: "num_heads" };

/// Relative position biases set no limit; no text is this long.
const POSITIONS: usize = 1 << 16;

fn config(raw: &RawConfig) -> Result<Seq2SeqConfig, Error> {
    let (gated_mlp, activation) = mlp(raw)?;
    let multilingual = raw.text_or("model_type", "t5")? == "mt5";
    // transformers 5 always writes `tie_word_embeddings`: true; `scale_decoder_outputs` has the older key's meaning.
    let scaled =
        !multilingual && raw.flag_or("scale_decoder_outputs", raw.flag_or("tie_word_embeddings", true)?)?;
    let sized = DecoderConfig::sized_by_head(raw, KEYS, "d_kv")?;
    let layers = sized.layers;
    let decoder = DecoderConfig {
        family: if multilingual { "mt5" } else { "t5" },
        layers: raw.size_or("num_decoder_layers", layers)?,
        head_size: raw.size("d_kv")?,
        intermediate_size: raw.size("d_ff")?,
        max_positions: POSITIONS,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-6)?,
        positions: Positions::Relative(Buckets::read(raw)?),
        attention_divisor: Some(1.0),
        activation,
        gated_mlp,
        biases: Biases::blocks(false),
        logit_scale: scaled.then(|| crate::convert::inverse_root(sized.hidden_size)),
        tied_embeddings: true,
        ..sized
    }
    .validate(raw)?;
    const START: &str = "decoder_start_token_id";
    let start = raw.token_ids(START)?.first().copied();
    // Without the key, the padding token.
    let start_token = start.or(raw.token_ids("pad_token_id")?.first().copied()).unwrap_or(0);
    if crate::convert::index(start_token) >= decoder.vocab_size {
        return Err(
            raw.problem(START, format!("is {start_token}, outside the vocabulary of {}", decoder.vocab_size))
        );
    }
    Ok(Seq2SeqConfig { encoder: DecoderConfig { layers, ..decoder.clone() }, start_token, decoder })
}

/// `feed_forward_proj`: an activation, with or without the prefix `gated-`.
fn mlp(raw: &RawConfig) -> Result<(bool, Activation), Error> {
    const KEY: &str = "feed_forward_proj";
    let name = raw.text_or(KEY, "relu")?;
    let (gated, activation) = match name.strip_prefix("gated-") {
        // T5 1.1 was trained with the tanh approximation.
        Some("gelu") => (true, "gelu_new"),
        Some(activation) => (true, activation),
        None => (false, name),
    };
    let activation = Activation::from_name(activation).ok_or_else(|| {
        raw.problem(KEY, format!("is {name:?}; implemented: relu, gelu, silu and gated- before one of them"))
    })?;
    Ok((gated, activation))
}

fn names(config: &DecoderConfig) -> Seq2SeqNames {
    let gated = config.gated_mlp;
    let decoder = move |layer| block(&format!("decoder.block.{layer}.layer"), 2, gated);
    Seq2SeqNames {
        decoder: TensorNames::new(&[""], "shared", "decoder.final_layer_norm", decoder),
        stack_embeddings: ["decoder.embed_tokens", "encoder.embed_tokens"],
        decoder_bias: "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        cross: Box::new(|layer| {
            let cross = Module::new(format!("decoder.block.{layer}.layer.1"));
            CrossNames {
                norm: cross.name("layer_norm"),
                query: cross.part("EncDecAttention.q"),
                key_value: cross.parts(["EncDecAttention.k", "EncDecAttention.v"]),
                output: cross.part("EncDecAttention.o"),
            }
        }),
        encoder_norm: "encoder.final_layer_norm",
        encoder_bias: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        encoder_layer: Box::new(move |layer| block(&format!("encoder.block.{layer}.layer"), 1, gated)),
    }
}

/// The names of a block below `root`, whose MLP is sublayer `mlp`.
fn block(root: &str, mlp: usize, gated: bool) -> LayerNames {
    let attention = Module::new(format!("{root}.0"));
    let dense = Module::new(format!("{root}.{mlp}"));
    LayerNames::new(
        attention.parts(["SelfAttention.q", "SelfAttention.k", "SelfAttention.v"]),
        attention.part("SelfAttention.o"),
        match gated {
            true => dense.mlp(["DenseReluDense.wi_0", "DenseReluDense.wi_1"], "DenseReluDense.wo"),
            false => dense.mlp(["DenseReluDense.wi"], "DenseReluDense.wo"),
        },
    )
    .norms(attention.name("layer_norm"), dense.name("layer_norm"))
}
