"""What tokenizer.py promises, one sentence a test. The peers are tokenizers, tiktoken and transformers.

    pytest tests/test_tokenizer.py
"""
import doctest
import json
import os
import random
import re
from collections import Counter

import numpy as np
import pytest
import regex
import tokenizers
from launched import launched
from tokenizers import models, pre_tokenizers, trainers

import tokenizer as module
from baselines import load_tokenizer
from plumbing.common import UserError
from tokenizer import EOS, PAPER_TERMS, Tokenizer, count_pieces, cut, learn_merges, well_formed

STEMS = "cardi neur hepat nephr cyt gastr derm oste my immun hist path onc hem arthr chromat phot prob thromb".split()
ENDS = "itis osis ology oma emia opathy ectomy ocyte ogram otoxicity ography iotic in ase ium oparticles al ic".split()
PLAIN = "the of and in with was were patients' it's they'll cells (P < 0.05) 12.5 mg/kg n=30 IL-6 p53 +/- --".split()
ODD = ["β-catenin", "α", "naïve", "Å", "µg", "日本語", "é", "ﬁ", "²", "½", "Ⅷ", "😀", "👩\u200d🔬", "\u200b", "İ",
       "\u00ad", "ʼs", "’s"]
GAPS = [" "] * 40 + ["  ", "\n", "\n\n", " \n ", "\t", "\u00a0", " \u00a0", "\u3000", "\r\n", "\x1c", "\x85", ""]


def sentences(seed, n):
    """Text that looks like abstracts from afar, with rare signs and white space of all kinds in it."""
    rng = random.Random(seed)
    made = [a + b for a in STEMS for b in ENDS]
    made += ["".join(rng.choices(STEMS + ENDS, k=3))[:rng.randint(3, 14)] for _ in range(3000)]
    for _ in range(n):
        words = rng.choices(made, k=rng.randint(0, 12)) + rng.choices(PLAIN, k=rng.randint(0, 8))
        words += rng.choices(ODD, k=rng.random() < 0.3)
        rng.shuffle(words)
        yield "".join(word + rng.choice(GAPS) for word in words) + rng.choice(["", ".", ". "])


def hugging_face(texts, vocab_size):
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    peer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False))
    return json.loads(peer.to_str())["model"]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(sentences(0, 4000), 2000)


