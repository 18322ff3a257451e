"""Causal attention that never writes down its T x S matrix: forward and backward.

The idea (FlashAttention 1 and 2, arXiv 2205.14135 and 2307.08691). With z = scale * q k^T, a row of attention is

    o = sum_s p_s v_s,   p_s = exp(z_s - lse),   lse = log sum_s exp(z_s)

and the sum over keys can be taken tile by tile if a running maximum m and a running sum l are kept: when m grows to m',
what was summed so far is scaled by alpha = exp(m - m'). So a program owns BLOCK_T queries, streams the keys past them
in tiles of BLOCK_S, and of the T x S matrix only one BLOCK_T x BLOCK_S tile exists at a time, in registers. At T = 1024
that saves 2 H T^2 bytes each of scores and of probabilities: 84 MB a layer and sequence for BioMedLM's 20 heads.

Backward keeps only o and lse and recomputes p. With do the gradient of o:

    dv_s = sum_t p_ts do_t      dp_ts = do_t . v_s      delta_t = sum_s p_ts dp_ts = do_t . o_t
    ds_ts = p_ts (dp_ts - delta_t)       dq_t = scale sum_s ds_ts k_s      dk_s = scale sum_t ds_ts q_t

Two kernels: dq owns queries and streams keys (and computes delta on the way), dkdv owns keys and streams queries. That
is 7 matrix products where 5 would do, but nothing is accumulated in memory: no atomics, the same bits every time.

exp is computed as exp2 with log2(e) folded into the scale: the GPU's instruction is exp2, and exp would multiply again.
Not here: key padding, grouped queries, sliding windows; and decoding, which is flash_decode.py.

    python kernels/flash_attention.py          time, TFLOP/s, against torch's backends and the floor (needs a GPU)
    python kernels/flash_attention.py tune     the same over candidate tiles: what to write into tiles.py
"""
import math
import sys
from functools import partial
from itertools import product
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # python kernels/flash_attention.py finds common.py
from kernels import architecture, require_triton
from kernels.measure import HEADS, SDPA, WIDTH, attention_cost, attention_ms, ceilings, line, require_gpu
from kernels.tiles import TILES, Tile
from plumbing.common import speaking_to_the_user

LOG2E, LN2 = tl.constexpr(1 / math.log(2)), tl.constexpr(math.log(2))
L2_BYTES = 20 * 2**20         # of keys and values in work at a time: half of the A100's 40 MB, a third of the H200's 60
LOWEST = tl.constexpr(-1.0e30)       # where maxima start. TRAP: with -inf a tile hidden from a row gives inf - inf
ROUNDS = tl.constexpr(7)      # of Philox: passes BigCrush (Salmon et al. 2011, table 2); curand's 10 is a safety margin


def attention_reference(qkv_BT3C, n_head, scale, keep_BHTS=1.0, doc_start_BT=None):
    """The same function with the matrix written out. keep_BHTS: 0 where dropout fell, else 1/(1-p)."""
    q_BHTK, k_BHSK, v_BHSK = qkv_BT3C.unflatten(2, (3, n_head, -1)).permute(2, 0, 3, 1, 4)
    t = torch.arange(qkv_BT3C.shape[1], device=qkv_BT3C.device)
    visible_BTS = (t[None, :] <= t[:, None])[None]
    if doc_start_BT is not None:
        visible_BTS = visible_BTS & (t[None, None, :] >= doc_start_BT[:, :, None])
    z_BHTS = (scale * q_BHTK @ k_BHSK.mT).masked_fill(~visible_BTS[:, None], -math.inf)
    o_BHTK = (z_BHTS.softmax(-1) * keep_BHTS) @ v_BHSK
    return o_BHTK.transpose(1, 2).flatten(2), z_BHTS.logsumexp(-1)


# ---- Pieces that the three kernels share -----------------------------------------------------------------------------

