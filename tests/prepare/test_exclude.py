"""prepare/exclude.py: a test set's documents never enter the corpus, whatever the form in which they are named."""
import gzip
import json
import random
import re
from zlib import crc32

import numpy as np
import pytest

from plumbing.common import UserError
from prepare import exclude, pubmed
from prepare.exclude import Excluded, read_excluded, shingles
from tokenizer import Tokenizer


def words(n, seed=0):
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefgh", k=rng.randint(1, 9))) for _ in range(n))


def test_equal_runs_of_20_words_have_equal_hashes_and_no_others():
    a, b, shared = words(30, 1), words(30, 2), words(25, 3)
    hashes = [set(shingles(text).tolist()) for text in (f"{a} {shared} {b}", f"{b}: {shared.upper()}. {a}")]
    assert len(hashes[0] & hashes[1]) == 6 + 11 + 11, "of the shared words, and of a and b themselves"
    assert len(shingles(words(20))) == 1 and len(shingles(words(19))) == len(shingles("")) == 0


@pytest.mark.parametrize("piece", [1, 7, 1 << 13])
def test_long_documents_are_hashed_piece_by_piece_with_the_same_result(monkeypatch, piece):
    text = "--" + " x" * 40 + words(100) + " naïve β-blockers, 5–10\n\n" + words(30)
    runs = re.findall("[a-z0-9]+", text.lower())
    wanted = [shingles(" ".join(runs[i:i + 20]))[0] for i in range(len(runs) - 19)]
    monkeypatch.setattr(exclude, "PIECE", piece)
    assert shingles(text).tolist() == wanted


def excluded(folder, *paths):
    Excluded.save(folder, [read_excluded(path) for path in paths])
    return Excluded(folder)


LONG = [words(40, seed) for seed in range(10)]


@pytest.mark.parametrize("name, content, pmids, texts", [
    ("a.txt", "12\n\n https://pubmed.ncbi.nlm.nih.gov/13/\nhttp://www.ncbi.nlm.nih.gov/pubmed/14\n", {12, 13, 14}, []),
    ("pubmedqa.json", {"15": {"QUESTION": "?", "CONTEXTS": LONG[:2]}, "16": {"CONTEXTS": []}}, {15, 16}, LONG[:2]),
    ("ground_truth.json", {"17": "yes", "1" * 5000: "pubmed.ncbi.nlm.nih.gov/21/" + "pubmed/" + "x"}, {17, 21}, []),
    ("bioasq.json", {"questions": [{"documents": ["http://www.ncbi.nlm.nih.gov/pubmed/18"],
                                    "snippets": [{"text": LONG[2]}]}]}, {18}, LONG[2:3]),
    ("squad.json", {"data": [{"paragraphs": [{"context": LONG[3], "qas": [{"id": "1_001"}]}]}]}, set(), LONG[3:4]),
    ("ours.jsonl.gz", {"id": "19", "context": LONG[4], "question": LONG[5], "options": ["a", "b"]}, set(), LONG[4:6]),
    ("documents.jsonl", {"id": "0a", "text": LONG[6]}, set(), LONG[6:7])])
def test_every_form_of_test_set_names_its_documents(tmp_path, name, content, pmids, texts):
    path = tmp_path / name
    raw = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read_excluded(path).pmids == pmids
    found = excluded(tmp_path, path)
    for text in LONG:
        quoted = f"{words(50, 77)} {' '.join(text.split()[10:30]).upper()} {words(50, 78)}"
        assert found.find([None], [quoted]) == ({0: 0} if text in texts else {})
    assert found.find([*sorted(pmids), 99], ["", *[words(40, 80)] * len(pmids)]) == {i: 0 for i in range(len(pmids))}


