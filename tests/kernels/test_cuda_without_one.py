"""What a GPU would do with the kernels, shown without one: dtypes under autocast, graphs, arithmetic of addresses.

Fake tensors on device "cuda" have shapes and dtypes but no data, and CUDA's autocast works on them. They show what the
CPU cannot: CUDA's list of operators differs from the CPU's (F.layer_norm returns fp32 there). Not shown here: speed,
races, what the assembler does (test_kernels_compile.py).
"""
import interpreter  # noqa: I001  before anything that defines a kernel

import contextlib
import itertools
import math
import types

import pytest
import torch
from conftest import tiny_config, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from data import Corpus
from kernels import cross_entropy, flash_attention, flash_decode, gelu, layer_norm, matvec, transformer
from bench.measure import relative_error
from model import GPT
from train import Train, evaluate, loss_of
from training.parallel import World

BF16, FP32 = torch.bfloat16, torch.float32


@contextlib.contextmanager
def cuda_autocast():
    """torch.autocast("cuda", bfloat16) where torch has no CUDA and would only warn."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", BF16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


class Recorder(TorchDispatchMode):
    """(name, arguments) of every operator that is called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.calls.append((function._schema.name, arguments))
        return function(*arguments, **(options or {}))


def test_under_cudas_autocast_the_whole_model_computes_in_bf16():
    with torch.device("meta"):
        model = GPT(tiny_config(n_embd=64, n_head=1, n_layer=2))
    # no_grad: on a torch without CUDA, autograd aborts at a tensor of that device; the bodies below are its other half
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), cuda_autocast():
        model.to_empty(device="cuda")
        for module in (model, *model.h):
            module.kernels = transformer
        ids_BT = torch.zeros(2, 12, dtype=torch.int64, device="cuda")
        assert model.ln_f(model.wte(ids_BT).bfloat16()).dtype == FP32        # what torch's operator would return
        with Recorder() as recorder:
            assert model.hidden(ids_BT).dtype == BF16
            assert model(ids_BT, ids_BT).dtype == FP32
    ours = [(name, arguments) for name, arguments in recorder.calls if name.startswith("nanobiomedlm::")]
    assert {name.split("::")[1] for name, _ in ours} == {"norm_linear", "flash_attention", "gelu_linear",
                                                         "linear_cross_entropy"}
    assert {arguments[0].dtype for _, arguments in ours} == {BF16}
    products = [arguments for name, arguments in recorder.calls if name in ("aten::mm", "aten::addmm", "aten::bmm")]
    assert products and {x.dtype for arguments in products for x in arguments if torch.is_tensor(x)} == {BF16}


def bodies(dtype):
    """{name: (operator, arguments)}: every operator, in the dtypes that training and sampling give it."""
    N, D, F, V, H, K = 6, 64, 256, 301, 1, 64

    def x(*shape, dtype=dtype):
        return torch.empty(*shape, dtype=dtype, device="cuda")

    norm = x(D, dtype=FP32), x(D, dtype=FP32)
    rows, targets = x(N, dtype=FP32), x(N, dtype=torch.int64)
    scale, seed, starts = x(1, dtype=FP32), x(1, dtype=torch.int64), x(2, 12, dtype=torch.int32)
    qkv, out, lse = x(2, 12, 3 * D), x(2, 12, D), x(2, H, 12, dtype=FP32)
    return {
        "norm_linear": (layer_norm.norm_linear_op, (x(N, D), x(N, D), *norm, 1e-5, x(3 * D, D), x(3 * D))),
        "norm_linear backward": (layer_norm.norm_linear_backward_op,
                                 (x(N, D), x(N, 3 * D), x(N, D), *norm, rows, rows, x(3 * D, D))),
        "gelu_linear": (gelu.gelu_linear_op, (x(N, F), x(F, dtype=FP32), x(D, F), x(D))),
        "gelu_linear backward": (gelu.gelu_linear_backward_op, (x(N, D), x(N, F), x(F, dtype=FP32), x(D, F))),
        "attention": (flash_attention.flash_attention_op, (qkv, H, scale, 0.1, seed, starts)),
        "attention backward": (flash_attention.flash_attention_backward_op,
                               (out, qkv, out, lse, H, scale, 0.1, seed, starts)),
        "loss": (cross_entropy.linear_cross_entropy_op, (x(N, D), x(V, D, dtype=FP32), targets, True, 4)),
        "cross_entropy_": (cross_entropy.cross_entropy_, (x(N, V), targets, True)),
        "append_and_decode": (flash_decode.append_and_decode,
                              (x(2, 3 * H * K), x(2, H, 9, K), x(2, H, 9, K), x(2, dtype=torch.int32), 0.1)),
        "matvec": (matvec.matvec, (x(2, D), x(F, D), None, x(F), True, None)),
    }


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_under_cudas_autocast_every_operators_body_returns_what_torch_compile_expects(dtype, monkeypatch):
    launched = []
    monkeypatch.setattr(type(flash_attention.forward_kernel), "__getitem__",
                        lambda kernel, grid: lambda *arguments, **options: launched.append(kernel))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with FakeTensorMode(), cuda_autocast():
        for name, (operator, arguments) in bodies(dtype).items():
            launched.clear()
            returned, expected = operator._init_fn(*arguments), operator(*arguments)
            assert launched or name == "loss"          # whose kernel is an operator of its own
            for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (returned, expected)), strict=True):
                assert (a.dtype, a.shape) == (b.dtype, b.shape), name


