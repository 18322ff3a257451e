"""`make gpu`: every check that needs a GPU, one after the other, within ten minutes.

    python bench/gpu.py                     # into results/; GPU_OUT=FOLDER names another place
    python bench/gpu.py --data data/pubmed  # and a real run of GPT-2 small's size on these shards, if there is time

Correctness and speed of the kernels, a training step of the paper's model beside its peers, decoding, training. A step
that fails or runs out of time does not keep the next from its turn: FOLDER/gpu.md says how each ended, FOLDER/gpu_*.log
what it printed. Ends with 1 if any failed.
"""
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent              # not to be searched: there, `train` would be another file
sys.path[:] = [str(HERE.parent), *(folder for folder in sys.path if folder != str(HERE))]

import torch  # noqa: E402

from kernels.measure import require_gpu  # noqa: E402
from plumbing.common import ROOT, git_commit, parse_args, speaking_to_the_user  # noqa: E402

SMALL = ("--model.n-layer 12 --model.n-head 12 --model.n-embd 768 --batch-size 64 --micro-batch-size 32 --steps 600 "
         "--learning-rate 1e-3 --final-learning-rate 1e-4 --warmup-steps 60 --eval-every 100 --eval-windows 256 "
         "--checkpoint-every 0 --restart").split()       # 39 M tokens, GPT-2 small's shape


@dataclass(frozen=True)
class GPU:
    """Run every check that needs a GPU."""
    data: Path | None = None            # token shards for the real run
    minutes: float = 9.5                # for everything


def main(cfg):
    require_gpu("bench/gpu.py")
    out, started, rows = Path(os.environ.get("GPU_OUT", ROOT / "results")).resolve(), time.perf_counter(), []
    out.mkdir(parents=True, exist_ok=True)
    for name, command in steps(cfg, out):
        left = 60 * cfg.minutes - (time.perf_counter() - started)
        ended, seconds = run(name, command, out, max(1, left))
        rows.append(f"| {name} | `python {' '.join(map(str, command))}` | {ended} | {seconds:.0f} |")
        print(rows[-1], flush=True)
        head = [f"# {torch.cuda.get_device_name()}\n", f"commit {git_commit()}, torch {torch.__version__}\n",
                "| step | command | ended | seconds |", "|---|---|---|---:|"]
        (out / "gpu.md").write_text("\n".join(head + rows).replace(str(out), "OUT") + "\n", encoding="utf-8")
    return sum("| well |" not in row for row in rows)


def steps(cfg, out):
    """[(name, script and its arguments)], the quick and certain first."""
    real = ["train.py", "biomedlm", "--data", cfg.data, "--out", out / "small", *SMALL]
    return [("kernels", ["bench/kernels.py"]),
            ("training", ["bench/train.py", "--preset", "biomedlm", "--turns", 2, "--out", out]),
            ("decoding", ["bench/sample.py", "--out", out]),
            *([("small", real)] if cfg.data else [])]


def run(name, command, out, seconds):
    """(how it ended, seconds); what it printed goes to OUT/gpu_NAME.log."""
    start = time.perf_counter()
    with open(out / f"gpu_{name}.log", "w", encoding="utf-8") as log:
        try:
            code = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                                  timeout=seconds, env=os.environ | {"GPU_OUT": str(out)}).returncode
            ended = "well" if code == 0 else f"with code {code}"
        except subprocess.TimeoutExpired:
            ended = "for want of time"
    return ended, time.perf_counter() - start


if __name__ == "__main__":
    with speaking_to_the_user():
        sys.exit(main(parse_args(GPU)) > 0)
