//! The model families. Each file maps one family's `config.json` onto [`DecoderConfig`] and names its tensors; the
//! arithmetic is in [`crate::decoder`]. A new family is one file here, one line in `FAMILIES` and one golden.

mod afmoe;
mod albert;
mod apertus;
mod aria;
mod bart;
mod bert;
mod biogpt;
mod bitnet;
mod bloom;
mod codegen;
mod cohere;
mod dbrx;
mod deberta;
mod diffllama;
mod electra;
mod eurobert;
mod exaone;
mod falcon;
mod falcon_h1;
mod flint;
mod gemma;
mod gemma3n;
mod gemma4;
mod glm_moe;
mod gpt2;
mod gpt_bigcode;
mod gpt_neo;
mod gpt_neox;
mod gpt_neox_japanese;
mod gpt_oss;
mod gptj;
mod granite;
mod hunyuan;
mod hybrid;
mod interleaved;
mod kimi_linear;
mod latent;
mod lfm;
mod llama;
mod llama4;
mod mamba;
mod mimo;
mod minimax;
mod minimax_m3;
mod mixtral;
mod modernbert;
mod moe;
mod mpnet;
mod mpt;
mod multimodal;
mod names;
mod nemotron_h;
mod nomic;
mod olmo2;
mod olmo_hybrid;
mod openai;
mod opt;
mod persimmon;
mod phi;
mod phi3;
mod phimoe;
mod qwen_moe;
mod qwen_next;
mod recurrent;
mod sinusoidal;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod ungated;
mod whisper;
mod zamba;

use std::collections::BTreeMap;

use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::config::{DecoderConfig, EncoderConfig, RawConfig, Seq2SeqConfig};
pub use crate::kind::Kind;
use crate::weights::{Part, Rows};

use names::Module;
pub(crate) use names::{
    BesideNames, CrossNames, CrossNamesOf, DistanceNames, EncoderNames, ExpertNames, IndexNames, InputNames,
    LatentNames, LayerInputNames, LayerNames, MlpNames, Seq2SeqNames, SourceNames, StreamLayerNames,
    TensorNames,
};
pub(crate) use recurrent::{LinearNames, RecurrentNames, SharedNames, StateSpaceNames};

/// A family of decoders.
pub(crate) struct Family {
    /// Its values of `model_type`.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<DecoderConfig, Error>,
    /// Names the tensors.
    pub(crate) names: fn(&DecoderConfig) -> TensorNames,
}

/// Decoders.
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
    &llama::ALIASES,
    &interleaved::FAMILY,
    &granite::FAMILY,
    &exaone::FAMILY,
    &ungated::FAMILY,
    &persimmon::FAMILY,
    &hunyuan::FAMILY,
    &phimoe::FAMILY,
    &glm_moe::FAMILY,
    &latent::FAMILY,
    &gpt_oss::FAMILY,
    &llama4::FAMILY,
    &biogpt::FAMILY,
    &multimodal::FAMILY,
    &codegen::FAMILY,
    &gpt_neox_japanese::FAMILY,
    &openai::FAMILY,
    &mamba::FAMILY,
    &hybrid::FAMILY,
    &falcon_h1::FAMILY,
    &nemotron_h::FAMILY,
    &zamba::FAMILY,
    &flint::FAMILY,
    &sinusoidal::FAMILY,
    &dbrx::FAMILY,
    &apertus::FAMILY,
    &afmoe::FAMILY,
    &bitnet::FAMILY,
    &aria::FAMILY,
    &gemma3n::FAMILY,
    &gemma4::FAMILY,
    &mimo::FAMILY,
    &diffllama::FAMILY,
    &modernbert::FAMILY,
    &minimax_m3::FAMILY,
    &qwen_next::FAMILY,
    &lfm::FAMILY,
    &minimax::FAMILY,
    &olmo_hybrid::FAMILY,
    &kimi_linear::FAMILY,
];

/// A family of encoders.
pub(crate) struct EncoderFamily {
    /// Its values of `model_type`.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<EncoderConfig, Error>,
    /// Names the tensors.
    pub(crate) names: fn(&EncoderConfig) -> EncoderNames,
}

/// Encoders.
pub(crate) const ENCODERS: &[&EncoderFamily] = &[
    &bert::FAMILY,
    &bert::DISTILBERT,
    &mpnet::FAMILY,
    &modernbert::ENCODER,
    &nomic::FAMILY,
    &electra::FAMILY,
    &albert::FAMILY,
    &eurobert::FAMILY,
    &deberta::FAMILY,
];

/// A family of encoder-decoders.
pub(crate) struct Seq2SeqFamily {
    /// Its values of `model_type`.
    pub(crate) model_types: &'static [&'static str],
    /// Reads `config.json`.
    pub(crate) config: fn(&RawConfig) -> Result<Seq2SeqConfig, Error>,
    /// Names the tensors, from the decoder's configuration.
    pub(crate) names: fn(&DecoderConfig) -> Seq2SeqNames,
}

