"""Triton's interpreter, repaired for bfloat16: import this before anything from kernels/.

With TRITON_INTERPRET=1 a kernel runs in numpy, one program after another, so kernels are tested without a GPU. numpy
has no bfloat16. The interpreter keeps its bits in uint16, and in two places treats them as integers:

    tl.dot of two bf16 tiles multiplies the bit patterns (results near 1e9)
    fp32 -> bf16 truncates, where the GPU rounds to nearest even (twice the error of real bf16)

Both are repaired here. Other bf16 arithmetic stays wrong, so the kernels compute in fp32, as they do on the GPU anyway.
The interpreter shows no races, no wrong synchronisation and no speed. Reading out of bounds crashes it.
Triton 3.6, for torch 2.11, makes an int of an array of one number, which numpy 2.4 refuses. That is repaired as in 3.7.
"""
import os

os.environ["TRITON_INTERPRET"] = "1"     # read when a kernel is defined

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

assert interpreter.InterpreterBuilder.create_dot.__qualname__.startswith("InterpreterBuilder"), "repaired twice"
_convert, _dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot
_patch_tensor = interpreter._patch_lang_tensor


def bf16_bits(x_fp32):
    """Round to nearest, ties to even: add half a unit of the last kept bit, and one less when that bit is 0; keep NaN a
    NaN."""
    bits = np.ascontiguousarray(x_fp32, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x_fp32), np.uint16(0x7FC0), rounded).reshape(np.shape(x_fp32))


def fp32_of_bits(bits):
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _convert_rounding(x, source, target, mode):
    if (source, target) == (tl.float32, tl.bfloat16):
        return bf16_bits(x)
    if (source, target) == (tl.bfloat16, tl.float32):
        return fp32_of_bits(x).view(np.uint32)
    return _convert(x, source, target, mode)


def _dot_of_values(builder, a, b, accumulator, *options):
    def widened(x):
        return interpreter.TensorHandle(fp32_of_bits(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
    return _dot(builder, widened(a), widened(b), accumulator, *options)


def _patch_tensor_and_index(tensor, scope):
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = _patch_tensor_and_index
interpreter._convert_float = _convert_rounding
interpreter.InterpreterBuilder.create_dot = _dot_of_values
