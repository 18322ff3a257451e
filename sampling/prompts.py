"""Prompts from the command line, a file or stdin, made ready for the model.

Teaches two habits of prompting: tokens carry their leading space, so a prompt must not end in one; and prompts of equal
length can be read together as they are, without the padding and masks that a mixed batch needs.
Not here: what is done with them (sample.py).
"""
import json
import sys
from pathlib import Path

from plumbing.common import UserError
from tokenizer import EOS


def read_prompts(path):
    """The prompts in a file, or on stdin for "-": one a line; in a .jsonl file, the "prompt" of each object."""
    if str(path) == "-":
        source, text = "stdin", sys.stdin.read()
    else:
        source = path
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: no text file that can be read ({error})") from error
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if str(path).endswith(".jsonl"):
        lines = [(n, prompt_of(line, f"{source}, line {n}")) for n, line in lines]
    if not lines:
        raise UserError(f"{source}: no prompt in it; one a line is expected")
    return [prompt for _, prompt in lines]


def prompt_of(line, place):
    try:
        prompt = json.loads(line)["prompt"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f'{place}: a JSON object with "prompt" is expected ({error!r})') from error
    if not isinstance(prompt, str):
        raise UserError(f"{place}: the prompt is {prompt!r}, not a string")
    return prompt


def encode_prompt(tok, prompt):
    """The ids of a prompt, a list. <|endoftext|> stands between documents, so as the whole prompt it means: a new one.

    Spaces at the end are taken off: in byte-level BPE the space leads the next token, " is" is one token, and after a
    token that is only a space the model has never seen a word begin. Some models of other families want a token in
    front of every text, tok.front, which then is the sign of a new document.
    """
    if prompt == EOS:
        return list(tok.front) or [tok.eos_id]
    stripped = prompt.rstrip(" ")
    if not stripped:
        raise UserError(f"the prompt is empty; give the words to go on from, or --prompt '{EOS}' for none")
    if stripped != prompt:
        print(f"note: the space at the end of {shorten(prompt)!r} is left out; the next token brings its own",
              file=sys.stderr)
    return [*tok.front, *tok.encode(stripped).tolist()]


def shorten(text, n=40):
    return text if len(text) <= n else "..." + text[-n:]


def groups(lengths, most):
    """Split the indices of prompts into lists of at most `most` prompts of equal length, by first appearance."""
    same = {}
    for i, length in enumerate(lengths):
        same.setdefault(length, []).append(i)
    return [indices[i:i + most] for indices in same.values() for i in range(0, len(indices), most)]
