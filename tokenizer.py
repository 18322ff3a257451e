"""Byte-pair encoding: how text becomes the numbers a GPT reads, and why biomedicine wants a vocabulary of its own.

    python tokenizer.py train --inputs abstracts.jsonl.gz --vocab-size 28896 --out data/tokenizer
    python tokenizer.py count --inputs shard0.jsonl.zst --out shard0.counts.json    # one process per shard, then
    python tokenizer.py train --inputs *.counts.json --vocab-size 28896 --out data/tokenizer
    python tokenizer.py compare --tokenizers data/tokenizer gpt2/ --text "Photosynthesis in chloroplasts"

GPT-2's vocabulary was learned from web pages and cuts "cytotoxicity" into cyt/ot/oxicity. Learned from abstracts it is
one token: more text fits into the context, and the model need not learn to spell first. Learning takes four steps:
  1. A fixed pattern cuts text into pieces: words, numbers, punctuation, each with the space before it. No token
     crosses from one piece into the next, so it is enough to count how often each piece occurs.
  2. Each piece is spelled in bytes. The 256 bytes are the first tokens, so nothing is ever unknown.
  3. The commonest pair of neighbouring tokens, say (t, h), becomes a new token th, everywhere; repeat 28,639 times.
  4. To encode, apply the merges to a new piece in the order in which they were learned.

Plain Python is fast enough with one trick: a word is a str with ONE CHARACTER PER TOKEN, chr(id). Then a pair is a str
of two characters, merging is str.replace, and the list of ids is what str.encode("utf-16") returns.

The merges and ids equal those of Hugging Face's tokenizers, entry for entry; results/tokenizer.md has the speed.
Not here: reading text (plumbing/documents.py), writing token shards (prepare/pubmed.py), Hugging Face's files
(plumbing/tokenizer_files.py), tokenizers of other kinds (baselines/subwords.py). Left out of BPE: dropout,
normalisation, other patterns than GPT-2's.
"""
import heapq
import re
import sys
from collections import Counter, defaultdict
from itertools import repeat
from operator import add
from pathlib import Path

import numpy as np
import regex

from plumbing.common import UserError, collecting_by_hand, say_next, speaking_to_the_user, write_json
from plumbing.tokenizer_files import BYTES, EOS, NEWER, read_files, read_ids, write_files

PAPER_TERMS = ("chromatography", "cytotoxicity", "ECG", "GATA", "Immunohistochemistry", "myocardium", "nanoparticles",
               "photosynthesis", "probiotic", "thrombin")       # one token each in BioMedLM: table 3 of the paper

# ---- 1. Cutting text into pieces ----

LETTER = rf"[a-zA-Z[\p{{L}}--[{NEWER}]]]"       # ASCII first: ordinary text never reaches the long list
NUMBER = rf"[0-9[\p{{N}}--[{NEWER}]]]"

# GPT-2's pattern: 's 't 're ..., then letters, numbers or other signs with at most one space before them, then white
# space, of which the last blank is left to the word that follows.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
PIECES = regex.compile(PATTERN.replace(r"\p{L}", LETTER).replace(r"\p{N}", NUMBER), regex.V1)   # V1: sets have a "--"

# `cut` uses Python's own `re`, which is faster. TRAP: it counts the separators U+001C-1F as white space; these do not.
BLANK, SOLID = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
LONE_SPACE = re.compile(rf" (?!{SOLID})")                        # a space that does not begin a word
RUN = re.compile(rf"""(
    {BLANK} (?!{SOLID})                # white space, except the last blank before a word: two blanks, a tab at the end
    (?: {BLANK}* (?=[ ]{SOLID})        # either: as far as a space that begins a word
      | {BLANK}* {SOLID}* )            # or: as far as the end of the word behind it, which has no space of its own
    )""", re.VERBOSE)


def cut(text):
    """Cut a text at spaces between pieces: yields (head, words). The words come without the space before them.

    >>> list(cut("one two, three"))
    [('one', ['two,', 'three'])]
    >>> list(cut("one two\\n  three four"))            # a run of white space begins a new part
    [('one', ['two']), ('\\n ', ['three', 'four'])]

    str.split and a dict of known words cost a fraction of the Unicode pattern, which then runs once per distinct word.
    """
    run = ""
    for i, part in enumerate(RUN.split(text) if LONE_SPACE.search(text) else [text]):
        if i % 2:                                                # RUN.split puts the runs at odd places
            run = part
        else:
            words = part.split(" ")
            yield run + words.pop(0), words


