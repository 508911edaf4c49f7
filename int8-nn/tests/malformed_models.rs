//! Sound files whose `config.json` contradicts the tensors: each gives one error that names file and key or tensor, never a panic
//! or a model that computes something else.

mod common;

use int8_nn::Model;
use serde_json::{Value, json};

use common::{Case, LATE, changed, check, data};

/// The error of loading the tiny checkpoint of `family` with these keys of its `config.json` changed (`null` removes).
fn error(family: &str, changes: &[(&str, Value)]) -> Result<(), String> {
    let models = data("models").join(family);
    let source = if models.is_dir() { models } else { data("goldens").join(family) };
    let folder = changed(&source, changes);
    let loader = Model::load(folder.path()).map_err(|error| error.to_string())?;
    let model = loader.int8().build().map_err(|error| error.to_string())?;
    model.logits(&[5, 17, 42]).map(drop).map_err(|error| format!("{LATE}: {error}"))
}

#[test]
fn every_contradiction_is_named() {
    let cases: Vec<Case> = vec![
        ("opt", vec![("model_type", json!(null))], vec!["config.json", "model_type", "missing"]),
        (
            "opt",
            vec![("model_type", json!("unheard_of"))],
            vec!["config.json", "unheard_of", "llama", "gpt2"],
        ),
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
        (
            "opt",
            vec![("num_hidden_layers", json!(2_000_000_000))],
            vec!["config.json", "2000000000 layers", "36 tensors"],
        ),
        (
            "opt",
            vec![("activation_function", json!("gelu_maybe"))],
            vec!["config.json", "gelu_maybe", "relu"],
        ),
        ("opt", vec![("tie_word_embeddings", json!(false))], vec!["lm_head.weight"]),
        ("opt", vec![("tie_word_embeddings", json!("yes"))], vec!["tie_word_embeddings", "true or false"]),
        ("opt", vec![("word_embed_proj_dim", json!(32))], vec!["embed_tokens", "32", "64"]),
        ("opt", vec![("eos_token_id", json!("end"))], vec!["eos_token_id", "end"]),
        ("opt", vec![("eos_token_id", json!([2, 0.5]))], vec!["eos_token_id", "0.5"]),
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
            vec![("rope_parameters", json!({"rope_type": "dynamic"}))],
            vec!["rope_parameters.factor", "missing"],
        ),
        ("llama", vec![("rope_parameters", json!("default"))], vec!["rope_parameters", "object"]),
        (
            "llama",
            vec![("rope_parameters", json!({"rope_type": "yarn", "factor": 0}))],
            vec!["rope_parameters.factor", "0"],
        ),
        (
            "llama",
            vec![(
                "rope_parameters",
                json!({"rope_type": "longrope", "original_max_position_embeddings": 1}),
            )],
            vec!["original_max_position_embeddings", "1"],
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
            vec![("scale_attn_by_inverse_layer_idx", json!(3))],
            vec!["scale_attn_by_inverse_layer_idx"],
        ),
        ("bloom", vec![("n_head", json!(3))], vec!["config.json", "n_head"]),
        ("bloom", vec![("apply_residual_connection_post_layernorm", json!("yes"))], vec!["apply_residual"]),
        (
            "gpt_neox",
            vec![("rope_parameters", json!({"partial_rotary_factor": 4.0}))],
            vec!["partial_rotary"],
        ),
        ("gpt_neox", vec![("intermediate_size", json!(128))], vec!["dense_h_to_4h", "128", "256"]),
    ];
    check(cases, error);
}

