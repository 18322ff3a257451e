"""The commands of tokenizer.py: a vocabulary learned from files of text, and vocabularies looked at side by side.

    python tokenizer.py train --inputs abstracts.jsonl.gz --vocab-size 28896 --out data/tokenizer
    python tokenizer.py count --inputs shard0.jsonl.zst --out shard0.counts.json    # one process per shard, then
    python tokenizer.py train --inputs *.counts.json --vocab-size 28896 --out data/tokenizer
    python tokenizer.py compare --tokenizers data/tokenizer gpt2/ --text "Photosynthesis in chloroplasts"

Not here: how it is learned and applied (tokenizer.py), what kinds of files can be read (prepare/documents.py).
"""
import re
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import tyro

from plumbing.common import UserError, speaking_to_the_user, write_json
from plumbing.documents import Bad, documents
from plumbing.tokenizer_files import read_ids
from tokenizer import EOS, Tokenizer, count_pieces

PAPER_TERMS = ("chromatography", "cytotoxicity", "ECG", "GATA", "Immunohistochemistry", "myocardium", "nanoparticles",
               "photosynthesis", "probiotic", "thrombin")       # one token each in BioMedLM: table 3 of the paper


def texts_in(paths):
    """The documents of all files in turn. Says which cannot be read, and stops if they are more than 1 %."""
    good = bad = 0
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        print(path)
        for text in documents(path):
            if isinstance(text, Bad):
                print(f"skipped {text.where}: {text.reason}", file=sys.stderr)
                bad += text.weight
            else:
                good += 1
                yield text
    if bad > 0.01 * (good + bad):
        raise UserError(f"{bad:,} of {good + bad:,} documents cannot be read; mend or leave out the files named above")


def count_files(paths):
    counts = Counter()
    for path in [p for p in paths if p.name.endswith(".counts.json")]:
        counts.update(read_ids(path))
    counts.update(count_pieces(texts_in(p for p in paths if not p.name.endswith(".counts.json"))))
    if not counts:
        raise UserError("--inputs hold no text")
    print(f"{sum(counts.values()):,} pieces, {len(counts):,} distinct")
    return counts


def train(inputs: tuple[Path, ...], out: Path, vocab_size: int = 28896):
    """Learn a vocabulary and save it as a Hugging Face folder.

    Args:
        inputs: files of text (see prepare/documents.py), or *.counts.json written by `count`
        out: folder to write; tokenizer.json, vocab.json, merges.txt and tokenizer_config.json
        vocab_size: tokens: 256 bytes, the merges and <|endoftext|>; the paper's model has 28,896
    """
    tok = Tokenizer.from_counts(count_files(inputs), vocab_size)
    tok.save(out)
    print(f"{out}: {len(tok):,} tokens, the last is {EOS} = {tok.eos_id}")


def count(inputs: tuple[Path, ...], out: Path):
    """Count the pieces of a shard of text, so that many processes or machines can share the work of `train`.

    Args:
        inputs: files of text (see prepare/documents.py)
        out: file to write; its name ends in .counts.json
    """
    if not out.name.endswith(".counts.json"):
        raise UserError(f"{out}: --out must end in .counts.json, by which `train` tells counts from text")
    write_json(out, count_files(inputs))


def compare(tokenizers: tuple[Path, ...], text: str = "Immunohistochemistry shows the cytotoxicity of nanoparticles."):
    """Show how tokenizers split a text, side by side, and how many tokens the terms of the paper's table cost.

    Args:
        tokenizers: their folders, such as data/tokenizer and GPT-2's
        text: what to split
    """
    toks, n = [Tokenizer.load(folder) for folder in tokenizers], len(text.encode())
    rows = [[f"{folder.name}, {len(tok):,} tokens" for folder, tok in zip(tokenizers, toks, strict=True)],
            [f"{n / max(1, len(tok.encode(text))):.2f} bytes per token" for tok in toks], []]
    rows += zip_longest(*[coloured(tok, text) for tok in toks])
    rows += [[], *([coloured(tok, " " + term)[0] for tok in toks] for term in PAPER_TERMS)]
    for row in rows:
        print("  ".join((cell or "") + " " * (40 - len(re.sub("\x1b.*?m", "", cell or ""))) for cell in row).rstrip())


def coloured(tok, text, width=40):
    """The tokens of a text, alternately on two backgrounds, as lines of at most about `width` characters."""
    lines, used = [""], 0
    for i, token in enumerate(tok.decode([i]).replace("\n", "\u23ce") for i in tok.encode(text)):
        if used + len(token) > width and used:
            lines, used = [*lines, ""], 0
        lines[-1] += f"\x1b[30;4{'62'[i % 2]}m{token}\x1b[0m"
        used += len(token)
    return lines


def main():
    with speaking_to_the_user():
        tyro.extras.subcommand_cli_from_dict({"train": train, "count": count, "compare": compare})
