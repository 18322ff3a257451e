"""What every fine-tuning has in common: its settings, the training loop, evaluation in batches, and its results.

Teaches that fine-tuning takes train.py's step over examples instead of windows. The learning rate rises for the first
part of the run and then falls. The model is evaluated on dev from time to time: the last weights are rarely the best.
Not here: the loss and the metrics (finetune_qa.py, finetune_answers.py); which weights learn (trainable.py).
"""
import math
import shutil
import time
import zlib
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from plumbing import adapters
from plumbing.common import (
    UserError,
    check_ranges,
    fixed_settings,
    free,
    git_commit,
    read_json,
    write_json,
    write_json_lines,
    written_whole,
)
from plumbing.huggingface import save_readable, write_model_card
from plumbing.runtime import Device, autocast, matrix_dtype, stop_on_signals
from training.checkpoint import Checkpoints, set_aside, the_only_run, whole_weights
from training.monitor import Boards
from training.parallel import average_gradients, clip_gradients, device_mesh, join_world, shard_model
from training.trainable import check_weights, make_optimizer, merged, trained


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
    device: Device = free("auto")
    weights: Literal["float32", "bfloat16"] = "float32"       # precision in which the weights are held
    lora_rank: int = 0                       # train low-rank additions of this rank; 0 trains all weights
    save_adapter: bool = False               # also write them alone, as the peft library does, to OUT/adapter
    moments: Literal["float32", "8bit"] = "float32"           # AdamW's two moments
    recompute_every: int = free(0)           # activation checkpointing of every n-th block; 0 is none
    parallel: Literal["none", "ddp", "fsdp"] = free("none")   # how torchrun's processes share the work
    checkpoint_every: int = free(0)          # steps; 0 is after each epoch
    restart: bool = free(False)              # discard what an interrupted run left in OUT
    tensorboard: bool = free(False)          # also write OUT/tensorboard
    wandb: bool = free(False)                # also log to Weights & Biases


def check(cfg, *from_1, **ranges):
    """UserError for numbers out of range; from_1 and ranges: of a script's own settings, as check_ranges has them."""
    check_ranges(cfg, ("batch_size", "micro_batch_size", *from_1), epochs=(1e-6, math.inf), warmup_ratio=(0, 1),
                 **ranges)
    seeds = getattr(cfg, "seeds", (0,))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError("--seeds must name at least one seed from 0 on, and none twice")


@contextmanager
def processes_of(cfg):
    """Yield (settings with the dtype of the device, world). UserError for settings that do not go together."""
    with join_world(cfg.parallel, cfg.device) as world:
        cfg = replace(cfg, dtype=matrix_dtype(cfg.dtype, world.device))
        check_weights(cfg)
        yield cfg, world


# ---- The training loop ----

def fine_tune(cfg, world, seed, folder, model, n_train, loss_of, evaluate, files, evaluate_every=0):
    """Train `model` (on the CPU so far) on n_train examples for cfg.epochs, from the newest checkpoint in `folder` on.

    loss_of(net, indices)  the sum of the losses of these examples; net is the model, wrapped if --parallel is ddp
    evaluate(step, best)   evaluates on dev every `evaluate_every` steps (0: after each epoch) and after the last step.
                           Returns (metrics, best): what to log for this step, and the best evaluation so far, {} at
                           first; both are JSON objects
    files                  settings that name a file, whose content must not change before the run is resumed

    Returns (log, best): a JSON object for each step, and the best evaluation.
    """
    if cfg.parallel == "fsdp":               # each process only moves its own slices
        shard_model(model, device_mesh(world, 0), cfg.dtype, model.gpt.h)
    else:
        model.to(world.device)
    ddp = average_gradients(model, world, cfg.parallel)
    optimizer = make_optimizer(model, cfg)
    epoch_steps = -(-n_train // cfg.batch_size)
    steps = math.ceil(cfg.epochs * epoch_steps)
    checkpoints = Checkpoints(folder, world, keep=1)
    fixed = fixed_settings(cfg) | {name: zlib.crc32(Path(getattr(cfg, name)).read_bytes()) for name in files}
    first, saved = checkpoints.load(model, optimizer, fixed, steps)
    log, best = saved.get("log", []), saved.get("best", {})
    bar = tqdm(total=steps, initial=first, unit="step", desc=f"seed {seed}", disable=None if world.rank == 0 else True)

    with closing(Boards(cfg, world, first, f"seed{seed}")) as boards, stop_on_signals() as signals:
        for step in range(first, steps):
            # Dropout depends on the step and the process only, so a resumed run draws the same masks.
            torch.manual_seed(zlib.crc32(f"{seed} {step} {world.rank}".encode()))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, cfg)

            # forward and backward
            epoch, batch = batch_of(step, n_train, cfg.batch_size, seed)
            loss = accumulate_gradients(model, ddp, batch, loss_of, cfg, world)
            grad_norm = clip_gradients(trained(model), cfg.grad_clip)

            # agree: add up the loss of all processes, and stop all if one of them received a signal
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
            boards.write(**log[-1])
            bar.update()
            if (step + 1) % (cfg.checkpoint_every or epoch_steps) == 0 or stop or last:
                checkpoints.save(step + 1, model, optimizer, fixed | {"log": log, "best": best})
            if stop and not last:
                checkpoints.finish()
                raise KeyboardInterrupt(f"saved seed {seed} after step {step}; the same command resumes from there")
    checkpoints.finish()
    bar.close()
    return log, best


