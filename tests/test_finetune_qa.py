"""Fine-tuning on questions: the head is right, the report is honest, and a bad file is named with its line."""
import io
import json
import shutil
import signal
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NoFloat64, tiny_folder, tiny_model
from launched import launched
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import finetune_qa
from finetune_qa import FinetuneQA
from plumbing.common import UserError
from questions import heads, packed
from questions.ask import Ask
from questions.format import Question, read_questions, write_questions
from questions.heads import Classifier, Reader
from questions.packed import Tree, first_fit, pack, visible
from questions.report import left_out_of_pretraining
from questions.zero_shot import ZeroShot
from tokenizer import Tokenizer
from training import finetuning
from training.monitor import start_wandb
from training.parallel import World

SEP = 301
QUESTIONS = [Tree([5, 6, SEP], [[7, SEP], [8, 9, 10, SEP], [11, SEP]]),      # three options
             Tree([1, 2, 3, 4, SEP], [[12, SEP], [13, SEP]])]                # two
QUESTIONS_WITHOUT_SEP = [Tree([5, 6], [[7], [8, 9, 10], [11, 2]]), Tree([1, 2, 3, 4], [[12, 299], [13]])]
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), world, n_positions=64)


@pytest.fixture
def cfg(folder, world, tmp_path):
    questions = str(world / "questions.jsonl")
    return FinetuneQA(model=str(folder), train=questions, dev=questions, test=questions, out=str(tmp_path / "qa"),
                      seeds=(0,), epochs=2, batch_size=5, learning_rate=1e-3, warmup_ratio=0.1, max_length=64,
                      checkpoint_every=1000, dtype="float32")


def build(cfg, *questions):
    """The model of seed 0, and the questions' trees."""
    model, _, _, trees, _ = finetune_qa.build(cfg, ALONE, 0, {"test": list(questions)})
    return model, *trees["test"]


def head():
    torch.manual_seed(0)                 # before anything is drawn, such as the rows of the new tokens
    gpt = tiny_model()
    gpt.add_tokens(2)
    model = Classifier(gpt, pad_id=302)
    torch.nn.init.normal_(model.score.weight)
    return model


def separate(tree):
    """The rows that one would feed without sharing: every option behind the whole question."""
    return [torch.tensor([tree.prefix + branch]) for branch in tree.branches]


def test_a_score_is_the_linear_layer_on_the_last_token_of_the_options_own_row():
    model = head()
    scores_QO = model(QUESTIONS)
    for q, tree in enumerate(QUESTIONS):
        for o, ids_1T in enumerate(separate(tree)):
            alone = model.score(model.gpt.hidden(ids_1T)[0, -1])[0]
            torch.testing.assert_close(scores_QO[q, o], alone, atol=1e-5, rtol=0)
    assert scores_QO[1, 2] == -torch.inf


@pytest.mark.parametrize("length", [1, 30, 1000])
def test_packed_trees_have_the_loss_and_gradients_of_separate_rows(length, monkeypatch):
    """One tree a row, a few, and all in one row that is longer than the model has positions."""
    rng = np.random.default_rng(0)
    trees = [Tree(rng.integers(300, size=rng.integers(1, 25)).tolist() + [SEP],
                  [rng.integers(300, size=rng.integers(1, 6)).tolist() + [SEP] for _ in range(rng.integers(2, 6))])
             for _ in range(8)]
    model, answers = head(), torch.tensor([0, 1] * 4)
    monkeypatch.setattr(packed, "row_length", lambda gpt: length)
    losses, gradients = [], []
    for scores in (lambda: model(trees), lambda: torch.nn.utils.rnn.pad_sequence(
            [torch.cat([model.score(model.gpt.hidden(ids_1T)[:, -1])[0] for ids_1T in separate(tree)])
             for tree in trees], batch_first=True, padding_value=-torch.inf)):
        losses.append(F.cross_entropy(scores(), answers))
        gradients.append(torch.autograd.grad(losses[-1], list(model.parameters())))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=0)
    largest = max(gradient.abs().max().item() for gradient in gradients[1])
    for shared, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-5 * largest, rtol=1e-5)


