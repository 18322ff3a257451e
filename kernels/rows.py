"""What the kernels share: how a tile is read and written, and a linear layer that does not keep its input.

A linear layer keeps its input for the gradient of its weight. `norm_linear` and `gelu_linear` do not: their backward
kernels have the input in registers, since they compute it from what is kept anyway, and write it again.
"""
import torch
import triton
import triton.language as tl


@triton.jit
def read(pointers, inside):
    """The values in fp32, whatever they are in memory; 0 outside."""
    return tl.load(pointers, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def write(pointers, values, inside):
    """Store the values in the memory's dtype."""
    tl.store(pointers, values.to(pointers.dtype.element_ty), mask=inside)


def rows(x):
    """x [..., D] as [N, D]; None stays None."""
    return x if x is None else x.reshape(-1, x.shape[-1])


def linear(y_ND, weight_FD, bias_F):
    """y itself without a weight."""
    return y_ND if weight_FD is None else torch.nn.functional.linear(y_ND, weight_FD, bias_F)


def before_linear(dout_NF, weight_FD):
    """(dy_ND, memory for y_ND), where out = linear(y); without a weight y is out and is not needed again."""
    if weight_FD is None:
        return dout_NF, None
    dy_ND = dout_NF @ weight_FD
    return dy_ND, torch.empty_like(dy_ND)


def weight_gradient(dout_NF, y_ND):
    """dweight_FD; empty without a weight, since an operator returns tensors only."""
    return dout_NF.new_empty(0) if y_ND is None else dout_NF.mT @ y_ND
