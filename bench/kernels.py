"""The table of kernels on a GPU: attention against torch's two fast backends, the others against their bandwidth.

Correct first: every kernel is compared with fp64 on fresh inputs, over fresh memory full of NaN, before it is timed.
Then for 160 heads of width 128, causal, bf16, the best of torch's flash and cuDNN backends in the same run over ours:
forward and forward + backward at T = 1024, 4096 and 8192; and layer_norm's backward and cross_entropy in TB/s.

    GPU_OUT=folder python bench/kernels.py      (the folder is results/ by default: kernels_gpu.md and kernels_gpu.json)

On Hopper set TRITON_PTXAS_PATH to an assembler of CUDA 13.1 or newer: the one that Triton 3.6 and 3.7 carry, 12.8, is
reported to miscompile kernels with several products there.
"""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # python bench/kernels.py finds common.py
from data import document_starts
from kernels import cross_entropy, flash_attention, layer_norm, measure, require_triton
from kernels.measure import SDPA, attention_ms, ceilings, median_ms, relative_error
from plumbing.common import ROOT, git_commit, speaking_to_the_user, write_json

# Best SDPA time / ours: what is required and what is aimed at; and against SDPA's flash backend alone
TARGETS = {("forward", 1024): (0.75, 1.00), ("forward", 4096): (0.70, 0.88), ("forward", 8192): (0.68, 0.85),
           ("both", 1024): (0.70, 0.95), ("both", 4096): (0.55, 0.78), ("both", 8192): (0.55, 0.78)}
AGAINST_FLASH = {"forward": 1.25, "both": 1.10}
BANDWIDTH = 3.4         # TB/s, of layer_norm's backward and of cross_entropy on an H200, where a copy moves 4.3
CLOSE = 1e-2            # |x - fp64| / |fp64| that bf16 may show


def attention_errors(T=1000, heads=2):
    """{case: largest relative error of the output and of the three gradients}; odd and whole tiles, documents, both
    widths."""
    errors = {}
    for width in (64, 128):
        for length in (T, 1024):
            for docs in (False, True):
                dout_BTC, *qkv = torch.randn(4, 2, length, heads * width, device="cuda", dtype=torch.bfloat16)
                qkv_BT3C = torch.cat(qkv, 2).requires_grad_()
                ids_BT = torch.randint(0, 300, (2, length), device="cuda")
                starts_BT = document_starts(ids_BT, 0) if docs else None
                out_BTC = flash_attention.flash_attention(qkv_BT3C, heads, width**-0.5, doc_start_BT=starts_BT)
                out_BTC.backward(dout_BTC)
                ref_BT3C = qkv_BT3C.detach().double().requires_grad_()
                ref_BTC, _ = flash_attention.attention_reference(ref_BT3C, heads, width**-0.5, 1.0, starts_BT)
                ref_BTC.backward(dout_BTC.double())
                pairs = zip((out_BTC, *qkv_BT3C.grad.chunk(3, 2)), (ref_BTC, *ref_BT3C.grad.chunk(3, 2)), strict=True)
                name = f"attention, width {width}, T = {length}" + ", documents" * docs
                errors[name] = max(relative_error(*pair) for pair in pairs)
    return errors


def other_errors(N=777, D=2560, V=28896):
    """The same for layer_norm and cross_entropy."""
    x, weight, bias = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                       for shape in ((N, D), (D,), (D,)))
    dout, doubles = torch.randn_like(x), [a.detach().double().requires_grad_() for a in (x, weight, bias)]
    y, ref = layer_norm.layer_norm(x, weight, bias), layer_norm.layer_norm_reference(*doubles, 1e-5)
    y.backward(dout)
    ref.backward(dout.double())
    logits, targets = torch.randn(N, V, device="cuda", dtype=torch.bfloat16), torch.randint(0, V, (N,), device="cuda")
    loss_N, gradient_NV = cross_entropy.cross_entropy_reference(logits.double(), targets)
    pairs = {"layer_norm": (y, ref), "cross_entropy": (cross_entropy.cross_entropy_(logits, targets, True), loss_N),
             "cross_entropy gradient": (logits, gradient_NV)}
    pairs |= {f"layer_norm gradient {i}": (a.grad, doubles[i].grad) for i, a in enumerate((x, weight, bias))}
    return {name: relative_error(*pair) for name, pair in pairs.items()}


