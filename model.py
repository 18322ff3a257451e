"""GPT-2 as BioMedLM uses it: 2.6 billion parameters in one readable file.

Teaches the network: token and position embeddings, pre-LayerNorm blocks of attention and MLP, a head tied to the token
embedding, and the one unusual line, scores divided by (layer + 1).
Not here: training (train.py), sampling (sample.py) and its KV cache (sampling/cache.py), many processes
(training/parallel.py), the files of a Hugging Face folder (plumbing/huggingface.py).

    from model import GPT, GPTConfig
    GPTConfig()                                                # the paper's model: 2,594,247,680 parameters
    model = GPT.from_pretrained("stanford-crfm/BioMedLM")      # or "gpt2", or a local folder
    logits_BTV = model(ids_BT)

Names end in shapes: B batch, T query position, S key position, D model width, H heads, K head width, F MLP width,
V vocabulary. Modules keep GPT-2's checkpoint names. Bolton et al. 2024 (arXiv 2403.18421), section 3.
"""
import math
import zlib
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from plumbing.common import UserError
from plumbing.huggingface import fill, find_folder, open_model, read_config, read_shape, save_model

# Checkpoints store these weights as [in, out] (OpenAI's Conv1D); nn.Linear has [out, in].
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# The values of settings that a config.json leaves out: GPT-2 small's, not BioMedLM's.
HF_DEFAULTS = dict(vocab_size=50257, n_embd=768, n_layer=12, n_head=12, scale_attn_by_inverse_layer_idx=False,
                   bos_token_id=50256, eos_token_id=50256)
# Settings that this file computes in one way only. A config with another value is refused; the first one is written.
FIXED = dict(model_type=("gpt2",), activation_function=("gelu_new", "gelu_pytorch_tanh"), scale_attn_weights=(True,),
             add_cross_attention=(False,), tie_word_embeddings=(True,))

