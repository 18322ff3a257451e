"""One token on a GPU as one launch.

Teaches CUDA graphs. A token of BioMedLM is about 260 kernels of a few microseconds each, and launching them one by one
from Python takes longer than running them. A CUDA graph records the launches once and replays all of them at once. It
replays the same addresses, so nothing may move or grow: the cache has all its positions from the start, and the new
token's id, its position and the number of keys (kernels/flash_decode.py) are at fixed places on the device.

    COST: 5.2 GB of bf16 weights per token, 1.1 ms at an H200's 4.8 TB/s; launched one by one, 4 ms and more

    step = GraphStep(model, cache)             # a sample.KVCache that has read the prompt; recorded here
    logits_BV = step(ids_B1)                   # valid until the next call, which overwrites it

Not here: choosing the token (sample.py). Not yet run on a GPU: tests interpret it. sample.py --no-cuda-graph avoids it.
"""
import torch

from kernels import require_triton
from kernels.flash_decode import append_and_decode
from kernels.matvec import matvec
from kernels.transformer import final_norm as normed
from plumbing.common import UserError


def weights_of(linear):
    """(weights, scale or None, bias or None) as matvec reads them, of nn.Linear or of FastLinear's layouts for GPUs."""
    if isinstance(linear, torch.nn.Linear):
        return linear.weight, None, linear.bias
    layout = getattr(linear, "layout", type(linear).__name__)
    if layout in ("plain", "widened_int8"):
        return linear.packed
    raise UserError(f"a CUDA graph cannot read weights in the layout {layout}; use --no-cuda-graph")


class GraphStep:
    """The next token's logits, one call per token. Without `record`, the same operations are launched one by one."""

    def __init__(self, model, cache, record=True):
        device, B, K = cache.v_LBHSK.device, cache.v_LBHSK.shape[1], cache.v_LBHSK.shape[4]
        try:
            require_triton(device)
        except UserError as error:
            raise UserError(f"{error}; for sample.py, --no-cuda-graph") from error
        if K & (K - 1):
            raise UserError(f"flash_decode needs heads whose width is a power of 2, not {K}; use --no-cuda-graph")
        self.model, self.graph = model, None
        self.k_LBHSK, self.v_LBHSK = cache.k_LBHKS.transpose(3, 4).contiguous(), cache.v_LBHSK
        self.ids_B1 = torch.zeros(B, 1, dtype=torch.int64, device=device)
        self.position_1 = torch.tensor([cache.length], device=device)                           # the new token's
        self.length_B = torch.full((B,), cache.length + 1, dtype=torch.int32, device=device)    # it included
        self.head = weights_of(model.lm_head) if model.lm_head is not None else (model.wte.weight,)
        if record:
            self.record()

    def step(self):
        x_BD = self.model.embed(self.ids_B1, self.position_1)[:, 0].to(self.v_LBHSK.dtype)
        for block, k_BHSK, v_BHSK in zip(self.model.h, self.k_LBHSK, self.v_LBHSK, strict=True):
            attn, mlp = block.attn, block.mlp
            qkv_BC = matvec(normed(block.ln_1, x_BD), *weights_of(attn.c_attn))
            y_BD = append_and_decode(qkv_BC, k_BHSK, v_BHSK, self.length_B, attn.scale)
            x_BD = matvec(y_BD, *weights_of(attn.c_proj), residual_BO=x_BD)
            h_BF = matvec(normed(block.ln_2, x_BD), *weights_of(mlp.c_fc), gelu=True)
            x_BD = matvec(h_BF, *weights_of(mlp.c_proj), residual_BO=x_BD)
        return matvec(normed(self.model.ln_f, x_BD), *self.head)

    def record(self):
        """Run twice, so that kernels are compiled and workspaces allocated, then record. Meanwhile only the new token's
        position is written, and the first real step overwrites it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_BV = self.step()

    def __call__(self, ids_B1):
        self.ids_B1.copy_(ids_B1)
        if self.graph:
            self.graph.replay()
        else:
            self.logits_BV = self.step()
        self.position_1 += 1
        self.length_B += 1
        return self.logits_BV
