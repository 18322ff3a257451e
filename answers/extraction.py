"""Fine-tuning on extraction: find the answer as a span of the context. The presets span and bioasq8b of
finetune_answers.py run it.

Teaches that a third kind of head needs little code: two numbers per token instead of one per option. And that nothing
may be chosen on the test: the step that is tested, and the threshold above which the model gives no answer, are chosen
on dev. A GPT and an encoder (baselines/) use the same code.
Not here: the loop (training/finetuning.py), windows and spans (answers/spans.py), the scores (answers/report.py).

    python finetune_answers.py span --model out/laptop/model --train train-v2.0.json --test dev-v2.0.json
    python finetune_answers.py bioasq8b --model out/span/model --seeds 0 1 2       # BioASQ after SQuAD
    python finetune_answers.py span --untrained --train F --dev F --test F         # what does pretraining add?

A run writes OUT/report.json, the answers with their n best candidates to OUT/predictions.jsonl, and the model that was
best on dev to OUT/model. transformers' BertForQuestionAnswering (Electra..., Albert..., GPT2...) can read this model,
and --model can continue from it.
"""
import time
from dataclasses import dataclass

import numpy as np
import torch

from answers.examples import splits_of, unasked
from answers.report import shown, span_scores
from answers.scores import best_threshold, squad2_scores
from answers.spans import SPAN, SpanModel, SpanReader, best_spans, read_off, read_squad, span_loss
from baselines import add_tokens, load
from plumbing.common import UserError, free, say_next
from plumbing.huggingface import find_folder, read_tensors
from training import finetuning
from training.trainable import choose_weights

FILES = ("train", "dev", "test")


@dataclass(frozen=True)
class FinetuneSpan(finetuning.Finetuning):
    """Fine-tune on questions whose answers are spans of a context, and report EM and F1."""
    train: str = "data/qa/squad_train.json"  # in SQuAD's format, 1.1 or 2.0
    dev: str = ""                            # chooses step and threshold; "": a tenth of the training questions
    test: str = "data/qa/squad_test.json"
    out: str = free("out/span")              # model, report.json, predictions.jsonl, log.jsonl
    untrained: bool = False                  # start from random weights
    seeds: tuple[int, ...] = free((0,))      # one fine-tuning for each
    epochs: float = 2
    batch_size: int = 32                     # in windows, like the micro-batch
    micro_batch_size: int = free(8)
    learning_rate: float = 3e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 512                    # tokens of question and context; a longer context is read in windows
    stride: int = 128                        # tokens from the start of one window to the start of the next
    max_question: int = 64                   # tokens; a longer question loses its end
    max_answer: int = 30                     # tokens
    n_best: int = 20                         # candidates kept from each window
    select_every: int = 0                    # steps between two evaluations on dev; 0 is after each epoch


def finetune_spans(cfg):
    """Fine-tune on the processes that torchrun started, and return the report."""
    finetuning.check(cfg, "max_length", "stride", "max_question", "max_answer", "n_best")
    with finetuning.processes_of(cfg) as (cfg, world):
        return finetune_all(cfg, world)


def finetune_all(cfg, world):
    """Fine-tune once for each seed, and write the report and the model that was best on dev."""
    started = time.perf_counter()
    files, counts = read_files(cfg, world)
    with finetuning.prepare_out(cfg, world, "seeds"):
        log, runs, best = [], {}, {}
        for seed in cfg.seeds:
            best[seed], lines, windows = finetune(cfg, world, seed, files)
            runs[seed] = best[seed].pop("records")
            log += [{"seed": seed} | line for line in lines]
        if world.rank:
            return None

        unanswerable = has_unanswerable(files)
        report = {"n": len(files["test"])} | span_scores(files["test"], unanswerable, *runs.values()) | {
            "per_seed": [{"seed": seed} | best[seed] | span_scores(files["test"], unanswerable, run)
                         for seed, run in runs.items()],
            "files": counts, "windows": windows}
        predictions = [{"seed": seed} | record for seed, run in runs.items() for record in run]
        chosen = max(best, key=lambda seed: best[seed]["dev_f1"])
        report = finetuning.write_results(cfg, started, finetuning.seed_folder(cfg, chosen) / "best", log, predictions,
                                          report, cfg.test, summary(report))
        print(f"{summary(report)}\nWrote {cfg.out}/report.json and {cfg.out}/model (seed {chosen})")
        say_next("finetune_answers.py", "span", "--model", f"{cfg.out}/model", "--train", "FILE", "--test", "FILE")
        return report


def read_files(cfg, world):
    """({"train", "dev", "test"}: items, counts for each file). Questions and contexts of the test are left out of dev
    and training, and those of dev are left out of training."""
    files, counts, taken = {}, {}, []
    for name in ("test", "dev", "train"):
        if path := getattr(cfg, name):
            items, counts[name] = read_squad(path)
            files[name] = unasked(items, taken)
            counts[name] |= {"items": len(files[name]), "left_out": len(items) - len(files[name])}
            taken += files[name]
    if not cfg.dev:
        divided = splits_of(files["train"], {"train": 0.9, "dev": 0.1})
        files |= {"train": divided["train"], "dev": divided["dev"]}
    if world.rank == 0:
        for name, found in counts.items():
            print(f"{name}: {found['items']:,} questions; {found['left_out']:,} others left out, because a later split "
                  f"has their question or context. Of {found['answers']:,} answers {found['moved']:,} were not at the "
                  f"file's offset, {found['absent']:,} not in their context at all")
    if lacking := [name for name, items in files.items() if not items]:
        raise UserError(f"no question is left for {lacking[0]}; give larger files, or --dev")
    return files, counts


