"""Is the attention that this machine's assembler compiled right? Compared with fp64, with and without dropout.

An assembler that miscompiles may corrupt a few elements only, so the error is that of the worst element. A race changes
from run to run, so every result must have the same bits several times.
"""
from itertools import product

import torch
import triton
import triton.language as tl

from kernels.flash_attention import _kept, attention_reference, dropout_in_256, flash_attention

ALLOWED = 2e-2          # |x - fp64| of the worst element, as a part of the largest; bf16 alone reaches 8e-3
BLOCK = tl.constexpr(64)


@triton.jit
def _kept_kernel(seed_pointer, kept, T, DROP: tl.constexpr):
    """kept [heads, T, T] bool: the elements that dropout keeps; T is a multiple of BLOCK."""
    head, t, s = tl.program_id(0), tl.program_id(1) * BLOCK, tl.program_id(2) * BLOCK
    kept_TS = _kept(tl.load(seed_pointer), head, t, s, DROP, BLOCK, BLOCK)
    offset_TS = (t + tl.arange(0, BLOCK))[:, None] * T + (s + tl.arange(0, BLOCK))[None, :]
    tl.store(kept + head.to(tl.int64) * T * T + offset_TS, kept_TS)


def kept_by_dropout(seed, B, H, T, dropout_p):
    """keep_BHTS for attention_reference: 0 where dropout drops, else 1/(1-p)."""
    drop = dropout_in_256(dropout_p)
    kept_BHTS = torch.empty(B, H, T, T, dtype=torch.bool, device=seed.device)
    _kept_kernel[(B * H, T // BLOCK.value, T // BLOCK.value)](seed, kept_BHTS, T, DROP=drop)
    return kept_BHTS * (256 / (256 - drop))


def attention_errors(device, head_width, B=2, H=2, T=1024, times=3):
    """{"attention, dropout 0.1: dq": error, ...} of out, dq, dk and dv, with one document per row and with several."""
    errors = {}
    for dropout_p, documents in product((0.0, 0.1), (False, True)):
        generator = torch.Generator(device).manual_seed(1)
        qkv_BT3C = torch.randn(B, T, 3 * H * head_width, device=device, generator=generator).bfloat16().requires_grad_()
        dout_BTC = torch.randn(B, T, H * head_width, device=device, generator=generator).bfloat16()
        seed = torch.tensor([11], device=device)
        start_T = torch.arange(T, device=device) // (T // 3) * (T // 3)
        starts_BT = start_T.int().repeat(B, 1) if documents else None

        results = []
        for _ in range(times):
            out_BTC = flash_attention(qkv_BT3C, H, head_width**-0.5, dropout_p, seed, starts_BT)
            [dqkv_BT3C] = torch.autograd.grad(out_BTC, qkv_BT3C, dout_BTC)
            results.append((out_BTC.detach(), *dqkv_BT3C.chunk(3, 2)))

        keep_BHTS = kept_by_dropout(seed, B, H, T, dropout_p) if dropout_p else 1.0
        double_BT3C = qkv_BT3C.detach().double().requires_grad_()
        ref_BTC, _ = attention_reference(double_BT3C, H, head_width**-0.5, keep_BHTS, starts_BT)
        [dref_BT3C] = torch.autograd.grad(ref_BTC, double_BT3C, dout_BTC.double())

        name = "attention" + f", dropout {dropout_p}" * (dropout_p > 0) + ", documents" * documents
        references = ref_BTC, *dref_BT3C.chunk(3, 2)
        for part, ref, first, *again in zip(("out", "dq", "dk", "dv"), references, *results, strict=True):
            same = all(torch.equal(first, other) for other in again)
            error = (first.double() - ref).abs().max() / ref.abs().max()
            errors[f"{name}: {part}"] = error.item() if same else float("inf")
    return errors
