"""Attention of one new token: its time is that of reading the cache, so many programs share the reading.

Sampling needs one query per head against all keys so far: 4 S K operations for 4 S K bytes of cache in bf16, one
operation per byte, where a GPU can do two hundred. Only bandwidth counts, and with one program per head 20 of 132
processors would read. So SPLITS programs share the keys of a head (Flash-Decoding, 2023), and their sums are combined
as tiles are in flash_attention.py, with its symbols:

    m = max over splits of m_i       o = sum_i exp(m_i - m) o_i / sum_i exp(m_i - m) l_i

    COST: reads 4 S K H bytes per layer and token, 10.5 MB for BioMedLM at S = 1024: 2.4 us on an H200, about 6.5 us
    unsplit. Over 32 layers the difference is 0.13 ms, beside the 1.3 ms that reading the weights takes.

Not here: its speed (bench/kernels.py).
"""
import math

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1 / math.log(2))
LOWEST = tl.constexpr(-1.0e30)       # initial maximum; -inf would give inf - inf in a split without keys
KEYS, WARPS = 64, 4                  # keys of a tile: 16 KB of K and of V
PROGRAMS = 256                       # about two per processor


def decode_reference(q_BHK, k_cache_BHSK, v_cache_BHSK, length, scale):
    """flash_decode written out."""
    z_BHS = scale * (k_cache_BHSK[:, :, :length] @ q_BHK[..., None])[..., 0]
    return (z_BHS.softmax(-1)[:, :, None] @ v_cache_BHSK[:, :, :length])[:, :, 0]


@triton.jit
def decode_kernel(
    q,                          # [B, H, K]
    k_cache, v_cache,           # [B, H, S, K], any strides, K contiguous
    length,                     # [B] int32 on the device: keys to read
    partial,                    # [B*H, SPLITS, K + 2] fp32: unnormalised o, m (base 2) and l of every split; written
    scale,
    H, stride_b, stride_h, stride_s,
    K: tl.constexpr,
    SPLITS: tl.constexpr,       # programs that share one head's keys
    BLOCK_S: tl.constexpr,      # keys of a tile
):
    head, split = tl.program_id(0), tl.program_id(1)
    k_K = tl.arange(0, K)
    S = tl.load(length + head // H)
    share = tl.cdiv(S, SPLITS * BLOCK_S) * BLOCK_S
    q_K = tl.load(q + head * K + k_K).to(tl.float32) * (scale * LOG2E)
    cache = (head // H).to(tl.int64) * stride_b + (head % H).to(tl.int64) * stride_h
    m, total, o_K = tl.full([1], LOWEST, tl.float32), tl.zeros([1], tl.float32), tl.zeros([K], tl.float32)
    for s in tl.range(split * share, tl.minimum(split * share + share, S), BLOCK_S):
        s_S = s + tl.arange(0, BLOCK_S)
        offset_SK = cache + s_S[:, None] * stride_s + k_K[None, :]
        k_SK = tl.load(k_cache + offset_SK, mask=s_S[:, None] < S, other=0.0).to(tl.float32)
        v_SK = tl.load(v_cache + offset_SK, mask=s_S[:, None] < S, other=0.0).to(tl.float32)
        z_S = tl.where(s_S < S, tl.sum(k_SK * q_K[None, :], 1), -float("inf"))
        m_new = tl.maximum(m, tl.max(z_S, 0))
        p_S = tl.exp2(z_S - m_new)
        alpha = tl.exp2(m - m_new)
        total = total * alpha + tl.sum(p_S, 0)
        o_K = o_K * alpha + tl.sum(p_S[:, None] * v_SK, 0)
        m = m_new
    partial += (head * SPLITS + split) * (K + 2)
    tl.store(partial + k_K, o_K)
    tl.store(partial + K + tl.arange(0, 1), m)
    tl.store(partial + K + 1 + tl.arange(0, 1), total)


@triton.jit
def combine_kernel(
    partial,                    # [B*H, SPLITS, K + 2] fp32: decode_kernel's sums
    out,                        # [B, H, K]: written
    K: tl.constexpr,
    SPLITS: tl.constexpr,
):
    k_K, part_P = tl.arange(0, K), tl.program_id(0) * SPLITS + tl.arange(0, SPLITS)
    m_P = tl.load(partial + part_P * (K + 2) + K)
    weight_P = tl.exp2(m_P - tl.max(m_P, 0))                      # a split without keys has m = LOWEST: weight 0
    total = tl.sum(weight_P * tl.load(partial + part_P * (K + 2) + K + 1), 0)
    o_PK = tl.load(partial + part_P[:, None] * (K + 2) + k_K[None, :])
    tl.store(out + tl.program_id(0) * K + k_K, (tl.sum(o_PK * weight_P[:, None], 0) / total).to(out.dtype.element_ty))


@torch.library.custom_op("nanobiomedlm::flash_decode", mutates_args=())
def flash_decode_op(q_BHK: torch.Tensor, k_cache_BHSK: torch.Tensor, v_cache_BHSK: torch.Tensor, length_B: torch.Tensor,
                    scale: float) -> torch.Tensor:
    (B, H, K), S = q_BHK.shape, k_cache_BHSK.shape[2]
    splits = min(16, *(triton.next_power_of_2(triton.cdiv(*pair)) for pair in ((S, KEYS), (PROGRAMS, B * H))))
    sums, out_BHK = q_BHK.new_empty(B * H, splits, K + 2, dtype=torch.float32), torch.empty_like(q_BHK)
    decode_kernel[(B * H, splits)](q_BHK, k_cache_BHSK, v_cache_BHSK, length_B, sums, scale, H,
                                   *k_cache_BHSK.stride()[:3], K=K, SPLITS=splits, BLOCK_S=KEYS, num_warps=WARPS)
    combine_kernel[(B * H,)](sums, out_BHK, K=K, SPLITS=splits, num_warps=WARPS)
    return out_BHK


@flash_decode_op.register_fake
def _(q_BHK, k_cache_BHSK, v_cache_BHSK, length_B, scale):
    return torch.empty_like(q_BHK)


def flash_decode(q_BHK, k_cache_BHSK, v_cache_BHSK, length, scale):
    """Attention of one new query per sequence over the first `length` keys of the caches, its own included; returns
    out_BHK, without a gradient.

    length: an int, or int32 [B] on the device, so that a CUDA graph can replay while the cache fills. The caches may
    have any strides if they are the same and the last dimension is contiguous.
    """
    assert k_cache_BHSK.stride() == v_cache_BHSK.stride(), "the caches must have the same strides"
    assert k_cache_BHSK.stride(3) == 1, "the last dimension of the caches must be contiguous"
    if not isinstance(length, torch.Tensor):
        length = torch.full((q_BHK.shape[0],), length, dtype=torch.int32, device=q_BHK.device)
    return flash_decode_op(q_BHK.contiguous(), k_cache_BHSK, v_cache_BHSK, length, float(scale))
