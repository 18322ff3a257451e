"""Fine-tuning on extraction: find the answer as a span of the text. finetune_answers.py runs it; this is no script.

Teaches that a third kind of head needs little code: two numbers per token instead of one per option, and the same
training loop. And that the test must choose nothing: the step that is tested, and the threshold above which the model
gives no answer, are chosen on dev.
Not here: the loop (training/finetuning.py), windows and spans (answers/spans.py), the scores (answers/scores.py,
answers/report.py), which weights learn (training/trainable.py). A GPT and an encoder (baselines/) use the same code.

    python finetune_answers.py span --model out/laptop/model --train train-v2.0.json --test dev-v2.0.json
    python finetune_answers.py bioasq8b --model out/span/model --seeds 0 1 2       # BioASQ after SQuAD
    python finetune_answers.py span --untrained --train F --dev F --test F         # what did pretraining buy?

OUT/report.json has the scores, OUT/predictions.jsonl every answer with its rivals, OUT/model the model that was best on
dev: transformers' BertForQuestionAnswering (Electra..., Albert..., GPT2...) reads it, and this script goes on from it.
"""
import shutil
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from answers.examples import splits_of, unasked
from answers.report import shown, span_scores
from answers.scores import best_threshold, squad2_scores
from answers.spans import SPAN, SpanModel, SpanReader, best_spans, read_off, read_squad, span_loss
from baselines import load
from plumbing.common import UserError, check_ranges, free, git_commit, write_json, write_json_lines
from plumbing.huggingface import find_folder, read_tensors
from plumbing.runtime import matrix_dtype
from training.finetuning import (
    RANGES,
    Finetuning,
    fine_tune,
    keep,
    outputs_by_length,
    prepare_out,
    run_settings,
    save_model,
)
from training.parallel import device_mesh, join_world, shard_model
from training.trainable import check_weights, choose_weights


@dataclass(frozen=True)
class FinetuneSpan(Finetuning):
    """Fine-tune on questions whose answers are spans of a context, and report EM and F1."""
    train: str = "data/qa/squad_train.json"  # SQuAD's shape, 1.1 or 2.0
    dev: str = ""                            # chooses step and threshold; "" is a tenth of train's questions
    test: str = "data/qa/squad_test.json"
    out: str = free("out/span")              # model, report.json, predictions.jsonl, log.jsonl
    untrained: bool = False                  # begin from random weights
    seeds: tuple[int, ...] = free((0,))      # one fine-tuning each
    epochs: float = 2
    batch_size: int = 32                     # windows, as every size here
    micro_batch_size: int = free(8)
    learning_rate: float = 3e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    max_length: int = 512                    # tokens of question and context; a longer context is read in windows
    stride: int = 128                        # tokens from one window to the next
    max_question: int = 64                   # tokens; a longer question loses its end
    max_answer: int = 30                     # tokens
    n_best: int = 20                         # answers that are kept of a window
    select_every: int = 0                    # steps between two looks at dev; 0 is after each epoch


SPAN_RANGES = {"select_every": (0, None), "max_length": (1, None), "stride": (1, None), "max_question": (1, None),
               "max_answer": (1, None), "n_best": (1, None)}


def finetune_spans(cfg):
    """Fine-tune on the processes that torchrun started, and return the report."""
    check(cfg)
    with join_world(cfg.parallel) as world:
        return finetune_all(cfg, world)


def finetune_all(cfg, world):
    """Fine-tune once for each seed, and write the report and the model that was best on dev."""
    cfg = replace(cfg, dtype=matrix_dtype(cfg.dtype, world.device))
    check_weights(cfg)
    files, counts = read_files(cfg, world)
    with prepare_out(cfg, world, "seeds"):
        out, started, log, runs, best = Path(cfg.out), time.perf_counter(), [], {}, {}
        for seed in cfg.seeds:
            best[seed], lines, windows = finetune(cfg, world, seed, files)
            runs[seed] = best[seed].pop("records")
            log += [{"seed": seed} | line for line in lines]
        if world.rank:
            return None
        silence = may_be_silent(files)
        report = {"n": len(files["test"])} | span_scores(files["test"], silence, *runs.values()) | {
            "per_seed": [{"seed": seed} | best[seed] | span_scores(files["test"], silence, run)
                         for seed, run in runs.items()],
            "files": counts, "windows": windows, "seconds": time.perf_counter() - started, "settings": asdict(cfg),
            "commit": git_commit()}
        write_json_lines(out / "log.jsonl", log)
        write_json_lines(out / "predictions.jsonl", [{"seed": s} | record for s, run in runs.items() for record in run])
        write_json(out / "report.json", report)
        chosen = max(best, key=lambda seed: best[seed]["dev_f1"])
        keep(out / f"seeds/{chosen}/best", cfg, cfg.test, summary(report))
        shutil.rmtree(out / "seeds")
        print(f"{summary(report)}\nWrote {out}/report.json and {out}/model (seed {chosen})")
        return report


def read_files(cfg, world):
    """({"train", "dev", "test"}: items, what was found in each file). What the test asks or reads is taken out of dev,
    and what either does out of training."""
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
            print(f"{name}: {found['items']:,} questions of a context, {found['left_out']:,} more left out, since a "
                  f"later split has their question or context; of {found['answers']:,} answers {found['moved']:,} do "
                  f"not found at the offset in the file, {found['absent']:,} not in their context at all")
    if lacking := [name for name, items in files.items() if not items]:
        raise UserError(f"no question is left for {lacking[0]}; give larger files, or --dev")
    return files, counts


