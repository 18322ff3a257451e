"""BERT, ELECTRA and ALBERT in one file: the encoders that BioMedLM is compared with.

Teaches how little the three networks differ. Every token sees all others. A block normalises after it adds to the
residual stream (GPT-2 normalises before). A token's type says to which of two texts it belongs.

                 embedding                     layers                          head for masked tokens
    BERT         as wide as the model          each its own                    D -> D
    ELECTRA      may be narrower, projected    each its own                    D -> E; discriminators have none
    ALBERT       narrower, always projected    one, applied n_layer times      D -> E

Not read: BERT's pooler, which belongs to next-sentence prediction, and all heads except that for masked tokens.
Not here: how questions become rows (questions/packed.py), pretraining (baselines/pretrain_encoder.py).

    model = Encoder.from_pretrained("google-bert/bert-base-uncased")
    logits_BTV = model.logits(model.hidden(ids_BT))

Shapes are named as in model.py; E is the width of the embedding.
Devlin et al. 2018 (arXiv 1810.04805), Clark et al. 2020 (2003.10555), Lan et al. 2019 (1909.11942).
"""
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from model import GPT
from plumbing.common import UserError
from plumbing.huggingface import fill, find_folder, read_config, read_shape, read_tensors, renamed, save_model

# Names of settings here and in config.json; and each family's values of settings that are missing there.
NAMES = dict(model_type="model_type", vocab_size="vocab_size", n_positions="max_position_embeddings",
             n_embd="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads",
             n_inner="intermediate_size", n_types="type_vocab_size", activation="hidden_act",
             layer_norm_epsilon="layer_norm_eps", initializer_range="initializer_range",
             resid_pdrop="hidden_dropout_prob", attn_pdrop="attention_probs_dropout_prob",
             embd_width="embedding_size", n_groups="num_hidden_groups")
HF_DEFAULTS = {
    "bert": {},
    "electra": dict(embedding_size=128, hidden_size=256, num_attention_heads=4, intermediate_size=1024),
    "albert": dict(vocab_size=30000, embedding_size=128, hidden_size=4096, num_attention_heads=64, num_hidden_groups=1,
                   intermediate_size=16384, hidden_act="gelu_new", hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)}
FIXED = dict(model_type=("bert", "electra", "albert"), position_embedding_type=("absolute",), is_decoder=(False,),
             add_cross_attention=(False,), inner_group_num=(1,), tie_word_embeddings=(True,),
             hidden_act=("gelu", "gelu_new", "gelu_python", "gelu_pytorch_tanh"))
TANH = ("gelu_new", "gelu_pytorch_tanh")

# Names of modules here and in checkpoints. They are replaced in this order; no replacement may contain a later name.
EMBEDDINGS = (("wte.", "embeddings.word_embeddings."), ("wpe.", "embeddings.position_embeddings."),
              ("wtt.", "embeddings.token_type_embeddings."), ("ln_embd.", "embeddings.LayerNorm."))
BERT_LAYERS = (("h.", "encoder.layer."), ("attn.dense.", "attention.output.dense."), ("attn.", "attention.self."),
               ("ln_1.", "attention.output.LayerNorm."), ("mlp.c_fc.", "intermediate.dense."),
               ("mlp.dense.", "output.dense."), ("ln_2.", "output.LayerNorm."))
MODULES = {
    "bert": (*EMBEDDINGS, *BERT_LAYERS),
    "electra": (*EMBEDDINGS, ("project.", "embeddings_project."), *BERT_LAYERS),
    "albert": (*EMBEDDINGS, ("project.", "encoder.embedding_hidden_mapping_in."),
               ("h.", "encoder.albert_layer_groups."), ("attn.", "albert_layers.0.attention."),
               ("ln_1.", "albert_layers.0.attention.LayerNorm."), ("mlp.c_fc.", "albert_layers.0.ffn."),
               ("mlp.dense.", "albert_layers.0.ffn_output."), ("ln_2.", "albert_layers.0.full_layer_layer_norm."))}
# The same for the head for masked tokens; and where some folders have the embedding and the head's bias once more.
HEADS = {
    "bert": (("lm_head.dense", "cls.predictions.transform.dense"),
             ("lm_head.ln_f", "cls.predictions.transform.LayerNorm"), ("lm_head.bias", "cls.predictions.bias")),
    "electra": (("lm_head.dense", "generator_predictions.dense"),
                ("lm_head.ln_f", "generator_predictions.LayerNorm"), ("lm_head.bias", "generator_lm_head.bias")),
    "albert": (("lm_head.", "predictions."), ("ln_f", "LayerNorm"))}
