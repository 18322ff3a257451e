"""Compare train.py with transformers' GPT-2 and with a plain loop like nanoGPT's, in one run on one CPU core.

    python bench/train.py                        # the demo's model; some minutes; writes results/train.md
    python bench/train.py --preset laptop        # a vocabulary of 28,896: its head is most of the arithmetic
    python bench/train.py --compile              # with torch.compile for all three; needs a C++ compiler

You should see one line per turn, then the tables of results/train.md.
Not here: the paper's model on a GPU (bench/gpu_speed.py), and on many (`train.py biomedlm --plan`).
"""
import contextlib
import io
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from unittest.mock import Mock, patch

os.environ.setdefault("OMP_NUM_THREADS", "1")       # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import numpy as np
import torch
import transformers

import train
from bench.rivals import plain, theirs
from data import Corpus, write_shard
from model import GPT
from plumbing.common import ROOT, git_commit, parse_args, read_json, speaking_to_the_user, write_json
from plumbing.runtime import matrix_dtype

CPU = torch.device("cpu")
OURS, THEIRS, PLAIN = "train.py", "transformers", "plain loop"


@dataclass(frozen=True)
class Bench:
    """Compare train.py with transformers and a plain loop."""
    preset: Literal["demo", "laptop"] = "demo"
    compile: bool = False               # torch.compile for all three
    turns: int = 5
    steps: int = 8                      # per turn; the first and the last do not count
    out: Path = ROOT / "results"        # folder for train.md and train.json


def main(cfg):
    with tempfile.TemporaryDirectory() as folder:
        run = settings(cfg, Path(folder))
        write_data(Path(folder) / "data", run.model.vocab_size)
        first_weights(run).save_pretrained(Path(folder) / "weights")
        result = about(cfg, run)
        result["data"] = data_speed(Path(folder) / "data", run.model.vocab_size)
        result["runs"] = take_turns(cfg, run, Path(folder) / "weights")
    key = f"{cfg.preset} on CPU{', compiled' if run.compile else ''}"
    results = read_json(cfg.out / "train.json", "results") if (cfg.out / "train.json").is_file() else {}
    results[key] = summary(result)
    write_json(cfg.out / "train.json", results)
    (cfg.out / "train.md").write_text(text := report(results), encoding="utf-8")
    print("\n" + text)
    return results[key]


def write_data(folder, vocab_size):
    """Write 64 M random tokens, more than the CPU's caches hold, so that data.py's speed is that of real reads."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 64 << 20), ("val", 1 << 16)):
        write_shard(folder / f"{split}_000000.bin", rng.integers(0, vocab_size, count, dtype=np.uint16))


def settings(cfg, folder):
    """The preset, the demo's with a vocabulary of 2,000, without evaluation and checkpoints."""
    run = train.PRESETS[cfg.preset]
    V = 2000 if cfg.preset == "demo" else run.model.vocab_size
    return replace(run, model=replace(run.model, vocab_size=V, bos_token_id=V - 1, eos_token_id=V - 1),
                   data=str(folder / "data"), out=str(folder / "out"), steps=cfg.steps, compile=cfg.compile,
                   dtype=matrix_dtype(run.dtype, CPU), restart=True, eval_every=10**9, eval_windows=1)


def first_weights(run):
    """A model with the weights that train.py starts from, so that the others start from them as well."""
    with torch.device("meta"):
        model = GPT(run.model)
    model.load_state_dict(dict(model.initial_weights(run.seed, "cpu")), assign=True)
    return model


class Stopwatch:
    """Records when each step ends."""

    def __init__(self):
        self.ends = []

    def __enter__(self):
        self.step()
        return self

    def __exit__(self, *error):
        pass

    def step(self):
        self.ends.append(time.process_time())           # of this process: others on the machine do not matter

    def seconds(self):
        return np.diff(self.ends)[1:-1].tolist()


def ours(run, watch, weights):
    """Run train.py silently, without its checkpoints (31 GB each at the paper's size) and its final folder."""
    checkpoints = Mock(**{"load.return_value": (0, {})})
    monitor = Mock(**{"write.side_effect": lambda *values: watch.step()})
    with watch, patch.multiple(train, Monitor=lambda *args: monitor, Checkpoints=lambda *args: checkpoints,
                               save_model=lambda *args: None), contextlib.redirect_stdout(io.StringIO()):
        return train.main(run)


CONTESTANTS = {OURS: ours, THEIRS: theirs, PLAIN: plain}
AT_LEAST = {"demo": 1.0, "laptop": 1.15}             # times the best peer's tokens per second


