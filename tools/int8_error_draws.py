#!/usr/bin/env python3
"""The int8 error of the tiny checkpoints of make_goldens.py over several draws of their weights, none left out.

usage: int8_error_draws.py INT8 DRAWS [FAMILY…] > docs/verified/int8-error-draws.tsv

For each family and draw: a checkpoint as make_goldens.py makes it (generator seed 10,000 + 100 x index + draw, other than the
goldens'), its logits for two sequences of 20 tokens in f32, and e(x) = relative L2 distance from them. A ratio is e(`INT8 logits`,
its default LLM.int8()) / e(LLM.int8() as bitsandbytes computes it, simulated by make_goldens.py). Written are the geometric mean
of a family's ratios and all of them, in order of size. Needs the environment of make_goldens.py.
"""
import math
import pathlib
import subprocess
import sys
import tempfile

import make_goldens as goldens


def ratio(int8, name, seed):
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

    generator = torch.Generator().manual_seed(seed)
    model_type, dtype, settings = goldens.FAMILIES[name]
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    goldens.randomize(model, generator)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        stored = {}
        if name.endswith("_mxfp4"):
            goldens.mxfp4_experts(folder)
            stored["quantization_config"] = Mxfp4Config(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", **stored).eval()
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")
        ids = torch.randint(3, goldens.VOCAB, (2, goldens.TOKENS), generator=generator)
        with torch.no_grad():
            exact, theirs = model(ids).logits, goldens.int8_logits(model, ids)
        ours = []
        for row in ids.tolist():
            out = folder / "logits.safetensors"
            subprocess.run([int8, "logits", folder, "--ids", ",".join(map(str, row)), "--out", out, "--threads", "1",
                            "--quiet"], check=True, stdout=subprocess.DEVNULL)
            ours.append(load_file(out)["logits"][:, :exact.shape[-1]])
            out.unlink()
    return ((torch.stack(ours) - exact).norm() / (theirs - exact).norm()).item()


def main(int8, draws, names):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    print("golden\tgeometric mean\tratios", flush=True)
    for index, name in enumerate(goldens.FAMILIES):
        if names and name not in names:
            continue
        ratios = sorted(ratio(int8, name, 10_000 + 100 * index + draw) for draw in range(int(draws)))
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(name, f"{mean:.2f}", " ".join(f"{one:.2f}" for one in ratios), sep="\t", flush=True)


if __name__ == "__main__":
    if pathlib.Path(sys.prefix).resolve() != goldens.HOME.resolve():
        goldens.in_environment(__file__)
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
