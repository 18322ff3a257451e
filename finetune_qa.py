"""Fine-tuning on multiple-choice questions, which BioMedLM is for.

Teaches how a language model becomes a classifier: each option is read behind its question, a linear layer scores the
last token, and a softmax over a question's options turns scores into a loss. The loop is train.py's.
Not here: the network (model.py), why a question and its options are one row (packed.py), reading each benchmark's files
(prepare/qa.py), what a score is worth (metrics.py).

    python finetune_qa.py demo                           # out/demo/model on data/demo's questions
    python finetune_qa.py demo --untrained --out out/demo/untrained         # its twin that never read the text
    python finetune_qa.py medqa --model stanford-crfm/BioMedLM --train F --dev F --test F

The files of questions have one format for all benchmarks (questions.py). OUT/report.json holds the scores,
OUT/predictions.jsonl every prediction. Bolton et al. 2024 (arXiv 2403.18421), section 4.
"""
import copy
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from common import UserError, git_commit, parse_args, speaking_to_the_user, write_json, write_json_lines
from metrics import accuracy, guessing_accuracy, macro_f1, mean_and_deviation, wilson_interval
from packed import Tree, pack
from questions import read_questions
from runtime import autocast, matrix_dtype, pick_device
from sample import load


@dataclass(frozen=True)
class FinetuneQA:
    """Fine-tune on multiple-choice questions and report the test score."""
    model: str = "stanford-crfm/BioMedLM"    # a folder, or a name on the Hugging Face hub
    train: str = "data/qa/medqa_train.jsonl"
    dev: str = "data/qa/medqa_dev.jsonl"     # chooses the epoch that is tested
    test: str = "data/qa/medqa_test.jsonl"
    out: str = "out/medqa"                   # report.json, predictions.jsonl, log.jsonl
    untrained: bool = False                  # begin from random weights: what did pretraining buy?
    seeds: tuple[int, ...] = (0, 1, 2)       # one fine-tuning each
    epochs: int = 20
    batch_size: int = 16                     # questions a step
    learning_rate: float = 2e-6              # the peak, published for MedQA on one GPU
    warmup_ratio: float = 0.5                # of all steps; then linearly down to 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    max_length: int = 512                    # tokens of question and option; longer questions lose their beginning
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"    # of matrix products; auto: bfloat16 if it is native


PRESETS = {
    "medqa": FinetuneQA(),
    "demo": FinetuneQA(
        model="out/demo/model", train="data/demo/questions/train.jsonl", dev="data/demo/questions/dev.jsonl",
        test="data/demo/questions/test.jsonl", out="out/demo/qa", epochs=1, batch_size=16, learning_rate=3e-4,
        warmup_ratio=0.1, weight_decay=0.01, max_length=128),
}


def main(cfg):
    """Fine-tune once for each seed, and return what report.json holds."""
    check(cfg)
    cfg = replace(cfg, dtype=matrix_dtype(cfg.dtype, pick_device()))
    train, dev, test = (read_questions(path) for path in (cfg.train, cfg.dev, cfg.test))
    out, started, runs, log, predictions = Path(cfg.out), time.perf_counter(), [], [], []
    for seed in cfg.seeds:
        scores, epochs = finetune(cfg, seed, train, dev, test)
        predicted, answers = [int(np.argmax(s)) for s in scores], [q.answer for q in test]
        runs.append({"seed": seed, "accuracy": accuracy(predicted, answers), "n": len(test),
                     "interval": wilson_interval(accuracy(predicted, answers), len(test)),
                     "macro_f1": macro_f1(predicted, answers)})
        print(f"seed {seed}: {runs[-1]['accuracy']:.1%} of {len(test)} test questions", flush=True)
        log += [{"seed": seed} | epoch for epoch in epochs]
        predictions += [{"seed": seed, "id": q.id, "scores": s, "prediction": p, "answer": q.answer}
                        for q, s, p in zip(test, scores, predicted, strict=True)]
    mean, deviation = mean_and_deviation([run["accuracy"] for run in runs])
    chance, commonest = guessing_accuracy(train, test)
    report = {"accuracy": mean, "deviation": deviation, "interval": wilson_interval(mean, len(test)),
              "macro_f1": mean_and_deviation([run["macro_f1"] for run in runs])[0], "n": len(test), "per_seed": runs,
              "chance": chance, "commonest_answer": commonest, "seconds": time.perf_counter() - started,
              "settings": asdict(cfg), "commit": git_commit()}
    write_json_lines(out / "log.jsonl", log)
    write_json_lines(out / "predictions.jsonl", predictions)
    write_json(out / "report.json", report)
    low, high = report["interval"]
    print(f"accuracy {mean:.1%} +- {deviation:.1%} over {len(runs)} seeds, 95 % interval {low:.1%} to {high:.1%}; "
          f"chance {chance:.1%}, commonest answer {commonest:.1%}. Wrote {out}/report.json")
    return report


