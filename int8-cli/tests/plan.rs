//! `int8 plan`, as its users call it: nothing is loaded, and the numbers are those of the paper.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn int8(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HUB_CACHE", "no-such-cache")
        .output()
        .expect("the program")
}

fn json(arguments: &[&str]) -> Value {
    let output = int8(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
}

fn of<'a>(plan: &'a Value, precision: &str) -> &'a Value {
    let precisions = plan["precisions"].as_array().expect("precisions");
    precisions.iter().find(|entry| entry["precision"] == precision).expect("the precision")
}

#[test]
fn bloom_halves_twice() {
    let plan = json(&["plan", "bloom-176b", "--gpus", "8", "--gpu-memory", "24GiB"]);
    let giga =
        |precision: &str, key: &str| of(&plan, precision)[key].as_u64().expect("bytes") / 1_000_000_000;
    assert_eq!(giga("fp32", "weight_bytes"), 704);
    assert_eq!(giga("fp16", "weight_bytes"), 352);
    assert_eq!(giga("int8", "weight_bytes"), 179);
    assert_eq!((plan["context"].as_u64(), plan["blocks"].as_u64()), (Some(2048), Some(70)));
    for precision in ["fp32", "fp16", "int8"] {
        let entry = of(&plan, precision);
        let bytes = |key: &str| entry[key].as_u64().expect("bytes");
        let parts =
            ["linear_bytes", "scale_bytes", "embedding_bytes", "head_bytes", "other_bytes"].map(bytes);
        assert_eq!(parts.iter().sum::<u64>(), bytes("weight_bytes"), "{precision}");
        let total = bytes("weight_bytes") + bytes("cache_bytes") + bytes("activation_bytes");
        assert_eq!(total, bytes("total_bytes"), "{precision}");
        assert_eq!(entry["gpus"].as_array().map(Vec::len), Some(1), "{precision}");
    }
    assert_eq!(of(&plan, "fp16")["gpus"][0]["fits"], false);
}

#[test]
fn the_papers_table_comes_without_a_model() {
    let table = json(&["plan"]);
    let rows = table["setups"].as_array().expect("setups");
    assert_eq!(rows.len(), 6);
    let text = String::from_utf8(int8(&["plan"]).stdout).expect("UTF-8");
    for words in ["8x RTX 3090", "BLOOM-176B", "OPT-66B", "GPT-J-6B", "T5-11B"] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn folders_are_measured_and_mistakes_explained() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/torch/single");
    let plan = json(&["plan", model.to_str().expect("UTF-8"), "--context", "10", "--batch", "2"]);
    // Two values (keys, values) of 16 a token in one block, 16 bits each.
    assert_eq!(of(&plan, "int8")["cache_bytes"], 2 * 16 * 10 * 2 * 2);
    let cached = json(&["plan", model.to_str().expect("UTF-8"), "--context", "10", "--kv-cache", "f32"]);
    assert_eq!(of(&cached, "int8")["cache_bytes"], 2 * 16 * 10 * 4);
    assert_eq!(cached["kv_cache"], "f32");
    assert_eq!(plan["blocks"], 1);
    for (arguments, code, words) in [
        (&["plan", "no-such-model"][..], 1, &["no-such-model", "OPT-66B", "org/name"][..]),
        (&["plan", "org/other"], 1, &["HF_HUB_OFFLINE"]),
        (&["plan", "opt-66b", "--gpu-memory", "many"], 2, &["--gpu-memory", "5GB"]),
        (&["plan", "--context", "5"], 2, &["MODEL"]),
    ] {
        let output = int8(arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {message}");
        for word in words {
            assert!(message.contains(word), "{arguments:?}: no {word:?} in: {message}");
        }
    }
}
