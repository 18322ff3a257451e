"""The plan's arithmetic agrees with the memory that the real step allocates, and it names what fits where."""
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, needs_new_torch

import train
from launch import plan
from model import GPT, GPTConfig

CFG = replace(train.PRESETS["biomedlm"], parallel="fsdp", batch_size=64, micro_batch_size=8,
              model=GPTConfig(vocab_size=300, n_positions=64, n_embd=128, n_layer=3, n_head=2, bos_token_id=299,
                              eos_token_id=299))


def parameters(cfg):
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(cfg.model).parameters())


@pytest.fixture(scope="module")
def window():
    return plan.window_memory(CFG, GPT)


@needs_new_torch
def test_the_forecast_for_another_machine_is_what_its_step_allocates(window):
    found = plan.step_memory(replace(CFG, micro_batch_size=16), 2)[0]
    assert plan.peak_memory(parameters(CFG), 2, 16 * window) == pytest.approx(found, rel=0.05)


@needs_new_torch
def test_one_gpu_also_keeps_a_copy_of_the_weights_in_bf16(window):
    n = parameters(CFG)
    assert plan.peak_memory(n, 1, 1.0) == pytest.approx((12 + 2) * n / 2**30 + 1.0)
    assert plan.peak_memory(n, 8, 0.0) == pytest.approx(16 * n / 8 / 2**30), "the gradients, when activations are gone"


@needs_new_torch
def test_the_kernels_save_activations(window):
    pytest.importorskip("triton")
    assert plan.window_memory(CFG, GPT, kernels=True) < 0.8 * window


def test_the_table_names_what_fits_and_what_does_not(capsys, monkeypatch):
    monkeypatch.setattr(plan, "window_memory", lambda cfg, network, kernels=False: 1.5 if kernels else 3.0)
    shape = GPTConfig()
    plan.print_machines(replace(CFG, model=shape, batch_size=1024), 2_594_247_680, plan.OTHERS, GPT)
    lines = {tuple(line.split("  ")[1:2]) + (("Triton" in line),): line for line in capsys.readouterr().out.split("\n")}
    assert "--micro-batch-size   8" not in lines["8 x A100-80GB", False] and "16" in lines["8 x A100-80GB", False]
    assert "32" in lines["8 x A100-80GB", True].split("GiB")[0]
    assert "does NOT fit" in lines["1 x 24 GB (RTX 4090)", False]


def test_the_cluster_job_compiles_on_its_nodes_own_disks():
    script = (ROOT / "launch/biomedlm.slurm").read_text(encoding="utf-8")
    assert "export TRITON_CACHE_DIR=$CACHE" in script and "TORCHINDUCTOR_CACHE_DIR=$CACHE" in script
    assert "CACHE=${CACHE:-/tmp/" in script
