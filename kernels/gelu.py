"""Bias and GELU in one pass, with the output forgotten and made again.

GPT-2's GELU is the one with tanh. Since 1 + tanh(u) = 2 sigmoid(2u) it needs one exponential and no tanh:

    gelu(x) = x s,   s = sigmoid(2u),   u = sqrt(2/pi) (x + 0.044715 x^3)
    gelu'(x) = s + x s (1 - s) 2u',     u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)

with x = h + b, h the linear layer's product and b its bias, whose gradient is the column sum of h's.

    COST: forward reads h, writes g: 4 bytes an element in bf16. Backward reads h and dg, writes dh: 6, and the bias
    gradient, for
          which torch reads dh once more, is summed on the way

The MLP is 4 D wide, so h and g are the largest things a layer keeps: 8 D bytes a token each. g is needed only for the
weight gradient of the layer after it, and `gelu_linear` makes it again from h: 8 x 2560 bytes x 32 layers x 8,192
tokens = 5.4 GB saved of 21.5, for 2 more bytes an element written in backward, 1.2 ms of a 200 ms step on an H200.

    python kernels/gelu.py        GB/s against torch, torch.compile and a plain copy (needs a GPU)
"""
import sys
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # python kernels/gelu.py finds common.py
from kernels import require_triton
from kernels.measure import ceilings, line, median_ms, require_gpu
from plumbing.common import speaking_to_the_user

SLOPE, CUBIC = tl.constexpr(0.7978845608028654), tl.constexpr(0.044715)         # sqrt(2/pi)
ROWS, COLUMNS, WARPS = 8, 256, 4    # a tile is 8 rows of 512 bytes: 16 elements a thread
STEPS = 16                          # tiles that a program of the backward pass takes, one below the other


def bias_gelu_reference(h_NF, bias_F):
    """The same function written out."""
    x_NF = h_NF + bias_F
    return 0.5 * x_NF * (1 + torch.tanh(SLOPE.value * (x_NF + CUBIC.value * x_NF**3)))


@triton.jit
def _sigmoid_2u(x):
    return 1 / (1 + tl.exp((x + x * x * x * CUBIC) * (-2 * SLOPE)))    # for x << 0: 1/inf, as it should


@triton.jit
def forward_kernel(
    h, bias,                    # [N, F], [F]
    g,                          # [N, F]: written
    N, F,
    ROWS: tl.constexpr,         # rows and columns of a program's tile
    COLUMNS: tl.constexpr,
):
    n_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f_F = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside_NF = (n_N[:, None] < N) & (f_F[None, :] < F)
    offset_NF = n_N.to(tl.int64)[:, None] * F + f_F[None, :]
    x_NF = tl.load(h + offset_NF, mask=inside_NF, other=0.0).to(tl.float32)
    x_NF += tl.load(bias + f_F, mask=f_F < F, other=0.0).to(tl.float32)[None, :]
    tl.store(g + offset_NF, (x_NF * _sigmoid_2u(x_NF)).to(g.dtype.element_ty), mask=inside_NF)


@triton.jit
def backward_kernel(
    h, bias,                    # [N, F], [F]
    dg,                         # [N, F]
    dh,                         # [N, F]: written
    g,                          # [N, F]: written again, for the weight gradient of the next layer; None if it was kept
    dbias,                # [programs, F] fp32: column sums of each program's rows, added up afterwards in a fixed order
    N, F,
    AGAIN: tl.constexpr,        # whether g is to be written
    ROWS: tl.constexpr,         # rows and columns of a tile
    COLUMNS: tl.constexpr,
    STEPS: tl.constexpr,        # tiles of a program, one below the other
):
    f_F = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    b_F = tl.load(bias + f_F, mask=f_F < F, other=0.0).to(tl.float32)
    sum_NF = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        n_N = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside_NF = (n_N[:, None] < N) & (f_F[None, :] < F)
        offset_NF = n_N.to(tl.int64)[:, None] * F + f_F[None, :]
        x_NF = tl.load(h + offset_NF, mask=inside_NF, other=0.0).to(tl.float32) + b_F[None, :]
        s_NF = _sigmoid_2u(x_NF)
        slope_NF = s_NF + x_NF * s_NF * (1 - s_NF) * (1 + x_NF * x_NF * (3 * CUBIC)) * (2 * SLOPE)
        dh_NF = tl.load(dg + offset_NF, mask=inside_NF, other=0.0).to(tl.float32) * slope_NF
        tl.store(dh + offset_NF, dh_NF.to(dh.dtype.element_ty), mask=inside_NF)
        if AGAIN:
            tl.store(g + offset_NF, (x_NF * s_NF).to(g.dtype.element_ty), mask=inside_NF)
        sum_NF += dh_NF                                           # rows outside have dg = 0
    tl.store(dbias + tl.program_id(0) * F + f_F, tl.sum(sum_NF, 0), mask=f_F < F)


# ---------------------------------------------------------------------------------------------------------------------
# The operator: rows flattened to [N, F], the linear layer optional

Tensor = torch.Tensor


