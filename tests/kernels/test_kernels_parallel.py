"""The kernels as a real run uses them: two processes, FSDP or DDP, bf16, compiled blocks, one of them recomputed,
a gradient accumulated from two parts. The result is the gradient of torch's operators."""
import interpreter  # noqa: F401, I001  before anything that defines a kernel

import torch
from conftest import tiny_config, tiny_model
from launched import launched
from torch.distributed.tensor import DTensor

from model import GPT
from plumbing.runtime import autocast
from training.parallel import average_gradients, device_mesh, join_world, set_weights, shard_model

SHAPE = dict(n_embd=64, n_head=1, n_layer=2)


def gradient(parallel, which, world):
    """All parameters' gradients as one vector, the same on both processes."""
    torch._dynamo.reset()
    with torch.device("meta"):
        model = GPT(tiny_config(**SHAPE)).train()
    for i, block in enumerate(model.h):
        block.recompute = i == 0
        block.compile(backend="aot_eager", fullgraph=True)
    if parallel == "fsdp":
        shard_model(model, device_mesh(world, 0), "bfloat16")
    model.to_empty(device="cpu")
    set_weights(model, tiny_model(**SHAPE).named_parameters())
    model.use_kernels(which, world.device)
    ddp = average_gradients(model, world, parallel)

    for part in range(2):
        if ddp is not model:
            ddp.require_backward_grad_sync = part == 1
        ids_BT = torch.randint(0, 301, (1, 4), generator=torch.Generator().manual_seed(2 * part + world.rank))
        with autocast(world.device, "bfloat16" if parallel == "ddp" else "float32"):
            ddp(ids_BT, ids_BT).backward()
    grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
    assert {grad.dtype for grad in grads} == {torch.float32}
    return torch.cat([grad.flatten() for grad in grads])


def compare():
    with join_world("fsdp") as world:
        expected = gradient("ddp", "torch", world)
        for parallel, which in (("ddp", "triton"), ("fsdp", "triton")):
            error = (gradient(parallel, which, world) - expected).norm() / expected.norm()
            print(parallel, which, f"{error:.1e}")
            assert error < 2e-2, (parallel, which, error)


def test_two_processes_get_the_gradient_of_torchs_operators_by_ddp_and_by_fsdp():
    finished = launched(compare, processes=2)
    assert finished.returncode == 0, finished.stdout + finished.stderr
