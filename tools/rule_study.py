#!/usr/bin/env python3
"""Loss of int8 settings, simulated in PyTorch: the study behind `--preset best` (docs/quality.md).

usage: rule_study.py MODEL TEXT WINDOW WINDOWS FIRST CALIBRATION_TEXT < SETTINGS > RECORD

Every linear layer but the head is replaced by its de-quantised form in f32, and compared to the float model over WINDOWS
windows: perplexity over the FIRST ones and over all (paired standard error), KL divergence, top-1 agreement, shares of
outliers. A setting is a line of keyword arguments:
  x, w      'abs' | 'zp' | None     codes of activations (a row) and weights (an output row); None leaves them in floating point
  gx, gw    64                      values along K that share a scale, rounded up to bf16; a whole row without it
  rule      ('abs', t) | ('abscol', t)               |x| >= t: the value, or its column for the window
            ('median', t) | ('mean', t) | ('rms', t) t times a statistic of the row's magnitudes; the median without zeros
            ('q', p, t)                              t times the p-quantile of the non-zero magnitudes
            ('fix', t) | ('fixm', t) | ('crms', t, k) t times the RMS (mean) of the values below the threshold itself, iterated
                                                     from k (12) medians; crms: iterated once
            ('topk', p) | ('topkc', p)               the p·K largest, rounded down or up, at least one
            ('topmed', p, t)                         those of them that are t medians
  rk        dict(fc1=rule, …)       rules by kind of projection
  exact     False                   outliers meet de-quantised weights
  wrule     rule for weights kept beside w='abso'
  cols      0.02                    this share of the columns exact, those of the largest energy on the calibration text;
  rand      1                       … on random ids instead;   wcols: they do not count for the weight's scales
  shift     'mean' | 'beta'         subtract the calibrated mean, or the LayerNorm's bias, and add W·shift exactly
  mig       0.5                     move max|w|^-mig of each column (with cal=True max|x|^mig/max|w|^(1-mig)) into the input
  rot       True                    Hadamard rotation of the inputs in blocks
  only      ('q_proj', …)           only these projections are quantised
Runs on a GPU if there is one. Uses the environment of from_pretrained_logits.py (run that once first).
"""
import math
import os
import pathlib
import sys

HOME = pathlib.Path(os.environ.get("INT8_TOOLS", pathlib.Path.home() / ".cache/int8-tools")) / "transformers"
BATCH = 8


