"""Writes int8-nn/src/quantize/classes.tsv: which weights `load_in_8bit` of transformers converts, for every model class.

Each class is built on PyTorch's meta device (names and shapes, no memory) from a small configuration. Its state dict is
renamed as `save_pretrained` renames it; each resulting tensor is renamed back as `from_pretrained` does, which gives its
module. A module is converted if it is exactly `nn.Linear` or `Conv1D` and no name of the default skip list covers it.

    python tools/quantize_classes.py facts.jsonl [CLASS ...]    # needs torch, transformers, accelerate; resumes
    python tools/quantize_classes.py --table facts.jsonl int8-nn/src/quantize/classes.tsv

Codes of a weight: I converted; T converted and stored [in, out]; N no linear layer; H linear, kept always (output head, last
parameter); D linear, kept if `tie_word_embeddings`; F linear, kept in 32-bit; Z linear, kept in the last layer only; X linear,
but split, fused or renamed on loading in a way that int8 scales do not follow.
`F:name=` is a name of `_keep_in_fp32_modules`, `X:=module` a module that is filled from X weights.
"""

import collections
import inspect
import json
import os
import re
import signal
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
LIMITS = [
    (re.compile(r"(layers?|blocks|depth|n_layer)$|^num_hidden|^depths$"), 4),
    (re.compile(r"experts$"), 8),
    (re.compile(r"^num_queries$|max_position|n_positions"), 64),
]
KEPT = re.compile(r"per_tok|shared|dense")


# Values for settings without a default.
FILL = {
    "head_dim": 16, "vocab_size": 64, "num_key_value_heads": 4, "num_dense_layers": 1, "prediction_length": 4, "is_decoder": True,
    "num_experts": 8, "n_routed_experts": 8, "n_shared_experts": 1, "moe_layer_start_index": 1, "contrastive_hidden_size": 16,
    "num_experts_per_tok": 2, "norm_topk_prob": True, "full_attn_idxs": [1], "num_local_experts": 8,
    "num_hidden_layers": 4, "first_k_dense_replace": 1, "moe_topk": 2, "num_images": 2, "rope_theta": 10000.0,
    "qk_nope_head_dim": 16, "num_attention_heads": 8, "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4,
    "layer_types": ["conv", "full_attention"] * 16, "indexer_budget": 64, "indexer_compress_ratio": 4, "indexer_n_heads": 4, "indexer_kv_heads": 1,
    "indexer_head_dim": 256,
    "vocabulary_map": {"<image>": 1}, "index_topk": 8, "indexer_block_size": 8,
}


def filled(values):
    out = small(values)
    for key, value in values.items():
        if isinstance(value, dict) and key in out:
            out[key] = {**filled(value), **({"model_type": value["model_type"]} if value.get("model_type") else {})}
        elif value is None and key in FILL:
            out[key] = FILL[key]
    return out


def small(values):
    """The values of a configuration that make it small."""
    out = {}
    for key, value in values.items():
        if isinstance(value, dict) and (key.endswith("_config") or "model_type" in value):
            inner = small(value)
            if value.get("model_type"):
                inner["model_type"] = value["model_type"]
            out[key] = inner
        elif isinstance(value, int) and not isinstance(value, bool):
            for pattern, limit in LIMITS:
                if pattern.search(key) and not KEPT.search(key) and value > limit:
                    out[key] = limit
    return out


def configurations(config_class):
    """Configurations to try, the first that can be built is taken."""
    try:
        default = config_class()
    except Exception:
        return
    try:
        yield config_class(**small(default.to_dict()))
    except Exception:
        pass
    yield default
    for layers in (4, 32):
        try:
            for part in [default, *vars(default).values()]:
                if hasattr(part, "model_type"):
                    for key in FILL:
                        if getattr(part, key, 0) is None:
                            setattr(part, key, FILL[key])
                    if not hasattr(part, "rope_theta"):
                        part.rope_theta = 10000.0
            yield default
            values = {**filled(default.to_dict()), "num_hidden_layers": layers}
            yield config_class(**{key: value for key, value in values.items() if hasattr(default, key)})
        except Exception:
            pass


def tie(config):
    for value in [config, *vars(config).values()]:
        if hasattr(value, "model_type") and hasattr(value, "tie_word_embeddings"):
            value.tie_word_embeddings = True