@triton.jit
def _tile_of_program(program, n_tiles, n_heads, section):
    """(head, rank), rank 0 the heaviest tile: causal tiles cost 1..n_tiles, and one that starts late is waited for.

    All heads' heaviest tiles first would pack best (simulated on 132 processors, 160 heads, T = 1024: 99% busy, against
    90% in natural order), but then K and V of every head pass through the L2 cache again for each rank. Sections of
    heads whose K and V stay in the cache keep both: 97%.
    """
    first = program // (n_tiles * section) * section
    heads = tl.minimum(section, n_heads - first)                  # the last section may be short
    program -= first * n_tiles
    return first + program % heads, program // heads


@triton.jit
def _load(source, row, t, column, T, stride, ROWS: tl.constexpr, K: tl.constexpr, DESCRIPTOR: tl.constexpr,
          CHECK: tl.constexpr):
    """Rows t .. t + ROWS of one sequence, K columns from `column`.

    Hopper's copy engine fetches a tile by its coordinates; the A100 computes an address per 16 bytes (cp.async). TRAP:
    descriptors compile for the A100 too, to loads that wait and registers that spill. Rows past T repeat the last one,
    which the masks make harmless: a bounds check here costs the registers that the largest tile does not have.
    """
    if DESCRIPTOR:
        return source.load([row + t, column])
    else:                                                         # an else, since Triton compiles what follows a return
        t_T = t + tl.arange(0, ROWS)
        if CHECK:
            t_T = tl.minimum(t_T, T - 1)
        return tl.load(source + t_T[:, None] * stride + (column + tl.arange(0, K))[None, :])


