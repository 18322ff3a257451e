"""Byte-pair encoding: how text becomes the numbers a GPT reads, and why biomedicine wants a vocabulary of its own.

    python tokenizer.py train --inputs abstracts.jsonl.gz --vocab-size 28896 --out data/tokenizer
    python tokenizer.py compare --tokenizers data/tokenizer gpt2/ --text "Photosynthesis in chloroplasts"
    python tokenizer.py count --inputs shard0.jsonl.zst --out shard0.counts.json    # one process per shard, then
    python tokenizer.py train --inputs *.counts.json --vocab-size 28896 --out data/tokenizer

GPT-2's vocabulary was learned from web pages and cuts "cytotoxicity" into cyt/ot/oxicity. Learned from abstracts it is
one token: more text fits into the context, and the model need not learn to spell first. Learning takes four steps:
  1. A fixed pattern cuts text into pieces: words, numbers, punctuation, each with the space before it. No token will
     ever straddle two pieces, so counting how often each piece occurs is all that is ever needed of the text.
  2. Each piece is spelled in bytes. The 256 bytes are the first tokens, so nothing is ever unknown.
  3. The commonest pair of neighbouring tokens, say (t, h), becomes a new token th, everywhere; repeat 28,639 times.
  4. To encode, apply the merges to a new piece in the order in which they were learned.

The trick that makes plain Python fast: a word is a str with ONE CHARACTER PER TOKEN, chr(id). Then a pair is a str of
two characters, merging is str.replace, and the list of ids is what str.encode("utf-16") returns.

You should see the merges and ids of Hugging Face's tokenizers, entry for entry; results/tokenizer.md has the speed.
Not here: these commands (prepare/vocabulary.py), reading text (prepare/documents.py), writing token shards
(prepare/pubmed.py), Hugging Face's files (tokenizer_files.py). Left out of BPE: dropout, normalisation, other patterns
than GPT-2's.
"""
import gc
import heapq
import re
import sys
from collections import Counter, defaultdict
from contextlib import contextmanager
from itertools import repeat
from operator import add
from pathlib import Path

import numpy as np
import regex

from plumbing.common import UserError

EOS = "<|endoftext|>"

# ---- 1. Cutting text into pieces ----

# Code points that became letters or numbers after Unicode 16: `regex` knows them already, tiktoken and tokenizers do
# not, and one pattern must mean the same in all three. A test compares the three over every code point there is.
NEWER = (
    r"\u0558\u058B-\u058C\u088F\u0C5C\u0CDC\u208F\u209D-\u209F\uA7CE-\uA7CF\uA7D2\uA7D4\uA7DD-\uA7F1\uAB6C-\uAB6D"
    r"\U000107BB-\U000107BF\U00010940-\U00010959\U00010EC5-\U00010EEE\U00011B0A\U00011DB0-\U00011DF1"
    r"\U0001246F-\U0001247F\U00012550-\U00012686\U00016EA0-\U00016ED3\U00016FF2-\U00016FF6\U000187F8-\U000187FF"
    r"\U00018CD6-\U00018CDA\U00018D09-\U000191D2\U0001B123-\U0001B128\U0001B168\U0001D6A6\U0001DF1F-\U0001DF24"
    r"\U0001DF2B-\U0001DFFF\U0001E6C0-\U0001E6FF\U0002B73A-\U0002B73F\U0002B81E\U0002CEA2-\U0002CEAD"
    r"\U000323B0-\U0003FC3F")
LETTER = rf"[a-zA-Z[\p{{L}}--[{NEWER}]]]"       # ASCII stands first so that ordinary text never reaches the long list
NUMBER = rf"[0-9[\p{{N}}--[{NEWER}]]]"

# GPT-2's pattern: 's 't 're ..., then letters, numbers or other signs with at most one space before them, then white
# space, of which the last blank is left to the word that follows.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
PIECES = regex.compile(PATTERN.replace(r"\p{L}", LETTER).replace(r"\p{N}", NUMBER), regex.V1)   # V1: sets have a "--"

# Python's own `re` is used where str.split is not enough. TRAP: it takes the separators U+001C-1F for white space.
BLANK, SOLID = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
LONE_SPACE = re.compile(rf" (?!{SOLID})")                        # a space that does not begin a word
RUN = re.compile(rf"({BLANK}(?!{SOLID})(?:{BLANK}*(?= {SOLID})|{BLANK}*{SOLID}*))")     # up to the last space, or on


