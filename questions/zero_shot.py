"""Zero-shot answers: the option that a language model finds most likely after the question, without fine-tuning.

    python finetune_qa.py zeroshot --model stanford-crfm/BioMedLM --test data/qa/medqa_test.jsonl --out out/zeroshot

A long option is less likely than a short one only because it has more tokens. So two scores are reported: the
log-probability itself ("raw"), and divided by the option's bytes ("per byte", comparable between tokenizers). Models of
a few billion parameters score little above chance on examinations in this way, which is why BioMedLM is fine-tuned.
Not here: the log-probability itself (questions/heads.py).
"""
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from plumbing.common import git_commit, write_json, write_json_lines
from plumbing.runtime import matrix_dtype, pick_device
from questions.format import read_questions
from questions.heads import Likelihood, Reader, predict
from questions.report import assess, predictions_of, summary
from sample import load
from training.parallel import World


@dataclass(frozen=True)
class ZeroShot:
    """Answer by likelihood, without training."""
    model: str = "stanford-crfm/BioMedLM"
    test: str = "data/qa/medqa_test.jsonl"
    out: str = "out/zeroshot"
    batch_size: int = 16
    max_length: int = 1024
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"


def zero_shot(cfg):
    """Write report.json and one file of predictions per score; returns the report."""
    world = World(0, 1, pick_device())
    cfg, test = replace(cfg, dtype=matrix_dtype(cfg.dtype, world.device)), read_questions(cfg.test)
    gpt, tok = load(cfg.model, torch.float32, world.device)
    first_new = gpt.add_tokens(1)
    reader = Reader("likelihood", tok, first_new, min(cfg.max_length, gpt.cfg.n_positions))
    raw = predict(Likelihood(gpt, first_new), [reader(q) for q in test], cfg, world)
    per_byte = [[s / len(f" {option.strip()}".encode()) for s, option in zip(scores, q.options, strict=True)]
                for scores, q in zip(raw, test, strict=True)]
    report = {"truncated": {"test": reader.cut}, "settings": asdict(cfg), "commit": git_commit()}
    for name, scores in (("raw", raw), ("per_byte", per_byte)):
        predictions = predictions_of(0, test, scores)
        report[name] = assess(test, predictions)
        write_json_lines(Path(cfg.out) / f"predictions_{name}.jsonl", predictions)
        print(f"{name}: {summary(report[name])}")
    write_json(Path(cfg.out) / "report.json", report)
    return report
