//! The model families. Each file maps one family's `config.json` and tensor names onto [`DecoderConfig`] and
//! its tensor names; what a decoder computes stands once, in [`crate::decoder`]. A new family is one file here, one line
//! in `FAMILIES` and one golden.

mod bert;
mod bloom;
mod cohere;
mod falcon;
mod gemma;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gptj;
mod llama;
mod mixtral;
mod mpnet;
mod mpt;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen_moe;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;

use std::collections::BTreeMap;

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::config::{DecoderConfig, EncoderConfig, RawConfig, Seq2SeqConfig};
use crate::weights::{Part, Rows};

/// One family.
pub(crate) struct Family {
    /// Values of `model_type` it answers to.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<DecoderConfig, Error>,
    /// Names the tensors.
    pub(crate) names: fn(&DecoderConfig) -> TensorNames,
}

/// All families this crate runs.
pub(crate) const FAMILIES: &[&Family] = &[
    &opt::FAMILY,
    &llama::FAMILY,
    &gpt2::FAMILY,
    &bloom::FAMILY,
    &gpt_neox::FAMILY,
    &gptj::FAMILY,
    &gpt_neo::FAMILY,
    &gpt_bigcode::FAMILY,
    &phi::FAMILY,
    &phi3::FAMILY,
    &gemma::FAMILY,
    &falcon::FAMILY,
    &mpt::FAMILY,
    &starcoder2::FAMILY,
    &stablelm::FAMILY,
    &olmo2::FAMILY,
    &cohere::FAMILY,
    &smollm3::FAMILY,
    &mixtral::FAMILY,
    &qwen_moe::FAMILY,
];

/// A family of encoders.
pub(crate) struct EncoderFamily {
    /// Values of `model_type` it answers to.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<EncoderConfig, Error>,
    /// Names the tensors.
    pub(crate) names: fn(&EncoderConfig) -> EncoderNames,
}

/// All families of encoders.
pub(crate) const ENCODERS: &[&EncoderFamily] = &[&bert::FAMILY, &bert::DISTILBERT, &mpnet::FAMILY];

/// A family of models with an encoder and a decoder.
pub(crate) struct Seq2SeqFamily {
    /// Values of `model_type` it answers to.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<Seq2SeqConfig, Error>,
    /// Names the tensors; takes the description of the decoder.
    pub(crate) names: fn(&DecoderConfig) -> Seq2SeqNames,
}

/// All families of models with an encoder and a decoder.
pub(crate) const SEQ2SEQ: &[&Seq2SeqFamily] = &[&t5::FAMILY];

/// What can be done with the models of a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Continues a text: [`Model`](crate::Model).
    Decoder,
    /// Turns a text into vectors: [`Embedder`](crate::Embedder).
    Encoder,
    /// Reads a text and writes another: [`Model`](crate::Model).
    Seq2Seq,
}

/// The names of the tensors of a model with an encoder and a decoder.
pub(crate) struct Seq2SeqNames {
    pub(crate) decoder: TensorNames,
    /// The biases by distance of encoder and decoder.
    pub(crate) encoder_bias: &'static str,
    pub(crate) decoder_bias: &'static str,
    /// Of a decoder's block, besides what a block has.
    pub(crate) cross: CrossNamesOf,
    pub(crate) encoder_norm: &'static str,
    pub(crate) encoder_layer: Box<dyn Fn(usize) -> LayerNames>,
}

/// The names of a block's attention to another text, by the block's index.
pub(crate) type CrossNamesOf = Box<dyn Fn(usize) -> CrossNames>;

/// The names of a block's attention to another text.
pub(crate) struct CrossNames {
    pub(crate) norm: String,
    pub(crate) query: Part,
    /// Keys, values.
    pub(crate) key_value: Vec<Part>,
    pub(crate) output: Part,
}

/// The names of an encoder's tensors, all below one of `roots`.
pub(crate) struct EncoderNames {
    pub(crate) roots: &'static [&'static str],
    pub(crate) token_embedding: &'static str,
    pub(crate) position_embedding: &'static str,
    pub(crate) token_type_embedding: Option<&'static str>,
    pub(crate) embedding_norm: &'static str,
    /// The bias by distance that all blocks share.
    pub(crate) distance_bias: Option<&'static str>,
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

