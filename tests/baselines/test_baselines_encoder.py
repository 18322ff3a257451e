"""baselines/encoder.py computes what transformers computes; questions in its rows score as separate rows do."""
import json
from dataclasses import replace

import numpy as np
import pytest
import tokenizers
import torch
import torch.distributed as dist
import transformers
from conftest import SENTENCES, NoFloat64
from safetensors.torch import load_file, save_file
from tokenizers.processors import BertProcessing

import finetune_qa
from baselines import load, load_tokenizer, pretrain_encoder
from baselines.encoder import NOT_READ, Encoder, EncoderConfig
from baselines.pretrain_encoder import PretrainEncoder
from baselines.subwords import Subwords
from finetune_qa import FinetuneQA
from plumbing.common import UserError
from questions.ask import Ask
from questions.format import Question
from questions.heads import EncoderReader, read
from questions.packed import Tree
from tokenizer import Tokenizer
from training.parallel import World, device_mesh, shard_model

ALONE = World(0, 1, torch.device("cpu"))

FAMILIES = {"bert": ("Bert", {}), "electra": ("Electra", {"embedding_size": 10}),
            "electra as wide": ("Electra", {"embedding_size": 33, "hidden_act": "gelu_new"}),
            "albert": ("Albert", {"embedding_size": 7}),
            "albert of two groups": ("Albert", {"embedding_size": 33, "num_hidden_groups": 2, "hidden_act": "gelu"})}


def theirs(name, kind, **changes):
    """A random transformers model of an odd shape, whose biases and gains are large enough to show."""
    family, own = FAMILIES[name]
    cfg = getattr(transformers, f"{family}Config")(**dict(
        vocab_size=61, hidden_size=33, num_hidden_layers=5, num_attention_heads=3, intermediate_size=29,
        max_position_embeddings=19, type_vocab_size=3) | own | changes)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{kind}")(cfg).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return model


def rows():
    """Three padded rows of 19 with types: (ids, types, mask)."""
    generator = torch.Generator().manual_seed(1)
    ids_BT, type_BT = (torch.randint(n, (3, 19), generator=generator) for n in (61, 3))
    return ids_BT, type_BT, torch.arange(19) < torch.tensor([[19], [11], [2]])


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_logits_are_transformers_in_both_directions(name, tmp_path):
    model, (ids_BT, type_BT, real_BT) = theirs(name, "ForMaskedLM"), rows()
    model.save_pretrained(tmp_path / "theirs")
    ours = Encoder.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = type(model).from_pretrained(tmp_path / "ours").eval()
    x_BTD = ours.hidden(ids_BT, type_BT, real_BT[:, None])
    for them in (model, again):
        with torch.no_grad():
            want = them(ids_BT, real_BT.long(), type_BT, output_hidden_states=True)
        torch.testing.assert_close(x_BTD[real_BT], want.hidden_states[-1][real_BT], atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.logits(x_BTD)[real_BT], want.logits[real_BT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name, kind", [
    ("bert", "Model"), ("bert", "ForPreTraining"), ("bert", "ForQuestionAnswering"), ("bert", "ForMultipleChoice"),
    ("electra", "ForPreTraining"), ("electra", "ForSequenceClassification"), ("electra", "ForMultipleChoice"),
    ("albert", "ForPreTraining"), ("albert", "Model"), ("albert", "ForTokenClassification")])
def test_a_checkpoint_with_any_head_gives_its_body(name, kind, tmp_path):
    model, (ids_BT, type_BT, real_BT) = theirs(name, kind), rows()
    model.save_pretrained(tmp_path)
    body = getattr(model, FAMILIES[name][0].lower(), model)
    with torch.no_grad():
        want_BTD = body(ids_BT, real_BT.long(), type_BT).last_hidden_state
    found_BTD = Encoder.from_pretrained(tmp_path).hidden(ids_BT, type_BT, real_BT[:, None])
    torch.testing.assert_close(found_BTD[real_BT], want_BTD[real_BT], atol=1e-5, rtol=0)


