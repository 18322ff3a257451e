"""Cross-entropy whose gradient overwrites the logits, in chunks of rows: the logits never exist all at once.

For a row z of V logits and the target y, with lse = log sum_v exp(z_v):

    loss = lse - z_y        dz_v = exp(z_v - lse) - [v = y]

The gradient has the logits' shape and depends only on its own row, so it can replace the row. And a chunk of rows
depends only on its own logits. With x the model's last hidden states and W the (tied) embedding,

    z = x W^T,    dx = dz W,    dW = dz^T x

are computed chunk by chunk, forward and backward together. The loss's own gradient is multiplied in at the end.

    COST, bytes per row in bf16        here 4 V: each logit is read and written once (the second pass hits the cache)
                                       torch 24 V: bf16 to fp32, log-softmax, its gradient
    memory, 8,192 tokens, V = 28,896   here 118 MB for a chunk of 2,048 rows, and 0.3 GB for dW in fp32
                                       torch 4.7 GB: fp32 logits, their log-softmax, their gradients
"""
import torch
import triton
import triton.language as tl

from kernels import operator
from kernels.rows import read, rows, write

# Logits of a tile: 8 per thread, three tiles in flight. With 16 warps a processor holds at most 4 rows, and the
# 4 x 132 x 58 KB of all rows being worked on stay in the cache for their second pass.
LANES, WARPS, STAGES = 4096, 16, 3
CHUNK_ROWS = 2048              # 118 MB of logits; smaller chunks add to dW (0.9 GB moved) more often


@triton.jit
def cross_entropy_kernel(
    logits,                     # [N, V]: read, and overwritten by the gradient
    targets,                    # [N] int64; below 0: the row's loss and gradient are 0
    loss,                       # [N] fp32: written
    V,                          # vocabulary
    GRADIENT: tl.constexpr,     # False leaves the logits as they are, for evaluation
    LANES: tl.constexpr,        # logits of a tile
    STAGES: tl.constexpr,       # tiles in flight
):
    n = tl.program_id(0).to(tl.int64)                             # TRAP: N * V passes 2^31 at 74,000 rows
    logits += n * V
    y = tl.load(targets + n)
    v_V = tl.arange(0, LANES)

    # First pass: every lane keeps its own maximum and sum over its tiles; the lanes are combined once, at the end.
    m_V = tl.full([LANES], -1.0e30, tl.float32)
    l_V = tl.zeros([LANES], tl.float32)
    for v in tl.range(0, V, LANES, num_stages=STAGES):
        z_V = read(logits + v + v_V, v + v_V < V)
        z_V = tl.where(v + v_V < V, z_V, -float("inf"))           # TRAP: as `other`, -inf would make the copies wait
        e_V = tl.exp(-tl.abs(z_V - m_V))                  # of exp(m - new) and exp(z - new) one is 1: the other is this
        l_V = tl.where(z_V > m_V, l_V * e_V + 1, l_V + e_V)
        m_V = tl.maximum(m_V, z_V)
    m = tl.max(m_V, 0)
    lse = m + tl.log(tl.sum(l_V * tl.exp(m_V - m), 0))
    z_y = tl.load(logits + tl.maximum(y, 0)).to(tl.float32)
    tl.store(loss + n, tl.where(y >= 0, lse - z_y, 0.0))

    # Second pass, out of the cache. TRAP: all threads must have read z_y before one overwrites it.
    if GRADIENT:
        tl.debug_barrier()
        for v in tl.range(0, V, LANES, num_stages=STAGES):
            inside_V = v + v_V < V
            z_V = read(logits + v + v_V, inside_V)
            dz_V = tl.exp(z_V - lse) - tl.where(v + v_V == y, 1.0, 0.0)
            write(logits + v + v_V, tl.where(y >= 0, dz_V, 0.0), inside_V)


@operator("cross_entropy_", mutates=("logits_NV",))
def cross_entropy_(logits_NV: torch.Tensor, targets_N: torch.Tensor, gradient: bool) -> torch.Tensor:
    """loss_N in fp32, without autograd. With `gradient`, the gradient of its sum overwrites the (contiguous) logits."""
    N, V = logits_NV.shape
    loss_N = logits_NV.new_empty(N, dtype=torch.float32)
    cross_entropy_kernel[(N,)](logits_NV, targets_N, loss_N, V, GRADIENT=gradient, LANES=LANES, STAGES=STAGES,
                               num_warps=WARPS)
    return loss_N


@cross_entropy_.register_fake
def _(logits_NV, targets_N, gradient):
    return logits_NV.new_empty(logits_NV.shape[0], dtype=torch.float32)


@operator("linear_cross_entropy")
def linear_cross_entropy_op(x_ND: torch.Tensor, weight_VD: torch.Tensor, targets_N: torch.Tensor, gradient: bool,
                            chunk_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of losses, its gradient by x, its gradient by weight); the gradients are empty without `gradient`."""
    w_VD = weight_VD.to(x_ND.dtype)
    loss = x_ND.new_zeros((), dtype=torch.float32)
    dx_ND, dweight_VD = x_ND.new_empty(0), x_ND.new_empty(0)
    if gradient:
        dx_ND, dweight_VD = torch.empty_like(x_ND), torch.zeros_like(weight_VD, dtype=torch.float32)
    dx_chunks = dx_ND.split(chunk_rows)
    for i, (x_CD, targets_C) in enumerate(zip(x_ND.split(chunk_rows), targets_N.split(chunk_rows), strict=True)):
        logits_CV = x_CD @ w_VD.mT
        loss += cross_entropy_(logits_CV, targets_C, gradient).sum()
        if gradient:                                              # logits_CV is now its own gradient
            torch.mm(logits_CV, w_VD, out=dx_chunks[i])
            dweight_VD += logits_CV.mT @ x_CD                     # rounded to bf16 once per chunk, summed in fp32
    return loss, dx_ND, dweight_VD.to(weight_VD.dtype)


@linear_cross_entropy_op.register_fake
def _(x_ND, weight_VD, targets_N, gradient, chunk_rows):
    loss = x_ND.new_empty((), dtype=torch.float32)
    if not gradient:
        return loss, x_ND.new_empty(0), weight_VD.new_empty(0)
    return loss, torch.empty_like(x_ND), torch.empty_like(weight_VD)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, dloss, ddx_ND, ddweight_VD):
    dx_ND, dweight_VD = ctx.saved_tensors
    return (dx_ND * dloss).to(dx_ND.dtype), (dweight_VD * dloss).to(dweight_VD.dtype), None, None, None


linear_cross_entropy_op.register_autograd(_backward, setup_context=_save)


def linear_cross_entropy(x, weight, targets, chunk_rows=CHUNK_ROWS):
    """Mean cross-entropy of softmax(x weight^T) at the targets >= 0, in fp32; NaN without any, like torch.
    x [..., D] in the dtype of the logits; weight [V, D] of any dtype, as is its gradient; targets [...] int64."""
    gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    targets_N = targets.reshape(-1)
    loss = linear_cross_entropy_op(rows(x), weight, targets_N, gradient, chunk_rows)[0]
    return loss / (targets_N >= 0).sum()
