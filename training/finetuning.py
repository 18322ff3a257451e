"""What every fine-tuning has in common: its settings, the training loop, and how a dev or test set is read.

Teaches that fine-tuning is train.py's step over examples instead of windows, with a rate that rises for half of the run
and falls for the other half, and an evaluation on dev now and then, because the last weights are rarely the best.
Not here: the loss and the metrics (finetune_qa.py, finetune_answers.py); which weights learn (trainable.py); processes
(parallel.py); checkpoints (checkpoint.py).
"""
import math
import shutil
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from plumbing import adapters
from plumbing.common import UserError, fixed_settings, free, read_json, write_json, written_whole
from plumbing.huggingface import add_tensors, save_readable, write_model_card
from plumbing.runtime import autocast, stop_on_signals
from training.checkpoint import Checkpoints, set_aside, the_only_run, whole_weights
from training.parallel import average_gradients, clip_gradients
from training.trainable import make_optimizer, merged, trained


@dataclass(frozen=True)
class Finetuning:
    """The settings of every fine-tuning."""
    model: str = "stanford-crfm/BioMedLM"    # a folder, or a name on the Hugging Face hub
    out: str = free("out/finetuned")
    epochs: float = 20
    batch_size: int = 16                     # examples per step
    micro_batch_size: int = free(4)          # examples at once on each process; gradients are accumulated
    learning_rate: float = 2e-6              # the peak, published for MedQA on one GPU
    warmup_ratio: float = 0.5                # of all steps; then linearly down to 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0                   # largest norm of the gradient; 0 is no limit
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"    # of matrix products; auto: bfloat16 if it is native
    weights: Literal["float32", "bfloat16"] = "float32"       # precision in which the weights are held
    lora_rank: int = 0                       # train low-rank additions of this rank; 0 trains all weights
    save_adapter: bool = False               # also write them alone, as the peft library does, to OUT/adapter
    moments: Literal["float32", "8bit"] = "float32"           # AdamW's two moments
    recompute_every: int = free(0)           # activation checkpointing of every n-th block; 0 is none
    parallel: Literal["none", "ddp", "fsdp"] = free("none")   # how torchrun's processes share the work
    checkpoint_every: int = free(0)          # steps; 0 is after each epoch
    restart: bool = free(False)              # discard what an interrupted run left in OUT


# For check_ranges, together with a script's own settings; check_weights has the others. epochs: at least one step.
RANGES = {"epochs": (1e-6, None), "batch_size": (1, None), "micro_batch_size": (1, None), "learning_rate": (0, None),
          "warmup_ratio": (0, 1), "weight_decay": (0, None), "grad_clip": (0, None),
          "checkpoint_every": (0, None)}


# ---- The training loop ----

