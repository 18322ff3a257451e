"""Compare train.py with transformers' GPT-2 and with a plain loop like nanoGPT's, in one run on one CPU core.

    python bench/train.py                        # the demo's model; some minutes; writes results/train.md
    python bench/train.py --compile              # with torch.compile for all three; needs a C++ compiler
    python bench/train.py --preset biomedlm      # the paper's model on a CUDA GPU, 8 x 1024 tokens per step, compiled

All three have the same shape, first weights, batches, AdamW, clipping and precision, and their losses must agree. They
take turns. A time is that of a whole step: CPU seconds on one thread, or the GPU's time. A figure is the median over
the steps of all turns, without each turn's first step, which compiles, and its last. The other two run at their best:
transformers with the fused attention (sdpa) and tanh-GELU, and both with this repository's data.py.
You should see one line per turn, then the tables of results/train.md. "NO" marks a required figure that is not reached.
Not here: many GPUs (`train.py biomedlm --plan`).
"""
import contextlib
import gc
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from unittest.mock import Mock, patch

os.environ.setdefault("OMP_NUM_THREADS", "1")       # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import train  # noqa: E402
from bench.rivals import plain, theirs  # noqa: E402
from data import Corpus  # noqa: E402
from launch.plan import TORCH, step_memory  # noqa: E402
from model import GPT  # noqa: E402
from plumbing.common import ROOT, UserError, git_commit, parse_args, read_json, speaking_to_the_user, write_json  # noqa: E402
from plumbing.runtime import matrix_dtype, pick_device  # noqa: E402
from plumbing.shards import write_shard  # noqa: E402

OURS, THEIRS, PLAIN = "train.py", "transformers", "plain loop"


@dataclass(frozen=True)
class Bench:
    """Compare train.py with transformers and a plain loop."""
    preset: Literal["demo", "biomedlm"] = "demo"    # train.py's
    compile: bool = False               # torch.compile for all three; biomedlm always does
    turns: int = 5
    steps: int = 8                      # per turn; the first and the last do not count
    out: Path = ROOT / "results"        # folder for train.md and train.json


def main(cfg):
    device = pick_device()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if cfg.preset == "biomedlm" and device.type != "cuda":
        raise UserError("--preset biomedlm needs a CUDA GPU with 80 GB or more; without one, use --preset demo")
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "data")
        run = settings(cfg, Path(folder))
        first_weights(run).save_pretrained(Path(folder) / "weights")
        result = about(cfg, run, device)
        result["data"] = data_speed(Path(folder) / "data")
        result["runs"] = take_turns(cfg, run, device, Path(folder) / "weights")
    if device.type == "cuda" and torch.__version__ >= TORCH:
        result["forecast_gib"] = step_memory(replace(run, parallel="fsdp"), 1)[0]
    key = f"{cfg.preset} on {'GPU' if device.type == 'cuda' else 'CPU'}{', compiled' if run.compile else ''}"
    results = read_json(cfg.out / "train.json", "results") if (cfg.out / "train.json").is_file() else {}
    results[key] = summary(result)
    write_json(cfg.out / "train.json", results)
    (cfg.out / "train.md").write_text(text := report(results), encoding="utf-8")
    print("\n" + text)
    return results[key]


def write_data(folder):
    """Write 64 M random tokens, more than the CPU's caches hold, so that data.py's speed is that of real reads."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64 << 20), ("val", 1 << 16)):
        write_shard(folder / f"{split}_000000.bin", rng.integers(0, 2000, count, dtype=np.uint16))


def settings(cfg, folder):
    """The preset, without evaluation and checkpoints."""
    run = train.PRESETS[cfg.preset]
    if cfg.preset == "biomedlm":
        run = replace(run, batch_size=run.micro_batch_size)
    model = run.model if cfg.preset == "biomedlm" else replace(run.model, vocab_size=2000, bos_token_id=1999,
                                                               eos_token_id=1999)
    return replace(run, model=model, data=str(folder / "data"), out=str(folder / "out"), steps=cfg.steps,
                   dtype=matrix_dtype(run.dtype, pick_device()), compile=cfg.compile or cfg.preset == "biomedlm",
                   restart=True, eval_every=10**9, eval_windows=1)


def first_weights(run):
    """A model with the weights that train.py starts from, so that the others start from them as well."""
    with torch.device("meta"):
        model = GPT(run.model)
    model.load_state_dict(dict(model.initial_weights(run.seed, "cpu")), assign=True)
    return model


class Stopwatch:
    """Replaces the training loop's profiler and records when each step ends."""

    def __init__(self, device):
        self.device, self.ends = device, []

    def __enter__(self):
        self.step()
        return self

    def __exit__(self, *error):
        pass

    def step(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1      # CPU time ignores other processes
        self.ends.append(time.process_time() if alone else time.perf_counter())

    def seconds(self):
        return np.diff(self.ends)[1:-1].tolist()


def ours(run, watch, weights):
    """Run train.py silently, without its checkpoints (31 GB each at the paper's size) and its final folder."""
    no_checkpoints = Mock(**{"load.return_value": 0})
    with patch.multiple(train, profiler=lambda *args: watch, Checkpoints=lambda *args: no_checkpoints,
                        save_model=lambda *args: None), contextlib.redirect_stdout(io.StringIO()):
        return train.main(run)


def take_turns(cfg, run, device, weights):
    """One record per turn: each contestant's step times, losses and peak memory, and a matrix product's FLOP/s."""
    contestants, turns = [(OURS, ours), (THEIRS, theirs), (PLAIN, plain)], []
    for turn in range(cfg.turns):
        turns.append({"matmul_flops": matmul_flops(device, run.dtype)})
        for name, train_with in contestants[turn % 3:] + contestants[:turn % 3]:
            torch.compiler.reset()              # first: its caches keep the previous contestant's tensors alive
            gc.enable()
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            watch = Stopwatch(device)
            losses = train_with(run, watch, weights)
            peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
            turns[-1][name] = {"seconds": watch.seconds(), "losses": losses, "peak_gib": peak}
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {1e3 * statistics.median(turns[-1][name]['seconds']):.1f} ms"
                                               for name, _ in contestants), flush=True)
    return turns