def calls_in_fp32():
    """{name: (function of its inputs, the inputs)}"""
    def x(*shape):
        return torch.randn(*shape, requires_grad=True)

    targets, caches, seed = torch.randint(0, 50, (6,)), torch.randn(2, 1, 2, 9, 64), torch.tensor([7])
    length = torch.tensor([7], dtype=torch.int32)
    return {
        "attention": (lambda qkv: flash_attention.flash_attention(qkv, 1, 0.1, 0.1, seed), [x(1, 16, 192)]),
        "layer_norm": (layer_norm.layer_norm, [x(6, 40), x(40), x(40)]),
        "add_layer_norm": (layer_norm.add_layer_norm, [x(6, 40), x(6, 40), x(40), x(40)]),
        "norm_linear": (layer_norm.norm_linear, [x(6, 40), x(40), x(40), x(30, 40), x(30), x(6, 40)]),
        "bias_gelu": (gelu.bias_gelu, [x(6, 40), x(40)]),
        "gelu_linear": (gelu.gelu_linear, [x(6, 40), x(40), x(30, 40), x(30)]),
        "loss": (lambda x, w: cross_entropy.linear_cross_entropy(x, w, targets, chunk_rows=4), [x(6, 40), x(50, 40)]),
        "decode": (lambda qkv: flash_decode.append_and_decode(qkv.detach(), *caches, length, 0.1), [x(1, 384)]),
    }


@pytest.mark.parametrize("name", calls_in_fp32())
def test_an_operator_ignores_the_callers_autocast(name):
    function, inputs = calls_in_fp32()[name]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", BF16, enabled=enabled):
            out = function(*inputs)
            outs = out if isinstance(out, tuple) else (out,)
            gradients = torch.autograd.grad([o.square().sum() for o in outs], inputs) if outs[0].requires_grad else ()
        results.append((*outs, *gradients))
    for plain, autocast in zip(*results, strict=True):
        assert autocast.dtype == plain.dtype == FP32 and torch.equal(plain, autocast)


@pytest.mark.parametrize("which", ["torch", "triton"])
def test_all_layers_share_one_graph_in_training_and_one_in_evaluation(which, world):
    model = tiny_model(n_embd=64, n_head=1, n_layer=2, attn_pdrop=0.1).train()
    cfg = Train(data=world, model=model.cfg, window=8, micro_batch_size=2, eval_windows=3, dtype="bfloat16")
    corpus, alone, graphs = Corpus(world, "val", cfg.length), World(0, 1, torch.device("cpu")), []
    model.use_kernels(which, alone.device)
    whole = evaluate(model, corpus, cfg, alone)["val_loss"]

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    for block in model.h:
        block.compile(fullgraph=True, backend=count)
    loss_of(model, corpus.cut(corpus.spread(2)), cfg, alone)
    assert len(graphs) == 1
    compiled = evaluate(model, corpus, cfg, alone)["val_loss"]              # 2 windows, then 1
    assert len(graphs) == 2 and compiled == pytest.approx(whole, rel=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# The arithmetic of programs and addresses

def test_every_tile_of_every_head_is_one_programs():
    function = flash_attention._tile_of_program.fn
    tile_of = types.FunctionType(function.__code__, {"tl": types.SimpleNamespace(minimum=min)})
    for tiles, heads, section in itertools.product((1, 3, 8), (1, 5, 20, 160), (1, 4, 7, 32, 1000)):
        order = [tile_of(program, tiles, heads, section) for program in range(tiles * heads)]
        assert sorted(order) == sorted(itertools.product(range(heads), range(tiles)))
        for first in range(0, heads, section):              # in a section of heads, the heaviest tiles come first
            ranks = [rank for head, rank in order if first <= head < first + section]
            assert ranks == sorted(ranks)


@pytest.fixture
def only_the_last_program(monkeypatch):
    """Of every launch only the last program runs, on tensors of any size without a copy."""
    builder, kernel = interpreter.interpreter.interpreter_builder, type(flash_attention.forward_kernel)
    get, set_index, set_size = kernel.__getitem__, builder.set_grid_idx, builder.set_grid_dim

    def launcher(self, grid):
        grid = (*grid, 1, 1)[:3]
        monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_index(*(size - 1 for size in grid)))
        monkeypatch.setattr(builder, "set_grid_dim", lambda x, y, z: set_size(*grid))
        return get(self, (1,))

    executor = interpreter.interpreter.GridExecutor
    monkeypatch.setattr(executor, "_init_args_hst", lambda self, arguments, options: (arguments, options))
    monkeypatch.setattr(executor, "_restore_args_dev", lambda self, *arguments: None)
    monkeypatch.setattr(kernel, "__getitem__", launcher)


