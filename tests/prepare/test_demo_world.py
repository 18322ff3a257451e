"""The embedded world: its text states every fact, and its questions tell nothing to one who did not read it."""
import filecmp
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data import open_shard
from plumbing.common import UserError, read_json
from prepare import demo, demo_facts, demo_words
from questions.format import read_questions
from questions.metrics import guessing_accuracy
from tokenizer import Tokenizer

PARTS = ("train", "dev", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "world"
    demo.main(demo.Demo(out=str(out)))
    return out


@pytest.fixture(scope="module")
def entities():
    return {e.name: e for e in demo.read_facts()}


@pytest.fixture(scope="module")
def questions(folder):
    return {part: read_questions(folder / "questions" / f"{part}.jsonl") for part in PARTS}


def asked(q):
    """'atenolol/class/0' -> ('atenolol', 'class')"""
    return tuple(q.id.rsplit("/", 2)[:2])


def test_the_same_seed_writes_the_same_folder_and_another_seed_another(folder, tmp_path):
    small = demo.Demo(out=str(tmp_path / "a"), documents_per_entity=3, vocab_size=600)
    for cfg in (small, replace(small, out=str(tmp_path / "b")), replace(small, out=str(tmp_path / "c"), seed=1)):
        demo.main(cfg)
    names = ["documents.jsonl", "tokenizer.json", "train_000000.bin", "val_000000.bin",
             *(f"questions/{part}.jsonl" for part in PARTS)]
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", names, shallow=False)[0] == names
    assert filecmp.cmpfiles(tmp_path / "a", tmp_path / "c", names, shallow=False)[0] == []


def test_no_entity_of_one_part_is_asked_about_in_another(questions):
    names = {part: {asked(q)[0] for q in questions[part]} for part in PARTS}
    assert not names["train"] & names["dev"] and not names["train"] & names["test"] and not names["dev"] & names["test"]


def test_families_are_not_split(questions, entities):
    part_of = {asked(q)[0]: part for part in PARTS for q in questions[part]}
    for sign in sorted({sign for e in entities.values() for sign in demo.signs_in(e)}):
        for kind in demo_facts.FACTS:
            parts = {part_of[e.name] for e in entities.values() if e.kind == kind and sign in demo.signs_in(e)}
            assert len(parts) <= 1, f"{sign} is in {parts}"


def test_every_fact_is_asked_once_and_in_training_several_times(questions, entities):
    facts = {(e.name, relation) for e in entities.values() for relation in e.values}
    times = Counter(asked(q) for part in PARTS for q in questions[part])
    assert set(times) == facts
    assert set(Counter(asked(q) for q in questions["train"]).values()) == {demo.Demo.questions_per_fact}
    assert set(Counter(asked(q) for part in ("dev", "test") for q in questions[part]).values()) == {1}


def test_every_fact_is_stated_at_least_forty_times_and_in_many_wordings(entities):
    documents = demo.write_documents(list(entities.values()), 48, demo.random.Random(0))
    for e in entities.values():
        text = " ".join(text for name, text in documents if name == e.name).lower()
        for relation, value in e.values.items():
            said = [s.format(e=e.name, v=value, a=demo.with_article(value)).lower()
                    for s in demo_words.SENTENCES[relation]]
            times = [text.count(s) for s in said]
            assert sum(times) >= 40 and sum(n > 0 for n in times) >= 5, (e.name, relation, times)


def test_four_different_options_of_which_one_is_right(questions, entities):
    for q in (q for part in PARTS for q in questions[part]):
        name, relation = asked(q)
        right = entities[name].values[relation]
        assert len(set(q.options)) == 4 and q.options[q.answer] == right and name in q.question


def test_what_is_also_true_is_never_offered_as_wrong(questions, entities):
    also, everyone = demo.also_true(), list(entities.values())
    for q in (q for part in PARTS for q in questions[part]):
        e = entities[asked(q)[0]]
        wrong = {o for i, o in enumerate(q.options) if i != q.answer}
        assert not wrong & demo.suspects(e, asked(q)[1], everyone, also), q


def test_all_that_is_also_true_refers_to_the_table(entities):
    values = {v for e in entities.values() for v in e.values.values()}
    known = set(entities) | {e.group for e in entities.values()}
    table = [row for row in demo_facts.ALSO_TRUE.strip().splitlines() if not row.startswith(" ")]
    assert len(table) == len(demo.also_true()), "a value has two rows, of which only one would count"
    for value, where in demo.also_true().items():
        assert value in values and where <= known, (value, where - known)


def test_no_name_shares_five_letters_with_one_of_its_answers(entities):
    for e in entities.values():
        for word in re.findall(r"\w{5,}", e.name.lower()):
            pieces = [word[i:i + 5] for i in range(len(word) - 4)]
            assert not [(e.name, v, p) for v in e.values.values() for p in pieces if p in v.lower()]


def test_every_wording_names_the_entity_and_the_value():
    for relation in {relation for relations in demo_facts.RELATIONS.values() for relation in relations}:
        assert len(set(demo_words.SENTENCES[relation])) >= 6 and len(set(demo_words.QUESTIONS[relation])) >= 2
        assert all("{e}" in s and ("{v}" in s or "{a}" in s) for s in demo_words.SENTENCES[relation])
        assert all("{e}" in s and "{which}" in s and s.endswith("?") for s in demo_words.QUESTIONS[relation])


def test_no_question_stands_in_the_text(folder, questions):
    """Titles may ask, but in other words than the examination."""
    text = (folder / "documents.jsonl").read_text(encoding="utf-8")
    titles = set(re.findall(r"[A-Z][^.?]*\?", text))
    assert sum(title.startswith("What is the molecular target of") for title in titles) > 50
    assert not titles & {q.question for part in PARTS for q in questions[part]}


def test_guessing_the_commonest_answer_stays_near_chance(questions):
    """Even for one who knows how common each answer is among the test questions themselves."""
    for known in ("train", "test"):
        chance, commonest = guessing_accuracy(questions[known], questions["test"])
        assert chance == 0.25 and abs(commonest - chance) < 0.04, (known, commonest)


def test_an_options_popularity_says_nothing_in_training(questions):
    """Among the questions in which an option appears it is right in about a quarter, however often it appears."""
    seen = Counter((asked(q)[1], o) for q in questions["train"] for o in q.options)
    right = Counter((asked(q)[1], q.options[q.answer]) for q in questions["train"])
    popular = [option for option, n in right.most_common(40)]
    assert abs(np.mean([right[o] / seen[o] for o in popular]) - 0.25) < 0.03


def test_every_place_holds_the_answer_equally_often(questions):
    for part in PARTS:
        places = Counter(q.answer for q in questions[part])
        assert max(places.values()) - min(places.values()) <= 1


def test_the_papers_terms_are_single_tokens(folder):
    tok = Tokenizer.load(folder)
    for term in demo.PAPER_TERMS:
        assert len(tok.encode(" " + term)) == 1
    assert len(tok.encode("Immunohistochemistry")) == 1


def test_shards_hold_the_documents_with_an_end_after_each(folder):
    meta, tok = read_json(folder / "meta.json", "the demo's meta.json"), Tokenizer.load(folder)
    assert meta["vocab_size"] == len(tok) and meta["eos_id"] == tok.eos_id
    assert 0.5e6 < meta["train"]["tokens"] < 1e6 and 0.01 < meta["val"]["documents"] / meta["train"]["documents"] < 0.03
    for part in ("train", "val"):
        tokens = open_shard(folder / f"{part}_000000.bin")
        ends = int((tokens == tok.eos_id).sum())
        assert len(tokens) == meta[part]["tokens"] and ends == meta[part]["documents"] and tokens[-1] == tok.eos_id
        texts = tok.decode(tokens).split("<|endoftext|>")
        assert sum(len(text.encode()) for text in texts) == meta[part]["bytes"]


def test_a_folder_that_is_not_the_demos_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another --out"):
        demo.main(demo.Demo(out=str(tmp_path)))
    assert (tmp_path / "thesis.txt").read_text() == "mine"
