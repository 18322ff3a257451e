"""Pretraining: the numbers are right, a resumed run is the undisturbed one, and what is wrong is said."""
import gc
import json
import math
import re
import shutil
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import NoFloat64, needs_new_torch, run_script, tiny_config
from filelock import FileLock
from launched import Launch, launched

import train
from data import write_shard
from model import GPT
from plumbing import runtime
from plumbing.common import UserError
from tokenizer import Tokenizer
from training.checkpoint import complete_checkpoints as checkpoints
from training.monitor import Outliers, known_chip


def ten_steps(world, folder):
    return train.Train(data=str(world), out=str(folder / "out"), model=tiny_config(), steps=10, batch_size=4,
                       micro_batch_size=4, learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=3,
                       dtype="float32", compile=False, eval_every=5, eval_windows=16, checkpoint_every=4)


@pytest.fixture
def cfg(world, tmp_path):
    return ten_steps(world, tmp_path)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """(the losses of `cfg`'s run, its folder)"""
    cfg = ten_steps(world, tmp_path_factory.mktemp("finished"))
    return train.main(cfg), cfg.out


@pytest.fixture
def whole(finished, cfg):
    """The losses of a run of `cfg`, which is over: its folder is a copy."""
    shutil.copytree(finished[1], cfg.out)
    return finished[0]


SPEED = ("tokens_per_second", "mfu", "memory_gib", "hours_left")


def log_of(cfg):
    return [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]


def weights_of(cfg):
    return GPT.from_pretrained(f"{cfg.out}/model").state_dict()


def assert_same(a, b):
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_ten_steps_give_the_golden_losses(whole):
    """Forward, backward, clipping, schedule, optimizer and order of data in one array. Recompute it only when one of
    them is meant to change."""
    golden = [5.7327, 5.4766, 5.2141, 4.8993, 4.5380, 4.1827, 4.0679, 3.9884, 3.9353, 3.8848]
    assert whole == pytest.approx(golden, abs=2e-3)


def test_a_fresh_model_knows_nothing_and_a_trained_one_something(cfg):
    losses = train.main(replace(cfg, steps=60))
    assert losses[0] == pytest.approx(math.log(301), abs=0.1) and losses[-1] < 3.5


