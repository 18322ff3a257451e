"""The network is GPT-2 as transformers computes it, and its folder is everyone's."""
import fnmatch
import json
import math
import os
import struct

import pytest
import torch
import transformers
from conftest import tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from data import document_starts
from model import GPT, CrossEntropy, GPTConfig
from plumbing import huggingface
from plumbing.common import UserError
from sample import KVCache

IDS_BT = torch.randint(301, (2, 29), generator=torch.Generator().manual_seed(1))


def theirs(folder, **kwargs):
    return transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", **kwargs).eval()


def test_the_default_configuration_is_biomedlm():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 2_594_247_680
    assert round(GPTConfig().flops_per_token(1024) / 1e9, 3) == 16.550


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("shape", [{}, dict(n_embd=40, n_head=5, n_inner=70, n_layer=5, vocab_size=307)])
def test_logits_equal_transformers_in_both_directions(tmp_path, flag, shape):
    ours = tiny_model(scale_attn_by_inverse_layer_idx=flag, **shape)
    ours.save_pretrained(tmp_path / "ours")
    hf = theirs(tmp_path / "ours")
    torch.testing.assert_close(ours(IDS_BT), hf(IDS_BT).logits, atol=1e-5, rtol=0)
    hf.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(GPT.from_pretrained(tmp_path / "theirs")(IDS_BT), ours(IDS_BT), atol=0, rtol=0)


def test_the_layer_scale_is_not_lost():
    """A port that forgets the flag still loads the weights: the logits must differ, so that the test above means it."""
    with_scale, without = tiny_model(), tiny_model(scale_attn_by_inverse_layer_idx=False)
    assert (with_scale(IDS_BT) - without(IDS_BT)).abs().max() > 0.05


def test_a_folded_layer_scale_gives_the_same_logits_with_the_flag_off(tmp_path):
    ours = tiny_model()
    before = ours(IDS_BT)
    ours.save_pretrained(tmp_path, fold_layer_scale=True)
    assert json.loads((tmp_path / "config.json").read_text())["scale_attn_by_inverse_layer_idx"] is False
    torch.testing.assert_close(theirs(tmp_path)(IDS_BT).logits, before, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(IDS_BT), before, atol=0, rtol=0)       # saving does not change the model


def test_future_tokens_are_invisible():
    model, changed = tiny_model(), IDS_BT.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 301
    torch.testing.assert_close(model(changed)[:, :10], model(IDS_BT)[:, :10], atol=0, rtol=0)
    assert (model(changed)[:, 10:] - model(IDS_BT)[:, 10:]).abs().max() > 0.05


def test_the_loss_at_initialisation_is_ln_v():
    torch.manual_seed(0)
    loss = GPT(tiny_config())(IDS_BT, IDS_BT.roll(-1))
    assert abs(loss.item() - math.log(301)) < 0.05


def test_negative_targets_are_ignored():
    model, targets = tiny_model(), IDS_BT.roll(-1)
    masked = targets.clone()
    masked[0, 5:], masked[1] = -1, -100
    torch.testing.assert_close(model(IDS_BT, masked), model(IDS_BT[:1, :5], targets[:1, :5]))
    assert model(IDS_BT, torch.full_like(targets, -1)).item() == 0