@pytest.fixture(scope="module")
def folder(tok, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tok.save(path)
    return path


# ---- learning ----


def test_the_examples_in_the_docstrings_are_true():
    result = doctest.testmod(module)
    assert result.attempted > 5 and result.failed == 0


@pytest.mark.parametrize("seed, n, size", [(1, 3000, 3000), (2, 300, 900), (3, 40, 450), (4, 20000, 1500)])
def test_vocabulary_and_merges_equal_hugging_faces_entry_for_entry(seed, n, size, tmp_path):
    texts = list(sentences(seed, n))
    Tokenizer.train(texts, size + 1).save(tmp_path)
    ours, theirs = json.loads((tmp_path / "tokenizer.json").read_text())["model"], hugging_face(texts, size)
    assert len(theirs["merges"]) == size - 256
    assert ours["merges"] == theirs["merges"]
    assert ours["vocab"] == theirs["vocab"]


@pytest.mark.parametrize("texts", [
    ["".join(random.Random(5).choices("ab ", k=17 * i % 60 + 1)) for i in range(300)] + ["aaaaaaa aaa aaaa"] * 3,
    ["=" * 3000, "=" * 501 + "a" * 77], ["ab" * 2000, "aab" * 700, "a" * 333 + "b"], ["abc" * 999 + "-" * 65]],
    ids=["ties", "one sign", "two letters", "three letters"])
def test_ties_and_pairs_that_overlap_are_merged_as_hugging_face_merges_them(tmp_path, texts):
    theirs = hugging_face(texts, 10_000)                  # all that the text yields
    Tokenizer.train(texts, len(theirs["vocab"]) + 1).save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"] == theirs["merges"]


def test_eos_is_the_last_id_of_exactly_the_size_asked_for(tok):
    assert len(tok) == 2000 and tok.eos_id == 1999 and tok.specials == {EOS: 1999} and len(tok.merges) == 2000 - 257
    assert len(Tokenizer.train(["none needed"], 257)) == 257


def test_asking_for_more_tokens_than_the_text_yields_says_how_many_it_yields():
    text = ["cell by cell, cells of cells"]
    with pytest.raises(UserError, match=r"only 262 tokens .*not 28,896"):
        Tokenizer.train(text, 28896)
    assert len(Tokenizer.train(text, 262)) == 262


@pytest.mark.parametrize("texts, size, message", [
    (["a"], 256, "from 257"), (["a"], -1, "from 257"), ([], 300, "257"), ("one str", 300, "iterable of texts")])
def test_what_cannot_be_trained_on_is_refused_with_the_mend(texts, size, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(texts, size)


def test_counting_by_words_equals_cutting_the_whole_text_with_the_pattern():
    texts = list(sentences(6, 3000))
    plain = Counter(piece for text in texts for piece in module.PIECES.findall(text))
    assert count_pieces(texts) == plain
    assert count_pieces(texts, fold_at=50) == plain


def test_cutting_loses_nothing():
    ends = ["", " ", "  ", " a", "a ", "a  ", " \n a \n", "a \u00a0b", "\x1c \x1c  \x1d", "\u00a0 x"]
    for text in [*sentences(7, 2000), *ends]:
        assert "".join(head + "".join(" " + word for word in words) for head, words in cut(text)) == text
        assert [p for head, words in cut(text) for part in [head, *(" " + word for word in words)]
                for p in module.PIECES.findall(part)] == module.PIECES.findall(text)


def test_counts_of_shards_add_up_to_the_count_of_the_whole():
    texts = list(sentences(8, 2000))
    shards = count_pieces(texts[:700]) + count_pieces(texts[700:])
    assert shards == count_pieces(texts)
    assert learn_merges(shards, 500) == learn_merges(count_pieces(texts), 500)


def test_half_surrogates_in_the_training_text_count_as_replacement_characters():
    assert count_pieces(["x\ud800y a\udc00 \ud83d\ude00"]) == count_pieces(["x\ufffdy a\ufffd \U0001f600"])


# ---- encoding and decoding ----


ALPHABETS = ["abcdefghijklmnopqrstuvwxyz     ", " \n\t\r\x0b\x0c\x1c\x1d\x85\u00a0\u2003\u2028\u3000\u200b\ufeffx",
             "0123456789.,%-+ ", "'sStTrRvVeEmMlLdD ’`\"", "\x00\x01\x7f\x80\xad�", "αβγμΩéñçßøÅ ", "中文日本語한국어 ",
             "😀👩🏽🔬🇩🇪❤️\u200d\ufe0f ", "e\u0301a\u0308n\u0303 \u0300", "٠١٢߀०৪Ⅷ½²①",
             "العربية עברית \u202b", "\U00010400𝔘\U0001f9ec"]


def odd_strings(seed, n):
    """Random strings: within one alphabet, across all of Unicode, and words of the training text cut up and glued."""
    rng = random.Random(seed)
    text = " ".join(sentences(seed, 300))
    for i in range(n):
        if i % 4 == 0:
            yield "".join(rng.choices(rng.choice(ALPHABETS), k=rng.randint(0, 24)))
        elif i % 4 == 1:
            yield "".join(rng.choice(rng.choice(ALPHABETS)) for _ in range(rng.randint(1, 12)))
        elif i % 4 == 2:
            start = rng.randrange(len(text))
            yield text[start:start + rng.randint(1, 60)] + rng.choice(rng.choice(ALPHABETS))
        else:
            codes = [rng.randrange(0x40000) for _ in range(rng.randint(1, 6))]
            yield "".join(chr(c) if not 0xD800 <= c < 0xE000 else " " for c in codes) + rng.choice(["", "a ", "  "])


def test_thirty_thousand_odd_strings_have_the_peers_ids_and_come_back_exactly(tok, folder):
    peer, tik = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), tok.to_tiktoken()
    for seed in range(3):
        texts = list(odd_strings(seed, 10_000))
        theirs = [encoding.ids for encoding in peer.encode_batch_fast(texts)]
        for text, hf in zip(texts, theirs, strict=True):
            ours = tok.encode(text)
            assert ours.tolist() == hf == tik.encode_ordinary(text), ascii(text)
            assert tok.decode(ours) == text


def test_half_surrogates_are_encoded_as_tiktoken_encodes_them(tok):
    tik, rng = tok.to_tiktoken(), random.Random(9)
    parts = ["\ud83d", "\ude00", "\ud800", "\udfff", "a", " ", " the", "\n", "é", "  "]
    for _ in range(2000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 9)))
        ids = tok.encode(text)
        assert ids.tolist() == tik.encode_ordinary(text), ascii(text)
        assert tok.decode(ids) == well_formed(text)


