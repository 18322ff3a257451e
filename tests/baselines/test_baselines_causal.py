"""GPT-Neo and Llama through the same scripts: transformers' numbers, and everything that a GPT can."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from conftest import SENTENCES, needs_new_torch, tiny_model
from safetensors.torch import load_file, save_file
from torch.testing._internal.distributed.fake_pg import FakeStore

import finetune_answers
import finetune_qa
import train
from baselines import load_model, load_tokenizer, shape_of
from baselines.gpt_neo import GPTNeo, GPTNeoConfig
from baselines.llama import Llama, LlamaConfig
from data import Corpus, document_starts
from finetune_answers import FinetuneAnswers
from finetune_qa import FinetuneQA
from launch.plan import step_memory
from plumbing.common import UserError
from prepare import pubmed
from questions.heads import Likelihood
from questions.packed import Tree
from questions.zero_shot import ZeroShot
from sample import KVCache, Sample, generate, main, stream
from sampling.fast_linear import lay_out, weight_bytes
from training.parallel import World

SIZE = dict(vocab_size=301, n_positions=32, n_embd=60, n_layer=3, bos_token_id=300, eos_token_id=300)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8)
LAYERS = ("global", "local", "local")
CONFIGS = {
    "neo": GPTNeoConfig(**SIZE, n_head=3, window_size=5, attention_layers=LAYERS),
    "neo, wide": GPTNeoConfig(**SIZE, n_head=5, n_inner=70, window_size=40, attention_layers=LAYERS[::-1]),
    "llama": LlamaConfig(**SIZE, n_head=3, n_inner=70),
    "llama, grouped": LlamaConfig(**SIZE, n_head=6, n_kv_head=2, n_inner=96, tied=True, rope_theta=5e5,
                                  rope_scaling=LLAMA3),
    "llama, odd": LlamaConfig(**SIZE, n_head=5, n_kv_head=1, n_inner=96, head_dim=14, attention_bias=True,
                              mlp_bias=True),
}
ALL, BOTH = pytest.mark.parametrize("name", CONFIGS), pytest.mark.parametrize("name", ["neo", "llama"])
IDS_BT = torch.randint(300, (2, 29), generator=torch.Generator().manual_seed(1))


def random_model(name, **changes):
    """Weights large enough that every part shows in the logits."""
    cfg = replace(CONFIGS[name], **changes)
    model = (Llama if name.startswith("llama") else GPTNeo)(cfg).eval()
    generator = torch.Generator().manual_seed(0)
    for part, p in model.named_parameters():
        gain = "ln_" in part and part.endswith("weight")
        torch.nn.init.normal_(p, 1.0 if gain else 0.0, 0.1, generator=generator)
    return model


def theirs(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


# ---- The network ----

@ALL
def test_hidden_states_and_logits_equal_transformers_in_both_directions(tmp_path, name):
    ours = random_model(name)
    ours.save_pretrained(tmp_path / "ours")
    hf = theirs(tmp_path / "ours")
    torch.testing.assert_close(ours(IDS_BT), hf(IDS_BT).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.hidden(IDS_BT), hf.base_model(IDS_BT).last_hidden_state, atol=1e-5, rtol=0)
    assert ours(IDS_BT).std() > 0.5
    hf.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    torch.testing.assert_close(again(IDS_BT), ours(IDS_BT), atol=0, rtol=0)
    assert type(again) is type(ours) and again.cfg.to_json() == ours.cfg.to_json()


def test_what_makes_each_family_its_own_shows_in_the_logits():
    for name, change in (("neo", dict(window_size=6)), ("neo", dict(attention_layers=("global",) * 3)),
                         ("llama", dict(rope_theta=1e3)), ("llama, grouped", dict(rope_scaling=None))):
        assert (random_model(name)(IDS_BT) - random_model(name, **change)(IDS_BT)).abs().max() > 0.05, (name, change)


@pytest.mark.parametrize("llama3", [False, True])
def test_the_angles_are_read_from_every_form_of_config(tmp_path, llama3):
    name, scaling = ("llama, grouped", LLAMA3) if llama3 else ("llama", {})
    ours = random_model(name, rope_theta=777.0)
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    oldest = {key.replace("rope_type", "type"): value for key, value in scaling.items()}
    for form in ({"rope_parameters": {"rope_type": "default"} | scaling | {"rope_theta": 777.0}},       # transformers 5
                 *({"rope_theta": 777.0, "rope_scaling": old or None} for old in (scaling, oldest))):
        rest = {key: value for key, value in config.items() if not key.startswith("rope")}
        (tmp_path / "config.json").write_text(json.dumps(rest | form))
        torch.testing.assert_close(load_model(tmp_path)(IDS_BT), ours(IDS_BT), atol=0, rtol=0)


@ALL
def test_cached_equals_uncached(name):
    model = random_model(name)
    for pieces in ([29], [1] * 29, [10, 1, 1, 12, 5]):
        cache = KVCache(model.cfg, 2, 32, model.ln_f.weight)
        cached = torch.cat([model(part, cache=cache) for part in IDS_BT.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(cached, model(IDS_BT), atol=1e-5, rtol=0)


@ALL
def test_packed_trees_are_separate_rows(name):
    """Positions restart behind each prefix: they turn RoPE's angles, and tell GPT-Neo's local layers what is near."""
    model = Likelihood(random_model(name), 300)
    trees = [Tree([5, 6, 7, 8, 9, 10], [[7], [8, 9, 10, 4, 4, 4, 4], [11, 2]]), Tree([1, 2, 3, 4], [[12, 299], [13]])]
    scores_QO = model(trees)
    for q, tree in enumerate(trees):
        for o, branch in enumerate(tree.branches):
            log_p_TV = model.gpt(torch.tensor([tree.prefix + branch]))[0].log_softmax(-1)
            want = sum(log_p_TV[len(tree.prefix) - 1 + i, token] for i, token in enumerate(branch))
            torch.testing.assert_close(scores_QO[q, o], want, atol=2e-5, rtol=0)


@BOTH
def test_documents_can_be_kept_apart_and_recomputing_changes_no_gradient(name):
    model, ids_BT, gradients = random_model(name).train(), IDS_BT.clone(), []
    ids_BT[0, 9] = 300
    apart = model(ids_BT, doc_start_BT=document_starts(ids_BT, 300))
    torch.testing.assert_close(apart[0, :10], model(ids_BT)[0, :10], atol=1e-5, rtol=0)
    if name == "llama":                          # only distances count: a document is the same wherever it stands
        torch.testing.assert_close(apart[0, 10:], model(ids_BT[:1, 10:])[0], atol=1e-5, rtol=0)
    for recompute in (False, True):
        for block in model.h:
            block.recompute = recompute
        gradients.append(torch.autograd.grad(model(IDS_BT, IDS_BT.roll(-1)), list(model.parameters())))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@ALL
def test_new_tokens_leave_the_others_logits_alone_and_travel_in_the_folder(tmp_path, name):
    model = random_model(name)
    before = model(IDS_BT)
    assert model.add_tokens(2) == 301 and model.cfg.vocab_size == 303
    model.save_pretrained(tmp_path)
    for loaded in (model, load_model(tmp_path)):
        torch.testing.assert_close(loaded(IDS_BT)[..., :301], before, atol=1e-6, rtol=0)
    torch.testing.assert_close(theirs(tmp_path)(IDS_BT).logits, model(IDS_BT), atol=1e-5, rtol=0)


@BOTH
def test_initial_weights_are_of_the_seed_alone_and_know_nothing(name):
    model = random_model(name)
    model.init_weights(3)
    weights = dict(model.initial_weights(3))
    assert all(torch.equal(p, weights[part]) for part, p in model.named_parameters())
    assert abs(model(IDS_BT, IDS_BT.roll(-1)).item() - np.log(301)) < 0.05
    with pytest.raises(UserError, match="compute GPT-2, not"):
        model.use_kernels("triton", torch.device("cpu"))
    assert model.use_kernels("auto", torch.device("cuda")) == "torch's operators"


@BOTH
def test_old_releases_load_with_what_they_held_besides(tmp_path, name):
    ours = random_model(name)
    ours.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    if name == "neo":
        state["transformer.h.1.attn.attention.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        state["transformer.h.1.attn.attention.masked_bias"] = torch.tensor(-1e9)
        state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    else:
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(10)
    save_file(state, tmp_path / "model.safetensors")
    torch.testing.assert_close(load_model(tmp_path)(IDS_BT), ours(IDS_BT), atol=0, rtol=0)


@pytest.mark.parametrize("name, changes, words", [
    ("neo", {"model_type": "t5"}, "model_type is 't5'; this code computes gpt2, gpt_neo, llama"),
    ("neo", {"activation_function": "relu"}, "activation_function is 'relu'"),
    ("neo", {"attention_types": [[["global", "strided"], 1], [["local"], 1]]}, "each is global or local"),
    ("neo", {"attention_types": [["global"], 3]}, "no list of"), ("neo", {"num_layers": 2}, "3 layers.* for 2"),
    ("neo", {"window_size": 0}, "window_size is 0"), ("neo", {"num_heads": 7}, "not a multiple of n_head"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE of type 'linear'"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
    ("llama", {"num_key_value_heads": 2}, "cannot share 2 keys"), ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"intermediate_size": 71}, r"gate_proj.weight is \(70, 60\), by config.json it is \(71, 60\)"),
    ("llama", {"num_hidden_layers": 4}, "lack h.3."), ("llama", {"num_hidden_layers": 2}, "hold h.2.")])
def test_a_folder_that_would_be_computed_wrongly_is_named(tmp_path, name, changes, words):
    random_model(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=words) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_config_without_a_family_is_gpt_2s(tmp_path):
    ours = tiny_model()
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(load_model(tmp_path)(IDS_BT), ours(IDS_BT), atol=0, rtol=0)


# ---- The scripts ----

@pytest.fixture(scope="module")
def folders(world, llama_tokenizer, tmp_path_factory):
    """name -> a model's folder with its tokenizer; "data NAME" -> shards written with it."""
    root, found = tmp_path_factory.mktemp("models"), {"data gpt2": world, "data neo": world}
    size = len(load_tokenizer(llama_tokenizer))
    made = {"neo": random_model("neo", n_positions=96), "gpt2": tiny_model(n_positions=96),
            "llama": random_model("llama", n_positions=96, vocab_size=size, bos_token_id=1, eos_token_id=2)}
    for name, model in made.items():
        found[name] = root / name
        model.save_pretrained(found[name])
        load_tokenizer(llama_tokenizer if name == "llama" else world).save(found[name])
    texts = [" ".join(np.random.default_rng(i).permutation(SENTENCES)) for i in range(60)]
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found["data llama"] = root / "data"
    pubmed.main(pubmed.Prepare((root / "texts.jsonl",), found["llama"], root / "data", val_fraction=0.2, processes=1))
    return found


