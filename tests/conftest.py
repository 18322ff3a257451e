"""What the tests share: a tiny world (text, tokenizer, shards, questions) and a tiny model, made anew in seconds."""
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, processors, trainers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import write_shard
from model import GPT, GPTConfig
from tokenizer import Tokenizer

# Triton exists for Linux alone; elsewhere there are no kernels to test.
collect_ignore_glob = [] if find_spec("triton") else ["kernels/test_*.py", "sampling/test_cuda_graph.py"]

ROOT = Path(__file__).resolve().parents[1]

# Before 2.13, torch counts a step's memory wrongly, so the plan refuses; and its FSDP leaves cyclic garbage.
OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
needs_new_torch = pytest.mark.skipif(OLD_TORCH, reason="needs torch 2.13: the plan's memory, FSDP without garbage")

os.environ["OMP_NUM_THREADS"] = "1"      # for the scripts that tests start; matrices this small gain nothing from more
os.environ["TRITON_INTERPRET"] = "1"     # before any kernel is defined; tests/interpreter.py mends what it gets wrong
torch.set_num_threads(1)
SENTENCES = ["Aspirin inhibits cyclooxygenase.", "Vitamin C deficiency causes scurvy.", "Insulin lowers blood glucose.",
             "Penicillin was given to patients with syphilis.", "The myocardium was examined by ECG."]


def pytest_collection_modifyitems(items):
    """What takes longest begins first, so that in the end no worker waits for the other."""
    items.sort(key=lambda item: item.path.name not in ("test_kernels_compile.py", "test_parallel.py"))


def tiny_config(**changes):
    values = dict(vocab_size=301, n_positions=32, n_embd=48, n_layer=3, n_head=3, embd_pdrop=0.0, attn_pdrop=0.0,
                  resid_pdrop=0.0, bos_token_id=300, eos_token_id=300)
    return GPTConfig(**values | changes)


def tiny_model(seed=0, **changes):
    """A random model whose weights, biases and gains are large enough that every part of it shows in the logits."""
    model = GPT(tiny_config(**changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        gain = "ln_" in name and name.endswith("weight")
        torch.nn.init.normal_(p, 1.0 if gain else 0.0, 0.15, generator=generator)
    return model


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A data folder as prepare/ writes it, with 301 tokens, and a file of questions."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.permutation(SENTENCES)) for _ in range(120)]
    tok = Tokenizer.train(texts, vocab_size=301)
    tok.save(folder)
    meta = {"vocab_size": len(tok), "eos_id": tok.eos_id}
    for split, part in (("train", texts[:100]), ("val", texts[100:])):
        ids = np.concatenate([np.append(tok.encode(text), tok.eos_id) for text in part]).astype(np.uint16)
        write_shard(folder / f"{split}_000000.bin", ids)
        meta[split] = {"documents": len(part), "tokens": len(ids), "bytes": sum(len(t.encode()) for t in part)}
    (folder / "meta.json").write_text(json.dumps(meta))
    questions = [{"id": f"q{i}", "context": "", "question": f"Which word is number {i}?",
                  "options": [f"word {i}", "another", "a third"][:2 + i % 2], "answer": i % 2} for i in range(12)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder


@pytest.fixture(scope="session")
def llama_tokenizer(tmp_path_factory):
    """A folder with a tokenizer.json in the shape of Llama 2's, learned from a few sentences."""
    folder = tmp_path_factory.mktemp("tokenizer")
    learned = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    frame = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learned.normalizer = frame
    learned.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>"]))
    model = json.loads(learned.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *list(model["vocab"])[1:]]
    tok = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [*map(tuple, model["merges"])],
                                          unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.normalizer = frame
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.add_special_tokens(tokens[:3])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.save(str(folder / "tokenizer.json"))
    eos = {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False,
           "single_word": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos, "bos_token": "<s>"}))
    return folder


class NoFloat64(TorchDispatchMode):
    """Refuses what Apple's GPUs do not have. sample.py may draw its uniform numbers, which it does on the CPU."""
    ON_THE_CPU = "aten::rand.generator", "aten::item", "aten::_local_scalar_dense"

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **kwargs or {})
        for value in tree_leaves((args, out)):
            is_float64 = isinstance(value, torch.Tensor) and value.dtype == torch.float64
            assert not is_float64 or operator.name() in self.ON_THE_CPU, operator
        return out


def tiny_folder(folder, tokenizer, **changes):
    """Write a tiny model into `folder`, with the tokenizer of the folder `tokenizer`. Returns `folder`."""
    tiny_model(**changes).save_pretrained(folder)
    Tokenizer.load(tokenizer).save(folder)
    return folder


def run_script(*arguments, cwd=ROOT):
    """Run `python ARGUMENTS` as a user would; returns the finished process with its output as text."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {"HF_HUB_OFFLINE": "1"})
