"""A token as fast as memory gives the weights.

Teaches why generating is slow: every new token reads every weight once and uses it for two operations, so the time of a
token is (bytes of the weights) / (bandwidth of the memory), if the matrix product can keep up. Whether it can depends
on how the weights lie in memory and what instructions the processor has; LAYOUTS is the table of the ways to lie.
Not here: training (these layers have no gradient), reading folders (model.py, which is packed after it is loaded:
packed weights cannot be saved).

    layout = choose_layout("bfloat16", device)
    lay_out(model, layout)                          # replaces every nn.Linear, and adds model.lm_head

    layout       weights     inputs  where, and its price
    plain        any         same    F.linear. GPUs; on a CPU whatever oneDNN makes of it
    matvec       fp32, bf16  fp32    any CPU with a C compiler: kernels/matvec.c, as fast as memory gives them
    matvec_int8  int8        fp32    the same: weights rounded to 8 bits, each output with its own scale; inputs to 16
    onednn       bf16        bf16    CPUs with bf16 instructions: packed as oneDNN wants it, twice F.linear's speed
    int8         int8        fp32    x86 CPUs with 8-bit instructions (VNNI), or no compiler: inputs of 8 bits, too
    blocks       fp32, bf16  fp32    any CPU, without a compiler: a block of weights at a time is converted, and
                                     multiplied in fp32. To convert bf16 takes longer than to read it
    int8_any     int8        any     8-bit weights anywhere, widened before the product: saves memory, not time

TRAP: without bf16 instructions (AVX-512 BF16, AMX) a bf16 product of more than a row falls back to a loop of scalars in
torch, 40 to 100 times slower than fp32. `blocks` never calls it. Errors of one product, Gaussian weights: bf16 0.2 %,
matvec_int8 and int8_any 0.9 %, int8 1.8 % (without VNNI). What they cost a real model's answers has not been measured.
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
from sampling.native import in_huge_pages, in_lines, library, matvec, read_all

MANY = 32                   # rows of which arithmetic takes much longer than reading the weights
MIN_BYTES_TO_JUDGE_BANDWIDTH = 2**28    # per token; fewer may stay in the processor's cache
BLOCK = 2**19               # weights converted at a time: 2 MB in fp32, which stay in the cache for the product

# ---- How each layout packs W_OI (and the bias) and multiplies x_BI with it. O and I: outputs, inputs ----


def pack_plain(W_OI, bias_O):
    return W_OI, bias_O


def plain(x_BI, W_OI, bias_O):
    return F.linear(x_BI, W_OI, bias_O)


def pack_blocks(W_OI, bias_O):
    return W_OI, None if bias_O is None else bias_O.float()


def blocks(x_BI, W_OI, bias_O):
    """TRAP: torch.mv on bf16 weights is faster for one row, but rounds inputs and outputs to bf16: a sample
    would then depend on whether others are drawn beside it."""
    whole = len(x_BI) == 1 and W_OI.dtype == torch.float32
    rows = len(W_OI) if whole else max(1, BLOCK // W_OI.shape[1])
    if W_OI.dtype == torch.float32:
        y_BO = torch.cat([x_BI @ W_PI.t() for W_PI in W_OI.split(rows)], -1)
    else:                                          # one buffer for all blocks: it stays in the processor's cache
        buffer_PI = torch.empty(rows, W_OI.shape[1])
        y_BO = torch.cat([x_BI @ buffer_PI[:len(W_PI)].copy_(W_PI).t() for W_PI in W_OI.split(rows)], -1)
    return y_BO if bias_O is None else y_BO.add_(bias_O)


def pack_matvec(W_OI, bias_O):
    return in_lines(W_OI), None, None if bias_O is None else bias_O.float()


def few_or_many(x_BI, W_OC, scale_O, bias_O):
    """Many rows of fp32 (a prompt) are left to torch, whose product of matrices is what everyone has made fast."""
    if len(x_BI) < MANY or W_OC.dtype != torch.float32:
        return matvec(x_BI, W_OC, scale_O, bias_O)
    return F.linear(x_BI, W_OC[:, :x_BI.shape[1]], bias_O)


def pack_matvec_int8(W_OI, bias_O):
    int8_OI, scale_O = quantize(W_OI)
    return in_lines(int8_OI), scale_O, None if bias_O is None else bias_O.float()


def pack_onednn(W_OI, bias_O):
    return torch.ops.mkldnn._reorder_linear_weight(W_OI, 1), bias_O


def onednn(x_BI, packed, bias_O):
    return torch.ops.mkldnn._linear_pointwise(x_BI, packed, bias_O, "none", [], "")


def quantize(W_OI):
    """(int8 weights, scale of each output): the largest weight of a row becomes 127."""
    scale_O = W_OI.float().abs().amax(1).clamp(min=1e-12) / 127
    return (W_OI.float() / scale_O[:, None]).round_().to(torch.int8), scale_O


def pack_int8(W_OI, bias_O):
    int8_OI, scale_O = quantize(W_OI)
    with warnings.catch_warnings():                # torch means to replace its quantized tensors; see `operators`
        warnings.simplefilter("ignore", UserWarning)
        zero_O = torch.zeros(len(int8_OI), dtype=torch.int64)
        quantized_OI = torch._make_per_channel_quantized_tensor(int8_OI, scale_O, zero_O, 0)
    sum_O = int8_OI.float().sum(1) * scale_O
    return torch.ops.quantized.linear_prepack(quantized_OI, None), sum_O, 0.0 if bias_O is None else bias_O.float()


def int8(x_BI, packed, sum_O, bias_O):
    """W x = span W (x - low) / span + low W 1, where (x - low) / span of every row runs from 0 to 1.

    TRAP: linear_dynamic rounds all rows on one scale, so that a row's result would depend on those beside it. With all
    rows running from 0 to 1, the scale is the same whatever they are, and each row uses all of it.
    TRAP: AVX2 multiplies 8-bit inputs and weights and adds two products into 16 bits, where 255 * 127 * 2 overflows
    and is cut off. With 7 bits for the inputs (reduce_range) it cannot. VNNI adds into 32 bits and needs no such care.
    """
    low_B1, high_B1 = x_BI.amin(1, keepdim=True), x_BI.amax(1, keepdim=True)     # aminmax is not vectorised
    span_B1 = (high_B1 - low_B1).clamp(min=1e-12)
    y_BO = torch.ops.quantized.linear_dynamic((x_BI - low_B1) / span_B1, packed,
                                              not has("avx512_vnni", "avx_vnni", "amx_int8"))
    return y_BO.mul_(span_B1).addcmul_(low_B1, sum_O).add_(bias_O)


def pack_int8_any(W_OI, bias_O):
    return *quantize(W_OI), bias_O


def int8_any(x_BI, int8_OI, scale_O, bias_O):
    y_BO = F.linear(x_BI, int8_OI.to(x_BI.dtype)) * scale_O.to(x_BI.dtype)
    return y_BO if bias_O is None else y_BO + bias_O.to(x_BI.dtype)


@dataclass(frozen=True)
class Layout:
    pack: Callable                                  # (W_OI, bias_O or None) -> what multiply takes after x_BI
    multiply: Callable                              # (x_BI, *packed) -> y_BO
    inputs: torch.dtype | None                      # of x_BI and all that is no matrix; None: as the model has it
    operators: tuple[str, ...] = ()                 # private ones of torch, which a release may drop


LAYOUTS = {
    "plain": Layout(pack_plain, plain, None),
    "blocks": Layout(pack_blocks, blocks, torch.float32),
    "matvec": Layout(pack_matvec, few_or_many, torch.float32),
    "matvec_int8": Layout(pack_matvec_int8, matvec, torch.float32),
    "onednn": Layout(pack_onednn, onednn, torch.bfloat16,
                     ("mkldnn._reorder_linear_weight", "mkldnn._linear_pointwise")),
    "int8": Layout(pack_int8, int8, torch.float32, ("quantized.linear_prepack", "quantized.linear_dynamic")),
    "int8_any": Layout(pack_int8_any, int8_any, None),
}


@functools.cache
def has(*instructions):
    """Whether this CPU has one of them."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in instructions)