def test_shards_of_another_tokenizer_hold_each_text_between_its_signs(folders):
    tok, corpus = load_tokenizer(folders["llama"]), Corpus(folders["data llama"], "train", 32)
    tokens = corpus.read(0, corpus.tokens)
    meta = json.loads((folders["data llama"] / "meta.json").read_text())
    assert meta["vocab_size"] == len(tok) and meta["eos_id"] == 2 and meta["train"]["tokens"] == len(tokens)
    texts = np.split(tokens, np.flatnonzero(tokens == 2) + 1)[:-1]
    assert len(texts) == meta["train"]["documents"] and all(text[0] == 1 for text in texts)
    assert all(sentence in tok.decode(text[1:-1]) for text in texts for sentence in SENTENCES)


@BOTH
@pytest.mark.parametrize("batch", [1, 8])
def test_greedy_tokens_equal_transformers(folders, name, batch):
    prompts = torch.randint(3, 300, (batch, 9), generator=torch.Generator().manual_seed(3))
    hf = theirs(folders[name]).generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=64,
                                        do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = [[] for _ in range(batch)]
    for column in stream(load_model(folders[name]), prompts.tolist(), 64):
        for row, token in column:
            ours[row].append(token)
    assert ours == hf[:, 9:].tolist() and len(ours[0]) == 64


