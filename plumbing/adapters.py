"""LoRA as the peft library exchanges it: a small folder that is used together with its base model.

    adapter_config.json          the base model, rank r, alpha, the modules that have an addition
    adapter_model.safetensors    STEM.lora_A.weight [r, in] and STEM.lora_B.weight [out, r] of each such module STEM
                                 wte.token_adapter.trainable_tokens_delta [n, D]: rows of the embedding (the rows
                                 themselves, in spite of the name); trainable_token_indices says which
                                 score.weight and other names: a head, or a tensor in place of the base model's

A module computes (W + alpha / r B A) x. All names begin with base_model.model. and go on as in the base model's folder.
Teaches what must be distrusted in a stranger's adapter: peft has many methods, and their files look alike.
Not here: reading and writing the tensors (huggingface.py), how LoRA is trained (training/trainable.py).
LoRA: Hu et al. 2021 (arXiv 2106.09685); rsLoRA: Kalajdzievski 2023 (2312.03732).
"""
import math

import torch

from plumbing.common import UserError, read_json, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ROWS = ".token_adapter.trainable_tokens_delta"
TASKS = {"score": "SEQ_CLS", "qa_outputs": "QUESTION_ANS"}       # head -> peft's name of its task

# Settings that may have any value: they do not change the result, or are read below. (fan_in_fan_out too is for peft
# alone: here the base model knows which of its weights are transposed.) Other settings must be off: they ask for
# another method, such as DoRA, or come from a newer peft.
READ = {"auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
        "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "trainable_token_indices",
        "use_rslora"}
# PiSSA and its relatives change the base model's weights before they train: their additions fit no other weights.
CHOICES = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal")}


class Merged(dict):
    """A model's tensors by name. One with an addition receives it when it is popped: until then it stays on disk."""

    def __init__(self, tensors, additions, scale):
        super().__init__(tensors)
        self.additions, self.scale = additions, scale

    def pop(self, name, *default):
        tensor = super().pop(name, *default)
        if name not in self.additions:
            return tensor
        a, b = self.additions[name]
        return tensor.float() + self.scale * (b.float() @ a.float())


class Adapter:
    """What an adapter adds to a base model. model_class, such as model.GPT, knows the names of its tensors."""

    def __init__(self, folder, tensors, model_class):
        self.path, self.stored_name = folder / CONFIG, model_class.stored_name
        self.config = read_json(self.path, "an adapter's settings")
        self.scale = scale_of(self.path, self.config)
        self.additions, self.replaced, rows = {}, {}, {}
        for name, tensor in tensors.items():
            name = name.removeprefix(PREFIX)
            stem, _, kind = name.rpartition(".lora_")
            if kind in ("A.weight", "B.weight"):
                self.additions.setdefault(model_class.our_name(f"{stem}.weight"), {})[kind[0]] = tensor
            elif name.endswith(ROWS):
                rows[model_class.our_name(name.removesuffix(ROWS) + ".weight")] = tensor
            else:                        # peft stores the whole embedding too, if the vocabulary was resized
                self.replaced[model_class.our_name(name.replace(".token_adapter.base_layer.", "."))] = tensor
        self.rows = rows.pop("wte.weight", None)
        self.ids = row_ids(self.path, self.config, self.rows)
        for name, tied in rows.items():
            if self.rows is None or not torch.equal(self.rows, tied):
                raise UserError(f"{self.path}: has rows of {name} that are not the embedding's; only those are read "
                                "here")

    def embedding(self, old_VD):
        """The base model's embedding with the adapter's rows in it and behind it."""
        if self.rows is None:
            return old_VD
        V, D = old_VD.shape
        last = max(self.ids)
        if self.rows.shape != (len(self.ids), D) or set(range(V, last + 1)) - set(self.ids):
            raise UserError(f"{self.path}: its rows {shown(self.ids)}, {tuple(self.rows.shape)}, do not continue the "
                            f"base model's embedding, {V} rows of {D}; is it another base model?")
        new_VD = torch.cat([old_VD, old_VD.new_empty(max(0, last + 1 - V), D)]).float()
        return new_VD.index_copy(0, torch.tensor(self.ids), self.rows.float())

    def merged(self, tensors):
        """The base model's tensors by our names, weights as [out, in], with the additions. UserError if they do not fit
        target_modules or the weights."""
        endings = tuple(f".{target}.weight" for target in self.config["target_modules"])
        targeted = {name for name in tensors if f".{self.stored_name(name)}".endswith(endings)}
        if self.config.get("layers_to_transform") or self.config.get("exclude_modules"):
            targeted &= {*self.additions}
        if differ := targeted ^ {*self.additions}:
            name, has = min(differ), "no addition" if min(differ) in targeted else "an addition"
            raise UserError(f"{self.path}: {WEIGHTS} has {has} to {name}, against target_modules and the base model; "
                            "is it for another base model, or damaged?")
        for name, pair in self.additions.items():
            rank, (n_out, n_in) = self.config["r"], tensors[name].shape
            found = {kind: tuple(w.shape) for kind, w in pair.items()}
            if found != {"A": (rank, n_in), "B": (n_out, rank)}:
                raise UserError(f"{self.path}: the addition to {name} is {found}; by r and the base model it must be "
                                f"{{'A': {(rank, n_in)}, 'B': {(n_out, rank)}}}")
        return Merged(tensors, {name: (pair["A"], pair["B"]) for name, pair in self.additions.items()}, self.scale)


