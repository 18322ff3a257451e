"""Measure a token of sample.py beside transformers' GPT-2, in one run on the same machine.

    python bench/sample.py                  # BioMedLM's shape, one core; 14 GB, some minutes; writes results/sample.md
    python bench/sample.py --layers 2       # a slice of it; writes nothing
    python bench/sample.py                  # on a machine with a GPU: the same in bf16, ours as a CUDA graph

Random weights of the full shape: speed does not depend on their values. No prompt is read; the caches are filled with
random keys and values, so that a step at position 900 costs a step. A time is the median of some steps, in CPU seconds
of the one thread (on a GPU by the clock). After each step memory is read once as fast as we know how (runtime.py:
256 MB; on a GPU 1 GB is copied), since neighbours on the host change from minute to minute how fast that is. The share
of bandwidth is what a step has to read, weights and cache, over the median of these readings.
transformers gets its best: the fused attention, the fused tanh-GELU, logits of the last token alone, and on a CPU the
faster of bf16 and fp32. "As released" is BioMedLM's config.json, whose "use_cache": false reads the whole prefix anew
for every token; transformers' step there is one call with all of it.

You should see a line a figure, then the table of what was required; what is missed says NO.
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
HERE = Path(__file__).resolve().parent              # not to be searched: there, `sample` would be this file
sys.path[:] = [str(HERE.parent), *(folder for folder in sys.path if folder != str(HERE))]

import torch  # noqa: E402
import transformers  # noqa: E402

from model import GPT, GPTConfig  # noqa: E402
from plumbing.common import ROOT, git_commit, parse_args, speaking_to_the_user, write_json  # noqa: E402
from plumbing.runtime import pick_device  # noqa: E402
from sample import KVCache, next_logits, one_token  # noqa: E402
from sampling.fast_linear import bandwidth_meter, choose_layout, lay_out, weight_bytes  # noqa: E402
from sampling.native import library  # noqa: E402

NEAR, FAR, ROWS = 64, 900, 8        # tokens that are in the cache; samples of one prompt
LONG = 10.0                         # seconds; a step that takes longer is not repeated
PATIENCE = 300.0                    # seconds; what would take longer is not measured


@dataclass(frozen=True)
class Bench:
    """Measure sample.py beside transformers."""
    layers: int = 32                # of BioMedLM's 32; fewer is a slice, for trying this script
    out: Path = ROOT / "results"    # sample.md, and sample.json behind it


def main(cfg):
    device = pick_device()
    if device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    shape, run = replace(GPTConfig(), n_layer=cfg.layers), Run(device)
    for dtype in ("int8", "bfloat16", "float32") if device.type == "cpu" else ("bfloat16",):
        chosen, other = choose_layout(dtype, device), "matvec_int8" if dtype == "int8" else "matvec"
        layouts = {chosen: dtype}
        if device.type == "cpu" and not library()[1]:            # CPUs with bf16 or 8-bit instructions pass it by
            layouts.setdefault(other, f"{dtype} in {other}")
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
        """Median seconds of a step: after one call to warm up, 1 to 20 within the budget. A long step is its own
        warm-up."""
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


def ours(run, shape, dtype, layout, name):
    with torch.device("meta"):
        model = GPT(shape).eval()
    model.load_state_dict(random_weights(model, dtype), assign=True)
    lay_out(model.to(run.device), layout)
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
        del cache, step                            # before the next is made
    prompt_BT = torch.ones(1, NEAR, dtype=torch.int64, device=device)
    run.time(f"ours, {name}, a prompt of {NEAR}", lambda: next_logits(model, KVCache(shape, 1, NEAR, like), prompt_BT))


def theirs(run, shape, dtype):
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            **asdict(shape), activation_function="gelu_pytorch_tanh", attn_implementation="sdpa")).eval()
    model.load_state_dict(random_weights(model, dtype), assign=True, strict=False)
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
    for past in (NEAR, FAR):                       # a row costs about as much as a token where bf16 is emulated
        if dtype == "bfloat16" and past * seconds > PATIENCE:
            print(f"{released(dtype, past)}: not measured; a token would take some {past * seconds / 60:.0f} minutes")
        else:
            run.time(released(dtype, past), partial(model, one.expand(1, past + 1).contiguous(), use_cache=False,
                                                    logits_to_keep=1))


def cached(dtype, past):
    return f"transformers, {dtype}, 1 token after {past}"


def released(dtype, past):
    return f"transformers, {dtype}, as released, 1 token after {past}"


def random_weights(model, dtype):
    """{name: weights} for a module on "meta", from one tile of random numbers: in seconds, and with no fp32 copy."""
    tile = (0.02 * torch.randn(2**22)).to(torch.float32 if dtype == "float32" else torch.bfloat16)
    return {name: tile.repeat(-(-p.numel() // len(tile)))[:p.numel()].clone().view(p.shape)
            for name, p in model.named_parameters()}


def required(run):
    """(what, bound, measured, unit, at least or at most). On a CPU the peer is that of bf16, for which the bounds
    were set, and once more that of its faster precision."""
    t = {name: row["seconds"] for name, row in run.rows.items()}

    def one(dtype, past=NEAR):
        return t[f"ours, {dtype}, 1 token after {past}"]

    def share(dtype):
        return 100 * run.share(f"ours, {dtype}, 1 token after {NEAR}")

    if run.device.type == "cuda":
        return [("bfloat16: times transformers, cached", 3, t[cached("bfloat16", NEAR)] / one("bfloat16"), "x",
                 "least"),
                ("bfloat16: of the bandwidth", 75, share("bfloat16"), " %", "least")]
    rows, peers = [], {"in bfloat16": t[cached("bfloat16", NEAR)],
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
The bounds were set on a core with AVX-512 BF16 and VNNI. This one lacks both. transformers in bf16, for which they were
meant, falls back to loops of scalars here, so that it is beaten by far more than they ask. At its best, in fp32, it
reads 10.4 GB a token nearly as fast as torch reads anything: 3.8 and 7 times less than that are out of reach for 5.2 GB
in bf16 and 2.6 GB in int8. The products of several rows are limited by arithmetic, not by memory.
"""


def report(r):
    lines = ["# sample.py beside transformers\n", __doc__.split("\n\n")[2] + "\n",
             f"`{r['command']}`, commit {r['commit']}, on {r['machine']}; torch {r['torch']}, transformers "
             f"{r['transformers']}. {r['layers']} layers.\n",
             "| | ms a step | tokens/s | memory gives, GB/s | a step reads of it | steps |",
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
