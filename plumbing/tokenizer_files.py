"""A vocabulary as Hugging Face stores it: tokenizer.json, or vocab.json and merges.txt, in every form they have had.

Teaches which part of these files matters: the merges define every token, and the rest must agree with them. And what
must be refused: another way of cutting text, merges that are cut off, ids in another order.
Not here: learning and applying merges (tokenizer.py, whose save and load call this).
"""
import re

from plumbing.common import UserError, read_json, write_json, written_whole

EOS = "<|endoftext|>"

# GPT-2 numbers the bytes that print first, in order, then the others. Its files show a byte as a character that prints:
# the others as U+0100 and up, so a space is "Ġ".
PRINTING = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = bytes(PRINTING + [b for b in range(256) if b not in PRINTING])                   # id -> byte
SHOWN = [chr(b) for b in PRINTING] + [chr(256 + i) for i in range(256 - len(PRINTING))]  # id -> character in files

# Code points that became letters or numbers after Unicode 16: `regex` knows them already, tiktoken and tokenizers do
# not, and one pattern must mean the same in all three. A test compares the three over every code point there is.
NEWER = (
    r"\u0558\u058B-\u058C\u088F\u0C5C\u0CDC\u208F\u209D-\u209F\uA7CE-\uA7CF\uA7D2\uA7D4\uA7DD-\uA7F1\uAB6C-\uAB6D"
    r"\U000107BB-\U000107BF\U00010940-\U00010959\U00010EC5-\U00010EEE\U00011B0A\U00011DB0-\U00011DF1"
    r"\U0001246F-\U0001247F\U00012550-\U00012686\U00016EA0-\U00016ED3\U00016FF2-\U00016FF6\U000187F8-\U000187FF"
    r"\U00018CD6-\U00018CDA\U00018D09-\U000191D2\U0001B123-\U0001B128\U0001B168\U0001D6A6\U0001DF1F-\U0001DF24"
    r"\U0001DF2B-\U0001DFFF\U0001E6C0-\U0001E6FF\U0002B73A-\U0002B73F\U0002B81E\U0002CEA2-\U0002CEAD"
    r"\U000323B0-\U0003FC3F")


def write_files(tok, folder):
    if folder.is_file():
        raise UserError(f"{folder}: a file is in the way of the folder to write; remove it or choose another")
    shown = list(SHOWN)                                          # id -> the token as files show it: " the" is "Ġthe"
    for a, b in tok.merges:
        shown.append(shown[ord(a)] + shown[ord(b)])
    pairs = [[shown[ord(a)], shown[ord(b)]] for a, b in tok.merges]
    vocab = {token: i for i, token in enumerate(shown)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    write_json(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
        "added_tokens": [{"id": i, "content": name, **plain} for name, i in tok.specials.items()],
        "post_processor": level, "decoder": level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocab, "merges": pairs}})
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": 1024,
        "bos_token": EOS, "eos_token": EOS, "unk_token": EOS})
    write_json(folder / "vocab.json", {**vocab, **tok.specials})
    with written_whole(folder / "merges.txt") as temporary:      # TRAP: readers skip the first line, header or not
        temporary.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")


def read_files(folder):
    """(merges, specials) of a folder. The vocabulary is only checked: the merges say what each token is."""
    source = folder / "tokenizer.json"
    if source.is_file():
        pairs, vocab, specials = read_tokenizer_json(source)
    elif (folder / "merges.txt").is_file():
        source = folder / "merges.txt"
        lines = source.read_text(encoding="utf-8", errors="replace").split("\n")
        pairs = [line for line in lines[lines[0].startswith("#version"):] if line]      # the release has no #version
        vocab, specials = read_ids(folder / "vocab.json"), {}
    else:
        raise UserError(f"{folder}: no tokenizer.json and no merges.txt in it; `python tokenizer.py train` writes both")
    if (folder / "added_tokens.json").is_file():
        specials |= read_ids(folder / "added_tokens.json")
    known, merges = {token: chr(i) for i, token in enumerate(SHOWN)}, []
    for number, pair in enumerate(pairs, 1):
        try:
            a, b = pair.split(" ") if isinstance(pair, str) else pair                # both forms are in use
            merges.append(known[a] + known[b])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{source}: merge {number}, {pair!r}, does not join two tokens known by then; is the file "
                            "whole, and byte-level BPE?") from None
        if known.setdefault(a + b, new := chr(255 + len(merges))) != new:
            raise UserError(f"{source}: merge {number}, {pair!r}, makes a token that exists already")
    return merges, check_vocabulary(source, known, vocab, specials)


def read_ids(path):
    found = read_json(path, "an object {token: number}")
    if not isinstance(found, dict) or not all(isinstance(n, int) for n in found.values()):
        raise UserError(f"{path}: no JSON object {{token: number}}")
    return found


def read_tokenizer_json(path):
    whole = read_json(path, "a tokenizer")
    try:
        model, level = whole["model"], whole["pre_tokenizer"]
        if (level["type"], level["add_prefix_space"], whole.get("normalizer"), level.get("use_regex", True)) != (
                "ByteLevel", False, None, True):
            raise UserError(f"{path}: only GPT-2's way of cutting text is read here (ByteLevel, no prefix space, no "
                            "normalizer); this file asks for another")
        return model["merges"], {**model["vocab"]}, {t["content"]: t["id"] for t in whole["added_tokens"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: no byte-level BPE as Hugging Face writes it ({error!r})") from error


def check_vocabulary(source, known, vocab, specials):
    """The special tokens by id, <|endoftext|> among them, once the vocabulary agrees with the merges."""
    extra = {token: i for token, i in vocab.items() if token not in known}
    specials = specials | {token: i for token, i in extra.items() if re.fullmatch(r"<.+>|\[.+\]", token)}
    lost = [token for token in extra if token not in specials]
    if lost:
        raise UserError(f"{source}: no merge makes {lost[0]!r} (nor {len(lost) - 1:,} other tokens) of the vocabulary; "
                        "the merges are cut off or belong to another vocabulary")
    moved = [token for token, symbol in known.items() if vocab.get(token) != ord(symbol)]
    if moved:
        raise UserError(f"{source}: token {moved[0]!r} has id {vocab.get(moved[0])}, not {ord(known[moved[0]])}; only "
                        "vocabularies in GPT-2's order (bytes, merges, special tokens) are read here")
    if EOS not in specials:                                      # as in the release's vocab.json, which ends before it
        taken = len(known) in specials.values()
        specials[EOS] = max(specials.values()) + 1 if taken else len(known)
    return dict(sorted(specials.items(), key=lambda item: item[1]))
