"""A corpus is one long array of tokens; a batch is a handful of windows cut from it.

Teaches in which order a run reads 34.6 billion tokens: the batch of a step is a pure function of (seed, step), so that
resuming needs nothing but the step's number and one process reads the same windows as 128.
Not here: turning text into tokens (tokenizer.py, prepare/), the files they lie in (shards.py).

    corpus = Corpus("data/pubmed", "train", window=1024, seed=0)
    ids_BT, targets_BT = corpus.batch(step=7, batch_size=32)      # targets are the ids, one place further on
"""
from bisect import bisect_right
from pathlib import Path

import numpy as np
import torch

from plumbing.common import UserError, read_json
from plumbing.shards import open_shard


class Corpus:
    """The shards of one split, read as one array of tokens and cut into windows."""

    def __init__(self, folder, split, window, seed=0):
        paths = sorted(Path(folder).glob(f"*{split}*.bin"))
        if not paths:
            raise UserError(f"{folder}: no {split}_*.bin shards; prepare/pubmed.py or prepare/demo.py writes them")
        self.folder, self.split, self.window, self.seed = Path(folder), split, window, seed
        self.paths, self.shards = paths, [open_shard(path) for path in paths]
        self.starts = np.cumsum([0] + [len(shard) for shard in self.shards]).tolist()
        self.tokens = self.starts.pop()
        self.n_windows = (self.tokens - window) // window        # whatever the epoch's shift: each has its next token
        if self.n_windows < 1:
            raise UserError(f"{folder}: {self.tokens} {split} tokens are too few for one window of {window}; "
                            "prepare more text or shorten the window")

    def check_ids(self, vocab_size, rank=0, world=1):
        """Raise UserError if a shard holds an id that the model has no row for. Reads every token once; of many
        processes, each reads its shards."""
        for path, shard in list(zip(self.paths, self.shards, strict=True))[rank::world]:
            if len(shard) and (largest := int(shard.max())) >= vocab_size:
                raise UserError(f"{path}: holds token {largest}, but the vocabulary has {vocab_size}; "
                                "was it written with another tokenizer?")

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
        """The given rows of a step's batch. Every epoch has an order and a shift of the windows of its own, so that
        8.67 passes over PubMed hardly ever see the same cut twice."""
        sample = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.uint64)[rows]
        epoch, position = np.divmod(sample, np.uint64(self.n_windows))
        key = mix(mix(np.array([self.seed], np.uint64)) + epoch)
        starts = permute(position, self.n_windows, key) * np.uint64(self.window) + key % np.uint64(self.window)
        return self.cut(starts.tolist())

    def spread(self, count):
        """The starts of up to `count` windows, evenly spread over the split and the same for ever: for evaluation."""
        return [i * self.window for i in np.linspace(0, self.n_windows - 1, min(count, self.n_windows)).astype(int)]

    def bytes_per_token(self):
        """UTF-8 bytes of text per token, from the folder's meta.json; None where whoever wrote the shards left none."""
        if not (self.folder / "meta.json").is_file():
            return None
        meta = read_json(self.folder / "meta.json", "what prepare/ wrote about the shards")
        return meta[self.split]["bytes"] / meta[self.split]["tokens"]


def document_starts(ids_BT, eos_id):
    """doc_start_BT (int32): for every position the first of its document, one past the last <|endoftext|> before it."""
    t_T = torch.arange(ids_BT.shape[1], dtype=torch.int32, device=ids_BT.device)
    begins_BT = torch.nn.functional.pad(ids_BT[:, :-1] == eos_id, (1, 0))
    return (t_T * begins_BT).cummax(1).values


GOLDEN, FIRST, SECOND = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
R30, R27, R31 = np.array([30, 27, 31], np.uint64)


def mix(x_B):
    """A hash of uint64 (splitmix64's finaliser): every bit that goes in turns about half of those that come out."""
    x_B = x_B + GOLDEN                                            # arrays wrap around; scalars would warn
    x_B = (x_B ^ (x_B >> R30)) * FIRST
    x_B = (x_B ^ (x_B >> R27)) * SECOND
    return x_B ^ (x_B >> R31)


def permute(i_B, n, key_B):
    """Where pseudo-random permutations of range(n), one a key, send i: 33.8 million windows in order cost no memory.

    A Feistel network permutes [0, 4^half): (left, right) -> (right, left ^ hash(right)) is undone whatever the hash.
    What falls beyond n is sent on until it lands inside ("cycle walking"): still a permutation of range(n).
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
