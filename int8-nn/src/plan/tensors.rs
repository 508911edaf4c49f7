//! Shapes from names and dimensions of tensors, as in a header without its weights.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Shape, product, sum};
use crate::Error;
use crate::checkpoint::{Checkpoint, DType, foreign_format};
use crate::checks::{self, MOST_LAYERS};
use crate::config::{DecoderConfig, RawConfig};
use crate::convert::bytes as wide;
use crate::families;

impl Shape {
    /// The shape of a checkpoint: weights from its tensors, tied ones once; KV cache and activations from `config.json`, if
    /// its family is supported.
    ///
    /// # Errors
    /// When `config.json` exists and cannot be read, or the weights are quantised in a format that is not read.
    pub fn of_checkpoint(name: impl Into<String>, checkpoint: &Checkpoint) -> Result<Self, Error> {
        let source = checkpoint.source();
        let config = match source.contains("config.json") {
            true => Some((source.label("config.json"), source.read_config()?)),
            false => None,
        };
        refuse_quantization(config.as_ref())?;
        checkpoint.refuse_foreign()?;
        let tensors = checkpoint.tensors().filter(|tensor| checkpoint.tied_to(tensor.name()).is_none());
        let tensors = tensors.map(|tensor| {
            let shape = tensor.shape().iter().map(|&dim| wide(dim)).collect();
            (tensor.name(), shape, tensor.dtype() == DType::F32)
        });
        of_tensors(name.into(), tensors, decoder(config).as_ref())
    }

    /// The shape of a model from `config.json` and safetensors headers, each with its file name, as `hub::Hub::headers`
    /// downloads them.
    ///
    /// # Errors
    /// [`Error::Input`] when these do not determine the weights, a header is no JSON, or the weights are quantised in a format
    /// that is not read.
    pub fn of_headers(name: impl Into<String>, files: &[(String, Vec<u8>)]) -> Result<Self, Error> {
        let name = name.into();
        let mut config = None;
        let mut tensors: Vec<(String, Vec<u64>, bool)> = Vec::new();
        for (file, bytes) in files {
            let json: Value = serde_json::from_slice(bytes)
                .map_err(|error| Error::Input(format!("{name}: {file}: expected JSON: {error}")))?;
            if file == "config.json" {
                config = Some((format!("{name}/{file}"), json));
                continue;
            }
            for (tensor, entry) in json.as_object().into_iter().flatten() {
                if let Some(shape) = entry["shape"].as_array() {
                    let shape = shape.iter().filter_map(Value::as_u64).collect();
                    tensors.push((tensor.clone(), shape, entry["dtype"] == "F32"));
                }
            }
        }
        refuse_quantization(config.as_ref())?;
        let names: BTreeSet<&str> = tensors.iter().map(|(tensor, ..)| tensor.as_str()).collect();
        let is_there = |name: &str| names.contains(name);
        if let Some(format) = names.iter().find_map(|tensor| foreign_format(tensor, is_there)) {
            return Err(Error::Input(format!(
                "{name}: the weights are quantised as {format}, which is not read; plan the model's 16-bit version"
            )));
        }
        let decoder = decoder(config);
        match (&decoder, tensors.is_empty()) {
            // No tensors bound the number.
            (Some(config), true) if config.layers > MOST_LAYERS => Err(Error::Input(format!(
                "{name}: config.json says {} layers; at most {MOST_LAYERS} are counted without the weights",
                config.layers
            ))),
            // No safetensors: biases are a ten-thousandth of the weights.
            (Some(config), true) => Ok(Self::of_decoder(name, config, true)),
            (None, true) => Err(Error::Input(format!(
                "{name}: there are no safetensors headers, and config.json is not one of a known decoder, so the weights \
                 cannot be counted without downloading them; download the model first"
            ))),
            (_, false) => {
                let tensors =
                    tensors.iter().map(|(tensor, shape, full)| (tensor.as_str(), shape.clone(), *full));
                of_tensors(name, tensors, decoder.as_ref())
            }
        }
    }
}

