"""beam.py: the texts of transformers' beam search, token by token, and its scores."""
import pytest
import torch
from conftest import tiny_model
from transformers import GPT2LMHeadModel

from answers.beam import beam_search, forbid_repeats

PROMPTS = [[5, 9, 5, 9, 5], [17, 3, 250, 3, 17], [1, 2, 3, 4, 5]]
EOS = 100


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model whose texts end now and then, and the same in transformers."""
    folder = tmp_path_factory.mktemp("beam")
    ours = tiny_model(1, n_positions=32)
    ours.save_pretrained(folder)
    return ours, GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.mark.parametrize("beams, penalty, ngram, least", [
    (1, 1.0, 0, 0), (5, -0.5, 6, 5), (4, 1.0, 2, 0), (3, 2.0, 3, 0), (3, 0.0, 0, 3), (2, 1.0, 1, 0), (4, 0.7, 0, 0)])
def test_every_beam_and_its_score_are_those_of_transformers(models, beams, penalty, ngram, least):
    ours, theirs = models
    found = beam_search(ours, PROMPTS, 20, beams, penalty, ngram, least, EOS)
    for prompt, best in zip(PROMPTS, found, strict=True):
        if beams == 1:                   # transformers' generate is then no beam search, and ends where greedy ends
            out = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=EOS,
                                  pad_token_id=0)
            assert [best[0][1]] == [ids_of(row, len(prompt)) for row in out]
            continue
        out = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=20, num_beams=beams, num_return_sequences=beams, do_sample=False,
            length_penalty=penalty, no_repeat_ngram_size=ngram, min_new_tokens=least or None, eos_token_id=EOS,
            early_stopping=False, pad_token_id=0,
            return_dict_in_generate=True, output_scores=True)
        assert [ids for _, ids in best] == [ids_of(row, len(prompt)) for row in out.sequences]
        torch.testing.assert_close(torch.tensor([score for score, _ in best]), out.sequences_scores, rtol=1e-4,
                                   atol=1e-4)


def ids_of(row, start):
    """The new ids of a returned sequence: up to the end token, or all."""
    ids = row.tolist()[start:]
    return ids[:ids.index(EOS)] if EOS in ids else ids


def test_beams_end_at_different_lengths_in_these_tests(models):
    """Else the tests above would say nothing about finished texts."""
    found = beam_search(models[0], PROMPTS, 20, 5, 0.7, eos_id=EOS)
    assert len({len(ids) for best in found for _, ids in best}) > 4


def test_several_prompts_together_are_searched_as_each_alone(models):
    together = beam_search(models[0], PROMPTS, 12, 4, 1.0, 3, eos_id=EOS)
    for prompt, best in zip(PROMPTS, together, strict=True):
        [alone] = beam_search(models[0], [prompt], 12, 4, 1.0, 3, eos_id=EOS)
        assert [ids for _, ids in alone] == [ids for _, ids in best]


def test_an_n_gram_of_the_prompt_is_not_said_again():
    log_p = torch.zeros(2, 10)
    forbid_repeats(log_p, torch.tensor([[1, 2, 3, 1, 2], [4, 4, 4, 5, 6]]), 3)
    assert log_p.isinf().nonzero().tolist() == [[0, 3]]


def test_a_search_stops_where_the_positions_end(models):
    [best] = beam_search(models[0], [[1] * 30], 20, 3, eos_id=-1)
    assert {len(ids) for _, ids in best} == {2}
