"""Other families' tokenizers: the methods of ours, the ids of their library, no special token out of a text."""
import numpy as np
import pytest
import tokenizers
import transformers
from conftest import SENTENCES
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from baselines import load_tokenizer
from baselines.subwords import Subwords
from plumbing.common import UserError
from sampling.text import TextStream, encode_prompt
from tokenizer import Tokenizer

TEXTS = ["Aspirin inhibits cyclooxygenase.", "β-blocker\n\ttwo  blanks", "12 µg", "", "🩺 of the heart"]


def test_ids_equal_transformers_and_text_never_becomes_a_special_token(llama_tokenizer):
    ours, hf = load_tokenizer(llama_tokenizer), transformers.AutoTokenizer.from_pretrained(llama_tokenizer)
    assert (ours.front, ours.eos_id) == ([1], 2) and len(ours) == len(hf)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids.dtype == np.uint16 and ids.tolist() == hf.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == text == hf.decode(ids.tolist())
    for text in ("a</s>b", "<s>", "<unk> <0x0A>"):
        ids = ours.encode(text)
        assert not {0, 1, 2} & set(ids.tolist()) and ours.decode(ids) == text
    assert ours.encode(" yes").tolist() == ours.encode("yes").tolist(), "the vocabulary puts the space there anyway"


def test_whole_characters_stream_with_the_spaces_of_their_words(llama_tokenizer):
    tok = load_tokenizer(llama_tokenizer)
    for text in filter(None, TEXTS):
        stream_ = TextStream(tok)
        pieces = [stream_.feed(i) for i in tok.encode(text).tolist()] + [stream_.close()]
        assert "".join(pieces) == " " + text and "\ufffd" not in "".join(pieces)
    with pytest.raises(UserError, match="no token has the id 9999"):
        tok.decode([5, 9999])


def test_a_special_token_is_added_where_the_weights_have_room_and_saved_for_all(llama_tokenizer, tmp_path):
    tok = load_tokenizer(llama_tokenizer)
    i = len(tok) + 3
    assert tok.add_special("[SEP]", i) == i == tok.specials["[SEP]"] == len(tok) - 1 == tok.add_special("[SEP]")
    assert tok.decode([*tok.encode("of"), i]) == "of[SEP]" and i not in tok.encode("of[SEP]")
    tok.save(tmp_path)
    for again in (load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert len(again) == len(tok) and again.decode([i]) == "[SEP]"
    assert load_tokenizer(tmp_path).eos_id == 2
    with pytest.raises(UserError, match="needs a free id"):
        tok.add_special("[PAD]", 7)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizers library cannot read it"):
        load_tokenizer(tmp_path)


def test_llama_3s_byte_level_tokens_are_their_bytes():
    cut = pre_tokenizers.Split(tokenizers.Regex(r" ?\p{L}+|\p{N}{1,3}|[^\p{L}\p{N}]"), "isolated")
    library = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer, library.decoder = pre_tokenizers.Sequence([cut, level]), decoders.ByteLevel()
    library.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=level.alphabet()))
    library.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    first = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 300)])
    library.post_processor = first
    tok = Subwords(library)
    assert tok.front == [300] and tok.eos_id == 301
    for text in (*TEXTS, " yes", "a<|end_of_text|>b"):
        assert tok.decode(tok.encode(text)) == text and not {300, 301} & set(tok.encode(text).tolist())


def test_a_unigram_vocabulary_does_not_read_special_tokens_out_of_a_text():
    library = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("[SEP]", 0.0), ("▁", -2.0), *(
        (letter, -3.0) for letter in "[]SEPab")], 0, False))
    library.pre_tokenizer, library.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    library.add_special_tokens(["<unk>", "[SEP]"])
    tok = Subwords(library)
    assert 1 in library.encode("a [SEP] b").ids and 1 not in tok.encode("a [SEP] b").tolist()
    assert tok.decode(tok.encode("a [SEP] b")) == "a [ SEP] b"


def test_a_prompt_begins_as_the_family_wants_it(llama_tokenizer, world):
    llama, ours = load_tokenizer(llama_tokenizer), Tokenizer.load(world)
    assert encode_prompt(llama, "Aspirin") == [1, *llama.encode("Aspirin")]
    assert encode_prompt(llama, "<|endoftext|>") == [1]
    assert encode_prompt(ours, "Aspirin") == ours.encode("Aspirin").tolist()
