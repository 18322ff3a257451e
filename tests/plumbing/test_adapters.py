"""Adapters: ours are read by peft and peft's by us, with the same logits; what is no plain LoRA is refused."""
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_folder, tiny_model
from safetensors.torch import load_file, save_file

import baselines
import finetune_qa
import sample
from answers.examples import AnswerModel
from answers.spans import SpanModel
from baselines.gpt_neo import GPTNeo, GPTNeoConfig
from finetune_qa import FinetuneQA
from plumbing.common import UserError, speaking_to_the_user
from questions.ask import Ask
from questions.heads import Classifier
from tokenizer import Tokenizer
from training.finetuning import save_model
from training.parallel import World
from training.trainable import choose_weights

peft = pytest.importorskip("peft", reason="the oracle for adapters")
transformers = pytest.importorskip("transformers")
IDS = torch.tensor([[5, 17, 301, 99, 302, 8]])       # with the two new tokens
ALONE = World(0, 1, torch.device("cpu"))
ALL = ["c_attn", "c_proj", "c_fc"]


@pytest.fixture(scope="module")
def base(world, tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("base"), world, n_positions=64)


def resized(base, kind=transformers.GPT2LMHeadModel, **settings):
    model = kind.from_pretrained(base, **settings)
    model.resize_token_embeddings(303)
    return model.eval()


def randomize(model):
    """Additions large enough to show in the logits."""
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, 0.0, 0.1)


def logits(folder):
    model, _ = baselines.load(str(folder), torch.float32, "cpu")
    with torch.no_grad():
        return model(IDS)


def written_by_peft(base, folder, **settings):
    """The adapter's folder, and its logits by peft."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"} | settings
    model = peft.get_peft_model(resized(base), peft.LoraConfig(**settings)).eval()
    randomize(model)
    model.save_pretrained(folder)
    with torch.no_grad():
        return folder, model(IDS).logits


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(capsys, function, *arguments):
    """The one line with which a script ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended, speaking_to_the_user():
        function(*arguments)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    return line


def saved(base, folder, kind, **settings):
    """A fine-tuned model as a run saves it, beside its adapter."""
    torch.manual_seed(0)
    cfg = FinetuneQA(model=str(base), lora_rank=3, save_adapter=True, **settings)
    gpt, tok = baselines.load(str(base), torch.float32, "cpu")
    for name, i in zip(("[SEP]", "[PAD]"), range(gpt.add_tokens(2), 303), strict=True):
        tok.add_special(name, i)
    model = kind(gpt)
    choose_weights(model, cfg, 2)
    randomize(model)
    save_model(model, tok, folder / "best", cfg, ALONE)
    return model.eval()


@pytest.mark.parametrize("kind, task", [
    (lambda gpt: Classifier(gpt, 302), "SEQ_CLS"), (lambda gpt: AnswerModel(gpt, 300), "CAUSAL_LM"),
    (lambda gpt: SpanModel(gpt, 302), "QUESTION_ANS")], ids=["question", "answer", "span"])
def test_peft_reads_our_adapter_and_it_equals_the_merged_model(base, tmp_path, kind, task):
    saved(base, tmp_path, kind)
    theirs = peft.PeftModel.from_pretrained(resized(base), tmp_path / "adapter").eval()
    assert theirs.peft_config["default"].task_type == task
    with torch.no_grad():
        want = theirs(IDS).logits
    assert (want - resized(base)(IDS).logits)[..., :301].abs().max() > 0.1, "the additions show"
    torch.testing.assert_close(logits(tmp_path / "best"), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(tmp_path / "adapter"), logits(tmp_path / "best"), atol=0, rtol=0)


def test_peft_reads_the_head_that_gives_each_option_its_score(base, tmp_path):
    model = saved(base, tmp_path, lambda gpt: Classifier(gpt, 302, ["maybe", "no", "yes"]))
    theirs = peft.PeftModel.from_pretrained(
        resized(base, transformers.GPT2ForSequenceClassification, num_labels=3, pad_token_id=302), tmp_path / "adapter")
    with torch.no_grad():
        want = model.score(model.gpt.hidden(IDS)[:, -1])
        torch.testing.assert_close(theirs.eval()(IDS).logits, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [
    {"target_modules": ["c_attn"]}, {"r": 1, "lora_alpha": 3, "trainable_token_indices": {"wte": [301, 302]}},
    {"r": 7, "use_rslora": True, "trainable_token_indices": [302, 4, 301]}, {"modules_to_save": ["ln_f"]},
    {"target_modules": ["attn.c_proj", "c_fc"], "layers_to_transform": [1]}], ids=str)
def test_our_logits_of_an_adapter_by_peft_are_peft_s(base, tmp_path, settings):
    """One module or all, several ranks, whole tensors, new rows (beside which peft stores the whole embedding)."""
    folder, want = written_by_peft(base, tmp_path / "peft", **settings)
    torch.testing.assert_close(logits(folder), want, atol=1e-5, rtol=0)


def test_new_rows_continue_the_base_models(base, tmp_path):
    """Without the whole embedding, as peft stores them where the base model has the rows already."""
    folder, want = written_by_peft(base, tmp_path / "peft", trainable_token_indices={"wte": [301, 302]})
    path = folder / "adapter_model.safetensors"
    tensors = {name: w for name, w in load_file(path).items() if "base_layer" not in name}
    save_file(tensors, path)
    torch.testing.assert_close(logits(folder), want, atol=1e-5, rtol=0)
    change(folder, trainable_token_indices={"wte": [301, 303]})
    with pytest.raises(UserError, match="do not continue the base model's embedding, 301 rows"):
        logits(folder)


