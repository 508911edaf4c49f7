#!/usr/bin/env python3
"""Perplexity of a model in every scheme, one JSON object a line: the records behind docs/quality.md.

usage: quality_record.py INT8 MODEL TEXT WINDOW WINDOWS > RECORD.jsonl        INT8: the program `int8`
"""
import json
import subprocess
import sys

DECOMPOSED = ["absmax-row-wise-decomposition", "llm-int8", "zeropoint-llm-int8"]
PLAIN = ["absmax", "zeropoint", "absmax-row-wise", "absmax-vector-wise", "zeropoint-vector-wise"]
SETTINGS = (
    [["--fp"]]
    + [["--scheme", name] for name in PLAIN]
    + [["--scheme", name, "--outlier-weights", weights] for weights in ("dequantized", "exact") for name in DECOMPOSED]
    + [["--granularity", "value"], ["--rule", "relative", "--tau", "30", "--granularity", "value"],
       ["--scheme", "zeropoint-llm-int8", "--rule", "relative", "--tau", "30", "--granularity", "value"]]
)


def main(program, model, text, window, windows):
    for setting in SETTINGS:
        command = [program, "eval", model, "--text", text, "--window", window, "--windows", windows, "--json", *setting]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for key in ("model", "text_file"):
            result[key] = result[key].rstrip("/").rsplit("/", 1)[-1]
        print(json.dumps({"options": " ".join(setting), **result}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
