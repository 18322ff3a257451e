"""How vocabularies split a text, side by side, and how many tokens each takes for the paper's terms.

    python prepare/vocabulary.py --tokenizers data/tokenizer gpt2/ --text "Photosynthesis in chloroplasts"

Not here: learning a vocabulary (tokenizer.py); its gain, measured (bench/tokenizer.py).
"""
import re
import sys
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of prepare/
# ruff: noqa: E402

import tyro

from plumbing.common import speaking_to_the_user
from tokenizer import Tokenizer

PAPER_TERMS = ("chromatography", "cytotoxicity", "ECG", "GATA", "Immunohistochemistry", "myocardium", "nanoparticles",
               "photosynthesis", "probiotic", "thrombin")       # one token each in BioMedLM: table 3 of the paper


def main(tokenizers: tuple[Path, ...], text: str = "Immunohistochemistry shows the cytotoxicity of nanoparticles."):
    """Show how tokenizers split a text, side by side, and the tokens of each term in the paper's table 3.

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


if __name__ == "__main__":
    with speaking_to_the_user():
        tyro.cli(main)
