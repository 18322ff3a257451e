"""Hand-written kernels, one lesson per file. In Triton, for a GPU: layer_norm, gelu, cross_entropy, flash_attention
(read in that order). In C, for a CPU that generates: matvec.c, attend.c, cpu_step.c; native.py compiles and calls them.

Here is only the question that comes before all in Triton: can they run on this machine? Nothing in this folder falls
back to anything else: either the kernels run, or the caller hears why not.
"""
import torch

from plumbing.common import UserError

CPU_POSES_AS = 80               # whose tiles the interpreter takes; the tests set it to try both
MEND = "use --kernels torch, which needs nothing"


def require_triton(device, head_width=128):
    """Return in one line what the kernels will run on, or raise UserError with the reason why they cannot run on
    `device`."""
    device = torch.device(device)
    if head_width not in (64, 128):
        raise UserError(f"the Triton attention knows head widths 64 and 128, not {head_width}; {MEND}")
    try:
        import triton
    except ImportError as error:
        raise UserError(f"Triton kernels were asked for, but triton cannot be imported ({error}); {MEND}") from error
    if device.type == "cpu":
        if triton.knobs.runtime.interpret:      # read by Triton when a kernel is defined, so set it before the import
            return f"Triton {triton.__version__}, interpreted on the CPU (for tests: it is thousands of times slower)"
        raise UserError(f"Triton kernels were asked for on the CPU, where only TRITON_INTERPRET=1 runs them; {MEND}")
    if device.type != "cuda" or torch.version.hip:
        raise UserError(f"Triton kernels were asked for on {device.type}, but they are written for NVIDIA GPUs; {MEND}")
    if not torch.cuda.is_available():
        raise UserError(f"Triton kernels were asked for on {device}, but torch finds no GPU here; {MEND}")
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    if major not in (8, 9):
        raise UserError(f"Triton kernels were asked for on {name} (sm_{major}{minor}), but their tiles were chosen for "
                        f"sm_8x and sm_90 only (kernels/tiles.py); {MEND}")
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
    """Which row of the tile tables: 80 (A100, and A10, 4090 and kin: the tiles fit their 99 KB too) or 90 (H100,
    H200)."""
    if device.type == "cpu":
        return CPU_POSES_AS
    return 90 if torch.cuda.get_device_capability(device)[0] == 9 else 80