@pytest.mark.parametrize("parallel", ["none", pytest.param("fsdp", marks=needs_new_torch)])
def test_a_step_leaves_nothing_behind(cfg, monkeypatch, parallel):
    """286,102 steps with the garbage collector off: what a step forgets to free would fill the memory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in dict(RANK=0, WORLD_SIZE=1, MASTER_ADDR="127.0.0.1", MASTER_PORT=port).items():
        monkeypatch.setenv(name, str(value))
    counts, rate = [], train.learning_rate
    monkeypatch.setattr(train, "learning_rate", lambda *args: counts.append(len(gc.get_objects())) or rate(*args))
    train.main(replace(cfg, steps=120, parallel=parallel, eval_every=1000, checkpoint_every=0))
    assert len(counts) == 120 and counts[-2] - counts[19] < 20, counts


def test_accumulated_parts_equal_the_whole_batch(cfg, whole, tmp_path):
    parts = train.main(replace(cfg, micro_batch_size=1, out=str(tmp_path / "parts")))
    assert parts == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(cfg, tmp_path, capsys, dropout):
    model = tiny_config(embd_pdrop=dropout, attn_pdrop=dropout, resid_pdrop=dropout)
    cfg, other = (replace(cfg, model=model, out=str(tmp_path / name)) for name in ("whole", "resumed"))
    whole = train.main(cfg)
    train.main(other)
    shutil.rmtree(f"{other.out}/model")
    shutil.rmtree(checkpoints(other.out)[-1])              # as if killed between the checkpoints of steps 8 and 10
    assert [path.name for path in checkpoints(other.out)] == ["00000008"]
    settings = checkpoints(other.out)[-1] / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"seconds_per_step": 5400}))
    assert train.main(other) == whole[8:]
    assert re.search(r"resuming after 8 steps from \S+/00000008, saved \d{4}-\d\d-\d\d \d\d:\d\d; 2 steps are left, "
                     r"about 3:00:00 h at the speed before\n", printed := capsys.readouterr().out)
    assert printed.endswith(f"next: python sample.py --model {other.out}/model\n")
    assert_same(weights_of(cfg), weights_of(other))
    drop_speed = [{k: v for k, v in line.items() if k not in SPEED} for line in log_of(other)]
    assert [line["step"] for line in drop_speed] == list(range(10))
    assert [line["loss"] for line in drop_speed] == whole


def test_a_killed_run_resumes_to_the_same_weights(cfg, world, tmp_path):
    """SIGTERM saves and leaves with code 130; the same command goes on and ends where an undisturbed run ends."""
    def command(name):
        flags = "--model.n-positions 32 --model.n-embd 48 --model.n-layer 3 --model.n-head 3 --batch-size 4 " \
                "--micro-batch-size 4 --steps 150 --checkpoint-every 0 --dtype float32"
        return ["train.py", "demo", "--data", world, "--out", tmp_path / name, *flags.split()]

    assert launched(*command("whole")).returncode == 0
    killed = Launch(*command("killed"))
    log = tmp_path / "killed" / "log.jsonl"
    while not log.is_file() or log.read_text().count("\n") < 20:
        assert killed.processes[0].is_alive(), killed.wait()
        time.sleep(0.01)
    killed.processes[0].terminate()                                                                        # SIGTERM
    finished = killed.wait()
    assert "saved after step" in finished.stderr and finished.returncode == 130
    assert not (tmp_path / "killed" / "model").exists() and len(checkpoints(tmp_path / "killed")) == 1
    assert launched(*command("killed")).returncode == 0
    assert_same(*(GPT.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "killed")))


def test_a_checkpoint_that_was_not_finished_does_not_count(cfg, whole):
    newest = checkpoints(cfg.out)[-1]
    (newest / ".metadata").unlink()
    assert newest not in checkpoints(cfg.out)


@pytest.mark.parametrize("damage", ["cut", "gone", "metadata", "settings"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(cfg, whole, capsys, damage):
    newest = checkpoints(cfg.out)[-1]
    names = {"metadata": ".metadata", "settings": "settings.json"}
    victim = newest / names[damage] if damage in names else next(newest.glob("*.distcp"))
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100])
    (newest.parent / "00000099_backup").mkdir()                # somebody's copy: it is not a checkpoint
    assert train.main(cfg) == whole[8:]
    assert f"{newest}: damaged" in capsys.readouterr().out
    shutil.rmtree(checkpoints(cfg.out)[0])
    victim = next(checkpoints(cfg.out)[0].glob("*.distcp"))
    victim.write_bytes(b"")
    with pytest.raises(UserError, match="none of 1 can be read"):
        train.main(cfg)


def test_a_step_without_a_finite_gradient_is_skipped_and_too_many_stop_the_run(cfg, monkeypatch):
    clip, calls = train.parallel.clip_gradients, []

    def broken_at_step_3(parameters, limit):
        calls.append(1)
        return clip(parameters, limit) * (math.nan if len(calls) in broken else 1.0)

    monkeypatch.setattr(train.parallel, "clip_gradients", broken_at_step_3)
    broken = {4}
    losses = train.main(cfg)
    assert [line.get("skipped") for line in log_of(cfg)[2:5]] == [None, 1, None]
    assert math.isfinite(losses[-1]) and losses[-1] < losses[0]
    broken, calls = range(100), []
    with pytest.raises(UserError, match="3 steps in a row"):
        train.main(replace(cfg, max_skipped=2, restart=True))


def test_recomputed_activations_give_the_same_losses(cfg, whole, tmp_path):
    recomputed = train.main(replace(cfg, recompute_every=2, out=str(tmp_path / "recomputed")))
    assert recomputed == pytest.approx(whole, abs=1e-6)


def test_documents_kept_apart_are_another_run(cfg, whole, tmp_path):
    apart = train.main(replace(cfg, separate_documents=True, out=str(tmp_path / "apart")))
    assert max(abs(a - b) for a, b in zip(apart, whole, strict=True)) > 1e-3


def test_only_the_newest_checkpoints_are_kept(cfg):
    train.main(replace(cfg, checkpoint_every=2))
    assert [path.name for path in checkpoints(cfg.out)] == ["00000008", "00000010"]


def test_other_settings_do_not_resume_silently(cfg, whole):
    with pytest.raises(UserError, match="batch_size = 4, now it is 8"):
        train.main(replace(cfg, batch_size=8, steps=20))
    with pytest.raises(UserError, match="already more"):
        train.main(replace(cfg, steps=5))
    assert len(train.main(replace(cfg, batch_size=8, restart=True))) == 10


def test_composers_decoupled_decay_is_adamw_with_a_tenth():
    """The paper's weight decay 1.6e-5 at a peak of 1.6e-4, written out as Composer does it, against torch's AdamW."""
    peak, wd, (beta1, beta2), eps = 1.6e-4, 1.6e-5, (0.9, 0.95), 1e-8
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(64, generator=generator, dtype=torch.float64)
    ours = p.clone().requires_grad_()
    optimizer = torch.optim.AdamW([ours], peak, (beta1, beta2), eps, weight_decay=train.Train().weight_decay)
    m, v = torch.zeros(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    cfg = train.Train(steps=300, warmup_steps=20)
    for step in range(300):
        lr, g = train.learning_rate(step, cfg), torch.randn(64, generator=generator, dtype=torch.float64)
        optimizer.param_groups[0]["lr"], ours.grad = lr, g.clone()
        optimizer.step()
        p = p * (1 - lr / peak * wd)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1 ** (step + 1)) * m / (v.sqrt() / math.sqrt(1 - beta2 ** (step + 1)) + eps)
    torch.testing.assert_close(ours.detach(), p, rtol=1e-12, atol=0)


def test_the_schedule_is_a_warmup_and_half_a_cosine():
    cfg = train.Train()
    rates = [train.learning_rate(step, cfg) for step in (0, 99, 100, 143_151, 286_101)]
    assert rates == pytest.approx([1.6e-6, 1.6e-4, 1.6e-4, 8.8e-5, 1.6e-5], rel=1e-3)


def test_the_papers_preset_is_the_papers_recipe():
    cfg = train.PRESETS["biomedlm"]
    assert cfg.batch_size * cfg.model.n_positions == 1_048_576
    assert cfg.steps == round(300e9 / 1_048_576) and cfg.learning_rate == 1.6e-4 and cfg.warmup_steps == 100
    assert (cfg.beta1, cfg.beta2) == (0.9, 0.95) and cfg.weight_decay == pytest.approx(1.6e-5 / 1.6e-4)


def test_evaluation_is_the_mean_loss_in_bits_a_byte(cfg, whole, world):
    last, meta = log_of(cfg)[-1], json.loads((world / "meta.json").read_text())["val"]
    assert last["bits_per_byte"] == pytest.approx(last["val_loss"] / math.log(2) * meta["tokens"] / meta["bytes"])
    assert "val_loss" in log_of(cfg)[4] and "val_loss" not in log_of(cfg)[5]
    model, val = GPT.from_pretrained(f"{cfg.out}/model"), train.Corpus(str(world), "val", 32)
    assert last["val_loss"] == pytest.approx(model(*val.cut(val.spread(16))).item(), abs=1e-5)


def test_the_result_is_a_hugging_face_folder(cfg, whole):
    hf = transformers.GPT2LMHeadModel.from_pretrained(f"{cfg.out}/model", attn_implementation="eager").eval()
    theirs = transformers.AutoTokenizer.from_pretrained(f"{cfg.out}/model")
    ids = Tokenizer.load(f"{cfg.out}/model").encode("Aspirin inhibits").tolist()
    assert theirs.encode("Aspirin inhibits") == ids
    ours = GPT.from_pretrained(f"{cfg.out}/model")
    torch.testing.assert_close(hf(torch.tensor([ids])).logits, ours(torch.tensor([ids])), atol=1e-5, rtol=0)
    assert ours.cfg.eos_token_id == theirs.eos_token_id == 300


def test_a_finished_run_that_is_started_again_writes_the_same_model_card(cfg, whole):
    card = Path(cfg.out, "model/README.md")
    before = card.read_text()
    card.unlink()
    assert f"\n# {Path(cfg.out).name}\n" in before and "bits_per_byte" in before
    assert train.main(cfg) == [] and card.read_text() == before


def test_tensorboard_on_request(cfg, tmp_path):
    train.main(replace(cfg, tensorboard=True, steps=2))
    assert list((tmp_path / "out" / "tensorboard").glob("events*"))


@pytest.mark.parametrize("flags, words", [
    (["--data", "nowhere"], "nowhere: no train_"), (["--batch-size", "5", "--micro-batch-size", "2"], "no multiple"),
    (["--parallel", "fsdp"], "wants torchrun"), (["--steps", "0"], "--steps is 0"), (["--device", "cuda"], "--device"),
    (["--grad-clip", "-1"], "--grad-clip is -1"), (["--beta1", "1.5"], "--beta1"), (["--grad-clip", "inf"], "finite"),
    (["--warmup-steps", "-3"], "at least 0"), (["--model.n-head", "5"], "not a multiple of n_head")])
def test_bad_input_ends_in_one_line_and_code_2(world, tmp_path, flags, words):
    run = run_script if "nowhere" in flags else launched                      # once with all that Python and torch say
    finished = run("train.py", "demo", "--data", world, "--out", tmp_path / "out", *flags)
    assert finished.returncode == 2 and words in finished.stderr and finished.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_broken_weights_are_neither_saved_nor_exported(cfg, monkeypatch):
    gradient_of = train.gradient_of

    def poisoned(replica, corpus, step, *rest):
        if step == 5:
            next(replica.parameters()).data.fill_(math.nan)
        return gradient_of(replica, corpus, step, *rest)

    monkeypatch.setattr(train, "gradient_of", poisoned)
    with pytest.raises(UserError, match="not finite"):
        train.main(cfg)
    assert [path.name for path in checkpoints(cfg.out)] == ["00000004"] and not Path(cfg.out, "model").exists()


def test_skipped_steps_never_push_out_the_last_good_checkpoint(cfg, whole, tmp_path):
    kept = [path.name for path in checkpoints(cfg.out)]
    broken = replace(cfg, steps=30, learning_rate=1e30, final_learning_rate=1e30, warmup_steps=0, checkpoint_every=2,
                     max_skipped=3, out=str(tmp_path / "broken"))
    with pytest.raises(UserError, match="skipped"):
        train.main(broken)
    assert checkpoints(broken.out) == [] and len(kept) == 2
    with pytest.raises(UserError, match="not finite"):
        train.main(replace(broken, steps=4, max_skipped=99))
    assert not Path(broken.out, "model").exists()


def test_no_limit_on_the_gradient_is_not_a_limit_of_zero(cfg, whole, tmp_path):
    assert train.main(replace(cfg, grad_clip=0, steps=2, out=str(tmp_path / "free")))[1] < whole[0]


def test_restart_is_obeyed_by_the_first_start_only(cfg, whole, monkeypatch):
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(name, "1")
        assert train.main(replace(cfg, restart=True)) == []          # all ten steps are done
        monkeypatch.setenv(name, "0")
    assert len(train.main(replace(cfg, restart=True))) == 10
    assert not Path(cfg.out, "discarded").exists()


def test_a_run_may_begin_anew_from_its_own_result(cfg, whole):
    losses = train.main(replace(cfg, init_from=f"{cfg.out}/model", restart=True))
    assert losses[0] < whole[0] and Path(cfg.out, "model/config.json").is_file()


def test_a_second_run_on_the_same_folder_is_refused_while_the_first_lives(cfg, whole):
    with FileLock(Path(cfg.out) / ".lock"), pytest.raises(UserError, match="another run"):
        train.main(replace(cfg, steps=20))
    assert len(train.main(replace(cfg, steps=12))) == 2


def test_a_folder_that_cannot_be_written_is_named_before_the_first_step(cfg, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(train, "gradient_of", lambda *args: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match="file: cannot write"):
        train.main(replace(cfg, out=str(tmp_path / "file")))


def test_links_to_the_result_are_followed(cfg, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(tmp_path / "disk")
    train.main(replace(cfg, steps=1))
    assert (tmp_path / "disk" / "config.json").is_file() and (tmp_path / "out" / "model").is_symlink()


def test_another_corpus_does_not_resume_silently(cfg, whole, world, tmp_path):
    shutil.copytree(world, tmp_path / "data")
    moved = replace(cfg, data=str(tmp_path / "data"), steps=11)
    assert len(train.main(moved)) == 1                                # the same text in another folder
    write_shard(tmp_path / "data" / "train_000001.bin", np.zeros(100, np.uint16))
    with pytest.raises(UserError, match="made with corpus checksum"):
        train.main(replace(moved, steps=12))


def test_damaged_lines_of_the_log_are_dropped(cfg, whole):
    with open(f"{cfg.out}/log.jsonl", "a") as file:
        file.write('[1]\n{"step": 3, "lo\nnull\n')
    train.main(replace(cfg, steps=11))
    assert [line["step"] for line in log_of(cfg)] == list(range(11))


def test_steps_far_above_the_last_128_can_be_skipped():
    outliers, rng = Outliers(6.0), np.random.default_rng(0)
    for _ in range(128):
        assert not outliers.reject(4 + rng.normal(0, 0.1), 1 + rng.normal(0, 0.1))
    assert outliers.reject(4.0, 5.0) and outliers.reject(8.0, 1.0) and not outliers.reject(4.2, 1.2)
    assert not any(Outliers(0.0).reject(1.0 + 99 * (i > 200), 1.0) for i in range(300))


def test_training_needs_no_float64_on_an_apple_gpu(cfg, monkeypatch):
    monkeypatch.setattr(train, "precise_dtype", lambda device: runtime.precise_dtype(torch.device("mps")))
    with NoFloat64():
        train.main(replace(cfg, steps=5))


@pytest.mark.parametrize("package, setting", [("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_before_the_first_step(cfg, monkeypatch, package, setting):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {setting}"):
        train.main(replace(cfg, **{setting: True}))


@pytest.mark.parametrize("name, chip", [
    ("NVIDIA A100-SXM4-40GB", "A100"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"),
    ("NVIDIA L40S", "L40S"), ("NVIDIA L40", None), ("NVIDIA A10G", "A10G"), ("Tesla T4", "T4"),
    ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("AMD Instinct MI300X", "MI300X"), ("Tesla V100-SXM2-16GB", "V100")])
def test_a_gpus_peak_is_that_of_its_own_data_sheet(name, chip):
    assert known_chip(name) == chip
