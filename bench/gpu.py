"""`make gpu`: every check that needs a GPU, in stages, within ten minutes.

    python bench/gpu.py                     # writes results/gpu.jsonl, gpu.log and gpu.md
    GPU_OUT=FOLDER python bench/gpu.py      # writes them to FOLDER, and FOLDER/gpu.tar.gz after every stage

Each stage is a process of its own with a budget of seconds. What it finds is in gpu.jsonl line by line, at the moment
it is found. So a crash, a timeout or a GPU out of memory costs that stage's remaining lines and nothing else. A stage
may also use the seconds that earlier ones left over. gpu.log has everything that was printed, gpu.md is the report.
Exit code 1 if a stage or a check failed, 2 if there is no GPU.

Needed: torch, triton, numpy, and transformers for the comparisons. Without git, set COMMIT to the commit's name.
Not here: what the stages do (gpu_checks.py, kernels.py, gpu_speed.py), the report (gpu_report.py).
"""
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import torch

from bench.gpu_records import append
from bench.gpu_report import is_bad, read_records, write_report
from plumbing.common import ROOT, UserError, git_commit, parse_args, speaking_to_the_user, written_whole


class Stage(NamedTuple):
    name: str
    seconds: int                # its own budget
    command: list               # of Python


# The quick and certain ones first; 552 s in all. plain, the least needed, has little more than what the others leave.
STAGES = [
    Stage("facts", 20, ["bench/gpu_checks.py", "facts"]),
    Stage("correct", 70, ["bench/gpu_checks.py", "correct"]),
    Stage("model", 60, ["bench/gpu_checks.py", "model"]),
    Stage("kernels", 60, ["bench/kernels.py"]),
    Stage("decode", 50, ["bench/gpu_speed.py", "decode"]),
    Stage("train ours-triton", 65, ["bench/gpu_speed.py", "train", "ours-triton"]),
    Stage("train ours-sdpa", 40, ["bench/gpu_speed.py", "train", "ours-sdpa"]),
    Stage("train transformers", 72, ["bench/gpu_speed.py", "train", "transformers"]),
    Stage("train ours-fastest, micro-batch 16", 40, ["bench/gpu_speed.py", "train", "ours-fastest", "16"]),
    Stage("train ours-torch", 40, ["bench/gpu_speed.py", "train", "ours-torch"]),
    Stage("profile", 25, ["bench/gpu_speed.py", "profile"]),
    Stage("train plain", 10, ["bench/gpu_speed.py", "train", "plain"]),
]


@dataclass(frozen=True)
class GPU:
    """Run every check that needs a GPU."""
    minutes: float = 9.2        # for all stages together


def main(cfg, stages=STAGES):
    """Run the stages; returns how many of them, and of their findings, are bad."""
    if not torch.cuda.is_available():
        raise UserError("make gpu needs a GPU, and torch finds none here; without one, `make test` interprets every "
                        "kernel and compiles it for sm_80 and sm_90")
    kept = os.environ.get("GPU_OUT")
    out = Path(kept or ROOT / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu.jsonl", "gpu.log"):
        (out / name).unlink(missing_ok=True)

    started, budget = time.monotonic(), 0
    for stage in stages:
        budget += stage.seconds
        left = min(budget, 60 * cfg.minutes) - (time.monotonic() - started)
        ended, seconds = run(stage, out, left) if left > 0 else ("not started: no time left", 0.0)
        append(out / "gpu.jsonl", {"stage": stage.name, "ended": ended, "seconds": round(seconds, 1),
                                   "command": " ".join(stage.command), "commit": git_commit()})
        write_report(out)
        if kept:
            pack(out)
    return sum(is_bad(record) for record in read_records(out))


def run(stage, out, seconds):
    """(how it ended, how long it took). Its output is appended to OUT/gpu.log; nothing that it started survives it."""
    environment = os.environ | {"GPU_JSONL": str(out / "gpu.jsonl"), "GPU_STAGE": stage.name, "GPU_OUT": str(out),
                                "PYTHONUNBUFFERED": "1", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    start = time.monotonic()
    with open(out / "gpu.log", "a", encoding="utf-8") as log:
        print(f"\n==== {stage.name}: python {' '.join(stage.command)}", file=log, flush=True)
        process = subprocess.Popen([sys.executable, *stage.command], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                   env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
            ended = "well" if code == 0 else f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        except subprocess.TimeoutExpired:
            ended = f"timeout after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):          # the whole session: torch.compile starts workers
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return ended, time.monotonic() - start


def pack(out):
    """OUT/gpu.tar.gz: what has been written until now."""
    with written_whole(out / "gpu.tar.gz") as temporary, tarfile.open(temporary, "w:gz") as archive:
        for path in sorted(out.glob("*gpu*")):
            if path.suffix in (".jsonl", ".log", ".md", ".json"):
                archive.add(path, path.name)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)    # so that a stage is killed with the runner
    with speaking_to_the_user():
        sys.exit(main(parse_args(GPU)) > 0)
