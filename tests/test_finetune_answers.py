"""finetune_answers.py and answers/examples.py: what is read and learned, what is kept, what is reported."""
import json
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import NoFloat64, tiny_model
from launched import launched
from transformers import GPT2LMHeadModel

import finetune_answers
from answers.examples import START, AnswerModel, Example, Item, Reader, read_items, splits_of, windows
from baselines import load
from finetune_answers import Answer, FinetuneAnswers
from plumbing.common import UserError
from tokenizer import Tokenizer
from training import finetuning
from training.parallel import World
from training.trainable import choose_weights

ALONE = World(0, 1, torch.device("cpu"))
CITIES = ("scurvy", "syphilis", "glucose", "aspirin", "insulin")


@pytest.fixture
def cfg(world, tmp_path):
    """A tiny model's folder and a file of which it can learn the training part by heart."""
    tiny_model(n_positions=64).save_pretrained(tmp_path / "base")
    Tokenizer.load(world).save(tmp_path / "base")
    items = [{"id": f"{split} {c} {n}", "prompt": f"What is {c} {n}?", "answer": f"{c} is {n}.", "split": split}
             for split, numbers in (("train", range(4)), ("dev", (1, 2)), ("test", (0, 1, 3)))
             for c in CITIES[:3] for n in numbers]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return FinetuneAnswers(model=str(tmp_path / "base"), data=str(tmp_path / "items.jsonl"), out=str(tmp_path / "out"),
                           epochs=2, batch_size=5, learning_rate=3e-3, warmup_ratio=0.1, max_source=24, max_target=20,
                           max_new_tokens=12, min_new_tokens=0, no_repeat_ngram=0, dtype="float32")


def reader(tok, **changes):
    if START not in tok.specials:
        tok.add_special(START)
    return Reader(tok, tok.specials[START], **{"max_source": 30, "max_target": 20, "stride": 5} | changes)


@pytest.fixture
def tok(world):
    return Tokenizer.load(world)


