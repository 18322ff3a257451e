"""Fine-tuning on multiple-choice questions, the task that BioMedLM is for.

Teaches how a language model becomes a classifier: a linear layer gives each option a score, a softmax over a question's
options turns the scores into a loss, and the training loop is the usual one. The epoch with the best accuracy on dev is
tested and kept.
Not here: what the model reads and which output is the score (questions/heads.py), why a question is one row
(questions/packed.py), the loop (training/finetuning.py), which weights learn (training/trainable.py), what a score is
worth (questions/report.py), the files of each benchmark (prepare/qa.py).

    python finetune_qa.py demo                           # out/demo/model on data/demo's questions
    python finetune_qa.py demo --untrained --out out/demo/untrained         # the same shape with random weights
    python finetune_qa.py medqa --model stanford-crfm/BioMedLM --train F --dev F --test F
    python finetune_qa.py medqa --lora-rank 16 --weights bfloat16 --recompute-every 1        # on one 8 GB GPU
    python finetune_qa.py medqa --plan                   # the memory that each way takes; trains nothing
    python finetune_qa.py ask --model out/medqa/model --question TEXT --options A B C        # or --file, --interactive
    python finetune_qa.py zeroshot --model stanford-crfm/BioMedLM --test F  # no training: the most likely option
    python finetune_qa.py evaluate --predictions F --questions F            # score a file of predictions

All benchmarks share one file format (questions/format.py). OUT/model is the best model, OUT/report.json has the scores,
OUT/predictions.jsonl every prediction. The same command resumes an interrupted run from OUT/seeds; a finished run
starts again from the beginning. Bolton et al. 2024 (arXiv 2403.18421), section 4; "our choice" marks what it leaves
open.
"""
import plumbing.interrupt  # noqa: F401, I001  first, for Ctrl-C during the imports
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from baselines import load
from plumbing.common import (
    UserError,
    check_ranges,
    free,
    git_commit,
    parse_args,
    speaking_to_the_user,
    write_json,
    write_json_lines,
)
from plumbing.runtime import matrix_dtype
from questions.ask import HEAD, Ask, ask
from questions.format import read_questions, read_test
from questions.heads import Classifier, labels_of, predict, reader_for
from questions.metrics import accuracy
from questions.report import assess, left_out_of_pretraining, predictions_of, read_predictions, summary
from questions.zero_shot import ZeroShot, zero_shot
from training.finetuning import RANGES, Finetuning, fine_tune, keep, prepare_out, run_settings, save_model
from training.parallel import device_mesh, join_world, shard_model
from training.trainable import check_weights, choose_weights

FILES = ("train", "dev", "test")


@dataclass(frozen=True)
class FinetuneQA(Finetuning):
    """Fine-tune on multiple-choice questions and report the test score."""
    train: str = "data/qa/medqa_train.jsonl"
    dev: str = "data/qa/medqa_dev.jsonl"     # chooses the epoch that is tested
    test: str = "data/qa/medqa_test.jsonl"
    out: str = free("out/medqa")             # model, report.json, predictions.jsonl, log.jsonl
    head: Literal["option", "label"] = "option"     # label: for questions that share their options, as yes and no
    untrained: bool = False                  # begin from random weights, to measure what pretraining adds
    seeds: tuple[int, ...] = free((0, 1, 2)) # one fine-tuning each
    max_length: int = 512                    # tokens of question and option; longer questions lose their beginning
    compare: str = free("")                  # another model's predictions.jsonl on the same test: a paired test
    plan: bool = free(False)                 # print the memory that each way of training takes; train nothing


@dataclass(frozen=True)
class Evaluate:
    """Score a file of predictions, by this script or any other program."""
    predictions: str                         # JSON lines {"id", "prediction"}; "scores" and "seed" are optional
    questions: str
    train: str = ""                          # the training questions: what guessing reaches, and overlap with the test
    compare: str = ""                        # another file of predictions: a paired test
    out: str = ""                            # also write the report to this .json


def preset(task, **changes):
    return FinetuneQA(**{split: f"data/qa/{task}_{split}.jsonl" for split in ("train", "dev", "test")},
                      out=f"out/{task}", **changes)


