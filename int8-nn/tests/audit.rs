//! Keys of `config.json` that transformers' modelling code reads, and some that it does not: each is obeyed, refused by name when
//! its value is none that is computed here, or ignored where transformers ignores it.
//!
//! A row changes one key of a small checkpoint. `Obeyed`: the logits change (that they are right is for the goldens and
//! `tests/faults.rs`). `Ignored`: they stay bit for bit. `Refused`: loading fails and the error names the key.

mod common;

use int8_nn::Model;
use serde_json::{Value, json};

use common::{IDS, changed, data, read_json, with_config};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Obeyed,
    Ignored,
    Refused,
}
use Effect::{Ignored, Obeyed, Refused};

/// A checkpoint of `tests/data`, a key, a value, and its effect.
type Row = (&'static str, &'static str, Value, Effect);

#[rustfmt::skip]
fn rows() -> Vec<Row> {
    vec![
        // LLaMA and its relatives.
        ("models/llama", "rms_norm_eps", json!(0.5), Obeyed),
        ("models/llama", "hidden_act", json!("gelu"), Obeyed),
        ("models/llama", "hidden_act", json!("relu2"), Obeyed),
        ("models/llama", "hidden_act", json!("laplace"), Refused),
        ("models/llama", "partial_rotary_factor", json!(0.5), Ignored),
        ("models/llama", "attention_bias", json!(true), Ignored),
        ("models/llama", "mlp_bias", json!(true), Ignored),
        ("models/llama", "pretraining_tp", json!(2), Ignored),
        ("models/llama", "attention_dropout", json!(0.1), Ignored),
        ("models/llama", "sliding_window", json!(2), Ignored),
        ("models/llama", "rope_parameters", json!({"rope_type": "default", "rope_theta": 50.0}), Obeyed),
        ("models/llama", "rope_parameters", json!({"rope_type": "linear", "factor": 2.0}), Obeyed),
        ("models/llama", "rope_parameters", json!({"rope_type": "dynamic", "factor": 2.0}), Ignored),
        ("models/llama", "rope_parameters", json!({"rope_type": "axial"}), Refused),
        ("models/llama", "quantization_config", json!({"quant_method": "gptq", "bits": 4}), Refused),
        ("models/llama", "architectures", json!(["LlamaForSequenceClassification"]), Refused),
        ("models/qwen2", "use_sliding_window", json!(false), Ignored),
        // GPT-2: the first block's scores keep their scale.
        ("models/gpt2", "scale_attn_weights", json!(false), Obeyed),
        ("models/gpt2", "scale_attn_by_inverse_layer_idx", json!(true), Obeyed),
        ("models/gpt2", "reorder_and_upcast_attn", json!(true), Ignored),
        ("models/gpt2", "activation_function", json!("relu"), Obeyed),
        ("models/bloom", "apply_residual_connection_post_layernorm", json!(true), Obeyed),
        ("models/bloom", "pretraining_tp", json!(2), Ignored),
        ("models/gpt_neox", "use_parallel_residual", json!(false), Obeyed),
        ("models/gpt_neox", "attention_bias", json!(false), Obeyed),
        ("models/opt", "enable_bias", json!(false), Obeyed),
        ("models/opt", "layer_norm_elementwise_affine", json!(false), Obeyed),
        ("models/opt", "_remove_final_layer_norm", json!(true), Obeyed),
        ("models/opt", "layerdrop", json!(0.5), Ignored),
        // Gemma 3 has the cap on scores and does not obey it; Gemma 2 does.
        ("goldens/gemma3", "attn_logit_softcapping", json!(0.5), Ignored),
        ("goldens/gemma3", "final_logit_softcapping", json!(0.5), Obeyed),
        ("goldens/gemma2", "attn_logit_softcapping", json!(0.5), Obeyed),
        ("goldens/gemma2", "query_pre_attn_scalar", json!(3), Obeyed),
        ("goldens/gemma", "final_logit_softcapping", json!(0.5), Ignored),
        // Gemma's first files write `gelu` and mean the tanh form; later versions mean what they write, under another key.
        ("goldens/gemma", "hidden_act", json!("gelu"), Ignored),
        ("goldens/gemma", "hidden_act", json!("gelu_python"), Obeyed),
        ("goldens/gemma", "hidden_activation", json!("relu"), Ignored),
        ("goldens/gemma2", "hidden_activation", json!("gelu"), Obeyed),
        ("goldens/gemma2", "hidden_act", json!("relu"), Ignored),
        ("goldens/gemma3", "hidden_activation", json!("gelu"), Obeyed),
        // MPT reads two keys of `attn_config`; its positions are ALiBi's whatever `alibi` says.
        ("goldens/mpt", "attn_config", json!({"softmax_scale": 0.9}), Obeyed),
        ("goldens/mpt", "attn_config", json!({"clip_qkv": 0.1}), Obeyed),
        ("goldens/mpt", "attn_config", json!({"alibi": false, "qk_ln": true, "prefix_lm": true}), Ignored),
        ("goldens/olmoe", "clip_qkv", json!(0.1), Obeyed),
        ("goldens/olmo2", "clip_qkv", json!(0.1), Ignored),
        ("goldens/falcon", "alibi", json!(true), Refused),
        ("goldens/cohere", "logit_scale", json!(0.5), Obeyed),
        ("goldens/stablelm", "use_parallel_residual", json!(true), Obeyed),
        ("goldens/phi", "partial_rotary_factor", json!(0.25), Ignored),
        ("goldens/starcoder2", "use_bias", json!(false), Obeyed),
        ("goldens/mixtral", "num_experts_per_tok", json!(1), Obeyed),
        ("goldens/qwen2_moe", "norm_topk_prob", json!(true), Obeyed),
        ("goldens/qwen2_moe", "layer_types", json!(["sliding_attention", "full_attention"]), Refused),
        ("goldens/smollm3", "no_rope_layers", json!([0, 0]), Obeyed),
        ("goldens/biogpt", "scale_embedding", json!(false), Obeyed),
        ("goldens/biogpt", "layer_norm_eps", json!(0.5), Ignored),
        ("goldens/gpt_oss", "sliding_window", json!(3), Obeyed),
        ("goldens/gpt_oss", "layer_types", json!(["full_attention", "full_attention"]), Obeyed),
        ("goldens/gpt_oss", "attention_bias", json!(false), Obeyed),
        ("goldens/gpt_oss", "layer_types", json!(["full_attention", "chunked_attention"]), Refused),
        ("goldens/gpt_oss", "quantization_config", json!({"quant_method": "fp8"}), Refused),
        ("goldens/llama4", "attention_chunk_size", json!(3), Obeyed),
        ("goldens/llama4", "use_qk_norm", json!(false), Obeyed),
        ("goldens/llama4", "no_rope_layers", json!([1, 1]), Obeyed),
        ("goldens/llama4", "no_rope_layers", json!([1]), Refused),
        // Latent attention.
        ("goldens/deepseek_v2", "rope_parameters", json!({"rope_type": "default", "rope_theta": 50.0}), Obeyed),
        ("goldens/deepseek_v2", "topk_method", json!("greedy"), Obeyed),
        ("goldens/deepseek_v2", "topk_method", json!("noaux_tc"), Refused),
        ("goldens/deepseek_v2", "routed_scaling_factor", json!(0.5), Obeyed),
        ("goldens/deepseek_v2", "norm_topk_prob", json!(true), Ignored),
        ("goldens/deepseek_v2", "mlp_bias", json!(true), Refused),
        ("goldens/deepseek_v2", "head_dim", json!(2), Ignored),
        ("goldens/deepseek_v3", "rope_interleave", json!(false), Obeyed),
        ("goldens/deepseek_v3", "norm_topk_prob", json!(false), Obeyed),
        ("goldens/deepseek_v3", "num_key_value_heads", json!(2), Refused),
        ("goldens/deepseek_v3", "attention_bias", json!(true), Ignored),
        ("goldens/deepseek_v3", "num_nextn_predict_layers", json!(3), Ignored),
        ("goldens/minicpm3", "scale_emb", json!(1), Obeyed),
        ("goldens/minicpm3", "scale_depth", json!(0.5), Obeyed),
        ("goldens/minicpm3", "dim_model_base", json!(16), Obeyed),
    ]
}

