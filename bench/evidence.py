"""`make evidence`: the paper's claim on real text, with a small model, its untrained twin and a rival.

    python bench/evidence.py --abstracts abstracts.jsonl.gz --texts fulltext.jsonl.gz abstracts.jsonl.gz
    python bench/evidence.py --abstracts ... --texts ... --rival FOLDER     # also a pretrained encoder, such as MiniLM

One model is pretrained on the texts, without the documents of the tasks. It then goes through every task, beside its
twin, which has the same shape but random weights:

    sections    a sentence of a structured abstract goes in, the section it is from comes out, by the authors' own
                headings. Fine-tuned on the first 100, 300, 1,000 and 3,000 sentences: the learning curve
    pubmedqa    yes, no or maybe, from an abstract
    bioasq      yes or no, from snippets
    bioasq8b    a name or number, marked in a snippet

--questions is the folder of prepare/qa.py's files; a task whose files are not there is left out, and named.
This takes hours. Finished steps are not repeated, so the same command continues after an interruption. You should see
OUT/scores.json and OUT/curve.png; results/small.md has the settings, written before the first run, and the result.
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

PRETRAINING = """--model.n-positions 512 --model.n-embd 192 --model.n-layer 4 --model.n-head 3 --batch-size 8
                 --micro-batch-size 8 --steps 1600 --learning-rate 2e-3 --warmup-steps 100 --eval-every 200
                 --checkpoint-every 200 --keep-checkpoints 20"""

COMMON = "--warmup-ratio 0.1 --micro-batch-size 16 --seeds 0 1 2 "
CLASSIFY = COMMON + "--epochs 3 --learning-rate 3e-4 --weight-decay 0.01 --max-length 512"
EXTRACT = COMMON + "--epochs 2 --learning-rate 5e-4 --max-length 256"
RIVAL = COMMON + "--learning-rate 1e-4 --max-length 256 "
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Task:
    script: str
    files: dict[str, str]    # split -> file of --questions
    settings: str            # of the small model and its twin
    rival: str               # of the rival, which reads fewer epochs because it is larger


TASKS = {
    "pubmedqa": Task("finetune_qa.py", {split: f"pubmedqa_{split}.jsonl" for split in SPLITS}, CLASSIFY,
                     RIVAL + "--weight-decay 0.01 --epochs 3"),
    "bioasq": Task("finetune_qa.py", {split: f"bioasq_{split}.jsonl" for split in SPLITS}, CLASSIFY,
                   RIVAL + "--weight-decay 0.01 --epochs 2"),
    "bioasq8b": Task("finetune_answers.py", {split: f"bioasq8b_{split}.json" for split in ("train", "test")}, EXTRACT,
                     RIVAL + "--epochs 1"),
}


@dataclass(frozen=True)
class Evidence:
    abstracts: Path                      # structured abstracts, for the task `sections`
    texts: tuple[Path, ...]              # what the model reads; documents of the tasks are left out
    questions: Path = Path("data/qa")    # prepare/qa.py's files, and BioASQ's factoid questions in SQuAD's format
    out: Path = Path("out/evidence")
    model: str = ""                      # a pretrained folder to use instead of pretraining one
    rival: str = ""                      # the folder of a pretrained encoder


def main(cfg):
    tasks = {name: task for name, task in TASKS.items() if has_files(cfg.questions, name, task)}
    sections = cfg.out / "sections"
    run(sections / "sections_documents.jsonl", "prepare/qa.py", "sections", cfg.abstracts, sections)
    model = cfg.model or pretrain(cfg, sections, tasks)

    scores = {"sections": learning_curve(cfg, model)}
    for name, task in tasks.items():
        scores[name] = {
            "pretrained": fine_tune(cfg, name, "pretrained", model, task.settings),
            "twin": fine_tune(cfg, name, "twin", model, task.settings + " --untrained")}
        if cfg.rival:
            scores[name]["rival"] = fine_tune(cfg, name, "rival", cfg.rival, task.rival)

    write_json(cfg.out / "scores.json", scores)
    draw(scores["sections"], cfg.out / "curve.png")
    for point in scores["sections"]:
        low, high = point["interval"]
        print(f"{point['sentences']:>5} sentences  {point['model']:<10}  {point['accuracy']:.1%} "
              f"+- {point['deviation']:.1%}  [{low:.1%}, {high:.1%}]")
    print(f"the scores of every task are in {cfg.out}/scores.json")


def has_files(questions, name, task):
    """Whether every file of the task is there; if not, say which is missing."""
    missing = [questions / file for file in task.files.values() if not (questions / file).exists()]
    if missing:
        print(f"{name} is left out: {missing[0]} is not there")
    return not missing


def pretrain(cfg, sections, tasks):
    """Learn a vocabulary, encode the texts without the documents of the tasks, train. Returns the model's folder."""
    tests = [cfg.questions / file for task in tasks.values() for split, file in task.files.items()
             if split == "test" or task.script == "finetune_qa.py"]
    run(cfg.out / "tokenizer/tokenizer.json", "tokenizer.py", "train", "--inputs", *cfg.texts, "--vocab-size", "8192",
        "--out", cfg.out / "tokenizer")
    run(cfg.out / "data/meta.json", "prepare/pubmed.py", "--inputs", *cfg.texts, "--tokenizer", cfg.out / "tokenizer",
        "--exclude", sections / "sections_documents.jsonl", sections / "sections_test.jsonl", *tests,
        "--val-fraction", "0.01", "--out", cfg.out / "data")
    run(cfg.out / "small/model/config.json", "train.py", "laptop", "--data", cfg.out / "data", "--out",
        cfg.out / "small", *PRETRAINING.split())
    return cfg.out / "small/model"


