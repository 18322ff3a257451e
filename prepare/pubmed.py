"""Text to token shards: read PubMed, PMC or The Pile, encode, and write what train.py reads.

    python prepare/pubmed.py --inputs abstracts.jsonl.gz baseline/ --tokenizer data/tokenizer --out data/pubmed
    python prepare/pubmed.py download --out baseline       # first fetch the abstracts: prepare/download.py

Teaches how a corpus becomes one long array of uint16: the tokens of a document, then <|endoftext|>, then the next
document. A Llama tokenizer (for `train.py biomedgpt`) puts <s> before each document and </s> after it.
The inputs are .jsonl, .txt, .xml or .nxml, plain, .gz or .zst. The folder --out contains train_000000.bin ...
val_000000.bin ... (llm.c's format, see data.py), the tokenizer's files and meta.json.
You should see a progress bar, then the documents, tokens and bytes of each split.

Not here: sources and licences (prepare/__init__.py), reading each format (plumbing/documents.py), training the
tokenizer (tokenizer.py), what --exclude looks for (prepare/exclude.py), shuffling (data.py).
"""
import gc
import os
import signal
import sys
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import tiktoken
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of prepare/

from baselines import load_tokenizer
from data import write_shard
from plumbing.common import UserError, check_ranges, run_script, say_next, write_json, written_whole
from plumbing.documents import EMPTY, Bad, Record, files_in, parse, pmid, records
from prepare.download import Download, download
from prepare.exclude import Excluded, read_excluded
from tokenizer import Tokenizer

CHUNK = 1 << 20      # bytes of raw records that a process encodes at a time
SHOWN = 10           # unreadable records that are named; all are counted


@dataclass(frozen=True)
class Prepare:
    """Turn text into token shards. `pubmed.py download --help`: fetch PubMed's abstracts."""
    inputs: tuple[Path, ...]            # files or folders, in the order in which they enter the corpus
    tokenizer: Path                     # the folder that tokenizer.py wrote
    out: Path                           # a folder that is written completely or not at all
    exclude: tuple[Path, ...] = ()      # files that name or quote documents to leave out, such as test sets
    val_fraction: float = 0.005         # of the documents, by their hash, so that duplicates are in the same split
    shard_tokens: int = 100_000_000     # tokens per shard; a document may continue in the next shard
    processes: int = 0                  # encoding processes; 0 is one per core. The shards do not depend on it
    overwrite: bool = False             # replace the shards in --out, if there are any


class Encoder:
    r"""Text to ids. They equal those of tok.encode, at nearly twice tiktoken's speed.

    In GPT-2's pattern, \s+(?!\S) means that the last of several blanks before a word belongs to the word. tiktoken
    needs its slow regex engine for this look-ahead, which panics on a megabyte of blanks. So this class cuts the text
    before each such last blank, where a piece ends anyway. Within the parts, a plain \s+ gives the same pieces.
    In the pattern words come first, because most pieces are words. No word begins with an apostrophe, so the order does
    not change the pieces.
    """
    PATTERN = r" ?\p{L}+| ?\p{N}+|'(?:[sdmt]|ll|ve|re)| ?[^\s\p{L}\p{N}]+|\s+"
    BLANKS = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]

    def __init__(self, tok):
        exact = tok.to_tiktoken()    # TRAP: without a special token, tiktoken looks for an empty one at each byte
        self.fast = tiktoken.Encoding("no look-ahead", pat_str=self.PATTERN, mergeable_ranks=exact._mergeable_ranks,
                                      special_tokens=exact._special_tokens)
        self.is_blank = np.isin(np.arange(0x110000), self.BLANKS)

    def __call__(self, text):
        """The ids as a list of consecutive arrays."""
        return [self.fast.encode_to_numpy(text[a:b], disallowed_special=()) for a, b in pairwise(self.cuts(text))]

    def cuts(self, text):
        if text.isprintable() and "  " not in text:      # most abstracts; the space is the only printable blank
            return [0, len(text)]
        blank = self.is_blank[np.frombuffer(text.encode("utf-32-le"), "<u4")]    # three times as fast as a regex
        return [0, *(np.flatnonzero(blank[:-2] & blank[1:-1] & ~blank[2:]) + 1).tolist(), len(text)]