def study(folder, text, window, windows, first, calibration):
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    encode = lambda path: torch.tensor(tokenizer.encode(open(path).read(), add_special_tokens=False).ids)
    ids, calibration = encode(text), encode(calibration)
    windows = min(windows, ids.numel() // window)
    ids = ids[: window * windows].view(windows, window).to(device)
    calibration = calibration[-window * 8 :].view(8, window).to(device)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
    layers = [(n, l) for n, l in model.named_modules() if isinstance(l, torch.nn.Linear) and "lm_head" not in n]
    weights = [layer.weight.data.clone() for _, layer in layers]

    def bf16_up(s):
        return ((s.contiguous().view(torch.int32) + 0xFFFF) & -65536).view(torch.float32)

    def grouped(code):
        def coded(x, group):
            if not group:
                return code(x, lambda s: s)
            return code(x.reshape(*x.shape[:-1], -1, group), bf16_up).reshape(x.shape)
        return coded

    @grouped
    def absmax(x, rounded):
        s = rounded(x.abs().amax(-1, keepdim=True).clamp_min(1e-30))
        return torch.round(x * (127 / s)) * s / 127

    @grouped
    def zeropoint(x, rounded):
        low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
        half = rounded(((high - low) / 2).clamp_min(1e-30))
        z = -torch.round(low * (127 / half)) - 127
        return ((torch.round(x * (127 / half)) + z).clamp(-127, 127) - z) * half / 127

    codes = {"abs": absmax, "zp": zeropoint, None: lambda x, group: x}

    def quantile(a, p):
        ordered, nonzero = a.sort(-1)[0], (a != 0).sum(-1, keepdim=True)
        index = a.shape[-1] - nonzero + ((nonzero - 1).clamp_min(0) * p).long()
        return ordered.gather(-1, index.clamp(0, a.shape[-1] - 1))

    def largest(a, count):
        return a >= a.topk(max(1, count), -1)[0][..., -1:]

    def hits(x, rule):
        a, (kind, *given) = x.abs(), rule
        if kind == "abs":
            return a >= given[0]
        if kind == "abscol":
            return (a >= given[0]).any(-2, keepdim=True).expand_as(a)
        if kind == "median":
            return a >= given[0] * quantile(a, 0.5)
        if kind == "q":
            return a >= given[1] * quantile(a, given[0])
        if kind == "mean":
            return a >= given[0] * a.mean(-1, keepdim=True)
        if kind == "rms":
            return a >= given[0] * a.pow(2).mean(-1, keepdim=True).sqrt()
        if kind in ("topk", "topkc"):
            return largest(a, (math.ceil if kind == "topkc" else int)(a.shape[-1] * given[0]))
        if kind == "topmed":
            return largest(a, int(a.shape[-1] * given[0])) & (a >= given[1] * quantile(a, 0.5))
        threshold = (given[1] if len(given) > 1 else 12) * quantile(a, 0.5)
        for _ in range(1 if kind == "crms" else 4):
            below = a < threshold
            count, kept = below.sum(-1, keepdim=True).clamp_min(1), a.masked_fill(~below, 0)
            mean = kept.sum(-1, keepdim=True) / count
            threshold = given[0] * (mean if kind == "fixm" else (kept.pow(2).sum(-1, keepdim=True) / count).sqrt())
        return a >= threshold

    def rotate(x):
        block = 1
        while x.shape[-1] % (2 * block) == 0 and block < 256:
            block *= 2
        h = torch.ones(1, 1, device=device)
        while h.shape[0] < block:
            h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
        return (x.reshape(*x.shape[:-1], -1, block) @ (h / math.sqrt(block))).reshape(x.shape)

    peak, mean, energy, beta = {}, {}, {}, {}
    for name, module in model.named_modules():
        if name.endswith("_layer_norm") and "layers." in name and getattr(module, "bias", None) is not None:
            block = name.rsplit(".", 1)[0]
            fed = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj") if "self_attn" in name else ("fc1",)
            beta.update({f"{block}.{projection}": module.bias.data for projection in fed})

    def quantise(setting, tally):
        for (name, layer), weight in zip(layers, weights):
            kind, s = name.split(".")[-1], dict(setting)
            if "only" in s and kind not in s["only"]:
                s = {"x": None, "w": None}
            rule, static, moved = s.get("rk", {}).get(kind, s.get("rule")), None, None
            w = weight
            if "mig" in s:
                top, power = w.abs().amax(0).clamp_min(1e-5), s["mig"]
                moved = peak[name].clamp_min(1e-5) ** power / top ** (1 - power) if s.get("cal") else top**-power
                moved = moved / moved.log().mean().exp()
                w = w * moved
            if s.get("rot"):
                w = rotate(w)
            if s.get("cols") and round(w.shape[1] * s["cols"]):
                static = energy["random" if s.get("rand") else "text"][name].topk(round(w.shape[1] * s["cols"]))[1]
            coded, group = w, s.get("gw")
            if s.get("wcols") and static is not None:
                coded = w.clone()
                coded[:, static] = 0
            if s.get("w", "abs") == "abso":
                kept = hits(w, s["wrule"])
                coded = torch.where(kept, w, absmax(w.masked_fill(kept, 0), group))
            else:
                coded = codes[s.get("w", "abs")](coded, group)
            shift = {"mean": mean.get(name), "beta": beta.get(name)}.get(s.get("shift"))

            def forward(x, layer=layer, name=name, s=s, w=w, coded=coded, rule=rule, static=static, moved=moved, shift=shift):
                shape, x = x.shape[:-1], x.reshape(-1, min(window, x.numel() // x.shape[-1]), x.shape[-1])
                tally(name, x)
                x = x if moved is None else x / moved
                x = x if shift is None else x - shift
                x = rotate(x) if s.get("rot") else x
                y, tally.values = 0, tally.values + x.numel()
                if static is not None:
                    y, x = x[..., static] @ w[:, static].T, x.clone()
                    x[..., static] = 0
                    tally.outside += x.shape[0] * x.shape[1] * len(static)
                if rule:
                    hit = hits(x, rule)
                    tally.outside += hit.sum().item()
                    tally.columns += hit.any(-2).sum().item()
                    tally.all_columns += hit.shape[0] * hit.shape[-1]
                    y = y + x.masked_fill(~hit, 0) @ (w if s.get("exact", True) else coded).T
                    x = x.masked_fill(hit, 0)
                y = y + codes[s.get("x", "abs")](x, s.get("gx")) @ coded.T
                y = y if shift is None else y + w @ shift
                return (y if layer.bias is None else y + layer.bias).reshape(*shape, -1)

            layer.forward = forward

    class Tally:
        values = outside = columns = all_columns = 0

        def __init__(self, into=None):
            self.into = into

        def __call__(self, name, x):
            if self.into is not None:
                flat = x.flatten(0, 1)
                self.into[name] = self.into.get(name, 0) + flat.pow(2).mean(0)
                mean[name], peak[name] = flat.mean(0), flat.abs().amax(0)

    def score(setting, batch, reference=None, into=None):
        tally = Tally(into)
        quantise(setting, tally)
        losses, kept, divergence, agreement = [], [], [], []
        for start in range(0, len(batch), BATCH):
            x = batch[start : start + BATCH]
            logits = model(x).logits
            losses.append(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="none").view(len(x), -1).mean(1))
            found = logits.log_softmax(-1)
            if reference is None:
                kept.append(found)
            else:
                p = reference[1][start // BATCH]
                divergence.append((p.exp() * (p - found)).sum(-1).mean(1))
                agreement.append((p.argmax(-1) == found.argmax(-1)).float().mean(1))
        return torch.cat(losses), kept, divergence, agreement, tally

    generator = torch.Generator().manual_seed(0)
    random = torch.randint(5, model.config.vocab_size, (8, min(window, 512)), generator=generator).to(device)
    plain = {"x": None, "w": None}
    for origin, batch in (("random", random), ("text", calibration)):
        energy[origin] = {}
        score(plain, batch, into=energy[origin])
    reference = score(plain, ids)
    print(f"# {windows} windows, 'first' is the first {first}; float perplexity over all {reference[0].mean().exp():.3f}, over the first {reference[0][:first].mean().exp():.3f}", flush=True)
    for line in sys.stdin:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        losses, _, divergence, agreement, tally = score(eval(f"dict({line})"), ids, reference)
        d = losses - reference[0]
        loss = lambda d: 100 * math.expm1(d.mean().item())
        print(
            f"{line:120} first {losses[:first].mean().exp():8.3f} {loss(d[:first]):+7.2f} %"
            f"  all {loss(d):+7.2f}±{100 * d.std().item() / math.sqrt(len(d)):.2f} %"
            f"  KL {1e3 * torch.cat(divergence).mean():8.3f} mnat  top-1 {100 * torch.cat(agreement).mean():.2f} %"
            f"  values {100 * tally.outside / tally.values:.3f} %  columns {100 * tally.columns / max(1, tally.all_columns):.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    if pathlib.Path(sys.prefix).resolve() != HOME.resolve() and (HOME / "bin/python").exists():
        os.execv(HOME / "bin/python", [str(HOME / "bin/python"), __file__, *sys.argv[1:]])
    folder, text, window, windows, first, calibration = sys.argv[1:]
    study(folder, text, int(window), int(windows), int(first), calibration)
