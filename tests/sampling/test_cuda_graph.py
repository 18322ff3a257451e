"""What a CUDA graph would record gives the logits of the ordinary step; no GPU is needed to show it."""
import interpreter  # noqa: F401, I001  before anything that defines a kernel

import pytest
import torch
from conftest import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpretedFunction

from plumbing.common import UserError
from sample import KVCache, next_logits
from sampling.cuda_graph import GraphStep
from sampling.fast_linear import lay_out

PROMPTS_BT = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])


class Recorder(TorchDispatchMode):
    """What a CUDA graph records: every operator on the addresses that it was called with. `replay` runs them again."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.calls.append((function, arguments, options or {}, result))
        return result

    def replay(self):
        for function, arguments, options, result in self.calls:
            again = function(*arguments, **options)
            for old, new in zip(*((x if isinstance(x, (tuple, list)) else (x,)) for x in (result, again)), strict=True):
                if torch.is_tensor(old) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                    old.copy_(new)

    def listed(self):
        """[(operator, shapes of its tensors, its other arguments)]"""
        return [(str(function), [tuple(x.shape) if torch.is_tensor(x) else x for x in arguments], str(options))
                for function, arguments, options, _ in self.calls]


@pytest.fixture(autouse=True)
def fewer_programs(monkeypatch):
    """The interpreter's time is that of the number of programs."""
    monkeypatch.setattr("kernels.matvec.OUTPUTS", 128)


def prepared(layout, batch):
    model = tiny_model(n_layer=2)
    if layout:
        lay_out(model, layout)
    cache = KVCache(model.cfg, batch, 12, model.wpe.weight)
    next_logits(model, cache, PROMPTS_BT[:batch])
    return model, cache, GraphStep(model, cache, record=False)


@pytest.mark.parametrize("layout, batch", [("", 2), ("plain", 1), ("widened_int8", 2)])
@torch.no_grad()
def test_the_step_gives_the_logits_of_the_model_with_a_growing_cache(layout, batch):
    model, cache, step = prepared(layout, batch)
    for token in (3, 200):
        ids_B1 = torch.tensor([[token], [token + 1]])[:batch]
        torch.testing.assert_close(step(ids_B1), next_logits(model, cache, ids_B1), atol=1e-5, rtol=1e-5)
    assert step.position_1.item() == cache.length == 6


@torch.no_grad()
def test_a_recorded_step_can_be_replayed_at_other_positions(monkeypatch):
    model, cache, step = prepared("plain", 2)
    recorders = []
    for token in (3, 200):                                        # positions 4 and 5
        ids_B1 = torch.tensor([[token], [token + 1]])
        with Recorder() as recorder:
            logits_BV = step.step()
        recorders.append(recorder)
        step(ids_B1)
        next_logits(model, cache, ids_B1)
    assert recorders[0].listed() == recorders[1].listed()
    reads_of_the_host = ("_local_scalar_dense", "nonzero", "_to_copy", "masked_select", "unique", "is_nonzero")
    assert not [name for name, *_ in recorder.listed() if any(read in name for read in reads_of_the_host)]

    for token in (17, 40):
        ids_B1 = torch.tensor([[token], [token + 1]])
        step.ids_B1.copy_(ids_B1)                                 # as GraphStep does around a replay
        recorder.replay()
        torch.testing.assert_close(logits_BV, next_logits(model, cache, ids_B1), atol=1e-5, rtol=1e-5)
        step.position_1 += 1
        step.length_B += 1


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_layer_takes_at_most_eight_launches(batch, monkeypatch):
    launched, launch = [], InterpretedFunction.__getitem__
    monkeypatch.setattr(InterpretedFunction, "__getitem__",
                        lambda kernel, grid: launched.append(kernel) or launch(kernel, grid))
    model, _, step = prepared("plain", batch)
    launched.clear()
    with Recorder() as recorder:
        step.step()
    views = ("view", "unbind", "select", "slice", "alias", "detach", "transpose", "unsqueeze", "expand", "nanobiomedlm")
    others = [name for name, *_ in recorder.listed() if not any(view in name for view in views)]
    assert len(others) <= 3                                       # both embeddings and their sum, once per token
    assert (len(launched) - 2) / len(model.h) <= 8                # the last LayerNorm and the head, once per token


def test_a_head_width_that_triton_cannot_tile_is_named():
    model = tiny_model(n_embd=60)
    with pytest.raises(UserError, match="a power of 2, not 20"):
        GraphStep(model, KVCache(model.cfg, 1, 12, model.wpe.weight), record=False)


def test_weights_that_the_kernels_cannot_read_are_named():
    model = tiny_model()
    cache = KVCache(model.cfg, 1, 12, model.wpe.weight)
    lay_out(model, "widened")
    with pytest.raises(UserError, match="the layout widened; use --no-cuda-graph"):
        GraphStep(model, cache, record=False)