def untie(config):
    for value in [config, *vars(config).values()]:
        if hasattr(value, "model_type") and hasattr(value, "tie_word_embeddings"):
            value.tie_word_embeddings = False


def build(cls, config_class):
    import torch
    from transformers.initialization import no_tie_weights

    error = None
    for config in configurations(config_class):
        try:
            # As in from_pretrained: weights are tied after the skip list is made.
            with torch.device("meta"), no_tie_weights():
                return cls(config)
        except Exception as failure:
            error = failure
    raise error or ValueError("no default configuration")


def facts(cls, config_class):
    """Facts of one class: for each stored matrix its name, the module that it becomes, and its code."""
    from torch import nn
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key, revert_weight_conversion
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    model = build(cls, config_class)
    transforms = get_model_conversion_mapping(model)
    is_tied = bool(getattr(model.config, "tie_word_embeddings", False))
    fp32 = sorted(model._keep_in_fp32_modules or [])
    tie(model.config)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    tied = get_keys_to_not_convert(model)
    model.all_tied_weights_keys = {}
    always = get_keys_to_not_convert(model)
    untie(model.config)

    linear = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear or isinstance(module, Conv1D):
            linear[name] = isinstance(module, Conv1D)
    last = list(model.named_parameters())[-1][0]

    state = {name: value for name, value in model.state_dict().items()}
    try:
        stored = revert_weight_conversion(model, dict(state))
        names = {name: len(getattr(value, "shape", ())) for name, value in stored.items()}
        own = {name.removesuffix(".weight") for name in names}
    except Exception:
        names = {name: value.ndim for name, value in state.items()}
        own = {name.removesuffix(".weight") for name in names}
    names.update({name: value.ndim for name, value in state.items()})
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    prefix = model.base_model_prefix

    def target(name):
        return rename_source_key(name, renamings, converters, prefix, state)

    rows = []
    for name, dims in names.items():
        if dims != 2 or not name.endswith(".weight"):
            continue
        to, converter = target(name)
        module = to.removesuffix(".weight") if to.endswith(".weight") else to
        stem = name.removesuffix(".weight")
        if module not in linear:
            code = "N"
        elif converter is not None or target(stem + ".SCB")[0] != module + ".SCB":
            code = "X"
        elif not should_convert_module(module, fp32):
            code = "F"
        elif not should_convert_module(module, always):
            code = "H"
        elif not should_convert_module(module, tied):
            code = "D"
        else:
            code = "T" if linear[module] else "I"
        rows.append([stem, module, code])
    # Linear layers that no stored tensor becomes unchanged.
    reached = {module for name, module, code in rows if code != "X" and name in own}
    changed = sorted(module for module in linear if module not in reached)
    return {
        "class": cls.__name__,
        "type": model.config.model_type,
        "tied": is_tied,
        "rows": rows,
        "changed": changed,
        "last": last,
        "fp32": fp32,
    }


def collect(path, only):
    import torch
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    done = set()
    if os.path.exists(path):
        done = {json.loads(line)["class"] for line in open(path)}

    def late(*_):
        raise TimeoutError("too slow")

    signal.signal(signal.SIGALRM, late)
    names = only or [name for name in dir(transformers) if re.search(r"(Model|For[A-Z]\w+|Head\w*|Decoder)$", name)]
    # Classes that other types' configurations use, too: renaming depends on the type.
    for mapping in [value for name, value in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]:
        for model_type, value in {} if only else mapping.items():
            for name in [value] if isinstance(value, str) else value:
                names.append(f"{name}:{model_type}")
    for name in names:
        if name in done or name.startswith("Auto") or name.lower().endswith("pretrainedmodel"):
            continue
        done.add(name)
        try:
            cls = getattr(transformers, name.split(":")[0])
        except Exception:
            continue
        if not (inspect.isclass(cls) and issubclass(cls, transformers.PreTrainedModel) and cls.config_class):
            continue
        config_class = cls.config_class
        if ":" in name:
            model_type = name.split(":")[1]
            if model_type == config_class.model_type or model_type not in CONFIG_MAPPING:
                continue
            config_class = CONFIG_MAPPING[model_type]
        signal.alarm(60)
        try:
            entry = {**facts(cls, config_class), "class": name}
        except Exception as error:
            entry = {"class": name, "error": f"{type(error).__name__}: {error}"[:200]}
        signal.alarm(0)
        with open(path, "a") as out:
            out.write(json.dumps(entry) + "\n")
        print(name, entry.get("error") or len(entry["rows"]), flush=True)


