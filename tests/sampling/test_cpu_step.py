"""One token in C is the token that model.py computes."""
import mmap

import pytest
import torch
from conftest import tiny_model
from torch.testing import assert_close

from sample import KVCache, Sampling, generate, next_logits, one_token
from sampling.cpu_step import CpuStep, serves
from sampling.fast_linear import lay_out
from sampling.native import in_huge_pages, library

pytestmark = pytest.mark.skipif(bool(library()[1]), reason=library()[1])
PROMPT_BT = torch.randint(301, (3, 5), generator=torch.Generator().manual_seed(1))


def caches(model, rows, room=16):
    """Two caches that have read the same prompts."""
    for _ in range(2):
        cache = KVCache(model.cfg, rows, PROMPT_BT.shape[1] + room, model.ln_f.weight)
        next_logits(model, cache, PROMPT_BT[:rows])
        yield cache


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype, layout, shape", [
    (torch.float32, "matvec", {}), (torch.float32, "matvec", dict(scale_attn_by_inverse_layer_idx=False)),
    (torch.float32, "matvec", dict(n_embd=44, n_head=4, n_inner=70)),           # heads of 11: nothing fills a line
    (torch.bfloat16, "matvec", {}), (torch.bfloat16, "matvec_int8", {}), (torch.bfloat16, "matvec_int4", {})])
def test_a_step_is_the_models(dtype, layout, shape, rows):
    model = tiny_model(**shape).to(dtype)
    lay_out(model, layout)
    expected_cache, cache = caches(model, rows)
    step = CpuStep(model, cache)
    bound = {"matvec": 1e-5, "matvec_int8": 1e-3, "matvec_int4": 1e-2}[layout]      # an input may round the other way
    for token in (7, 300, 0):
        ids_B1 = torch.full((rows, 1), token)
        expected_BV = next_logits(model, expected_cache, ids_B1)
        assert_close(step(ids_B1), expected_BV, atol=bound, rtol=bound)
        assert cache.length == expected_cache.length
        for ours, theirs in ((cache.k_LBHKS[..., :cache.length], expected_cache.k_LBHKS[..., :cache.length]),
                             (cache.v_LBHSK[..., :cache.length, :], expected_cache.v_LBHSK[..., :cache.length, :])):
            assert_close(ours, theirs, atol=bound, rtol=bound)


@torch.inference_mode()
def test_large_numbers_are_computed_as_torch_does():
    """Scores far apart and GELU far from 0, where an exponential overflows or vanishes."""
    model = tiny_model()
    for block in model.h:
        block.attn.c_attn.weight *= 60
        block.mlp.c_fc.weight *= 200
    lay_out(model, "matvec")
    expected_cache, cache = caches(model, 3)
    ids_B1 = torch.tensor([[1], [2], [3]])
    assert_close(CpuStep(model, cache)(ids_B1), next_logits(model, expected_cache, ids_B1), atol=1e-3, rtol=1e-4)


@torch.inference_mode()
def test_a_row_is_the_same_to_the_bit_beside_others_and_on_threads(monkeypatch):
    model = tiny_model()
    lay_out(model, "matvec")
    together = [CpuStep(model, cache)(torch.tensor([[9], [8], [7]])) for cache in caches(model, 3)][0]
    alone = [CpuStep(model, cache)(torch.tensor([[9]])) for cache in caches(model, 1)][0]
    assert torch.equal(alone[0], together[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    threaded = [CpuStep(model, cache)(torch.tensor([[9], [8], [7]])) for cache in caches(model, 3)][0]
    assert torch.equal(threaded, together)


def test_it_is_taken_where_it_can_be_and_gives_the_same_tokens():
    model = tiny_model()
    before = generate(model, [1, 2, 3], 20, Sampling(temperature=1.0), num_samples=3, seed=5)
    lay_out(model, "matvec")
    cache = KVCache(model.cfg, 1, 8, model.ln_f.weight)
    assert isinstance(one_token(model, cache, False), CpuStep)
    assert generate(model, [1, 2, 3], 20, Sampling(temperature=1.0), num_samples=3, seed=5) == before
    other = tiny_model()
    lay_out(other, "widened")
    assert not serves(other, cache)


@pytest.mark.parametrize("system_has_them", [True, False])
def test_huge_pages_hold_zeros_of_every_shape_and_type(monkeypatch, system_has_them):
    class Refusing(mmap.mmap):
        def madvise(self, advice):
            raise OSError(22, "Invalid argument")

    if not system_has_them:
        monkeypatch.setattr(mmap, "mmap", Refusing)
    for shape, dtype in (((3, 5), torch.int8), ((0, 4), torch.float32), ((2**20 + 1,), torch.bfloat16)):
        memory = in_huge_pages(*shape, dtype=dtype)
        assert memory.shape == shape and memory.dtype == dtype and not memory.any()
