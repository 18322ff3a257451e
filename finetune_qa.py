"""Fine-tuning on multiple-choice questions, the task that BioMedLM is for.

Teaches how a language model becomes a classifier. A linear layer gives each option a score, a softmax over a question's
options turns the scores into probabilities, and the loss is their cross-entropy. The training loop is the usual one.
The weights of the epoch with the best accuracy on dev are kept and tested.
Not here: what the model reads and which output is the score (questions/heads.py), the loop (training/finetuning.py),
which weights learn (training/trainable.py), the report (questions/report.py), the benchmarks' files (prepare/qa.py).

    python finetune_qa.py demo                           # fine-tune out/demo/model on data/demo's questions
    python finetune_qa.py demo --untrained --out out/demo/untrained         # the same shape with random weights
    python finetune_qa.py medqa --model stanford-crfm/BioMedLM --train F --dev F --test F
    python finetune_qa.py medqa --lora-rank 16 --weights bfloat16 --recompute-every 1        # on one 8 GB GPU
    python finetune_qa.py medqa --lora-rank 16 --save-adapter    # OUT/adapter: the low-rank additions alone, for peft
    python finetune_qa.py medqa --plan                   # the memory that each way takes; trains nothing
    python finetune_qa.py ask --model out/medqa/model --question TEXT --options A B C        # or --file, --interactive
    python finetune_qa.py zeroshot --model stanford-crfm/BioMedLM --test F  # no training: the most likely option
    python finetune_qa.py evaluate --predictions F --questions F            # score a file of predictions

All benchmarks share one file format (questions/format.py). A run writes OUT/model, OUT/report.json and every prediction
to OUT/predictions.jsonl. The same command resumes an interrupted run, and starts a finished one again. The method is
that of Bolton et al. 2024 (arXiv 2403.18421), section 4; "our choice" marks what the paper leaves open.
"""
import plumbing.interrupt  # noqa: F401, I001  first, for Ctrl-C during the imports
import time
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from baselines import add_tokens, load
from plumbing.common import free, run_script, say_next, write_json
from questions.ask import HEAD, Ask, ask
from questions.format import read_questions, read_test
from questions.heads import Classifier, labels_of, predict, reader_for
from questions.metrics import accuracy
from questions.report import assess, left_out_of_pretraining, predictions_of, read_predictions, summary
from questions.zero_shot import ZeroShot, zero_shot
from training import finetuning
from training.trainable import choose_weights

FILES = ("train", "dev", "test")


@dataclass(frozen=True)
class FinetuneQA(finetuning.Finetuning):
    """Fine-tune on multiple-choice questions and report the test score."""
    train: str = "data/qa/medqa_train.jsonl"
    dev: str = "data/qa/medqa_dev.jsonl"     # chooses the epoch that is tested
    test: str = "data/qa/medqa_test.jsonl"
    out: str = free("out/medqa")             # model, report.json, predictions.jsonl, log.jsonl
    head: Literal["option", "label"] = "option"     # label: for questions that share their options, such as yes and no
    untrained: bool = False                  # start from random weights, to measure what pretraining adds
    seeds: tuple[int, ...] = free((0, 1, 2)) # one fine-tuning for each
    max_length: int = 512                    # tokens of question and option; longer questions lose their beginning
    compare: str = free("")                  # another model's predictions.jsonl on the same test: adds a paired test
    plan: bool = free(False)                 # print the memory that each way of training takes; train nothing


@dataclass(frozen=True)
class Evaluate:
    """Score a file of predictions, by this script or any other program."""
    predictions: str                         # JSON lines {"id", "prediction"}; "scores" and "seed" are optional
    questions: str
    train: str = ""                          # training questions: adds a guessing baseline, and overlap with the test
    compare: str = ""                        # another file of predictions: adds a paired test
    out: str = ""                            # also write the report to this .json


def preset(task, **changes):
    return FinetuneQA(**{split: f"data/qa/{task}_{split}.jsonl" for split in FILES}, out=f"out/{task}", **changes)


