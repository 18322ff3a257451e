"""Triton kernels, one lesson per file: layer_norm, gelu, cross_entropy, flash_attention, flash_decode, in this order.

transformer.py makes a block out of them, tiles.py has the tiles' sizes, measure.py their speed on a GPU, and
compile_check.py their machine code without one. In this file: can the kernels run on this machine? Nothing here falls
back to something else: either the kernels run, or a UserError says why not.

Not here: the C loops that generate text on a CPU (sampling/native.py).
"""
import torch

from plumbing.common import UserError

CPU_POSES_AS = 80               # the architecture whose tiles the interpreter uses; the tests set both
MEND = "use --kernels torch, which runs everywhere"


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
    with_assembler = f", ptxas {hopper_assembler(triton.knobs.nvidia)}" if major == 9 else ""
    return f"Triton {triton.__version__} on {name}, tiles of sm_{architecture(device)}{with_assembler}"


def hopper_assembler(tools):
    """Have kernels assembled by ptxas 13.1 or newer, which Triton 3.7 carries for Blackwell; returns its version.

    TRAP: the 12.8 that Triton 3.6 and 3.7 take for Hopper is reported to miscompile kernels with several products.
    """
    for tool in (tools.ptxas, tools.ptxas_blackwell):
        if tuple(map(int, tool.version.split("."))) >= (13, 1):
            tools.ptxas = tool.path
            return tool.version
    raise UserError(f"Triton kernels on Hopper want ptxas 13.1 or newer, here is {tools.ptxas.version}; set "
                    f"TRITON_PTXAS_PATH to the one of CUDA 13.1, or {MEND}")


def architecture(device):
    """The row of the tile tables: 80 (A100; the tiles also fit the 99 KB of an A10 or a 4090) or 90 (H100, H200)."""
    if device.type == "cpu":
        return CPU_POSES_AS
    return 90 if torch.cuda.get_device_capability(device)[0] == 9 else 80