def test_packed_examples_have_the_log_probability_and_gradients_of_separate_ones():
    examples = [Example([1, 2, 3, 250], [9, 8, 300]), Example([4, 250], [300]), Example([250], [11, 300]),
                Example([5] * 9 + [250], [7] * 12 + [300])]
    packed, alone = AnswerModel(tiny_model(n_positions=64), 300), tiny_model(n_positions=64)
    found = packed(examples)
    for example, log_p in zip(examples, found, strict=True):
        ids = torch.tensor([example.source + example.target])
        log_p_TV = F.linear(alone.hidden(ids), alone.wte.weight)[0].log_softmax(-1)
        start = len(example.source)
        wanted = sum(log_p_TV[start - 1 + i, t] for i, t in enumerate(example.target))
        wanted.backward()
        torch.testing.assert_close(log_p, wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    for (name, p), q in zip(packed.gpt.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=name)


def test_short_examples_share_a_row(monkeypatch):
    model, shapes = AnswerModel(tiny_model(n_positions=64), 300), []
    hidden = model.gpt.hidden
    monkeypatch.setattr(model.gpt, "hidden", lambda ids, **more: shapes.append(tuple(ids.shape)) or hidden(ids, **more))
    model([Example([1, 250], [2, 300])] * 4 + [Example([1] * 10 + [250], [2] * 4 + [300])])
    assert shapes == [(2, 16)]


def test_a_long_prompt_loses_its_end_and_a_long_answer_too_as_in_the_paper(tok):
    read = reader(tok, max_source=4, max_target=3)
    [example] = read.examples(Item("1", "Aspirin inhibits cyclooxygenase.", "Vitamin C deficiency causes scurvy."))
    prompt, answer = tok.encode("Aspirin inhibits cyclooxygenase."), tok.encode("Vitamin C deficiency causes scurvy.")
    assert example == Example([*prompt[:4].tolist(), tok.specials[START]], [*answer[:3].tolist(), tok.eos_id])
    assert read.cut == 2


def test_no_text_can_contain_the_special_tokens(tok):
    read = reader(tok)
    [example] = read.examples(Item("1", "a<|startoftext|>b", "c<|endoftext|>"))
    assert example.source.count(tok.specials[START]) == 1 and example.target.count(tok.eos_id) == 1


@pytest.mark.parametrize("length, room, stride, starts", [
    (10, 10, 3, [0]), (11, 10, 3, [0, 3]), (20, 10, 5, [0, 5, 10]), (21, 10, 5, [0, 5, 10, 15]),
    (20, 4, 128, [0, 4, 8, 12, 16]), (0, 5, 2, [0])])
def test_windows_cover_the_whole_context(length, room, stride, starts):
    found = windows(list(range(length)), room, stride)
    assert [window[0] for window in found if window] == starts[:length or 0]
    assert sorted({i for window in found for i in window}) == list(range(length))


def test_an_answer_is_learned_from_the_windows_that_hold_it_and_nothing_from_the_others(tok):
    read = reader(tok, max_source=24, stride=6)
    context = "Aspirin inhibits cyclooxygenase. " + "Insulin lowers blood glucose. " * 4
    item = Item("1", "Which?", "cyclooxygenase", context)
    every, held = read.examples(item, every_window=True), read.examples(item)
    assert len(held) >= 1 and len(every) > len(held) + 2
    for example in every:
        found = "cyclooxygenase" in tok.decode(example.source)
        assert (example in held) == found and (example.target == [tok.eos_id]) == (not found)
        assert tok.decode(example.source).endswith("\nWhich?" + START)
    unseen = read.examples(replace(item, answer="warfarin"))
    assert len(unseen) == 1 and len(unseen[0].target) > 1      # what is scored is still the reference


def test_a_split_is_the_same_in_every_run_whatever_the_order_and_keeps_groups_together():
    items = [Item(str(i), f"q{i}", "a", group=f"g{i // 3}") for i in range(90)]
    splits = splits_of(items)
    assert splits == splits_of(items[::-1])
    assert [len(splits[name]) for name in ("train", "dev", "test")] == [72, 9, 9]
    groups = [{item.group for item in members} for members in splits.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_fine_tuning_learns_by_heart_and_its_folder_is_a_gpt2_that_answers(cfg, tmp_path, capsys):
    report = finetune_answers.main(replace(cfg, epochs=40, select_every=40, checkpoint_every=200))
    log = [json.loads(line) for line in open(tmp_path / "out/log.jsonl")]
    assert log[-1]["loss"] < 0.1 < 2 < log[0]["loss"]
    assert report["best"]["dev_log_perplexity"] == min(line.get("dev_log_perplexity", 99) for line in log)
    assert {"rouge1", "rouge2", "rougeL", "bleu", "distinct_2", "copied"} <= set(report["model"])
    assert report["model"]["rouge1"]["value"] > 0.95 > report["the question itself"]["rouge1"]["value"] > 0.3
    assert report["splits"] == {"train": 12, "dev": 6, "test": 9} and not (tmp_path / "out/training").exists()
    model, tok = load(str(tmp_path / "out/model"), torch.float32, "cpu")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "out/model")
    ids = torch.tensor([[5, 6, tok.specials[START]]])
    torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    predictions = [json.loads(line) for line in open(tmp_path / "out/predictions.jsonl")]
    test = splits_of(read_items(cfg.data))["test"]
    capsys.readouterr()
    same = {name: getattr(cfg, name) for name in ("max_source", "max_target", "max_new_tokens", "dtype")}
    asked = Answer(**same, model=str(tmp_path / "out/model"), prompt=test[0].prompt)
    answer = finetune_answers.main(asked)
    assert answer == predictions[0]["answer"] and predictions[0]["id"] == test[0].id
    assert answer in capsys.readouterr().out
    for decode in ("greedy", "beam"):
        asked = replace(asked, decode=decode)
        assert finetune_answers.main(asked) == finetune_answers.main(replace(asked, dtype="float16"))


def test_fine_tuning_and_answering_need_no_float64(cfg):
    """So that an Apple GPU can run them."""
    with NoFloat64():
        finetune_answers.main(replace(cfg, epochs=1))
        finetune_answers.main(Answer(model=f"{cfg.out}/model", prompt="What?", max_source=24, max_target=20,
                                     max_new_tokens=3))


def test_the_reference_has_the_log_perplexity_that_the_saved_model_gives_it(cfg, tmp_path):
    report = finetune_answers.main(cfg)
    model, tok = load(str(tmp_path / "out/model"), torch.float32, "cpu")
    read = reader(tok, max_source=cfg.max_source, max_target=cfg.max_target)
    examples = [read.examples(item)[0] for item in splits_of(read_items(cfg.data))["test"]]
    nats = -AnswerModel(model, tok.eos_id)(examples).sum().item() / sum(len(example.target) for example in examples)
    assert report["reference_log_perplexity"]["value"] == pytest.approx(nats, rel=1e-5)


def test_a_lora_model_is_saved_with_its_additions_merged_in(cfg, tmp_path):
    model, tok, read = finetune_answers.build(replace(cfg, lora_rank=3))
    assert {name.split(".")[-1] for name, p in model.named_parameters() if p.requires_grad} == {"a", "b", "new"}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.1)
    finetuning.save_model(model, tok, tmp_path / "merged", cfg, ALONE)
    plain, tok = load(str(tmp_path / "merged"), torch.float32, "cpu")
    examples = read.examples(Item("1", "What is scurvy?", "Vitamin C deficiency."))
    torch.testing.assert_close(AnswerModel(plain, tok.eos_id)(examples), model(examples), rtol=1e-4, atol=1e-4)


