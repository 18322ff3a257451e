"""Kill a training run 20 times, resume it 20 times, and compare it with an undisturbed run.

    python bench/kills.py                    # a small model on the CPU; a few minutes; writes results/kills.md

Each life of the run ends with SIGKILL, which no program can catch, at a moment drawn from --seed: during its start
(imports, reading the checkpoint), between two steps, or while a checkpoint is half written. Then the same command is
run again. In the end the weights must be those of the undisturbed run, bit for bit, and the log must contain every step
once, with the same loss and gradient norm.
You should see one line per kill, then the verdict. The exit code is 1 if anything differs.
Not here: killing one of several processes (tests/training/test_parallel.py), SIGTERM and SIGINT (tests/test_train.py).
"""
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

from data import write_shard
from plumbing.common import ROOT, UserError, git_commit, parse_args, speaking_to_the_user, written_whole
from training.checkpoint import complete_checkpoints

SHAPE = ("--model.n-positions 32 --model.n-embd 48 --model.n-layer 3 --model.n-head 3 --model.vocab-size 301 "
         "--batch-size 4 --micro-batch-size 4 --warmup-steps 20 --dtype float32 --eval-every 100 "
         "--eval-windows 4").split()
MOMENTS = {"starting": 2, "training": 9, "saving": 9}            # the weights with which they are drawn


@dataclass(frozen=True)
class Kills:
    """Kill and resume a training run."""
    kills: int = 20
    steps: int = 400                # more than all lives together reach
    checkpoint_every: int = 3       # small, so that a checkpoint is being written most of the time
    seed: int = 0                   # of the moments of the kills
    out: Path = ROOT / "results" / "kills.md"


def main(cfg):
    """Returns True if the killed run ended exactly as the undisturbed one."""
    with tempfile.TemporaryDirectory() as folder:
        started, folder = time.perf_counter(), Path(folder)
        write_data(folder / "data")
        whole, killed = folder / "whole", folder / "killed"
        to_first_step = undisturbed(command(cfg, folder / "data", whole), whole)
        print(f"undisturbed: {cfg.steps} steps in {time.perf_counter() - started:.0f} s", flush=True)
        rng, lives = random.Random(cfg.seed), []
        for i in range(cfg.kills):
            lives.append(one_life(command(cfg, folder / "data", killed), killed, rng, to_first_step))
            print(row(i + 1, lives[-1]), flush=True)
        undisturbed(command(cfg, folder / "data", killed), killed)
        verdict = compare(whole, killed, cfg.steps, lives)
        report(cfg, lives, verdict, time.perf_counter() - started)
    return all(verdict.values())


def write_data(folder):
    """Write random tokens: what the model learns from them does not matter here."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20_000), ("val", 1_000)):
        write_shard(folder / f"{split}_000000.bin", rng.integers(0, 301, count, dtype=np.uint16))


def command(cfg, data, out):
    return [sys.executable, str(ROOT / "train.py"), "demo", "--data", str(data), "--out", str(out), *SHAPE,
            "--steps", str(cfg.steps), "--checkpoint-every", str(cfg.checkpoint_every), "--seed", "7"]


def start(words):
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def undisturbed(words, out):
    """Run the command to its end; returns the seconds until the log's first line."""
    process, born = start(words), time.perf_counter()
    watch(process, lambda: process.poll() is not None or lines(out))
    seconds = time.perf_counter() - born
    output = process.communicate()[0]
    if process.returncode:
        raise UserError(f"the run ended with code {process.returncode}:\n{output[-2000:]}")
    return seconds


