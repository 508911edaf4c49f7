//! What the integration tests share: test data, golden files, checkpoints with a changed `config.json`.
#![allow(clippy::print_stderr, reason = "says what it skips")]
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};

use int8_nn::checkpoint::Checkpoint;
use int8_nn::{GenerateOptions, Model};
use serde_json::Value;
use tempfile::TempDir;

/// Twelve ids that every tiny vocabulary holds.
pub(crate) const IDS: [u32; 12] = [5, 17, 3, 42, 8, 29, 11, 60, 2, 33, 7, 19];

/// The crate's folder: where cargo says it is now, which on another machine is not where it was compiled.
fn manifest() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A path below `tests/data`.
pub(crate) fn data(path: &str) -> PathBuf {
    manifest().join("tests/data").join(path)
}

/// A folder of `../shared` beside the project; `None`, with a note, where it is absent.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    let folder = manifest().join("../../shared").join(path);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: {} is not there", folder.display());
    None
}

/// The folders in `tests/data/{path}`, sorted.
pub(crate) fn folders(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(data(path)).expect("the test data");
    let mut folders: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    folders
}

/// The tiny checkpoints of six families.
pub(crate) fn families() -> [PathBuf; 6] {
    ["bloom", "gpt2", "gpt_neox", "llama", "opt", "qwen2"].map(|family| data("models").join(family))
}

pub(crate) fn float(folder: &Path) -> Model {
    Model::load(folder).and_then(int8_nn::Loader::build).expect("a model")
}

/// `count` new tokens, whatever they are.
pub(crate) fn exactly(count: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens: count, stop_at_eos: false, ..GenerateOptions::default() }
}

/// A golden file: what the reference implementation computed from a checkpoint.
pub(crate) struct GoldenFile(Checkpoint);

impl GoldenFile {
    pub(crate) fn open(folder: &Path) -> Self {
        Self(Checkpoint::open(folder.join("golden.safetensors")).expect("a golden file"))
    }

    pub(crate) fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let ids = self.0.get(name)?.to_vec::<i32>().expect("i32");
        Some(ids.into_iter().map(|id| u32::try_from(id).expect("an id")).collect())
    }

    /// The rows of `name`, `[texts, longest]`.
    pub(crate) fn rows(&self, name: &str) -> Vec<Vec<u32>> {
        let width = self.shape(name)[1];
        self.ids(name).expect("ids").chunks(width).map(<[u32]>::to_vec).collect()
    }

    /// The rows of `input_ids`, cut to `lengths` if the file has them.
    pub(crate) fn texts(&self) -> Vec<Vec<u32>> {
        let mut texts = self.rows("input_ids");
        for (text, length) in texts.iter_mut().zip(self.ids("lengths").unwrap_or_default()) {
            text.truncate(usize::try_from(length).expect("small"));
        }
        texts
    }

    pub(crate) fn floats(&self, name: &str) -> Option<Vec<f32>> {
        self.0.get(name).map(|tensor| tensor.to_f32().expect("f32"))
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        self.0.tensor(name).expect("a tensor").shape()
    }
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// The weights of `source` beside this `config.json`.
pub(crate) fn with_config(source: &Path, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).expect("the weights");
    fs::write(folder.path().join("config.json"), config.to_string()).expect("a config");
    folder
}

/// Changes of keys of `config.json`; `null` removes one.
pub(crate) type Changes = Vec<(&'static str, Value)>;

/// The checkpoint `source` with these changes.
pub(crate) fn changed(source: &Path, changes: &[(&str, Value)]) -> TempDir {
    let mut config = read_json(&source.join("config.json"));
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    with_config(source, &config)
}

/// A checkpoint, changes of its config, and words that the error must have.
pub(crate) type Case = (&'static str, Changes, Vec<&'static str>);

/// Collects all cases whose `error`, of loading and running the changed checkpoint, is absent, late or lacks a word. An error
/// is late if it begins with [`LATE`].
pub(crate) fn check(cases: Vec<Case>, error: impl Fn(&str, &[(&str, Value)]) -> Result<(), String>) {
    let mut wrong = Vec::new();
    for (name, changes, words) in cases {
        match error(name, &changes) {
            Ok(()) => wrong.push(format!("{name} {changes:?}: loads and runs")),
            Err(message) => {
                let missing: Vec<_> = words.iter().filter(|word| !message.contains(**word)).collect();
                if !missing.is_empty() || message.starts_with(LATE) || message.contains('\u{1b}') {
                    wrong.push(format!("{name} {changes:?}: {missing:?} not in: {message}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A config that loads must also run, or the error came too late.
pub(crate) const LATE: &str = "only when run";
