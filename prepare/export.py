"""A model's folder for other programs: one GGUF file for llama.cpp and Ollama, or a repository on the Hugging Face hub.

    python prepare/export.py gguf --model out/demo/model --out model.gguf --dtype q8_0
    python prepare/export.py push --folder out/demo/model --name somebody/model

Teaches what a GGUF file needs: the shape, the vocabulary and the tensors under llama.cpp's names. llama.cpp computes
GPT-2 without BioMedLM's 1/(layer + 1), so that factor is multiplied into the query weights first.
Not here: reading the folder (baselines/__init__.py), its files (plumbing/huggingface.py).

The `gguf` package is optional: pip install gguf.
"""
import sys
from collections import Counter
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of prepare/

from baselines import load
from model import GPT
from plumbing.common import UserError, asking_the_hub, speaking_to_the_user, written_whole
from plumbing.tokenizer_files import token_names

NORMAL, CONTROL, UNUSED = 1, 3, 5                                # llama.cpp's types of tokens
FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7}                      # its numbers for the types of files


def gguf(model: str, out: Path, dtype: Literal["f32", "f16", "q8_0"] = "f16"):
    """Write one GGUF file with the weights and the vocabulary, for llama.cpp and programs built on it.

    Args:
        model: a GPT-2 folder or a name on the Hugging Face hub, such as stanford-crfm/BioMedLM
        out: file to write
        dtype: of the matrices: q8_0 is 8 bits with a scale for every 32 weights; vectors stay f32
    """
    try:
        import gguf as library
    except ImportError as error:
        raise UserError("the gguf package is not installed; `pip install gguf` in the environment that runs this"
                        ) from error
    gpt, tok = load(model, torch.float32, "cpu")
    if type(gpt) is not GPT or not getattr(tok, "merges", None):
        raise UserError(f"{model}: only GPT-2 models with a byte-level vocabulary and merges are exported here; use "
                        "llama.cpp's convert_hf_to_gguf.py for other families")
    with written_whole(out) as temporary:
        writer = library.GGUFWriter(temporary, "gpt2")
        writer.add_quantization_version(library.GGML_QUANT_VERSION)
        write_shape(writer, gpt.cfg, dtype)
        write_vocabulary(writer, tok, gpt.cfg.vocab_size)
        names = library.get_tensor_name_map(library.MODEL_ARCH.GPT2, gpt.cfg.n_layer)
        for name, p in gpt.named_parameters():               # h.3.attn.c_attn.bias is blk.3.attn_qkv.bias there
            llama_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            write_tensor(library, writer, llama_name, gpt.fold_layer_scale(name, p.detach()), dtype)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    print(f"{out}: {out.stat().st_size:,} bytes\n"
          f"llama.cpp  llama-completion -m {out} -p TEXT\n"
          f"Ollama     a file Modelfile beside it with the line FROM ./{out.name}, then ollama create NAME")


def write_shape(writer, cfg, dtype):
    writer.add_name("GPT-2")
    writer.add_file_type(FILE_TYPE[dtype])
    writer.add_context_length(cfg.n_positions)
    writer.add_embedding_length(cfg.n_embd)
    writer.add_block_count(cfg.n_layer)
    writer.add_feed_forward_length(cfg.mlp_width)
    writer.add_head_count(cfg.n_head)
    writer.add_layer_norm_eps(cfg.layer_norm_epsilon)


def write_vocabulary(writer, tok, rows):
    """All ids up to `rows`, which must have a name each; embedding rows without a token get one that never occurs."""
    shown, merges = token_names(tok)
    names = shown + [f"[UNUSED{i}]" for i in range(len(shown), rows)]
    types = [NORMAL] * len(shown) + [UNUSED] * (rows - len(shown))
    for name, i in tok.specials.items():
        names[i], types[i] = name, CONTROL
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:                                                    # llama.cpp would abort
        raise UserError(f"two tokens are called {twice[0]!r} in GGUF's spelling; rename the special one")

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")                            # GPT-2's pattern
    writer.add_token_list(names)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tok.eos_id)
    writer.add_eos_token_id(tok.eos_id)
    if len(tok.eos_ids) > 1:
        writer.add_eot_token_id(tok.eos_ids[1])                  # ends a text too; GGUF has no third
    writer.add_add_bos_token(False)


def write_tensor(library, writer, name, tensor, dtype):
    """Matrices in `dtype`; position embeddings and vectors, which are small, in fp32."""
    array = tensor.contiguous().numpy()
    if array.ndim == 1 or dtype == "f32" or name == "position_embd.weight":
        writer.add_tensor(name, array)
    elif dtype == "f16" or array.shape[1] % 32:                  # q8_0 needs rows of whole groups of 32
        writer.add_tensor(name, array.astype("float16"))
    else:
        kind = library.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, library.quants.quantize(array, kind), raw_dtype=kind)


def push(folder: Path, name: str, private: bool = True):
    """Upload a model's folder to the Hugging Face hub, into a repository that is made if it does not exist.

    Args:
        folder: a folder with config.json, weights and tokenizer, such as out/model
        name: the repository, OWNER/NAME; log in first with `hf auth login`
        private: whether a new repository is private
    """
    from huggingface_hub import HfApi
    for needed in ("config.json", "README.md", "*.safetensors"):
        if not any(folder.glob(needed)):
            raise UserError(f"{folder}: no {needed} in it; publish a model with configuration, model card and weights")
    api = HfApi()
    with asking_the_hub(f"{name}: the Hugging Face hub did not take it"):
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder,
                                 allow_patterns=["*.json", "*.safetensors", "merges.txt", "vocab.txt", "README.md"])
    print(f"{folder} is now {done.commit_url}")


if __name__ == "__main__":
    with speaking_to_the_user():
        tyro.extras.subcommand_cli_from_dict({"gguf": gguf, "push": push})
