"""`finetune_qa.py medqa --plan`: the memory that each way of fine-tuning needs, computed without a GPU.

It runs the real step (packed questions, forward, backward, clipping, the optimizer) at the size of --model on fake
tensors, which have shapes but no memory, and counts the allocations. The batch is --micro-batch-size questions: one of
--max-length tokens, the others of MedQA's median length.

Not counted: CUDA's context, cuBLAS's workspaces, fragmentation. Leave 1 GiB.
"""
import weakref
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from baselines import shape_of
from model import GPT
from plumbing.runtime import autocast
from questions.heads import Classifier
from questions.packed import Tree
from training.trainable import choose_weights, make_optimizer, trained

GIB = 2**30
WAYS = (("all weights, fp32", {}, 80), ("all weights, bf16, 8-bit moments",
        {"weights": "bfloat16", "moments": "8bit", "recompute_every": 1}, 24),
        ("LoRA of rank 16, bf16", {"weights": "bfloat16", "lora_rank": 16, "recompute_every": 1}, 8))
OPTION, MEDIAN = 8, 157      # MedQA's tokens: of an option with its [SEP]; of a question (median)


def print_plan(cfg):
    """Print the peak of each way, and of cfg's own settings; returns {way: GiB}."""
    network, shape = shape_of(cfg.model)
    with torch.device("meta"):
        n = sum(p.numel() for p in network(shape).parameters())
    print(f"{n:,} parameters; {cfg.micro_batch_size} questions at once, one of {cfg.max_length} tokens, the others of "
          f"{MEDIAN}; peak GiB on one GPU, without CUDA's context:")
    peaks = {}
    for way, changes, gpu in (*WAYS, ("the given settings", {}, 0)):
        settings = replace(cfg, dtype="bfloat16", **changes)
        peaks[way] = step_memory(settings, shape, network)
        verdict = f"{'fits' if peaks[way] + 1 < gpu * 1e9 / GIB else 'does NOT fit'} {gpu} GB" if gpu else ""
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in changes.items())
        print(f"  {peaks[way]:6.2f}  {way:34} {verdict:15} {flags}".rstrip(), flush=True)
    return peaks


def step_memory(cfg, shape, network=GPT):
    """The peak of the second step in GiB: the first has no moments yet."""
    # On a GPU attention's dropout stores no mask; on the CPU torch would choose a kernel that stores all scores.
    with torch.device("meta"):
        gpt = network(replace(shape, attn_pdrop=0.0)).to(getattr(torch, cfg.weights))
    with FakeTensorMode(), Peak() as memory:
        gpt.load_state_dict({name: torch.empty(p.shape, dtype=p.dtype) for name, p in gpt.named_parameters()},
                            assign=True)
        run_steps(cfg, gpt, memory)
    return memory.peak / GIB


class Peak(TorchDispatchMode):
    """Counts the bytes of all live storages (`now`) and their maximum (`peak`). torch's MemTracker, in
    launch/plan.py, finds the same, but it refuses frozen weights and is slow with many small operations."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, out)
        return out

    def note(self, tensor):
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known[storage] = storage.nbytes()
            weakref.finalize(storage, self.add, -storage.nbytes())
            self.add(storage.nbytes())

    def add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


def run_steps(cfg, gpt, memory):
    gpt.add_tokens(2)
    model = Classifier(gpt, gpt.cfg.vocab_size - 1)
    choose_weights(model, cfg, 2)
    optimizer = make_optimizer(model, cfg)
    questions = [cfg.max_length - OPTION, *[MEDIAN] * (cfg.micro_batch_size - 1)]
    trees = [Tree([0] * n, [[0] * OPTION] * 4) for n in questions]
    for _ in range(2):
        memory.peak = memory.now
        with autocast(torch.device("cpu"), cfg.dtype):
            scores_QO = model(trees)
        F.cross_entropy(scores_QO, torch.zeros(len(trees), dtype=torch.int64)).backward()
        torch.nn.utils.clip_grad_norm_(trained(model), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
