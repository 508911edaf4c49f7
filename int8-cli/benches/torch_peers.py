#!/usr/bin/env python3
"""Times oneDNN through PyTorch (int8 product, bf16 and f32 linear) and bitsandbytes' CPU layer beside int8-cpu.

    python3 int8-cli/benches/torch_peers.py [--threads N] [--best] [--json FILE] [--environment FOLDER] [--bench FILE]
                                             [--shapes MxNxK,...] [--turns N]

Makes its own virtual environment (several GB: PyTorch comes with its libraries) unless the folder holds one already.
int8-cpu is timed by its bench `layer`, which is built first unless `--bench` names it (for a machine without Rust).
For each shape the two programs take turns, several times; each program's own rounds are medians, and the medians of
those are compared. Times are for the same number of threads, weights rotated so that no cache keeps them, 0.1 %
outlier columns. `--best` compares best rounds instead of medians: for a machine with other work on it, together with
`--threads 1` (threads that wait for each other by spinning lose far more to other work than those that do not).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAPES = [(m, n, k) for m in (1, 8, 64, 512)
          for n, k in ((768, 768), (2048, 2048), (4096, 4096), (11008, 4096), (4096, 11008))]
ROTATE_BYTES = 256 << 20


def environment(folder):
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "numpy", "torch", "bitsandbytes"], check=True)
    return python


def build_bench():
    """Builds the bench and returns its path, as cargo reports it."""
    command = ["cargo", "bench", "-p", "int8-cli", "--bench", "layer", "--no-run", "--message-format=json"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    artifacts = [json.loads(line) for line in lines if line.startswith("{")]
    return [a["executable"] for a in artifacts if a.get("executable") and a["target"]["name"] == "layer"][-1]


def run_ours(bench, shape, threads, best):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        command = [bench, "--only", "ours", "--shape", "x".join(map(str, shape)), "--json", out] + ["--best"] * best
        variables = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.DEVNULL)
        record = json.loads(out.read_text())
    row = record["shapes"][0]
    return {"ours_raw": row["raw_us"], "ours_layer": row["layer_us"]}


def run_torch(python, shape, threads, best):
    command = [python, __file__, "--worker", "x".join(map(str, shape)), "--threads", str(threads)] + ["--best"] * best
    variables = dict(os.environ, OMP_NUM_THREADS=str(threads))
    done = subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def time_us(run, copies, best, seconds=1.5, least=20):
    for i in range(3):
        run(i % copies)
    times, start = [], time.perf_counter()
    while len(times) < least or (time.perf_counter() - start < seconds and len(times) < 400):
        begin = time.perf_counter()
        run(len(times) % copies)
        times.append(time.perf_counter() - begin)
    return 1e6 * (min(times) if best else statistics.median(times))


def worker(shape, threads, best):
    import logging

    logging.disable(logging.WARNING)  # bitsandbytes says in each call that it casts bf16 to f16
    import bitsandbytes as bnb
    import torch

    torch.set_num_threads(threads)
    m, n, k = shape
    copies = max(2, min(64, ROTATE_BYTES // (n * k)))
    times = {}
    with torch.inference_mode():
        x = torch.randn(m, k)
        x[:, :: max(1, k // max(1, k // 1000))] = -9.5
        for name, dtype, share in (("bf16", torch.bfloat16, 2), ("f32", torch.float32, 4)):
            count = max(2, copies // share)
            weights = [torch.randn(n, k, dtype=dtype) for _ in range(count)]
            typed = x.to(dtype)
            times[name] = time_us(lambda i: torch.nn.functional.linear(typed, weights[i]), count, best)
            del weights
        codes = [torch.randint(-127, 128, (n, k), dtype=torch.int8) for _ in range(copies)]
        a = torch.randint(-127, 128, (m, k), dtype=torch.int8)
        times["int_mm"] = time_us(lambda i: torch._int_mm(a, codes[i].t()), copies, best)
        del codes
        count = max(2, min(copies, 8))
        layers = []
        for _ in range(count):
            layer = bnb.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=6.0)
            layer.weight = bnb.nn.Int8Params(torch.randn(n, k) * 0.02, requires_grad=False, has_fp16_weights=False)
            # In training mode, in which a module starts, bitsandbytes dequantises the whole weight on a CPU.
            layers.append(layer.to("cpu").eval())
        typed = x.to(torch.bfloat16)
        times["bitsandbytes"] = time_us(lambda i: layers[i](typed), count, best)
    print(json.dumps(times))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--best", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--environment", type=Path, default=ROOT / "target" / "torch-peers")
    parser.add_argument("--bench", type=Path)
    parser.add_argument("--shapes")
    parser.add_argument("--turns", type=int, default=3, choices=range(1, 100), metavar="N")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parse = lambda text: tuple(int(size) for size in text.split("x"))
    if arguments.worker:
        return worker(parse(arguments.worker), arguments.threads, arguments.best)

    # The bench is run in the project's folder, wherever its path was given.
    bench = arguments.bench.resolve() if arguments.bench else build_bench()
    python = environment(arguments.environment)
    shapes = [parse(text) for text in arguments.shapes.split(",")] if arguments.shapes else SHAPES
    rows = []
    print("    M      N      K | layer us | vs bf16  vs f32  vs bitsandbytes | raw vs _int_mm")
    for shape in shapes:
        turns = []
        for _ in range(arguments.turns):
            setting = (shape, arguments.threads, arguments.best)
            turns.append({**run_torch(python, *setting), **run_ours(bench, *setting)})
        summary = min if arguments.best else statistics.median
        times = {name: summary(turn[name] for turn in turns) for name in turns[0]}
        layer = times["ours_layer"]
        row = {"m": shape[0], "n": shape[1], "k": shape[2], "us": times}
        row["layer_vs"] = {name: times[name] / layer for name in ("bf16", "f32", "bitsandbytes")}
        row["raw_vs_int_mm"] = times["int_mm"] / times["ours_raw"]
        rows.append(row)
        ratios = row["layer_vs"]
        print("{:5} {:6} {:6} | {:8.0f} | {:6.2f}x {:6.2f}x {:9.2f}x      | {:6.2f}x".format(
            *shape, layer, ratios["bf16"], ratios["f32"], ratios["bitsandbytes"], row["raw_vs_int_mm"]), flush=True)
        if arguments.json:  # after each shape, so that a run cut short leaves what it has
            record = {"threads": arguments.threads, "statistic": "best" if arguments.best else "median",
                      "turns": arguments.turns, "shapes": rows}
            arguments.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