@triton.jit
def _kept(seed, head, t, s, DROP: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr):
    """What dropout keeps of a tile: a function of (seed, head, t, s) alone, so that the three kernels agree.

    COST: one Philox call gives 16 bytes, and each byte decides one element (drop if < DROP): about 7 instructions an
    element, where tl.rand, which spends a call on each, costs 55, several times the matrix products. The counters are
    (t, s // 16, head): TRAP: one running 32-bit counter wraps at B*H*T*T = 2^32, which 64 heads of T = 8192 reach.
    """
    t_T1 = (t + tl.arange(0, BLOCK_T))[:, None]
    group_1G = (s // 16 + tl.arange(0, BLOCK_S // 16))[None, :]
    zero_TG = tl.zeros([BLOCK_T, BLOCK_S // 16], tl.int32)
    w0, w1, w2, w3 = tl.philox(seed, zero_TG + t_T1, zero_TG + group_1G, zero_TG + head, zero_TG, ROUNDS)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCK_T, BLOCK_S // 4])
    bytes_TS4 = (words[:, :, None] >> (8 * tl.arange(0, 4))[None, None, :].to(tl.uint32)) & 255
    return tl.reshape(bytes_TS4, [BLOCK_T, BLOCK_S]) >= DROP


# ---- Forward ---------------------------------------------------------------------------------------------------------
@triton.jit
def forward_kernel(
    kv_tiles,                   # descriptor of qkv as [B*T, 3C] in tiles [BLOCK_S, K]; None on the pointer path
    qkv,                        # [B, T, 3C]: the c_attn output as it is; head h has columns h*K, C + h*K and 2C + h*K
    out,                        # [B, T, C]: written
    lse,                        # [B, H, T] fp32, natural logarithm: written, for the backward pass
    doc_start,                  # [B, T] int32: first position of the document of t; None without DOCS
    seed_pointer,               # [1] int64 on the device: a new seed neither recompiles nor waits; None without DROP
    scale,                      # fp32, a run-time value: BioMedLM's changes from layer to layer
    B, H, T,                    # sequences, heads, sequence length
    section,                    # heads worked on at a time, see _tile_of_program
    K: tl.constexpr,            # head width: 64 or 128
    BLOCK_T: tl.constexpr,      # queries of a program
    BLOCK_S: tl.constexpr,      # keys of a tile; divides BLOCK_T
    EVEN: tl.constexpr,         # T is a multiple of BLOCK_T: no bounds to check
    DOCS: tl.constexpr,         # queries see their own document only
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
    first, full, start_T = 0, 0, t_T * 0
    if DOCS:
        start_T = tl.load(doc_start + row + t_T, mask=t_T < T, other=0)
        first = tl.load(doc_start + row + t) // BLOCK_S * BLOCK_S           # before it no query sees a key,
        full = tl.load(doc_start + row + tl.minimum(t + BLOCK_T, T) - 1)  # from here up to t every query sees every key
        full = tl.minimum(tl.cdiv(full, BLOCK_S) * BLOCK_S, t)
    scale2 = scale * LOG2E
    m_T = tl.full([BLOCK_T], LOWEST, tl.float32)
    l_T = tl.zeros([BLOCK_T], tl.float32)
    o_TK = tl.zeros([BLOCK_T, K], tl.float32)
    # Three runs of tiles: 0 where documents begin, 1 where everything is visible, 2 on the diagonal. Masking every tile
    # would be shorter, but comparisons and selects compete with exp2 for the same issue slots.
    for part in tl.static_range(0 if DOCS else 1, 3):
        lo = first if part == 0 else full if part == 1 else t
        hi = full if part == 0 else t if part == 1 else tl.minimum(t + BLOCK_T, T)
        for s in tl.range(lo, hi, BLOCK_S):
            s = tl.multiple_of(s, BLOCK_S)
            k_SK = _load(kv, row, s, C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            z_TS = tl.dot(q_TK, k_SK.T, input_precision="ieee")   # for fp32: the default is tf32
            if part != 1:
                s_1S = (s + tl.arange(0, BLOCK_S))[None, :]
                visible_TS = s_1S <= t_T[:, None]
                if DOCS:
                    visible_TS &= s_1S >= start_T[:, None]
                z_TS = tl.where(visible_TS, z_TS, -float("inf"))
            m_new_T = tl.maximum(m_T, tl.max(z_TS, 1) * scale2)
            p_TS = tl.exp2(z_TS * scale2 - m_new_T[:, None])      # one fused multiply-add and one exp2 an element
            alpha_T = tl.exp2(m_T - m_new_T)
            l_T = l_T * alpha_T + tl.sum(p_TS, 1)                 # the normaliser counts dropped keys too
            o_TK = o_TK * alpha_T[:, None]
            if DROP:
                p_TS = tl.where(_kept(tl.load(seed_pointer), head, t, s, DROP, BLOCK_T, BLOCK_S), p_TS, 0.0)
            v_SK = _load(kv, row, s, 2 * C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            o_TK = tl.dot(p_TS.to(v_SK.dtype), v_SK, o_TK, input_precision="ieee")
            m_T = m_new_T
    tl.store(lse + head * T + t_T, (m_T + tl.log2(l_T)) * LN2, mask=t_T < T)
    o_TK *= (256 / (256 - DROP) / l_T)[:, None]
    pointers = out + row.to(tl.int64) * C + t_T[:, None] * C + h * K + tl.arange(0, K)[None, :]
    tl.store(pointers, o_TK.to(out.dtype.element_ty), mask=t_T[:, None] < T)


# ---- Backward: queries first (they make delta), then keys ------------------------------------------------------------
@triton.jit
def dq_kernel(
    kv_tiles, qkv,              # as in forward_kernel
    out, dout,                  # [B, T, C]: o and its gradient
    dqkv,                       # [B, T, 3C]: the first C columns are written here
    lse,                        # [B, H, T] fp32
    delta,                      # [B, H, T] fp32: written, for dkdv_kernel
    doc_start, seed_pointer, scale, B, H, T, section,                                       # as in forward_kernel
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
    delta_T *= KEEP                                        # p (kept dp / KEEP - delta): 1/KEEP is taken out, to the end
    q_TK = _load(qkv, row, t, h * K, T, 3 * C, BLOCK_T, K, False, not EVEN)
    lse2_T = tl.load(lse + head * T + t_T, mask=t_T < T, other=0.0) * LOG2E
    first, full, start_T = 0, 0, t_T * 0
    if DOCS:
        start_T = tl.load(doc_start + row + t_T, mask=t_T < T, other=0)
        first = tl.load(doc_start + row + t) // BLOCK_S * BLOCK_S
        full = tl.load(doc_start + row + tl.minimum(t + BLOCK_T, T) - 1)
        full = tl.minimum(tl.cdiv(full, BLOCK_S) * BLOCK_S, t)
    dq_TK = tl.zeros([BLOCK_T, K], tl.float32)
    for part in tl.static_range(0 if DOCS else 1, 3):     # document starts, all visible, diagonal: as in forward_kernel
        lo = first if part == 0 else full if part == 1 else t
        hi = full if part == 0 else t if part == 1 else tl.minimum(t + BLOCK_T, T)
        for s in tl.range(lo, hi, BLOCK_S):
            s = tl.multiple_of(s, BLOCK_S)
            k_SK = _load(kv, row, s, C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            v_SK = _load(kv, row, s, 2 * C + h * K, T, 3 * C, BLOCK_S, K, DESCRIPTOR, part == 2 and not EVEN)
            z_TS = tl.dot(q_TK, k_SK.T, input_precision="ieee")
            p_TS = tl.exp2(z_TS * (scale * LOG2E) - lse2_T[:, None])
            if part != 1:
                s_1S = (s + tl.arange(0, BLOCK_S))[None, :]
                visible_TS = s_1S <= t_T[:, None]
                if DOCS:
                    visible_TS &= s_1S >= start_T[:, None]
                p_TS = tl.where(visible_TS, p_TS, 0.0)
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
    seed_pointer, scale, B, H, T, section,                                                  # as in forward_kernel
    K: tl.constexpr,            # head width
    BLOCK_T: tl.constexpr,      # queries of a tile; divides BLOCK_S
    BLOCK_S: tl.constexpr,      # keys of a program
    EVEN: tl.constexpr, DOCS: tl.constexpr, DROP: tl.constexpr, DESCRIPTOR: tl.constexpr,   # as in forward_kernel
):
    KEEP: tl.constexpr = (256 - DROP) / 256
    head, rank = _tile_of_program(tl.program_id(0), tl.cdiv(T, BLOCK_S), B * H, section)
    s = rank * BLOCK_S                                            # the first keys are seen by most queries
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
        full = tl.load(doc_end + row + s)                                # up to here every query sees every key,
        end = tl.load(doc_end + row + tl.minimum(s + BLOCK_S, T) - 1)    # from here on none sees any
    diagonal = tl.minimum(s + BLOCK_S, T)
    full = diagonal + tl.maximum(full - diagonal, 0) // BLOCK_T * BLOCK_T
    dk_SK = tl.zeros([BLOCK_S, K], tl.float32)
    dv_SK = tl.zeros([BLOCK_S, K], tl.float32)
    for part in tl.static_range(3 if DOCS or not EVEN else 2):    # diagonal, all visible, end of a document or of T
        lo = s if part == 0 else diagonal if part == 1 else full
        hi = diagonal if part == 0 else full if part == 1 else end
        for t in tl.range(lo, hi, BLOCK_T):
            t = tl.multiple_of(t, BLOCK_T)
            t_T = t + tl.arange(0, BLOCK_T)
            inside_T = t_T < (T if part != 1 and not EVEN else t + BLOCK_T)
            q_TK = _load(q_source, row, t, h * K, T, 3 * C, BLOCK_T, K, DESCRIPTOR, part != 1 and not EVEN)
            do_TK = _load(do_source, row, t, h * K, T, C, BLOCK_T, K, DESCRIPTOR, part != 1 and not EVEN)
            lse2_T = tl.load(lse + t_T, mask=inside_T, other=0.0) * LOG2E
            delta_T = tl.load(delta + t_T, mask=inside_T, other=0.0) * KEEP
            # TRAP: z is computed transposed, not as (q k^T)^T: on Hopper, Triton before 3.7.1 feeds a transposed
            # product to the tensor cores in the wrong layout when the tile is 64 wide, and dk is wrong without a word.
            z_ST = tl.dot(k_SK, q_TK.T, input_precision="ieee")
            p_ST = tl.exp2(z_ST * (scale * LOG2E) - lse2_T[None, :])
            if part != 1:
                p_ST = tl.where((t_T[None, :] >= s_S[:, None]) & (t_T[None, :] < end_S[:, None]), p_ST, 0.0)
            dp_ST = tl.dot(v_SK, do_TK.T, input_precision="ieee")
            kept_p_ST = p_ST
            if DROP:
                kept_ST = _kept(tl.load(seed_pointer), head, t, s, DROP, BLOCK_T, BLOCK_S).T
                kept_p_ST = tl.where(kept_ST, p_ST, 0.0)          # 1/(1-p) waits for the end
                dp_ST = tl.where(kept_ST, dp_ST, 0.0)
            dv_SK = tl.dot(kept_p_ST.to(do_TK.dtype), do_TK, dv_SK, input_precision="ieee")
            ds_ST = p_ST * (dp_ST - delta_T[None, :])
            dk_SK = tl.dot(ds_ST.to(q_TK.dtype), q_TK, dk_SK, input_precision="ieee")
    pointers = dqkv + row.to(tl.int64) * 3 * C + s_S[:, None] * (3 * C) + h * K + tl.arange(0, K)[None, :]
    tl.store(pointers + C, (dk_SK * (scale / KEEP)).to(dqkv.dtype.element_ty), mask=s_S[:, None] < T)
    tl.store(pointers + 2 * C, (dv_SK / KEEP).to(dqkv.dtype.element_ty), mask=s_S[:, None] < T)


# ---- The operator that autograd and torch.compile see ----------------------------------------------------------------

Tensor = torch.Tensor
KERNELS = forward_kernel, dq_kernel, dkdv_kernel      # in the order of TILES


def _launch(kernel, streamed, tensors, doc_BT, seed, scale, n_head, dropout_p):
    """kernel[grid] with its tile. Of the tensors in `streamed` tiles of one head pass by; tensors[0] is qkv."""
    (B, T, C3), arch = tensors[0].shape, architecture(tensors[0].device)
    K = C3 // (3 * n_head)
    path = "fp32" if tensors[0].dtype == torch.float32 else "dropout" if dropout_p else "plain"
    tile = TILES[arch, K, path][KERNELS.index(kernel)]
    owned, passing = (tile.keys, tile.queries) if kernel is dkdv_kernel else (tile.queries, tile.keys)
    even = T % max(owned, passing) == 0
    descriptor = arch == 90 and even and path != "fp32"        # a descriptor's tile does not stop where a sequence does
    tiles = [TensorDescriptor.from_tensor(x.view(B * T, -1), [passing, K]) if descriptor else None for x in streamed]
    section = max(1, L2_BYTES // (T * K * 2 * tensors[0].element_size()))
    kernel[(triton.cdiv(T, owned) * B * n_head,)](
        *tiles, *tensors, doc_BT, seed, scale, B, n_head, T, section, K=K, BLOCK_T=tile.queries, BLOCK_S=tile.keys,
        EVEN=even, DOCS=doc_BT is not None, DROP=dropout_in_256(dropout_p), DESCRIPTOR=descriptor,
        num_warps=tile.warps, num_stages=tile.stages, maxnreg=tile.registers)


@torch.library.custom_op("nanobiomedlm::flash_attention", mutates_args=())
def flash_attention_op(qkv_BT3C: Tensor, n_head: int, scale: float, dropout_p: float, seed: Tensor | None,
                       doc_start_BT: Tensor | None) -> tuple[Tensor, Tensor]:
    """(out_BTC, lse_BHT); opaque to torch.compile, so that fullgraph=True holds and nothing in it is traced."""
    out_BTC, lse_BHT = _outputs(qkv_BT3C, n_head)
    _launch(forward_kernel, [qkv_BT3C], [qkv_BT3C, out_BTC, lse_BHT], doc_start_BT, seed, scale, n_head, dropout_p)
    return out_BTC, lse_BHT


@flash_attention_op.register_fake
def _outputs(qkv_BT3C, n_head, *_):
    B, T, C3 = qkv_BT3C.shape
    return qkv_BT3C.new_empty(B, T, C3 // 3), qkv_BT3C.new_empty(B, n_head, T, dtype=torch.float32)


@torch.library.custom_op("nanobiomedlm::flash_attention_backward", mutates_args=())
def flash_attention_backward_op(dout_BTC: Tensor, qkv_BT3C: Tensor, out_BTC: Tensor, lse_BHT: Tensor, n_head: int,
                                scale: float, dropout_p: float, seed: Tensor | None,
                                doc_start_BT: Tensor | None) -> Tensor:
    """dqkv_BT3C."""
    dout_BTC = dout_BTC.contiguous()                              # sum().backward() sends an expanded scalar
    dqkv_BT3C, delta_BHT, doc_end_BT = torch.empty_like(qkv_BT3C), torch.empty_like(lse_BHT), None
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
    qkv_BT3C, ctx.n_head, ctx.scale, ctx.dropout_p, seed, doc_start_BT = inputs
    ctx.save_for_backward(qkv_BT3C, *output, seed, doc_start_BT)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dout_BTC, dlse_BHT):
    qkv_BT3C, out_BTC, lse_BHT, seed, doc_start_BT = ctx.saved_tensors
    dqkv_BT3C = flash_attention_backward_op(dout_BTC, qkv_BT3C, out_BTC, lse_BHT, ctx.n_head, ctx.scale, ctx.dropout_p,
                                            seed, doc_start_BT)
    return dqkv_BT3C, None, None, None, None, None


flash_attention_op.register_autograd(_backward, setup_context=_save)


def flash_attention(qkv_BT3C, n_head, scale, dropout_p=0.0, seed=None, doc_start_BT=None):
    """Causal self-attention over the packed projections; returns out_BTC (flash_attention_op also returns the LSE).

    qkv_BT3C: contiguous, bf16, fp16 or fp32; head width 64 or 128. scale > 0 multiplies the scores. dropout_p counts in
    256ths (0.1 is 26/256 = 0.1016, rescaled by exactly that); seed is an int64 tensor [1] on the device, by default
    drawn from torch's generator. doc_start_BT (int32, from data.document_starts): queries see their own document only.
    """
    assert qkv_BT3C.is_contiguous(), "qkv is read by address: the c_attn output as it is, not a view of something else"
    K = qkv_BT3C.shape[2] // (3 * n_head)
    assert K in (64, 128), f"head width {K}: there are tiles for 64 and 128"
    assert scale > 0 and 0 <= dropout_p < 1, f"scale {scale} must be positive and dropout {dropout_p} in [0, 1)"
    if dropout_p:
        seed = torch.randint(2**62, (1,), device=qkv_BT3C.device) if seed is None else seed
    return flash_attention_op(qkv_BT3C, n_head, float(scale), float(dropout_p), seed, doc_start_BT)[0]


def dropout_in_256(dropout_p):
    """How many of a byte's 256 values drop: at least one if dropout was asked for."""
    return min(255, max(1, round(256 * dropout_p))) if dropout_p else 0


# ---- Measuring -------------------------------------------------------------------------------------------------------

OURS = partial(flash_attention, n_head=HEADS, scale=WIDTH**-0.5)


def tune(T=1024):
    """Time candidate tiles for one kernel at a time, the others being those of TILES, where a person puts the best."""
    key = architecture(torch.device("cuda")), WIDTH, "plain"
    chosen = TILES[key]
    for i, kernel in enumerate(KERNELS):
        for candidate in product((64, 128), (64, 128), (4, 8), (2, 3), (None, 128)):
            tile = Tile(*candidate)
            if (tile.keys % tile.queries if kernel is dkdv_kernel else tile.queries % tile.keys) == 0:
                TILES[key] = (*chosen[:i], tile, *chosen[i + 1:])
                try:
                    result = "forward {:.3f} ms, with backward {:.3f} ms".format(*attention_ms(OURS, T, rounds=20))
                except triton.runtime.errors.OutOfResources as error:
                    result = str(error)
                print(f"{kernel.fn.__name__:15s} {tile}  {result}", "<- chosen" * (tile == chosen[i]))
    TILES[key] = chosen


def main():
    require_gpu("kernels/flash_attention.py")
    print(require_triton("cuda"))
    if sys.argv[1:] == ["tune"]:
        return tune()
    rates = ceilings()
    for T in (1024, 4096, 8192):
        for name, attention in {"ours": OURS, **SDPA}.items():
            forward, both = attention_ms(attention, T)
            print(line(f"T = {T} forward, {name}", forward, *attention_cost(T), rates))
            print(line(f"T = {T} forward + backward, {name}", both, *attention_cost(T, backward=True), rates))


if __name__ == "__main__":
    with speaking_to_the_user():
        main()
