"""Times `int8` on a CPU against llama.cpp (Q8_0), OpenVINO GenAI (int8 weights) and CTranslate2 (int8): one model, one script, in turns.

    python3 tools/bench_peers.py setup DIR --model HF_FOLDER
    python3 tools/bench_peers.py run DIR --model HF_FOLDER --int8 target/release/int8 [--json FILE] [--rounds 5] [--only NAME,...]

`setup` makes a virtual environment under DIR with pinned peers, builds llama.cpp's tools from llama-cpp-python's source distribution, and
converts the model for each; `run` quantises it for ours at the first time. Needs a C++ compiler, git and some 6 GB. `run` starts every sample as a process of its own: a row is a length of prompt and a number of sequences;
it reads that many random prompts and then decodes 64 tokens of each. Contestants take turns in each round. A sample during which other programs used more than 3 % of the
processors is dropped and repeated. llama.cpp runs with and without flash attention, and its better median counts in each row. Load is the time of a process from start to its
first token, memory its most resident bytes, both with a prompt of 32 tokens; Python peers' loads count from before their import. Printed are medians, and ours over the best peer;
the file of `--json` is written anew after each row. On a machine of many processors, `taskset -c 0,1 python3 …` gives all contestants the same two.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time

LLAMA = "0.3.36"  # of llama-cpp-python, whose sdist has llama.cpp's sources
PACKAGES = [
    "openvino==2026.4.1", "openvino-genai==2026.4.1.0", "openvino-tokenizers==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0",
    "transformers==5.5.4", "ctranslate2==4.8.5", "torch", "torchvision", "sentencepiece", "gguf", "cmake", "ninja",
]
NEW = 64
# Tokens of the prompt, sequences.
ROWS = [(32, 1), (512, 1), (2048, 1), (8128, 1), (32, 4), (32, 8), (32, 16)]
MOST_OTHER = 0.03


def shell(*command, **settings):
    print("+", *command, file=sys.stderr)
    subprocess.run([str(part) for part in command], check=True, **settings)


def setup(place, model):
    place.mkdir(parents=True, exist_ok=True)
    binaries = place / "venv/bin"
    if not binaries.exists():
        shell(sys.executable, "-m", "venv", place / "venv")
        shell(binaries / "pip", "install", "-q", "--extra-index-url", "https://download.pytorch.org/whl/cpu", *PACKAGES)
    source = place / f"llama_cpp_python-{LLAMA}/vendor/llama.cpp"
    if not source.exists():
        shell(binaries / "pip", "download", "-q", "--no-deps", "--no-binary", "llama-cpp-python", "-d", place, f"llama-cpp-python=={LLAMA}")
        shell("tar", "xzf", place / f"llama_cpp_python-{LLAMA}.tar.gz", "-C", place)
        # Without the barrier gcc 12 stores the tile configuration after it is loaded, and Q8_0 crashes on AMX.
        kernel = source / "ggml/src/ggml-cpu/amx/mmq.cpp"
        kernel.write_text(kernel.read_text().replace("    _tile_loadconfig(&tc);", '    asm volatile("" ::: "memory");\n    _tile_loadconfig(&tc);'))
    build = source / "build"
    if not (build / "bin/llama-batched-bench").exists():
        environment = os.environ | {"PATH": f"{binaries.resolve()}:{os.environ['PATH']}"}
        shell("cmake", "-S", source, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", env=environment)
        shell("cmake", "--build", build, "--target", "llama-batched-bench", "llama-quantize", env=environment)
    if not (place / "q8_0.gguf").exists():
        shell(binaries / "python", source / "convert_hf_to_gguf.py", model, "--outtype", "f16", "--outfile", place / "f16.gguf")
        shell(build / "bin/llama-quantize", place / "f16.gguf", place / "q8_0.gguf", "q8_0")
    if not (place / "openvino").exists():
        shell(binaries / "optimum-cli", "export", "openvino", "--model", model, "--task", "text-generation-with-past", "--weight-format", "int8", place / "openvino")
    if not (place / "ctranslate2").exists():
        shell(binaries / "ct2-transformers-converter", "--model", model, "--quantization", "int8", "--output_dir", place / "ctranslate2")


# ── the contestants: a command for a row, and what it prints ─────────────────────────────────────────────────────────────────


def ours(arguments, extra):
    def command(prompt, sequences, new):
        return [arguments.int8, "bench", arguments.place / "int8", "--quick", "--only", "int8", "--device", "cpu", "--json", "--threads", arguments.threads,
                "--prompt-tokens", prompt, "--new-tokens", new, "--batch", sequences, *extra]

    def read(text, sequences):
        found = json.loads(text)["runs"][0]["batches"][0]
        return found["prefill_tokens_per_second"], found["decode_tokens_per_second"]

    return command, read


def llama(arguments, attention):
    tool = arguments.place / f"llama_cpp_python-{LLAMA}/vendor/llama.cpp/build/bin/llama-batched-bench"

    def command(prompt, sequences, new):
        context = sequences * (prompt + new) + 64
        return [tool, "-m", arguments.place / "q8_0.gguf", "-c", context, "-b", 2048, "-ub", 512, "-npp", prompt, "-ntg", new, "-npl", sequences, "-t", arguments.threads,
                "-fa", attention, "--output-format", "jsonl"]

    def read(text, sequences):
        row = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
        return row["speed_pp"], row["speed_tg"]

    return command, read


def python_peer(arguments, name):
    def command(prompt, sequences, new):
        return [arguments.place / "venv/bin/python", __file__, "worker", name, arguments.place, prompt, sequences, new, arguments.threads]

    def read(text, sequences):
        row = json.loads(text.splitlines()[-1])
        return row["prompt"], row["decode"]

    return command, read


def ids(prompt, sequences, call):
    """Other prompts in each call: OpenVINO GenAI remembers the ones it has read."""
    return [[(i * 7919 + s * 104729 + call * 15485863) % 30000 + 100 for i in range(prompt)] for s in range(sequences)]


def worker(name, place, prompt, sequences, new, threads):
    """One sample of a peer in Python: a warm-up, then two turns, of which the better counts, as in `int8 bench --quick`."""
    if name == "openvino":
        import numpy
        import openvino
        import openvino_genai

        pipe = openvino_genai.LLMPipeline(str(place / "openvino"), "CPU", INFERENCE_NUM_THREADS=threads)
        mask = openvino.Tensor(numpy.ones((sequences, prompt), dtype=numpy.int64))

        def seconds(count, call):
            tokens = openvino.Tensor(numpy.array(ids(prompt, sequences, call), dtype=numpy.int64))
            begin = time.perf_counter()
            pipe.generate(openvino_genai.TokenizedInputs(tokens, mask), openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False))
            return time.perf_counter() - begin
    else:
        import ctranslate2

        generator = ctranslate2.Generator(str(place / "ctranslate2"), device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1)
        vocabulary = json.loads((place / "ctranslate2/vocabulary.json").read_text())

        def seconds(count, call):
            prompts = [[vocabulary[i] for i in row] for row in ids(prompt, sequences, call)]
            begin = time.perf_counter()
            generator.generate_batch(prompts, max_length=count, min_length=count, end_token=[], include_prompt_in_result=False, sampling_topk=1)
            return time.perf_counter() - begin

    if new == 1:
        seconds(1, 0)
        print(json.dumps({"prompt": 0, "decode": 0}))
        return
    seconds(2, 0)
    first = min(seconds(1, call) for call in (1, 2))
    whole = min(seconds(new, call) for call in (3, 4))
    print(json.dumps({"prompt": sequences * prompt / first, "decode": sequences * (new - 1) / (whole - first)}))


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def busy():
    """Seconds that all processors have worked since the start of the system."""
    fields = [int(field) for field in open("/proc/stat").readline().split()[1:9]]
    return (sum(fields) - fields[3] - fields[4] - fields[7]) / os.sysconf("SC_CLK_TCK")


def sample(command):
    """Standard output, seconds, most resident bytes, and the share of the processors that others used."""
    before, begin = busy(), time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors = []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))
    reader.start()
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    reader.join()
    if status != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{errors[0][-2000:]}")
    seconds = time.perf_counter() - begin
    others = busy() - before - usage.ru_utime - usage.ru_stime
    return text, seconds, usage.ru_maxrss * 1024, others / (seconds * os.cpu_count())


def undisturbed(command, tries=5):
    for _ in range(tries):
        found = sample(command)
        if found[3] <= MOST_OTHER:
            return found
        print(f"dropped: others used {found[3]:.0%} of the processors", file=sys.stderr)
    sys.exit("this machine has other work")


def run(arguments):
    if not (arguments.place / "int8").exists():
        shell(arguments.int8, "quantize", arguments.model, arguments.place / "int8", "-q")
    arguments.settings = {"int8": [], "int8 --float-head": ["--float-head"], "int8 --preset best-rows": ["--preset", "best-rows"], "int8 --preset best": ["--preset", "best"]}
    contestants = {name: ours(arguments, extra) for name, extra in arguments.settings.items()} | {
        "llama.cpp -fa on": llama(arguments, "on"),
        "llama.cpp -fa off": llama(arguments, "off"),
        "OpenVINO": python_peer(arguments, "openvino"),
        "CTranslate2": python_peer(arguments, "ctranslate2"),
    }
    if arguments.only:
        unknown = set(arguments.only) - set(contestants)
        if unknown:
            sys.exit(f"no contestants of these names: {', '.join(sorted(unknown))}; there are: {', '.join(contestants)}")
        contestants = {name: contestants[name] for name in contestants if name in arguments.only}
    rates = {}
    keep = lambda row, name, value: rates.setdefault(row, {}).setdefault(name, []).append(value)
    names = list(contestants)
    for turn in range(arguments.rounds):
        # A system that gave freed memory back to its host gets it more slowly: nobody always comes after the same one.
        order = names[turn % len(names):] + names[:turn % len(names)]
        for prompt, sequences in arguments.rows:
            for name in order:
                command, read = contestants[name]
                text, *_ = undisturbed(command(prompt, sequences, NEW))
                prompts, decode = read(text, sequences)
                keep((prompt, sequences, "prompt"), name, prompts)
                keep((prompt, sequences, "decode"), name, decode)
            write(arguments, rates)
        for name in order:
            command, _ = contestants[name]
            line = [arguments.int8, "run", arguments.place / "int8", "-p", " the" * 32, "-n", "1", "-q", "--device", "cpu"] if name.startswith("int8") else command(32, 1, 1)
            line += arguments.settings.get(name, [])
            _, seconds, resident, _ = undisturbed(line)
            keep((32, 1, "load"), name, 1 / seconds)
            keep((32, 1, "memory"), name, 1 / resident)
        write(arguments, rates)
        print(f"round {turn + 1} of {arguments.rounds}", file=sys.stderr)
    table(rates)


UNIT = {"prompt": "tokens/s", "decode": "tokens/s", "load": "s", "memory": "MiB"}


def medians(rates):
    """All values are rates: larger is better, also of load and memory."""
    for (prompt, sequences, what), found in rates.items():
        found = {name: statistics.median(values) for name, values in found.items()}
        own = next(iter(found.values()))
        peers = [value for name, value in found.items() if not name.startswith("int8")]
        shown = {"load": lambda v: f"{1 / v:.2f}", "memory": lambda v: f"{1 / v / 2**20:.0f}"}.get(what, lambda v: f"{v:.1f}")
        yield prompt, sequences, what, {name: shown(value) for name, value in found.items()}, own / max(peers) if peers else None


def write(arguments, rates):
    rows = [
        {"prompt": prompt, "sequences": sequences, "what": what, "samples": len(next(iter(rates[prompt, sequences, what].values()))),
         "values": {name: float(value) for name, value in found.items()}, "over_best_peer": ratio and round(ratio, 3)}
        for prompt, sequences, what, found, ratio in medians(rates)
    ]
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": arguments.threads, "new_tokens": NEW, "rows": rows}, indent=1) + "\n")


def table(rates):
    names = list(next(iter(rates.values())))
    print("| row | sequences | | " + " | ".join(names) + " | ours over the best peer |\n|" + "---|" * (len(names) + 4))
    for prompt, sequences, what, found, ratio in medians(rates):
        place = prompt if what == "prompt" else f"after {prompt}" if what == "decode" else "first token"
        print(f"| {what} {place} | {sequences} | {UNIT[what]} | " + " | ".join(found[name] for name in names) + f" | {'' if ratio is None else f'{ratio:.2f}'} |")


def main():
    if sys.argv[1:2] == ["worker"]:
        name, place, *numbers = sys.argv[2:]
        worker(name, pathlib.Path(place), *map(int, numbers))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["setup", "run"])
    parser.add_argument("place", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder of a 16-bit checkpoint")
    parser.add_argument("--int8", type=pathlib.Path, help="our program, a release build")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=lambda text: [tuple(map(int, row.split("x"))) for row in text.split(",")], default=ROWS, help="PROMPTxSEQUENCES,... (default: %(default)s)")
    parser.add_argument("--only", type=lambda text: text.split(","), help="contestants, for example int8,OpenVINO (default: all)")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.task == "setup":
        setup(arguments.place, arguments.model)
    elif arguments.int8 is None:
        parser.error("run needs --int8")
    else:
        run(arguments)


if __name__ == "__main__":
    main()
