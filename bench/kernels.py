"""How fast each kernel is on this GPU, beside torch's and others' kernels for the same work: a stage of `make gpu`.

    python bench/kernels.py         # one line per kernel, contestant and size; GPU_JSONL=FILE keeps them

Attention has 160 heads of width 128, causal, in bf16, with and without dropout. The contestants are ours, torch's flash
and cuDNN backends, FlexAttention, and FlashAttention 3 or 4 where they can be imported. torch's backends run twice: on
views of the packed q, k, v, as a model has them, where their backward pass also pays for packing the gradient; and on
separate tensors. The other kernels are limited by memory: their figure is the share of what a plain copy reaches.
Times up to T = 1024 are taken in a CUDA graph, since launching a kernel can take as long as the kernel.
Not here: correctness (gpu_checks.py comes first), how a time is taken (bench/measure.py).
"""
import importlib
import sys
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu_records import attempt, emit, kernels_in_use
from bench.measure import ceilings, graph_ms, median_ms, require_gpu
from kernels.cross_entropy import linear_cross_entropy
from kernels.flash_attention import flash_attention
from kernels.flash_decode import append_and_decode
from kernels.gelu import gelu_linear
from kernels.layer_norm import add_layer_norm
from plumbing.common import speaking_to_the_user

B, H, K = 8, 20, 128            # sequences, heads, head width: BioMedLM's
N, D, M, V = 8192, 2560, 10240, 28896
# Best of torch's two / ours: required, and the goal
TARGETS = {("forward", 1024): (0.75, 1.00), ("forward", 4096): (0.70, 0.88),
           ("both", 1024): (0.70, 0.95), ("both", 4096): (0.55, 0.78)}
DEVICE = "cuda"                 # the tests set "cpu" and use tensors without data
INPUTS = 4                      # different ones in turn, so that no cache holds them


def main():
    require_gpu("bench/kernels.py")
    print(kernels_in_use(), flush=True)         # first, since it chooses the assembler
    copy, product = ceilings()
    torch.cuda.empty_cache()
    for T in (1024, 4096):
        time_attention(T)
    time_others(copy, product)
    for batch in (1, 8):
        with attempt(kernel=f"flash_decode, batch {batch}"):
            time_decoding(batch, copy)


# ---- attention -------------------------------------------------------------------------------------------------------

def contestants():
    """{name: (its inputs: "packed" [B, T, 3C], "heads" 3 x [B, H, T, K] or "rows" 3 x [B, T, H, K]; function)}"""
    ours = partial(flash_attention, n_head=H, scale=K**-0.5)
    found = {"ours": ("packed", ours), "ours, dropout": ("packed", partial(ours, dropout_p=0.1))}
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        found |= {name: ("packed", partial(packed_sdpa, backend)),
                  f"{name}, dropout": ("packed", partial(packed_sdpa, backend, dropout_p=0.1)),
                  f"{name}, separate": ("heads", partial(sdpa, backend))}
    found["flex"] = ("heads", flex)
    for name, module in (("FlashAttention 3", "flash_attn_interface"), ("FlashAttention 4", "flash_attn.cute")):
        found[name] = ("rows", partial(other_attention, module))
    return found


def sdpa(backend, q_BHTK, k_BHTK, v_BHTK, dropout_p=0.0):
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, dropout_p=dropout_p)


def packed_sdpa(backend, qkv_BT3C, dropout_p=0.0):
    qkv_3BHTK = qkv_BT3C.unflatten(2, (3, H, K)).permute(2, 0, 3, 1, 4)
    return sdpa(backend, *qkv_3BHTK, dropout_p).transpose(1, 2).flatten(2)


def flex(q_BHTK, k_BHTK, v_BHTK):
    return compiled_flex(q_BHTK.shape[2])(q_BHTK, k_BHTK, v_BHTK)


@cache
def compiled_flex(T):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    mask = create_block_mask(lambda b, h, t, s: t >= s, None, None, T, T, device=DEVICE)
    return partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)


def other_attention(module, q_BTHK, k_BTHK, v_BTHK):
    out = importlib.import_module(module).flash_attn_func(q_BTHK, k_BTHK, v_BTHK, causal=True)
    return out[0] if isinstance(out, tuple) else out


def attention_inputs(layout, T):
    """[(list of leaf tensors, gradient of the output)] * INPUTS"""
    shapes = {"packed": ([(B, T, 3 * H * K)], (B, T, H * K)), "heads": ([(B, H, T, K)] * 3, (B, H, T, K)),
              "rows": ([(B, T, H, K)] * 3, (B, T, H, K))}
    leaves, out = shapes[layout]
    return [([random(*shape) for shape in leaves], random(*out).detach()) for _ in range(INPUTS)]


def random(*shape):
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)


