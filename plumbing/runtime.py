"""What a run needs of the machine: a device, a precision, its speed limit, signals to stop at.

Not here: what is computed; many processes (parallel.py).
"""
import signal
import time
from contextlib import contextmanager
from functools import cache

import torch


def pick_device():
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