# The largest sizes that are taken for real. Building a billion layers would fill the memory before any other error.
LIMITS = dict(vocab_size=10**7, n_positions=10**7, n_embd=10**6, n_layer=1000, n_head=10**4, mlp_width=10**7)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of the network, with the names of Hugging Face's config.json. The defaults are BioMedLM's."""
    vocab_size: int = 28896
    n_positions: int = 1024                       # learned positions; a longer text is an error
    n_embd: int = 2560                            # D
    n_layer: int = 32
    n_head: int = 20                              # H; 2560 / 20 = 128 = K, a width for which attention kernels are fast
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
        for name, highest in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= highest:
                raise UserError(f"{name} is {value!r}; it must be a whole number from 1 to {highest:,}")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value < 1:
                raise UserError(f"{name} is {value!r}; it must be a number from 0 to below 1")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < 1:
                raise UserError(f"{name} is {value!r}; it must be a number between 0 and 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}; heads share it evenly")

    from_json = classmethod(read_shape)           # GPTConfig.from_json(path of a config.json)

    @staticmethod
    def read(path):
        return HF_DEFAULTS | read_config(path, FIXED)

    def to_json(self):
        """The values of config.json; llama.cpp reads n_positions under its older name, n_ctx."""
        return {name: values[0] for name, values in FIXED.items()} | asdict(self) | {"n_ctx": self.n_positions}

    @property
    def mlp_width(self):
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def head_width(self):
        return self.n_embd // self.n_head

    @property
    def block_weights(self):
        """The weights of a block that take part in matrix products: 4 D^2 of attention, 2 D F of the MLP."""
        return self.n_embd * (4 * self.n_embd + 2 * self.mlp_width)

    def flops_per_token(self, T):
        """Training FLOPs for one token in a window of T: 6N + 12 L D T; N counts the weights in matrix products. The
        convention of PaLM, nanoGPT and llm-foundry: forward and backward, attention not halved for causality."""
        n_matmul = self.n_layer * self.block_weights + self.vocab_size * self.n_embd
        return 6 * n_matmul + 12 * self.n_layer * self.n_head * self.head_width * T


class Attention(nn.Module):
    def __init__(self, cfg, layer):
        super().__init__()
        self.layer, self.n_head, self.dropout = layer, cfg.n_head, cfg.attn_pdrop
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd)
        self.scale = self.head_scale = cfg.head_width ** -0.5
        self.by_depth = cfg.scale_attn_by_inverse_layer_idx
        if self.by_depth:
            # From Stanford's Mistral, kept by BioMedLM: scores of deep layers cannot overflow fp16.
            self.scale /= layer + 1
        # A tensor, so that torch.compile makes one graph for all layers. Not a buffer: see _apply.
        self.scale_on_device = torch.tensor(self.scale, device="cpu")

    def _apply(self, function, recurse=True):
        """What to(), to_empty() and the like call. As a buffer, the scale would be left unfilled or rounded by them."""
        super()._apply(function, recurse)
        self.scale_on_device = torch.tensor(self.scale, device=function(self.scale_on_device).device)
        return self

    def forward(self, x_BTD, cache=None, visible_BTS=None):
        # queries, keys and values of all heads in one product, then one row of K numbers for each head
        q_BHTK, k_BHSK, v_BHSK = (a_BTD.unflatten(-1, (self.n_head, -1)).transpose(1, 2)
                                  for a_BTD in self.c_attn(x_BTD).chunk(3, dim=-1))

        # y = softmax(scale q k^T, over the visible keys) v
        if cache is not None:                      # appends the new keys and values to those of earlier tokens
            y_BHTK = cache.attend(self.layer, q_BHTK, k_BHSK, v_BHSK, self.scale)
        else:
            if self.by_depth:                      # 1/(layer + 1); the rest is the same number in all layers
                q_BHTK = q_BHTK * (self.scale_on_device / self.head_scale)
            y_BHTK = F.scaled_dot_product_attention(
                q_BHTK, k_BHSK, v_BHSK, attn_mask=None if visible_BTS is None else visible_BTS[:, None],
                is_causal=visible_BTS is None, dropout_p=self.dropout if self.training else 0.0, scale=self.head_scale)

        # the heads side by side again, and mixed
        return self.c_proj(y_BHTK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.c_fc = nn.Linear(cfg.n_embd, cfg.mlp_width)
        self.c_proj = nn.Linear(cfg.mlp_width, cfg.n_embd)

    def forward(self, x_BTD):
        return self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh"))    # "gelu_new" in Hugging Face's words


class Block(nn.Module):
    """x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); x itself is never normalised."""

    def __init__(self, cfg, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.attn = Attention(cfg, layer)
        self.ln_2 = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.mlp = MLP(cfg)
        self.drop = nn.Dropout(cfg.resid_pdrop)
        self.recompute = False      # activation checkpointing: set by the trainer
        self.kernels = None         # None: torch's operators; else the module kernels/transformer.py, by use_kernels

    def forward(self, x_BTD, cache=None, visible_BTS=None, doc_start_BT=None):
        if self.recompute and self.training:       # keep x alone; the backward pass computes the rest again
            return checkpoint(self.compute, x_BTD, cache, visible_BTS, doc_start_BT, use_reentrant=False)
        return self.compute(x_BTD, cache, visible_BTS, doc_start_BT)

    def compute(self, x_BTD, cache, visible_BTS, doc_start_BT):
        if self.kernels:
            return self.kernels.block(self, x_BTD, doc_start_BT)
        x_BTD = x_BTD + self.drop(self.attn(self.ln_1(x_BTD), cache, visible_BTS))
        return x_BTD + self.drop(self.mlp(self.ln_2(x_BTD)))


def linears(block):
    """(owner, name, linear) of every nn.Linear in a block, in a fixed order, for code that replaces them."""
    return [(owner, name, child) for owner in block.modules() for name, child in owner.named_children()
            if isinstance(child, nn.Linear)]


class CrossEntropy(torch.autograd.Function):
    """The sum of -log softmax(logits)[target] over the targets that are not negative.

    Its gradient is softmax(logits), less 1 at the target. log softmax(logits) overwrites the logits in place, and the
    gradient overwrites that: F.cross_entropy would make three more arrays of the logits' size, 12 V bytes per token.
    """

    @staticmethod
    def forward(ctx, logits_NV, targets_N):
        counts_N1, targets_N1 = (targets_N >= 0)[:, None], targets_N.clamp(min=0)[:, None]
        logp_NV = torch.log_softmax(logits_NV, -1, out=logits_NV.detach())
        ctx.save_for_backward(logp_NV, counts_N1, targets_N1)
        return -torch.where(counts_N1, logp_NV.gather(-1, targets_N1), 0.0).sum()

    @staticmethod
    def backward(ctx, gradient):
        logp_NV, counts_N1, targets_N1 = ctx.saved_tensors
        share_N1 = gradient * counts_N1
        return logp_NV.exp_().mul_(share_N1).scatter_add_(-1, targets_N1, -share_N1), None


class GPT(nn.Module):
    """A decoder-only transformer over ids_BT (int64, 0 <= id < vocab_size, T <= n_positions)."""
    # The families in baselines/ have other values here:
    config_class, block_class, architecture = GPTConfig, Block, "GPT2LMHeadModel"
    transposed = CONV1D                             # endings of weights that checkpoints store as [in, out]
    residual = ("c_proj",)                          # layers whose output is added to the residual stream
    causal = True                                   # a token sees only the tokens before it; encoders see all
    has_kernels = True                              # kernels/ and sampling/cuda_graph.py compute this network

    def __init__(self, cfg):
        super().__init__()
        cfg.check()
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)      # tokens in, and transposed: the head (tied)
        self.wpe = nn.Embedding(cfg.n_positions, cfg.n_embd)     # positions
        self.drop = nn.Dropout(cfg.embd_pdrop)
        self.h = nn.ModuleList(self.block_class(cfg, layer) for layer in range(cfg.n_layer))
        self.ln_f = nn.LayerNorm(cfg.n_embd, cfg.layer_norm_epsilon)
        self.lm_head = None         # an output head to use instead of the tied embedding
        self.kernels = None
        if not self.wte.weight.is_meta:
            self.init_weights(torch.randint(2**31, ()).item())

    def initial_weights(self, seed, device=None):
        """Yield (name, tensor): N(0, 0.02), biases 0, LayerNorm 1 and 0. Layers that add to the residual stream are
        divided by sqrt(2 L). Each parameter has its own generator, so its values depend on its name and the seed only.
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
        """Append n rows to the embedding, for tokens that fine-tuning adds: [SEP], [PAD] ... Returns the first id."""
        first, old_VD = self.cfg.vocab_size, self.wte.weight
        self.cfg = replace(self.cfg, vocab_size=first + n)
        new_VD = old_VD.new_empty(n, old_VD.shape[1]).normal_(0.0, self.cfg.initializer_range)
        self.wte = nn.Embedding.from_pretrained(torch.cat([old_VD.detach(), new_VD]), freeze=False)
        return first

    def use_kernels(self, kernels, device):
        """Compute blocks and loss with "torch"'s operators or with the "triton" kernels of kernels/, which are for
        training: no cache, no visible_BTS. "auto" takes them where they can run. Returns in a line what was chosen."""
        if kernels == "triton" and not self.has_kernels:
            raise UserError(f"the Triton kernels compute GPT-2, not {type(self).__name__}; use --kernels torch")
        from kernels import choose
        chosen, said = choose(kernels if self.has_kernels else "torch", device, self.cfg.head_width)
        for module in (self, *self.h):
            module.kernels = chosen
        return said

    def hidden(self, ids_BT, cache=None, doc_start_BT=None, visible_BTS=None, position_BT=None):
        """The last LayerNorm's output x_BTD, which the head (or a classifier) reads.

        With a cache (sample.KVCache), ids_BT continues the tokens that it already holds. With doc_start_BT (int32, from
        data.document_starts) query t sees no key before its own document. visible_BTS (bool) replaces the causal mask.
        position_BT (int64) gives each token's position; the row may then be longer than n_positions.
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
        return self.kernels.final_norm(self.ln_f, x_BTD) if self.kernels else self.ln_f(x_BTD)

    def embed(self, ids_BT, position_BT):
        return self.drop(self.wte(ids_BT) + self.wpe(position_BT))

    def places(self, ids_BT, cache, doc_start_BT, visible_BTS, position_BT):
        """(visible_BTS, position_BT), where the caller of `hidden` left them out. visible_BTS is None if a query sees
        every key up to itself."""
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
        # fp32: in bf16 the softmax over 28,896 logits would lose the small probabilities. COST: 4 V bytes per token.
        total = CrossEntropy.apply(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
        return total / (targets_BT >= 0).sum().clamp(min=1)

    @staticmethod
    def our_name(stored):
        """The name here of a tensor in a folder; None for the causal masks that old releases store."""
        return None if stored.endswith((".attn.bias", ".attn.masked_bias")) else stored.removeprefix("transformer.")

    @staticmethod
    def stored_name(name):
        return "transformer." + name

    @classmethod
    def from_pretrained(cls, name_or_folder, dtype=torch.float32):
        """Read a GPT-2 from a local folder or from the Hugging Face hub, in evaluation mode. UserError for a folder
        without one. Peak memory is about one copy of the model in `dtype`: tensors are converted one by one."""
        folder = find_folder(name_or_folder)
        model, tensors = cls.open(folder)
        fill(model, tensors, folder, dtype)
        return model.eval()

    open = classmethod(open_model)      # GPT.open(folder): a model without memory for its weights, and its tensors

    @torch.no_grad()
    def save_pretrained(self, folder, fold_layer_scale=False, head=None):
        """Write config.json and safetensors as transformers' classes read them, in the parameters' dtype.
        fold_layer_scale multiplies 1/(layer+1) into the query weights and switches the flag off, for programs that do
        not know it (vLLM refuses it, llama.cpp ignores it). head: more tensors by name, such as a classifier's."""
        if fold_layer_scale:
            cfg = replace(self.cfg, scale_attn_by_inverse_layer_idx=False)
            save_model(self, folder, cfg, self.fold_layer_scale, head)
        else:
            save_model(self, folder, self.cfg, head=head)

    def fold_layer_scale(self, name, tensor):
        """The parameter with 1/(layer+1) in it, if it makes queries whose scores are divided by (layer + 1)."""
        if self.cfg.scale_attn_by_inverse_layer_idx and ".attn.c_attn." in name:
            tensor = tensor.clone()
            layer = int(name.split(".")[1])                     # h.LAYER.attn.c_attn
            tensor[:self.cfg.n_embd] /= layer + 1               # the first D of 3 D rows make the queries
        return tensor
