"""Compile every kernel, as its wrapper would launch it, to machine code for A100 and H100, on a machine with neither.

Triton's wheel contains the assembler and the disassembler, so no GPU, driver or CUDA toolkit is needed. The wrappers
are called on CPU tensors, and a substitute for Triton's driver names the target and keeps what was compiled instead of
launching it. The assembler is the one that would run on the GPU (kernels.assembler; TRITON_PTXAS_PATH chooses another).
The table has what limits a kernel there: registers, spills to slow memory, shared memory, programs per processor, and
the instructions that make the chip fast (tensor cores, asynchronous copies).

On Hopper `overwritten` also searches the machine code for the fault that makes attention need ptxas 13.3.

    python -m kernels.compile_check --jobs 2    the table of results/kernels.md; ends with 1 if a kernel falls short
"""
import multiprocessing
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from itertools import chain
from types import SimpleNamespace

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import kernels
from kernels import cross_entropy, flash_decode, gelu, layer_norm, matvec
from kernels.flash_attention import flash_attention
from plumbing.common import parse_args

SHARED_OF_PROGRAM = {80: 99 * 1024, 90: 227 * 1024}            # 80 is all of sm_8x, of which A10 and 4090 have least
SHARED_OF_PROCESSOR = {80: 164 * 1024, 90: 228 * 1024}
TENSOR_CORES = {80: "HMMA", 90: "HGMMA"}       # sm_90 has HMMA as well, at half the speed: it does not count
INSTRUCTION = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+)(\S*)\s*([^;]*);"   # opcode, its form, operands
COPIES = ("LDGSTS", "UTMALDG")                 # asynchronous copies to shared memory: cp.async, Hopper's copy engine
IN_PTX = {"HMMA": r"\bmma\.sync", "HGMMA": r"\bwgmma\.mma_async", "LDGSTS": r"\bcp\.async\.c[ag]\.",
          "UTMALDG": r"\bcp\.async\.bulk\.tensor\.\dd\.shared"}     # each becomes one machine instruction
FROM_REGISTERS = r"wgmma\.mma_async\S+\s*\{[^}]*\},\s*\{"           # the first operand in registers: see SAFE_ON_HOPPER


@dataclass
class Options:
    jobs: int = 1           # processes
    only: str = ""          # a regular expression that a case must match, such as "sm_90 attention 128"
    everything: bool = True # every form of every tile, disassembled; the tests compile with --no-everything


def compiled_kernels(arch, call):
    """[(kernel's name, compiled kernel)] that `call()` would launch on `arch`. The results of `call` are garbage."""
    run, found = JITFunction.run, []

    def record(self, *args, grid, warmup, **kwargs):
        found.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **kwargs)))

    # What a compilation needs of a driver. The device's number is its architecture.
    driver.set_active(SimpleNamespace(get_current_device=lambda: arch, get_current_stream=lambda device: 0,
                                      get_current_target=lambda: GPUTarget("cuda", arch, 32)))
    kernels.CPU_POSES_AS, JITFunction.run = arch, record
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def overwritten(instructions):
    """How many instructions write a register that an HGMMA before them may still be reading.

    instructions: [(opcode, form, operands)] in the order of the code. An HGMMA reads four registers per thread from its
    second operand, if that is a register, until the wait for all products (WARPGROUP.DEPBAR.LE gsb0, 0x0).
    """
    reading, bad = set(), 0
    for opcode, form, operands in instructions:
        if opcode == "HGMMA":
            if operand := re.match(r"R\d+, R(\d+),", operands):
                reading |= set(range(int(operand[1]), int(operand[1]) + 4))
        elif opcode == "WARPGROUP" and form.startswith(".DEPBAR") and operands.strip().endswith("0x0"):
            reading = set()
        elif written := re.match(r"(?:U?P\w+, )?R(\d+)\b", operands):          # stores begin with an address instead
            width = 4 if re.search(r"\.128|88\.4", form) else 2 if re.search(r"\.64|WIDE|88\.2", form) else 1
            only_reads = opcode in ("BAR", "RET", "BRX", "WARPSYNC", "NANOSLEEP")
            bad += not only_reads and any(int(written[1]) + i in reading for i in range(width))
    return bad


