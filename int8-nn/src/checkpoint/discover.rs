//! Which of a folder's files are the weights, and what to say when they are in a format that is not read.

use std::path::Path;

use super::CheckpointError;
use super::outliers::OUTLIERS;
use super::source::Source;
use super::write::RUN_NOTE;

/// The weight files of a checkpoint.
#[derive(Debug)]
pub(super) enum Weights {
    /// One file, by name.
    Single(String),
    /// A shard index, by name.
    Sharded(String),
}

/// The names that Hugging Face gives to weights in one file, and to the index of shards, best first.
const SINGLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const INDEX: [&str; 2] = ["model.safetensors.index.json", "pytorch_model.bin.index.json"];
const INDEX_SUFFIXES: [&str; 2] = [".safetensors.index.json", ".bin.index.json"];

const FIND_SAFETENSORS: &str = "Download the model's safetensors files, which nearly every repository on the Hub offers beside this format";

/// Formats known by a file's name: suffix, name of the format, way out.
const BY_NAME: [(&str, &str, &str); 5] = [
    (".gguf", "GGUF (llama.cpp)", FIND_SAFETENSORS),
    (".h5", "a TensorFlow checkpoint (.h5)", FIND_SAFETENSORS),
    (".msgpack", "a Flax checkpoint (.msgpack)", FIND_SAFETENSORS),
    (".onnx", "ONNX", FIND_SAFETENSORS),
    (".npz", "a NumPy archive (.npz)", FIND_SAFETENSORS),
];

/// Names under which PyTorch checkpoints are saved; what such a file really is, its first bytes say.
const TORCH_SUFFIXES: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];

/// Formats known by a file's first bytes.
const BY_CONTENT: [(&[u8], &str, &str); 6] = [
    (
        b"version https://git-lfs",
        "a Git LFS pointer instead of the file",
        "Run `git lfs pull` in that folder, or download the file from the Hub",
    ),
    (
        b"PK\x03\x04",
        "a zip archive, as PyTorch checkpoints are",
        "If it is one, rename it so that it ends in .bin: a file of that name is opened as what it is",
    ),
    (b"GGUF", "GGUF (llama.cpp)", FIND_SAFETENSORS),
    (b"<!DOCTYPE", "a web page", "The download saved a page instead of the file; download it again"),
    (b"<html", "a web page", "The download saved a page instead of the file; download it again"),
    (b"\x89HDF\r\n\x1a\n", "a TensorFlow checkpoint (HDF5)", FIND_SAFETENSORS),
];

/// Chooses as Hugging Face does: `model.safetensors`, its index, `pytorch_model.bin`, its index; then, beyond it, the only
/// index or the only file of weights.
pub(super) fn weights(source: &Source) -> Result<Weights, CheckpointError> {
    if source.is_present(RUN_NOTE) {
        return Err(CheckpointError::Incomplete { folder: source.label(""), note: RUN_NOTE });
    }
    for (single, index) in SINGLE.into_iter().zip(INDEX) {
        if source.is_present(single) {
            return Ok(Weights::Single(single.to_owned()));
        }
        if source.is_present(index) {
            return Ok(Weights::Sharded(index.to_owned()));
        }
    }
    let names = source.names()?;
    let indices: Vec<_> = names.iter().filter(|name| is_index(name)).collect();
    if let [index] = indices[..] {
        return Ok(Weights::Sharded(index.clone()));
    }
    let is_adapter = |name: &str| name.starts_with("adapter_model");
    let is_weights = |name: &str| !is_adapter(name) && !is_other_torch(name) && name != OUTLIERS;
    let of_kind = |suffixes: &[&str]| -> Vec<_> {
        let fits = |name: &String| suffixes.iter().any(|suffix| name.ends_with(suffix)) && is_weights(name);
        names.iter().filter(|name| fits(name)).collect()
    };
    let mut singles = of_kind(&[".safetensors"]);
    let mut index = INDEX[0];
    if singles.is_empty() {
        (singles, index) = (of_kind(&TORCH_SUFFIXES), INDEX[1]);
    }
    if let [single] = singles[..] {
        if is_part(single) {
            return Err(CheckpointError::MissingFile {
                file: source.label(index),
                needed_for: format!("{} is one shard of several", single.escape_debug()),
            });
        }
        return Ok(Weights::Single(single.clone()));
    }
    let folder = source.label("");
    if !singles.is_empty() {
        return Err(CheckpointError::AmbiguousWeights { folder, found: listed(&singles) });
    }
    if let Some(adapter) = names.iter().find(|name| is_adapter(name)) {
        return Err(CheckpointError::UnsupportedFormat {
            file: source.label(adapter),
            format: "a LoRA adapter without its base model",
            help: "Merge it into the base model in Python (PeftModel.merge_and_unload) and save that",
        });
    }
    for (suffix, format, help) in BY_NAME {
        if let Some(name) = names.iter().find(|name| name.ends_with(suffix)) {
            return Err(CheckpointError::UnsupportedFormat { file: source.label(name), format, help });
        }
    }
    let found =
        if names.is_empty() { "no files".to_owned() } else { listed(&names.iter().collect::<Vec<_>>()) };
    Err(CheckpointError::NoWeights { folder, found })
}

/// Whether a file of this name is a shard index.
pub(super) fn is_index(name: &str) -> bool {
    INDEX_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether a file of this name is a PyTorch checkpoint.
pub(super) fn is_torch(name: &str) -> bool {
    TORCH_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether a training saves something else than weights under this name.
fn is_other_torch(name: &str) -> bool {
    ["training_args", "optimizer", "scheduler", "rng_state", "scaler"]
        .iter()
        .any(|stem| name.starts_with(stem))
}

/// Whether a name says that the file is one shard of several: `NAME-00001-of-00003.safetensors`.
fn is_part(name: &str) -> bool {
    let stem = name.rsplit_once('.').map(|(stem, _)| stem);
    let count = stem.and_then(|stem| stem.rsplit_once("-of-"));
    count.is_some_and(|(_, count)| count.parse::<u64>().is_ok_and(|count| count > 1))
}

/// Refuses a file whose name gives another format away; called for a file that was named directly.
pub(super) fn check_name(path: &Path) -> Result<(), CheckpointError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let known = BY_NAME.into_iter().find(|(suffix, ..)| name.ends_with(suffix));
    match known {
        Some((_, format, help)) => {
            Err(CheckpointError::UnsupportedFormat { file: path.display().to_string(), format, help })
        }
        None => Ok(()),
    }
}

/// Refuses a file whose first bytes give another format away, whatever its name says.
pub(super) fn check_content(file: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
    match BY_CONTENT.into_iter().find(|(magic, ..)| bytes.starts_with(magic)) {
        Some((_, format, help)) => {
            Err(CheckpointError::UnsupportedFormat { file: file.to_owned(), format, help })
        }
        None => Ok(()),
    }
}

/// The first few names as text.
fn listed(names: &[&String]) -> String {
    /// Enough to recognise a folder by, few enough for a message.
    const SHOWN: usize = 6;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| name.escape_debug().to_string()).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