@torch.library.custom_op("nanobiomedlm::gelu_linear", mutates_args=())
def gelu_linear_op(h_NF: Tensor, gelu_bias_F: Tensor, weight_DF: Tensor | None, bias_D: Tensor | None) -> Tensor:
    """gelu(h + bias), or linear of that with a weight."""
    (N, F), g_NF = h_NF.shape, torch.empty_like(h_NF)
    grid = triton.cdiv(N, ROWS), triton.cdiv(F, COLUMNS)
    forward_kernel[grid](h_NF, gelu_bias_F, g_NF, N, F, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS)
    return g_NF if weight_DF is None else torch.nn.functional.linear(g_NF, weight_DF, bias_D)


@gelu_linear_op.register_fake
def _(h_NF, gelu_bias_F, weight_DF, bias_D):
    return h_NF.new_empty(h_NF.shape[0], h_NF.shape[1] if weight_DF is None else weight_DF.shape[0])


@torch.library.custom_op("nanobiomedlm::gelu_linear_backward", mutates_args=())
def gelu_linear_backward_op(dout_ND: Tensor, h_NF: Tensor, gelu_bias_F: Tensor,
                            weight_DF: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(dh, dgelu_bias, dweight); dweight is empty without a weight."""
    (N, F), dout_ND = h_NF.shape, dout_ND.contiguous()
    dg_NF = dout_ND if weight_DF is None else dout_ND @ weight_DF
    dh_NF, g_NF = torch.empty_like(h_NF), None if weight_DF is None else torch.empty_like(h_NF)
    programs = triton.cdiv(N, ROWS * STEPS)
    dbias_PF = h_NF.new_empty(programs, F, dtype=torch.float32)
    backward_kernel[(programs, triton.cdiv(F, COLUMNS))](
        h_NF, gelu_bias_F, dg_NF, dh_NF, g_NF, dbias_PF, N, F, AGAIN=g_NF is not None, ROWS=ROWS, COLUMNS=COLUMNS,
        STEPS=STEPS, num_warps=WARPS)
    dweight_DF = dout_ND.new_empty(0) if weight_DF is None else dout_ND.mT @ g_NF
    return dh_NF, dbias_PF.sum(0).to(gelu_bias_F.dtype), dweight_DF


@gelu_linear_backward_op.register_fake
def _(dout_ND, h_NF, gelu_bias_F, weight_DF):
    dweight_DF = dout_ND.new_empty(0) if weight_DF is None else torch.empty_like(weight_DF)
    return torch.empty_like(h_NF), torch.empty_like(gelu_bias_F), dweight_DF


def _save(ctx, inputs, output):
    h_NF, gelu_bias_F, weight_DF, bias_D = inputs
    ctx.bias = bias_D is not None
    ctx.save_for_backward(h_NF, gelu_bias_F, weight_DF)


def _backward(ctx, dout_ND):
    saved = ctx.saved_tensors           # TRAP: asked twice, activation checkpointing would compute them twice
    dh_NF, dgelu_bias_F, dweight_DF = gelu_linear_backward_op(dout_ND, *saved)
    linear = saved[2] is not None
    return dh_NF, dgelu_bias_F, dweight_DF if linear else None, dout_ND.sum(0) if ctx.bias else None


gelu_linear_op.register_autograd(_backward, setup_context=_save)


def bias_gelu(x, bias):
    """gelu(x + bias) over the last dimension, in x's dtype."""
    return gelu_linear_op(x.reshape(-1, x.shape[-1]), bias, None, None).view_as(x)


def gelu_linear(x, gelu_bias, weight, bias=None):
    """linear(gelu(x + gelu_bias)), keeping x alone; weight is [D, F] as in torch.nn.functional.linear, cast to x's
    dtype."""
    bias = bias if bias is None else bias.to(x.dtype)
    return gelu_linear_op(x.reshape(-1, x.shape[-1]), gelu_bias, weight.to(x.dtype), bias).view(*x.shape[:-1], -1)


def main():
    """Peers: torch's eager kernels and what torch.compile makes of the same line."""
    require_gpu("kernels/gelu.py")
    copy, product = rates = ceilings()
    print(f"{require_triton('cuda')}; a copy moves {copy / 1e12:.2f} TB/s here")
    N, F, dtype = 8192, 10240, torch.bfloat16
    bias_F = torch.randn(F, device="cuda", dtype=dtype, requires_grad=True)

    def torch_gelu(x, bias):
        return torch.nn.functional.gelu(x + bias, approximate="tanh")

    for name, gelu in (("ours", bias_gelu), ("torch", torch_gelu), ("torch.compile", torch.compile(torch_gelu))):
        forward, backward = [], []
        for _ in range(2):                                        # 2 x 500 MB: no cache keeps them
            x, dout = torch.randn(2, N, F, device="cuda", dtype=dtype)
            out = gelu(x.requires_grad_(), bias_F)
            forward.append(partial(gelu, x, bias_F))
            backward.append(partial(torch.autograd.grad, out, (x, bias_F), dout, retain_graph=True))
        print(line(f"bias_gelu forward, {name}", median_ms(forward), 4 * N * F, rates=rates))
        print(line(f"bias_gelu backward, {name}", median_ms(backward), 6 * N * F, rates=rates))


if __name__ == "__main__":
    with speaking_to_the_user():
        main()
