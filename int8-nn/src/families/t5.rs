//! T5 (Raffel et al., 2020), T5 1.1 and FLAN-T5 (gated), mT5, ByT5: RMSNorm, no biases, unscaled attention scores, and a
//! relative position bias that the first block holds for all. In UMT5 each block has its own; the encoder of LongT5 (Guo et al.,
//! 2022) sees windows.

use super::{CrossNames, LayerNames, Module, Seq2SeqFamily, Seq2SeqNames, SourceNames, TensorNames};
use crate::Error;
use crate::config::{
    Activation, Biases, Buckets, DecoderConfig, NormKind, Positions, RawConfig, Seq2SeqConfig, SizeKeys,
};

pub(crate) const FAMILY: Seq2SeqFamily =
    Seq2SeqFamily { model_types: &["t5", "mt5", "umt5", "longt5"], config, names };

const KEYS: SizeKeys = SizeKeys { hidden: "d_model", layers: "num_layers", heads: "num_heads" };

/// Relative position biases set no limit; no text is this long.
const POSITIONS: usize = 1 << 16;

fn config(raw: &RawConfig) -> Result<Seq2SeqConfig, Error> {
    let family = match raw.text_or("model_type", "t5")? {
        "mt5" => "mt5",
        "umt5" => "umt5",
        "longt5" => "longt5",
        _ => "t5",
    };
    let multilingual = family == "mt5";
    let (gated_mlp, activation) = mlp(raw, if family == "umt5" { "gated-gelu" } else { "relu" })?;
    // transformers 5 always writes `tie_word_embeddings`: true; `scale_decoder_outputs` has the older key's meaning.
    let scaled =
        !multilingual && raw.flag_or("scale_decoder_outputs", raw.flag_or("tie_word_embeddings", true)?)?;
    let sized = DecoderConfig::sized_by_head(raw, KEYS, "d_kv")?;
    let layers = sized.layers;
    let decoder = DecoderConfig {
        family,
        layers: raw.size_or("num_decoder_layers", layers)?,
        head_size: raw.size("d_kv")?,
        intermediate_size: raw.size("d_ff")?,
        max_positions: POSITIONS,
        norm: NormKind::RmsNorm,
        norm_eps: raw.float_or("layer_norm_epsilon", 1e-6)?,
        positions: Positions::Relative(Buckets::read(raw)?),
        bias_by_layer: family == "umt5",
        attention_divisor: Some(1.0),
        activation,
        gated_mlp,
        biases: Biases::blocks(false),
        logit_scale: scaled.then(|| crate::convert::inverse_root(sized.hidden_size)),
        tied_embeddings: true,
        ..sized
    }
    .validate(raw)?;
    let start_token = super::start_token(raw, &decoder, "pad_token_id")?;
    let sliding_window = if family == LONG { Some(window(raw)?) } else { None };
    let encoder = DecoderConfig { layers, sliding_window, ..decoder.clone() };
    Ok(Seq2SeqConfig { encoder, start_token, decoder, mel_bins: None })
}

const LONG: &str = "longt5";

/// LongT5's window: a token sees this many positions less one to each side.
fn window(raw: &RawConfig) -> Result<usize, Error> {
    const KIND: &str = "encoder_attention_type";
    let kind = raw.text_or(KIND, "local")?;
    if kind != "local" {
        return Err(raw.problem(KIND, format!("is {kind:?}; implemented: local")));
    }
    Ok(raw.index_or("local_radius", 127)? + 1)
}

/// `feed_forward_proj`: an activation, with or without the prefix `gated-`.
fn mlp(raw: &RawConfig, default: &str) -> Result<(bool, Activation), Error> {
    const KEY: &str = "feed_forward_proj";
    let name = raw.text_or(KEY, default)?;
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
    let (gated, own) = (config.gated_mlp, config.bias_by_layer);
    let (of_encoder, bias) = match config.family == LONG {
        true => ("LocalSelfAttention", "encoder.block.0.layer.0.LocalSelfAttention.relative_attention_bias"),
        false => ("SelfAttention", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
    };
    let decoder =
        move |layer| block(&format!("decoder.block.{layer}.layer"), ("SelfAttention", 2), gated, own);
    let encoder = move |layer| block(&format!("encoder.block.{layer}.layer"), (of_encoder, 1), gated, own);
    let shared = |name| (!own).then_some(name);
    Seq2SeqNames {
        decoder: TensorNames::new(&[""], "shared", "decoder.final_layer_norm", decoder),
        stack_embeddings: &["decoder.embed_tokens", "encoder.embed_tokens"],
        decoder_bias: shared("decoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        cross: Box::new(|layer| {
            let cross = Module::new(format!("decoder.block.{layer}.layer.1"));
            CrossNames {
                norm: cross.name("layer_norm"),
                query: cross.part("EncDecAttention.q"),
                key_value: cross.parts(["EncDecAttention.k", "EncDecAttention.v"]),
                output: cross.part("EncDecAttention.o"),
            }
        }),
        encoder: SourceNames {
            norm: Some("encoder.final_layer_norm"),
            bias: shared(bias),
            ..SourceNames::new(encoder)
        },
    }
}

/// The names of a block below `root` with this module of attention, whose MLP is sublayer `mlp`; `own`: with a relative position
/// bias.
fn block(root: &str, (kind, mlp): (&str, usize), gated: bool, own: bool) -> LayerNames {
    let sublayer = Module::new(format!("{root}.0"));
    let attention = Module::new(sublayer.name(kind));
    let dense = Module::new(format!("{root}.{mlp}"));
    let names = LayerNames::new(
        attention.parts(["q", "k", "v"]),
        attention.part("o"),
        match gated {
            true => dense.mlp(["DenseReluDense.wi_0", "DenseReluDense.wi_1"], "DenseReluDense.wo"),
            false => dense.mlp(["DenseReluDense.wi"], "DenseReluDense.wo"),
        },
    )
    .norms(sublayer.name("layer_norm"), dense.name("layer_norm"));
    let bias = own.then(|| attention.name("relative_attention_bias"));
    LayerNames { distance_bias: bias, ..names }
}
