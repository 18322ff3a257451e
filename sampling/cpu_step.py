"""One token on a CPU as one call of cpu_step.c.

    step = CpuStep(model, cache)               # the KVCache (cache.py) of a prompt that has been read
    logits_BV = step(ids_B1)

Not here: the computation, and why it is one call (cpu_step.c); the same on a GPU (cuda_graph.py).
"""
import ctypes
from ctypes import POINTER, c_float, c_long, c_void_p

import torch

from model import GPT
from sampling.native import Matrix, library, room_for


class Norm(ctypes.Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class Layer(ctypes.Structure):
    _fields_ = ([(name, Norm) for name in ("ln_1", "ln_2")]
                + [(name, Matrix) for name in ("c_attn", "attn_c_proj", "c_fc", "mlp_c_proj")]
                + [("keys", c_void_p), ("values", c_void_p), ("scale", c_float)])


class Step(ctypes.Structure):
    _fields_ = ([("layers", POINTER(Layer)), ("ln_f", Norm), ("head", Matrix)]
                + [(name, c_long) for name in ("n_layer", "n_embd", "n_head", "mlp_width", "B", "positions")]
                + [("eps", c_float)] + [(name, c_void_p) for name in ("x", "normed", "wide", "scores", "room")])


def serves(model, cache):
    """Whether CpuStep can compute this model: a GPT-2 on a CPU, in a layout of matvec.c."""
    return type(model) is GPT and getattr(model.lm_head, "layout", "").startswith("matvec") and cache.v_LBHSK.is_cpu


class CpuStep:
    """ids_B1 -> logits_BV of the next token; each call adds a token to the cache."""

    def __init__(self, model, cache):
        cfg, (L, B, H, _, S) = model.cfg, cache.k_LBHKS.shape
        assert cache.k_LBHKS.is_contiguous() and cache.v_LBHSK.is_contiguous()
        D, widest = cfg.n_embd, max(3 * cfg.n_embd, cfg.mlp_width)
        self.model, self.cache = model, cache
        self.layers = (Layer * L)(*(Layer(
            norm(block.ln_1), norm(block.ln_2), matrix(block.attn.c_attn, D), matrix(block.attn.c_proj, D),
            matrix(block.mlp.c_fc, D), matrix(block.mlp.c_proj, cfg.mlp_width), k_BHKS.data_ptr(), v_BHSK.data_ptr(),
            block.attn.scale) for block, k_BHKS, v_BHSK in zip(model.h, cache.k_LBHKS, cache.v_LBHSK, strict=True)))
        self.x_BD, *self.room = (torch.empty(B, D), torch.empty(B, D), torch.empty(B * widest + 7),
                                 torch.empty(B * H * S), room_for(B, widest))
        self.step = Step(self.layers, norm(model.ln_f), matrix(model.lm_head, D), L, D, H, cfg.mlp_width, B, S,
                         cfg.layer_norm_epsilon, self.x_BD.data_ptr(), *(room.data_ptr() for room in self.room))

    def __call__(self, ids_B1):
        length = self.cache.length
        assert length < self.cache.v_LBHSK.shape[3]
        self.x_BD.copy_(self.model.embed(ids_B1, torch.tensor([length]))[:, 0])
        logits_BV = torch.empty(len(ids_B1), self.step.head.outputs)
        library()[0].cpu_step(ctypes.byref(self.step), logits_BV.data_ptr(), length, torch.get_num_threads())
        self.cache.length += 1
        return logits_BV


def norm(layer_norm):
    return Norm(layer_norm.weight.data_ptr(), layer_norm.bias.data_ptr())


def matrix(fast_linear, inputs):
    return Matrix(*fast_linear.packed, inputs)
