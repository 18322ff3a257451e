"""Llama 2 and 3, and BioMedGPT-LM-7B, which is Llama-2-7B-chat trained further on 5.5 million papers of PubMed Central.

Teaches four changes that lead from GPT-2 to later decoders:
  RoPE              positions rotate queries and keys instead of being added to tokens, so that a score depends on the
                    distance only. The pair (i, i + K/2) is rotated by the angle position / theta^(2i/K)
  RMSNorm           LayerNorm without the mean and the bias
  SwiGLU            an MLP of three matrices, down(silu(gate(x)) * up(x)); at width 8/3 D as many weights as GPT-2's
  grouped queries   several queries share a key and a value, which can make the cache smaller (not here: keys and values
                    are repeated before they are written to sampling/cache.py)

Not here: the residual stream, the loss, initial weights (model.py); extensions of RoPE other than Llama 3's.

    model = load_model("meta-llama/Llama-2-7b-chat-hf")        # baselines/__init__.py
    python train.py biomedgpt                                  # its continued pretraining
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

import model
from model import GPT, GPTConfig
from plumbing.common import UserError
from plumbing.huggingface import read_config, renamed

# The name of a setting here -> in config.json.
NAMES = dict(vocab_size="vocab_size", n_positions="max_position_embeddings", n_embd="hidden_size",
             n_layer="num_hidden_layers", n_head="num_attention_heads", n_inner="intermediate_size",
             layer_norm_epsilon="rms_norm_eps", initializer_range="initializer_range", attn_pdrop="attention_dropout",
             n_kv_head="num_key_value_heads", head_dim="head_dim", attention_bias="attention_bias",
             mlp_bias="mlp_bias", tied="tie_word_embeddings", rope_theta="rope_theta", rope_scaling="rope_scaling",
             bos_token_id="bos_token_id", eos_token_id="eos_token_id")
FIXED = dict(model_type=("llama",), hidden_act=("silu",))
# Values of settings that are missing in a config.json, where they differ from Llama-2-7B's.
HF_DEFAULTS = dict(n_positions=2048, layer_norm_epsilon=1e-6, n_kv_head=None)
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Names of modules here and in checkpoints. They are replaced in this order; no replacement may contain a later name.
MODULES = (("wte.", "embed_tokens."), ("h.", "layers."), ("ln_1.", "input_layernorm."), ("attn.", "self_attn."),
           ("ln_2.", "post_attention_layernorm."), ("ln_f.", "norm."))


@dataclass(frozen=True)
class LlamaConfig(GPTConfig):
    """The defaults are Llama-2-7B's. The settings of GPT-2 that Llama does not have are off."""
    vocab_size: int = 32000
    n_positions: int = 4096
    n_embd: int = 4096
    n_layer: int = 32
    n_head: int = 32
    n_inner: int = 11008
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.0
    attn_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int = 1
    eos_token_id: int = 2
    n_kv_head: int | None = None             # heads of keys and values; None is H
    head_dim: int | None = None              # K; None is D / H
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None         # for Llama 3: see frequencies
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False                       # the head is the embedding, transposed

    @property
    def head_width(self):
        return self.head_dim or self.n_embd // self.n_head

    @property
    def groups(self):
        return self.n_kv_head or self.n_head

    def check(self):
        super().check()
        if self.n_head % self.groups or self.head_width % 2:
            raise UserError(f"{self.n_head} heads cannot share {self.groups} keys evenly, or their width "
                            f"{self.head_width} is odd")

    @property
    def block_weights(self):
        return self.n_embd * (2 * (self.n_head + self.groups) * self.head_width + 3 * self.mlp_width)

    @staticmethod
    def read(path):
        stored = read_config(path, FIXED)
        values = HF_DEFAULTS | {ours: stored[theirs] for ours, theirs in NAMES.items() if theirs in stored}
        rope = stored.get("rope_parameters") or stored.get("rope_scaling") or {}      # since transformers 5, and before
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{path}: RoPE of type {kind!r}, or of a part of each head, is not computed here; only "
                            "plain RoPE and Llama 3's")
        if missing := [name for name in LLAMA3 if kind == "llama3" and name not in rope]:
            raise UserError(f"{path}: Llama 3's RoPE lacks {', '.join(missing)}")
        scaling = {"rope_type": kind} | {name: rope[name] for name in LLAMA3} if kind == "llama3" else None
        if isinstance(values.get("eos_token_id"), list):         # Llama 3 has several; this takes the first
            values["eos_token_id"] = values["eos_token_id"][0]
        return values | {"rope_scaling": scaling, "rope_theta": rope.get("rope_theta", values.get("rope_theta", 1e4))}

    def to_json(self):
        """In the older format, which all versions of transformers read."""
        return {name: values[0] for name, values in FIXED.items()} | {
            theirs: getattr(self, ours) for ours, theirs in NAMES.items()} | {
            "num_key_value_heads": self.groups, "head_dim": self.head_width}


