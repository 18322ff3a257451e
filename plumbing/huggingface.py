"""The Hugging Face folder: the only form in which a model leaves a script or enters one.

    config.json                     the shape, as JSON
    model.safetensors               the weights; or parts of them and model.safetensors.index.json; or pytorch_model.bin
    tokenizer.json, vocab.json, merges.txt        (tokenizer.py)

Or, in place of the weights, an adapter (adapters.py) to a model that lies elsewhere.

Teaches how weights are read without holding them twice, and what must be distrusted in a stranger's folder.
Not here: what the tensors mean; each model file maps the names to its own.
"""
import os
import pickle
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from plumbing import adapters
from plumbing.common import UserError, asking_the_hub, read_json, shown, write_json, written_whole

INDEX = "model.safetensors.index.json"
HEADS = ("qa_outputs.", "score.")    # of answers/spans.py (transformers' name), of questions/heads.py
WANTED = ["*.json", "*.safetensors", "merges.txt", "vocab.txt"]      # of what the hub has
OLD_WEIGHTS = ["pytorch_model*.bin"]                                 # and that, where it has no safetensors
PART_BYTES = 4 * 2**30      # a save holds one part in memory beside the model


def find_folder(name_or_folder, wanted=WANTED):
    """The local folder of a model; a name such as "stanford-crfm/BioMedLM" is downloaded into Hugging Face's cache."""
    folder, name = Path(name_or_folder), str(name_or_folder)
    if folder.is_dir() and name:
        return folder
    if folder.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise UserError(f"{name!r}: no such folder; give a model's folder or a name on the Hugging Face hub")
    from huggingface_hub import snapshot_download
    with asking_the_hub(f"{name}: no such folder here, and the Hugging Face hub did not give it"):
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if "*.safetensors" in wanted and not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=OLD_WEIGHTS))
        return folder


def is_adapter(folder):
    """Whether a folder holds an adapter in place of weights."""
    return (folder / adapters.CONFIG).is_file() and not weight_files(folder)


def base_of(folder):
    """The folder with the weights: the same one or, for an adapter, its base model's."""
    if not is_adapter(folder):
        return folder
    path = folder / adapters.CONFIG
    name = read_json(path, "an adapter's settings").get("base_model_name_or_path")
    if not isinstance(name, str):
        raise UserError(f"{path}: base_model_name_or_path is {shown(name)}; write there which model the adapter is for")
    try:
        base = find_folder(name)
    except UserError as error:
        raise UserError(f"{path}: base_model_name_or_path: {error}") from error
    if is_adapter(base):
        raise UserError(f"{path}: its base model {name} is an adapter, too; merge that one first")
    return base


def file_of(folder, *names):
    """The first of these files that a folder has. An adapter that has none: its base model's file names[0]."""
    found = [folder / name for name in names if (folder / name).is_file()]
    return found[0] if found else base_of(folder) / names[0]


def read_config(path, supported):
    """config.json as a dict. `supported` (name -> values) holds what the caller can compute: UserError for the rest."""
    values = read_json(path, "a model's configuration")
    for name, choices in supported.items():
        if values.get(name, choices[0]) not in choices:
            raise UserError(f"{path}: {name} is {values[name]!r}; this code computes {' or '.join(map(repr, choices))}")
    return values


def read_shape(config_class, path):
    """config.json as a `config_class`, a model.GPTConfig or another family's; UserError for what it cannot compute."""
    values = config_class.read(path)
    cfg = config_class(**{f.name: values[f.name] for f in fields(config_class) if f.name in values})
    try:
        cfg.check()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return cfg


CARD = """---
library_name: {library}
pipeline_tag: text-generation
---

# {name}

Trained with nanoBioMedLM. **For research only. Nothing this model writes or chooses is medical advice.**

{facts}
## Licence

Not known. It depends on the training data and on the weights that training began with.

## Limits

A language model writes what sounds likely, not what is true. It has not been tested for use with patients, it repeats
the errors and gaps of its training data, and its scores hold for the test sets named here only.
"""


