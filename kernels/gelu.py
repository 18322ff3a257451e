"""Bias and GELU in one pass, with the output recomputed in the backward pass.

GPT-2's GELU is the approximation by tanh. Since 1 + tanh(u) = 2 sigmoid(2u) it needs one exponential and no tanh:

    gelu(x) = x s,   s = sigmoid(2u),   u = sqrt(2/pi) (x + 0.044715 x^3)
    gelu'(x) = s + x s (1 - s) 2u',     u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)

with x = h + b, where h is the linear layer's product and b its bias. The gradient of b is the column sum of h's.

    COST, bytes per element in bf16    forward: reads h, writes g              4
                                       backward: reads h and dg, writes dh     6

The bias gradient is summed in the same pass; torch reads dh again for it. The MLP is 4 D wide, so h and g are the
largest tensors a layer keeps, 8 D bytes per token each. `gelu_linear` keeps h only and computes g again, which costs 2
more bytes per element in the backward pass, 1.2 ms of a 200 ms step on an H200.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import operator
from kernels.rows import before_linear, linear, read, rows, weight_gradient, write

SLOPE, CUBIC = tl.constexpr(0.7978845608028654), tl.constexpr(0.044715)         # SLOPE is sqrt(2/pi)
ROWS, COLUMNS, WARPS = 8, 256, 4    # a tile is 8 rows of 512 bytes: 16 elements per thread
STEPS = 16                          # tiles of a program of the backward pass, one below the other


@triton.jit
def _sigmoid_2u(x):
    return 1 / (1 + tl.exp((x + x * x * x * CUBIC) * (-2 * SLOPE)))    # for x << 0 exp overflows, and 1/inf is 0


@triton.jit
def forward_kernel(
    h, bias,                    # [N, F], [F]
    g,                          # [N, F]: written
    N, F,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,      # of a tile
):
    n_N = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    f_F = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside_NF = (n_N[:, None] < N) & (f_F[None, :] < F)
    offset_NF = n_N.to(tl.int64)[:, None] * F + f_F[None, :]
    x_NF = read(h + offset_NF, inside_NF) + read(bias + f_F, f_F < F)[None, :]
    write(g + offset_NF, x_NF * _sigmoid_2u(x_NF), inside_NF)


@triton.jit
def backward_kernel(
    h, bias,                    # [N, F], [F]
    dg,                         # [N, F]
    dh,                         # [N, F]: written
    g,                          # [N, F]: the forward pass's output, written again; None without a linear layer
    dbias,                      # [programs, F] fp32: column sums per program, added up afterwards in a fixed order
    N, F,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,      # of a tile
    STEPS: tl.constexpr,        # tiles of a program, one below the other
):
    f_F = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    b_F = read(bias + f_F, f_F < F)
    sum_NF = tl.zeros([ROWS, COLUMNS], tl.float32)
    for step in range(STEPS):
        n_N = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)
        inside_NF = (n_N[:, None] < N) & (f_F[None, :] < F)
        offset_NF = n_N.to(tl.int64)[:, None] * F + f_F[None, :]
        x_NF = read(h + offset_NF, inside_NF) + b_F[None, :]
        s_NF = _sigmoid_2u(x_NF)
        slope_NF = s_NF + x_NF * s_NF * (1 - s_NF) * (1 + x_NF * x_NF * (3 * CUBIC)) * (2 * SLOPE)
        dh_NF = read(dg + offset_NF, inside_NF) * slope_NF
        write(dh + offset_NF, dh_NF, inside_NF)
        if g is not None:
            write(g + offset_NF, x_NF * s_NF, inside_NF)
        sum_NF += dh_NF                                           # rows outside have dg = 0
    tl.store(dbias + tl.program_id(0) * F + f_F, tl.sum(sum_NF, 0), mask=f_F < F)


# ---- The operator: rows flattened to [N, F]; the linear layer is optional --------------------------------------------

@operator("gelu_linear")
def gelu_linear_op(h_NF: Tensor, gelu_bias_F: Tensor, weight_DF: Tensor | None, bias_D: Tensor | None) -> Tensor:
    """gelu(h + bias), or linear of that with a weight."""
    (N, F), g_NF = h_NF.shape, torch.empty_like(h_NF)
    grid = triton.cdiv(N, ROWS), triton.cdiv(F, COLUMNS)
    forward_kernel[grid](h_NF, gelu_bias_F, g_NF, N, F, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS)
    return linear(g_NF, weight_DF, bias_D)


@gelu_linear_op.register_fake
def _(h_NF, gelu_bias_F, weight_DF, bias_D):
    return h_NF.new_empty(h_NF.shape[0], h_NF.shape[1] if weight_DF is None else weight_DF.shape[0])


@operator("gelu_linear_backward")
def gelu_linear_backward_op(dout_ND: Tensor, h_NF: Tensor, gelu_bias_F: Tensor,
                            weight_DF: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(dh, dgelu_bias, dweight); dweight is empty without a weight."""
    (N, F), dout_ND = h_NF.shape, dout_ND.contiguous()
    dg_NF, g_NF = before_linear(dout_ND, weight_DF)
    dh_NF = torch.empty_like(h_NF)
    programs = triton.cdiv(N, ROWS * STEPS)
    dbias_PF = h_NF.new_empty(programs, F, dtype=torch.float32)
    backward_kernel[(programs, triton.cdiv(F, COLUMNS))](
        h_NF, gelu_bias_F, dg_NF, dh_NF, g_NF, dbias_PF, N, F, ROWS=ROWS, COLUMNS=COLUMNS, STEPS=STEPS, num_warps=WARPS)
    return dh_NF, dbias_PF.sum(0).to(gelu_bias_F.dtype), weight_gradient(dout_ND, g_NF)


@gelu_linear_backward_op.register_fake
def _(dout_ND, h_NF, gelu_bias_F, weight_DF):
    dweight_DF = dout_ND.new_empty(0) if weight_DF is None else torch.empty_like(weight_DF)
    return torch.empty_like(h_NF), torch.empty_like(gelu_bias_F), dweight_DF


def _save(ctx, inputs, output):
    h_NF, gelu_bias_F, weight_DF, _ = inputs
    ctx.save_for_backward(h_NF, gelu_bias_F, weight_DF)


def _backward(ctx, dout_ND):
    dh_NF, dgelu_bias_F, dweight_DF = gelu_linear_backward_op(dout_ND, *ctx.saved_tensors)
    _, _, weight, bias = ctx.needs_input_grad
    dbias_D = dout_ND.sum(0, dtype=dout_ND.dtype) if bias else None
    return dh_NF, dgelu_bias_F, dweight_DF if weight else None, dbias_D


gelu_linear_op.register_autograd(_backward, setup_context=_save)


def bias_gelu(x, bias):
    """gelu(x + bias) over the last dimension, in x's dtype."""
    return gelu_linear_op(rows(x), bias, None, None).view_as(x)


def gelu_linear(x, gelu_bias, weight, bias=None):
    """linear(gelu(x + gelu_bias)), keeping only x. weight [D, F] and bias are cast to x's dtype."""
    bias = bias if bias is None else bias.to(x.dtype)
    return gelu_linear_op(rows(x), gelu_bias, weight.to(x.dtype), bias).view(*x.shape[:-1], -1)