def has_unanswerable(files):
    """Whether a question of train or dev has no answer, so that the model may give none."""
    return any(not item.answers for name in ("train", "dev") for item in files[name])


def finetune(cfg, world, seed, files):
    """Fine-tune once, and keep the best model on dev in OUT/seeds/SEED/best. Returns its evaluation with its answers to
    the test, the log, and the number of windows with the reader's counts."""
    torch.manual_seed(seed)
    model, tok, reader = build(cfg, seed)
    windows, counts = {}, {}
    for name, items in files.items():
        reader.count = dict.fromkeys(reader.count, 0)
        windows[name] = reader(items)
        counts[name] = {"windows": len(windows[name])} | reader.count
        if world.rank == 0 and seed == cfg.seeds[0]:
            cut, unaligned = reader.count["cut"], reader.count["unaligned"]
            print(f"{name}: {len(windows[name]):,} windows of {len(items):,} contexts; {cut:,} questions were cut, "
                  f"{unaligned:,} answers begin or end inside a token", flush=True)

    def loss_of(net, part):
        chosen = [windows["train"][j] for j in part]
        return span_loss(*net(chosen), chosen)

    def evaluate(step, best):
        """Exact match and F1 on dev. If F1 is the best so far, save the model and predict the test with it."""
        found = predict(model, files["dev"], windows["dev"], cfg, world)
        metrics = dev_scores(files["dev"], found, has_unanswerable(files))
        if not best or metrics["dev_f1"] > best["dev_f1"]:
            found = predict(model, files["test"], windows["test"], cfg, world)
            best = metrics | {"step": step, "records": records(files["test"], found, metrics["threshold"])}
            finetuning.save_model(model, tok, folder / "best", cfg, world)
        return metrics, best

    folder = finetuning.seed_folder(cfg, seed)
    log, best = finetuning.fine_tune(cfg, world, seed, folder, model, len(windows["train"]), loss_of, evaluate,
                                     [name for name in FILES if getattr(cfg, name)], cfg.select_every)
    return best, log, counts


def build(cfg, seed):
    """(model with its head and new tokens, tokenizer, reader). The folder of the model may contain a trained head."""
    gpt, tok = load(cfg.model, getattr(torch, cfg.weights), "cpu", allow_encoders=True)
    if cfg.untrained:
        gpt.init_weights(seed)

    names = SPAN if gpt.causal else ("[CLS]", "[SEP]", "[SEP]")
    n_new = add_tokens(gpt, tok, names)
    ids = [tok.specials[name] for name in names]

    model = SpanModel(gpt, ids[-1])
    head = {name.split(".")[1]: tensor for name, tensor in read_tensors(find_folder(cfg.model), head=True)
            if name.startswith("qa_outputs.")}
    if head and not cfg.untrained:
        model.qa_outputs.load_state_dict(head)
    choose_weights(model, cfg, n_new)
    if isinstance(gpt.lm_head, torch.nn.Module):       # not used here, but saved with the model
        gpt.lm_head.requires_grad_(False)

    max_length = min(cfg.max_length, gpt.cfg.n_positions)
    front = tok.front if gpt.causal else ()            # an encoder's [CLS] is among the ids already
    return model, tok, SpanReader(tok, ids, max_length, cfg.max_question, cfg.stride, front)


def dev_scores(items, found, unanswerable):
    """Exact match and F1; if questions may have no answer, at the threshold that is best for each."""
    rows_N2 = np.array([squad2_scores(ranked[0][0] if ranked else "", item.answers)
                        for item, (_, ranked) in zip(items, found, strict=True)])
    scores = dict(zip(("dev_exact", "dev_f1"), rows_N2.mean(0).tolist(), strict=True)) | {"threshold": None}
    if unanswerable:
        silent, margins = [float(not item.answers) for item in items], [margin for margin, _ in found]
        scores["dev_exact"], scores["exact_threshold"] = best_threshold(margins, rows_N2[:, 0], silent)
        scores["dev_f1"], scores["threshold"] = best_threshold(margins, rows_N2[:, 1], silent)
    return scores


def records(items, found, threshold):
    """The records of predictions.jsonl. "answer" is the best candidate, or "" if the margin is above the threshold."""
    return [{"id": item.id, "group": item.group,
             "answer": ranked[0][0] if ranked and (threshold is None or margin <= threshold) else "",
             "margin": margin, "candidates": ranked} for item, (margin, ranked) in zip(items, found, strict=True)]


def predict(model, items, windows, cfg, world):
    """read_off the best spans of all windows, on every process."""
    def best_of(output):
        start_NS, end_NS = (scores_NS.cpu() for scores_NS in output)
        return [best_spans(*pair, cfg.max_answer, cfg.n_best) for pair in zip(start_NS, end_NS, strict=True)]

    found = finetuning.evaluated(model, windows, cfg.micro_batch_size, world, cfg.dtype, best_of)
    return read_off(items, windows, found)


def summary(report):
    """The lines to print."""
    scores = "  ".join(f"{name} {shown(value)}" for name, value in report.items()
                       if isinstance(value, dict) and "interval" in value)
    seeds = len(report["per_seed"])
    return f"{report['n']:,} test questions, {seeds} seed{'s' * (seeds > 1)}: {scores}"
