#!/usr/bin/env python3
"""Tiny random checkpoints of model families, with logits and greedy ids of Hugging Face transformers.

usage: make_goldens.py [FAMILY…]        all families without an argument; writes int8-nn/tests/data/goldens/FAMILY

Each folder holds config.json, model.safetensors (as transformers saves it, in the family's dtype below) and
golden.safetensors:

    input_ids       i32 [2, 20]
    logits          f32 [2, 20, vocabulary], after from_pretrained(…, dtype=float32): weights as stored, everything in f32
    greedy_ids      i32 [20]: the first 8 tokens of row 0 and 12 that follow
    int8_error      f32 [1]: relative L2 distance from `logits` of LLM.int8() (threshold 6) as bitsandbytes computes it, simulated
                    for every linear layer but head and routers

The gains of the norms are drawn so that some hidden dimensions become outliers. Makes its own environment in
~/.cache/int8-tools (transformers, torch).
"""
import os
import pathlib
import subprocess
import sys
import venv

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "transformers"
NEEDS = ["torch==2.15.0", "transformers==5.24.0", "safetensors"]
OUT = pathlib.Path(__file__).resolve().parent.parent / "int8-nn/tests/data/goldens"

VOCAB = 96
TOKENS = 20
PROMPT = 8

SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
       "eos_token_id": 2}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 1.5, 2.5, 4.0]}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6}
