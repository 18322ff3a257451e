"""Every kernel, interpreted on the CPU, computes what its formula says in fp64, forward and backward.

Fresh memory is NaN throughout, so an element that a kernel forgets to write fails its test.
"""
import interpreter  # noqa: F401, I001  before anything that defines a kernel

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from conftest import tiny_model

import kernels
from bench.gpu_checks import kernels_with_sdpa
from bench.measure import relative_error
from data import document_starts
from kernels import flash_attention, self_check, transformer
from kernels.cross_entropy import cross_entropy_, linear_cross_entropy, linear_cross_entropy_op
from kernels.flash_attention import attention_reference, dropout_in_256, flash_attention_op
from kernels.flash_decode import append_and_decode
from kernels.gelu import bias_gelu, gelu_linear, gelu_linear_op
from kernels.layer_norm import add_layer_norm, layer_norm, norm_linear, norm_linear_op
from kernels.matvec import matvec
from plumbing.common import UserError
from sampling.fast_linear import quantize

# The error of rounding alone, as |x - reference| / |reference|: a few units of the dtype's last bit
CLOSE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 7e-3}
DTYPES = list(CLOSE)


@pytest.fixture(autouse=True)
def poisoned_memory_and_fixed_seed():
    torch.manual_seed(4)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def assert_close(x, reference, dtype, what=""):
    if not reference.any():                                       # e.g. dq at T = 1: only absolute error has a meaning
        return torch.testing.assert_close(x.double(), reference.double(), rtol=0, atol=CLOSE[dtype])
    error = relative_error(x, reference)
    assert error < CLOSE[dtype], f"{what}: relative error {error:.1e}, {dtype} allows {CLOSE[dtype]:.0e}"


def random(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype).requires_grad_()


def doubled(*tensors):
    """The same values in fp64, with gradients of their own."""
    return [x.detach().double().requires_grad_() for x in tensors]


# ---------------------------------------------------------------------------------------------------------------------
# The interpreter's repair

@triton.jit
def _round_kernel(x, y, z):
    i = tl.arange(0, 1024)
    tl.store(y + i, tl.load(x + i).to(tl.bfloat16))
    tl.store(z + i, tl.load(y + i).to(tl.float32))


def test_the_repaired_interpreter_rounds_to_bf16_like_torch():
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, 1e-40, -1e-40, 3.4e38, math.nan])
    x = torch.cat([torch.randn(1000), special, 1e-30 * torch.randn(16)])
    y, z = torch.zeros(1024, dtype=torch.bfloat16), torch.zeros(1024)
    _round_kernel[(1,)](x, y, z)
    assert y.allclose(x.bfloat16(), 0, 0, equal_nan=True) and z.allclose(x.bfloat16().float(), 0, 0, equal_nan=True)


# ---------------------------------------------------------------------------------------------------------------------
# flash_attention

def attention_matches(B, T, H, K, dtype, docs=False, dropout_p=0.0):
    qkv_BT3C, dout_BTC = random(B, T, 3 * H * K, dtype=dtype), random(B, T, H * K, dtype=dtype)
    scale, seed, keep_BHTS, doc_start_BT = torch.tensor(0.7 / math.sqrt(K)), None, 1.0, None
    if docs:
        doc_start_BT = document_starts(torch.randint(0, 40, (B, T)), eos_id=0)
    if dropout_p:
        seed, drop = torch.randint(2**62, (1,)), dropout_in_256(dropout_p)
        keep_BHTS = torch.from_numpy(philox_bytes(seed.item(), B * H, T) >= drop).view(B, H, T, T) * 256 / (256 - drop)
    out_BTC, lse_BHT = flash_attention_op(qkv_BT3C, H, scale, dropout_p, seed, doc_start_BT)
    out_BTC.backward(dout_BTC)
    [ref_BT3C] = doubled(qkv_BT3C)
    ref_out_BTC, ref_lse_BHT = attention_reference(ref_BT3C, H, scale.double(), keep_BHTS, doc_start_BT)
    ref_out_BTC.backward(dout_BTC.double())
    assert_close(out_BTC, ref_out_BTC, dtype, "out")
    assert_close(lse_BHT, ref_lse_BHT, torch.float32, "lse")
    for name, grad, ref in zip(("dq", "dk", "dv"), qkv_BT3C.grad.chunk(3, 2), ref_BT3C.grad.chunk(3, 2), strict=True):
        assert_close(grad, ref, dtype, name)