def test_every_code_point_is_a_letter_number_or_blank_for_all_three_libraries_or_for_none():
    """Of the planes in which Unicode has no letters, the peers are asked about every 61st character: they are slow."""
    empty = [*range(0x40000, 0xE0000), *range(0xF0000, 0x110000)]
    points = {chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and c != 10}
    assert not regex.search(rf"{module.LETTER}|{module.NUMBER}|\s", "".join(map(chr, empty)), regex.V1)
    points = sorted(points.difference(map(chr, empty)).union(map(chr, empty[::61])))
    everything = "".join(points)
    marks = {"letter": "a", "number": "1", "other": "."}
    merges = [module.symbols(mark.encode()) + chr(i) for mark in marks.values() for i in range(256)]
    tik = Tokenizer(merges).to_tiktoken()                # a mark merges with what follows if both are in one piece
    theirs = {}
    for name, mark in marks.items():
        ids = tik.encode_to_numpy("".join(f"{mark}{point}\n" for point in points))
        starts = np.flatnonzero(np.concatenate([[True], ids[:-1] == ord(module.symbols(b"\n"))]))
        theirs[name] = {point for point, start in zip(points, starts, strict=True) if ids[start] >= 256}
    theirs["blank"] = set(points).difference(*theirs.values())
    ours = {"letter": regex.findall(module.LETTER, everything, regex.V1),
            "number": regex.findall(module.NUMBER, everything, regex.V1),
            "blank": regex.findall(r"\s", everything)}
    assert set(ours["blank"]) == set(re.findall(module.BLANK, everything))
    for name, prop in {"letter": r"\p{L}", "number": r"\p{N}", "blank": r"\s"}.items():
        split = pre_tokenizers.Split(tokenizers.Regex(prop), "removed", invert=True)
        hf = {piece for piece, _ in split.pre_tokenize_str(everything)}
        assert set(ours[name]) == theirs[name] == hf, name


@pytest.mark.parametrize("name, alphabet", [
    ("one letter", "a"), ("letters", "abcdefghijklmnopqrstuvwxyz"), ("digits", "0123456789"), ("spaces", " ")])
def test_a_megabyte_without_a_place_to_cut_is_encoded_exactly(tok, folder, name, alphabet):
    text = "".join(random.Random(10).choices(alphabet, k=10**6)) + "x" * (name == "spaces")
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    peer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))     # since tiktoken panics at spaces
    assert ids.tolist() == (peer.encode(text).ids if name == "spaces" else tok.to_tiktoken().encode_ordinary(text))


