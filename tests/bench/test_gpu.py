"""`make gpu` on a CPU: stages that crash, hang or succeed each leave their lines; the checks see a wrong kernel."""
import interpreter  # noqa: F401, I001  before anything that defines a kernel

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from bench import gpu, gpu_checks, gpu_records, gpu_speed
from bench.gpu import GPU, Stage
from bench.gpu_report import read_records, write_report
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
    gpu_checks.verify(name, *gpu_checks.checks(CPU, real=False)[name]())
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
    assert [record["right"] for record in found()] == [True] * 4, found()
    truth = gpu_checks.step(gpu_checks.new_model(TINY, CPU), *torch.ones(2, 1, 8, dtype=torch.int64), "float32")
    wrong = truth[0], {name: gradient * (1.1 if name == "ln_f.bias" else 1) for name, gradient in truth[1].items()}
    gpu_checks.compare("broken", wrong, truth)
    assert found()[-1]["worst"] == "ln_f.bias" and not found()[-1]["right"]


def test_the_training_contestants_start_alike_and_are_timed_by_phase(found):
    torch.set_num_threads(1)
    for name in ("ours-torch", "transformers", "plain"):
        gpu_speed.train(name, 2, CPU, TINY, compiled=False)
    assert not any("failed" in record for record in found()), found()
    parity = [record for record in found() if "parity" in record]
    assert max(r["loss"] for r in parity) - min(r["loss"] for r in parity) < 1e-3
    assert max(r["grad_norm"] for r in parity) / min(r["grad_norm"] for r in parity) < 1.01
    summaries = [record for record in found() if "summary" in record]
    assert len(summaries) == 3 and all(r["tokens_per_second"] > 0 and r["kernels"] for r in summaries)
    assert {"forward_backward_ms", "clip_ms", "adamw_ms"} <= set(summaries[0])


def test_an_unknown_contestant_is_refused():
    with pytest.raises(UserError, match="ours-triton"):
        gpu_speed.train("theirs")
