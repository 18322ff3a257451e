"""Every kernel and tile compiles for A100 and H100, without a GPU: no register spills beyond those in
results/kernels.md, all fits into shared memory, and the instructions that make a GPU fast are there.

The tests compile each kernel and tile that a run uses in its largest form, which spills first: 45 of them. Run
`python -m kernels.compile_check` after every change to a kernel, a tile or Triton: it compiles the other forms as well
(without documents, fp16, fp32 ...), and searches the machine code for overwritten operands.
"""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from kernels.compile_check import overwritten


@pytest.mark.parametrize("arch", ["sm_90", "sm_80"])
def test_compiles_without_spills_to_tensor_cores_and_asynchronous_copies(arch, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)        # compiled now, not remembered
    finished = subprocess.run([sys.executable, "-m", "kernels.compile_check", "--no-everything", "--only", arch],
                              cwd=ROOT, capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert re.match(r"sm_90: ptxas [\d.]+, sm_80: ptxas [\d.]+\n", finished.stdout)
    kernels = re.findall(rf"^{arch} (attention \d+|\w+).*?(\w+_kernel)", finished.stdout, re.M)
    assert len(kernels) >= {"sm_90": 24, "sm_80": 21}[arch] and {name for name, _ in kernels} == {
        "attention 128", "attention 64", "norm_linear", "gelu_linear", "cross_entropy", "append_and_decode", "matvec"}


def test_an_instruction_that_overwrites_an_operand_of_an_unfinished_product_is_found():
    product = ("HGMMA", ".64x64x16.F32.BF16", "R24, R4, gdesc[UR8], R24, gsb0")
    wait = ("WARPGROUP", ".DEPBAR.LE", "gsb0, 0x0")
    harmless = [("IMAD", ".MOV.U32", "R3, RZ, RZ, R4"), ("STG", ".E.128", "desc[UR4][R6.64], R4"),
                ("ISETP", ".GE.AND", "P0, PT, R5, R6, PT"), ("R2UR", "", "UR4, R5")]
    for harmful in (("MOV", "", "R7, R9"), ("LDS", ".128", "R4, [R12]"), ("LDS", ".64", "R3, [R12]")):
        assert overwritten([product, *harmless, wait, harmful]) == 0
        assert overwritten([product, *harmless, harmful, wait]) == 1
    assert overwritten([("HGMMA", ".64x64x16.F32.BF16", "R24, gdesc[UR8], R24"), ("MOV", "", "R4, R9"), wait]) == 0