def finetune(cfg, seed, train, dev, test):
    """One fine-tuning; returns the test questions' scores from the epoch with the best dev accuracy, and the log."""
    device = pick_device()
    torch.manual_seed(seed)
    model, tree = build(cfg, seed, device)
    train_trees, dev_trees, test_trees = ([tree(q) for q in questions] for questions in (train, dev, test))
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True)
    steps_per_epoch = -(-len(train) // cfg.batch_size)
    steps, best, best_weights, log = cfg.epochs * steps_per_epoch, -1.0, None, []
    bar = tqdm(total=steps, unit="step", desc=f"seed {seed}", disable=None)
    for epoch in range(cfg.epochs):
        order, losses = np.random.default_rng((seed, epoch)).permutation(len(train)), []
        model.train()
        for i in range(steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(epoch * steps_per_epoch + i, steps, cfg)
            batch = order[i * cfg.batch_size:(i + 1) * cfg.batch_size]
            with autocast(device, cfg.dtype):
                scores_QO = model([train_trees[j] for j in batch])
            loss = F.cross_entropy(scores_QO, torch.tensor([train[j].answer for j in batch], device=device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            bar.update()
        dev_accuracy = accuracy([int(np.argmax(s)) for s in predict(model, dev_trees, cfg)], [q.answer for q in dev])
        log.append({"epoch": epoch, "loss": sum(losses) / len(losses), "dev_accuracy": dev_accuracy})
        bar.set_postfix_str(f"loss {log[-1]['loss']:.3f}, dev {dev_accuracy:.1%}")
        if dev_accuracy > best:
            best, best_weights = dev_accuracy, copy.deepcopy(model.state_dict())
    bar.close()
    model.load_state_dict(best_weights)
    return predict(model, test_trees, cfg), log


class MultipleChoice(nn.Module):
    """A GPT whose head scores the last token of `question[SEP] option[SEP]`."""

    def __init__(self, gpt, pad_id):
        super().__init__()
        self.gpt, self.pad_id = gpt, pad_id
        self.score = nn.Linear(gpt.cfg.n_embd, 1)
        nn.init.normal_(self.score.weight, 0.0, gpt.cfg.initializer_range)
        nn.init.zeros_(self.score.bias)

    def forward(self, trees):
        """trees: a question each, its options the branches. Returns scores_QO; -inf where there is no option."""
        # Attention over a row of T costs T / 6D of the matrix products: a third of D keeps it to 6 %.
        packed = pack(trees, self.gpt.cfg.n_embd // 3, self.pad_id, self.score.weight.device)
        x_BTD = self.gpt.hidden(packed.ids_BT, visible_BTS=packed.visible_BTS, position_BT=packed.position_BT)
        scores_N = self.score(x_BTD[packed.row_N, packed.last_N]).float()[:, 0]
        return nn.utils.rnn.pad_sequence(scores_N.split(packed.sizes), batch_first=True, padding_value=-torch.inf)


def build(cfg, seed, device):
    """The model with its new head and tokens, and the function that turns a question into a tree of ids."""
    gpt, tok = load(cfg.model, torch.float32, device)
    if cfg.untrained:
        gpt.init_weights(seed)
    first_new = gpt.add_tokens(2)                 # behind every row the weights have, which may be more than len(tok)
    sep, pad = first_new, first_new + 1
    model = MultipleChoice(gpt, pad).to(device)
    limit = min(cfg.max_length, gpt.cfg.n_positions)

    def tree(q):
        question = tok.encode(f"{q.context.strip()} {q.question.strip()}".strip()).tolist()
        options = [tok.encode(" " + option.strip()).tolist()[:limit // 2] for option in q.options]
        room = limit - 2 - max(map(len, options))
        return Tree([*question[-room:], sep], [[*option, sep] for option in options])

    return model, tree


@torch.inference_mode()
def predict(model, trees, cfg):
    """The scores of every question's options, as lists; questions of like length are read together."""
    model.eval()
    scores, order = [None] * len(trees), sorted(range(len(trees)), key=lambda i: len(trees[i]))
    for i in range(0, len(trees), cfg.batch_size):
        part = order[i:i + cfg.batch_size]
        with autocast(model.score.weight.device, cfg.dtype):
            scores_QO = model([trees[j] for j in part]).tolist()
        for j, row in zip(part, scores_QO, strict=True):
            scores[j] = row[:len(trees[j].branches)]
    return scores


def learning_rate(step, steps, cfg):
    """Linear warmup over the first part of the run, then linearly down to 0."""
    warmup = max(1, round(cfg.warmup_ratio * steps))
    return cfg.learning_rate * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup + 1))


def check(cfg):
    for name in ("epochs", "batch_size", "max_length"):
        if getattr(cfg, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(cfg, name)}; it must be at least 1")
    if not cfg.seeds:
        raise UserError("--seeds is empty; name at least one")


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(FinetuneQA, PRESETS))
