"""AdamW whose two moments take a byte each instead of four: what lets 2.6 billion weights be tuned on one 24 GB GPU.

A moment is cut into blocks of 256 numbers that share a scale, their largest magnitude. Below it lie levels at equal
*ratios*, because what counts in m / sqrt(v) is the relative error: 127 levels and a sign for m, 255 for v, each 2^(1/8)
times the one below. Numbers are rounded at random to one of their two neighbours so that the mean is right. TRAP: v
moves by a thousandth a step; rounded to the nearest level, which is 4 % away, it would never move at all. Weights in
bfloat16 are rounded at random for the same reason: a step of 2e-6 is far below their last bit.

Why not torchao's AdamW8bit: its state cannot be saved by checkpoint.py, and its step is compiled for every shape (23 s
for two matrices here) or keeps temporaries as large as the largest weight. The state here is plain tensors.
For one process: fsdp already divides the moments. Dettmers et al. 2022 (arXiv 2110.02861).
"""
import torch

BLOCK = 256
LEVELS_AN_OCTAVE = 8
CHUNK = BLOCK * 2**16        # numbers at once: temporaries are 64 MiB each, not as large as the largest weight


class AdamW8bit(torch.optim.Optimizer):
    """torch.optim.AdamW, for one process; a step draws from torch's global random numbers."""

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
            state["step"] = torch.zeros((), dtype=torch.float64)
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros(blocks * BLOCK, dtype=torch.uint8, device=p.device)
                state[moment + "_scale"] = torch.zeros(blocks, device=p.device)
        state["step"] += 1
        (beta1, beta2), step = group["betas"], state["step"]
        weights, gradients = p.view(-1), p.grad.reshape(-1)
        for start in range(0, p.numel(), CHUNK):
            here = slice(start, start + CHUNK)
            g, w = gradients[here].float(), weights[here].float()
            m = self.moment(state, "exp_avg", here, len(g), signed=True).lerp_(g, 1 - beta1)
            v = self.moment(state, "exp_avg_sq", here, len(g), signed=False).lerp_(g * g, 1 - beta2)
            w *= 1 - group["lr"] * group["weight_decay"]
            w -= group["lr"] / (1 - beta1**step) * m / ((v / (1 - beta2**step)).sqrt_() + group["eps"])
            weights[here] = w if p.dtype == torch.float32 else randomly_rounded_to_bfloat16(w)
            for name, value, signed in (("exp_avg", m, True), ("exp_avg_sq", v, False)):
                codes, scale = quantize(value, signed)
                state[name][start:start + len(codes)] = codes
                state[name + "_scale"][start // BLOCK:start // BLOCK + len(scale)] = scale

    @staticmethod
    def moment(state, name, here, n, signed):
        blocks = slice(here.start // BLOCK, here.stop // BLOCK)
        return dequantize(state[name][here], state[name + "_scale"][blocks], signed)[:n]


def quantize(x, signed):
    """x (1-D fp32) to (codes, uint8 of whole blocks; scales, fp32 a block). Code 0 is 0; the highest is the scale."""
    x = torch.nn.functional.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK)
    top, magnitude = 127 if signed else 255, x.abs()
    scale = magnitude.amax(1)
    magnitude = magnitude / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    level = (top + LEVELS_AN_OCTAVE * magnitude.log2()).floor_().clamp_(0, top - 1)      # the level below ...
    low, high = value_of(level, top), value_of(level + 1, top)
    level += torch.rand_like(level) * (high - low) < magnitude - low                     # ... or the one above it
    codes = level + 128 * (x < 0) if signed else level
    return codes.to(torch.uint8).view(-1), scale


def dequantize(codes, scale, signed):
    code = codes.view(-1, BLOCK).int()
    value = value_of(code & 127, 127) * (1 - 2 * (code >> 7)) if signed else value_of(code, 255)
    return (value * scale[:, None]).view(-1)


def value_of(level, top):
    """The magnitude of a level, as a share of the block's largest."""
    return torch.exp2((level - top) / LEVELS_AN_OCTAVE) * (level > 0)


def randomly_rounded_to_bfloat16(x):
    """fp32 to bf16, up or down with the probabilities that keep the mean: random bits below bf16's last, then a cut."""
    bits = x.view(torch.int32) + torch.randint_like(x, 2**16, dtype=torch.int32)
    return (bits & -(2**16)).view(torch.float32).to(torch.bfloat16)
