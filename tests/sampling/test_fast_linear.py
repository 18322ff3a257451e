"""Every layout of the weights computes what F.linear does, within the error that its precision allows."""
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from sample import generate
from sampling import fast_linear
from sampling.fast_linear import (
    LAYOUTS,
    FastLinear,
    available,
    has,
    lay_out,
    quantize,
    quantize_int4,
    weight_bytes,
)
from sampling.native import in_blocks, in_lines, library, matvec

X86 = "x86" in torch.backends.quantized.supported_engines
BF16 = has("avx512_bf16", "amx_bf16")
needs_a_compiler = pytest.mark.skipif(bool(library()[1]), reason=library()[1])
IDS_BT = torch.randint(301, (2, 20), generator=torch.Generator().manual_seed(1))


def weights():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(70, 48, generator=generator), torch.randn(70, generator=generator)


def error(y, reference):
    return ((y.double() - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("layout, dtype, bound", [
    ("plain", torch.float32, 1e-6), ("widened", torch.bfloat16, 5e-3),
    ("widened_int8", torch.float32, 1e-2),
    pytest.param("matvec", torch.float32, 1e-6, marks=needs_a_compiler),
    pytest.param("matvec", torch.bfloat16, 5e-3, marks=needs_a_compiler),
    pytest.param("matvec_int8", torch.float32, 1e-2, marks=needs_a_compiler),
    pytest.param("matvec_int4", torch.float32, 0.1, marks=needs_a_compiler),
    pytest.param("int8", torch.float32, 2.5e-2, marks=pytest.mark.skipif(not X86, reason="for x86 CPUs")),
    pytest.param("onednn", torch.bfloat16, 5e-3, marks=pytest.mark.skipif(not BF16, reason="no bf16 instructions"))])
def test_a_layout_computes_what_linear_does(monkeypatch, layout, dtype, bound, rows):
    monkeypatch.setattr(fast_linear, "BLOCK", 16 * 48)                     # 70 outputs: four blocks and a rest
    W_OI, b_O = weights()
    x_BI = torch.randn(rows, 48, generator=torch.Generator().manual_seed(2))
    for bias_O in (b_O, None):
        y_BO = FastLinear(W_OI.to(dtype), None if bias_O is None else bias_O.to(dtype), layout)(
            x_BI.to(LAYOUTS[layout].inputs or dtype))
        reference = F.linear(x_BI.double(), W_OI.double(), None if bias_O is None else bias_O.double())
        assert error(y_BO, reference) < bound


def test_8_bit_weights_are_within_half_a_step():
    W_OI, _ = weights()
    int8_OI, scale_O = quantize(W_OI)
    assert ((int8_OI * scale_O[:, None] - W_OI).abs() <= 0.5001 * scale_O[:, None]).all() and int8_OI.abs().max() == 127


def test_4_bit_weights_are_within_half_a_step_and_a_step_where_the_largest_has_the_other_sign():
    W_OI = torch.cat([weights()[0], torch.zeros(1, 48)])
    int4_OI, scale_OG = quantize_int4(W_OI)
    assert int4_OI.shape == (71, 256) and scale_OG.shape == (71, 8) and scale_OG.dtype == torch.bfloat16
    assert int4_OI.amin() == -8 and int4_OI.amax() == 7 and not int4_OI[:, 48:].any()
    scale_OI = scale_OG.float().repeat_interleave(32, 1)[:, :48]
    step_OI, error_OI = scale_OI.abs(), (int4_OI[:, :48] * scale_OI - W_OI).abs()
    clamped_OI = int4_OI[:, :48] == 7
    assert (error_OI <= torch.where(clamped_OI, 1.05, 0.501) * step_OI).all()       # a scale of bf16 is off by 0.4 %
    assert error(int4_OI[:, :48] * scale_OI, W_OI.double()) < 0.1


@pytest.mark.skipif(not X86, reason="for x86 CPUs")
def test_8_bit_products_do_not_overflow():
    """All inputs and weights at their largest: 16 bits would be cut off at less than two thirds of the sum."""
    x_BI, W_OI = torch.ones(1, 256), torch.ones(32, 256)
    x_BI[0, 0] = 0.0                                                       # the lowest: the others are at the top
    y_BO = FastLinear(W_OI, None, "int8")(x_BI)
    torch.testing.assert_close(y_BO, torch.full((1, 32), 255.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("layout, dtype", [
    ("plain", torch.float32), ("widened", torch.bfloat16), ("widened_int8", torch.float32),
    pytest.param("int8", torch.float32, marks=pytest.mark.skipif(not X86, reason="for x86 CPUs"))])
def test_a_row_does_not_depend_on_those_beside_it(layout, dtype):
    """Or else sample i would change with the number of samples."""
    W_OI, b_O = weights()
    linear = FastLinear(W_OI.to(dtype), b_O.to(dtype), layout)
    x_BI = torch.randn(5, 48, generator=torch.Generator().manual_seed(2)) * torch.tensor([1, 100, 1e-3, 0, 5])[:, None]
    for row, y_O in zip(x_BI, linear(x_BI), strict=True):
        torch.testing.assert_close(linear(row[None])[0], y_O, atol=1e-5, rtol=1e-5)


def weights_for_c(kind, outputs, inputs):
    """(W_OC, scale_O), and the weights in fp64, which are what the product should see."""
    generator = torch.Generator().manual_seed(0)
    if kind == "int4":
        int4_OI, scale_OG = quantize_int4(torch.randn(outputs, inputs, generator=generator))
        exact_OI = int4_OI.double() * scale_OG.double().repeat_interleave(32, 1)
        return in_blocks(int4_OI, scale_OG), None, exact_OI[:, :inputs]
    W_OI, scale_O = torch.randn(outputs, inputs, generator=generator).to(kind), None
    if kind == torch.int8:
        W_OI, scale_O = quantize(torch.randn(outputs, inputs, generator=generator))
    return in_lines(W_OI), scale_O, W_OI.double() * (1 if scale_O is None else scale_O[:, None].double())


@needs_a_compiler
@pytest.mark.parametrize("kind, bound", [(torch.float32, 1e-6), (torch.bfloat16, 1e-6), (torch.int8, 1e-4),
                                         ("int4", 1e-2)])
@pytest.mark.parametrize("outputs, inputs", [(1, 1), (29, 15), (3, 48), (30, 1061), (9, 5131)])
def test_the_c_loop_is_exact_and_the_same_to_the_bit_beside_others_and_on_threads(monkeypatch, kind, bound, outputs,
                                                                                inputs):
    """5,131 inputs are three chunks; 18 vectors take these chunk by chunk, fewer all at once."""
    W_OC, scale_O, exact_OI = weights_for_c(kind, outputs, inputs)
    generator = torch.Generator().manual_seed(1)
    b_O, x_BI = torch.randn(outputs, generator=generator), torch.randn(18, inputs, generator=generator)
    y_BO = matvec(x_BI, W_OC, scale_O, b_O)
    assert error(y_BO, F.linear(x_BI.double(), exact_OI, b_O.double())) < bound
    for rows in (1, 2, 3, 4, 5, 8):
        assert torch.equal(matvec(x_BI[:rows], W_OC, scale_O, b_O), y_BO[:rows])
    for row in (7, 17):
        assert torch.equal(matvec(x_BI[row:row + 1], W_OC, scale_O, b_O)[0], y_BO[row])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(matvec(x_BI, W_OC, scale_O, b_O), y_BO)


@needs_a_compiler
def test_the_largest_8_bit_weights_and_inputs_do_not_overflow():
    W_OI, scale_O = torch.full((5, 4096), -127, dtype=torch.int8), torch.ones(5)
    torch.testing.assert_close(matvec(torch.ones(1, 4096), in_lines(W_OI), scale_O), torch.full((1, 5), -127 * 4096.0))
    assert matvec(torch.zeros(1, 4096), in_lines(W_OI), scale_O).eq(0).all()


@needs_a_compiler
@pytest.mark.parametrize("outputs, inputs", [(1, 1), (30, 1061), (9, 5131)])
def test_4_bit_products_are_exact_for_inputs_that_8_bits_hold(outputs, inputs):
    W_OC, _, exact_OI = weights_for_c("int4", outputs, inputs)
    x_BI = torch.randint(-127, 128, (3, inputs), generator=torch.Generator().manual_seed(1)).float()
    x_BI[:, ::32] = 127
    assert error(matvec(x_BI, W_OC), x_BI.double() @ exact_OI.t()) < 1e-6


@needs_a_compiler
@pytest.mark.parametrize("weight, sign", [(-8, 1), (-8, -1), (7, 1), (7, -1)])
def test_the_largest_4_bit_weights_and_inputs_do_not_overflow(weight, sign):
    W_OC = in_blocks(torch.full((5, 4096), weight, dtype=torch.int8), torch.ones(5, 128, dtype=torch.bfloat16))
    x_BI, y_BO = torch.full((1, 4096), float(sign)), torch.full((1, 5), sign * weight * 4096.0)
    torch.testing.assert_close(matvec(x_BI, W_OC), y_BO)
    assert matvec(torch.zeros(1, 4096), W_OC).eq(0).all()


@needs_a_compiler
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int8, "int4"])
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_inputs_that_are_no_numbers_are_not_rounded_to_some(kind, damage):
    W_OC, scale_O, _ = weights_for_c(kind, 5, 40)
    x_BI = torch.ones(2, 40)
    x_BI[0, 3] = damage
    y_BO = matvec(x_BI, W_OC, scale_O)
    assert not y_BO[0].isfinite().any() and y_BO[1].isfinite().all()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if LAYOUTS[name].operators])
