"""bench/train.py's contestants compute the same losses, and all their steps are timed."""
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_config

from bench.train import CONTESTANTS, OURS, Bench, Stopwatch, first_weights, settings
from data import write_shard


def test_the_contestants_of_the_training_benchmark_agree(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        write_shard(tmp_path / f"data/{split}_000000.bin", rng.integers(0, 301, 5000, dtype=np.uint16))
    shape = tiny_config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    run = replace(settings(Bench(steps=4), tmp_path), model=shape, batch_size=4, micro_batch_size=4)
    first_weights(run).save_pretrained(tmp_path / "weights")

    losses = {}
    for name, train_with in CONTESTANTS.items():
        watch = Stopwatch()
        losses[name] = train_with(run, watch, tmp_path / "weights")
        assert len(watch.seconds()) == 2, "four steps without the first and the last"
    for name in CONTESTANTS:
        assert losses[name] == pytest.approx(losses[OURS], abs=1e-5)
