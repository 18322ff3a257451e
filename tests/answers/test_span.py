"""answers/spans.py and extraction.py: spans are the context's own text, the best is the best of all, scores SQuAD's."""
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from conftest import SENTENCES, NoFloat64, tiny_model
from test_baselines_causal import random_model
from transformers import BertForQuestionAnswering, GPT2ForQuestionAnswering

import finetune_answers
from answers import extraction as finetune_span
from answers.extraction import FinetuneSpan
from answers.report import span_scores
from answers.scores import best_threshold, exact_match, squad2_scores, token_f1
from answers.spans import SpanReader, best_spans, found_at, located, read_off, read_squad
from baselines import load_model
from baselines.encoder import Encoder, EncoderConfig
from baselines.subwords import Subwords
from plumbing.common import UserError
from tokenizer import Tokenizer
from training.parallel import World

ALONE = World(0, 1, torch.device("cpu"))
UNICODE = "  Größe: α-synuclein\u2028😀 (é́) naïve\tIL‑2  "


def wordpiece():
    """The words of the sentences and all their letters. (Not trained: the library breaks ties by chance.)"""
    words = sorted(set(" ".join(SENTENCES).lower().replace(".", "").split()))
    letters = sorted(set("".join(words)))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".?", *words, *letters, *("##" + x for x in letters)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return Subwords(tokenizers.Tokenizer.from_str(tokenizers.BertWordPieceTokenizer(vocab).to_str()))


def squad(path, *questions):
    """Write (id, question, context, answer, start): answer None is none."""
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [
        {"id": id_, "question": question, "is_impossible": answer is None,
         "answers": [] if answer is None else [{"text": answer, "answer_start": start}]}]}
        for id_, question, context, answer, start in questions]}]}))
    return str(path)


# ---- Reading ----

@pytest.mark.parametrize("text", [*SENTENCES, UNICODE, "", " ", "\n", "😀", "ﬁ İ ǅ"])
def test_a_token_of_ours_has_the_characters_of_its_bytes_and_never_half_of_one(world, text):
    tok, at = Tokenizer.load(world), 0
    ids, chars = located(tok, text)
    assert b"".join(tok.decode_bytes([i]) for i in ids) == text.encode()
    for i, (a, b) in zip(ids, chars, strict=True):
        raw = tok.decode_bytes([i])
        first, at = at, at + len(raw)
        bytes_to = [len(text[:n].encode()) for n in range(len(text) + 1)]
        whole = text[max(n for n, size in enumerate(bytes_to) if size <= first):
                     min(n for n, size in enumerate(bytes_to) if size >= at)]
        assert text[a:b] == whole.strip()


def test_tokens_of_the_library_are_found_in_the_text_as_it_was_written():
    text = "  Aspirin  inhibits CYCLOOXYGENASE. "
    ids, chars = located(wordpiece(), text)
    assert "".join(text[a:b] for a, b in chars) == text.replace(" ", "") and len(ids) == len(chars)


def test_the_file_is_believed_only_where_its_offsets_are_right(tmp_path):
    context = "The XIa factor, not factor XIa."
    path = squad(tmp_path / "s.json", ("a_000", "Which?", context, "XIa", 4), ("a_001", "Which?", context, "XIa", 26),
                 ("b_000", "Which?", context, "FACTOR", 9), ("c", "Which?", context, "XIIa", 0),
                 ("d", "Which?", context, None, 0))
    items, count = read_squad(path)
    assert [item.starts for item in items] == [(4,), (27,), (8,), (-1,), ()]
    assert count == {"answers": 4, "moved": 2, "absent": 1}
    assert [item.group for item in items] == ["a", "a", "b", "c", "d"] and items[4].answers == ()
    assert found_at("İ xia", "XIA", 0) == -1 and found_at("a b a", "a", 3) == 4


@pytest.mark.parametrize("content, words", [
    ({"data": [{"paragraphs": [{"context": "x"}]}]}, "no questions in SQuAD's format"), ({"data": []}, "no question"),
    ([1], "no questions in SQuAD's format"),
    ({"data": [{"paragraphs": [{"context": "x", "qas": [{"id": 1, "question": "?", "answers": []}] * 2}]}]}, "twice")])