def test_an_adapter_to_a_llama_is_read(llama_tokenizer, tmp_path):
    config = transformers.LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    shutil.copytree(llama_tokenizer, tmp_path / "base", dirs_exist_ok=True)
    model.name_or_path = str(tmp_path / "base")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])).eval()
    randomize(model)
    model.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        torch.testing.assert_close(logits(tmp_path / "peft"), model(IDS).logits, atol=1e-5, rtol=0)


def test_a_run_leaves_an_adapter_that_answers_as_the_run_did(base, world, tmp_path):
    questions = str(world / "questions.jsonl")
    cfg = FinetuneQA(model=str(base), train=questions, dev=questions, test=questions, out=str(tmp_path), seeds=(0,),
                     epochs=1, learning_rate=1e-2, max_length=64, dtype="float32", lora_rank=2, save_adapter=True)
    finetune_qa.main(cfg)
    predictions = [json.loads(line) for line in open(tmp_path / "predictions.jsonl")]
    q = json.loads(open(questions).readline())
    scores, = finetune_qa.main(Ask(model=str(tmp_path / "adapter"), question=q["question"], options=tuple(q["options"]),
                                   dtype="float32"))
    assert scores == pytest.approx(predictions[0]["scores"], abs=1e-6)
    assert "medical advice" in (tmp_path / "adapter/README.md").read_text()
    assert not list((tmp_path / "adapter").glob("model*")) and not list((tmp_path / "model").glob("adapter*"))

    with pytest.raises(UserError, match="is an adapter; merge that one first"):
        finetune_qa.main(replace(cfg, model=str(tmp_path / "adapter"), out=str(tmp_path / "again")))
    finetune_qa.main(replace(cfg, save_adapter=False))
    assert not (tmp_path / "adapter").exists(), "it would not be that of OUT/model"


@pytest.mark.parametrize("changes, words", [
    ({"lora_rank": 0}, "saves what --lora-rank trains"), ({"untrained": True}, "with --untrained there is none")])
def test_an_adapter_of_nothing_or_to_nothing_is_refused(base, changes, words, capsys):
    cfg = FinetuneQA(model=str(base), dtype="float32", **{"lora_rank": 2, "save_adapter": True} | changes)
    assert words in refused(capsys, finetune_qa.main, cfg)


def test_an_adapter_to_another_family_is_refused_before_the_training():
    neo = GPTNeo(GPTNeoConfig(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2, attention_layers=("global",)))
    with pytest.raises(UserError, match="--save-adapter is for GPT-2's family, and neo is a GPTNeo"):
        choose_weights(SimpleNamespace(gpt=neo), FinetuneQA(model="neo", lora_rank=2, save_adapter=True), 0)


@pytest.fixture(scope="module")
def good(base, tmp_path_factory):
    return written_by_peft(base, tmp_path_factory.mktemp("peft"))[0]


@pytest.mark.parametrize("values, words", [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only plain LoRA"), ({"use_dora": True}, "use_dora is True"),
    ({"rank_pattern": {"c_fc": 2}}, "rank_pattern is"), ({"alpha_pattern": {"c_fc": 2}}, "alpha_pattern is"),
    ({"bias": "all"}, "bias is 'all'"), ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ({"a_newer_method": 1}, "a_newer_method is 1"), ({"r": 3}, "the addition to h.0.attn.c_attn.weight is"),
    ({"r": "4"}, "r is '4', lora_alpha 8; both must be numbers"), ({"target_modules": ".*"}, "only a list of names"),
    ({"target_modules": ["c_attn"]}, "has an addition to h.0.attn.c_proj.weight, against target_modules"),
    ({"target_modules": [*ALL, "ln_f"]}, "has no addition to ln_f.weight"),
    ({"trainable_token_indices": [301]}, "trainable_token_indices is [301], which adapter_model"),
    ({"trainable_token_indices": {"wte": [1], "lm_head": [2]}}, "only one list of ids"),
    ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
    ({"base_model_name_or_path": "/no/such"}, "base_model_name_or_path: '/no/such': no such folder")], ids=str)
def test_what_is_not_plain_lora_is_refused_with_its_file(good, tmp_path, values, words, capsys):
    folder = tmp_path / "bad"
    shutil.copytree(good, folder)
    change(folder, **values)
    assert f"error: {folder / 'adapter_config.json'}: " in (line := refused(capsys, logits, folder)) and words in line


def test_an_adapter_of_another_base_model_or_without_weights_is_refused(good, base, world, tmp_path, capsys):
    tiny_model(n_positions=64, n_layer=2).save_pretrained(tmp_path / "other")
    Tokenizer.load(world).save(tmp_path / "other")
    for other, words in ((tmp_path / "other", "an addition to h.2.attn.c_attn.weight"), (good, "is an adapter, too")):
        shutil.copytree(good, tmp_path / "bad", dirs_exist_ok=True)
        change(tmp_path / "bad", base_model_name_or_path=str(other))
        assert words in refused(capsys, logits, tmp_path / "bad")
    change(tmp_path / "bad", base_model_name_or_path=str(base))
    (tmp_path / "bad/adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in refused(capsys, logits, tmp_path / "bad")


def test_an_embedding_that_was_trained_apart_from_the_head_is_refused(base, tmp_path):
    """peft then leaves the head as it was; here they are one matrix."""
    folder, _ = written_by_peft(base, tmp_path / "peft", modules_to_save=["wte"])
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: w for name, w in tensors.items() if "lm_head" not in name}, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="lm_head.weight differs from wte.weight"):
        logits(folder)


def test_sample_continues_a_prompt_with_an_adapter(good, capsys):
    result = sample.main(sample.Sample(model=str(good), prompt="Aspirin", max_new_tokens=2, dtype="float32"))
    assert result["tokens"] == 2 and capsys.readouterr().out.startswith("Aspirin")