def available(layout):
    """Whether this torch still has the private operators that a layout calls."""
    pairs = [operator.split(".") for operator in LAYOUTS[layout].operators]
    return all(hasattr(getattr(torch.ops, package), name) for package, name in pairs)


def choose_layout(dtype, device):
    """The fastest layout here for weights of "float32", "bfloat16" or "int8"; public operators if private ones are
    gone."""
    if device.type != "cpu":
        return "int8_any" if dtype == "int8" else "plain"
    if dtype == "int8" and "x86" in torch.backends.quantized.supported_engines and available("int8") and (
            has("avx512_vnni", "avx_vnni", "amx_int8") or library()[1]):
        return "int8"
    if dtype == "bfloat16" and has("avx512_bf16", "amx_bf16"):
        return "onednn" if available("onednn") else "plain"
    if library()[1]:
        return "int8_any" if dtype == "int8" else "blocks"
    return "matvec_int8" if dtype == "int8" else "matvec"


# ---- A model with such layers ----


class FastLinear(nn.Module):
    """nn.Linear for inference, its weights in one of the LAYOUTS."""

    def __init__(self, weight_OI, bias_O, layout):
        super().__init__()
        self.layout = layout
        self.packed = LAYOUTS[layout].pack(weight_OI, bias_O)
        self.bytes = weight_OI.numel() * (1 if "int8" in layout else weight_OI.itemsize)

    def forward(self, x):
        y_BO = LAYOUTS[self.layout].multiply(x.reshape(-1, x.shape[-1]), *self.packed)
        return y_BO.view(*x.shape[:-1], -1)


