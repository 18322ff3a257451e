"""How fast the whole model decodes and trains on this GPU, and where the time goes: the last stages of `make gpu`.

    python bench/gpu_speed.py decode                       # bench/sample.py: one token by sample.py and by transformers
    python bench/gpu_speed.py train ours-triton [16]       # a training step; the number is the micro-batch size, 8
    python bench/gpu_speed.py train ours-fastest 16        # the faster of ours-triton, ours-sdpa in GPU_OUT/gpu.jsonl
    python bench/gpu_speed.py profile                      # the GPU's time by kernel, of a step and of a token

Training contestants: ours-triton, ours-sdpa (Triton's kernels, but torch's attention) and ours-torch (torch's
operators), all of model.py; transformers; and plain (rivals.Plain). All are compiled. transformers is also timed before
that, since compiling the whole of it may take longer than its stage. All have BioMedLM's shape, the first weights of
seed 0 drawn on the GPU, the same tokens, bf16 autocast, four accumulated micro-batches per step, clipping and fused
AdamW. Before it is timed, each computes one loss and gradient norm without dropout, which must agree. Nothing is
written but lines.
Not here: train.py's own loop on a CPU (bench/train.py), the kernels one by one (kernels.py).
"""
import gc
import os
import statistics
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import torch

from bench.gpu_checks import attach_kernels
from bench.gpu_records import attempt, emit
from bench.gpu_report import having, read_records
from model import GPT, GPTConfig
from plumbing.common import ROOT, UserError, speaking_to_the_user
from plumbing.runtime import autocast, pick_device
from training.parallel import clip_gradients

CONTESTANTS = ("ours-triton", "ours-sdpa", "ours-torch", "transformers", "plain")
STEPS, PARTS = 5, 4             # timed steps, after one that compiles; micro-batches per step
CLIP = 1.0


# ---- decode ----------------------------------------------------------------------------------------------------------

def decode():
    """bench/sample.py, with a line for each figure as it is measured."""
    from bench import sample
    measured = sample.Run.time

    def time_and_emit(self, name, *args, **kwargs):
        measured(self, name, *args, **kwargs)
        row = self.rows[name]
        emit(decode=name, ms=1e3 * row["seconds"], tokens_per_second=row["tokens"] / row["seconds"],
             share_of_copy=row["bytes"] / row["seconds"] / row["bandwidth"] if row["bytes"] else None)

    with patch.object(sample.Run, "time", time_and_emit):
        result = sample.main(sample.Bench(out=Path(os.environ.get("GPU_OUT", ROOT / "results"))))
    for what, bound, value, _, direction in result["required"]:
        emit(decode="required", what=what, required=bound, value=value,
             met=value >= bound if direction == "least" else value <= bound)


# ---- train -----------------------------------------------------------------------------------------------------------

def train(name, micro_batch=8, device=None, shape=None, compiled=True):
    """Emit the contestant's loss without dropout, and a line per step and a summary of each way to run it."""
    name = fastest() if name == "ours-fastest" else name
    if name not in CONTESTANTS:
        raise UserError(f"{name}: the contestants are {', '.join(CONTESTANTS)}")
    micro_batch, device, shape = int(micro_batch), device or pick_device(), shape or GPTConfig()
    what = {"train": name, "micro_batch": micro_batch}
    gpu = device.type == "cuda"
    product = product_rate() if gpu else None

    with attempt(**what):
        torch.manual_seed(0)
        model, loss_of, compilable, kernels = contestant(name, shape, device)
        what["kernels"] = kernels
        batches = random_batches(shape, PARTS, micro_batch, device)
        emit(**what, parity=True, **loss_without_dropout(model, loss_of, *(a[:2] for a in batches[0])))
        for way in ("eager", "compiled") if name == "transformers" else ("compiled",):
            with attempt(**what, way=way):
                if way == "compiled" and compiled:
                    for module in compilable:
                        module.compile()
                steps = timed_steps(what | {"way": way}, model, loss_of, batches, device)
                summarize(what | {"way": way}, steps, PARTS * micro_batch * shape.n_positions, shape, product, gpu)
            model.zero_grad(set_to_none=True)          # what a step that ran out of memory has left
            gc.collect()


def fastest():
    """The faster of ours-triton and ours-sdpa, by the records written so far; ours-triton if there are none."""
    out = Path(os.environ.get("GPU_OUT", ROOT / "results"))
    records = having(read_records(out), ["train", "summary"]) if (out / "gpu.jsonl").is_file() else []
    speeds = {record["train"]: record["tokens_per_second"] for record in records if record["train"] in CONTESTANTS[:2]}
    return max(speeds, key=speeds.get, default=CONTESTANTS[0])


def product_rate():
    from bench.measure import ceilings
    product = ceilings()[1]
    torch.cuda.empty_cache()
    return product


def contestant(name, shape, device):
    """(model, loss of (ids_BT, targets_BT), modules to compile, what its kernels are)."""
    if name.startswith("ours-"):
        model = meta_model(shape).to_empty(device=device)
        kernels = attach_kernels(model, name.removeprefix("ours-"), device)
        loss_of, compilable, renamed = model, list(model.h), {}
    elif name == "plain":
        from bench.rivals import Plain
        with torch.device(device):
            model = Plain(shape)
        loss_of, compilable, renamed, kernels = model, [model], {}, "torch's operators"
    else:
        model, renamed = transformers_model(shape, device)
        compilable, kernels = [model], f"transformers {transformers_version()}, sdpa"

        def loss_of(ids_BT, targets_BT):     # with labels alone it would shift them and lose each window's last target
            return model(ids_BT, labels=targets_BT, shift_labels=targets_BT, use_cache=False).loss
    draw_weights(model, shape, device, renamed)
    return model.train(), loss_of, compilable, kernels


