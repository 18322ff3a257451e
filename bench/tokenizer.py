"""Compare tokenizer.py with other tokenizers on one core: training, encoding, and bytes per token.

    python bench/tokenizer.py --text FOLDER                  # writes results/tokenizer.{txt,json,png}
    python bench/tokenizer.py --text FOLDER --gpt2 FOLDER    # also GPT-2's vocabulary (vocab.json, merges.txt)

The folder of --text contains abstracts.jsonl.gz and fulltext.jsonl.gz with one {"text": ...} per line: abstracts from
PubMed and articles from PMC. The process is pinned to one core and every library to one thread. A time is the median
CPU time of --repeats runs, in which the contestants take turns. A ratio is the ratio of the medians; the smallest and
largest ratio of a single turn follow in parentheses. rustbpe (pip install rustbpe==0.1.0) is measured if installed.

You should see a table of the required figures, the stretch goals and the measured figures.
"""
import os

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}   # before imports

import importlib.util
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from plumbing.common import ROOT, UserError, git_commit, parse_args, speaking_to_the_user, write_json
from plumbing.documents import documents
from tokenizer import PAPER_TERMS, PATTERN, Tokenizer, count_pieces, learn_merges


@dataclass(frozen=True)
class Bench:
    text: Path                          # folder with abstracts.jsonl.gz and fulltext.jsonl.gz
    gpt2: Path | None = None            # folder with GPT-2's vocab.json and merges.txt
    out: Path = ROOT / "results"        # folder for tokenizer.txt, tokenizer.json and tokenizer.png
    repeats: int = 3                    # turns; times are medians over them
    vocab_size: int = 28896             # BioMedLM's


class Report:
    """Prints lines and keeps them, and the numbers, for the files in results/."""

    def __init__(self):
        self.lines, self.values, self.rows = [], {}, []

    def say(self, line=""):
        print(line, flush=True)
        self.lines.append(line)

    def require(self, what, required, goal, value, unit="x"):
        """Add a row to the final table. `required` and `goal` are lower bounds, or upper bounds if written "< 5"."""
        bound = str(required or goal)
        ok = value < float(bound.strip("< ")) if bound.startswith("<") else value >= float(bound)
        self.rows.append((what, f"{required}{unit}" if required else "", f"{goal}{unit}" if goal else "",
                          f"{value:.2f}{unit}", "yes" if ok else "NO"))

    def table(self):
        self.say(f"| {'':58} | {'required':>10} | {'stretch':>9} | {'measured':>10} | met |")
        self.say(f"|{'-' * 60}|{'-' * 11}:|{'-' * 10}:|{'-' * 11}:|-----|")
        for what, required, goal, value, ok in self.rows:
            self.say(f"| {what:58} | {required:>10} | {goal:>9} | {value:>10} | {ok:3} |")


def cpu(function):
    """(CPU seconds of this process, the function's result)."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def take_turns(contestants, repeats):
    """{name: [CPU seconds] * repeats}. Taking turns spreads a shared machine's noise over all contestants."""
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, function in contestants.items():
            seconds[name].append(cpu(function)[0])
    return seconds


def show(report, title, seconds, megabytes, base):
    report.say(f"{title} ({megabytes:.1f} MB)")
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        ratios = [b / t for b, t in zip(seconds[base], times, strict=True)]
        report.say(f"  {name:34} {middle[name]:7.2f} s  {megabytes / middle[name]:6.1f} MB/s   "
                   f"{middle[base] / middle[name]:5.2f}x {base} ({min(ratios):.2f} to {max(ratios):.2f})")
    report.values[title] = {"megabytes": megabytes, "cpu_seconds": seconds}
    report.say()
    return middle


# ---- the contestants ----


def train_hugging_face(texts, vocab_size):
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return peer


def train_rustbpe(texts, vocab_size):
    import rustbpe
    rustbpe.Tokenizer().train_from_iterator(iter(texts), vocab_size, pattern=PATTERN)


