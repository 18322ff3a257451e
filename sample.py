"""Sampling: a prompt in, text out.

Teaches how a distribution over the next token becomes text (temperature, top-k, top-p, repetition penalty), and why the
keys and values of earlier tokens can be kept instead of computed again: causal attention never changes them.
Not here: the network (model.py), how its weights lie in memory (fast_linear.py), a token as one launch on a GPU
(cuda_graph.py) or one call on a CPU (kernels/cpu_step.py), whole characters and stop strings (text_stream.py), prompts
from files (prompts.py).

    python sample.py --model out/demo/model --prompt "Metoprolol is"
    python sample.py --model stanford-crfm/BioMedLM --prompt "Photosynthesis is" --num-samples 3 --dtype int8
    python sample.py --model stanford-crfm/BioMedLM --interactive --stop "." --temperature 0
    python sample.py --model stanford-crfm/BioMedLM --file prompts.txt > answers.jsonl
    python sample.py --model stanford-crfm/BioMedLM --prompt "Aspirin inhibits COX-1." --score
"""
import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from baselines import load
from plumbing.common import UserError, parse_args, speaking_to_the_user
from plumbing.runtime import matrix_dtype, pick_device, read_bandwidth
from sampling.cpu_step import CpuStep, serves
from sampling.fast_linear import choose_layout, lay_out
from sampling.native import in_huge_pages, library
from sampling.prompts import encode_prompt, groups, read_prompts, shorten
from sampling.text_stream import TextStream, check_stops

WARNING = ("for research only: a language model writes what sounds likely, not what is true; "
           "take nothing it says as medical advice")
BATCH = 8                    # prompts of equal length that are read together
MUCH = 2**28                 # bytes read a token; fewer may stay in the processor's cache, and memory is no limit


@dataclass(frozen=True)
class Sample:
    """Continue a prompt, or score it."""
    model: str                          # a folder, or a name on the Hugging Face hub
    prompt: str | None = None           # the text to continue
    file: str | None = None             # prompts, one a line (.jsonl: "prompt" of each), - for stdin; JSON lines out
    interactive: bool = False           # ask for prompts until Ctrl-D
    score: bool = False                 # print the log-probability of each prompt's tokens, and continue nothing
    max_new_tokens: int = 100
    temperature: float = 0.8            # below 1 sharpens the distribution; 0 takes the likeliest token (greedy)
    top_k: int = 0                      # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0                  # then the fewest likeliest whose probabilities reach p
    repetition_penalty: float = 1.0     # above 1 makes tokens that have occurred less likely
    stop: tuple[str, ...] = ()          # strings that end a sample; they are not part of it
    num_samples: int = 1                # they share one reading of the prompt
    seed: int = 0                       # sample i depends on seed + i, not on how many are drawn
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = "auto"     # of the weights; fast_linear.py has the prices
    cuda_graph: bool = True             # on a GPU: one launch a token
    json: bool = False                  # print one JSON line: samples, tokens_per_second ...


class KVCache:
    """Keys and values of the tokens read so far, for every layer, in the dtype and on the device of `like`.

    Keys lie transposed, [L, B, H, K, positions]: one query's scores are then a vector times a matrix whose rows are
    contiguous. On a CPU that was up to four times as fast as F.scaled_dot_product_attention.
    """

    def __init__(self, cfg, batch, positions, like):
        L, H, K = cfg.n_layer, cfg.n_head, cfg.head_width
        empty = partial(in_huge_pages, dtype=like.dtype) if like.is_cpu else like.new_empty
        self.k_LBHKS, self.v_LBHSK = empty(L, batch, H, K, positions), empty(L, batch, H, positions, K)
        self.length = 0                 # the model raises it once all layers have read the new tokens

    def attend(self, layer, q_BHTK, k_BHTK, v_BHTK, scale):
        """What the queries of new tokens read from the old ones and from themselves, y_BHTK."""
        k_BHKS, v_BHSK = self.append(layer, k_BHTK, v_BHTK)
        T, end = k_BHTK.shape[2], k_BHKS.shape[3]
        if T == 1:                      # one query sees all: no mask to build
            z_BHTS = (q_BHTK * scale) @ k_BHKS
            return z_BHTS.softmax(-1, dtype=torch.float32).to(v_BHSK.dtype) @ v_BHSK
        if self.length == 0:
            return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, scale=scale)
        # Query t stands at position end - T + t and sees the keys up to there.
        mask_TS = torch.ones(T, end, dtype=torch.bool, device=q_BHTK.device).tril(end - T)
        return F.scaled_dot_product_attention(q_BHTK, k_BHKS.transpose(2, 3), v_BHSK, attn_mask=mask_TS, scale=scale)

    def append(self, layer, k_BHTK, v_BHTK):
        """Put the new tokens behind the old ones; returns both, k_BHKS and v_BHSK."""
        end = self.length + k_BHTK.shape[2]
        self.k_LBHKS[layer, :, :, :, self.length:end] = k_BHTK.transpose(2, 3)
        self.v_LBHSK[layer, :, :, self.length:end] = v_BHTK
        return self.k_LBHKS[layer, :, :, :, :end], self.v_LBHSK[layer, :, :, :end]

    def repeat(self, times):
        """The same prompt for every sample: each row becomes `times` rows, one behind the other."""
        if times > 1:
            self.k_LBHKS, self.v_LBHSK = (a.repeat_interleave(times, 1) for a in (self.k_LBHKS, self.v_LBHSK))