@cache
def load_encoder(folder):
    """(encoder, ids before a document, ids after it). Loaded once per process."""
    tok = load_tokenizer(folder)
    encoder = Encoder(tok) if isinstance(tok, Tokenizer) else lambda text: [tok.encode(text)]
    gc.freeze()                          # the garbage collector need not visit the many objects of a vocabulary
    return encoder, np.array(tok.front, np.uint32), np.array([tok.eos_id], np.uint32)


load_excluded = cache(Excluded)          # once per process


def encode_chunk(chunk, folder, val_fraction, excluded_folder):
    """Raw records to ({split: uint16 tokens}, the Counters of write_shards, [Bad])."""
    encoder, front, eos = load_encoder(folder)
    ids = {"train": [eos[:0]], "val": [eos[:0]]}
    counts = {what: Counter() for what in ("train", "val", "skipped", "excluded")}

    texts = [parse(record) for record in chunk]
    readable = ["" if isinstance(text, Bad) else text for text in texts]
    named = load_excluded(excluded_folder).find(map(pmid, chunk), readable) if excluded_folder else {}

    for i, (record, text) in enumerate(zip(chunk, texts, strict=True)):
        if isinstance(text, Bad):
            counts["skipped"][text.reason.split(" (")[0]] += 1
        elif not text or text.isspace():
            counts["skipped"][EMPTY[record.kind]] += 1
        elif i in named:
            counts["excluded"][named[i]] += 1
        else:
            utf8 = text.encode()
            split = "val" if crc32(utf8) < val_fraction * 2**32 else "train"
            arrays = [front, *encoder(text), eos]
            ids[split] += arrays
            counts[split].update(documents=1, tokens=sum(map(len, arrays)), bytes=len(utf8))
    # check() has checked that the vocabulary fits uint16
    tokens = {split: np.concatenate(arrays, dtype=np.uint16, casting="unsafe") for split, arrays in ids.items()}
    return tokens, counts, [text for text in texts if isinstance(text, Bad)]


def chunks(paths):
    """Yield (records, bytes read so far). Each chunk is a task for one process."""
    chunk, size, before = [], 0, 0
    for path in paths:
        for record in records(path):
            chunk.append(record)
            size += len(record.raw) if isinstance(record, Record) else 0
            if size >= CHUNK:
                yield chunk, before + record.position
                chunk, size = [], 0
        before += path.stat().st_size
    yield chunk, before


