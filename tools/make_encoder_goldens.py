#!/usr/bin/env python3
"""Tiny random encoders and encoder-decoders, with hidden states or logits of Hugging Face transformers.

usage: make_encoder_goldens.py [NAME…]        all without an argument; writes int8-nn/tests/data/encoders/NAME

Each folder holds config.json, model.safetensors (as transformers saves it, float16) and golden.safetensors, computed after
from_pretrained(…, dtype=float32) in one batch of two texts of different lengths with an attention mask:

    input_ids           i32 [2, 20], padded
    lengths             i32 [2]
    last_hidden_state   f32 [2, 20, hidden]: of encoders; rows beyond a text's length are 0
    decoder_input_ids   i32 [2, 12]: of encoder-decoders, begun with decoder_start_token_id
    logits              f32 [2, 12, vocabulary]: of encoder-decoders
    greedy_ids          i32 [12]: of encoder-decoders, what follows decoder_start_token_id for the first text
    int8_error          f32 [1]: relative L2 distance from the states or logits of LLM.int8() (threshold 6) as bitsandbytes
                        computes it, simulated for every linear layer but the head; of encoder-decoders one text at a time

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
OUT = pathlib.Path(__file__).resolve().parent.parent / "int8-nn/tests/data/encoders"

VOCAB, TOKENS, LENGTHS, TARGETS = 96, 20, (20, 13), 12

BERT = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 40, "pad_token_id": 0}
ROBERTA = {**BERT, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
# Few buckets, so that the texts reach the last one.
T5 = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "decoder_start_token_id": 0}
BART = {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
        "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
DEBERTA = {"relative_attention": True}
MODELS = {
    "bert": ("bert", BERT),
    "roberta": ("roberta", ROBERTA),
    "xlm_roberta": ("xlm-roberta", ROBERTA),
    "distilbert": ("distilbert", {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
                                  "max_position_embeddings": 40}),
    "mpnet": ("mpnet", ROBERTA),
    "t5": ("t5", {**T5, "feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "t5_gated": ("t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", BART),
    "mbart": ("mbart", {**BART, "scale_embedding": True, "activation_function": "relu"}),
    "pegasus": ("pegasus", {**BART, "scale_embedding": True, "pad_token_id": 0, "eos_token_id": 1,
                            "decoder_start_token_id": 0}),
    "marian": ("marian", {**BART, "scale_embedding": True, "activation_function": "swish", "pad_token_id": 0,
                          "decoder_start_token_id": 0}),
    "m2m_100": ("m2m_100", BART),
    "umt5": ("umt5", {**T5, "feed_forward_proj": "gated-gelu", "pad_token_id": 0}),
    # Windows of 3 to each side in blocks 1 and 2.
    "modernbert": ("modernbert", {**BERT, "num_hidden_layers": 4, "local_attention": 6, "bos_token_id": 1, "eos_token_id": 2,
                                  "cls_token_id": 1, "sep_token_id": 2}),
    "nomic_bert": ("nomic_bert", BERT),
    "electra": ("electra", {**BERT, "embedding_size": 24}),
    "eurobert": ("eurobert", {**BERT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 3}),
    # As DeBERTa v3; few buckets, so that distances share some.
    "deberta_v2": ("deberta-v2", {**BERT, **DEBERTA, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
                                  "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}),
    # As the first DeBERTa v2: projections of their own, one term, a row for each distance.
    "deberta_v2_own": ("deberta-v2", {**BERT, **DEBERTA, "max_relative_positions": 15, "pos_att_type": ["c2p"],
                                      "type_vocab_size": 2}),
    # The first block runs three times, the second twice.
    "albert": ("albert", {**BERT, "embedding_size": 24, "num_hidden_layers": 5, "num_hidden_groups": 2}),
    # Windows of 3 to each side in the encoder.
    "longt5": ("longt5", {**T5, "feed_forward_proj": "relu", "pad_token_id": 0, "local_radius": 3}),
}


def in_environment():
    python = HOME / "bin/python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), __file__, *sys.argv[1:]])


def randomize(model, generator):
    """Random weights, large enough for distinct outputs; norm gains with a few large entries."""
    import torch

    for name, tensor in model.named_parameters():
        draw = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() == 1 and name.endswith("weight"):
            values = 1 + 0.1 * draw
            values[torch.randperm(len(values), generator=generator)[:2]] *= 6
        elif tensor.dim() == 1:
            values = 0.1 * draw
        elif "embed" in name or "shared" in name or "lm_head" in name or "relative" in name:
            values = 0.5 * draw
        else:
            values = draw * 1.2 / tensor.shape[-1] ** 0.5
            if name.endswith("Attention.q.weight"):
                # T5 does not divide the scores by the root of the head size.
                values /= T5["d_kv"] ** 0.5
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


def in_int8(model, compute):
    """`compute()` with every linear layer but the head in int8."""
    import torch

    plain = torch.nn.functional.linear
    head = model.get_output_embeddings()

    def linear(x, weight, bias=None):
        return (plain if head is not None and weight is head.weight else llm_int8)(x, weight, bias)

    torch.nn.functional.linear = linear
    try:
        return compute()
    finally:
        torch.nn.functional.linear = plain


def make(name, generator):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

    model_type, settings = MODELS[name]
    kind = AutoModelForSeq2SeqLM if "decoder_start_token_id" in settings else AutoModel
    config = AutoConfig.for_model(model_type, **settings)
    model = kind.from_config(config, attn_implementation="eager")
    if settings.get("tie_word_embeddings") is False:
        # transformers 5 ties T5's head whatever the configuration says; checkpoints of version 1.1 have one of their own.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    randomize(model, generator)
    if name == "bart":
        model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=generator))
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    ids = torch.randint(3, VOCAB, (2, TOKENS), generator=generator)
    mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask == 1, ids, settings.get("pad_token_id", 0))
    golden = {"input_ids": ids.int(), "lengths": torch.tensor(LENGTHS).int()}
    with torch.no_grad():
        if kind is AutoModel:
            compute = lambda: model(ids, attention_mask=mask).last_hidden_state * mask[..., None]
            golden["last_hidden_state"] = exact = compute()
        else:
            targets = torch.randint(3, VOCAB, (2, TARGETS), generator=generator)
            targets[:, 0] = settings["decoder_start_token_id"]
            compute = lambda: model(ids, attention_mask=mask, decoder_input_ids=targets).logits
            golden["decoder_input_ids"] = targets.int()
            golden["logits"] = exact = compute()
            row = targets[:1, :1]
            for _ in range(TARGETS):
                logits = model(ids[:1], attention_mask=mask[:1], decoder_input_ids=row).logits
                row = torch.cat([row, logits[:, -1:].argmax(-1)], dim=1)
            golden["greedy_ids"] = row[0, 1:].int()
            # Padding would have outlier columns of its own.
            alone = lambda: torch.cat([model(ids[i:i + 1, :length], decoder_input_ids=targets[i:i + 1]).logits
                                       for i, length in enumerate(LENGTHS)])
        error = (in_int8(model, compute if kind is AutoModel else alone) - exact).norm() / exact.norm()
        golden["int8_error"] = error.reshape(1)
    save_file({name: tensor.contiguous() for name, tensor in golden.items()}, folder / "golden.safetensors")
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, largest output {exact.abs().max():.2f}, int8 error {error:.2e}, "
          f"greedy {golden.get('greedy_ids', torch.tensor([])).tolist()}")


def main(names):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    for index, name in enumerate(MODELS):
        if not names or name in names:
            make(name, torch.Generator().manual_seed(2000 + index))


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    main(sys.argv[1:])