def test_documents_are_looked_up_together_but_a_run_across_two_of_them_is_none(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in LONG[i:i + 2]))
    found = excluded(tmp_path, *(tmp_path / f"{i}.jsonl" for i in range(3)))
    halves = [" ".join(LONG[2].split()[:19]), " ".join(LONG[2].split()[19:38])]
    documents = ["", LONG[3], LONG[5], LONG[2], LONG[1], "", f"{LONG[3]} {LONG[0]}", *halves, "x"]
    assert found.find([None] * 10, documents) == {1: 2, 3: 1, 4: 0, 6: 0}


@pytest.mark.parametrize("name, content, message", [
    ("none.json", None, "no such file"), ("a.csv", b"1", "reads .txt, .json and .jsonl"),
    ("a.txt", b"12\n12a4\n", "line 2: '12a4' is not a PMID"), ("a.jsonl", b'{"a": 1}\n{', "line 2: not JSON"),
    ("a.json", b"[" * 99999, "not JSON"), ("a.json", b"1" * 5000, "not JSON"), ("a.json", b"\xff", "cannot be read"),
    ("a.json.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "cannot be read"),
    ("a.jsonl", b'{"question": "Too short?"}', "excludes nothing")])
def test_a_file_that_is_not_understood_stops_rather_than_let_a_test_set_through(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        read_excluded(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_pubmed_drops_excluded_documents_and_counts_them_by_file(tmp_path):
    Tokenizer.train([LONG[0]], 280).save(tmp_path / "tok")
    article = "<PubmedArticle><PMID Version='1'>{}</PMID><CommentsCorrections><PMID>7</PMID></CommentsCorrections>" \
              "<Article><ArticleTitle>T</ArticleTitle><Abstract><AbstractText>{}</AbstractText></Abstract></Article>" \
              "</PubmedArticle>"
    (tmp_path / "a.xml").write_text("<PubmedArticleSet>" + "".join(
        article.format(i, text) for i, text in enumerate(LONG)) + "</PubmedArticleSet>")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": f"Full text. {LONG[4]} {words(900, 50)}"}) + "\n"
                                      + json.dumps({"text": words(90, 51)}) + "\n")
    (tmp_path / "pmids.txt").write_text("7\n3\n")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": LONG[i]}) + "\n" for i in (3, 4, 5)))
    files = tmp_path / "pmids.txt", tmp_path / "test.jsonl"

    metas = [pubmed.main(pubmed.Prepare((tmp_path / "a.xml", tmp_path / "b.jsonl"), tmp_path / "tok", tmp_path / str(n),
                                        val_fraction=0, exclude=files, processes=n)) for n in (1, 2)]
    assert metas[0] == metas[1]
    assert metas[0]["excluded"] == [{"file": str(path), "crc32": crc32(path.read_bytes()), "dropped": dropped}
                                    for path, dropped in zip(files, (2, 3), strict=True)]
    assert metas[0]["train"]["documents"] == 12 - 5 and metas[0]["skipped"] == {}
    assert {path.name for path in (tmp_path / "1").iterdir()} == {
        "train_000000.bin", "meta.json", "tokenizer.json", "vocab.json", "merges.txt"} | {
        path.name for path in (tmp_path / "tok").iterdir()}

    meta = pubmed.main(pubmed.Prepare((tmp_path / "b.jsonl",), tmp_path / "tok", tmp_path / "all", processes=1))
    assert meta["excluded"] == [], "an empty list says that nothing was excluded"
    (tmp_path / "all.jsonl").write_bytes((tmp_path / "b.jsonl").read_bytes())
    with pytest.raises(UserError, match="no document .2 x excluded document.; nothing was written"):
        pubmed.main(pubmed.Prepare((tmp_path / "b.jsonl",), tmp_path / "tok", tmp_path / "none", processes=1,
                                   exclude=(tmp_path / "all.jsonl",)))


def test_hashes_are_uint64_so_that_sums_wrap_around():
    assert shingles(words(25)).dtype == np.uint64 == exclude.powers(4)[0].dtype
    assert (exclude.powers(4)[0] * exclude.powers(4)[1] == 1).all()