def transformers_version():
    import transformers
    return transformers.__version__


def transformers_model(shape, device):
    """(GPT2LMHeadModel, {our name: (its name, is it transposed?)})."""
    import transformers
    settings = transformers.GPT2Config(**asdict(shape), activation_function="gelu_pytorch_tanh",
                                       attn_implementation="sdpa")
    with torch.device(device):
        model = transformers.GPT2LMHeadModel(settings)
    names = [name for name, _ in meta_model(shape).named_parameters()]
    return model, {name: (GPT.stored_name(name), name.endswith(GPT.transposed)) for name in names}


def meta_model(shape):
    with torch.device("meta"):
        return GPT(shape)


@torch.no_grad()
def draw_weights(model, shape, device, renamed):
    """Fill the model with model.py's first weights of seed 0, drawn on the device, one tensor at a time."""
    parameters = dict(model.named_parameters())
    for name, value in meta_model(shape).initial_weights(0, device):
        theirs, transposed = renamed.get(name, (name, False))
        parameters[theirs].copy_(value.t() if transposed else value)


def random_batches(shape, count, windows, device):
    """[(ids_BT, targets_BT)] of random tokens, the same on every call."""
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randint(0, shape.vocab_size, (2, windows, shape.n_positions), device=device,
                          generator=generator).unbind() for _ in range(count)]


def loss_without_dropout(model, loss_of, ids_BT, targets_BT):
    """The loss and the gradient's norm of two windows, the same for every contestant within bf16's rounding."""
    model.eval()
    with autocast(ids_BT.device, "bfloat16"):
        loss = loss_of(ids_BT, targets_BT)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    model.train()
    return {"loss": loss.item(), "grad_norm": norm.item()}


def timed_steps(what, model, loss_of, batches, device):
    """[{phase: seconds}] of the steps after the first, each emitted when it ends."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    clip = clip_gradients if what["train"].startswith("ours") else torch.nn.utils.clip_grad_norm_
    steps = []
    for step in range(1 + STEPS):
        ends = [now(device)]

        # forward and backward of all micro-batches
        total = torch.zeros((), device=device)
        for ids_BT, targets_BT in batches:
            with autocast(device, "bfloat16"):
                loss = loss_of(ids_BT, targets_BT) / len(batches)
            loss.backward()
            total += loss.detach()
        ends.append(now(device))

        # clip, then update
        clip(model.parameters(), CLIP)
        ends.append(now(device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends.append(now(device))

        phases = dict(zip(("forward_backward", "clip", "adamw"), (b - a for a, b in zip(ends, ends[1:], strict=False)),
                          strict=True))
        emit(**what, step=step, loss=total.item(), **{f"{phase}_ms": 1e3 * s for phase, s in phases.items()})
        steps.append(phases)
    return steps[1:]


def now(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def summarize(what, steps, tokens, shape, product, gpu):
    """Emit tokens per second, and the share of a matrix product's rate, with the optimizer and without it."""
    phases = {phase: statistics.median(step[phase] for step in steps) for phase in steps[0]}
    step = statistics.median(sum(step.values()) for step in steps)
    flops = tokens * shape.flops_per_token(shape.n_positions)
    emit(**what, summary=True, tokens_per_second=tokens / step, step_ms=1e3 * step,
         **{f"{phase}_ms": 1e3 * seconds for phase, seconds in phases.items()},
         of_product=flops / step / product if product else None,
         of_product_without_optimizer=flops / phases["forward_backward"] / product if product else None,
         peak_gib=torch.cuda.max_memory_allocated() / 2**30 if gpu else None)


# ---- profile ---------------------------------------------------------------------------------------------------------

def profile(rows=30):
    """The GPU's time by kernel: of a training step of four layers, and of a token of BioMedLM's 32."""
    device = pick_device()
    with attempt(profile="train, 4 layers"):
        shape = replace(GPTConfig(), n_layer=4)
        model, loss_of, compilable, _ = contestant("ours-triton", shape, device)
        for module in compilable:
            module.compile()
        [(ids_BT, targets_BT)] = random_batches(shape, 1, 8, device)

        def step():
            with autocast(device, "bfloat16"):
                loss_of(ids_BT, targets_BT).backward()
            model.zero_grad(set_to_none=True)

        emit_profile("train, 4 layers", step, rows)
    with attempt(profile="token"), torch.inference_mode():
        from sample import KVCache, next_logits, one_token
        model = contestant("ours-torch", GPTConfig(), device)[0].bfloat16().eval()
        cache = KVCache(model.cfg, 1, 200, model.ln_f.weight)
        ids_BT = torch.ones(1, 64, dtype=torch.int64, device=device)
        next_logits(model, cache, ids_BT)
        emit_profile("token", partial(one_token(model, cache, True), ids_BT[:, :1]), rows)


def emit_profile(name, call, rows):
    """A line for each of the kernels that take the most time. (An operator's own row would count its kernels again.)"""
    for _ in range(2):
        call()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as trace:
        call()
        torch.cuda.synchronize()
    events = [event for event in trace.key_averages()
              if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation]
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:rows]:
        emit(profile=name, kernel=event.key[:160], calls=event.count, ms=event.self_device_time_total / 1e3)


if __name__ == "__main__":
    with speaking_to_the_user():
        {"decode": decode, "train": train, "profile": profile}[sys.argv[1]](*sys.argv[2:])
