"""`make demo`: the paper's method in miniature, with the commands that a reader would type.

Runs every step on a small invented world (prepare/demo.py): tokenizer, pretraining, sampling, fine-tuning. It ends with
a table: the paper's claim, the paper's number, and the number here. What it tests is pretraining. A twin of the same
shape that was never pretrained is fine-tuned on the same questions, and the test questions are about entities that no
training question names.

    python bench/demo.py             # -> out/demo/report.json, out/demo/demo.png; under 6 minutes on 2 cores
"""
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

from plumbing.common import ROOT, git_commit, read_json, say_next, speaking_to_the_user, write_json
from tokenizer import PAPER_TERMS, Tokenizer

DATA, OUT = Path("data/demo"), Path("out/demo")


def main():
    started = time.perf_counter()
    story("Write a small biomedical world and learn its vocabulary", "prepare/demo.py")
    story("Pretrain on its text", "train.py", "demo", "--restart")
    story("Sample", "sample.py", "--model", "out/demo/model", "--prompt", "Metoprolol is", "--num-samples", "2",
          "--max-new-tokens", "48")
    story("Fine-tune on questions about half of the entities, test on others", "finetune_qa.py", "demo", "--restart")
    story("Fine-tune its twin, which never read the text", "finetune_qa.py", "demo", "--untrained",
          "--out", "out/demo/untrained", "--restart")
    report = collect(OUT, DATA, time.perf_counter() - started)
    write_json(OUT / "report.json", report)
    draw(OUT, report)
    print(table(report))
    print(f"\nwrote {OUT}/report.json and {OUT}/demo.png after {report['seconds']:.0f} seconds")
    say_next("sample.py", "--model", OUT / "model")


def story(title, *command):
    """Print a title and the command, then run it. If it fails, exit with its code."""
    print(f"\n\033[1m{title}\033[0m\n$ python {shlex.join(command)}", flush=True)
    finished = subprocess.run([sys.executable, *command], cwd=ROOT)
    if finished.returncode:
        sys.exit(finished.returncode)


def collect(out, data, seconds):
    """The numbers of report.json, read from the files that the commands wrote."""
    pretrained, untrained = (read_json(out / name / "report.json", "a report") for name in ("qa", "untrained"))
    meta, tok = read_json(data / "meta.json", "what prepare/demo.py wrote"), Tokenizer.load(data)
    log = [json.loads(line) for line in open(out / "log.jsonl", encoding="utf-8")]
    return {
        "pretrained_accuracy": pretrained["accuracy"], "scratch_accuracy": untrained["accuracy"],
        "chance": pretrained["chance"], "commonest_answer": pretrained["commonest_answer"],
        "n": pretrained["n"], "seeds": [run["seed"] for run in pretrained["per_seed"]],
        "pretrained": {name: pretrained[name] for name in ("deviation", "interval", "macro_f1", "per_seed", "seconds")},
        "scratch": {name: untrained[name] for name in ("deviation", "interval", "macro_f1", "per_seed", "seconds")},
        "first_loss": log[0]["loss"], "loss": log[-1]["loss"], "val_loss": log[-1]["val_loss"],
        "bits_per_byte": log[-1]["bits_per_byte"], "steps": len(log), "tokens": meta["train"]["tokens"],
        "vocab_size": meta["vocab_size"],
        "single_token_terms": [t for t in PAPER_TERMS if 1 in (len(tok.encode(t)), len(tok.encode(" " + t)))],
        "seconds": seconds, "commit": git_commit()}


def table(r):
    """The text of the table: claim, the paper's number, this miniature's number."""
    def share(name):
        return f"{r[name + '_accuracy']:.1%} +- {r[name]['deviation']:.1%}"

    terms = len(PAPER_TERMS)
    rows = [
        ("what the paper claims", "paper", "this miniature"),
        ("biomedical terms are single tokens", f"{terms} of {terms}; GPT-2: 0",
         f"{len(r['single_token_terms'])} of {terms}"),
        ("the loss falls during the whole run", "300 B tokens", f"{r['first_loss']:.2f} -> {r['val_loss']:.2f} nats"),
        ("fine-tuned after pretraining on the domain", "MedQA 50.3 %", share("pretrained")),
        ("the same fine-tuning without that pretraining", "GPT-Neo 37.7 % *", share("scratch")),
        ("chance; always the most frequent answer", "25.0 %; -", f"{r['chance']:.1%}; {r['commonest_answer']:.1%}")]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    low, high = r["pretrained"]["interval"]
    seeds = ", ".join(map(str, r["seeds"]))
    return "\n" + "\n".join(lines) + f"""

{r['n']} test questions of 4 options, about entities that no training question names. Mean and standard deviation over
fine-tuning seeds {seeds}; 95 % interval of the pretrained model's mean: {low:.1%} to {high:.1%}.
* GPT-Neo has the paper's size and was pretrained on general text; the twin here was not pretrained at all."""


def draw(out, r):
    """demo.png: the loss curve of pretraining, and the accuracies with and without it."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    log = [json.loads(line) for line in open(out / "log.jsonl", encoding="utf-8")]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=(3, 2), layout="constrained")
    left.plot([line["step"] for line in log], [line["loss"] for line in log], lw=1, color="#8ab", label="training")
    val = [line for line in log if "val_loss" in line]
    left.plot([line["step"] for line in val], [line["val_loss"] for line in val], "o-", c="#c33", label="validation")
    left.set(xlabel="step", ylabel="loss, nats per token", title="Pretraining on the text", ylim=(0, None))
    left.legend(frameon=False)
    for x, (name, colour) in enumerate((("pretrained", "#c33"), ("scratch", "#8ab"))):
        accuracy = 100 * r[f"{name}_accuracy"]
        low, high = (100 * end for end in r[name]["interval"])
        right.bar(x, accuracy, color=colour, width=0.6, yerr=[[accuracy - low], [high - accuracy]], capsize=4)
        right.text(x, 3, f"{accuracy:.1f} %", ha="center", color="white", weight="bold")
    right.axhline(100 * r["chance"], color="#444", ls=":", lw=1)
    right.text(1.45, 100 * r["chance"] + 1, "chance", ha="right")
    right.set(xticks=(0, 1), xticklabels=("pretrained", "untrained twin"), ylim=(0, 100), ylabel="accuracy, %",
              title="Questions on unseen entities")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "demo.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    with speaking_to_the_user():
        main()
