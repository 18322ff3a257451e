"""GPT-2 as BioMedLM uses it: 2.6 billion parameters in one readable file.

Teaches the network: token and position embeddings, pre-LayerNorm blocks of attention and MLP, a head tied to the token
embedding, and the one unusual line, scores divided by (layer + 1). And how a Hugging Face folder is read and written.
Not here: training (train.py), the KV cache and sampling (sample.py), many processes (parallel.py).

    from model import GPT, GPTConfig
    GPTConfig()                                                # the paper's model: 2,594,247,680 parameters
    model = GPT.from_pretrained("stanford-crfm/BioMedLM")      # or "gpt2", or a local folder
    logits_BTV = model(ids_BT)

Shapes stand in the names: B batch, T query position, S key position, D model width, H heads, K head width, F MLP width,
V vocabulary. Modules keep GPT-2's checkpoint names. Bolton et al. 2024 (arXiv 2403.18421), section 3.
"""
import math
import zlib
from dataclasses import asdict, dataclass, fields, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from plumbing.common import UserError
from plumbing.huggingface import fill, find_folder, read_config, read_tensors, write_config, write_tensors

# GPT-2's linear layers were written as Conv1D, whose weight is [in, out]: nn.Linear's, transposed.
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# What a config.json means where it is silent: GPT-2 small, not BioMedLM.
SILENT = dict(vocab_size=50257, n_embd=768, n_layer=12, n_head=12, scale_attn_by_inverse_layer_idx=False,
              bos_token_id=50256, eos_token_id=50256)
# What this file does not do otherwise; a config that asks for more would load and answer wrongly. First: what we write.
FIXED = dict(model_type=("gpt2",), activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_weights=(True,),
             add_cross_attention=(False,), tie_word_embeddings=(True,))


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the network, in the words of Hugging Face's config.json. The defaults are BioMedLM's."""
    vocab_size: int = 28896
    n_positions: int = 1024                       # learned positions: there is no position after the last
    n_embd: int = 2560                            # D
    n_layer: int = 32
    n_head: int = 20                              # H; 2560 / 20 = 128 = K, a width that fast attention kernels like
    n_inner: int | None = None                    # F; None is 4 D
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    scale_attn_by_inverse_layer_idx: bool = True  # TRAP: a port without it loads the weights and answers wrongly
    bos_token_id: int = 28895
    eos_token_id: int = 28895

    def check(self):
        """Raise UserError for a shape that cannot be built."""
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}; it must be a whole number, at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}; heads share it evenly")

    @classmethod
    def from_json(cls, path):
        """Read Hugging Face's config.json; UserError for what this file would compute wrongly."""
        values = cls.read(path)
        cfg = cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        try:
            cfg.check()
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return cfg

    @staticmethod
    def read(path):
        return SILENT | read_config(path, FIXED)

    def to_json(self):
        return {name: values[0] for name, values in FIXED.items()} | asdict(self)

    @property
    def mlp_width(self):
        return self.n_inner or 4 * self.n_embd

    @property
    def head_width(self):
        return self.n_embd // self.n_head

    @property
    def block_weights(self):
        """The weights of a block that meet in a matrix product: 4 D^2 of attention, 2 D F of the MLP."""
        return self.n_embd * (4 * self.n_embd + 2 * self.mlp_width)

    def flops_per_token(self, T):
        """Training FLOPs for one token in a window of T: 6N + 12 L D T, N the weights that meet in a matrix product.

        The convention of PaLM, nanoGPT and llm-foundry: forward and backward, attention not halved for causality.
        """
        n_matmul = self.n_layer * self.block_weights + self.vocab_size * self.n_embd
        return 6 * n_matmul + 12 * self.n_layer * self.n_head * self.head_width * T


