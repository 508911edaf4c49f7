#!/usr/bin/env python3
"""Drift of cosines from floating point to int8 in every scheme, one JSON object a line: the record behind docs/quality.md.

usage: embedding_record.py INT8 MODEL PAIRS > RECORD.jsonl        INT8: the program `int8`; PAIRS: two texts a line, a tab between
"""
import json
import subprocess
import sys


def main(program, model, pairs):
    command = [program, "embed", model, "--compare", "--file", pairs, "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    schemes = result.pop("schemes")
    for key in ("model", "file"):
        result[key] = result[key].rstrip("/").rsplit("/", 1)[-1]
    result["mean_cosine_float"] = result.pop("mean_cosine")
    for scheme in schemes:
        print(json.dumps({**result, **scheme}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
