//! Checkpoints whose files are sound but whose `config.json` and tensors do not make a model: each gives one error that
//! names the file and the key or tensor at fault, and never a panic or a model that computes something else.

use std::fs;
use std::path::Path;

use int8_nn::Model;
use serde_json::{Value, json};

/// The error of loading the tiny checkpoint of `family` with these keys of its `config.json` changed (`null` removes).
fn error(family: &str, changes: &[(&str, Value)]) -> Result<(), String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(family);
    let folder = tempfile::tempdir().expect("a folder");
    fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).expect("the weights");
    let text = fs::read_to_string(source.join("config.json")).expect("the config");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    for (key, value) in changes {
        config[*key] = value.clone();
    }
    fs::write(folder.path().join("config.json"), config.to_string()).expect("a config");
    let loader = Model::load(folder.path()).map_err(|error| error.to_string())?;
    let model = loader.int8().build().map_err(|error| error.to_string())?;
    // A config that loads must also run, or the error came too late.
    model.logits(&[5, 17, 42]).map(drop).map_err(|error| format!("only when run: {error}"))
}

/// A family, changes of its config, and words that the error must have.
type Case = (&'static str, Vec<(&'static str, Value)>, Vec<&'static str>);

#[test]
fn every_contradiction_is_named() {
    let cases: Vec<Case> = vec![
        ("opt", vec![("model_type", json!(null))], vec!["config.json", "model_type", "missing"]),
        ("opt", vec![("model_type", json!("mamba"))], vec!["config.json", "mamba", "llama", "gpt2"]),
        ("opt", vec![("model_type", json!("evil\u{1b}[2J"))], vec!["config.json", "u{1b}"]),
        ("opt", vec![("model_type", json!(7))], vec!["config.json", "model_type", "7", "string"]),
        ("opt", vec![("hidden_size", json!(null))], vec!["config.json", "hidden_size", "missing"]),
        ("opt", vec![("hidden_size", json!(0))], vec!["config.json", "hidden_size", "0", "1 to"]),
        ("opt", vec![("hidden_size", json!(-64))], vec!["config.json", "hidden_size", "-64"]),
        ("opt", vec![("hidden_size", json!("64"))], vec!["config.json", "hidden_size", "\"64\""]),
        ("opt", vec![("hidden_size", json!(64.5))], vec!["config.json", "hidden_size", "64.5"]),
        ("opt", vec![("hidden_size", json!(1_u64 << 40))], vec!["config.json", "hidden_size", "2^31"]),
        ("opt", vec![("hidden_size", json!(128))], vec!["model.safetensors", "128", "64"]),
        ("opt", vec![("vocab_size", json!(161))], vec!["model.safetensors", "embed_tokens", "161", "160"]),
        ("opt", vec![("vocab_size", json!(0x7FFF_FFFF))], vec!["embed_tokens", "2147483647"]),
        (
            "opt",
            vec![("num_attention_heads", json!(5))],
            vec!["config.json", "num_attention_heads", "5", "64"],
        ),
        ("opt", vec![("ffn_dim", json!(255))], vec!["fc1", "255", "256"]),
        ("opt", vec![("max_position_embeddings", json!(97))], vec!["embed_positions", "99", "98"]),
        ("opt", vec![("num_hidden_layers", json!(3))], vec!["model.safetensors", "layers.2"]),
        ("opt", vec![("num_hidden_layers", json!(2_000_000_000))], vec!["model.safetensors", "layers.2"]),
        (
            "opt",
            vec![("activation_function", json!("gelu_maybe"))],
            vec!["config.json", "gelu_maybe", "relu"],
        ),
        ("opt", vec![("tie_word_embeddings", json!(false))], vec!["lm_head.weight"]),
        ("opt", vec![("tie_word_embeddings", json!("yes"))], vec!["tie_word_embeddings", "true or false"]),
        ("opt", vec![("word_embed_proj_dim", json!(32))], vec!["embed_tokens", "32", "64"]),
        ("opt", vec![("eos_token_id", json!("end"))], vec!["eos_token_id", "end"]),
        ("opt", vec![("eos_token_id", json!([2, -1]))], vec!["eos_token_id", "-1"]),
        (
            "llama",
            vec![("num_key_value_heads", json!(3))],
            vec!["config.json", "num_key_value_heads", "3", "4"],
        ),
        ("llama", vec![("num_key_value_heads", json!(4))], vec!["k_proj", "64", "32"]),
        ("llama", vec![("head_dim", json!(32))], vec!["q_proj", "128", "64"]),
        ("llama", vec![("head_dim", json!(15))], vec!["15"]),
        ("llama", vec![("rms_norm_eps", json!(-1.0))], vec!["config.json", "rms_norm_eps", "-1"]),
        ("llama", vec![("rms_norm_eps", json!("tiny"))], vec!["config.json", "rms_norm_eps", "tiny"]),
        ("llama", vec![("rope_parameters", json!({"rope_theta": 0.0}))], vec!["rope_theta", "0"]),
        (
            "llama",
            vec![("rope_parameters", json!({"rope_type": "yarn"}))],
            vec!["rope_parameters", "yarn", "llama3"],
        ),
        ("llama", vec![("rope_parameters", json!({"rope_type": "linear"}))], vec!["factor", "missing"]),
        (
            "llama",
            vec![("tie_word_embeddings", json!(true)), ("model_type", json!("opt"))],
            vec!["config.json"],
        ),
        (
            "qwen2",
            vec![("use_sliding_window", json!(true)), ("sliding_window", json!(0))],
            vec!["sliding_window"],
        ),
        ("gpt2", vec![("n_head", json!(7))], vec!["config.json", "n_head", "7"]),
        ("gpt2", vec![("n_inner", json!(100))], vec!["c_fc", "100", "256"]),
        (
            "gpt2",
            vec![("scale_attn_by_inverse_layer_idx", json!(true))],
            vec!["scale_attn_by_inverse_layer_idx"],
        ),
        ("bloom", vec![("n_head", json!(3))], vec!["config.json", "n_head"]),
        ("bloom", vec![("apply_residual_connection_post_layernorm", json!(true))], vec!["apply_residual"]),
        (
            "gpt_neox",
            vec![("rope_parameters", json!({"partial_rotary_factor": 4.0}))],
            vec!["partial_rotary"],
        ),
        ("gpt_neox", vec![("intermediate_size", json!(128))], vec!["dense_h_to_4h", "128", "256"]),
    ];
    let mut wrong = Vec::new();
    for (family, changes, words) in cases {
        match error(family, &changes) {
            Ok(()) => wrong.push(format!("{family} {changes:?}: loads and runs")),
            Err(message) => {
                let missing: Vec<_> = words.iter().filter(|word| !message.contains(**word)).collect();
                if !missing.is_empty() || message.starts_with("only when run") || message.contains('\u{1b}') {
                    wrong.push(format!("{family} {changes:?}: {missing:?} not in: {message}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The unchanged checkpoints load: a table of errors could otherwise pass because nothing does.
#[test]
fn the_unchanged_checkpoints_run() {
    for family in ["opt", "llama", "qwen2", "gpt2", "bloom", "gpt_neox"] {
        assert_eq!(error(family, &[]), Ok(()), "{family}");
    }
}
