"""The Hugging Face folder: the only form in which a model leaves a script or enters one.

    config.json                     the shape, as JSON
    model.safetensors               the weights; or parts of them and model.safetensors.index.json; or pytorch_model.bin
    tokenizer.json, vocab.json, merges.txt        (tokenizer.py)

Teaches how weights are read without holding them twice, and what must be distrusted in a stranger's folder.
Not here: what the tensors mean; each model file maps the names to its own.
"""
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from plumbing.common import UserError, read_json, write_json, written_whole

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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
        if "*.safetensors" in wanted and not any(folder.glob("model*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=OLD_WEIGHTS))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: no such folder here, and the Hugging Face hub did not give it ({reason})") from error


def read_config(path, supported):
    """config.json as a dict. `supported` (name -> values) holds what the caller can compute: UserError for the rest."""
    values = read_json(path, "a model's configuration")
    for name, choices in supported.items():
        if values.get(name, choices[0]) not in choices:
            raise UserError(f"{path}: {name} is {values[name]!r}; this code computes {' or '.join(map(repr, choices))}")
    return values


def write_config(folder, values):
    write_json(Path(folder) / "config.json", values)


def read_tensors(folder, head=False):
    """Yield (name, tensor) for every tensor in the folder's weight files but those of a fine-tuned head (HEADS); or,
    with `head`, for those alone. Safetensors first, as everyone reads them.

    Tensors are mapped from disk: what is dropped or converted one at a time never stands in memory twice.
    """
    for single, index in (("model.safetensors", INDEX), ("pytorch_model.bin", "pytorch_model.bin.index.json")):
        if (folder / single).is_file():
            files = [single]
        elif (folder / index).is_file():
            files = sorted(set(read_json(folder / index, "an index of weight files").get("weight_map", {}).values()))
        else:
            continue
        for file in files:
            if Path(file).name != file:            # a stranger's index must not reach outside its folder
                raise UserError(f"{folder / index}: {file!r} is not a plain file name")
            for name, tensor in open_weights(folder / file):
                name = name.removeprefix("_orig_mod.").removeprefix("module.")            # torch.compile's, DDP's
                if name.startswith(HEADS) == head:
                    yield name, tensor
        return
    raise UserError(f"{folder}: holds no model.safetensors or pytorch_model.bin; which model's folder did you mean?")


def open_weights(path):
    """Yield (name, tensor) of one weight file, or say what is wrong with it in words that help."""
    if not path.is_file():
        raise UserError(f"{path}: the index names this file, but it is not there; download it again")
    with open(path, "rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            raise UserError(f"{path}: a git-lfs pointer in place of the weights; run `git lfs pull` in that folder")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                yield from [(name, file.get_tensor(name)) for name in file.keys()]
        else:
            # weights_only: a pickle can run any program. There is no falling back to False.
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)).items()
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: damaged, or more than tensors in it ({reason}); download it again") from error


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
        raise UserError(f"{folder}: the weights hold {min(tensors)}, which a {type(model).__name__} does not have")


def write_tensors(folder, plan, get):
    """Write model.safetensors, or parts of PART_BYTES with an index.

    plan: stored name -> (bytes, key); get(key) makes the tensor when its part's turn comes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts, room = [], 0
    for name, (nbytes, _) in plan.items():
        if nbytes > room:
            parts, room = [*parts, []], max(PART_BYTES, nbytes)
        parts[-1].append(name)
        room -= nbytes
    files = ["model.safetensors"] if len(parts) == 1 else [
        f"model-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for file, names in zip(files, parts, strict=True):
        with written_whole(folder / file) as temporary:       # "pt": transformers refuses a file that does not say so
            save_file({name: get(plan[name][1]) for name in names}, temporary, metadata={"format": "pt"})
    if len(parts) > 1:
        weight_map = {name: file for file, names in zip(files, parts, strict=True) for name in names}
        total = sum(nbytes for nbytes, _ in plan.values())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for stale in folder.glob("model*.safetensors*"):          # an older save in other parts would be read in its place
        if stale.name not in (*files, INDEX if len(parts) > 1 else None):
            stale.unlink()


def add_tensors(folder, tensors):
    """Put more tensors, such as a head's, into a folder's last weight file."""
    if not tensors:
        return
    index = read_json(folder / INDEX, "an index of weight files") if (folder / INDEX).is_file() else {"weight_map": {}}
    file = max(index["weight_map"].values(), default="model.safetensors")
    with written_whole(folder / file) as temporary:
        save_file(dict(open_weights(folder / file)) | {name: w.contiguous() for name, w in tensors.items()}, temporary,
                  metadata={"format": "pt"})
    if index["weight_map"]:
        index["weight_map"] |= dict.fromkeys(tensors, file)
        index["metadata"]["total_size"] += sum(w.nbytes for w in tensors.values())
        write_json(folder / INDEX, index)