COPIES = {"bert": "cls.predictions.decoder.", "electra": "generator_lm_head.", "albert": "predictions.decoder."}
# Prefixes of tensors that are not read: heads of other tasks, and buffers.
NOT_READ = ("pooler.", "cls.seq_relationship.", "discriminator_predictions.", "sop_classifier.",
         "classifier.", "sequence_summary.", "embeddings.position_ids", "embeddings.token_type_ids")


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder, with GPTConfig's names. The defaults are BERT base's."""
    model_type: str = "bert"
    vocab_size: int = 30522
    n_positions: int = 512
    n_embd: int = 768                # D
    n_layer: int = 12
    n_head: int = 12
    n_inner: int = 3072              # F
    n_types: int = 2                 # token types: first or second text
    activation: str = "gelu"         # exact GELU; gelu_new is GPT-2's approximation by tanh
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02
    resid_pdrop: float = 0.1         # also for the embeddings
    attn_pdrop: float = 0.1
    embd_width: int | None = None    # E; None is D
    n_groups: int | None = None      # ALBERT: groups of layers that share their weights; None is one
    masked_head: bool = False        # whether there is a head for masked tokens; not in config.json

    def check(self):
        """Raise UserError for a shape that cannot be built."""
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "n_types"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise UserError(f"{NAMES[name]} is {value!r}; it must be a whole number, at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"hidden_size {self.n_embd} is not a multiple of num_attention_heads {self.n_head}")
        if self.model_type == "bert" and self.width != self.n_embd:
            raise UserError(f"embedding_size is {self.width} in a BERT, whose hidden_size is {self.n_embd}; the "
                            "families with a narrower embedding are electra and albert")
        if self.model_type == "albert" and not 1 <= self.groups <= self.n_layer:
            raise UserError(f"num_hidden_groups is {self.n_groups}; there are {self.n_layer} layers to share them")

    @property
    def width(self):
        return self.embd_width or self.n_embd

    @property
    def groups(self):
        return (self.n_groups or 1) if self.model_type == "albert" else self.n_layer

    from_json = classmethod(read_shape)           # EncoderConfig.from_json(path of a config.json)

    @staticmethod
    def read(path):
        stored = {"model_type": "bert"} | read_config(path, FIXED)
        stored = HF_DEFAULTS[stored["model_type"]] | stored
        return {ours: stored[theirs] for ours, theirs in NAMES.items() if theirs in stored}

    def to_json(self):
        values = asdict(self) | {"embd_width": self.width, "n_groups": self.groups}
        absent = {"bert": ("embd_width", "n_groups"), "electra": ("n_groups",), "albert": ()}[self.model_type]
        return {name: values[0] for name, values in FIXED.items()} | {
            theirs: values[ours] for ours, theirs in NAMES.items() if ours not in absent}


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_head, self.dropout = cfg.n_head, cfg.attn_pdrop
        self.query, self.key, self.value, self.dense = (nn.Linear(cfg.n_embd, cfg.n_embd) for _ in range(4))

    def forward(self, x_BTD, visible_BTS):
        q_BHTK, k_BHSK, v_BHSK = (part(x_BTD).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                                  for part in (self.query, self.key, self.value))
        y_BHTK = F.scaled_dot_product_attention(
            q_BHTK, k_BHSK, v_BHSK, attn_mask=None if visible_BTS is None else visible_BTS[:, None],
            dropout_p=self.dropout if self.training else 0.0)
        return self.dense(y_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c_fc, self.dense = nn.Linear(cfg.n_embd, cfg.n_inner), nn.Linear(cfg.n_inner, cfg.n_embd)
        self.approximate = "tanh" if cfg.activation in TANH else "none"

    def forward(self, x_BTD):
        return self.dense(F.gelu(self.c_fc(x_BTD), approximate=self.approximate))


class Block(nn.Module):
    """LayerNorm(x + attention(x)), then LayerNorm(x + MLP(x))."""

    def __init__(self, cfg):
        super().__init__()
        self.attn, self.mlp = Attention(cfg), MLP(cfg)
        self.ln_1, self.ln_2 = (nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon) for _ in range(2))
        self.drop = nn.Dropout(cfg.resid_pdrop)
        self.recompute = False      # activation checkpointing: set by the trainer

    def forward(self, x_BTD, visible_BTS):
        if self.recompute and self.training:
            return checkpoint(self.transform, x_BTD, visible_BTS, use_reentrant=False)
        return self.transform(x_BTD, visible_BTS)

    def transform(self, x_BTD, visible_BTS):
        x_BTD = self.ln_1(x_BTD + self.drop(self.attn(x_BTD, visible_BTS)))
        return self.ln_2(x_BTD + self.drop(self.mlp(x_BTD)))


class MaskedHead(nn.Module):
    """Predicts masked tokens: a dense layer to the embedding's width, then the product with each token's embedding."""

    def __init__(self, cfg):
        super().__init__()
        self.dense, self.ln_f = nn.Linear(cfg.n_embd, cfg.width), nn.LayerNorm(cfg.width, cfg.layer_norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(cfg.vocab_size))
        # TRAP: ELECTRA's generator uses the exact GELU here, whatever its config says.
        self.approximate = "tanh" if cfg.activation in TANH and cfg.model_type != "electra" else "none"

    def forward(self, x_BTD, wte_VE):
        return F.linear(self.ln_f(F.gelu(self.dense(x_BTD), approximate=self.approximate)), wte_VE, self.bias)


class Encoder(nn.Module):
    """An encoder. `h` holds the blocks that have weights of their own; ALBERT's block is in it once. So all its layers
    share one low-rank addition, as they share the weights, and they are all recomputed or none is."""

    causal = False               # every token sees all others
    transposed = ()              # weights are stored as [out, in]

    def __init__(self, cfg):
        super().__init__()
        cfg.check()
        self.cfg, E = cfg, cfg.width
        self.wte, self.wpe, self.wtt = (nn.Embedding(n, E) for n in (cfg.vocab_size, cfg.n_positions, cfg.n_types))
        self.ln_embd, self.drop = nn.LayerNorm(E, cfg.layer_norm_epsilon), nn.Dropout(cfg.resid_pdrop)
        projects = cfg.model_type == "albert" or E != cfg.n_embd
        self.project = nn.Linear(E, cfg.n_embd) if projects else nn.Identity()
        self.h = nn.ModuleList(Block(cfg) for _ in range(cfg.groups))
        self.lm_head = MaskedHead(cfg) if cfg.masked_head else None
        if not self.wte.weight.is_meta:
            self.init_weights(torch.randint(2**31, ()).item())

    initial_weights, init_weights, residual = GPT.initial_weights, GPT.init_weights, ()      # all N(0, 0.02)

    def add_tokens(self, n):
        if self.lm_head:
            self.lm_head.bias = nn.Parameter(F.pad(self.lm_head.bias.detach(), (0, n)))
        return GPT.add_tokens(self, n)

    def hidden(self, ids_BT, type_BT=None, visible_BTS=None, position_BT=None):
        """The last block's output x_BTD for ids_BT (int64).

        type_BT        int64: to which text each token belongs; None is all 0
        visible_BTS    bool, or of shape [B, 1, S]: which keys a query sees; None is all. Must hide padding
        position_BT    int64: the positions of the tokens, if they are not 0, 1, 2 ...
        """
        visible_BTS, position_BT = GPT.places(self, ids_BT, None, None, visible_BTS, position_BT)
        type_BT = torch.zeros_like(ids_BT) if type_BT is None else type_BT
        x_BTE = self.drop(self.ln_embd(self.wte(ids_BT) + self.wtt(type_BT) + self.wpe(position_BT)))
        x_BTD = self.project(x_BTE)
        for layer in range(self.cfg.n_layer):
            x_BTD = self.h[layer * len(self.h) // self.cfg.n_layer](x_BTD, visible_BTS)
        return x_BTD

    def logits(self, x_BTD):
        """logits_BTV of the token at each position, or of the token that was masked there."""
        if self.lm_head is None:
            raise UserError("this encoder has no head for masked tokens; ELECTRA's discriminators never have one")
        return self.lm_head(x_BTD, self.wte.weight)

    def forward(self, ids_BT):
        return self.logits(self.hidden(ids_BT))

    def stored_name(self, name):
        """The name of a parameter in the family's checkpoints."""
        family = self.cfg.model_type
        if name.startswith("lm_head."):
            return renamed(name, HEADS[family])
        return f"{family}.{renamed(name, MODULES[family])}"

    @classmethod
    def from_pretrained(cls, name_or_folder, dtype=torch.float32):
        """Like GPT.from_pretrained; with the head for masked tokens if the folder has one."""
        folder = find_folder(name_or_folder)
        cfg = EncoderConfig.from_json(folder / "config.json")
        family = cfg.model_type
        stored = {plain(name, family): tensor for name, tensor in read_tensors(folder)}
        rows = len(stored.get("embeddings.word_embeddings.weight", ()))    # more than in config.json if some were added
        has_head = renamed("lm_head.dense.weight", HEADS[family]) in stored
        with torch.device("meta"):
            model = cls(replace(cfg, vocab_size=max(cfg.vocab_size, rows), masked_head=has_head))

        ours = {plain(model.stored_name(name), family): name for name, _ in model.named_parameters()}
        ours |= {COPIES[family] + "weight": "wte.weight", COPIES[family] + "bias": "lm_head.bias"}
        tensors = {}
        for name, tensor in stored.items():
            name = ours.get(name, name)
            if name in tensors and not torch.equal(tensors[name], tensor):
                raise UserError(f"{folder}: holds two different {name}, which this model ties")
            if not name.startswith(NOT_READ):
                tensors[name] = tensor
        fill(model, tensors, folder, dtype)
        return model.eval()

    @property
    def architecture(self):
        """The class of transformers that reads it."""
        return self.cfg.model_type.capitalize() + ("ForMaskedLM" if self.lm_head else "Model")

    @torch.no_grad()
    def save_pretrained(self, folder, head=None):
        """Like GPT.save_pretrained."""
        save_model(self, folder, self.cfg, head=head)


def plain(name, family):
    """A tensor's name without the family's prefix. The first releases called weight and bias gamma and beta."""
    return name.removeprefix(family + ".").replace(".gamma", ".weight").replace(".beta", ".bias")