# The paper gives the ranges of its search, but not the values that it found. Published are:
#   MedQA               rate 2e-6, 20 epochs, 512 tokens, warm-up 0.5 (the authors' answer to a user)
#   PubMedQA, BioASQ    rates of 2e-6 and 5e-6, batches of 8 to 32, 5 to 50 epochs, warm-up 0.5, seeds 1 to 3
# All else is our choice: MedQA's batch of 16, the values within these ranges, and MedMCQA's epochs and batch.
PRESETS = {
    "medqa": preset("medqa"),
    "medqa5": preset("medqa5"),
    "medmcqa": preset("medmcqa", epochs=3, batch_size=32, micro_batch_size=32),
    "pubmedqa": preset("pubmedqa", head="label", learning_rate=5e-6, seeds=(1, 2, 3)),
    "bioasq": preset("bioasq", head="label", learning_rate=5e-6, seeds=(1, 2, 3), max_length=1024),
    # One model for all subjects, tuned on MedMCQA and MedQA: `cat` joins their training files. dev is our choice.
    "mmlu": replace(preset("mmlu", epochs=3, batch_size=32, micro_batch_size=32),
                    train="data/qa/medmcqa_medqa_train.jsonl", dev="data/qa/medqa_dev.jsonl"),
    # To which part of an abstract does a sentence belong? (prepare/qa.py sections.) Our choice, for a small model.
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
    finetuning.check(cfg, "max_length")
    if cfg.plan:
        from launch.plan_qa import print_plan
        return print_plan(cfg)
    with finetuning.processes_of(cfg) as (cfg, world):
        return finetune_all(cfg, world)


def finetune_all(cfg, world):
    """Fine-tune once for each seed. Write the report, which is returned, and the model that was best on dev."""
    started = time.perf_counter()
    train, dev, test = read_questions(cfg.train), read_questions(cfg.dev), read_test(cfg.test)
    if cfg.compare:
        read_predictions(cfg.compare, test)            # reports a wrong file now, not after hours of training

    with finetuning.prepare_out(cfg, world, "seeds"):
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
            "left_out_of_pretraining": left_out_of_pretraining(cfg.model, cfg.test), "truncated": cut}
        chosen = max(on_dev, key=on_dev.get)
        report = finetuning.write_results(cfg, started, finetuning.seed_folder(cfg, chosen) / "best", log, predictions,
                                          report, cfg.test, summary(report))
        print(f"{summary(report)}. Wrote {cfg.out}/report.json and {cfg.out}/model (seed {chosen})")
        say_next("finetune_qa.py", "ask", "--model", f"{cfg.out}/model", "--interactive")
        return report


def finetune(cfg, world, seed, train, dev, test):
    """Fine-tune once, and keep the best model on dev in OUT/seeds/SEED/best. Returns its evaluation with its scores on
    the test, the log, and how many questions of each file were too long."""
    torch.manual_seed(seed)
    model, tok, reader, trees, cut = build(cfg, world, seed, {"train": train, "dev": dev, "test": test})
    folder = finetuning.seed_folder(cfg, seed)
    about = {HEAD: {"head": cfg.head, "labels": reader.labels, "max_length": reader.max_length}}

    def loss_of(net, part):
        answers_Q = torch.tensor([train[j].answer for j in part], device=world.device)
        return F.cross_entropy(net([trees["train"][j] for j in part]), answers_Q, reduction="sum")

    def evaluate(step, best):
        """The accuracy on dev. If it is the best so far, save the model and predict the test with it."""
        predicted = [int(np.argmax(s)) for s in predict(model, trees["dev"], cfg, world)]
        metrics = {"dev_accuracy": accuracy(predicted, [q.answer for q in dev])}
        if not best or metrics["dev_accuracy"] > best["dev_accuracy"]:
            best = metrics | {"scores": predict(model, trees["test"], cfg, world)}
            finetuning.save_model(model, tok, folder / "best", cfg, world, about)
        return metrics, best

    log, best = finetuning.fine_tune(cfg, world, seed, folder, model, len(train), loss_of, evaluate, FILES)
    return best, log, cut


def build(cfg, world, seed, files):
    """(model with a new head, tokenizer, reader, the trees of each file, how many questions of each were cut)."""
    gpt, tok = load(cfg.model, getattr(torch, cfg.weights), "cpu", allow_encoders=True)
    if cfg.untrained:
        gpt.init_weights(seed)
    labels = labels_of([q for questions in files.values() for q in questions]) if cfg.head == "label" else ()

    n_new = add_tokens(gpt, tok, reader_for(gpt).NEW_TOKENS[cfg.head])
    reader = reader_for(gpt)(cfg.head, tok, min(cfg.max_length, gpt.cfg.n_positions), labels)
    model = Classifier(gpt, reader.pad_id, labels)
    choose_weights(model, cfg, n_new)

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


if __name__ == "__main__":
    run_script(main, FinetuneQA, PRESETS)
