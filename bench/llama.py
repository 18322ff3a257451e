"""Compare llama.cpp, which reads a GGUF file of prepare/export.py, with the model that the file was made from.

    pip install llama-cpp-python gguf                # compiles llama.cpp; not in requirements.txt
    python bench/llama.py --model FOLDER --texts abstracts.jsonl.gz

Three comparisons: the tokens of --texts and of odd strings; the logits of every token of a few texts; and greedy text
of 64 tokens. You should see equal tokens for every text. In f32 the logits differ by less than 1e-2 and the greedy
texts are equal; f16 and q8_0 store rounded weights and differ more. For two greedy texts that differ, the table gives
the gap at their first different token: our model's logit of our token minus its logit of llama.cpp's token. Rounding
can explain a gap of up to twice the largest difference of a logit. llama.cpp stores keys and values in fp16 by default,
so f32 is measured with both.
Not here: the export itself (prepare/export.py).
"""
import platform
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import numpy as np
import torch

from baselines import load
from plumbing.common import UserError, git_commit, parse_args, speaking_to_the_user
from plumbing.documents import documents
from prepare import export
from sample import generate

NEW_TOKENS = 64
FILES = [("f32", "f32"), ("f32", "f16"), ("f16", "f16"), ("q8_0", "f16")]        # of the matrices; of keys and values
CACHE_TYPES = {"f32": 0, "f16": 1}                                               # llama.cpp's numbers

ODD = [
    # white space
    "", " ", "   ", "\n", "\n\n\n", "\r\n", "\t\tx", " \n x", "a  b", "a   \n  b", "ends in spaces   ", "   begins so",
    "\u00a0x\u00a0 y", "\u2003\u3000z", "\x85\x0b\x0c", "\x1c\x1d x \x1e\x1f",
    # digits, contractions, signs
    "1234567890", "3.14 1e-6 10^-3 p<0.05", "½ ² ₃ Ⅳ ① ٣ १२", "IL-1β at 5 μg/mL, TGF-β1±0.2", "'",
    "`~@#$%^&*()_+-={}[]|", "it's we'll they've I'm you're he'd '' 'S 's't",
    # scripts, combining marks, code points without a meaning
    "naïve e\u0301 \u0301", "中文 日本語テスト 한국어", "Привет Ωμέγα", "שלום مرحبا", "हिन्दी ไทย", "😀👩‍🔬🇩🇪",
    "\U0001d49c\U00020000", "\x00\x01", "\ufeffx", "\u200bx\u200d", "\u0378 \ue000 \uffff \U0010ffff",
    # names of tokens as text
    "<|endoftext|>", "a <|endoftext|> b", "[SEP]", "[UNUSED300]", "Ġthe Ċ", "<0x0A>", "</s><s>",
    # long
    "x" * 300, " " * 300, "\n " * 100, "!?" * 100]


@dataclass(frozen=True)
class Comparison:
    """Compare llama.cpp with the model that a GGUF file was made from."""
    model: str                          # a GPT-2 folder
    texts: Path                         # .jsonl with "text", or another form that prepare/pubmed.py reads; also .gz
    n_texts: int = 1000                 # whose tokens are compared, beside the odd ones
    n_scored: int = 20                  # of them, whose logits are compared
    n_prompts: int = 20                 # whose first 12 tokens are continued
    window: int = 256                   # tokens of a text that are scored