@pytest.mark.skipif(not X86, reason="for x86 CPUs")
def test_torch_still_has_the_private_operators(layout):
    """If this fails, torch has dropped them: sample.py still works, by the public ones, but slower. Mend LAYOUTS."""
    assert available(layout)


def test_onednns_packed_weights_give_linears_results():
    """In fp32, which every x86 CPU can do; the signatures are the same in bf16."""
    (W_OI, b_O), x_BI = weights(), torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    onednn = LAYOUTS["onednn"]
    y_BO = onednn.multiply(x_BI, *onednn.pack(W_OI, None), b_O)
    assert error(y_BO, F.linear(x_BI, W_OI, b_O).double()) < 1e-6


@pytest.mark.parametrize("dtype, layout, bound", [
    (torch.bfloat16, "widened", 2e-2), (torch.bfloat16, "widened_int8", 4e-2),
    pytest.param(torch.float32, "matvec", 1e-6, marks=needs_a_compiler),
    pytest.param(torch.bfloat16, "matvec", 2e-2, marks=needs_a_compiler),
    pytest.param(torch.bfloat16, "matvec_int8", 4e-2, marks=needs_a_compiler),
    pytest.param(torch.bfloat16, "matvec_int4", 0.3, marks=needs_a_compiler),
    pytest.param(torch.bfloat16, "int8", 8e-2, marks=pytest.mark.skipif(not X86, reason="for x86 CPUs")),
    pytest.param(torch.bfloat16, "onednn", 3e-2, marks=pytest.mark.skipif(not BF16, reason="no bf16 instructions"))])