def well_formed(text):
    """Pairs of surrogates joined, lone ones turned into U+FFFD, as in tiktoken, since UTF-8 cannot spell them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---- 2. Bytes and their symbols ----

# A token's symbol is chr(id). BYTES lists the bytes in the order of their ids; a space is 220.
TO_SYMBOLS = bytes.maketrans(BYTES, bytes(range(256)))


def symbols(spelled):
    """The word of byte tokens for bytes: b" A" -> chr(220) + chr(32)."""
    return spelled.translate(TO_SYMBOLS).decode("latin-1")


# ---- 3. Learning ----

def count_pieces(texts, fold_at=1 << 20):
    """How often each piece occurs: {" the": 81234, ...}. Memory holds these and at most about `fold_at` words."""
    heads, words, pieces = Counter(), Counter(), Counter()
    for text in texts:
        for head, spaced in cut(text):
            heads[head] += 1
            words.update(spaced)
        if len(heads) + len(words) > fold_at:
            fold(heads, words, pieces)
    fold(heads, words, pieces)
    return pieces


def fold(heads, words, pieces):
    """Cut the counted heads and words into pieces and add up their counts; empties `heads` and `words`.

    All words that occur n times are cut as one text.
    """
    alike = defaultdict(list)
    for word, n in words.items():
        alike[n].append(word)
    texts = [(n, " " + " ".join(group)) for n, group in alike.items()] + [(n, head) for head, n in heads.items()]
    for n, text in texts:
        for piece, times in Counter(PIECES.findall(well_formed(text))).items():
            pieces[piece] += n * times
    heads.clear()
    words.clear()


@collecting_by_hand()      # the collector would spend over a tenth of the time searching millions of lists for cycles
def learn_merges(pieces, n_merges, min_frequency=2):
    """The merges in the order they are learned, each a pair: a str of two symbols. Merge i makes token 256 + i.

    The commonest pair goes first; among equally common pairs the one with the smallest ids, which is the smallest
    string of symbols. The whole idea, slowly:

    >>> pieces = {" cell": 10, " cells": 5, "cellular": 5, "llllama": 3}
    >>> words, merges = {symbols(piece.encode()): n for piece, n in pieces.items()}, []
    >>> while len(merges) < 8:
    ...     total = Counter()
    ...     for word, n in words.items():
    ...         for a, b in zip(word, word[1:]):
    ...             total[a + b] += n
    ...     best = min(total, key=lambda pair: (-total[pair], pair))
    ...     words = {word.replace(best, chr(256 + len(merges))): n for word, n in words.items()}
    ...     merges.append(best)
    >>> merges == learn_merges(pieces, 8)
    True

    Here a heap finds the commonest pair, and a merge visits only the words in `where` that hold it. The heap's counts
    may be out of date, but only too high: all occurrences of a pair appear in one step, when its newer half is made,
    and later merges only take some away. So an entry whose count is out of date goes back with its present count.
    """
    words, counts = [symbols(piece.encode()) for piece in pieces], list(pieces.values())
    total, where = defaultdict(int), defaultdict(list)     # pair -> how often; which words held it
    for i, (word, n) in enumerate(zip(words, counts, strict=True)):
        for pair in map(add, word, word[1:]):
            total[pair] += n
            where[pair].append(i)
    heap = [(-n, pair) for pair, n in total.items() if n >= min_frequency]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < n_merges:
        n, pair = heap[0]
        if total[pair] != -n:                                    # out of date
            heapq.heapreplace(heap, (-total[pair], pair))
            continue
        if -n < min_frequency:
            break
        heapq.heappop(heap)
        new = chr(256 + len(merges))
        merges.append(pair)
        for old, born, holders in merge_everywhere(words, where.pop(pair), pair, new):
            n = sum(map(counts.__getitem__, holders))
            total[old] -= n
            if n >= min_frequency:                               # else it can never be merged: counts only fall
                total[born], where[born] = n, holders
                heapq.heappush(heap, (-n, born))
    return merges


def merge_everywhere(words, holders, pair, new):
    """Replace `pair` by `new` in the words numbered `holders`; yield (pair lost, pair born, numbers of the words).

    >>> words = ["the"]
    >>> list(merge_everywhere(words, [0], pair="th", new="X")), words
    ([('he', 'Xe', [0])], ['Xe'])

    A word is listed once for each occurrence, one after another, but is cut and joined only once.
    """
    (a, b), left, right = pair, defaultdict(list), defaultdict(list)     # neighbour -> words in which it is one
    last = -1
    for i in holders:
        if i == last:
            continue
        last = i
        first, found, rest = words[i].partition(pair)
        if not found:                                            # another merge took all occurrences meanwhile
            continue

        if first:
            left[first[-1]].append(i)
        if pair in rest:                                         # several times in one word: rare
            *parts, rest = rest.split(pair)
            for between in parts:
                right[between[0] if between else new].append(i)
                if between:
                    left[between[-1]].append(i)
            first = new.join([first, *parts])
        if rest:
            right[rest[0]].append(i)
        words[i] = first + new + rest
    for x, ids in left.items():
        yield x + a, x + new, ids
    for x, ids in right.items():
        yield b + (a if x == new else x), new + x, ids


# ---- 4. Applying ----

NEVER = chr(sys.maxunicode)                                      # sorts after every symbol


def apply_merges(word, merged, merges):
    """Merge the symbols of a word, always the earliest learned pair first. `merged` maps a pair to its new symbol."""
    if len(word) > 64:
        return apply_merges_to_long(word, merged)
    while len(word) > 1:
        new = min(map(merged.get, map(add, word, word[1:]), repeat(NEVER)))
        if new == NEVER:
            break
        word = word.replace(merges[ord(new) - 256], new)
    return word


def apply_merges_to_long(word, merged):
    """The same for a word of any length, in about linear time: a megabyte of one letter takes a second or two.

    Positions wait in one bucket for each symbol they can become; the buckets are emptied from the earliest symbol on. A
    merge only ever fills later buckets, as a symbol is learned before the pairs that contain it.
    """
    symbol, before, after = [*word, ""], list(range(-1, len(word))), list(range(1, len(word) + 1))     # "": the ends
    buckets = defaultdict(list)
    for i, pair in enumerate(map(add, word, word[1:])):
        if pair in merged:
            buckets[merged[pair]].append(i)
    queue = sorted(buckets)
    while queue:
        new = heapq.heappop(queue)
        for i in sorted(buckets.pop(new)):                       # from the left, for pairs that overlap: a a a
            j = after[i]
            if merged.get(symbol[i] + symbol[j]) != new:         # a symbol that was merged away is ""
                continue
            symbol[i], symbol[j] = new, ""
            after[i], before[after[j]] = after[j], i
            for k in (before[i], i):
                later = merged.get(symbol[k] + symbol[after[k]])
                if later:
                    if later not in buckets:
                        heapq.heappush(queue, later)
                    buckets[later].append(k)
    return "".join(symbol)


class Remember(dict):
    """A dict that computes missing values. It stops growing at `size` entries and keeps no long keys, so that memory
    is bounded for every text: about 140 bytes per entry."""

    def __init__(self, compute, size):
        self.compute, self.size = compute, size

    def __missing__(self, key):
        value = self.compute(key)
        if len(self) < self.size and len(key) < 64:
            self[key] = value
        return value


class Tokenizer:
    """Text to ids and back.

    >>> tok = Tokenizer.train(["cell by cell, cells of cells"], vocab_size=262)
    >>> [tok.decode([i]) for i in range(256, 262)]
    ['ce', 'll', 'cell', ' cell', ' cells', '<|endoftext|>']
    >>> tok.encode("cell cells")
    array([258, 260], dtype=uint16)
    >>> tok.decode([258, 260]), tok.add_special("[SEP]"), tok.specials
    ('cell cells', 262, {'<|endoftext|>': 261, '[SEP]': 262})
    """

    front = ()              # ids that a model needs before a text: none here; Llama's <s> in baselines/
    rows = 0                # of the embedding, if there are more than tokens

    def __init__(self, merges, specials=None, remember=1 << 19, eos=EOS):
        self.merges = list(merges)
        self.merged = {pair: chr(256 + i) for i, pair in enumerate(self.merges)}
        self.bytes_of = {i: bytes([byte]) for i, byte in enumerate(BYTES)}               # id -> its bytes
        for i, (a, b) in enumerate(self.merges):
            self.bytes_of[256 + i] = self.bytes_of[ord(a)] + self.bytes_of[ord(b)]
        self.size = len(self.bytes_of)                                                   # the largest id + 1
        self.pieces = Remember(self._encode_piece, remember)
        self.words = Remember(self._encode_word, remember)
        self.specials = {}                                                               # name -> id
        for name, i in (specials or {EOS: self.size}).items():
            self.add_special(name, i)
        self.eos, self.eos_ids = eos, (self.specials[eos],)

    @classmethod
    def train(cls, texts, vocab_size=28896):
        """Learn from an iterable of str. Of the tokens, 256 are bytes and the last is <|endoftext|>."""
        if isinstance(texts, str):
            raise UserError("Tokenizer.train needs an iterable of texts; a single str would be one text per letter")
        return cls.from_counts(count_pieces(texts), vocab_size)

    @classmethod
    def from_counts(cls, pieces, vocab_size=28896):
        """Learn from {piece: count}, as count_pieces gives it; counts of parts of a corpus may simply be added up."""
        if not 257 <= vocab_size <= sys.maxunicode:
            raise UserError(f"vocabulary size {vocab_size:,}; it must be from 257, the bytes and {EOS}, to "
                            f"{sys.maxunicode:,}")
        merges = learn_merges(pieces, vocab_size - 257)
        if len(merges) < vocab_size - 257:
            raise UserError(f"this text yields only {257 + len(merges):,} tokens (every further pair occurs once), not "
                            f"{vocab_size:,}; choose at most that many, or train on more text")
        return cls(merges)

    def __len__(self):
        """The number of rows that an embedding needs: the largest id + 1."""
        return self.size

    @property
    def eos_id(self):
        """The id that ends a text; the first of eos_ids, each of which ends a generated text."""
        return self.eos_ids[0]

    def end_at(self, ids):
        """Take the ids that end a text from a model's config.json, as far as they are tokens of this vocabulary."""
        self.eos_ids = tuple(i for i in ids if i in self.bytes_of) or self.eos_ids
        self.eos = {i: name for name, i in self.specials.items()}.get(self.eos_id, self.eos)

    def add_special(self, name, i=None):
        """The id of a special token such as [SEP]; the next free one (or `i`) if it is new."""
        if name not in self.specials:
            i = self.size if i is None else i
            if not name or i in self.bytes_of:
                raise UserError(f"special token {name!r} needs a name and a free id; {i} is {self.bytes_of.get(i)!r}")
            self.specials[name], self.bytes_of[i] = i, name.encode()
            self.size = max(self.size, i + 1)
            self.dtype, self.codec = ("<u2", "utf-16-le") if self.size <= 1 << 16 else ("<u4", "utf-32-le")
            self.pieces.clear()                                  # the ids in them may have the old width
            self.words.clear()
        return self.specials[name]

    def encode(self, text, specials=()):
        """The ids of a text: 1-D numpy uint16, or uint32 if there are more than 65,536.

        Text is only text: a user who writes <|endoftext|> gets the tokens of "<", "|", "end" ... Special tokens are
        recognised only if they are named: encode(text, specials=["[SEP]"]).
        """
        for name in specials:
            if name not in self.specials:
                raise UserError(f"{name!r} is not a special token here; those are {', '.join(self.specials)}")
        names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
        parts = re.split(f"({names})", text) if names else [text]
        packed = [self._pack(chr(self.specials[part])) if i % 2 else self._encode_plain(part)
                  for i, part in enumerate(parts)]               # re.split puts the names at odd places
        return np.frombuffer(bytearray().join(packed), self.dtype)

    def _encode_plain(self, text):
        packed = []
        try:
            for head, words in cut(text):
                packed += map(self.pieces.__getitem__, PIECES.findall(head))
                packed += map(self.words.__getitem__, words)
        except UnicodeEncodeError:
            return self._encode_plain(well_formed(text))
        return b"".join(packed)

    def _encode_word(self, word):
        return b"".join(map(self.pieces.__getitem__, PIECES.findall(" " + word)))

    def _encode_piece(self, piece):
        return self._pack(apply_merges(symbols(piece.encode()), self.merged, self.merges))

    def _pack(self, word):
        """The ids as bytes: a symbol below 65,536 is its own UTF-16, though some look like surrogates."""
        return word.encode(self.codec, "surrogatepass")

    def decode_bytes(self, ids):
        """The bytes of a list or array of ids, exactly; a token may end in the middle of a character."""
        ids = np.asarray(ids).tolist()
        for i in ids:
            if i not in self.bytes_of and not self.size <= i < self.rows:
                raise UserError(f"no token has the id {i}; this vocabulary has {self.size:,}")
        return b"".join(self.bytes_of.get(i, b"") for i in ids)

    def decode(self, ids):
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_tiktoken(self):
        """A tiktoken.Encoding with the same ids, faster on new text. TRAP: a million spaces in a row make it panic."""
        import tiktoken
        # tiktoken takes whole pieces first. After learned merges that is the same; files extended by hand may hold
        # merges that are never reached: of (a, b), (b, c), (a, bc) the last, since "abc" becomes ab, c.
        if any(apply_merges(symbols(self.bytes_of[256 + i]), self.merged, self.merges) != chr(256 + i)
               for i in range(len(self.merges))):
            raise UserError("tiktoken would give other ids: this vocabulary has merges that it cannot follow")
        ranks = {self.bytes_of[i]: i for i in range(256 + len(self.merges))}
        return tiktoken.Encoding("BPE", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.specials)

    def save(self, folder):
        """Write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt, which most other libraries read."""
        write_files(self, Path(folder))

    @classmethod
    def load(cls, folder):
        """Read tokenizer.json, or vocab.json and merges.txt."""
        return cls(**read_files(Path(folder)))


