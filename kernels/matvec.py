"""matvec.c, compiled on the machine that runs it, and called on torch's tensors.

Teaches that a loop in C needs no build system: a compiler, a shared library beside Python's own compiled files, ctypes.
Not here: the loop, and why it looks as it does (matvec.c); which weights it is used for (fast_linear.py).
"""
import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from common import written_whole

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")


@functools.cache
def library():
    """(the compiled function, ""), or (None, why there is none)."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or not shutil.which(compiler[0]):
        return None, "there is no C compiler (install gcc or clang, or name yours in CC)"
    # Another processor may share this folder: what it compiled is not for this one.
    content = f"{SOURCE.read_text()} {compiler} {FLAGS} {sorted(torch.cpu.get_capabilities().items())}"
    path = SOURCE.parent / "__pycache__" / f"matvec-{hashlib.sha256(content.encode()).hexdigest()[:16]}.so"
    try:
        if not path.is_file():
            with written_whole(path) as temporary:
                subprocess.run([*compiler, *FLAGS, str(SOURCE), "-o", str(temporary)], check=True, capture_output=True)
        function = ctypes.CDLL(str(path)).matvec
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        return None, f"{SOURCE.name} could not be compiled ({said.decode(errors='replace').strip().splitlines()[-1]})"
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 5
    return function, ""


@functools.cache
def pool(threads):
    return ThreadPoolExecutor(threads)


def matvec(x_BI, W_OI, bias_O=None):
    """y_BO = x_BI W_OI^T + bias_O in fp32, for W_OI in bf16; on torch.get_num_threads() threads."""
    assert W_OI.dtype == torch.bfloat16 and x_BI.dtype == torch.float32 and W_OI.is_contiguous()
    (rows, inputs), outputs, x_BI = x_BI.shape, len(W_OI), x_BI.contiguous()
    y_BO, (function, _) = torch.empty(rows, outputs), library()

    def multiply(first, last):
        if function(W_OI.data_ptr(), 0 if bias_O is None else bias_O.data_ptr(), x_BI.data_ptr(), y_BO.data_ptr(),
                    rows, first, last, outputs, inputs):
            raise MemoryError(f"no memory for a copy of {rows} x {inputs} inputs")

    threads = torch.get_num_threads()
    if threads == 1:
        multiply(0, outputs)
    else:
        ends = [outputs * i // threads for i in range(threads + 1)]
        list(pool(threads).map(multiply, ends, ends[1:]))
    return y_BO