class Attention(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, cfg.n_head, cfg.attn_pdrop
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd)
        self.scale = cfg.head_width ** -0.5
        if cfg.scale_attn_by_inverse_layer_idx:
            # Mistral's trick, kept by BioMedLM: deep layers cannot overflow fp16, and the weights learn around it.
            self.scale /= layer + 1

    def forward(self, x_BTD, cache=None, visible_BTS=None):
        q_BHTK, k_BHSK, v_BHSK = (a_BTD.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                                  for a_BTD in self.c_attn(x_BTD).chunk(3, dim=-1))
        if cache is not None:                      # the keys and values of earlier tokens join the new ones
            y_BHTK = cache.attend(self.layer, q_BHTK, k_BHSK, v_BHSK, self.scale)
        else:
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=None if visible_BTS is None else visible_BTS[:, None],
                is_causal=visible_BTS is None, dropout_p=self.dropout if self.training else 0.0, scale=self.scale)
        return self.c_proj(y_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c_fc = nn.Linear(cfg.n_embd, cfg.mlp_width)
        self.c_proj = nn.Linear(cfg.mlp_width, cfg.n_embd)

    def forward(self, x_BTD):
        return self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh"))    # "gelu_new" in Hugging Face's words


class Block(nn.Module):
    """x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)): the sum itself is never normalised on its way up."""

    def __init__(self, cfg, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.attn = Attention(cfg, layer)
        self.ln_2 = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.mlp = MLP(cfg)
        self.drop = nn.Dropout(cfg.resid_pdrop)
        self.recompute = False      # activation checkpointing: set by the trainer
        self.kernels = None         # None is torch's operators; or kernels/transformer.py: see GPT.use_kernels

    def forward(self, x_BTD, cache=None, visible_BTS=None, doc_start_BT=None):
        if self.kernels:
            transform, arguments = self.kernels.block, (self, x_BTD, doc_start_BT)
        else:
            transform, arguments = self.transform, (x_BTD, cache, visible_BTS)
        if self.recompute and self.training:       # keep x alone; the backward pass computes the rest once more
            return checkpoint(transform, *arguments, use_reentrant=False)
        return transform(*arguments)

    def transform(self, x_BTD, cache, visible_BTS):
        x_BTD = x_BTD + self.drop(self.attn(self.ln_1(x_BTD), cache, visible_BTS))
        return x_BTD + self.drop(self.mlp(self.ln_2(x_BTD)))


def linears(block):
    """(owner, name, linear) of every nn.Linear in a block, in a fixed order: for who puts something in their place."""
    return [(owner, name, child) for owner in block.modules() for name, child in owner.named_children()
            if isinstance(child, nn.Linear)]


class CrossEntropy(torch.autograd.Function):
    """The sum of -log softmax(logits)[target] over the targets that are not negative.

    Its gradient is softmax(logits), less 1 at the target. It is written over the logits, which nobody needs any more:
    F.cross_entropy would keep log softmax beside them and make two more such arrays, 12 V bytes a token.
    """

    @staticmethod
    def forward(ctx, logits_NV, targets_N):
        counts_N, lse_N = targets_N >= 0, logits_NV.logsumexp(-1)
        at_target_N = logits_NV.gather(-1, targets_N.clamp(min=0)[:, None])[:, 0]
        ctx.save_for_backward(logits_NV, targets_N, lse_N)
        return torch.where(counts_N, lse_N - at_target_N, 0.0).sum()

    @staticmethod
    def backward(ctx, gradient):
        logits_NV, targets_N, lse_N = ctx.saved_tensors
        share_N = gradient * (targets_N >= 0)
        dlogits_NV = logits_NV.sub_(lse_N[:, None]).exp_().mul_(share_N[:, None])
        return dlogits_NV.scatter_add_(-1, targets_N.clamp(min=0)[:, None], -share_N[:, None]), None


class GPT(nn.Module):
    """A decoder-only transformer over ids_BT (int64, 0 <= id < vocab_size, T <= n_positions)."""
    # In what the other families in baselines/ differ, beside a method or two:
    config_class, block_class, architecture = GPTConfig, Block, "GPT2LMHeadModel"
    transposed, residual = CONV1D, ("c_proj",)      # the ends of weights that lie as [in, out]; what adds to the stream
    causal = True                                   # a token sees the tokens before it; encoders see all
    has_kernels = True                              # kernels/ and cuda_graph.py compute this network

    def __init__(self, cfg):
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)      # tokens in, and transposed: the head (tied)
        self.wpe = nn.Embedding(cfg.n_positions, cfg.n_embd)     # positions
        self.drop = nn.Dropout(cfg.embd_pdrop)
        self.h = nn.ModuleList(self.block_class(cfg, layer) for layer in range(cfg.n_layer))
        self.ln_f = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.lm_head = None         # what stands in for the embedding as the head: fast_linear.py, trainable.py
        self.kernels = None
        if not self.wte.weight.is_meta:
            self.init_weights(torch.randint(2**31, ()).item())

    def initial_weights(self, seed, device=None):
        """Yield (name, tensor): N(0, 0.02), biases 0, LayerNorm 1 and 0; what adds to the residual stream is divided by
        sqrt(2 L). Every parameter has a generator of its own, so that its values depend on its name and the seed alone.
        """
        residual_std = self.cfg.initializer_range / math.sqrt(2 * self.cfg.n_layer)
        for name, p in self.named_parameters():
            value = torch.zeros(p.shape, device=device or p.device)
            if p.dim() == 1:
                value += "ln_" in name and name.endswith("weight")
            else:
                generator = torch.Generator(value.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                std = residual_std if any(part in name for part in self.residual) else self.cfg.initializer_range
                value.normal_(0.0, std, generator=generator)
            yield name, value

    @torch.no_grad()
    def init_weights(self, seed):
        parameters = dict(self.named_parameters())
        for name, value in self.initial_weights(seed):
            parameters[name].copy_(value)

    def add_tokens(self, n):
        """Append n rows to the embedding, for tokens that fine-tuning adds: [SEP], [PAD] ... Returns the first's id."""
        first, old_VD = self.cfg.vocab_size, self.wte.weight
        self.cfg = replace(self.cfg, vocab_size=first + n)
        new_VD = old_VD.new_empty(n, self.cfg.n_embd).normal_(0.0, self.cfg.initializer_range)
        self.wte = nn.Embedding.from_pretrained(torch.cat([old_VD.detach(), new_VD]), freeze=False)
        return first

    def use_kernels(self, kernels, device):
        """Compute blocks and loss with "torch"'s operators or with the "triton" kernels of kernels/, which are for
        training: no cache, no visible_BTS. Returns in a line what was chosen. UserError where Triton cannot run; "auto"
        takes it on the GPUs that it was written for.
        """
        chosen, said = None, "torch's operators"
        if kernels == "triton" and not self.has_kernels:
            raise UserError(f"the Triton kernels compute GPT-2, not {type(self).__name__}; use --kernels torch")
        if kernels == "triton" or (kernels == "auto" and device.type == "cuda" and self.has_kernels):
            from kernels import require_triton  # here: Triton is for Linux, and this file for everyone
            try:
                said = require_triton(device, self.cfg.head_width)
                from kernels import transformer as chosen
            except UserError as error:
                if kernels == "triton":
                    raise
                said += f" ({error})"
        for module in (self, *self.h):
            module.kernels = chosen
        return said

    def hidden(self, ids_BT, cache=None, doc_start_BT=None, visible_BTS=None, position_BT=None):
        """The last LayerNorm's output x_BTD, which the head (or a classifier) reads.

        With a cache (sample.KVCache), ids_BT continues the tokens that it already holds. With doc_start_BT (int32, from
        data.document_starts) query t sees no key before its own document; with visible_BTS (bool) the keys where it is
        True, in place of all up to itself; with position_BT (int64) its token stands at that position, and the row may
        be longer than n_positions.
        """
        assert self.kernels is None or (cache is None and visible_BTS is None), "use_kernels('torch') for these"
        visible_BTS, position_BT = self.places(ids_BT, cache, doc_start_BT, visible_BTS, position_BT)
        x_BTD = self.embed(ids_BT, position_BT)
        if self.kernels and torch.is_autocast_enabled(x_BTD.device.type):     # the kernels take what they are given
            x_BTD = x_BTD.to(torch.get_autocast_dtype(x_BTD.device.type))
        for block in self.h:
            x_BTD = block(x_BTD, cache, visible_BTS, doc_start_BT)
        if cache:
            cache.length += ids_BT.shape[1]
        return self.ln_f(x_BTD)

    def embed(self, ids_BT, position_BT):
        return self.drop(self.wte(ids_BT) + self.wpe(position_BT))

    def places(self, ids_BT, cache, doc_start_BT, visible_BTS, position_BT):
        """What hidden was not told: (visible_BTS, None for all up to the query itself; position_BT)."""
        past, T = cache.length if cache else 0, ids_BT.shape[1]
        if position_BT is None:
            if past + T > self.cfg.n_positions:
                raise UserError(f"{past + T} tokens, but this model has {self.cfg.n_positions} positions; shorten the "
                                "text")
            position_BT = torch.arange(past, past + T, device=ids_BT.device)
        if doc_start_BT is not None and self.kernels is None:
            s_S = torch.arange(T, device=ids_BT.device)
            visible_BTS = (s_S <= s_S[:, None]) & (s_S >= doc_start_BT[:, :, None])
        return visible_BTS, position_BT

    def logits(self, x_BTD):
        """logits_BTV of hidden's output (or of some of its rows): the embedding, transposed, is the head."""
        return F.linear(x_BTD, self.wte.weight) if self.lm_head is None else self.lm_head(x_BTD)

    def forward(self, ids_BT, targets_BT=None, cache=None, doc_start_BT=None):
        """logits_BTV; or, given targets_BT, the mean cross-entropy in nats over those targets that are not negative."""
        x_BTD = self.hidden(ids_BT, cache, doc_start_BT)
        if self.kernels and targets_BT is not None:
            return self.kernels.loss(x_BTD, self.wte.weight, targets_BT)
        logits_BTV = self.logits(x_BTD)
        if targets_BT is None:
            return logits_BTV
        # fp32: in bf16 the softmax over 28,896 logits would lose the small probabilities. COST: 4 V bytes a token.
        total = CrossEntropy.apply(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
        return total / (targets_BT >= 0).sum().clamp(min=1)

    def loss(self, ids_BT, targets_BT):
        return self(ids_BT, targets_BT)

    @staticmethod
    def our_name(stored):
        """What a tensor in a folder is called here; None for the causal mask, which old releases hold."""
        return None if stored.endswith((".attn.bias", ".attn.masked_bias")) else stored.removeprefix("transformer.")

    @staticmethod
    def stored_name(name):
        return "transformer." + name

    @classmethod
    def from_pretrained(cls, name_or_folder, dtype=torch.float32):
        """Read a GPT-2 from a local folder or from the Hugging Face hub, in evaluation mode.

        Peak memory is about one copy of the model in `dtype`: tensors are mapped from disk and converted one by one.
        Raises UserError for a folder that holds no such model.
        """
        folder = find_folder(name_or_folder)
        model, tensors = cls.open(folder)
        fill(model, tensors, folder, dtype)
        return model.eval()

    @classmethod
    def open(cls, folder):
        """A model on the "meta" device, without weights, and its tensors by name: mapped from disk, not yet read."""
        cfg = cls.config_class.from_json(folder / "config.json")
        tensors = {cls.our_name(name): tensor for name, tensor in read_tensors(folder)}
        tensors.pop(None, None)
        if "wte.weight" in tensors:      # rows added by fine-tuning: [PAD], [SEP] ...
            cfg = replace(cfg, vocab_size=max(cfg.vocab_size, len(tensors["wte.weight"])))
        with torch.device("meta"):
            model = cls(cfg)
        lm_head = tensors.pop("lm_head.weight", None) if model.lm_head is None else None
        if lm_head is not None and "wte.weight" in tensors and not torch.equal(
                lm_head.to((tied := tensors["wte.weight"]).dtype), tied):
            raise UserError(f"{folder}: lm_head.weight differs from wte.weight; this model ties them")
        return model, {name: p.t() if name.endswith(cls.transposed) else p for name, p in tensors.items()}

    @torch.no_grad()
    def save_pretrained(self, folder, fold_layer_scale=False):
        """Write config.json and safetensors as transformers' classes read them, in the parameters' dtype.

        fold_layer_scale multiplies 1/(layer+1) into the query weights and switches the flag off: the same logits in
        programs that do not know the flag (vLLM refuses it, llama.cpp ignores it).
        """
        parameters, cfg = dict(self.named_parameters()), self.cfg
        fold = fold_layer_scale and cfg.scale_attn_by_inverse_layer_idx

        def stored(name):
            tensor = parameters[name].detach().cpu()
            if fold and ".attn.c_attn." in name:
                tensor = tensor.clone()
                tensor[:cfg.n_embd] /= int(name.split(".")[1]) + 1          # h.LAYER.attn.c_attn: queries come first
            return (tensor.t() if name.endswith(self.transposed) else tensor).contiguous()

        write_tensors(folder, {self.stored_name(name): (p.nbytes, name) for name, p in parameters.items()}, stored)
        cfg = replace(cfg, scale_attn_by_inverse_layer_idx=False) if fold else cfg
        write_config(folder, cfg.to_json() | {
            "architectures": [self.architecture], "dtype": str(self.wte.weight.dtype).split(".")[-1]})
