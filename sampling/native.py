"""Compiles the .c files of this folder on the machine that runs them, and calls them on torch's tensors.

Teaches that a loop in C needs no build system: a compiler, a shared library in __pycache__, and ctypes; and that the
pages that hold the data matter as much as the loop that reads them.
Not here: the loops (the .c files), the weights that they are used for (fast_linear.py).
"""
import ctypes
import functools
import hashlib
import math
import mmap
import os
import shlex
import shutil
import subprocess
from contextlib import suppress
from ctypes import c_long, c_void_p
from itertools import product
from pathlib import Path

import torch

from plumbing.common import written_whole

HERE = Path(__file__).parent
SOURCES = [HERE / name for name in ("matvec.c", "cpu_step.c")]
FLAGS = ("-O3", "-ffp-contract=off", "-shared", "-fPIC")
NATIVE = ("-march=native", "-mcpu=native")       # clang on ARM knows the second
OPENMP = ("-fopenmp", "")                        # Apple's clang has none: the loops then run in one thread
LINE = 64                        # bytes: memory is read in lines of this size
BLOCK, BLOCK_BYTES = 256, 144    # int4: weights that are stored together, and their bytes with 8 scales


class Matrix(ctypes.Structure):
    """Matrix of native.h: weights stored by in_lines or in_blocks (uint8)."""
    _fields_ = [("kind", c_long), ("W", c_void_p), ("scale", c_void_p), ("bias", c_void_p), ("outputs", c_long),
                ("inputs", c_long)]

    def __init__(self, W_OC, scale_O, bias_O, inputs):
        scale, bias = (None if vector_O is None else vector_O.data_ptr() for vector_O in (scale_O, bias_O))
        kind = 0 if W_OC.dtype == torch.uint8 else W_OC.itemsize
        super().__init__(kind, W_OC.data_ptr(), scale, bias, len(W_OC), inputs)


@functools.cache
def library():
    """(the compiled functions, ""), or (functions for one thread, why), or (None, the reason why there are none)."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or not shutil.which(compiler[0]):
        return None, "there is no C compiler (install gcc or clang, or name yours in CC)"
    for openmp, native in product(OPENMP, NATIVE):
        try:
            functions = compiled([*compiler, *FLAGS, native, *filter(None, [openmp])])
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").strip()
            continue
        return functions, "" if openmp else f"{compiler[0]} has no OpenMP, so that the C loops run in one thread"
    return None, f"sampling/*.c could not be compiled ({said.splitlines()[-1]})"


def compiled(command):
    """The functions of the .c files, compiled by this command unless its result is still there."""
    # The name depends on the processor: machines of several kinds may share this folder.
    content = [source.read_text() for source in (HERE / "native.h", *SOURCES)]
    content += [command, sorted(torch.cpu.get_capabilities().items())]
    path = HERE / "__pycache__" / f"native-{hashlib.sha256(str(content).encode()).hexdigest()[:16]}.so"
    if not path.is_file():
        with written_whole(path) as temporary:
            subprocess.run([*command, *map(str, SOURCES), "-lm", "-o", str(temporary)], check=True, capture_output=True)
    functions = ctypes.CDLL(str(path))
    functions.matvec.argtypes = [ctypes.POINTER(Matrix)] + [c_void_p] * 3 + [c_long] * 2
    functions.cpu_step.argtypes = [c_void_p] * 2 + [c_long] * 2
    functions.read_all.argtypes = [c_void_p] + [c_long] * 2
    return functions


def in_huge_pages(*shape, dtype):
    """A tensor of zeros in pages of 2 MB, where the system has them: reading it is about a tenth faster.

    TRAP: Python's mmap is shared by default, and shared memory does not get such pages.
    """
    size = math.prod(shape) * dtype.itemsize
    if not hasattr(mmap, "MADV_HUGEPAGE") or not size:           # only Linux has it
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):                                      # this kernel has no such pages: small ones do
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def in_lines(W_OI):
    """A copy of W_OI for matvec, W_OC: each row is followed by zeros up to a multiple of LINE bytes."""
    outputs, inputs = W_OI.shape
    in_line = LINE // W_OI.itemsize
    W_OC = in_huge_pages(outputs, -(-inputs // in_line) * in_line, dtype=W_OI.dtype)
    W_OC[:, :inputs] = W_OI
    return W_OC


def in_blocks(int4_OI, scale_OG):
    """Weights of 4 bits for matvec, W_OC in uint8: int4_OI from -8 to 7, for whole blocks; scale_OG: bf16, one per 32.
    A block has 8 groups, 4 weights of each in turn, the second 4 in the upper halves of the first; then the scales."""
    outputs = len(int4_OI)
    code_OUGKHF = (int4_OI + 8).to(torch.uint8).view(outputs, -1, 8, 4, 2, 4)     # U blocks, K pairs, H halves, F fours
    bytes_OUKGF = (code_OUGKHF[..., 0, :] + 16 * code_OUGKHF[..., 1, :]).transpose(2, 3)
    W_OUC = in_huge_pages(outputs, bytes_OUKGF.shape[1], BLOCK_BYTES, dtype=torch.uint8)
    W_OUC[..., :BLOCK // 2] = bytes_OUKGF.flatten(2)
    W_OUC[..., BLOCK // 2:] = scale_OG.view(torch.uint8).view(outputs, -1, BLOCK_BYTES - BLOCK // 2)
    return W_OUC.flatten(1)


def room_for(rows, inputs):
    """Working memory of matvec, where it rearranges `rows` of inputs, in the form that needs the most."""
    return torch.empty(rows * (-(-inputs // BLOCK) * BLOCK + 1))


def matvec(x_BI, W_OC, scale_O=None, bias_O=None):
    """y_BO = x_BI W^T + bias_O in fp32. W_OC: in_lines' in fp32, bf16 or int8 (times scale_O), or in_blocks'."""
    (rows, inputs), x_BI = x_BI.shape, x_BI.contiguous()
    unit, unit_bytes = (BLOCK, BLOCK_BYTES) if W_OC.dtype == torch.uint8 else (LINE // W_OC.itemsize, LINE)
    assert x_BI.dtype == torch.float32 and W_OC.shape[1] * W_OC.itemsize == -(-inputs // unit) * unit_bytes
    y_BO, room = torch.empty(rows, len(W_OC)), room_for(rows, inputs)
    library()[0].matvec(Matrix(W_OC, scale_O, bias_O, inputs), x_BI.data_ptr(), y_BO.data_ptr(), room.data_ptr(), rows,
                        torch.get_num_threads())
    return y_BO


def read_all(numbers):
    """Read an fp32 tensor (in_huge_pages) as fast as memory delivers it, but for less than 512 bytes per thread."""
    threads = torch.get_num_threads()
    each = 128 * threads
    library()[0].read_all(numbers.data_ptr(), numbers.numel() // each * each, threads)