@pytest.mark.parametrize("dtype, allowed", [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_the_loss_and_its_gradient_are_torchs_and_a_second_backward_pass_is_refused(dtype, allowed):
    torch.manual_seed(0)
    logits_NV, targets_N = torch.randn(7, 50).to(dtype), torch.tensor([3, -1, 49, 0, -1, 7, 7])
    logits_NV[0, 4] = 200                                     # so unlikely a target has probability 0 in fp32
    ours, theirs = logits_NV.clone().requires_grad_(), logits_NV.double().requires_grad_()
    copy_NV = ours * 1 if dtype == torch.float64 else (ours * 1).float()     # what is overwritten must not be a leaf
    loss = CrossEntropy.apply(copy_NV, targets_N)
    reference = torch.nn.functional.cross_entropy(theirs, targets_N, ignore_index=-1, reduction="sum")
    torch.testing.assert_close(loss.double(), reference, rtol=1e-6, atol=0)
    (3 * loss).backward(retain_graph=True), (3 * reference).backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=allowed, atol=allowed)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_training_step_makes_one_array_of_the_logits_size():
    model, size, found = tiny_model().train(), IDS_BT.numel() * 301, {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for a in result if isinstance(result, (list, tuple)) else [result]:
                if isinstance(a, torch.Tensor) and a.numel() == size:
                    found[a.untyped_storage().data_ptr()] = a          # kept, so that its address is not used again
            return result

    with Watch():
        model(IDS_BT, IDS_BT.roll(-1)).backward()
    assert len(found) == 1


def test_initial_weights_depend_on_the_seed_and_their_name_alone():
    small, deep = GPT(tiny_config()), GPT(tiny_config(n_layer=6))
    small.init_weights(7), deep.init_weights(7)
    torch.testing.assert_close(small.h[1].attn.c_attn.weight, deep.h[1].attn.c_attn.weight, atol=0, rtol=0)
    small.init_weights(8)
    assert (small.h[1].attn.c_attn.weight - deep.h[1].attn.c_attn.weight).abs().max() > 0.01


@pytest.mark.parametrize("pieces", [[29], [1] * 29, [10, 1, 1, 12, 5]])
def test_cached_equals_uncached(pieces):
    model = tiny_model()
    cache, parts = KVCache(model.cfg, 2, 32, model.wte.weight), IDS_BT.split(pieces, dim=1)
    cached = torch.cat([model(part, cache=cache) for part in parts], dim=1)
    torch.testing.assert_close(cached, model(IDS_BT), atol=1e-5, rtol=0)


def test_a_document_does_not_see_the_one_before_it_when_they_are_kept_apart():
    model, ids_BT = tiny_model(), IDS_BT.clamp(max=298).clone()
    ids_BT[0, 9] = 300                                       # row 0: ten tokens, then another document; row 1: one
    apart = model(ids_BT, doc_start_BT=document_starts(ids_BT, eos_id=300))
    torch.testing.assert_close(apart[0, :10], model(ids_BT)[0, :10], atol=1e-5, rtol=0)
    torch.testing.assert_close(apart[1], model(ids_BT)[1], atol=1e-5, rtol=0)
    changed = ids_BT.clone()
    changed[0, :9] = 299
    torch.testing.assert_close(model(changed, doc_start_BT=document_starts(changed, 300))[0, 10:], apart[0, 10:])
    assert (model(ids_BT)[0, 10:] - apart[0, 10:]).abs().max() > 0.05


def test_dropout_acts_in_training_only():
    model = tiny_model(attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    torch.testing.assert_close(model(IDS_BT), model(IDS_BT), atol=0, rtol=0)
    model.train()
    assert (model(IDS_BT) - model(IDS_BT)).abs().max() > 0.1


def test_old_releases_load_with_masks_head_and_no_prefix(tmp_path):
    """BioMedLM's .bin holds attn.bias, masked_bias and lm_head; GPT-2's has no `transformer.` before its names."""
    ours = tiny_model()
    ours.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    state = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    for layer in range(3):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.uint8)
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    state["lm_head.weight"] = state["wte.weight"].clone()
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(GPT.from_pretrained(tmp_path)(IDS_BT), ours(IDS_BT), atol=0, rtol=0)
    state["lm_head.weight"] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="ties them"):
        GPT.from_pretrained(tmp_path)


def test_weights_in_several_files_load_and_replace_an_older_save(tmp_path, monkeypatch):
    ours = tiny_model()
    ours.save_pretrained(tmp_path)
    monkeypatch.setattr(huggingface, "PART_BYTES", 60_000)
    ours.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(GPT.from_pretrained(tmp_path)(IDS_BT), ours(IDS_BT), atol=0, rtol=0)
    torch.testing.assert_close(theirs(tmp_path)(IDS_BT).logits, ours(IDS_BT), atol=1e-5, rtol=0)


def test_rows_added_by_fine_tuning_load(tmp_path):
    ours = tiny_model()
    assert ours.add_tokens(3) == 301
    before = ours(IDS_BT)
    ours.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"vocab_size": 301}      # a config left as it was
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.cfg.vocab_size == 304
    torch.testing.assert_close(loaded(IDS_BT), before, atol=0, rtol=0)