/// Encoder-decoders.
pub(crate) const SEQ2SEQ: &[&Seq2SeqFamily] = &[&t5::FAMILY, &bart::FAMILY];

/// The token that the decoder of an encoder-decoder begins with: `decoder_start_token_id`, or the one under `otherwise`.
fn start_token(raw: &RawConfig, decoder: &DecoderConfig, otherwise: &str) -> Result<u32, Error> {
    const START: &str = "decoder_start_token_id";
    let start = raw.token_ids(START)?.first().copied();
    let start = start.or(raw.token_ids(otherwise)?.first().copied()).unwrap_or(0);
    if crate::convert::index(start) >= decoder.vocab_size {
        return Err(
            raw.problem(START, format!("is {start}, outside the vocabulary of {}", decoder.vocab_size))
        );
    }
    Ok(start)
}

/// Encoder-decoders whose source is speech.
pub(crate) const SPEECH: &[&Seq2SeqFamily] = &[&whisper::FAMILY];

/// Finds the family of a decoder.
pub(crate) fn of(raw: &RawConfig) -> Result<&'static Family, Error> {
    let model_type = model_type_of(raw, Kind::Decoder)?;
    find(raw, model_type, FAMILIES, |family| family.model_types)
}

/// Finds the family of an encoder.
pub(crate) fn encoder(raw: &RawConfig) -> Result<&'static EncoderFamily, Error> {
    let model_type = model_type_of(raw, Kind::Encoder)?;
    find(raw, model_type, ENCODERS, |family| family.model_types)
}

/// Finds the family of an encoder-decoder.
pub(crate) fn seq2seq(raw: &RawConfig) -> Result<&'static Seq2SeqFamily, Error> {
    let model_type = model_type(raw)?;
    let families = if kind(model_type) == Some(Kind::Speech) { SPEECH } else { SEQ2SEQ };
    find(raw, model_type, families, |family| family.model_types)
}

/// Refuses a model of any other kind than speech.
pub(crate) fn require_speech(raw: &RawConfig) -> Result<(), Error> {
    let model_type = model_type_of(raw, Kind::Speech)?;
    find(raw, model_type, SPEECH, |family| family.model_types).map(drop)
}

fn model_type(raw: &RawConfig) -> Result<&str, Error> {
    let model_type = raw.text_or("model_type", "")?;
    if model_type.is_empty() {
        return Err(raw.problem("model_type", "is missing; it names the model family"));
    }
    Ok(model_type)
}

/// `model_type`, refused where it is known to be of another kind.
fn model_type_of(raw: &RawConfig, expected: Kind) -> Result<&str, Error> {
    let model_type = model_type(raw)?;
    match kind(model_type) {
        Some(kind) if kind != expected => {
            Err(Error::WrongKind { file: raw.file().to_owned(), model_type: model_type.to_owned(), kind })
        }
        _ => Ok(model_type),
    }
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

/// The weights of a checkpoint's linear layers by name, and whether a 16-bit one is stored `[in, out]`; `None` for a model
/// that is no supported decoder.
pub(crate) fn linear_weights(raw: &RawConfig, checkpoint: &Checkpoint) -> Option<BTreeMap<String, bool>> {
    let family = of(raw).ok()?;
    let config = (family.config)(raw).ok()?;
    let names = (family.names)(&config);
    let checkpoint = &checkpoint.with_other_names(names.other_names);
    let known = known_modules(&names);
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let root = root(checkpoint, names.roots, &known);
    let mut parts = Vec::new();
    for layer in 0..config.layers {
        let layer = (names.layer)(layer);
        let first = parts.len();
        let latent = layer.latent.map(LatentNames::parts).into_iter().flatten();
        let recurrent = layer.recurrent.map(RecurrentNames::parts).into_iter().flatten();
        parts.extend(
            layer
                .qkv
                .into_iter()
                .chain(latent)
                .chain(layer.attention_output)
                .chain(layer.gate)
                .chain(recurrent),
        );
        parts.extend(layer.shared.map(SharedNames::parts).into_iter().flatten());
        parts.extend(layer.layer_input.into_iter().flat_map(|names| [names.gate, names.projection]));
        parts.extend(layer.streams.into_iter().flat_map(|names| {
            let small = [Part::new(&names.prediction), Part::new(&names.correction), names.router];
            small.into_iter().chain(names.low)
        }));
        // A configuration may name any number of layers: the weights that exist bound the work.
        if !parts[first..]
            .iter()
            .any(|part: &Part| checkpoint.contains(&format!("{root}{}", part.stored().0)))
        {
            break;
        }
        // Experts are no linear layers in transformers: left to the caller.
        if let MlpNames::Dense { up, down } = layer.mlp {
            parts.extend(up.into_iter().chain([down]));
        }
    }
    parts.extend([names.project_in, names.project_out].into_iter().flatten().map(Part::new));
    parts.extend(names.layer_inputs.map(|inputs| Part::new(inputs.projection)));
    // Outside the root.
    let dense = names.head_transform.map(|[dense, _]| (format!("{dense}.weight"), false));
    let ends = names.streams.into_iter().flatten();
    let count = config.streams.map_or(0, |streams| streams.count - 1);
    parts.extend(ends.flat_map(|end| (0..count).map(move |index| Part::new(&format!("{end}.{index}")))));
    let stored = parts.iter().map(Part::stored).map(|(name, transposed)| {
        let name = format!("{root}{name}");
        // The name that the tensor has in this checkpoint.
        let name = checkpoint.get(&name).map_or(name, |tensor| tensor.name().to_owned());
        (name, transposed)
    });
    Some(stored.chain(dense).collect())
}

/// The root under which this checkpoint keeps a model's tensors, by the names of some of its modules below it, of which a
/// checkpoint may lack one; the first root if it keeps them nowhere, so that the error names what was expected.
pub(crate) fn root(
    checkpoint: &Checkpoint,
    roots: &'static [&'static str],
    modules: &[&str],
) -> &'static str {
    let held =
        |root: &&&str| modules.iter().any(|module| checkpoint.contains(&format!("{root}{module}.weight")));
    roots.iter().find(held).or(roots.first()).copied().unwrap_or_default()
}