def facts_of(compiled, arch, disassembled=True):
    """{reg, stack, shared, programs, ...} and counts of instructions, from the disassembly or (faster) the PTX."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        wanted = ["--dump-resource-usage", *["-sass"] * disassembled]
        said = subprocess.run([knobs.nvidia.cuobjdump.path, *wanted, file.name], capture_output=True, text=True,
                              check=True).stdout
    facts = {name.lower(): int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", said)}
    if disassembled:
        instructions = re.findall(INSTRUCTION, said, re.MULTILINE)
        opcodes = [opcode for opcode, *_ in instructions]
        facts |= {name: opcodes.count(name) for name in IN_PTX} | {"all": len(opcodes)}
        facts["overwritten"] = overwritten(instructions)
    else:
        facts |= {name: len(re.findall(form, compiled.asm["ptx"])) for name, form in IN_PTX.items()} | {"all": "-"}
    facts["from_registers"] = len(re.findall(FROM_REGISTERS, compiled.asm["ptx"]))
    facts |= dict(shared=compiled.metadata.shared, warps=compiled.metadata.num_warps)
    registers_of_warp = -(-facts["reg"] * 32 // 256) * 256          # allocated in units of 256
    facts["programs"] = min(65536 // registers_of_warp // facts["warps"], 64 // facts["warps"],
                            SHARED_OF_PROCESSOR[arch] // (facts["shared"] + 1024))
    return facts


def shortfalls(facts, arch, case, kernel):
    """The reasons why a kernel should not run on `arch`; empty if there are none."""
    attention, most, overwrites = case.startswith("attention"), SHARED_OF_PROGRAM[arch], facts.get("overwritten")
    spill = KNOWN_SPILLS.get(case, {}).get(kernel, 0) if arch == 90 else 0
    reasons = {         # TRAP: 32 registers and kilobytes of stack mean that the assembler gave up
        f"spills {facts['stack']} bytes per thread, {spill} are known": facts["stack"] > spill,
        f"takes {facts['shared']} bytes of shared memory of {most}": facts["shared"] > most,
        "does not use the tensor cores": attention and "fp32" not in case and not facts[TENSOR_CORES[arch]],
        "copies nothing asynchronously": (attention or case == "cross_entropy") and not any(map(facts.get, COPIES)),
        f"overwrites operands of unfinished products in {overwrites} places": overwrites,
    }
    return [reason for reason, applies in reasons.items() if applies]


# ---- The launches: {case: function that makes them} ------------------------------------------------------------------

KNOWN_SPILLS = {    # on sm_90, bytes per thread, the most of ptxas 13.1 and 13.5; why: results/kernels.md
    "attention 128, odd T, documents": {"forward_kernel": 64, "dkdv_kernel": 56},
    "attention 128, odd T, documents, dropout": {"dkdv_kernel": 112},
    "attention 128, dropout": {"dkdv_kernel": 88},
    "attention 128, documents": {"dkdv_kernel": 24},
    "attention 64, odd T, documents": {"dkdv_kernel": 8},
}


def attention(width, T, docs=False, dropout_p=0.0, dtype=torch.bfloat16):
    """{case: forward and backward of two heads}; the values of the documents' starts do not matter here."""
    case = f"attention {width}" + ", odd T" * (T % 128 > 0) + ", documents" * docs + ", dropout" * (dropout_p > 0)
    case += {torch.bfloat16: "", torch.float16: ", fp16", torch.float32: ", fp32"}[dtype]
    doc_start_BT = torch.zeros(2, T, dtype=torch.int32) if docs else None
    qkv_BT3C = torch.zeros(2, T, 3 * 2 * width, dtype=dtype, requires_grad=True)
    seed = torch.zeros(1, dtype=torch.int64)
    return {case: lambda: flash_attention(qkv_BT3C, 2, 0.1, dropout_p, seed, doc_start_BT).sum().backward()}


