"""`make gpu` on a CPU: stages that crash, hang or succeed each leave their lines; the checks see a wrong kernel."""
import interpreter  # noqa: F401, I001  before anything that defines a kernel

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import gpu, gpu_checks, gpu_records, gpu_speed
from bench import kernels as timings
from bench.gpu import GPU, Stage
from bench.gpu_report import bars, read_records, write_report
from model import GPTConfig
from plumbing import common
from plumbing.common import UserError

TINY = GPTConfig(vocab_size=96, n_positions=8, n_embd=64, n_layer=1, n_head=1, bos_token_id=95, eos_token_id=95)
CPU = torch.device("cpu")
EMIT = "from bench.gpu_records import emit; emit(check='a', error=1e-3, right=True, kernels='none'); "
HANG = EMIT + "import subprocess, time; print(subprocess.Popen(['sleep', '100']).pid, flush=True); time.sleep(100)"


def stub(name, source, seconds=30):
    return Stage(name, seconds, ["-c", source])


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_OUT", str(tmp_path / "out"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return tmp_path / "out"


def lines(out, stage):
    return [record for record in read_records(out) if record["stage"] == stage]


def test_a_crash_and_a_hang_cost_their_own_lines_only(out):
    bad = gpu.main(GPU(), [
        stub("hang", HANG, seconds=4), stub("good", EMIT), stub("crash", EMIT + "import os; os.kill(os.getpid(), 9)"),
        stub("raise", EMIT + "raise MemoryError('CUDA out of memory')"), stub("last", EMIT)])
    ends = {record["stage"]: record["ended"] for record in read_records(out) if "ended" in record}
    assert ends["good"] == ends["last"] == "well" and ends["crash"] == "killed by signal 9"
    assert ends["raise"] == "exit code 1" and ends["hang"].startswith("timeout")
    assert all(len(lines(out, name)) == 2 for name in ends), "what a stage had found before it died is kept"
    assert bad == 3
    log = (out / "gpu.log").read_text()
    assert "MemoryError: CUDA out of memory" in log
    report = (out / "gpu.md").read_text()
    assert "killed by signal 9" in report and "Operators against fp64" in report
    with tarfile.open(out / "gpu.tar.gz") as archive:
        assert {"gpu.jsonl", "gpu.log", "gpu.md"} <= set(archive.getnames())
    assert is_dead(next(line for line in log.split("\n") if line.isdigit())), "a stage's children die with it"


def is_dead(pid):
    """Gone, or a zombie that no one has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def test_a_stage_for_which_no_time_is_left_is_named(out):
    assert gpu.main(GPU(minutes=0.0), [stub("late", EMIT)]) == 1
    assert lines(out, "late")[0]["ended"].startswith("not started")


def test_the_stages_fit_ten_minutes():
    assert sum(stage.seconds for stage in gpu.STAGES) <= 60 * GPU().minutes <= 560
    assert all((ROOT / stage.command[0]).is_file() for stage in gpu.STAGES)


def test_without_a_gpu_it_ends_in_one_line_and_keeps_earlier_results(out, monkeypatch):
    out.mkdir()
    (out / "gpu.jsonl").write_text("earlier")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="needs a GPU"):
        gpu.main(GPU(), [stub("facts", EMIT)])
    assert (out / "gpu.jsonl").read_text() == "earlier"


def test_a_half_written_line_does_not_hide_the_others(tmp_path):
    (tmp_path / "gpu.jsonl").write_text('{"stage": "a", "ended": "well", "seconds": 1.0, "command": "x"}\n{"sta')
    write_report(tmp_path)
    assert "| a | well |" in (tmp_path / "gpu.md").read_text()


BLOCKED = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
blocked = "tyro", "zstandard", "rouge_score", "sacrebleu"
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in blocked else find(name, *rest)
sys.argv = ["bench/gpu.py"]
import bench.gpu, bench.gpu_checks, bench.gpu_speed, bench.kernels, bench.rivals, sample, train
from bench.gpu import GPU, Stage, main
from plumbing.common import git_commit, parse_args
assert git_commit() == "abc1234", git_commit()
assert parse_args(GPU) == GPU()
import torch
torch.cuda.is_available = lambda: True
main(GPU(), [Stage("one", 30, ["-c", "print(1)"])])
"""


