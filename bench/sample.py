"""Measures one token of sample.py beside transformers' GPT-2, in one run on the same machine.

    python bench/sample.py                  # BioMedLM's shape, one core; 14 GB, some minutes; writes results/sample.md
    python bench/sample.py --layers 2       # two of its layers, to try this script; writes nothing
    python bench/sample.py                  # on a machine with a GPU: both in bf16, ours as a CUDA graph

The weights are random, in the full shape: speed does not depend on their values. No prompt is read; the caches are
filled with random keys and values, so measuring a step at position 900 takes one step. A time is the median of several
steps, in CPU seconds of the one thread (on a GPU in seconds). After each step memory is read once in the fastest way we
know (256 MB; on a GPU 1 GB is copied), because other users of the host change its speed from minute to minute. The
share of bandwidth is the bytes that a step has to read, weights and cache, over the median of these readings.
transformers runs in its fastest form: fused attention, fused tanh-GELU, logits of the last token only, and on a CPU the
faster of bf16 and fp32. "As released" is BioMedLM's config.json, whose "use_cache": false reads the whole text again
for every token; its step is one call with all of the text.

You should see a line for each figure, then a table of the requirements; one that is not met says NO.
"""
import gc
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")       # before torch is imported
HERE = Path(__file__).resolve().parent              # not searched: `sample` would be this file
sys.path[:] = [str(HERE.parent), *(folder for folder in sys.path if folder != str(HERE))]

import torch  # noqa: E402
import transformers  # noqa: E402

from model import GPT, GPTConfig  # noqa: E402
from plumbing.common import ROOT, git_commit, parse_args, speaking_to_the_user, write_json  # noqa: E402
from plumbing.runtime import pick_device  # noqa: E402
from sample import KVCache, next_logits, one_token  # noqa: E402
from sampling.choice import candidates, choose_layout  # noqa: E402
from sampling.fast_linear import bandwidth_meter, lay_out, weight_bytes  # noqa: E402

NEAR, FAR, ROWS = 64, 900, 8        # tokens in the cache (two cases); samples of one prompt
LONG = 10.0                         # seconds; a longer step is not repeated
PATIENCE = 300.0                    # seconds; a longer step is not measured


@dataclass(frozen=True)
class Bench:
    """Measure sample.py beside transformers."""
    layers: int = 32                # of BioMedLM's 32; fewer to try this script
    out: Path = ROOT / "results"    # receives sample.md and sample.json


def main(cfg):
    device = pick_device()
    if device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    shape, run = replace(GPTConfig(), n_layer=cfg.layers), Run(device)
    for dtype in ("int4", "int8", "bfloat16", "float32") if device.type == "cpu" else ("bfloat16", "int8"):
        choice = choose_layout(dtype, build(run.device, replace(shape, n_layer=1), dtype))
        print(f"{dtype}: {choice.layout}. {choice.reason}")
        layouts = {choice.layout: dtype}
        if dtype != "float32":
            layouts |= {other: f"{dtype} in {other}" for other in candidates(dtype, device) if other != choice.layout}
        for layout, name in layouts.items():
            ours(run, shape, dtype, layout, name)
            gc.collect()
    for dtype in ("float32", "bfloat16") if device.type == "cpu" else ("bfloat16",):
        theirs(run, shape, dtype)
        gc.collect()
    result = about(cfg, device) | {"layers": cfg.layers, "rows": run.rows, "required": required(run)}
    text = report(result)
    print("\n" + text)
    if cfg.layers == GPTConfig().n_layer:
        name = "sample" if device.type == "cpu" else "sample_gpu"
        write_json(cfg.out / f"{name}.json", result)
        (cfg.out / f"{name}.md").write_text(text, encoding="utf-8")
    return result


class Run:
    """The rows measured so far."""

    def __init__(self, device):
        self.device, self.rows, self.measure_bandwidth = device, {}, bandwidth_meter(device)

    def share(self, name):
        return self.rows[name]["bytes"] / self.rows[name]["seconds"] / self.rows[name]["bandwidth"]

    def clock(self):
        if self.device.type == "cpu":
            return time.thread_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @torch.inference_mode()
    def time(self, name, step, bytes_read=0, tokens=1, budget=5.0):
        """Median seconds of 1 to 20 steps within the budget, after a warm-up step. A LONG step is only run once."""
        start = self.clock()
        step()
        first, seconds = self.clock() - start, []
        bandwidths = [self.measure_bandwidth()]
        while first < LONG and (not seconds or (sum(seconds) < budget and len(seconds) < 20)):
            start = self.clock()
            step()
            seconds.append(self.clock() - start)
            bandwidths.append(self.measure_bandwidth())
        self.rows[name] = {"seconds": statistics.median(seconds or [first]), "steps": len(seconds or [first]),
                           "tokens": tokens, "bytes": bytes_read, "bandwidth": statistics.median(bandwidths)}
        print(f"{name:44s} {1e3 * self.rows[name]['seconds']:10.1f} ms", flush=True)


