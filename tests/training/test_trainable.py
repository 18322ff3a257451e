"""What learns and what it costs: LoRA, moments of a byte, weights in bfloat16, and the memory that each takes."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_config, tiny_model

from finetune_qa import FinetuneQA
from launch.plan_qa import step_memory
from plumbing.common import UserError
from questions.heads import Classifier
from questions.packed import Tree
from training.adamw8bit import AdamW8bit, dequantize, quantize, randomly_rounded_to_bfloat16
from training.trainable import LoRA, check_weights, choose_weights, make_optimizer

TREES = [Tree([5, 6, 301], [[7, 301], [8, 9, 10, 301]]), Tree([1, 2, 3, 4, 301], [[12, 301], [13, 301]])]
ANSWERS = torch.tensor([1, 0])
CFG = FinetuneQA(learning_rate=1e-3, dtype="float32")


def classifier(cfg):
    torch.manual_seed(0)
    gpt = tiny_model().to(getattr(torch, cfg.weights))
    gpt.add_tokens(2)
    model = Classifier(gpt, 302)
    choose_weights(model, cfg, 2)
    return model.train()


def losses_of(cfg, steps=30):
    model, losses = classifier(cfg), []
    optimizer = make_optimizer(model, cfg)
    for step in range(steps):
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=cfg.dtype == "bfloat16"):
            loss = F.cross_entropy(model(TREES), ANSWERS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_lora_begins_as_the_model_was_and_learns_its_additions_the_new_tokens_and_the_head_alone():
    plain, model = classifier(CFG), classifier(replace(CFG, lora_rank=4))
    for p, name in ((model.gpt.h[0].mlp.c_fc.b, "b"), (model.gpt.wte.new, "new")):
        assert p.requires_grad, name
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.score.load_state_dict(plain.score.state_dict())
    torch.testing.assert_close(model(TREES), plain(TREES))
    for _ in range(2):                           # the first step moves B, and only then A has a gradient
        F.cross_entropy(model(TREES), ANSWERS).backward()
        make_optimizer(model, CFG).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    inside = {name for name in moved if ".h." in name}
    assert {name.rsplit(".", 1)[1] for name in inside} == {"a", "b"} and len(inside) == 3 * 4 * 2
    # The bias adds the same to all options: its gradient is 0 but for rounding.
    assert moved - inside - {"score.bias"} == {"gpt.wte.new", "score.weight"}


def test_lora_is_a_product_of_low_rank_added_to_the_weight():
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    lora = LoRA(base, 2)
    torch.nn.init.normal_(lora.b)
    x = torch.randn(3, 6)
    torch.testing.assert_close(lora(x), F.linear(x, base.weight + 2 * lora.b @ lora.a, base.bias))


@pytest.mark.parametrize("changes, close", [
    ({"moments": "8bit"}, 0.15), ({"lora_rank": 8}, None), ({"recompute_every": 1}, 1e-5),
    ({"weights": "bfloat16", "dtype": "bfloat16", "moments": "8bit", "recompute_every": 1}, 0.3),
    ({"weights": "bfloat16", "dtype": "bfloat16", "lora_rank": 8}, None)])
def test_every_choice_of_weights_learns_by_the_same_step(changes, close):
    plain, chosen = losses_of(CFG), losses_of(replace(CFG, **changes))
    assert chosen[-1] < 0.5 * chosen[0]
    assert close is None or abs(chosen[-1] - plain[-1]) < close * plain[0]


def test_moments_of_a_byte_keep_their_mean_and_six_percent():
    torch.manual_seed(0)
    x = torch.randn(1000) * torch.logspace(-4, 0, 1000)
    codes, scale = quantize(x, signed=True)
    assert codes.dtype == torch.uint8 and len(codes) == 1024 and len(scale) == 4
    assert ((dequantize(codes, scale, True)[:1000] - x).abs() <= 0.1 * x.abs() + 2e-5 * scale.repeat_interleave(256)[
        :1000]).all()
    mean = sum(dequantize(*quantize(x.square(), False), False)[:1000] for _ in range(400)) / 400
    torch.testing.assert_close(mean, x.square(), rtol=0.02, atol=1e-12)


def test_a_moment_that_decays_by_a_thousandth_a_step_does_decay():
    """Rounded to the nearest level it would stand still for ever."""
    torch.manual_seed(0)
    codes, scale = quantize(torch.rand(2048) + 0.5, False)
    start = dequantize(codes, scale, False).mean().item()
    for _ in range(500):
        codes, scale = quantize(0.999 * dequantize(codes, scale, False), False)
    assert dequantize(codes, scale, False).mean().item() / start == pytest.approx(0.999**500, rel=0.03)


def test_adamw_of_a_byte_walks_where_adamw_walks():
    """600 noisy steps on a quadratic, with weight decay; a tensor that is no multiple of the block among them."""
    ends = []
    for optimizer in (torch.optim.AdamW, AdamW8bit):
        torch.manual_seed(0)
        target, p = torch.randn(3, 100), torch.nn.Parameter(torch.zeros(3, 100))
        step = optimizer([p], lr=1e-2, weight_decay=0.01)
        for i in range(600):
            torch.manual_seed(i)
            p.grad = p.detach() - target + 0.1 * torch.randn_like(p)
            step.step()
        ends.append(p.detach())
    assert (ends[0] - ends[1]).abs().mean() < 0.02 and (ends[1] - target).abs().mean() < 0.05


def test_rounding_to_bfloat16_at_random_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.tensor([1.0, 1.001, -3.003, 2e-6])
    mean = sum(randomly_rounded_to_bfloat16(x).float() for _ in range(4000)) / 4000
    torch.testing.assert_close(mean, x, rtol=3e-4, atol=0)
    assert randomly_rounded_to_bfloat16(x)[0] == 1.0


@pytest.mark.parametrize("changes, words", [
    ({"weights": "bfloat16"}, "are lost"), ({"weights": "bfloat16", "moments": "8bit", "dtype": "float32"}, "needs"),
    ({"moments": "8bit", "parallel": "ddp"}, "for one process"),
    ({"weights": "bfloat16", "lora_rank": 2, "parallel": "fsdp"}, "holds all weights")])
def test_choices_that_would_not_do_what_they_say_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        check_weights(replace(CFG, **{"dtype": "bfloat16"} | changes))


def test_the_plan_counts_the_bytes_of_each_way():
    """On a model so small that its activations do not count: 16 bytes a parameter, 6, and 2."""
    shape = tiny_config(n_embd=384, n_head=3, n_layer=1, n_positions=512)
    n = 301 * 384 + 512 * 384 + 12 * 384**2 + 13 * 384 + 2 * 384
    cfg = replace(CFG, dtype="bfloat16", micro_batch_size=1, max_length=32, recompute_every=1)
    ways = {16: {}, 6: {"weights": "bfloat16", "moments": "8bit"}, 2: {"weights": "bfloat16", "lora_rank": 1}}
    for size, changes in ways.items():
        counted = step_memory(replace(cfg, **changes), shape) * 2**30 / n
        assert size < counted < size + (25 if size == 6 else 4), "temporaries of the optimizer's chunk are the rest"
