"""What a run needs of the machine: a device, memory, a precision, signals to stop at.

Not here: what is computed; many processes (training/parallel.py); speed limits (training/monitor.py, sampling/).
"""
import ctypes
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from plumbing.common import UserError

# The settings --device; mps is Apple's GPU, on which nothing has been run yet.
Device = Literal["auto", "cpu", "cuda", "mps"]

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")      # Ctrl-C; a job is moved; its time is up. Windows lacks the last


def pick_device(name="auto"):
    """The device that --device names; "auto" is an NVIDIA GPU, else Apple's (mps), else the CPU."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind in present if present[kind])
    if not present[name]:
        raise UserError(f"--device {name}: PyTorch finds no such device here; use --device auto")
    return torch.device(name)


def free_memory(device):
    """Bytes that can still be allocated on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")                  # Linux
    if device.type != "cpu" or not meminfo.is_file():
        return None
    return next(1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line)


# Settings of glibc's mallopt, from its malloc.h; "man mallopt" explains them.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_memory(device):
    """Let this process keep the memory that it frees, if the model is on a CPU and the C library is glibc.

    glibc returns large arrays to the system. The next step needs the same arrays again, and the system clears each page
    of 4 KB when it is first written: 230,000 page faults in a step of the preset laptop, a tenth of its time.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if device.type == "cpu" and hasattr(library, "mallopt"):
        library.mallopt(TRIM_THRESHOLD, -1)              # never shrink the heap
        library.mallopt(MMAP_MAX, 0)                     # take large arrays from the heap as well


def matrix_dtype(dtype, device):
    """"bfloat16" or "float32" for "auto": bfloat16 where the processor has instructions for it. Elsewhere it is
    emulated, up to a hundred times slower than float32."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "mps":
        return "float32"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def inference_dtype(dtype, device):
    """matrix_dtype where nothing is trained: "auto" is float16 on NVIDIA's older GPUs, which lack bfloat16. BioMedLM is
    safe in float16: its 1 / (layer + 1) keeps the attention scores small."""
    chosen = matrix_dtype(dtype, device)
    if dtype == "auto" and chosen == "float32" and device.type == "cuda":
        return "float16"
    return chosen


def autocast(device, dtype):
    """Matrix products in bfloat16 over fp32 weights, as the paper computed (table 6), or in float16, where nothing is
    trained; float32 changes nothing."""
    half = torch.float16 if dtype == "float16" else torch.bfloat16
    return torch.autocast(device.type, half, enabled=dtype != "float32")


def precise_dtype(device):
    """float64, for sums over many values; Apple's GPUs have float32 only."""
    return torch.float32 if device.type == "mps" else torch.float64


@contextmanager
def stop_on_signals():
    """Yield a list that the stop signals fill; the loop looks at it between steps, saves and leaves."""
    received = []
    numbers = [getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)]
    old = {number: signal.signal(number, lambda number, frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