def time_attention(T):
    times = {}
    for name, (layout, function) in contestants().items():
        with attempt(kernel="attention", T=T, contestant=name):
            inputs = attention_inputs(layout, T)
            with torch.no_grad():
                forward, clock = timed([partial(function, *leaves) for leaves, _ in inputs], T <= 1024)
            both, _ = timed([partial(forward_backward, function, *pair) for pair in inputs], T <= 1024)
            times[name] = {"forward": forward, "both": both}
            flops = 4 * B * H * T * T * K / 2                    # causal: half of the two products of T x T x K
            emit(kernel="attention", T=T, contestant=name, forward_ms=forward, both_ms=both, clock=clock,
                 forward_tflops=flops / forward / 1e9, both_tflops=3.5 * flops / both / 1e9)
        torch.cuda.empty_cache()
    for what in ("forward", "both"):
        with attempt(kernel="attention", T=T, ratio=what):
            best = min(times[name][what] for name in ("flash", "cudnn") if name in times)
            required, goal = TARGETS[what, T]
            ratio = best / times["ours"][what]
            emit(kernel="attention", T=T, ratio=what, best_over_ours=ratio, required=required, goal=goal,
                 met=ratio >= required)


def forward_backward(function, leaves, dout):
    return torch.autograd.grad(function(*leaves), leaves, dout)


def timed(calls, in_graph=True):
    """(median ms of one call, which clock). A call that cannot be recorded in a graph is timed by events."""
    if in_graph:
        try:
            return graph_ms(calls), "graph"
        except RuntimeError as error:
            print(f"no graph ({error}); timed by events")
            torch.cuda.synchronize()
    return median_ms(calls), "events"


# ---- kernels that are limited by memory, and the fused loss ----------------------------------------------------------

def time_others(copy, product):
    """Forward and backward of a layer's other kernels; ours, torch's operators, and Liger's where it is importable."""
    weight, bias = random(D), random(D)
    gelu_bias, out_weight, out_bias = random(M), random(D, M), random(D)
    head, targets_N = random(V, D), torch.randint(0, V, (N,), device=DEVICE)

    def torch_norm(x, residual):
        total = x + residual
        return total, F.layer_norm(total, (D,), weight, bias)

    def torch_gelu_linear(h):
        return F.linear(F.gelu(h + gelu_bias, approximate="tanh"), out_weight, out_bias)

    def liger_loss(x):
        loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        return loss(head, x, targets_N)

    # name: (shapes of the inputs, parameters, bytes that must move, operations of the products, {contestant: function})
    cases = {
        "add_layer_norm": ([(N, D)] * 2, [weight, bias], 2 * (4 + 4) * N * D, 0, {
            "ours": lambda x, residual: add_layer_norm(x, residual, weight, bias), "torch": torch_norm,
            "torch.compile": torch.compile(torch_norm)}),
        "gelu_linear": ([(N, M)], [gelu_bias, out_weight, out_bias], 0, 6 * N * M * D, {
            "ours": lambda h: gelu_linear(h, gelu_bias, out_weight, out_bias), "torch": torch_gelu_linear,
            "torch.compile": torch.compile(torch_gelu_linear)}),
        "linear_cross_entropy": ([(N, D)], [head], 0, 6 * N * D * V, {
            "ours": lambda x: linear_cross_entropy(x, head, targets_N),
            "torch": lambda x: F.cross_entropy(F.linear(x, head).float(), targets_N), "Liger": liger_loss}),
    }
    for name, (shapes, parameters, moved, flops, functions) in cases.items():
        for contestant, function in functions.items():
            with attempt(kernel=name, contestant=contestant):
                calls = [whole_pass(function, [random(*shape) for shape in shapes], parameters) for _ in range(2)]
                ms, clock = timed(calls)
                share = moved / copy / ms * 1e3 if moved else flops / product / ms * 1e3
                emit(kernel=name, contestant=contestant, both_ms=ms, clock=clock, share=share,
                     of="a copy's bandwidth" if moved else "a large product's rate")
            torch.cuda.empty_cache()


def whole_pass(function, leaves, parameters):
    """A call to time: forward, and the gradients of all outputs with respect to inputs and parameters."""
    outputs = function(*leaves)
    douts = [torch.ones_like(out) for out in (outputs if isinstance(outputs, tuple) else (outputs,))]
    return lambda: torch.autograd.grad(function(*leaves), leaves + parameters, douts)


def time_decoding(batch, copy, S=1024):
    """One query over S keys, as a decoding step has it, over more caches than the L2 holds."""
    length_B = torch.full((batch,), S, dtype=torch.int32, device=DEVICE)
    moved = 4 * batch * H * S * K
    caches = [torch.randn(2, batch, H, S, K, device=DEVICE, dtype=torch.bfloat16) for _ in range(2 + 2**28 // moved)]
    qkv_BC = torch.randn(batch, 3 * H * K, device=DEVICE, dtype=torch.bfloat16)
    q_BHTK = qkv_BC[:, :H * K].reshape(batch, H, 1, K)
    contestants = {"ours": lambda k, v: append_and_decode(qkv_BC, k, v, length_B, K**-0.5),
                   "torch": lambda k, v: F.scaled_dot_product_attention(q_BHTK, k, v)}
    for name, function in contestants.items():
        with attempt(kernel="flash_decode", batch=batch, contestant=name):
            ms, clock = timed([partial(function, *cache) for cache in caches])
            emit(kernel="flash_decode", batch=batch, keys=S, contestant=name, forward_ms=ms, clock=clock,
                 share=moved / copy / ms * 1e3, of="a copy's bandwidth")


if __name__ == "__main__":
    with speaking_to_the_user():
        main()
