"""Text to token shards: read PubMed, PMC or The Pile, encode, and write what train.py reads.

    python prepare/pubmed.py --inputs abstracts.jsonl.gz baseline/ --tokenizer data/tokenizer --out data/pubmed

Teaches how a corpus becomes one long array of uint16: a document's tokens, <|endoftext|> AFTER them, the next document.
With the tokenizer of another family (Llama's, for `train.py biomedgpt`) <s> before them and </s> after.
You should see a progress bar over the inputs' bytes, then documents, tokens and bytes of each split, and in --out:
train_000000.bin ... val_000000.bin ... (llm.c's format, see data.py), the tokenizer's files and meta.json.
The inputs are files or folders of .jsonl, .txt, .xml or .nxml, each plain, .gz or .zst: see prepare/documents.py.

Where from: PubMed's abstracts, ftp.ncbi.nlm.nih.gov/pubmed/baseline (.xml.gz; free, though an abstract may be under its
publisher's copyright): `prepare/pubmed.py download` fetches them, see prepare/download.py. PMC's open-access articles,
the bucket pmc-oa-opendata on AWS: pmc.ncbi.nlm.nih.gov/tools/pmcaws (.xml; each under a licence of its own). The Pile's
PubMed Abstracts and PubMed Central, pile.eleuther.ai (.jsonl.zst): what BioMedLM read, the same two sources until 2020
and under the same terms.

Not here: reading each format (prepare/documents.py), training the tokenizer (tokenizer.py), shuffling (data.py).
"""
import gc
import os
import shutil
import signal
import sys
import time
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import numpy as np
import tiktoken
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))   # run as a script, Python looks in prepare/ alone
from baselines import load_tokenizer  # noqa: E402
from plumbing.common import UserError, parse_args, speaking_to_the_user, write_json, written_whole  # noqa: E402
from plumbing.documents import EMPTY, Bad, Record, is_readable, parse, pmid, records  # noqa: E402
from plumbing.shards import write_shard  # noqa: E402
from prepare.download import Download, download  # noqa: E402
from prepare.exclude import Excluded, read_excluded  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

CHUNK = 1 << 20      # bytes of raw records that a process encodes at a time
SHOWN = 10           # of the bad records are printed; all are counted


@dataclass(frozen=True)
class Prepare:
    inputs: tuple[Path, ...]            # files or folders, in the order in which they enter the corpus
    tokenizer: Path                     # the folder that tokenizer.py wrote
    out: Path                           # a folder that appears whole or not at all
    val_fraction: float = 0.005         # of the documents, chosen by their hash: duplicates land on the same side
    exclude: tuple[Path, ...] = ()      # files of test sets; documents in them are dropped: prepare/exclude.py
    shard_tokens: int = 100_000_000     # a shard; a document may go on in the next one
    processes: int = 0                  # that encode; 0 is one a core. The shards do not depend on it
    overwrite: bool = False             # replace the shards in --out, if there are any


class Encoder:
    r"""Text to ids, equal to tok.encode (and to tiktoken), at nearly twice tiktoken's speed.

    GPT-2's pattern says \s+(?!\S): of several blanks before a word the last one belongs to the word. This look-ahead
    keeps tiktoken from matching with an automaton, and lets it panic on a megabyte of blanks. So cut the text before
    each such last blank, where a piece ends anyhow; within the parts a plain \s+ does the same. Words come
    first, since most pieces are words; what begins with an apostrophe is none, so the pieces stay the same.
    """
    PATTERN = r" ?\p{L}+| ?\p{N}+|'(?:[sdmt]|ll|ve|re)| ?[^\s\p{L}\p{N}]+|\s+"
    BLANKS = [*range(9, 14), 32, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000]

    def __init__(self, tok):
        exact = tok.to_tiktoken()    # TRAP: with no special token at all, tiktoken seeks the empty one at each byte
        self.fast = tiktoken.Encoding("no look-ahead", pat_str=self.PATTERN, mergeable_ranks=exact._mergeable_ranks,
                                      special_tokens=exact._special_tokens)
        self.is_blank = np.isin(np.arange(0x110000), self.BLANKS)

    def __call__(self, text):
        """A list of arrays that follow each other."""
        return [self.fast.encode_to_numpy(text[a:b], disallowed_special=()) for a, b in pairwise(self.cuts(text))]

    def cuts(self, text):
        if text.isprintable() and "  " not in text:      # the usual abstract: of all blanks, only the space "prints"
            return [0, len(text)]
        blank = self.is_blank[np.frombuffer(text.encode("utf-32-le"), "<u4")]    # three times as fast as a regex
        return [0, *(np.flatnonzero(blank[:-2] & blank[1:-1] & ~blank[2:]) + 1).tolist(), len(text)]


