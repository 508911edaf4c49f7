//! A `config.json` that contradicts itself or the weights beside it: loading gives an error or a model that computes,
//! never a panic, and never memory in proportion to a number in the file.
//!
//! The first byte chooses a small real checkpoint and whether the rest replaces its configuration as text or edits it:
//! each pair of bytes puts one of the awkward values under one of the keys.
#![no_main]

use std::borrow::Cow;
use std::sync::LazyLock;

use int8_nn::Loader;
use int8_nn::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

macro_rules! model {
    ($name:literal) => {
        (
            include_str!(concat!("../../int8-nn/tests/data/models/", $name, "/config.json")),
            include_bytes!(concat!("../../int8-nn/tests/data/models/", $name, "/model.safetensors")),
        )
    };
}

/// Configuration and weights of one model per family.
static MODELS: [(&str, &[u8]); 5] =
    [model!("opt"), model!("llama"), model!("gpt2"), model!("bloom"), model!("gpt_neox")];

/// Keys that some family reads and these files may lack.
const MORE_KEYS: [&str; 24] = [
    "activation_function",
    "alibi",
    "attention_bias",
    "do_layer_norm_before",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "n_inner",
    "num_key_value_heads",
    "partial_rotary_factor",
    "quantization_config",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_pct",
    "sliding_window",
    "use_parallel_residual",
    "use_sliding_window",
    "word_embed_proj_dim",
];

/// Values that a careless or hostile writer puts under a key.
static VALUES: LazyLock<Vec<Value>> = LazyLock::new(|| {
    let mut values = vec![
        Value::Null,
        json!(true),
        json!(false),
        json!(""),
        json!("gelu"),
        json!("swish"),
        json!("nonsense\u{1b}[2J"),
        json!([]),
        json!([1, 2]),
        json!({}),
        json!(0.5),
        json!(-1.0),
        json!(1e-300),
        json!(1e300),
        json!({"rope_type": "linear", "factor": 2.0}),
        json!({"rope_type": "linear", "factor": 0.0}),
        json!({"type": "dynamic", "factor": -1}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 0}),
        json!({"rope_theta": 0, "partial_rotary_factor": 1e9, "rope_type": "default"}),
        json!({"rope_theta": 1e300, "partial_rotary_factor": 1e-9, "rope_type": "default"}),
        json!({"load_in_8bit": true, "quant_method": "bitsandbytes"}),
        json!({"load_in_4bit": true, "quant_method": "bitsandbytes"}),
        json!({"quant_method": "gptq", "bits": 4}),
    ];
    values.extend(
        ["opt", "llama", "mistral", "qwen2", "gpt2", "bloom", "gpt_neox", "t5"].map(|name| json!(name)),
    );
    values.extend(
        [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 32, 63, 64, 65, 95, 96, 97, 128, 160, 256]
            .map(|n: u64| json!(n)),
    );
    values.extend(
        [1000, 65_536, 0x7FFF_FFFE, 0x7FFF_FFFF, 0x8000_0000, 1 << 40, u64::MAX].map(|n: u64| json!(n)),
    );
    values.push(json!(i64::MIN));
    values
});

fuzz_target!(|input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else { return };
    let choice = usize::from(choice);
    let (config, weights) = MODELS[choice % MODELS.len()];
    let config = if choice >= 128 { rest.to_vec() } else { edited(config, rest).to_string().into_bytes() };
    let files: [(String, Cow<'static, [u8]>); 2] = [
        ("config.json".to_owned(), Cow::Owned(config)),
        ("model.safetensors".to_owned(), Cow::Borrowed(weights)),
    ];
    let Ok(checkpoint) = Checkpoint::from_bytes(files) else { panic!("the weights are untouched") };
    match Loader::new(checkpoint).int8().build() {
        // Building the message must not panic either.
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(model) => {
            // May be refused, for instance by a window or a vocabulary too small; must not panic.
            let _ = model.logits(&[1, 2, 0, 3]);
        }
    }
});

/// The configuration with one value put under one key for each pair of bytes.
fn edited(config: &str, edits: &[u8]) -> Value {
    let mut map: Map<String, Value> = serde_json::from_str(config).unwrap_or_default();
    let keys: Vec<String> = map.keys().cloned().chain(MORE_KEYS.map(str::to_owned)).collect();
    for edit in edits.chunks_exact(2) {
        let key = &keys[usize::from(edit[0]) % keys.len()];
        let value = VALUES[usize::from(edit[1]) % VALUES.len()].clone();
        if edit[1] == u8::MAX {
            map.remove(key);
        } else {
            map.insert(key.clone(), value);
        }
    }
    Value::Object(map)
}
