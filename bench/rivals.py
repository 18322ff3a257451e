"""The two loops that bench/train.py compares train.py with: transformers' GPT-2, and a plain loop like nanoGPT's.

    from bench.rivals import plain, theirs
    losses = plain(run, watch, weights)      # run: a train.Train; watch.step() after every step; weights: a folder

These are loops as people write them: one process, one file, no accumulation, nothing saved. Both run at their best,
with fused attention, tanh-GELU, fused AdamW, and this repository's data.py.
Not here: the measuring (bench/train.py).
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from data import Corpus
from model import GPT
from plumbing.runtime import autocast, pick_device
from train import learning_rate


def theirs(run, watch, weights):
    """train.py's run with transformers' GPT-2, from the weights of a folder."""
    import transformers  # the plain loop does not need it
    model = transformers.GPT2LMHeadModel.from_pretrained(
        weights, dtype=torch.float32, attn_implementation="sdpa", activation_function="gelu_pytorch_tanh")
    call = torch.compile(model) if run.compile else model
    # With labels alone, transformers would shift them and lose the window's last target.
    return loop(run, watch, model, lambda ids_BT, targets_BT: call(ids_BT, labels=targets_BT, shift_labels=targets_BT,
                                                                  use_cache=False).loss)


def plain(run, watch, weights):
    """train.py's run with the short GPT-2 below, from the weights of a folder."""
    model = Plain(run.model)
    model.load_state_dict(GPT.from_pretrained(weights).state_dict())
    return loop(run, watch, model, torch.compile(model) if run.compile else model)


def loop(run, watch, model, loss_of):
    """nanoGPT's training loop in short; returns the losses."""
    device = pick_device()
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, betas=(run.beta1, run.beta2),
                                  weight_decay=run.weight_decay, fused=True)
    corpus, losses = Corpus(run.data, "train", run.model.n_positions, run.seed), []
    with watch:
        for step in range(run.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, run)
            ids_BT, targets_BT = (a.to(device) for a in corpus.batch(step, run.batch_size))
            with autocast(device, run.dtype):
                loss = loss_of(ids_BT, targets_BT)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), run.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            watch.step()
    return [loss.item() for loss in losses]


class PlainBlock(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        self.cfg, self.scale = cfg, (cfg.n_embd // cfg.n_head) ** -0.5 / (layer + 1)
        self.ln_1, self.ln_2 = (nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon) for _ in range(2))
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(cfg.n_embd, 3 * cfg.n_embd),
                                   "c_proj": nn.Linear(cfg.n_embd, cfg.n_embd)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(cfg.n_embd, 4 * cfg.n_embd),
                                  "c_proj": nn.Linear(4 * cfg.n_embd, cfg.n_embd)})

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (a.view(B, T, self.cfg.n_head, -1).transpose(1, 2)
                   for a in self.attn["c_attn"](self.ln_1(x)).split(D, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale,
                                           dropout_p=self.cfg.attn_pdrop if self.training else 0.0)
        y = self.attn["c_proj"](y.transpose(1, 2).contiguous().view(B, T, D))
        x = x + F.dropout(y, self.cfg.resid_pdrop, self.training)
        y = self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))
        return x + F.dropout(y, self.cfg.resid_pdrop, self.training)


class Plain(nn.Module):
    """A short GPT-2 whose parameters have model.py's names."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.wte, self.wpe = nn.Embedding(cfg.vocab_size, cfg.n_embd), nn.Embedding(cfg.n_positions, cfg.n_embd)
        self.h = nn.ModuleList(PlainBlock(cfg, layer) for layer in range(cfg.n_layer))
        self.ln_f = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        x = F.dropout(x, self.cfg.embd_pdrop, self.training)
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)
