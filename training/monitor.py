"""What a run prints and logs: OUT/log.jsonl and a progress bar; TensorBoard or Weights & Biases if asked.

Every process has a monitor, and the first one's writes. Not here: what a step measures (train.py).
"""
import json
import math
import platform
import sys
import time
from collections import deque
from contextlib import suppress
from functools import cache
from pathlib import Path
from zlib import crc32

import torch
from tqdm import tqdm

from plumbing.common import UserError, written_whole

# Dense bf16 FLOP/s by the data sheets (fp16 for V100 and T4, which have no bf16). The first name that fits counts.
PEAK_FLOPS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "MI300X": 1307e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "A10": 125e12, "RTX 5090": 210e12, "RTX 4090": 165e12,
    "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12}


class Monitor:
    """Says what a run is, and writes a line per step; knows what a step costs, and so how fast the run is."""

    def __init__(self, cfg, world, first, corpus, val, model, kernels):
        self.cfg, self.world = cfg, world
        if world.rank:
            return
        self.peak, self.source = peak_flops(world.device, cfg.dtype)
        self.tokens = cfg.batch_size * cfg.length
        self.flops = self.tokens * cfg.model.flops_per_token(cfg.length)

        out = Path(cfg.out)
        self.boards = Boards(cfg, world, first)
        forget_steps(out / "log.jsonl", first)
        self.log = open(out / "log.jsonl", "a", buffering=1, encoding="utf-8")
        self.bar = tqdm(initial=first, total=cfg.steps, unit="step", disable=None)     # none without a terminal

        n_parameters, each = sum(p.numel() for p in model.parameters()), cfg.batch_size // world.size
        print(f"model       {n_parameters:,} parameters, {cfg.dtype}, compile {cfg.compile}, {kernels}\n"
              f"processes   {world.size} on {world.device.type}, {cfg.parallel}; {each} windows each, "
              f"{cfg.micro_batch_size} at once\n"
              f"data        {corpus.tokens:,} tokens to train on, {val.tokens:,} to validate on, from {cfg.data}\n"
              f"step        {self.tokens:,} tokens, {cfg.steps:,} steps = "
              f"{cfg.steps * self.tokens / corpus.tokens:.2f} epochs\n"
              f"MFU         of {self.peak / 1e9:,.0f} GFLOP/s, {self.source}; 6N + 12LDT FLOPs per token", flush=True)

    def write(self, step, values, seconds):
        """The values of a step that took so long. Every 100 steps, who was slowest: all processes call it together."""
        times = []
        if (step + 1) % 100 == 0 and self.world.size > 1:
            times = sorted(self.world.gather([(seconds, self.world.rank, platform.node())]))
        if self.world.rank:
            return
        values = values | {
            "tokens_per_second": self.tokens / seconds, "mfu": self.flops / self.world.size / seconds / self.peak,
            "hours_left": (self.cfg.steps - step - 1) * seconds / 3600}
        if memory := memory_in_use(self.world.device):
            values["memory_gib"] = memory / 2**30

        # JSON has no NaN or infinity: they become None.
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.log.write(json.dumps({"step": step} | finite) + "\n")
        self.boards.write(step, **values)

        self.bar.update()
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s")
        if "val_loss" in values or "skipped" in values or step == 0:
            self.bar.write(f"step {step:6d}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if times:
            (median, _, _), (worst, rank, host) = times[len(times) // 2], times[-1]
            self.bar.write(f"slowest process: {rank} on {host}, {worst:.3f} s; median {median:.3f} s")

    def close(self):
        if self.world.rank:
            return
        self.bar.close()
        self.log.close()
        self.boards.close()


class Boards:
    """TensorBoard (OUT/tensorboard) and Weights & Biases, each if asked for; on the first process alone.
    first: the first step that will be written. name: of one fine-tuning among several in OUT."""

    def __init__(self, cfg, world, first, name=""):
        out = Path(cfg.out)
        self.board = open_board(out / "tensorboard" / name, first) if cfg.tensorboard and not world.rank else None
        self.wandb = start_wandb(out, name, first) if cfg.wandb and not world.rank else None

    def write(self, step, **values):
        """values: numbers; None is left out."""
        values = {name: value for name, value in values.items() if value is not None}
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def close(self):
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


class Outliers:
    """Steps whose loss or gradient norm is far above the last 128. `values` is saved with each checkpoint."""
    WINDOW = 128

    def __init__(self, sigmas, values=()):
        self.sigmas, self.values = sigmas, deque(values, maxlen=self.WINDOW)

    def reject(self, loss, grad_norm):
        """Whether the step should be skipped; if not, later steps are compared with it."""
        if not self.sigmas:
            return False
        now = torch.tensor([loss, grad_norm])
        if len(self.values) == self.WINDOW:
            seen = torch.tensor(list(self.values))
            if (now > seen.mean(0) + self.sigmas * seen.std(0)).any():
                return True
        self.values.append([loss, grad_norm])
        return False


@cache                                               # measuring takes a second, and the machine stays the same
def peak_flops(device, dtype):
    """(FLOP/s that count as 100 %, the source of the number): the data sheet's, or what a large matrix product reaches
    here on a machine that is not in the table."""
    if device.type == "cuda":
        if chip := known_chip(torch.cuda.get_device_name(device)):
            return PEAK_FLOPS[chip], f"{chip}'s dense bf16 peak"

    n = 1024 if device.type == "cpu" else 8192       # a GPU needs a large product to be busy
    a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        (a @ a)[0, 0].item()                         # .item() waits for the result
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds), f"what a {n} x {n} product reaches here"


def known_chip(name):
    """The entry of PEAK_FLOPS whose words are all in a GPU's name, the first one that fits; None if it is not there."""
    words = set(name.replace("-", " ").split())
    return next((chip for chip in PEAK_FLOPS if words >= set(chip.split())), None)


def memory_in_use(device):
    """Bytes at the peak: allocated on the GPU, or resident in main memory. None where that is not known (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024        # macOS counts in bytes, Linux in KiB


def forget_steps(path, first):
    """Drop the lines of steps after the checkpoint, which will be repeated, and lines that a crash damaged."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] < first:
                kept.append(line + "\n")
    with written_whole(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def open_board(folder, first):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=first)


def start_wandb(out, name, first):
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb needs the package wandb: pip install wandb") from error
    path = out.resolve() / name
    title = f"{out.resolve().name}-{name}".removesuffix("-")
    run = f"{title}-{crc32(str(path).encode()):08x}"               # two folders of one name are two runs
    resume = "allow" if first else None                            # a run that begins again replaces its old curve
    return wandb.init(project="nanobiomedlm", name=title, dir=str(out), resume=resume, id=run)
