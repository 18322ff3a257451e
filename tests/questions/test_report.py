"""What a score is worth: the formulas against the textbook and brute force, and reports on files from anywhere."""
import json
from itertools import product
from math import comb

import numpy as np
import pytest

import finetune_qa
from finetune_qa import Evaluate
from plumbing.common import UserError
from questions.format import Question, write_questions
from questions.metrics import (
    brier_score,
    calibration_error,
    guessing_accuracy,
    macro_f1,
    overlap,
    paired_test,
    probabilities,
    wilson_interval,
)
from questions.report import assess, predictions_of, read_predictions


def test_intervals_and_f1_are_the_textbooks():
    assert wilson_interval(0.503, 1273) == pytest.approx((0.4756, 0.5304), abs=1e-3)
    assert wilson_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert macro_f1([0, 0, 1, 1], [0, 1, 1, 1]) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert macro_f1([0, 0, 0], [0, 0, 1]) == pytest.approx((0.8 + 0.0) / 2)


def test_guessing_counts_right_answers_of_the_training_set_and_shares_ties():
    def q(options, answer):
        return Question("", "", "", options, answer)
    train = [q(["yes", "no"], 0), q(["yes", "no"], 0), q(["no", "yes"], 0)]
    test = [q(["no", "yes"], 1), q(["yes", "no"], 1), q(["x", "y", "z", "w"], 2)]
    assert guessing_accuracy(train, test) == pytest.approx(((0.5 + 0.5 + 0.25) / 3, (1 + 0 + 0.25) / 3))


def test_the_interval_is_that_of_the_score_test():
    """Wilson: all shares that a z-test at the 5 % level would not reject."""
    share, n = 0.83, 47
    inside = [p for p in np.linspace(0.001, 0.999, 99_801) if abs(share - p) <= 1.959964 * (p * (1 - p) / n) ** 0.5]
    assert wilson_interval(share, n) == pytest.approx((inside[0], inside[-1]), abs=2e-5)


def test_brier_and_calibration_by_hand():
    scores = [np.log([0.8, 0.2]).tolist(), np.log([0.55, 0.45]).tolist(), np.log([0.25] * 4).tolist()]
    assert probabilities([1000.0, 1000.0]).tolist() == [0.5, 0.5], "large scores do not overflow"
    assert brier_score(scores, [0, 1, 2]) == pytest.approx((0.04 * 2 + 0.55**2 * 2 + (0.75**2 + 3 * 0.0625)) / 3)
    # three bins of their own: |1 - 0.8|, |0 - 0.55|, and the tie is decided for option 0: |0 - 0.25|
    assert calibration_error(scores, [0, 1, 2]) == pytest.approx((0.2 + 0.55 + 0.25) / 3)
    together = [np.log([0.81, 0.19]).tolist(), np.log([0.83, 0.17]).tolist()]
    assert calibration_error(together, [0, 1], bins=10) == pytest.approx(abs(1 - (0.81 + 0.83)) / 2)


@pytest.mark.parametrize("won, lost", [(9, 2), (5, 5), (12, 1), (1, 0)])
def test_with_one_seed_the_paired_test_is_mcnemars_exact_test(won, lost):
    ours, theirs = [1] * won + [0] * lost + [1] * 20, [0] * won + [1] * lost + [1] * 20
    n, k = won + lost, max(won, lost)
    exact = min(1.0, 2 * sum(comb(n, i) for i in range(k, n + 1)) / 2**n)
    assert paired_test(ours, theirs) == pytest.approx(exact, abs=0.012) and paired_test(theirs, theirs) == 1.0


def test_with_several_seeds_it_flips_each_questions_difference():
    ours, theirs = [1, 1, 2 / 3, 1, 1 / 3, 1], [0, 1 / 3, 1, 1 / 3, 0, 0]
    d = np.subtract(ours, theirs)
    exact = np.mean([abs(np.dot(signs, d)) >= abs(d.sum()) - 1e-9 for signs in product((-1, 1), repeat=len(d))])
    assert paired_test(ours, theirs) == pytest.approx(exact, abs=0.012)


TEST = [Question(str(i), "", f"Which of these is number {i} of the test?", ["yes", "no"] if i % 2 else ["no", "yes"],
                 i % 2) for i in range(10)]


def test_f1_counts_names_where_the_options_are_the_same_in_another_order():
    """The answer is always "no"; as positions it would be two classes."""
    records = [{"seed": 0, "id": q.id, "scores": None, "prediction": 0, "answer": q.answer} for q in TEST]
    assert assess(TEST, records)["macro_f1"] == pytest.approx(2 * 5 / (5 + 10))


