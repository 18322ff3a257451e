"""Nothing is lost: a run that is killed at any moment goes on where its newest checkpoint stands.

OUT/checkpoints/00000300/ is the state after 300 steps: weights and moments, a file a process, and settings.json. It is
written in the background while the next steps run, and counts only once .metadata, which is renamed into place last,
stands in it. Data and dropout are functions of (seed, step), so there is nothing else to save, and a run may go on with
another number of processes.
Not here: models for others to read; those are Hugging Face folders (huggingface.py).
"""
import shutil
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from plumbing.common import UserError, read_json, write_json


def complete_checkpoints(out):
    """The checkpoints in OUT that were written to their end, oldest first."""
    return sorted(folder for folder in Path(out).glob("checkpoints/[0-9]*")
                  if (folder / ".metadata").is_file() and (folder / "settings.json").is_file())


class Checkpoints:
    """The checkpoints of one run. All processes call the same methods in the same order."""

    def __init__(self, out, world, keep):
        self.out, self.world, self.keep, self.saving = Path(out), world, keep, None
        # A group of its own: on the default one, background collectives would meet those of the training step.
        self.group = dist.new_group(backend="gloo") if world.size > 1 else None
        warnings.filterwarnings("ignore", message=".*in a single process.*")       # that is what was asked for

    def save(self, step, model, optimizer, settings):
        """Copy the state after `step` steps and begin to write it; returns before it is on disk."""
        self.finish()
        folder = self.out / "checkpoints" / f"{step:08d}"
        if self.world.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)          # what a crash left of the same step
            write_json(folder / "settings.json", settings)
        self.world.wait()
        weights, moments = get_state_dict(model, optimizer)
        self.saving = dcp.async_save({"model": weights, "optimizer": moments}, checkpoint_id=folder,
                                     process_group=self.group)

    def finish(self):
        """Wait for the save that is under way, then drop all but the newest checkpoints."""
        if self.saving:
            self.saving.result()
            self.saving = None
            if self.world.rank == 0:
                for old in complete_checkpoints(self.out)[:-self.keep]:
                    (old / ".metadata").unlink()               # first it stops to count, then it goes
                    shutil.rmtree(old)

    def load(self, model, optimizer, accept):
        """Fill model and optimizer from the newest checkpoint that can be read; returns the number of its steps.

        accept(folder, settings) raises UserError if the checkpoint is of another run.
        """
        found = complete_checkpoints(self.out)
        for folder in reversed(found):
            accept(folder, read_json(folder / "settings.json", "the settings of a checkpoint"))
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments}
            try:
                dcp.load(state, checkpoint_id=folder, process_group=self.group)
            except CheckpointException as error:
                reason = repr(next(iter(error.failures.values()))[0])[:100]
                if self.world.rank == 0:
                    print(f"{folder}: damaged ({reason}); trying the one before", flush=True)
                continue
            set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
            if self.world.rank == 0:
                print(f"resuming after {int(folder.name)} steps from {folder}", flush=True)
            return int(folder.name)
        if found:
            raise UserError(f"{self.out}/checkpoints: none of {len(found)} can be read; --restart begins anew")
        return 0