@torch.no_grad()
def lay_out(model, layout):
    """Put the weights of a loaded model.GPT into a layout, one matrix after the other; what they were is freed.

    Sets model.lm_head, mostly the embedding used as the head. `plain` and `blocks` share its memory; the others hold it
    twice (BioMedLM: 74 MB in int8, 148 MB in bf16), since looking up a row needs it as it was.
    """
    for block in model.h:
        for owner, name, linear in linears(block):
            bias_O = None if linear.bias is None else linear.bias.detach()
            setattr(owner, name, FastLinear(linear.weight.detach(), bias_O, layout))
    model.lm_head = FastLinear((model.lm_head or model.wte).weight.detach(), None, layout)
    for name, p in model.named_parameters():       # what is left: the embeddings and the LayerNorms
        if name != "wte.weight":                   # bf16 rows of the embedding + fp32 positions make fp32 inputs
            p.data = p.data.to(LAYOUTS[layout].inputs or p.dtype)


def weight_bytes(model):
    """The bytes of weights that one token has to read, for a model that is laid out."""
    return sum(module.bytes for module in model.modules() if isinstance(module, FastLinear))


# ---- How fast memory is ----


def bandwidth_meter(device):
    """A function that measures once how many bytes memory gives per second.

    On a CPU 256 MB are read in the fastest way we know (without a C compiler by torch's sum, which is slower); on a GPU
    1 GB is copied, which is 2 GB read and written.
    """
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
    their time. times: when each token was complete, after the start. None where too few bytes were read to judge."""
    steps = len(times) - 2
    if steps < 1 or weight_bytes(model) < MIN_BYTES_TO_JUDGE_BANDWIDTH:
        return None
    cfg = model.cfg
    per_position = 2 * cfg.n_layer * cfg.n_head * cfg.head_width * model.ln_f.weight.itemsize * rows
    cache_bytes = per_position * sum(range(prompt_length, prompt_length + steps))
    bytes_per_second = (steps * weight_bytes(model) + cache_bytes) / (times[-1] - times[1])
    return bytes_per_second / read_bandwidth(model.ln_f.weight.device)