/// Modules by which the root of the names is found: the embedding, and the first norm or projection of the first block, because
/// a checkpoint with tied weights may hold only the head.
pub(crate) fn known_modules(names: &TensorNames) -> Vec<String> {
    let first = (names.layer)(0);
    let block = first
        .attention_norm
        .or(first.mlp_norm)
        .or_else(|| first.qkv.first().map(|part| part.name().to_owned()));
    std::iter::once(names.token_embedding.to_owned()).chain(block).collect()
}

/// The kind of models of this `model_type`; `None` for one that is not supported.
pub fn kind(model_type: &str) -> Option<Kind> {
    let is = |types: &[&str]| types.contains(&model_type);
    if FAMILIES.iter().any(|family| is(family.model_types)) {
        Some(Kind::Decoder)
    } else if ENCODERS.iter().any(|family| is(family.model_types)) {
        Some(Kind::Encoder)
    } else if SEQ2SEQ.iter().any(|family| is(family.model_types)) {
        Some(Kind::Seq2Seq)
    } else if SPEECH.iter().any(|family| is(family.model_types)) {
        Some(Kind::Speech)
    } else {
        None
    }
}

/// Whether models of this `model_type` also read images or audio, which are not computed: only text is.
pub fn is_text_part(model_type: &str) -> bool {
    multimodal::FAMILY.model_types.contains(&model_type)
        || ["llama4", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "phi4_multimodal"]
            .contains(&model_type)
}

/// Every supported `model_type`.
pub fn supported() -> Vec<&'static str> {
    let decoders = FAMILIES.iter().flat_map(|family| family.model_types);
    let encoders = ENCODERS.iter().flat_map(|family| family.model_types);
    let seq2seq = SEQ2SEQ.iter().chain(SPEECH).flat_map(|family| family.model_types);
    decoders.chain(encoders).chain(seq2seq).copied().collect()
}

/// Queries, keys and values of a fused projection whose output channels are grouped by key head: the heads of the queries
/// that share it, the key, the value. With as many key heads as query heads, each group is three heads (BLOOM, GPT-NeoX);
/// with one key head, all queries come first (Falcon-7B).
fn interleaved_qkv(name: &str, config: &DecoderConfig) -> Vec<Part> {
    let (groups, size) = (config.kv_heads, config.head_size);
    let queries = config.heads / groups;
    let per_group = queries + 2;
    [0..queries, queries..queries + 1, queries + 1..per_group]
        .into_iter()
        .map(|members| {
            let heads =
                (0..groups).flat_map(|group| members.clone().map(move |head| group * per_group + head));
            let rows = heads.flat_map(|head| head * size..(head + 1) * size).collect();
            Part::new(name).rows(Rows::Gather { rows, of: groups * per_group * size })
        })
        .collect()
}

/// The output channels of the layer `name` of `heads` heads, reordered so that interleaved rotary pairs `(2i, 2i + 1)` become
/// the pairs `(i, i + dims/2)` of [`crate::config::Rotary`]. Done to queries and keys alike it changes no score.
fn deinterleaved(name: &str, heads: usize, config: &DecoderConfig) -> Part {
    let (size, order) = (config.head_size, &deinterleaved_order(config));
    let rows = (0..heads).flat_map(|head| order.iter().map(move |place| head * size + place)).collect();
    Part::new(name).rows(Rows::Gather { rows, of: heads * size })
}

/// The stored place of each dimension of a head that [`deinterleaved`] reorders.
fn deinterleaved_order(config: &DecoderConfig) -> Vec<usize> {
    let dims = config.rotated_dims();
    (0..config.head_size).map(|d| if d < dims { 2 * (d % (dims / 2)) + d / (dims / 2) } else { d }).collect()
}