def test_a_silent_config_means_gpt2_small_not_biomedlm(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    cfg = GPTConfig.from_json(tmp_path / "config.json")
    assert (cfg.vocab_size, cfg.n_embd, cfg.n_layer, cfg.scale_attn_by_inverse_layer_idx) == (50257, 768, 12, False)


def test_the_requested_dtype_is_the_loaded_dtype(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path, torch.bfloat16).wte.weight.dtype == torch.bfloat16


def broken(folder, what):
    """Break a good folder in one way; returns the words that the error must contain."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    if what == "no folder":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        return "no such folder"
    if what == "no config":
        config.unlink()
        return "config.json: no such file"
    if what == "config is no JSON":
        config.write_text("{")
        return "not JSON"
    if what == "another architecture":
        config.write_text('{"model_type": "llama"}')
        return "model_type is 'llama'"
    if what == "a value of the wrong type":
        config.write_text('{"model_type": "gpt2", "n_layer": "12"}')
        return "n_layer is '12'"
    if what == "no weights":
        weights.unlink()
        return "no model.safetensors"
    if what == "git-lfs pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n")
        return "git lfs pull"
    if what == "truncated":
        os.truncate(weights, weights.stat().st_size // 2)
        return "damaged"
    if what == "a pickle that runs code":
        weights.unlink()
        torch.save({"x": struct.Struct}, folder / "pytorch_model.bin")
        return "damaged, or more than tensors"
    state = load_file(weights)
    if what == "a missing tensor":
        del state["transformer.h.1.ln_1.weight"]
    elif what == "an unknown tensor":
        state["transformer.extra.weight"] = torch.ones(1)
    elif what == "a wrong shape":
        state["transformer.wpe.weight"] = torch.ones(5, 48)
    elif what == "an index that reaches outside":
        weights.unlink()
        (folder / huggingface.INDEX).write_text(json.dumps({"weight_map": {"wte.weight": "../secret.safetensors"}}))
        return "not a plain file name"
    save_file(state, weights)
    return {"a missing tensor": "lack h.1.ln_1.weight", "an unknown tensor": "extra.weight",
            "a wrong shape": r"wpe.weight is \(5, 48\)"}[what]


@pytest.mark.parametrize("what", [
    "no folder", "no config", "config is no JSON", "another architecture", "a value of the wrong type", "no weights",
    "git-lfs pointer", "truncated", "a pickle that runs code", "a missing tensor", "an unknown tensor", "a wrong shape",
    "an index that reaches outside"])
def test_a_broken_folder_is_named_with_what_is_wrong(tmp_path, what):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    with pytest.raises(UserError, match=broken(folder, what)) as error:
        GPT.from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_more_tokens_than_positions_are_an_error():
    with pytest.raises(UserError, match="33 tokens, but this model has 32 positions"):
        tiny_model()(torch.zeros(1, 33, dtype=torch.int64))


@pytest.mark.parametrize("on_the_hub, fetched", [
    (["config.json", "vocab.json", "model.safetensors", "pytorch_model.bin", "rust_model.ot", "README.md"],
     ["config.json", "model.safetensors", "vocab.json"]),
    (["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json", "pytorch_model-00001.bin"],
     ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]),
    (["config.json", "merges.txt", "pytorch_model.bin", "flax_model.msgpack"],
     ["config.json", "merges.txt", "pytorch_model.bin"])])
def test_weights_are_fetched_from_the_hub_in_one_form(monkeypatch, tmp_path, on_the_hub, fetched):
    """A stand-in for the hub: gigabytes that nobody reads would be fetched without a word."""
    def snapshot_download(name, allow_patterns):
        for file in on_the_hub:
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert huggingface.find_folder("somebody/model") == tmp_path
    assert sorted(path.name for path in tmp_path.iterdir()) == fetched


def test_ends_of_a_text_are_read_as_transformers_reads_them(tmp_path):
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert huggingface.end_ids(tmp_path) == [7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert huggingface.end_ids(tmp_path) == [5, 6]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(UserError, match="eos_token_id is 'x'"):
        huggingface.end_ids(tmp_path)


@pytest.mark.parametrize("values, message", [
    ("[1]", "no JSON object"), ("null", "no JSON object"), ('{"n_layer": 1000000000}', "n_layer is 1000000000"),
    ('{"n_embd": true}', "n_embd is True"), ('{"n_inner": -1}', "mlp_width is -1"),
    ('{"resid_pdrop": 2}', "pdrop is 2"),
    ('{"layer_norm_epsilon": "x"}', "layer_norm_epsilon is 'x'")])
def test_an_odd_config_is_refused_before_anything_is_built(tmp_path, values, message):
    (tmp_path / "config.json").write_text(values)
    with pytest.raises(UserError, match=message):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize("what", ["empty", "cut", "a list", "a table of no tensors"])
def test_a_bad_pytorch_model_bin_is_named(tmp_path, what):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    weights = load_file(tmp_path / "model.safetensors")
    torch.save({"a list": [1, 2], "a table of no tensors": {"x": 1}}.get(what, weights), path)
    (tmp_path / "model.safetensors").unlink()
    if what in ("empty", "cut"):
        os.truncate(path, 0 if what == "empty" else 5000)
    with pytest.raises(UserError, match="pytorch_model.bin: (damaged|holds no table)") as error:
        GPT.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("index", ["[1]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "null"])
def test_an_odd_index_of_weight_files_is_named(tmp_path, index):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / huggingface.INDEX).write_text(index)
    with pytest.raises(UserError, match=huggingface.INDEX):
        GPT.from_pretrained(tmp_path)