def learning_curve(cfg, model):
    """The task `sections` with more and more training sentences: a list of points with their scores."""
    sections = cfg.out / "sections"
    points = []
    for sentences, epochs in CURVE.items():
        train = first_lines(sections / "sections_train.jsonl", sentences, cfg.out / f"train_{sentences}.jsonl")
        systems = {"pretrained": (model, f"--epochs {epochs}"), "twin": (model, f"--epochs {epochs} --untrained")}
        if cfg.rival and sentences == max(CURVE):
            systems["rival"] = (cfg.rival, RIVAL + "--epochs 2")

        for system, (folder, settings) in systems.items():
            out = cfg.out / f"sections_{sentences}_{system}"
            run(out / "report.json", "finetune_qa.py", "sections", "--model", folder, "--train", train,
                "--dev", sections / "sections_dev.jsonl", "--test", sections / "sections_test.jsonl", "--out", out,
                *settings.split())
            report = read_json(out / "report.json", "a report")
            points.append({"sentences": sentences, "model": system} | report)
    return points


def fine_tune(cfg, name, system, model, settings):
    """Fine-tune a model on a task, unless that is done. Returns its report."""
    task, out = TASKS[name], cfg.out / f"{name}_{system}"
    files = [word for split, file in task.files.items() for word in (f"--{split}", cfg.questions / file)]
    run(out / "report.json", task.script, name, "--model", model, *files, "--out", out, *settings.split())
    return read_json(out / "report.json", "a report")


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


def draw(points, path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for system, name, colour in (("pretrained", "pretrained", "#c33"), ("twin", "untrained twin", "#8ab"),
                                 ("rival", "rival", "#777")):
        of_system = [point for point in points if point["model"] == system]
        if of_system:
            x = [point["sentences"] for point in of_system]
            y = [100 * point["accuracy"] for point in of_system]
            errors = [[100 * abs(point["interval"][end] - point["accuracy"]) for point in of_system] for end in (0, 1)]
            axes.errorbar(x, y, yerr=errors, fmt="o-", capsize=4, color=colour, label=name)

    commonest = points[0]["commonest_answer"]
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
