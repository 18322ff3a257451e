"""Pretraining: read tokens, predict the next one, 286,102 times.

Teaches all of it: a batch, a loss, a gradient, a step of AdamW; the schedule of the learning rate; accumulation and
clipping; how a run is watched, stopped, and resumed with the same numbers.
Not here: the network (model.py), the order of the data (data.py), many processes (training/parallel.py), checkpoints
(training/checkpoint.py), logs (training/monitor.py).

    python train.py demo                   # the miniature of `make demo`: data/demo -> out/demo
    python train.py laptop                 # a small model on real abstracts: data/pubmed -> out/laptop
    python train.py small                  # GPT-2 small's shape, for one GPU
    torchrun --standalone --nproc-per-node 8 train.py biomedlm --parallel fsdp       # the paper's run, on one node
    sbatch launch/biomedlm.slurm           # the same on 16 nodes of 8 A100-40GB
    python train.py biomedlm --plan        # its memory and days; runs nothing
    torchrun --standalone --nproc-per-node 8 train.py biomedgpt --parallel fsdp      # Llama-2, trained further

Each step writes a line to OUT/log.jsonl. The same command resumes from OUT's newest checkpoint, on any number of
processes; --restart begins anew. At the end OUT/model is a Hugging Face folder for sample.py and finetune_qa.py.
Bolton et al. 2024 (arXiv 2403.18421), section 3 and tables 5 and 6; "our choice" marks what the paper does not say.
"""
import plumbing.interrupt  # noqa: F401, I001  first, for Ctrl-C during the imports
import gc
import math
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from baselines import family_of, load_tokenizer
from data import Corpus, document_starts, read_meta
from model import GPT, GPTConfig
from plumbing.common import (
    UserError,
    check_ranges,
    collecting_by_hand,
    fixed_settings,
    free,
    run_script,
    say_next,
    write_json,
    written_whole,
)
from plumbing.huggingface import find_folder, matched, write_model_card
from plumbing.runtime import Device, autocast, matrix_dtype, precise_dtype, stop_on_signals
from training import parallel
from training.checkpoint import Checkpoints, set_aside, the_only_run, whole_weights
from training.monitor import Monitor, Outliers


@dataclass(frozen=True)
class Train:
    """Pretrain a GPT on token shards. Settings that are `free` may change when a run resumes."""
    data: str = free("data/pubmed")            # folder written by prepare/pubmed.py
    out: str = free("out/biomedlm")            # log.jsonl, checkpoints/ and in the end model/
    model: GPTConfig = GPTConfig()       # vocab_size and eos_token_id are taken from the data's meta.json
    init_from: str = ""                  # a folder or a name on the hub: begin with its weights; --model is not read
    window: int = 0                      # tokens read at once; 0 is the model's n_positions
    steps: int = free(286_102)           # 300 B tokens / 1,048,576; 0 to count --epochs instead
    epochs: float = free(0.0)            # passes over the data, where --steps is 0
    batch_size: int = 1024               # windows per step: 1,048,576 tokens
    micro_batch_size: int = free(8)      # windows at once; the rest of the batch is accumulated
    learning_rate: float = 1.6e-4        # the peak
    final_learning_rate: float = 1.6e-5  # the end of the cosine; our choice: a tenth
    warmup_steps: int = 100
    # The paper's 1.6e-5 is Composer's "decoupled" decay, p *= 1 - wd lr_t / lr_peak. Torch does p *= 1 - wd lr_t, which
    # is the same with wd = 1.6e-5 / 1.6e-4 = 0.1. It applies to all parameters, as in Composer's examples.
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0               # largest norm of the gradient, 0 for no limit; our choice
    skip_outliers: float = 0.0           # skip steps whose loss or norm is so many deviations high; 0 skips none
    separate_documents: bool = False     # a token does not see other documents of its window; the paper's did
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"    # of matrix products; auto: bfloat16 if it is native
    device: Device = free("auto")
    parallel: Literal["none", "ddp", "fsdp"] = free("none")   # how torchrun's processes share the work
    shard: int = free(0)                 # fsdp: processes that hold one copy of the model; 0 is all of them
    recompute_every: int = free(0)       # activation checkpointing of every n-th block; 0 is none: it fits 40 GB
    kernels: Literal["auto", "torch", "triton"] = free("auto")     # auto: Triton's on an A100 or H100 and similar GPUs
    compile: bool = free(True)           # torch.compile each block; needs a GPU or a C++ compiler
    eval_every: int = free(1000)         # steps
    eval_windows: int = free(1024)       # of the validation split, always the same
    checkpoint_every: int = free(1000)   # steps; 0 for the end only
    keep_checkpoints: int = free(2)      # the newest ones
    max_skipped: int = free(10)          # steps in a row that may be skipped before the run stops
    restart: bool = free(False)          # begin anew; an earlier run's checkpoints go when the first new one is saved
    tensorboard: bool = free(False)      # also write OUT/tensorboard
    wandb: bool = free(False)            # also log to Weights & Biases
    plan: bool = free(False)             # print what GPUs would need and take, and run nothing

    @property
    def length(self):
        return self.window or self.model.n_positions


