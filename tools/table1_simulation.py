#!/usr/bin/env python3
"""The paper's schemes simulated in PyTorch: an independent check of `int8 eval`, and the change of a perplexity when only the
order of one multiplication changes.

usage: table1_simulation.py MODEL TEXT RECORD.jsonl        the record of quality_record.py

Every linear layer but the head is replaced by its de-quantised form in f32. `a` computes codes as round(x·(127/s)), which is
what bitsandbytes and this project do, `b` as round(x·127/s): the two differ in the last bit of an f32 before the rounding.
Prints perplexities, and for each the mean difference to the record over windows (in nats, with its standard error): the difference
of two right implementations of one scheme.
Uses the environment of from_pretrained_logits.py (run that once first).
"""
import json
import math
import os
import pathlib
import sys

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "transformers"


def simulate(folder, text, record):
    import statistics

    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    ids = Tokenizer.from_file(f"{folder}/tokenizer.json").encode(open(text).read(), add_special_tokens=False).ids
    lines = [json.loads(line) for line in open(record)]
    recorded = {line["options"]: line["window_nll"] for line in lines}
    window, windows = lines[0]["window"], lines[0]["windows"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = [l for n, l in model.named_modules() if isinstance(l, torch.nn.Linear) and "lm_head" not in n]
    # Some layers share their class's forward; keep the weights, replace the call.
    weights = [layer.weight.data.clone() for layer in layers]

    def reduce(x, op, rows):
        return getattr(x, op)(-1, keepdim=True) if rows else getattr(x, op)()

    def absmax(x, rows, order):
        s = reduce(x.abs(), "amax", rows).clamp_min(1e-30)
        q = torch.round(x * (127 / s)) if order == "a" else torch.round(x * 127 / s)
        return q * s / 127

    def zeropoint(x, rows, order):
        low, high = reduce(x, "amin", rows).clamp_max(0), reduce(x, "amax", rows).clamp_min(0)
        s = ((high - low) / 2).clamp_min(1e-30)
        scaled = (lambda v: v * (127 / s)) if order == "a" else (lambda v: v * 127 / s)
        z = -torch.round(scaled(low)) - 127
        return ((torch.round(scaled(x)) + z).clamp(-127, 127) - z) * s / 127

    def losses(code_x, code_w, code_outlier=None):
        for layer, weight in zip(layers, weights):
            w, outlier = code_w(weight), None if code_outlier is None else code_outlier(weight)

            def forward(x, layer=layer, w=w, outlier=outlier):
                flat = x.reshape(-1, x.shape[-1])
                if outlier is None:
                    y = code_x(flat) @ w.T
                else:
                    columns = (flat.abs() >= 6).any(0)
                    y = code_x(flat * ~columns) @ w.T + (flat * columns) @ outlier.T
                return (y if layer.bias is None else y + layer.bias).reshape(*x.shape[:-1], -1)

            layer.forward = forward
        losses = []
        with torch.no_grad():
            for first in range(0, window * windows, window):
                x = torch.tensor([ids[first : first + window]])
                logits = model(x, attention_mask=torch.ones_like(x)).logits
                losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], x[0, 1:]).item())
        return losses

    for order in ("a", "b"):
        a = lambda rows: lambda x: absmax(x, rows, order)
        z = lambda rows: lambda x: zeropoint(x, rows, order)
        for name, codes in {
            "absmax": (a(False), a(False)),
            "zeropoint": (z(False), z(False)),
            "absmax-row-wise": (a(True), a(False)),
            "absmax-vector-wise": (a(True), a(True)),
            "zeropoint-vector-wise": (z(True), a(True)),
            "absmax-row-wise-decomposition --outlier-weights dequantized": (a(True), a(False), a(True)),
            "llm-int8 --outlier-weights dequantized": (a(True), a(True), a(True)),
            "llm-int8 --outlier-weights exact": (a(True), a(True), lambda w: w),
            "zeropoint-llm-int8 --outlier-weights exact": (z(True), a(True), lambda w: w),
        }.items():
            found = losses(*codes)
            differences = [x - y for x, y in zip(recorded[f"--scheme {name}"], found)]
            mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
            perplexity = math.exp(statistics.mean(found))
            print(f"{order}  {name:60} {perplexity:7.3f}   record - this: {mean:+.4f} ± {error:.4f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        python = HOME / "bin/python"
        if not python.exists():
            sys.exit(f"{HOME} is not there: run from_pretrained_logits.py once, it makes the environment")
        os.execv(python, [str(python), __file__, *sys.argv[1:]])
    simulate(*sys.argv[1:])