def all_of(encode, texts):
    for text in texts:
        encode(text)


def in_batches(peer, texts, size=1000):
    for i in range(0, len(texts), size):
        peer.encode_batch_fast(texts[i:i + size])


# ---- the measurements ----


def training(report, cfg, name, texts, megabytes, required):
    contestants = {"tokenizers (1 thread)": lambda: train_hugging_face(texts, cfg.vocab_size - 1),
                   "tokenizer.py": lambda: Tokenizer.train(texts, cfg.vocab_size)}
    if importlib.util.find_spec("rustbpe"):
        contestants["rustbpe (1 thread)"] = lambda: train_rustbpe(texts, cfg.vocab_size - 1)
    else:
        report.say("rustbpe is not installed: not measured (pip install rustbpe==0.1.0)")
    seconds = take_turns(contestants, cfg.repeats)
    middle = show(report, f"training on {name}", seconds, megabytes, "tokenizers (1 thread)")
    for peer, bound, goal in (("tokenizers", required, ""), ("rustbpe", "", 1)):
        if f"{peer} (1 thread)" in middle:
            value = middle[f"{peer} (1 thread)"] / middle["tokenizer.py"]
            report.require(f"training on {name} against {peer}", bound, goal, value)


def identity(report, cfg, name, texts, folder):
    """Compare merges and vocabulary with Hugging Face's trainer, then the ids of every text with both libraries."""
    tok = Tokenizer.train(texts, cfg.vocab_size)
    tok.save(folder)
    theirs = json.loads(train_hugging_face(texts, cfg.vocab_size - 1).to_str())["model"]
    ours = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    merges = sum(map(list.__eq__, ours["merges"], theirs["merges"]))
    same = ours["merges"] == theirs["merges"] and ours["vocab"] == theirs["vocab"]
    peer, tik, differ = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), tok.to_tiktoken(), 0
    for i in range(0, len(texts), 500):
        for text, hf in zip(texts[i:i + 500], peer.encode_batch_fast(texts[i:i + 500]), strict=True):
            ids = tok.encode(text)
            differ += not (ids.tolist() == hf.ids == tik.encode_ordinary(text) and tok.decode(ids) == text)
    report.say(f"identity on {name}: {merges:,} of {len(theirs['merges']):,} merges equal tokenizers'; vocabulary and "
               f"merges entry for entry: {same}; of {len(texts):,} texts, ids or round trip differ in {differ}\n")
    report.values[f"identity on {name}"] = {"same": same, "merges": merges, "texts": len(texts), "differ": differ}
    return tok


def encoding(report, cfg, name, texts, megabytes, tok, folder, required):
    fresh = {}
    contestants = {
        "tokenizers encode_batch_fast cold": lambda: in_batches(
            tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), texts),
        "tiktoken encode_to_numpy": lambda: all_of(fresh["tiktoken"].encode_to_numpy, texts),
        "tiktoken encode_ordinary": lambda: all_of(fresh["tiktoken"].encode_ordinary, texts),
        "tokenizer.py cold": lambda: all_of(fresh["ours"].encode, texts),
        "tokenizer.py warm": lambda: all_of(fresh["ours"].encode, texts)}
    seconds = {title: [] for title in contestants}
    for _ in range(cfg.repeats):
        fresh = {"tiktoken": tok.to_tiktoken(), "ours": Tokenizer(tok.merges)}
        for title, function in contestants.items():
            seconds[title].append(cpu(function)[0])
    middle = show(report, f"encoding {name}", seconds, megabytes, "tiktoken encode_to_numpy")
    fast, tik, cold, warm = (middle[t] for t in ("tokenizers encode_batch_fast cold", "tiktoken encode_to_numpy",
                                                 "tokenizer.py cold", "tokenizer.py warm"))
    if required:
        report.require(f"encoding {name} cold, against tokenizers' fast batch", 2.5, "", fast / cold)
        report.require(f"encoding {name} cold, against tiktoken", 0.5, "", tik / cold)
        report.require(f"encoding {name} warm, against tiktoken", 1.1, "", tik / warm)