def test_the_runner_and_the_stages_need_neither_git_nor_tyro_nor_zstandard_nor_rouge(out, tmp_path):
    environment = os.environ | {"PATH": str(tmp_path), "COMMIT": "abc1234", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert lines(out, "one")[0]["commit"] == "abc1234"


def test_flags_without_tyro_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert common.parse_args(GPU, argv=[]) == GPU()
    with pytest.raises(UserError, match="pip install tyro"):
        common.parse_args(GPU, argv=["--minutes", "1"])


# ---- the stages' own functions, small and interpreted ----

@pytest.fixture
def found(tmp_path, monkeypatch):
    """The records that are emitted."""
    monkeypatch.setenv("GPU_JSONL", str(tmp_path / "gpu.jsonl"))
    return lambda: [json.loads(line) for line in open(tmp_path / "gpu.jsonl", encoding="utf-8")]


def test_an_exception_becomes_a_line_and_a_missing_package_is_skipped(found):
    with gpu_records.attempt(check="x"):
        raise RuntimeError("an illegal memory access")
    with gpu_records.attempt(check="y"):
        import not_installed  # noqa: F401
    assert "illegal" in found()[0]["failed"] and "not_installed" in found()[1]["skipped"]
    assert all("kernels" in record for record in found())


@pytest.mark.parametrize("name", list(gpu_checks.checks(CPU, real=False)))
def test_every_operator_passes_its_check_when_interpreted(name, found):
    torch.manual_seed(0)
    try:
        case = gpu_checks.checks(CPU, real=False)[name]()
    except ImportError as error:
        pytest.skip(f"no such operator: {error}")
    gpu_checks.verify(name, *case)
    assert found()[0]["right"], found()


def test_a_wrong_element_and_a_moving_error_are_seen(found):
    x, calls = torch.ones(1000), []

    def one_wrong(x):
        y = x.clone()
        y[3] = 1.1
        return y

    def moving(x):
        calls.append(1)
        return x * (1 + 1e-4 * len(calls))

    gpu_checks.verify("one wrong", [x], one_wrong, lambda x: x)
    gpu_checks.verify("moving", [x], moving, lambda x: x)
    assert found()[0]["error"] < gpu_checks.CLOSE and not found()[0]["right"]
    assert not found()[1]["same_bits"] and not found()[1]["right"]


def test_two_layers_agree_with_fp32_and_a_broken_one_does_not(found, monkeypatch):
    gpu_checks.model(CPU, TINY, batch=2, variants=[("torch", False, False), ("triton", False, True)])
    assert [record["right"] for record in found()] == [True] * 3, found()
    truth = gpu_checks.step(gpu_checks.new_model(TINY, CPU), *torch.ones(2, 1, 8, dtype=torch.int64), "float32")
    wrong = truth[0], {name: gradient * (1.1 if name == "ln_f.bias" else 1) for name, gradient in truth[1].items()}
    gpu_checks.compare("broken", wrong, truth)
    assert found()[-1]["worst"] == "ln_f.bias" and not found()[-1]["right"]


@pytest.fixture
def short(monkeypatch):
    """Training contestants take one step of one micro-batch beside the first."""
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_speed, "STEPS", 1)
    monkeypatch.setattr(gpu_speed, "PARTS", 1)


def test_the_training_contestants_start_alike_and_are_timed_by_phase(found, short):
    for name in ("ours-sdpa", "ours-torch", "transformers", "plain"):
        gpu_speed.train(name, 1, CPU, TINY, compiled=False)
    assert not any("failed" in record for record in found()), found()
    parity = [record for record in found() if "parity" in record]
    assert max(r["loss"] for r in parity) - min(r["loss"] for r in parity) < 1e-3
    assert max(r["grad_norm"] for r in parity) / min(r["grad_norm"] for r in parity) < 1.01
    summaries = [record for record in found() if "summary" in record]
    assert [(r["train"], r["way"]) for r in summaries] == [
        ("ours-sdpa", "compiled"), ("ours-torch", "compiled"), ("transformers", "eager"), ("transformers", "compiled"),
        ("plain", "compiled")]
    assert all(r["tokens_per_second"] > 0 and r["kernels"] for r in summaries)
    assert "scaled_dot_product_attention" in summaries[0]["kernels"]
    assert {"forward_backward_ms", "clip_ms", "adamw_ms"} <= set(summaries[0])


def test_a_step_that_runs_out_of_memory_leaves_the_compiled_one_to_be_timed(found, short, monkeypatch):
    timed, tries = gpu_speed.timed_steps, []

    def first_fails(*arguments):
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return timed(*arguments)

    monkeypatch.setattr(gpu_speed, "timed_steps", first_fails)
    gpu_speed.train("transformers", 2, CPU, TINY, compiled=False)
    assert [(r["way"], "failed" in r) for r in found() if "failed" in r or "summary" in r] == [
        ("eager", True), ("compiled", False)]


def summary(train, tokens_per_second, way="compiled", micro_batch=8):
    return {"train": train, "summary": True, "way": way, "micro_batch": micro_batch, "of_product": 0.5,
            "tokens_per_second": tokens_per_second}


