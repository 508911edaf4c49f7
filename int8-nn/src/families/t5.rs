//! T5 (Raffel et al., 2020) and the models with its architecture: T5 1.1 and FLAN-T5 (gated), mT5, ByT5. RMSNorm, no
//! biases, scores that are not scaled, and positions as a learned bias by distance that the first block holds for all.

use super::{CrossNames, LayerNames, MlpNames, Seq2SeqFamily, Seq2SeqNames, TensorNames};
use crate::Error;
use crate::config::{
    Activation, BlockKind, Buckets, DecoderConfig, NormKind, Positions, RawConfig, Seq2SeqConfig,
};
use crate::weights::Part;

pub(crate) const FAMILY: Seq2SeqFamily = Seq2SeqFamily { model_types: &["t5", "mt5"], config, names };

/// Biases by distance end nowhere; this is only what no text reaches.
const POSITIONS: usize = 1 << 16;

fn config(raw: &RawConfig) -> Result<Seq2SeqConfig, Error> {
    let hidden_size = raw.size("d_model")?;
    let heads = raw.size("num_heads")?;
    let layers = raw.size("num_layers")?;
    let (gated_mlp, activation) = mlp(raw)?;
    let multilingual = raw.text_or("model_type", "t5")? == "mt5";
    // transformers 5 ties the head in every configuration it writes, and says in another key what the older one meant.
    let scaled =
        !multilingual && raw.flag_or("scale_decoder_outputs", raw.flag_or("tie_word_embeddings", true)?)?;
    let decoder = DecoderConfig {
        family: if multilingual { "mt5" } else { "t5" },
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: raw.size_or("num_decoder_layers", layers)?,
        heads,
        kv_heads: heads,
        head_size: raw.size("d_kv")?,
        intermediate_size: raw.size("d_ff")?,
        max_positions: POSITIONS,
        norm: NormKind::RmsNorm,
        norm_eps: crate::convert::f32_from(raw.positive_or("layer_norm_epsilon", 1e-6)?),
        block: BlockKind::PreNorm,
        positions: Positions::Relative(Buckets::read(raw)?),
        attention_divisor: Some(1.0),
        activation,
        gated_mlp,
        logit_scale: scaled.then(|| crate::convert::inverse_root(hidden_size)),
        tied_embeddings: true,
        embedding_size: hidden_size,
        eos_token_ids: raw.token_ids("eos_token_id")?,
        ..DecoderConfig::default()
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

/// `feed_forward_proj`: an activation, `gated-` before it or not.
fn mlp(raw: &RawConfig) -> Result<(bool, Activation), Error> {
    const KEY: &str = "feed_forward_proj";
    let name = raw.text_or(KEY, "relu")?;
    let (gated, activation) = match name.strip_prefix("gated-") {
        // What the models of that name were trained with.
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
    Seq2SeqNames {
        decoder: TensorNames {
            roots: &[""],
            token_embedding: "shared",
            position_embedding: None,
            embedding_norm: None,
            project_in: None,
            project_out: None,
            final_norm: Some("decoder.final_layer_norm"),
            head: "lm_head",
            layer: Box::new(move |layer| block(&format!("decoder.block.{layer}.layer"), 2, gated)),
        },
        decoder_bias: "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        cross: Box::new(|layer| {
            let name = |part: &str| format!("decoder.block.{layer}.layer.1.{part}");
            CrossNames {
                norm: name("layer_norm"),
                query: Part::new(&name("EncDecAttention.q")),
                key_value: ["k", "v"].map(|part| Part::new(&name(&format!("EncDecAttention.{part}")))).into(),
                output: Part::new(&name("EncDecAttention.o")),
            }
        }),
        encoder_norm: "encoder.final_layer_norm",
        encoder_bias: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        encoder_layer: Box::new(move |layer| block(&format!("encoder.block.{layer}.layer"), 1, gated)),
    }
}

/// The names of a block below `root`, whose MLP is sublayer `mlp`.
fn block(root: &str, mlp: usize, gated: bool) -> LayerNames {
    let attention = |part: &str| format!("{root}.0.SelfAttention.{part}");
    let dense = |part: &str| Part::new(&format!("{root}.{mlp}.DenseReluDense.{part}"));
    LayerNames {
        attention_norm: Some(format!("{root}.0.layer_norm")),
        mlp_norm: Some(format!("{root}.{mlp}.layer_norm")),
        branch_norms: None,
        qkv: ["q", "k", "v"].map(|part| Part::new(&attention(part))).into(),
        query_key_norms: None,
        attention_output: Part::new(&attention("o")),
        mlp: MlpNames::Dense {
            up: if gated { vec![dense("wi_0"), dense("wi_1")] } else { vec![dense("wi")] },
            down: dense("wo"),
        },
    }
}