@BOTH
@pytest.mark.parametrize("dtype, layout, bound", [(torch.float32, "plain", 1e-5), (torch.bfloat16, "widened", 4e-2),
                                                  (torch.bfloat16, "widened_int8", 6e-2)])
def test_a_model_in_a_layout_gives_nearly_its_logits(name, dtype, layout, bound):
    reference, model = random_model(name)(IDS_BT), random_model(name).to(dtype)
    lay_out(model, layout)
    with torch.inference_mode():
        assert (model.logits(model.hidden(IDS_BT)) - reference).norm() / reference.norm() < bound
        assert len(generate(model, [1, 2, 3], 5, num_samples=2)[1]) == 5
    looked_up = ("wpe.weight",) if name == "neo" else ("wte.weight",)          # rows, not products
    matrices = [p for part, p in random_model(name).named_parameters() if p.dim() == 2 and part not in looked_up]
    assert weight_bytes(model) == sum(p.numel() for p in matrices) * (1 if layout == "widened_int8" else dtype.itemsize)


@BOTH
def test_sample_continues_and_scores(folders, name):
    for dtype in ("float32", "int8"):
        found = main(Sample(str(folders[name]), "Insulin", max_new_tokens=5, num_samples=3, dtype=dtype))
        assert len(found["samples"]) == 3
    scored = main(Sample(str(folders[name]), "Insulin lowers", score=True, dtype="float32"))
    assert "".join(token for token, _ in scored["log_probabilities"]).strip() == "Insulin lowers"


