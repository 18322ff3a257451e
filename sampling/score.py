"""How likely a text is, token by token: sample.py --score."""
import json

import torch


@torch.inference_mode()
def log_probabilities(model, ids):
    """log p(ids[t] | ids[:t]) in nats for t = 1 .. T-1 (fp32)."""
    ids_T = torch.tensor(ids, device=model.ln_f.weight.device)
    logits_TV = model.logits(model.hidden(ids_T[None, :-1]))[0]
    return logits_TV.float().log_softmax(-1).gather(-1, ids_T[1:, None])[:, 0]


def score_prompt(cfg, model, tok, prompt, ids):
    """Print and return the log-probability of each token of a text, read as a document of its own."""
    ids = ids if tok.front else [tok.eos_id, *ids]
    log_p = log_probabilities(model, ids).tolist()
    tokens = [tok.decode_bytes([i]).decode(errors="replace") for i in ids[1:]]
    result = {"model": cfg.model, "prompt": prompt, "log_probability": sum(log_p), "tokens": len(log_p),
              "log_probabilities": [list(pair) for pair in zip(tokens, log_p, strict=True)]}
    if cfg.json or cfg.file is not None:
        print(json.dumps(result, ensure_ascii=False))
    else:
        for token, value in result["log_probabilities"]:
            print(f"{value:9.4f}  {token!r}")
        print(f"{sum(log_p):9.4f}  nats in {len(log_p)} tokens")
    return result