@cache
def load_encoder(folder):
    """Once a process. Also the arrays that begin and end each document."""
    tok = load_tokenizer(Path(folder))
    encoder = Encoder(tok) if isinstance(tok, Tokenizer) else lambda text: [tok.encode(text)]
    gc.freeze()                          # a vocabulary is many objects: no collection need look at them again
    return encoder, np.array(tok.front, np.uint32), np.array([tok.eos_id], np.uint32)


@dataclass
class Totals:
    """What a split holds, as in meta.json."""
    documents: int = 0
    tokens: int = 0                     # with one <|endoftext|> a document
    bytes: int = 0                      # UTF-8, of the texts alone: for bits per byte

    def add(self, other):
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@cache
def load_excluded(folder):
    """Once a process. None without --exclude."""
    return folder and Excluded(Path(folder))


class Left(NamedTuple):
    """What of a chunk did not become part of the corpus."""
    empty: Counter                      # kind of empty document -> how many
    bad: list[Bad]
    excluded: Counter                   # number of the --exclude file -> how many documents it names


def encode_chunk(chunk, folder, val_fraction, excluded_folder):
    """Raw records to ({split: (uint16 tokens, Totals)}, Left)."""
    encoder, front, eos = load_encoder(folder)
    excluded = load_excluded(excluded_folder)
    ids = {"train": [eos[:0]], "val": [eos[:0]]}
    totals, left = {"train": Totals(), "val": Totals()}, Left(Counter(), [], Counter())
    texts = [parse(record) for record in chunk]
    readable = ["" if isinstance(text, Bad) else text for text in texts]
    named = excluded.find(map(pmid, chunk), readable) if excluded else {}
    for i, (record, text) in enumerate(zip(chunk, texts, strict=True)):
        if isinstance(text, Bad):
            left.bad.append(text)
        elif not text or text.isspace():
            left.empty[EMPTY[record.kind]] += 1
        elif i in named:
            left.excluded[named[i]] += 1
        else:
            pieces = encoder(text)
            utf8 = text.encode()
            split = "val" if in_validation(utf8, val_fraction) else "train"
            ids[split] += [front, *pieces, eos]
            totals[split].add(Totals(1, sum(map(len, pieces)) + len(front) + 1, len(utf8)))
    # below 65,536 tokens, which main has checked, no id is changed by the cast
    return {s: (np.concatenate(ids[s], dtype=np.uint16, casting="unsafe"), totals[s]) for s in ids}, left


def in_validation(utf8, fraction):
    return crc32(utf8) < fraction * 2**32


