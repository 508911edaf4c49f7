#!/usr/bin/env python3
"""Writes int8-nn/tests/data/torch: one tiny random OPT model as PyTorch checkpoints and as safetensors.

usage: torch_checkpoints.py

The PyTorch files hold the same numbers in every way that torch.save offers: views of one storage, transposes, slices of
wider rows, tied tensors, parameters with attributes, integers, element types without a storage class of their own,
pickle protocols 2 and 4. `golden.safetensors` has the logits that transformers computes from them.
Makes its own environment in ~/.cache/int8-tools (transformers, torch).
"""
import json
import pathlib
import sys

from from_pretrained_logits import HOME, in_environment

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "int8-nn/tests/data/torch"


def views(state):
    """The same tensors in other memory layouts."""
    import torch

    layer = "model.decoder.layers.0."
    attention = [f"{layer}self_attn.{part}_proj.weight" for part in "qkv"]
    # Three slices of one storage.
    fused = torch.cat([state[name] for name in attention])
    for name, part in zip(attention, fused.chunk(3)):
        state[name] = part
    # A transpose.
    name = f"{layer}fc1.weight"
    state[name] = state[name].t().contiguous().t()
    # Columns 3.. of wider rows, from an offset on.
    name = f"{layer}fc2.weight"
    wide = torch.randn(state[name].shape[0], state[name].shape[1] + 5).to(state[name].dtype)
    wide[:, 3:-2] = state[name]
    state[name] = wide[:, 3:-2]
    # A parameter with an attribute; every second element of a vector.
    name = f"{layer}fc1.bias"
    state[name] = torch.nn.Parameter(state[name])
    state[name].note = "an attribute"
    name = f"{layer}fc2.bias"
    state[name] = torch.stack([state[name], state[name] + 1], 1)[:, 0]
    # Tied: one storage, two names.
    state["lm_head.weight"] = state["model.decoder.embed_tokens.weight"]
    # Entries that are no weights.
    state["extra.position_ids"] = torch.arange(7).expand((1, -1))
    state["extra.uint16"] = torch.arange(5).to(torch.uint16)
    state["extra.bfloat16"] = torch.linspace(-1, 1, 6).bfloat16().reshape(2, 3).t()
    state["extra.int8"] = torch.tensor([-127, 0, 127], dtype=torch.int8)
    state["extra.scalar"] = torch.tensor(0.5, dtype=torch.float64)
    state["extra.empty"] = torch.empty(0, 4)
    state["extra.no_tensor"] = 3
    return state


def main():
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=48, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=24,
        word_embed_proj_dim=16, dropout=0.0, tie_word_embeddings=True,
    )
    model = OPTForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = (parameter.data + 0.2 * torch.randn_like(parameter)).half().float()
    model = model.half()
    for folder in ["single", "sharded", "safetensors"]:
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
        model.config.save_pretrained(FOLDER / folder)

    state = views({name: tensor.clone() for name, tensor in model.state_dict().items()})
    state = type(model.state_dict())(state)
    state._metadata = {"": {"version": 1}}
    torch.save(state, FOLDER / "single/pytorch_model.bin")

    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[: len(names) // 2], "pytorch_model-00002-of-00002.bin": names[len(names) // 2 :]}
    for protocol, (file, part) in zip([2, 4], shards.items()):
        torch.save({name: state[name] for name in part}, FOLDER / "sharded" / file, pickle_protocol=protocol)
    tensors = {name: tensor for name, tensor in state.items() if torch.is_tensor(tensor)}
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file, part in shards.items() for name in part if name in tensors}}
    (FOLDER / "sharded/pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")

    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, FOLDER / "safetensors/model.safetensors", {"format": "pt"})

    loaded = AutoModelForCausalLM.from_pretrained(FOLDER / "single", dtype=torch.float32).eval()
    ids = torch.randint(3, 48, (1, 12))
    with torch.no_grad():
        logits = loaded(ids).logits
    save_file({"input_ids": ids.int(), "logits": logits.clone()}, FOLDER / "golden.safetensors")


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    main()