# ---- 5. The commands ----

def count_files(paths):
    from plumbing.documents import texts_in  # needs zstandard, which sampling and training do not
    counted = [path for path in paths if path.name.endswith(".counts.json")]
    counts = count_pieces(texts_in(path for path in paths if path not in counted))
    for path in counted:
        counts.update(read_ids(path))
    if not counts:
        raise UserError("--inputs: these files hold no text; see plumbing/documents.py for the formats")
    print(f"{sum(counts.values()):,} pieces, {len(counts):,} distinct")
    return counts


def train(inputs: tuple[Path, ...], out: Path, vocab_size: int = 28896):
    """Learn a vocabulary and save it as a Hugging Face folder.

    Args:
        inputs: files of text or folders of them (see plumbing/documents.py), or *.counts.json written by `count`
        out: folder to write; tokenizer.json, vocab.json, merges.txt and tokenizer_config.json
        vocab_size: tokens: 256 bytes, the merges and <|endoftext|>; the paper's model has 28,896
    """
    tok = Tokenizer.from_counts(count_files(inputs), vocab_size)
    tok.save(out)
    print(f"{out}: {len(tok):,} tokens, the last is {EOS} = {tok.eos_id}")
    say_next("prepare/pubmed.py", "--inputs", "FILES", "--tokenizer", out, "--out", "data/pubmed")


