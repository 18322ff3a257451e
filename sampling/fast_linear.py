"""One token as fast as memory delivers the weights.

Teaches why generating is slow: every new token reads every weight once and uses it for two operations, so a token takes
(bytes of the weights) / (bandwidth of the memory), if the matrix product can keep up. Whether it can depends on how the
weights are stored and on the processor's instructions. LAYOUTS has the ways to store them.
Not here: which layout is the fastest here (choice.py), training (these layers have no gradient), reading folders
(model.py; lay_out comes after it, and a model that is laid out cannot be saved).

    lay_out(model, "matvec")                        # replaces every nn.Linear, and sets model.lm_head

    layout        weights     inputs  where, and its price
    plain         any         same    F.linear. GPUs, and fp32 on a CPU without a C compiler
    matvec        fp32, bf16  fp32    any CPU with a C compiler: sampling/matvec.c, at the speed of memory
    matvec_int8   int8        fp32    the same; weights are rounded to 8 bits with a scale per output, inputs to 16 bits
    matvec_int4   int4        fp32    the same; weights are rounded to 4 bits with a scale per 32, inputs to 8 bits too
    onednn        bf16        bf16    CPUs with bf16 instructions: packed for oneDNN, twice as fast as F.linear
    int8          int8        fp32    x86 CPUs with 8-bit instructions (VNNI), or no compiler: inputs of 8 bits as well
    widened       bf16, fp16  fp32    any CPU: converted to fp32, a block at a time; for bf16 if there is no compiler
    widened_int8  int8        fp32    the same, and GPUs (inputs as the model has them): saves memory, not time

TRAP: without bf16 instructions (AVX-512 BF16, AMX) torch computes a bf16 product of more than one row in a scalar loop,
40 to 100 times slower than fp32. No layout but `plain` and `onednn` calls it.
Relative errors of one product of Gaussian weights: bf16 0.2 %, int8 0.9 % (layout int8 without VNNI 1.8 %), int4 8.6 %.
"""
import functools
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from model import linears
from sampling.native import in_blocks, in_huge_pages, in_lines, library, matvec, read_all

MANY = 32                                # rows whose arithmetic takes much longer than reading the weights
BLOCK = 2**19                            # weights converted at a time: 2 MB in fp32, which stay in the cache
MIN_BYTES_TO_JUDGE_BANDWIDTH = 2**28     # per token; fewer may stay in the cache

# ---- The layouts: how each packs the weights, and multiplies x_BI with them. I and O: inputs, outputs ----
# scale_O belongs to weights of 8 bits, and is None for others; bias_O, in the dtype of the inputs, may be None.

def quantize(W_OI):
    """(int8_OI, scale_O): the largest weight of each output becomes 127."""
    scale_O = W_OI.float().abs().amax(1).clamp(min=1e-12) / 127
    return (W_OI.float() / scale_O[:, None]).round_().to(torch.int8), scale_O


def quantize_int4(W_OI, group=32, multiple=256):
    """(int8_OI of -8 to 7, scale_OG in bf16), I padded to a multiple: the largest weight of each group becomes -8."""
    W_OGI = F.pad(W_OI.float(), (0, -W_OI.shape[1] % multiple)).unflatten(1, (-1, group))
    low_OG, high_OG = W_OGI.amin(2), W_OGI.amax(2)
    scale_OG = (torch.where(high_OG > -low_OG, high_OG, low_OG) / -8).bfloat16()
    steps_OGI = W_OGI / torch.where(scale_OG == 0, 1, scale_OG).float()[..., None]
    return steps_OGI.round_().clamp_(-8, 7).to(torch.int8).flatten(1), scale_OG


