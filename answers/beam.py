"""Beam search: the likeliest text instead of the likeliest next token.

Teaches three things. The most likely text need not begin with the most likely token, so a search keeps several texts,
the beams. Every token lowers a text's probability, so short texts win; dividing the score by length ** penalty corrects
this. Likely text repeats itself; so n-grams that have occurred can be forbidden.
Not here: sampling (sample.py) and the cache (sampling/cache.py).

The texts and scores equal those of transformers' generate(num_beams=...).
"""
import torch

from sample import KVCache, next_logits
from sampling.score import check_finite


@torch.inference_mode()
def beam_search(model, prompts, max_new_tokens, beams=5, length_penalty=1.0, no_repeat_ngram=0, min_new_tokens=0,
                eos_id=-1):
    """The best continuations of each prompt, best first: for each prompt up to `beams` pairs (score, ids), without
    eos_id. prompts: lists of ids, all of the same length. score: log p / length ** length_penalty, both with eos_id.

    The search for a prompt ends when it has `beams` finished texts, and its best unfinished text does not score better
    at its current length than the worst finished one (transformers' early_stopping=False).
    """
    P, W, T = len(prompts), beams, len(prompts[0])
    device = model.ln_f.weight.device
    max_new_tokens = min(max_new_tokens, model.cfg.n_positions - T)
    finished, done = [[] for _ in prompts], [False] * P

    # Read each prompt once, then copy it for each beam: R = P W rows, prompt by prompt.
    text_RT = torch.tensor(prompts, device=device)
    cache = KVCache(model.cfg, P, T + max_new_tokens, model.ln_f.weight)
    logits_RV = next_logits(model, cache, text_RT).repeat_interleave(W, 0)
    cache.repeat(W)
    text_RT, V = text_RT.repeat_interleave(W, 0), logits_RV.shape[1]
    score_PW = torch.full((P, W), -1e9, device=device)                # the W texts are equal, so only one may branch
    score_PW[:, 0] = 0.0

    for n in range(1, max_new_tokens + 1):
        check_finite(logits_RV)
        log_p_RV = logits_RV.float().log_softmax(-1)
        forbid_repeats(log_p_RV, text_RT, no_repeat_ngram)
        if n <= min_new_tokens and eos_id >= 0:
            log_p_RV[:, eos_id] = -torch.inf

        # Take twice as many candidates as beams: even if the best W end here, W others continue.
        top_PC, index_PC = (score_PW[:, :, None] + log_p_RV.view(P, W, V)).flatten(1).topk(2 * W)
        row_PC, token_PC = index_PC // V + W * torch.arange(P, device=device)[:, None], index_PC % V
        ends_PC = (token_PC == eos_id) | (n == max_new_tokens)

        # Collect the texts that end here.
        for p in [p for p in range(P) if not done[p]]:
            for c in ends_PC[p, :W].nonzero()[:, 0].tolist():         # in the second half an ending text is dropped
                ids = [*text_RT[row_PC[p, c], T:].tolist(), token_PC[p, c].item()]
                finished[p].append((top_PC[p, c].item() / n ** length_penalty, ids[:-1] if ids[-1] == eos_id else ids))
            finished[p] = sorted(finished[p], key=lambda one: -one[0])[:W]

        # Continue with the best W texts that do not end.
        score_PW, keep_PW = (top_PC - 1e9 * ends_PC).topk(W)
        row_R, token_R = row_PC.gather(1, keep_PW).flatten(), token_PC.gather(1, keep_PW).flatten()
        text_RT = torch.cat([text_RT[row_R], token_R[:, None]], 1)
        for p, best in enumerate((score_PW[:, 0] / n ** length_penalty).tolist()):
            done[p] |= len(finished[p]) == W and best <= finished[p][-1][0]
        if all(done) or n == max_new_tokens:
            return finished

        # The cache follows: row r gets the keys and values of row row_R[r], because it continues that row's text.
        past = cache.length
        cache.k_LBHKS[..., :past] = cache.k_LBHKS[:, row_R, :, :, :past]
        cache.v_LBHSK[:, :, :, :past] = cache.v_LBHSK[:, row_R, :, :past]
        logits_RV = next_logits(model, cache, token_R[:, None])


def forbid_repeats(log_p_RV, text_RT, n):
    """Forbid, in place, every token that would repeat an n-gram of prompt and text. n = 0 forbids nothing."""
    T = text_RT.shape[1]
    if not 0 < n <= T:
        return
    grams_RGN = text_RT.unfold(1, n, 1)
    r, g = (grams_RGN[:, :, :-1] == text_RT[:, None, T - n + 1:]).all(-1).nonzero(as_tuple=True)
    log_p_RV[r, grams_RGN[r, g, -1]] = -torch.inf