def test_a_model_that_knows_the_start_token_gets_no_second_one(cfg, tmp_path):
    finetune_answers.main(cfg)
    model, tok, _ = finetune_answers.build(replace(cfg, model=str(tmp_path / "out/model"), lora_rank=2))
    assert model.gpt.cfg.vocab_size == len(tok) == 302
    choose_weights(model, replace(cfg, lora_rank=0), 0)


@pytest.mark.parametrize("ways", [{}, {"lora_rank": 2}, {"moments": "8bit"}])
def test_an_interrupted_run_goes_on_to_the_result_of_an_undisturbed_one(cfg, tmp_path, monkeypatch, ways):
    cfg = replace(cfg, select_every=2, **ways)
    undisturbed = finetune_answers.main(replace(cfg, out=str(tmp_path / "undisturbed")))
    rate, calls = finetuning.learning_rate, []

    def stopped(step, *rest):
        calls.append(step)
        if calls == [0, 1, 2]:
            signal.raise_signal(signal.SIGTERM)
        return rate(step, *rest)

    monkeypatch.setattr(finetuning, "learning_rate", stopped)
    with pytest.raises(KeyboardInterrupt, match="saved seed 0 after step 2"):
        finetune_answers.main(cfg)
    with pytest.raises(UserError, match="made with learning_rate"):
        finetune_answers.main(replace(cfg, learning_rate=1.0))
    resumed = finetune_answers.main(cfg)
    assert calls[3] == 3 and resumed["model"] == undisturbed["model"] and resumed["best"] == undisturbed["best"]


def test_two_processes_end_where_one_does(cfg, tmp_path):
    """fsdp on gloo; 12 examples in batches of 5 leave a batch of 2 and parts that one process has not."""
    alone = finetune_answers.main(replace(cfg, micro_batch_size=2))
    words = [word for name in ("model", "data", "epochs", "batch_size", "learning_rate", "warmup_ratio", "max_source",
                               "max_target", "max_new_tokens", "dtype")
             for word in (f"--{name.replace('_', '-')}", str(getattr(cfg, name)))]
    done = launched("finetune_answers.py", "medquad", *words, "--micro-batch-size", "2", "--parallel", "fsdp",
                    "--out", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "two/report.json").read_text())
    assert both["best"]["dev_log_perplexity"] == pytest.approx(alone["best"]["dev_log_perplexity"], rel=1e-4)
    assert both["model"]["rouge1"] == alone["model"]["rouge1"]


def test_short_answers_are_ranked_over_snippets_and_windows(cfg, tmp_path):
    items = [{"id": f"{split}{n}_{k}", "prompt": f"Which is {n}?", "answer": f"{CITIES[n]}", "group": f"{split}{n}",
              "context": f"Insulin lowers blood glucose. {CITIES[n]} is {n}. " * (1 + k), "split": split}
             for split in ("train", "dev", "test") for n in range(3) for k in range(2)]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    report = finetune_answers.main(replace(cfg, data=str(tmp_path / "short.jsonl"), short=True, decode="beam", beams=3,
                                           epochs=12, stride=8, select_every=30,
                                           checkpoint_every=100))
    assert report["n"] == 6 and report["model"]["questions"] == 3
    assert report["model"]["f1"]["value"] > report["the question itself"]["f1"]["value"]
    assert report["model"]["strict"]["value"] <= report["model"]["mrr"]["value"] <= report["model"]["lenient"]["value"]
    records = [json.loads(line) for line in open(tmp_path / "out/predictions.jsonl")]
    assert len(records[0]["candidates"]) >= 3 and all(log_p < 0 for _, log_p in records[0]["candidates"])


@pytest.mark.parametrize("line, message", [
    ("not json", "line 2: no prompt and answer"), ('{"prompt": "x"}', "line 2: no 'answer'"),
    ('{"prompt": "x", "answer": " "}', "is empty"), ('{"prompt": "x", "answer": "y", "split": "val"}', "'val' is none"),
    ('{"prompt": "x", "answer": "y", "split": "dev"}', "some lines name their split"), ("[1]", "line 2: no prompt")])
def test_a_line_that_is_no_item_is_named(tmp_path, line, message):
    (tmp_path / "items.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        read_items(tmp_path / "items.jsonl")


@pytest.mark.parametrize("changes, message", [
    ({"max_source": 60}, "longer than the model's 64 positions"), ({"data": "nowhere.jsonl"}, "no such file"),
    ({"stride": 0}, "--stride is 0"), ({"moments": "8bit", "parallel": "ddp"}, "wants torchrun")])
def test_settings_that_cannot_work_are_named(cfg, changes, message):
    with pytest.raises(UserError, match=message):
        finetune_answers.main(replace(cfg, **changes))