MAMBA = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}
MAMBA_HEADS = {"mamba_d_state": 6, "mamba_n_heads": 4, "mamba_n_groups": 2}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# name: (model_type, dtype, config)
FAMILIES = {
    "opt_350m": ("opt", "float16", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 64, "do_layer_norm_before": False, "word_embed_proj_dim": 24}),
    "gptj": ("gptj", "float16", {**GPT, "rotary_dim": 4, "n_inner": 64}),
    "phi": ("phi", "float16", {**SIZES, "partial_rotary_factor": 0.5}),
    "phi_grouped": ("phi", "bfloat16", {**GROUPED, "partial_rotary_factor": 0.5, "qk_layernorm": True}),
    # Short sequences have the short factors, all others the long ones.
    "phi3": ("phi3", "bfloat16", {
        **GROUPED, "sliding_window": 9, "original_max_position_embeddings": 32,
        "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 32}}),
    "phi3_long": ("phi3", "bfloat16", {
        **GROUPED, "original_max_position_embeddings": 7,
        "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 7}}),
    "gemma": ("gemma", "bfloat16", {**GROUPED, "head_dim": 16, "num_key_value_heads": 1}),
    "gemma2": ("gemma2", "bfloat16", {
        **GROUPED, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 24, "num_hidden_layers": 3}),
    "gemma3": ("gemma3_text", "bfloat16", {
        **GROUPED, "head_dim": 16, "sliding_window": 7, "sliding_window_pattern": 3, "query_pre_attn_scalar": 24,
        "num_hidden_layers": 4}),
    "qwen3": ("qwen3", "bfloat16", {**GROUPED, "head_dim": 16}),
    "qwen2_windows": ("qwen2", "bfloat16", {
        **GROUPED, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3}),
    "mistral": ("mistral", "bfloat16", {**GROUPED, "sliding_window": 7}),
    "gpt_neox_sequential": ("gpt_neox", "float16", {**SIZES, "use_parallel_residual": False, "rotary_pct": 0.5}),
    "gpt_neo": ("gpt_neo", "float32", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 64, "window_size": 6, "attention_types": [[["global", "local"], 1]],
        "bos_token_id": 1, "eos_token_id": 2}),
    "llama3": ("llama", "bfloat16", {**GROUPED, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama_yarn": ("llama", "float16", {**GROUPED, "attention_bias": True, "rope_parameters": YARN}),
    "falcon": ("falcon", "bfloat16", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "bos_token_id": 1, "eos_token_id": 2}),
    "falcon_grouped": ("falcon", "bfloat16", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2,
        "new_decoder_architecture": True, "bias": True, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_bigcode": ("gpt_bigcode", "float16", {**GPT, "n_inner": 64}),
    "starcoder2": ("starcoder2", "bfloat16", {**GROUPED, "sliding_window": 8}),
    "stablelm": ("stablelm", "float16", {**GROUPED, "use_qkv_bias": True}),
    "stablelm_parallel": ("stablelm", "float16", {**GROUPED, "use_parallel_residual": True}),
    "olmo2": ("olmo2", "float32", {**GROUPED}),
    "cohere": ("cohere", "float16", {**GROUPED}),
    "cohere2": ("cohere2", "bfloat16", {**GROUPED, "sliding_window": 6, "sliding_window_pattern": 2}),
    "mpt": ("mpt", "bfloat16", {
        "vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 64,
        "bos_token_id": 1, "eos_token_id": 2}),
    "smollm3": ("smollm3", "bfloat16", {**GROUPED, "no_rope_layers": [1, 0]}),
    "mixtral": ("mixtral", "bfloat16", {
        **GROUPED, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen2_moe": ("qwen2_moe", "bfloat16", {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen2_moe_sparse": ("qwen2_moe", "float16", {
        **GROUPED, **EXPERTS, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 2}),
    "qwen3_moe": ("qwen3_moe", "bfloat16", {**GROUPED, **EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": ("olmoe", "float16", {**GROUPED, "intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}),
    "seed_oss": ("seed_oss", "bfloat16", {**GROUPED, "head_dim": 16, "attention_bias": True}),
    "ministral3": ("ministral3", "bfloat16", {
        **GROUPED, "head_dim": 8, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}),
    "granite": ("granite", "bfloat16", {
        **GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2,
        "logits_scaling": 4.0}),
    "granitemoe": ("granitemoe", "bfloat16", {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 4.0}),
    "glm": ("glm", "bfloat16", {**GROUPED, "head_dim": 8}),
    "glm4": ("glm4", "bfloat16", {**GROUPED, "head_dim": 8}),
    "helium": ("helium", "bfloat16", {**GROUPED, "head_dim": 8}),
    "ernie4_5": ("ernie4_5", "bfloat16", {**GROUPED, "head_dim": 8}),
    "exaone4": ("exaone4", "bfloat16", {
        **GROUPED, "sliding_window": 7, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}),
    "nemotron": ("nemotron", "bfloat16", {**GROUPED, "head_dim": 8}),
    "arcee": ("arcee", "bfloat16", {**GROUPED}),
    "olmo": ("olmo", "float16", {**GROUPED, "clip_qkv": 2.0}),
    "olmo3": ("olmo3", "bfloat16", {
        **GROUPED, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}),
    "persimmon": ("persimmon", "bfloat16", {**SIZES}),
    "hunyuan_dense": ("hunyuan_v1_dense", "bfloat16", {**GROUPED, "head_dim": 8}),
    "phimoe": ("phimoe", "bfloat16", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4_moe": ("glm4_moe", "bfloat16", {
        **GROUPED, "head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}),
    "ernie4_5_moe": ("ernie4_5_moe", "bfloat16", {
        **GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 24,
        "moe_layer_start_index": 1}),
    "minimax_m2": ("minimax_m2", "bfloat16", {
        **GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4}),
    "biogpt": ("biogpt", "float16", {**SIZES}),
    "codegen": ("codegen", "float16", {**GPT, "rotary_dim": 4, "n_inner": 64}),
    "gpt_neox_japanese": ("gpt_neox_japanese", "float16", {**SIZES, "intermediate_multiple_size": 2}),
    "gpt_oss": ("gpt_oss", "bfloat16", {
        **GROUPED, "head_dim": 8, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 6, "rope_parameters": {**YARN, "truncate": False}}),
    # A group of chunks, and queries that grow from the tenth token on.
    "llama4": ("llama4_text", "bfloat16", {
        **GROUPED, "head_dim": 8, "intermediate_size": 24, "intermediate_size_mlp": 40, "num_local_experts": 4,
        "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0], "attention_chunk_size": 7, "floor_scale": 10}),
    "deepseek_v2": ("deepseek_v2", "bfloat16", {
        **SIZES, **LATENT, "q_lora_rank": None, "v_head_dim": 16, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
        "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5}),
    "deepseek_v3": ("deepseek_v3", "bfloat16", {
        **SIZES, **LATENT, "num_key_value_heads": 4, "v_head_dim": 8, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
        "rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.2}}),
    "minicpm3": ("minicpm3", "bfloat16", {**SIZES, **LATENT, "num_key_value_heads": 4, "v_head_dim": 8, "dim_model_base": 8}),
    # Experts in blocks of 32 four-bit floats, as OpenAI published it.
    "gpt_oss_mxfp4": ("gpt_oss", "bfloat16", {
        **GROUPED, "head_dim": 8, "hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
        "sliding_window": 6, "rope_parameters": {**YARN, "truncate": False}}),
    "mamba": ("mamba", "bfloat16", {**MAMBA, "state_size": 6, "time_step_rank": 5, "use_bias": True}),
    "falcon_mamba": ("falcon_mamba", "float16", {**MAMBA, "state_size": 6, "time_step_rank": 5}),
    "bamba": ("bamba", "bfloat16", {**GROUPED, **MAMBA_HEADS, "attn_layer_indices": [1], "mamba_chunk_size": 7}),
    "falcon_h1": ("falcon_h1", "bfloat16", {
        **GROUPED, **MAMBA_HEADS, "mamba_d_ssm": 48, "mamba_d_head": 12, "mamba_rms_norm": True,
        "ssm_multipliers": [0.5, 0.7, 1.3, 2.0, 0.6], "ssm_in_multiplier": 1.5, "ssm_out_multiplier": 0.4,
        "attention_in_multiplier": 0.8, "attention_out_multiplier": 0.6, "key_multiplier": 0.3,
        "mlp_multipliers": [0.7, 1.4], "embedding_multiplier": 2.0, "lm_head_multiplier": 0.5}),
    "nemotron_h": ("nemotron_h", "bfloat16", {
        **GROUPED, "head_dim": 8, "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "ssm_state_size": 6, "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "n_routed_experts": 4,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24, "chunk_size": 7}),
    "zamba": ("zamba", "bfloat16", {
        **SIZES, "num_key_value_heads": 4, "num_hidden_layers": 3, "mamba_d_state": 6, "mamba_dt_rank": 5,
        "layers_block_type": ["hybrid", "linear_attention", "hybrid"]}),
    "zamba2": ("zamba2", "bfloat16", {
        **SIZES, "num_hidden_layers": 2, "mamba_d_state": 6, "n_mamba_heads": 4, "mamba_ngroups": 2, "chunk_size": 7,
        "layers_block_type": ["hybrid", "hybrid"], "rms_norm_eps": 4.0,
        "adapter_rank": 4, "use_shared_attention_adapter": True, "use_mem_rope": True}),
    "flint": ("flint", "bfloat16", {
        **GROUPED, **EXPERTS, "head_dim": 8, "sliding_window": 7, "shared_expert_intermediate_size": 24,
        "mlp_only_layers": [0], "layer_types": ["full_attention", "sliding_attention"]}),
    "xglm": ("xglm", "float16", {
        "vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64,
        "max_position_embeddings": 64, "pad_token_id": 3, "bos_token_id": 1, "eos_token_id": 2}),
    "ctrl": ("ctrl", "float16", {
        "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 64}),
    "dbrx": ("dbrx", "bfloat16", {
        "vocab_size": VOCAB, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64,
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 2.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}}),
    "apertus": ("apertus", "bfloat16", {**GROUPED}),
    "afmoe": ("afmoe", "bfloat16", {
        **GROUPED, **EXPERTS, "head_dim": 8, "num_dense_layers": 1, "num_shared_experts": 1, "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention"], "mup_enabled": True}),
    "laguna": ("laguna", "bfloat16", {
        **GROUPED, **EXPERTS, "head_dim": 8, "shared_expert_intermediate_size": 24, "sliding_window": 7,
        "num_attention_heads_per_layer": [4, 8], "layer_types": ["full_attention", "sliding_attention"]}),
    "bitnet": ("bitnet", "bfloat16", {**GROUPED}),
    "cohere2_moe": ("cohere2_moe", "bfloat16", {
        **GROUPED, "head_dim": 8, "intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2,
        "num_shared_experts": 1, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "axk1": ("axk1", "bfloat16", {
        **SIZES, **LATENT, "num_key_value_heads": 4, "v_head_dim": 8, "n_routed_experts": 8, "num_experts_per_tok": 2,
        "n_shared_experts": 1, "moe_intermediate_size": 24, "n_group": 2, "topk_group": 1}),
    "gemma3n": ("gemma3n_text", "bfloat16", {
        **GROUPED, "head_dim": 8, "num_hidden_layers": 4, "sliding_window": 7, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.7, 0.0, 0.0, 0.0], "hidden_size_per_layer_input": 8, "laurel_rank": 8,
        "altup_num_inputs": 3, "vocab_size_per_layer_input": 80}),
    # As the small ones: an embedding for each block, shared keys and values, wider MLPs.
    "gemma4": ("gemma4_text", "bfloat16", {
        **GROUPED, "head_dim": 8, "global_head_dim": 16, "num_hidden_layers": 4, "sliding_window": 7,
        "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "final_logit_softcapping": 30.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}),
    # As the large ones: experts beside the MLP, keys as values.
    "gemma4_moe": ("gemma4_text", "bfloat16", {
        **GROUPED, "head_dim": 8, "global_head_dim": 16, "num_global_key_value_heads": 1, "sliding_window": 7,
        "attention_k_eq_v": True, "layer_types": ["sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 24}),
    # So many queries of the indexer that no two keys have the same score, and a selection from the eighth token on. 32-bit: what
    # a 16-bit KV cache rounds away changes selections.
    "deepseek_v32": ("deepseek_v32", "float32", {
        **SIZES, **LATENT, "num_key_value_heads": 4, "v_head_dim": 8, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "index_n_heads": 16, "index_head_dim": 8, "index_topk": 7}),
    "glm_moe_dsa": ("glm_moe_dsa", "bfloat16", {
        **SIZES, **LATENT, "num_key_value_heads": 4, "v_head_dim": 8, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1,
        "indexer_types": ["full", "shared"], "index_n_heads": 16, "index_head_dim": 8, "index_topk": 7}),
    "longcat_flash": ("longcat_flash", "bfloat16", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 40,
        "max_position_embeddings": 64, **LATENT, "head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "moe_topk": 2,
        "zero_expert_num": 2, "expert_ffn_hidden_size": 24}),
    "mimo_v2_flash": ("mimo_v2_flash", "bfloat16", {
        **SIZES, "num_key_value_heads": 1, "head_dim": 12, "v_head_dim": 8, "sliding_window": 7,
        "layer_types": ["full_attention", "sliding_attention"], "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24}),
    "diffllama": ("diffllama", "bfloat16", {**GROUPED}),
    "modernbert_decoder": ("modernbert-decoder", "bfloat16", {
        **SIZES, "num_hidden_layers": 3, "local_attention": 12,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]}),
    "minimax_m3": ("minimax_m3_vl_text", "bfloat16", {
        **GROUPED, "head_dim": 8, "intermediate_size": 24, "dense_intermediate_size": 40,
        "shared_intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2, "swiglu_limit": 1.0,
        "mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5}}),
    "jamba": ("jamba", "bfloat16", {
        **GROUPED, "intermediate_size": 24, "mamba_d_state": 6, "mamba_dt_rank": 5, "num_experts": 4,
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}),
    "granitemoehybrid": ("granitemoehybrid", "bfloat16", {
        **GROUPED, **MAMBA_HEADS, "intermediate_size": 24, "num_local_experts": 4, "shared_intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention"], "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 4.0}),
    "mamba2": ("mamba2", "bfloat16", {
        **MAMBA, "state_size": 6, "num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 7,
        "time_step_limit": (0.1, 1.5)}),
    "qwen3_next": ("qwen3_next", "bfloat16", {
        **GROUPED, **EXPERTS, **DELTA, "head_dim": 16, "shared_expert_intermediate_size": 24,
        "layer_types": ["linear_attention", "full_attention"]}),
    "qwen3_5_text": ("qwen3_5_text", "bfloat16", {
        **GROUPED, **DELTA, "head_dim": 16, "layer_types": ["linear_attention", "full_attention"]}),
    "olmo_hybrid": ("olmo_hybrid", "bfloat16", {
        **SIZES, **DELTA, "num_key_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}),
    "kimi_linear": ("kimi_linear", "bfloat16", {
        **SIZES, **LATENT, **EXPERTS, "q_lora_rank": None, "num_key_value_heads": 4, "v_head_dim": 8, "linear_num_heads": 2,
        "linear_head_dim": 10, "n_group": 2, "topk_group": 1, "layer_types": ["linear_attention", "full_attention"]}),
    # transformers stores its tables of decays, and rounds them to a 16-bit type; they are computed in f32 here.
    "minimax": ("minimax", "float32", {
        **GROUPED, "head_dim": 12, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 3, "block_size": 7,
        "layer_types": ["linear_attention", "full_attention"], "linear_attn_alpha_factor": 1.5,
        "linear_attn_beta_factor": 0.75, "full_attn_alpha_factor": 1.25, "mlp_beta_factor": 0.5}),
    "lfm2_moe": ("lfm2_moe", "bfloat16", {
        **GROUPED, **EXPERTS, "num_dense_layers": 1, "num_hidden_layers": 3, "conv_bias": True,
        "layer_types": ["conv", "full_attention", "conv"]}),
    "lfm3": ("lfm3", "bfloat16", {
        **GROUPED, "head_dim": 16, "sliding_window": 7, "num_hidden_layers": 3,
        "layer_types": ["conv", "sliding_attention", "full_attention"]}),
}
# Also saved with a block's experts in one tensor, as transformers 5 holds them.
FUSED = {"mixtral": "mixtral_fused"}


def in_environment(script=__file__):
    python = HOME / "bin/python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), script, *sys.argv[1:]])


def randomize(model, generator):
    """Random weights, large enough for distinct logits; norm gains with a few large entries."""
    import torch

    # Gains less one.
    kind = type(model).__name__
    gemma = kind.startswith(("Gemma", "MiniMaxM3")) and not kind.startswith(("Gemma3n", "Gemma4"))
    for name, tensor in model.named_parameters():
        short = name.rsplit(".", 1)[-1]
        draw = torch.randn(tensor.shape, generator=generator)
        is_norm = tensor.dim() == 1 and short == "weight"
        if is_norm:
            gain = 1 + 0.1 * draw
            per_head = any(part in name for part in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"))
            if not per_head:
                gain[torch.randperm(len(gain), generator=generator)[:2]] *= 6
            values = gain - 1 if gemma else gain
        elif short == "bias":
            values = 0.1 * draw
        elif tensor.dim() >= 2 and "embed" not in name and "wte" not in name and "wpe" not in name:
            # Tied heads are embeddings; everything else is scaled by its inputs.
            values = draw * 1.2 / tensor.shape[-1] ** 0.5
        else:
            values = 0.5 * draw
        tensor.data.copy_(values)


def llm_int8(x, weight, bias=None):
    """LLM.int8() as in bitsandbytes: outlier columns meet dequantised weights, everything else is int8."""
    import torch

    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-30)
    codes = (weight * 127 / scale).round()
    outlier = (x.abs() >= 6).any(0)
    inside = torch.where(outlier, 0, x)
    row = inside.abs().amax(1, keepdim=True).clamp_min(1e-30)
    y = ((inside * 127 / row).round() @ codes.T) * (row / 127) * (scale.T / 127)
    y += torch.where(outlier, x, 0) @ (codes * scale / 127).T
    return (y if bias is None else y + bias).reshape(*shape[:-1], -1)


def int8_logits(model, ids):
    """Logits with every linear layer but the head and the routers in int8, experts included."""
    import torch
    from transformers.models.falcon.modeling_falcon import FalconLinear
    from transformers.pytorch_utils import Conv1D

    # Falcon's layer class does not call F.linear; the product is the same.
    FalconLinear.forward = torch.nn.Linear.forward
    plain = torch.nn.functional.linear
    head = model.get_output_embeddings()
    around = ("project_in", "project_out", "per_layer_model_projection", "lm_head.dense")
    small = ("router.layer", "router.proj", "router.classifier", "modality_router", "prediction_coefs", "correction_coefs",
             "weights_proj")
    left = {id(head.weight)} | {id(module.weight) for name, module in model.named_modules()
                                if (name.endswith((".gate", ".router", "shared_expert_gate", *around, *small))
                                    or "altup_" in name) and hasattr(module, "weight")}
    assert not any(isinstance(module, Conv1D) for module in model.modules())

    def linear(x, weight, bias=None):
        return (plain if id(weight) in left else llm_int8)(x, weight, bias)

    torch.nn.functional.linear = linear
    try:
        return model(ids).logits
    finally:
        torch.nn.functional.linear = plain


def fuse_experts(folder, count):
    """Stacks `experts.E.{w1,w3}` and `experts.E.w2` into one tensor each."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    blocks = {name.split(".experts.")[0] for name in tensors if ".experts." in name}
    for block in sorted(blocks):
        take = lambda expert, part: tensors.pop(f"{block}.experts.{expert}.{part}.weight")
        up = [torch.cat([take(expert, "w1"), take(expert, "w3")]) for expert in range(count)]
        tensors[f"{block}.experts.gate_up_proj"] = torch.stack(up)
        tensors[f"{block}.experts.down_proj"] = torch.stack([take(expert, "w2") for expert in range(count)])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def mxfp4_experts(folder):
    """Rounds the experts of `folder` to MXFP4 and says so in config.json."""
    import json

    import torch
    from safetensors.torch import load_file, save_file

    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    values = torch.cat([values, -values])
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        weight = tensors.pop(name).float().transpose(1, 2)  # [experts, out, in]
        groups = weight.reshape(*weight.shape[:2], -1, 32)
        exponent = groups.abs().amax(-1).log2().floor() - 2  # 6 = 1.5 * 2^2 is the largest value
        codes = (groups / exponent.exp2()[..., None]).unsqueeze(-1).sub(values).abs().argmin(-1).to(torch.uint8)
        tensors[f"{name}_blocks"] = codes[..., 0::2] | (codes[..., 1::2] << 4)
        tensors[f"{name}_scales"] = (exponent + 127).to(torch.uint8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def make(name, generator):
    import shutil

    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

    model_type, dtype, settings = FAMILIES[name]
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    randomize(model, generator)
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    stored = {}
    if name.endswith("_mxfp4"):
        mxfp4_experts(folder)
        stored["quantization_config"] = Mxfp4Config(dequantize=True)
    # As stored, in f32: casting the module would also round buffers.
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **stored).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    ids = torch.randint(3, VOCAB, (2, TOKENS), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits
        row = ids[:1, :PROMPT]
        for _ in range(TOKENS - PROMPT):
            row = torch.cat([row, model(row).logits[:, -1:].argmax(-1)], dim=1)
        error = (int8_logits(model, ids) - logits).norm() / logits.norm()
    top = logits.topk(2).values
    save_file({
        "input_ids": ids.int(), "logits": logits.contiguous(), "greedy_ids": row[0].int(),
        "int8_error": error.reshape(1),
    }, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, |logits| {logits.abs().max():.2f}, int8 error {error:.2e}, "
          f"closest two logits {(top[..., 0] - top[..., 1]).min():.1e}, greedy {row[0, PROMPT:].tolist()}")
    if name in FUSED:
        other = OUT / FUSED[name]
        shutil.copytree(folder, other, dirs_exist_ok=True)
        fuse_experts(other, settings["num_local_experts"])


def main(names):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    for index, name in enumerate(FAMILIES):
        if not names or name in names:
            make(name, torch.Generator().manual_seed(1000 + index))


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    main(sys.argv[1:])