def fine_tune(cfg, world, seed, folder, model, n_train, loss_of, evaluate, fixed, evaluate_every=0):
    """Train `model` on n_train examples for cfg.epochs, from the newest checkpoint in `folder` if there is one.

    loss_of(net, indices)  the sum of the losses of these examples; net is the model, perhaps wrapped by ddp
    evaluate(step, best)   runs on dev every `evaluate_every` steps (0: after each epoch) and after the last step.
                           Returns (metrics, best): what the log says of this step, and the best evaluation so far.
                           Both are JSON objects; best is {} at first
    fixed                  the settings that a resumed run must share: run_settings

    Returns (log, best): a JSON object for each step, and the best evaluation.
    """
    ddp = average_gradients(model, world, cfg.parallel)
    optimizer = make_optimizer(model, cfg)
    epoch_steps = -(-n_train // cfg.batch_size)
    steps = math.ceil(cfg.epochs * epoch_steps)
    checkpoints = Checkpoints(folder, world, keep=1)
    first, log, best = resume(checkpoints, model, optimizer, fixed)
    bar = tqdm(total=steps, initial=first, unit="step", desc=f"seed {seed}", disable=None if world.rank == 0 else True)

    with stop_on_signals() as signals:
        for step in range(first, steps):
            # Dropout depends on the step and the process only, so a resumed run draws the same masks.
            torch.manual_seed(zlib.crc32(f"{seed} {step} {world.rank}".encode()))
            set_rate(optimizer, learning_rate(step, steps, cfg))

            # forward and backward
            epoch, batch = batch_of(step, n_train, cfg.batch_size, seed)
            loss = accumulate_gradients(model, ddp, batch, loss_of, cfg, world)
            grad_norm = clip_gradients(trained(model), cfg.grad_clip).item()

            # agree: the loss of all processes; one signal stops them all
            loss, stop = world.vote(loss, signals)
            if not math.isfinite(loss + grad_norm):
                raise UserError(f"seed {seed}, step {step}: the loss is {loss}, the gradient {grad_norm}; lower "
                                "--learning-rate")

            # update
            optimizer.step()
            optimizer.zero_grad()
            log.append({"step": step, "epoch": epoch, "loss": loss, "grad_norm": grad_norm})

            # evaluate, save, stop
            last = step + 1 == steps
            if (step + 1) % (evaluate_every or epoch_steps) == 0 or last:
                metrics, best = evaluate(step, best)
                log[-1] |= metrics
                name, value = next(iter(metrics.items()))
                bar.set_postfix_str(f"loss {loss:.3f}, {name} {value:.3f}")
            bar.update()
            if (step + 1) % (cfg.checkpoint_every or epoch_steps) == 0 or stop or last:
                checkpoints.save(step + 1, model, optimizer, {"settings": fixed, "log": log, "best": best})
            if stop and not last:
                checkpoints.finish()
                raise KeyboardInterrupt(f"saved seed {seed} after step {step}; the same command resumes from there")
    checkpoints.finish()
    bar.close()
    return log, best


def batch_of(step, n_train, batch_size, seed):
    """(epoch, indices) of a step: each epoch reads all examples in an order of its own; its last batch may be short."""
    epoch, i = divmod(step, -(-n_train // batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(n_train)
    return epoch, order[i * batch_size:(i + 1) * batch_size]


def accumulate_gradients(model, ddp, batch, loss_of, cfg, world):
    """Add the gradient of the batch's mean loss; returns this process's share of that loss."""
    model.train()
    loss = torch.zeros((), device=world.device)
    for part, weight, last in parts(batch, world, cfg.micro_batch_size):
        if ddp is not model:
            ddp.require_backward_grad_sync = last
        with computing(model, world, cfg.dtype):
            part_loss = weight * loss_of(ddp, part) / len(batch)
        # Gradients are averaged over the processes, but each holds a share of the mean: times size, it is their sum.
        (part_loss * world.size).backward()
        loss += part_loss.detach()
    return loss


def learning_rate(step, steps, cfg):
    """Linear warm-up over the first part of the run, then linearly down to 0."""
    warmup = max(1, round(cfg.warmup_ratio * steps))
    return cfg.learning_rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


# ---- Examples, a few at a time ----

def parts(batch, world, size):
    """Yield (indices, weight, is it the last?): this process's examples of a batch, `size` at a time.

    All processes get the same number of parts, because fsdp needs all of them in every pass. A process that has no
    examples left repeats one with weight 0.
    """
    mine = batch[world.rank::world.size]
    n = -(-len(batch) // world.size)
    for start in range(0, n, size):
        part, last = mine[start:start + size], start + size >= n
        yield (part, 1.0, last) if len(part) else (batch[:1], 0.0, last)


def computing(model, world, dtype):
    """The context of a forward pass: matrix products in `dtype`. (fsdp casts by itself.)"""
    return autocast(world.device, "float32" if isinstance(model, FSDPModule) else dtype)


def outputs_by_length(model, examples, size, world, dtype):
    """Yield (indices, output) for this process's share of the examples, `size` at a time: the forward passes of an
    evaluation. Examples of similar length (their len()) share a pass, so that little is padding."""
    model.eval()
    order = np.argsort([len(example) for example in examples], kind="stable")
    for start in range(0, len(order), size * world.size):
        for part, weight, _ in parts(order[start:start + size * world.size], world, size):
            with torch.no_grad(), computing(model, world, dtype):
                output = model([examples[i] for i in part])
            if weight:
                yield part, output


# ---- What an interrupted run leaves, and a finished one ----

def run_settings(cfg, files):
    """The settings that a resumed run must share with the interrupted one; the files count by their content."""
    return fixed_settings(cfg) | {name: zlib.crc32(Path(getattr(cfg, name)).read_bytes()) for name in files}


@contextmanager
def prepare_out(cfg, world, left_over):
    """Hold OUT, which must be a folder that can be written and that no other run is writing. With --restart, what an
    interrupted run left in OUT/left_over is set aside, and deleted when this run has ended well."""
    with the_only_run(cfg.out, world):
        if cfg.restart:
            set_aside(cfg.out, world, left_over)
        yield
        if world.rank == 0:
            shutil.rmtree(Path(cfg.out) / "discarded", ignore_errors=True)


def resume(checkpoints, model, optimizer, fixed):
    """Fill model and optimizer from the newest checkpoint, if there is one. Returns (first step to take, log, best)."""
    state = {"log": [], "best": {}}

    def accept(folder, saved):
        was = {"save_adapter": False} | saved["settings"]            # older runs did not write this
        if changed := [name for name, now in fixed.items() if was.get(name) != now]:
            name = changed[0]
            raise UserError(f"{folder}: an interrupted run with {name} = {was.get(name)}, now it is {fixed[name]}; use "
                            "the same, another --out, or --restart to discard it")
        state.update(log=saved["log"], best=saved["best"])

    first = checkpoints.load(model, optimizer, accept)
    return first, state["log"], state["best"]


def save_model(model, tok, folder, cfg, world, about=None):
    """Write model.gpt as a Hugging Face folder, low-rank additions merged in, plus the task head's tensors; with
    --save-adapter also the additions alone, beside it. All processes call it; the first one writes. about: what else
    config.json says."""
    whole = whole_weights(model)
    if world.rank:
        return
    adapter = adapters.exported(whole, cfg.model, model.gpt.stored_name) if cfg.save_adapter else None
    whole = merged(whole)
    with torch.device("meta"):
        plain = type(model.gpt)(model.gpt.cfg)
    plain.load_state_dict({name.removeprefix("gpt."): w for name, w in whole.items() if name.startswith("gpt.")},
                          assign=True)
    with written_whole(folder) as temporary:
        plain.save_pretrained(temporary)
        add_tensors(temporary, {name: w for name, w in whole.items() if not name.startswith("gpt.")})
        tok.save(temporary)
        config = read_json(temporary / "config.json", "a model's configuration")
        write_json(temporary / "config.json", config | (about or {}))
    if adapter:
        with written_whole(adapter_beside(folder)) as temporary:
            shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("model*.safetensors*"))
            write_json(temporary / adapters.CONFIG, adapter[0])
            save_readable(adapter[1], temporary / adapters.WEIGHTS)


def adapter_beside(folder):
    return Path(folder).with_name("adapter")


def keep(best, cfg, test_file, result):
    """Make the folders that save_model wrote the results of the run: OUT/model, and OUT/adapter if there is one."""
    for source, name in ((best, "model"), (adapter_beside(best), "adapter")):
        target = Path(cfg.out) / name
        if source.is_dir():
            with written_whole(target) as folder:
                shutil.copytree(source, folder)
                write_card(folder, cfg, test_file, result)
        else:
            shutil.rmtree(target, ignore_errors=True)       # of an earlier run, with other weights


def write_card(folder, cfg, test_file, result):
    """The model card of a fine-tuned model. result: the report's summary, a line."""
    settings = {name: getattr(cfg, name) for name in ("epochs", "batch_size", "learning_rate", "lora_rank")}
    write_model_card(folder, {"Fine-tuned from": cfg.model, "Test": {"file": Path(test_file).name, "result": result},
                              "Settings": settings})
