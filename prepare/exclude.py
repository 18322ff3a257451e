"""Keep the documents of test sets out of a pretraining corpus.

    prepare/pubmed.py --exclude ori_pqal.json data/qa/sections_documents.jsonl pmids.txt ...

Each file names documents by PubMed identifier, by text or by both:
    .txt               one PMID or PubMed address per line
    .json, .jsonl      questions or documents of any structure: PubMedQA's object of PMIDs, BioASQ's golden sets with
                       the addresses of documents, SQuAD's format, prepare/qa.py's questions, {"text": ...}
Both may be plain or .gz.

A document is dropped if its PMID is named (only XML has PMIDs), or if it shares 20 words in a row with any text of the
file. So an article is dropped with its abstract. A text of fewer than 20 words excludes nothing.

Teaches how to look up every run of 20 words of a 100 GB corpus: a rolling hash of the whole document in a few numpy
operations, a table of bits that rules out most runs, and a sorted array for the others.
Not here: overlap between two files of questions (questions/metrics.py).
"""
import json
import re
from functools import cache
from typing import NamedTuple

import numpy as np

from plumbing.common import UserError, read_text

WORDS = 20                 # words of a shingle, a run of words
PIECE = 1 << 13            # runs hashed at a time: fits the CPU's cache, and bounds the memory for long documents
LINK = re.compile(r"pubmed(?:\.ncbi\.nlm\.nih\.gov)?/(\d{1,12})")


# ---- Texts to hashes ----

BLANK, BORDER = b" X"                                            # a border separates two documents
LETTERS = bytes(ord(chr(i).lower()) if i < 128 and chr(i).isalnum() else BLANK for i in range(256))
BASE = 0x9E3779B97F4A7C15                                        # odd, so it has an inverse modulo 2**64
INVERSE = pow(BASE, -1, 1 << 64)


def shingles(text):
    """A uint64 hash of each run of WORDS words. Empty for a shorter text.

    Words are runs of ASCII letters and digits, without case, because copies of an abstract differ in dashes, quotes and
    accents.
    """
    return run_hashes(*words_of(letters(text)))


def letters(text):
    """The text as bytes a-z, 0-9 and blanks."""
    return text.encode(errors="replace").translate(LETTERS)


def words_of(text):
    """(the bytes of the words with a blank after each, the position of each word, the position of its blank)."""
    b = np.frombuffer(text + b" ", np.uint8)
    is_letter = b != BLANK
    b = b[is_letter | np.concatenate([[False], is_letter[:-1]])]
    ends = np.flatnonzero(b == BLANK)
    return b, np.concatenate([[0], ends + 1])[:-1], ends


def run_hashes(b, starts, ends):
    """The hash of each run of WORDS words, piece by piece.

    The hash of bytes b_0 b_1 ... is the sum of b_i BASE^i modulo 2**64. So one cumulative sum gives the hashes of all
    runs: subtract its values at the two ends of a run, and divide by BASE to the power of the run's start.
    """
    pieces = [np.empty(0, np.uint64)]
    for piece in range(0, len(ends) - WORDS + 1, PIECE):
        last = ends[piece + WORDS - 1:][:PIECE]
        first = starts[piece:][:len(last)]
        origin, length = first[0], last[-1] - first[0]
        up, down = powers(int(length).bit_length())
        sums = np.zeros(length + 1, np.uint64)
        np.cumsum(b[origin:origin + length] * up[:length], out=sums[1:])
        pieces.append((sums[last - origin] - sums[first - origin]) * down[first - origin])
    return np.concatenate(pieces)


@cache
def powers(log2):
    """The first 2**log2 powers of BASE and of its inverse."""
    return tuple(np.cumprod(np.array([1] + [x] * ((1 << log2) - 1), np.uint64)) for x in (BASE, INVERSE))


# ---- From files to PMIDs and hashes ----


class Named(NamedTuple):
    """What one file excludes."""
    pmids: set[int]
    hashes: np.ndarray                   # uint64, sorted, each once