def long_pieces(report, tok):
    report.say("one megabyte that the pattern cannot split into short pieces")
    alphabets = {"'a'": "a", "random letters": "abcdefghijklmnopqrstuvwxyz", "random digits": "0123456789",
                 "ACGT": "ACGT", "spaces, then x": " ", "random white space": " \n\t"}
    for name, alphabet in alphabets.items():
        text = "".join(random.Random(0).choices(alphabet, k=10**6)) + "x" * ("spaces" in name)
        seconds, ids = cpu(lambda text=text: tok.encode(text))
        assert tok.decode(ids) == text
        report.say(f"  {name:34} {seconds:7.2f} s  {len(ids):9,} tokens")
        if name in ("'a'", "random letters", "random digits", "spaces, then x"):
            report.require(f"1 MB of {name}", "< 5", "", seconds, " s")
    report.say()


def growth(report, texts, megabytes):
    """Count pieces and seconds for growing parts of the text; fit powers to the larger ones; extrapolate to 110 GB."""
    report.say("growth with the amount of text (in random order), extrapolated to 110 GB")
    order, points = random.Random(0).sample(texts, len(texts)), []
    for part in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1):
        some = order[:int(len(order) * part)]
        size = sum(len(text.encode()) for text in some) / 1e6
        counting, pieces = cpu(lambda some=some: count_pieces(some))
        merging, merges = cpu(lambda pieces=pieces: learn_merges(pieces, 28639))
        points.append((size, len(pieces), counting, merging))
        report.say(f"  {size:6.1f} MB  {len(pieces):9,} distinct pieces  counting {counting:5.2f} s "
                   f"({size / counting:.1f} MB/s)  {len(merges):,} merges {merging:5.2f} s")
    size, distinct, counting, merging = np.log(np.array(points[2:])).T
    by = {name: np.polyfit(size, y, 1)[0] for name, y in (("pieces", distinct), ("merging", merging))}
    factor = 110_000 / points[-1][0]
    pieces, merge = points[-1][1] * factor ** by["pieces"], points[-1][3] * factor ** by["merging"]
    hours = 110_000 / (points[-1][0] / points[-1][2]) / 3600
    report.say(f"  pieces grow as MB^{by['pieces']:.2f}, merging as MB^{by['merging']:.2f}. EXTRAPOLATED to 110 GB: "
               f"{pieces / 1e6:.1f} M distinct pieces, counting {hours:.1f} core-hours, merging {merge:.0f} s\n")
    guess = {"pieces": pieces, "counting_hours": hours, "merging_seconds": merge}
    report.values["growth"] = {"points": points, "powers": by, "extrapolated_110_GB": guess}


def sharding(report, texts, megabytes):
    whole, counts = cpu(lambda: count_pieces(texts))
    report.say("counting in shards, one after another")
    for n in (2, 8):
        parts, total = cpu(lambda n=n: sum((count_pieces(texts[i::n]) for i in range(n)), Counter()))
        report.say(f"  {n} shards of {megabytes / n:.0f} MB: {parts:.2f} s against {whole:.2f} s in one "
                   f"({parts / whole:.2f}x); same counts: {total == counts}")
        report.values[f"{n} shards"] = {"cost": parts / whole, "same": total == counts}
    report.say()


CHILD = """import os, resource, subprocess, sys
os.sched_setaffinity(0, range(int(sys.argv[1])))
code = subprocess.call(sys.argv[2:], stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(code, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)"""