def test_a_first_release_with_gamma_and_beta_is_read(tmp_path):
    model, (ids_BT, type_BT, _) = theirs("bert", "ForPreTraining"), rows()
    model.save_pretrained(tmp_path)
    tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
               for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    found_BTD = Encoder.from_pretrained(tmp_path).hidden(ids_BT, type_BT)
    torch.testing.assert_close(found_BTD, model.bert(ids_BT, None, type_BT).last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.parametrize("change, words", [
    ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'"), ({"is_decoder": True}, "is_decoder"),
    ({"model_type": "roberta"}, "model_type is 'roberta'"), ({"inner_group_num": 2}, "inner_group_num"),
    ({"embedding_size": 11}, "embedding_size is 11 in a BERT"), ({"num_attention_heads": 5}, "not a multiple"),
    ({"intermediate_size": 30}, "by config.json it is")])
def test_what_it_cannot_compute_is_refused_by_name(change, words, tmp_path):
    theirs("bert", "Model").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        Encoder.from_pretrained(tmp_path)


def test_a_tensor_that_nobody_knows_is_named_and_a_missing_head_too(tmp_path):
    theirs("electra", "ForPreTraining").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no head for masked tokens"):
        Encoder.from_pretrained(tmp_path)(torch.tensor([[1]]))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"electra.encoder.layer.0.adapter.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="encoder.layer.0.adapter.weight"):
        Encoder.from_pretrained(tmp_path)
    assert not any(name.startswith("encoder") for name in NOT_READ)


def test_new_tokens_leave_the_others_logits_alone_and_travel_in_the_folder(tmp_path):
    model = Encoder(EncoderConfig("electra", 61, 19, 32, 2, 2, 40, embd_width=8, masked_head=True)).eval()
    before, ids = model(torch.tensor([[1, 2, 3]])), model.add_tokens(2)
    assert ids == 61 and model.cfg.vocab_size == 63
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]]))[..., :61], before)
    model.save_pretrained(tmp_path)
    assert Encoder.from_pretrained(tmp_path).cfg == model.cfg


def test_albert_shares_one_block_and_recomputing_changes_no_gradient():
    cfg, gradients = EncoderConfig("albert", 61, 19, 32, 3, 2, 40, embd_width=8, resid_pdrop=0, attn_pdrop=0), []
    for recompute in (False, True):
        model = Encoder(cfg)
        model.init_weights(0)
        model.h[0].recompute = recompute
        model.hidden(torch.tensor([[1, 2, 3]])).square().mean().backward()
        gradients.append(model.h[0].attn.query.weight.grad)
    assert len(model.h) == 1
    torch.testing.assert_close(*gradients)


# ---- Questions ----

@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """A tiny encoder of each family beside a tokenizer of each kind: WordPiece's, and ours with an encoder's tokens."""
    made, names = {}, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for kind, family in (("wordpiece", "bert"), ("ours", "electra"), ("ours", "albert")):
        made[family] = folder = tmp_path_factory.mktemp(family)
        if kind == "ours":
            tok = Tokenizer.load(world)
            for name in names:
                tok.add_special(name)
        else:
            library = tokenizers.BertWordPieceTokenizer()
            library.train_from_iterator(SENTENCES * 5, vocab_size=120, special_tokens=names, show_progress=False)
            library._tokenizer.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
            tok = Subwords(tokenizers.Tokenizer.from_str(library.to_str()))
        tok.save(folder)
        model = Encoder(EncoderConfig(family, len(tok), 64, 32, 2, 2, 40, embd_width=32, resid_pdrop=0, attn_pdrop=0))
        model.init_weights(0)
        model.save_pretrained(folder)
    return made


QUESTIONS = [Question("1", "Aspirin.", "What lowers glucose?", ["insulin", "vitamin C, and more"], 0),
             Question("2", "", "Which?", ["yes", "no", "scurvy"], 1)]


def cfg_of(folder, world, out, **changes):
    questions = str(world / "questions.jsonl")
    return FinetuneQA(**dict(model=str(folder), train=questions, dev=questions, test=questions, out=str(out),
                             seeds=(0,), epochs=2, batch_size=5, micro_batch_size=2, learning_rate=1e-3,
                             warmup_ratio=0.1, max_length=64, dtype="float32") | changes)


