"""The tiles of flash_attention.py for every architecture, head width and path, chosen by what the compiler reports.

A tile is good if no registers spill and a processor holds at least eight warps, enough to hide the latency of memory
(results/kernels.md has the numbers, kernels/compile_check.py measures them). Tiles are constants, not timed at the
start of a run: ranks that time candidates for themselves may choose differently, and then round differently.

TRAP: on Hopper no side is below 64, since kernels with two products and a side of 16 or 32 were reported to corrupt
memory there. fp32 is for checking: no tensor core computes its exact products, and the unrolled code spills in larger
tiles (and in this one as well, without an explicit limit of 128 registers: the assembler aims at 80).
"""
from typing import NamedTuple


class Tile(NamedTuple):
    queries: int                    # BLOCK_T
    keys: int                       # BLOCK_S
    warps: int
    stages: int = 2                 # tiles in flight
    registers: int | None = None    # the limit per thread, where the assembler's own choice is worse


TILES = {   # (architecture, head width, path): forward_kernel, dq_kernel, dkdv_kernel
    (80, 64, "plain"): (Tile(128, 64, 8), Tile(128, 64, 8), Tile(64, 64, 8)),
    (80, 64, "dropout"): (Tile(128, 64, 8), Tile(64, 64, 8), Tile(32, 64, 4)),
    (80, 128, "plain"): (Tile(128, 64, 8), Tile(64, 64, 4), Tile(64, 64, 8)),
    (80, 128, "dropout"): (Tile(64, 64, 8), Tile(64, 64, 8), Tile(64, 64, 8)),
    (90, 64, "plain"): (Tile(128, 128, 8), Tile(128, 64, 8), Tile(64, 128, 8)),
    (90, 64, "dropout"): (Tile(128, 64, 8), Tile(128, 64, 8), Tile(64, 64, 8)),
    (90, 128, "plain"): (Tile(128, 128, 8), Tile(128, 64, 8), Tile(64, 64, 8)),
    (90, 128, "dropout"): (Tile(128, 64, 8), Tile(128, 64, 8), Tile(64, 64, 8)),
} | {(arch, width, "fp32"): (Tile(16, 16, 8, 2, 128),) * 3 for arch in (80, 90) for width in (64, 128)}
