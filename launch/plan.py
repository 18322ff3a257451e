"""`train.py biomedlm --plan`: the memory and time that a run needs, computed without a GPU. Also `small`, `biomedgpt`.

It runs the real training step (model, fully_shard, clipping, AdamW) of one process out of 128 on fake tensors, which
have shapes but no memory, and in a fake process group, and counts the allocations. The rest is arithmetic: days at
several utilisations, the network traffic of a block compared with the time in which it computes, and what other
machines need. A model whose weights, gradients and moments fit one GPU of 24 GB is planned for one GPU.

Not counted: CUDA's context, NCCL's buffers, cuBLAS's workspaces, fragmentation. Leave 2 to 4 GiB for them.
"""
import importlib.util
import logging
import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from baselines import shape_of
from model import GPT
from plumbing.common import UserError
from training.parallel import World, device_mesh, set_recompute, shard_model


class Machine(NamedTuple):
    name: str
    gpus: int
    gib: float                  # memory per GPU, as torch sees it
    flops: float                # the data sheet's dense bf16 rate per GPU
    mfu: float                  # at which the time is computed


# What llm-foundry has published for a model of BioMedLM's size (MPT-3B) at length 1024: 54.8 % MFU on 128 A100-40GB,
# 10,731 tokens/s per GPU, and 27,046 tokens/s per H100, 45 %. For the 24 GB GPU 50 % is a guess.
PAPERS_MFU, BEST_PUBLISHED = 0.23, 0.548
PAPERS = Machine("128 x A100-40GB", 128, 39.4, 312e12, BEST_PUBLISHED)
OTHERS = (Machine("8 x A100-80GB", 8, 79.1, 312e12, BEST_PUBLISHED), Machine("8 x H100-80GB", 8, 79.1, 989e12, 0.45),
          Machine("1 x 24 GB (RTX 4090)", 1, 23.5, 165e12, 0.50))
SINGLE = (OTHERS[2], Machine("1 x A100-40GB", 1, 39.4, 312e12, BEST_PUBLISHED),
          Machine("1 x H100-80GB", 1, 79.1, 989e12, 0.45))
GPUS_PER_NODE, SPARE_GIB = 8, 3.0                    # SPARE_GIB: for what is not counted here
TORCH = (2, 13)                                      # the first whose memory tracker counts correctly
PMC_TOKENS, GIB = 26e9, 2**30                        # PMC_TOKENS: in one of BioMedGPT-LM-7B's epochs
VARIANTS = ({"shard": 8}, {"recompute_every": 4}, {"recompute_every": 1}, {"micro_batch_size": 4},
            {"micro_batch_size": 12}, {"micro_batch_size": 16, "recompute_every": 2})
KINDS = {"SHARDED_PARAM": "weights, fp32, this GPU's slice", "SHARDED_GRAD": "gradients, fp32, its slice",
         "OPT": "AdamW's two moments, its slice", "UNSHARDED_PARAM": "weights of gathered blocks",
         "ALL_GATHER": "all-gather buffers", "UNSHARDED_GRAD": "gradients before they are summed",
         "REDUCE_SCATTER": "reduce-scatter buffers", "ACT": "activations", "TEMP": "temporaries of the backward pass",
         "INP": "token ids"}


def print_plan(cfg):
    """Print the report; returns the peak memory of cfg's settings, in GiB per GPU."""
    network, shape = shape_of(cfg.init_from) if cfg.init_from else (GPT, cfg.model)
    cfg = replace(cfg, model=shape)
    with torch.device("meta"):
        n = sum(p.numel() for p in network(shape).parameters())
    alone = 16 * n / GIB + SPARE_GIB < SINGLE[0].gib
    gpus = 1 if alone else math.gcd(cfg.batch_size, PAPERS.gpus)
    print(f"{n:,} parameters on {gpus} x A100-40GB; {cfg.batch_size} windows of {cfg.length} tokens per step, "
          f"{cfg.batch_size // gpus} per GPU, {cfg.micro_batch_size} at once")

    peak, kinds = step_memory(cfg, gpus, network)
    print(f"\nPeak memory per GPU: {peak:.2f} GiB of {PAPERS.gib}, less {SPARE_GIB} for what is not counted:")
    for kind, size in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {size:7.2f} GiB  {KINDS.get(kind, kind)}")
    print_time(cfg, gpus)
    if not alone:
        print_traffic(cfg, gpus)
        print_variants(cfg, gpus, network)
    print_machines(cfg, n, SINGLE if alone else OTHERS, network)
    return peak


