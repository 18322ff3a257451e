"""answers/scores.py and answers/report.py: every score in a case that one can work out by hand."""
import math

import pytest
from sacrebleu.metrics import BLEU

from answers import scores as tm
from answers.examples import Item
from answers.report import short_scores


def test_squads_normal_form_has_no_case_articles_or_punctuation():
    assert tm.normalized("The  p53-gene, an 'oncogene'!") == "p53gene oncogene"
    assert tm.exact_match("the ABCC11 gene", ["abcc11 gene."]) == 1.0
    assert tm.exact_match("ABCC11", ["abcc11 gene", "ABCC12"]) == 0.0


@pytest.mark.parametrize("prediction, answers, f1", [
    ("type 2 diabetes", ["diabetes"], 0.5),                 # 1 shared of 3 and of 1: 2 * 1 / 4
    ("heart heart", ["heart"], 2 / 3),                      # a word counts as often as both have it
    ("aspirin", ["ibuprofen"], 0.0), ("", ["x"], 0.0),
    ("red blood cells", ["cells", "red cells"], 0.8)])      # the best of several answers: 2 * 2 / 5
def test_f1_counts_shared_words(prediction, answers, f1):
    assert tm.token_f1(prediction, answers) == pytest.approx(f1)


@pytest.mark.parametrize("ranked, scores", [
    (["PD-L1", "x"], (1, 1, 1)), (["x", "y", "pd-l1"], (0, 1, 1 / 3)), (["x", "PD L1"], (0, 0, 0)),
    (["1", "2", "3", "4", "5", "pd-l1"], (0, 0, 0)), ([], (0, 0, 0))])
def test_bioasq_looks_for_the_exact_answer_among_the_first_five(ranked, scores):
    assert tm.factoid_scores(ranked, ["PD-L1", "CD274"]) == scores


def test_an_answer_that_several_snippets_give_outranks_one_that_a_single_snippet_is_surer_of():
    found = [("Ang2", math.log(0.5)), ("VEGF", math.log(0.3)), ("vegf", math.log(0.3)), ("", 0.0)]
    assert tm.ranked_answers(found) == ["VEGF", "Ang2"]


def test_scores_of_snippets_are_per_item_and_those_of_lists_per_question():
    test = [Item(id_, "q?", answer, group=id_[0]) for id_, answer in (("a_0", "yes"), ("a_1", "yes"), ("b_0", "no"))]
    scores = short_scores(test, [[("yes", -1.0)], [("maybe", -0.1)], [("no", -1.0)]])
    assert scores["exact_match"]["value"] == pytest.approx(2 / 3) and scores["questions"] == 2
    assert scores["strict"]["value"] == 0.5                 # "maybe" is likelier than "yes" over the snippets of a
    assert scores["lenient"]["value"] == 1.0 and scores["mrr"]["value"] == 0.75


def test_rouge_is_the_f1_of_shared_n_grams():
    scores = tm.text_scores(["the cat sat"], ["the cat ran away"], ["a source"])
    assert scores["rouge1"]["value"] == pytest.approx(4 / 7)        # "the cat": 2 of 3 and 2 of 4
    assert scores["rouge2"]["value"] == pytest.approx(2 / 5) and scores["rougeL"]["value"] == pytest.approx(4 / 7)


def test_bleu_is_sacrebleus_for_the_whole_corpus():
    outputs = ["the patient was given aspirin today", "blood pressure fell", ""]
    references = ["the patient was given aspirin yesterday", "the blood pressure fell quickly", "nothing"]
    scores = tm.text_scores(outputs, references, outputs)
    assert scores["bleu"]["value"] == pytest.approx(BLEU().corpus_score(outputs, [references]).score)
    low, high = scores["bleu"]["interval"]
    assert low <= scores["bleu"]["value"] <= high


def test_a_text_that_turns_in_circles_and_one_that_copies_are_seen():
    loop = "it is the heart it is the heart it is the heart"
    assert tm.distinct([loop], 1) == pytest.approx(4 / 12) and tm.distinct(["all words differ here"], 2) == 1.0
    assert tm.copy_rate(["what causes gout"], ["Please: what causes gout?"]) == 1.0
    assert tm.copy_rate(["uric acid causes gout"], ["what causes gout"]) == 0.0
    assert tm.distinct([""], 2) == 0.0 and tm.copy_rate([""], [""]) == 0.0


def test_an_interval_is_wider_where_items_of_a_group_go_together():
    values, groups = [0.0, 1.0] * 50, [i % 10 for i in range(100)]          # within a group all are alike
    alone, grouped = tm.mean(values), tm.mean(values, groups)
    assert alone["value"] == grouped["value"] == 0.5
    width = alone["interval"][1] - alone["interval"][0]
    assert width == pytest.approx(2 * 1.96 * 0.5 / 10, abs=0.04)            # the standard error of 100 coins
    assert grouped["interval"][1] - grouped["interval"][0] > 2 * width


def test_the_first_sentence_ends_at_its_own_stop():
    assert tm.first_sentence("Gout is painful. It swells.") == "Gout is painful."
    assert tm.first_sentence("pH of 7.4 is normal") == "pH of 7.4 is normal"
