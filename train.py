"""Pretraining: read tokens, predict the next one, 286,102 times.

Teaches the whole of it: a batch, a loss, a gradient, a step of AdamW; the schedule; accumulation and clipping; how a
run is watched, stopped and resumed with the same numbers.
Not here: the network (model.py), the order of the data (data.py), many processes (parallel.py), what survives a crash
(checkpoint.py), what one watches (monitor.py).

    python train.py demo                   # the miniature of `make demo`: data/demo -> out/demo
    python train.py laptop                 # a small model on real abstracts: data/pubmed -> out/laptop
    torchrun --standalone --nproc-per-node 8 train.py biomedlm --parallel fsdp       # the paper's run, on one node
    sbatch launch/biomedlm.slurm           # and on 16 nodes of 8 A100-40GB
    python train.py biomedlm --plan        # what that run needs and how long it takes; runs nothing
    torchrun --standalone --nproc-per-node 8 train.py biomedgpt --parallel fsdp      # Llama-2, trained further

Each step writes a line to OUT/log.jsonl. The same command again resumes from OUT's newest checkpoint, on any number of
processes; --restart begins anew. At the end OUT/model is a Hugging Face folder for sample.py and finetune_qa.py.
Bolton et al. 2024 (arXiv 2403.18421), section 3 and tables 5 and 6; "our choice" marks what the paper does not say.
"""
import gc
import json
import math
import shutil
import time
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from baselines import family_of, load_tokenizer
from data import Corpus, document_starts
from model import GPT, GPTConfig
from plumbing.common import UserError, parse_args, read_json, speaking_to_the_user, written_whole
from plumbing.huggingface import find_folder, matched
from plumbing.runtime import autocast, matrix_dtype, stop_on_signals
from training.checkpoint import Checkpoints
from training.monitor import Monitor
from training.parallel import average_gradients, device_mesh, join_world, set_weights, shard_model


@dataclass(frozen=True)
class Train:
    """Pretrain a GPT on token shards."""
    data: str = "data/pubmed"            # folder written by prepare/pubmed.py
    out: str = "out/biomedlm"            # log.jsonl, checkpoints/ and in the end model/
    model: GPTConfig = GPTConfig()       # its vocab_size and eos_token_id are taken from the data, where it says them
    init_from: str = ""                  # a folder, or a name on the hub: go on from its weights; --model is not read
    window: int = 0                      # tokens that are read at once; 0 is the model's n_positions
    steps: int = 286_102                 # 300 B tokens / 1,048,576
    epochs: float = 0.0                  # passes over the data; read where --steps is 0
    batch_size: int = 1024               # windows a step: 1,048,576 tokens
    micro_batch_size: int = 8            # windows at once; the rest of the batch is accumulated
    learning_rate: float = 1.6e-4        # the peak
    final_learning_rate: float = 1.6e-5  # the end of the cosine; our choice: a tenth
    warmup_steps: int = 100
    # The paper's 1.6e-5 is Composer's "decoupled" decay, p *= 1 - wd lr_t / lr_peak; torch does p *= 1 - wd lr_t:
    # the same with wd = 1.6e-5 / 1.6e-4 = 0.1, whatever the schedule. On all parameters, as in Composer's examples.
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0               # largest norm of the gradient; our choice
    separate_documents: bool = False     # hide the documents before it in the window from a document; the paper did not
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"    # of matrix products; auto: bfloat16 if it is native
    parallel: Literal["none", "ddp", "fsdp"] = "none"     # how torchrun's processes share the work: see parallel.py
    shard: int = 0                       # fsdp: processes that hold one copy of the model; 0 is all of them
    recompute_every: int = 0             # activation checkpointing of every n-th block; 0 is none: it fits 40 GB
    kernels: Literal["auto", "torch", "triton"] = "auto"     # auto: Triton's on an A100 or H100 and their kin
    compile: bool = True                 # torch.compile each block; wants a GPU or a C++ compiler
    eval_every: int = 1000               # steps
    eval_windows: int = 1024             # of the validation split, the same every time
    checkpoint_every: int = 1000         # steps; 0 for the end only
    keep_checkpoints: int = 2            # the newest ones
    max_skipped: int = 10                # steps in a row without a finite loss and gradient, before the run stops
    restart: bool = False                # discard OUT's log and checkpoints instead of resuming
    tensorboard: bool = False            # also write OUT/tensorboard
    wandb: bool = False                  # also log to Weights & Biases
    profile: bool = False                # write a trace of steps 3 to 5 to OUT/trace.json
    plan: bool = False                   # print what up to 128 GPUs would need and take, and run nothing

    @property
    def length(self):
        return self.window or self.model.n_positions


