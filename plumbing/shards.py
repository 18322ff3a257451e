"""How tokens lie on disk: uint16 shards behind a short header, as in llm.c, so that other tools read them too.

Not here: the order in which a run reads them (data.py). Without torch, which whoever only writes them can do without.
"""
from pathlib import Path

import numpy as np

from plumbing.common import UserError, written_whole

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 256 * 4      # llm.c: 256 int32 = magic, version, token count, 0 ...


def write_shard(path, tokens):
    """Write `tokens` (1-D uint16) as one shard; the file appears whole or not at all."""
    tokens = np.asarray(tokens)
    assert tokens.dtype == np.uint16, f"shards hold uint16, not {tokens.dtype}: a cast would wrap ids silently"
    header = np.zeros(256, np.int32)
    header[:3] = MAGIC, VERSION, len(tokens)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(header.tobytes())
        file.write(np.ascontiguousarray(tokens).tobytes())


def open_shard(path):
    """Map one shard into memory: a read-only 1-D uint16 array. Raises UserError if it is damaged or no shard."""
    size = Path(path).stat().st_size
    if size < HEADER_BYTES:
        raise UserError(f"{path}: {size} bytes are too few for a shard's header; write it again")
    header = np.fromfile(path, np.int32, 256)
    if header[0] != MAGIC or header[1] != VERSION:
        raise UserError(f"{path}: no token shard (magic {header[0]}, version {header[1]}, not {MAGIC}, {VERSION})")
    if size != HEADER_BYTES + 2 * int(header[2]):
        raise UserError(f"{path}: truncated or overlong: the header promises {header[2]} tokens, the file holds "
                        f"{(size - HEADER_BYTES) // 2}; write it again")
    return np.memmap(path, np.uint16, "r", HEADER_BYTES, (int(header[2]),)) if header[2] else np.empty(0, np.uint16)