def take_turns(cfg, run, weights):
    """One record per turn: each contestant's step times and losses, and a matrix product's FLOP/s."""
    names, turns = list(CONTESTANTS), []
    for turn in range(cfg.turns):
        turns.append({"matmul_flops": matmul_flops(run.dtype)})
        for name in names[turn % 3:] + names[:turn % 3]:
            # train.py changes how its process allocates memory, which the others must not profit from
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                turns[-1][name] = process.submit(one_turn, name, run, weights).result()
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {1e3 * statistics.median(turns[-1][name]['seconds']):.1f} ms"
                                               for name in names), flush=True)
    return turns


def one_turn(name, run, weights):
    """A contestant's step times and losses."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    watch = Stopwatch()
    losses = CONTESTANTS[name](run, watch, weights)
    return {"seconds": watch.seconds(), "losses": losses}


def matmul_flops(dtype, n=1024):
    """FLOP/s of a large matrix product: an upper bound for a step on this machine."""
    a, b = (torch.randn(n, n).to(getattr(torch, dtype)) for _ in range(2))
    watch = Stopwatch()
    for _ in range(32):
        a @ b
        watch.step()
    return 2 * n**3 / statistics.median(watch.seconds())


def data_speed(folder, vocab_size):
    """Tokens per CPU second from Corpus.batch, for the 8 windows that one GPU of the paper's run reads at once."""
    corpus, seconds = Corpus(folder, "train", 1024), []
    corpus.check_ids(vocab_size)                                 # reads the whole file into the page cache
    for step in range(300):
        start = time.process_time()
        corpus.batch(step, 1024, slice(0, 8))
        seconds.append(time.process_time() - start)
    return 8 * 1024 / statistics.median(seconds)


def about(cfg, run):
    return {"commit": git_commit(), "machine": f"a CPU ({platform.machine()}), {torch.get_num_threads()} thread",
            "torch": torch.__version__, "dtype": run.dtype, "transformers_version": transformers.__version__,
            "compile": run.compile, "at_least": AT_LEAST[cfg.preset],
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
            "of_matmul": result["flops"] / second / result["matmul_flops"],
            "loss_differs": max(abs(a - b) for turn in turns
                                for a, b in zip(turn[name]["losses"], turn[OURS]["losses"], strict=True))}
    return result


def required(r):
    """(what, bound, measured, unit)"""
    best = min(r[name]["ours_over_it"] for name in (THEIRS, PLAIN))
    return [("tokens/s, times the best peer's", r.get("at_least", 1.0), best, "x"),
            ("data: M tokens/s per process", 50, r["data"] / 1e6, "")]


ABOUT = """# train.py, transformers and a plain loop

One training step of train.py, of transformers' GPT-2 and of a plain loop like nanoGPT's. All three have the same shape,
first weights, batches, AdamW, clipping and precision, and their losses agree. transformers runs at its best, with fused
attention (sdpa) and tanh-GELU, and all three read their batches with data.py.

The three take turns on one thread, each in a process of its own. The time of a step is in CPU seconds. A figure is the
median over the steps of all turns; the first step of a turn, which compiles, and the last are left out. "NO" marks a
figure below what is required.
"""
ON_A_GPU = """## The paper's model on a GPU

Not in this file: `make gpu` trains it beside the same contestants on a GPU with 80 GB and writes results/gpu.md.
"""


def report(results):
    return "\n".join([ABOUT, *(section(key, r) for key, r in results.items()), ON_A_GPU])


def section(key, r):
    lines = [f"## {key}\n", f"`{r['command']}`, commit {r['commit']}, on {r['machine']}; torch {r['torch']}, "
             f"transformers {r['transformers_version']}. {r['parameters']:,} parameters, "
             f"{r['tokens']:,} tokens per step, {r['dtype']}; {r['turns']} turns of {r['steps']} steps. A matrix "
             f"product reaches {r['matmul_flops'] / 1e12:.3g} TFLOP/s.\n",
             "| | tokens/s | train.py is faster | by turns | of a matrix product | losses differ by |",
             "|---|---:|---:|---:|---:|---:|"]
    for name in (OURS, THEIRS, PLAIN):
        x = r[name]
        lines.append(f"| {name} | {x['tokens_per_second']:,.0f} | {x['ours_over_it']:.2f}x | {x['lowest']:.2f} to "
                     f"{x['highest']:.2f} | {x['of_matmul']:.0%} | {x['loss_differs']:.1e} |")
    lines += ["\n| required | at least | measured | met |", "|---|---:|---:|---|"]
    for what, bound, value, unit in required(r):
        lines.append(f"| {what} | {bound}{unit} | {value:.2f}{unit} | {'yes' if value >= bound else 'NO'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Bench))