def settings(folders, name, tmp_path, **changes):
    return train.Train(**dict(
        data=str(folders[f"data {name}"]), out=str(tmp_path / "out"), init_from=str(folders[name]), window=32, steps=4,
        batch_size=4, micro_batch_size=4, learning_rate=1e-3, final_learning_rate=1e-4, warmup_steps=2, dtype="float32",
        compile=False, eval_every=4, eval_windows=8, checkpoint_every=2) | changes)


@pytest.mark.parametrize("name", ["gpt2", "neo", "llama"])
def test_pretraining_goes_on_from_a_folder_of_any_family(folders, tmp_path, name):
    epochs = 3.5 * 4 / Corpus(folders[f"data {name}"], "train", 32).n_windows           # steps are whole: 4
    cfg = settings(folders, name, tmp_path, grad_clip=1e9, steps=0, epochs=epochs)
    base = load_model(folders[name]).train()
    base.h.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
    first = base(*Corpus(cfg.data, "train", 32, 0).batch(0, 4)).item()
    losses = train.main(cfg)
    assert losses[0] == pytest.approx(first, abs=1e-5) and losses[-1] < losses[0] and len(losses) == 4
    trained = load_model(tmp_path / "out/model")
    assert type(trained) is type(base) and trained.cfg == base.cfg
    torch.testing.assert_close(theirs(tmp_path / "out/model")(IDS_BT).logits, trained(IDS_BT), atol=2e-5, rtol=0)
    assert len(load_tokenizer(tmp_path / "out/model")) == len(load_tokenizer(folders[name]))
    if name == "llama":
        (tmp_path / "out/checkpoints/00000004/.metadata").unlink()
        assert train.main(cfg) == losses[2:], "resumed after two steps"


@pytest.mark.parametrize("changes, words", [
    ({"window": 97}, "--window 97 is longer than the model's 96"), ({"steps": 0}, "--steps is 0"),
    ({"kernels": "triton"}, "compute GPT-2, not Llama")])