def test_a_predictions_file_from_anywhere_is_scored(tmp_path, capsys):
    write_questions(tmp_path / "q.jsonl", TEST)
    lines = [{"id": q.id, "prediction": q.options[q.answer].upper() if int(q.id) < 8 else 1 - q.answer}
             for q in reversed(TEST)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = finetune_qa.main(Evaluate(str(tmp_path / "p.jsonl"), str(tmp_path / "q.jsonl"), str(tmp_path / "q.jsonl"),
                                       out=str(tmp_path / "r.json")))
    assert report["accuracy"] == 0.8 and "ece" not in report and report["overlap"]["exact"] == 10
    assert json.loads((tmp_path / "r.json").read_text())["accuracy"] == 0.8 and "80.0%" in capsys.readouterr().out


def test_a_test_of_several_parts_is_scored_part_by_part():
    """MMLU's six subjects in one file; the ids that qa.py gives say which."""
    questions = [Question(f"{subject}_test-{i}", "", "Which?", ["a", "b"], 0) for subject, n in (("anatomy", 4), (
        "genetics", 2)) for i in range(n)]
    records = [{"seed": seed, "id": q.id, "scores": None, "prediction": int(q.id.endswith(str(seed))), "answer": 0}
               for seed in (0, 1) for q in questions]
    parts = assess(questions, records)["parts"]
    assert {name: (part["accuracy"], part["n"]) for name, part in parts.items()} == {
        "anatomy_test": (0.75, 4), "genetics_test": (0.5, 2)}
    assert "parts" not in assess(TEST, predictions_of(0, TEST, [[0.0, 1.0]] * 10))


def test_two_files_are_compared_question_by_question_over_their_seeds(tmp_path):
    def scores(right):
        return [[1.0, 0.0] if (q.answer == 0) == (int(q.id) < right) else [0.0, 1.0] for q in TEST]
    theirs = predictions_of(0, TEST, scores(2))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in theirs))
    ours = predictions_of(3, TEST, scores(10)) + predictions_of(4, TEST, scores(8))
    report = assess(TEST, ours, compare=tmp_path / "p.jsonl")
    assert report["accuracy"] == 0.9 and report["compare"]["accuracy"] == 0.2
    assert report["compare"]["difference"] == pytest.approx(0.7)
    assert report["compare"]["p"] == pytest.approx(2 / 2**8, abs=0.004)


@pytest.mark.parametrize("change, words", [
    (lambda lines: lines[:-1], "1 of 10 questions have no prediction, such as 9"),
    (lambda lines: lines + lines[:1], "line 11: no prediction .answers 0 a second time"),
    (lambda lines: ["{"] + lines, "line 1: no prediction"), (lambda lines: ["[]"] + lines, "line 1: no prediction"),
    (lambda lines: ['{"id": "x", "prediction": 0}'] + lines, "line 1: no prediction .x is no question"),
    (lambda lines: ['{"id": "0"}'] + lines, "line 1: no 'prediction' in it"),
    (lambda lines: ['{"id": "0", "prediction": 2}'] + lines, "2 is none of the 2"),
    (lambda lines: ['{"id": "0", "prediction": "perhaps"}'] + lines, "no prediction"),
    (lambda lines: ['{"id": "0", "scores": [1]}'] + lines, "2 numbers"),
    (lambda lines: ['{"id": "0", "scores": [1, NaN]}'] + lines, "2 numbers")])
def test_predictions_that_do_not_answer_the_questions_are_named_with_their_line(tmp_path, change, words):
    lines = [json.dumps({"id": q.id, "prediction": 0}) for q in TEST]
    (tmp_path / "p.jsonl").write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=words):
        read_predictions(tmp_path / "p.jsonl", TEST)


def test_overlap_finds_the_same_question_and_the_nearly_same_and_no_others():
    stem = "A 45-year-old man with chest pain for two hours is brought to the hospital by his wife"
    train = [Question("t", "", stem + ". Which drug is best?", ["a", "b", "c"], 0), Question("u", "", "Which?", ["x",
             "y"], 0)]
    test = [Question("same", "", stem.upper() + " which drug is best", ["C", "A.", "b"], 2),
            Question("near", "", stem + ". What is the likeliest diagnosis?", ["d", "e"], 0),
            Question("options", "", "Which?", ["v", "w"], 0),
            Question("new", "", "A 45-year-old woman with headache for a week is seen by her doctor at home", ["a",
                     "b"], 1)]
    found = overlap(train, test)
    assert (found["exact"], found["near"], found["ids"]) == (1, 2, ["same", "near", "options"])
    assert overlap([], test) == {"exact": 0, "near": 0, "ids": []}