def batch_of(step, n_train, batch_size, seed):
    """(epoch, indices of the examples) of a step. Each epoch has its own order; its last batch may be shorter."""
    epoch, i = divmod(step, -(-n_train // batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(n_train)
    return epoch, order[i * batch_size:(i + 1) * batch_size]


def accumulate_gradients(model, ddp, batch, loss_of, cfg, world):
    """Add the gradient of the batch's mean loss to the parameters. Returns this process's share of that loss."""
    model.train()
    loss = torch.zeros((), device=world.device)
    for part, weight, last in parts(batch, world, cfg.micro_batch_size):
        if ddp is not model:
            ddp.require_backward_grad_sync = last
        with computing(model, world, cfg.dtype):
            part_loss = weight * loss_of(ddp, part) / len(batch)
        # ddp and fsdp average gradients over the processes, but the shares of the mean must be added up.
        (part_loss * world.size).backward()
        loss += part_loss.detach()
    return loss


def learning_rate(step, steps, cfg):
    """Linear warm-up over the first part of the run, then linear decay to 0."""
    warmup = max(1, round(cfg.warmup_ratio * steps))
    return cfg.learning_rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


# ---- Examples, a few at a time ----

def parts(batch, world, size):
    """Yield (indices, weight, whether it is the last part): this process's examples of a batch, `size` at a time. With
    fsdp all processes must take part in every pass: one that has no examples left repeats one with weight 0."""
    mine = batch[world.rank::world.size]
    n = -(-len(batch) // world.size)
    for start in range(0, n, size):
        part, last = mine[start:start + size], start + size >= n
        yield (part, 1.0, last) if len(part) else (batch[:1], 0.0, last)


def computing(model, world, dtype):
    """The context of matrix products in `dtype`. (fsdp casts by itself.)"""
    return autocast(world.device, "float32" if isinstance(model, FSDPModule) else dtype)


def evaluated(model, examples, size, world, dtype, results_of=torch.Tensor.tolist):
    """The result of each example, on every process: results_of(the model's output) for `size` examples at a time, of
    similar length, by len(), so that there is little padding."""
    model.eval()
    found = {}
    order = np.argsort([len(example) for example in examples], kind="stable")
    for start in range(0, len(order), size * world.size):
        for part, weight, _ in parts(order[start:start + size * world.size], world, size):
            with torch.no_grad(), computing(model, world, dtype):
                output = model([examples[i] for i in part])
            if weight:
                found.update(zip(part.tolist(), results_of(output), strict=True))
    found = dict(world.gather([*found.items()]))
    return [found[i] for i in range(len(examples))]


# ---- Interrupted and finished runs ----

@contextmanager
def prepare_out(cfg, world, checkpoints):
    """Lock OUT against other runs. When the run has ended well, delete OUT/`checkpoints`, from which an interrupted run
    resumes. With --restart, set what an earlier run left there aside, and delete it then."""
    with the_only_run(cfg.out, world):
        if cfg.restart:
            set_aside(cfg.out, world, checkpoints)
        yield
        if world.rank == 0:
            shutil.rmtree(Path(cfg.out) / checkpoints, ignore_errors=True)
            shutil.rmtree(Path(cfg.out) / "discarded", ignore_errors=True)


def seed_folder(cfg, seed):
    """Where a script that fine-tunes once for each seed keeps this seed's checkpoint and best model."""
    return Path(cfg.out) / "seeds" / str(seed)


def save_model(model, tok, folder, cfg, world, about=None):
    """Write model.gpt, with low-rank additions merged in, and the task head's tensors as a Hugging Face folder; with
    --save-adapter also the additions alone, in the folder `adapter` beside it. All processes must call it.
    about: more entries for config.json."""
    learned = whole_weights(model)
    if world.rank:
        return
    whole = merged(learned)
    with torch.device("meta"):
        plain = type(model.gpt)(model.gpt.cfg)
    plain.load_state_dict({name.removeprefix("gpt."): w for name, w in whole.items() if name.startswith("gpt.")},
                          assign=True)
    with written_whole(folder) as temporary:
        plain.save_pretrained(temporary, head={name: w for name, w in whole.items() if not name.startswith("gpt.")})
        tok.save(temporary)
        write_json(temporary / "config.json", read_json(temporary / "config.json", "a configuration") | (about or {}))
    if cfg.save_adapter:
        config, tensors = adapters.exported(learned, cfg.model, model.gpt.stored_name)
        with written_whole(folder.with_name("adapter")) as temporary:
            shutil.copytree(folder, temporary, ignore=shutil.ignore_patterns("model*.safetensors*"))
            write_json(temporary / adapters.CONFIG, config)
            save_readable(tensors, temporary / adapters.WEIGHTS)


def write_results(cfg, started, best, log, predictions, report, test_file, summary):
    """Write log.jsonl, predictions.jsonl, report.json and model/ into OUT, and adapter/ with --save-adapter. Returns
    the report with the facts about the run. best: the folder that save_model wrote. summary: for the model card."""
    out = Path(cfg.out)
    report = report | {"seconds": time.perf_counter() - started, "settings": asdict(cfg), "commit": git_commit()}
    write_json_lines(out / "log.jsonl", log)
    write_json_lines(out / "predictions.jsonl", predictions)
    write_json(out / "report.json", report)

    settings = {name: getattr(cfg, name) for name in ("epochs", "batch_size", "learning_rate", "lora_rank")}
    card = {"Fine-tuned from": cfg.model, "Test": {"file": Path(test_file).name, "result": summary},
            "Settings": settings}
    shutil.rmtree(out / "adapter", ignore_errors=True)           # an earlier run's, with other weights
    for source, name, library in ((best, "model", "transformers"), (best.with_name("adapter"), "adapter", "peft")):
        if source.is_dir():
            with written_whole(out / name) as folder:
                shutil.copytree(source, folder)
                write_model_card(folder, out.name, card, library)
    return report
