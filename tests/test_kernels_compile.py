"""Every kernel and tile becomes machine code for A100 and H100, without a GPU: nothing spills out of the registers
beyond what results/kernels.md admits, all fits into shared memory, and the instructions that make a GPU fast are there.
"""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PARTS = [f"sm_{arch} {part}" for arch in (90, 80) for part in ("attention 128", "attention 64", "(?!attention)")]


@pytest.mark.parametrize("part", PARTS)
def test_compiles_without_spills_to_tensor_cores_and_asynchronous_copies(part, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)        # compiled now, not remembered
    finished = subprocess.run([sys.executable, "-m", "kernels.compile_check", "--no-everything", "--only", part],
                              cwd=ROOT, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len(re.findall(r"^sm_\d\d ", finished.stdout, re.M)) >= 6        # kernels
