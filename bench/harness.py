"""Compare finetune_qa.py zeroshot with EleutherAI's lm-evaluation-harness, question by question.

    pip install lm_eval==0.4.13 accelerate           # not in requirements.txt
    python bench/harness.py --model FOLDER --questions data/qa/medqa_test.jsonl data/qa/pubmedqa_test.jsonl

    lm_eval --model hf --model_args pretrained=FOLDER,dtype=float32 --include_path bench/harness \\
        --tasks local_medqa_4options_letters         # the harness alone, on data/qa/medqa_test.jsonl

Both read the same Hugging Face folder and the same question files, in both protocols: the options' texts and their
letters. You should see a table with the number of equal choices, which must be all, and the largest difference between
two scores of the same option. The smallest margin is that between the two best options of a question: a choice could
differ only where the margin is below the difference. Questions longer than the model's positions are left out.
Not here: the score itself (questions/zero_shot.py), the tasks (bench/harness/*.yaml).
"""
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import numpy as np
import torch
import transformers
import yaml

from baselines import load_tokenizer
from plumbing.common import ROOT, UserError, git_commit, parse_args, read_json, read_json_lines, speaking_to_the_user
from questions.format import read_questions
from questions.heads import Reader
from questions.zero_shot import LENGTHS, ZeroShot, lettered, zero_shot

PROTOCOLS = {"options": "_local", "letters": "_local_letters"}                  # and their tasks in bench/harness/
METRICS = {"raw": "acc", "per_character": "acc_norm"}                           # our names and the harness's


@dataclass(frozen=True)
class Harness:
    """Compare zero-shot answers with lm-evaluation-harness."""
    model: str                          # a Hugging Face folder
    questions: tuple[str, ...]          # files of prepare/qa.py
    out: Path | None = None             # also write the table to this file
    batch_size: int = 16                # questions at once for ours, options at once for the harness


def main(cfg):
    """Print the table; returns whether every choice is the same."""
    try:
        import lm_eval
    except ImportError as error:
        raise UserError(f"lm_eval cannot be imported ({error}): pip install lm_eval==0.4.13 accelerate") from error
    head = (f"commit {git_commit()}, lm_eval {lm_eval.__version__}, transformers {transformers.__version__}, torch "
            f"{torch.__version__}, fp32\n\n| file | protocol | score | questions | equal choices | ours | harness | "
            "largest difference, nats | smallest margin |\n|---|---|---|---:|---:|---:|---:|---:|---:|")
    lines, equal = [head], True
    for path in cfg.questions:
        for protocol in PROTOCOLS:
            for row in compare(cfg, path, protocol):
                equal &= row["equal"] == row["n"]
                lines.append(f"| {Path(path).name} | {protocol} | {row['score']} | {row['n']} of {row['all']} | "
                             f"{row['equal']} | {row['ours']:.4f} | {row['harness']:.4f} | {row['difference']:.1e} | "
                             f"{row['margin']:.1e} |")
    text = "\n".join(lines) + "\n"
    print("\n" + text)
    if cfg.out:
        cfg.out.write_text(text, encoding="utf-8")
    return equal


def compare(cfg, path, protocol):
    """A row for each score: how many choices agree, both accuracies, how far the log-probabilities are apart."""
    questions = read_questions(path)
    asked = [lettered(q) for q in questions] if protocol == "letters" else questions
    positions = read_json(Path(cfg.model) / "config.json", "a model's config")["n_positions"]
    fit = fitting(cfg.model, asked, positions)
    theirs, results = scores_of_harness(cfg, path, protocol)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        report = zero_shot(ZeroShot(model=cfg.model, test=path, out=folder, protocol=protocol, dtype="float32",
                                    max_length=positions, batch_size=cfg.batch_size))
        for name in METRICS if protocol == "options" else ["raw"]:
            records = read_json_lines(Path(folder) / f"predictions_{name}.jsonl", "prediction", "", dict)
            row = {"score": name, "n": len(fit), "all": len(questions), "equal": 0, "difference": 0.0,
                   "margin": float("inf"), "ours": report[name]["accuracy"],
                   "harness": results[f"{METRICS[name]},none"]}
            for i in fit:
                divided = np.array(theirs[i]) / [LENGTHS[name](option.strip()) for option in asked[i].options]
                choices = int(divided.argmax()), records[i]["prediction"]
                row["equal"] += choices[0] == choices[1]
                if choices[0] != choices[1]:
                    print(f"{path}, line {i + 1}, {name}: the harness chose option {choices[0]}, ours {choices[1]}; "
                          f"log-probabilities {theirs[i]}")
                row["difference"] = max(row["difference"], np.abs(divided - records[i]["scores"]).max())
                second, first = np.sort(divided)[-2:]
                row["margin"] = min(row["margin"], first - second)
            rows.append(row)
    return rows


def fitting(folder, asked, positions):
    """The indices of the questions that the model can read whole."""
    tok = load_tokenizer(Path(folder))
    reader, found = Reader("likelihood", tok, positions), []
    for i, q in enumerate(asked):
        before = reader.cut
        reader(q)
        if reader.cut == before:
            found.append(i)
    return found


def scores_of_harness(cfg, path, protocol):
    """(the log-probabilities of every question's options, in the file's order; the harness's own scores)."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    task = {}
    for name in ("_local", PROTOCOLS[protocol]):
        task |= yaml.safe_load((ROOT / "bench/harness" / name).read_text(encoding="utf-8"))
    task.pop("include", None)
    task |= {"task": "compared", "dataset_kwargs": {"data_files": {"test": str(Path(path).resolve())}}}
    model = HFLM(pretrained=str(cfg.model), dtype="float32", batch_size=cfg.batch_size,
                 device="cuda" if torch.cuda.is_available() else "cpu")
    results = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    samples = sorted(results["samples"]["compared"], key=lambda sample: sample["doc_id"])
    scores = {sample["doc_id"]: [float(response[0]) for response in sample["filtered_resps"]] for sample in samples}
    return list(scores.values()), results["results"]["compared"]


if __name__ == "__main__":
    with speaking_to_the_user():
        sys.exit(0 if main(parse_args(Harness)) else 1)
