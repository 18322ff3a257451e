"""`train.py biomedlm --plan`: the memory and time that a run needs, computed without a GPU. Also `biomedgpt`.

It runs the real training step (model, fully_shard, clipping, AdamW) of one process out of 128 on fake tensors, which
have shapes but no memory, and in a fake process group, and counts the allocations. The rest is arithmetic: days at
several utilisations, and the network traffic of a block compared with the time in which it computes.

Not counted: CUDA's context, NCCL's buffers, cuBLAS's workspaces, fragmentation. Leave 2 to 4 GiB for them.
"""
import logging
import math
from dataclasses import replace

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from baselines import shape_of
from model import GPT
from plumbing.common import UserError
from training.parallel import World, device_mesh, shard_model

GPUS, GPUS_PER_NODE, PEAK_FLOPS = 128, 8, 312e12     # A100-40GB, the paper's hardware
CAPACITY_GIB, SPARE_GIB = 39.4, 3.0                  # what nvidia-smi shows; for what is not counted here
TORCH = (2, 13)                                      # the first whose memory tracker counts correctly
PAPERS, GIB = 26e9, 2**30                            # tokens in one of BioMedGPT-LM-7B's epochs
VARIANTS = ({"shard": 8}, {"recompute_every": 4}, {"recompute_every": 1}, {"micro_batch_size": 4},
            {"micro_batch_size": 12}, {"micro_batch_size": 16, "recompute_every": 2})
KINDS = {"SHARDED_PARAM": "weights, fp32, this GPU's slice", "SHARDED_GRAD": "gradients, fp32, its slice",
         "OPT": "AdamW's two moments, its slice", "UNSHARDED_PARAM": "weights of gathered blocks",
         "ALL_GATHER": "all-gather buffers", "UNSHARDED_GRAD": "gradients before they are summed",
         "REDUCE_SCATTER": "reduce-scatter buffers", "ACT": "activations", "TEMP": "temporaries of the backward pass",
         "INP": "token ids"}


def print_plan(cfg):
    """Print the report; returns the peak memory of cfg's settings, in GiB per GPU."""
    gpus = math.gcd(cfg.batch_size, GPUS)
    network, shape = shape_of(cfg.init_from) if cfg.init_from else (GPT, cfg.model)
    cfg = replace(cfg, model=shape)
    with torch.device("meta"):
        n = sum(p.numel() for p in network(shape).parameters())
    print(f"{n:,} parameters on {gpus} x A100-40GB; {cfg.batch_size} windows of {cfg.length} tokens per step, "
          f"{cfg.batch_size // gpus} per GPU, {cfg.micro_batch_size} at once")
    peak, kinds = step_memory(cfg, gpus, network)
    print(f"\nPeak memory per GPU: {peak:.2f} GiB of {CAPACITY_GIB}, less {SPARE_GIB} for what is not counted:")
    for kind, size in sorted(kinds.items(), key=lambda item: -item[1]):
        print(f"  {size:7.2f} GiB  {KINDS.get(kind, kind)}")
    print_time(cfg, gpus)
    print_traffic(cfg, gpus)
    print("\nOther settings, peak GiB per GPU:")
    for changes in VARIANTS:
        other = step_memory(replace(cfg, **changes), gpus, network)[0]
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
        print(f"  {other:6.2f}  {'fits' if other + SPARE_GIB < CAPACITY_GIB else 'does NOT fit'}  {flags}", flush=True)
    return peak


def step_memory(cfg, gpus, network=GPT):
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
            return track(cfg, mesh, network)
    finally:
        dist.destroy_process_group()
        logging.disable(logging.NOTSET)


def track(cfg, mesh, network):
    with torch.device("meta"):
        model = network(cfg.model)
    for i, block in enumerate(model.h):
        block.recompute = cfg.recompute_every > 0 and i % cfg.recompute_every == 0
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
    kinds = {getattr(kind, "name", str(kind)): size / GIB for kind, size in peak.items() if size > GIB / 100}
    return kinds.pop("Total"), kinds


def print_time(cfg, gpus):
    flops = cfg.model.flops_per_token(cfg.length)
    tokens = cfg.steps * cfg.batch_size * cfg.length or cfg.epochs * PAPERS
    print(f"\nTime for {tokens / 1e9:.0f} B tokens at 6N + 12LDT = {flops / 1e9:.2f} GFLOP each (BioMedLM's 6.25 days "
          "are 23 %):")
    for mfu in (0.23, 0.45, 0.55, 0.60):
        rate = mfu * PEAK_FLOPS / flops
        step = cfg.batch_size * cfg.length / gpus / rate
        print(f"  {mfu:4.0%} MFU  {rate:7,.0f} tokens/s per GPU  {step:5.2f} s per step  "
              f"{tokens / gpus / rate / 86400:5.2f} days")


def print_traffic(cfg, gpus):
    """Compare the data that one block moves into a node with the time in which the block computes.

    Sharded over all GPUs: bf16 weights for each pass, fp32 gradients once. Sharded within a node (--shard 8): no
    weights, but an all-reduce of each slice's gradients between the nodes, which moves them twice.
    """
    m, nodes = cfg.model, gpus / GPUS_PER_NODE
    weights = m.block_weights
    flops = cfg.micro_batch_size * cfg.length * (2 * weights + 4 * m.n_embd * cfg.length)
    forward, backward = 1e3 * flops / (0.55 * PEAK_FLOPS), 2e3 * flops / (0.55 * PEAK_FLOPS)
    print(f"\nNetwork and compute time of a block at 55 % MFU ({forward:.1f} ms forward, {backward:.1f} ms backward) "
          "and 70 % of the line rate:")
    for name, gather, reduce in (("sharded over all GPUs", 2 * weights, 4 * weights),
                                 ("--shard 8, in a node ", 0, 2 * 4 * weights * (1 - 1 / nodes))):
        for gigabits in (400, 1600):
            there, back = (1e3 * size * 8 / (0.7e9 * gigabits) for size in (gather, gather + reduce))
            verdict = "hidden" if there < forward and back < backward else "NOT hidden"
            print(f"  {name}  {gigabits:5} Gb/s per node: {there:5.1f} ms forward, {back:5.1f} ms backward: {verdict}")
