"""Time fine-tuning on packed trees against separate rows and against a padded batch of 8, in one run.

    python bench/qa.py --questions medqa_dev.jsonl --tokenizer data/tokenizer      # written by prepare/qa.py

A packed tree holds a question once, followed by its options; the other two layouts repeat it for each option. Measured
are forward and backward at the paper's width (2560, 20 heads) with few layers, on a GPU if there is one. The batch is
eight questions whose lengths are the 1/16, 3/16 ... 15/16 quantiles of the file, so it varies as the file does. All
three layouts must give the same loss. You should see speedups of at least 3.3x and 5x on MedQA. The table also counts
the tokens that each layout processes, for this batch and for the whole file.
"""
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

from model import GPT, GPTConfig
from plumbing.common import UserError, git_commit, parse_args, speaking_to_the_user, write_json
from plumbing.runtime import autocast, pick_device
from questions.format import read_questions
from questions.heads import Classifier, Reader
from questions.packed import pack
from tokenizer import Tokenizer

REQUIRED = {"rows": 3.3, "padded": 5.0}         # how many times faster the tree must be


@dataclass(frozen=True)
class Bench:
    questions: Path
    tokenizer: Path              # a folder
    out: Path = Path("results/qa.json")
    n_layer: int = 2
    batch: int = 8
    repeats: int = 1
    max_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"


def main(cfg):
    tok, questions = Tokenizer.load(cfg.tokenizer), read_questions(cfg.questions)
    if len(questions) < cfg.batch:
        raise UserError(f"{cfg.questions}: {len(questions)} questions, fewer than a batch of {cfg.batch}")

    # The batch: eight questions, evenly spread over the lengths.
    for name in Reader.NEW_TOKENS["option"]:
        tok.add_special(name)
    read = Reader("option", tok, cfg.max_length)
    trees = [read(q) for q in questions]
    by_length = sorted(range(len(trees)), key=lambda i: len(trees[i]))
    chosen = [by_length[(2 * i + 1) * len(trees) // (2 * cfg.batch)] for i in range(cfg.batch)]
    device = pick_device()
    batch = [trees[i] for i in chosen]
    answers = torch.tensor([questions[i].answer for i in chosen], device=device)

    # The three layouts: which parts of the batch are processed at once, and how they are scored.
    model = new_model(cfg, len(tok) + 1, device)
    ways = {"tree": ([batch], model),
            "rows": ([[tree] for tree in batch], lambda part: separate(model, part)),
            "padded": ([batch], lambda part: separate(model, part))}
    times, losses = {way: [] for way in ways}, {}
    step(model, model, [batch[:1]], answers, cfg.dtype)          # warm-up: memory, threads
    for _ in range(cfg.repeats):
        for way, (parts, scores_of) in ways.items():
            started = time.perf_counter()
            losses[way] = step(model, scores_of, parts, answers, cfg.dtype)
            times[way].append(time.perf_counter() - started)
            print(f"{way:7} {times[way][-1]:7.2f} s, loss {losses[way]:.6f}", flush=True)
    return report(cfg, trees, batch, times, losses)


def new_model(cfg, pad_id, device):
    """A classifier of the paper's width with random weights and without dropout, ready to train."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(n_layer=cfg.n_layer, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))
    gpt.add_tokens(2)
    # The embedding's gradient, 74 M numbers per backward pass, is negligible with 32 layers but not with 2.
    gpt.wte.requires_grad_(False)
    model = Classifier(gpt, pad_id).to(device).train()
    torch.nn.init.normal_(model.score.weight)                    # large scores, so that a wrong one changes the loss
    return model


def step(model, scores_of, parts, answers, dtype):
    """Forward and backward of a batch that is given in parts; returns its mean loss."""
    model.zero_grad()
    total, start, n = 0.0, 0, sum(map(len, parts))
    for part in parts:
        with autocast(answers.device, dtype):
            scores_QO = scores_of(part)
        loss = F.cross_entropy(scores_QO.float(), answers[start:start + len(part)], reduction="sum") / n
        loss.backward()
        total, start = total + loss.item(), start + len(part)      # .item() waits for the GPU
    return total


def separate(model, trees):
    """scores_QO by the usual layout: one row per option, question included, padded on the right to the longest."""
    rows = [tree.prefix + branch for tree in trees for branch in tree.branches]
    last_N = torch.tensor([len(row) - 1 for row in rows])
    ids_NT = torch.full((len(rows), int(last_N.max()) + 1), model.pad_id)
    for ids_T, row in zip(ids_NT, rows, strict=True):
        ids_T[:len(row)] = torch.tensor(row)
    x_NTD = model.gpt.hidden(ids_NT.to(model.score.weight.device))
    scores_N = model.score(x_NTD[torch.arange(len(rows)), last_N])[:, 0]
    return torch.nn.utils.rnn.pad_sequence(scores_N.split([len(tree.branches) for tree in trees]), batch_first=True,
                                           padding_value=-torch.inf)


def tokens_per_question(trees, way, batch):
    """Mean number of tokens processed per question, padding included, over batches in the file's order."""
    total = 0
    for i in range(0, len(trees), batch):
        part = trees[i:i + batch]
        if way == "tree":
            total += pack(part, GPTConfig().n_embd // 3, 0).ids_BT.numel()
        elif way == "rows":
            total += sum(len(tree.branches) * tree.depth for tree in part)
        else:
            total += sum(len(tree.branches) for tree in part) * max(tree.depth for tree in part)
    return total / len(trees)


def report(cfg, trees, batch, times, losses):
    if max(losses.values()) - min(losses.values()) > (1e-5 if cfg.dtype == "float32" else 0.1) * losses["rows"]:
        raise UserError(f"the three layouts give different losses: {losses}")
    best = {way: min(seconds) for way, seconds in times.items()}
    settings = {"n_embd": 2560, "n_layer": cfg.n_layer, "batch": cfg.batch, "repeats": cfg.repeats, "dtype": cfg.dtype,
                "device": str(pick_device()), "threads": torch.get_num_threads()}
    result = {"file": cfg.questions.name, "n": len(trees), "settings": settings, "commit": git_commit(),
              "torch": torch.__version__, "ways": {}}
    print("\n| way | seconds | tree is faster | required | tokens per question, this batch | whole file |\n"
          "|---|---|---|---|---|---|")
    for way, seconds in best.items():
        entry = {"seconds": seconds, "times": times[way], "loss": losses[way], "ratio": seconds / best["tree"],
                 "tokens": tokens_per_question(batch, way, cfg.batch),
                 "tokens_file": tokens_per_question(trees, way, 8)}
        result["ways"][way] = entry
        print(f"| {way} | {seconds:.2f} | {entry['ratio']:.2f}x | {REQUIRED.get(way, '')} | {entry['tokens']:.0f} | "
              f"{entry['tokens_file']:.0f} |")
    write_json(cfg.out, result)
    short = [way for way, least in REQUIRED.items() if result["ways"][way]["ratio"] < least]
    print(f"required: {'missed for ' + ' and '.join(short) if short else 'met'}. Wrote {cfg.out}")
    return result


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Bench))