def child(args, cores):
    """(wall seconds, CPU seconds, peak memory in MB) of a script that runs on `cores` cores.

    TRAP: a process inherits the peak memory of its parent. Therefore a small process (CHILD) starts the script.
    """
    start, args = time.perf_counter(), list(map(str, args))
    done = subprocess.run([sys.executable, "-c", CHILD, str(cores), sys.executable, *args], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    code, seconds, peak = map(float, done.stdout.split())
    if code:
        raise UserError(f"{' '.join(args)} ended with {code:.0f}; run it directly to see its message")
    return time.perf_counter() - start, seconds, peak


def memory(report, cfg, files, tmp):
    report.say("the training command on .jsonl.gz, reading included")
    for name, inputs in (("abstracts", files[:1]), ("abstracts and articles", files)):
        _, seconds, peak = child(["tokenizer.py", "train", "--inputs", *inputs, "--vocab-size", cfg.vocab_size,
                                  "--out", tmp / "train"], 1)
        report.say(f"  train on {name:24} {seconds:7.2f} s  peak memory {peak:.0f} MB")
        report.values[f"train command on {name}"] = {"cpu_seconds": seconds, "peak_MB": peak}
    report.say()


def to_shards(report, cfg, files, megabytes, folder, tmp):
    """Time prepare/pubmed.py from .jsonl.gz to token shards. The time for a single document is the fixed start-up cost;
    it is reported apart and subtracted."""
    report.say("prepare/pubmed.py from .jsonl.gz to shards, reading and writing included")
    one = tmp / "one.jsonl"
    one.write_text('{"text": "x"}\n')
    contestants = {"start": ([one], 1), "1 process": (files, 1), "2 processes": (files, 2)}
    runs = {name: [] for name in contestants}
    for turn in range(cfg.repeats):
        for name, (inputs, processes) in contestants.items():
            runs[name].append(child(["prepare/pubmed.py", "--inputs", *inputs, "--tokenizer", folder, "--out",
                                     tmp / f"shards {name} {turn}", "--processes", processes],
                                    min(processes, os.cpu_count()))[:2])
    middle = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in runs.items()}
    wall, seconds = ({name: pair[i] - middle["start"][i] for name, pair in middle.items()} for i in (0, 1))
    for name in ("1 process", "2 processes"):
        report.say(f"  {name:12} {wall[name]:5.2f} s on the clock ({megabytes / wall[name]:.1f} MB/s), "
                   f"{seconds[name]:5.2f} CPU s ({megabytes / seconds[name]:.1f} MB per CPU second), and "
                   f"{middle['start'][0]:.2f} s to start")
    report.say(f"  from 1 to 2 processes: {wall['1 process'] / wall['2 processes']:.2f}x on the clock\n")
    report.values["pubmed.py"] = {"seconds": runs, "MB": megabytes}
    report.require("prepare/pubmed.py, MB per CPU second", 20, "", megabytes / seconds["1 process"], " MB")


def vocabulary(report, cfg, abstracts, articles, tok):
    """Bytes per token on held-out text, for vocabularies of several sizes and for GPT-2's."""
    held, rest = abstracts[::10], [text for i, text in enumerate(abstracts) if i % 10]
    merges = learn_merges(count_pieces(rest), 50257 - 257)           # a smaller vocabulary is a prefix of the merges
    sizes = [s for s in (512, 1024, 2048, 4096, 8192, 16384, 28896, 40000, 50257) if s - 257 <= len(merges)]
    samples = {"held-out abstracts": held, "articles, full text": articles[:200]}
    encoders = {size: Tokenizer(merges[:size - 257]) for size in sizes}
    bytes_per_token = {name: {size: ratio(encoders[size], texts) for size in sizes} for name, texts in samples.items()}
    gpt2 = Tokenizer.load(cfg.gpt2) if cfg.gpt2 else None
    report.say(f"bytes per token, trained on {len(rest):,} abstracts; {len(held):,} held-out abstracts, and articles")
    for name, texts in samples.items():
        found = bytes_per_token[name]
        report.say(f"  {name}: " + "  ".join(f"{size:,}: {value:.3f}" for size, value in found.items()))
        if gpt2:
            found["GPT-2"] = value = ratio(gpt2, texts)
            report.say(f"    GPT-2 (50,257): {value:.3f}, so GPT-2 needs {found[28896] / value:.3f}x our tokens")
    if not gpt2:
        report.say("    GPT-2's vocabulary was not measured: no --gpt2")
    report.say("  tokens of the paper's terms, each after a space: ours" + (", GPT-2's" if gpt2 else ""))
    for term in PAPER_TERMS:
        splits = ["/".join(split(t, " " + term)) for t in (tok, gpt2) if t]
        report.say(f"    {term:22}" + "".join(f"{pieces:32}" for pieces in splits).rstrip())
    report.values["bytes per token"] = bytes_per_token
    figure(cfg.out / "tokenizer.png", sizes, bytes_per_token, len(rest))
    report.say()