def penalize(logits_BV, seen_BV, penalty):
    """CTRL's repetition penalty (arXiv 1909.05858): a token that has occurred must be that many times as convincing."""
    return torch.where(seen_BV, torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty), logits_BV)


def choose(logits_BV, temperature, top_k, top_p, generators):
    """The next token of each row, drawn with that row's own generator (on the CPU, so that a GPU draws the same)."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV, order_BV = logits_BV.float(), None
    if top_k or top_p < 1:              # sorted, both cuts are a prefix: no ties are kept beyond k
        logits_BV, order_BV = logits_BV.topk(min(top_k or logits_BV.shape[1], logits_BV.shape[1]))
    p_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_p < 1:
        p_BV = p_BV.masked_fill(p_BV.cumsum(-1) - p_BV >= top_p, 0.0)    # the token that reaches p is still in
    # The inverse of the distribution function: the first token at which the sum of probabilities reaches u.
    u_B1 = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators]).to(p_BV.device)
    sum_BV = p_BV.cumsum(-1, dtype=torch.float64)
    drawn_B1 = torch.searchsorted(sum_BV, u_B1 * sum_BV[:, -1:])
    return (drawn_B1 if order_BV is None else order_BV.gather(-1, drawn_B1))[:, 0]


def next_logits(model, cache, ids_BT):
    """logits_BV of the token after the last; the head's V numbers are not needed for the others."""
    return model.logits(model.hidden(ids_BT, cache)[:, -1])


@torch.inference_mode()
def stream(model, prompts, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, num_samples=1,
           seed=0, eos_id=-1, running=None, cuda_graph=False):
    """Continue prompts (lists of ids, of one length) num_samples times each; yields [(row, token), ...], step by step.

    Row p * num_samples + i is sample i of prompt p and draws with seed + i. It ends before eos_id, where the model's
    positions end, or when the caller sets running[row] to False (a list of one True a row).
    """
    device, rows, T = model.ln_f.weight.device, len(prompts) * num_samples, len(prompts[0])
    running = [True] * rows if running is None else running
    max_new_tokens = min(max_new_tokens, model.cfg.n_positions - T)
    generators = [torch.Generator().manual_seed(seed + i) for _ in prompts for i in range(num_samples)]
    ids_BT = torch.tensor(prompts, device=device)
    cache = KVCache(model.cfg, len(prompts), T + max_new_tokens, model.ln_f.weight)
    logits_BV = next_logits(model, cache, ids_BT).repeat_interleave(num_samples, 0)
    if not logits_BV.isfinite().all():
        raise UserError("the model predicts no numbers (NaN or infinity): its weights are damaged")
    cache.repeat(num_samples)
    step = one_token(model, cache, cuda_graph)
    seen_BV = torch.zeros(logits_BV.shape, dtype=torch.bool, device=device)
    seen_BV.scatter_(1, ids_BT.repeat_interleave(num_samples, 0), True)
    for left in reversed(range(max_new_tokens)):
        if repetition_penalty != 1:
            logits_BV = penalize(logits_BV, seen_BV, repetition_penalty)
        next_B = choose(logits_BV, temperature, top_k, top_p, generators)
        tokens = next_B.tolist()
        running[:] = [run and token != eos_id for run, token in zip(running, tokens, strict=True)]
        yield [(row, token) for row, token in enumerate(tokens) if running[row]]
        if not (left and any(running)):
            return
        seen_BV.scatter_(1, next_B[:, None], True)
        logits_BV = step(next_B[:, None])


def one_token(model, cache, cuda_graph):
    """The function ids_B1 -> logits_BV that continues what the cache holds."""
    if cuda_graph:
        from sampling.cuda_graph import GraphStep  # here, since it needs Triton
        return GraphStep(model, cache)
    if serves(model, cache):
        return CpuStep(model, cache)
    return partial(next_logits, model, cache)


