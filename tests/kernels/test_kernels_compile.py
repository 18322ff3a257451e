"""Every kernel and tile compiles for A100 and H100, without a GPU: no register spills beyond those in
results/kernels.md, all fits into shared memory, and the instructions that make a GPU fast are there.

The tests compile each tile in its largest form, which spills first: 55 kernels, a minute and a half of one core. Run
`python -m kernels.compile_check` after every change to a kernel, a tile or Triton: it compiles the other forms as well
(without documents, fp16, fp32 of width 64 ...), as many again.
"""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_compiles_without_spills_to_tensor_cores_and_asynchronous_copies(arch, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)        # compiled now, not remembered
    finished = subprocess.run([sys.executable, "-m", "kernels.compile_check", "--no-everything", "--only", arch],
                              cwd=ROOT, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    kernels = re.findall(rf"^{arch} (attention \d+|\w+).*?(\w+_kernel)", finished.stdout, re.M)
    assert len(kernels) >= 26 and {name for name, _ in kernels} == {
        "attention 128", "attention 64", "layer_norm", "norm_linear", "bias_gelu", "gelu_linear", "cross_entropy",
        "flash_decode"}