def frequencies(cfg, device):
    """The angle by which each pair is rotated from one position to the next: radians, fp32, shape [K/2].

    Llama 3 was first trained on 8,192 tokens, and later on 131,072. For the longer texts, pairs that are too slow for a
    full turn within the first length become `factor` times slower. Fast pairs do not change; between them is a ramp.
    """
    f_K = 1.0 / cfg.rope_theta ** (torch.arange(0, cfg.head_width, 2, device=device).float() / cfg.head_width)
    if cfg.rope_scaling is None:
        return f_K
    factor, low, high, original = (cfg.rope_scaling[name] for name in LLAMA3)
    fast_K = ((original * f_K / (2 * math.pi) - low) / (high - low)).clamp(0, 1)    # 1: at least `high` turns
    return fast_K * f_K + (1 - fast_K) * f_K / factor


def rotate(x_BHTK, cos_BHTK, sin_BHTK):
    """Rotate each pair (x[i], x[i + K/2]) by its angle. cos and sin: [B or 1, 1, T, K/2]."""
    a, b = x_BHTK.float().chunk(2, dim=-1)
    return torch.cat([a * cos_BHTK - b * sin_BHTK, b * cos_BHTK + a * sin_BHTK], -1).to(x_BHTK.dtype)


class Attention(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        self.layer, self.width, self.dropout = layer, cfg.head_width, cfg.attn_pdrop
        self.repeats, bias = cfg.n_head // cfg.groups, cfg.attention_bias
        self.q_proj = nn.Linear(cfg.n_embd, cfg.n_head * self.width, bias)
        self.k_proj = nn.Linear(cfg.n_embd, cfg.groups * self.width, bias)
        self.v_proj = nn.Linear(cfg.n_embd, cfg.groups * self.width, bias)
        self.o_proj = nn.Linear(cfg.n_head * self.width, cfg.n_embd, bias)

    def forward(self, x_BTD, cache, context):
        visible_BTS, angles = context
        q_BHTK, k_BGSK, v_BGSK = (project(x_BTD).unflatten(-1, (-1, self.width)).transpose(1, 2)
                                  for project in (self.q_proj, self.k_proj, self.v_proj))
        q_BHTK, k_BGSK = rotate(q_BHTK, *angles), rotate(k_BGSK, *angles)
        k_BHSK, v_BHSK = (a.repeat_interleave(self.repeats, dim=1) for a in (k_BGSK, v_BGSK))
        if cache is not None:
            y_BHTK = cache.attend(self.layer, q_BHTK, k_BHSK, v_BHSK, self.width ** -0.5)
        else:
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=None if visible_BTS is None else visible_BTS[:, None],
                is_causal=visible_BTS is None, dropout_p=self.dropout if self.training else 0.0)
        return self.o_proj(y_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.n_embd, cfg.mlp_width, cfg.mlp_bias)
        self.up_proj = nn.Linear(cfg.n_embd, cfg.mlp_width, cfg.mlp_bias)
        self.down_proj = nn.Linear(cfg.mlp_width, cfg.n_embd, cfg.mlp_bias)

    def forward(self, x_BTD):
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Block(model.Block):
    def __init__(self, cfg, layer):
        super().__init__(cfg, layer)
        self.ln_1, self.attn = nn.RMSNorm(cfg.n_embd, cfg.layer_norm_epsilon), Attention(cfg, layer)
        self.ln_2, self.mlp = nn.RMSNorm(cfg.n_embd, cfg.layer_norm_epsilon), MLP(cfg)


class Llama(GPT):
    config_class, block_class, architecture = LlamaConfig, Block, "LlamaForCausalLM"
    transposed, residual, has_kernels = (), ("o_proj", "down_proj"), False

    def __init__(self, cfg):
        super(GPT, self).__init__()              # not GPT's own: there is no position embedding, but perhaps a head
        cfg.check()
        self.cfg, self.kernels, self.lm_head = cfg, None, None
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.h = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layer))
        self.ln_f = nn.RMSNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        if not cfg.tied:
            self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        if not self.wte.weight.is_meta:
            self.init_weights(torch.randint(2**31, ()).item())

    def add_tokens(self, n):
        if self.lm_head is not None:             # the head needs new rows as well
            old_VD = self.lm_head.weight
            new_VD = old_VD.new_empty(n, self.cfg.n_embd).normal_(0.0, self.cfg.initializer_range)
            self.lm_head = nn.Linear(self.cfg.n_embd, len(old_VD) + n, bias=False, device="meta")
            self.lm_head.weight = nn.Parameter(torch.cat([old_VD.detach(), new_VD]))
        return super().add_tokens(n)

    def embed(self, ids_BT, position_BT):
        return self.wte(ids_BT).to(self.ln_f.weight.dtype)       # in fast_linear's layouts the dtypes differ

    def places(self, ids_BT, cache, doc_start_BT, visible_BTS, position_BT):
        """((visible_BTS or None, (cos, sin) of the angles), position_BT)."""
        visible_BTS, position_BT = super().places(ids_BT, cache, doc_start_BT, visible_BTS, position_BT)
        angle_BHTK = torch.atleast_2d(position_BT)[:, None, :, None] * frequencies(self.cfg, ids_BT.device)
        return (visible_BTS, (angle_BHTK.cos(), angle_BHTK.sin())), position_BT

    @staticmethod
    def our_name(stored):
        if stored.endswith("rotary_emb.inv_freq"):               # stored by old releases; frequencies computes it
            return None
        return renamed(stored.removeprefix("model."), [(theirs, ours) for ours, theirs in MODULES])

    @staticmethod
    def stored_name(name):
        return name if name.startswith("lm_head.") else "model." + renamed(name, MODULES)