/// The same for the families of `tests/data/goldens`.
#[test]
fn every_contradiction_of_further_families_is_named() {
    let longrope = |key: &str, value: Value| {
        let mut parameters = json!({
            "rope_type": "longrope", "original_max_position_embeddings": 32,
            "short_factor": [1, 1, 1, 1], "long_factor": [1, 1, 1, 1],
        });
        parameters[key] = value;
        vec![("rope_parameters", parameters)]
    };
    let cases: Vec<Case> = vec![
        ("opt_350m", vec![("word_embed_proj_dim", json!(32))], vec!["embed_tokens", "32", "24"]),
        ("opt_350m", vec![("do_layer_norm_before", json!(true))], vec!["final_layer_norm"]),
        ("gptj", vec![("rotary_dim", json!(3))], vec!["3", "even", "8"]),
        ("gptj", vec![("rotary_dim", json!(64))], vec!["64", "head size 8"]),
        ("gptj", vec![("n_head", json!(3))], vec!["config.json", "n_head", "3"]),
        (
            "phi",
            vec![("partial_rotary_factor", json!(0.1)), ("rope_parameters", json!(null))],
            vec!["partial_rotary_factor"],
        ),
        ("phi", vec![("qk_layernorm", json!(true))], vec!["q_layernorm"]),
        ("phi_grouped", vec![("num_key_value_heads", json!(4))], vec!["k_proj", "32", "16"]),
        ("phi3", longrope("short_factor", json!([1, 1])), vec!["factor", "2", "4"]),
        ("phi3", longrope("long_factor", json!([1, 1, 1, 0])), vec!["long_factor", "0"]),
        ("phi3", longrope("long_factor", json!(7)), vec!["long_factor", "list"]),
        ("phi3", vec![("sliding_window", json!(-1))], vec!["sliding_window", "-1"]),
        ("phi3", vec![("num_key_value_heads", json!(1))], vec!["qkv_proj", "48", "64"]),
        ("gemma", vec![("head_dim", json!(8))], vec!["q_proj", "32", "64"]),
        ("gemma", vec![("use_bidirectional_attention", json!(true))], vec!["use_bidirectional_attention"]),
        ("gemma2", vec![("layer_types", json!(["full_attention"]))], vec!["layer_types", "3"]),
        (
            "gemma2",
            vec![("layer_types", json!(["full_attention", "full_attention", "chunked_attention"]))],
            vec!["layer_types", "chunked_attention"],
        ),
        ("gemma2", vec![("layer_types", json!(3))], vec!["layer_types"]),
        ("gemma2", vec![("final_logit_softcapping", json!(0))], vec!["final_logit_softcapping", "0"]),
        ("gemma2", vec![("query_pre_attn_scalar", json!("many"))], vec!["query_pre_attn_scalar", "many"]),
        (
            "gemma3",
            vec![("sliding_window_pattern", json!(0)), ("layer_types", json!(null))],
            vec!["sliding_window_pattern"],
        ),
        (
            "gemma3",
            vec![("rope_parameters", json!({"full_attention": {"rope_theta": -1}}))],
            vec!["rope_parameters.full_attention.rope_theta", "-1"],
        ),
        ("gemma3", vec![("text_config", json!([]))], vec!["text_config", "object"]),
        ("qwen3", vec![("head_dim", json!(8))], vec!["8"]),
        (
            "gpt_neo",
            vec![("attention_layers", json!(["global", "nearby"]))],
            vec!["attention_layers", "nearby"],
        ),
        ("gpt_neo", vec![("attention_layers", json!(["global"]))], vec!["attention_layers", "2"]),
        (
            "gpt_neo",
            vec![("attention_layers", json!(null)), ("attention_types", json!([[["global"], 1_u64 << 62]]))],
            vec!["attention_types", "2"],
        ),
        (
            "gpt_neo",
            vec![("attention_layers", json!(null)), ("attention_types", json!("all"))],
            vec!["attention_types"],
        ),
        ("falcon", vec![("alibi", json!(true))], vec!["alibi"]),
        (
            "llama3",
            vec![("rope_parameters", json!({"rope_type": "axial"}))],
            vec!["rope_parameters", "axial", "llama3"],
        ),
        ("falcon", vec![("multi_query", json!(false))], vec!["query_key_value", "96", "48"]),
        ("falcon_grouped", vec![("num_kv_heads", json!(3))], vec!["3", "4"]),
        ("falcon_grouped", vec![("num_ln_in_parallel_attn", json!(1))], vec!["input_layernorm"]),
        ("gpt_bigcode", vec![("multi_query", json!(false))], vec!["c_attn", "96", "48"]),
        ("stablelm", vec![("qk_layernorm", json!(true))], vec!["q_layernorm.norms.0"]),
        ("olmoe", vec![("clip_qkv", json!(-8.0))], vec!["clip_qkv", "-8"]),
        ("cohere", vec![("use_qk_norm", json!(true))], vec!["q_norm"]),
        ("cohere2", vec![("sliding_window", json!("wide"))], vec!["sliding_window", "wide"]),
        ("mpt", vec![("n_heads", json!(3))], vec!["n_heads", "3"]),
        ("mpt", vec![("attn_config", json!({"softmax_scale": 0}))], vec!["attn_config", "softmax_scale"]),
        ("mpt", vec![("attn_config", json!({"clip_qkv": -6}))], vec!["attn_config", "clip_qkv"]),
        ("smollm3", vec![("no_rope_layers", json!([1]))], vec!["no_rope_layers", "2"]),
        ("smollm3", vec![("no_rope_layers", json!([1, 2]))], vec!["no_rope_layers", "2"]),
        ("mixtral", vec![("num_local_experts", json!(5))], vec!["gate", "5", "4"]),
        ("mixtral", vec![("num_local_experts", json!(null))], vec!["num_local_experts", "missing"]),
        ("mixtral", vec![("num_experts_per_tok", json!(5))], vec!["num_experts_per_tok", "5", "4"]),
        ("mixtral", vec![("intermediate_size", json!(32))], vec!["experts.0.w1", "32", "24"]),
        ("mixtral_fused", vec![("num_local_experts", json!(3))], vec!["gate", "3", "4"]),
        ("mixtral_fused", vec![("intermediate_size", json!(32))], vec!["experts.gate_up_proj", "64", "48"]),
        (
            "qwen2_moe",
            vec![("shared_expert_intermediate_size", json!(null))],
            vec!["shared_expert_intermediate_size"],
        ),
        ("qwen2_moe", vec![("decoder_sparse_step", json!(0))], vec!["decoder_sparse_step", "0"]),
        ("qwen2_moe", vec![("mlp_only_layers", json!([0.5]))], vec!["mlp_only_layers", "0.5"]),
        ("qwen2_moe", vec![("mlp_only_layers", json!([1]))], vec!["layers.1.mlp.gate_proj"]),
        ("qwen3_moe", vec![("num_experts_per_tok", json!(0))], vec!["num_experts_per_tok", "0"]),
        ("olmoe", vec![("num_experts", json!(-4))], vec!["num_experts", "-4"]),
    ];
    check(cases, error);
}

/// The unchanged checkpoints load: a table of errors could otherwise pass because nothing does.
#[test]
fn the_unchanged_checkpoints_run() {
    for family in
        ["opt", "llama", "qwen2", "gpt2", "bloom", "gpt_neox", "gptj", "gemma3", "mixtral", "qwen2_moe"]
    {
        assert_eq!(error(family, &[]), Ok(()), "{family}");
    }
}