def matmul_flops(device, dtype):
    """FLOP/s of a large matrix product: an upper bound for a step on this machine."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    watch = Stopwatch(device)
    for _ in range(32):
        a @ b
        watch.step()
    return 2 * n**3 / statistics.median(watch.seconds())


def data_speed(folder):
    """Tokens per CPU second from Corpus.batch, for the 8 windows that one GPU of the paper's run reads at once."""
    corpus, seconds = Corpus(folder, "train", 1024), []
    corpus.check_ids(2000)                                       # reads the whole file into the page cache
    for step in range(300):
        start = time.process_time()
        corpus.batch(step, 1024, slice(0, 8))
        seconds.append(time.process_time() - start)
    return 8 * 1024 / statistics.median(seconds)


def about(cfg, run, device):
    gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name() if gpu else f"a CPU ({platform.machine()}), {torch.get_num_threads()} thread"
    return {"commit": git_commit(), "machine": machine, "torch": torch.__version__, "dtype": run.dtype,
            "transformers_version": transformers.__version__, "compile": run.compile, "gpu": gpu,
            "command": f"python bench/train.py --preset {cfg.preset}{' --compile' if cfg.compile else ''}",
            "tokens": run.batch_size * run.model.n_positions, "turns": cfg.turns, "steps": cfg.steps - 2,
            "parameters": sum(p.numel() for p in first_weights(run).parameters()),
            "flops": run.batch_size * run.model.n_positions * run.model.flops_per_token(run.model.n_positions)}


def summary(result):
    """Medians over all turns, and the range of the ratios of single turns."""
    turns = result.pop("runs")
    medians = {name: [statistics.median(turn[name]["seconds"]) for turn in turns] for name in (OURS, THEIRS, PLAIN)}
    result["matmul_flops"] = statistics.median(turn["matmul_flops"] for turn in turns)
    for name in medians:
        second = statistics.median(s for turn in turns for s in turn[name]["seconds"])
        ratios = [theirs / mine for theirs, mine in zip(medians[name], medians[OURS], strict=True)]
        result[name] = {
            "tokens_per_second": result["tokens"] / second, "ours_over_it": statistics.median(ratios),
            "lowest": min(ratios), "highest": max(ratios),
            "of_matmul": result["flops"] / second / result["matmul_flops"], "peak_gib": turns[0][name]["peak_gib"],
            "loss_differs": max(abs(a - b) for turn in turns
                                for a, b in zip(turn[name]["losses"], turn[OURS]["losses"], strict=True))}
    return result


def required(r):
    """(what, bound, measured, unit)"""
    best = min(r[name]["ours_over_it"] for name in (THEIRS, PLAIN))
    rows = [("tokens/s, times the best peer's", 1.0, best, "x")]
    if r["gpu"]:
        rows += [("tokens/s, times transformers'", 1.15, r[THEIRS]["ours_over_it"], "x"),
                 ("of what a large matrix product reaches", 60, 100 * r[OURS]["of_matmul"], " %")]
    return [*rows, ("data: M tokens/s per process", 50, r["data"] / 1e6, "")]


NO_GPU = """## The paper's model on a GPU

Not measured: no GPU was available. `make gpu` measures it on one with 80 GB. Required there: 1.15x transformers, 1.0x
the best peer, 60 % of a large matrix product.
"""


def report(results):
    parts = ["# train.py, transformers and a plain loop\n\n" + __doc__.split("\n\n")[2] + "\n"]
    parts += [section(key, r) for key, r in results.items()]
    return "\n".join(parts if any(r["gpu"] for r in results.values()) else [*parts, NO_GPU])


def section(key, r):
    lines = [f"## {key}\n", f"`{r['command']}`, commit {r['commit']}, on {r['machine']}; torch {r['torch']}, "
             f"transformers {r['transformers_version']}. {r['parameters']:,} parameters, "
             f"{r['tokens']:,} tokens per step, {r['dtype']}; {r['turns']} turns of {r['steps']} steps. A matrix "
             f"product reaches {r['matmul_flops'] / 1e12:.3g} TFLOP/s.\n",
             "| | tokens/s | train.py is faster | by turns | of a matrix product | peak GiB | losses differ by |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name in (OURS, THEIRS, PLAIN):
        x = r[name]
        peak = f"{x['peak_gib']:.1f}" if x["peak_gib"] else "-"
        lines.append(f"| {name} | {x['tokens_per_second']:,.0f} | {x['ours_over_it']:.2f}x | {x['lowest']:.2f} to "
                     f"{x['highest']:.2f} | {x['of_matmul']:.0%} | {peak} | {x['loss_differs']:.1e} |")
    if "forecast_gib" in r:
        lines.append(f"\n`launch/plan.py` forecasts a peak of {r['forecast_gib']:.1f} GiB for one GPU with fsdp.")
    lines += ["\n| required | at least | measured | met |", "|---|---:|---:|---|"]
    for what, bound, value, unit in required(r):
        lines.append(f"| {what} | {bound}{unit} | {value:.2f}{unit} | {'yes' if value >= bound else 'NO'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Bench))