@pytest.mark.parametrize("family", ["bert", "electra", "albert"])
def test_an_options_score_is_read_off_cls_of_a_row_of_its_own_as_in_transformers(family, folders, world, tmp_path):
    """As BertForMultipleChoice lays it out, by its own tokenizer where that is WordPiece, without its pooler."""
    model, _, _, trees, _ = finetune_qa.build(cfg_of(folders[family], world, tmp_path), ALONE, 0, {"test": QUESTIONS})
    torch.nn.init.normal_(model.score.weight)
    scores_QO = model.eval()(trees["test"])
    body = transformers.AutoModel.from_pretrained(folders[family]).eval()
    tok, rows = load_tokenizer(folders[family]), {}
    for q, question in enumerate(QUESTIONS):
        asked = f"{question.context} {question.question}".strip()
        for o, option in enumerate(question.options):
            first, second = (tok.encode(text).tolist() for text in (asked, " " + option))
            sep = tok.specials["[SEP]"]
            rows[q, o] = [tok.specials["[CLS]"], *first, sep, *second, sep]
            if family == "bert":
                assert rows[q, o] == tok.library.encode(asked, option).ids
            types = torch.tensor([[0] * (len(first) + 2) + [1] * (len(second) + 1)])
            with torch.no_grad():
                cls_D = body(torch.tensor([rows[q, o]]), token_type_ids=types).last_hidden_state[0, 0]
            torch.testing.assert_close(scores_QO[q, o], model.score(cls_D)[0], atol=1e-5, rtol=0)
    assert scores_QO[0, 2] == -torch.inf


def test_rows_are_shared_by_texts_that_do_not_see_each_other():
    model = Encoder(EncoderConfig("bert", 61, 19, 33, 2, 3, 40)).eval()
    trees = [Tree([1, 2, 3], [[4], [5, 6]]), Tree([7, 8], [[], [9] * 9])]
    packed, x_BTD = read(model, trees, 0)
    assert len(packed.ids_BT) < 4 and len(packed.row_N) == 4
    alone = [(tree.prefix, branch) for tree in trees for branch in tree.branches]
    for n, (prefix, branch) in enumerate(alone):
        b, start, stem = packed.row_N[n], packed.branch_end_N[n], packed.prefix_end_N[n]
        types = torch.tensor([[0] * len(prefix) + [1] * len(branch)])
        want_TD = model.hidden(torch.tensor([prefix + branch]), types)[0]
        torch.testing.assert_close(x_BTD[b, start:start + len(prefix + branch)], want_TD, atol=1e-5, rtol=0)
        assert stem - start == len(prefix) - 1


def test_the_label_form_is_question_then_context_whose_end_goes_first(folders):
    tok = load_tokenizer(folders["bert"])
    cls, sep = tok.specials["[CLS]"], tok.specials["[SEP]"]
    tree = EncoderReader("label", tok, 16, ["no", "yes"])
    q = Question("1", "Aspirin inhibits. " * 4, "Is it?", ["yes", "no"], 0)
    question, context = tok.encode("Is it?").tolist(), tok.encode(q.context).tolist()
    assert tree(q).prefix == [cls, *question, sep] and tree(q).classes == (1, 0) and tree.cut == 2
    assert tree(q).branches == [[*context[:13 - len(question)], sep]] and tree(q).depth == 16
    assert tree(replace(q, context="")) == Tree([cls, *question, sep], [[]], (1, 0))
    long = tree(replace(q, question="it? " * 30))
    assert long.depth == 16 and long.branches == [[]] and long.prefix[-1] == sep


@pytest.mark.parametrize("family, changes", [
    ("bert", {"head": "option"}), ("electra", {"head": "option", "lora_rank": 2, "recompute_every": 1}),
    ("albert", {"head": "option", "untrained": True, "recompute_every": 1})])
def test_an_encoder_is_fine_tuned_by_the_same_script(family, changes, folders, world, tmp_path):
    report = finetune_qa.main(cfg_of(folders[family], world, tmp_path / "out", **changes))
    assert report["n"] == 12 and all(line["loss"] < 2 for line in map(json.loads, open(tmp_path / "out/log.jsonl")))
    asked = Ask(model=str(tmp_path / "out/model"), file=str(world / "questions.jsonl"), out=str(tmp_path / "p.jsonl"),
                dtype="float32", batch_size=5)
    run = [json.loads(line)["scores"] for line in open(tmp_path / "out/predictions.jsonl")]
    assert finetune_qa.main(asked) == [pytest.approx(scores, abs=1e-6) for scores in run]