@pytest.mark.parametrize("length", [63, 64, 65, 66, 200])
def test_long_and_short_pieces_follow_the_same_rules(tok, length):
    tik, rng = tok.to_tiktoken(), random.Random(length)
    for alphabet in ("a", "ab", "acdeghilnoprst", "0123456789", ".-"):
        for _ in range(50):
            text = "".join(rng.choices(alphabet, k=length))
            assert tok.encode(text).tolist() == tik.encode_ordinary(text)


def test_an_empty_text_has_no_ids(tok):
    ids = tok.encode("")
    assert ids.shape == (0,) and ids.dtype == np.uint16 and tok.decode(ids) == tok.decode([]) == ""


def test_ids_are_a_writable_uint16_array_and_uint32_past_65536(tok):
    wide = Tokenizer(tok.merges)
    before = wide.encode("the cells")
    before[0] += 0
    assert before.dtype == np.uint16 and before.flags.writeable
    wide.add_special("[LAST]", 65535)
    assert wide.encode("the cells").dtype == np.uint16
    wide.add_special("[FAR]", 65536)
    after = wide.encode("the cells[FAR]", specials=["[FAR]"])
    assert after.dtype == np.uint32 and after.tolist() == [*before.tolist(), 65536] and len(wide) == 65537


def test_ids_that_look_like_surrogates_in_utf_16_are_ids_like_any_other():
    merges = [chr(a) + chr(b) for a in range(256) for b in range(256)][:65000]
    many = Tokenizer(merges)
    text = " ".join("\x1b" + sign for sign in "!#$%&()*+./")               # bytes 27 and others: tokens 55,296 and up
    ids = many.encode(text)
    assert ids.dtype == np.uint16 and sum(0xD800 <= i < 0xE000 for i in ids) == 11
    assert ids.tolist() == many.to_tiktoken().encode_ordinary(text) and many.decode(ids) == text


def test_any_ids_decode_to_the_bytes_that_tiktoken_gives_even_where_they_are_not_utf8(tok):
    tik, rng = tok.to_tiktoken(), random.Random(11)
    for _ in range(3000):
        ids = [rng.randrange(len(tok)) for _ in range(rng.randint(0, 12))]
        ids += [rng.randrange(94, 256) for _ in range(rng.randint(0, 4))]          # bytes that alone are broken UTF-8
        assert tok.decode_bytes(ids) == tik.decode_bytes(ids) == b"".join(tok.decode_bytes([i]) for i in ids)
        assert tok.decode(np.array(ids, np.int64)) == tok.decode_bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("unknown", [2000, -1, 10**9])
def test_an_unknown_id_is_an_error_that_names_it(tok, unknown):
    for decode in (tok.decode, tok.decode_bytes):
        with pytest.raises(UserError, match=f"{unknown}.*2,000"):
            decode([5, unknown])


def test_memory_for_words_seen_before_is_bounded_and_forgetting_changes_no_id(tok):
    small = Tokenizer(tok.merges, remember=100)
    for text in sentences(12, 500):
        assert small.encode(text).tolist() == tok.encode(text).tolist()
    small.encode("x" * 1000)
    assert len(small.words) == len(small.pieces) == 100
    fresh = Tokenizer(tok.merges)
    fresh.encode("x" * 1000 + " " + "y" * 1000)
    assert not fresh.words and not fresh.pieces


# ---- special tokens ----


def test_a_special_token_in_a_users_text_is_plain_text_unless_asked_for_by_name(tok):
    text = f"one{EOS} two"
    plain = tok.encode(text)
    assert tok.eos_id not in plain and plain.tolist() == tok.to_tiktoken().encode_ordinary(text)
    assert tok.decode(plain) == text
    named = tok.encode(text, specials=[EOS])
    assert named.tolist() == [*tok.encode("one"), tok.eos_id, *tok.encode(" two")] and tok.decode(named) == text
    with pytest.raises(UserError, match=r"'\[SEP\]'.*<\|endoftext\|>"):
        tok.encode(text, specials=["[SEP]"])