PRESETS = {
    "biomedlm": Train(),
    # BioMedGPT-LM-7B (arXiv 2308.09442): Llama 2 on 5.5 million papers of PubMed Central. Published: where it begins,
    # epochs, batch, window, rate. Our choice: AdamW as Llama 2 had it, the warm-up, a cosine to a tenth.
    "biomedgpt": Train(
        data="data/pmc", out="out/biomedgpt", init_from="meta-llama/Llama-2-7b-chat-hf", window=2048, steps=0, epochs=5,
        batch_size=192, micro_batch_size=3, learning_rate=2e-5, final_learning_rate=2e-6, warmup_steps=2000,
        recompute_every=1),
    "laptop": Train(
        out="out/laptop", model=GPTConfig(n_positions=256, n_embd=256, n_layer=6, n_head=4, embd_pdrop=0.0,
                                          attn_pdrop=0.0, resid_pdrop=0.0),
        steps=400, batch_size=16, micro_batch_size=16, learning_rate=2e-3, final_learning_rate=2e-4, warmup_steps=40,
        compile=False, eval_every=100, eval_windows=128, checkpoint_every=100),
    "demo": Train(
        data="data/demo", out="out/demo", model=GPTConfig(n_positions=128, n_embd=192, n_layer=4, n_head=3,
                                                          embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0),
        steps=800, batch_size=16, micro_batch_size=16, learning_rate=2e-3, final_learning_rate=2e-4, warmup_steps=50,
        compile=False, eval_every=200, eval_windows=128, checkpoint_every=400),
}


def main(cfg):
    """Train, and return the loss of every step taken by this call."""
    check(cfg)
    if cfg.plan:
        from launch.plan import print_plan
        return print_plan(replace(cfg, parallel="fsdp"))
    with join_world(cfg.parallel) as world:
        try:
            return train(cfg, world)
        finally:
            gc.enable(), gc.unfreeze()


def train(cfg, world):
    cfg = replace(cfg, dtype=matrix_dtype(cfg.dtype, world.device))
    per_process = rows_of(world, cfg)
    cfg = shaped(cfg)
    corpus, val = Corpus(cfg.data, "train", cfg.length, cfg.seed), Corpus(cfg.data, "val", cfg.length)
    cfg = replace(cfg, steps=cfg.steps or math.ceil(cfg.epochs * corpus.n_windows / cfg.batch_size))
    for split in (corpus, val):
        split.check_ids(cfg.model.vocab_size, world.rank, world.size)
    model = build(cfg, world)
    kernels = model.use_kernels(cfg.kernels, world.device)
    ddp = average_gradients(model, world, cfg.parallel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), eps=1e-8,
                                  weight_decay=cfg.weight_decay, fused=True)
    checkpoints = Checkpoints(cfg.out, world, cfg.keep_checkpoints)
    first = resume(cfg, world, checkpoints, model, optimizer)
    monitor = None
    if world.rank == 0:
        monitor = Monitor(cfg, world, first)
        monitor.introduce(corpus, val, sum(p.numel() for p in model.parameters()), kernels)
    losses, skipped, parts = [], 0, (per_process.stop - per_process.start) // cfg.micro_batch_size
    gc.collect(), gc.freeze(), gc.disable()       # 128 collectors that pause at different times make all wait for each
    with stop_on_signals() as signals, profiler(cfg, world) as profile:
        for step in range(first, cfg.steps):
            started = time.perf_counter()
            torch.manual_seed(zlib.crc32(f"{cfg.seed} {step} {world.rank}".encode()))    # dropout: of the step alone
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, cfg)
            loss = torch.zeros((), device=world.device)
            for start in range(per_process.start, per_process.stop, cfg.micro_batch_size):
                rows = slice(start, start + cfg.micro_batch_size)
                if ddp is not model:      # average once, after the last part. TRAP: the forward pass must know it, too
                    ddp.require_backward_grad_sync = rows.stop == per_process.stop
                micro_loss = loss_of(ddp, corpus.batch(step, cfg.batch_size, rows), cfg, world) / parts
                micro_loss.backward()
                loss += micro_loss.detach()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
            grad_norm = grad_norm.full_tensor() if isinstance(grad_norm, DTensor) else grad_norm
            stats = world.sum(torch.stack([loss / world.size, loss.new_tensor(float(bool(signals)))]))
            losses.append(stats[0].item())
            stop = stats[1].item() > 0                        # one process was told to: all stop after the same step
            values = {"loss": losses[-1], "grad_norm": grad_norm.item(), "lr": learning_rate(step, cfg)}
            if math.isfinite(values["loss"] + values["grad_norm"]):
                optimizer.step()
                skipped = 0
            else:                                             # the same numbers, so the same decision, everywhere
                skipped += 1
                values["skipped"] = skipped
            optimizer.zero_grad()
            seconds, done = time.perf_counter() - started, step + 1
            if done % cfg.eval_every == 0 or done == cfg.steps:
                values |= evaluate(model, val, cfg, world)
            if monitor:
                monitor.write(step, values | monitor.speed(step, seconds))
            if skipped > cfg.max_skipped:
                raise UserError(f"{skipped} steps in a row had no finite loss and gradient, the last {step}; "
                                f"lower --learning-rate, or look at the data. {cfg.out} goes on from its checkpoint")
            if done == cfg.steps or stop or (cfg.checkpoint_every and done % cfg.checkpoint_every == 0):
                checkpoints.save(done, model, optimizer, settings(cfg))
            if done % 1000 == 0:
                gc.collect()
            profile.step()
            if stop and done < cfg.steps:
                checkpoints.finish()
                raise KeyboardInterrupt(f"saved after step {step}; the same command goes on from there")
    checkpoints.finish()
    save_model(cfg, world, model)
    if monitor:
        monitor.close()
    return losses