def others():
    dtype = torch.bfloat16
    x, w = (torch.zeros(8, 2560, dtype=dtype, requires_grad=True) for _ in range(2))
    weights = [torch.zeros(2560, requires_grad=True) for _ in range(2)]
    logits = torch.zeros(8, 28896, dtype=dtype)   # 28896 = 16 * 1806: rows are aligned, which the 16-byte copies need
    targets, length = torch.zeros(8, dtype=torch.int64), torch.ones(1, dtype=torch.int32)
    cache = torch.zeros(1, 20, 1024, 128, dtype=dtype)
    qkv, row, row_weight, b = (torch.zeros(*shape, dtype=dtype) for shape in ((1, 7680), (1, 2560), (8, 2560), (8,)))
    four, eight, int8 = row.expand(4, -1).contiguous(), row.new_zeros(4, 8), row_weight.to(torch.int8)
    return {
        "layer_norm": lambda: layer_norm.layer_norm(x, *weights).sum().backward(),
        "norm_linear": lambda: layer_norm.norm_linear(x, *weights, w, None, x)[1].sum().backward(),
        "bias_gelu": lambda: gelu.bias_gelu(x, weights[0]).sum().backward(),
        "gelu_linear": lambda: gelu.gelu_linear(x, weights[0], w).sum().backward(),
        "cross_entropy": lambda: cross_entropy.cross_entropy_(logits, targets, True),
        "append_and_decode": lambda: flash_decode.append_and_decode(qkv, cache, cache, length, 0.1),
        "matvec": lambda: matvec.matvec(row, row_weight, None, b, True),
        "matvec of four rows": lambda: matvec.matvec(four, row_weight, None, b, False, eight),
        "matvec of int8": lambda: matvec.matvec(row, int8, weights[0][:8], b, True),
    }


def cases(arch, everything=True):
    """Every kernel and tile in every form that is launched; without `everything`, in its largest, and not in fp32.
    The largest code on the pointer path is odd T with documents. On Hopper, even T uses descriptors, which is different
    code. Without documents a kernel has one run of tiles less and is otherwise the same."""
    table = {}
    for width in (128, 64):
        table |= attention(width, 1000, docs=True)
        if arch == 80 or everything:
            table |= attention(width, 1000, docs=True, dropout_p=0.1)
        if arch == 90 or everything:
            table |= attention(width, 1024, dropout_p=0.1)
        if (arch, width) == (90, 128) or everything:
            table |= attention(width, 1024, docs=True)
        if everything:
            table |= attention(width, 1000, dtype=torch.float32)
            table |= attention(width, 1024)
            table |= attention(width, 1000, docs=True, dropout_p=0.1, dtype=torch.float32)
            table |= attention(width, 1024, dtype=torch.float16)
    smaller = "layer_norm", "bias_gelu", "matvec"
    return table | {case: call for case, call in others().items() if everything or case not in smaller}


def check(job):
    """[(line of the table, reasons)] for the kernels of one case."""
    arch, case, everything = job
    with knobs.nvidia.scope():
        knobs.nvidia.ptxas = kernels.assembler(arch).path
        launched = compiled_kernels(arch, cases(arch, everything)[case])
    rows = []
    for kernel, compiled in launched:
        facts = facts_of(compiled, arch, everything)
        counts = " ".join(f"{facts[what]:>6}" for what in (TENSOR_CORES[arch], "from_registers", *COPIES, "all"))
        row = (f"sm_{arch} {case:46s} {kernel:20s} {facts['warps']:2d} {facts['reg']:5d} {facts['stack']:5d} "
               f"{facts['shared']:7d} {facts['programs']:4d} {counts}")
        rows.append((row, shortfalls(facts, arch, case, kernel)))
    return rows


def main(options):
    """Print the table; return the number of kernels that fall short."""
    jobs = [(arch, case, options.everything) for arch in (90, 80) for case in cases(arch, options.everything)
            if re.match(options.only, f"sm_{arch} {case}")]
    print(*(f"sm_{arch}: ptxas {kernels.assembler(arch).version}" for arch in (90, 80)), sep=", ")
    print(f"{'':5s} {'case':46s} {'kernel':20s} warps reg spill  shared prog  tensor (reg) cp.async TMA  all")
    bad = 0
    checked = multiprocessing.get_context("spawn").Pool(options.jobs).imap if options.jobs > 1 else map
    for row, reasons in chain.from_iterable(checked(check, jobs)):
        print(row, *reasons, sep="  <-- " if reasons else "")
        bad += bool(reasons)
    print(f"{bad} kernels fall short" if bad else "no kernel spills, overflows or lacks an instruction")
    return bad


if __name__ == "__main__":
    sys.exit(main(parse_args(Options)) > 0)