def test_of_two_special_tokens_that_begin_alike_the_longer_is_found(tok):
    two = Tokenizer(tok.merges)
    a, ab = two.add_special("<A>"), two.add_special("<A>b")
    assert two.encode("<A>b<A>", specials=["<A>", "<A>b"]).tolist() == [ab, a]


def test_added_special_tokens_follow_the_others_and_every_library_gives_them_the_same_ids(tok, tmp_path):
    from transformers import AutoTokenizer
    more = Tokenizer(tok.merges)
    names = ["[PAD]", "[SEP]", "<|startoftext|>", "<|CONTEXT|>"]
    assert [more.add_special(name) for name in names] == [2000, 2001, 2002, 2003]
    assert more.add_special("[SEP]") == 2001 and len(more) == 2004 and more.eos_id == 1999
    more.save(tmp_path)
    text = f"[SEP]the cells<|CONTEXT|> of {EOS}[PAD]"
    ids = more.encode(text, specials=[EOS, *names]).tolist()
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(text).ids == ids
    assert more.to_tiktoken().encode(text, allowed_special="all") == ids
    loaded = Tokenizer.load(tmp_path)
    assert loaded.specials == more.specials and loaded.encode(text, specials=[EOS, *names]).tolist() == ids
    assert loaded.decode(ids) == text


def test_a_special_token_needs_a_name_and_an_id_that_is_free(tok):
    for name, i in (("", None), ("[X]", 300), ("[X]", 1999)):
        with pytest.raises(UserError, match="free id"):
            Tokenizer(tok.merges).add_special(name, i)


# ---- files ----