def sparse(folder, *shape, dtype=BF16):
    """Zeros in a file with holes: a tensor of many GB that takes as much memory as is touched."""
    path, count = folder / f"{len(list(folder.iterdir()))}", math.prod(shape)
    with open(path, "wb") as file:
        file.truncate(count * dtype.itemsize)
    return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)


def test_no_address_overflows_at_64_sequences_of_8192_tokens(only_the_last_program, tmp_path):
    """The last sequence lies past 2^31 elements. A 32-bit offset would read zeros, or crash."""
    B, T, H, K, F, D = 64, 8192, 20, 128, 10240, 2560
    assert B * T * D < 2**31 < (B - 1) * T * 3 * D and 2**31 < (B * T - 1) * F
    begin, end = slice(0, 64), slice(T - 64, T)

    # attention: the last program of the forward kernel and of dq owns the first queries of the last head
    qkv_BT3C, dqkv_BT3C = (sparse(tmp_path, B, T, 3 * D) for _ in range(2))
    dout_BTC, out_BTC = (sparse(tmp_path, B, T, D) for _ in range(2))
    lse_BHT, delta_BHT = (sparse(tmp_path, B, H, T, dtype=FP32) for _ in range(2))
    for rows in (begin, end):
        qkv_BT3C[-1, rows], dout_BTC[-1, rows] = torch.randn(64, 3 * D), torch.randn(64, D)
    settings = None, None, torch.tensor(0.1), H, 0.0
    tensors = qkv_BT3C, out_BTC, dout_BTC, dqkv_BT3C, lse_BHT, delta_BHT
    flash_attention._launch(flash_attention.forward_kernel, [qkv_BT3C], [qkv_BT3C, out_BTC, lse_BHT], *settings)
    flash_attention._launch(flash_attention.dq_kernel, [qkv_BT3C], tensors, *settings)
    ref_1T3C = qkv_BT3C[-1:, begin].double().requires_grad_()
    ref_1TC, ref_lse_1HT = flash_attention.attention_reference(ref_1T3C, H, 0.1)
    ref_1TC.backward(dout_BTC[-1:, begin].double())
    assert relative_error(out_BTC[-1, begin, -K:], ref_1TC[0, :, -K:]) < 1e-2
    assert relative_error(lse_BHT[-1, -1, begin], ref_lse_1HT[0, -1]) < 1e-5
    assert relative_error(dqkv_BT3C[-1, begin, D - K:D], ref_1T3C.grad[0, :, D - K:D]) < 1e-2

    # and of dkdv its last keys, which the last queries see; there lse and delta are still 0
    flash_attention._launch(flash_attention.dkdv_kernel, [qkv_BT3C, dout_BTC],
                            (qkv_BT3C, dout_BTC, dqkv_BT3C, lse_BHT, delta_BHT), *settings)
    q_TK, k_SK, v_SK = (part_TC[:, -K:] for part_TC in qkv_BT3C[-1, end].double().chunk(3, 1))
    do_TK = dout_BTC[-1, end, -K:].double()
    p_TS = (0.1 * q_TK @ k_SK.T).exp().tril()
    assert relative_error(dqkv_BT3C[-1, end, -K:], p_TS.T @ do_TK) < 1e-2
    assert relative_error(dqkv_BT3C[-1, end, 2 * D - K:2 * D], 0.1 * (p_TS * (do_TK @ v_SK.T)).T @ q_TK) < 1e-2

    # gelu: the last rows and columns
    h_NF, g_NF, bias_F = sparse(tmp_path, B * T, F), sparse(tmp_path, B * T, F), torch.randn(F)
    h_NF[-gelu.ROWS:, -gelu.COLUMNS:] = torch.randn(gelu.ROWS, gelu.COLUMNS)
    grid = B * T // gelu.ROWS, F // gelu.COLUMNS
    gelu.forward_kernel[grid](h_NF, bias_F, g_NF, B * T, F, ROWS=gelu.ROWS, COLUMNS=gelu.COLUMNS)
    tile = slice(-gelu.ROWS, None), slice(-gelu.COLUMNS, None)
    reference = torch.nn.functional.gelu(h_NF[tile].double() + bias_F[tile[1]].double(), approximate="tanh")
    assert relative_error(g_NF[tile], reference) < 1e-2

    # layer_norm: the last row, of a width with which it lies past 2^31
    x_ND, y_ND = h_NF, g_NF
    one_D, statistics_2N = torch.ones(F), torch.zeros(2, B * T)
    x_ND[-1] = torch.randn(F)
    layer_norm.forward_kernel[B * T,](x_ND, None, one_D, 0 * one_D, None, y_ND, *statistics_2N, F, 1e-5,
                                      LANES=16384)
    reference = torch.nn.functional.layer_norm(x_ND[-1:].double(), (F,))
    assert relative_error(y_ND[-1:], reference) < 1e-2
