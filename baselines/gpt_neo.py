"""GPT-Neo: a GPT-2 whose every second layer only looks back 256 tokens. The paper's comparison model, pretrained on
general text.

Teaches how it differs from GPT-2: local attention, in which a query only sees the last `window_size` keys; scores that
are not divided by sqrt(K); and linear layers stored as [out, in].
Not here: everything else (model.py); fast local attention: a local layer computes all T x T scores and masks most.

    model = load_model("EleutherAI/gpt-neo-2.7B")              # baselines/__init__.py
    python finetune_qa.py medqa --model EleutherAI/gpt-neo-2.7B          # in the paper: 37.7 % on MedQA
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from model import GPT, GPTConfig
from plumbing.common import UserError
from plumbing.huggingface import read_config

# The name of a setting here -> in config.json.
NAMES = dict(vocab_size="vocab_size", n_positions="max_position_embeddings", n_embd="hidden_size", n_layer="num_layers",
             n_head="num_heads", n_inner="intermediate_size", layer_norm_epsilon="layer_norm_epsilon",
             initializer_range="initializer_range", embd_pdrop="embed_dropout", attn_pdrop="attention_dropout",
             resid_pdrop="resid_dropout", window_size="window_size", bos_token_id="bos_token_id",
             eos_token_id="eos_token_id")
FIXED = dict(model_type=("gpt_neo",), activation_function=("gelu_new", "gelu_pytorch_tanh"),
             tie_word_embeddings=(True,))


@dataclass(frozen=True)
class GPTNeoConfig(GPTConfig):
    """The defaults are the values of settings that are missing in a config.json."""
    vocab_size: int = 50257
    n_positions: int = 2048
    n_embd: int = 2048
    n_layer: int = 24
    n_head: int = 16
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int = 50256
    eos_token_id: int = 50256
    window_size: int = 256                        # keys that a query of a local layer sees, including its own
    attention_layers: tuple[str, ...] = ("global", "local") * 12

    def check(self):
        super().check()
        if len(self.attention_layers) != self.n_layer or set(self.attention_layers) - {"global", "local"}:
            raise UserError(f"attention_types names {len(self.attention_layers)} layers, {self.attention_layers}, for "
                            f"{self.n_layer}; each is global or local")
        if not isinstance(self.window_size, int) or self.window_size < 1:
            raise UserError(f"window_size is {self.window_size!r}; it must be a whole number, at least 1")

    @staticmethod
    def read(path):
        stored = read_config(path, FIXED)
        values = {ours: stored[theirs] for ours, theirs in NAMES.items() if theirs in stored}
        try:
            layers = [kind for kinds, times in stored.get("attention_types") or [] for kind in list(kinds) * times]
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: attention_types is {stored['attention_types']!r}, no list of [kinds, times]"
                            ) from error
        return values | ({"attention_layers": tuple(layers)} if layers else {})

    def to_json(self):
        return {name: values[0] for name, values in FIXED.items()} | {
            theirs: getattr(self, ours) for ours, theirs in NAMES.items()} | {
            "attention_types": [[self.attention_layers, 1]], "attention_layers": self.attention_layers}


class Attention(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, cfg.n_head, cfg.attn_pdrop
        self.window = cfg.window_size if cfg.attention_layers[layer] == "local" else None
        for name in ("k_proj", "v_proj", "q_proj"):
            setattr(self, name, nn.Linear(cfg.n_embd, cfg.n_embd, bias=False))
        self.out_proj = nn.Linear(cfg.n_embd, cfg.n_embd)

    def forward(self, x_BTD, cache, visible):
        q_BHTK, k_BHSK, v_BHSK = (project(x_BTD).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                                  for project in (self.q_proj, self.k_proj, self.v_proj))
        visible_BTS = visible[0] if self.window is None else visible[1]
        if cache is not None:
            # Not cache.attend, whose scores have the inputs' dtype: bf16 is too coarse for scores that are not divided.
            k_BHKS, v_BHSK = cache.append(self.layer, k_BHSK, v_BHSK)
            k_BHSK = k_BHKS.transpose(2, 3)
            if self.window is not None:                        # leave out the keys before the first query's window
                reach = self.window + q_BHTK.shape[2] - 1
                k_BHSK, v_BHSK, visible_BTS = k_BHSK[:, :, -reach:], v_BHSK[:, :, -reach:], visible_BTS[..., -reach:]
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=None if visible_BTS is None else visible_BTS[:, None],
            is_causal=visible_BTS is None, dropout_p=self.dropout if self.training else 0.0, scale=1.0)
        return self.out_proj(y_BHTK.transpose(1, 2).flatten(2))


class Block(model.Block):
    def __init__(self, cfg, layer):
        super().__init__(cfg, layer)
        self.attn = Attention(cfg, layer)


class GPTNeo(GPT):
    config_class, block_class, architecture = GPTNeoConfig, Block, "GPTNeoForCausalLM"
    transposed, residual, has_kernels = (), ("c_proj", "out_proj"), False

    def places(self, ids_BT, cache, doc_start_BT, visible_BTS, position_BT):
        """((mask of global layers, or None, mask of local layers), position_BT).

        Distances are measured in positions, not in columns, because each branch of a packed tree continues its prefix.
        """
        visible_BTS, position_BT = super().places(ids_BT, cache, doc_start_BT, visible_BTS, position_BT)
        key_BS = position_BT if cache is None else torch.arange(cache.length + ids_BT.shape[1], device=ids_BT.device)
        back_BTS = torch.atleast_2d(position_BT)[:, :, None] - torch.atleast_2d(key_BS)[:, None, :]
        all_BTS = back_BTS >= 0 if visible_BTS is None else visible_BTS
        near_BTS = all_BTS & (back_BTS < self.cfg.window_size)
        return (all_BTS if cache is not None else visible_BTS, near_BTS), position_BT

    @staticmethod
    def our_name(stored):
        """Like GPT.our_name. In old releases the masks are one level deeper."""
        if stored.endswith((".attention.bias", ".attention.masked_bias")):
            return None
        return stored.removeprefix("transformer.").replace(".attn.attention.", ".attn.")

    @staticmethod
    def stored_name(name):
        return "transformer." + name.replace(".attn.", ".attn.attention.")
