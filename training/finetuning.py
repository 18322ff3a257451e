"""What every fine-tuning has in common: its settings, and train.py's loop with another loss.

Teaches how small a thing fine-tuning is: the same step over examples instead of windows, a rate that rises for half of
the run and falls for the other, and a look at the dev set now and then, since the best weights are not the last.
Not here: the loss, and what is done with dev and test (finetune_qa.py, finetune_answers.py); which weights learn
(trainable.py); processes (parallel.py).
"""
import math
import shutil
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from plumbing.common import UserError, written_whole
from plumbing.huggingface import add_tensors
from plumbing.runtime import stop_on_signals
from questions.heads import computing, parts
from training.checkpoint import Checkpoints
from training.parallel import average_gradients
from training.trainable import make_optimizer, merged, trained


@dataclass(frozen=True)
class Finetuning:
    """What every fine-tuning asks for."""
    model: str = "stanford-crfm/BioMedLM"    # a folder, or a name on the Hugging Face hub
    out: str = "out/finetuned"
    epochs: float = 20
    batch_size: int = 16                     # examples a step
    micro_batch_size: int = 4                # examples at once on a process; the rest of the batch is accumulated
    learning_rate: float = 2e-6              # the peak, published for MedQA on one GPU
    warmup_ratio: float = 0.5                # of all steps; then linearly down to 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"    # of matrix products; auto: bfloat16 if it is native
    weights: Literal["float32", "bfloat16"] = "float32"       # what the weights are held in
    lora_rank: int = 0                       # learn additions of this rank instead of all weights; 0 is all weights
    moments: Literal["float32", "8bit"] = "float32"           # AdamW's two
    recompute_every: int = 0                 # activation checkpointing of every n-th block; 0 is none
    parallel: Literal["none", "ddp", "fsdp"] = "none"         # how torchrun's processes share the work
    checkpoint_every: int = 0                # steps; 0 is after each epoch
    restart: bool = False                    # discard what an interrupted run left in OUT


# What may change before an interrupted run goes on: it has no influence on the result.
FREE = {"out", "micro_batch_size", "recompute_every", "parallel", "checkpoint_every", "restart"}


def descend(cfg, world, seed, folder, model, n_train, loss_of, select, state, select_every=0):
    """Train `model` on n_train examples for cfg.epochs, from the newest checkpoint in `folder` if there is one.

    loss_of(net, part) is the sum of the losses of the examples with the indices `part`; net is the model, perhaps
    wrapped. select(state) is called every select_every steps (0: after each epoch) and at the end: it looks at dev,
    writes what it finds into the last line of state["log"] and, if it is the best so far, state["best"], and returns a
    few words for the progress bar. `state` (JSON) is saved with each checkpoint.
    """
    ddp, optimizer = average_gradients(model, world, cfg.parallel), make_optimizer(model, cfg)
    epoch_steps = -(-n_train // cfg.batch_size)
    steps, save_every = math.ceil(cfg.epochs * epoch_steps), cfg.checkpoint_every or epoch_steps
    checkpoints = Checkpoints(folder, world, keep=1)
    first = resume(cfg, world, checkpoints, model, optimizer, state)
    bar = tqdm(total=steps, initial=first, unit="step", desc=f"seed {seed}", disable=None if world.rank == 0 else True)
    with stop_on_signals() as signals:
        for step in range(first, steps):
            torch.manual_seed(zlib.crc32(f"{seed} {step} {world.rank}".encode()))      # dropout: of the step alone
            set_rate(optimizer, learning_rate(step, steps, cfg))
            epoch, i = divmod(step, epoch_steps)
            order = np.random.default_rng((seed, epoch)).permutation(n_train)
            batch, loss = order[i * cfg.batch_size:(i + 1) * cfg.batch_size], torch.zeros((), device=world.device)
            model.train()
            for part, weight, last in parts(batch, world, cfg.micro_batch_size):
                if ddp is not model:
                    ddp.require_backward_grad_sync = last
                with computing(world, cfg):
                    # The mean over the batch; gradients are then averaged over processes, which together hold one.
                    part_loss = weight * loss_of(ddp, part) / len(batch)
                (part_loss * world.size).backward()
                loss += part_loss.detach()
            grad_norm = torch.nn.utils.clip_grad_norm_(trained(model), cfg.grad_clip)
            grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
            loss, stop = world.sum(torch.stack([loss, loss.new_tensor(float(bool(signals)))])).tolist()
            if not math.isfinite(loss + grad_norm.item()):
                raise UserError(f"seed {seed}, step {step}: the loss is {loss}, the gradient {grad_norm.item()}; "
                                "lower --learning-rate")
            optimizer.step()
            optimizer.zero_grad()
            state["log"].append({"step": step, "epoch": epoch, "loss": loss, "grad_norm": grad_norm.item()})
            if (step + 1) % (select_every or epoch_steps) == 0 or step + 1 == steps:
                bar.set_postfix_str(f"loss {loss:.3f}, {select(state)}")
            bar.update()
            if (step + 1) % save_every == 0 or stop or step + 1 == steps:
                checkpoints.save(step + 1, model, optimizer, state)
            if stop and step + 1 < steps:
                checkpoints.finish()
                raise KeyboardInterrupt(f"saved seed {seed} after step {step}; the same command goes on from there")
    checkpoints.finish()
    bar.close()


def learning_rate(step, steps, cfg):
    """Linear warmup over the first part of the run, then linearly down to 0."""
    warmup = max(1, round(cfg.warmup_ratio * steps))
    return cfg.learning_rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def settings(cfg, files, free):
    """What an interrupted run must agree on with the one that goes on; the named files count by their content."""
    content = {name: zlib.crc32(Path(getattr(cfg, name)).read_bytes()) for name in files}
    return {name: value for name, value in (asdict(cfg) | content).items() if name not in FREE | free}


def resume(cfg, world, checkpoints, model, optimizer, state):
    """Fill model, optimizer and state from the newest checkpoint, if there is one; returns the first step to take."""
    if cfg.restart and world.rank == 0:
        shutil.rmtree(checkpoints.out, ignore_errors=True)
    world.wait()

    def accept(folder, saved):
        changed = [name for name, now in state["settings"].items() if saved["settings"].get(name) != now]
        if changed:
            name = changed[0]
            raise UserError(f"{folder}: an interrupted run with {name} = {saved['settings'].get(name)}, now it is "
                            f"{state['settings'][name]}; use the same, another --out, or --restart to discard it")
        state.update(log=saved["log"], best=saved["best"])

    return checkpoints.load(model, optimizer, accept)


def save_model(model, tok, folder, world):
    """A Hugging Face folder of model.gpt as it is, additions of low rank merged in, and of what stands on it."""
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if world.rank:
        return
    whole = merged(whole)
    with torch.device("meta"):
        plain = type(model.gpt)(model.gpt.cfg)
    plain.load_state_dict({name.removeprefix("gpt."): w for name, w in whole.items() if name.startswith("gpt.")},
                          assign=True)
    with written_whole(folder) as temporary:
        plain.save_pretrained(temporary)
        add_tensors(temporary, {name: w for name, w in whole.items() if not name.startswith("gpt.")})
        tok.save(temporary)