def cache_bytes(shape, itemsize, past):
    """Keys and values of `past` tokens."""
    return 2 * shape.n_layer * shape.n_embd * itemsize * past


def build(device, shape, dtype):
    with torch.device("meta"):
        model = GPT(shape).eval()
    model.load_state_dict(random_weights(model, dtype, device), assign=True)
    return model.to(device)


def ours(run, shape, dtype, layout, name):
    model = build(run.device, shape, dtype)
    lay_out(model, layout)
    read = weight_bytes(model)
    like, device = model.ln_f.weight, run.device
    for past, rows in ((NEAR, 1), (FAR, 1), (NEAR, ROWS)):
        cache = KVCache(shape, rows, past + 64, like)
        cache.k_LBHKS.uniform_(-1, 1), cache.v_LBHSK.uniform_(-1, 1)
        cache.length = past
        with torch.inference_mode():
            step = one_token(model, cache, device.type == "cuda")
        run.time(f"ours, {name}, {rows} token{'s'[:rows - 1]} after {past}",
                 partial(step, torch.ones(rows, 1, dtype=torch.int64, device=device)),
                 read + rows * cache_bytes(shape, like.itemsize, past), rows)
        del cache, step                            # free them before the next are made
    prompt_BT = torch.ones(1, NEAR, dtype=torch.int64, device=device)
    run.time(f"ours, {name}, a prompt of {NEAR}", lambda: next_logits(model, KVCache(shape, 1, NEAR, like), prompt_BT))


