"""The opponent of docs/benchmarks/gpu-models.md: the same model shapes in PyTorch, compiled, with CUDA graphs.

One block is LayerNorm|RMSNorm, stacked QKV, attention over a static KV cache (scaled_dot_product_attention), output projection,
MLP; random weights in f16 (OPT) or bf16 (Llama), or int8 weights with a scale a row, dequantised inside the compiled product
(weight-only int8, the fastest int8 that PyTorch has at batch 1). torch.compile(mode="reduce-overhead") of the whole decode step.

    python3 bench_compiled_torch.py --shape opt-6.7b --batch 1,8,32 --context 128 --weights float,int8 --json OUT
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = {
    "opt-125m": dict(llama=False, d=768, ffn=3072, layers=12, heads=12, kv=12, vocab=50272),
    "opt-1.3b": dict(llama=False, d=2048, ffn=8192, layers=24, heads=32, kv=32, vocab=50272),
    "opt-6.7b": dict(llama=False, d=4096, ffn=16384, layers=32, heads=32, kv=32, vocab=50272),
    "opt-13b": dict(llama=False, d=5120, ffn=20480, layers=40, heads=40, kv=40, vocab=50272),
    "llama-3-8b": dict(llama=True, d=4096, ffn=14336, layers=32, heads=32, kv=8, vocab=128256),
}


class Linear(torch.nn.Module):
    def __init__(self, n, k, dtype, int8, bias):
        super().__init__()
        self.int8 = int8
        w = torch.empty(n, k, dtype=dtype, device="cuda").normal_(0, k**-0.5)
        if int8:
            scale = w.abs().amax(1) / 127
            w = torch.round(w / scale[:, None]).to(torch.int8)
            self.register_buffer("scale", scale)
        self.register_buffer("w", w)
        self.register_buffer("bias", torch.zeros(n, dtype=dtype, device="cuda") if bias else None)

    def forward(self, x):
        if not self.int8:
            return F.linear(x, self.w, self.bias)
        y = F.linear(x, self.w.to(x.dtype)) * self.scale
        return y if self.bias is None else y + self.bias


class Block(torch.nn.Module):
    def __init__(self, s, dtype, int8, batch, positions):
        super().__init__()
        d, self.heads, self.kv, self.llama = s["d"], s["heads"], s["kv"], s["llama"]
        self.size = d // self.heads
        bias = not self.llama
        self.qkv = Linear((self.heads + 2 * self.kv) * self.size, d, dtype, int8, bias)
        self.out = Linear(d, d, dtype, int8, bias)
        self.up = Linear(s["ffn"] * (2 if self.llama else 1), d, dtype, int8, bias)
        self.down = Linear(d, s["ffn"], dtype, int8, bias)
        for name in ("g1", "b1", "g2", "b2"):
            self.register_buffer(name, torch.ones(d, dtype=dtype, device="cuda"))
        for name in ("k", "v"):
            self.register_buffer(name, torch.zeros(batch, self.kv, positions, self.size, dtype=dtype, device="cuda"))

    def norm(self, x, gain, bias):
        if self.llama:
            return F.rms_norm(x, x.shape[-1:], gain, 1e-5)
        return F.layer_norm(x, x.shape[-1:], gain, bias, 1e-5)

    def forward(self, x, positions, mask, rotation):
        b, t, d = x.shape
        h = self.qkv(self.norm(x, self.g1, self.b1))
        q, k, v = h.split([self.heads * self.size, self.kv * self.size, self.kv * self.size], -1)
        q, k, v = (y.view(b, t, -1, self.size).transpose(1, 2) for y in (q, k, v))
        if self.llama:
            cos, sin = rotation
            turn = lambda y: y * cos + torch.cat((-y[..., self.size // 2 :], y[..., : self.size // 2]), -1) * sin
            q, k = turn(q), turn(k)
        self.k[:, :, positions] = k
        self.v[:, :, positions] = v
        y = F.scaled_dot_product_attention(q, self.k, self.v, attn_mask=mask, enable_gqa=self.kv != self.heads)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        h = self.up(self.norm(x, self.g2, self.b2))
        if self.llama:
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        else:
            h = F.relu(h)
        return x + self.down(h)


class Model(torch.nn.Module):
    def __init__(self, s, dtype, int8, batch, positions):
        super().__init__()
        self.s, self.dtype = s, dtype
        self.embed = torch.nn.Embedding(s["vocab"], s["d"], dtype=dtype, device="cuda")
        self.blocks = torch.nn.ModuleList([Block(s, dtype, int8, batch, positions) for _ in range(s["layers"])])
        self.head = Linear(s["vocab"], s["d"], dtype, False, False)
        self.register_buffer("gain", torch.ones(s["d"], dtype=dtype, device="cuda"))
        size = s["d"] // s["heads"]
        angles = torch.arange(positions, device="cuda")[:, None] / 500000 ** (torch.arange(0, size, 2, device="cuda") / size)
        angles = torch.cat((angles, angles), -1)
        self.register_buffer("cos", angles.cos().to(dtype))
        self.register_buffer("sin", angles.sin().to(dtype))
        self.register_buffer("seen", torch.ones(positions, positions, dtype=torch.bool, device="cuda").tril())

    def forward(self, ids, positions):
        mask = self.seen[positions][None, None]
        rotation = (self.cos[positions], self.sin[positions])
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, positions, mask, rotation)
        x = x[:, -1]
        x = F.rms_norm(x, x.shape[-1:], self.gain, 1e-5) if self.s["llama"] else F.layer_norm(x, x.shape[-1:], self.gain, None, 1e-5)
        return self.head(x).argmax(-1)[:, None]


def measure(step, rounds):
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@torch.inference_mode()
def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--shape", default="opt-6.7b", choices=SHAPES)
    arguments.add_argument("--batch", default="1")
    arguments.add_argument("--context", type=int, default=128)
    arguments.add_argument("--weights", default="float,int8")
    arguments.add_argument("--prompt", default="", help="BATCHxTOKENS to time as a prompt, in float")
    arguments.add_argument("--steps", type=int, default=50)
    arguments.add_argument("--json")
    a = arguments.parse_args()
    s = SHAPES[a.shape]
    dtype = torch.bfloat16 if s["llama"] else torch.float16
    record = dict(shape=a.shape, context=a.context, device=torch.cuda.get_device_name(), torch=torch.__version__, results=[])
    for weights in a.weights.split(","):
        for batch in map(int, a.batch.split(",")):
            torch._dynamo.reset()
            model = Model(s, dtype, weights == "int8", batch, a.context + a.steps + 8)
            step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
            ids = torch.zeros(batch, 1, dtype=torch.long, device="cuda")
            position = torch.tensor([a.context], device="cuda")
            for _ in range(5):
                ids = step(ids, position).clone()
            seconds = measure(lambda: step(ids, position), a.steps)
            row = dict(weights=weights, batch=batch, tokens_per_second=round(batch / seconds, 1))
            print(row, flush=True)
            record["results"].append(row)
            del model, step
            torch.cuda.empty_cache()
    if a.prompt:
        batch, tokens = map(int, a.prompt.split("x"))
        torch._dynamo.reset()
        model = Model(s, dtype, False, batch, tokens)
        step = torch.compile(model, fullgraph=True)
        ids, positions = torch.zeros(batch, tokens, dtype=torch.long, device="cuda"), torch.arange(tokens, device="cuda")
        for _ in range(3):
            step(ids, positions)
        seconds = measure(lambda: step(ids, positions), 10)
        row = dict(weights="float", prompt=a.prompt, tokens_per_second=round(batch * tokens / seconds, 1))
        print(row, flush=True)
        record["results"].append(row)
    if a.json:
        with open(a.json, "w") as file:
            json.dump(record, file, indent=1)


if __name__ == "__main__":
    main()
