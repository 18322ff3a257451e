"""Zero-shot answers: the option that is most likely after the question, without fine-tuning.

    python finetune_qa.py zeroshot --model stanford-crfm/BioMedLM --test data/qa/medqa_test.jsonl --out out/zeroshot
    python finetune_qa.py zeroshot --protocol letters --model ... --test ...     # the protocol of most papers

Protocol "options": the model reads "Question: ... Answer:", and the text of each option after it is scored. A long
option is less likely than a short one just because it has more tokens. So there are three scores: the log-probability
("raw"), divided by the option's characters, and divided by its bytes (comparable between tokenizers). EleutherAI's
lm-evaluation-harness calls "raw" acc and "per_character" acc_norm; bench/harness.py compares both programs.

Protocol "letters": the options are listed as "A. ...", "B. ..." before "Answer:", and only the letter is scored.

On examinations, models of a few billion parameters score little above chance in this way.
Not here: the log-probability itself (questions/heads.py).
"""
import string
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from baselines import load
from plumbing.common import UserError, git_commit, say_next, write_json, write_json_lines
from plumbing.runtime import Device, inference_dtype, pick_device
from questions.format import read_questions
from questions.heads import Likelihood, Reader, predict
from questions.report import assess, predictions_of, summary
from training.parallel import World

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class ZeroShot:
    """Answer by likelihood, without training."""
    model: str = "stanford-crfm/BioMedLM"
    test: str = "data/qa/medqa_test.jsonl"
    out: str = "out/zeroshot"
    protocol: Literal["options", "letters"] = "options"      # score each option's text, or its letter in a list
    batch_size: int = 16
    max_length: int = 1024
    device: Device = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"     # of products; float32 to compare


def zero_shot(cfg):
    """Write report.json and one file of predictions for each score. Returns the report."""
    world = World(0, 1, pick_device(cfg.device))
    cfg, test = replace(cfg, dtype=inference_dtype(cfg.dtype, world.device)), read_questions(cfg.test)
    asked = [lettered(q) for q in test] if cfg.protocol == "letters" else test
    gpt, tok = load(cfg.model, torch.float32, world.device)
    reader = Reader("likelihood", tok, min(cfg.max_length, gpt.cfg.n_positions))
    # TRAP: a new token [PAD] would add a logit to every softmax. Any id will do, because no option sees the padding.
    raw = predict(Likelihood(gpt, pad_id=0), [reader(q) for q in asked], cfg, world)
    raw = [alike(q.options, of_q) for q, of_q in zip(asked, raw, strict=True)]

    report = {"truncated": {"test": reader.cut}, "settings": asdict(cfg), "commit": git_commit()}
    for name in ["raw"] if cfg.protocol == "letters" else LENGTHS:
        scores = [[s / LENGTHS[name](option.strip()) for s, option in zip(of_q, q.options, strict=True)]
                  for of_q, q in zip(raw, asked, strict=True)]
        predictions = predictions_of(0, test, scores)
        report[name] = assess(test, predictions)
        write_json_lines(Path(cfg.out) / f"predictions_{name}.jsonl", predictions)
        print(f"{name}: {summary(report[name])}")
    write_json(Path(cfg.out) / "report.json", report)
    say_next("finetune_qa.py", "medqa", "--model", cfg.model, "--test", cfg.test, "--compare",
             Path(cfg.out) / "predictions_raw.jsonl")
    return report


def alike(options, scores):
    """The scores, with that of the first for options of the same text (MedMCQA has some): rounding must not choose."""
    texts = [option.strip() for option in options]
    return [scores[texts.index(text)] for text in texts]


# The divisor of the log-probability. The space before the option is one of its bytes, but, as in lm-evaluation-harness,
# none of its characters.
LENGTHS = {"raw": lambda option: 1, "per_character": len, "per_byte": lambda option: len(f" {option}".encode())}


def lettered(q):
    """The question with its options listed at its end, and their letters as its options."""
    if len(q.options) > len(LETTERS):
        raise UserError(f"question {q.id}: {len(q.options)} options need more letters than there are; use "
                        "--protocol options")
    listed = [f"{letter}. {option.strip()}" for letter, option in zip(LETTERS, q.options, strict=False)]
    return replace(q, question="\n".join([q.question.strip(), *listed]), options=list(LETTERS[:len(listed)]))