def theirs(run, shape, dtype):
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            **asdict(shape), activation_function="gelu_pytorch_tanh", attn_implementation="sdpa")).eval()
    model.load_state_dict(random_weights(model, dtype, run.device), assign=True, strict=False)
    model.tie_weights()
    model.to(run.device)
    itemsize, one = getattr(torch, dtype).itemsize, torch.ones(1, 1, dtype=torch.int64, device=run.device)
    weights = itemsize * sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wpe" not in name)
    for past in (NEAR, FAR):
        cache = transformers.DynamicCache(config=model.config)
        for layer in range(shape.n_layer):
            cache.update(*torch.randn(2, 1, shape.n_head, past, shape.n_embd // shape.n_head, device=run.device)
                         .to(getattr(torch, dtype)), layer)
        run.time(cached(dtype, past), partial(model, one, past_key_values=cache, use_cache=True, logits_to_keep=1),
                 weights + cache_bytes(shape, itemsize, past))
        del cache
    seconds = run.rows[cached(dtype, NEAR)]["seconds"]
    for past in (NEAR, FAR):                       # where bf16 is emulated, a row takes about as long as a token
        if dtype == "bfloat16" and past * seconds > PATIENCE:
            print(f"{released(dtype, past)}: not measured; a token would take about {past * seconds / 60:.0f} minutes")
        else:
            run.time(released(dtype, past), partial(model, one.expand(1, past + 1).contiguous(), use_cache=False,
                                                    logits_to_keep=1))


def cached(dtype, past):
    return f"transformers, {dtype}, 1 token after {past}"


def released(dtype, past):
    return f"transformers, {dtype}, as released, 1 token after {past}"


def random_weights(model, dtype, device):
    """{name: weights} for a module on "meta", repeating one tile of random numbers: fast, and without an fp32 copy."""
    tile = (0.02 * torch.randn(2**22, device=device)).to(torch.float32 if dtype == "float32" else torch.bfloat16)
    return {name: tile.repeat(-(-p.numel() // len(tile)))[:p.numel()].clone().view(p.shape)
            for name, p in model.named_parameters()}


def required(run):
    """(what, bound, measured, unit, "least" or "most"). On a CPU transformers is compared twice: in bf16, for which the
    bounds were set, and in its faster precision."""
    t = {name: row["seconds"] for name, row in run.rows.items()}

    def one(dtype, past=NEAR):
        return t[f"ours, {dtype}, 1 token after {past}"]

    def share(dtype):
        return 100 * run.share(f"ours, {dtype}, 1 token after {NEAR}")

    if run.device.type == "cuda":
        return [("bfloat16: times transformers, cached", 3, t[cached("bfloat16", NEAR)] / one("bfloat16"), "x",
                 "least"),
                ("bfloat16: of the bandwidth", 75, share("bfloat16"), " %", "least"),
                ("int8: times bfloat16", 1.5, one("bfloat16") / one("int8"), "x", "least")]
    rows = [("int4: times int8", 1.6, one("int8") / one("int4"), "x", "least")]
    peers = {"in bfloat16": t[cached("bfloat16", NEAR)],
             "at its best": min(t[cached(dtype, NEAR)] for dtype in ("bfloat16", "float32"))}
    as_released = min(t[name] for dtype in ("bfloat16", "float32") if (name := released(dtype, FAR)) in t)
    for dtype, times, bandwidth in (("bfloat16", 3.8, 90), ("int8", 7, 80)):
        eight = ROWS / t[f"ours, {dtype}, {ROWS} tokens after {NEAR}"]
        rows += [(f"{dtype}: times transformers {which}, cached", times, seconds / one(dtype), "x", "least")
                 for which, seconds in peers.items()]
        rows += [(f"{dtype}: {ROWS} samples, times transformers {which}, cached", 16, seconds * eight, "x", "least")
                 for which, seconds in peers.items()]
        rows += [(f"{dtype}: of the bandwidth", bandwidth, share(dtype), " %", "least"),
                 (f"{dtype}: a token after {FAR} over one after {NEAR}", 1.35, one(dtype, FAR) / one(dtype), "x",
                  "most"),
                 (f"{dtype}: after {FAR}, times transformers as released, at its best", 100,
                  as_released / one(dtype, FAR), "x", "least")]
    return rows


def about(cfg, device):
    has = [name for name, there in torch.cpu.get_capabilities().items() if there is True]
    name = torch.cuda.get_device_name() if device.type == "cuda" else next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "a CPU")
    bf16 = "with" if {"avx512_bf16", "amx_bf16"} & {*has} else "without"
    return {"command": f"python bench/sample.py{f' --layers {cfg.layers}' if cfg.layers != 32 else ''}",
            "commit": git_commit(), "torch": torch.__version__, "transformers": transformers.__version__,
            "machine": name if device.type == "cuda" else f"one core of {name} ({platform.machine()}, {bf16} bf16 "
            f"instructions, with{'' if {'avx512_vnni', 'avx_vnni'} & {*has} else 'out'} VNNI, "
            f"with{'' if 'avx512_f' in has else 'out'} AVX-512)"}


WITHOUT_BF16 = """
The bounds were set on a core with AVX-512 BF16 and VNNI. This core has neither. transformers in bf16, for which they
were meant, falls back to scalar loops here and is far slower than the bounds assume. In its faster precision, fp32, it
reads 10.4 GB per token nearly as fast as torch reads any memory: 5.2 GB in bf16 and 2.6 GB in int8 cannot be 3.8 and 7
times as fast. The products of several rows are limited by arithmetic, not by memory.
"""


def report(r):
    lines = ["# sample.py beside transformers\n", __doc__.split("\n\n")[2] + "\n",
             f"`{r['command']}`, commit {r['commit']}, on {r['machine']}; torch {r['torch']}, transformers "
             f"{r['transformers']}. {r['layers']} layers.\n",
             "| | ms per step | tokens/s | memory, GB/s | share of it that a step reads | steps |",
             "|---|---:|---:|---:|---:|---:|"]
    for name, row in r["rows"].items():
        share = f"{row['bytes'] / row['seconds'] / row['bandwidth']:.0%}" if row["bytes"] else "-"
        lines.append(f"| {name} | {1e3 * row['seconds']:,.1f} | {row['tokens'] / row['seconds']:.3g} "
                     f"| {row['bandwidth'] / 1e9:.1f} | {share} | {row['steps']} |")
    lines += ["\n| required | bound | measured | met |", "|---|---:|---:|---|"]
    for what, bound, value, unit, direction in r["required"]:
        met = value >= bound if direction == "least" else value <= bound
        lines.append(f"| {what} | at {direction} {bound}{unit} | {value:.2f}{unit} | {'yes' if met else 'NO'} |")
    return "\n".join(lines) + "\n" + (WITHOUT_BF16 if "without bf16" in r["machine"] else "")


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Bench))