def chunks(paths):
    """(records, bytes of all files up to there): each a task for one process."""
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
    """(encode_chunk's result, bytes read so far), in the order of the files whatever the number of processes."""
    settings = str(cfg.tokenizer), cfg.val_fraction, excluded_folder
    processes = cfg.processes or os.cpu_count()
    if processes == 1:
        yield from ((encode_chunk(chunk, *settings), done) for chunk, done in chunks(paths))
        return
    with ProcessPoolExecutor(processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        waiting = deque()
        for chunk, done in chunks(paths):
            waiting.append((pool.submit(encode_chunk, chunk, *settings), done))
            if len(waiting) > 4 * processes:     # enough to keep all busy, few enough to bound the memory
                future, done = waiting.popleft()
                yield future.result(), done
        yield from ((future.result(), done) for future, done in waiting)


class Shards:
    """Writes one split, holding at most one shard in memory."""

    def __init__(self, folder, split, size):
        self.folder, self.split, self.totals = folder, split, Totals()
        self.buffer, self.filled, self.written = np.empty(size, np.uint16), 0, 0

    def add(self, ids, totals):
        self.totals.add(totals)
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


class Skipped:
    """Counts what did not become part of the corpus, and names the first few bad ones."""

    def __init__(self, others):
        self.counts, self.bad, self.weight = Counter({"other file in a folder": others} if others else {}), 0, 0
        self.excluded = Counter()

    def add(self, left):
        self.counts += left.empty
        self.excluded += left.excluded
        for item in left.bad:
            if self.bad < SHOWN:
                tqdm.write(f"skipped {item.where}: {item.reason}", file=sys.stderr)
            self.counts[item.reason.split(" (")[0]] += 1
            self.bad, self.weight = self.bad + 1, self.weight + item.weight

    def check(self, read):
        """Stop if more than 1 % is bad: each unreadable line, article and file counted as one document, but a file that
        breaks off as many as it gave before, since as much again may be missing."""
        dropped = self.excluded.total()
        reasons = ", ".join(f"{n:,} x {reason}" for reason, n in
                            [*self.counts.most_common(), ("excluded document", dropped)] if n)
        if not read + self.weight:
            raise UserError(f"--inputs hold no document ({reasons or 'no file'}); nothing was written")
        if (share := self.weight / (read + dropped + self.weight)) > 0.01:
            raise UserError(f"{share:.1%} of the input cannot be read, more than 1 % ({reasons}); the first are named "
                            "above. Mend or leave out those files; nothing was written")


def files_in(inputs):
    """The files to read, in order, and how many of another kind lie in the folders."""
    files, others = [], 0
    for path in inputs:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; --inputs takes files of text, or folders of them")
        inside = [p for p in sorted(path.rglob("*")) if p.is_file()] if path.is_dir() else []
        readable = [p for p in inside if is_readable(p)] if path.is_dir() else [path]
        others += len(inside) - len(readable) if inside else 0
        files += readable
    return list(dict.fromkeys(files)), others


def check(cfg, tok):
    if len(tok) > 1 << 16:
        raise UserError(f"{cfg.tokenizer}: {len(tok):,} tokens; a shard's uint16 holds 65,536; train a smaller one")
    if not 0 <= cfg.val_fraction <= 1:
        raise UserError(f"--val-fraction {cfg.val_fraction}: a fraction of the documents lies between 0 and 1")
    if cfg.shard_tokens < 1 or cfg.processes < 0:
        raise UserError("--shard-tokens begins at 1 and --processes at 0 (one a core)")
    out = Path(cfg.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not cfg.overwrite:
            raise UserError(f"{out}: exists and is not empty; choose another --out, or --overwrite the shards in it")
        if not (out / "meta.json").is_file():
            raise UserError(f"{out}: no meta.json in it, so it holds no shards to --overwrite; choose another --out")


def main(cfg):
    start = time.time()
    load_encoder.cache_clear()           # the folder may hold another tokenizer than at the last call
    tok = load_tokenizer(Path(cfg.tokenizer))
    check(cfg, tok)
    paths, others = files_in(cfg.inputs)
    named = [read_excluded(path) for path in cfg.exclude]
    with written_whole(Path(cfg.out).resolve()) as folder:
        folder.mkdir()
        excluded_folder = folder / "excluded" if named else None
        if named:
            Excluded.save(excluded_folder, named)
        shards = {split: Shards(folder, split, cfg.shard_tokens) for split in ("train", "val")}
        skipped = Skipped(others)
        with tqdm(total=sum(p.stat().st_size for p in paths), unit="B", unit_scale=True, desc="read") as bar:
            for (splits, left), done in encoded(paths, cfg, excluded_folder):
                for split, (ids, totals) in splits.items():
                    shards[split].add(ids, totals)
                skipped.add(left)
                bar.update(done - bar.n)
        if named:
            shutil.rmtree(excluded_folder)
        skipped.check(sum(s.totals.documents for s in shards.values()))
        for s in shards.values():
            s.flush()
        tok.save(folder)
        meta = {"vocab_size": len(tok), "eos_id": tok.eos_id, **{name: vars(s.totals) for name, s in shards.items()},
                "skipped": dict(skipped.counts), "excluded": excluded_files(cfg, skipped.excluded),
                "val_fraction": cfg.val_fraction, "inputs": [str(p) for p in paths]}
        write_json(folder / "meta.json", meta)
    report(cfg, meta, time.time() - start)
    return meta


def excluded_files(cfg, dropped):
    """For meta.json. The CRC-32 of a test set's bytes tells finetune_qa.py that the model has not read it."""
    return [{"file": str(path), "crc32": crc32(path.read_bytes()), "dropped": dropped[i]}
            for i, path in enumerate(cfg.exclude)]


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
        print(f"note: no document fell to validation; with so few, raise --val-fraction ({cfg.val_fraction})")


if __name__ == "__main__":
    with speaking_to_the_user():
        if sys.argv[1:2] == ["download"]:
            download(parse_args(Download, argv=sys.argv[2:]))
        else:
            main(parse_args(Prepare))
