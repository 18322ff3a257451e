"""Causal attention that never writes down its T x S matrix: forward and backward.

The idea (FlashAttention 1 and 2, arXiv 2205.14135 and 2307.08691). With z = scale * q k^T, a row of attention is

    o = sum_s p_s v_s,   p_s = exp(z_s - lse),   lse = log sum_s exp(z_s)

and the sum over keys can be taken tile by tile if a running maximum m and a running sum l are kept: when m grows to m',
the sums so far are scaled by alpha = exp(m - m'). So a program owns BLOCK_T queries and reads the keys in tiles of
BLOCK_S. Of the T x S matrix only one BLOCK_T x BLOCK_S tile exists at a time, in registers. At T = 1024 that saves
2 H T^2 bytes of scores and as many of probabilities: 84 MB per layer and sequence for BioMedLM's 20 heads.

Backward keeps only o and lse and recomputes p. With do the gradient of o:

    dv_s = sum_t p_ts do_t      dp_ts = do_t . v_s      delta_t = sum_s p_ts dp_ts = do_t . o_t
    ds_ts = p_ts (dp_ts - delta_t)       dq_t = scale sum_s ds_ts k_s      dk_s = scale sum_t ds_ts q_t

Two kernels: dq owns queries and reads keys tile by tile (and computes delta first), dkdv owns keys and reads queries.
That is 7 matrix products where 5 would do, but nothing is accumulated in memory: no atomics, the same bits every time.

exp is computed as exp2 with log2(e) folded into the scale: the GPU's instruction is exp2, and exp would multiply again.

Not here: key padding, grouped queries and sliding windows; decoding (flash_decode.py); the tiles' sizes (tiles.py).
"""
import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels import architecture, operator
from kernels.tiles import TILES

LOG2E, LN2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))
LOWEST = tl.constexpr(-1.0e30)      # initial maximum. TRAP: with -inf, a tile hidden from a row gives inf - inf
ROUNDS = tl.constexpr(7)            # of Philox: enough for BigCrush (Salmon et al. 2011, table 2); curand takes 10
L2_BYTES = 20 * 2**20               # of keys and values read at a time: half of an A100's 40 MB of L2


def attention_reference(qkv_BT3C, n_head, scale, keep_BHTS=1.0, doc_start_BT=None):
    """(out_BTC, lse_BHT) with the matrix written out. keep_BHTS: 0 where dropout drops, else 1/(1-p)."""
    q_BHTK, k_BHSK, v_BHSK = qkv_BT3C.unflatten(2, (3, n_head, -1)).permute(2, 0, 3, 1, 4)
    t = torch.arange(qkv_BT3C.shape[1], device=qkv_BT3C.device)
    visible_BTS = (t[None, :] <= t[:, None])[None]
    if doc_start_BT is not None:
        visible_BTS = visible_BTS & (t[None, None, :] >= doc_start_BT[:, :, None])
    z_BHTS = (scale * q_BHTK @ k_BHSK.mT).masked_fill(~visible_BTS[:, None], -math.inf)
    o_BHTK = (z_BHTS.softmax(-1) * keep_BHTS) @ v_BHSK
    return o_BHTK.transpose(1, 2).flatten(2), z_BHTS.logsumexp(-1)


# ---- What the three kernels share ------------------------------------------------------------------------------------

@triton.jit
def _tile_of_program(program, n_tiles, n_heads, section):
    """(head, rank) of a program; rank 0 is the heaviest tile of a causal head, and runs first.

    The heaviest tiles of all heads first keeps processors busiest (simulated on 132 of them, 160 heads, T = 1024: 99%,
    and 90% in natural order), but reads K and V of every head again for each rank. So heads are worked on in sections
    whose K and V fit into the L2 cache: 97%.
    """
    first = program // (n_tiles * section) * section
    heads = tl.minimum(section, n_heads - first)                  # the last section may be short
    program -= first * n_tiles
    return first + program % heads, program // heads


