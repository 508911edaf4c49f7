//! Which of a folder's files are the weights.

use super::format::FileFormat;
use super::outliers::OUTLIERS;
use super::source::Source;
use super::write::RUN_NOTE;
use super::{CheckpointError, foreign};

/// The weight files of a checkpoint.
#[derive(Debug)]
pub(super) enum Weights {
    /// One file, by name.
    Single(String),
    /// A shard index, by name.
    Sharded(String),
}

/// Hugging Face's order: `model.safetensors`, its index, `pytorch_model.bin`, its index; then the only index or the only
/// weight file.
pub(super) fn weights(source: &Source) -> Result<Weights, CheckpointError> {
    if source.is_present(RUN_NOTE) {
        return Err(CheckpointError::Incomplete { folder: source.label(""), note: RUN_NOTE });
    }
    for format in FileFormat::ALL {
        if source.is_present(format.single()) {
            return Ok(Weights::Single(format.single().to_owned()));
        }
        if source.is_present(format.index()) {
            return Ok(Weights::Sharded(format.index().to_owned()));
        }
    }
    let names = source.names()?;
    let indices: Vec<_> = names.iter().filter(|name| FileFormat::is_index(name)).collect();
    if let [index] = indices[..] {
        return Ok(Weights::Sharded(index.clone()));
    }
    let is_adapter = |name: &str| name.starts_with("adapter_model");
    let is_weights = |name: &str| !is_adapter(name) && !is_other_torch(name) && name != OUTLIERS;
    let of = |format: FileFormat| {
        let files = names.iter().filter(|name| format.is_name(name) && is_weights(name));
        (format, files.collect::<Vec<_>>())
    };
    let found = FileFormat::ALL.map(of).into_iter().find(|(_, files)| !files.is_empty());
    let (format, singles) = found.unwrap_or((FileFormat::Safetensors, Vec::new()));
    if let [single] = singles[..] {
        if is_part(single) {
            return Err(CheckpointError::MissingFile {
                file: source.label(format.index()),
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
    for (suffix, format, help) in foreign::BY_NAME {
        if let Some(name) = names.iter().find(|name| name.ends_with(suffix)) {
            return Err(CheckpointError::UnsupportedFormat { file: source.label(name), format, help });
        }
    }
    let found =
        if names.is_empty() { "no files".to_owned() } else { listed(&names.iter().collect::<Vec<_>>()) };
    Err(CheckpointError::NoWeights { folder, found })
}

/// Whether training saves something else under this name.
fn is_other_torch(name: &str) -> bool {
    ["training_args", "optimizer", "scheduler", "rng_state", "scaler"]
        .iter()
        .any(|stem| name.starts_with(stem))
}

/// Whether a name is that of one shard of several: `NAME-00001-of-00003.safetensors`.
fn is_part(name: &str) -> bool {
    let stem = name.rsplit_once('.').map(|(stem, _)| stem);
    let count = stem.and_then(|stem| stem.rsplit_once("-of-"));
    count.is_some_and(|(_, count)| count.parse::<u64>().is_ok_and(|count| count > 1))
}

/// The first few names as text.
fn listed(names: &[&String]) -> String {
    /// Enough to recognise a folder.
    const SHOWN: usize = 6;
    let shown: Vec<_> = names.iter().take(SHOWN).map(|name| name.escape_debug().to_string()).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