# The paper gives the ranges of its search, not the result. Published: for MedQA 2e-6, 20 epochs of 512 tokens, warm-up
# 0.5 (the authors' answer to a user; batch 16 is our choice); for PubMedQA and BioASQ rates of 2e-6 and 5e-6, batches
# of 8 to 32, 5 to 50 epochs, warm-up 0.5, seeds 1 to 3, and we choose among them. MedMCQA's epochs and batch are our
# choice.
PRESETS = {
    "medqa": preset("medqa"),
    "medqa5": preset("medqa5"),
    "medmcqa": preset("medmcqa", epochs=3, batch_size=32, micro_batch_size=32),
    "pubmedqa": preset("pubmedqa", head="label", learning_rate=5e-6, seeds=(1, 2, 3)),
    "bioasq": preset("bioasq", head="label", learning_rate=5e-6, seeds=(1, 2, 3), max_length=1024),
    # One model for all subjects, tuned on MedMCQA and MedQA: `cat` their training files. Our choice of dev: MedQA's.
    "mmlu": replace(preset("mmlu", epochs=3, batch_size=32, micro_batch_size=32),
                    train="data/qa/medmcqa_medqa_train.jsonl", dev="data/qa/medqa_dev.jsonl"),
    # Which part of an abstract is this sentence? (prepare/qa.py sections.) Our choice, for a small model on a CPU.
    "sections": preset("sections", head="label", epochs=3, micro_batch_size=16, learning_rate=3e-4, warmup_ratio=0.1,
                       max_length=128),
    "demo": FinetuneQA(
        model="out/demo/model", train="data/demo/questions/train.jsonl", dev="data/demo/questions/dev.jsonl",
        test="data/demo/questions/test.jsonl", out="out/demo/qa", epochs=1, batch_size=16, micro_batch_size=16,
        learning_rate=3e-4, warmup_ratio=0.1, weight_decay=0.01, max_length=128),
    "zeroshot": ZeroShot(),
    "ask": Ask(),
    "evaluate": Evaluate(tyro.MISSING, tyro.MISSING),
}


def main(cfg):
    """Run the command that cfg belongs to, and return its result."""
    if isinstance(cfg, Evaluate):
        return score_file(cfg)
    if isinstance(cfg, ZeroShot):
        return zero_shot(cfg)
    if isinstance(cfg, Ask):
        return ask(cfg)
    check(cfg)
    if cfg.plan:
        from launch.plan_qa import print_plan
        return print_plan(cfg)
    with join_world(cfg.parallel) as world:
        return finetune_all(cfg, world)


def finetune_all(cfg, world):
    """Read the questions, and check all that can be checked before the first step."""
    cfg = replace(cfg, dtype=matrix_dtype(cfg.dtype, world.device))
    check_weights(cfg)
    train, dev, test = read_questions(cfg.train), read_questions(cfg.dev), read_test(cfg.test)
    if cfg.compare:
        read_predictions(cfg.compare, test)            # a wrong file is an error now, not after hours
    with prepare_out(cfg, world, "seeds"):
        return finetune_seeds(cfg, world, train, dev, test)


def finetune_seeds(cfg, world, train, dev, test):
    """Fine-tune once for each seed; write the report and the model that was best on dev."""
    out, started = Path(cfg.out), time.perf_counter()
    log, predictions, on_dev = [], [], {}
    for seed in cfg.seeds:
        best, lines, cut = finetune(cfg, world, seed, train, dev, test)
        on_dev[seed] = best["dev_accuracy"]
        predictions += predictions_of(seed, test, best["scores"])
        log += [{"seed": seed} | line for line in lines]
        if world.rank == 0:
            right = accuracy([r["prediction"] for r in predictions[-len(test):]], [q.answer for q in test])
            print(f"seed {seed}: {right:.1%} of {len(test)} test questions", flush=True)
    if world.rank:
        return None
    report = assess(test, predictions, train, cfg.compare) | {
        "left_out_of_pretraining": left_out_of_pretraining(cfg.model, cfg.test), "truncated": cut,
        "seconds": time.perf_counter() - started, "settings": asdict(cfg), "commit": git_commit()}
    write_json_lines(out / "log.jsonl", log)
    write_json_lines(out / "predictions.jsonl", predictions)
    write_json(out / "report.json", report)
    chosen = max(on_dev, key=on_dev.get)
    if not (out / f"seeds/{chosen}/best").is_dir():
        raise UserError(f"wrote {out}/report.json, but no model: an older version began this run; use --restart")
    keep(out / f"seeds/{chosen}/best", cfg, cfg.test, summary(report))
    shutil.rmtree(out / "seeds")
    print(f"{summary(report)}. Wrote {out}/report.json and {out}/model (seed {chosen}). Ask it:\n"
          f"    python finetune_qa.py ask --model {out}/model --interactive")
    return report