/// The decoder of a configuration, if its family is supported; without it KV cache and activations are unknown.
fn decoder(config: Option<(String, Value)>) -> Option<DecoderConfig> {
    let (file, json) = config?;
    let raw = RawConfig::from_json(file, json).ok()?;
    let family = families::of(&raw).ok()?;
    (family.config)(&raw).ok()
}

fn refuse_quantization(config: Option<&(String, Value)>) -> Result<(), Error> {
    match config {
        Some((file, json)) => checks::refuse_quantization(&RawConfig::from_json(file.clone(), json.clone())?),
        None => Ok(()),
    }
}

/// `tensors`: name, shape, and whether it is stored in F32.
fn of_tensors<'a>(
    name: String,
    tensors: impl Iterator<Item = (&'a str, Vec<u64>, bool)>,
    config: Option<&DecoderConfig>,
) -> Result<Shape, Error> {
    let (mut linear, mut outputs, mut embeddings, mut head, mut other) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let mut blocks = BTreeSet::new();
    let mut embeddings_are_f32 = false;
    for (tensor, mut shape, is_f32) in tensors {
        // Of weights that are int8 already, or MXFP4.
        let scales = [".SCB", ".weight_format", "_proj_scales"];
        if scales.iter().any(|suffix| tensor.ends_with(suffix)) {
            continue;
        }
        // MXFP4: 16 bytes hold 32 weights.
        if let ([.., bytes @ 16], true) = (&mut shape[..], tensor.ends_with("_proj_blocks")) {
            *bytes = 32;
        }
        let values = product(&shape);
        let block = block(tensor);
        blocks.extend(block);
        let has = |words: &[&str]| words.iter().any(|word| tensor.contains(word));
        let add = |total: &mut u64| *total = total.saturating_add(values);
        match (block, &shape[..]) {
            (_, [] | [_]) => add(&mut other),
            (Some(_), [first, second, ..])
                if *first > 1
                    && *second > 1
                    && !has(&[
                        "embed",
                        "norm",
                        "relative_attention_bias",
                        "router",
                        "gate.weight",
                        "A_log",
                    ]) =>
            {
                // For Conv1D the other side is the output; it only counts scales.
                outputs = outputs.saturating_add(values / second.max(&1));
                add(&mut linear);
            }
            (None, _) if has(&["lm_head", "embed_out", "output.weight"]) => {
                embeddings_are_f32 |= is_f32;
                add(&mut head);
            }
            (None, _) if has(&["embed", "wte", "wpe", "shared.weight", "tok"]) => {
                embeddings_are_f32 |= is_f32;
                add(&mut embeddings);
            }
            _ => add(&mut other),
        }
    }
    if let Some(config) = config.filter(|config| config.layers > blocks.len()) {
        return Err(Error::Input(format!(
            "{name}: config.json says {} layers, and the files have tensors of {}; the download or conversion is not complete, or \
             the configuration is another model's",
            config.layers,
            blocks.len()
        )));
    }
    let known = config.map(|config| Shape::of_decoder("", config, true)).unwrap_or_default();
    // Files may hold the tied embedding again as the head, or as the head alone.
    let table = config.map_or(0, |config| product(&[wide(config.vocab_size), wide(config.embedding_size)]));
    let (embeddings, head) = match config.is_some_and(|config| config.tied_embeddings) {
        true if embeddings < table => (sum(&[embeddings, head]), 0),
        true => (embeddings, 0),
        false => (embeddings, head),
    };
    Ok(Shape {
        name,
        blocks: wide(blocks.len()),
        linear,
        linear_outputs: outputs,
        embeddings: sum(&[embeddings]),
        head,
        other,
        embeddings_are_f32,
        ..known
    })
}

/// The part of a name up to its first number, the block's: `model.layers.17`.
fn block(tensor: &str) -> Option<&str> {
    let mut end = 0;
    for part in tensor.split('.') {
        end += part.len();
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return tensor.get(..end);
        }
        end += 1;
    }
    None
}
