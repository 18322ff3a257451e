"""Sampling: a prompt in, text out.

Teaches how a distribution over the next token becomes text (temperature, top-k, top-p), and why the keys and values of
earlier tokens can be kept instead of computed again: causal attention never changes them.
Not here: the network (model.py).

    python sample.py --model out/demo/model --prompt "Metoprolol is"
    python sample.py --model stanford-crfm/BioMedLM --prompt "Photosynthesis is" --num-samples 3 --seed 1
"""
import json
import sys
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from common import UserError, parse_args, speaking_to_the_user
from huggingface import find_folder
from model import GPT
from runtime import pick_device
from tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """Continue a prompt."""
    model: str                          # a folder, or a name on the Hugging Face hub
    prompt: str                         # the text to continue
    max_new_tokens: int = 100
    temperature: float = 0.8            # below 1 sharpens the distribution; 0 takes the likeliest token (greedy)
    top_k: int = 0                      # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0                  # then the fewest likeliest whose probabilities reach p
    num_samples: int = 1                # they share one reading of the prompt
    seed: int = 0                       # sample i depends on seed + i, not on how many are drawn
    dtype: Literal["float32", "bfloat16"] = "float32"     # bfloat16 halves the memory, and what must be read a token
    json: bool = False                  # print one JSON line: samples, tokens_per_second ...


class KVCache:
    """Keys and values of the tokens read so far, for every layer: two arrays [L, B, H, positions, K]."""

    def __init__(self, cfg, batch, positions, like):
        shape = cfg.n_layer, batch, cfg.n_head, positions, cfg.n_embd // cfg.n_head
        self.k_LBHSK, self.v_LBHSK = like.new_empty(shape), like.new_empty(shape)
        self.length = 0                 # the model raises it once all layers have read the new tokens

    def attend(self, layer, q_BHTK, k_BHTK, v_BHTK, scale):
        """Put the new tokens behind the old ones; returns what the queries read from both, y_BHTK."""
        T, end = k_BHTK.shape[2], self.length + k_BHTK.shape[2]
        self.k_LBHSK[layer, :, :, self.length:end] = k_BHTK
        self.v_LBHSK[layer, :, :, self.length:end] = v_BHTK
        # Query t stands at position end - T + t and sees the keys up to there. One query sees all: no mask to build.
        mask = None if T == 1 else torch.ones(T, end, dtype=torch.bool, device=q_BHTK.device).tril(end - T)
        return F.scaled_dot_product_attention(q_BHTK, self.k_LBHSK[layer, :, :, :end], self.v_LBHSK[layer, :, :, :end],
                                              attn_mask=mask, scale=scale)

    def repeat(self, batch):
        """The same prompt for every sample: one row becomes `batch` rows."""
        self.k_LBHSK, self.v_LBHSK = (a.repeat(1, batch, 1, 1, 1) for a in (self.k_LBHSK, self.v_LBHSK))


def choose(logits_BV, temperature, top_k, top_p, generators):
    """The next token of each row, drawn with that row's own generator."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    # Sorted once, both cuts are a prefix: no ties are kept beyond k, and p counts from the likeliest down.
    logits_BV, order_BV = (logits_BV.float() / temperature).sort(-1, descending=True)
    if top_k:
        logits_BV = logits_BV[:, :top_k]
    p_BV = logits_BV.softmax(-1)
    p_BV = p_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= top_p, 0.0)        # the token that reaches p is still in
    drawn_B1 = torch.stack([p_V.multinomial(1, generator=g) for p_V, g in zip(p_BV, generators, strict=True)])
    return order_BV.gather(-1, drawn_B1)[:, 0]


@torch.inference_mode()
def generate(model, prompt_ids, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, num_samples=1, seed=0, eos_id=-1):
    """Continue the prompt (a list of ids) num_samples times; returns a list of new ids for each.

    A sample ends before eos_id, after max_new_tokens, or where the model's positions end.
    """
    device, max_new_tokens = model.wte.weight.device, min(max_new_tokens, model.cfg.n_positions - len(prompt_ids))
    cache = KVCache(model.cfg, 1, len(prompt_ids) + max_new_tokens, model.wte.weight)
    generators = [torch.Generator(device).manual_seed(seed + i) for i in range(num_samples)]
    logits_BV = model(torch.tensor([prompt_ids], device=device), cache=cache)[:, -1].expand(num_samples, -1)
    cache.repeat(num_samples)
    samples, running = [[] for _ in range(num_samples)], [True] * num_samples
    while True:
        next_B = choose(logits_BV, temperature, top_k, top_p, generators)
        for i, token in enumerate(next_B.tolist()):
            running[i] = running[i] and token != eos_id
            if running[i]:
                samples[i].append(token)
        if not any(running) or max(map(len, samples)) == max_new_tokens:
            return samples
        logits_BV = model(next_B[:, None], cache=cache)[:, -1]


def load(name_or_folder, dtype, device):
    """A model and its tokenizer from one folder, checked to belong together."""
    folder = find_folder(name_or_folder)
    model, tok = GPT.from_pretrained(folder, dtype).to(device), Tokenizer.load(folder)
    if len(tok) > model.cfg.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {len(tok)} tokens, the model only {model.cfg.vocab_size}; "
                        "they do not belong together")
    return model, tok


def check(cfg):
    for name, ok, wanted in (("temperature", cfg.temperature >= 0, "0 or more"),
                             ("top_k", cfg.top_k >= 0, "0 or more"),
                             ("top_p", 0 < cfg.top_p <= 1, "above 0 and at most 1"),
                             ("max_new_tokens", cfg.max_new_tokens >= 1, "1 or more"),
                             ("num_samples", cfg.num_samples >= 1, "1 or more")):
        if not ok:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(cfg, name)}; it must be {wanted}")
    if not cfg.prompt:
        raise UserError("the prompt is empty; give the words to go on from, or --prompt '<|endoftext|>' for none")


def main(cfg):
    """Print the samples, and return what --json prints."""
    check(cfg)
    model, tok = load(cfg.model, getattr(torch, cfg.dtype), pick_device())
    # <|endoftext|> stands between documents, so as the whole prompt it means: begin a new one.
    ids = [tok.eos_id] if cfg.prompt == "<|endoftext|>" else tok.encode(cfg.prompt).tolist()
    room = model.cfg.n_positions - len(ids)
    if room < 1:
        raise UserError(f"the prompt has {len(ids)} tokens, the model {model.cfg.n_positions} positions; shorten it")
    if room < cfg.max_new_tokens:
        print(f"stopping after {room} new tokens: the model has {model.cfg.n_positions} positions", file=sys.stderr)
    start = time.perf_counter()
    samples = generate(model, ids, cfg.max_new_tokens, temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p,
                       num_samples=cfg.num_samples, seed=cfg.seed, eos_id=tok.eos_id)
    tokens, seconds = sum(map(len, samples)), time.perf_counter() - start
    result = {"model": cfg.model, "prompt": cfg.prompt, "samples": [tok.decode(sample) for sample in samples],
              "tokens": tokens, "tokens_per_second": tokens / seconds}
    if cfg.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for text in result["samples"]:
            print(f"\033[2m{cfg.prompt}\033[0m{text}\n" if sys.stdout.isatty() else f"{cfg.prompt}{text}\n")
        print(f"{tokens} tokens, {tokens / seconds:.1f} tokens/s", file=sys.stderr)
    return result


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Sample))
