"""How a stage of `make gpu` keeps what it finds: one JSON line per finding, on disk before the next one begins.

    emit(check="gelu_linear", error=3e-3, right=True)      # a later crash, timeout or power cut cannot lose this line
    with attempt(check="norm_linear"):                     # an exception becomes a line and does not end the stage
        ...

Every line also has the stage, the time, and the kernels that ours ran with. The runner (bench/gpu.py) names the file in
GPU_JSONL; without it the lines are only printed.
"""
import json
import os
import sys
import time
import traceback
from contextlib import contextmanager
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

from plumbing.common import UserError

STARTED = time.perf_counter()


def emit(**record):
    """Append the record to the file that GPU_JSONL names, and print it."""
    if "kernels" not in record:
        record["kernels"] = kernels_in_use()
    append(os.environ.get("GPU_JSONL"), {"stage": os.environ.get("GPU_STAGE", ""),
                                         "at": round(time.perf_counter() - STARTED, 1)} | record)


def append(path, record):
    """One line in one write, so that processes that share the file do not mix theirs."""
    line = json.dumps(record, default=str) + "\n"
    print(line, end="", flush=True)
    if path:
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode())
            os.fsync(file.fileno())


@contextmanager
def attempt(**what):
    """Run the block. An exception of any kind is emitted with `what`, and the caller goes on. A package that cannot be
    imported is "skipped", everything else "failed"."""
    try:
        yield
    except ImportError as error:
        emit(**what, skipped=str(error))
    except Exception as error:
        traceback.print_exc()
        emit(**what, failed=f"{type(error).__name__}: {error}"[:600])


@cache
def kernels_in_use():
    """The line of kernels.require_triton: version, card, tiles, assembler; or why Triton's kernels cannot run."""
    try:
        from kernels import require_triton
        return require_triton("cuda")
    except (UserError, ImportError, RuntimeError) as error:
        return f"torch's operators ({error})"