/// The names of a decoder's tensors. All but `head` follow one of `roots`, whichever the checkpoint has: the same model
/// is saved with and without the name of its outer module.
pub(crate) struct TensorNames {
    pub(crate) roots: &'static [&'static str],
    pub(crate) token_embedding: &'static str,
    pub(crate) position_embedding: Option<&'static str>,
    pub(crate) embedding_norm: Option<&'static str>,
    pub(crate) project_in: Option<&'static str>,
    pub(crate) project_out: Option<&'static str>,
    pub(crate) final_norm: Option<&'static str>,
    pub(crate) head: &'static str,
    pub(crate) layer: Box<dyn Fn(usize) -> LayerNames>,
}

/// The names of one block's tensors; each linear layer may be stacked from several parts along its outputs.
pub(crate) struct LayerNames {
    /// Before (in a post-norm block, after) attention.
    pub(crate) attention_norm: Option<String>,
    /// Before (in a post-norm block, after) the MLP; a parallel block without it has one norm for both.
    pub(crate) mlp_norm: Option<String>,
    /// At the end of the branches of attention and MLP, before they are added to the residual stream.
    pub(crate) branch_norms: Option<[String; 2]>,
    /// Queries, keys, values, in this order.
    pub(crate) qkv: Vec<Part>,
    /// Of queries and of keys.
    pub(crate) query_key_norms: Option<[String; 2]>,
    pub(crate) attention_output: Part,
    pub(crate) mlp: MlpNames,
}

/// The names of a block's MLP or experts.
pub(crate) enum MlpNames {
    Dense {
        /// The gate, if there is one, and then the expansion.
        up: Vec<Part>,
        down: Part,
    },
    /// The first of these that the checkpoint has.
    Experts(Vec<ExpertNames>),
}

/// The names of a mixture of experts.
pub(crate) struct ExpertNames {
    /// The router and, behind it, the gate of the shared expert, if there is one.
    pub(crate) router: Vec<String>,
    /// `up` and `down` of the expert with this index; with an index of their number, of the shared one.
    pub(crate) expert: Box<dyn Fn(usize) -> (Vec<Part>, Part)>,
    /// Tensors that may hold all experts but the shared one: `up [experts, gate and expansion, in]` and
    /// `down [experts, out, in]`.
    pub(crate) fused: [String; 2],
}

/// Finds the family of a decoder.
pub(crate) fn of(raw: &RawConfig) -> Result<&'static Family, Error> {
    let model_type = model_type(raw)?;
    match kind(model_type) {
        Some(Kind::Encoder) => Err(Error::Unsupported(format!(
            "{}: model_type `{model_type}` is an encoder: it turns a text into vectors and does not continue it. \
             `int8 embed` (Embedder) runs it",
            raw.file()
        ))),
        Some(Kind::Seq2Seq) => Err(Error::Unsupported(format!(
            "{}: model_type `{model_type}` reads one text and writes another, and is no decoder alone; `int8 run` \
             (Model) runs it",
            raw.file()
        ))),
        Some(Kind::Decoder) | None => find(raw, model_type, FAMILIES, |family| family.model_types),
    }
}

/// Finds the family of an encoder.
pub(crate) fn encoder(raw: &RawConfig) -> Result<&'static EncoderFamily, Error> {
    let model_type = model_type(raw)?;
    match kind(model_type) {
        Some(Kind::Decoder) => Err(Error::Unsupported(format!(
            "{}: model_type `{model_type}` is a decoder: it continues a text and has no sentence embeddings. `int8 run` \
             (Model) runs it",
            raw.file()
        ))),
        Some(Kind::Seq2Seq) => Err(Error::Unsupported(format!(
            "{}: model_type `{model_type}` reads one text and writes another; sentence embeddings of its encoder are not \
             implemented. `int8 run` (Model) runs it",
            raw.file()
        ))),
        Some(Kind::Encoder) | None => find(raw, model_type, ENCODERS, |family| family.model_types),
    }
}

/// Finds the family of a model with an encoder and a decoder.
pub(crate) fn seq2seq(raw: &RawConfig) -> Result<&'static Seq2SeqFamily, Error> {
    find(raw, model_type(raw)?, SEQ2SEQ, |family| family.model_types)
}

fn model_type(raw: &RawConfig) -> Result<&str, Error> {
    let model_type = raw.text_or("model_type", "")?;
    if model_type.is_empty() {
        return Err(raw.problem("model_type", "is missing; it names the model family"));
    }
    Ok(model_type)
}

