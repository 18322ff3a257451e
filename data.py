"""A corpus is one long array of tokens; a batch is a handful of windows cut from it.

Teaches in which order a run reads 34.6 billion tokens: the batch of a step is a pure function of (seed, step). So
resuming needs only the number of the step, and one process reads the same windows as 128.
Tokens are stored in shards, as in llm.c: a header of 256 int32, then uint16 tokens.
Not here: turning text into tokens (tokenizer.py, prepare/).

    corpus = Corpus("data/pubmed", "train", window=1024, seed=0)
    ids_BT, targets_BT = corpus.batch(step=7, batch_size=32)      # targets are the ids, one position later
"""
import re
from bisect import bisect_right
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from plumbing.common import UserError, read_json, written_whole

# ---- Shards ----

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 256 * 4      # the header's int32: magic, version, token count, zeros


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
    """Map one shard into memory: a read-only 1-D uint16 array. Raises UserError if it is damaged or not a shard."""
    size = Path(path).stat().st_size
    if size < HEADER_BYTES:
        raise UserError(f"{path}: {size} bytes are too few for a shard's header; write it again")
    header = np.fromfile(path, np.int32, 256)
    if header[0] != MAGIC or header[1] != VERSION:
        raise UserError(f"{path}: not a token shard (magic {header[0]}, version {header[1]}, not {MAGIC}, {VERSION})")
    if size != HEADER_BYTES + 2 * int(header[2]):
        raise UserError(f"{path}: truncated or overlong: the header promises {header[2]} tokens, the file holds "
                        f"{(size - HEADER_BYTES) // 2}; write it again")
    return np.memmap(path, np.uint16, "r", HEADER_BYTES, (int(header[2]),)) if header[2] else np.empty(0, np.uint16)


def shards_of(folder, split):
    """The paths of a split, in order: train_000000.bin, fineweb_val_000001.bin. "retrieval" does not contain "val"."""
    paths = [path for path in sorted(Path(folder).glob("*.bin")) if split_of(path) == split]
    if not paths:
        raise UserError(f"{folder}: no {split}_*.bin shards; prepare/pubmed.py or prepare/demo.py writes them")
    return paths


def split_of(path):
    """The last word of a shard's name that names a split; None if none does."""
    words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in ("train", "val", "test")]
    return words[-1] if words else None


# ---- Windows ----


class Corpus:
    """The shards of one split, read as one array of tokens and cut into windows."""

    def __init__(self, folder, split, window, seed=0):
        paths = shards_of(folder, split)
        self.folder, self.split, self.window, self.seed = Path(folder), split, window, seed
        self.paths, self.shards = paths, [open_shard(path) for path in paths]
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards]).tolist()
        self.tokens = self.starts.pop()
        self.n_windows = (self.tokens - window) // window        # with every shift, the last window has a next token
        if self.n_windows < 1:
            raise UserError(f"{folder}: {self.tokens} {split} tokens are too few for one window of {window}; "
                            "prepare more text or shorten the window")

    def check_ids(self, vocab_size, rank=0, world=1):
        """Raise UserError if a shard holds an id without a row in the model. Reads every token once; each of several
        processes reads its share of the shards."""
        for path, shard in list(zip(self.paths, self.shards, strict=True))[rank::world]:
            if len(shard) and (largest := int(shard.max())) >= vocab_size:
                raise UserError(f"{path}: holds token {largest}, but the vocabulary has {vocab_size}; "
                                "was it written with another tokenizer?")

    def fingerprint(self):
        """A number that changes if the corpus does: a checksum of each shard's length and of samples of its tokens."""
        checksum = 0
        for shard in self.shards:
            samples = shard[::max(1, len(shard) // 4096)]
            checksum = crc32(np.append(np.uint64(len(shard)), samples).tobytes(), checksum)
        return checksum

    def read(self, start, length):
        """The tokens [start, start + length) of the whole corpus, across the ends of shards."""
        shard = bisect_right(self.starts, start) - 1
        tokens = self.shards[shard][start - self.starts[shard]:][:length]
        if len(tokens) < length:
            tokens = np.concatenate([tokens, self.read(start + len(tokens), length - len(tokens))])
        return tokens

    def cut(self, starts):
        """ids_BT and targets_BT (int64) of the windows that begin at `starts`."""
        tokens_BT = torch.from_numpy(np.stack([self.read(start, self.window + 1) for start in starts], dtype=np.int64))
        return tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()

    def batch(self, step, batch_size, rows=slice(None)):
        """The given rows of a step's batch. Every epoch orders and shifts the windows differently, so that 8.67 passes
        over PubMed hardly ever cut it the same way twice."""
        sample = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)[rows]
        epoch, position = np.divmod(sample, np.uint64(self.n_windows))
        key = mix(mix(np.array([self.seed], np.uint64)) + epoch)
        starts = permute(position, self.n_windows, key) * np.uint64(self.window) + key % np.uint64(self.window)
        return self.cut(starts.tolist())

    def spread(self, count):
        """The starts of up to `count` windows, evenly spread over the split, always the same: for evaluation."""
        return [i * self.window for i in np.linspace(0, self.n_windows - 1, min(count, self.n_windows)).astype(int)]

    def bytes_per_token(self):
        """UTF-8 bytes of text per token, from the folder's meta.json; None if that is missing or does not say."""
        meta = read_meta(self.folder).get(self.split, {})
        return meta["bytes"] / meta["tokens"] if meta.get("bytes") and meta.get("tokens") else None


def read_meta(folder):
    """meta.json of a folder of shards (vocab_size, eos_id, counts of each split); {} if there is none."""
    path = Path(folder) / "meta.json"
    return read_json(path, "the description of the shards by prepare/") if path.is_file() else {}


def document_starts(ids_BT, eos_id):
    """doc_start_BT (int32): for every position the first of its document, one past the last <|endoftext|> before it."""
    t_T = torch.arange(ids_BT.shape[1], dtype=torch.int32, device=ids_BT.device)
    begins_BT = torch.nn.functional.pad(ids_BT[:, :-1] == eos_id, (1, 0))
    return (t_T * begins_BT).cummax(1).values


# The constants of splitmix64, a public pseudo-random generator; shifts are uint64 because the numbers are.
GOLDEN, FIRST, SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
R30, R27, R31 = np.array([30, 27, 31], np.uint64)


def mix(x_B):
    """A hash of uint64 (splitmix64's finaliser): every bit that goes in turns about half of those that come out."""
    x_B = x_B + GOLDEN                                            # arrays wrap around; scalars would warn
    x_B = (x_B ^ (x_B >> R30)) * FIRST
    x_B = (x_B ^ (x_B >> R27)) * SECOND
    return x_B ^ (x_B >> R31)


def permute(i_B, n, key_B):
    """The place of i in a pseudo-random permutation of range(n), one per key: 33.8 million windows need no memory.

    A Feistel network permutes [0, 4^half): (left, right) -> (right, left ^ hash(right)) can be undone, whatever the
    hash. A result beyond n is permuted again until it is inside ("cycle walking"): still a permutation of range(n).
    """
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    i_B, outside = i_B.copy(), np.ones(len(i_B), bool)
    while outside.any():
        left, right = i_B[outside] >> half, i_B[outside] & mask
        for rounds in range(4):
            left, right = right, left ^ (mix(key_B[outside] + np.uint64(rounds << 40) + right) & mask)
        i_B[outside] = left << half | right
        outside = i_B >= n
    return i_B