def print_variants(cfg, gpus, network):
    print("\nOther settings, peak GiB per GPU:")
    for changes in VARIANTS:
        other = step_memory(replace(cfg, **changes), gpus, network)[0]
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
        print(f"  {other:6.2f}  {'fits' if other + SPARE_GIB < PAPERS.gib else 'does NOT fit'}  {flags}", flush=True)


def print_machines(cfg, n, machines, network):
    """For each machine, with the kernels and without: the largest micro-batch that fits, its memory, and the time."""
    print("\nOther machines, at the largest --micro-batch-size that fits:")
    per_window = {"torch's operators": window_memory(cfg, network)}
    if network.has_kernels and importlib.util.find_spec("triton"):
        per_window["Triton's kernels"] = window_memory(cfg, network, kernels=True)
    for machine in machines:
        for name, window in per_window.items():
            batch = cfg.batch_size // machine.gpus
            sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if batch % size == 0 and
                     peak_memory(n, machine.gpus, size * window) + SPARE_GIB < machine.gib]
            if sizes:
                peak = peak_memory(n, machine.gpus, sizes[-1] * window)
                days = tokens_of(cfg) * cfg.model.flops_per_token(cfg.length) / (
                    machine.gpus * machine.flops * machine.mfu) / 86400
                verdict = (f"--micro-batch-size {sizes[-1]:3}  {peak:5.1f} GiB   at {machine.mfu:.0%} MFU "
                           f"{24 * days:9,.1f} hours, {24 * days * machine.gpus:9,.0f} GPU-hours")
            else:
                verdict = f"does NOT fit: {peak_memory(n, machine.gpus, window):.1f} GiB of {machine.gib}"
            print(f"  {machine.name:21} {name:18} {verdict}", flush=True)


def peak_memory(n, gpus, activations):
    """GiB per GPU: weights and two moments in fp32, and either the activations, when the forward pass ends, or the
    gradients, when the backward pass does. One GPU alone also keeps a bf16 copy of the weights under autocast."""
    copies = 2 * n / GIB if gpus == 1 else 0.0
    return 12 * n / gpus / GIB + max(activations, 4 * n / gpus / GIB) + copies


def window_memory(cfg, network, kernels=False):
    """GiB of activations per window. Measured over 128 processes, where the slices of the weights are small."""
    with torch.device("meta"):
        n = sum(p.numel() for p in network(cfg.model).parameters())
    peak, _ = step_memory(cfg, PAPERS.gpus, network, kernels)
    return (peak - 12 * n / PAPERS.gpus / GIB) / cfg.micro_batch_size


def step_memory(cfg, gpus, network=GPT, kernels=False):
    """(peak, {kind: size at the peak}) of the second training step, in GiB: the first step has no moments yet."""
    if torch.__version__ < TORCH:
        raise UserError(f"--plan needs torch {TORCH[0]}.{TORCH[1]} (requirements.txt), this is {torch.__version__}; "
                        "older memory trackers also count tensors that never exist, half as much again")
    logging.disable(logging.WARNING)                 # the tracker warns that the tensors are fake
    # On a GPU attention's dropout stores no mask; on the CPU torch would choose a kernel that stores all scores.
    dtype = "bfloat16" if cfg.dtype == "auto" else cfg.dtype               # as on an A100
    cfg = replace(cfg, model=replace(cfg.model, attn_pdrop=0.0), compile=False, dtype=dtype)
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    try:
        mesh = device_mesh(World(0, gpus, torch.device("cpu")), cfg.shard)       # real numbers, so it is not faked
        with FakeTensorMode():
            return track(cfg, mesh, network, kernels)
    finally:
        dist.destroy_process_group()
        logging.disable(logging.NOTSET)


