"""LayerNorm over rows, with the residual addition in the same pass, and its output recomputed in the backward pass.

A row x of D numbers, with mean m = sum(x)/D and r = 1/sqrt(sum((x - m)^2)/D + eps), becomes y = h w + b, where
h = (x - m) r. With dy the gradient of y and g = dy w, the derivative through m and r included:

    dx = r (g - sum(g)/D - h sum(g h)/D)        dw = sum over rows of dy h        db = sum over rows of dy

The arithmetic is negligible; the time is that of moving bytes. Per element, in bf16:

    COST of add_layer_norm    forward: reads x and residual, writes their sum and y          8 (add, then norm: 10)
                              backward: reads the sum, dy, the sum's gradient, writes dx     8 (12)

The backward pass needs the sum, which the next residual keeps anyway, and two fp32 numbers per row. A linear layer
after the norm would also keep its input y, 2 D bytes per token. `norm_linear` does not; see rows.py.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import architecture, operator
from kernels.rows import before_linear, linear, read, rows, weight_gradient, write

PROGRAMS = {80: 2 * 108, 90: 2 * 132}       # of the backward pass: two per processor, each with sums dw and db
WARPS = 8                                   # a row of 2560 is 4096 lanes (a power of two): 16 per thread


@triton.jit
def forward_kernel(
    x,                          # [N, D]
    residual,                   # [N, D], added first; None for a plain LayerNorm
    weight, bias,               # [D]
    total,                      # [N, D]: x + residual, written; empty for a plain LayerNorm
    y,                          # [N, D]: written
    mean, rstd,                 # [N] fp32: written
    D,                          # width of a row
    eps,                        # fp32
    LANES: tl.constexpr,        # D rounded up to a power of two
):
    n = tl.program_id(0).to(tl.int64)                             # one row a program
    d_D = tl.arange(0, LANES)
    inside_D = d_D < D
    x_D = read(x + n * D + d_D, inside_D)
    if residual is not None:
        x_D += read(residual + n * D + d_D, inside_D)
        rounded_D = x_D.to(total.dtype.element_ty)
        tl.store(total + n * D + d_D, rounded_D, mask=inside_D)
        x_D = rounded_D.to(tl.float32)                            # the stored value: the backward pass reads it

    m = tl.sum(x_D, 0) / D
    centred_D = tl.where(inside_D, x_D - m, 0.0)                  # TRAP: idle lanes hold 0 - m without this
    r = 1 / tl.sqrt(tl.sum(centred_D * centred_D, 0) / D + eps)   # in two passes: sum(x^2) - m^2 would cancel

    w_D = read(weight + d_D, inside_D)
    b_D = read(bias + d_D, inside_D)
    write(y + n * D + d_D, centred_D * r * w_D + b_D, inside_D)
    tl.store(mean + n, m)
    tl.store(rstd + n, r)


@triton.jit
def backward_kernel(
    x,                          # [N, D]: what was normalised
    dy,                         # [N, D]
    dtotal,                     # [N, D]: the gradient of total from elsewhere, added to dx; None without a residual
    weight, bias,               # [D]
    mean, rstd,                 # [N] fp32
    dx,                         # [N, D]: written
    y,                          # [N, D]: the norm's output, written again; None without a linear layer
    dweight, dbias,             # [programs, D] fp32: partial sums, added up afterwards in a fixed order
    N, D,
    LANES: tl.constexpr,        # D rounded up to a power of two
):
    d_D = tl.arange(0, LANES)
    inside_D = d_D < D
    w_D = read(weight + d_D, inside_D)
    dw_D = tl.zeros([LANES], tl.float32)
    db_D = tl.zeros([LANES], tl.float32)
    # num_stages: the next rows are loaded while this one is summed. A row is 10 KB, and about 25 KB must be in flight
    # on every processor to keep 4 TB/s of memory busy.
    for row in tl.range(tl.program_id(0), N, tl.num_programs(0), num_stages=3):
        n = tl.full([], row, tl.int64)                            # not row.to: the interpreter's are Python's ints
        x_D = read(x + n * D + d_D, inside_D)
        dy_D = read(dy + n * D + d_D, inside_D)
        r = tl.load(rstd + n)
        h_D = tl.where(inside_D, (x_D - tl.load(mean + n)) * r, 0.0)
        g_D = dy_D * w_D
        dx_D = r * (g_D - tl.sum(g_D, 0) / D - h_D * (tl.sum(g_D * h_D, 0) / D))
        if dtotal is not None:
            dx_D += read(dtotal + n * D + d_D, inside_D)
        write(dx + n * D + d_D, dx_D, inside_D)
        if y is not None:
            b_D = read(bias + d_D, inside_D)
            write(y + n * D + d_D, h_D * w_D + b_D, inside_D)
        dw_D += dy_D * h_D
        db_D += dy_D
    tl.store(dweight + tl.program_id(0) * D + d_D, dw_D, mask=inside_D)
    tl.store(dbias + tl.program_id(0) * D + d_D, db_D, mask=inside_D)


# ---- The operator: rows flattened to [N, D]; residual and linear layer are optional ----------------------------------

@operator("norm_linear")
def norm_linear_op(x_ND: Tensor, residual_ND: Tensor | None, norm_weight_D: Tensor, norm_bias_D: Tensor, eps: float,
                   weight_FD: Tensor | None, bias_F: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, out, mean, rstd); total is empty without a residual, out is the norm itself without a weight."""
    N, D = x_ND.shape
    total_ND = x_ND.new_empty(0) if residual_ND is None else torch.empty_like(residual_ND)
    y_ND, mean_N, rstd_N = torch.empty_like(x_ND), *(x_ND.new_empty(N, dtype=torch.float32) for _ in range(2))
    forward_kernel[(N,)](x_ND, residual_ND, norm_weight_D, norm_bias_D, total_ND, y_ND, mean_N, rstd_N, D, eps,
                         LANES=triton.next_power_of_2(D), num_warps=WARPS)
    return total_ND, linear(y_ND, weight_FD, bias_F), mean_N, rstd_N


