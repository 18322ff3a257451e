"""Every layout of the weights computes what F.linear does, within the error that its precision allows."""
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

import fast_linear
from fast_linear import LAYOUTS, FastLinear, available, choose_layout, has, lay_out, quantize
from kernels.matvec import library, matvec
from sample import generate

CPU = torch.device("cpu")
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
    ("plain", torch.float32, 1e-6), ("blocks", torch.float32, 1e-6), ("blocks", torch.bfloat16, 5e-3),
    ("int8_any", torch.float32, 1e-2),
    pytest.param("matvec", torch.bfloat16, 5e-3, marks=needs_a_compiler),
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


@pytest.mark.skipif(not X86, reason="for x86 CPUs")
def test_8_bit_products_do_not_overflow():
    """All inputs and weights at their largest: 16 bits would be cut off at less than two thirds of the sum."""
    x_BI, W_OI = torch.ones(1, 256), torch.ones(32, 256)
    x_BI[0, 0] = 0.0                                                       # the lowest: the others are at the top
    y_BO = FastLinear(W_OI, None, "int8")(x_BI)
    torch.testing.assert_close(y_BO, torch.full((1, 32), 255.0), rtol=0.01, atol=0)


@pytest.mark.parametrize("layout, dtype", [
    ("blocks", torch.float32), ("blocks", torch.bfloat16), ("int8_any", torch.float32),
    pytest.param("int8", torch.float32, marks=pytest.mark.skipif(not X86, reason="for x86 CPUs"))])
def test_a_row_does_not_depend_on_those_beside_it(layout, dtype):
    """Or else sample i would change with the number of samples."""
    W_OI, b_O = weights()
    linear = FastLinear(W_OI.to(dtype), b_O.to(dtype), layout)
    x_BI = torch.randn(5, 48, generator=torch.Generator().manual_seed(2)) * torch.tensor([1, 100, 1e-3, 0, 5])[:, None]
    for row, y_O in zip(x_BI, linear(x_BI), strict=True):
        torch.testing.assert_close(linear(row[None])[0], y_O, atol=1e-5, rtol=1e-5)


@needs_a_compiler
@pytest.mark.parametrize("inputs", [1, 15, 48, 1061])
def test_the_c_loop_is_exact_and_the_same_to_the_bit_beside_others_and_on_threads(monkeypatch, inputs):
    generator = torch.Generator().manual_seed(0)
    W_OI, b_O = torch.randn(29, inputs, generator=generator).bfloat16(), torch.randn(29, generator=generator)
    x_BI = torch.randn(7, inputs, generator=generator)
    y_BO = matvec(x_BI, W_OI, b_O)
    assert error(y_BO, F.linear(x_BI.double(), W_OI.double(), b_O.double())) < 1e-6
    for row, y_O in zip(x_BI, y_BO, strict=True):
        assert torch.equal(matvec(row[None], W_OI, b_O)[0], y_O)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(matvec(x_BI, W_OI, b_O), y_BO)


@pytest.mark.parametrize("compiler, said", [("no-such-compiler", "no C compiler"), ("false", "could not be compiled")])
def test_without_a_compiler_bf16_is_converted_and_the_reason_known(monkeypatch, compiler, said):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(fast_linear, "has", lambda *instructions: False)
    library.cache_clear()
    assert said in library()[1] and choose_layout("bfloat16", CPU) == "blocks"
    library.cache_clear()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if LAYOUTS[name].operators])
@pytest.mark.skipif(not X86, reason="for x86 CPUs")
def test_torch_still_has_the_private_operators(layout):
    """If this fails, torch has dropped them: sample.py still works, by the public ones, but slower. Mend LAYOUTS."""
    assert available(layout)


def test_onednns_packed_weights_give_linears_results():
    """In fp32, which every x86 CPU can do; the signatures are the same in bf16."""
    (W_OI, b_O), x_BI = weights(), torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    packed = fast_linear.pack_onednn(W_OI, b_O)
    assert error(fast_linear.onednn(x_BI, *packed), F.linear(x_BI, W_OI, b_O).double()) < 1e-6


def test_without_the_private_operators_the_public_ones_serve(monkeypatch):
    monkeypatch.setattr(fast_linear, "available", lambda layout: False)
    assert choose_layout("int8", CPU) == "int8_any"
    monkeypatch.setattr(fast_linear, "has", lambda *instructions: True)
    assert choose_layout("bfloat16", CPU) == "plain"


def test_the_layout_follows_the_processor(monkeypatch):
    monkeypatch.setattr(fast_linear, "library", lambda: (None, ""))                 # as if there were a compiler
    for there, layout in ((True, "onednn"), (False, "matvec")):
        monkeypatch.setattr(fast_linear, "has", lambda *instructions, there=there: there)
        assert choose_layout("bfloat16", CPU) == layout and choose_layout("float32", CPU) == "blocks"
    assert choose_layout("bfloat16", torch.device("cuda")) == "plain"
    assert choose_layout("int8", torch.device("cuda")) == "int8_any"


@pytest.mark.parametrize("dtype, layout, bound", [
    (torch.float32, "blocks", 1e-6), (torch.bfloat16, "blocks", 2e-2), (torch.bfloat16, "int8_any", 4e-2),
    pytest.param(torch.bfloat16, "matvec", 2e-2, marks=needs_a_compiler),
    pytest.param(torch.bfloat16, "int8", 8e-2, marks=pytest.mark.skipif(not X86, reason="for x86 CPUs")),
    pytest.param(torch.bfloat16, "onednn", 3e-2, marks=pytest.mark.skipif(not BF16, reason="no bf16 instructions"))])
def test_a_model_in_a_layout_gives_nearly_its_logits(dtype, layout, bound):
    reference = tiny_model()(IDS_BT).double()
    model = tiny_model().to(dtype)
    read = lay_out(model, layout)
    with torch.inference_mode():
        assert error(model.logits(model.hidden(IDS_BT)), reference) < bound
    matrices = sum(p.numel() for name, p in tiny_model().named_parameters() if p.dim() == 2 and name != "wpe.weight")
    assert read == matrices * {"int8": 1, "int8_any": 1}.get(layout, dtype.itemsize)


def test_fp32_blocks_give_the_same_tokens():
    model = tiny_model()
    before = generate(model, [1, 2, 3], 20, temperature=0)
    lay_out(model, "blocks")
    assert generate(model, [1, 2, 3], 20, temperature=0) == before
