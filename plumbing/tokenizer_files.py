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


def token_names(tok):
    """([token by id], [[first, second] of each merge]) as files show them: " the" is "Ġthe". No special tokens."""
    shown = list(SHOWN)
    for a, b in tok.merges:
        shown.append(shown[ord(a)] + shown[ord(b)])
    return shown, [[shown[ord(a)], shown[ord(b)]] for a, b in tok.merges]


def write_files(tok, folder):
    if folder.is_file():
        raise UserError(f"{folder}: a file is in the way of the folder to write; remove it or choose another")
    shown, pairs = token_names(tok)
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
    names = {"bos_token": tok.eos, "eos_token": tok.eos, "unk_token": tok.eos}
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **longest(folder), **names})
    write_json(folder / "vocab.json", {**vocab, **tok.specials})
    (folder / "added_tokens.json").unlink(missing_ok=True)       # of another vocabulary that was saved here before
    with written_whole(folder / "merges.txt") as temporary:      # TRAP: readers skip the first line, header or not
        temporary.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")


def longest(folder):
    """The model's length for tokenizer_config.json, if the model in this folder was saved before its tokenizer."""
    path = folder / "config.json"
    values = read_json(path, "a model's configuration") if path.is_file() else {}
    length = values.get("n_positions", values.get("max_position_embeddings"))
    return {} if length is None else {"model_max_length": length}


def read_files(folder):
    """The arguments of tokenizer.Tokenizer for a folder: merges, specials (name -> id), and eos, the special token that
    ends a text. The vocabulary is only checked: the merges define every token.
    """
    source, names = folder / "tokenizer.json", names_of(read_settings(folder))
    if source.is_file():
        whole = read_json(source, "a tokenizer")
        if not is_gpt2s(whole):
            raise UserError(f"{source}: no tokenizer of GPT-2's kind (byte-level BPE without a prefix space, "
                            "normalizer, dropout or added tokens that are not special)")
        pairs, vocab = whole["model"]["merges"], whole["model"]["vocab"]
        specials = {token["content"]: token["id"] for token in whole["added_tokens"]}
    elif (folder / "merges.txt").is_file():
        source = folder / "merges.txt"
        lines = source.read_text(encoding="utf-8", errors="replace").split("\n")
        pairs = [line for line in lines[lines[0].startswith("#version"):] if line]      # the release has no #version
        vocab, added = read_ids(folder / "vocab.json"), folder / "added_tokens.json"
        specials = read_ids(added) if added.is_file() else {}
        if odd := [name for name in specials if name not in names.values() and not looks_special(name)]:
            raise UserError(f"{added}: {odd[0]!r} is not special, and there is no tokenizer.json; load the folder with "
                            "transformers and save it again, which writes one")
    else:
        raise UserError(f"{folder}: no tokenizer.json and no merges.txt in it; `python tokenizer.py train` writes both")

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

    eos = names.get("eos_token")
    specials = check_vocabulary(source, known, vocab, specials, eos)
    if eos not in specials:
        eos = EOS if EOS in specials else next(iter(specials))
    return {"merges": merges, "specials": specials, "eos": eos}


def read_settings(folder):
    """special_tokens_map.json and tokenizer_config.json, as one dict."""
    settings = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            settings |= read_json(folder / file, "the names of special tokens")
    return settings


def names_of(settings):
    """{"eos_token": its name, ...}. A file has the name, or an object with it."""
    names = {key: token.get("content") if isinstance(token, dict) else token for key, token in settings.items()}
    return {key: name for key, name in names.items() if key.endswith("_token") and isinstance(name, str)}


def looks_special(name):
    return re.fullmatch(r"<.+>|\[.+\]", name)


def read_ids(path):
    found = read_json(path, "an object {token: number}")
    if not all(isinstance(n, int) for n in found.values()):
        raise UserError(f"{path}: no JSON object {{token: number}}")
    return found


def is_gpt2s(whole):
    """Whether tokenizer.py computes what this tokenizer.json says: GPT-2's way of cutting text, plain merges of bytes,
    nothing before or after a text, and no added tokens but special ones. baselines/subwords.py reads the others."""
    try:
        model, level = whole["model"], whole["pre_tokenizer"]
        after = whole.get("post_processor") or level
        others = "dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"
        return ((level["type"], level["add_prefix_space"], level.get("use_regex", True)) == ("ByteLevel", False, True)
                and after["type"] == "ByteLevel" and not whole.get("normalizer")
                and not any(model.get(name) for name in others) and {"merges", "vocab"} <= set(model)
                and all(token["special"] and token["content"] for token in whole["added_tokens"]))
    except (KeyError, TypeError, AttributeError):
        return False


def check_vocabulary(source, known, vocab, specials, eos):
    """The special tokens by id, <|endoftext|> among them, once the vocabulary agrees with the merges."""
    extra = {token: i for token, i in vocab.items() if token not in known}
    specials = specials | {token: i for token, i in extra.items() if looks_special(token)}
    lost = [token for token in extra if token not in specials]
    if lost:
        raise UserError(f"{source}: no merge makes {lost[0]!r} (nor {len(lost) - 1:,} other tokens) of the vocabulary; "
                        "the merges are cut off or belong to another vocabulary")
    moved = [token for token, symbol in known.items() if vocab.get(token) != ord(symbol)]
    if moved:
        raise UserError(f"{source}: token {moved[0]!r} has id {vocab.get(moved[0])}, not {ord(known[moved[0]])}; only "
                        "vocabularies in GPT-2's order (bytes, merges, special tokens) are read here")
    if EOS not in specials and eos not in specials:              # as in the release's vocab.json, which ends before it
        taken = len(known) in specials.values()
        specials[EOS] = max(specials.values()) + 1 if taken else len(known)
    return dict(sorted(specials.items(), key=lambda item: item[1]))