def test_a_file_of_another_shape_is_named(tmp_path, content, words):
    (tmp_path / "s.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"s.json: .*{words}"):
        read_squad(tmp_path / "s.json")


@pytest.mark.parametrize("kind", ["ours", "library"])
def test_windows_point_at_the_answer_where_it_is_whole_and_at_nothing_elsewhere(world, tmp_path, kind):
    tok = Tokenizer.load(world) if kind == "ours" else wordpiece()
    context = " ".join(SENTENCES) + " naïve Größe"
    answers = ["cyclooxygenase", "patients with syphilis", "Größe", None]
    items, _ = read_squad(squad(tmp_path / "s.json", *((str(i), "Which?", context, a, a and context.index(a))
                                                       for i, a in enumerate(answers))))
    reader = SpanReader(tok, (7, 8, 9), max_length=40, max_question=3, stride=5)
    windows = reader(items)
    asked = tok.encode("Which?").tolist()[:3]
    assert {tuple(w.tree.prefix) for w in windows} == {(7, *asked, 8)} and all(len(w) <= 40 for w in windows)
    assert {w.tree.branches[0][-1] for w in windows} == {9} and reader.count["long"] == 4
    for i, answer in enumerate(answers):
        own = [w for w in windows if w.item == i]
        start = context.index(answer) if answer else -1
        held = 0
        for w in own:
            inside = bool(answer) and w.chars[0][0] <= start and start + len(answer) <= w.chars[-1][1]
            assert (w.target != (0, 0)) == inside
            if inside:
                held += 1
                assert context[w.chars[w.target[0] - 1][0]:w.chars[w.target[1] - 1][1]] == answer
        assert held >= bool(answer) and len(own) > 1
    with pytest.raises(UserError, match="leaves no room"):
        SpanReader(tok, (7, 8, 9), 6, 3, 5)(items)


def test_an_answer_inside_a_token_is_covered_and_counted(tmp_path):
    items, _ = read_squad(squad(tmp_path / "s.json", ("1", "?", "glucose falls", "lucose fal", 1)))
    reader = SpanReader(wordpiece(), (2, 3, 3), 64, 8, 8)
    [window] = reader(items)
    start, end = (window.chars[t - 1] for t in window.target)
    assert start[0] <= 1 and end[1] >= 11 and reader.count["unaligned"] == (start[0] < 1 or end[1] > 11)


# ---- Scores of spans ----

@pytest.mark.parametrize("longest, n", [(1, 3), (4, 5), (30, 1000)])
def test_the_best_spans_are_those_of_brute_force(longest, n):
    start_S, end_S = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    pad_S = torch.full((4,), -torch.inf)
    null, found = best_spans(torch.cat([start_S, pad_S]), torch.cat([end_S, pad_S]), longest, n)
    p, q = (s - np.log(np.exp(s).sum()) for s in (start_S.double().numpy(), end_S.double().numpy()))
    every = sorted(((p[i] + q[j], i - 1, j - 1) for i in range(1, 12) for j in range(i, min(12, i + longest))),
                   reverse=True)
    assert null == pytest.approx(p[0] + q[0]) and len(found) == min(n, len(every))
    for (value, *places), (wanted, *theirs) in zip(found, every, strict=False):
        assert value == pytest.approx(wanted) and places == theirs


def test_a_constant_added_to_a_windows_scores_changes_nothing():
    start_S, end_S = torch.randn(2, 9)
    before, after = (np.array(best_spans(start_S + a, end_S - b, 5, 4)[1]) for a, b in ((0, 0), (3, 8)))
    assert before == pytest.approx(after, rel=1e-5)


def test_the_best_answer_is_that_of_all_windows_and_a_text_counts_once_where_it_is_best():
    item = SimpleNamespace(context="aa bb aa cc")
    chars = [(0, 2), (3, 5), (6, 8), (9, 11)]
    windows = [SimpleNamespace(item=0, chars=chars[:3]), SimpleNamespace(item=0, chars=chars[1:])]
    found = [(-1.0, [(-2.0, 0, 0), (-3.0, 1, 2)]), (-4.0, [(-1.5, 1, 1), (-1.7, 2, 2), (-5.0, 0, 1)])]
    [(margin, best)] = read_off([item], windows, found)
    assert best == [("aa", -1.5), ("cc", -1.7), ("bb aa", -3.0)] and margin == -4.0 + 1.5
    [(margin, best)] = read_off([item], windows[:1], [(-0.1, [])])
    assert best == [] and margin > 1e6


def answered(text, *right, id_="1", group="g"):
    item = SimpleNamespace(id=id_, group=group, answers=right, answer=right[0] if right else "")
    return item, {"answer": text, "candidates": [(text, 0.0)] if text else []}


# (prediction, answers): 1.1's (EM, F1), 2.0's. Worked out by hand from the two scripts.
CASES = [
    ("the Factor-XIa.", ("factorxia",), (1, 1), (1, 1)),
    ("a factor XIa", ("factor", "the XIa inhibitor"), (0, 2 / 3), (0, 2 / 3)),
    ("", ("x",), (0, 0), (0, 0)), ("", (), None, (1, 1)), ("x", (), None, (0, 0)), ("the", (), None, (1, 1)),
    ("a", ("the",), (1, 0), (1, 1)),             # nothing is left of either: 1.1 finds no word in common
    ("x", ("the", "x y"), (0, 2 / 3), (0, 2 / 3)), ("x x", ("x",), (0, 2 / 3), (0, 2 / 3)),
    ("Größe", ("größe",), (1, 1), (1, 1)), ("IL‑2", ("IL-2",), (0, 0), (0, 0))]


@pytest.mark.parametrize("text, right, one, two", CASES)
def test_exact_match_and_f1_are_those_of_the_official_scripts(text, right, one, two):
    assert squad2_scores(text, right) == pytest.approx(two)
    if one:
        assert (exact_match(text, right), token_f1(text, right)) == pytest.approx(one)


def test_the_report_splits_questions_with_and_without_an_answer():
    test, run = zip(*(answered(text, *right, id_=str(i), group=str(i)) for i, (text, right, _, _) in enumerate(CASES)),
                    strict=True)
    scores = span_scores(test, True, run)
    for prefix, kept in (("", CASES), ("has_answer_", [c for c in CASES if c[1]]),
                         ("no_answer_", [c for c in CASES if not c[1]])):
        for name, column in (("exact_match", 0), ("f1", 1)):
            assert scores[prefix + name]["value"] == pytest.approx(np.mean([c[3][column] for c in kept]))
    assert scores["answerable"] == len([c for c in CASES if c[1]])


def test_the_snippets_of_a_question_are_one_question_and_its_runs_are_not():
    one = [answered("x", "y", id_="q_000", group="q"), answered("y", "y", id_="q_001", group="q")]
    one[0][1]["candidates"], one[1][1]["candidates"] = [("x", -0.5), ("y", -1.0)], [("y", -0.4), ("x", -9.0)]
    test, first = zip(*one, strict=True)
    second = [record | {"candidates": [("x", -0.1)]} for record in first]
    scores = {name: value["value"] for name, value in span_scores(test, False, first, second).items()
              if name != "questions"}
    assert scores == {"exact_match": 0.25, "f1": 0.25, "strict": 0.5, "lenient": 0.5, "mrr": 0.5}


def test_the_threshold_is_the_best_of_all_that_can_be():
    rng = np.random.default_rng(0)
    for n in (1, 2, 30):
        for _ in range(20):
            margins, silent = rng.integers(-3, 4, n).astype(float), rng.integers(0, 2, n).astype(float)
            got = np.where(silent > 0, 0.0, rng.random(n))
            best, threshold = best_threshold(margins, got, silent)
            tried = [np.where(margins > t, silent, got).mean() for t in (-9, *margins)]
            assert best == pytest.approx(max(tried))
            assert np.where(margins > threshold, silent, got).mean() == pytest.approx(best)


# ---- The run ----

FACTS = {"Aspirin": "cyclooxygenase", "Vitamin": "scurvy", "Insulin": "glucose", "Penicillin": "syphilis"}


@pytest.fixture
def cfg(world, tmp_path):
    """A tiny GPT, and questions that can be learned by heart: two snippets each, and some without an answer."""
    tiny_model(n_positions=128).save_pretrained(tmp_path / "gpt")
    Tokenizer.load(world).save(tmp_path / "gpt")
    tok = wordpiece()
    model = Encoder(EncoderConfig("bert", len(tok), 128, 48, 2, 3, 96, resid_pdrop=0, attn_pdrop=0,
                                  initializer_range=0.15))
    model.init_weights(0)
    model.save_pretrained(tmp_path / "bert")
    tok.save(tmp_path / "bert")

    def asked(of, silent):
        for n in {"train": (1, 3, 5, 6), "dev": (2,), "test": (4,)}[of]:    # what the test asks or reads is not learned
            for s, sentence in enumerate(SENTENCES):
                context = f"{sentence}{' Insulin was given.' * n}"
                for f, (name, answer) in enumerate(FACTS.items()):
                    if name in sentence:
                        yield f"{of}{f}_{n}0{s}", name + " was" * n, context, answer, context.index(answer)
                    elif silent and "ECG" in sentence:
                        yield f"{of}{f}_{n}0{s}", name + " was" * n, context, None, 0

    paths = {f"{name}{suffix}": squad(tmp_path / f"{name}{suffix}.json", *asked(name, bool(suffix)))
             for name in ("train", "dev", "test") for suffix in ("", "2")}
    return FinetuneSpan(model=str(tmp_path / "gpt"), train=paths["train"], dev=paths["dev"], test=paths["test"],
                        out=str(tmp_path / "out"), epochs=15, batch_size=4, micro_batch_size=4, learning_rate=3e-3,
                        max_length=96, dtype="float32", select_every=30, checkpoint_every=1000), paths


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_a_model_learns_to_point_and_its_folder_points_in_transformers_too(cfg, tmp_path, family):
    cfg = replace(cfg[0], model=str(tmp_path / family))
    report = finetune_answers.main(cfg)
    assert report["f1"]["value"] > 0.5 and report["questions"] == 4       # chance is nearly 0
    assert report["per_seed"][0]["threshold"] is None and report["files"]["train"]["answers"] == 16
    predictions = [json.loads(line) for line in open(tmp_path / "out/predictions.jsonl")]
    texts = {item.id: item.context for item in read_squad(cfg.test)[0]}
    assert all(p["answer"] in texts[p["id"]] for p in predictions) and not (tmp_path / "out/seeds").exists()
    model, tok, reader = finetune_span.build(replace(cfg, model=str(tmp_path / "out/model")), 0)
    theirs = (GPT2ForQuestionAnswering if family == "gpt" else BertForQuestionAnswering).from_pretrained(
        tmp_path / "out/model").eval()
    items, _ = read_squad(cfg.test)
    windows = reader(items)
    with torch.no_grad():
        start_NS, end_NS = model.eval()(windows)
        for window, start_S, end_S in zip(windows, start_NS, end_NS, strict=True):
            prefix, branch = window.tree.prefix, window.tree.branches[0]
            types = {} if family == "gpt" else {"token_type_ids": torch.tensor([[0] * len(prefix) + [1] * len(branch)])}
            out = theirs(torch.tensor([prefix + branch]), **types)
            n, null = len(window.chars), len(prefix + branch) - 1 if family == "gpt" else 0
            for ours_S, all_T in ((start_S, out.start_logits[0]), (end_S, out.end_logits[0])):
                torch.testing.assert_close(ours_S[0], all_T[null], atol=2e-5, rtol=1e-5)
                torch.testing.assert_close(ours_S[1:n + 1], all_T[len(prefix):-1], atol=2e-5, rtol=1e-5)
                assert (ours_S[n + 1:] == -torch.inf).all()


def test_questions_without_an_answer_are_left_unanswered_by_a_threshold_of_devs(cfg):
    cfg, paths = cfg
    cfg = replace(cfg, model=cfg.model.replace("gpt", "bert"), train=paths["train2"], dev=paths["dev2"],
                  test=paths["test2"], seeds=(0, 1), select_every=0, epochs=8)
    report = finetune_answers.main(cfg)
    assert {"has_answer_f1", "no_answer_f1", "exact_match", "f1"} <= set(report) and len(report["per_seed"]) == 2
    assert report["answerable"] == 4 and 0 < report["exact_match"]["value"] <= report["f1"]["value"]
    answers = {item.id: item.answers for item in read_squad(cfg.test)[0]}
    for run in report["per_seed"]:
        assert run["dev_f1"] >= run["dev_exact"] > 0 and isinstance(run["threshold"], float)
        own = [p for p in map(json.loads, open(f"{cfg.out}/predictions.jsonl")) if p["seed"] == run["seed"]]
        assert all((p["answer"] == "") == (p["margin"] > run["threshold"]) for p in own) and len(own) == len(answers)
        assert np.mean([squad2_scores(p["answer"], answers[p["id"]])[1] for p in own]) == run["f1"]["value"]


@pytest.mark.parametrize("changes", [{"lora_rank": 2, "recompute_every": 1}, {"untrained": True, "moments": "8bit"}])
def test_low_rank_additions_and_the_untrained_twin_go_through_and_can_be_read_again(cfg, tmp_path, monkeypatch,
                                                                                    changes):
    monkeypatch.setattr(finetune_span, "best_spans", lambda *_: (0.0, [(0.0, 0, 0)]))     # in float64, but on the CPU
    with NoFloat64():                                  # nor do they need what an Apple GPU lacks
        finetune_answers.main(replace(cfg[0], epochs=1, **changes))
    model, tok, _ = finetune_span.build(replace(cfg[0], model=str(tmp_path / "out/model")), 0)
    assert {"<|QUESTION|>", "<|CONTEXT|>", "<|ANSWER|>"} <= set(tok.specials) and len(tok) == model.gpt.cfg.vocab_size


def test_a_family_with_a_head_of_its_own_comes_back_with_it(cfg, world, tmp_path):
    random_model("llama", n_positions=128).save_pretrained(tmp_path / "llama")
    Tokenizer.load(world).save(tmp_path / "llama")
    cfg = replace(cfg[0], model=str(tmp_path / "llama"), epochs=1, lora_rank=2)
    finetune_answers.main(cfg)
    before, after = (load_model(folder) for folder in (cfg.model, tmp_path / "out/model"))
    torch.testing.assert_close(after.lm_head.weight[:301], before.lm_head.weight[:301])
    assert after.cfg.vocab_size == 304
    model, _, _ = finetune_span.build(replace(cfg, model=str(tmp_path / "out/model"), lora_rank=0), 0)
    assert not model.gpt.lm_head.weight.requires_grad


def test_what_the_test_asks_is_not_learned_and_dev_is_taken_from_train_by_group(cfg, tmp_path):
    cfg, _ = cfg
    many = squad(tmp_path / "many.json", *((f"{i // 2}_{i:03d}", f"{i // 2}?", f"{i} a", "a", 2) for i in range(40)))
    files, counts = finetune_span.read_files(replace(cfg, train=many, dev=""), ALONE)
    groups = [{item.group for item in files[name]} for name in ("train", "dev")]
    assert [len(files[name]) for name in ("train", "dev")] == [36, 4] and groups[0].isdisjoint(groups[1])
    assert counts["train"]["left_out"] == 0
    with pytest.raises(UserError, match="no question is left for train"):
        finetune_span.read_files(replace(cfg, train=cfg.test), ALONE)
    with pytest.raises(UserError, match="--stride is 0"):
        finetune_answers.main(replace(cfg, stride=0))
