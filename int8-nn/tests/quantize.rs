//! Checkpoints converted to int8 against those that bitsandbytes writes, and back.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "says what it skips")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use int8_core::Scheme;
use int8_core::metrics::relative_l2;
use int8_nn::Model;
use int8_nn::backend::cpu::CpuBackend;
use int8_nn::backend::{OutlierWeights, Precision, Quantization};
use int8_nn::checkpoint::{Checkpoint, CheckpointWriter, DType, Existing, TensorSpec, WriteOptions};
use int8_nn::encoder::Encoder;
use int8_nn::quantize::{
    Kept, Options, WriteSettings, dequantize_checkpoint, outlier_columns, quantize_checkpoint,
};
use serde_json::{Value, json};

use common::{read_json, shared};

/// The pairs of a 16-bit checkpoint and the int8 one that transformers and bitsandbytes made of it.
fn pairs() -> Vec<(PathBuf, PathBuf)> {
    let Some(folder) = shared("goldens/models") else { return Vec::new() };
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
        if read_json(&out.join("config.json")) != read_json(&theirs.join("config.json")) {
            failures.push(format!("{name}: config.json differs"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn our_engine_gives_the_same_logits_for_theirs_and_ours() {
    const IDS: [u32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];
    let quantization = Quantization::new(Scheme::LlmInt8Absmax.config(), OutlierWeights::Exact);
    for (source, theirs) in pairs() {
        let is_encoder = read_json(&source.join("config.json"))["model_type"] == "bert";
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("int8");
        quantize(&source, &out, &Options::default());
        let logits = |folder: &Path| {
            if is_encoder {
                let checkpoint = Checkpoint::open(folder).expect("a checkpoint");
                let backend = Arc::new(CpuBackend::new().expect("a kernel"));
                let encoder = Encoder::load(&checkpoint, backend, &Precision::Int8(quantization), |_, _| {})
                    .expect("an encoder");
                let states = encoder.hidden_states(&[&IDS]).expect("states");
                return states[0].iter().copied().collect::<Vec<f32>>();
            }
            let model = Model::load(folder).expect("a checkpoint").int8().build().expect("a model");
            model.logits(&IDS).expect("logits").into_iter().collect()
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
            dequantize_checkpoint(&int8, &float, None, &WriteSettings::default(), &mut |_| {}).expect("back");
        assert!(report.layers > 0);
        let original = Checkpoint::open(&source).expect("the source");
        let back = Checkpoint::open(&float).expect("a checkpoint");
        assert_eq!(read_json(&float.join("config.json")), read_json(&source.join("config.json")));
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

/// A folder with these F32 tensors and `config.json`.
fn checkpoint(folder: &Path, config: &Value, tensors: &[(&str, &[usize])]) -> PathBuf {
    let random = |(name, shape): &(&str, &[usize])| {
        let mut random = int8_core::corpus::Random::new(5);
        let values = (0..shape.iter().product()).flat_map(|_| random.normal().to_le_bytes());
        let spec = TensorSpec { name: (*name).into(), dtype: DType::F32, shape: shape.to_vec() };
        (spec, values.collect())
    };
    write(folder, config, tensors.iter().map(random).collect());
    folder.to_path_buf()
}

fn write(folder: &Path, config: &Value, tensors: Vec<(TensorSpec, Vec<u8>)>) {
    let specs: Vec<TensorSpec> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    let mut writer = CheckpointWriter::create(folder, &specs, &WriteOptions::default()).expect("a writer");
    for (spec, bytes) in tensors {
        writer.write(&spec.name, &bytes).expect("written");
    }
    writer.finish(&[("config.json", config.to_string().as_bytes())]).expect("finished");
}

/// Everything that is left alone in models of all kinds, and what becomes int8 beside it.
#[test]
fn rules_go_by_name_and_shape() {
    let tensors: &[(&str, &[usize], Option<Kept>)] = &[
        ("model.layers.0.self_attn.q_proj.weight", &[8, 8], None),
        ("model.layers.0.self_attn.q_proj.bias", &[8], Some(Kept::Vector)),
        ("model.layers.0.mlp.experts.3.up_proj.weight", &[16, 8], Some(Kept::Expert)),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", &[16, 8], None),
        ("model.layers.0.mlp.experts.gate_up_proj", &[4, 16, 8], Some(Kept::FusedExperts)),
        ("model.layers.0.mlp.gate.weight", &[4, 8], Some(Kept::Router)),
        ("model.layers.0.mlp.gate_proj.weight", &[16, 8], None),
        // As wide as the vocabulary, and yet a layer.
        ("model.layers.0.mlp.down_proj.weight", &[40, 16], None),
        ("model.embed_tokens.weight", &[40, 8], Some(Kept::Embedding)),
        ("model.wte.weight", &[30, 8], Some(Kept::Embedding)),
        ("encoder.block.0.attention.relative_attention_bias.weight", &[32, 4], Some(Kept::Embedding)),
        ("model.norm.weight", &[8], Some(Kept::Vector)),
        ("vision.patch.proj.weight", &[8, 3, 4, 4], Some(Kept::Convolution)),
        ("vision.class_token", &[2, 8], Some(Kept::Parameter)),
        ("vision.attn.in_proj_weight", &[24, 8], Some(Kept::Parameter)),
        ("vision.attn.out_proj.weight", &[8, 8], Some(Kept::ReadDirectly)),
        ("projector.linear_1.weight", &[8, 8], None),
        ("classifier.dense.weight", &[8, 8], Some(Kept::Head)),
        ("anything.weight", &[40, 8], Some(Kept::Head)),
        ("lm_head.weight", &[40, 8], Some(Kept::Head)),
        ("model.layers.0.scale.weight", &[1, 8], Some(Kept::Narrow)),
        // Stored [in, out], as its bias shows; the square one goes with its name.
        ("h.0.c_proj.weight", &[32, 8], None),
        ("h.0.c_proj.bias", &[8], Some(Kept::Vector)),
        ("h.1.c_proj.weight", &[8, 8], None),
        ("h.1.c_proj.bias", &[8], Some(Kept::Vector)),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let named: Vec<(&str, &[usize])> = tensors.iter().map(|(name, shape, _)| (*name, *shape)).collect();
    let config = json!({"model_type": "none of ours", "text_config": {"vocab_size": 40}});
    let source = checkpoint(&folder.path().join("source"), &config, &named);
    let report = quantize(&source, &folder.path().join("int8"), &Options::default());
    let mut failures = Vec::new();
    for (name, _, expected) in tensors {
        let found = report.kept.iter().find(|kept| kept.name == *name).map(|kept| kept.reason);
        if found != *expected {
            failures.push(format!("{name}: {found:?} instead of {expected:?}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let transposed: Vec<_> =
        report.int8.iter().filter(|layer| layer.transposed).map(|l| &l.name[..]).collect();
    assert_eq!(transposed, ["h.0.c_proj.weight", "h.1.c_proj.weight"]);
    assert_eq!(
        report.int8.iter().find(|layer| layer.transposed).map(|l| (l.outputs, l.inputs)),
        Some((8, 32))
    );
    // transformers must decide the same: what stays is named, experts by their common parent.
    let skip = report.skip_modules.expect("an unknown model has a list");
    for module in
        ["lm_head", "classifier.dense", "anything", "model.layers.0.mlp.experts", "model.layers.0.mlp.gate"]
    {
        assert!(skip.iter().any(|name| name == module), "{module} is not in {skip:?}");
    }
    assert!(!skip.iter().any(|name| name.contains("q_proj") || name.contains("embed_tokens")), "{skip:?}");
}

fn data(family: &str) -> PathBuf {
    common::data("models").join(family)
}

#[test]
fn overrides_are_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let reasons = |name: &str, options: Options| {
        let report = quantize(&data("llama"), &folder.path().join(name), &options);
        let reason =
            |tensor: &str| report.kept.iter().find(|kept| kept.name == tensor).map(|kept| kept.reason);
        let q = reason("model.layers.0.self_attn.q_proj.weight");
        (reason("lm_head.weight"), q, report.skip_modules)
    };
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(reasons("default", Options::default()), (Some(Kept::Head), None, None));
    let exclude = Options { exclude: list(&["*.layers.0.self_attn.*"]), ..Options::default() };
    let (head, q, skip) = reasons("exclude", exclude);
    assert_eq!((head, q), (Some(Kept::Head), Some(Kept::Excluded)));
    let skip = skip.expect("a list");
    assert!(
        skip.contains(&"model.layers.0.self_attn.q_proj".to_owned()) && skip.contains(&"lm_head".to_owned())
    );
    let include = Options { include: list(&["lm_head"]), ..Options::default() };
    assert_eq!(reasons("include", include).0, None);
    // A list replaces the default: the head becomes int8 unless it is named.
    let skip = |names: &[&str]| Options { skip_modules: Some(list(names)), ..Options::default() };
    let (head, q, written) = reasons("skip", skip(&["q_proj"]));
    assert_eq!((head, q), (None, Some(Kept::SkipModules)));
    assert!(!written.expect("a list").contains(&"lm_head".to_owned()));
    assert_eq!(reasons("both", skip(&["q_proj", "lm_head"])).0, Some(Kept::SkipModules));

    let checkpoint = Checkpoint::open(data("llama")).expect("a checkpoint");
    let refused = |options: &Options| {
        let out = folder.path().join("refused");
        let error = quantize_checkpoint(&checkpoint, &out, options, &mut |_| {}).expect_err("refused");
        assert!(!out.exists(), "nothing is written: {error}");
        error.to_string()
    };
    let typo = Options { exclude: list(&["*.q_prj.*"]), ..Options::default() };
    assert!(refused(&typo).contains("no tensor of the checkpoint has such a name"));
    assert!(refused(&skip(&["("])).contains("module to skip ("));
}

#[test]
fn the_same_numbers_in_any_type_give_the_same_codes() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({"model_type": "none of ours"});
    let source =
        checkpoint(&folder.path().join("source"), &config, &[("a.b.weight", &[70, 130]), ("c", &[3])]);
    let f32 = folder.path().join("f32");
    quantize(&source, &f32, &Options::default());
    // Through F16 on the way: bitsandbytes rounds to it whatever the type.
    let half = folder.path().join("half");
    let values =
        Checkpoint::open(&source).expect("a checkpoint").tensor("a.b.weight").unwrap().to_f32().unwrap();
    let spec = TensorSpec { name: "a.b.weight".into(), dtype: DType::F16, shape: vec![70, 130] };
    let bytes = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    write(&half, &config, vec![(spec, bytes)]);
    let f16 = folder.path().join("f16");
    quantize(&half, &f16, &Options::default());
    let (f32, f16) = (Checkpoint::open(f32).unwrap(), Checkpoint::open(f16).unwrap());
    for name in ["a.b.weight", "a.b.SCB"] {
        assert_eq!(f32.tensor(name).unwrap().bytes(), f16.tensor(name).unwrap().bytes(), "{name}");
    }
}

/// One row with a number beyond F16, one with NaN.
#[test]
fn numbers_that_have_no_code_are_refused_and_large_ones_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let with_value = |name: &str, value: f32| {
        let spec = TensorSpec { name: "a.b.weight".into(), dtype: DType::F32, shape: vec![3, 4] };
        let mut values = [1.0_f32; 12];
        values[6] = value;
        let bytes = values.map(f32::to_le_bytes).concat();
        write(&folder.path().join(name), &json!({}), vec![(spec, bytes)]);
        Checkpoint::open(folder.path().join(name)).unwrap()
    };
    let large = folder.path().join("large-int8");
    quantize_checkpoint(&with_value("large", 1e6), &large, &Options::default(), &mut |_| {})
        .expect("converted");
    let large = Checkpoint::open(&large).unwrap();
    assert_eq!(large.tensor("a.b.SCB").unwrap().to_f32().unwrap(), [1.0, 1e6, 1.0]);
    assert_eq!(large.tensor("a.b.weight").unwrap().as_i8().unwrap()[4..8], [0, 0, 127, 0]);
    for (name, value) in [("nan", f32::NAN), ("infinity", f32::INFINITY)] {
        let out = folder.path().join(format!("{name}-int8"));
        let error = quantize_checkpoint(&with_value(name, value), &out, &Options::default(), &mut |_| {})
            .expect_err("no code stands for it")
            .to_string();
        assert!(error.contains("a.b.weight") && error.contains("row 1, column 2"), "{error}");
        assert!(Checkpoint::open(&out).is_err(), "what is left does not load");
    }
}

#[test]
fn folders_are_treated_with_care() {
    let scratch = tempfile::tempdir().expect("a folder");
    let (source, out) = (scratch.path().join("source"), scratch.path().join("out"));
    copy(&data("llama"), &source);
    fs::create_dir(source.join("1_Pooling")).unwrap();
    for name in ["LICENSE", "1_Pooling/config.json", "pytorch_model.bin", ".gitattributes"] {
        fs::write(source.join(name), "text").unwrap();
    }
    let checkpoint = Checkpoint::open(&source).unwrap();
    let convert = |out: &Path, existing| {
        let options =
            Options { write: WriteSettings { existing, ..WriteSettings::default() }, ..Options::default() };
        quantize_checkpoint(&checkpoint, out, &options, &mut |_| {})
    };
    let error = convert(&source, Existing::Replace).expect_err("its own folder").to_string();
    assert!(error.contains("name another one"), "{error}");
    let report = convert(&out, Existing::Refuse).expect("converted");
    assert!(report.files.iter().any(|name| name == "LICENSE"), "{:?}", report.files);
    assert!(out.join("1_Pooling/config.json").exists());
    assert!(!out.join("pytorch_model.bin").exists() && !out.join(".gitattributes").exists());
    assert!(convert(&out, Existing::Refuse).is_err());
    assert!(convert(&out, Existing::Resume).is_err(), "a finished folder is not resumed");
    convert(&out, Existing::Replace).expect("replaced");
    let int8 = Checkpoint::open(&out).unwrap();
    let again = quantize_checkpoint(&int8, scratch.path().join("again"), &Options::default(), &mut |_| {})
        .expect_err("int8");
    assert!(again.to_string().contains("bitsandbytes int8"), "{again}");
    fs::write(out.join("int8-write.partial"), "").unwrap();
    let error = Checkpoint::open(&out).expect_err("unfinished").to_string();
    assert!(error.contains("Resume the conversion"), "{error}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

/// With the columns that met outliers kept, the int8 checkpoint is as good as converting the 16-bit one in memory.
#[test]
fn kept_outlier_columns_replace_what_int8_lost() {
    let ids: Vec<u32> = (0..40).map(|i| (i * 7 + i * i) % 90 + 1).collect();
    let mut best = f64::INFINITY;
    for family in ["opt", "gpt2", "bloom", "llama"] {
        let folder = tempfile::tempdir().expect("a folder");
        let [plain, kept, back] = ["plain", "kept", "back"].map(|name| folder.path().join(name));
        let load =
            |folder: &Path| Model::load(folder).expect("a checkpoint").int8().build().expect("a model");
        let model = load(&data(family));
        let columns = outlier_columns(&model, &ids, 16, |_, _| {}).expect("columns");
        assert!(!columns.is_empty(), "{family}: the tiny models have outliers");
        quantize(&data(family), &plain, &Options::default());
        let options = Options { outlier_columns: columns.clone(), ..Options::default() };
        let report = quantize(&data(family), &kept, &options);
        assert_eq!(report.outlier_columns, columns.values().map(Vec::len).sum::<usize>(), "{family}");

        let logits =
            |model: &Model| model.logits(&ids[..16]).expect("logits").into_iter().collect::<Vec<f32>>();
        let expected = logits(&model);
        let [off_plain, off_kept] =
            [&plain, &kept].map(|folder| relative_l2(&logits(&load(folder)), &expected));
        // A code that differs from the in-memory one's by one can move a value over the threshold, and with it a column.
        assert!(off_kept < 0.7 * off_plain, "{family}: {off_kept:e} with, {off_plain:e} without");
        best = best.min(off_kept / off_plain);

        // Back in floating point they are what they were.
        let int8 = Checkpoint::open(&kept).unwrap();
        dequantize_checkpoint(&int8, &back, None, &WriteSettings::default(), &mut |_| {}).expect("back");
        let (back, source) = (Checkpoint::open(&back).unwrap(), Checkpoint::open(data(family)).unwrap());
        for (name, columns) in &columns {
            let values = |checkpoint: &Checkpoint| {
                let matrix = checkpoint.tensor(name).unwrap().to_matrix_f32().unwrap();
                // Conv1D is stored [in, out].
                let axis = ndarray::Axis(usize::from(family != "gpt2"));
                matrix.select(axis, columns)
            };
            assert_eq!(values(&back), values(&source), "{family}: {name}");
        }
    }
    assert!(best < 0.01, "where no value is at the threshold the two are the same: {best}");
}