def test_fsdp_gathers_alberts_shared_block_for_each_of_its_layers_and_sums_its_gradients():
    cfg = EncoderConfig("albert", 61, 19, 32, 3, 2, 40, embd_width=8, resid_pdrop=0, attn_pdrop=0)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gradients = []
        for sliced in (False, True):
            model = Encoder(cfg)
            model.init_weights(0)
            if sliced:
                shard_model(model, device_mesh(replace(ALONE, size=1), 0), "float32")
                model.h[0].recompute = True
            model.forward = model.hidden
            model(torch.tensor([[1, 2, 3]]))[..., 0].sum().backward()
            gradients.append([getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for p in model.parameters()])
        torch.testing.assert_close(*gradients)
    finally:
        dist.destroy_process_group()


def test_an_encoder_is_not_asked_to_write(folders):
    with pytest.raises(UserError, match="an encoder cannot write text"):
        load(folders["bert"], torch.float32, "cpu")
    with pytest.raises(UserError, match="no probability for a text"):
        EncoderReader("likelihood", load_tokenizer(folders["bert"]), 16)


# ---- Pretraining ----

def test_of_the_tokens_that_are_asked_for_most_show_a_mask_some_another_and_some_themselves(world):
    tok = Tokenizer.load(world)
    for name in pretrain_encoder.NEW_TOKENS:
        tok.add_special(name)
    torch.manual_seed(0)
    ids_BT = torch.randint(0, 300, (200, 500))
    ids_BT[:, ::10], ids_BT[:, 1::10] = tok.eos_id, tok.specials["[CLS]"]
    shown_BT, asked_BT = pretrain_encoder.masked(ids_BT, 0.15, tok)
    assert asked_BT.double().mean().item() == pytest.approx(0.8 * 0.15, rel=0.02)
    assert (ids_BT[asked_BT] < 300).all() and (shown_BT[~asked_BT] == ids_BT[~asked_BT]).all()
    shown_N, ids_N = shown_BT[asked_BT], ids_BT[asked_BT]
    shares = [(shown_N == tok.specials["[MASK]"]), (shown_N == ids_N), (shown_N < 300) & (shown_N != ids_N)]
    assert [share.double().mean().item() for share in shares] == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_an_encoder_learns_from_our_shards_goes_on_where_it_stopped_and_is_fine_tuned(world, tmp_path):
    cfg = PretrainEncoder(
        data=str(world), out=str(tmp_path / "out"), steps=50, batch_size=8, micro_batch_size=4, warmup_steps=6,
        model=EncoderConfig("bert", 1, 32, 32, 2, 2, 64, n_types=1, resid_pdrop=0, attn_pdrop=0),
        learning_rate=1e-2, final_learning_rate=1e-3, dtype="float32", eval_every=50, eval_windows=8,
        checkpoint_every=20)
    losses = pretrain_encoder.main(cfg)
    assert np.mean(losses[-5:]) < 0.75 * losses[0]
    last = sorted((tmp_path / "out/checkpoints").iterdir())[-1]
    last.rename(last.with_name("00000040"))                  # as if it had been killed after that step
    with NoFloat64():                                        # which an Apple GPU lacks
        assert len(pretrain_encoder.main(cfg)) == 10
    with pytest.raises(UserError, match="made with masked = 0.15, now it is 0.2"):
        pretrain_encoder.main(replace(cfg, masked=0.2))
    model, tok = load(str(tmp_path / "out/model"), torch.float32, "cpu", allow_encoders=True)
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "out/model").eval()
    ids_BT = torch.tensor([[tok.specials["[CLS]"], 5, tok.specials["[MASK]"], tok.specials["[SEP]"]]])
    torch.testing.assert_close(model(ids_BT), theirs(ids_BT).logits, atol=1e-5, rtol=1e-5)
    report = finetune_qa.main(cfg_of(tmp_path / "out/model", world, tmp_path / "qa", epochs=1, max_length=32))
    assert report["n"] == 12