def test_the_saved_folder_gives_the_same_ids_everywhere(tok, folder):
    from transformers import AutoTokenizer
    auto, peer = AutoTokenizer.from_pretrained(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert len(auto) == len(tok) and auto.eos_token_id == auto.bos_token_id == tok.eos_id
    loaded = Tokenizer.load(folder)
    for text in sentences(13, 300):
        ids = tok.encode(text).tolist()
        assert ids == auto(text)["input_ids"] == peer.encode(text).ids == loaded.encode(text).tolist()
        assert auto.decode(ids) == peer.decode(ids) == text


def test_readers_that_skip_the_first_line_of_merges_txt_still_find_every_merge(tok, folder):
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    assert lines[0].startswith("#version") and lines[-1] == "" and len(lines[1:-1]) == len(tok.merges)
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert len(vocab) == 2000 and vocab[EOS] == 1999 and all(line.replace(" ", "") in vocab for line in lines[1:-1])


def test_both_forms_of_merges_in_tokenizer_json_load(tok, folder, tmp_path):
    whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert isinstance(whole["model"]["merges"][0], list)
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole), encoding="utf-8")
    assert Tokenizer.load(tmp_path).merges == tok.merges


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("where", ["vocab.json", "added_tokens.json", "nowhere"])
def test_vocab_json_with_merges_txt_loads_as_gpt2_and_as_the_release_wrote_them(tok, folder, tmp_path, header, where):
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    if where != "vocab.json":
        del vocab[EOS]
    if where == "added_tokens.json":
        (tmp_path / where).write_text(json.dumps({EOS: 1999, "[PAD]": 2000}))
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = (folder / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "merges.txt").write_text(merges if header else merges.split("\n", 1)[1].rstrip("\n"), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded.merges == tok.merges and loaded.eos_id == 1999
    assert loaded.specials.get("[PAD]") == (2000 if where == "added_tokens.json" else None)


def damaged(folder, out, name, change):
    """A copy of the folder with one of its files changed; without tokenizer.json if it is one of the other two."""
    for path in folder.iterdir():
        if name == "tokenizer.json" or path.name != "tokenizer.json":
            (out / path.name).write_bytes(path.read_bytes())
    text = (out / name).read_text(encoding="utf-8")
    (out / name).write_text(change(text), encoding="utf-8")


@pytest.mark.parametrize("name, change, message", [
    ("merges.txt", lambda text: text[:len(text) // 2], "merge [0-9]+|cut off"),
    ("merges.txt", lambda text: "\n".join(text.split("\n")[:500]), "cut off"),
    ("merges.txt", lambda text: "", "cut off"),
    ("merges.txt", lambda text: text.replace("\n", " x\n", 2), "merge 1, .* does not join"),
    ("vocab.json", lambda text: "[1]", "no JSON object"),
    ("merges.txt", lambda text: text + text.split("\n")[1] + "\n", "exists already"),
    ("vocab.json", lambda text: "version https://git-lfs.github.com/spec/v1\noid sha256:0", "vocab.json.*not JSON"),
    ("vocab.json", lambda text: text.replace(": 300,", ": 301,"), "instead|not 300"),
    ("tokenizer.json", lambda text: text[:1000], "tokenizer.json.*not JSON"),
    ("tokenizer.json", lambda text: "{}", "GPT-2's"),
    ("tokenizer.json", lambda text: "[1]", "no JSON object"),
    ("tokenizer.json", lambda text: text.replace('"add_prefix_space": false', '"add_prefix_space": true'), "GPT-2's"),
    ("tokenizer.json", lambda text: text.replace('"normalizer": null', '"normalizer": {"type": "NFC"}'), "GPT-2's"),
    ("tokenizer.json", lambda text: text.replace('"ByteLevel"', '"Metaspace"'), "GPT-2's"),
])
def test_a_damaged_folder_is_refused_with_the_files_name(folder, tmp_path, name, change, message):
    damaged(folder, tmp_path, name, change)
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_file_in_the_way_of_the_folder_is_left_alone(tok, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="in the way"):
        tok.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="tokenizer.json"):
            Tokenizer.load(path)


# ---- commands ----


def write_texts(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_count_per_shard_then_train_on_the_counts_equals_train_on_the_text(tmp_path):
    texts = [text for text in sentences(14, 1500) if text]
    shards = [write_texts(tmp_path / "0.jsonl", texts[:600]), write_texts(tmp_path / "1.jsonl", texts[600:])]
    for shard in shards:
        counts = shard.with_suffix(".counts.json")
        assert launched("tokenizer.py", "count", "--inputs", shard, "--out", counts).returncode == 0
    for inputs, out in (([tmp_path], "whole"), ([shard.with_suffix(".counts.json") for shard in shards], "sharded")):
        result = launched("tokenizer.py", "train", "--inputs", *inputs, "--vocab-size", "600", "--out", tmp_path / out)
        assert result.returncode == 0 and "600 tokens" in result.stdout, result.stderr
    assert (tmp_path / "whole/tokenizer.json").read_bytes() == (tmp_path / "sharded/tokenizer.json").read_bytes()
    assert Tokenizer.load(tmp_path / "whole").merges == Tokenizer.train(texts, 600).merges
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"}


def test_compare_shows_both_splits_and_the_papers_terms(folder):
    text = "gastritis in patients\nwith anemia"
    result = launched("tokenizer.py", "compare", "--tokenizers", folder, folder, "--text", text)
    assert result.returncode == 0 and result.stdout.count("bytes per token") == 2
    shown = [line[2:] for line in result.stdout.splitlines() if line.startswith("  ")]
    texts = [text.replace("\n", "\u23ce"), *(" " + term for term in PAPER_TERMS)]
    assert [line.replace("|", "") for line in shown] == 2 * texts
    assert "|".join(Tokenizer.load(folder).decode([i]) for i in Tokenizer.load(folder).encode(texts[1])) in shown


def test_bad_input_ends_the_command_in_one_line_and_code_2_and_leaves_nothing(tmp_path):
    text, out = write_texts(tmp_path / "a.jsonl", ["cell by cell, cells of cells"]), tmp_path / "out"
    (tmp_path / "broken.jsonl").write_text("{not json\n" * 3)
    write_texts(tmp_path / "empty.jsonl", [])
    (tmp_path / "no.counts.json").write_text("[1, 2]")
    for args, message in [
            (["train", "--inputs", tmp_path / "no.jsonl", "--out", out], "no.jsonl: no such file"),
            (["train", "--inputs", text, "--out", out], "only 262 tokens"),
            (["train", "--inputs", text, "--vocab-size", "9", "--out", out], "from 257"),
            (["train", "--inputs", tmp_path / "empty.jsonl", "--out", out], "no text"),
            (["train", "--inputs", text, tmp_path / "broken.jsonl", "--out", out], "cannot be read"),
            (["train", "--inputs", tmp_path / "no.counts.json", "--out", out], "no.counts.json"),
            (["count", "--inputs", text, "--out", out], ".counts.json")]:
        result = launched("tokenizer.py", *args)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("skipped")]
        assert result.returncode == 2 and len(lines) == 1 and message in lines[0], (args, result.stderr)
        assert not out.exists()
    assert not [path for path in os.listdir(tmp_path) if path.endswith(".tmp")]


# ---- Folders of others: the ids of transformers, or refused ----

@pytest.fixture
def others(tmp_path):
    Tokenizer.train(["aspirin inhibits the enzyme, aspirin inhibits cells, the cells"] * 9, 280).save(tmp_path)
    return tmp_path


def changed(folder, change):
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))
    return folder


