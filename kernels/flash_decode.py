"""Attention of one new token: its time is that of reading the cache, so many programs share the reading.

Sampling needs one query per head against all keys so far: 4 S K operations for 4 S K bytes of cache in bf16, one
operation per byte, where a GPU can do two hundred. Only bandwidth counts, and with one program per head 20 of 132
processors would read. So SPLITS programs share the keys of a head (Flash-Decoding, 2023), and their sums are combined
as tiles are in flash_attention.py, with its symbols:

    m = max over splits of m_i       o = sum_i exp(m_i - m) o_i / sum_i exp(m_i - m) l_i

The new token's key and value need no kernel of their own: the first split takes them from c_attn's output, where they
are still in registers for the sums, and writes them into the cache for the tokens to come.

    COST: reads 4 S K H bytes per layer and token, 10.5 MB for BioMedLM at S = 1024: 2.4 us on an H200, about 6.5 us
    unsplit. Over 32 layers the difference is 0.13 ms, beside the 1.3 ms that reading the weights takes.
"""
import torch
import triton
import triton.language as tl

from kernels import operator
from kernels.flash_attention import LOG2E, LOWEST
from kernels.rows import read

KEYS, WARPS = 64, 4                  # keys of a tile: 16 KB of K and of V
PROGRAMS = 256                       # about two per processor


@triton.jit
def decode_kernel(
    q,                          # [B, H, K], rows `stride_q` apart
    k_new, v_new,               # the same, of the new token: written to the caches at length - 1
    k_cache, v_cache,           # [B, H, S, K], any strides, K contiguous
    length,                     # [B] int32 on the device: keys to read, the new one included
    partial,                    # [B*H, SPLITS, K + 2] fp32: unnormalised o, m (base 2) and l of every split; written
    scale,
    H, stride_q, stride_b, stride_h, stride_s,
    K: tl.constexpr,
    SPLITS: tl.constexpr,       # programs that share one head's keys
    BLOCK_S: tl.constexpr,      # keys of a tile
):
    head, split = tl.program_id(0), tl.program_id(1)
    k_K = tl.arange(0, K)
    S = tl.load(length + head // H) - 1                           # the keys that are in the cache already
    new = head // H * stride_q + head % H * K + k_K
    q_K = tl.load(q + new).to(tl.float32) * (scale * LOG2E)
    cache = (head // H).to(tl.int64) * stride_b + (head % H).to(tl.int64) * stride_h

    m, total, o_K = tl.full([1], LOWEST, tl.float32), tl.zeros([1], tl.float32), tl.zeros([K], tl.float32)
    if split == 0:
        k_new_K, v_new_K = tl.load(k_new + new), tl.load(v_new + new)
        tl.store(k_cache + cache + S * stride_s + k_K, k_new_K)
        tl.store(v_cache + cache + S * stride_s + k_K, v_new_K)
        m = tl.zeros([1], tl.float32) + tl.sum(q_K * k_new_K.to(tl.float32), 0)
        total = tl.full([1], 1.0, tl.float32)
        o_K = v_new_K.to(tl.float32)

    share = tl.cdiv(S, SPLITS * BLOCK_S) * BLOCK_S
    for s in tl.range(split * share, tl.minimum(split * share + share, S), BLOCK_S):
        s_S = s + tl.arange(0, BLOCK_S)
        offset_SK = cache + s_S[:, None] * stride_s + k_K[None, :]
        k_SK = read(k_cache + offset_SK, s_S[:, None] < S)
        v_SK = read(v_cache + offset_SK, s_S[:, None] < S)
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
    K: tl.constexpr, SPLITS: tl.constexpr,
):
    k_K, part_P = tl.arange(0, K), tl.program_id(0) * SPLITS + tl.arange(0, SPLITS)
    m_P = tl.load(partial + part_P * (K + 2) + K)
    weight_P = tl.exp2(m_P - tl.max(m_P, 0))                      # a split without keys has m = LOWEST: weight 0
    total = tl.sum(weight_P * tl.load(partial + part_P * (K + 2) + K + 1), 0)
    o_PK = tl.load(partial + part_P[:, None] * (K + 2) + k_K[None, :])
    tl.store(out + tl.program_id(0) * K + k_K, (tl.sum(o_PK * weight_P[:, None], 0) / total).to(out.dtype.element_ty))


@operator("append_and_decode", mutates=("k_cache_BHSK", "v_cache_BHSK"))
def append_and_decode(qkv_BC: torch.Tensor, k_cache_BHSK: torch.Tensor, v_cache_BHSK: torch.Tensor,
                      length_B: torch.Tensor, scale: float) -> torch.Tensor:
    """out_BC of one new token per row, whose key and value are written to the caches at length_B - 1.
    qkv_BC: c_attn's output, contiguous. length_B (int32 on the device, so that a CUDA graph can replay while the cache
    fills) counts the new token. The caches have the same strides, of which the last is 1."""
    (B, C3), (_, H, S, K) = qkv_BC.shape, k_cache_BHSK.shape
    assert k_cache_BHSK.stride() == v_cache_BHSK.stride(), "the caches must have the same strides"
    assert k_cache_BHSK.stride(3) == 1, "the last dimension of the caches must be contiguous"
    splits = min(16, *(triton.next_power_of_2(triton.cdiv(*pair)) for pair in ((S, KEYS), (PROGRAMS, B * H))))
    sums = qkv_BC.new_empty(B * H, splits, K + 2, dtype=torch.float32)
    out_BC = qkv_BC.new_empty(B, H * K)
    decode_kernel[(B * H, splits)](
        *qkv_BC.chunk(3, 1), k_cache_BHSK, v_cache_BHSK, length_B, sums, scale, H, C3, *k_cache_BHSK.stride()[:3],
        K=K, SPLITS=splits, BLOCK_S=KEYS, num_warps=WARPS)        # the chunks are views: only their addresses are used
    combine_kernel[(B * H,)](sums, out_BC, K=K, SPLITS=splits, num_warps=WARPS)
    return out_BC


@append_and_decode.register_fake
def _(qkv_BC, k_cache_BHSK, v_cache_BHSK, length_B, scale):
    return qkv_BC.new_empty(len(qkv_BC), qkv_BC.shape[1] // 3)
