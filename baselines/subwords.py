"""The tokenizers of other families, by the tokenizers library: SentencePiece (Llama), WordPiece (BERT) and others.

Teaches which bytes each token adds to a text. A word begins with "▁" in SentencePiece, and without "##" in WordPiece.
Llama writes characters outside its vocabulary as byte tokens such as <0x0A>.
Not here: how they are trained and applied (the library); GPT-2's tokenizer (tokenizer.py, with the same methods).

    tok = baselines.load_tokenizer(folder)    # this class, for folders that tokenizer.py cannot read
    tok.encode(text)                          # never contains a special token; a model reads tok.front before it
"""
import re
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers

from plumbing.common import UserError, write_json, written_whole
from plumbing.tokenizer_files import BYTES, SHOWN, names_of, read_settings
from tokenizer import well_formed

ENDS = ("</s>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")      # end of text, if no file names the token
SHOWN_BYTES = dict(zip(SHOWN, BYTES, strict=True))


class Subwords:
    """A tokenizer.json (or BERT's older vocab.txt) with the methods of tokenizer.Tokenizer.

    SentencePiece puts a space before every text, so "yes" and " yes" have the same ids here.
    """

    rows = 0                # rows of the model's embedding, if there are more than tokens

    def __init__(self, library, settings=None):
        self.library, self.settings = library, settings or {}     # settings: tokenizer_config.json
        library.no_truncation()
        library.no_padding()
        library.encode_special_tokens = True                      # "</s>" in a text is four characters, not a token
        plain, framed = (library.encode("a", add_special_tokens=frame) for frame in (False, True))
        self.spaced = plain.tokens[0].startswith("▁")
        self.kind = type(library.decoder).__name__
        self.front = framed.ids[:framed.ids.index(plain.ids[0])]  # <s> or [CLS]

    @classmethod
    def load(cls, folder):
        path, settings = Path(folder) / "tokenizer.json", read_settings(Path(folder))
        try:
            if path.is_file():
                return cls(tokenizers.Tokenizer.from_file(str(path)), settings)
            path = path.with_name("vocab.txt")
            bert = tokenizers.BertWordPieceTokenizer(str(path), lowercase=settings.get("do_lower_case", True))
            return cls(tokenizers.Tokenizer.from_str(bert.to_str()), settings)
        except Exception as error:                                # the library raises plain Exception
            raise UserError(f"{path}: the tokenizers library cannot read it ({error})") from error

    def save(self, folder):
        """Write tokenizer.json and tokenizer_config.json."""
        with written_whole(Path(folder) / "tokenizer.json") as temporary:
            self.library.save(str(temporary))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.eos} | self.settings
        write_json(Path(folder) / "tokenizer_config.json", settings)

    def __len__(self):
        return len(self.tokens)

    @cached_property
    def tokens(self):
        """id -> the token as the vocabulary spells it."""
        size = max(self.library.get_vocab().values()) + 1
        return [self.library.id_to_token(i) or "" for i in range(size)]

    @cached_property
    def specials(self):
        """name -> id."""
        return {token.content: i for i, token in self.library.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def eos_ids(self):
        """Each of these ids ends a generated text. The first is eos_id."""
        return (self.specials[self.eos],)

    def end_at(self, ids):
        """Set the ids that end a text, from a model's config.json. Ids without a token are ignored."""
        if found := tuple(i for i in ids if 0 <= i < len(self) and self.tokens[i]):
            self.eos_ids = found

    @property
    def eos(self):
        """The token that ends a text; for BERT-like models the separator."""
        names = names_of(self.settings)
        for name in (names.get("eos_token"), names.get("sep_token"), *ENDS):
            if name in self.specials:
                return name
        raise UserError(f"no token of this vocabulary ends a text: its special tokens ({', '.join(self.specials)}) "
                        f"have none of {', '.join(ENDS)}, and tokenizer_config.json has no eos_token")

    @property
    def eos_id(self):
        return self.eos_ids[0]

    def add_special(self, name, i=None):
        """The id of a special token such as [SEP]. A new token gets the next free id, or `i`."""
        if name not in self.specials:
            gap = range(len(self), len(self) if i is None else i)     # the library leaves no gaps
            if i is not None and i < len(self):
                raise UserError(f"special token {name!r} needs a free id; {i} is {self.tokens[i]!r}")
            self.library.add_special_tokens([f"<|unused {n}|>" for n in gap] + [name])
            for name_of_cache in ("tokens", "bytes_of", "specials"):
                vars(self).pop(name_of_cache, None)
        return self.specials[name]

    def encode(self, text):
        """The ids of a text: 1-D numpy uint16, or uint32 for more than 65,536 tokens; never a special token."""
        text = well_formed(text)
        ids = self.ids(text)
        # TRAP: a unigram vocabulary (ALBERT's) gives "[SEP]" in a text the special token's id. A space prevents this.
        for name in [name for name, i in self.specials.items() if name in text and i in ids]:
            text = text.replace(name, f"{name[0]} {name[1:]}")
            ids = self.ids(text)
        return np.array(ids, np.uint16 if len(self) <= 1 << 16 else np.uint32)

    def ids(self, text):
        return self.library.encode(text.removeprefix(" ") if self.spaced else text, add_special_tokens=False).ids

    def located(self, text):
        """(ids, [(first character, one past the last) of each token]). The text must have no lone surrogates."""
        skipped = int(self.spaced and text.startswith(" "))
        found = self.library.encode(text[skipped:], add_special_tokens=False)
        return found.ids, [(a + skipped, b + skipped) for a, b in found.offsets]

    @cached_property
    def bytes_of(self):
        """id -> the bytes that the token adds to a text."""
        added = {token.content for token in self.library.get_added_tokens_decoder().values()}
        return [token.encode() if token in added else spelled(token, self.kind) for token in self.tokens]

    def decode_bytes(self, ids):
        """The bytes of a list or array of ids. A word includes the space before it."""
        ids = np.asarray(ids).tolist()
        if ids and not 0 <= min(ids) <= max(ids) < max(len(self), self.rows):
            raise UserError(f"no token has the id {max(ids)}; this vocabulary has {len(self):,}")
        return b"".join(self.bytes_of[i] for i in ids if i < len(self))

    def decode(self, ids):
        """The text of the ids, without the space before the first word. Bytes that are not UTF-8 become U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.spaced or self.kind == "WordPiece" else text


def spelled(token, decoder):
    """The bytes of a token such as "▁the", "<0x0A>", "##ing" or, byte-level, "Ġthe"."""
    if decoder == "ByteLevel":
        return bytes(SHOWN_BYTES[character] for character in token)
    if decoder == "WordPiece":
        return (token[2:] if token.startswith("##") else " " + token).encode()
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()
