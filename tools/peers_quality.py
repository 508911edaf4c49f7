"""What int8 costs in quality on a CPU: `int8`, llama.cpp (Q8_0), OpenVINO (int8 weights), CTranslate2 (int8) and PyTorch in bf16 against the same model in float32.

    python3 tools/peers_quality.py DIR --model HF_FOLDER --int8 target/release/int8 --text FILE [--window 1024] [--windows 4] [--json FILE]

DIR is what `bench_peers.py setup` made; tables of this script stand beside its tables of speed. The text is cut as `int8 eval` cuts it: its tokens without special ones, windows
that do not overlap, each a prompt of its own, of which the first token is not scored. The float model is the 16-bit checkpoint in transformers, widened to float32. Every
contestant is a process of its own that computes the logits of all positions of a window in one prompt; of each window only sums are kept, computed in float64:

    perplexity      exp of the mean negative log-likelihood
    loss            its excess over the float model's, with the standard error of the paired differences of the windows
    KL divergence   of the contestant from the float model, in thousandths of a nat a token: mean over the scored positions of the sum of p_float (log p_float - log p)
    top-1           positions at which the most probable token is the float model's; of equal logits the first counts, as in greedy generation

Settings are those a user gets without asking. Ours is converted from the 16-bit checkpoint when it is loaded, which keeps exact weights for outliers; the rows DIR/int8 are the
quantised checkpoint that bench_peers.py times, which has no exact weights. `int8 logits` has its keys and values in float32. llama.cpp has a KV cache in f16 and chooses flash
attention itself. "OpenVINO" is the exported model as the runtime compiles it, whose attention reads a prompt that comes at once before it is rounded for the cache. OpenVINO GenAI
transforms the model for paged attention, which reads the rounded cache: "OpenVINO GenAI" is computed with the same transformation, since GenAI itself tells no logits, only
log-probabilities of the prompt (`echo`), with which that row is checked. The JSON has the properties of the compiled models, and whether dynamic quantisation acted.

Results depend on the processor, for which every peer has other kernels. Without VNNI (AVX2), OpenVINO states groups of dynamic quantisation but leaves activations in float32, and
CTranslate2's products (oneDNN's, u8 by s8) saturate in 16 bits, which loses much more than its rounding does. Compare the `processor` of two records first.

Nothing is taken on trust: transformers' likelihoods must be those of `int8 eval --fp` in every window, ours those of `int8 eval`, and OpenVINO's with paged attention those of
GenAI. What fails is named on standard error, and the exit code is 1.
Scratch space: 4 bytes times tokens times vocabulary (0.8 GB for 4 windows of 1024 of a vocabulary of 49,152), for the float model's logits.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import types

from bench_peers import LLAMA

PRECISIONS = {
    "int8": [],
    "int8 --float-head": ["--float-head"],
    "int8 --preset best-rows": ["--preset", "best-rows"],
    "int8 --preset best-rows --float-head": ["--preset", "best-rows", "--float-head"],
    "int8 --preset best": ["--preset", "best"],
    "int8 --preset best --float-head": ["--preset", "best", "--float-head"],
    "int8 DIR/int8": [],
    "int8 DIR/int8 --preset best-rows": ["--preset", "best-rows"],
}
PEERS = ["llama.cpp Q8_0", "OpenVINO", "OpenVINO GenAI", "CTranslate2 int8"]
CONTESTANTS = ["PyTorch bf16", *PRECISIONS, *PEERS]
# Differences of a window's mean negative log-likelihood that are allowed: of float sums in other orders; of our two commands; of the same where outlier columns are found for 256
# rows of the head at once in one and for all rows in the other; of one model in OpenVINO driven by hand and by GenAI, whose log-probabilities are sums in float32.
FLOAT_MOST, SAME_MOST, HEAD_MOST, GENAI_MOST = 2e-5, 1e-6, 2e-3, 3e-4
OPENVINO_PROPERTIES = [
    "INFERENCE_PRECISION_HINT", "EXECUTION_MODE_HINT", "PERFORMANCE_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "KV_CACHE_PRECISION", "KEY_CACHE_PRECISION", "VALUE_CACHE_PRECISION",
    "KEY_CACHE_GROUP_SIZE", "VALUE_CACHE_GROUP_SIZE", "RUNTIME_REQUIREMENTS",
]


# ── contestants, in the virtual environment: a function from a window's tokens to the logits of all positions, and what to record ─────────────────────────────────────────────────


def torch_model(task, precision):
    import torch
    import transformers

    torch.set_num_threads(task["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=getattr(torch, precision)).eval()

    def logits(ids):
        with torch.inference_mode():
            return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    return logits, {"torch": torch.__version__, "transformers": transformers.__version__, "attention": model.config._attn_implementation}


def ours(task, name):
    from safetensors.numpy import load_file

    folder = pathlib.Path(task["place"], "int8") if "DIR/int8" in name else task["model"]
    precision = [*PRECISIONS[name], "--device", "cpu", "--threads", task["threads"], "-q", "--json"]
    out = pathlib.Path(task["scratch"], "ours.safetensors")

    def logits(ids):
        shell(task["int8"], "logits", folder, "--ids", " ".join(map(str, ids)), "--out", out, *precision)
        found = load_file(out)["logits"]
        out.unlink()
        return found

    found = json.loads(shell(task["int8"], "eval", folder, "--text", task["text"], "--window", task["window"], "--windows", task["windows"], *precision))
    return logits, {key: found[key] for key in ("device", "kv_cache", "settings", "perplexity", "window_nll")}


def llama(task):
    import ctypes

    import numpy

    source = pathlib.Path(task["place"], f"llama_cpp_python-{LLAMA}").resolve()
    os.environ["LLAMA_CPP_LIB_PATH"] = str(source / "vendor/llama.cpp/build/bin")
    # The bindings alone; the package around them wants a library beside itself.
    package = types.ModuleType("llama_cpp")
    package.__path__ = [str(source / "llama_cpp")]
    sys.modules["llama_cpp"] = package
    import llama_cpp.llama_cpp as library

    quiet = library.llama_log_callback(lambda *_: None)
    library.llama_log_set(quiet, ctypes.c_void_p(0))
    library.llama_backend_init()
    model = library.llama_model_load_from_file(str(pathlib.Path(task["place"], "q8_0.gguf")).encode(), library.llama_model_default_params())
    settings = library.llama_context_default_params()
    settings.n_ctx = settings.n_batch = max(task["window"], settings.n_batch)
    settings.n_threads = settings.n_threads_batch = task["threads"]
    context = library.llama_init_from_model(model, settings)
    vocabulary = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def logits(ids, _kept=quiet):
        library.llama_memory_clear(library.llama_get_memory(context), True)
        batch = library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position], batch.pos[position], batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = token, position, 1, 0, 1
        status = library.llama_decode(context, batch)
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        found = numpy.ctypeslib.as_array(library.llama_get_logits(context), shape=(len(ids), vocabulary)).copy()
        library.llama_batch_free(batch)
        return found

    recorded = {key: getattr(settings, key) for key in ("type_k", "type_v", "flash_attn_type", "n_batch", "n_ubatch")}
    return logits, {"llama-cpp-python": LLAMA, "system": library.llama_print_system_info().decode(), **recorded}


def openvino_model(task, paged):
    import numpy
    import openvino

    core = openvino.Core()
    model = core.read_model(str(pathlib.Path(task["place"], "openvino/openvino_model.xml")))
    if paged:
        from openvino._offline_transformations import paged_attention_transformation

        paged_attention_transformation(model)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": task["threads"]})
    known = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    recorded = {"openvino": openvino.__version__, **{key: str(compiled.get_property(key)) for key in OPENVINO_PROPERTIES if key in known}}
    request = compiled.create_infer_request()
    if paged:
        recorded["inputs"] = {port.any_name: f"{port.get_partial_shape()} {port.get_element_type().get_type_name()}" for port in compiled.inputs}
        recorded["window_nll"] = genai(task)

    def logits(ids):
        count = len(ids)
        names = {port.any_name: port for port in compiled.inputs}
        if not paged:
            request.reset_state()
            given = {"input_ids": [ids], "attention_mask": [[1] * count], "position_ids": [list(range(count))], "beam_idx": [0]}
        else:
            # One sequence in a cache of its own, as many blocks as it needs, all of its tokens at once.
            caches = [name for name in names if name.startswith(("key_cache.", "value_cache."))]
            # Keys of a block have their scales among them, values beside them.
            block = names["value_cache.0"].get_partial_shape()[2].get_length()
            blocks = -(-count // block)
            for name in caches:
                shape = [blocks, *(side.get_length() for side in list(names[name].get_partial_shape())[1:])]
                cache = openvino.Tensor(names[name].get_element_type(), openvino.Shape(shape))
                cache.data[:] = 0
                request.set_tensor(name, cache)
            given = {"input_ids": ids, "position_ids": list(range(count)), "past_lens": [0], "subsequence_begins": [0, count], "block_indices": list(range(blocks)),
                     "block_indices_begins": [0, blocks], "max_context_len": count}
        types_of = {name: numpy.dtype(port.get_element_type().to_dtype()) for name, port in names.items() if name in given}
        for name, values in given.items():
            request.set_tensor(name, openvino.Tensor(numpy.array(values, dtype=types_of[name])))
        request.infer()
        return request.get_tensor("logits").data.reshape(count, -1).astype(numpy.float32)

    if not paged:
        by_default = logits(task["ids"][0])
        request = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": task["threads"], "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}).create_infer_request()
        recorded["dynamic_quantization_changes_logits"] = not numpy.array_equal(by_default, logits(task["ids"][0]))
        request = compiled.create_infer_request()
    return logits, recorded


def genai(task):
    """Mean negative log-likelihood of each window as OpenVINO GenAI tells it."""
    import numpy
    import openvino
    import openvino_genai

    settings = openvino_genai.SchedulerConfig()
    settings.max_num_batched_tokens = 2 * task["window"]
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(pathlib.Path(task["place"], "openvino")), settings, "CPU", {"INFERENCE_NUM_THREADS": task["threads"]})
    means = []
    for index, ids in enumerate(task["ids"]):
        wanted = openvino_genai.GenerationConfig(max_new_tokens=1, ignore_eos=True, do_sample=False, echo=True, logprobs=1)
        handle = pipeline.add_request(index, openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), wanted)
        while pipeline.has_non_finished_requests():
            pipeline.step()
        found = handle.read_all()[0]
        if list(found.generated_ids[: len(ids)]) != ids:
            sys.exit("OpenVINO GenAI: not the tokens that were asked for")
        means.append(-statistics.fmean(found.generated_log_probs[1 : len(ids)]))
    return means


def ctranslate2_model(task):
    import ctranslate2
    import numpy

    generator = ctranslate2.Generator(str(pathlib.Path(task["place"], "ctranslate2")), device="cpu", compute_type="int8", intra_threads=task["threads"], inter_threads=1)
    return lambda ids: numpy.array(generator.forward_batch([ids]))[0], {"ctranslate2": ctranslate2.__version__, "compute_type": generator.compute_type}


def contestant(task, name):
    if name == "float32":
        return torch_model(task, "float32")
    if name == "PyTorch bf16":
        return torch_model(task, "bfloat16")
    if name in PRECISIONS:
        return ours(task, name)
    if name == "llama.cpp Q8_0":
        return llama(task)
    if name.startswith("OpenVINO"):
        return openvino_model(task, name == "OpenVINO GenAI")
    return ctranslate2_model(task)


# ── sums of a window ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def log_probabilities(logits):
    import numpy

    logits = logits.astype(numpy.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - numpy.log(numpy.exp(logits).sum(axis=1, keepdims=True))


def compare(logits, reference, ids, rows=64):
    """Means over the positions that predict a token of the window; without a reference, of the likelihood alone."""
    import numpy

    count = len(ids) - 1
    vocabulary = logits.shape[1] if reference is None else reference.shape[1]
    # A peer may have rounded the vocabulary up.
    if logits.shape[0] != len(ids) or logits.shape[1] < vocabulary or not numpy.isfinite(logits[:, :vocabulary]).all():
        sys.exit(f"logits {logits.shape} of {len(ids)} tokens and a vocabulary of {vocabulary}, or not all finite")
    nll = divergence = agreeing = 0.0
    for first in range(0, count, rows):
        taken = slice(first, min(first + rows, count))
        own = log_probabilities(logits[taken, :vocabulary])
        targets = numpy.array(ids[taken.start + 1 : taken.stop + 1])
        nll -= own[numpy.arange(len(targets)), targets].sum()
        if reference is not None:
            true = log_probabilities(reference[taken])
            divergence += (numpy.exp(true) * (true - own)).sum()
            agreeing += (own.argmax(axis=1) == true.argmax(axis=1)).sum()
    own_only = {"nll": float(nll / count)}
    return own_only if reference is None else own_only | {"kl": float(divergence / count), "top1": float(agreeing / count)}


def worker(name):
    task = json.load(sys.stdin)
    import numpy

    if name == "float32":
        import tokenizers

        text = pathlib.Path(task["text"]).read_text(encoding="utf-8")
        found = tokenizers.Tokenizer.from_file(str(pathlib.Path(task["model"], "tokenizer.json"))).encode(text, add_special_tokens=False).ids
        window = task["window"]
        task["ids"] = [found[first : first + window] for first in range(0, min(task["windows"], len(found) // window) * window, window)]
        if not task["ids"]:
            sys.exit(f"a text of {len(found)} tokens has no window of {window}")
    logits, recorded = contestant(task, name)
    windows = []
    for index, ids in enumerate(task["ids"]):
        kept = pathlib.Path(task["scratch"], f"float32-{index}.npy")
        found = logits(ids)
        if name == "float32":
            numpy.save(kept, found)
        windows.append(compare(found, None if name == "float32" else numpy.load(kept, mmap_mode="r"), ids))
        print(f"{name}: window {index + 1} of {len(task['ids'])}", file=sys.stderr)
    if name == "float32":
        recorded["ids"] = task["ids"]
    print("\n" + json.dumps({"windows": windows, "recorded": recorded}), flush=True)
    # Libraries of some peers end badly.
    os._exit(0)


# ── the table ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def shell(*command, **settings):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, **settings).stdout


def mean(windows, key):
    return statistics.fmean(window[key] for window in windows)


def summary(windows, reference):
    differences = [window["nll"] - other["nll"] for window, other in zip(windows, reference)]
    loss = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences)) * math.exp(loss) if len(differences) > 1 else None
    return {"perplexity": math.exp(mean(windows, "nll")), "loss": math.expm1(loss), "loss_error": error, "kl_mnat": 1000 * mean(windows, "kl"), "top1": mean(windows, "top1")}


def line(name, row):
    error = "" if row["loss_error"] is None else f" ± {100 * row['loss_error']:.2f}"
    return f"| {name} | {row['perplexity']:.3f} | {100 * row['loss']:+.2f}{error} % | {row['kl_mnat']:.2f} | {100 * row['top1']:.2f} % |"


def processor():
    """Its instructions for 8-bit and 16-bit products."""
    known = {"avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve"}
    words = set(pathlib.Path("/proc/cpuinfo").read_text().split()) if os.path.exists("/proc/cpuinfo") else set()
    return sorted(known & words)


def run(arguments):
    checks = []

    def check(what, found, expected, most):
        worst = max(abs(one - other) for one, other in zip(found, expected, strict=True))
        checks.append({"check": what, "worst_difference": worst, "most": most, "holds": worst <= most})
        print(f"{'holds' if worst <= most else 'FAILS'}: {what}: the windows' mean negative log-likelihoods differ by at most {worst:.1e} of {most:g}", file=sys.stderr)

    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        task = {"place": arguments.place, "model": arguments.model, "int8": arguments.int8, "text": arguments.text}
        task = {key: str(path.resolve()) for key, path in task.items()} | {"scratch": scratch, "window": arguments.window, "windows": arguments.windows, "threads": arguments.threads}

        def start(name):
            python = arguments.place / "venv/bin/python"
            environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            return json.loads(shell(python, os.path.abspath(__file__), "worker", name, input=json.dumps(task), env=environment).splitlines()[-1])

        reference = start("float32")
        task["ids"] = reference["recorded"].pop("ids")
        own = json.loads(shell(arguments.int8, "eval", arguments.model, "--text", arguments.text, "--window", arguments.window, "--windows", arguments.windows, "--fp",
                               "--device", "cpu", "--threads", arguments.threads, "--json", "-q"))
        floats = reference["windows"]
        check("transformers in float32 and `int8 eval --fp`", [window["nll"] for window in floats], own["window_nll"], FLOAT_MOST)
        rows = [{"name": "float32", "perplexity": math.exp(mean(floats, "nll")), "windows": floats, "recorded": reference["recorded"]}]
        table = ["| | perplexity | loss | KL divergence, mnat | top-1 |", "|---|---|---|---|---|", f"| float32 | {rows[0]['perplexity']:.3f} | | | |"]
        for name in arguments.only or CONTESTANTS:
            if "DIR/int8" in name and not (arguments.place / "int8").exists():
                shell(arguments.int8, "quantize", arguments.model, arguments.place / "int8", "-q")
            found = start(name)
            windows, recorded = found["windows"], found["recorded"]
            if name in PRECISIONS:
                columns = recorded["settings"]["int8_head"] and recorded["settings"]["granularity"] == "column"
                check(f"`{name}`: logits and eval", [window["nll"] for window in windows], recorded["window_nll"], HEAD_MOST if columns else SAME_MOST)
            if name == "OpenVINO GenAI":
                check("OpenVINO with paged attention and OpenVINO GenAI", [window["nll"] for window in windows], recorded["window_nll"], GENAI_MOST)
            rows.append({"name": name, **summary(windows, floats), "windows": windows, "recorded": recorded})
            table.append(line(f"`{name}`" if name in PRECISIONS else name, rows[-1]))
            print(table[-1], file=sys.stderr)
    print("\n".join(table), flush=True)
    if arguments.json:
        shape = {"model": arguments.model.resolve().name, "text": arguments.text.name, "windows": len(floats), "window": arguments.window}
        shape["tokens"] = len(floats) * (arguments.window - 1)
        arguments.json.write_text(json.dumps({**shape, "threads": arguments.threads, "processor": processor(), "checks": checks, "rows": rows}, indent=1) + "\n")
    if not all(check["holds"] for check in checks):
        sys.exit("a check fails, see above")


def main():
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=pathlib.Path, metavar="DIR", help="folder of `bench_peers.py setup`")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="folder of the 16-bit checkpoint")
    parser.add_argument("--int8", type=pathlib.Path, required=True, help="our program, a release build")
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--window", type=int, default=1024, help="tokens (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="at most so many (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", action="append", choices=CONTESTANTS, metavar="NAME", help="a row of the table; repeat it for several (default: all)")
    parser.add_argument("--scratch", type=pathlib.Path, help="folder for the float model's logits, removed at the end (default: the system's for temporary files)")
    parser.add_argument("--json", type=pathlib.Path)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