def rows_of(world, cfg):
    """The rows of every batch that this process reads."""
    if cfg.batch_size % (world.size * cfg.micro_batch_size):
        raise UserError(f"--batch-size {cfg.batch_size} is no multiple of {world.size} processes x "
                        f"--micro-batch-size {cfg.micro_batch_size}; the batch is accumulated from equal parts")
    return world.share(cfg.batch_size)


def build(cfg, world):
    """The model on this process's device: whole, or its slices; the same weights for every number of processes."""
    model, tensors = opened(cfg)
    for i, block in enumerate(model.h):
        block.recompute = cfg.recompute_every > 0 and i % cfg.recompute_every == 0
        if cfg.compile:
            block.compile()
    if cfg.parallel == "fsdp":
        shard_model(model, device_mesh(world, cfg.shard), cfg.dtype)
    model.to_empty(device=world.device)
    set_weights(model, matched(model, tensors, cfg.init_from) if cfg.init_from else
                model.initial_weights(cfg.seed, world.device))
    return model


def opened(cfg):
    """The network on the "meta" device, and the tensors of --init-from, not yet read."""
    if cfg.init_from:
        folder = find_folder(cfg.init_from)
        family = family_of(folder)
        if not issubclass(family, GPT):
            raise UserError(f"{folder}: no causal model; there is no next token for it to learn")
        return family.open(folder)
    with torch.device("meta"):
        return GPT(cfg.model), {}


def check(cfg):
    cfg.model.check()
    counted = () if cfg.steps == 0 < cfg.epochs else ("steps",)
    for name in (*counted, "batch_size", "micro_batch_size", "eval_every", "eval_windows", "keep_checkpoints"):
        if getattr(cfg, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(cfg, name)}; it must be at least 1")


def shaped(cfg):
    """The settings with the model's shape: that of --init-from, or the preset's with the vocabulary of the data."""
    path, model = Path(cfg.data) / "meta.json", opened(cfg)[0].cfg
    meta = read_json(path, "what prepare/ wrote about the shards") if path.is_file() else {}
    if meta and not cfg.init_from:
        model = replace(model, vocab_size=meta["vocab_size"], bos_token_id=meta["eos_id"], eos_token_id=meta["eos_id"])
    elif meta and (meta["vocab_size"] > model.vocab_size or meta["eos_id"] != model.eos_token_id):
        raise UserError(f"{path}: {meta['vocab_size']} tokens, and {meta['eos_id']} ends a text; in {cfg.init_from} "
                        f"there are {model.vocab_size}, and {model.eos_token_id} does. Write the shards with its "
                        "tokenizer")
    if cfg.length > model.n_positions:
        raise UserError(f"--window {cfg.window} is longer than the model's {model.n_positions} positions")
    return replace(cfg, model=model)


