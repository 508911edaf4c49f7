#!/usr/bin/env python3
"""A folder with random weights of a Llama's shape, for measurements of what needs files: `int8 serve`, loading.

random_llama.py FOLDER [--hidden 4096] [--intermediate 14336] [--layers 32] [--heads 32] [--kv-heads 8] [--vocabulary 128256]

Values as `int8 bench --shape` makes them (int8-nn/src/synthetic.rs): bf16, a deviation of 0.02 up to a width of 1,024 and
less above, gains that make 0.1 % of the hidden features outliers. Needs torch and safetensors; uses a GPU where there is one."""

import argparse
import json
import math
import pathlib

import torch
from safetensors.torch import save_file

OUTLIER_EVERY, OUTLIER_AT, OUTLIER_GAIN = 1000, 7, 20.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    for name, value in [("hidden", 4096), ("intermediate", 14336), ("layers", 32), ("heads", 32), ("kv-heads", 8), ("vocabulary", 128256)]:
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    deviation = 0.02 * math.sqrt(1024 / max(a.hidden, 1024))
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape):
        return (torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * deviation).to(torch.bfloat16).cpu()

    gain = torch.ones(a.hidden, dtype=torch.bfloat16)
    gain[OUTLIER_AT::OUTLIER_EVERY] = OUTLIER_GAIN
    keys = a.hidden // a.heads * a.kv_heads
    a.folder.mkdir(parents=True, exist_ok=True)
    files = []

    def write(tensors):
        files.append((f"model-{len(files) + 1:05}.safetensors", list(tensors)))
        save_file(tensors, a.folder / files[-1][0], {"format": "pt"})

    write({"model.embed_tokens.weight": normal(a.vocabulary, a.hidden), "model.norm.weight": gain.clone(), "lm_head.weight": normal(a.vocabulary, a.hidden)})
    for layer in range(a.layers):
        at = f"model.layers.{layer}."
        write({
            f"{at}input_layernorm.weight": gain.clone(),
            f"{at}post_attention_layernorm.weight": gain.clone(),
            f"{at}self_attn.q_proj.weight": normal(a.hidden, a.hidden),
            f"{at}self_attn.k_proj.weight": normal(keys, a.hidden),
            f"{at}self_attn.v_proj.weight": normal(keys, a.hidden),
            f"{at}self_attn.o_proj.weight": normal(a.hidden, a.hidden),
            f"{at}mlp.gate_proj.weight": normal(a.intermediate, a.hidden),
            f"{at}mlp.up_proj.weight": normal(a.intermediate, a.hidden),
            f"{at}mlp.down_proj.weight": normal(a.hidden, a.intermediate),
        })
    index = {"metadata": {}, "weight_map": {name: file for file, names in files for name in names}}
    (a.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": a.hidden,
        "intermediate_size": a.intermediate, "num_hidden_layers": a.layers, "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads, "vocab_size": a.vocabulary, "max_position_embeddings": 8192, "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": 128001,
    }
    (a.folder / "config.json").write_text(json.dumps(config))
    # A word for each id, so that a server has text to stream.
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(a.vocabulary)}, "unk_token": "w0"},
    }
    (a.folder / "tokenizer.json").write_text(json.dumps(tokenizer))


if __name__ == "__main__":
    main()
