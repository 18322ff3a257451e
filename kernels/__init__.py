"""Triton kernels, one lesson per file, in reading order.

rows.py             what the kernels share: reading and writing tiles, a linear layer that forgets its input
layer_norm.py       the easiest kernel: rows, two reductions, a derived backward pass
gelu.py             bias and GELU, discarded in the forward pass and recomputed
cross_entropy.py    the gradient of the loss, written over the logits
flash_attention.py  attention that never stores its T x T matrix
flash_decode.py     attention of one new token
matvec.py           a linear layer on one new token: as fast as memory delivers the weights
transformer.py      a block and the loss, put together from the kernels
tiles.py            how large the tiles are, and why
self_check.py       is the attention right that this machine's assembler compiled?
compile_check.py    machine code for A100 and H100, on a machine with neither

In this file: can the kernels run on this machine, and by which assembler are they compiled? `choose` says why.
Not here: their speed (bench/kernels.py), the C loops that generate text on a CPU (sampling/native.py).
"""
import functools

import torch

from plumbing.common import UserError

CPU_POSES_AS = 80               # the architecture whose tiles the interpreter uses; the tests set both
MEND = "use --kernels torch, which runs everywhere"

# TRAP: on Hopper, Triton's products (wgmma) run asynchronously, in attention with one operand in registers. A ptxas
# before 13.3 may reuse such a register before the product has read it (triton#9433, triton#11781), and 12.8, which
# Triton 3.6 and 3.7 contain, is reported to miscompile other kernels with several products (fla#1262).
SAFE_ON_HOPPER = (13, 3)
NEWER = ("`pip install nvidia-cuda-nvcc==13.5.37` and set TRITON_PTXAS_PATH to the nvidia/cu13/bin/ptxas of the folder "
         "that it installs into")


def choose(wanted, device, head_width):
    """(kernels/transformer.py or None for torch's operators, one line that says what was chosen and why).

    wanted: "torch"; "triton", which raises UserError where the kernels cannot run or may be miscompiled; or "auto",
    which takes torch's operators there. On Hopper with an old assembler, auto first compares attention with fp64.
    """
    if wanted == "torch" or (wanted == "auto" and device.type != "cuda"):
        return None, "torch's operators"
    try:
        said = require_triton(device, head_width)
        if architecture(device) == 90 and version(assembler(90)) < SAFE_ON_HOPPER:
            if wanted == "triton":
                raise UserError(f"the attention kernels need ptxas 13.3 or newer on Hopper, not "
                                f"{assembler(90).version}: {NEWER}; or use --kernels auto, which checks what the older "
                                "one compiles, or --kernels torch")
            said += f" (13.3 or newer is safer: {NEWER}); {checked_attention(device, head_width)}"
    except UserError as error:
        if wanted == "triton":
            raise
        return None, f"torch's operators ({error})"
    from kernels import transformer
    return transformer, said


def checked_attention(device, head_width):
    """Run attention in the forms that training uses; returns its error in words, or raises UserError if it is wrong."""
    from kernels.self_check import ALLOWED, attention_errors
    errors = attention_errors(device, head_width)
    worst = max(errors, key=errors.get)
    if not errors[worst] <= ALLOWED:
        raise UserError(f"{worst}, compiled by ptxas {assembler(90).version}, differs from fp64 by {errors[worst]:.1e} "
                        f"of the largest element, where {ALLOWED} is allowed: {NEWER}")
    return f"self-check of attention passed: {errors[worst]:.1e} from fp64, {ALLOWED} is allowed"


def require_triton(device, head_width=128):
    """One line that says what the kernels will run on; UserError with the reason if they cannot run on `device`."""
    device = torch.device(device)
    if head_width not in (64, 128):
        raise UserError(f"the Triton attention has tiles for head widths 64 and 128, not {head_width}; {MEND}")
    try:
        import triton
    except ImportError as error:
        raise UserError(f"Triton kernels need triton, which cannot be imported ({error}); {MEND}") from error
    if device.type == "cpu":
        if triton.knobs.runtime.interpret:      # Triton reads it when a kernel is defined: set it before the import
            return f"Triton {triton.__version__}, interpreted on the CPU (for tests: it is thousands of times slower)"
        raise UserError(f"Triton kernels run on the CPU only with TRITON_INTERPRET=1; {MEND}")
    if device.type != "cuda" or torch.version.hip:
        raise UserError(f"Triton kernels are written for NVIDIA GPUs, not for {device.type}; {MEND}")
    if not torch.cuda.is_available():
        raise UserError(f"torch finds no GPU here for the Triton kernels; {MEND}")
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if major not in (8, 9):
        raise UserError(f"{name} is sm_{major}{minor}, but the Triton kernels have tiles for sm_8x and sm_90 only "
                        f"(kernels/tiles.py); {MEND}")

    arch = architecture(device)
    triton.knobs.nvidia.ptxas = assembler(arch).path
    return f"Triton {triton.__version__} on {name}, tiles of sm_{arch}, ptxas {assembler(arch).version}"


def assembler(arch):
    """The ptxas for `arch` (path, version): TRITON_PTXAS_PATH's or Triton's; for Hopper its Blackwell one if newer."""
    import triton
    tools = triton.knobs.nvidia
    return max(tools.ptxas, tools.ptxas_blackwell, key=version) if arch == 90 else tools.ptxas


def version(tool):
    return tuple(map(int, tool.version.split(".")))


def architecture(device):
    """The row of the tile tables: 80 (A100; the tiles also fit the 99 KB of an A10 or a 4090) or 90 (H100, H200)."""
    if device.type == "cpu":
        return CPU_POSES_AS
    return 90 if torch.cuda.get_device_capability(device)[0] == 9 else 80


def operator(name, mutates=()):
    """Decorator: an operator that torch.compile does not look into. Its result depends on its arguments alone.

    TRAP: under autocast a product in an opaque operator would take another dtype than its buffers, and CUDA's list of
    operators differs from the CPU's: there F.layer_norm returns fp32.
    """
    def registered(body):
        @functools.wraps(body)
        def outside_autocast(*arguments):
            device = next(x.device.type for x in arguments if isinstance(x, torch.Tensor))
            with torch.autocast(device, enabled=False):
                return body(*arguments)
        return torch.library.custom_op(f"nanobiomedlm::{name}", outside_autocast, mutates_args=mutates)
    return registered