def general(name):
    """`layers.11.fc1` becomes `layers.*.fc*`."""
    return re.sub(r"[0-9]+", "*", name)


def suffixes(pattern):
    """The last one, two, three components; a lone number says nothing."""
    parts = pattern.split(".")
    for count in range(1, min(len(parts), 3) + 1):
        if parts[-count:] != ["*"]:
            yield ".".join(parts[-count:])


def patterns_of(entry):
    """One class's patterns with their codes and modules; names whose pattern has several codes are listed exactly."""
    groups = collections.defaultdict(list)
    for name, module, code in entry["rows"]:
        groups[general(name)].append((name, module, code))
    out = {}
    for pattern, rows in groups.items():
        codes = {code for _, _, code in rows}
        same = {general(module) for _, module, _ in rows}
        module = same.pop() if len(same) == 1 else None
        heads = [name for name, _, code in rows if code == "H"]
        if len(codes) == 1:
            # Renamed modules differ by number: only the converted ones may share a pattern.
            if module is not None or codes <= set("ITN"):
                out[pattern] = (codes.pop(), module or pattern)
                continue
        last = entry["last"].removesuffix(".weight")
        if codes == {"I", "H"} and heads == [last] and module is not None:
            out[pattern] = ("Z", module)
            continue
        for name, module, code in rows:
            out[name] = (code, module)
    return out


def table(source, destination):
    entries = [json.loads(line) for line in open(source)]
    entries = sorted((entry for entry in entries if "rows" in entry), key=lambda entry: entry["class"])
    classes = {entry["class"]: patterns_of(entry) for entry in entries}
    votes = collections.defaultdict(collections.Counter)
    for patterns in classes.values():
        for name, (code, _) in patterns.items():
            if code in "ITNDXF" and "0" not in name:
                for suffix in suffixes(general(name)):
                    votes[suffix][code if code in "TN" else "I"] += 1
    rules = {}

    def by_suffix(pattern):
        for suffix in reversed(list(suffixes(general(pattern)))):
            if suffix in rules:
                return rules[suffix]
        return None

    # Ties by the alphabet, so that the file does not depend on the order.
    for count in (1, 2, 3):
        chosen = {}
        for suffix, counter in votes.items():
            if suffix.count(".") + 1 == count:
                code = max(sorted(counter), key=counter.get)
                if by_suffix(suffix) != code:
                    chosen[suffix] = code
        rules.update(chosen)

    groups = collections.defaultdict(list)
    for entry in entries:
        exceptions = []
        for name, (code, module) in sorted(classes[entry["class"]].items()):
            if code == by_suffix(name):
                continue
            renamed = module != name and code not in "ITN"
            exceptions.append(f"{code}:{name}" + (f"={module}" if renamed else ""))
        exceptions += [f"F:{name}=" for name in entry["fp32"]]
        exceptions += [f"X:={name}" for name in sorted({general(module) for module in entry["changed"]})]
        groups["\t".join(["+" if entry["tied"] else "-", *exceptions])].append(entry["class"])

    with open(destination, "w") as out:
        import importlib.metadata

        version = importlib.metadata.version("transformers")
        out.write(f"# By tools/quantize_classes.py from transformers {version}; do not edit. Its documentation explains the codes.\n")
        for code in "ITN":
            out.write(f"{code}\t" + " ".join(sorted(name for name in rules if rules[name] == code)) + "\n")
        for exceptions, names in sorted(groups.items(), key=lambda item: item[1]):
            out.write(" ".join(names) + "\t" + exceptions + "\n")
    print(len(entries), "classes,", len(rules), "suffixes,", os.path.getsize(destination), "bytes")


if __name__ == "__main__":
    if sys.argv[1] == "--table":
        table(sys.argv[2], sys.argv[3])
    else:
        collect(sys.argv[1], sys.argv[2:])
