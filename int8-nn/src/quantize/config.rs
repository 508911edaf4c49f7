//! What a conversion changes in `config.json`.

use int8_core::FloatType;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::checkpoint::{Checkpoint, DType};

/// transformers' key for the quantisation.
const KEY: &str = "quantization_config";

/// The keys of the type of 16/32-bit weights: since transformers 5, and before.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];

/// `config.json` with all settings of bitsandbytes int8 that transformers 5.23 writes.
pub(super) fn with_int8(mut config: Value, skip_modules: Option<&[String]>, threshold: f32) -> Value {
    if let Some(config) = config.as_object_mut() {
        let settings = json!({
            "_load_in_4bit": false,
            "_load_in_8bit": true,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "fp4",
            "bnb_4bit_use_double_quant": false,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skip_modules,
            "llm_int8_threshold": threshold,
            "load_in_4bit": false,
            "load_in_8bit": true,
            "quant_method": "bitsandbytes",
        });
        config.insert(KEY.to_owned(), settings);
    }
    config
}

/// `config.json` of the 16/32-bit model: no quantisation, weights of type `dtype`.
pub(super) fn without_int8(mut config: Value, dtype: DType) -> Value {
    if let Some(config) = config.as_object_mut() {
        config.remove(KEY);
        let key = DTYPE_KEYS.into_iter().find(|key| config.contains_key(*key)).unwrap_or(DTYPE_KEYS[0]);
        config.insert(key.to_owned(), Value::from(name(dtype)));
    }
    config
}

/// The type that `config.json` says its 16/32-bit weights have.
pub(super) fn dtype(config: &Value) -> Option<DType> {
    let name = DTYPE_KEYS.iter().find_map(|key| config.get(*key))?.as_str()?;
    FloatType::ALL.map(DType::from).into_iter().find(|dtype| self::name(*dtype) == name)
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// `quantization_config`.
pub(super) fn quantization(config: &Value) -> Option<&Map<String, Value>> {
    config.get(KEY).and_then(Value::as_object)
}

/// Refuses a checkpoint that is quantised already.
pub(super) fn check_unquantized(checkpoint: &Checkpoint, config: &Value) -> Result<(), Error> {
    let by_tensors = checkpoint.format().quantization;
    let method = quantization(config).map(|settings| {
        settings.get("quant_method").and_then(Value::as_str).unwrap_or("bitsandbytes").to_owned()
    });
    let found = match method {
        _ if by_tensors != crate::checkpoint::Quantization::None => by_tensors.to_string(),
        Some(method) => format!("quant_method {method:?} in config.json"),
        None => return Ok(()),
    };
    Err(Error::Input(format!(
        "{}: expected 16- or 32-bit weights, found {}. Use the model's 16-bit version; from bitsandbytes int8, \
         dequantisation makes one",
        checkpoint.source().label(""),
        found.escape_debug(),
    )))
}

/// Model types whose int8 folders transformers 5.24 does not load: it replaces Llama 4's fused experts by single linear layers
/// before loading, its own folders included, and does not find the scales of Qwen4-Exp's hyper-connections.
const NOT_LOADABLE: [&str; 4] = ["llama4", "llama4_text", "qwen4_exp", "qwen4_exp_text"];

/// Refuses a model whose result transformers could not load.
pub(super) fn check_loadable(checkpoint: &Checkpoint, config: &Value) -> Result<(), Error> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    if !NOT_LOADABLE.contains(&model_type) {
        return Ok(());
    }
    Err(Error::Input(format!(
        "{}: transformers does not load int8 checkpoints of {model_type}; --beyond-transformers writes one all the same",
        checkpoint.source().label("config.json"),
    )))
}