def attention_table():
    """[(pass, T, {contestant: ms})]."""
    rows = []
    for T in (1024, 4096, 8192):
        contestants = {"ours": measure.OURS, **SDPA}
        times = {name: attention_ms(attention, T) for name, attention in contestants.items()}
        for i, what in enumerate(("forward", "both")):
            rows.append((what, T, {name: pair[i] for name, pair in times.items()}))
    return rows


def bandwidths(N=8192, D=2560, V=28896):
    """{kernel: TB/s of the bytes that must move}."""
    weight, bias = (torch.randn(D, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    backward = []
    for _ in range(4):
        x, residual, *douts = torch.randn(4, N, D, device="cuda", dtype=torch.bfloat16)
        inputs = x.requires_grad_(), residual.requires_grad_(), weight, bias
        outs = layer_norm.add_layer_norm(*inputs)
        backward.append(partial(torch.autograd.grad, outs, inputs, douts, retain_graph=True))
    targets = torch.randint(0, V, (N,), device="cuda")
    logits = [torch.randn(N, V, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    loss = [partial(cross_entropy.cross_entropy_, z, targets, True) for z in logits]
    return {"layer_norm backward": 8 * N * D / median_ms(backward) / 1e9,
            "cross_entropy, 4 V bytes a row": 4 * N * V / median_ms(loss) / 1e9}


def machine():
    assembler, version = os.environ.get("TRITON_PTXAS_PATH"), "bundled"
    if assembler:
        version = subprocess.run([assembler, "--version"], capture_output=True, text=True).stdout.split()[-1]
    return f"{require_triton('cuda')}, torch {torch.__version__}, ptxas {version}, commit {git_commit()}"


def main():
    """Print the table, write it, and return how many required numbers were missed."""
    measure.require_gpu("bench/kernels.py")
    measure.poisoned()
    errors = attention_errors() | other_errors()
    measure.unpoisoned()
    copy, product = ceilings()
    lines = ["# Kernels on a GPU\n", machine(),
             f"a copy moves {copy / 1e12:.2f} TB/s, a bf16 product does {product / 1e12:.0f} TFLOP/s\n"]
    lines += [f"- error {name}: {error:.1e}" + " **WRONG**" * (error > CLOSE) for name, error in errors.items()]
    missed = sum(error > CLOSE for error in errors.values())
    lines += ["", "| pass | T | ours ms | flash | cuDNN | best / ours | required | goal | flash / ours | required |",
              "|---|---|---|---|---|---|---|---|---|---|"]
    attention = attention_table()
    for what, T, ms in attention:
        best, against_flash = min(ms["flash"], ms["cudnn"]) / ms["ours"], ms["flash"] / ms["ours"]
        (required, goal), flash_required = TARGETS[what, T], AGAINST_FLASH[what]
        row = [what, T, *(f"{ms[name]:.3f}" for name in ("ours", "flash", "cudnn")), f"{best:.2f}", required, goal,
               f"{against_flash:.2f}", flash_required]
        lines.append(f"| {' | '.join(map(str, row))} |")
        missed += (best < required) + (against_flash < flash_required)
    rates = bandwidths()
    lines += [""] + [f"- {name}: {rate:.2f} TB/s, required {BANDWIDTH} on an H200" for name, rate in rates.items()]
    missed += sum(rate < BANDWIDTH for rate in rates.values())
    lines.append(f"\n{missed} of the required numbers missed")
    print(*lines, sep="\n")
    out = Path(os.environ.get("GPU_OUT", ROOT / "results"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "kernels_gpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    numbers = dict(machine=machine(), errors=errors, attention_ms=attention, terabytes_a_second=rates)
    write_json(out / "kernels_gpu.json", numbers)
    return missed


if __name__ == "__main__":
    with speaking_to_the_user():
        sys.exit(main() > 0)
