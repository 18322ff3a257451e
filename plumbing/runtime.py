"""What a run needs of the machine: a device, a precision, its speed limit, signals to stop at.

Not here: what is computed; many processes (parallel.py).
"""
import signal
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from plumbing.common import UserError


def pick_device(name="auto"):
    """The device called "cpu", "cuda" or "mps" (Apple's GPU), or for "auto" a GPU if there is one."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, usable in there.items() if usable)
    if not there[name]:
        raise UserError(f"--device {name}: this machine has no such device, or this torch cannot use it")
    return torch.device(name)


def precise_dtype(device):
    """float64 where the device has it; Apple's GPUs have not."""
    return torch.float32 if device.type == "mps" else torch.float64


def free_memory(device):
    """Bytes that can still be allocated on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")                  # Linux
    if device.type != "cpu" or not meminfo.is_file():
        return None
    return next(1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if "MemAvailable" in line)


def matrix_dtype(dtype, device):
    """"bfloat16" or "float32" for "auto": bfloat16 where the processor has instructions for it. Where it has none, it
    is emulated, a hundred times slower than float32."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def autocast(device, dtype):
    """Matrix products in bfloat16 over fp32 weights, as the paper computed (table 6); or nothing, for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


@cache                                               # measuring takes a second, and a machine stays what it is
def peak_flops(device, dtype):
    """(FLOP/s that count as 100 %, where the number is from): the data sheet's dense bf16 rate, or what a large product
    of matrices reaches here on a machine that has no such sheet."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for chip, flops in (("A100", 312e12), ("H100", 989e12), ("H200", 989e12)):
            if chip in name:
                return flops, f"{chip}'s dense bf16 peak"
    a = torch.randn(1024, 1024, device=device, dtype=getattr(torch, dtype))
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        (a @ a)[0, 0].item()                        # .item() waits for the result
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(seconds), "what a 1024 x 1024 product reaches here"


@contextmanager
def stop_on_signals():
    """Yield a list that Ctrl-C, SIGTERM (a job that is moved) or SIGUSR1 (a job whose time is up) fills; the loop looks
    at it between steps, saves and leaves."""
    received = []
    old = {number: signal.signal(number, lambda number, frame: received.append(number))
           for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
