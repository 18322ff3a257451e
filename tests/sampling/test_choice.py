"""The layout and the threads are the fastest that were measured, and can be fixed."""
import pytest
import torch
from conftest import tiny_model

from plumbing.common import UserError
from sampling import choice
from sampling.choice import Choice, candidates, choose_layout, choose_threads, fastest
from sampling.fast_linear import lay_out, read_bandwidth
from sampling.native import library

CPU, GPU = torch.device("cpu"), torch.device("cuda")
X86 = "x86" in torch.backends.quantized.supported_engines


@pytest.fixture
def compiled(monkeypatch):
    """As if there were a C compiler, and any matrix were large enough to be measured."""
    monkeypatch.setattr(choice, "library", lambda: (object(), ""))
    monkeypatch.setattr(choice, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(choice, "OTHER", 1)
    monkeypatch.setattr(choice, "has", lambda *instructions: True)


def stub_times(monkeypatch, **seconds):
    """Let each layout take (seconds of one row, seconds of many)."""
    monkeypatch.setattr(choice, "measure", lambda layout, W_OI: seconds[layout])


@pytest.mark.parametrize("matvec, onednn, chosen, hint", [
    ((1.0, 9.0), (2.0, 3.0), "matvec", "--layout onednn may be faster"),
    ((2.0, 9.0), (1.0, 3.0), "onednn", ""),
    ((1.05, 3.0), (1.0, 3.0), "matvec", ""),                               # not clearly faster: the usual one
])
def test_the_layout_that_is_faster_for_one_row_is_chosen_and_the_times_are_said(monkeypatch, compiled, matvec, onednn,
                                                                             chosen, hint):
    stub_times(monkeypatch, matvec=matvec, onednn=onednn)
    choice = choose_layout("bfloat16", tiny_model())
    assert choice.layout == chosen and "matvec " in choice.reason and "onednn " in choice.reason
    assert ("may be faster" in choice.reason) == bool(hint) and hint in choice.reason


def test_a_fixed_layout_is_taken_unmeasured_and_a_wrong_one_is_named(monkeypatch, compiled):
    stub_times(monkeypatch)                                                # measuring would be a KeyError
    assert choose_layout("bfloat16", tiny_model(), "onednn") == Choice("onednn")
    with pytest.raises(UserError, match="--layout int8: bfloat16 weights can here have the layouts matvec, onednn"):
        choose_layout("bfloat16", tiny_model(), "int8")


@pytest.mark.parametrize("device, compiler", [(GPU, object()), (CPU, None)])
def test_int4_is_refused_in_one_line_where_it_cannot_run(monkeypatch, device, compiler):
    monkeypatch.setattr(choice, "library", lambda: (compiler, ""))
    assert candidates("int4", device) == []
    monkeypatch.setattr(choice, "candidates", lambda dtype, _: candidates(dtype, device))
    with pytest.raises(UserError, match=r"^--dtype int4 needs a CPU .* and a C compiler; use --dtype int8$"):
        choose_layout("int4", tiny_model())


def test_a_small_model_is_not_measured():
    """So that its texts do not depend on noise, and it starts at once."""
    assert choose_layout("float32", tiny_model()) == Choice(candidates("float32", CPU)[0])


def test_measuring_runs_every_layout_that_is_there(monkeypatch):
    monkeypatch.setattr(choice, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(choice, "OTHER", 1)
    for dtype, like in (("float32", torch.float32), ("int8", torch.bfloat16)):
        chosen = choose_layout(dtype, tiny_model().to(like))
        assert chosen.layout in candidates(dtype, CPU)
        assert all(f"{layout} " in chosen.reason for layout in candidates(dtype, CPU)) or not chosen.reason


def test_the_candidates_follow_the_machine(monkeypatch):
    monkeypatch.setattr(choice, "library", lambda: (object(), ""))
    for there, bf16 in ((True, ["matvec", "onednn"]), (False, ["matvec"])):
        monkeypatch.setattr(choice, "has", lambda *instructions, there=there: there)
        assert candidates("bfloat16", CPU) == bf16
    assert candidates("float32", CPU) == ["matvec", "plain"] and candidates("float16", CPU) == ["widened"]
    assert candidates("int8", CPU) == (["matvec_int8", "int8"] if X86 else ["matvec_int8"])
    assert candidates("bfloat16", GPU) == candidates("float16", GPU) == ["plain"]
    assert candidates("int8", GPU) == ["widened_int8"] and candidates("int4", CPU) == ["matvec_int4"]


def test_without_torchs_private_operators_other_layouts_serve(monkeypatch):
    monkeypatch.setattr(choice, "available", lambda layout: False)
    monkeypatch.setattr(choice, "has", lambda *instructions: True)
    monkeypatch.setattr(choice, "library", lambda: (None, "no compiler"))
    assert candidates("bfloat16", CPU)[0] == "plain" and candidates("int8", CPU) == ["widened_int8"]


@pytest.mark.parametrize("compiler, said", [("no-such-compiler", "no C compiler"), ("false", "could not be compiled")])
def test_without_a_compiler_torch_serves_and_the_reason_is_known(monkeypatch, compiler, said):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(choice, "has", lambda *instructions: False)
    library.cache_clear()
    assert said in library()[1]
    assert [candidates(dtype, CPU)[0] for dtype in ("float32", "bfloat16")] == ["plain", "widened"]
    assert candidates("int8", CPU)[0] == ("int8" if X86 else "widened_int8")
    assert read_bandwidth(CPU) > 0
    library.cache_clear()


def test_the_first_is_kept_unless_another_is_clearly_faster():
    assert fastest({"a": 1.0, "b": 0.95}) == "a" and fastest({"a": 1.0, "b": 0.8}) == "b"
    assert fastest({8: 4.0, 4: 2.0, 2: 1.0, 1: 3.0}) == 2


@pytest.mark.parametrize("seconds, expected", [({4: 1.0, 2: 1.5, 1: 2.0}, 4), ({4: 9.0, 2: 1.5, 1: 2.0}, 2)])
def test_as_many_threads_as_are_the_fastest(monkeypatch, compiled, seconds, expected):
    model, now = tiny_model(), [4]
    lay_out(model, "plain")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(choice, "time_of_rows", lambda linear, rows: seconds[now[0]])
    assert choose_threads(model) == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    now[0] = 4
    assert choose_threads(model) == 4
