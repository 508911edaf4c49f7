"""Times bitsandbytes' Linear8bitLt (threshold 6) and PyTorch fp16 on the shapes of int8-cuda-bench, for the same run.

    python3 tools/bench_bitsandbytes.py [--json FILE]

Needs torch and bitsandbytes (0.50.2 was recorded; of its libraries only the one for CUDA 13.0). Both sides run eagerly, as
their users run them: events around single calls, medians. Random data, weights rotated, 0.1 % outlier columns, bias.
"""

import argparse
import json
import math
import statistics

import bitsandbytes as bnb
import torch

SHAPES = [
    (1, 4096, 4096), (16, 16384, 4096), (1, 12288, 12288), (1, 49152, 12288), (64, 16384, 4096), (256, 16384, 4096),
    (1024, 4096, 4096), (1024, 16384, 4096), (4096, 4096, 4096), (4096, 16384, 4096), (4096, 4096, 16384),
    (8192, 12288, 12288), (8192, 49152, 12288), (16, 4096, 4096),
]
REPEATS = 21


def median_us(work, turns):
    for turn in range(3):
        work(turn)
    times = []
    for turn in range(turns):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work(turn)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1000)
    return statistics.median(times)


def layers(n, k, count):
    dense, quantised = [], []
    for _ in range(count):
        weight = (torch.randn(n, k, device="cuda") * 0.02).half()
        bias = torch.randn(n, device="cuda").half()
        layer = bnb.nn.Linear8bitLt(k, n, bias=True, has_fp16_weights=False, threshold=6.0)
        layer.weight = bnb.nn.Int8Params(weight.cpu(), has_fp16_weights=False, requires_grad=False)
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
        dense.append((weight, bias))
        quantised.append(layer.cuda().eval())
    return dense, quantised


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json")
    arguments = parser.parse_args()
    records = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bitsandbytes {bnb.__version__}")
    print(f"{'M':>5} {'NxK':>12} {'fp16 us':>9} {'bnb us':>9} {'bnb/fp16':>9}")
    with torch.no_grad():
        for m, n, k in SHAPES:
            # Three layers are more than the L2 cache in every shape but the smallest.
            dense, quantised = layers(n, k, 3 if n * k > 1 << 25 else 8)
            x = torch.randn(m, k, device="cuda").clamp(-5.5, 5.5)
            x[:, torch.randperm(k, device="cuda")[: math.ceil(0.001 * k)]] += 20
            x = x.half()
            fp16 = median_us(lambda turn: torch.nn.functional.linear(x, *dense[turn % len(dense)]), REPEATS)
            int8 = median_us(lambda turn: quantised[turn % len(quantised)](x), REPEATS)
            a, b = quantised[0](x).float(), torch.nn.functional.linear(x, *dense[0]).float()
            error = ((a - b).norm() / b.norm()).item()
            print(f"{m:>5} {f'{n}x{k}':>12} {fp16:>9.1f} {int8:>9.1f} {fp16 / int8:>9.2f}", flush=True)
            records.append({"m": m, "n": n, "k": k, "fp16_us": fp16, "bnb_us": int8, "speed_up": fp16 / int8, "relative_error": error})
            del dense, quantised, x, a, b
            torch.cuda.empty_cache()
    if arguments.json:
        document = {
            "device": torch.cuda.get_device_name(), "torch": torch.__version__, "bitsandbytes": bnb.__version__, "records": records,
        }
        with open(arguments.json, "w") as file:
            json.dump(document, file, indent=2)


if __name__ == "__main__":
    main()
