"""Sampling: a prompt in, text out.

Teaches how a distribution over the next token becomes text (temperature, top-k, top-p, repetition penalty), and the two
phases of generation: the prompt is read once for all its samples, then each step adds one token per sample.
Not here: the network (model.py); the cache, weight layouts and other parts, which sampling/__init__.py lists.

    python sample.py --model out/demo/model --prompt "Metoprolol is"
    python sample.py --model stanford-crfm/BioMedLM --prompt "Photosynthesis is" --num-samples 3 --dtype int8
    python sample.py --model stanford-crfm/BioMedLM --interactive --stop "." --temperature 0
    python sample.py --model stanford-crfm/BioMedLM --file prompts.txt > answers.jsonl
    python sample.py --model stanford-crfm/BioMedLM --prompt "Aspirin inhibits COX-1." --score
"""
import plumbing.interrupt  # noqa: F401, I001  first, for Ctrl-C during the imports
import json
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from baselines import load
from plumbing.common import UserError, check_ranges, free, run_script
from plumbing.runtime import Device, inference_dtype, pick_device, precise_dtype
from sampling.cache import KVCache
from sampling.choice import choose_layout, choose_threads
from sampling.cpu_step import CpuStep, serves
from sampling.fast_linear import lay_out, share_of_bandwidth
from sampling.native import library
from sampling.score import check_finite, score_prompt
from sampling.text import TextStream, check_stops, encode_prompts, groups, read_prompts

WARNING = ("for research only: a language model writes what sounds likely, not what is true; "
           "do not take its text as medical advice")
BATCH = 8                    # prompts of equal length that are read together


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from the model's distribution."""
    temperature: float = free(0.8)          # below 1 sharpens the distribution; 0 takes the likeliest token (greedy)
    top_k: int = free(0)                    # keep the k likeliest tokens; 0 keeps all
    top_p: float = free(1.0)                # then the fewest likeliest tokens whose probabilities reach p; 1 keeps all
    repetition_penalty: float = free(1.0)   # above 1 makes tokens that have occurred less likely


GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True)
class Sample(Sampling):
    """Continue a prompt, or score it."""
    model: str                          # a folder, or a name on the Hugging Face hub
    prompt: str | None = None           # the text to continue
    file: str | None = None             # prompts, one per line (.jsonl: "prompt" of each), - for stdin; JSON lines out
    interactive: bool = False           # ask for prompts until Ctrl-D; the default without any of these three
    score: bool = False                 # print the log-probability of each token of the prompt, and continue nothing
    max_new_tokens: int = 100
    stop: tuple[str, ...] = ()          # strings that end a sample; they are not part of it
    num_samples: int = 1                # samples of each prompt, which is read once for all
    seed: int = 0                       # sample i depends on seed + i, not on how many are drawn
    device: Device = "auto"             # mps (Apple's GPU) has not been run on hardware yet
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"   # of the weights; int4: on a CPU
    layout: str = "auto"                # of the weights in memory, of those in sampling/fast_linear.py; auto measures
    cuda_graph: bool = True             # on a GPU: one launch per token
    json: bool = False                  # print one JSON line: samples, tokens_per_second ...


# ---- From a prompt to tokens ----

def penalize(logits_BV, seen_BV, penalty):
    """CTRL's repetition penalty (arXiv 1909.05858): the logits of tokens that have occurred are divided by `penalty`
    where they are positive, and multiplied by it where they are negative."""
    penalized_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, penalized_BV, logits_BV)