def test_rows_are_filled_first_fit_and_no_token_is_read_twice():
    trees = [Tree([1] * n, [[2], [3]]) for n in (5, 50, 20, 6, 30)]
    rows = pack(trees, 40, 0)
    assert rows.ids_BT.shape == (3, 52) and int((rows.ids_BT > 0).sum()) == sum(map(len, trees))
    assert first_fit([7, 52, 22, 8, 32], 52) == [[1], [4, 3, 0], [2]]
    assert pack([Tree([1] * 10, [[2]])] * 6, 50, 0).ids_BT.shape == (2, 33), "3 and 3 rather than 4 and 2"
    assert visible(rows.tree_BT, rows.branch_BT).any(-1).all(), "a query that sees nothing is nan"


def test_mixed_option_counts_give_the_mean_of_each_questions_own_loss():
    model = head()
    loss = F.cross_entropy(model(QUESTIONS), torch.tensor([2, 0]))
    alone = [F.cross_entropy(model([q]), torch.tensor([a])) for q, a in zip(QUESTIONS, [2, 0], strict=True)]
    torch.testing.assert_close(loss, sum(alone) / 2)


def test_the_padding_token_has_no_influence():
    model = head()
    before = model(QUESTIONS)
    model.gpt.wte.weight.data[302] = 99.0
    torch.testing.assert_close(model(QUESTIONS), before, atol=0, rtol=0)


def with_tokens(folder, head):
    tok = Tokenizer.load(folder)
    for name in Reader.NEW_TOKENS[head]:
        tok.add_special(name)
    return tok


def test_trees_are_question_sep_option_sep_and_long_questions_keep_their_end(folder):
    tok = with_tokens(folder, "option")
    tree = Reader("option", tok, 64)
    q = Question("1", "Aspirin.", "Insulin lowers", ["blood", "glucose"], 0)
    question = tok.encode("Aspirin. Insulin lowers").tolist()
    assert tree(q) == Tree([*question, SEP], [[*tok.encode(f" {o}").tolist(), SEP] for o in q.options])
    assert tree.cut == 0
    long = tree(replace(q, context="Penicillin " * 100))
    assert tree.cut == 1 and long.depth == 64 and tok.decode(long.prefix[:-1]).endswith("Penicillin Insulin lowers")


def test_the_label_form_is_context_question_answer_and_a_long_context_goes_before_the_question_does(folder):
    tok = with_tokens(folder, "label")
    tree = Reader("label", tok, 64, ["maybe", "no", "yes"])
    q = Question("1", "Aspirin.", "Insulin lowers", ["yes", "no"], 0)
    context, question = tok.encode("Aspirin.").tolist(), tok.encode("Insulin lowers").tolist()
    assert tree(q) == Tree([301, *context, 302, *question], [[303]], (2, 1))
    long = tree(replace(q, context="Penicillin " * 100))
    assert tree.cut == 1 and long.depth == 64 and long.prefix[-len(question) - 1:] == [302, *question]
    long = tree(replace(q, question="Aspirin " * 100 + "lowers"))
    assert tree.cut == 2 and long.depth == 64 and tok.decode(long.prefix[2:]).endswith("Aspirin lowers")


def test_an_option_longer_than_the_row_is_named_with_its_question(folder):
    with pytest.raises(UserError, match="question q7: an option alone has more than the 64 tokens"):
        Reader("option", with_tokens(folder, "option"), 64)(Question("q7", "", "Which?", ["a", "Aspirin " * 100], 0))


def test_a_label_score_is_that_of_the_options_class_whatever_its_place():
    gpt = tiny_model()
    gpt.add_tokens(4)
    model = Classifier(gpt, 304, ["maybe", "no", "yes"])
    row = [301, 5, 6, 302, 7]
    scores_QO = model([Tree(row, [[303]], (2, 1)), Tree(row, [[303]], (0, 1, 2))])
    all_C = model.score(gpt.hidden(torch.tensor([[*row, 303]]))[0, -1])
    torch.testing.assert_close(scores_QO[0, :2], all_C[[2, 1]], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores_QO[1], all_C, atol=1e-5, rtol=0)