def read_excluded(path):
    """The PMIDs and hashes of a file. UserError if it is not understood, because no test set may be missed."""
    if not re.fullmatch(r".*\.(txt|jsonl?)(\.gz)?", path.name):
        raise UserError(f"{path}: --exclude reads .txt, .json and .jsonl, plain or .gz")
    contents = read_text(path, "--exclude takes files of PMIDs (.txt), questions or documents (.json, .jsonl)")
    if path.name.removesuffix(".gz").endswith(".txt"):
        return Named({pmid_of(line, f"{path}, line {i}") for i, line in enumerate(contents.split("\n"), 1)
                      if line.strip()}, np.empty(0, np.uint64))
    pmids, pieces = set(), [np.empty(0, np.uint64)]
    for value in json_values(path, contents):
        if isinstance(value, dict):
            pmids |= {int(key) for key in value if re.fullmatch(r"\d{1,12}", key)}      # PubMedQA: an object of PMIDs
        for text in strings(value):
            pmids |= set(map(int, LINK.findall(text)))
            pieces.append(shingles(text))
    found = Named(pmids, np.unique(np.concatenate(pieces)))
    if not found.pmids and not len(found.hashes):
        raise UserError(f"{path}: contains no PMID and no text of {WORDS} words, so it excludes nothing; "
                        "leave it out, or give the file with the documents or PMIDs of the test set")
    return found


def pmid_of(line, where):
    match = re.fullmatch(r"(?:\S*/)?(\d{1,12})/?", line.strip())
    if not match:
        raise UserError(f"{where}: {line.strip()[:40]!r} is not a PMID; write one number or PubMed address per line")
    return int(match[1])


def json_values(path, contents):
    """The JSON values of a file: one per line in .jsonl, else one."""
    lines = contents.split("\n") if ".jsonl" in path.name else [contents]
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON ({error}); repair or remove the line") from error


def strings(value):
    """All strings in a JSON value, except the keys of objects."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, (dict, list)):
            waiting.extend(value.values() if isinstance(value, dict) else value)


# ---- Looking up documents in all files at once ----


class Excluded:
    """The PMIDs and hashes of all files: arrays in a folder, which all processes map into the same memory."""

    def __init__(self, folder):
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("hashes", "files", "bits")]
        self.hashes, self.files, self.bits = map(np.asarray, arrays)     # numpy indexes plain arrays faster
        self.shift = np.uint64(64 - (len(self.bits) - 1).bit_length())
        self.pmids = dict(np.load(folder / "pmids.npy").tolist())

    @staticmethod
    def save(folder, named):
        """Write the arrays for [Named, ...]. What occurs in several of them is assigned to the first."""
        hashes = np.concatenate([part.hashes for part in named])
        files = np.repeat(np.arange(len(named), dtype=np.uint16), [len(part.hashes) for part in named])
        hashes, first = np.unique(hashes, return_index=True)             # the first of equal ones
        log2 = max(10, (8 * len(hashes)).bit_length())                   # at most one bit in eight is set
        bits = np.zeros(1 << log2, bool)
        bits[hashes >> np.uint64(64 - log2)] = True
        pmids = [(pmid, i) for i, part in reversed(list(enumerate(named))) for pmid in part.pmids]
        for name, array in (("hashes", hashes), ("files", files[first]), ("bits", bits),
                            ("pmids", np.array(pmids, np.int64).reshape(-1, 2))):
            np.save(folder / f"{name}.npy", array)

    def find(self, pmids, texts):
        """{index of a document: index of the first file that has its PMID or one of its shingles}."""
        b, starts, ends = words_of(b" X ".join(map(letters, texts)))     # no excluded text contains a border
        hashes = run_hashes(b, starts, ends)
        likely = np.flatnonzero(self.bits[hashes >> self.shift])
        places = np.searchsorted(self.hashes, hashes[likely]).clip(max=len(self.hashes) - 1)
        equal = self.hashes[places] == hashes[likely]
        documents = np.searchsorted(np.flatnonzero(b[starts] == BORDER), likely[equal])

        files = self.files[places[equal]].tolist()
        found = dict(sorted(zip(documents.tolist(), files, strict=True), reverse=True))      # the first file comes last
        return found | {i: self.pmids[pmid] for i, pmid in enumerate(pmids) if pmid in self.pmids}