def finetune(cfg, world, seed, train, dev, test):
    """One fine-tuning; OUT/seeds/SEED/best is then the best model on dev. Returns its evaluation (with the test's
    scores), the log, and how many questions of each file were too long."""
    torch.manual_seed(seed)
    model, tok, reader, trees, cut = build(cfg, world, seed, {"train": train, "dev": dev, "test": test})
    about = {HEAD: {"head": cfg.head, "labels": reader.labels, "max_length": reader.max_length}}

    def loss_of(net, part):
        answers_Q = torch.tensor([train[j].answer for j in part], device=world.device)
        return F.cross_entropy(net([trees["train"][j] for j in part]), answers_Q, reduction="sum")

    def evaluate(step, best):
        """The accuracy on dev; if it is the best so far, the test is predicted with these weights."""
        predicted = [int(np.argmax(s)) for s in predict(model, trees["dev"], cfg, world)]
        metrics = {"dev_accuracy": accuracy(predicted, [q.answer for q in dev])}
        if not best or metrics["dev_accuracy"] > best["dev_accuracy"]:
            best = metrics | {"scores": predict(model, trees["test"], cfg, world)}
            save_model(model, tok, folder / "best", cfg, world, about)
        return metrics, best

    folder = Path(cfg.out) / "seeds" / str(seed)
    log, best = fine_tune(cfg, world, seed, folder, model, len(train), loss_of, evaluate, run_settings(cfg, FILES))
    return best, log, cut


def build(cfg, world, seed, files):
    """The model with its new head and tokens, its tokenizer, its reader, the trees of each file, and how many questions
    of each file were cut."""
    device = torch.device("cpu") if cfg.parallel == "fsdp" else world.device       # fsdp moves each block by itself
    gpt, tok = load(cfg.model, getattr(torch, cfg.weights), device, allow_encoders=True)
    if cfg.untrained:
        gpt.init_weights(seed)
    labels = labels_of([q for questions in files.values() for q in questions]) if cfg.head == "label" else ()
    new = [name for name in reader_for(gpt).NEW_TOKENS[cfg.head] if name not in tok.specials]
    first_new = gpt.add_tokens(len(new))         # after all rows of the weights, which may be more than len(tok)
    for i, name in enumerate(new, first_new):
        tok.add_special(name, i)
    reader = reader_for(gpt)(cfg.head, tok, first_new, min(cfg.max_length, gpt.cfg.n_positions), labels)
    model = Classifier(gpt, reader.pad_id, labels).to(device)
    choose_weights(model, cfg, len(new))
    if cfg.parallel == "fsdp":
        shard_model(model, device_mesh(world, 0), cfg.dtype)
    trees, cut = {}, {}
    for name, questions in files.items():
        reader.cut = 0
        trees[name] = [reader(q) for q in questions]
        cut[name] = reader.cut
        if reader.cut and world.rank == 0:
            print(f"{name}: {reader.cut:,} of {len(questions):,} questions are longer than {reader.max_length} tokens "
                  "and were cut")
    return model, tok, reader, trees, cut


def score_file(cfg):
    questions = read_test(cfg.questions)
    report = assess(questions, read_predictions(cfg.predictions, questions),
                    read_questions(cfg.train) if cfg.train else None, cfg.compare)
    print(summary(report))
    if cfg.out:
        write_json(cfg.out, report)
    return report


def check(cfg):
    check_ranges(cfg, RANGES | {"max_length": (1, None)})
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError("--seeds must name at least one, and none twice")


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(FinetuneQA, PRESETS))