def test_zero_shot_adds_the_log_probabilities_of_the_options_tokens():
    model = heads.Likelihood(tiny_model(), 300)
    scores_QO = model(QUESTIONS_WITHOUT_SEP)
    for q, tree in enumerate(QUESTIONS_WITHOUT_SEP):
        for o, branch in enumerate(tree.branches):
            ids_1T = torch.tensor([tree.prefix + branch])
            logp_TV = model.gpt(ids_1T)[0].log_softmax(-1)
            n = len(tree.prefix)
            want = sum(logp_TV[n - 1 + i, token] for i, token in enumerate(branch))
            torch.testing.assert_close(scores_QO[q, o], want, atol=2e-5, rtol=0)


def test_zero_shot_reports_raw_and_per_byte(cfg, tmp_path):
    report = finetune_qa.main(ZeroShot(cfg.model, cfg.test, str(tmp_path / "z"), max_length=64,
                                                   dtype="float32"))
    raw, per_byte = ([json.loads(line) for line in open(tmp_path / "z" / f"predictions_{name}.jsonl")]
                     for name in ("raw", "per_byte"))
    assert report["raw"]["n"] == len(raw) == len(per_byte) == 12
    q = read_questions(cfg.test)[3]
    assert per_byte[3]["scores"] == pytest.approx(
        [s / len(" " + o) for s, o in zip(raw[3]["scores"], q.options, strict=True)])


def test_the_new_tokens_stand_behind_every_row_of_the_weights(cfg, world, tmp_path):
    """Weights may have more rows than the tokenizer has tokens; [SEP] must not be one that already means something."""
    model = tiny_model(n_positions=64, vocab_size=320)
    model.save_pretrained(tmp_path)
    Tokenizer.load(world).save(tmp_path)
    built, tree = build(replace(cfg, model=str(tmp_path)), Question("1", "", "x", ["y", "z"], 0))
    assert tree.prefix[-1] == 320 and built.gpt.cfg.vocab_size == 322


def test_fine_tuning_learns_what_it_is_shown_and_repeats_itself(cfg):
    first = finetune_qa.main(replace(cfg, epochs=12))
    assert first["accuracy"] > 0.9
    assert finetune_qa.main(replace(cfg, epochs=12))["per_seed"] == first["per_seed"]


def test_the_untrained_twin_has_other_weights_of_the_same_shape(cfg):
    (model,), (twin,) = build(cfg), build(replace(cfg, untrained=True))
    assert model.gpt.cfg == twin.gpt.cfg
    assert (model.gpt.h[0].attn.c_attn.weight - twin.gpt.h[0].attn.c_attn.weight).abs().max() > 0.1


def test_the_report_and_the_predictions_agree(cfg, tmp_path):
    report = finetune_qa.main(replace(cfg, seeds=(3, 4)))
    assert json.loads(json.dumps(report)) == json.loads((tmp_path / "qa" / "report.json").read_text())
    lines = [json.loads(line) for line in open(tmp_path / "qa" / "predictions.jsonl")]
    assert len(lines) == 2 * report["n"] == 24 and [run["seed"] for run in report["per_seed"]] == [3, 4]
    for run in report["per_seed"]:
        own = [line for line in lines if line["seed"] == run["seed"]]
        assert sum(line["prediction"] == line["answer"] for line in own) / 12 == run["accuracy"]
        assert all(line["scores"][line["prediction"]] == max(line["scores"]) for line in own)
        assert [len(line["scores"]) for line in own] == [2, 3] * 6


def test_the_schedule_warms_up_and_falls_to_nothing(cfg):
    cfg = replace(cfg, warmup_ratio=0.5, learning_rate=1.0)
    rates = [finetuning.learning_rate(step, 100, cfg) for step in range(100)]
    assert max(rates) == rates[49] == 1.0 and rates[24] == 0.5 and 0 < rates[99] < 0.03


GOOD = {"id": "1", "context": "", "question": "Which?", "options": ["a", "b"], "answer": 1}


@pytest.mark.parametrize("line, words", [
    ("{", "no question"), ("[]", "no question"), ('{"id": "1", "question": "Which?"}', "no 'options'"),
    (json.dumps(GOOD | {"options": ["a"]}), "at least two options"),
    (json.dumps(GOOD | {"options": ["a", 3]}), "must be text"), (json.dumps(GOOD | {"options": ["a", " "]}), "empty"),
    (json.dumps(GOOD | {"answer": 2}), "answer 2 is no"), (json.dumps(GOOD | {"answer": "b"}), "answer 'b' is no"),
    (json.dumps(GOOD | {"answer": True}), "answer True is no"), (json.dumps(GOOD | {"question": 5}), "must be text")])