def widened(x_BI, W_OI, scale_O, bias_O):
    """Weights are converted to the inputs' dtype: on a CPU block by block, through one buffer that stays in the cache,
    which is 5 to 10 times as fast as the whole matrix at once.

    TRAP: torch.mv on bf16 weights is faster for one row, but rounds inputs and outputs to bf16: a sample would then
    depend on whether others are drawn beside it."""
    rows = max(1, BLOCK // W_OI.shape[1]) if W_OI.is_cpu else len(W_OI)
    buffer_PI = torch.empty(rows, W_OI.shape[1], dtype=x_BI.dtype, device=x_BI.device)
    y_BO = torch.cat([x_BI @ buffer_PI[:len(W_PI)].copy_(W_PI).t() for W_PI in W_OI.split(rows)], -1)
    if scale_O is not None:
        y_BO *= scale_O.to(y_BO.dtype)
    return y_BO if bias_O is None else y_BO + bias_O


def few_or_many(x_BI, W_OC, scale_O, bias_O):
    """The C loop; for many rows of fp32 (a prompt) torch's product of matrices, which is faster there."""
    if len(x_BI) < MANY or W_OC.dtype != torch.float32:
        return matvec(x_BI, W_OC, scale_O, bias_O)
    return F.linear(x_BI, W_OC[:, :x_BI.shape[1]], bias_O)


def onednn(x_BI, packed, scale_O, bias_O):
    return torch.ops.mkldnn._linear_pointwise(x_BI, packed, bias_O, "none", [], "")


def pack_int8(int8_OI, scale_O):
    """(packed, sum_O): the sum of an output's weights takes the place of their scale, which `packed` contains."""
    with warnings.catch_warnings():                # torch plans to replace its quantized tensors; see `operators`
        warnings.simplefilter("ignore", UserWarning)
        zero_O = torch.zeros(len(int8_OI), dtype=torch.int64)
        quantized_OI = torch._make_per_channel_quantized_tensor(int8_OI, scale_O, zero_O, 0)
    return torch.ops.quantized.linear_prepack(quantized_OI, None), int8_OI.float().sum(1) * scale_O


def int8(x_BI, packed, sum_O, bias_O):
    """W x = span W (x - low) / span + low W 1, where (x - low) / span of every row runs from 0 to 1.

    TRAP: linear_dynamic rounds all rows with one scale, so a row's result would depend on the rows beside it. When
    every row runs from 0 to 1, the scale is always the same, and each row uses its full range.
    TRAP: AVX2 adds two products of 8-bit inputs and weights into 16 bits, where 255 * 127 * 2 overflows. With 7 bits
    for the inputs (reduce_range) it cannot. VNNI adds into 32 bits and does not need that.
    """
    low_B1, high_B1 = x_BI.amin(1, keepdim=True), x_BI.amax(1, keepdim=True)     # aminmax is not vectorised
    span_B1 = (high_B1 - low_B1).clamp(min=1e-12)
    y_BO = torch.ops.quantized.linear_dynamic((x_BI - low_B1) / span_B1, packed,
                                              not has("avx512_vnni", "avx_vnni", "amx_int8"))
    y_BO.mul_(span_B1).addcmul_(low_B1, sum_O)
    return y_BO if bias_O is None else y_BO.add_(bias_O)


@dataclass(frozen=True)
class Layout:
    pack: Callable | None                           # (W_OI, scale_O) -> both as multiply reads them; None: as they are
    multiply: Callable                              # (x_BI, packed weights, packed scale, bias_O) -> y_BO
    inputs: torch.dtype | None                      # dtype of x_BI on a CPU; None keeps the model's
    int8: bool = False                              # weights of 8 bits
    operators: tuple[str, ...] = ()                 # private operators of torch, which a release may drop


LAYOUTS = {
    "plain": Layout(None, lambda x_BI, W_OI, scale_O, bias_O: F.linear(x_BI, W_OI, bias_O), None),
    "matvec": Layout(lambda W_OI, scale_O: (in_lines(W_OI), scale_O), few_or_many, torch.float32),
    "matvec_int8": Layout(lambda W_OI, scale_O: (in_lines(W_OI), scale_O), matvec, torch.float32, True),
    "matvec_int4": Layout(lambda W_OI, scale_O: (in_blocks(*quantize_int4(W_OI)), None), matvec, torch.float32),
    "onednn": Layout(lambda W_OI, scale_O: (torch.ops.mkldnn._reorder_linear_weight(W_OI, 1), None), onednn,
                     torch.bfloat16, False, ("mkldnn._reorder_linear_weight", "mkldnn._linear_pointwise")),
    "int8": Layout(pack_int8, int8, torch.float32, True, ("quantized.linear_prepack", "quantized.linear_dynamic")),
    "widened": Layout(None, widened, torch.float32),
    "widened_int8": Layout(None, widened, torch.float32, True),
}


@functools.cache
def has(*instructions):
    """Whether this CPU has at least one of these instruction sets."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in instructions)


def available(layout):
    """Whether this torch has the private operators that a layout calls."""
    pairs = [operator.split(".") for operator in LAYOUTS[layout].operators]
    return all(hasattr(getattr(torch.ops, package), name) for package, name in pairs)


# ---- A model in a layout ----

class FastLinear(nn.Module):
    """nn.Linear for inference, with its weights in one of the LAYOUTS. `bytes`: of weights that a call reads."""

    def __init__(self, weight_OI, bias_O, layout):
        super().__init__()
        self.layout, self.inputs = layout, weight_OI.shape[1]
        self.dtype = (LAYOUTS[layout].inputs if weight_OI.is_cpu else None) or weight_OI.dtype       # of the inputs
        weight_OI, scale_O = quantize(weight_OI) if LAYOUTS[layout].int8 else (weight_OI, None)
        packed = LAYOUTS[layout].pack(weight_OI, scale_O) if LAYOUTS[layout].pack else (weight_OI, scale_O)
        self.packed = *packed, None if bias_O is None else bias_O.to(self.dtype)
        self.bytes = (self.packed[0] if layout == "matvec_int4" else weight_OI).nbytes

    def forward(self, x):
        y_BO = LAYOUTS[self.layout].multiply(x.reshape(-1, x.shape[-1]), *self.packed)
        return y_BO.view(*x.shape[:-1], -1)


@torch.no_grad()
def lay_out(model, layout):
    """Store the weights of a loaded model.GPT in a layout, one matrix after the other; the originals are freed.
    Sets model.lm_head: the head's weights, for BioMedLM the token embedding's. `plain` and `widened` share the
    embedding's memory; the others store it twice (BioMedLM: 74 MB in int8, 148 MB in bf16), since looking up a token
    needs it as it was. With matvec_int4 the head is in int8: 4 bits cost the most there (results/sample_runs.md)."""
    for block in model.h:
        for owner, name, linear in linears(block):
            bias_O = None if linear.bias is None else linear.bias.detach()
            setattr(owner, name, FastLinear(linear.weight.detach(), bias_O, layout))
    head_layout = "matvec_int8" if layout == "matvec_int4" else layout
    model.lm_head = FastLinear((model.lm_head or model.wte).weight.detach(), None, head_layout)

    # All but the token embedding take the dtype of the inputs: a bf16 row of it plus an fp32 position is fp32.
    for name, p in model.named_parameters():
        if name != "wte.weight":
            p.data = p.data.to(model.lm_head.dtype)


def weight_bytes(model):
    """The bytes of weights that one token has to read, for a model that is laid out."""
    return sum(module.bytes for module in model.modules() if isinstance(module, FastLinear))


# ---- How fast memory is ----

def bandwidth_meter(device):
    """A function that measures once how many bytes memory gives per second. A CPU reads 256 MB in the fastest way we
    know (without a C compiler by torch's sum, which is slower); a GPU copies 1 GB, which is 2 GB read and written."""
    if device.type == "cuda":
        a = torch.ones(2**28, device=device)
        b = torch.empty_like(a)
    else:
        a, b = in_huge_pages(2**26, dtype=torch.float32).fill_(1.0), None

    def measure():
        start = time.perf_counter()
        if b is not None:
            b.copy_(a)
            torch.cuda.synchronize(device)
        elif library()[0]:
            read_all(a)
        else:
            a.sum()
        return a.nbytes * (1 if b is None else 2) / (time.perf_counter() - start)
    return measure


def read_bandwidth(device):
    measure = bandwidth_meter(device)
    return max(measure() for _ in range(6))


def share_of_bandwidth(model, prompt_length, rows, times):
    """Bytes that the tokens after the first had to read, weights and cache, divided by what memory could have given in
    their time. times: the start, then when each token was complete. None for too few bytes, and on Apple's GPUs."""
    steps = len(times) - 2
    if steps < 1 or weight_bytes(model) < MIN_BYTES_TO_JUDGE_BANDWIDTH or model.wte.weight.is_mps:
        return None
    cfg = model.cfg
    per_position = 2 * cfg.n_layer * cfg.n_head * cfg.head_width * model.ln_f.weight.itemsize * rows
    cache_bytes = per_position * sum(range(prompt_length, prompt_length + steps))
    bytes_per_second = (steps * weight_bytes(model) + cache_bytes) / (times[-1] - times[1])
    return bytes_per_second / read_bandwidth(model.ln_f.weight.device)
