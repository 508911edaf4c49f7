#!/usr/bin/env python3
"""Logits of Hugging Face transformers after `from_pretrained`, in f32.

usage: from_pretrained_logits.py FOLDER…      each with a golden.safetensors that holds input_ids

Writes FOLDER/from_pretrained.safetensors with `logits` f32. The goldens themselves come from a module that was cast to
16 bits as a whole, rotary frequencies included; `from_pretrained` keeps these in f32, as this project does by default.
Makes its own environment in ~/.cache/int8-tools (transformers, torch).
"""
import os
import pathlib
import subprocess
import sys
import venv

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "transformers"
NEEDS = ["torch==2.15.0", "transformers==5.23.0", "safetensors"]


def in_environment():
    python = HOME / "bin/python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
    os.execv(python, [str(python), *sys.argv])


def main(folders):
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    for folder in folders:
        golden = load_file(f"{folder}/golden.safetensors")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            logits = model(golden["input_ids"].long()).logits.contiguous()
        save_file({"logits": logits}, f"{folder}/from_pretrained.safetensors")
        off = (logits - golden["logits"]).norm() / golden["logits"].norm()
        print(f"{folder}: golden differs by {off:.2e} (relative L2)")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve():
        in_environment()
    main(sys.argv[1:])