def test_settings_that_cannot_work_are_named(folders, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        train.main(settings(folders, "llama", tmp_path, **changes))


def test_shards_of_another_vocabulary_are_noticed(folders, tmp_path):
    with pytest.raises(UserError, match="301 tokens, and 300 ends a text; .* has 378, and 2 ends one"):
        train.main(settings(folders, "llama", tmp_path, data=str(folders["data neo"])))


@needs_new_torch
def test_the_preset_is_what_is_published_of_biomedgpt_and_its_plan_is_llama_2s():
    cfg = train.PRESETS["biomedgpt"]
    assert (cfg.epochs, cfg.batch_size, cfg.length, cfg.learning_rate) == (5, 192, 2048, 2e-5)
    network, shape = shape_of(cfg.init_from)
    with torch.device("meta"):
        assert sum(p.numel() for p in network(shape).parameters()) == 6_738_415_616
    tiny = replace(CONFIGS["llama"], n_embd=960, n_layer=1, vocab_size=32000)
    peak, _ = step_memory(replace(cfg, model=tiny, window=32, parallel="fsdp"), 64, Llama)
    assert 0.01 < peak < 0.5


def test_a_process_of_three_takes_its_slice_of_the_folders_weights(folders, tmp_path):
    cfg, whole = settings(folders, "llama", tmp_path, parallel="fsdp"), load_model(folders["llama"]).state_dict()
    dist.init_process_group("fake", rank=1, world_size=3, store=FakeStore())        # the others only pretend
    try:
        one = World(1, 3, torch.device("cpu"))
        network, cfg, tensors = train.opened(cfg, one)
        sliced = dict(train.build(cfg, one, network, tensors).named_parameters())
    finally:
        dist.destroy_process_group()
    for part, value in whole.items():
        assert torch.equal(sliced[part].to_local(), value.chunk(3)[1]), part


@pytest.mark.parametrize("name, changes", [
    ("neo", {"head": "option", "lora_rank": 2}), ("llama", {"head": "label", "lora_rank": 2}),
    ("llama", {"head": "option", "moments": "8bit", "recompute_every": 2})])
def test_multiple_choice_is_learned_by_the_same_script(folders, world, tmp_path, name, changes):
    lines = [json.dumps({"id": str(i), "question": f"Is it {i}?", "options": ["yes", "no"], "answer": i % 2})
             for i in range(8)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    cfg = FinetuneQA(model=str(folders[name]), train=str(tmp_path / "q.jsonl"), dev=str(tmp_path / "q.jsonl"),
                     test=str(tmp_path / "q.jsonl"), out=str(tmp_path / "out"), seeds=(0,), epochs=6, batch_size=4,
                     learning_rate=2e-3, warmup_ratio=0.1, max_length=96, dtype="float32", checkpoint_every=1000,
                     **changes)
    report = finetune_qa.main(cfg)
    log = [json.loads(line) for line in open(tmp_path / "out/log.jsonl")]
    assert report["n"] == 8 and log[-1]["loss"] < log[0]["loss"]
    if changes["head"] == "label":
        likely = finetune_qa.main(ZeroShot(cfg.model, cfg.test, str(tmp_path / "z"), max_length=96, dtype="float32"))
        assert likely["raw"]["n"] == 8


@pytest.mark.parametrize("name, changes", [("neo", {"moments": "8bit"}), ("llama", {"lora_rank": 8}), ("llama", {})])
def test_answers_are_learned_and_the_folder_is_of_the_family(folders, tmp_path, name, changes):
    """Llama's untied head learns its new row with the embedding's; LoRA's additions are merged into both."""
    items = [{"prompt": f"What is {c}?", "answer": f"{c} is it.", "split": split} for c in ("scurvy", "syphilis")
             for split in ("train", "dev", "test")]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    cfg = FinetuneAnswers(model=str(folders[name]), data=str(tmp_path / "items.jsonl"), out=str(tmp_path / "out"),
                          epochs=12, batch_size=2, learning_rate=2e-2, warmup_ratio=0.1, max_source=40, max_target=30,
                          max_new_tokens=4, select_every=30, checkpoint_every=100, dtype="float32", **changes)
    report = finetune_answers.main(cfg)
    log = [json.loads(line) for line in open(tmp_path / "out/log.jsonl")]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"] and report["n"] == 2
    model, tok = load_model(tmp_path / "out/model"), load_tokenizer(tmp_path / "out/model")
    assert model.cfg.vocab_size == len(tok) and tok.specials["<|startoftext|>"] == len(tok) - 1
    torch.testing.assert_close(theirs(tmp_path / "out/model")(IDS_BT).logits, model(IDS_BT), atol=5e-5, rtol=1e-4)
