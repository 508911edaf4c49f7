//! `int8 embed` as its users call it, on the tiny BERT of `int8-nn`'s tests with a tokenizer of a few words.

mod page;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

fn int8(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_int8"))
        .args(arguments)
        .env_remove("INT8_KERNEL")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("the program")
}

fn json_of(arguments: &[&str]) -> Value {
    let output = int8(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object and nothing else")
}

/// Exit code and message of a command that must fail.
fn failure(arguments: &[&str]) -> (i32, String) {
    let output = int8(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", String::from_utf8_lossy(&output.stdout));
    (output.status.code().expect("no signal"), String::from_utf8(output.stderr).expect("UTF-8"))
}

/// The tiny BERT with a tokenizer: words `w0` to `w89`, between `[CLS]` and `[SEP]`.
fn model() -> TempDir {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/encoders/bert");
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), folder.path().join(file)).expect("a file");
    }
    let special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"];
    let words = special.iter().map(ToString::to_string).chain((0..90).map(|word| format!("w{word}")));
    let vocabulary: serde_json::Map<String, Value> =
        words.enumerate().map(|(id, word)| (word, json!(id))).collect();
    let around = |name: &str, id: u32| json!({"id": name, "ids": [id], "tokens": [name]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": around("[CLS]", 1), "[SEP]": around("[SEP]", 2)},
        },
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn texts_become_vectors() {
    let folder = model();
    let model = text(folder.path());
    let texts = ["embed", model, "--text", "w1 w2 w3", "--text", "w1 w2 w4", "--text", "w1 w2 w3"];
    for precision in [&["--fp"][..], &["--scheme", "llm-int8", "--granularity", "value"]] {
        let found = json_of(&[&texts[..], precision].concat());
        assert_eq!(
            (&found["texts"], &found["dimensions"], &found["tokens"]),
            (&json!(3), &json!(32), &json!(15))
        );
        assert_eq!(found["pooling"], "mean");
        let cosine = |a: usize, b: usize| found["cosines"][a][b].as_f64().expect("a cosine");
        assert!((cosine(0, 0) - 1.0).abs() < 1e-6 && (cosine(0, 2) - 1.0).abs() < 1e-6, "{found}");
        assert!(cosine(0, 1) < 0.999 && (cosine(0, 1) - cosine(1, 0)).abs() < 1e-9, "{found}");
        assert_eq!(found["embeddings"].as_array().map(Vec::len), Some(3));
    }
    let unit = json_of(&[&texts[..], &["--normalize", "--pooling", "cls"]].concat());
    let squares: f64 = unit["embeddings"][0]
        .as_array()
        .expect("a vector")
        .iter()
        .map(|value| value.as_f64().expect("a number").powi(2))
        .sum();
    assert!((squares - 1.0).abs() < 1e-5, "{squares}");
    let printed = int8(&texts);
    assert!(printed.status.success());
    assert_eq!(String::from_utf8(printed.stdout).expect("UTF-8").lines().count(), 3);
}

#[test]
fn lines_become_files() {
    let folder = model();
    let lines = folder.path().join("lines.txt");
    let many: String = (0..40).map(|word| format!("w{word} w{}\n\n", word + 1)).collect();
    fs::write(&lines, many).expect("lines");
    let out = |name: &str| folder.path().join(name);
    for name in ["vectors.npy", "vectors.safetensors"] {
        let result = int8(&[
            "embed",
            text(folder.path()),
            "--file",
            text(&lines),
            "--out",
            text(&out(name)),
            "--quiet",
        ]);
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        assert!(result.stdout.is_empty());
    }
    let numpy = fs::read(out("vectors.npy")).expect("a file");
    assert!(numpy.starts_with(b"\x93NUMPY\x01\x00"));
    assert!(
        String::from_utf8_lossy(&numpy[..128]).contains("'<f4', 'fortran_order': False, 'shape': (40, 32)")
    );
    let tensors = fs::read(out("vectors.safetensors")).expect("a file");
    let tensors = safetensors::SafeTensors::deserialize(&tensors).expect("safetensors");
    let embeddings = tensors.tensor("embeddings").expect("embeddings");
    assert_eq!(embeddings.shape(), [40, 32]);
    assert!(numpy.ends_with(embeddings.data()));
}

#[test]
fn precisions_are_compared_over_pairs() {
    let folder = model();
    let pairs = folder.path().join("pairs.tsv");
    fs::write(&pairs, "w1 w2\tw3 w4 w5\nw6\tw7 w8 w9\n").expect("pairs");
    let arguments = ["embed", text(folder.path()), "--compare", "--file", text(&pairs)];
    let all = json_of(&arguments);
    assert_eq!(all["pairs"], 2);
    let schemes = all["schemes"].as_array().expect("schemes");
    assert!(schemes.len() >= 8, "{all}");
    for scheme in schemes {
        let number = |key: &str| scheme[key].as_f64().expect("a number");
        assert!(number("mean_drift") > 0.0 && number("max_drift") >= number("mean_drift"), "{scheme}");
        assert!(number("min_cosine_to_float") < 1.0, "{scheme}");
    }
    let one = json_of(&[&arguments[..], &["--scheme", "llm-int8"]].concat());
    assert_eq!(one["schemes"].as_array().map(Vec::len), Some(1));

    fs::write(&pairs, "w1 w2\tw3\nw4 w5\n").expect("pairs");
    let (code, message) = failure(&arguments);
    assert!(code == 2 && message.contains("text 2") && message.contains("tab"), "{message}");
}

#[test]
fn what_cannot_be_embedded_names_the_way_out() {
    let folder = model();
    let model = text(folder.path());
    let words = "w1 ".repeat(50);
    let cut = json_of(&["embed", model, "--text", &words]);
    page::check("embed", &cut);
    assert_eq!((&cut["texts_cut"], &cut["tokens"]), (&json!(1), &json!(40)));
    let cut = json_of(&["embed", model, "--text", &words, "--max-tokens", "12"]);
    assert_eq!(cut["tokens"], 12);
    let opt = Path::new(env!("CARGO_MANIFEST_DIR")).join("../int8-nn/tests/data/models/opt");
    let cases: [(Vec<&str>, i32, &[&str]); 7] = [
        (vec!["embed", model], 2, &["no texts", "--text", "--file"]),
        (vec!["embed", model, "--text", "w1", "--out", "vectors.csv"], 2, &["vectors.csv", ".npy"]),
        (vec!["embed", model, "--text", "w1", "--max-tokens", "41"], 1, &["41", "1 to 40"]),
        (vec!["embed", model, "--text", "w1", "--max-tokens", "1"], 1, &["1 tokens"]),
        (vec!["embed", text(&opt), "--text", "w1"], 1, &["`opt`", "decoder", "int8 run"]),
        (vec!["run", model, "-p", "w1"], 1, &["`bert`", "encoder", "int8 embed"]),
        (vec!["embed", model, "--text", "w1", "--compare", "--fp"], 2, &["tab"]),
    ];
    for (arguments, code, words) in cases {
        let (found, message) = failure(&arguments);
        let missing: Vec<_> = words.iter().filter(|word| !message.contains(**word)).collect();
        assert!(
            found == code && missing.is_empty(),
            "{arguments:?}: exit {found}, {missing:?} not in: {message}"
        );
    }
}