def test_ours_is_judged_with_the_attention_that_is_faster(out):
    records = [summary("ours-triton", 27_000.0), summary("ours-sdpa", 28_000.0), summary("ours-torch", 30_000.0),
               summary("ours-sdpa", 29_000.0, micro_batch=16), summary("transformers", 25_000.0, "eager"),
               summary("transformers", 30_000.0)]
    judged = {record["bar"]: record for record in bars(records)}
    assert judged["tokens per second"]["measured"] == 29_000 and judged["tokens per second"]["met"]
    assert judged["times eager transformers"]["measured"] == 28 / 25 and not judged["times eager transformers"]["met"]
    assert judged["times compiled transformers"]["measured"] == 28 / 30

    assert gpu_speed.fastest() == "ours-triton", "nothing is measured yet"
    out.mkdir()
    for record in records[:3]:
        gpu_records.append(out / "gpu.jsonl", record)
    assert gpu_speed.fastest() == "ours-sdpa"


def test_a_profile_has_the_kernels_and_not_the_operators_that_launch_them(found, monkeypatch):
    def event(key, ms, device, annotation=False):
        return SimpleNamespace(key=key, count=1, self_device_time_total=1e3 * ms, is_user_annotation=annotation,
                               device_type=device)

    kinds = torch.autograd.DeviceType
    rows = [event("aten::mm", 2.0, kinds.CPU), event("gemm", 2.0, kinds.CUDA), event("norm", 3.0, kinds.CUDA),
            event("a range of the program", 5.0, kinds.CUDA, annotation=True)]
    monkeypatch.setattr(torch.profiler, "profile",
                        lambda activities: contextlib.nullcontext(SimpleNamespace(key_averages=lambda: rows)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    gpu_speed.emit_profile("token", lambda: None, 10)
    assert [(r["kernel"], r["ms"]) for r in found()] == [("norm", 3.0), ("gemm", 2.0)]


def test_the_kernels_stage_chooses_the_assembler_before_anything_is_compiled(monkeypatch):
    calls = []
    for name in ("require_gpu", "kernels_in_use", "ceilings", "time_attention", "time_others", "time_decoding"):
        monkeypatch.setattr(timings, name, lambda *arguments, name=name: calls.append(name) or (1.0, 1.0))
    timings.main()
    assert calls[:2] == ["require_gpu", "kernels_in_use"] and len(calls) > 5


def test_the_kernels_stage_calls_every_contestant_with_shapes_that_fit(found, monkeypatch):
    """On tensors without data: ours and torch's flash backend must not fail; a backend that a CPU lacks is a line."""
    monkeypatch.setattr(timings, "DEVICE", "cpu")
    monkeypatch.setattr(timings, "timed", lambda calls, in_graph=True: (len([calls[0]()]), "none"))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    with FakeTensorMode(allow_non_fake_inputs=True):
        timings.time_attention(1024)
        timings.time_others(3e12, 8e14)
        timings.time_decoding(8, 3e12)
    names = {"kernel", "contestant"}
    done = {(r["kernel"], r["contestant"]) for r in found() if names <= set(r) and not {"failed", "skipped"} & set(r)}
    expected = {("attention", name) for name in ("ours", "ours, dropout", "flash", "flash, separate")}
    expected |= {(name, who) for name in ("add_layer_norm", "gelu_linear", "linear_cross_entropy", "flash_decode")
                 for who in ("ours", "torch")}
    assert expected <= done, [r for r in found() if "failed" in r]


def test_triton_that_is_refused_is_tried_as_auto_and_never_replaced_by_torch_in_silence():
    def use_kernels(kernels, device):
        if kernels == "triton":
            raise UserError("ptxas is too old")
        model.kernels = after_check
        return "checked"

    model = SimpleNamespace(use_kernels=use_kernels, kernels=None)
    after_check = "transformer"
    assert gpu_checks.attach_kernels(model, "triton", CPU) == "checked"
    after_check = None
    with pytest.raises(UserError, match="too old"):
        gpu_checks.attach_kernels(model, "triton", CPU)


def test_decoding_figures_become_lines_as_they_are_measured(found, monkeypatch):
    from bench import sample

    def main(cfg):
        run = sample.Run.__new__(sample.Run)                # without its measurement of the memory's bandwidth
        run.device, run.rows, run.measure_bandwidth = CPU, {}, lambda: 1e9
        run.time("ours, bfloat16", lambda: time.sleep(0.001), bytes_read=100, tokens=2)
        assert found()[0]["decode"] == "ours, bfloat16", "on disk before the next figure"
        return {"required": [("a", 3, 4, "x", "least"), ("b", 1, 2, "x", "most")]}

    monkeypatch.setattr(sample, "main", main)
    gpu_speed.decode()
    assert found()[0]["tokens_per_second"] > 0
    assert [record["met"] for record in found()[1:]] == [True, False]


def test_an_unknown_contestant_is_refused():
    with pytest.raises(UserError, match="ours-triton"):
        gpu_speed.train("theirs")
