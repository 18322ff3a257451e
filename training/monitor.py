"""What one watches while a model trains: OUT/log.jsonl and a progress bar; TensorBoard, Weights & Biases on request.

Not here: what is measured in a step (train.py). Only the first process has a monitor.
"""
import json
import resource
from pathlib import Path

import torch
from tqdm import tqdm

from plumbing.common import UserError, written_whole
from plumbing.runtime import peak_flops


class Monitor:
    """Writes a line a step; knows what a step costs, and so how fast the run is."""

    def __init__(self, cfg, world, first):
        self.cfg, self.world = cfg, world
        self.peak, self.source = peak_flops(world.device, cfg.dtype)
        self.tokens = cfg.batch_size * cfg.length
        self.flops = self.tokens * cfg.model.flops_per_token(cfg.length)
        out = Path(cfg.out)
        out.mkdir(parents=True, exist_ok=True)
        forget_steps(out / "log.jsonl", first)
        self.log = open(out / "log.jsonl", "a", buffering=1, encoding="utf-8")
        self.bar = tqdm(initial=first, total=cfg.steps, unit="step", disable=None)     # none where nobody looks
        self.board = self.wandb = None
        if cfg.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=first)
        if cfg.wandb:
            self.wandb = start_wandb(cfg, out)

    def introduce(self, corpus, val, n_parameters, kernels):
        cfg = self.cfg
        each = cfg.batch_size // self.world.size
        print(f"model       {n_parameters:,} parameters, {cfg.dtype}, compile {cfg.compile}, {kernels}\n"
              f"processes   {self.world.size} on {self.world.device.type}, {cfg.parallel}; {each} windows each, "
              f"{cfg.micro_batch_size} at once\n"
              f"data        {corpus.tokens:,} tokens to train on, {val.tokens:,} to validate on, from {cfg.data}\n"
              f"step        {self.tokens:,} tokens, {cfg.steps:,} steps = "
              f"{cfg.steps * self.tokens / corpus.tokens:.2f} epochs\n"
              f"MFU         of {self.peak / 1e9:,.0f} GFLOP/s, {self.source}; 6N + 12LDT FLOPs a token", flush=True)

    def speed(self, step, seconds):
        per_process = self.flops / self.world.size / seconds
        return {"tokens_per_second": self.tokens / seconds, "mfu": per_process / self.peak,
                "memory_gib": memory_in_use(self.world.device) / 2**30,
                "hours_left": (self.cfg.steps - step - 1) * seconds / 3600}

    def write(self, step, values):
        self.log.write(json.dumps({"step": step} | values) + "\n")
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)
        self.bar.update()
        self.bar.set_postfix_str(f"loss {values['loss']:.3f}, {values['tokens_per_second']:,.0f} tokens/s")
        if "val_loss" in values or "skipped" in values or step == 0:
            self.say(f"step {step:6d}  " + "  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def say(self, line):
        self.bar.write(line)

    def close(self):
        self.bar.close()
        self.log.close()
        if self.board:
            self.board.close()
        if self.wandb:
            self.wandb.finish()


def memory_in_use(device):
    """Bytes at the peak: allocated on the GPU, or resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024        # Linux counts in KiB


def forget_steps(path, first):
    """Drop the lines of steps that a crash separated from their checkpoint; they come again."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        with written_whole(path) as temporary:
            temporary.write_text("".join(line for line in lines if json.loads(line)["step"] < first), encoding="utf-8")


def start_wandb(cfg, out):
    try:
        import wandb
    except ImportError as error:
        raise UserError("--wandb wants the package of that name: pip install wandb") from error
    return wandb.init(project="nanobiomedlm", name=out.name, dir=str(out), resume="allow", id=out.name)