def choose(logits_BV, sampling, generators):
    """The next token of each row, next_B. Each row has its own generator, on the CPU so that a GPU draws the same."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV, order_BV = logits_BV.float(), None

    # Sort, so that top-k and top-p each keep a prefix: exactly k tokens, even among equal logits.
    V = logits_BV.shape[1]
    if sampling.top_k or sampling.top_p < 1:
        logits_BV, order_BV = logits_BV.topk(min(sampling.top_k or V, V))
    p_BV = ((logits_BV - logits_BV.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        before_BV = p_BV.cumsum(-1) - p_BV
        p_BV = p_BV.masked_fill(before_BV >= sampling.top_p, 0.0)       # the token that reaches p is kept

    # Draw u from [0, 1) and take the first token at which the sum of probabilities reaches u.
    precise = precise_dtype(p_BV.device)
    u_B = [torch.rand(1, generator=generator, dtype=torch.float64).item() for generator in generators]
    sum_BV = p_BV.cumsum(-1, dtype=precise)
    u_B1 = torch.tensor(u_B, dtype=precise, device=p_BV.device)[:, None]
    drawn_B1 = torch.searchsorted(sum_BV, u_B1 * sum_BV[:, -1:])
    return (drawn_B1 if order_BV is None else order_BV.gather(-1, drawn_B1))[:, 0]


def next_logits(model, cache, ids_BT):
    """logits_BV of the token after the last one; the head is not computed for the others."""
    return model.logits(model.hidden(ids_BT, cache)[:, -1])


@torch.inference_mode()
def stream(model, prompts, max_new_tokens, sampling=GREEDY, num_samples=1, seed=0, eos_id=-1, stopped=lambda row: False,
           cuda_graph=False):
    """Continue prompts (lists of ids, all of one length) num_samples times each; yields [(row, token), ...] per step.

    Row p * num_samples + i is sample i of prompt p and draws with seed + i. A row ends before eos_id (one or a tuple),
    where the model's positions end, or when stopped(row), called after each step, is true.
    """
    device, T = model.ln_f.weight.device, len(prompts[0])
    ends = eos_id if isinstance(eos_id, tuple) else (eos_id,)
    max_new_tokens = min(max_new_tokens, model.cfg.n_positions - T)

    KVCache.check_memory(model.cfg, len(prompts) * num_samples, T + max_new_tokens, model.ln_f.weight)

    # 1. Prefill: read all tokens of the prompts at once, which fills the cache.
    ids_BT = torch.tensor(prompts, device=device)
    cache = KVCache(model.cfg, len(prompts), T + max_new_tokens, model.ln_f.weight)
    logits_BV = next_logits(model, cache, ids_BT)

    # 2. Copy the cache: the samples of a prompt share one reading of it.
    cache.repeat(num_samples)
    logits_BV = logits_BV.repeat_interleave(num_samples, 0)
    seen_BV = torch.zeros(logits_BV.shape, dtype=torch.bool, device=device)
    seen_BV.scatter_(1, ids_BT.repeat_interleave(num_samples, 0), True)
    generators = [torch.Generator().manual_seed(seed + i) for _ in prompts for i in range(num_samples)]

    # 3. Loop: one token per row and step, until every row has ended.
    step = one_token(model, cache, cuda_graph)
    running = set(range(len(logits_BV)))
    for left in reversed(range(max_new_tokens)):
        check_finite(logits_BV)
        if sampling.repetition_penalty != 1:
            logits_BV = penalize(logits_BV, seen_BV, sampling.repetition_penalty)
        next_B = choose(logits_BV, sampling, generators)
        column = [(row, token) for row, token in enumerate(next_B.tolist()) if row in running and token not in ends]
        yield column

        running = {row for row, _ in column if not stopped(row)}
        if not running or left == 0:
            return
        seen_BV.scatter_(1, next_B[:, None], True)
        logits_BV = step(next_B[:, None])


def one_token(model, cache, cuda_graph):
    """The function ids_B1 -> logits_BV that continues the text in the cache by one token."""
    if cuda_graph:
        from sampling.cuda_graph import GraphStep  # here, since it needs Triton
        return GraphStep(model, cache)
    if serves(model, cache):
        return CpuStep(model, cache)
    return partial(next_logits, model, cache)


def generate(model, prompt_ids, max_new_tokens, sampling=GREEDY, num_samples=1, **settings):
    """The new ids of each sample of one prompt, a list of lists; `settings` are those of stream."""
    samples = [[] for _ in range(num_samples)]
    for column in stream(model, [prompt_ids], max_new_tokens, sampling, num_samples, **settings):
        for row, token in column:
            samples[row].append(token)
    return samples


# ---- The script ----

def main(cfg):
    """Print the samples, and return what --json prints (for --file a list of it)."""
    if cfg.prompt is None and cfg.file is None and sys.stdin is not None and sys.stdin.isatty():
        cfg = replace(cfg, interactive=True)
    check(cfg)
    cfg, model, tok = prepare(cfg)
    if cfg.interactive:
        return converse(cfg, model, tok)
    try:
        if cfg.file is not None:
            return continue_file(cfg, model, tok)
        return continue_one(cfg, model, tok, cfg.prompt)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("the text above is not finished") from interrupt


def check(cfg):
    # TRAP: torch's CPU generator reads 32 bits of a seed, so that seed 2^32 would draw what seed 0 draws.
    check_ranges(cfg, ["max_new_tokens"], top_p=(1e-6, 1), repetition_penalty=(1e-3, 1e3), num_samples=(1, 2**16),
                 seed=(0, 2**32 - cfg.num_samples))
    if (cfg.prompt is not None) + (cfg.file is not None) + cfg.interactive != 1:
        raise UserError("give exactly one of --prompt, --file and --interactive")


def prepare(cfg):
    """Settings with what was chosen, the model laid out for this machine, and its tokenizer; prints the choices."""
    device = pick_device(cfg.device)
    dtype = inference_dtype(cfg.dtype, device)
    model, tok = load(cfg.model, torch.bfloat16 if dtype.startswith("int") else getattr(torch, dtype), device)
    check_stops(tok, cfg.stop)

    choice = choose_layout(dtype, model, cfg.layout)
    lay_out(model, choice.layout)
    torch.set_num_threads(choose_threads(model))

    chosen = [f"{dtype} weights on {device}", f"layout {choice.layout}"]
    if device.type == "cpu":
        chosen += [f"{torch.get_num_threads()} threads", choice.reason, f"slow: {why}" if (why := library()[1]) else ""]
    cfg = replace(cfg, cuda_graph=cfg.cuda_graph and device.type == "cuda" and model.has_kernels)
    if cfg.cuda_graph:
        chosen.append("one CUDA graph per token")
    print(f"{WARNING}\n{', '.join(filter(None, chosen))}", file=sys.stderr)
    return cfg, model, tok


def continue_one(cfg, model, tok, prompt):
    """Continue one prompt and print the first sample while it is made; returns what --json prints."""
    [ids] = encode_prompts(tok, [prompt], model.cfg.n_positions - 1 + cfg.score)
    if cfg.score:
        return score_prompt(cfg, model, tok, prompt, ids)

    shown = f"\033[2m{prompt}\033[0m" if sys.stdout.isatty() else prompt
    show = (lambda text: None) if cfg.json else partial(print, end="", flush=True)
    show(shown)
    try:
        [samples], figures = continue_prompts(cfg, model, tok, [ids], show)
    except (KeyboardInterrupt, UserError):
        show("\n")                      # end the line that was being written
        raise
    result = {"model": cfg.model, "prompt": prompt, "samples": samples} | figures
    if cfg.json:
        print(json.dumps(result, ensure_ascii=False))
        return result

    print("".join(f"\n\n{shown}{text}" for text in samples[1:]))
    share = f", {share:.0%} of the memory's bandwidth" if (share := figures["bandwidth_share"]) else ""
    print(f"{figures['tokens']} tokens, {figures['tokens_per_second']:.1f} tokens/s{share}", file=sys.stderr)
    return result


def continue_file(cfg, model, tok):
    """Continue every prompt of a file; prints a JSON line for each, in the file's order, as soon as it is complete."""
    prompts = read_prompts(cfg.file)
    encoded = encode_prompts(tok, prompts, model.cfg.n_positions - 1 + cfg.score)
    if cfg.score:
        return [score_prompt(cfg, model, tok, *pair) for pair in zip(prompts, encoded, strict=True)]

    results = [None] * len(prompts)
    printed = 0
    for indices in groups([len(ids) for ids in encoded], BATCH):
        samples, figures = continue_prompts(cfg, model, tok, [encoded[i] for i in indices])
        for i, texts in zip(indices, samples, strict=True):
            results[i] = {"prompt": prompts[i], "samples": texts, "tokens_per_second": figures["tokens_per_second"]}
        while printed < len(results) and results[printed]:
            print(json.dumps(results[printed], ensure_ascii=False), flush=True)
            printed += 1
    return results


