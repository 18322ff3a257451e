"""Draw what train.py logged: the loss curve, with validation, learning rate and gradient norm.

    python bench/plot.py out/laptop/log.jsonl --out loss.png
    python bench/plot.py out/a/log.jsonl out/b/log.jsonl --out both.png        # one colour per run, named by folder

Teaches how to read a run. The thin line is the loss of each step, the thick line its mean over the last --smooth steps,
and the dots are the validation loss. Validation above training means that the model memorises its text. A gradient norm
that rises for a long time often comes before a jump of the loss. Crosses mark steps that were skipped because the loss
or the gradient was not finite.
Not here: TensorBoard and Weights & Biases, which train.py can also write (training/monitor.py).
"""
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

from plumbing.common import UserError, parse_args, speaking_to_the_user, written_whole

COLOURS = ("#c33", "#27a", "#2a7", "#a5c", "#d83", "#555")
NEEDED = ("step", "loss", "grad_norm", "lr")


@dataclass(frozen=True)
class Plot:
    logs: tyro.conf.Positional[tuple[Path, ...]]    # log.jsonl of one or more runs
    out: Path = Path("loss.png")    # .png, .pdf or .svg
    smooth: int = 0                 # steps to average over; 0: a fiftieth of the run


def main(cfg):
    if not cfg.logs:
        raise UserError("name a log to draw: python bench/plot.py out/laptop/log.jsonl")
    if cfg.out.suffix not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {cfg.out}: the name must end in .png, .pdf or .svg")
    runs = {name: read_log(path) for name, path in zip(names(cfg.logs), cfg.logs, strict=True)}
    figure = draw(runs, cfg.smooth)
    with written_whole(cfg.out) as temporary:
        figure.savefig(temporary, dpi=150, format=cfg.out.suffix[1:])
    for name, log in runs.items():
        print(f"{name}: {len(log):,} steps, last {log[-1]['step']:,} with loss {log[-1]['loss']:.4f}")
    print(f"wrote {cfg.out}")
    return runs


def names(paths):
    """The folders' names if they all differ, otherwise the whole paths."""
    short = [path.resolve().parent.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def read_log(path):
    """The lines of a log, sorted by step. A last line without its newline is ignored: the run may still be writing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; train.py writes OUT/log.jsonl")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    log = [read_line(path, i, line) for i, line in enumerate(lines) if line.endswith("\n") and line.strip()]
    if not log:
        raise UserError(f"{path}: contains no step yet")
    return sorted(log, key=lambda line: line["step"])


def read_line(path, i, line):
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {i + 1} is not JSON ({error}); is this train.py's log?") from error
    for name in NEEDED:
        if not isinstance(values, dict) or not isinstance(values.get(name), int | float):
            raise UserError(f"{path}: line {i + 1} has no number {name!r}; is this train.py's log?")
    return values


def column(log, name):
    """(steps, values) of the lines that have this column: an array [2, lines]."""
    found = [(line["step"], line[name]) for line in log if name in line]
    return np.array(found, float).reshape(-1, 2).T


def smoothed(values, width):
    """The mean of the finite values among the last `width`; the first few average what there is."""
    finite = np.isfinite(values)
    sums, counts = (np.concatenate([[0.0], np.cumsum(a)]) for a in (np.where(finite, values, 0.0), finite))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(0, end - width)
    with np.errstate(invalid="ignore"):                        # no finite value yet gives NaN, which is not drawn
        return (sums[end] - sums[start]) / (counts[end] - counts[start])


def draw(runs, smooth):
    import matplotlib
    matplotlib.use("Agg")                                      # draw into a file, without a display
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(3, 1, figsize=(8, 7), height_ratios=(5, 1, 1), sharex=True, layout="constrained")
    for (name, log), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        draw_run(axes, log, smooth or math.ceil(len(log) / 50), colour, name)
    for part, label in zip(axes, ("loss, nats per token", "learning\nrate", "gradient\nnorm"), strict=True):
        part.set_ylabel(label)
        part.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes[2].set(xlabel="step", yscale="log")
    plt.close(figure)                                          # pyplot drops it; savefig still works
    return figure


def draw_run(axes, log, width, colour, name):
    steps, losses = column(log, "loss")
    axes[0].plot(steps, losses, lw=0.7, alpha=0.35, color=colour)
    axes[0].plot(steps, smoothed(losses, width), lw=1.8, color=colour, label=name)
    val_steps, val = column(log, "val_loss")
    if len(val):
        axes[0].plot(val_steps, val, "o", ms=5, mfc="white", color=colour, label=f"{name}, validation")
    skipped, _ = column(log, "skipped")
    axes[0].plot(skipped, np.full(len(skipped), np.nanmin(losses)), "x", color="black")
    axes[1].plot(*column(log, "lr"), lw=1.2, color=colour)
    axes[2].plot(*column(log, "grad_norm"), lw=0.7, color=colour)


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Plot))
