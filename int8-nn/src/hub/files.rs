//! Which of a repository's files a model needs.

use std::path::Path;

use super::{HubError, ModelId};
use crate::checkpoint::FileFormat;

/// The weights of a repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// One file.
    Single(String),
    /// An index of shards.
    Index(String),
}

/// The files beside the weights that some model needs: configuration, tokenizer in all its forms, chat template, pooling of
/// sentence encoders.
const SMALL: [&str; 17] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
];

/// The small files that are there, and the weights: in safetensors if there are any.
pub(super) fn needed(id: &ModelId, names: &[String]) -> Result<(Vec<String>, Weights), HubError> {
    let has = |name: &str| names.iter().any(|known| known == name);
    let small = SMALL.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).collect();
    for format in FileFormat::ALL {
        if has(format.single()) {
            return Ok((small, Weights::Single(format.single().to_owned())));
        }
        if has(format.index()) {
            return Ok((small, Weights::Index(format.index().to_owned())));
        }
    }
    let others: Vec<_> =
        names.iter().filter(|name| name.ends_with(".safetensors") && !name.contains('/')).collect();
    match others[..] {
        [only] if !only.starts_with("adapter_model") => Ok((small, Weights::Single(only.clone()))),
        _ => {
            /// Enough to recognise a repository by.
            const SHOWN: usize = 6;
            let mut shown: Vec<_> = names.iter().map(|name| name.escape_debug().to_string()).collect();
            shown.truncate(SHOWN);
            let found = if shown.is_empty() { "no files".to_owned() } else { shown.join(", ") };
            Err(HubError::NoWeights { id: id.to_string(), found })
        }
    }
}

/// The files that an index on disk names, each once.
pub(super) fn shards(path: &Path, index: &str) -> Result<Vec<String>, HubError> {
    let text = std::fs::read(path).map_err(|source| HubError::Io {
        path: path.display().to_string(),
        operation: "read this file",
        source,
    })?;
    shards_of(&text, index)
}

/// The files that an index of this text names, each once, sorted.
pub(super) fn shards_of(text: &[u8], index: &str) -> Result<Vec<String>, HubError> {
    let wrong = |reason: String| HubError::Answer { url: index.to_owned(), reason };
    let json: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| wrong(format!("no JSON: {error}")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| wrong("no `weight_map`".to_owned()))?;
    let mut shards: Vec<_> = map.values().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    shards.sort_unstable();
    shards.dedup();
    match shards.iter().find(|name| !crate::checkpoint::is_safe_name(name)) {
        Some(name) => Err(wrong(format!("`{}` leads out of the folder", name.escape_debug()))),
        None => Ok(shards),
    }
}

/// Whether everything a model needs is in a folder.
pub(super) fn is_complete(id: &ModelId, folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let is_there = |name: &String| folder.join(name).is_file();
    match needed(id, &names) {
        Ok((small, weights)) => {
            let weights = match weights {
                Weights::Single(name) => Ok(vec![name]),
                Weights::Index(index) => shards(&folder.join(&index), &index),
            };
            small.iter().all(is_there) && weights.is_ok_and(|weights| weights.iter().all(is_there))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(names: &[&str]) -> Result<Weights, HubError> {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        needed(&"a/b".parse().unwrap(), &names).map(|(_, weights)| weights)
    }

    #[test]
    fn safetensors_come_first_and_one_format_is_enough() {
        let single = |name: &str| Weights::Single(name.to_owned());
        assert_eq!(
            weights(&["pytorch_model.bin", "model.safetensors"]).unwrap(),
            single("model.safetensors")
        );
        assert_eq!(weights(&["pytorch_model.bin", "tf_model.h5"]).unwrap(), single("pytorch_model.bin"));
        assert_eq!(weights(&["other.safetensors", "x/y.safetensors"]).unwrap(), single("other.safetensors"));
        let index = "pytorch_model.bin.index.json";
        assert_eq!(
            weights(&[index, "pytorch_model-00001-of-00002.bin"]).unwrap(),
            Weights::Index(index.into())
        );
        for names in
            [&["model.gguf"][..], &[], &["a.safetensors", "b.safetensors"], &["adapter_model.safetensors"]]
        {
            assert!(matches!(weights(names), Err(HubError::NoWeights { .. })), "{names:?}");
        }
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let shards = |text: &str| shards_of(text.as_bytes(), "index");
        let found = shards(r#"{"weight_map":{"a":"2.bin","b":"1.bin","c":"2.bin"}}"#).unwrap();
        assert_eq!(found, ["1.bin", "2.bin"]);
        for text in [r#"{"weight_map":{"a":"../x"}}"#, "{}", "[", r#"{"weight_map":{"a":"/etc/passwd"}}"#] {
            assert!(matches!(shards(text), Err(HubError::Answer { .. })), "{text}");
        }
    }
}
