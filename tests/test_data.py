"""Shards are llm.c's, and the order of the data is a pure function of (seed, step)."""
import numpy as np
import pytest

from data import Corpus, open_shard, permute, write_shard
from plumbing.common import UserError


def corpus_of(folder, lengths, window=8, seed=0):
    tokens = np.arange(sum(lengths), dtype=np.uint16)
    for i, part in enumerate(np.split(tokens, np.cumsum(lengths)[:-1])):
        write_shard(folder / f"train_{i:06d}.bin", part)
    return Corpus(folder, "train", window, seed)


def test_a_shard_is_llm_cs_format(tmp_path):
    write_shard(tmp_path / "train_000000.bin", np.array([5, 65535], np.uint16))
    raw = (tmp_path / "train_000000.bin").read_bytes()
    header = np.frombuffer(raw[:1024], np.int32)
    assert header[:3].tolist() == [20240520, 1, 2] and not header[3:].any()
    assert np.frombuffer(raw[1024:], np.uint16).tolist() == [5, 65535]
    assert open_shard(tmp_path / "train_000000.bin").tolist() == [5, 65535]


@pytest.mark.parametrize("n", [1, 2, 3, 17, 1000, 4097])
def test_the_permutation_is_one(n):
    for key in range(3):
        sent = permute(np.arange(n, dtype=np.uint64), n, np.full(n, key, np.uint64))
        assert sorted(sent.tolist()) == list(range(n))


def test_an_epoch_reads_every_window_once_and_the_next_in_another_order_and_cut(tmp_path):
    corpus = corpus_of(tmp_path, [700, 300])
    n = corpus.n_windows
    epochs = [np.concatenate([corpus.batch(n * e + i, 1)[0].numpy() for i in range(n)]) for e in range(8)]
    for epoch in epochs:
        starts = sorted(epoch[:, 0].tolist())
        assert set(np.diff(starts)) == {8}                      # all windows, side by side, none twice
    assert epochs[0][:, 0].tolist() != epochs[1][:, 0].tolist()
    assert len({epoch[0, 0] % 8 for epoch in epochs}) > 3


def test_targets_are_the_next_tokens_across_the_ends_of_shards(tmp_path):
    corpus = corpus_of(tmp_path, [13, 1, 20, 66])
    ids_BT, targets_BT = corpus.batch(0, corpus.n_windows)
    assert (targets_BT == ids_BT + 1).all()                     # the tokens are 0, 1, 2 ...


def test_ranks_that_share_a_batch_read_what_one_process_would(tmp_path):
    corpus = corpus_of(tmp_path, [1000])
    whole = corpus.batch(5, 8)[0]
    for world in (2, 4):
        size = 8 // world
        for rank in range(world):
            part = corpus.batch(5, 8, slice(rank * size, (rank + 1) * size))[0]
            assert (part == whole[rank * size:(rank + 1) * size]).all()


def test_another_seed_is_another_order(tmp_path):
    first = corpus_of(tmp_path, [1000]).batch(0, 16)[0]
    assert (first == corpus_of(tmp_path, [1000]).batch(0, 16)[0]).all()
    assert (first != corpus_of(tmp_path, [1000], seed=1).batch(0, 16)[0]).any()


def test_evaluation_windows_are_fixed_and_inside(tmp_path):
    corpus = corpus_of(tmp_path, [1000])
    assert corpus.spread(10_000) == corpus.spread(10_000) and len(corpus.spread(10_000)) == corpus.n_windows
    ids_BT, targets_BT = corpus.cut(corpus.spread(5))
    assert len(ids_BT) == 5 and (targets_BT == ids_BT + 1).all()


@pytest.mark.parametrize("damage, words", [("cut", "truncated"), ("text", "not a token shard"), ("tiny", "too few"),
                                           ("gone", "no train_"), ("short", "too few for one window")])
def test_a_damaged_shard_is_named(tmp_path, damage, words):
    corpus_of(tmp_path, [1000])
    path = tmp_path / "train_000000.bin"
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "short":
        write_shard(path, np.arange(5, dtype=np.uint16))
    else:
        path.write_bytes({"cut": raw[:-7], "text": b"hello, world" * 100, "tiny": raw[:9]}[damage])
    with pytest.raises(UserError, match=words) as error:
        Corpus(tmp_path, "train", 8)
    assert str(tmp_path) in str(error.value)


def test_an_id_beyond_the_vocabulary_is_named_with_its_shard(tmp_path):
    corpus = corpus_of(tmp_path, [500, 500])
    corpus.check_ids(1000)
    with pytest.raises(UserError, match="train_000001.bin: holds token 999"):
        corpus.check_ids(999)


def test_ids_are_never_wrapped_into_uint16(tmp_path):
    with pytest.raises(AssertionError, match="uint16"):
        write_shard(tmp_path / "x.bin", np.array([70000]))
