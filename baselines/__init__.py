"""The models that BioMedLM is compared with, through the same scripts. The seven files at the top can be read without
this folder.

gpt_neo.py           GPT-Neo: local attention in every second layer, unscaled attention
llama.py             Llama 2 and 3, BioMedGPT: RoPE, RMSNorm, SwiGLU, grouped queries
encoder.py           BERT, ELECTRA and ALBERT: one encoder, and the differences
pretrain_encoder.py  pretraining an encoder with masked tokens, on the shards that a GPT reads
subwords.py          the tokenizers of other families, by the tokenizers library

The model_type in a folder's config.json names its family, and FAMILIES the class that computes it. Every script loads
a model and its tokenizer with `load`.

    model, tok = load("EleutherAI/gpt-neo-2.7B", torch.float32, "cpu")     # or "stanford-crfm/BioMedLM", or a folder

Not here: what a family computes (its file), how folders are read (plumbing/huggingface.py).
"""
from pkgutil import resolve_name

import torch

from plumbing.common import UserError, read_json, shown
from plumbing.huggingface import end_ids, file_of, find_folder, is_adapter
from plumbing.tokenizer_files import is_gpt2s
from tokenizer import Tokenizer

FAMILIES = {                                # model_type -> module:class
    "gpt2": "model:GPT",
    "gpt_neo": "baselines.gpt_neo:GPTNeo",
    "llama": "baselines.llama:Llama",
    "bert": "baselines.encoder:Encoder",
    "electra": "baselines.encoder:Encoder",
    "albert": "baselines.encoder:Encoder",
}

# Models whose shape is the default of their family, and known without a download.
DEFAULTS = {"stanford-crfm/BioMedLM": "gpt2", "meta-llama/Llama-2-7b-chat-hf": "llama"}


def load(name_or_folder, dtype, device, allow_encoders=False):
    """(model, tokenizer) from a local folder or the Hugging Face hub, in evaluation mode.

    UserError if they do not belong together, and for a BERT-like encoder unless allow_encoders.
    """
    folder = find_folder(name_or_folder)
    family = family_of(folder)
    if not family.causal and not allow_encoders:
        raise UserError(f"{folder}: an encoder cannot write text or score one; use it with finetune_qa.py or "
                        "`finetune_answers.py span`")
    model = family.from_pretrained(folder, dtype).to(device)
    tok = load_tokenizer(file_of(folder, "tokenizer.json", "merges.txt", "vocab.txt").parent)
    tok.rows = model.cfg.vocab_size          # rows of the embedding without a token decode to nothing
    if family.causal:
        tok.end_at(end_ids(folder))
    if len(tok) > model.cfg.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {len(tok)} tokens, the model only {model.cfg.vocab_size}; "
                        "they do not belong together")
    return model, tok


def add_tokens(model, tok, names):
    """Add the special tokens that the vocabulary does not have yet, such as [SEP]; returns how many those are.

    They come after all rows of the embedding, which may have more rows than the tokenizer has tokens.
    """
    new = [name for name in dict.fromkeys(names) if name not in tok.specials]
    first = model.add_tokens(len(new)) if new else 0
    for i, name in enumerate(new, first):
        tok.add_special(name, i)
    return len(new)


def load_model(name_or_folder, dtype=torch.float32):
    """The model from a local folder or the Hugging Face hub, of any family, in evaluation mode."""
    folder = find_folder(name_or_folder)
    return family_of(folder).from_pretrained(folder, dtype)


def family_of(folder):
    """The class that computes the model in a local folder."""
    path = file_of(folder, "config.json")
    model_type = read_json(path, "a model's configuration").get("model_type", "gpt2")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{path}: model_type is {shown(model_type)}; this code computes {', '.join(FAMILIES)}")
    family = resolve_name(FAMILIES[model_type])
    if is_adapter(folder) and not family.causal:
        raise UserError(f"{folder}: an adapter for an encoder; only those for causal models are read here")
    return family


def shape_of(name):
    """(class, configuration) of a causal model without its weights, for launch/."""
    if name in DEFAULTS:
        family = resolve_name(FAMILIES[DEFAULTS[name]])
        return family, family.config_class()
    folder = find_folder(name, ["config.json"])
    family = family_of(folder)
    if not family.causal:
        raise UserError(f"{folder}: an encoder; only causal models have a plan")
    return family, family.config_class.from_json(folder / "config.json")


def load_tokenizer(folder):
    """The tokenizer in a local folder: ours for byte-level BPE like GPT-2's, else that of the tokenizers library."""
    path = folder / "tokenizer.json"
    if path.is_file():
        is_ours = is_gpt2s(read_json(path, "a tokenizer"))
    else:
        is_ours = not (folder / "vocab.txt").is_file()
    if is_ours:
        return Tokenizer.load(folder)
    from baselines.subwords import Subwords
    return Subwords.load(folder)