PRESETS = {
    "biomedlm": Train(),
    # BioMedGPT-LM-7B (arXiv 2308.09442): Llama 2 on 5.5 million papers of PubMed Central. Published: the first weights,
    # epochs, batch, window, rate. Our choice: Llama 2's AdamW, the warm-up, a cosine to a tenth.
    "biomedgpt": Train(
        data="data/pmc", out="out/biomedgpt", init_from="meta-llama/Llama-2-7b-chat-hf", window=2048, steps=0, epochs=5,
        batch_size=192, micro_batch_size=3, learning_rate=2e-5, final_learning_rate=2e-6, warmup_steps=2000,
        recompute_every=1),
    # GPT-2 small's shape with our vocabulary, the size of the paper's ablations, for one GPU. Our choice: all rates.
    "small": Train(
        out="out/small", model=GPTConfig(n_embd=768, n_layer=12, n_head=12), steps=20_000, batch_size=128,
        micro_batch_size=16, learning_rate=6e-4, final_learning_rate=6e-5, warmup_steps=400),
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
    with parallel.join_world(cfg.parallel, cfg.device) as world:
        return train(cfg, world)


def train(cfg, world):
    # ---- Data, model, optimizer ----
    network, cfg, tensors = opened(replace(cfg, dtype=matrix_dtype(cfg.dtype, world.device)), world)
    cfg, corpus, val = read_data(cfg, world)
    model = build(cfg, world, network, tensors)
    kernels = model.use_kernels(cfg.kernels, world.device)
    replica = parallel.average_gradients(model, world, cfg.parallel)
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, betas=(cfg.beta1, cfg.beta2), eps=1e-8,
                                  weight_decay=cfg.weight_decay, fused=world.device.type != "mps")

    losses, skipped, last_evaluation = [], 0, {}
    with the_only_run(cfg.out, world), stop_on_signals() as signals, collecting_by_hand():
        # ---- Resume ----
        if cfg.restart:
            set_aside(cfg.out, world, "checkpoints", "log.jsonl", "tensorboard")
        checkpoints = Checkpoints(cfg.out, world, cfg.keep_checkpoints)
        fixed = fixed_settings(cfg) | {"corpus checksum": corpus.fingerprint()}
        first, saved = checkpoints.load(model, optimizer, fixed, cfg.steps)
        outliers = Outliers(cfg.skip_outliers, saved.get("recent_steps", []))
        monitor = Monitor(cfg, world, first, corpus, val, model, kernels)

        for step in range(first, cfg.steps):
            started = time.perf_counter()
            values = {"lr": learning_rate(step, cfg)}
            for group in optimizer.param_groups:
                group["lr"] = values["lr"]

            # ---- Forward and backward ----
            loss = gradient_of(replica, corpus, step, cfg, world)
            grad_norm = parallel.clip_gradients(model.parameters(), cfg.grad_clip)

            # ---- Agree: from here on, every process has the same numbers and takes the same decisions ----
            loss, stop = world.vote(loss / world.size, signals)
            losses.append(loss)
            values |= {"loss": loss, "grad_norm": grad_norm}

            # ---- Update ----
            if math.isfinite(loss + grad_norm) and not outliers.reject(loss, grad_norm):
                optimizer.step()
                skipped = 0
            else:
                skipped += 1
                values["skipped"] = skipped
            optimizer.zero_grad()

            # ---- Evaluate and log ----
            seconds, done = time.perf_counter() - started, step + 1
            if done % cfg.eval_every == 0 or done == cfg.steps:
                last_evaluation = evaluate(model, val, cfg, world)
                values |= last_evaluation
            monitor.write(step, values, seconds)
            if skipped > cfg.max_skipped:
                raise UserError(f"{skipped} steps in a row were skipped for want of a finite loss and gradient, the "
                                f"last {step}; lower --learning-rate, or look at the data. {cfg.out} resumes from its "
                                "newest checkpoint")

            # ---- Save, but not while steps are skipped: broken weights must not push out the last good checkpoint ----
            due = stop or (cfg.checkpoint_every and done % cfg.checkpoint_every == 0)
            if done == cfg.steps or (due and not skipped):
                settings = fixed | {"recent_steps": list(outliers.values)}
                checkpoints.save(done, model, optimizer, settings, last_evaluation)
            if stop and done < cfg.steps:
                checkpoints.finish()
                saved = "not saved, because steps are being skipped" if skipped else f"saved after step {step}"
                raise KeyboardInterrupt(f"{saved}; the same command resumes from the newest checkpoint")
            if done % 1000 == 0:
                gc.collect()

        # ---- The end: a Hugging Face folder ----
        checkpoints.finish()
        if not last_evaluation:                  # a finished run was started again, and has taken no step
            last_evaluation = evaluate(model, val, cfg, world)
        monitor.close()
        save_model(cfg, world, model, network, last_evaluation)
    return losses