def generate(model, prompt_ids, max_new_tokens, num_samples=1, **settings):
    """A list of new ids for each sample of one prompt; `settings` are those of stream."""
    samples = [[] for _ in range(num_samples)]
    for column in stream(model, [prompt_ids], max_new_tokens, num_samples=num_samples, **settings):
        for row, token in column:
            samples[row].append(token)
    return samples


@torch.inference_mode()
def log_probabilities(model, ids):
    """log p(ids[t] | ids[:t]) in nats for t = 1 .. T-1 (fp32)."""
    ids_T = torch.tensor(ids, device=model.ln_f.weight.device)
    logits_TV = model.logits(model.hidden(ids_T[None, :-1]))[0]
    return logits_TV.float().log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0]


def check(cfg):
    for name, ok, wanted in (("temperature", cfg.temperature >= 0, "0 or more"),
                             ("top_k", cfg.top_k >= 0, "0 or more"),
                             ("top_p", 0 < cfg.top_p <= 1, "above 0 and at most 1"),
                             ("repetition_penalty", cfg.repetition_penalty > 0, "above 0; 1 changes nothing"),
                             ("max_new_tokens", cfg.max_new_tokens >= 1, "1 or more"),
                             ("num_samples", cfg.num_samples >= 1, "1 or more"),
                             # TRAP: torch's CPU generator reads 32 bits of a seed; beyond, seeds come again.
                             ("seed", 0 <= cfg.seed <= 2**32 - cfg.num_samples, "between 0 and 2^32 - num_samples")):
        if not ok:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(cfg, name)}; it must be {wanted}")
    if (cfg.prompt is not None) + (cfg.file is not None) + cfg.interactive != 1:
        raise UserError("give one of --prompt, --file and --interactive")


def prepare(cfg):
    """(model, tok, bytes of weights read a token), with the layout that was chosen said once."""
    device = pick_device()
    dtype = matrix_dtype(cfg.dtype, device)
    model, tok = load(cfg.model, torch.float32 if dtype == "float32" else torch.bfloat16, device)
    check_stops(tok, cfg.stop)
    layout = choose_layout(dtype, device)
    graph = cfg.cuda_graph and device.type == "cuda" and model.has_kernels
    why = f" (slow: {library()[1]})" if device.type == "cpu" and layout in ("blocks", "int8_any") else ""
    print(f"{WARNING}\n{dtype} weights on {device}, layout {layout}{why}{', one CUDA graph a token' if graph else ''}",
          file=sys.stderr)
    return model, tok, lay_out(model, layout)