def cut(text):
    """Cut a text at the spaces where no piece can straddle: yields (head, words), each word having lost its space.

    >>> list(cut("one two, three"))
    [('one', ['two,', 'three'])]
    >>> list(cut("one two\\n  three four"))            # a run of white space begins a new part
    [('one', ['two']), ('\\n ', ['three', 'four'])]

    This is why the rest is fast: str.split and a dict of words seen before cost a fraction of the Unicode pattern,
    which then has to look at each distinct word only once.
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

# A token's symbol is chr(id). GPT-2 numbers the bytes that print first, in order, then the others (a space is 220), and
# shows them in its files as characters that print: the others as U+0100 and up, so that a space is "Ġ".
PRINTING = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = bytes(PRINTING + [b for b in range(256) if b not in PRINTING])                   # id -> byte
SHOWN = [chr(b) for b in PRINTING] + [chr(256 + i) for i in range(256 - len(PRINTING))]  # id -> character in files
TO_SYMBOLS = bytes.maketrans(BYTES, bytes(range(256)))


def symbols(piece):
    """The word of byte tokens that spells a piece: " A" -> chr(220) + chr(32)."""
    return piece.encode().translate(TO_SYMBOLS).decode("latin-1")


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
    """Move what was counted into the pieces that it consists of. All words that occur n times are cut as one text."""
    alike = defaultdict(list)
    for word, n in words.items():
        alike[n].append(word)
    texts = [(n, " " + " ".join(group)) for n, group in alike.items()] + [(n, head) for head, n in heads.items()]
    for n, text in texts:
        for piece, times in Counter(PIECES.findall(well_formed(text))).items():
            pieces[piece] += n * times
    heads.clear(), words.clear()


@contextmanager
def without_garbage_collector():
    """It would look for cycles among millions of small lists, which have none, for a tenth of the time and more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@without_garbage_collector()
def learn_merges(pieces, n_merges, min_frequency=2):
    """The merges in the order they are learned, each a pair: a str of two symbols. Merge i makes token 256 + i.

    The commonest pair goes first, among equals the one with the smallest ids: of strings of symbols, the smallest. A
    heap finds it. An entry may be stale but never too low: a pair is born in one step, that of its newer half, and from
    then on only loses occurrences to merges beside it. So a stale entry goes back with its present count.
    """
    words, counts = [symbols(piece) for piece in pieces], list(pieces.values())
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
        if total[pair] != -n:                                    # stale
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
    """Replace `pair` by `new` in the words numbered `holders`; yield (pair lost, pair born, the words where) around it.

    Merging th in the word "t h e": ("he", new + "e", [that word]). A word is named once for each occurrence.
    """
    (a, b), left, right = pair, defaultdict(list), defaultdict(list)     # neighbour -> words in which it is one
    for i in holders:
        done, found, rest = words[i].partition(pair)
        if not found:                                            # another merge took this occurrence meanwhile
            continue
        if done:
            left[done[-1]].append(i)
        while pair in rest:                                      # once more in the same word: rare
            between, _, rest = rest.partition(pair)
            right[between[0] if between else new].append(i)
            if between:
                left[between[-1]].append(i)
            done += new + between
        if rest:
            right[rest[0]].append(i)
        words[i] = done + new + rest
    for x, ids in left.items():
        yield x + a, x + new, ids
    for x, ids in right.items():
        yield b + (a if x == new else x), new + x, ids


# ---- 4. Applying ----

NEVER = chr(sys.maxunicode)                                      # sorts behind every symbol


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
    symbol, before, after = [*word, ""], list(range(-1, len(word))), list(range(1, len(word) + 1))
    buckets = defaultdict(list)                                  # the "" at the end is its own neighbour on both sides
    for i, pair in enumerate(map(add, word, word[1:])):
        if pair in merged:
            buckets[merged[pair]].append(i)
    queue = sorted(buckets)
    while queue:
        new = heapq.heappop(queue)
        for i in sorted(buckets.pop(new)):                       # from the left, for pairs that overlap: a a a
            j = after[i] if symbol[i] else i                     # a symbol that was merged away is ""
            if merged.get(symbol[i] + symbol[j]) != new:
                continue
            symbol[i], symbol[j] = new, ""
            after[i], before[after[j]] = after[j], i
            for k, pair in ((before[i], symbol[before[i]] + new), (i, new + symbol[after[i]])):
                later = merged.get(pair)
                if later:
                    if later not in buckets:
                        heapq.heappush(queue, later)
                    buckets[later].append(k)
    return "".join(symbol)


