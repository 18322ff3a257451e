"""How fast a kernel is: timed on the GPU's own clock, against ceilings measured in the same run.

A kernel must at least move its bytes and compute its products. At the rates that a plain copy and a plain matrix
product reach on this GPU, those two times are the physical floor; `line` says how close a time comes to it.

    python -m bench.measure      times candidate tiles of attention: what to write into tiles.py (needs a GPU)

Not here: which kernels are timed beside which of torch's, and the required numbers (bench/kernels.py).
"""
import statistics
from functools import partial
from itertools import product

import torch
import triton

from kernels import architecture, require_triton
from kernels.flash_attention import KERNELS, flash_attention
from kernels.tiles import TILES, Tile
from plumbing.common import UserError, speaking_to_the_user

ROUNDS, WARM_UP = 100, 10


def require_gpu(script):
    if not torch.cuda.is_available():
        raise UserError(f"{script} needs a GPU, and torch finds none here; without one, `make test` interprets every "
                        "kernel and compiles it for sm_80 and sm_90 (python -m kernels.compile_check)")


# ---- Time ------------------------------------------------------------------------------------------------------------

def median_ms(calls, rounds=ROUNDS):
    """Median time of one call. `calls` are the same work on different inputs, in turn, so that no cache holds them."""
    for i in range(max(WARM_UP, len(calls))):
        calls[i % len(calls)]()
    begins, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(rounds)] for _ in range(2))
    torch.cuda.synchronize()
    for i in range(rounds):
        begins[i].record()
        calls[i % len(calls)]()
        ends[i].record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True))


def graph_ms(calls, rounds=ROUNDS):
    """The same without the cost of launches: the calls are recorded in a CUDA graph, which is replayed."""
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return median_ms([graph.replay], rounds) / len(calls)


def ceilings():
    """(bytes/s of a copy, read and written; operations/s of a bf16 product), both on random data: zeros run faster."""
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy = 2 * source.nbytes / median_ms([lambda: target.copy_(source)], 20) * 1e3
    return copy, 2 * 8192**3 / median_ms([lambda: a @ b], 20) * 1e3


def line(name, ms, bytes_moved=0, operations=0, rates=(1.0, 1.0)):
    """One row: time, achieved rate, and how close to the floor."""
    floor_ms = max(bytes_moved / rates[0], operations / rates[1]) * 1e3
    rate = f"{operations / ms / 1e9:7.0f} TFLOP/s" if operations else f"{bytes_moved / ms / 1e6:7.0f} GB/s   "
    return f"{name:48s} {ms:8.3f} ms {rate}  {floor_ms / ms:5.2f} of the floor ({floor_ms:.3f} ms)"


# ---- Error -----------------------------------------------------------------------------------------------------------

def poisoned():
    """From here on fresh memory is NaN, so that an element that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def relative_error(x, reference):
    """|x - reference| / |reference|; infinite if it is NaN."""
    error = ((x.double() - reference.double()).norm() / reference.double().norm()).item()
    return error if error == error else float("inf")


# ---- Attention: 160 heads of BioMedLM's width ------------------------------------------------------------------------

SEQUENCES, HEADS, WIDTH = 8, 20, 128


OURS = partial(flash_attention, n_head=HEADS, scale=WIDTH**-0.5)


def attention_inputs(T, count=4):
    """[(qkv, gradient of the output)], all different."""
    return [(torch.randn(SEQUENCES, T, 3 * HEADS * WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True),
             torch.randn(SEQUENCES, T, HEADS * WIDTH, device="cuda", dtype=torch.bfloat16)) for _ in range(count)]


def attention_ms(attention, T, rounds=ROUNDS):
    """Median milliseconds of (forward, forward + backward) of a function of qkv_BT3C."""
    def forward(qkv_BT3C):
        with torch.no_grad():
            attention(qkv_BT3C)

    def both(qkv_BT3C, dout_BTC):
        torch.autograd.grad(attention(qkv_BT3C), qkv_BT3C, dout_BTC)

    inputs = attention_inputs(T)
    return (median_ms([partial(forward, qkv_BT3C) for qkv_BT3C, _ in inputs], rounds),
            median_ms([partial(both, *pair) for pair in inputs], rounds))


def tune(T=1024):
    """Time candidate tiles for one kernel at a time; the others keep those of TILES."""
    for path in ("plain", "dropout"):
        key = architecture(torch.device("cuda")), WIDTH, path
        attention, chosen = partial(OURS, dropout_p=0.1 * (path == "dropout")), TILES[key]
        for i, kernel in enumerate(KERNELS):
            for tile in (Tile(*sizes) for sizes in product((64, 128), (64, 128), (4, 8), (2, 3), (None, 128))):
                owned, passing = (tile.keys, tile.queries) if kernel is KERNELS[2] else (tile.queries, tile.keys)
                if owned % passing:
                    continue
                TILES[key] = (*chosen[:i], tile, *chosen[i + 1:])
                try:
                    result = "forward {:.3f} ms, with backward {:.3f} ms".format(*attention_ms(attention, T, rounds=20))
                except triton.runtime.errors.OutOfResources as error:
                    result = str(error)
                print(f"{path:8s} {kernel.fn.__name__:15s} {tile}  {result}", "<- chosen" * (tile == chosen[i]))
        TILES[key] = chosen


if __name__ == "__main__":
    with speaking_to_the_user():
        require_gpu("bench/measure.py")
        print(require_triton("cuda"))
        tune()
