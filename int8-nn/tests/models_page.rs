//! docs/models.md is what this program says of itself: `INT8_WRITE_PAGES=1 cargo test -p int8-nn --features cuda --test models_page`
//! writes it anew.
#![cfg(feature = "cuda")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use int8_nn::Loader;
use int8_nn::backend::cuda::CudaBackend;
use int8_nn::checkpoint::Checkpoint;
use int8_nn::families::{Kind, kind, supported};

use common::data;

const HEAD: &str = "\
# Models

The values of `model_type` in `config.json` that run, with the file of transformers 5.24's answers that the tests compare with. A type without one is
computed by the description of another (`int8-nn/src/families`) and was compared with transformers once, when it was added. Of models with images or
audio the text part runs, without either. Mixtures of experts and all else run in int8 (`int8 run`, `serve`, `eval`) and in 16 or 32 bit (`--fp`).

GPU: whether a GPU runs the type with the settings of that file; \"no\" gives what it lacks. `int8 inspect MODEL` says it of a model, and `int8 quantize`
converts these and most other types for transformers.

| `model_type` | command | GPU | compared with |
|---|---|---|---|
";

/// Folders of goldens by `model_type`.
fn goldens() -> BTreeMap<String, Vec<PathBuf>> {
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for part in ["models", "goldens", "encoders", "speech"] {
        let mut folders: Vec<_> = fs::read_dir(data(part))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        folders.sort();
        for folder in folders {
            let Ok(text) = fs::read_to_string(folder.join("config.json")) else { continue };
            let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            let name = config["model_type"].as_str().expect("a model_type").to_owned();
            found.entry(name).or_default().push(folder);
        }
    }
    found
}

/// Whether a GPU runs the model, in words.
fn on_gpu(folder: &Path) -> String {
    let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
    match Loader::new(checkpoint).accept(&CudaBackend::capabilities_of("a GPU".to_owned())) {
        Ok(()) => "yes".to_owned(),
        Err(error) => {
            let error = error.to_string();
            let reason = error.rsplit_once("does not compute ").map_or(&*error, |(_, reason)| reason);
            format!("no: {}", reason.split_once(", which").map_or(reason, |(reason, _)| reason))
        }
    }
}

fn page() -> String {
    let goldens = goldens();
    let mut page = HEAD.to_owned();
    let mut names = supported();
    names.sort_unstable();
    for name in names {
        let folders = goldens.get(name).map(Vec::as_slice).unwrap_or_default();
        let command = match kind(name) {
            Some(Kind::Encoder) => "`embed`",
            Some(Kind::Speech) => "`transcribe`",
            _ => "`run`",
        };
        let gpu = folders.first().map_or("–".to_owned(), |folder| on_gpu(folder));
        let files: Vec<_> =
            folders.iter().map(|folder| folder.file_name().unwrap_or_default().to_string_lossy()).collect();
        let files = if files.is_empty() { "–".to_owned() } else { files.join(", ") };
        writeln!(page, "| {name} | {command} | {gpu} | {files} |").expect("a string takes all");
    }
    page
}

#[test]
fn the_page_lists_what_runs() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/models.md");
    let page = page();
    if std::env::var_os("INT8_WRITE_PAGES").is_some() {
        fs::write(&file, &page).expect("the page");
    }
    let written = fs::read_to_string(&file).expect("the page");
    assert!(written == page, "docs/models.md is out of date; INT8_WRITE_PAGES=1 writes it anew");
}