@norm_linear_op.register_fake
def _(x_ND, residual_ND, norm_weight_D, norm_bias_D, eps, weight_FD, bias_F):
    N, D = x_ND.shape
    total_ND = x_ND.new_empty(0) if residual_ND is None else torch.empty_like(residual_ND)
    mean_N, rstd_N = (x_ND.new_empty(N, dtype=torch.float32) for _ in range(2))
    return total_ND, x_ND.new_empty(N, D if weight_FD is None else weight_FD.shape[0]), mean_N, rstd_N


@operator("norm_linear_backward")
def norm_linear_backward_op(dtotal_ND: Tensor | None, dout_NF: Tensor, x_ND: Tensor, norm_weight_D: Tensor,
                            norm_bias_D: Tensor, mean_N: Tensor, rstd_N: Tensor,
                            weight_FD: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dnorm_weight, dnorm_bias, dweight); dweight is empty without a weight."""
    (N, D), dout_NF = x_ND.shape, dout_NF.contiguous()
    dy_ND, y_ND = before_linear(dout_NF, weight_FD)
    dx_ND = torch.empty_like(x_ND)
    programs = min(N, PROGRAMS[architecture(x_ND.device)])
    dnorm_weight_PD, dnorm_bias_PD = x_ND.new_empty(2, programs, D, dtype=torch.float32)
    dtotal_ND = None if dtotal_ND is None else dtotal_ND.contiguous()
    backward_kernel[(programs,)](
        x_ND, dy_ND, dtotal_ND, norm_weight_D, norm_bias_D, mean_N, rstd_N, dx_ND, y_ND, dnorm_weight_PD,
        dnorm_bias_PD, N, D, LANES=triton.next_power_of_2(D), num_warps=WARPS)
    dnorm_weight_D, dnorm_bias_D = dnorm_weight_PD.sum(0), dnorm_bias_PD.sum(0)
    return (dx_ND, dnorm_weight_D.to(norm_weight_D.dtype), dnorm_bias_D.to(norm_bias_D.dtype),
            weight_gradient(dout_NF, y_ND))


@norm_linear_backward_op.register_fake
def _(dtotal_ND, dout_NF, x_ND, norm_weight_D, norm_bias_D, mean_N, rstd_N, weight_FD):
    dweight_FD = dout_NF.new_empty(0) if weight_FD is None else torch.empty_like(weight_FD)
    return torch.empty_like(x_ND), torch.empty_like(norm_weight_D), torch.empty_like(norm_bias_D), dweight_FD


def _save(ctx, inputs, output):
    x_ND, residual_ND, norm_weight_D, norm_bias_D, _, weight_FD, _ = inputs
    total_ND, _, mean_N, rstd_N = output
    ctx.x_dtype, ctx.residual = x_ND.dtype, residual_ND is not None
    ctx.save_for_backward(total_ND if ctx.residual else x_ND, norm_weight_D, norm_bias_D, mean_N, rstd_N, weight_FD)
    ctx.mark_non_differentiable(mean_N, rstd_N)


def _backward(ctx, dtotal_ND, dout_NF, dmean_N, drstd_N):
    dtotal_ND = dtotal_ND if ctx.residual else None
    # TRAP: read saved_tensors once; activation checkpointing recomputes at every read
    dx_ND, *dnorm_D, dweight_FD = norm_linear_backward_op(dtotal_ND, dout_NF, *ctx.saved_tensors)
    *_, weight, bias = ctx.needs_input_grad
    dbias_F = dout_NF.sum(0, dtype=dout_NF.dtype) if bias else None
    return (dx_ND.to(ctx.x_dtype), dx_ND if ctx.residual else None, *dnorm_D, None, dweight_FD if weight else None,
            dbias_F)


norm_linear_op.register_autograd(_backward, setup_context=_save)


def layer_norm(x, weight, bias, eps=1e-5):
    """LayerNorm over the last dimension; the output has x's dtype whatever that of the weights."""
    return norm_linear_op(rows(x), None, weight, bias, eps, None, None)[1].view_as(x)


def add_layer_norm(x, residual, weight, bias, eps=1e-5):
    """(x + residual in residual's dtype, LayerNorm of it in x's dtype)."""
    total_ND, y_ND, _, _ = norm_linear_op(rows(x), rows(residual), weight, bias, eps, None, None)
    return total_ND.view_as(residual), y_ND.view_as(x)


def norm_linear(x, norm_weight, norm_bias, weight, bias=None, residual=None, eps=1e-5):
    """linear(LayerNorm(x)), or (x + residual, linear(LayerNorm(x + residual))), without keeping the norm's output.
    weight [F, D] and bias are cast to x's dtype."""
    bias = bias if bias is None else bias.to(x.dtype)
    weight = weight.to(x.dtype)
    total_ND, out_NF, _, _ = norm_linear_op(rows(x), rows(residual), norm_weight, norm_bias, eps, weight, bias)
    out = out_NF.view(*x.shape[:-1], -1)
    return out if residual is None else (total_ND.view_as(residual), out)