def write_model_card(folder, name, facts, library="transformers"):
    """Write README.md from what is known: {heading: text, number or {name: value}}, in the order to be shown. library:
    what reads the folder, in the hub's spelling."""
    known = "\n".join(f"## {heading}\n\n{described(value)}\n" for heading, value in facts.items()
                      if value not in (None, {}))
    text = CARD.format(library=library, name=name, facts=known)
    with written_whole(Path(folder) / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def described(value):
    """A fact as Markdown: a table for a dict, else the value."""
    if isinstance(value, dict):
        return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {described(v)} |" for name, v in value.items())
    return f"{value:,}" if type(value) is int else f"{value:.4g}" if isinstance(value, float) else str(value)


def end_ids(folder):
    """The ids that end a text, as transformers reads them: from generation_config.json, else from config.json."""
    for file in ("generation_config.json", "config.json"):
        path = file_of(Path(folder), file)
        found = read_json(path, "a model's configuration").get("eos_token_id") if path.is_file() else None
        if found in (None, []):
            continue
        ids = found if isinstance(found, list) else [found]
        if any(type(i) is not int for i in ids):
            raise UserError(f"{path}: eos_token_id is {shown(found)}; it must be a token's number or a list of them")
        return ids
    return []


def read_tensors(folder, head=False):
    """Yield (name, tensor) for every tensor in the folder's weight files but those of a fine-tuned head (HEADS); or,
    with `head`, for those alone. An adapter's tensors come after those of its base model, and keep their prefix.

    Tensors are mapped from disk: a tensor that is skipped, or converted one at a time, is never held in memory twice.
    """
    base = base_of(folder)
    files = weight_files(base)
    if not files:
        raise UserError(f"{base}: holds no model.safetensors or pytorch_model.bin; which model's folder did you mean?")
    if base != folder and not (folder / adapters.WEIGHTS).is_file():
        raise UserError(f"{folder}: holds {adapters.CONFIG} but no {adapters.WEIGHTS}; copy the folder again")
    for path in files + [folder / adapters.WEIGHTS] * (base != folder):
        for name, tensor in open_weights(path).items():
            name = name.removeprefix("_orig_mod.").removeprefix("module.")                # torch.compile's, DDP's
            plain = name.removeprefix(adapters.PREFIX)
            if plain.startswith(HEADS) == head:
                yield plain if head else name, tensor


def weight_files(folder):
    """The paths of a folder's weight files; [] if it has none. Safetensors first, as everyone reads them."""
    for single, index in (("model.safetensors", INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return [folder / file for file in files_of(folder / index)]
    return []


def files_of(index):
    """The weight files that an index names."""
    weight_map = read_json(index, "an index of weight files").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map must name the file of each tensor; download it again")
    for file in weight_map.values():             # an index from elsewhere must not reach outside its folder
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{index}: {shown(file)} is not a plain file name")
    return sorted(set(weight_map.values()))


def open_weights(path):
    """{name: tensor} of one weight file. UserError for what is wrong with it, in words that help."""
    if not path.is_file():
        raise UserError(f"{path}: the index names this file, but it is not there; download it again")
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(f"{path}: a git-lfs pointer in place of the weights; run `git lfs pull` in that folder")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only: a pickle can run any program. There is no falling back to False.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, IndexError,
            AttributeError, TypeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: damaged, or more than tensors in it ({reason}); download it again") from error
    if not isinstance(found, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in found.values()):
        raise UserError(f"{path}: holds no table of tensors by name; is it another program's file?")
    return found


def renamed(name, modules):
    """A tensor's name with each (old, new) of `modules` replaced, in this order."""
    for old, new in modules:
        name = name.replace(old, new)
    return name


def fill(model, tensors, folder, dtype):
    """Give a model on the "meta" device its weights, name -> tensor, each converted to `dtype` when its turn comes."""
    model.load_state_dict({name: tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
                           for name, tensor in matched(model, tensors, folder)}, assign=True)


def matched(model, tensors, folder):
    """Yield (name, tensor) for each parameter; UserError for what lacks, is too much or of another shape."""
    for name, p in model.named_parameters():
        if name not in tensors:
            raise UserError(f"{folder}: the weights lack {name}; is the download whole?")
        tensor = tensors.pop(name)
        if tensor.shape != p.shape:
            raise UserError(f"{folder}: {name} is {tuple(tensor.shape)}, by config.json it is {tuple(p.shape)}")
        yield name, tensor
    if tensors:
        raise UserError(f"{folder}: the weights hold {min(tensors)}, which {type(model).__name__} does not have")


def open_model(model_class, folder):
    """A model on the "meta" device, without weights, and its tensors by name: mapped from disk, not yet read.

    model_class has config_class, our_name (stored name -> parameter's name, or None) and transposed, as model.GPT.
    """
    cfg = model_class.config_class.from_json(file_of(folder, "config.json"))
    stored = dict(read_tensors(folder))
    added = {name: stored.pop(name) for name in [*stored] if name.startswith(adapters.PREFIX)}
    tensors = {model_class.our_name(name): tensor for name, tensor in stored.items()}
    tensors.pop(None, None)
    adapter = adapters.Adapter(folder, added, model_class) if is_adapter(folder) else None
    if adapter and "wte.weight" in tensors:
        tensors.setdefault("lm_head.weight", tensors["wte.weight"])     # an adapter may replace one of the two alone
        tensors |= adapter.replaced

    embedding = tensors.get("wte.weight")
    if embedding is not None:                # fine-tuning may have added rows: [PAD], [SEP] ...
        tensors["wte.weight"] = adapter.embedding(embedding) if adapter else embedding
        cfg = replace(cfg, vocab_size=max(cfg.vocab_size, len(tensors["wte.weight"])))
    with torch.device("meta"):
        model = model_class(cfg)

    if model.lm_head is None:                # tied: an output head in the file must be the embedding again
        lm_head = tensors.pop("lm_head.weight", None)
        if None not in (lm_head, embedding) and not torch.equal(lm_head.to(embedding.dtype), embedding):
            raise UserError(f"{folder}: lm_head.weight differs from wte.weight; this model ties them")
    tensors = {name: p.t() if name.endswith(model_class.transposed) else p for name, p in tensors.items()}
    return model, adapter.merged(tensors) if adapter else tensors


def save_model(model, folder, cfg, change=lambda name, tensor: tensor, head=None):
    """Write the folder that open_model reads. `change` may replace a parameter's values on their way to disk.

    head: more tensors by name, such as a classifier's, which are written as they are.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ours = {model.stored_name(name): name for name, _ in model.named_parameters()}
    tensors = {stored: model.get_parameter(name) for stored, name in ours.items()} | (head or {})

    def converted(stored):
        tensor = tensors[stored].detach().cpu()
        if stored not in ours:
            return tensor
        tensor = change(ours[stored], tensor)
        return tensor.t() if ours[stored].endswith(model.transposed) else tensor

    parts = split_torch_state_dict_into_shards(tensors, max_shard_size=PART_BYTES)
    for file, names in parts.filename_to_tensors.items():
        with written_whole(folder / file) as temporary:
            save_readable({stored: converted(stored) for stored in names}, temporary)
    if parts.is_sharded:
        write_json(folder / INDEX, {"metadata": parts.metadata, "weight_map": parts.tensor_to_filename})
    for stale in folder.glob("model*.safetensors*"):          # an older save in other parts would be read in its place
        if stale.name not in (*parts.filename_to_tensors, INDEX if parts.is_sharded else None):
            stale.unlink()

    dtype = str(model.wte.weight.dtype).split(".")[-1]
    values = cfg.to_json() | {"architectures": [model.architecture], "dtype": dtype}
    write_json(folder / "config.json", values)
    ends = {name: values[name] for name in ("bos_token_id", "eos_token_id") if name in values}
    if ends:                                                  # a model that writes text
        write_json(folder / "generation_config.json", {"_from_model_config": True, **ends})


def save_readable(tensors, path):
    """A safetensors file that other users may read as the umask says: safetensors 0.8.0 allows the owner only."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})       # transformers refuses a file without "format"
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)