fn find<F>(
    raw: &RawConfig,
    model_type: &str,
    families: &[&'static F],
    model_types: impl Fn(&F) -> &'static [&'static str],
) -> Result<&'static F, Error> {
    families.iter().copied().find(|family| model_types(family).contains(&model_type)).ok_or_else(|| {
        Error::UnknownFamily {
            file: raw.file().to_owned(),
            model_type: model_type.escape_debug().to_string(),
            supported: supported().join(", "),
        }
    })
}

/// The weights of a checkpoint's linear layers by name, and whether a 16-bit one is stored `[in, out]`; `None` when no
/// family here runs it.
pub(crate) fn linear_weights(raw: &RawConfig, checkpoint: &Checkpoint) -> Option<BTreeMap<String, bool>> {
    let family = of(raw).ok()?;
    let config = (family.config)(raw).ok()?;
    let names = (family.names)(&config);
    let root = names
        .roots
        .iter()
        .find(|root| checkpoint.contains(&format!("{root}{}.weight", names.token_embedding)))?;
    let mut parts = Vec::new();
    for layer in 0..config.layers {
        let layer = (names.layer)(layer);
        parts.extend(layer.qkv.into_iter().chain([layer.attention_output]));
        // Experts are linear layers here and none in transformers: that is for the caller to decide.
        if let MlpNames::Dense { up, down } = layer.mlp {
            parts.extend(up.into_iter().chain([down]));
        }
    }
    parts.extend([names.project_in, names.project_out].into_iter().flatten().map(Part::new));
    let stored = parts.iter().map(Part::stored);
    Some(stored.map(|(name, transposed)| (format!("{root}{name}"), transposed)).collect())
}

/// What models of this `model_type` do; `None` for one that does not run.
pub fn kind(model_type: &str) -> Option<Kind> {
    let is = |types: &[&str]| types.contains(&model_type);
    if FAMILIES.iter().any(|family| is(family.model_types)) {
        Some(Kind::Decoder)
    } else if ENCODERS.iter().any(|family| is(family.model_types)) {
        Some(Kind::Encoder)
    } else if SEQ2SEQ.iter().any(|family| is(family.model_types)) {
        Some(Kind::Seq2Seq)
    } else {
        None
    }
}

/// Every `model_type` that runs.
pub fn supported() -> Vec<&'static str> {
    let decoders = FAMILIES.iter().flat_map(|family| family.model_types);
    let encoders = ENCODERS.iter().flat_map(|family| family.model_types);
    let seq2seq = SEQ2SEQ.iter().flat_map(|family| family.model_types);
    decoders.chain(encoders).chain(seq2seq).copied().collect()
}

/// The three parts of a fused projection whose rows go key head by key head, the rows of the queries that share it, its own
/// and its value's together, as queries, keys, values. With as many key heads as heads each head has three stretches (BLOOM,
/// GPT-NeoX), with one key head all queries come first (Falcon-7B).
pub(crate) fn interleaved_qkv(name: &str, config: &DecoderConfig) -> Vec<Part> {
    let (groups, size) = (config.kv_heads, config.head_size);
    let queries = config.heads / groups;
    [0..queries, queries..queries + 1, queries + 1..queries + 2]
        .into_iter()
        .map(|stretches| {
            let heads = (0..groups)
                .flat_map(|group| stretches.clone().map(move |stretch| group * (queries + 2) + stretch));
            let rows = heads.flat_map(|head| head * size..(head + 1) * size).collect();
            Part::new(name).rows(Rows::Gather { rows, of: groups * (queries + 2) * size })
        })
        .collect()
}

/// All rows of the layer `name`, which makes `heads` heads, reordered so that the rotated pairs `(2i, 2i + 1)` of a family
/// that interleaves them become the pairs `(i, i + dims/2)` of [`crate::config::Rotary`]. Done to queries and keys alike it
/// changes no score.
pub(crate) fn halves_from_pairs(name: &str, heads: usize, config: &DecoderConfig) -> Part {
    let (size, dims) = (config.head_size, config.rotated_dims());
    let order = |d: usize| if d < dims { 2 * (d % (dims / 2)) + d / (dims / 2) } else { d };
    let rows = (0..heads).flat_map(|head| (0..size).map(move |d| head * size + order(d))).collect();
    Part::new(name).rows(Rows::Gather { rows, of: heads * size })
}