def philox_bytes(seed, heads, T):
    """[heads, T, T] random bytes by Philox4x32-7 as its paper writes it: counter (t, s // 16, head, 0), little-endian
    bytes."""
    head, t, group = np.meshgrid(*(np.arange(n, dtype=np.uint64) for n in (heads, T, -(-T // 16))), indexing="ij")
    c0, c1, c2, c3, k0, k1, low = t, group, head, 0 * t, seed & 0xFFFFFFFF, seed >> 32, np.uint64(0xFFFFFFFF)
    for _ in range(7):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c2 = (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0), (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = b & low, a & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1).astype("<u4").view(np.uint8).reshape(heads, T, -1)[:, :, :T]


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 128])
def test_attention_of_whole_tiles(arch, dtype, width, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_POSES_AS", arch)
    attention_matches(1, 256 if dtype != torch.float32 else 48, 1, width, dtype)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("T", [1, 33, 200])
def test_attention_of_any_length_with_documents(arch, width, T, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_POSES_AS", arch)
    attention_matches(2 if T == 33 else 1, T, 2 if T == 1 else 1, width, torch.bfloat16, docs=True)


def test_attention_of_odd_length_in_fp32_and_fp16():
    attention_matches(1, 50, 1, 64, torch.float32, docs=True)
    attention_matches(1, 150, 1, 64, torch.float16)


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("H, T, K, dropout_p, docs", [(1, 128, 64, 0.1, False), (2, 90, 128, 0.4, True)])
def test_attention_drops_what_philox_says(arch, H, T, K, dropout_p, docs, monkeypatch):
    monkeypatch.setattr(kernels, "CPU_POSES_AS", arch)
    attention_matches(1, T, H, K, torch.bfloat16, docs, dropout_p)


def test_attention_drops_in_fp32():
    attention_matches(1, 36, 1, 64, torch.float32, docs=True, dropout_p=0.25)


# ---------------------------------------------------------------------------------------------------------------------
# flash_decode

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("K, lengths", [(64, [1, 131]), (128, [300, 64])])
def test_decoding_appends_the_new_key_and_value_and_equals_attention_of_the_last_query(dtype, K, lengths):
    B, H, S = 2, 3, 300
    qkv_BC = torch.randn(B, 3 * H * K).to(dtype)
    caches_2BHSK = torch.randn(2, B, S, H, K).to(dtype).transpose(2, 3)            # any strides
    q_BHK, *new_2BHK = qkv_BC.view(B, 3, H, K).unbind(1)
    expected_2BHSK = caches_2BHSK.clone()
    for b, length in enumerate(lengths):
        expected_2BHSK[:, b, :, length - 1] = torch.stack(new_2BHK)[:, b]
    out_BC = append_and_decode(qkv_BC, *caches_2BHSK, torch.tensor(lengths, dtype=torch.int32), 0.1)
    assert torch.equal(caches_2BHSK, expected_2BHSK)
    for b, length in enumerate(lengths):
        one = slice(b, b + 1)
        query_key_value = doubled(q_BHK[one, :, None], *expected_2BHSK[:, one, :, :length])
        ref_1H1K = torch.nn.functional.scaled_dot_product_attention(*query_key_value, scale=0.1)
        assert_close(out_BC[one].view(1, H, 1, K), ref_1H1K, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# matvec

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B, I, O", [(1, 600, 7), (5, 100, 9)])
def test_matvec(dtype, B, I, O):      # noqa: E741
    x_BI, weight_OI, bias_O, residual_BO = (torch.randn(*shape).to(dtype) for shape in ((B, I), (O, I), (O,), (B, O)))
    int8_OI, scale_O = quantize(weight_OI)
    for weight, scale in ((weight_OI, None), (int8_OI, scale_O)):
        x_64, weight_64, bias_64 = x_BI.double(), weight.double(), bias_O.double()
        product_BO = x_64 @ (weight_64 if scale is None else weight_64 * scale.double()[:, None]).T
        gelu_BO = torch.nn.functional.gelu(product_BO + bias_64, approximate="tanh")
        for settings, expected_BO in (((None, False, None), product_BO), ((bias_O, True, None), gelu_BO),
                                      ((bias_O, False, residual_BO), product_BO + bias_64 + residual_BO.double())):
            y_BO = matvec(x_BI, weight, scale, *settings)
            assert_close(y_BO, expected_BO, dtype)
            assert y_BO.dtype == dtype


# ---------------------------------------------------------------------------------------------------------------------
# layer_norm and gelu, each alone and with the linear layer whose input they compute again

def gradients_match(inputs, outputs, references, doubles, dtype):
    douts = [torch.randn_like(out) for out in outputs]
    torch.autograd.backward(outputs, douts)
    torch.autograd.backward(references, [dout.double() for dout in douts])
    for i, (out, ref) in enumerate(zip(outputs, references, strict=True)):
        assert_close(out, ref, dtype, f"output {i}")
    for i, (x, ref) in enumerate(zip(inputs, doubles, strict=True)):
        assert_close(x.grad, ref.grad, dtype, f"gradient of input {i}")


# 230 rows: more than the backward pass has programs
@pytest.mark.parametrize("N, D, dtype", [(230, 64, torch.float32), (3, 100, torch.float16), (3, 100, torch.float32),
                                         (5, 2560, torch.bfloat16), (5, 2560, torch.float32)])
def test_layer_norm(N, D, dtype):
    inputs = random(N, D, dtype=dtype), random(D), random(D)                  # weights stay fp32, as in mixed precision
    doubles = doubled(*inputs)
    reference = torch.nn.functional.layer_norm(doubles[0], (D,), *doubles[1:])
    gradients_match(inputs, [layer_norm(*inputs)], [reference], doubles, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_residual_and_linear_layer(dtype):
    x, linear = random(2, 9, 100, dtype=dtype), [random(70, 100, dtype=dtype), random(70, dtype=dtype)]
    inputs = x, random(100), random(100), *linear, random(2, 9, 100)
    x, norm_weight, norm_bias, weight, bias, residual = doubles = doubled(*inputs)
    total = x + residual
    norm = torch.nn.functional.layer_norm(total, (100,), norm_weight, norm_bias)
    gradients_match(inputs, norm_linear(*inputs), [total, norm @ weight.T + bias], doubles, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_with_residual(dtype):
    inputs = random(2, 9, 100, dtype=dtype), random(2, 9, 100, dtype=dtype), random(100), random(100)
    x, residual, weight, bias = doubles = doubled(*inputs)
    reference = torch.nn.functional.layer_norm(x + residual, (100,), weight, bias)
    gradients_match(inputs, add_layer_norm(*inputs), [x + residual, reference], doubles, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N, F", [(5, 10), (140, 260)])      # less and more than a program takes of rows and of columns
def test_gelu(dtype, N, F):
    inputs = random(N, F, dtype=dtype), random(F)
    doubles = doubled(*inputs)
    reference = torch.nn.functional.gelu(sum(doubles), approximate="tanh")
    gradients_match(inputs, [bias_gelu(*inputs)], [reference], doubles, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_with_linear_layer(dtype):
    inputs = random(2, 9, 40, dtype=dtype), random(40), random(30, 40, dtype=dtype), random(30, dtype=dtype)
    h, gelu_bias, weight, bias = doubles = doubled(*inputs)
    reference = torch.nn.functional.gelu(h + gelu_bias, approximate="tanh") @ weight.T + bias
    gradients_match(inputs, [gelu_linear(*inputs)], [reference], doubles, dtype)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_gelu_of_large_inputs_is_finite():
    x = torch.tensor([[-1e4, -30.0, 0.0, 30.0, 1e4]], requires_grad=True)
    y = bias_gelu(x, torch.zeros(5))
    y.sum().backward()
    assert y.tolist() == [[0, 0, 0, 30, 1e4]] and x.grad.tolist() == [[0, 0, 0.5, 1, 1]]


# ---------------------------------------------------------------------------------------------------------------------
# cross_entropy

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N, V", [(5, 100), (3, 28896)])
def test_cross_entropy_leaves_the_gradient_in_the_logits(dtype, N, V):
    logits_NV, targets_N = (3 * torch.randn(N, V)).to(dtype), torch.randint(0, V, (N,))
    targets_N[1] = -1                                                              # ignored
    [double_NV] = doubled(logits_NV)
    loss_N = torch.nn.functional.cross_entropy(double_NV, targets_N, ignore_index=-1, reduction="none")
    [gradient_NV] = torch.autograd.grad(loss_N.sum(), double_NV)
    untouched_NV = logits_NV.clone()
    assert_close(cross_entropy_(untouched_NV, targets_N, False), loss_N, torch.float32)
    assert torch.equal(untouched_NV, logits_NV)
    assert_close(cross_entropy_(logits_NV, targets_N, True), loss_N, torch.float32)
    assert_close(logits_NV, gradient_NV, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_cross_entropy_in_chunks(dtype):
    x, weight, targets = random(2, 20, 48, dtype=dtype), random(300, 48), torch.randint(0, 300, (2, 20))
    targets[0, 3:9] = -1
    x64, weight64 = doubled(x, weight.to(dtype))
    reference = torch.nn.functional.cross_entropy((x64 @ weight64.T).flatten(0, 1), targets.flatten(), ignore_index=-1)
    loss = linear_cross_entropy(x, weight, targets, chunk_rows=16)
    (3 * loss).backward()
    (3 * reference).backward()
    assert weight.grad.dtype == torch.float32 and x.grad.dtype == dtype
    assert_close(loss, reference, dtype)
    assert_close(x.grad, x64.grad, dtype)
    assert_close(weight.grad, weight64.grad, dtype)
    with torch.no_grad():
        assert_close(linear_cross_entropy(x, weight, targets), reference, dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The operators as torch sees them

def operators():
    """{name: (function, its differentiable inputs)}"""
    targets, seed = torch.randint(0, 50, (6,)), torch.tensor([7])
    starts_BT = torch.tensor([[0] * 20 + [20] * 13], dtype=torch.int32)
    x, residual, row, other_row = random(6, 40), random(6, 40), random(40), random(40)
    weight, bias = random(30, 40), random(30)
    return {
        "attention": (lambda x: flash_attention.flash_attention(x, 1, 0.1, 0.1, seed, starts_BT), [random(1, 33, 192)]),
        "norm": (norm_linear, [x, row, other_row, weight, bias, residual]),
        "gelu": (gelu_linear, [x, row, weight, bias]),
        "loss": (lambda x, weight: linear_cross_entropy(x, weight, targets, chunk_rows=4), [x, random(50, 40)]),
    }


@pytest.mark.parametrize("name", operators())
def test_compiles_as_one_graph_and_gives_the_same(name):
    function, inputs = operators()[name]

    def scalar(*x):
        outs = function(*x)
        return sum(out.square().sum() for out in (outs if isinstance(outs, tuple) else [outs]))

    eager = torch.autograd.grad(scalar(*inputs), inputs)
    compiled = torch.autograd.grad(torch.compile(scalar, fullgraph=True, backend="aot_eager")(*inputs), inputs)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_operators_are_registered_as_torch_requires():
    tests = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static"
    x, row, w, bias, qkv_BT3C = random(6, 40), random(40), random(50, 40), random(50), random(1, 33, 192)
    scale, seed, targets = torch.tensor(0.1), torch.tensor([7]), torch.arange(6)
    starts_BT = torch.zeros(1, 33, dtype=torch.int32)
    length, caches = torch.tensor([5], dtype=torch.int32), torch.ones(2, 1, 2, 9, 64)
    for operator, arguments in ((flash_attention_op, (qkv_BT3C, 1, scale, 0.0, None, None)),
                                (flash_attention_op, (qkv_BT3C, 1, scale, 0.1, seed, starts_BT)),
                                (norm_linear_op, (x, random(6, 40), row, row, 1e-5, w, bias)),
                                (gelu_linear_op, (x, row, w, bias)),
                                (linear_cross_entropy_op, (x, w, targets, True, 4))):
        torch.library.opcheck(operator, arguments, test_utils=tests)
    torch.library.opcheck(append_and_decode, (torch.ones(1, 384), *caches, length, 0.1), test_utils=tests[:3])
    torch.library.opcheck(matvec, (torch.ones(2, 40), w.detach(), None, bias.detach(), True), test_utils=tests[:3])
    torch.library.opcheck(cross_entropy_, (random(6, 40).detach(), targets, True), test_utils=tests[:3])


def test_triton_where_it_cannot_run_is_refused_with_the_reason(monkeypatch):
    assert "interpreted" in kernels.require_triton("cpu")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(UserError, match="CPU"):
        kernels.require_triton("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        kernels.require_triton("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU of tomorrow")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    with pytest.raises(UserError, match="a GPU of tomorrow"):
        kernels.require_triton("cuda")


def test_a_head_width_without_tiles_is_refused():
    with pytest.raises(UserError, match="head widths 64 and 128, not 32"):
        kernels.require_triton("cpu", 32)


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an H100 and the ptxas of a version; returns what sets it and the errors of the self-check."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    def set_up(version, error):
        path = triton.knobs.nvidia.ptxas.path
        monkeypatch.setattr(kernels, "assembler", lambda arch: SimpleNamespace(path=path, version=version))
        monkeypatch.setattr(self_check, "attention_errors", lambda *device_and_width: {"dq": error})

    with triton.knobs.nvidia.scope():
        yield set_up


def test_hopper_needs_ptxas_13_3_for_attention(hopper):
    cuda = torch.device("cuda")
    hopper("13.5", math.nan)                                                # the self-check does not run
    for wanted in ("triton", "auto"):
        chosen, said = kernels.choose(wanted, cuda, 128)
        assert chosen.__name__ == "kernels.transformer" and said.endswith("an H100, tiles of sm_90, ptxas 13.5")
    hopper("13.1", 1e-3)
    with pytest.raises(UserError, match="13.3 or newer on Hopper, not 13.1.*nvidia-cuda-nvcc.*TRITON_PTXAS_PATH"):
        kernels.choose("triton", cuda, 128)
    chosen, said = kernels.choose("auto", cuda, 128)
    assert chosen and "ptxas 13.1" in said and "self-check of attention passed" in said
    assert "ptxas 13.1" in kernels.require_triton(cuda)                     # as the kernels without attention need it


@pytest.mark.parametrize("error", [0.3, math.inf, math.nan])
def test_auto_takes_torchs_operators_where_the_self_check_fails(error, hopper):
    hopper("12.8", error)
    chosen, said = kernels.choose("auto", torch.device("cuda"), 128)
    assert chosen is None and said.startswith("torch's operators (dq, compiled by ptxas 12.8, differs from fp64")


def test_for_hopper_the_newest_assembler_of_the_machine_is_taken(monkeypatch):
    tools = SimpleNamespace(ptxas=SimpleNamespace(version="12.8"), ptxas_blackwell=SimpleNamespace(version="13.1"))
    monkeypatch.setattr(triton.knobs, "nvidia", tools)
    assert kernels.assembler(90) is tools.ptxas_blackwell and kernels.assembler(80) is tools.ptxas
    tools.ptxas.version = "13.10"
    assert kernels.assembler(90) is tools.ptxas


def test_the_self_check_of_attention_passes_and_sees_one_wrong_element(monkeypatch):
    alone = dict(device=torch.device("cpu"), head_width=64, B=1, H=1, T=64, times=1)
    errors = self_check.attention_errors(**alone)
    assert len(errors) == 16 and max(errors.values()) < self_check.ALLOWED

    def corrupted(qkv_BT3C, n_head, scale, dropout_p, seed, starts_BT):
        keep_BHTS = self_check.kept_by_dropout(seed, 1, 1, 64, dropout_p) if dropout_p else 1.0
        out_BTC = attention_reference(qkv_BT3C.float(), n_head, scale, keep_BHTS, starts_BT)[0].clone()
        out_BTC[0, 40, 3] += 0.5
        return out_BTC.bfloat16()

    monkeypatch.setattr(self_check, "flash_attention", corrupted)
    errors = self_check.attention_errors(**alone)
    assert all((error > self_check.ALLOWED) == name.endswith("out") for name, error in errors.items()), errors


# ---------------------------------------------------------------------------------------------------------------------
# The whole model out of kernels

def test_a_block_can_take_torchs_attention_instead():
    [block], x_BTD = tiny_model(n_embd=64, n_head=1, n_layer=1).train().h, random(1, 9, 64)
    block.compile(backend="aot_eager", fullgraph=True)
    results = []
    for block.kernels in (transformer, kernels_with_sdpa()):
        out_BTD = block(x_BTD)
        results.append((out_BTD, *torch.autograd.grad(out_BTD.square().sum(), [x_BTD, *block.parameters()])))
    for ours, torchs in zip(*results, strict=True):
        assert_close(ours, torchs, torch.float32)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_model_out_of_kernels_has_the_loss_and_the_gradients_of_torchs_operators(documents, recompute):
    model, ids_BT = tiny_model(n_embd=64, n_head=1, n_layer=2).train(), torch.randint(0, 301, (2, 12))
    ids_BT[0, 4] = 300
    targets_BT, starts_BT = ids_BT.roll(-1, 1), document_starts(ids_BT, 300) if documents else None
    targets_BT[:, -1] = -1
    for block in model.h:
        block.recompute = recompute
    results = []
    for which in ("torch", "triton"):
        assert which in model.use_kernels(which, torch.device("cpu")).lower()
        loss = model(ids_BT, targets_BT, doc_start_BT=starts_BT)
        results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    for torchs, ours, name in zip(*results, ["loss", *dict(model.named_parameters())], strict=True):
        assert relative_error(ours, torchs) < 1e-5, name


def test_under_autocast_the_kernels_compute_in_bf16():
    model, ids_BT = tiny_model(n_embd=64, n_head=1, n_layer=2).train(), torch.randint(0, 301, (2, 12))
    losses = []
    for which in ("torch", "triton"):
        model.use_kernels(which, torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(model(ids_BT, ids_BT).item())
            assert model.hidden(ids_BT).dtype == (torch.float32 if which == "torch" else torch.bfloat16)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_on_a_cpu_auto_is_torch_and_triton_is_refused(monkeypatch):
    model = tiny_model()
    assert model.use_kernels("auto", torch.device("cpu")) == "torch's operators"
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(UserError, match="--kernels torch"):
        model.use_kernels("triton", torch.device("cpu"))
