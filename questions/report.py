"""From predictions to a report, for our own runs and for files of predictions from other programs.

Teaches what an accuracy needs before one can trust it: its interval, its deviation over seeds, F1, calibration, what
guessing reaches, overlap with the training set, and whether a difference from another model could be chance.
Not here: the formulas (metrics.py).

A file of predictions has one JSON object per line: {"id", "prediction"}, an index or the text of an option. Optional
are "scores" (one number per option) and "seed" (for several runs).
"""
import re
import zlib
from pathlib import Path

import numpy as np

from plumbing.common import UserError, read_json, read_json_lines
from plumbing.huggingface import find_folder
from questions import metrics


def predictions_of(seed, questions, scores):
    """The records of predictions.jsonl. scores: one number per option of each question."""
    return [{"seed": seed, "id": q.id, "scores": s, "prediction": int(np.argmax(s)), "answer": q.answer}
            for q, s in zip(questions, scores, strict=True)]


def read_predictions(path, questions):
    """The records of a file. Each seed must answer each question once; UserError names the line that is wrong."""
    by_id, seen = {q.id: q for q in questions}, set()

    def checked(record):
        id_, seed, scores = str(record["id"]), record.get("seed", 0), record.get("scores")
        if id_ not in by_id:
            raise ValueError(f"{id_} is no question of the file")
        options, answer = by_id[id_].options, by_id[id_].answer
        if scores is not None and (len(scores) != len(options) or not np.isfinite(np.array(scores, float)).all()):
            raise ValueError(f"scores must be {len(options)} numbers, one per option")
        chosen = record["prediction"] if "prediction" in record or scores is None else int(np.argmax(scores))
        if isinstance(chosen, str):
            chosen = [option.strip().lower() for option in options].index(chosen.strip().lower())
        if type(chosen) is not int or not 0 <= chosen < len(options):
            raise ValueError(f"prediction {chosen!r} is none of the {len(options)} options")
        if (seed, id_) in seen:
            raise ValueError(f"answers {id_} a second time")
        seen.add((seed, id_))
        return {"seed": seed, "id": id_, "scores": scores, "prediction": chosen, "answer": answer}

    records = read_json_lines(path, "prediction", "finetune_qa.py writes predictions.jsonl", checked)
    for seed in {record["seed"] for record in records}:
        if lacking := {q.id for q in questions} - {id_ for of, id_ in seen if of == seed}:
            raise UserError(f"{path}: {len(lacking):,} of {len(questions):,} questions have no prediction, such as "
                            f"{min(lacking)}; all must have one")
    return records


def assess(questions, records, train=None, compare=""):
    """The scores for report.json. records: of one or more seeds, in any order. Training questions add what guessing
    reaches and the overlap; `compare`, a file of predictions for the same questions, adds a paired test."""
    runs = {}
    for record in records:
        runs.setdefault(record["seed"], {})[record["id"]] = record
    per_seed = [{"seed": seed} | of_run(questions, [run[q.id] for q in questions]) for seed, run in runs.items()]
    mean, deviation = metrics.mean_and_deviation([run["accuracy"] for run in per_seed])
    report = {"accuracy": mean, "deviation": deviation, "interval": metrics.wilson_interval(mean, len(questions))}
    for name in ("macro_f1", "ece", "brier"):
        if all(name in run for run in per_seed):
            report[name] = metrics.mean_and_deviation([run[name] for run in per_seed])[0]
    chance, commonest = metrics.guessing_accuracy(train or [], questions)
    report |= {"n": len(questions), "per_seed": per_seed, "chance": chance}
    if train is not None:
        report |= {"commonest_answer": commonest, "overlap": metrics.overlap(train, questions)}
    if parts := by_name(questions, records):
        report["parts"] = parts
    if compare:
        theirs = read_predictions(compare, questions)
        ours, others = (share_right(questions, them) for them in (records, theirs))
        report["compare"] = {"file": str(compare), "accuracy": float(np.mean(others)),
                             "difference": float(np.mean(ours) - np.mean(others)),
                             "p": metrics.paired_test(ours, others)}
    return report


def of_run(questions, records):
    """The scores of one seed. The classes of F1 are the options' names if all questions share them, else positions."""
    shared = len({tuple(sorted(q.options)) for q in questions}) == 1
    predicted, answers = ([q.options[r[key]] if shared else r[key] for q, r in zip(questions, records, strict=True)]
                          for key in ("prediction", "answer"))
    right = metrics.accuracy(predicted, answers)
    run = {"accuracy": right, "n": len(questions), "interval": metrics.wilson_interval(right, len(questions)),
           "macro_f1": metrics.macro_f1(predicted, answers)}
    scores, places = [r["scores"] for r in records], [q.answer for q in questions]
    if None not in scores:
        run |= {"ece": metrics.calibration_error(scores, places), "brier": metrics.brier_score(scores, places)}
    return run


def by_name(questions, records):
    """The accuracy in each part of a test whose ids are NAME-NUMBER, such as MMLU's subjects; {} for other ids."""
    names = [match[1] if (match := re.fullmatch(r"(.+)-\d+", q.id)) else "" for q in questions]
    if "" in names or not 2 <= len(set(names)) <= 20:
        return {}
    parts, right = {}, share_right(questions, records)
    for part in sorted(set(names)):
        of_part = [r for name, r in zip(names, right, strict=True) if name == part]
        mean, n = sum(of_part) / len(of_part), len(of_part)
        parts[part] = {"accuracy": mean, "interval": metrics.wilson_interval(mean, n), "n": n}
    return parts


def share_right(questions, records):
    """For each question the share of right answers over the seeds."""
    right = {q.id: [] for q in questions}
    for record in records:
        right[record["id"]].append(record["prediction"] == record["answer"])
    return [sum(answers) / len(answers) for answers in right.values()]


def left_out_of_pretraining(model, test):
    """Whether the model's pretraining data left out this test file: "yes", "no" or "unknown". MODEL/pretraining.json,
    from train.py, has {"excluded": [{"file", "crc32" (of its bytes), "dropped"}, ...]}."""
    path = find_folder(model) / "pretraining.json"
    if not path.is_file():
        return "unknown"
    excluded = read_json(path, "what pretraining left out").get("excluded", [])
    same = zlib.crc32(Path(test).read_bytes()) in [record.get("crc32") for record in excluded]
    return "yes" if same else "no"


def summary(report):
    """The lines to print."""
    low, high = report["interval"]
    seeds = len(report["per_seed"])
    over = f" +- {report['deviation']:.1%} over {seeds} seeds" if seeds > 1 else " (1 seed)"
    lines = [f"accuracy {report['accuracy']:.1%}{over}, "
             f"95 % interval {low:.1%} to {high:.1%} on {report['n']} questions; macro-F1 {report['macro_f1']:.3f}",
             f"chance {report['chance']:.1%}"]
    if "commonest_answer" in report:
        lines[1] += (f", commonest answer {report['commonest_answer']:.1%}; of the test, {report['overlap']['exact']} "
                     f"questions are in the training set and {report['overlap']['near']} nearly")
    if "ece" in report:
        lines[1] += f"; calibration error {report['ece']:.3f}, Brier {report['brier']:.3f}"
    if "left_out_of_pretraining" in report:
        lines[1] += f"; left out of pretraining: {report['left_out_of_pretraining']}"
    for name, part in report.get("parts", {}).items():
        lines.append(f"  {name}: {part['accuracy']:.1%} of {part['n']}")
    if "compare" in report:
        other = report["compare"]
        lines.append(f"{other['difference']:+.1%} against {other['file']}, p = {other['p']:.4f} (paired)")
    return "\n".join(lines)
