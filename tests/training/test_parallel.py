"""Many processes compute what one does: on gloo, told by launched.py what torchrun tells them; one run has torchrun."""
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, needs_new_torch, tiny_config
from launched import launched
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.torch_version import TorchVersion

import train
from launch.plan import step_memory
from model import GPT
from plumbing.common import UserError
from training import parallel
from training.checkpoint import complete_checkpoints

SHAPE = ("--model.n-positions 32 --model.n-embd 48 --model.n-layer 3 --model.n-head 3 --batch-size 4 --steps 8 "
         "--micro-batch-size 1 --warmup-steps 2 --dtype float32 --eval-every 4 --eval-windows 7").split()
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
os.environ["TORCH_GLOO_LAZY_INIT"] = "1"


def run(world, out, processes, *flags):
    """Train; returns loss, gradient norm and validation loss of every step."""
    finished = launched("train.py", "demo", "--data", world, "--out", out, *SHAPE, *flags, processes=processes)
    assert finished.returncode == 0, finished.stderr[-3000:]
    with open(out / "log.jsonl") as log:
        return [[line["loss"], line["grad_norm"], line.get("val_loss", 0.0)] for line in map(json.loads, log)]


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    return run(world, tmp_path_factory.mktemp("alone") / "out", 1)


@pytest.fixture(scope="module")
def on_two(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "out"
    return out, run(world, out, 2, "--parallel", "fsdp", "--checkpoint-every", "4")


def assert_six_digits(a, b):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=2e-6, atol=0)


def test_ddp_equals_one_process_to_six_digits(world, tmp_path, alone):
    assert_six_digits(run(world, tmp_path / "out", 2, "--parallel", "ddp", "--batch-size", "4"), alone)


def test_fsdp_equals_one_process_to_six_digits(on_two, alone):
    assert_six_digits(on_two[1], alone)


def test_hsdp_with_recomputation_equals_one_process_to_six_digits(world, tmp_path, alone):
    flags = "--parallel fsdp --shard 2 --recompute-every 2".split()
    assert_six_digits(run(world, tmp_path / "out", 4, *flags), alone)


@pytest.mark.parametrize("processes", [1, 4])
def test_saved_on_two_processes_a_run_goes_on_with_another_number(world, tmp_path, on_two, alone, processes):
    out = tmp_path / "out"
    shutil.copytree(on_two[0], out)
    shutil.rmtree(complete_checkpoints(out)[-1])               # so that it goes on from step 4
    assert_six_digits(run(world, out, processes, "--parallel", "fsdp" if processes > 1 else "none"), alone)


def test_torchrun_restarts_a_killed_worker_and_nothing_is_lost(world, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "2", "train.py", "demo", "--data", world,
         "--out", out, *SHAPE, "--steps", "60", "--parallel", "ddp", "--checkpoint-every", "5"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while len(complete_checkpoints(out)) < 2:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    subprocess.run(["pkill", "-9", "-n", "-P", str(process.pid)], check=True)
    output = process.communicate()[0]
    assert process.returncode == 0 and "resuming after" in output, output[-3000:]
    with open(out / "log.jsonl") as log:
        assert [json.loads(line)["step"] for line in log] == list(range(60))


def test_clipping_has_the_bits_of_clip_grad_norm_and_leaves_gradients_below_the_limit_alone(monkeypatch):
    scaled = []
    monkeypatch.setattr(parallel, "clip_grads_with_norm_",
                        lambda *arguments: scaled.append(torch.nn.utils.clip_grads_with_norm_(*arguments)))
    torch.manual_seed(0)
    for case in range(120):
        ours, theirs = (torch.nn.Linear(5, 3) for _ in range(2))
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        norm = torch.nn.utils.get_total_norm([p.grad for p in ours.parameters()]).item()
        limit = norm * (0.1, 1.0, 1 + 1e-7, 10.0)[case % 4] + 1e-6 * (case % 3)

        assert parallel.clip_gradients(ours.parameters(), limit) == norm
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit)
        assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert len(scaled) == 90, "a norm far below the limit costs no pass"


def one_step_as(rank):
    """The step of one of 128 processes, on real tensors in a process group that only pretends to talk."""
    dist.init_process_group("fake", rank=rank, world_size=128, store=FakeStore())
    world = parallel.World(rank, 128, torch.device("cpu"))
    for shard in (0, 8):
        cfg = train.Train(model=tiny_config(), parallel="fsdp", shard=shard, compile=False)
        model = train.build(cfg, world, GPT, {})
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids_BT = torch.zeros(1, 8, dtype=torch.int64)
        model(ids_BT, ids_BT).backward()
        parallel.clip_gradients(model.parameters(), 1.0)
        optimizer.step()
        print(tuple(model.wte.weight.to_local().shape))
    assert world.share(1024) == slice(8 * rank, 8 * rank + 8)


@pytest.mark.parametrize("rank, rows", [(0, (3, 38)), (127, (0, 35))])
def test_the_step_runs_on_any_of_128_processes(rank, rows):
    """301 rows over 128 processes are 3 each, until none is left; over 8 they are 38 each, and 35 for the last."""
    finished = launched(one_step_as, rank)
    assert finished.stdout.split("\n")[:2] == [f"({n}, 48)" for n in rows], finished.stderr[-2000:]


def test_a_setting_that_cannot_work_with_these_processes_is_named(monkeypatch):
    two = parallel.World(0, 2, torch.device("cpu"))
    with pytest.raises(UserError, match="--shard 3 does not divide the 2 processes"):
        parallel.device_mesh(two, 3)
    with pytest.raises(UserError, match="no multiple of 2 processes x --micro-batch-size 8"):
        train.read_data(train.Train(batch_size=24), two)
    with pytest.raises(UserError, match="wants torchrun"), parallel.join_world("ddp"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="choose ddp or fsdp"), parallel.join_world("none"):
        pass


def test_a_plan_is_refused_by_a_torch_whose_tracker_counts_what_is_not_there(monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.11.0+cu130"))
    with pytest.raises(UserError, match="needs torch 2.13 .*, this is 2.11.0"):
        step_memory(replace(train.PRESETS["biomedlm"], parallel="fsdp"), 128)


@needs_new_torch
def test_the_papers_run_fits_its_gpus_with_room():
    """The real step of one of 128 processes at full width, on tensors without memory. Each block adds the same, so
    three depths on a line give the number of all 32, which `train.py biomedlm --plan` counts in half a minute."""
    cfg = replace(train.PRESETS["biomedlm"], parallel="fsdp")
    peaks, activations = [], []
    for n_layer in (2, 3, 4):
        peak, kinds = step_memory(replace(cfg, model=replace(cfg.model, n_layer=n_layer)), 128)
        peaks.append(peak), activations.append(kinds["ACT"])
    for line in (peaks, activations):
        assert line[1] - line[0] == pytest.approx(line[2] - line[1], rel=1e-6)
    peak, activations = (line[0] + (cfg.model.n_layer - 2) * (line[1] - line[0]) for line in (peaks, activations))
    assert peak < 38 and activations > 20
