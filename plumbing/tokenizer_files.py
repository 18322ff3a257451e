"""A vocabulary as Hugging Face stores it: tokenizer.json, or vocab.json and merges.txt, in every form they have had.

Teaches which part of these files matters: the merges define every token, and the rest must agree with them. And what
must be refused: another way of cutting text, merges that are cut off, ids in another order.
Not here: learning and applying merges (tokenizer.py, whose save and load call this).
"""
import re

from plumbing.common import UserError, read_object, write_json, written_whole

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
        "added_tokens": [{"id": i, "content": name, **plain} for name, i in tok.specials.items()] + [
            {"id": i, "content": name, **plain, "special": False} for name, i in tok.added.items()],
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
    if tok.added:
        write_json(folder / "added_tokens.json", tok.added)
    with written_whole(folder / "merges.txt") as temporary:      # TRAP: readers skip the first line, header or not
        temporary.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs), encoding="utf-8")


def longest(folder):
    """The model's length for tokenizer_config.json, if the model in this folder was saved before its tokenizer."""
    path = folder / "config.json"
    values = read_object(path, "a model's configuration") if path.is_file() else {}
    length = values.get("n_positions", values.get("max_position_embeddings"))
    return {} if length is None else {"model_max_length": length}


def read_files(folder):
    """The arguments of tokenizer.Tokenizer for a folder: merges, specials, added, eos, whole_first.

    specials and added are name -> id: added tokens are recognised in every text, special ones never. eos is the special
    token that ends a text. whole_first: a piece that is a token becomes it, even if the merges lead elsewhere.
    The vocabulary is only checked: the merges define every token.
    """
    source = folder / "tokenizer.json"
    added, whole_first = {}, False
    if source.is_file():
        pairs, vocab, specials, added, whole_first = read_tokenizer_json(source)
    elif (folder / "merges.txt").is_file():
        source = folder / "merges.txt"
        lines = source.read_text(encoding="utf-8", errors="replace").split("\n")
        pairs = [line for line in lines[lines[0].startswith("#version"):] if line]      # the release has no #version
        vocab, specials = read_ids(folder / "vocab.json"), {}
    else:
        raise UserError(f"{folder}: no tokenizer.json and no merges.txt in it; `python tokenizer.py train` writes both")
    names = names_of(folder)
    if (folder / "added_tokens.json").is_file():
        for name, i in read_ids(folder / "added_tokens.json").items():
            if name in names.values() or looks_special(name):
                specials.setdefault(name, i)
            elif name not in specials:
                added.setdefault(name, i)
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
    specials = check_vocabulary(source, known, {t: i for t, i in vocab.items() if t not in added}, specials,
                                names.get("eos_token"))
    eos = names.get("eos_token")
    if eos not in specials:
        eos = EOS if EOS in specials else next(iter(specials))
    return {"merges": merges, "specials": specials, "added": added, "eos": eos, "whole_first": whole_first}


def names_of(folder):
    """{"eos_token": its name, ...}, from special_tokens_map.json and tokenizer_config.json."""
    names = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            names |= read_object(folder / file, "the names of special tokens")
    names = {key: token.get("content") if isinstance(token, dict) else token for key, token in names.items()}
    return {key: name for key, name in names.items() if key.endswith("_token") and isinstance(name, str)}


def looks_special(name):
    return re.fullmatch(r"<.+>|\[.+\]", name)


def read_ids(path):
    found = read_object(path, "an object {token: number}")
    if not all(isinstance(n, int) for n in found.values()):
        raise UserError(f"{path}: no JSON object {{token: number}}")
    return found


def read_tokenizer_json(path):
    whole = read_object(path, "a tokenizer")
    try:
        model, level = whole["model"], whole["pre_tokenizer"]
        if (level["type"], level["add_prefix_space"], whole.get("normalizer"), level.get("use_regex", True)) != (
                "ByteLevel", False, None, True):
            raise UserError(f"{path}: only GPT-2's way of cutting text is read here (ByteLevel, no prefix space, no "
                            "normalizer); this file asks for another")
        if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise UserError(f"{path}: a dropout of merges, a prefix or a suffix of subwords is not computed here")
        specials, added = split_added(path, whole["added_tokens"])
        return model["merges"], {**model["vocab"]}, specials, added, bool(model.get("ignore_merges"))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no byte-level BPE as Hugging Face writes it ({error!r})") from error


def split_added(path, tokens):
    """(specials, added), each name -> id. UserError for rules of matching that tokenizer.py does not have."""
    plain = [token for token in tokens if not token.get("special", False)]
    for token in plain:
        if token.get("single_word") or token.get("lstrip") or token.get("rstrip"):
            raise UserError(f"{path}: the added token {token['content']!r} is matched with single_word, lstrip or "
                            "rstrip, which is not computed here; remove that flag or the token")
    if len({token.get("normalized", True) for token in plain}) > 1:
        raise UserError(f"{path}: added tokens are matched in two passes, by their flag `normalized`; only one is "
                        "computed here; give all the same")
    added = {token["content"]: token["id"] for token in plain}
    return {token["content"]: token["id"] for token in tokens if token["content"] not in added}, added


def check_vocabulary(source, known, vocab, specials, eos=None):
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