def added_token(**flags):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"id": 280, "content": "COVID-19", **plain, **flags}


@pytest.mark.parametrize("flags", [{}, {"single_word": True}, {"lstrip": True}])
def test_an_added_token_that_is_not_special_is_found_in_text_and_survives_saving(others, tmp_path, flags):
    changed(others, lambda whole: whole["added_tokens"].append(added_token(**flags)))
    text = "the COVID-19 cells, COVID-19"
    from transformers import AutoTokenizer
    expected = AutoTokenizer.from_pretrained(others)(text)["input_ids"]
    tok = load_tokenizer(others)
    assert tok.encode(text).tolist() == expected and expected.count(280) == 2
    assert "lstrip" in flags or tok.decode(expected) == text
    tok.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").encode(text).tolist() == expected


@pytest.mark.parametrize("change", [
    lambda whole: whole["added_tokens"].append(added_token()),
    lambda whole: whole["model"].update(dropout=0.1),
    lambda whole: whole["model"].update(end_of_word_suffix="</w>")])
def test_what_would_give_other_ids_than_transformers_is_refused(others, change):
    with pytest.raises(UserError, match="no tokenizer of GPT-2's kind"):
        Tokenizer.load(changed(others, change))


@pytest.mark.parametrize("whole_first", [False, True])
def test_merges_extended_by_hand_give_the_ids_of_tokenizers(tmp_path, whole_first):
    """Of (a, b), (b, c), (a, bc) the last is never reached: "abc" is ab, c; unless whole pieces come first."""
    Tokenizer(["AB", "BC", "A" + chr(257)]).save(tmp_path)       # symbols of the bytes b, c, d
    changed(tmp_path, lambda whole: whole["model"].update(ignore_merges=whole_first))
    peer, tok = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), load_tokenizer(tmp_path)
    for text in ("bcd", "bcdbcd", "cd bcd"):
        assert tok.encode(text).tolist() == peer.encode(text).ids
    assert (tok.encode("bcd").tolist() == [258]) == whole_first


def test_a_config_names_the_ends_of_a_text_and_embedding_rows_without_token_decode_to_nothing(others):
    tok = Tokenizer.load(others)
    tok.add_special("<|end|>")
    tok.end_at([280, 999])
    assert (tok.eos_id, tok.eos_ids, tok.eos) == (280, (280,), "<|end|>")
    tok.rows = 290
    assert tok.decode([*tok.encode("the"), 285]) == "the"
    with pytest.raises(UserError, match="no token has the id 290"):
        tok.decode([290])
