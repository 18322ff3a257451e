"""One model on many GPUs: three ways to share the work, chosen by one setting.

    none    one process
    ddp     every process holds the whole model and reads its own rows; gradients are averaged
    fsdp    every process holds a slice of everything (ZeRO-3); a block is gathered before it is used, then freed.
            With --shard N the slices are spread over N neighbours, and each such group holds a copy (HSDP): most of
            the traffic stays inside a node

Teaches why 2.7 B parameters need this: fp32 weights, gradients and two moments take 16 bytes per parameter, 41.5 GB; a
128th of them is 0.3 GB. And why the result is the same: the same rows, the same gradient.
Not here: what is computed (model.py), the loop (train.py).
"""
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from plumbing.common import UserError
from plumbing.runtime import keep_memory, pick_device


@dataclass(frozen=True)
class World:
    """This process among its equals."""
    rank: int
    size: int
    device: torch.device

    def sum(self, tensor):
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, total):
        """The part of range(total) that is this process's: contiguous, and the same in every run of this size."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def gather(self, values):
        """The lists of all processes, one behind the other."""
        lists = [values] * self.size
        if self.size > 1:
            dist.all_gather_object(lists, values)
        return [value for of_rank in lists for value in of_rank]

    def vote(self, loss, signals):
        """(the sum of the processes' losses, whether any of them received a signal): so all stop at the same step."""
        stop = loss.new_tensor(float(bool(signals)))
        total, stops = self.sum(torch.stack([loss, stop])).tolist()
        return total, stops > 0

    def wait(self):
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(parallel, device="auto"):
    """Yield this process's World: it is one of those that torchrun started, or alone."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if parallel == "none" and size > 1:
        raise UserError(f"torchrun started {size} processes, but --parallel is none; choose ddp or fsdp")
    if parallel != "none" and "RANK" not in os.environ:
        raise UserError(f"--parallel {parallel} wants torchrun: torchrun --standalone --nproc-per-node 8 train.py ...")
    device = pick_device(device)
    keep_memory(device)
    if parallel == "none":
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)          # first of all: otherwise every process allocates 0.5 GB on GPU 0
    # Without this a worker that torchrun restarts waits for connections of the dead one, and hangs.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    # gloo beside nccl: the checkpoints' background threads use it. The long timeout covers compiling in the first step.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def device_mesh(world, shard):
    """The processes as fsdp sees them: a row of all, or rows of `shard` that each hold a copy of the model."""
    shard = shard or world.size
    if world.size % shard:
        raise UserError(f"--shard {shard} does not divide the {world.size} processes")
    if shard == world.size:
        return init_device_mesh(world.device.type, (world.size,))
    return init_device_mesh(world.device.type, (world.size // shard, shard), mesh_dim_names=("replicate", "shard"))


def shard_model(model, mesh, dtype, blocks=None):
    """Slice every parameter over the mesh. Those of each block (model.h's if None) are gathered for its forward pass,
    and again for its backward pass."""
    # Blocks are computed and sent in bf16; gradients are summed, and weights kept, in fp32 (the paper's table 6).
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if dtype == "bfloat16" else MixedPrecisionPolicy()
    for block in model.h if blocks is None else blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)          # the rest: embeddings, the tied head, ln_f


@torch.no_grad()
def set_weights(model, values):
    """Copy (name, tensor) pairs into the model. Every process makes all tensors and keeps its slices: none is sent."""
    parameters = dict(model.named_parameters())
    for name, value in values:
        p = parameters[name]
        if isinstance(p, DTensor):               # fully_shard slices rows as torch.chunk does; the last may get none
            slices, i = value.chunk(p.device_mesh.size(-1)), p.device_mesh.get_coordinate()[-1]
            value, p = slices[i] if i < len(slices) else value[:0], p.to_local()
        p.copy_(value)


def clip_gradients(parameters, limit):
    """Scale the gradients to a norm of at most `limit` (0: no limit) and return the norm before that, a float. Unlike
    clip_grad_norm_, leave small gradients alone: multiplying by 1 moves 8 bytes per parameter for the same bits."""
    parameters = list(parameters)
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    found = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
    if limit and found + 1e-6 > 0.999 * limit:          # torch's factor is limit / (norm + 1e-6), at most 1, rounded
        clip_grads_with_norm_(parameters, limit, norm)
    return found


def set_recompute(blocks, every):
    """Activation checkpointing for every n-th block; 0 is none."""
    for i, block in enumerate(blocks):
        block.recompute = every > 0 and i % every == 0


def average_gradients(model, world, parallel):
    """Wrap a model of which every process holds a copy. (fully_shard averages gradients by itself.)"""
    if parallel != "ddp":
        return model
    return DistributedDataParallel(model, device_ids=[world.device] if world.device.type == "cuda" else None)