def one_life(words, out, rng, to_first_step):
    """Start or resume the run and kill it; returns a record of the moment and of what was left on disk."""
    moment = rng.choices(list(MOMENTS), MOMENTS.values())[0]
    steps, fraction = rng.randint(1, 12), rng.random()
    expected, half, log = newest(out), incomplete(out), log_file(out)
    process = start(words)
    if moment == "starting":
        time.sleep(to_first_step * fraction)
    else:         # a resumed run first replaces the log by the part up to its checkpoint, then appends to it
        watch(process, lambda: log_file(out) != log and lines(out) >= expected + steps)
        if moment == "saving":
            watch(process, lambda: incomplete(out) - half)
        time.sleep(0.02 * fraction)             # a step or two; writing a checkpoint takes about as long
    process.kill()
    output = process.communicate()[0]
    if process.returncode != -9:
        raise UserError(f"the run ended by itself, with code {process.returncode}; raise --steps\n{output[-2000:]}")
    resumed = re.search(r"resuming after (\d+) steps", output)
    return {"moment": moment, "expected": expected, "resumed": int(resumed[1]) if resumed else None,
            "steps": lines(out), "half": sorted(name for name, _ in incomplete(out) - half)}


def watch(process, happened):
    """Poll, some hundred times per second, until happened() is true."""
    while not happened():
        if process.poll() is not None:
            raise UserError(f"the run ended by itself; raise --steps\n{process.stdout.read()[-2000:]}")
        time.sleep(0.002)


def newest(out):
    return max((int(folder.name) for folder in complete_checkpoints(out)), default=0)


def incomplete(out):
    """{(name, time of change)} of incomplete checkpoint folders, half written or half removed. The time tells folders
    of different lives apart, which may have the same name."""
    complete = {folder.name for folder in complete_checkpoints(out)}
    found = set()
    for folder in out.glob("checkpoints/[0-9]*"):
        with suppress(FileNotFoundError):               # removed between glob and stat
            if folder.name not in complete:
                found.add((folder.name, folder.stat().st_ctime_ns))
    return found


def log_file(out):
    """The log's inode, which changes when the file is replaced; None if there is no log."""
    path = out / "log.jsonl"
    return path.stat().st_ino if path.is_file() else None


def lines(out):
    path = out / "log.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def compare(whole, killed, steps, lives):
    """{claim: is it true?} about the two runs and the lives of the killed one."""
    a, b = (load_file(out / "model" / "model.safetensors") for out in (whole, killed))
    logs = [[json.loads(line) for line in open(out / "log.jsonl", encoding="utf-8")] for out in (whole, killed)]
    values = [[(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in log] for log in logs]
    return {f"{sum(t.numel() for t in a.values()):,} final weights equal, bit for bit":
            a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a),
            f"{steps} steps in the log, each once, with the same loss, gradient norm and rate":
            values[0] == values[1] and [line["step"] for line in logs[1]] == list(range(steps)),
            "every life resumed from the newest checkpoint that was complete":
            all(life["resumed"] in (None, life["expected"]) for life in lives)}


HEAD = "| kill | while | resumed after | killed after | half-written checkpoint left |\n|---:|---|---:|---:|---|"


def row(i, life):
    resumed = "-" if life["resumed"] is None else life["resumed"]
    return (f"| {i:4} | {life['moment']:8} | {resumed:>13} | {life['steps']:>12} | "
            f"{', '.join(life['half']) or '-':28} |")


def report(cfg, lives, verdict, seconds):
    half_written = sum(bool(life["half"]) for life in lives)
    text = f"""# A training run, killed {len(lives)} times

A small model is trained on the CPU for {cfg.steps} steps, with a checkpoint every {cfg.checkpoint_every} steps. The run
is killed (SIGKILL) at {len(lives)} random moments of seed {cfg.seed}, and started again each time by the same command.
The result is compared with an undisturbed run.

`python bench/kills.py`, {seconds:.0f} s, commit {git_commit()}, torch {torch.__version__}. {half_written} of the kills
left a half-written checkpoint. "-" under "resumed after": killed before it had resumed.

{HEAD}
""" + "\n".join(row(i + 1, life) for i, life in enumerate(lives)) + "\n\n" + "\n".join(
        f"* {what}: {'yes' if so else 'NO'}" for what, so in verdict.items()) + "\n"
    with written_whole(cfg.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text.split("\n\n")[-1] + f"wrote {cfg.out}")


if __name__ == "__main__":
    with speaking_to_the_user():
        sys.exit(0 if main(parse_args(Kills)) else 1)
