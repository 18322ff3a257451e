"""Nothing is lost: a run that is killed at any moment resumes from its newest complete checkpoint.

OUT/checkpoints/00000300/ is the state after 300 steps: weights and moments, one file per process, and settings.json. It
is written in the background, and complete once .metadata exists, which is renamed into place last. Data and dropout are
functions of (seed, step), so nothing else has to be saved, and a run may resume on another number of processes.
Not here: models for others to read; those are Hugging Face folders (plumbing/huggingface.py).
"""
import json
import math
import os
import shutil
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from filelock import FileLock, Timeout
from torch.distributed.checkpoint import state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from plumbing.common import UserError, read_json, write_json


def complete_checkpoints(out):
    """The complete checkpoints in OUT, oldest first."""
    return sorted(folder for folder in Path(out).glob("checkpoints/" + "[0-9]" * 8)
                  if (folder / ".metadata").is_file() and (folder / "settings.json").is_file())


@contextmanager
def the_only_run(out, world):
    """Hold OUT for this run: UserError if it cannot be written or another run is writing to it."""
    if world.rank:
        yield
        return
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        lock = FileLock(Path(out) / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"{out}: another run is writing to it; choose another --out, or wait for it") from error
    except OSError as error:
        raise UserError(f"{out}: cannot write there ({error.strerror}); choose another folder") from error
    with lock:
        yield


def set_aside(out, world, *names):
    """For --restart: move what an earlier run left in OUT to OUT/discarded, to be deleted once it is replaced. Where
    torchrun or SLURM has started the same command again, nothing moves: it is their progress."""
    again = any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    discarded = Path(out) / "discarded"
    old = [Path(out) / name for name in names if (Path(out) / name).exists()]
    if world.rank == 0 and old and not again:
        shutil.rmtree(discarded, ignore_errors=True)
        discarded.mkdir()
        for path in old:
            os.replace(path, discarded / path.name)
    world.wait()


def whole_weights(model):
    """{name: tensor} of the whole model on the CPU, on every process called together; filled on the first only."""
    whole = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return state_dict.get_model_state_dict(model, options=whole)


def check_weights(model, world, steps, scores):
    """Broken weights are neither saved nor exported: a weight that is not finite never recovers."""
    broken = torch.tensor(float(not all(map(math.isfinite, scores))), device=world.device)
    for p in model.parameters():
        local = p.detach().to_local() if isinstance(p, DTensor) else p.detach()
        broken += (~local.isfinite()).any()
    if world.sum(broken).item():
        raise UserError(f"after {steps} steps weights or validation loss are not finite, so they were not saved; lower "
                        "--learning-rate and run again: the newest checkpoint is from before")


def check_same_run(folder, saved, fixed, steps):
    """UserError if a checkpoint is of another run. Settings that an older version did not save are not compared."""
    for name, now in json.loads(json.dumps(fixed)).items():
        if saved.get(name, now) != now:
            raise UserError(f"{folder}: made with {name} = {saved[name]}, now it is {now}; use the same, another "
                            "--out, or --restart to discard it")
    if int(folder.name) > steps:
        raise UserError(f"{folder}: has already more than {steps} steps; use another --out, or --restart")


class Checkpoints:
    """The checkpoints of one run. All processes call the same methods in the same order."""

    def __init__(self, out, world, keep):
        self.out, self.world, self.keep, self.saving = Path(out), world, keep, None
        self.first, self.started = 0, time.perf_counter()      # of the steps that this process takes
        # A group of its own: on the default group, background collectives would mix with those of the training step.
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        warnings.filterwarnings("ignore", message=".*in a single process.*")       # one process is a valid choice

    def save(self, step, model, optimizer, settings, evaluation=None):
        """Copy the state after `step` steps and begin to write it; returns before it is on disk. UserError if weights
        or the last evaluation's numbers are not finite."""
        self.finish()
        check_weights(model, self.world, step, (evaluation or {}).values())
        folder = self.out / "checkpoints" / f"{step:08d}"
        if self.world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)          # what a crash left of the same step
            seconds = (time.perf_counter() - self.started) / max(1, step - self.first)
            write_json(folder / "settings.json", settings | {"seconds_per_step": seconds})
        self.world.wait()
        weights, moments = state_dict.get_state_dict(model, optimizer)
        self.saving = dcp.async_save({"model": weights, "optimizer": moments}, checkpoint_id=folder,
                                     process_group=self.group)

    def finish(self):
        """Wait for the save in progress, then delete all but the newest checkpoints."""
        if not self.saving:
            return
        self.saving.result()
        self.saving = None
        if self.world.rank == 0:
            for old in complete_checkpoints(self.out)[:-self.keep]:
                (old / ".metadata").unlink()                   # from here on it is incomplete; then it goes
                shutil.rmtree(old)
            shutil.rmtree(self.out / "discarded", ignore_errors=True)

    def load(self, model, optimizer, fixed, steps):
        """Fill model and optimizer from the newest checkpoint that can be read. Returns the number of its steps and its
        settings, (0, {}) without a checkpoint. UserError if one of the settings `fixed` has changed."""
        found = self.agreed_checkpoints()
        for folder in reversed(found):
            try:
                saved = read_json(folder / "settings.json", "the settings of a checkpoint")
            except UserError as error:
                self.say(f"{folder}: damaged ({str(error)[:100]}); trying the one before")
                continue
            check_same_run(folder, saved, fixed, steps)

            weights, moments = state_dict.get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments}
            try:
                dcp.load(state, checkpoint_id=folder, process_group=self.group)
            except CheckpointException as error:
                reason = str(next(iter(error.failures.values()))[0])
                self.say(f"{folder}: damaged ({reason[:100]}); trying the one before")
                continue

            state_dict.set_state_dict(model, optimizer, model_state_dict=state["model"],
                                      optim_state_dict=state["optimizer"])
            saved_at = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / ".metadata").stat().st_mtime))
            self.first, self.started = int(folder.name), time.perf_counter()
            left = steps - self.first
            time_left = timedelta(seconds=round(left * saved.get("seconds_per_step", 0)))
            self.say(f"resuming after {self.first} steps from {folder}, saved {saved_at}; {left:,} steps are left"
                     + (f", about {time_left} h at the speed before" if time_left else ""))
            return self.first, saved

        if found:
            raise UserError(f"{self.out}/checkpoints: none of {len(found)} can be read; --restart begins anew")
        return 0, {}

    def agreed_checkpoints(self):
        """The complete checkpoints. UserError if a process does not see the same ones as the first."""
        found = complete_checkpoints(self.out)
        seen = self.world.gather([[folder.name for folder in found]])
        for rank, names in enumerate(seen):
            if names != seen[0]:
                raise UserError(f"{self.out}: process 0 sees checkpoints {seen[0]}, process {rank} sees {names}; --out "
                                "must be a folder that all nodes share")
        return found

    def say(self, line):
        if self.world.rank == 0:
            print(line, flush=True)