fn logits(folder: &std::path::Path) -> Result<Vec<f32>, String> {
    let model = Model::load(folder).and_then(int8_nn::Loader::build).map_err(|error| error.to_string())?;
    Ok(model.logits(&IDS).map_err(|error| error.to_string())?.into_iter().collect())
}

#[test]
fn every_key_is_obeyed_refused_or_ignored_as_transformers_does_it() {
    let mut wrong = Vec::new();
    for (name, key, value, effect) in rows() {
        let source = data(name);
        let plain = logits(&source).expect("the unchanged checkpoint");
        let found = match logits(changed(&source, &[(key, value.clone())]).path()) {
            Ok(found) if found == plain => Ok(Ignored),
            Ok(_) => Ok(Obeyed),
            Err(error) if error.contains(key) => Ok(Refused),
            Err(error) => Err(error),
        };
        if found != Ok(effect) {
            wrong.push(format!("{name} {key} = {value}: {found:?}, expected {effect:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Keys that the files of the goldens hold with the default of transformers' configuration class.
const DEFAULTS: [(&str, &[&str]); 20] = [
    ("models/llama", &["rms_norm_eps", "hidden_act", "rope_parameters", "tie_word_embeddings"]),
    ("models/gpt2", &["layer_norm_epsilon", "activation_function", "tie_word_embeddings", "n_inner"]),
    ("models/bloom", &["layer_norm_epsilon", "tie_word_embeddings"]),
    ("models/opt", &["activation_function", "do_layer_norm_before", "tie_word_embeddings"]),
    ("goldens/phi", &["layer_norm_eps", "hidden_act", "tie_word_embeddings"]),
    ("goldens/phi3", &["rms_norm_eps", "hidden_act", "tie_word_embeddings"]),
    ("goldens/gemma", &["rms_norm_eps", "hidden_act", "tie_word_embeddings"]),
    (
        "goldens/gemma2",
        &["rms_norm_eps", "hidden_activation", "attn_logit_softcapping", "final_logit_softcapping"],
    ),
    ("goldens/gemma3", &["rms_norm_eps", "hidden_activation", "tie_word_embeddings"]),
    ("goldens/qwen3", &["rms_norm_eps", "hidden_act", "attention_bias"]),
    ("goldens/gptj", &["layer_norm_epsilon", "activation_function", "tie_word_embeddings"]),
    ("goldens/gpt_neo", &["layer_norm_epsilon", "activation_function", "tie_word_embeddings"]),
    (
        "goldens/falcon",
        &["layer_norm_epsilon", "activation", "multi_query", "parallel_attn", "bias", "alibi"],
    ),
    ("goldens/mpt", &["layer_norm_epsilon", "tie_word_embeddings", "attn_config"]),
    ("goldens/starcoder2", &["norm_epsilon", "hidden_act", "use_bias", "tie_word_embeddings"]),
    ("goldens/stablelm", &["layer_norm_eps", "hidden_act", "use_parallel_residual", "qk_layernorm"]),
    ("goldens/olmo2", &["rms_norm_eps", "hidden_act", "tie_word_embeddings"]),
    ("goldens/cohere", &["layer_norm_eps", "logit_scale", "tie_word_embeddings", "use_qk_norm"]),
    ("goldens/mixtral", &["rms_norm_eps", "hidden_act", "tie_word_embeddings"]),
    ("goldens/qwen2_moe", &["rms_norm_eps", "norm_topk_prob", "decoder_sparse_step", "qkv_bias"]),
];

#[test]
fn an_absent_key_has_the_default_of_transformers() {
    let mut wrong = Vec::new();
    for (name, keys) in DEFAULTS {
        let source = data(name);
        let plain = logits(&source).expect("the unchanged checkpoint");
        let config = read_json(&source.join("config.json"));
        for key in keys {
            let mut config = config.clone();
            if config.as_object_mut().expect("an object").remove(*key).is_none() {
                wrong.push(format!("{name} has no {key}"));
            }
            match logits(with_config(&source, &config).path()) {
                Ok(found) if found == plain => {}
                Ok(_) => wrong.push(format!("{name} without {key}: other logits")),
                Err(error) => wrong.push(format!("{name} without {key}: {error}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