def continue_prompts(cfg, model, tok, encoded, show=lambda text: None):
    """Continue encoded prompts of one length. Returns the texts, [[sample, ...] of each prompt], and the figures.
    `show` receives the text of the first sample while it is made."""
    T, positions = len(encoded[0]), model.cfg.n_positions
    if T + cfg.max_new_tokens > positions:
        print(f"note: stopping after {positions - T} new tokens, where the model's {positions} positions end",
              file=sys.stderr)

    texts = [TextStream(tok, cfg.stop) for _ in range(len(encoded) * cfg.num_samples)]
    tokens, times = 0, [time.perf_counter()]
    for column in stream(model, encoded, cfg.max_new_tokens, cfg, cfg.num_samples, cfg.seed, tok.eos_ids,
                         stopped=lambda row: texts[row].stopped, cuda_graph=cfg.cuda_graph):
        for row, token in column:
            certain = texts[row].feed(token)
            if row == 0:
                show(certain)
        tokens += len(column)
        times.append(time.perf_counter())

    show([text.close() for text in texts][0])
    figures = {"tokens": tokens,
               "tokens_per_second": tokens / (times[-1] - times[0]) if tokens else 0.0,
               "prompt_seconds": times[min(1, len(times) - 1)] - times[0],
               "bandwidth_share": share_of_bandwidth(model, T, len(texts), times)}
    samples = [text.text for text in texts]
    return [samples[i:i + cfg.num_samples] for i in range(0, len(samples), cfg.num_samples)], figures


def converse(cfg, model, tok):
    """Continue each line that is typed, as a text of its own. Ctrl-C ends a text, Ctrl-D the session."""
    while True:
        try:
            prompt = input("\n> ")
        except EOFError:
            print()
            return
        try:
            continue_one(cfg, model, tok, prompt)
        except KeyboardInterrupt:
            print("\n(interrupted)", file=sys.stderr)
        except UserError as error:       # only this prompt is wrong; the next may be right
            print(f"error: {error}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, Sample)
