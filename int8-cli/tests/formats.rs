//! Weights in formats that are not read: `run`, `plan`, `quantize` and `inspect` name the format, by `config.json` or by the names of
//! the tensors alone, and compute nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn int8(arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_int8");
    Command::new(program).args(arguments).env("HF_HUB_OFFLINE", "1").output().expect("the program")
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data").join(name)
}

fn path(folder: &Path) -> &str {
    folder.to_str().expect("UTF-8")
}

/// The tiny LLaMA with this `quantization_config`, its projections `P.weight` named `P{suffix}`.
fn quantized(config: Option<&Value>, suffix: Option<&str>) -> tempfile::TempDir {
    let (source, folder) = (data("models/llama"), tempfile::tempdir().expect("a folder"));
    let mut whole: Value =
        serde_json::from_slice(&fs::read(source.join("config.json")).expect("a file")).expect("JSON");
    if let Some(config) = config {
        whole["quantization_config"] = config.clone();
    }
    fs::write(folder.path().join("config.json"), whole.to_string()).expect("written");
    let bytes = fs::read(source.join("model.safetensors")).expect("a file");
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("small");
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("JSON");
    if let Some(suffix) = suffix {
        let tensors = header.as_object_mut().expect("tensors");
        let names: Vec<String> =
            tensors.keys().filter(|name| name.ends_with("proj.weight")).cloned().collect();
        for name in names {
            let tensor = tensors.remove(&name).expect("a tensor");
            tensors.insert(name.replace(".weight", suffix), tensor);
        }
    }
    let header = header.to_string();
    let size = u64::try_from(header.len()).expect("a length").to_le_bytes();
    let file = [&size[..], header.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(folder.path().join("model.safetensors"), file).expect("written");
    folder
}

#[test]
fn formats_that_are_not_read_are_named() {
    let method = |name: &str| Some(json!({"quant_method": name, "bits": 4}));
    let four_bit = Some(json!({"quant_method": "bitsandbytes", "load_in_4bit": true}));
    let cases = [
        (method("gptq"), Some(".qweight"), "GPTQ"),
        (method("awq"), Some(".qweight"), "AWQ"),
        (method("hqq"), Some(".W_q"), "HQQ"),
        (method("quanto"), Some(".weight._data"), "Quanto"),
        (four_bit, Some(".weight.absmax"), "bitsandbytes 4-bit"),
        (method("compressed-tensors"), Some(".weight_packed"), "compressed-tensors"),
        (method("torchao"), None, "torchao"),
        (method("made-up"), None, "made-up"),
    ];
    let mut wrong = Vec::new();
    for (config, suffix, name) in &cases {
        let by_config = config.as_ref().map(|config| (quantized(Some(config), *suffix), "by configuration"));
        let by_names = suffix.map(|suffix| (quantized(None, Some(suffix)), "by names"));
        for (folder, how) in by_config.into_iter().chain(by_names) {
            let model = path(folder.path());
            let out = folder.path().join("out");
            for (arguments, code) in [
                (vec!["run", model, "--ids", "5,6", "-n", "1"], 1),
                (vec!["plan", model], 1),
                (vec!["quantize", model, path(&out)], 1),
                (vec!["inspect", model], 0),
            ] {
                let output = int8(&arguments);
                let told = [output.stdout, output.stderr].concat();
                let told = String::from_utf8_lossy(&told).to_lowercase();
                if output.status.code() != Some(code) || !told.contains(&name.to_lowercase()) {
                    wrong.push(format!("{name} {how}, {}: {:?} {told}", arguments[0], output.status.code()));
                }
                if told.contains("not quantised") {
                    wrong.push(format!("{name} {how}, {}: {told}", arguments[0]));
                }
            }
            assert!(!out.exists(), "{name} {how}: something was written");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A head that classifies is none for the next token; what `inspect` says, `run` does.
#[test]
fn classifiers_and_unknown_settings_do_not_run() {
    let folder = quantized(None, None);
    let file = folder.path().join("config.json");
    let plain: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    for (key, value, runs) in [
        ("architectures", json!(["LlamaForSequenceClassification"]), false),
        ("architectures", json!(["LlamaForTokenClassification"]), false),
        ("hidden_act", json!("laplace"), false),
        ("rope_parameters", json!({"rope_type": "axial"}), false),
        ("num_hidden_layers", json!(3), false),
        ("num_key_value_heads", json!(1), false),
        ("hidden_act", json!("gelu"), true),
    ] {
        let mut config = plain.clone();
        config[key] = value.clone();
        fs::write(&file, config.to_string()).expect("written");
        let model = path(folder.path());
        let ran = int8(&["run", model, "--ids", "5,6", "-n", "1"]);
        let inspected = int8(&["inspect", model]);
        let told = String::from_utf8_lossy(&inspected.stdout).into_owned();
        let line = told.lines().find(|line| line.starts_with("runs")).expect("a line").to_owned();
        assert_eq!(ran.status.success(), runs, "{key} {value}");
        assert_eq!(line.contains("yes"), runs, "{key} {value}: {line}");
    }
}

/// Embeddings of an F32 checkpoint stay F32: `plan` counts them so, as `run` holds them.
#[test]
fn figures_of_f32_checkpoints_agree() {
    let model = data("goldens/olmo2");
    let model = path(&model);
    let object = |arguments: &[&str]| -> Value {
        let output = int8(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let plan = object(&["plan", model, "--context", "64"]);
    let figure = |precision: &str, key: &str| {
        let precisions = plan["precisions"].as_array().expect("precisions");
        let of = precisions.iter().find(|entry| entry["precision"] == precision).expect("the precision");
        of[key].as_u64().expect("bytes")
    };
    // 96 rows of 32, as embedding and as head.
    for key in ["embedding_bytes", "head_bytes"] {
        assert_eq!(figure("int8", key), 96 * 32 * 4);
        assert_eq!(figure("fp16", key), 96 * 32 * 2);
    }
    let run = |option: &[&str]| {
        let run = object(&[&["run", model, "--ids", "5,6", "-n", "2"], option].concat());
        run["weight_bytes"].as_u64().expect("bytes")
    };
    let norms = figure("fp32", "other_bytes");
    assert_eq!(run(&["--fp"]), figure("fp32", "weight_bytes") - norms);
    // Tiny layers are padded to tiles.
    let planned = figure("int8", "weight_bytes") - norms;
    let held = run(&[]);
    assert!(held >= planned, "{held}, {planned}");
}