def main(cfg):
    """Print the tables; returns whether tokens and greedy text of the f32 file are all equal."""
    try:
        import llama_cpp
    except ImportError as error:
        raise UserError(f"llama_cpp cannot be imported ({error}): pip install llama-cpp-python") from error
    gpt, tok = load(cfg.model, torch.float32, "cpu")
    texts = list(islice((text for text in documents(cfg.texts) if isinstance(text, str) and text), cfg.n_texts))
    print(f"commit {git_commit()}, llama-cpp-python {llama_cpp.__version__}, torch {torch.__version__}, "
          f"{platform.machine()}\n")

    good, rows = True, []
    with tempfile.TemporaryDirectory() as folder:
        for dtype, cache in FILES:
            path = Path(folder) / f"{dtype}.gguf"
            if not path.exists():
                export.gguf(cfg.model, path, dtype)
            theirs = open_file(path, min(gpt.cfg.n_positions, cfg.window + NEW_TOKENS), cache)
            if not rows:
                good = compare_tokens(theirs, tok, texts) == 0
            ids = [tok.encode(text)[:cfg.window].tolist() for text in texts]
            difference, largest, same = compare_logits(theirs, gpt, ids[:cfg.n_scored])
            gaps = [compare_greedy(theirs, gpt, tok, prompt[:12]) for prompt in ids[:cfg.n_prompts]]
            differ = [f"{gap:.1e}" for gap in gaps if gap is not None]
            good &= dtype != "f32" or not differ
            rows.append(f"| {dtype} | {cache} | {path.stat().st_size:,} | {difference:.1e} | {largest:.1f} | "
                        f"{same:.2%} | {len(gaps) - len(differ)} of {len(gaps)} | {', '.join(differ)} |")
    print("\n| file | keys and values | bytes | largest difference of a logit | largest logit | same first choice | "
          f"greedy texts of {NEW_TOKENS} equal | gaps of the others |\n|---|---|---:|---:|---:|---:|---:|---|")
    print("\n".join(rows))
    return good


def open_file(path, positions, cache="f16"):
    """llama.cpp's model of a GGUF file, with the logits of every token; one thread, since threads wait by spinning."""
    import llama_cpp
    return llama_cpp.Llama(str(path), n_ctx=positions, logits_all=True, verbose=False, type_k=CACHE_TYPES[cache],
                           type_v=CACHE_TYPES[cache], n_threads=1, n_threads_batch=1)


def compare_tokens(theirs, tok, texts):
    """Print how many texts have the same tokens, as plain text and with special tokens read, and the same bytes when
    put together again; returns the number of those that differ."""
    wrong = 0
    for name, group in (("texts", texts), ("odd strings", ODD)):
        for specials in ([], list(tok.specials)):
            found = [unequal_tokens(theirs, tok, text, specials) for text in group]
            wrong += sum(found)
            shown = [text[:60] for text, differs in zip(group, found, strict=True) if differs]
            print(f"{name}{', special tokens read' if specials else ''}: {len(group) - sum(found):,} of {len(group):,} "
                  f"have the same tokens {shown or ''}")
    return wrong


def unequal_tokens(theirs, tok, text, specials=()):
    ids = theirs.tokenize(text.encode(), add_bos=False, special=bool(specials))
    return ids != tok.encode(text, specials).tolist() or theirs.detokenize(ids, special=True) != text.encode()


@torch.inference_mode()
def compare_logits(theirs, gpt, texts):
    """(largest difference, largest absolute logit, share of positions with the same first choice) of lists of ids."""
    difference, largest, same = 0.0, 0.0, []
    for ids in texts:
        theirs.reset()
        theirs.eval(ids)
        found_TV, ours_TV = theirs.scores[:len(ids)], gpt(torch.tensor([ids]))[0].numpy()
        difference = max(difference, np.abs(found_TV - ours_TV).max().item())
        largest = max(largest, np.abs(ours_TV).max().item())
        same.append(found_TV.argmax(1) == ours_TV.argmax(1))
    return difference, largest, np.concatenate(same).mean()


@torch.inference_mode()
def compare_greedy(theirs, gpt, tok, prompt):
    """None if both continue a prompt (a list of ids) with the same tokens. Otherwise the gap at the first different
    token: our model's logit of our token minus its logit of llama.cpp's token."""
    ours, found = generate(gpt, prompt, NEW_TOKENS, eos_id=tok.eos_ids)[0], []
    for token in theirs.generate(prompt, temp=0.0):
        if token in tok.eos_ids or len(found) == NEW_TOKENS:
            break
        found.append(token)
    if ours == found:
        return None

    ours, found = [*ours, tok.eos_id], [*found, tok.eos_id]      # a text may be the beginning of the other
    n = next(i for i, (a, b) in enumerate(zip(ours, found, strict=False)) if a != b)
    logits_V = gpt(torch.tensor([prompt + ours[:n]]))[0, -1]
    return (logits_V[ours[n]] - logits_V[found[n]]).item()


if __name__ == "__main__":
    with speaking_to_the_user():
        sys.exit(0 if main(parse_args(Comparison)) else 1)
