"""AdamW with one byte for each of its two moments instead of four: 2.6 billion weights are fine-tuned on one 24 GB GPU.

A moment is cut into blocks of 256 numbers that share a scale, their largest magnitude. Each number is stored as one of
127 levels with a sign (m), or of 255 levels (v). Each level is 2^(1/8) times the one below, because the relative error
is what matters in m / sqrt(v).

Numbers are rounded at random to one of the two nearest levels, so that the mean is right. TRAP: v changes by a
thousandth per step. With rounding to the nearest level, which is 4 % away, it would never change. Weights in bfloat16
are rounded at random for the same reason: a step of 2e-6 is far below their last bit.

Why not torchao's AdamW8bit: checkpoint.py cannot save its state, and its step is compiled for every shape, or needs
temporaries as large as the largest weight. For one process only, because fsdp already divides the moments.
Dettmers et al. 2022 (arXiv 2110.02861).
"""
import math

import torch

BLOCK = 256
LEVELS_PER_OCTAVE = 8
CHUNK = BLOCK * 2**16        # numbers at once, so that temporaries have 64 MiB and not the size of the largest weight


class AdamW8bit(torch.optim.Optimizer):
    """torch.optim.AdamW, for one process. A step draws from torch's global random generator."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):                    # torch's checkpoints call it with closure=None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, self.state[p], group)

    def update(self, p, state, group):
        if not state:
            blocks = -(-p.numel() // BLOCK)
            state["step"] = torch.zeros(())
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros(blocks * BLOCK, dtype=torch.uint8, device=p.device)
                state[moment + "_scale"] = torch.zeros(blocks, device=p.device)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        # 1 - beta^step. Near 1, a difference would lose half of fp32's digits; an Apple GPU has no fp64.
        correction1, correction2 = (-torch.expm1(state["step"] * math.log(beta)) for beta in group["betas"])
        weights, gradients = p.view(-1), p.grad.reshape(-1)
        for start in range(0, p.numel(), CHUNK):
            here, blocks = slice(start, start + CHUNK), slice(start // BLOCK, (start + CHUNK) // BLOCK)
            g, w = gradients[here].float(), weights[here].float()
            m = dequantize(state["exp_avg"][here], state["exp_avg_scale"][blocks], signed=True)[:len(g)]
            v = dequantize(state["exp_avg_sq"][here], state["exp_avg_sq_scale"][blocks], signed=False)[:len(g)]
            m, v = m.lerp_(g, 1 - beta1), v.lerp_(g * g, 1 - beta2)
            w *= 1 - group["lr"] * group["weight_decay"]
            w -= group["lr"] / correction1 * m / ((v / correction2).sqrt_() + group["eps"])
            weights[here] = w if p.dtype == torch.float32 else randomly_rounded_to_bfloat16(w)
            for name, value, signed in (("exp_avg", m, True), ("exp_avg_sq", v, False)):
                state[name][here], state[name + "_scale"][blocks] = quantize(value, signed)


def quantize(x, signed):
    """x (1-D fp32) to (codes, uint8, padded to whole blocks; scales, fp32, one per block). Code 0 is the number 0."""
    x = torch.nn.functional.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
    top, magnitude = 127 if signed else 255, x.abs()
    scale = magnitude.amax(1)
    magnitude = magnitude / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    level = (top + LEVELS_PER_OCTAVE * magnitude.log2()).floor_().clamp_(0, top - 1)      # the level below x ...
    low, high = value_of(level, top), value_of(level + 1, top)
    level += torch.rand_like(level) * (high - low) < magnitude - low                     # ... or the one above
    codes = level + 128 * (x < 0) if signed else level
    return codes.to(torch.uint8).view(-1), scale


def dequantize(codes, scale, signed):
    code = codes.view(-1, BLOCK).int()
    value = value_of(code & 127, 127) * (1 - 2 * (code >> 7)) if signed else value_of(code, 255)
    return (value * scale[:, None]).view(-1)


def value_of(level, top):
    """The magnitude of a level, relative to the block's scale."""
    return torch.exp2((level - top) / LEVELS_PER_OCTAVE) * (level > 0)


def randomly_rounded_to_bfloat16(x):
    """fp32 to bf16, rounded up or down at random: add random bits below bf16's last bit, then cut them off."""
    bits = x.view(torch.int32) + torch.randint_like(x, 2**16, dtype=torch.int32)
    return (bits & -(2**16)).view(torch.float32).to(torch.bfloat16)
