#!/usr/bin/env python3
"""Checks that `int8 quantize` writes the weights that transformers and bitsandbytes make themselves.

usage: check_bitsandbytes.py [--program PATH] [--record FILE.md] MODEL…

For each 16/32-bit folder MODEL, on the CPU:
1. `int8 quantize MODEL OUT`;
2. OUT is loaded with one line of `from_pretrained`, MODEL with `BitsAndBytesConfig(load_in_8bit=True)`;
3. every int8 weight and scale of the two models, and their outputs for fixed tokens, must be equal.

Makes its own environment in ~/.cache/int8-tools (transformers, torch, bitsandbytes, accelerate).
"""
import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import venv
import warnings

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "transformers"
NEEDS = ["torch==2.15.0", "transformers==5.23.0", "bitsandbytes==0.50.2", "accelerate", "safetensors"]


def in_environment():
    python = HOME / "bin/python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
    present = subprocess.run([python, "-c", "import transformers, bitsandbytes, accelerate"], capture_output=True)
    if present.returncode != 0:
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), *sys.argv])


def auto_class(folder):
    import transformers

    config = json.loads((folder / "config.json").read_text())
    name = (config.get("architectures") or [""])[0]
    return getattr(transformers, name, transformers.AutoModel), config


def outputs(model, vocabulary, with_decoder):
    import torch

    ids = torch.tensor([[(7 * i * i + 3 * i + 5) % vocabulary for i in range(24)]])
    arguments = {"input_ids": ids, **({"decoder_input_ids": ids} if with_decoder else {})}
    with torch.no_grad():
        result = model(**arguments)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def check(program, folder, extra):
    """One row of the record; raises when something differs."""
    import torch
    import bitsandbytes
    from transformers import BitsAndBytesConfig

    cls, config = auto_class(folder)
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "int8"
        report = subprocess.run([program, "quantize", folder, out, "--json", *extra], capture_output=True, text=True)
        if report.returncode != 0:
            raise AssertionError(report.stderr.strip())
        report = json.loads(report.stdout)
        ours = cls.from_pretrained(out)
        # Layers kept in floating point on purpose (such as a router of one row) are so in transformers.
        own = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=report["skip_modules"])
        theirs = cls.from_pretrained(folder, quantization_config=own)

        int8 = {}
        for which, model in [("ours", ours), ("theirs", theirs)]:
            modules = model.named_modules()
            int8[which] = {n: m for n, m in modules if isinstance(m, bitsandbytes.nn.Linear8bitLt)}
        if int8["ours"].keys() != int8["theirs"].keys():
            raise AssertionError(f"other layers are int8: {sorted(int8['ours'].keys() ^ int8['theirs'].keys())[:4]}")
        if len(int8["ours"]) != len(report["int8"]):
            raise AssertionError(f"{len(report['int8'])} layers were written and {len(int8['ours'])} are int8 when loaded")
        for name, module in int8["ours"].items():
            other = int8["theirs"][name]
            if module.weight.data.dtype != torch.int8 or not torch.equal(module.weight.data, other.weight.data):
                raise AssertionError(f"{name}: the codes differ")
            if not torch.equal(module.weight.SCB, other.weight.SCB):
                raise AssertionError(f"{name}: the scales differ")

        vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
        with_decoder = bool(config.get("is_encoder_decoder"))
        a, b = (outputs(model, vocabulary, with_decoder) for model in (ours, theirs))
        off = ((a - b).float().norm() / b.float().norm()).item()
        if not torch.equal(a, b):
            raise AssertionError(f"outputs differ by {off:.2e} (relative L2)")
        changed = sum(p.numel() for p in theirs.parameters())
        skip = "default" if report["skip_modules"] is None else "written"
        numbers = [str(len(report["int8"])), skip, f"{changed:,}", str(tuple(a.shape)), f"{off:g}"]
        return [cls.__name__, config["model_type"], *numbers]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=pathlib.Path)
    parser.add_argument("--program", default="int8", help="the program int8")
    parser.add_argument("--record", type=pathlib.Path, help="Markdown file to write")
    arguments = parser.parse_args()
    import bitsandbytes
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    rows, failures = [], []
    for folder in arguments.models:
        try:
            rows.append([folder.name, *check(arguments.program, folder, [])])
            print("equal  ", *rows[-1], flush=True)
        except Exception as error:  # every model is tried, and every failure reported
            failures.append(f"{folder.name}: {type(error).__name__}: {error}")
            print("FAILED ", failures[-1], flush=True)
    if arguments.record and not failures:
        version = subprocess.run([arguments.program, "--version"], capture_output=True, text=True).stdout.strip()
        head = ["checkpoint", "class", "model_type", "int8 layers", "skip list", "parameters", "outputs", "difference"]
        lines = [
            "# `int8 quantize` against transformers and bitsandbytes",
            "",
            "Made by `tools/check_bitsandbytes.py`: each checkpoint is converted by `int8 quantize` and loaded with "
            "`CLASS.from_pretrained(FOLDER)`; beside it the 16/32-bit checkpoint is loaded with "
            "`BitsAndBytesConfig(load_in_8bit=True)` and, where our config.json has a skip list, the same one. The same layers are int8, their codes and scales are equal bit for bit, "
            "and so are the outputs for 24 fixed tokens (last column: relative L2).",
            "",
            f"{version}; transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}, "
            f"torch {torch.__version__}, Python {platform.python_version()}, CPU.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
        ]
        arguments.record.write_text("\n".join(lines))
    if failures:
        sys.exit(f"{len(failures)} of {len(arguments.models)} differ")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    main()