class Remember(dict):
    """A dict that computes what it lacks. It stops growing at `size` entries and never keeps long keys, so memory is
    bounded whatever the text: some 140 bytes an entry."""

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

    front = back = ()       # ids that a model wants before and behind a text: none here, Llama's <s> in baselines/

    def __init__(self, merges, specials=None, remember=1 << 19):
        self.merges = list(merges)
        self.merged = {pair: chr(256 + i) for i, pair in enumerate(self.merges)}
        self.bytes_of = {i: bytes([byte]) for i, byte in enumerate(BYTES)}               # id -> what it stands for
        for i, (a, b) in enumerate(self.merges):
            self.bytes_of[256 + i] = self.bytes_of[ord(a)] + self.bytes_of[ord(b)]
        self.ranks = {token: i for i, token in self.bytes_of.items()}                    # the same, back; no specials
        self.size = len(self.bytes_of)                                                   # the largest id + 1
        self.pieces = Remember(self._encode_piece, remember)
        self.words = Remember(self._encode_word, remember)
        self.specials = {}                                                               # name -> id
        for name, i in (specials or {EOS: self.size}).items():
            self.add_special(name, i)

    @classmethod
    def train(cls, texts, vocab_size=28896):
        """Learn from an iterable of str. Of the tokens, 256 are bytes and the last is <|endoftext|>."""
        if isinstance(texts, str):
            raise UserError("Tokenizer.train takes an iterable of texts; a str alone would be one text per letter")
        return cls.from_counts(count_pieces(texts), vocab_size)

    @classmethod
    def from_counts(cls, pieces, vocab_size=28896):
        """Learn from {piece: count}, as count_pieces gives it; counts of parts of a corpus may simply be added up."""
        if not 257 <= vocab_size <= sys.maxunicode:
            raise UserError(f"vocabulary size {vocab_size:,}: it takes at least 257, the bytes and {EOS}, and at most "
                            f"{sys.maxunicode:,}")
        merges = learn_merges(pieces, vocab_size - 257)
        if len(merges) < vocab_size - 257:
            raise UserError(f"this text yields only {257 + len(merges):,} tokens (every further pair occurs once), not "
                            f"{vocab_size:,}; ask for at most that many, or train on more text")
        return cls(merges)

    def __len__(self):
        """The rows that an embedding needs: the largest id + 1."""
        return self.size

    @property
    def eos_id(self):
        return self.specials[EOS]

    def add_special(self, name, i=None):
        """The id of a special token such as [SEP]; the next free one (or `i`) if it is new."""
        if name not in self.specials:
            i = self.size if i is None else i
            if not name or i in self.bytes_of:
                raise UserError(f"special token {name!r} needs a name and a free id; {i} is {self.bytes_of.get(i)!r}")
            self.specials[name], self.bytes_of[i] = i, name.encode()
            self.size = max(self.size, i + 1)
            self.dtype, self.codec = ("<u2", "utf-16-le") if self.size <= 1 << 16 else ("<u4", "utf-32-le")
            self.pieces.clear(), self.words.clear()              # the ids in them may have the old width
        return self.specials[name]

    def encode(self, text, specials=()):
        """The ids of a text: 1-D numpy uint16, or uint32 if there are more than 65,536.

        Text is only text: a user who writes <|endoftext|> gets the tokens of "<", "|", "end" ... Special tokens are
        recognised only if they are named: encode(text, specials=["[SEP]"]).
        """
        for name in specials:
            if name not in self.specials:
                raise UserError(f"{name!r} is no special token here; there are {', '.join(self.specials)}")
        names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
        parts = re.split(f"({names})", text) if specials else [text]
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
        whole = self.ranks.get(piece.encode())                   # the merges of a token's own bytes always end in it
        return self._pack(chr(whole) if whole is not None else apply_merges(symbols(piece), self.merged, self.merges))

    def _pack(self, word):
        """The ids as bytes: a symbol below 65,536 is its own UTF-16, though some look like surrogates."""
        return word.encode(self.codec, "surrogatepass")

    def decode_bytes(self, ids):
        """The bytes that a list or array of ids stands for, exactly; a token may end in the middle of a character."""
        try:
            return b"".join(map(self.bytes_of.__getitem__, np.asarray(ids).tolist()))
        except KeyError as error:
            raise UserError(f"no token has the id {error}; this vocabulary has {self.size:,}") from None

    def decode(self, ids):
        """The text of the ids. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_tiktoken(self):
        """A tiktoken.Encoding with the same ids, faster on new text. TRAP: a million spaces in a row make it panic."""
        import tiktoken
        return tiktoken.Encoding("BPE", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens=self.specials)

    def save(self, folder):
        """Write tokenizer.json, tokenizer_config.json, vocab.json and merges.txt, which most other libraries read."""
        from plumbing.tokenizer_files import write_files  # here, since that file builds on this one
        write_files(self, Path(folder))

    @classmethod
    def load(cls, folder, **kwargs):
        """Read tokenizer.json, or vocab.json and merges.txt."""
        from plumbing.tokenizer_files import read_files
        return cls(*read_files(Path(folder)), **kwargs)


if __name__ == "__main__":
    from prepare.vocabulary import main
    main()
