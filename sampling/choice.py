"""Which layout and how many threads are the fastest here: measured, not guessed.

Teaches that a rule about processors is wrong on the next processor, while a measurement is not. Where several layouts
can run, each multiplies one of the model's own matrices with one row (a new token), whose time decides, and with many
(a prompt). Two layouts at once would take twice the memory; if another is faster for many rows, the reason names it.
Not here: the layouts (fast_linear.py).

    choice = choose_layout("int8", model)           # choice.layout, choice.reason
    choice = choose_layout("int8", model, "int8")   # fixed: nothing is measured

COST: about a second for a model of BioMedLM's size. Small models are not measured: they take the first candidate.
"""
import os
import time
from dataclasses import dataclass

import torch

from model import linears
from plumbing.common import UserError
from sampling.fast_linear import FastLinear, available, has
from sampling.native import library

ROWS = 64                     # of a prompt
REPEATS = 3                   # of which the shortest counts
CLEARLY = 1.1                 # a later candidate must be that many times as fast; smaller differences may be noise
OTHER = 2**24                 # numbers (64 MB) that are read between two products, to empty the cache
MIN_WEIGHTS = 2**22           # of the measured matrix; smaller ones stay in the processor's cache


@dataclass(frozen=True)
class Choice:
    layout: str
    reason: str = ""          # what was measured, for the user


def candidates(dtype, device):
    """The layouts that suit weights of `dtype` on this device; the first is the one that is usually the fastest."""
    if device.type != "cpu":
        return {"int8": ["widened_int8"], "int4": []}.get(dtype, ["plain"])

    compiled = library()[0] is not None
    bf16 = has("avx512_bf16", "amx_bf16")
    fbgemm = "x86" in torch.backends.quantized.supported_engines and available("int8")
    usable = {
        "float32": {"matvec": compiled, "plain": True},
        "bfloat16": {"matvec": compiled, "onednn": bf16 and available("onednn"),
                     "plain": bf16 and not available("onednn"), "widened": not compiled},
        "float16": {"widened": True},
        "int8": {"matvec_int8": compiled, "int8": fbgemm, "widened_int8": not compiled},
        "int4": {"matvec_int4": compiled}}
    return [layout for layout, here in usable[dtype].items() if here]


def choose_layout(dtype, model, fixed="auto"):
    """The fastest layout on this machine for weights of `dtype`: "float32", "bfloat16", "float16", "int8" or "int4"."""
    layouts = candidates(dtype, model.wte.weight.device)
    if not layouts:
        raise UserError(f"--dtype {dtype} needs a CPU (--device cpu) and a C compiler; use --dtype int8")
    if fixed != "auto":
        if fixed not in layouts:
            raise UserError(f"--layout {fixed}: {dtype} weights can here have the layouts {', '.join(layouts)}")
        return Choice(fixed)
    W_OI = max((linear.weight for _, _, linear in linears(model.h[0])), key=torch.Tensor.numel).detach()
    if len(layouts) == 1 or W_OI.numel() < MIN_WEIGHTS:
        return Choice(layouts[0])

    seconds = {layout: measure(layout, W_OI) for layout in layouts}
    layout = fastest({name: one for name, (one, _) in seconds.items()})
    for_prompts = fastest({name: many for name, (_, many) in seconds.items()})
    times = ", ".join(f"{name} {1e3 * one:.1f} and {1e3 * many:.0f} ms" for name, (one, many) in seconds.items())
    reason = f"1 and {ROWS} rows of one matrix: {times}"
    if seconds[layout][1] > CLEARLY * seconds[for_prompts][1]:
        reason += f"; for many samples or long prompts --layout {for_prompts} may be faster"
    return Choice(layout, reason)


def choose_threads(model):
    """How many threads multiply one row the fastest: torch's number, or half of it, or half of that, and so on. Fewer
    are faster where a container is given fewer processors than it can see. OMP_NUM_THREADS fixes the number."""
    threads = torch.get_num_threads()
    linear = max((module for module in model.h[0].modules() if isinstance(module, FastLinear)), key=lambda m: m.bytes)
    if not model.wte.weight.is_cpu or "OMP_NUM_THREADS" in os.environ or linear.bytes < MIN_WEIGHTS:
        return threads

    seconds = {}
    while threads:
        torch.set_num_threads(threads)
        seconds[threads] = time_of_rows(linear, 1)
        threads //= 2
    return fastest(seconds)


def fastest(seconds):
    """The first name, unless a later one is clearly faster."""
    best = next(iter(seconds))
    for name in seconds:
        if CLEARLY * seconds[name] < seconds[best]:
            best = name
    return best


def measure(layout, W_OI):
    """(seconds of one row, seconds of ROWS rows)"""
    linear = FastLinear(W_OI, None, layout)
    return time_of_rows(linear, 1), time_of_rows(linear, ROWS)


@torch.inference_mode()
def time_of_rows(linear, rows):
    """The shortest seconds of REPEATS products. Before each, other memory is read, to empty the processor's cache."""
    x_BI, other, seconds = torch.ones(rows, linear.inputs, dtype=linear.dtype), torch.ones(OTHER), []
    linear(x_BI)
    for _ in range(REPEATS):
        other.sum()
        start = time.perf_counter()
        linear(x_BI)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
