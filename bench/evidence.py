"""`make evidence`: the paper's claim on real text, with a small model and its untrained twin.

    python bench/evidence.py --abstracts abstracts.jsonl.gz --texts fulltext.jsonl.gz abstracts.jsonl.gz

The task `sections`: a sentence of a structured abstract goes in, the section it is from comes out (background,
objective, methods, results, conclusions), by the authors' own headings. Its documents are kept out of pretraining.
The learning curve fine-tunes on the first 100, 300, 1,000 and 3,000 training sentences, with three seeds each.
This takes hours. Finished steps are not repeated, so the same command continues after an interruption. You should see
OUT/curve.json and OUT/curve.png; results/sections.md has the settings and the result.
"""
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's own modules, from any directory

from plumbing.common import ROOT, parse_args, read_json, speaking_to_the_user, write_json  # noqa: E402

# Sentences to train on -> epochs. Fewer sentences are read more often; the best epoch on dev is the one that is tested.
CURVE = {100: 20, 300: 10, 1000: 5, 3000: 3}
SCORES = ("accuracy", "deviation", "interval", "macro_f1", "n", "per_seed")
PRETRAINING = ("--steps", "1600", "--learning-rate", "2e-3", "--warmup-steps", "100", "--eval-every", "200",
               "--checkpoint-every", "200")


@dataclass(frozen=True)
class Evidence:
    abstracts: Path                  # structured abstracts, for the task
    texts: tuple[Path, ...]          # what the model reads; documents of the task are dropped
    out: Path = Path("out/evidence")
    model: str = ""                  # a pretrained folder to use instead of pretraining one


def main(cfg):
    out, model = cfg.out, cfg.model or str(cfg.out / "small/model")
    sections = out / "sections"

    run(sections / "sections_documents.jsonl", "prepare/qa.py", "sections", cfg.abstracts, sections)
    if not cfg.model:
        run(out / "tokenizer/tokenizer.json", "tokenizer.py", "train", "--inputs", *cfg.texts, "--vocab-size", "8192",
            "--out", out / "tokenizer")
        run(out / "data/meta.json", "prepare/pubmed.py", "--inputs", *cfg.texts, "--tokenizer", out / "tokenizer",
            "--exclude", sections / "sections_documents.jsonl", sections / "sections_test.jsonl",
            "--val-fraction", "0.01", "--out", out / "data")
        run(Path(model) / "config.json", "train.py", "laptop", "--data", out / "data", "--out", out / "small",
            *PRETRAINING)

    curve = []
    for sentences, epochs in CURVE.items():
        train = first_lines(sections / "sections_train.jsonl", sentences, out / f"train_{sentences}.jsonl")
        for twin in (False, True):
            folder = out / f"{'twin' if twin else 'pretrained'}_{sentences}"
            run(folder / "report.json", "finetune_qa.py", "sections", "--model", model, "--train", train,
                "--dev", sections / "sections_dev.jsonl", "--test", sections / "sections_test.jsonl",
                "--epochs", str(epochs), "--out", folder, *(["--untrained"] if twin else []))
            report = read_json(folder / "report.json", "a report")
            point = {"sentences": sentences, "untrained": twin}
            curve.append(point | {name: report[name] for name in SCORES})

    write_json(out / "curve.json", curve)
    draw(curve, report["commonest_answer"], out / "curve.png")
    for point in curve:
        low, high = point["interval"]
        print(f"{point['sentences']:>5} sentences  {'twin      ' if point['untrained'] else 'pretrained'}  "
              f"{point['accuracy']:.1%} +- {point['deviation']:.1%}  [{low:.1%}, {high:.1%}]")


def run(result, *command):
    """Run a command, shown as one would type it, unless its result exists."""
    if result.exists():
        return
    words = [str(word) for word in command]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    finished = subprocess.run([sys.executable, ROOT / words[0], *words[1:]])
    if finished.returncode:
        sys.exit(finished.returncode)


def first_lines(source, n, target):
    with open(source, encoding="utf-8") as file:
        target.write_text("".join(islice(file, n)), encoding="utf-8")
    return target


def draw(curve, commonest, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for twin, name, colour in ((False, "pretrained", "#c33"), (True, "untrained twin", "#8ab")):
        points = [point for point in curve if point["untrained"] == twin]
        x = [point["sentences"] for point in points]
        y = [100 * point["accuracy"] for point in points]
        low, high = zip(*([100 * end for end in point["interval"]] for point in points), strict=True)
        errors = [[a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.errorbar(x, y, yerr=errors, fmt="o-", capsize=4, color=colour, label=name)

    axes.axhline(100 * commonest, color="#444", ls=":", lw=1, label="always the commonest answer")
    axes.set(xscale="log", xlabel="training sentences", ylabel="accuracy, %", ylim=(0, 100), xticks=list(CURVE),
             xticklabels=[f"{n:,}" for n in CURVE], title="Which section is this sentence from?")
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Evidence))