def loss_of(model, batch, cfg, world):
    """The mean loss of a batch, computed in cfg.dtype."""
    ids_BT, targets_BT = (a.to(world.device) for a in batch)
    doc_start_BT = document_starts(ids_BT, cfg.model.eos_token_id) if cfg.separate_documents else None
    with autocast(world.device, cfg.dtype if cfg.parallel != "fsdp" else "float32"):      # fsdp casts by itself
        return model(ids_BT, targets_BT, doc_start_BT=doc_start_BT)


def learning_rate(step, cfg):
    """Linear warmup, then half a cosine down to the final rate."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * cosine


@torch.no_grad()
def evaluate(model, val, cfg, world):
    """Mean loss in nats a token over fixed windows, shared by all processes; and in bits a byte, which other tokenizers
    can be compared by."""
    model.eval()
    starts, total = val.spread(cfg.eval_windows), torch.zeros((), device=world.device, dtype=torch.float64)
    mine = starts[world.rank::world.size]
    for i in range(0, -(-len(starts) // world.size), cfg.micro_batch_size):
        # Every part has the same shape, for which torch.compile has its graph, and fsdp needs all processes in every
        # forward pass: what is missing is the first window again, and counts nothing.
        part = mine[i:i + cfg.micro_batch_size]
        ids_BT, targets_BT = val.cut((part + cfg.micro_batch_size * starts[:1])[:cfg.micro_batch_size])
        targets_BT[max(1, len(part)):] = -1
        total += loss_of(model, (ids_BT, targets_BT), cfg, world).double() * len(part)
    model.train()
    loss, bytes_per_token = world.sum(total).item() / len(starts), val.bytes_per_token()
    return {"val_loss": loss} | ({"bits_per_byte": loss / math.log(2) / bytes_per_token} if bytes_per_token else {})


# Settings that may differ when a run goes on: they do not change what is learned, or (steps) are meant to be extended.
FREE = {"out", "data", "steps", "epochs", "micro_batch_size", "parallel", "shard", "recompute_every", "kernels",
        "compile", "eval_every", "eval_windows", "checkpoint_every", "keep_checkpoints", "max_skipped", "restart",
        "tensorboard", "wandb", "profile", "plan"}


def settings(cfg):
    return asdict(cfg)


def resume(cfg, world, checkpoints, model, optimizer):
    """Fill model and optimizer from OUT's newest checkpoint, if there is one; returns the first step still to take."""
    out = Path(cfg.out)
    if cfg.restart and world.rank == 0:
        for old in (out / "checkpoints", out / "model", out / "tensorboard"):
            shutil.rmtree(old, ignore_errors=True)
        (out / "log.jsonl").unlink(missing_ok=True)
    world.wait()

    def accept(folder, saved):
        for name, now in settings(cfg).items():
            if name not in FREE and json.dumps(saved.get(name)) != json.dumps(now):
                raise UserError(f"{folder}: made with {name} = {saved.get(name)}, now it is {now}; "
                                "use the same, another --out, or --restart to discard it")
        if int(folder.name) > cfg.steps:
            raise UserError(f"{folder}: has already more than --steps {cfg.steps}; use another --out, or --restart")

    return checkpoints.load(model, optimizer, accept)


def profiler(cfg, world):
    """With --profile, a trace of three steps that chrome://tracing and perfetto.dev show; else nothing."""
    if not cfg.profile or world.rank:
        return NoProfile()
    return torch.profiler.profile(
        schedule=torch.profiler.schedule(wait=2, warmup=1, active=3, repeat=1),
        on_trace_ready=lambda trace: trace.export_chrome_trace(str(Path(cfg.out) / "trace.json")))


class NoProfile:
    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def step(self):
        pass


def save_model(cfg, world, model):
    """OUT/model: the Hugging Face folder, with the data's tokenizer beside the weights."""
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if world.rank:
        return
    plain = opened(cfg)[0]
    plain.load_state_dict(whole, assign=True)
    with written_whole(Path(cfg.out) / "model") as folder:
        plain.save_pretrained(folder)
        if (Path(cfg.data) / "tokenizer.json").is_file():
            load_tokenizer(Path(cfg.data)).save(folder)
        else:
            print(f"{cfg.data} holds no tokenizer.json, so {cfg.out}/model will have none; sample.py needs one")
    print(f"wrote {cfg.out}/model", flush=True)


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Train, PRESETS))