def test_a_model_in_a_layout_gives_nearly_its_logits(dtype, layout, bound):
    reference = tiny_model()(IDS_BT).double()
    model = tiny_model().to(dtype)
    lay_out(model, layout)
    with torch.inference_mode():
        assert error(model.logits(model.hidden(IDS_BT)), reference) < bound
    matrices = sum(p.numel() for name, p in tiny_model().named_parameters() if p.dim() == 2 and name != "wpe.weight")
    if layout != "matvec_int4":
        assert weight_bytes(model) == matrices * (1 if "int8" in layout else dtype.itemsize)


@needs_a_compiler
def test_int4_is_9_sixteenths_of_a_byte_per_weight_and_leaves_the_head_in_int8():
    model = tiny_model(n_embd=256, n_head=4)
    lay_out(model, "matvec_int4")
    assert model.lm_head.layout == "matvec_int8" and {b.mlp.c_fc.layout for b in model.h} == {"matvec_int4"}
    assert weight_bytes(model) == len(model.h) * 12 * 256**2 * 9 / 16 + model.wte.weight.numel()


@pytest.mark.parametrize("layout", ["plain", pytest.param("matvec", marks=needs_a_compiler)])
def test_fp32_gives_the_same_tokens_in_every_layout(layout):
    model = tiny_model()
    before = generate(model, [1, 2, 3], 20)
    lay_out(model, layout)
    assert generate(model, [1, 2, 3], 20) == before
