"""Which weights learn, and the memory that takes: three choices, one loop.

    all weights, fp32         16 bytes per parameter (weight, gradient, two moments): 41.5 GB for BioMedLM; --parallel
                              fsdp divides them by the number of GPUs
    --moments 8bit            with --weights bfloat16 6 bytes per parameter: 15.6 GB, one 24 GB GPU (adamw8bit.py)
    --lora-rank 16            the weights are frozen; each linear layer W learns an addition B A of that rank. With
                              --weights bfloat16 a little over 2 bytes per parameter: 5.6 GB, one 8 GB GPU

Activations come on top: --recompute-every 1 keeps only each block's input. `finetune_qa.py medqa --plan` counts all.
Not here: the loop (finetuning.py). LoRA: Hu et al. 2021 (arXiv 2106.09685).
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from model import GPT, linears
from plumbing.common import UserError
from plumbing.huggingface import find_folder, is_adapter
from training.adamw8bit import AdamW8bit
from training.parallel import set_recompute


class LoRA(nn.Module):
    """y = W x + 2 B A x. W is frozen; B begins at 0, so nothing changes at first. (2: the usual alpha = 2 rank.)"""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.empty(rank, base.in_features, device=base.weight.device))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        nn.init.normal_(self.a, 0.0, base.in_features ** -0.5)

    def forward(self, x):
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


class NewRows(nn.Module):
    """An embedding whose last n rows learn: those of the tokens that fine-tuning adds, which are random at first."""

    def __init__(self, base, n):
        super().__init__()
        self.weight, self.new = base.weight, nn.Parameter(base.weight[-n:].detach().float().clone())
        self.first = len(base.weight) - n

    def forward(self, ids):
        old, new = F.embedding(ids, self.weight), F.embedding((ids - self.first).clamp(min=0), self.new)
        return torch.where((ids < self.first)[..., None], old, new.to(old.dtype))

    def logits(self, x):
        return torch.cat([F.linear(x, self.weight[:self.first]), F.linear(x, self.new.to(x.dtype))], -1)


class NewOutputs(NewRows):
    """The same for a head that is not the embedding."""

    def forward(self, x):
        return self.logits(x)


def choose_weights(model, cfg, n_new):
    """Set what learns and what is recomputed in a model with a `gpt`. n_new: how many tokens were just added."""
    gpt = model.gpt
    if cfg.save_adapter and type(gpt) is not GPT:
        raise UserError(f"--save-adapter is for GPT-2's family, and {cfg.model} is a {type(gpt).__name__}")
    if cfg.lora_rank:
        gpt.requires_grad_(False)
        if n_new:
            gpt.wte = NewRows(gpt.wte, n_new)
            gpt.lm_head = NewOutputs(gpt.lm_head, n_new) if gpt.lm_head else gpt.wte.logits
        for block in gpt.h:
            for owner, name, linear in linears(block):
                setattr(owner, name, LoRA(linear, cfg.lora_rank))
    set_recompute(gpt.h, cfg.recompute_every)


def merged(weights):
    """{name: tensor} of the plain model: low-rank additions are added to their weights, new rows put in place."""
    plain = {name.replace(".base.", "."): w for name, w in weights.items() if not name.endswith((".a", ".b", ".new"))}
    for name, w in weights.items():
        stem, _, kind = name.rpartition(".")
        old = plain.get(f"{stem}.weight")
        if kind == "a":
            added = 2 * weights[f"{stem}.b"].float() @ w.float()
            plain[f"{stem}.weight"] = (old.float() + added).to(old.dtype)
        elif kind == "new":
            plain[f"{stem}.weight"] = torch.cat([old[:-len(w)], w.to(old.dtype)])
    return plain


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(model, cfg):
    weights, settings = trained(model), {"lr": cfg.learning_rate, "weight_decay": cfg.weight_decay}
    if cfg.moments == "8bit":
        return AdamW8bit(weights, **settings)
    return torch.optim.AdamW(weights, **settings, fused=weights[0].device.type != "mps")


def check_weights(cfg):
    """UserError for combinations of settings that would not compute what they promise."""
    if cfg.save_adapter and not cfg.lora_rank:
        raise UserError("--save-adapter saves what --lora-rank trains; give a rank, such as --lora-rank 16")
    if cfg.save_adapter and getattr(cfg, "untrained", False):
        raise UserError("--save-adapter needs a base model that others have; with --untrained there is none")
    if cfg.save_adapter and is_adapter(find_folder(cfg.model)):
        raise UserError(f"--save-adapter needs a whole base model, and {cfg.model} is an adapter; merge that one first")
    if cfg.weights == "bfloat16" and cfg.dtype != "bfloat16":
        raise UserError(f"--weights bfloat16 needs --dtype bfloat16, but this device computes in {cfg.dtype}; use "
                        "--weights float32")
    if cfg.weights == "bfloat16" and not cfg.lora_rank and cfg.moments != "8bit":
        raise UserError("--weights bfloat16 needs --moments 8bit, which rounds at random, or --lora-rank: such small "
                        "steps are lost below the last bit of a bfloat16 weight")
    if cfg.moments == "8bit" and cfg.parallel != "none":
        raise UserError("--moments 8bit is for one process; fsdp already divides the moments by the number of GPUs")
    if cfg.weights == "bfloat16" and cfg.parallel == "fsdp":
        raise UserError("--weights bfloat16 is for a process that holds all weights; fsdp divides them, and computes "
                        "in bfloat16 anyway")