def may_be_silent(files):
    return any(not item.answers for name in ("train", "dev") for item in files[name])


def finetune(cfg, world, seed, files):
    """One fine-tuning; OUT/seeds/SEED/best is then the best model on dev. Returns what that says of the test, the log,
    and how many windows there are and what their reader counted."""
    torch.manual_seed(seed)
    model, tok, reader = build(cfg, world, seed)
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

    folder = Path(cfg.out) / "seeds" / str(seed)
    given = [name for name in ("train", "dev", "test") if getattr(cfg, name)]
    log, best = fine_tune(cfg, world, seed, folder, model, len(windows["train"]), loss_of,
                          partial(evaluate, model, tok, files, windows, cfg, world, folder / "best"),
                          run_settings(cfg, given), cfg.select_every)
    world.wait()                                                   # for the folder, which rank 0 writes
    return best, log, counts


def build(cfg, world, seed):
    """The model with its head, which a folder may bring along, and its new tokens; its tokenizer; the reader."""
    device = torch.device("cpu") if cfg.parallel == "fsdp" else world.device       # fsdp moves block by block
    gpt, tok = load(cfg.model, getattr(torch, cfg.weights), device, allow_encoders=True)
    if cfg.untrained:
        gpt.init_weights(seed)
    names = SPAN if gpt.causal else ("[CLS]", "[SEP]", "[SEP]")
    new = [name for name in dict.fromkeys(names) if name not in tok.specials]
    first = gpt.add_tokens(len(new)) if new else 0
    ids = [tok.add_special(name, first + new.index(name) if name in new else None) for name in names]
    model = SpanModel(gpt, ids[-1]).to(device)
    head = {name.split(".")[1]: tensor for name, tensor in read_tensors(find_folder(cfg.model), head=True)
            if name.startswith("qa_outputs.")}
    if head and not cfg.untrained:
        model.qa_outputs.load_state_dict(head)
    choose_weights(model, cfg, len(new))
    if isinstance(gpt.lm_head, torch.nn.Module):       # not used here, but a family that has one keeps it
        gpt.lm_head.requires_grad_(False)
    if cfg.parallel == "fsdp":
        shard_model(model, device_mesh(world, 0), cfg.dtype)
    max_length = min(cfg.max_length, gpt.cfg.n_positions)
    front = tok.front if gpt.causal else ()            # an encoder's [CLS] is among the ids
    return model, tok, SpanReader(tok, ids, max_length, cfg.max_question, cfg.stride, front)


def evaluate(model, tok, files, windows, cfg, world, folder, step, best):
    """F1 on dev; if it is the best so far, the model is saved and the test is predicted with it."""
    found = {"dev": read_off(files["dev"], windows["dev"], predict(model, windows["dev"], cfg, world))}
    rows_N2 = np.array([squad2_scores(best[0][0] if best else "", item.answers)
                        for item, (_, best) in zip(files["dev"], found["dev"], strict=True)])
    scores = dict(zip(("dev_exact", "dev_f1"), rows_N2.mean(0).tolist(), strict=True)) | {"threshold": None}
    if may_be_silent(files):
        silent, margins = [float(not item.answers) for item in files["dev"]], [margin for margin, _ in found["dev"]]
        scores["dev_exact"], scores["exact_threshold"] = best_threshold(margins, rows_N2[:, 0], silent)
        scores["dev_f1"], scores["threshold"] = best_threshold(margins, rows_N2[:, 1], silent)
    if not best or scores["dev_f1"] > best["dev_f1"]:
        test = read_off(files["test"], windows["test"], predict(model, windows["test"], cfg, world))
        best = scores | {"step": step, "records": records(files["test"], test, scores["threshold"])}
        save_model(model, tok, folder, cfg, world)
    return scores, best


def records(items, found, threshold):
    """The lines of predictions.jsonl: "answer" is the best candidate, or "" where the margin is above the threshold."""
    return [{"id": item.id, "group": item.group,
             "answer": best[0][0] if best and (threshold is None or margin <= threshold) else "",
             "margin": margin, "candidates": best} for item, (margin, best) in zip(items, found, strict=True)]


def predict(model, windows, cfg, world):
    """spans.best_spans of every window, on every process."""
    found = []
    for part, (start_NS, end_NS) in outputs_by_length(model, windows, cfg.micro_batch_size, world, cfg.dtype):
        found += [(int(i), best_spans(start_S, end_S, cfg.max_answer, cfg.n_best))
                  for i, start_S, end_S in zip(part, start_NS.cpu(), end_NS.cpu(), strict=True)]
    return [best for _, best in sorted(world.gather(found), key=lambda one: one[0])]


def summary(report):
    """The lines to print."""
    scores = "  ".join(f"{name} {shown(value)}" for name, value in report.items()
                       if isinstance(value, dict) and "interval" in value)
    return f"{report['n']:,} test questions of a context, {len(report['per_seed'])} seeds: {scores}"


def check(cfg):
    check_ranges(cfg, RANGES | SPAN_RANGES)
    if not cfg.epochs > 0:
        raise UserError(f"--epochs is {cfg.epochs}; it must be more than 0")
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UserError("--seeds must name at least one, and none twice")