def count(inputs: tuple[Path, ...], out: Path):
    """Count the pieces of a shard of text, so that many processes or machines can share the work of `train`.

    Args:
        inputs: files of text or folders of them (see plumbing/documents.py)
        out: file to write; its name ends in .counts.json
    """
    if not out.name.endswith(".counts.json"):
        raise UserError(f"{out}: --out must end in .counts.json, so that `train` knows that it holds counts")
    write_json(out, count_files(inputs))
    say_next("tokenizer.py", "train", "--inputs", out, "--out", "data/tokenizer")


def compare(tokenizers: tuple[Path, ...], text: str = "Immunohistochemistry shows the cytotoxicity of nanoparticles."):
    """Show how tokenizers cut a text, and each term in the paper's table 3, into tokens.

    Args:
        tokenizers: their folders, such as data/tokenizer and GPT-2's
        text: what to cut
    """
    for folder in tokenizers:
        tok = Tokenizer.load(folder)
        bytes_per_token = len(text.encode()) / max(1, len(tok.encode(text)))
        print(f"{folder}: {len(tok):,} tokens, {bytes_per_token:.2f} bytes per token")
        for shown in (text, *(" " + term for term in PAPER_TERMS)):
            print("  " + "|".join(tok.decode([i]).replace("\n", "\u23ce") for i in tok.encode(shown)))


def main():
    import tyro  # here, since sample.py and train.py must run on a GPU machine without it
    with speaking_to_the_user():
        tyro.extras.subcommand_cli_from_dict({"train": train, "count": count, "compare": compare})


if __name__ == "__main__":
    main()