def track(cfg, mesh, network, kernels):
    with torch.device("meta"):
        model = network(cfg.model)
    if kernels:                                      # their operators have fake versions, which need no GPU
        from kernels import transformer
        for module in (model, *model.h):
            module.kernels = transformer
    set_recompute(model.h, cfg.recompute_every)
    shard_model(model, mesh, cfg.dtype)
    model.to_empty(device="cpu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, fused=True)
    ids_BT = torch.zeros(cfg.micro_batch_size, cfg.length, dtype=torch.int64)
    tracker = FSDPMemTracker(model, optimizer)
    tracker.track_inputs((ids_BT,))
    with tracker:
        for _ in range(2):
            tracker.reset_mod_stats()
            now = tracker.get_tracker_snapshot()     # TRAP: DTensor tries its sharding rules on whole tensors once
            tracker._peak_mem_snap = now
            tracker._peak_mem = {device: snapshot["Total"] for device, snapshot in now.items()}
            model(ids_BT, ids_BT).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    total = peak.pop("Total")
    kinds = {getattr(kind, "name", str(kind)): size / GIB for kind, size in peak.items() if size > total / 1000}
    return total / GIB, kinds


def tokens_of(cfg):
    return cfg.steps * cfg.batch_size * cfg.length or cfg.epochs * PMC_TOKENS


def print_time(cfg, gpus):
    flops, tokens = cfg.model.flops_per_token(cfg.length), tokens_of(cfg)
    print(f"\nTime for {tokens / 1e9:.3g} B tokens at 6N + 12LDT = {flops / 1e9:.2f} GFLOP each (the paper's 6.25 days "
          f"on 128 GPUs are {PAPERS_MFU:.0%}):")
    for mfu in (PAPERS_MFU, 0.45, BEST_PUBLISHED, 0.60):
        rate = mfu * PAPERS.flops / flops
        step = cfg.batch_size * cfg.length / gpus / rate
        print(f"  {mfu:5.1%} MFU  {rate:7,.0f} tokens/s per GPU  {step:5.2f} s per step  "
              f"{tokens / gpus / rate / 86400:5.2f} days")
    print(f"llm-foundry has published {BEST_PUBLISHED:.1%} for a model of BioMedLM's size on 128 A100-40GB. This "
          "repository's speed is unmeasured;\nonly a run above that figure may be called faster.")


def print_traffic(cfg, gpus):
    """Compare the data that one block moves into a node with the time in which the block computes.

    Sharded over all GPUs: bf16 weights for each pass, fp32 gradients once. Sharded within a node (--shard 8): no
    weights, but an all-reduce of each slice's gradients between the nodes, which moves them twice.
    """
    m, nodes = cfg.model, gpus / GPUS_PER_NODE
    weights = m.block_weights
    flops = cfg.micro_batch_size * cfg.length * (2 * weights + 4 * m.n_embd * cfg.length)
    forward, backward = 1e3 * flops / (0.55 * PAPERS.flops), 2e3 * flops / (0.55 * PAPERS.flops)
    print(f"\nNetwork and compute time of a block at 55 % MFU ({forward:.1f} ms forward, {backward:.1f} ms backward) "
          "and 70 % of the line rate:")
    for name, gather, reduce in (("sharded over all GPUs", 2 * weights, 4 * weights),
                                 ("--shard 8, in a node ", 0, 2 * 4 * weights * (1 - 1 / nodes))):
        for gigabits in (400, 1600):
            there, back = (1e3 * size * 8 / (0.7e9 * gigabits) for size in (gather, gather + reduce))
            verdict = "hidden" if there < forward and back < backward else "NOT hidden"
            print(f"  {name}  {gigabits:5} Gb/s per node: {there:5.1f} ms forward, {back:5.1f} ms backward: {verdict}")