def ratio(tok, texts):
    return sum(len(text.encode()) for text in texts) / sum(len(tok.encode(text)) for text in texts)


def split(tok, text):
    return [tok.decode([i]).strip() for i in tok.encode(text)]


def figure(path, sizes, bytes_per_token, n):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    _, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for colour, (name, values) in zip(("tab:blue", "tab:orange"), bytes_per_token.items(), strict=True):
        axes.plot(sizes, [values[s] for s in sizes], "o-", color=colour, label=f"biomedical vocabulary: {name}")
        if "GPT-2" in values:
            label = f"GPT-2's vocabulary: {name}"
            axes.plot([50257], [values["GPT-2"]], "X", ms=10, color=colour, mec="black", label=label)
    axes.axvline(28896, color="grey", lw=1, ls=":")
    axes.text(28896, axes.get_ylim()[0], "BioMedLM: 28,896 ", color="grey", va="bottom", ha="right")
    axes.set(xscale="log", xlabel=f"tokens in the vocabulary, learned from {n:,} abstracts", ylabel="bytes per token")
    axes.set_xticks(sizes, [f"{s:,}" for s in sizes], rotation=45)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    plt.savefig(path, dpi=130)


def hardware():
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    name = model[0] if model else platform.processor()
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"


def main(cfg):
    files = [cfg.text / "abstracts.jsonl.gz", cfg.text / "fulltext.jsonl.gz"]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file; --text is a folder with abstracts.jsonl.gz and fulltext.jsonl.gz")
    report = Report()
    shown = " ".join("..." if "/" in a else a for a in sys.argv[1:])
    report.say(f"python bench/tokenizer.py {shown}   (commit {git_commit()})")
    report.say(f"{hardware()}; Python {platform.python_version()}, tokenizers {tokenizers.__version__}, "
               f"tiktoken {tiktoken.__version__}\n")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})
    abstracts, articles = (list(documents(path)) for path in files)
    size_a, size_b = (sum(len(text.encode()) for text in texts) / 1e6 for texts in (abstracts, articles))
    both = abstracts + articles
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        tok = identity(report, cfg, "abstracts", abstracts, tmp / "abstracts")
        identity(report, cfg, "all", both, tmp / "all")
        training(report, cfg, "abstracts", abstracts, size_a, 2.0)
        training(report, cfg, "all", both, size_a + size_b, 2.5)
        encoding(report, cfg, "abstracts", abstracts, size_a, tok, tmp / "abstracts", True)
        encoding(report, cfg, "articles", articles, size_b, tok, tmp / "abstracts", False)
        long_pieces(report, Tokenizer(tok.merges))
        growth(report, both, size_a + size_b)
        sharding(report, both, size_a + size_b)
        memory(report, cfg, files, tmp)
        to_shards(report, cfg, files, size_a + size_b, tmp / "abstracts", tmp)
        vocabulary(report, cfg, abstracts, articles, tok)
    report.table()
    report.say(f"\nload {os.getloadavg()[0]:.1f} at the end")
    (cfg.out / "tokenizer.txt").write_text("\n".join(report.lines) + "\n", encoding="utf-8")
    write_json(cfg.out / "tokenizer.json", report.values | {"table": report.rows})


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Bench))