def scale_of(path, config):
    """The factor of B A: alpha / r, or alpha / sqrt(r) with rsLoRA. UserError for an adapter that is not plain LoRA."""
    for name, value in config.items():
        if name in CHOICES and value not in CHOICES[name] or name not in READ | {*CHOICES} and value:
            raise UserError(f"{path}: {name} is {shown(value)}; only plain LoRA is read here. Merge the adapter with "
                            "peft's merge_and_unload(), and give that model")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise UserError(f"{path}: r is {shown(rank)}, lora_alpha {shown(alpha)}; both must be numbers, r at least 1")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{path}: target_modules is {shown(targets)}; only a list of names is read here")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def row_ids(path, config, rows):
    """The ids of the rows that an adapter brings. In the file they are a list, or {name of the embedding: list}."""
    named = config.get("trainable_token_indices") or []
    lists = [*named.values()] if isinstance(named, dict) else [named]
    ids = lists[0] if lists else []
    if any(other != ids or not isinstance(other, list) for other in lists) or any(
            type(i) is not int or i < 0 for i in ids):
        raise UserError(f"{path}: trainable_token_indices is {shown(named)}; only one list of ids is read here")
    if bool(ids) != (rows is not None):
        raise UserError(f"{path}: trainable_token_indices is {shown(named)}, which {WEIGHTS} does not have")
    return ids


def exported(weights, base, stored_name):
    """(adapter_config.json, tensors) of a GPT-2 that was fine-tuned from `base` with LoRA.

    weights: name -> tensor as training/trainable.py has them: additions STEM.a and STEM.b, new rows gpt.wte.new.
    """
    tensors, targets, heads, ids = {}, set(), set(), []
    for name, w in weights.items():
        stem, _, kind = name.rpartition(".")
        stored = stored_name(stem.removeprefix("gpt."))
        if kind in ("a", "b"):
            tensors[f"{stored}.lora_{kind.upper()}.weight"] = w
            targets.add(stem.rpartition(".")[2])
            rank = w.shape[kind == "b"]
        elif kind == "new":
            rows = len(weights[f"{stem}.weight"])
            ids = [*range(rows - len(w), rows)]
            tensors[stored + ROWS] = w
        elif not name.startswith("gpt."):
            tensors[name] = w
            heads.add(stem)
    config = {
        "peft_type": "LORA", "task_type": TASKS[min(heads)] if heads else "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target_modules": sorted(targets), "bias": "none",
        "fan_in_fan_out": True, "inference_mode": True, "modules_to_save": sorted(heads) or None,
        "trainable_token_indices": {"wte": ids} if ids else None}
    return config, {PREFIX + name: w.contiguous() for name, w in tensors.items()}
