"""What a CUDA graph would record gives the logits of the ordinary step; that needs no GPU to be shown."""
import interpreter  # noqa: F401, I001  before anything that defines a kernel

import pytest
import torch
from conftest import tiny_model

from plumbing.common import UserError
from sampling.cuda_graph import GraphStep
from sample import KVCache, next_logits


@torch.inference_mode()
def test_the_static_cache_gives_the_logits_of_the_growing_one():
    model, ids_BT = tiny_model(n_layer=2), torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    cache = KVCache(model.cfg, 2, 12, model.wpe.weight)
    next_logits(model, cache, ids_BT)
    step = GraphStep(model, cache, record=False)
    for token in (3, 200, 17):
        ids_B1 = torch.tensor([[token], [token + 1]])
        torch.testing.assert_close(step(ids_B1), next_logits(model, cache, ids_B1), atol=1e-5, rtol=0)
    assert step.cache.position_1.item() == cache.length == 7


def test_a_head_width_that_triton_cannot_tile_is_named():
    model = tiny_model(n_embd=60)
    with pytest.raises(UserError, match="a power of 2, not 20"):
        GraphStep(model, KVCache(model.cfg, 1, 12, model.wpe.weight), record=False)
