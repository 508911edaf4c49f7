//! Checkpoints converted to int8 against those that bitsandbytes writes, and back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use int8_core::metrics::relative_l2;
use int8_nn::Model;
use int8_nn::checkpoint::{Checkpoint, DType};
use int8_nn::quantize::{Options, dequantize_checkpoint, quantize_checkpoint};
use serde_json::Value;

fn goldens() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/goldens/models");
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: {} is not there", folder.display());
    None
}

/// The pairs of a 16-bit checkpoint and the int8 one that transformers and bitsandbytes made of it.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let Some(folder) = goldens() else { return Vec::new() };
    let mut pairs = Vec::new();
    for entry in fs::read_dir(&folder).expect("a folder") {
        let source = entry.expect("an entry").path();
        let name = source.file_name().expect("a name").to_string_lossy().into_owned();
        let theirs = folder.join(format!("{name}-bnb-int8"));
        if theirs.is_dir() {
            pairs.push((source, theirs));
        }
    }
    pairs.sort();
    assert!(pairs.len() >= 7, "seven families have goldens");
    pairs
}

fn quantize(source: &Path, out: &Path, options: &Options) -> int8_nn::quantize::Report {
    let checkpoint = Checkpoint::open(source).expect("a checkpoint");
    quantize_checkpoint(&checkpoint, out, options, &mut |_| {}).expect("a conversion")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// Names with type, shape and bytes.
fn contents(checkpoint: &Checkpoint) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let tensor = |t: int8_nn::checkpoint::TensorView<'_>| {
        (t.name().to_owned(), (t.dtype(), t.shape().to_vec(), t.bytes().to_vec()))
    };
    checkpoint.tensors().map(tensor).collect()
}

/// What differs between two checkpoints.
fn differences(ours: &Checkpoint, theirs: &Checkpoint) -> Vec<String> {
    let (ours, theirs) = (contents(ours), contents(theirs));
    let mut found = Vec::new();
    for (name, tensor) in &ours {
        match theirs.get(name) {
            None => found.push(format!("{name} is not in theirs")),
            Some(other) if other != tensor => found.push(format!("{name} differs")),
            Some(_) => {}
        }
    }
    found.extend(
        theirs.keys().filter(|name| !ours.contains_key(*name)).map(|n| format!("{n} is not in ours")),
    );
    found
}

#[test]
fn every_golden_family_is_byte_for_byte_what_bitsandbytes_writes() {
    let mut failures = Vec::new();
    for (source, theirs) in pairs() {
        let out = tempfile::tempdir().expect("a folder");
        let out = out.path().join("int8");
        let mut options = Options::default();
        options.write.verify = true;
        quantize(&source, &out, &options);
        let (ours, reference) =
            (Checkpoint::open(&out).expect("ours"), Checkpoint::open(&theirs).expect("theirs"));
        let name = source.display();
        failures.extend(differences(&ours, &reference).iter().map(|problem| format!("{name}: {problem}")));
        if json(&out.join("config.json")) != json(&theirs.join("config.json")) {
            failures.push(format!("{name}: config.json differs"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn our_engine_gives_the_same_logits_for_theirs_and_ours() {
    let supported = int8_nn::families::supported();
    for (source, theirs) in pairs() {
        let model_type = json(&source.join("config.json"))["model_type"].as_str().expect("a name").to_owned();
        if !supported.contains(&model_type.as_str()) {
            continue;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("int8");
        quantize(&source, &out, &Options::default());
        let logits = |folder: &Path| {
            let model = Model::load(folder).expect("a checkpoint").int8().build().expect("a model");
            model.logits(&[3, 1, 4, 1, 5, 9, 2, 6]).expect("logits").into_iter().collect::<Vec<f32>>()
        };
        assert_eq!(logits(&out), logits(&theirs), "{}", source.display());
    }
}

#[test]
fn there_and_back_and_there_again_is_the_same() {
    for (source, theirs) in pairs() {
        let folder = tempfile::tempdir().expect("a folder");
        let (float, again) = (folder.path().join("float"), folder.path().join("again"));
        let int8 = Checkpoint::open(&theirs).expect("theirs");
        let report =
            dequantize_checkpoint(&int8, &float, None, &Default::default(), &mut |_| {}).expect("back");
        assert!(report.layers > 0);
        let original = Checkpoint::open(&source).expect("the source");
        let back = Checkpoint::open(&float).expect("a checkpoint");
        assert_eq!(json(&float.join("config.json")), json(&source.join("config.json")));
        for tensor in original.tensors() {
            let restored = back.tensor(tensor.name()).expect("every tensor");
            assert_eq!((restored.dtype(), restored.shape()), (tensor.dtype(), tensor.shape()));
            let error = relative_l2(&restored.to_f32().expect("floats"), &tensor.to_f32().expect("floats"));
            assert!(error < 0.01, "{}: {error}", tensor.name());
        }
        assert_eq!(back.len(), original.len());
        quantize(&float, &again, &Options::default());
        let again = Checkpoint::open(&again).expect("a checkpoint");
        assert_eq!(differences(&again, &int8), Vec::<String>::new(), "{}", source.display());
    }
}
