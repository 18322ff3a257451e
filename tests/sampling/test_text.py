"""Text appears in whole characters and ends before a stop string; prompts are read as they were meant."""
import pytest

from plumbing.common import UserError
from sampling.text import TextStream, check_stops, encode_prompt, groups, read_prompts
from tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tok(world):
    return Tokenizer.load(world)


def streamed(tok, text, stops=(), ids=None):
    """(pieces as they were given out, the stream)"""
    stream, pieces = TextStream(tok, stops), []
    for token in tok.encode(text).tolist() if ids is None else ids:
        pieces.append(stream.feed(token))
        if stream.stopped:
            break
    return [*pieces, stream.close()], stream


def test_characters_of_several_tokens_appear_whole(tok):
    text = "β-blockers, 5 μg, 糖尿病, 🧬"
    pieces, stream = streamed(tok, text)
    assert "".join(pieces) == stream.text == text and "\ufffd" not in "".join(pieces)
    assert len([piece for piece in pieces if piece]) > 10                  # it did stream


def test_bytes_that_are_no_character_are_shown_as_such(tok):
    broken = tok.encode("β").tolist()[:1] + tok.encode("a").tolist()
    assert "".join(streamed(tok, "", ids=broken)[0]) == tok.decode(broken) == "\ufffda"
    assert "".join(streamed(tok, "", ids=broken[:1])[0]) == "\ufffd"


@pytest.mark.parametrize("stop", ["\n\nQuestion:", ".", "cyclo", "s s"])
def test_a_stop_string_across_tokens_ends_the_text_and_is_not_in_it(tok, stop):
    text = f"Aspirin inhibits{stop} and more"
    pieces, stream = streamed(tok, text, (stop, "never occurs"))
    assert "".join(pieces) == text[:text.index(stop)] and stream.stopped


def test_what_only_began_like_a_stop_string_is_given_back(tok):
    pieces, stream = streamed(tok, "a Quest\n\nQues", ("\n\nQuestion:",))
    assert "".join(pieces) == "a Quest\n\nQues" and not stream.stopped
    assert all("\n" not in piece for piece in pieces[:-1])                 # held back until the end


def test_the_first_of_several_stop_strings_counts(tok):
    assert "".join(streamed(tok, "one two three", ("three", "two"))[0]) == "one "


@pytest.mark.parametrize("stop, words", [("", "a stop string is empty"), ("<|im_end|>", r"unknown stop string .* has "
                                         r"only <\|endoftext\|>"), ("[SEP]", "unknown stop string")])
def test_a_stop_string_that_cannot_occur_is_named(tok, stop, words):
    with pytest.raises(UserError, match=words):
        check_stops(tok, (".", stop))
    check_stops(tok, (".", "<|endoftext|>", "[1]"))


def test_a_space_at_the_end_is_left_out_and_said(tok, capsys):
    assert encode_prompt(tok, "Insulin is ") == tok.encode("Insulin is").tolist()
    assert "removed the space at the end of 'Insulin is '" in capsys.readouterr().err
    assert encode_prompt(tok, "<|endoftext|>") == [tok.eos_id]


def test_prompts_are_lines_or_json(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")       # as Windows' Notepad writes it
    (tmp_path / "b.jsonl").write_text('{"prompt": "one\\ntwo"}\n{"prompt": "three"}\n')
    assert read_prompts(tmp_path / "a.txt") == ["one", "two"]
    assert read_prompts(tmp_path / "b.jsonl") == ["one\ntwo", "three"]


@pytest.mark.parametrize("name, content, words", [
    ("a.txt", None, "cannot be read as text"), ("a.txt", b"\xff\xfe", "cannot be read as text"),
    ("a.txt", b"\n \n", "contains no prompt"),
    ("a.jsonl", b'{"prompt": "x"}\n{"text": "y"}', "line 2: no 'prompt' in it"),
    ("a.jsonl", b'{"prompt": 5}', "line 1: no prompt .the prompt is 5"),
    ("a.jsonl", b"[" * 100_000, "line 1: no prompt"), ("a.jsonl", b"9" * 5000, "line 1: no prompt")])
def test_a_bad_file_of_prompts_is_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_prompts(tmp_path / name)


def test_prompts_of_one_length_go_together():
    assert groups([3, 5, 3, 3, 5], most=2) == [[0, 2], [3], [1, 4]]
