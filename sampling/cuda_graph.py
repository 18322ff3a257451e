"""One token on a GPU as one launch.

Teaches CUDA graphs. A token of BioMedLM is about 500 kernels of a few microseconds each, and launching them one by one
from Python takes longer than running them. A CUDA graph records the launches once and replays all of them at once. It
replays the same addresses, so nothing may move or grow: the cache has all its positions from the start, the new token's
id and position are at fixed places on the device, and attention (kernels/flash_decode.py) reads the number of keys
there.

    COST: 5.2 GB of bf16 weights per token, 1.1 ms at an H200's 4.8 TB/s; launched one by one, 4 ms and more

    step = GraphStep(model, cache)             # a sample.KVCache that has read the prompt; recorded here
    logits_BV = step(ids_B1)                   # valid until the next call, which overwrites it

Not here: choosing the token (sample.py). Not yet run on a GPU: the tests run the recorded function on a CPU, with
Triton's interpreter. sample.py --no-cuda-graph does not use it.
"""
import torch

from kernels import require_triton
from kernels.flash_decode import flash_decode
from plumbing.common import UserError


class StaticCache:
    """Keys and values as flash_decode reads them, [L, B, H, positions, K], with their length on the device."""

    def __init__(self, cache):
        self.k_LBHSK, self.v_LBHSK = cache.k_LBHKS.transpose(3, 4).contiguous(), cache.v_LBHSK
        self.position_1 = torch.tensor([cache.length], device=self.v_LBHSK.device)      # the new token's
        self.length = 0                            # counted by the model; a recorded graph does not read it

    def attend(self, layer, q_BHTK, k_BHTK, v_BHTK, scale):
        k_BHSK, v_BHSK = self.k_LBHSK[layer], self.v_LBHSK[layer]
        k_BHSK.index_copy_(2, self.position_1, k_BHTK)
        v_BHSK.index_copy_(2, self.position_1, v_BHTK)
        length_B = (self.position_1 + 1).int().expand(len(q_BHTK)).contiguous()
        return flash_decode(q_BHTK[:, :, 0], k_BHSK, v_BHSK, length_B, scale)[:, :, None]


class GraphStep:
    """The next token's logits, one call per token. Without `record`, the same operations are launched one by one."""

    def __init__(self, model, cache, record=True):
        device, width = cache.v_LBHSK.device, cache.v_LBHSK.shape[-1]
        try:
            require_triton(device)
        except UserError as error:
            raise UserError(f"{error}; for sample.py, --no-cuda-graph") from error
        if width & (width - 1):
            raise UserError(f"flash_decode needs heads whose width is a power of 2, not {width}; use --no-cuda-graph")
        self.model, self.cache, self.graph = model, StaticCache(cache), None
        self.ids_B1 = torch.zeros(cache.v_LBHSK.shape[1], 1, dtype=torch.int64, device=device)
        if record:
            self.record()

    def step(self):
        x_B1D = self.model.hidden(self.ids_B1, self.cache, position_BT=self.cache.position_1)
        return self.model.logits(x_B1D[:, -1])

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
        self.cache.position_1 += 1
        return self.logits_BV
