"""Text in and text out: prompts become tokens, and tokens become text while they are generated.

Teaches four habits. A token carries its leading space, so a prompt must not end in one. Prompts of equal length can be
read as one batch, without padding or masks. A token may end in the middle of a character: its bytes wait for the next
token (decoded one token at a time, abstracts with Greek letters break). A stop string may begin in one token and end in
another: text that could become one is held back until it is certain.
Not here: what the model does with the tokens (sample.py).

    stream = TextStream(tok, stops=("\\n\\n", "Question:"))
    print(stream.feed(token), end="")         # "" while undecided; stream.stopped once a stop string is complete
    print(stream.close(), end="")             # the text that was held back
"""
import codecs
import re
import sys
from pathlib import Path

from plumbing.common import UserError, read_json_lines, shown
from tokenizer import EOS

# ---- Prompts ----

def read_prompts(path):
    """The prompts in a file, or on stdin for "-": one per line; in a .jsonl file, the "prompt" of each object."""
    if str(path).endswith(".jsonl"):
        return read_json_lines(path, "prompt", 'give JSON lines with "prompt"', prompt_of)
    source = "stdin" if str(path) == "-" else path
    if source == "stdin" and sys.stdin is None:
        raise UserError("stdin is closed; pipe prompts into it, or name a file")
    try:
        text = sys.stdin.read() if source == "stdin" else Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read as text ({error})") from error

    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(f"{source}: contains no prompt; write one per line")
    return lines


def prompt_of(record):
    if not isinstance(record["prompt"], str):
        raise ValueError(f"the prompt is {record['prompt']!r}, not a string")
    return record["prompt"]


def encode_prompt(tok, prompt):
    """The ids of a prompt, a list.

    <|endoftext|> separates documents. As the whole prompt it means: begin a new document.
    Spaces at the end are removed: in byte-level BPE " is" is one token, and the model has never seen a word begin after
    a token that is only a space. Tokenizers of some other families put a token before every text, tok.front.
    """
    check_unicode(prompt, "the prompt")
    if prompt == EOS:
        return list(tok.front) or [tok.eos_id]
    stripped = prompt.rstrip(" ")
    if not stripped:
        raise UserError(f"the prompt is empty; give some words to continue, or --prompt '{EOS}' to start a new text")
    if stripped != prompt:
        print(f"note: removed the space at the end of {shown(prompt)}; the next token brings its own", file=sys.stderr)
    return [*tok.front, *tok.encode(stripped).tolist()]


def encode_prompts(tok, prompts, most):
    """The ids of each prompt; UserError for one with more than `most` tokens."""
    encoded = [encode_prompt(tok, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > most:
            raise UserError(f"the prompt {shown(prompt)} has {len(ids)} tokens; the model's positions allow at most "
                            f"{most}; shorten it")
    return encoded


def check_unicode(text, name):
    """UserError for text with halves of surrogate pairs: bytes that are not UTF-8, or a broken escape in JSON."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} {shown(text)} is not Unicode text: character {error.start} is "
                        f"{text[error.start]!r}; write it in UTF-8") from error


def groups(lengths, most):
    """Lists of indices of prompts to read together: of equal length, at most `most`, in order of first appearance."""
    same_length = {}
    for i, length in enumerate(lengths):
        same_length.setdefault(length, []).append(i)
    return [indices[i:i + most] for indices in same_length.values() for i in range(0, len(indices), most)]


# ---- Samples ----

class TextStream:
    """The text of one sample; `text` is all that has been released so far."""

    def __init__(self, tok, stops=()):
        self.tok = tok
        self.stops = stops
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")    # bytes that are not UTF-8 become U+FFFD
        self.text = ""
        self.held = ""
        self.stopped = False

    def feed(self, token):
        """Add a token; returns the text that is certain now."""
        return self.advance(self.decoder.decode(self.tok.decode_bytes([token])))

    def close(self):
        """The rest of the text, when no token follows."""
        if self.stopped:
            return ""
        return self.advance(self.decoder.decode(b"", final=True)) + self.release(len(self.held))

    def advance(self, new):
        self.held += new
        found = [at for at in map(self.held.find, self.stops) if at >= 0]
        if found:
            self.stopped = True
            self.held = self.held[:min(found)]               # the stop string is not part of the text
            return self.release(len(self.held))
        # What could be the beginning of a stop string is held back.
        begun = max((n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0)
        return self.release(len(self.held) - begun)

    def release(self, n):
        released, self.held = self.held[:n], self.held[n:]
        self.text += released
        return released


def check_stops(tok, stops):
    """UserError for a stop string that can never occur."""
    for stop in stops:
        check_unicode(stop, "--stop")
        if not stop:
            raise UserError("--stop: a stop string is empty; every text contains it")
        if re.fullmatch(r"<\|.*\|>|\[[A-Z]+\]", stop) and stop not in tok.specials:
            raise UserError(f"--stop: unknown stop string {stop!r}; it looks like a special token, but this model has "
                            f"only {', '.join(tok.specials)}")