def encode_prompts(model, tok, prompts, score):
    encoded = [encode_prompt(tok, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) >= model.cfg.n_positions + score:
            raise UserError(f"the prompt {shorten(prompt)!r} has {len(ids)} tokens, the model {model.cfg.n_positions} "
                            "positions; shorten it")
    return encoded


def continue_prompts(cfg, model, tok, weight_bytes, encoded, show=lambda text: None):
    """Continue a group of encoded prompts of one length: ([[text of a sample, ...] of a prompt, ...], figures).

    `show` is handed the text of the first sample while it is made.
    """
    room = model.cfg.n_positions - len(encoded[0])
    if room < cfg.max_new_tokens:
        print(f"note: stopping after {room} new tokens, where the model's {model.cfg.n_positions} positions end",
              file=sys.stderr)
    streams = [TextStream(tok, cfg.stop) for _ in range(len(encoded) * cfg.num_samples)]
    running, tokens, times = [True] * len(streams), 0, [time.perf_counter()]
    for column in stream(model, encoded, cfg.max_new_tokens, cfg.temperature, cfg.top_k, cfg.top_p,
                         cfg.repetition_penalty, cfg.num_samples, cfg.seed, tok.eos_id, running,
                         cfg.cuda_graph and model.has_kernels and model.ln_f.weight.is_cuda):
        for row, token in column:
            text = streams[row].feed(token)
            running[row] = not streams[row].stopped
            if row == 0:
                show(text)
        tokens += len(column)
        times.append(time.perf_counter())
    show([s.close() for s in streams][0])
    texts = [s.text for s in streams]
    figures = {"tokens": tokens, "tokens_per_second": tokens / (times[-1] - times[0]) if tokens else 0.0,
               "prompt_seconds": times[min(1, len(times) - 1)] - times[0],
               "bandwidth_share": share_of_bandwidth(model, weight_bytes, len(encoded[0]), len(streams), times)}
    return [texts[i:i + cfg.num_samples] for i in range(0, len(texts), cfg.num_samples)], figures


def share_of_bandwidth(model, weight_bytes, prompt_length, rows, times):
    """Bytes that the tokens after the first had to read, weights and cache, over what memory could have given in their
    time; None where the weights are too few to say."""
    steps = len(times) - 2
    if steps < 1 or weight_bytes < MUCH:
        return None
    per_position = 2 * model.cfg.n_layer * model.cfg.n_head * model.cfg.head_width * model.ln_f.weight.itemsize * rows
    cache_bytes = per_position * sum(range(prompt_length, prompt_length + steps))
    return ((steps * weight_bytes + cache_bytes) / (times[-1] - times[1])) / read_bandwidth(model.ln_f.weight.device)


def score_prompt(cfg, model, tok, prompt, ids):
    """The log-probability of a text as a document of its own, token by token."""
    ids = ids if tok.front else [tok.eos_id, *ids]
    log_p = log_probabilities(model, ids).tolist()
    texts = [tok.decode_bytes([i]).decode(errors="replace") for i in ids[1:]]
    result = {"model": cfg.model, "prompt": prompt, "log_probability": sum(log_p), "tokens": len(log_p),
              "log_probabilities": [list(pair) for pair in zip(texts, log_p, strict=True)]}
    if cfg.json or cfg.file is not None:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for token, value in result["log_probabilities"]:
            print(f"{value:9.4f}  {token!r}")
        print(f"{sum(log_p):9.4f}  nats in {len(log_p)} tokens")
    return result


def continue_one(cfg, model, tok, weight_bytes, prompt):
    """Continue one prompt, the first sample while it is made; returns what --json prints."""
    def show(text):
        if not cfg.json:
            print(text, end="", flush=True)

    encoded = encode_prompts(model, tok, [prompt], cfg.score)
    if cfg.score:
        return score_prompt(cfg, model, tok, prompt, encoded[0])
    show(shown := f"\033[2m{prompt}\033[0m" if sys.stdout.isatty() else prompt)
    [texts], figures = continue_prompts(cfg, model, tok, weight_bytes, encoded, show)
    result = {"model": cfg.model, "prompt": prompt, "samples": texts} | figures
    if cfg.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print("".join(f"\n\n{shown}{text}" for text in texts[1:]))
        share = figures["bandwidth_share"]
        print(f"{figures['tokens']} tokens, {figures['tokens_per_second']:.1f} tokens/s" +
              (f", {share:.0%} of the memory's bandwidth" if share else ""), file=sys.stderr)
    return result


def continue_file(cfg, model, tok, weight_bytes):
    """Continue every prompt of a file; a JSON line each, in the file's order, as soon as it and those before are done.
    """
    prompts = read_prompts(cfg.file)
    encoded = encode_prompts(model, tok, prompts, cfg.score)
    if cfg.score:
        return [score_prompt(cfg, model, tok, *pair) for pair in zip(prompts, encoded, strict=True)]
    results, printed = [None] * len(prompts), 0
    for indices in groups([len(ids) for ids in encoded], BATCH):
        texts, figures = continue_prompts(cfg, model, tok, weight_bytes, [encoded[i] for i in indices])
        for i, samples in zip(indices, texts, strict=True):
            results[i] = {"prompt": prompts[i], "samples": samples, "tokens_per_second": figures["tokens_per_second"]}
        while printed < len(results) and results[printed]:
            print(json.dumps(results[printed], ensure_ascii=False), flush=True)
            printed += 1
    return results


def converse(cfg, model, tok, weight_bytes):
    """Continue what is typed, line by line; each line is a text of its own. Ctrl-C ends a text, Ctrl-D the session."""
    while True:
        try:
            prompt = input("\n> ")
        except EOFError:
            print()
            return
        try:
            continue_one(cfg, model, tok, weight_bytes, prompt)
        except KeyboardInterrupt:
            print("\n(interrupted)", file=sys.stderr)
        except UserError as error:       # this prompt was wrong; the next may be right
            print(f"error: {error}", file=sys.stderr)


def main(cfg):
    """Print the samples, and return what --json prints (for --file a list of it)."""
    check(cfg)
    model, tok, weight_bytes = prepare(cfg)
    if cfg.interactive:
        return converse(cfg, model, tok, weight_bytes)
    try:
        if cfg.file is not None:
            return continue_file(cfg, model, tok, weight_bytes)
        return continue_one(cfg, model, tok, weight_bytes, cfg.prompt)
    except KeyboardInterrupt as interrupt:
        print(flush=True)                # the text that was being written ends here
        raise KeyboardInterrupt("the text above is not finished") from interrupt


if __name__ == "__main__":
    with speaking_to_the_user():
        main(parse_args(Sample))