@triton.jit
def _load(source, row, t, column, T, stride, ROWS: tl.constexpr, K: tl.constexpr, DESCRIPTOR: tl.constexpr,
          CHECK: tl.constexpr):
    """Rows t .. t + ROWS of one sequence, K columns from `column`.

    Hopper's copy engine reads a tile by its coordinates (DESCRIPTOR); an A100 computes an address per 16 bytes. TRAP:
    descriptors compile for an A100, but to loads that wait and registers that spill. Rows past T repeat the last row,
    and the masks hide them: a bounds check here needs more registers than the largest tile leaves.
    """
    if DESCRIPTOR:
        return source.load([row + t, column])
    else:                                                         # Triton would compile code after the return
        t_T = t + tl.arange(0, ROWS)
        if CHECK:
            t_T = tl.minimum(t_T, T - 1)
        return tl.load(source + t_T[:, None] * stride + (column + tl.arange(0, K))[None, :])


@triton.jit
def _kept(seed, head, t, s, DROP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """The elements of a tile that dropout keeps: a function of (seed, head, t, s), so that the three kernels agree.

    COST: one Philox call gives 16 bytes, and each byte decides one element (drop if < DROP): about 7 instructions per
    element. tl.rand makes one call per element, 55 instructions, several times the matrix products. TRAP: the counters
    are (t, s // 16, head), since a single 32-bit counter wraps at B*H*T*T = 2^32: 64 heads of T = 8192.
    """
    t_T1 = (t + tl.arange(0, BLOCK_T))[:, None]
    group_1G = (s // 16 + tl.arange(0, BLOCK_S // 16))[None, :]
    zero_TG = tl.zeros([BLOCK_T, BLOCK_S // 16], tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, zero_TG + t_T1, zero_TG + group_1G, zero_TG + head, zero_TG, ROUNDS)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK_T, BLOCK_S // 4])
    bytes_TS4 = (words[:, :, None] >> (8 * tl.arange(0, 4))[None, None, :].to(tl.uint32)) & 255
    return tl.reshape(bytes_TS4, [BLOCK_T, BLOCK_S]) >= DROP


@triton.jit
def _visible_keys(doc_start, row, t, t_T, T, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, DOCS: tl.constexpr):
    """(first, full, start_T): before key `first` no query of the tile sees any, from `full` to t every query sees all;
    query t_T sees none before start_T. first and full are the first keys of tiles."""
    first, full, start_T = 0, 0, t_T * 0
    if DOCS:
        start_T = tl.load(doc_start + row + t_T, mask=t_T < T, other=0)
        first = tl.load(doc_start + row + t) // BLOCK_S * BLOCK_S
        full = tl.load(doc_start + row + tl.minimum(t + BLOCK_T, T) - 1)
        full = tl.minimum(tl.cdiv(full, BLOCK_S) * BLOCK_S, t)
    return first, full, start_T


@triton.jit
def _visible(t_T, s, start_T, BLOCK_S: tl.constexpr, DOCS: tl.constexpr):
    """Whether query t sees key s: [BLOCK_T, BLOCK_S]."""
    s_1S = (s + tl.arange(0, BLOCK_S))[None, :]
    visible_TS = s_1S <= t_T[:, None]
    if DOCS:
        visible_TS &= s_1S >= start_T[:, None]
    return visible_TS


# Each kernel reads its tiles in three runs. Only the first and the last need a mask (document starts, diagonal): in one
# loop that masks every tile, comparisons and selects would compete with exp2 for the same issue slots.

# ---- Forward ---------------------------------------------------------------------------------------------------------

@triton.jit
def forward_kernel(
    kv_tiles,                   # descriptor of qkv as [B*T, 3C] in tiles [BLOCK_S, K]; None on the pointer path
    qkv,                        # [B, T, 3C]: the c_attn output as it is; head h has columns h*K, C + h*K and 2C + h*K
    out,                        # [B, T, C]: written
    lse,                        # [B, H, T] fp32, natural logarithm: written, for the backward pass
    doc_start,                  # [B, T] int32: first position of the document of t; None without DOCS
    seed_pointer,               # [1] int64 on the device: a new seed neither recompiles nor waits; None without DROP
    scale_pointer,              # [1] fp32 on the device: all layers share one compiled block, see model.Attention
    B, H, T,                    # sequences, heads, sequence length
    section,                    # heads worked on at a time, see _tile_of_program
    K: tl.constexpr,            # head width: 64 or 128
    BLOCK_T: tl.constexpr,      # queries of a program
    BLOCK_S: tl.constexpr,      # keys of a tile; divides BLOCK_T
    EVEN: tl.constexpr,         # T is a multiple of both tiles: no bounds to check
    DOCS: tl.constexpr,         # queries see only their own document
    DROP: tl.constexpr,         # dropout in 1/256, 0 for none
    DESCRIPTOR: tl.constexpr,   # Hopper's copy engine instead of pointers
):
    n_tiles = tl.cdiv(T, BLOCK_T)
    head, rank = _tile_of_program(tl.program_id(0), n_tiles, B * H, section)
    t = (n_tiles - 1 - rank) * BLOCK_T                            # the last queries see most keys
    row, h, C = head // H * T, head % H, H * K
    qkv += row.to(tl.int64) * 3 * C                       # TRAP: B*T*3C passes 2^31 at 280,000 tokens of the 2.7B model
    kv = kv_tiles if DESCRIPTOR else qkv
    t_T = t + tl.arange(0, BLOCK_T)
    q_TK = _load(qkv, row, t, h * K, T, 3 * C, BLOCK_T, K, False, not EVEN)
    first, full, start_T = _visible_keys(doc_start, row, t, t_T, T, BLOCK_T, BLOCK_S, DOCS)

    scale2 = tl.load(scale_pointer) * LOG2E
    m_T = tl.full([BLOCK_T], LOWEST, tl.float32)
    l_T = tl.zeros([BLOCK_T], tl.float32)
    o_TK = tl.zeros([BLOCK_T, K], tl.float32)
    for part in tl.static_range(0 if DOCS else 1, 3):             # document starts, all visible, diagonal
        runs = first, full, t, tl.minimum(t + BLOCK_T, T)
        for s in tl.range(runs[part], runs[part + 1], BLOCK_S):
            s = tl.multiple_of(s, BLOCK_S)
            k_SK = _load(kv, row, s, C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            z_TS = tl.dot(q_TK, k_SK.T, input_precision="ieee")   # for fp32: the default is tf32
            if part != 1:
                z_TS = tl.where(_visible(t_T, s, start_T, BLOCK_S, DOCS), z_TS, -float("inf"))

            # the running maximum and sums
            m_new_T = tl.maximum(m_T, tl.max(z_TS, 1) * scale2)
            p_TS = tl.exp2(z_TS * scale2 - m_new_T[:, None])      # one fused multiply-add and one exp2 per element
            alpha_T = tl.exp2(m_T - m_new_T)
            l_T = l_T * alpha_T + tl.sum(p_TS, 1)                 # includes dropped keys
            o_TK = o_TK * alpha_T[:, None]
            m_T = m_new_T

            if DROP:
                p_TS = tl.where(_kept(tl.load(seed_pointer), head, t, s, DROP, BLOCK_T, BLOCK_S), p_TS, 0.0)
            v_SK = _load(kv, row, s, 2 * C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            o_TK = tl.dot(p_TS.to(v_SK.dtype), v_SK, o_TK, input_precision="ieee")

    tl.store(lse + head * T + t_T, (m_T + tl.log2(l_T)) * LN2, mask=t_T < T)
    o_TK *= (256 / (256 - DROP) / l_T)[:, None]
    pointers = out + row.to(tl.int64) * C + t_T[:, None] * C + h * K + tl.arange(0, K)[None, :]
    tl.store(pointers, o_TK.to(out.dtype.element_ty), mask=t_T[:, None] < T)


# ---- Backward: dq_kernel first, since it writes the delta that dkdv_kernel reads -------------------------------------

@triton.jit
def dq_kernel(
    kv_tiles, qkv,              # as in forward_kernel
    out, dout,                  # [B, T, C]: o and its gradient
    dqkv,                       # [B, T, 3C]: the first C columns are written here
    lse,                        # [B, H, T] fp32
    delta,                      # [B, H, T] fp32: written, for dkdv_kernel
    doc_start, seed_pointer, scale_pointer, B, H, T, section,                               # as in forward_kernel
    K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,                          # as in forward_kernel
    EVEN: tl.constexpr, DOCS: tl.constexpr, DROP: tl.constexpr, DESCRIPTOR: tl.constexpr,   # as in forward_kernel
):
    n_tiles = tl.cdiv(T, BLOCK_T)
    head, rank = _tile_of_program(tl.program_id(0), n_tiles, B * H, section)
    t = (n_tiles - 1 - rank) * BLOCK_T
    row, h, C = head // H * T, head % H, H * K
    qkv += row.to(tl.int64) * 3 * C
    out += row.to(tl.int64) * C
    dout += row.to(tl.int64) * C
    kv = kv_tiles if DESCRIPTOR else qkv
    t_T = t + tl.arange(0, BLOCK_T)

    do_TK = _load(dout, row, t, h * K, T, C, BLOCK_T, K, False, not EVEN)
    o_TK = _load(out, row, t, h * K, T, C, BLOCK_T, K, False, not EVEN)
    delta_T = tl.sum(do_TK.to(tl.float32) * o_TK.to(tl.float32), 1)
    tl.store(delta + head * T + t_T, delta_T, mask=t_T < T)
    KEEP: tl.constexpr = (256 - DROP) / 256
    delta_T *= KEEP                                               # p (kept dp / KEEP - delta): 1/KEEP comes at the end

    q_TK = _load(qkv, row, t, h * K, T, 3 * C, BLOCK_T, K, False, not EVEN)
    lse2_T = tl.load(lse + head * T + t_T, mask=t_T < T, other=0.0) * LOG2E
    first, full, start_T = _visible_keys(doc_start, row, t, t_T, T, BLOCK_T, BLOCK_S, DOCS)
    scale = tl.load(scale_pointer)
    dq_TK = tl.zeros([BLOCK_T, K], tl.float32)
    for part in tl.static_range(0 if DOCS else 1, 3):             # as in forward_kernel
        runs = first, full, t, tl.minimum(t + BLOCK_T, T)
        for s in tl.range(runs[part], runs[part + 1], BLOCK_S):
            s = tl.multiple_of(s, BLOCK_S)
            k_SK = _load(kv, row, s, C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            v_SK = _load(kv, row, s, 2 * C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            z_TS = tl.dot(q_TK, k_SK.T, input_precision="ieee")
            p_TS = tl.exp2(z_TS * (scale * LOG2E) - lse2_T[:, None])
            if part != 1:
                p_TS = tl.where(_visible(t_T, s, start_T, BLOCK_S, DOCS), p_TS, 0.0)
            dp_TS = tl.dot(do_TK, v_SK.T, input_precision="ieee")
            if DROP:
                dp_TS = tl.where(_kept(tl.load(seed_pointer), head, t, s, DROP, BLOCK_T, BLOCK_S), dp_TS, 0.0)
            ds_TS = p_TS * (dp_TS - delta_T[:, None])
            dq_TK = tl.dot(ds_TS.to(k_SK.dtype), k_SK, dq_TK, input_precision="ieee")

    tl.store(dqkv + row.to(tl.int64) * 3 * C + t_T[:, None] * (3 * C) + h * K + tl.arange(0, K)[None, :],
             (dq_TK * (scale / KEEP)).to(dqkv.dtype.element_ty), mask=t_T[:, None] < T)


@triton.jit
def dkdv_kernel(
    q_tiles, do_tiles,      # descriptors in tiles [BLOCK_T, K] of qkv and of dout as [B*T, C]; None on the pointer path
    qkv,                        # [B, T, 3C]
    dout,                       # [B, T, C]
    dqkv,                       # [B, T, 3C]: the last 2C columns are written here
    lse, delta,                 # [B, H, T] fp32
    doc_end,                    # [B, T] int32: one past the last query of the document of s; None without DOCS
    seed_pointer, scale_pointer, B, H, T, section,                                          # as in forward_kernel
    K: tl.constexpr,            # head width
    BLOCK_T: tl.constexpr,      # queries of a tile; divides BLOCK_S
    BLOCK_S: tl.constexpr,      # keys of a program
    EVEN: tl.constexpr, DOCS: tl.constexpr, DROP: tl.constexpr, DESCRIPTOR: tl.constexpr,   # as in forward_kernel
):
    KEEP: tl.constexpr = (256 - DROP) / 256
    head, rank = _tile_of_program(tl.program_id(0), tl.cdiv(T, BLOCK_S), B * H, section)
    s = rank * BLOCK_S                                            # most queries see the first keys
    row, h, C = head // H * T, head % H, H * K
    qkv += row.to(tl.int64) * 3 * C
    dout += row.to(tl.int64) * C
    lse += head * T
    delta += head * T
    q_source = q_tiles if DESCRIPTOR else qkv
    do_source = do_tiles if DESCRIPTOR else dout
    s_S = s + tl.arange(0, BLOCK_S)

    k_SK = _load(qkv, row, s, C + h * K, T, 3 * C, BLOCK_S, K, False, not EVEN)
    v_SK = _load(qkv, row, s, 2 * C + h * K, T, 3 * C, BLOCK_S, K, False, not EVEN)
    end_S, full, end = s_S * 0 + T, T, T
    if DOCS:
        end_S = tl.load(doc_end + row + s_S, mask=s_S < T, other=0)
        full = tl.load(doc_end + row + s)                         # up to here every query sees every key,
        end = tl.load(doc_end + row + tl.minimum(s + BLOCK_S, T) - 1)           # from here on none sees any
    diagonal = tl.minimum(s + BLOCK_S, T)
    full = diagonal + tl.maximum(full - diagonal, 0) // BLOCK_T * BLOCK_T

    scale = tl.load(scale_pointer)
    dk_SK = tl.zeros([BLOCK_S, K], tl.float32)
    dv_SK = tl.zeros([BLOCK_S, K], tl.float32)
    for part in tl.static_range(3 if DOCS or not EVEN else 2):    # diagonal, all visible, end of a document or of T
        runs = s, diagonal, full, end
        for t in tl.range(runs[part], runs[part + 1], BLOCK_T):
            t = tl.multiple_of(t, BLOCK_T)
            t_T = t + tl.arange(0, BLOCK_T)
            inside_T = t_T < (T if part != 1 and not EVEN else t + BLOCK_T)
            q_TK = _load(q_source, row, t, h * K, T, 3 * C, BLOCK_T, K, DESCRIPTOR, part != 1 and not EVEN)
            do_TK = _load(do_source, row, t, h * K, T, C, BLOCK_T, K, DESCRIPTOR, part != 1 and not EVEN)
            lse2_T = tl.load(lse + t_T, mask=inside_T, other=0.0) * LOG2E
            delta_T = tl.load(delta + t_T, mask=inside_T, other=0.0) * KEEP

            # TRAP: z is computed transposed, not as (q k^T)^T: on Hopper, Triton before 3.7.1 feeds a transposed
            # product to the tensor cores in the wrong layout when the tile is 64 wide, and dk is silently wrong.
            z_ST = tl.dot(k_SK, q_TK.T, input_precision="ieee")
            p_ST = tl.exp2(z_ST * (scale * LOG2E) - lse2_T[None, :])
            if part != 1:
                p_ST = tl.where((t_T[None, :] >= s_S[:, None]) & (t_T[None, :] < end_S[:, None]), p_ST, 0.0)
            dp_ST = tl.dot(v_SK, do_TK.T, input_precision="ieee")
            kept_p_ST = p_ST
            if DROP:
                kept_ST = _kept(tl.load(seed_pointer), head, t, s, DROP, BLOCK_T, BLOCK_S).T
                kept_p_ST = tl.where(kept_ST, p_ST, 0.0)          # 1/KEEP comes at the end
                dp_ST = tl.where(kept_ST, dp_ST, 0.0)
            dv_SK = tl.dot(kept_p_ST.to(do_TK.dtype), do_TK, dv_SK, input_precision="ieee")
            ds_ST = p_ST * (dp_ST - delta_T[None, :])
            dk_SK = tl.dot(ds_ST.to(q_TK.dtype), q_TK, dk_SK, input_precision="ieee")

    pointers = dqkv + row.to(tl.int64) * 3 * C + s_S[:, None] * (3 * C) + h * K + tl.arange(0, K)[None, :]
    tl.store(pointers + C, (dk_SK * (scale / KEEP)).to(dqkv.dtype.element_ty), mask=s_S[:, None] < T)
    tl.store(pointers + 2 * C, (dv_SK / KEEP).to(dqkv.dtype.element_ty), mask=s_S[:, None] < T)


# ---- The operator that autograd and torch.compile see ----------------------------------------------------------------

KERNELS = forward_kernel, dq_kernel, dkdv_kernel      # in the order of TILES


def _launch(kernel, streamed, tensors, doc_BT, seed, scale, n_head, dropout_p):
    """kernel[grid] with its tile. streamed: tensors read tile by tile in the loop; tensors[0] is qkv."""
    (B, T, C3), arch = tensors[0].shape, architecture(tensors[0].device)
    K = C3 // (3 * n_head)

    path = "fp32" if tensors[0].dtype == torch.float32 else "dropout" if dropout_p else "plain"
    tile = TILES[arch, K, path][KERNELS.index(kernel)]
    owned, passing = (tile.keys, tile.queries) if kernel is dkdv_kernel else (tile.queries, tile.keys)

    even = T % max(owned, passing) == 0
    descriptor = arch == 90 and even and path != "fp32"           # at odd T its last tile would reach into the next row
    tiles = [TensorDescriptor.from_tensor(x.view(B * T, -1), [passing, K]) if descriptor else None for x in streamed]
    section = max(1, L2_BYTES // (T * K * 2 * tensors[0].element_size()))

    kernel[(triton.cdiv(T, owned) * B * n_head,)](
        *tiles, *tensors, doc_BT, seed, scale, B, n_head, T, section, K=K, BLOCK_T=tile.queries, BLOCK_S=tile.keys,
        EVEN=even, DOCS=doc_BT is not None, DROP=dropout_in_256(dropout_p), DESCRIPTOR=descriptor,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers)


@operator("flash_attention")
def flash_attention_op(qkv_BT3C: Tensor, n_head: int, scale: Tensor, dropout_p: float, seed: Tensor | None,
                       doc_start_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out_BTC, lse_BHT). Opaque to torch.compile: a block is one graph, and nothing in here is traced."""
    out_BTC, lse_BHT = _outputs(qkv_BT3C, n_head)
    _launch(forward_kernel, [qkv_BT3C], [qkv_BT3C, out_BTC, lse_BHT], doc_start_BT, seed, scale, n_head, dropout_p)
    return out_BTC, lse_BHT


@flash_attention_op.register_fake
def _outputs(qkv_BT3C, n_head, *_):
    """The outputs unfilled: what torch.compile needs to know of them, and what the operator then fills."""
    B, T, C3 = qkv_BT3C.shape
    return qkv_BT3C.new_empty(B, T, C3 // 3), qkv_BT3C.new_empty(B, n_head, T, dtype=torch.float32)


@operator("flash_attention_backward")
def flash_attention_backward_op(dout_BTC: Tensor, qkv_BT3C: Tensor, out_BTC: Tensor, lse_BHT: Tensor, n_head: int,
                                scale: Tensor, dropout_p: float, seed: Tensor | None,
                                doc_start_BT: Tensor | None) -> Tensor:
    """dqkv_BT3C."""
    dout_BTC = dout_BTC.contiguous()                              # sum().backward() sends an expanded scalar
    dqkv_BT3C, delta_BHT = torch.empty_like(qkv_BT3C), torch.empty_like(lse_BHT)

    doc_end_BT = None
    if doc_start_BT is not None:                                  # the first query whose document starts after s
        s_BS = torch.arange(doc_start_BT.shape[1], device=doc_start_BT.device).expand_as(doc_start_BT).int()
        doc_end_BT = torch.searchsorted(doc_start_BT, s_BS, right=True, out_int32=True)

    settings = seed, scale, n_head, dropout_p
    written = dqkv_BT3C, lse_BHT, delta_BHT
    _launch(dq_kernel, [qkv_BT3C], [qkv_BT3C, out_BTC, dout_BTC, *written], doc_start_BT, *settings)
    _launch(dkdv_kernel, [qkv_BT3C, dout_BTC], [qkv_BT3C, dout_BTC, *written], doc_end_BT, *settings)
    return dqkv_BT3C


@flash_attention_backward_op.register_fake
def _(dout_BTC, qkv_BT3C, *rest):
    return torch.empty_like(qkv_BT3C)


def _save(ctx, inputs, output):
    qkv_BT3C, ctx.n_head, scale, ctx.dropout_p, seed, doc_start_BT = inputs
    ctx.save_for_backward(qkv_BT3C, *output, scale, seed, doc_start_BT)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dout_BTC, dlse_BHT):
    qkv_BT3C, out_BTC, lse_BHT, scale, seed, doc_start_BT = ctx.saved_tensors
    dqkv_BT3C = flash_attention_backward_op(dout_BTC, qkv_BT3C, out_BTC, lse_BHT, ctx.n_head, scale, ctx.dropout_p,
                                            seed, doc_start_BT)
    return dqkv_BT3C, None, None, None, None, None


flash_attention_op.register_autograd(_backward, setup_context=_save)


def flash_attention(qkv_BT3C, n_head, scale, dropout_p=0.0, seed=None, doc_start_BT=None):
    """Causal self-attention over the packed projections; returns out_BTC (flash_attention_op also returns the LSE).

    qkv_BT3C: contiguous, bf16, fp16 or fp32; head width 64 or 128. scale > 0 multiplies the scores: a float, or an fp32
    tensor of one element on the device. dropout_p is rounded to 256ths (0.1 is 26/256 = 0.1016, and the rest is
    rescaled by that); seed is an int64 tensor [1] on the device, by default drawn from torch's generator. With
    doc_start_BT (int32, from data.document_starts) queries see only their own document.
    """
    assert qkv_BT3C.is_contiguous(), "qkv is read by address: pass c_attn's output itself, not a view of it"
    assert 0 <= dropout_p < 1, f"dropout {dropout_p} must be in [0, 1)"
    if not isinstance(scale, Tensor):
        assert scale > 0, f"scale {scale} must be positive"
        scale = torch.full((1,), scale, device=qkv_BT3C.device)
    if dropout_p:
        seed = torch.randint(2**62, (1,), device=qkv_BT3C.device) if seed is None else seed
    return flash_attention_op(qkv_BT3C, n_head, scale, float(dropout_p), seed, doc_start_BT)[0]


def dropout_in_256(dropout_p):
    """How many of a byte's 256 values drop; at least one where dropout_p is not 0."""
    return min(255, max(1, round(256 * dropout_p))) if dropout_p else 0
