"""OUT/gpu.md: the lines of gpu.jsonl as tables, for people. `make gpu` writes it after every stage.

    python bench/gpu_report.py FOLDER       # write FOLDER/gpu.md again

Not here: what a line means (the stage that emits it).
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

from plumbing.common import written_whole

# What ours must reach in training, on an H100 with 80 GB. The first is llm-foundry's record for this shape.
TOKENS_PER_SECOND, OF_PRODUCT, OVER_TRANSFORMERS = 27_600, 0.60, {"eager": 1.15, "compiled": 1.0}


# (title, what a record must have, columns)
TABLES = [
    ("Stages", ["ended"], ["stage", "ended", "seconds", "command"]),
    ("Operators against fp64", ["check", "error"], ["check", "error", "largest_element", "same_bits", "right"]),
    ("Two layers against fp32, and a token by a CUDA graph", ["parity", "right"],
     ["parity", "loss", "loss_differs", "gradient_error", "worst", "same_bits", "error", "right"]),
    ("Attention, ms", ["kernel", "T", "contestant", "forward_ms"],
     ["T", "contestant", "forward_ms", "both_ms", "forward_tflops", "both_tflops", "clock"]),
    ("Attention: the best of torch's flash and cuDNN over ours", ["best_over_ours"],
     ["T", "ratio", "best_over_ours", "required", "goal", "met"]),
    ("Other kernels, ms", ["kernel", "share"],
     ["kernel", "batch", "contestant", "forward_ms", "both_ms", "clock", "share", "of"]),
    ("Decoding", ["decode", "ms"], ["decode", "ms", "tokens_per_second", "share_of_copy"]),
    ("Decoding: required", ["decode", "what"], ["what", "required", "value", "met"]),
    ("Training: loss and gradient norm without dropout, from equal weights", ["train", "parity"],
     ["train", "micro_batch", "loss", "grad_norm"]),
    ("Training", ["train", "summary"],
     ["train", "way", "micro_batch", "tokens_per_second", "forward_backward_ms", "clip_ms", "adamw_ms", "of_product",
      "of_product_without_optimizer", "peak_gib", "kernels"]),
    ("Training: required", ["bar"], ["bar", "required", "measured", "met"]),
    ("Where the time goes", ["profile", "ms"], ["profile", "kernel", "calls", "ms"]),
]


def write_report(out):
    """Write OUT/gpu.md from OUT/gpu.jsonl."""
    records = read_records(out)
    text = head(records) + failures(records)
    for title, names, columns in TABLES:
        text += table(title, having(records + bars(records), names), columns)
    with written_whole(Path(out) / "gpu.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_records(out):
    """The lines that are whole: a stage may have been killed while it wrote one."""
    records = []
    for line in (Path(out) / "gpu.jsonl").read_text(encoding="utf-8").split("\n"):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def is_bad(record):
    return "failed" in record or record.get("right") is False or record.get("ended", "well") != "well"


def having(records, names):
    return [record for record in records if all(name in record for name in names)]


def head(records):
    """The title: card, versions, ceilings, and the kernels that ours ran with."""
    facts = {}
    for record in having(records, ["fact"]):
        facts |= record
    lines = [f"# make gpu on {facts.get('card', 'an unknown GPU')}\n"]
    lines += [f"* {name}: {cell(facts[name])}" for name in
              ("commit", "driver", "cuda", "torch", "triton", "transformers", "kernels", "sdpa", "copy_tb_per_s",
               "product_tflops") if name in facts]
    return "\n".join(lines) + "\n\n"


def failures(records):
    """Everything that is bad, so that a reader sees it first."""
    lines = [f"* `{json.dumps(record)}`" for record in records if is_bad(record)]
    return "## Failures and wrong results\n\n" + "\n".join(lines or ["none"]) + "\n\n"


def bars(records):
    """The bars for our loop with Triton's kernels, with the attention that is faster: at its best micro-batch, and
    against transformers at the same one."""
    summaries = having(records, ["train", "summary", "way"])
    ours = sorted((s for s in summaries if s["train"] in ("ours-triton", "ours-sdpa")),
                  key=lambda s: s["tokens_per_second"])
    if not ours:
        return []
    best = ours[-1]
    rows = [("tokens per second", TOKENS_PER_SECOND, best["tokens_per_second"]),
            ("share of a large product's rate", OF_PRODUCT, best["of_product"] or 0.0)]
    for theirs in summaries:
        same_batch = [s for s in ours if s["micro_batch"] == theirs["micro_batch"]]
        if theirs["train"] == "transformers" and same_batch:
            rows.append((f"times {theirs['way']} transformers", OVER_TRANSFORMERS[theirs["way"]],
                         same_batch[-1]["tokens_per_second"] / theirs["tokens_per_second"]))
    return [{"bar": bar, "required": bound, "measured": value, "met": value >= bound} for bar, bound, value in rows]


def table(title, records, columns):
    """A Markdown table of those columns that occur; "" without records."""
    columns = [column for column in columns if having(records, [column])]
    if not columns:
        return ""
    lines = [f"## {title}\n", f"| {' | '.join(column.replace('_', ' ') for column in columns)} |",
             "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(record.get(column, '')) for column in columns)} |" for record in records]
    return "\n".join(lines) + "\n\n"


def cell(value):
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "/")


if __name__ == "__main__":
    write_report(Path(sys.argv[1]))
