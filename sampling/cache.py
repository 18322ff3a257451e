"""The cache: keys and values of the tokens that have been read.

Teaches why generating needs no second look at the text. A token attends to itself and to earlier tokens, never to later
ones, so its keys and values do not change when the text grows. With the cache a step computes q, k and v of the new
token alone, appends k and v, and lets q attend to all. Without it every step would read the whole text again.

    COST: 2 n_layer n_embd numbers per token and row; 328 kB for BioMedLM in bf16

Not here: the loop that uses it (sample.py), the same at fixed addresses (cuda_graph.py) and in C (cpu_step.c).
"""
from functools import partial

import torch
import torch.nn.functional as F

from plumbing.common import UserError
from plumbing.runtime import free_memory
from sampling.native import in_huge_pages


class KVCache:
    """Keys and values of every layer, in the dtype and on the device of `like`. Keys are stored transposed: the scores
    of one query are then a vector times a matrix with contiguous rows. On a CPU that was up to four times as fast as
    F.scaled_dot_product_attention."""

    def __init__(self, cfg, batch, positions, like):
        L, H, K = cfg.n_layer, cfg.n_head, cfg.head_width
        empty = partial(in_huge_pages, dtype=like.dtype) if like.is_cpu else like.new_empty
        self.k_LBHKS = empty(L, batch, H, K, positions)
        self.v_LBHSK = empty(L, batch, H, positions, K)
        self.length = 0                 # the model raises it once all layers have read the new tokens

    @staticmethod
    def check_memory(cfg, rows, positions, like):
        """UserError where the cache of `rows` texts of `positions` tokens, and 32 bytes a logit to draw, do not fit."""
        per_position = 2 * cfg.n_layer * cfg.n_head * cfg.head_width * like.itemsize
        needed = rows * (positions * per_position + 32 * cfg.vocab_size)
        free = free_memory(like.device)
        if free is not None and needed > free:
            raise UserError(f"{rows:,} texts of {positions} tokens need {needed / 1e9:,.1f} GB of memory; "
                            f"{free / 1e9:.1f} GB are free. Generate fewer at a time, or shorter ones")

    def attend(self, layer, q_BHTK, k_BHTK, v_BHTK, scale):
        """Attention of T new tokens to the cached tokens and to themselves, y_BHTK."""
        k_BHKS, v_BHSK = self.append(layer, k_BHTK, v_BHTK)
        T, end = k_BHTK.shape[2], k_BHKS.shape[3]

        # One new token sees all: no mask.
        if T == 1:
            z_BHTS = (q_BHTK * scale) @ k_BHKS
            return z_BHTS.softmax(-1, dtype=torch.float32).to(v_BHSK.dtype) @ v_BHSK

        # A whole prompt into an empty cache: plain causal attention.
        if self.length == 0:
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale)

        # Query t is at position end - T + t and sees the keys up to there.
        mask_TS = torch.ones(T, end, dtype=torch.bool, device=q_BHTK.device).tril(end - T)
        return F.scaled_dot_product_attention(q_BHTK, k_BHKS.transpose(2, 3), v_BHSK, attn_mask=mask_TS, scale=scale)

    def append(self, layer, k_BHTK, v_BHTK):
        """Store the new tokens after the cached ones; returns all of them, k_BHKS and v_BHSK."""
        end = self.length + k_BHTK.shape[2]
        self.k_LBHKS[layer, :, :, :, self.length:end] = k_BHTK.transpose(2, 3)
        self.v_LBHSK[layer, :, :, self.length:end] = v_BHTK
        return self.k_LBHKS[layer, :, :, :, :end], self.v_LBHSK[layer, :, :, :end]

    def repeat(self, times):
        """Each row becomes `times` equal rows, next to each other: one for each sample of a prompt."""
        if times > 1:
            self.k_LBHKS = self.k_LBHKS.repeat_interleave(times, 1)
            self.v_LBHSK = self.v_LBHSK.repeat_interleave(times, 1)
