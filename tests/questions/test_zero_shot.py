"""Zero-shot: both protocols, their scores, and the log-probabilities that transformers gives."""
import json

import pytest
import torch
import transformers
import yaml
from conftest import ROOT, tiny_model

import finetune_qa
from plumbing.common import UserError, parse_args
from questions.format import Question, write_questions
from questions.zero_shot import ZeroShot, alike, lettered, zero_shot
from tokenizer import Tokenizer

QUESTIONS = [Question("a", "", " Which drug? ", ["aspirin ", " a much longer option", "é"], 1),
             Question("b", "Some context.", "Is it?", ["yes", "no"], 0)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a tiny model, its tokenizer and two questions."""
    folder = tmp_path_factory.mktemp("world")
    tok = Tokenizer.train(["Question: Which drug? Answer: aspirin yes no Some context. Is it?"] * 3, 300)
    torch.manual_seed(0)
    tiny_model(n_positions=256, vocab_size=len(tok), bos_token_id=tok.eos_id,
               eos_token_id=tok.eos_id).save_pretrained(folder)
    tok.save(folder)
    write_questions(folder / "test.jsonl", QUESTIONS)
    return folder


def run(world, out, **changes):
    report = zero_shot(ZeroShot(model=str(world), test=str(world / "test.jsonl"), out=str(out), dtype="float32",
                                **changes))
    scores = {name: [json.loads(line)["scores"] for line in open(out / f"predictions_{name}.jsonl")]
              for name in ("raw", "per_character", "per_byte") if name in report}
    return report, scores


def by_transformers(world, prompt, option):
    """The log-probability, in nats, of " option" after the prompt."""
    model = transformers.GPT2LMHeadModel.from_pretrained(world).eval()
    tok = Tokenizer.load(world)
    prefix, branch = tok.encode(prompt).tolist(), tok.encode(f" {option}").tolist()
    with torch.no_grad():
        logp_TV = model(torch.tensor([prefix + branch])).logits[0].log_softmax(-1)
    return sum(logp_TV[len(prefix) - 1 + i, token].item() for i, token in enumerate(branch))


def test_scores_are_transformers_log_probabilities(world, tmp_path):
    _, scores = run(world, tmp_path)
    for q, of_q in zip(QUESTIONS, scores["raw"], strict=True):
        prompt = f"{q.context}\nQuestion: {q.question.strip()}\nAnswer:".strip()
        assert of_q == pytest.approx([by_transformers(world, prompt, o.strip()) for o in q.options], abs=1e-4)


def test_the_same_run_gives_the_same_scores_whatever_the_seed(world, tmp_path):
    torch.manual_seed(1)
    first = run(world, tmp_path / "1")[1]
    torch.manual_seed(2)
    assert run(world, tmp_path / "2")[1] == first


def test_per_character_ignores_the_space_and_per_byte_counts_it(world, tmp_path):
    report, scores = run(world, tmp_path)
    raw, per_character, per_byte = (scores[name][0] for name in ("raw", "per_character", "per_byte"))
    assert per_character == pytest.approx([raw[0] / 7, raw[1] / 20, raw[2] / 1])
    assert per_byte == pytest.approx([raw[0] / 8, raw[1] / 21, raw[2] / 3])
    assert {"raw", "per_character", "per_byte"} <= set(report)


def test_letters_are_scored_after_a_list_of_the_options(world, tmp_path):
    report, scores = run(world, tmp_path, protocol="letters")
    prompt = "Question: Which drug?\nA. aspirin\nB. a much longer option\nC. é\nAnswer:"
    assert scores["raw"][0] == pytest.approx([by_transformers(world, prompt, letter) for letter in "ABC"], abs=1e-4)
    assert "per_byte" not in report and report["raw"]["n"] == 2
    record = json.loads((tmp_path / "predictions_raw.jsonl").read_text().split("\n")[1])
    assert record["answer"] == 0 and record["prediction"] in (0, 1)


def test_options_of_the_same_text_have_the_same_score():
    assert alike(["b", "a", " a "], [-3.0, -2.0, -1.9999]) == [-3.0, -2.0, -2.0]


def test_more_options_than_letters_are_refused():
    q = Question("q27", "", "Which?", [str(i) for i in range(27)], 0)
    with pytest.raises(UserError, match="q27: 27 options.*--protocol options"):
        lettered(q)


def test_one_command_runs_it(world, tmp_path, monkeypatch, capsys):
    words = ["zeroshot", "--protocol", "letters", "--model", str(world), "--test", str(world / "test.jsonl"), "--out",
             str(tmp_path / "z")]
    finetune_qa.main(parse_args(None, finetune_qa.PRESETS, words))
    assert "raw: accuracy" in capsys.readouterr().out and (tmp_path / "z/report.json").is_file()


@pytest.mark.parametrize("protocol, template", [("options", "_local"), ("letters", "_local_letters")])
def test_the_harness_tasks_ask_what_zero_shot_asks(protocol, template):
    jinja2 = pytest.importorskip("jinja2")                          # with transformers; lm_eval renders with it
    task = {}
    for name in ("_local", template):
        task |= yaml.safe_load((ROOT / "bench/harness" / name).read_text(encoding="utf-8"))
    for q in QUESTIONS:
        asked = lettered(q) if protocol == "letters" else q
        render = {name: jinja2.Template(task[name]).render(context=q.context, question=q.question, options=q.options)
                  for name in ("doc_to_text", "doc_to_choice")}
        assert render["doc_to_text"] == f"{asked.context}\nQuestion: {asked.question.strip()}\nAnswer:".strip()
        assert eval(render["doc_to_choice"]) == [option.strip() for option in asked.options]


def test_every_harness_task_includes_a_template_and_names_a_file():
    paths = sorted((ROOT / "bench/harness").glob("*.yaml"))
    tasks = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths]
    assert len(tasks) == 6
    assert all((ROOT / "bench/harness" / task["include"]).is_file() for task in tasks)
    assert all(task["dataset_kwargs"]["data_files"]["test"].startswith("data/qa/") for task in tasks)