def encoded(paths, cfg, excluded_folder):
    """Yield (encode_chunk's result, bytes read so far) in the order of the files, for any number of processes."""
    settings = cfg.tokenizer, cfg.val_fraction, excluded_folder
    processes = cfg.processes or os.cpu_count()
    if processes == 1:
        yield from ((encode_chunk(chunk, *settings), done) for chunk, done in chunks(paths))
        return
    with ProcessPoolExecutor(processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        waiting = deque()
        for chunk, done in chunks(paths):
            waiting.append((pool.submit(encode_chunk, chunk, *settings), done))
            if len(waiting) > 4 * processes:     # enough work for all; the limit bounds the memory
                future, done = waiting.popleft()
                yield future.result(), done
        yield from ((future.result(), done) for future, done in waiting)


class Shards:
    """Writes one split, with at most one shard in memory."""

    def __init__(self, folder, split, size):
        self.folder, self.split = folder, split
        self.buffer, self.filled, self.written = np.empty(size, np.uint16), 0, 0

    def add(self, ids):
        while len(ids):
            fits, ids = np.split(ids, [len(self.buffer) - self.filled])
            self.buffer[self.filled:self.filled + len(fits)] = fits
            self.filled += len(fits)
            if self.filled == len(self.buffer):
                self.flush()

    def flush(self):
        if self.filled:
            write_shard(self.folder / f"{self.split}_{self.written:06d}.bin", self.buffer[:self.filled])
            self.written, self.filled = self.written + 1, 0


def check(cfg, tok):
    if len(tok) > 1 << 16:
        raise UserError(f"{cfg.tokenizer}: {len(tok):,} tokens, but the shards' uint16 has room for 65,536; use a "
                        "smaller vocabulary")
    check_ranges(cfg, ["shard_tokens"], val_fraction=(0, 1))
    if cfg.out.is_file() or (cfg.out.is_dir() and any(cfg.out.iterdir())):
        if not cfg.overwrite:
            raise UserError(f"{cfg.out}: exists and is not empty; choose another --out, or --overwrite its shards")
        if not (cfg.out / "meta.json").is_file():
            raise UserError(f"{cfg.out}: contains no meta.json, so no shards to --overwrite; choose another --out")


def main(cfg):
    start = time.time()
    load_encoder.cache_clear()           # the folder may have changed since the last call
    tok = load_tokenizer(cfg.tokenizer)
    check(cfg, tok)
    paths, others = files_in(cfg.inputs)
    with written_whole(cfg.out) as folder:
        folder.mkdir()
        counts = write_shards(cfg, paths, others, folder)
        tok.save(folder)
        # By the CRC-32 of a test file, finetune_qa.py recognises that the model has not read it.
        excluded = [{"file": str(path), "crc32": crc32(path.read_bytes()), "dropped": counts["excluded"][i]}
                    for i, path in enumerate(cfg.exclude)]
        meta = {"vocab_size": len(tok), "eos_id": tok.eos_id, **counts, "excluded": excluded,
                "val_fraction": cfg.val_fraction, "inputs": [str(path) for path in paths]}
        write_json(folder / "meta.json", meta)
    report(cfg, meta, time.time() - start)
    return meta


def write_shards(cfg, paths, others, folder):
    """Encode the files into shards in `folder`. Returns the Counters "train" and "val" (of documents, tokens, bytes),
    "skipped" (why -> documents) and "excluded" (index of the --exclude file -> documents)."""
    shards = {split: Shards(folder, split, cfg.shard_tokens) for split in ("train", "val")}
    total = {split: Counter(documents=0, tokens=0, bytes=0) for split in shards}
    total |= {"skipped": +Counter({"other file in a folder": others}), "excluded": Counter()}    # + leaves out a zero
    shown = weight = 0
    size = sum(path.stat().st_size for path in paths)
    with TemporaryDirectory(dir=folder) as arrays, tqdm(total=size, unit="B", unit_scale=True, desc="read") as bar:
        if cfg.exclude:
            Excluded.save(Path(arrays), [read_excluded(path) for path in cfg.exclude])
        for (tokens, counts, bad), done in encoded(paths, cfg, Path(arrays) if cfg.exclude else None):
            for split, shard in shards.items():
                shard.add(tokens[split])
            for what, counter in counts.items():
                total[what].update(counter)
            for item in bad[:SHOWN - shown]:
                tqdm.write(f"skipped {item.where}: {item.reason}", file=sys.stderr)
                shown += 1
            weight += sum(item.weight for item in bad)
            bar.update(done - bar.n)
    check_readable(total, weight)
    for shard in shards.values():
        shard.flush()
    return total


def check_readable(total, weight):
    """UserError if more than 1 % cannot be read.

    An unreadable line, article or file has the weight of one document. A truncated file has the weight of the documents
    read from it, because as many may be missing.
    """
    read, dropped = total["train"]["documents"] + total["val"]["documents"], total["excluded"].total()
    reasons = ", ".join(f"{n:,} x {reason}" for reason, n in
                        [*total["skipped"].most_common(), ("excluded document", dropped)] if n)
    if not read + weight:
        raise UserError(f"--inputs contain no document ({reasons or 'no file'}); nothing was written")
    if (share := weight / (read + dropped + weight)) > 0.01:
        raise UserError(f"{share:.1%} of the input cannot be read, more than 1 % ({reasons}); the first are named "
                        "above. Repair or leave out those files; nothing was written")


def report(cfg, meta, seconds):
    for split in ("train", "val"):
        n = meta[split]
        print(f"{split:5} {n['documents']:>12,} documents  {n['tokens']:>15,} tokens  {n['bytes']:>15,} bytes  "
              f"{n['bytes'] / max(1, n['tokens']):.3f} bytes/token")
    for reason, count in meta["skipped"].items():
        print(f"skipped {count:,} x {reason}")
    for part in meta["excluded"]:
        print(f"excluded {part['dropped']:,} documents of {part['file']}")
    text = meta["train"]["bytes"] + meta["val"]["bytes"]
    print(f"{cfg.out}: {text / 1e6:,.1f} MB of text in {seconds:.1f} s ({text / 1e6 / seconds:.1f} MB/s)")
    if cfg.val_fraction and not meta["val"]["documents"]:
        print(f"note: no document is in the validation split; raise --val-fraction ({cfg.val_fraction})")
    say_next("train.py", "laptop", "--data", cfg.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["download"]:
        run_script(download, Download, argv=sys.argv[2:])
    else:
        run_script(main, Prepare)
