"""An exported model is the same model: shape, vocabulary and weights; and only whole folders are uploaded."""
import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SENTENCES, tiny_model

from bench import llama
from model import GPT
from plumbing.common import UserError
from plumbing.huggingface import write_model_card
from prepare import export
from tokenizer import Tokenizer


@pytest.fixture
def folder(tmp_path):
    """A tiny model whose embedding has five rows more than there are tokens, and its tokenizer."""
    tok = Tokenizer.train(SENTENCES * 3, vocab_size=300)
    tok.add_special("[SEP]", 300)
    model = tiny_model(vocab_size=306, bos_token_id=tok.eos_id, eos_token_id=tok.eos_id)
    model.save_pretrained(tmp_path / "model")
    tok.save(tmp_path / "model")
    return tmp_path / "model"


def text_of(field):
    return [bytes(field.parts[i]).decode() for i in field.data]


def test_a_gguf_file_has_the_shape_the_vocabulary_and_the_folded_weights(folder, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    export.gguf(str(folder), tmp_path / "model.gguf", "f32")
    reader, model, tok = gguf.GGUFReader(tmp_path / "model.gguf"), GPT.from_pretrained(folder), Tokenizer.load(folder)

    fields = reader.fields
    assert fields["gpt2.block_count"].contents() == model.cfg.n_layer
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tok.eos_id
    names = text_of(fields["tokenizer.ggml.tokens"])
    assert len(names) == len(set(names)) == 306
    assert (names[tok.eos_id], names[300]) == ("<|endoftext|>", "[SEP]")
    assert len(text_of(fields["tokenizer.ggml.merges"])) == len(tok.merges)

    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert len(tensors) == len(list(model.parameters()))
    D = model.cfg.n_embd
    stored, ours = tensors["blk.2.attn_qkv.weight"], model.h[2].attn.c_attn.weight.detach().numpy()
    np.testing.assert_allclose(stored[:D] * 3, ours[:D], rtol=1e-6)
    np.testing.assert_array_equal(stored[D:], ours[D:])


def test_a_model_whose_scores_are_not_divided_by_layer_keeps_its_queries(folder, tmp_path):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    model = tiny_model(scale_attn_by_inverse_layer_idx=False)
    model.save_pretrained(folder)
    export.gguf(str(folder), tmp_path / "model.gguf", "f32")
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    np.testing.assert_array_equal(tensors["blk.2.attn_qkv.weight"], model.h[2].attn.c_attn.weight.detach().numpy())


@pytest.mark.parametrize("dtype, bound", [("f16", 1e-3), ("q8_0", 1e-2)])
def test_smaller_types_keep_the_weights_nearly(folder, tmp_path, dtype, bound):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    tiny_model(n_embd=64, n_head=4).save_pretrained(folder)
    export.gguf(str(folder), tmp_path / "model.gguf", dtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    stored = tensors["token_embd.weight"]
    found = gguf.quants.dequantize(stored.data, stored.tensor_type)
    wte = GPT.from_pretrained(folder).wte.weight.detach().numpy()
    assert np.linalg.norm(found - wte) / np.linalg.norm(wte) < bound


def test_a_name_that_two_tokens_would_have_is_refused(folder, tmp_path):
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    tok = Tokenizer.load(folder)
    tok.add_special("[UNUSED305]", 301)                          # what the row 305 without a token is called
    tok.save(folder)
    with pytest.raises(UserError, match=r"two tokens are called '\[UNUSED305\]'"):
        export.gguf(str(folder), tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == [folder]


def test_llama_cpp_reads_the_same_tokens_and_writes_the_same_text(tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    tok = Tokenizer.train(SENTENCES * 3, vocab_size=300)
    tok.add_special("[SEP]", 302)                                # 300 and 301 are ids without a token
    model = tiny_model(vocab_size=306, n_positions=128, bos_token_id=tok.eos_id, eos_token_id=tok.eos_id)
    model.save_pretrained(tmp_path)
    tok.save(tmp_path)
    export.gguf(str(tmp_path), tmp_path / "model.gguf", "f32")

    theirs, tok = llama.open_file(tmp_path / "model.gguf", positions=128), Tokenizer.load(tmp_path)
    assert llama.compare_tokens(theirs, tok, [*SENTENCES, "no COVID-19[SEP] here", " [SEP]"]) == 0
    ids = [tok.encode(text).tolist() for text in SENTENCES]
    difference, largest, _ = llama.compare_logits(theirs, model, ids)
    assert difference < 1e-2 < largest
    assert [llama.compare_greedy(theirs, model, tok, prompt[:5]) for prompt in ids] == [None] * len(ids)


def test_without_the_gguf_package_the_message_says_what_to_install(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        export.gguf(str(folder), tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_push_uploads_a_whole_folder_and_refuses_one_without_its_card(folder, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, name, **settings):
            calls.append(("create", name, settings))

        def upload_folder(self, **settings):
            calls.append(("upload", settings))
            return SimpleNamespace(commit_url="https://huggingface.co/somebody/model/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    with pytest.raises(UserError, match="README.md"):
        export.push(folder, "somebody/model")
    assert calls == []
    write_model_card(folder, "model", {"Scores": {"MedQA": 0.5}})
    export.push(folder, "somebody/model")
    assert calls[0] == ("create", "somebody/model", {"private": True, "exist_ok": True})
    assert calls[1][1]["repo_id"] == "somebody/model" and "*.safetensors" in calls[1][1]["allow_patterns"]


def test_a_hub_that_refuses_is_one_line(folder, monkeypatch):
    class Hub:
        def create_repo(self, name, **settings):
            raise OSError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    write_model_card(folder, "model", {})
    with pytest.raises(UserError, match=r"somebody/model: .*\(no network\)$"):
        export.push(folder, "somebody/model")


def test_a_model_card_says_what_is_known_and_that_it_is_no_medical_advice(tmp_path):
    facts = {"Data": "abstracts", "Tokens": 12345, "Scores": {"dev": 0.25}, "Settings": None}
    write_model_card(tmp_path, "small", facts)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "\n# small\n" in card and "\nNot known. It depends" in card
    assert "12,345" in card and "| dev | 0.25 |" in card and "medical advice" in card and "Settings" not in card


def test_a_folder_says_its_length_and_its_end_to_other_programs(folder):
    config, generation, names = (json.loads((folder / file).read_text()) for file in (
        "config.json", "generation_config.json", "tokenizer_config.json"))
    assert config["n_ctx"] == config["n_positions"] == names["model_max_length"] == 32
    assert generation["eos_token_id"] == 299
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