def gradient_of(replica, corpus, step, cfg, world):
    """Add up the gradients of this process's rows, a micro-batch at a time; returns their mean loss.

    Dropout's seed depends on the step and the process, so a run that is resumed on as many processes draws the same
    masks. (On another number the losses differ as for another seed; without dropout they agree to six digits.)
    """
    rows = world.share(cfg.batch_size)
    parts = (rows.stop - rows.start) // cfg.micro_batch_size
    torch.manual_seed(zlib.crc32(f"{cfg.seed} {step} {world.rank}".encode()))

    loss = torch.zeros((), device=world.device)
    for start in range(rows.start, rows.stop, cfg.micro_batch_size):
        part = slice(start, start + cfg.micro_batch_size)
        if cfg.parallel == "ddp":      # average once, after the last part; set before the forward pass, which reads it
            replica.require_backward_grad_sync = part.stop == rows.stop
        part_loss = loss_of(replica, corpus.batch(step, cfg.batch_size, part), cfg, world) / parts
        part_loss.backward()
        loss += part_loss.detach()
    return loss


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
    """Mean loss over fixed windows, shared by processes: in nats per token, and bits per byte to compare tokenizers."""
    model.eval()
    starts = val.spread(cfg.eval_windows)
    total = torch.zeros((), device=world.device, dtype=precise_dtype(world.device))

    mine = starts[world.rank::world.size]
    for i in range(0, -(-len(starts) // world.size), cfg.micro_batch_size):
        # All parts have the shape that torch.compile has seen, and fsdp needs all processes in every forward pass. So
        # missing windows are replaced by the first one, and their targets do not count.
        part = mine[i:i + cfg.micro_batch_size]
        ids_BT, targets_BT = val.cut((part + cfg.micro_batch_size * starts[:1])[:cfg.micro_batch_size])
        targets_BT[max(1, len(part)):] = -1
        total += loss_of(model, (ids_BT, targets_BT), cfg, world).to(total.dtype) * len(part)

    model.train()
    loss, bytes_per_token = world.sum(total).item() / len(starts), val.bytes_per_token()
    return {"val_loss": loss} | ({"bits_per_byte": loss / math.log(2) / bytes_per_token} if bytes_per_token else {})


# ---- Setting up ----


def check(cfg):
    cfg.model.check()
    check_ranges(cfg, ("batch_size", "micro_batch_size", "eval_every", "eval_windows", "keep_checkpoints"),
                 beta1=(0, 1), beta2=(0, 1))
    if not cfg.steps and not cfg.epochs:
        raise UserError("--steps is 0 and so is --epochs; one of them says when to stop")


def opened(cfg, world):
    """(class, settings with the model's shape, tensors): those of --init-from, mapped but not read; or a GPT's, without
    tensors, for the data's vocabulary."""
    network, shape, tensors = GPT, cfg.model, {}
    if cfg.init_from:
        folder = find_folder(cfg.init_from)
        network = family_of(folder)
        if not issubclass(network, GPT):
            raise UserError(f"{folder}: an encoder, which cannot learn to predict the next token")
        model, tensors = network.open(folder)
        shape = model.cfg

    meta = read_meta(cfg.data)
    size, eos = meta.get("vocab_size"), meta.get("eos_id")
    if not meta:
        if cfg.separate_documents and not cfg.init_from:
            raise UserError(f"{cfg.data}: no meta.json, so --separate-documents does not know which token ends a "
                            'document; write one there: {"vocab_size": ..., "eos_id": ...}')
        if world.rank == 0:
            print(f"{cfg.data}: no meta.json; taking {shape.vocab_size} tokens, {shape.eos_token_id} ends a text")
    elif None in (size, eos):
        raise UserError(f"{cfg.data}/meta.json: needs vocab_size and eos_id")
    elif not cfg.init_from:
        shape = replace(shape, vocab_size=size, bos_token_id=eos, eos_token_id=eos)
    elif size > shape.vocab_size or eos != shape.eos_token_id:
        raise UserError(f"{cfg.data}/meta.json: {size} tokens, and {eos} ends a text; {cfg.init_from} has "
                        f"{shape.vocab_size}, and {shape.eos_token_id} ends one. Write the shards with its tokenizer")
    return network, replace(cfg, model=shape), tensors


def read_data(cfg, world):
    """(settings with the number of steps, training corpus, validation corpus), checked against the model."""
    if cfg.length > cfg.model.n_positions:
        raise UserError(f"--window {cfg.window} is longer than the model's {cfg.model.n_positions} positions")
    if cfg.batch_size % (world.size * cfg.micro_batch_size):
        raise UserError(f"--batch-size {cfg.batch_size} is no multiple of {world.size} processes x "
                        f"--micro-batch-size {cfg.micro_batch_size}; the batch is accumulated from equal parts")
    corpus, val = Corpus(cfg.data, "train", cfg.length, cfg.seed), Corpus(cfg.data, "val", cfg.length)
    for split in (corpus, val):
        split.check_ids(cfg.model.vocab_size, world.rank, world.size)
    steps = cfg.steps or math.ceil(cfg.epochs * corpus.n_windows / cfg.batch_size)
    return replace(cfg, steps=steps), corpus, val


def build(cfg, world, network, tensors):
    """The model on this process's device: whole, or its slices; the same weights for every number of processes."""
    with torch.device("meta"):
        model = network(cfg.model)
    parallel.set_recompute(model.h, cfg.recompute_every)
    if cfg.compile:
        for block in model.h:
            block.compile()
    if cfg.parallel == "fsdp":
        parallel.shard_model(model, parallel.device_mesh(world, cfg.shard), cfg.dtype)
    model.to_empty(device=world.device)
    parallel.set_weights(model, matched(model, tensors, cfg.init_from) if cfg.init_from else
                         model.initial_weights(cfg.seed, world.device))
    return model


def save_model(cfg, world, model, network, last_evaluation):
    """OUT/model: the Hugging Face folder, with the data's tokenizer and a model card beside the weights."""
    weights = whole_weights(model)
    if world.rank:
        return
    with torch.device("meta"):
        plain = network(cfg.model)
    plain.load_state_dict(weights, assign=True)
    meta = read_meta(cfg.data)
    training = {"steps": cfg.steps, "tokens read": cfg.steps * cfg.batch_size * cfg.length,
                "first weights": cfg.init_from or "random", "learning rate": cfg.learning_rate,
                "windows per step": cfg.batch_size, "seed": cfg.seed}
    with written_whole(Path(cfg.out) / "model") as folder:
        plain.save_pretrained(folder)
        if (Path(cfg.data) / "tokenizer.json").is_file():
            load_tokenizer(Path(cfg.data)).save(folder)
        else:
            print(f"{cfg.data} holds no tokenizer.json, so {cfg.out}/model will have none; sample.py needs one")
        if "excluded" in meta:                   # the test sets that the text was kept free of
            write_json(folder / "pretraining.json", {"excluded": meta["excluded"]})
        write_model_card(folder, Path(cfg.out).name, {
            "Training": training, "Text": meta.get("train"), "On held-out text": last_evaluation})
    print(f"wrote {cfg.out}/model", flush=True)
    say_next("sample.py", "--model", f"{cfg.out}/model")


if __name__ == "__main__":
    run_script(main, Train, PRESETS)