def test_a_bad_question_is_named_with_its_line(tmp_path, line, words):
    (tmp_path / "q.jsonl").write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(UserError, match=words) as error:
        read_questions(tmp_path / "q.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'q.jsonl'}, line 2: ")


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_questions(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").touch()
    with pytest.raises(UserError, match="holds no question"):
        read_questions(tmp_path / "q.jsonl")


def test_a_line_separator_inside_a_text_is_no_end_of_line(tmp_path):
    write_questions(tmp_path / "q.jsonl", [Question("1", "a\u2028b\x85c", "Which?", ["é", "b"], 0)] * 2)
    assert [q.context for q in read_questions(tmp_path / "q.jsonl")] == ["a\u2028b\x85c"] * 2


def files(tmp_path, **questions):
    for name, of_file in questions.items():
        write_questions(tmp_path / f"{name}.jsonl", of_file)
    return {name: str(tmp_path / f"{name}.jsonl") for name in questions}


def yes_no(n, *answers):
    return [Question(f"{answers}{i}", "Aspirin inhibits.", f"Is it number {i}?", ["yes", "no", "maybe"],
                     answers[i % len(answers)]) for i in range(n)]


def test_a_class_missing_from_dev_and_from_training_is_still_one_of_the_answers(cfg, tmp_path):
    """PubMedQA's dev fold of 50 may hold no "maybe"; the head must have a place for it."""
    paths = files(tmp_path, train=yes_no(8, 0, 1), dev=yes_no(4, 0, 0, 1), test=yes_no(6, 0, 1, 2))
    report = finetune_qa.main(replace(cfg, **paths, head="label", epochs=1))
    predictions = [json.loads(line) for line in open(tmp_path / "qa" / "predictions.jsonl")]
    assert all(len(p["scores"]) == 3 for p in predictions) and report["n"] == 6 and 0 <= report["macro_f1"] <= 1


def test_a_question_longer_than_the_context_is_cut_counted_and_answered(cfg, tmp_path, capsys):
    long = [replace(q, id=f"long{q.id}", context="Penicillin " * 200) for q in yes_no(2, 0)]
    paths = files(tmp_path, train=yes_no(8, 0, 1), dev=yes_no(4, 0, 1), test=yes_no(6, 0, 1) + long)
    for head in ("option", "label"):
        report = finetune_qa.main(replace(cfg, **paths, head=head, epochs=1, max_length=2000))
        assert report["truncated"] == {"train": 0, "dev": 0, "test": 2} and report["n"] == 8
        assert "test: 2 of 8 questions are longer than 64 tokens" in capsys.readouterr().out


@pytest.mark.parametrize("lora", [0, 2])
def test_an_interrupted_run_goes_on_to_the_result_of_an_undisturbed_one(cfg, tmp_path, monkeypatch, lora):
    """Told to stop in the second seed between two checkpoints; dropout and order of questions are those of the step."""
    cfg = replace(cfg, seeds=(0, 1), epochs=3, lora_rank=lora, checkpoint_every=2)
    undisturbed = finetune_qa.main(replace(cfg, out=str(tmp_path / "undisturbed")))
    rate, calls = finetuning.learning_rate, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == 9 + 6:
            signal.raise_signal(signal.SIGTERM)
        return rate(*args)

    monkeypatch.setattr(finetuning, "learning_rate", stopped)
    with pytest.raises(KeyboardInterrupt, match="saved seed 1 after step 5"):
        finetune_qa.main(cfg)
    with pytest.raises(UserError, match="made with epochs = 3, now it is 4"):
        finetune_qa.main(replace(cfg, epochs=4))
    calls.clear()
    monkeypatch.setattr(finetuning, "learning_rate", lambda *args: calls.append(args) or rate(*args))
    resumed = finetune_qa.main(cfg)
    assert len(calls) == 3, "the first seed is not trained again, the second goes on from step 6"
    for name in ("accuracy", "macro_f1", "brier", "per_seed"):
        assert resumed[name] == undisturbed[name]
    for name in ("predictions", "log"):
        assert len({(path / f"{name}.jsonl").read_text() for path in (tmp_path / "qa", tmp_path / "undisturbed")}) == 1
    assert not (tmp_path / "qa" / "seeds").exists(), "a finished run begins anew"


def test_one_step_of_small_parts_is_that_of_the_whole_batch_with_mixed_option_counts(cfg, tmp_path):
    """Five questions with 2 or 3 options, at once or two at a time: the mean over the batch is over questions."""
    losses = []
    for size in (5, 2):
        finetune_qa.main(replace(cfg, epochs=1, micro_batch_size=size))
        losses.append([json.loads(line)["loss"] for line in open(tmp_path / "qa" / "log.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_two_processes_share_a_batch_and_end_where_one_does(cfg, tmp_path):
    """fsdp on gloo; 12 questions in batches of 5 leave a batch of 2 and parts that one process has not."""
    finetune_qa.main(replace(cfg, micro_batch_size=2))
    alone = [json.loads(line) for line in open(tmp_path / "qa" / "log.jsonl")]
    flags = ["--" + name.replace("_", "-") for name in ("model", "train", "dev", "test")]
    done = launched("finetune_qa.py", "medqa", *[word for flag in flags for word in (flag, getattr(cfg, flag[2:]))],
                    *"--seeds 0 --epochs 2 --batch-size 5 --micro-batch-size 2 --learning-rate 1e-3".split(),
                    *"--warmup-ratio 0.1 --max-length 64 --dtype float32 --parallel fsdp".split(),
                    "--out", tmp_path / "two", processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    two = [json.loads(line) for line in open(tmp_path / "two" / "log.jsonl")]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in alone], rel=1e-5)
    assert [line.get("dev_accuracy") for line in two] == [line.get("dev_accuracy") for line in alone]


@pytest.mark.parametrize("head, lora", [("option", 0), ("option", 2), ("label", 0)])
def test_the_kept_model_predicts_what_the_run_predicted(cfg, tmp_path, capsys, head, lora):
    """From OUT/model, of the best seed on dev: the same scores to 1e-6, for a file without answers."""
    paths = files(tmp_path, train=yes_no(8, 0, 1), dev=yes_no(4, 0, 1), test=yes_no(6, 0, 1, 2))
    cfg = replace(cfg, **(paths if head == "label" else {}), head=head, lora_rank=lora, seeds=(0, 1))
    finetune_qa.main(cfg)
    log = [json.loads(line) for line in open(tmp_path / "qa" / "log.jsonl")]
    on_dev = {seed: max(line.get("dev_accuracy", -1) for line in log if line["seed"] == seed) for seed in (0, 1)}
    chosen = max(on_dev, key=on_dev.get)
    run = [line for line in map(json.loads, open(tmp_path / "qa" / "predictions.jsonl")) if line["seed"] == chosen]

    asked = [json.loads(line) for line in open(cfg.test)]
    unanswered = tmp_path / "unanswered.jsonl"
    unanswered.write_text("".join(json.dumps({k: v for k, v in q.items() if k != "answer"}) + "\n" for q in asked))
    kept = Ask(model=str(tmp_path / "qa" / "model"), dtype="float32", batch_size=5)
    finetune_qa.main(replace(kept, file=str(unanswered), out=str(tmp_path / "p.jsonl")))
    found = [json.loads(line) for line in open(tmp_path / "p.jsonl")]
    assert [p["id"] for p in found] == [p["id"] for p in run]
    assert [p["prediction"] for p in found] == [p["prediction"] for p in run]
    for p, q in zip(found, run, strict=True):
        assert p["scores"] == pytest.approx(q["scores"], abs=1e-6)

    capsys.readouterr()
    q = asked[0]
    options = () if head == "label" else tuple(q["options"])
    scores, = finetune_qa.main(replace(kept, question=q["question"], options=options, context=q["context"]))
    printed = capsys.readouterr()
    assert printed.err.count("not medical advice") == 1 and len(printed.out.splitlines()) == len(q["options"])
    if head == "option":
        assert scores == pytest.approx(run[0]["scores"], abs=1e-6)
    else:
        with pytest.raises(UserError, match="only chooses among maybe, no, yes; 'perhaps' is none of them"):
            finetune_qa.main(replace(kept, question="Is it?", options=("yes", "perhaps")))


class Wandb(ModuleType):
    """A stand-in for the wandb package. It records each run's settings and the values logged to it."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []

    def init(self, **settings):
        lines = []
        self.runs.append((settings, lines))
        return SimpleNamespace(log=lambda values, step: lines.append({"step": step} | values), finish=lambda: None)


def test_each_seed_has_its_curve_on_both_boards_and_a_new_start_replaces_it(cfg, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for _ in range(2):                                  # a finished run starts again from the beginning
        finetune_qa.main(replace(cfg, seeds=(3, 4), epochs=1, tensorboard=True, wandb=True))
    log = [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]
    for seed, (settings, lines) in zip((3, 4, 3, 4), wandb.runs, strict=True):
        own = [{name: value for name, value in line.items() if name != "seed"} for line in log if line["seed"] == seed]
        assert lines == own and settings["name"] == f"qa-seed{seed}" and settings["resume"] is None
        board = EventAccumulator(f"{cfg.out}/tensorboard/seed{seed}").Reload()
        assert [event.value for event in board.Scalars("loss")] == pytest.approx([line["loss"] for line in own])
        assert len(board.Scalars("dev_accuracy")) == 1 and "step" not in board.Tags()["scalars"]
    assert [settings["id"] for settings, _ in wandb.runs[:2]] == [settings["id"] for settings, _ in wandb.runs[2:]]
    assert wandb.runs[0][0]["id"] != wandb.runs[1][0]["id"]
    assert start_wandb(Path(cfg.out), "seed3", first=2) and wandb.runs[-1][0] == wandb.runs[0][0] | {"resume": "allow"}


def test_asking_and_zero_shot_choose_in_float16_what_they_choose_in_float32(cfg, tmp_path):
    """And nothing needs float64, which an Apple GPU lacks."""
    with NoFloat64():
        finetune_qa.main(replace(cfg, epochs=6, moments="8bit"))
    ask, zero = Ask(model=f"{cfg.out}/model", file=cfg.test), ZeroShot(cfg.model, cfg.test, max_length=64)
    for cfg, name in ((ask, "p.jsonl"), (zero, "z/predictions_raw.jsonl")):
        found = []
        for dtype in ("float32", "float16"):
            folder = tmp_path / dtype
            with NoFloat64():
                finetune_qa.main(replace(cfg, dtype=dtype, out=str(folder / name.split("/")[0])))
            found.append([json.loads(line) for line in open(folder / name)])
        for exact, half in zip(*found, strict=True):
            assert exact["prediction"] == half["prediction"]
            assert 0 < np.abs(np.subtract(exact["scores"], half["scores"])).max() < 0.02


def test_a_score_that_is_not_finite_is_no_answer(cfg):
    gpt = tiny_model()
    gpt.ln_f.weight.data[0] = torch.inf
    with pytest.raises(UserError, match="a score is not finite in float32"):
        heads.predict(Classifier(gpt, 300), QUESTIONS_WITHOUT_SEP, replace(Ask(), dtype="float32"), ALONE)


def test_a_model_without_a_head_for_questions_and_a_question_that_cannot_be_asked_end_in_one_line(cfg):
    with pytest.raises(UserError, match="has no head for multiple choice"):
        finetune_qa.main(Ask(model=cfg.model, question="Which?", options=("a", "b")))
    with pytest.raises(UserError, match="give one of --question, --file and --interactive"):
        finetune_qa.main(Ask(model=cfg.model))


def test_questions_are_asked_in_the_terminal(cfg, tmp_path, monkeypatch, capsys):
    finetune_qa.main(replace(cfg, epochs=1))
    monkeypatch.setattr("sys.stdin", io.StringIO("Which?\na; b\nWhich?\na\n\n"))
    finetune_qa.main(Ask(model=str(tmp_path / "qa" / "model"), interactive=True, dtype="float32"))
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()[-2:]) == 2 and printed.out.rstrip().endswith("b")
    assert "at least two options" in printed.err


@pytest.mark.parametrize("change, words", [
    ({"epochs": 0}, "--epochs is 0"), ({"grad_clip": -1.0}, "--grad-clip is -1.0"), ({"seeds": ()}, "--seeds"),
    ({"warmup_ratio": 1.5}, "--warmup-ratio is 1.5; it must be 0 to 1"), ({"lora_rank": -1}, "--lora-rank is -1"),
    ({"learning_rate": -1e-3}, "--learning-rate"), ({"max_length": 0}, "--max-length is 0; it must be at least 1")])
def test_a_setting_outside_its_range_is_named(cfg, change, words):
    with pytest.raises(UserError, match=words):
        finetune_qa.main(replace(cfg, **change))


def test_an_out_that_is_a_file_is_refused_before_any_step(cfg, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(finetune_qa, "finetune", None)
    with pytest.raises(UserError, match="cannot write there"):
        finetune_qa.main(replace(cfg, out=str(tmp_path / "file")))


def test_restart_discards_the_interrupted_run_once_and_not_again_when_the_launcher_restarts(cfg, tmp_path, monkeypatch):
    left = tmp_path / "qa" / "seeds" / "0"
    left.mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with finetuning.prepare_out(replace(cfg, restart=True), ALONE, "seeds"):
        assert left.is_dir()
        with pytest.raises(UserError, match="another run"), finetuning.prepare_out(cfg, ALONE, "seeds"):
            pass
    assert not left.exists(), "the run has ended well"
    left.mkdir(parents=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with finetuning.prepare_out(replace(cfg, restart=True), ALONE, "seeds"):
        assert not left.exists() and (tmp_path / "qa" / "discarded" / "seeds" / "0").is_dir()
    assert not (tmp_path / "qa" / "discarded").exists()


def test_a_clipping_norm_of_0_is_no_limit():
    model = torch.nn.Linear(2, 1)
    for limit, scale in ((0.0, 1.0), (1.0, 0.1)):
        for p in model.parameters():
            p.grad = torch.full_like(p, 10 / 3 ** 0.5)
        assert finetuning.clip_gradients([*model.parameters()], limit) == pytest.approx(10)
        assert model.bias.grad.item() == pytest.approx(scale * 10 / 3 ** 0.5, rel=1e-4)


@pytest.mark.parametrize("task, labels", [("pubmedqa", ["yes", "no", "maybe"]), ("bioasq", ["yes", "no"])])
def test_the_label_presets_run_from_files_to_an_answer(cfg, task, labels, tmp_path, capsys):
    """The preset's own settings, but for a tiny model, one epoch and a folder."""
    asked = [Question(str(i), "Aspirin inhibits.", f"Is it {i}?", labels, i % len(labels)) for i in range(8)]
    preset = replace(finetune_qa.PRESETS[task], **files(tmp_path, train=asked, dev=asked, test=asked), model=cfg.model,
                     out=str(tmp_path / task), epochs=1, dtype="float32")
    report = finetune_qa.main(preset)
    assert report["n"] == 8 and len(report["per_seed"]) == 3
    assert "ask --model" in capsys.readouterr().out
    finetune_qa.main(Ask(model=f"{preset.out}/model", question="Is it 3?", context="Aspirin.", dtype="float32"))
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == sorted(labels)


def test_the_report_says_whether_pretraining_left_out_this_test(cfg, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(cfg.model, model)
    assert left_out_of_pretraining(cfg.model, cfg.test) == "unknown"
    for crc, verdict in ((zlib.crc32(open(cfg.test, "rb").read()), "yes"), (1, "no")):
        (model / "pretraining.json").write_text(json.dumps({"excluded": [{"file": "q", "crc32": crc, "dropped": 2}]}))
        assert left_out_of_pretraining(str(model), cfg.test) == verdict


def test_a_test_whose_ids_repeat_and_an_id_that_is_null_are_refused(cfg, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(UserError, match="1 ids occur more than once, such as 1"):
        finetune_qa.main(replace(cfg, test=str(path)))
    path.write_text(json.dumps(GOOD | {"id": None}) + "\n")
    with pytest.raises(UserError, match="line 1: no question .the id must be text or a whole number, not None"):
        read_questions(path)
