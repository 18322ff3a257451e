"""A linear layer on the few rows of a new token: its time is that of reading the weights.

For one row x, y = W x uses every weight once, two operations per weight, where a GPU can do hundreds for each byte it
reads. So a program takes a few outputs, reads their rows of W in long contiguous pieces, and everything else is done
while the sums are still in registers:

    y = scale * (W x) + bias        then GELU, or + residual

scale belongs to weights of 8 bits, one per output: they are widened in registers, and half the bytes is half the time.

    COST: 2 I O bytes in bf16, I O in int8. BioMedLM's four layers of a block: 157 MB in bf16, 52 us at 3 TB/s

Not here: many rows (torch's products on tensor cores); the gradient.
"""
import torch
import triton
import triton.language as tl

from kernels import operator
from kernels.gelu import _sigmoid_2u
from kernels.rows import read, write

ROWS = 4                             # rows of x that share one reading of the weights
OUTPUTS, INPUTS, WARPS = 4, 512, 4   # of a tile of weights: 4 KB in bf16, 16 elements per thread


@triton.jit
def matvec_kernel(
    x,                          # [B, I]
    weight,                     # [O, I]: fp32, bf16, fp16 or int8
    scale, bias,                # [O], or None
    residual,                   # [B, O], or None
    out,                        # [B, O]: written
    B, I, O,                    # noqa: E741
    GELU: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,                # of a tile
):
    b_B = tl.program_id(0) * ROWS + tl.arange(0, ROWS)            # first, so that neighbours read the same weights
    o_O = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    i_I = tl.arange(0, INPUTS)
    # Both are loaded as [ROWS, OUTPUTS, INPUTS], like the sums: in a layout of its own, each tile of either would go
    # through shared memory, with two barriers. x comes from the cache.
    b_B11, o_1O1 = b_B[:, None, None], o_O[None, :, None]
    row_1O1 = o_1O1.to(tl.int64) * I
    sum_BOI = tl.zeros([ROWS, OUTPUTS, INPUTS], tl.float32)
    for i in tl.range(0, I, INPUTS):
        column_11I = (i + i_I)[None, None, :]
        inside_1OI = (o_1O1 < O) & (column_11I < I)
        x_BOI = tl.load(x + b_B11 * I + 0 * o_1O1 + column_11I, mask=(b_B11 < B) & inside_1OI, other=0.0)
        w_1OI = tl.load(weight + row_1O1 + column_11I, mask=inside_1OI, other=0)
        sum_BOI += x_BOI.to(tl.float32) * w_1OI.to(tl.float32)
    y_BO = tl.sum(sum_BOI, 2)                                     # threads are summed once, at the end

    if scale is not None:
        y_BO *= read(scale + o_O, o_O < O)[None, :]
    if bias is not None:
        y_BO += read(bias + o_O, o_O < O)[None, :]
    if GELU:
        y_BO *= _sigmoid_2u(y_BO)
    offset_BO, inside_BO = b_B[:, None] * O + o_O[None, :], (b_B < B)[:, None] & (o_O < O)[None, :]
    if residual is not None:
        y_BO += read(residual + offset_BO, inside_BO)
    write(out + offset_BO, y_BO, inside_BO)


@operator("matvec")
def matvec(x_BI: torch.Tensor, weight_OI: torch.Tensor, scale_O: torch.Tensor | None = None,
           bias_O: torch.Tensor | None = None, gelu: bool = False,
           residual_BO: torch.Tensor | None = None) -> torch.Tensor:
    """y_BO in x's dtype, summed in fp32, without a gradient; all contiguous."""
    (B, I), O = x_BI.shape, len(weight_OI)                        # noqa: E741
    out_BO, rows = x_BI.new_empty(B, O), min(ROWS, triton.next_power_of_2(B))
    matvec_kernel[triton.cdiv(B, rows), triton.cdiv(O, OUTPUTS)](
        x_BI, weight_OI, scale_O, bias_O, residual_BO, out_BO, B, I, O, GELU=gelu, ROWS=rows, OUTPUTS=OUTPUTS,
        INPUTS=INPUTS, num_warps=WARPS)
    return out_BO


@matvec.register_fake
def _(x_BI, weight_OI, scale_O=None, bias_O=None, gelu=False, residual_BO=None):
    return x_BI.new_empty(len(x_BI), len(weight_OI))
