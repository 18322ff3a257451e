"""Pretraining an encoder on the shards that a GPT reads, for a fair comparison with a small BioMedLM.

Teaches masked-token prediction. The network predicts 15 % of the tokens: 80 % of these are replaced by [MASK], 10 % by
a random token, and 10 % stay, so that no token can be trusted. A GPT learns from every token, an encoder from one in
seven; in return it sees both sides. The vocabulary is the GPT's with four more tokens, so that only the network and its
task differ.
Not here: next-sentence prediction, ELECTRA's detection of replaced tokens, more than one process.

    python baselines/pretrain_encoder.py --data data/pubmed --out out/encoder
    python finetune_answers.py span --model out/encoder/model --train F --test F
    python finetune_qa.py pubmedqa --model out/encoder/model

Each step writes a line to OUT/log.jsonl. The same command resumes from OUT's newest checkpoint. transformers'
BertForMaskedLM can read OUT/model. Devlin et al. 2018 (arXiv 1810.04805), Liu et al. 2019 (1907.11692).
"""
import json
import math
import sys
import time
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))   # run as a script, Python looks in baselines/ alone
# ruff: noqa: E402

from baselines import load_tokenizer
from baselines.encoder import Encoder, EncoderConfig
from data import Corpus
from plumbing.common import UserError, check_ranges, fixed_settings, free, run_script, say_next, written_whole
from plumbing.runtime import Device, autocast, matrix_dtype, pick_device, stop_on_signals
from training.checkpoint import Checkpoints, set_aside
from training.monitor import forget_steps
from training.parallel import World

NEW_TOKENS = ("[CLS]", "[SEP]", "[MASK]", "[PAD]")


@dataclass(frozen=True)
class PretrainEncoder:
    """Pretrain an encoder on token shards."""
    data: str = "data/pubmed"            # folder written by prepare/pubmed.py, with its tokenizer
    out: str = free("out/encoder")
    # One token type, like RoBERTa: pretraining has no pairs of texts, so a second type would remain untrained.
    model: EncoderConfig = EncoderConfig(n_embd=256, n_layer=6, n_head=4, n_inner=1024, n_types=1, resid_pdrop=0.0,
                                         attn_pdrop=0.0)
    steps: int = free(400)
    batch_size: int = 16                 # windows of n_positions tokens per step
    micro_batch_size: int = free(16)     # windows at once; gradients are accumulated
    learning_rate: float = 1e-3          # the peak; a network that normalises last tolerates less than GPT-2
    final_learning_rate: float = 1e-4    # at the end of the cosine
    warmup_steps: int = 60
    weight_decay: float = 0.1            # like train.py's, as are AdamW's betas
    masked: float = 0.15                 # share of the tokens that are predicted
    seed: int = 0
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    device: Device = free("auto")
    eval_every: int = free(100)          # steps
    eval_windows: int = free(128)        # windows of the validation split, always with the same masks
    checkpoint_every: int = free(100)
    restart: bool = free(False)          # discard an earlier run's checkpoints in --out


def main(cfg):
    """Pretrain. Returns the loss of each step of this call."""
    check_ranges(cfg, ("steps", "batch_size", "micro_batch_size", "eval_every", "eval_windows", "checkpoint_every"))
    if cfg.batch_size % cfg.micro_batch_size or not 0 < cfg.masked < 1 or cfg.model.n_positions < 3:
        raise UserError("--batch-size must be a multiple of --micro-batch-size, --masked between 0 and 1, and "
                        "--model.n-positions 3 or more")
    device = pick_device(cfg.device)
    cfg, world = replace(cfg, dtype=matrix_dtype(cfg.dtype, device)), World(0, 1, device)
    tok = load_tokenizer(Path(cfg.data))
    n_read = len(tok)
    for name in NEW_TOKENS:
        tok.add_special(name)
    # A window is [CLS], tokens as a GPT reads them, [SEP].
    corpus, val = (Corpus(cfg.data, split, cfg.model.n_positions - 2, cfg.seed) for split in ("train", "val"))
    corpus.check_ids(n_read)
    val.check_ids(n_read)
    model = Encoder(replace(cfg.model, vocab_size=len(tok), masked_head=True)).to(device)
    model.init_weights(cfg.seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=cfg.weight_decay,
                                  fused=device.type != "mps")
    losses = train(cfg, world, model, optimizer, tok, corpus, val)
    with written_whole(Path(cfg.out) / "model") as folder:
        model.save_pretrained(folder)
        tok.save(folder)
    print(f"wrote {cfg.out}/model")
    say_next("finetune_qa.py", "pubmedqa", "--model", f"{cfg.out}/model")
    return losses


def train(cfg, world, model, optimizer, tok, corpus, val):
    if cfg.restart:
        set_aside(cfg.out, world, "checkpoints", "log.jsonl")
    checkpoints, losses = Checkpoints(cfg.out, world, keep=1), []
    first, _ = checkpoints.load(model, optimizer, fixed_settings(cfg), cfg.steps)
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    forget_steps(Path(cfg.out) / "log.jsonl", first)
    log = open(Path(cfg.out) / "log.jsonl", "a", encoding="utf-8")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {corpus.tokens:,} tokens to read, "
          f"{cfg.steps * cfg.batch_size * corpus.window:,} of them in {cfg.steps:,} steps", flush=True)
    with log, stop_on_signals() as signals:
        for step in range(first, cfg.steps):
            started, rate, loss = time.perf_counter(), learning_rate(step, cfg), 0.0
            torch.manual_seed(zlib.crc32(f"{cfg.seed} {step}".encode()))      # for masks and dropout
            for group in optimizer.param_groups:
                group["lr"] = rate
            model.train()
            for start in range(0, cfg.batch_size, cfg.micro_batch_size):
                ids_BT, _ = corpus.batch(step, cfg.batch_size, slice(start, start + cfg.micro_batch_size))
                part = loss_of(model, ids_BT, cfg, tok, world.device) * cfg.micro_batch_size / cfg.batch_size
                part.backward()
                loss += part.item()
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            values = {"step": step, "loss": loss, "grad_norm": grad_norm, "lr": rate,
                      "tokens_per_second": cfg.batch_size * corpus.window / (time.perf_counter() - started)}
            if (step + 1) % cfg.eval_every == 0 or step + 1 == cfg.steps:
                values["val_loss"] = evaluate(model, val, cfg, tok, world.device)
                print(json.dumps(values), flush=True)
            print(json.dumps(values), file=log, flush=True)
            if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps or signals:
                checkpoints.save(step + 1, model, optimizer, asdict(cfg))
            if signals and step + 1 < cfg.steps:
                checkpoints.finish()
                raise KeyboardInterrupt(f"saved after step {step}; the same command resumes from there")
    checkpoints.finish()
    return losses


def learning_rate(step, cfg):
    """Linear warm-up, then half a cosine down to the final learning rate."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    progress = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return cfg.final_learning_rate + (cfg.learning_rate - cfg.final_learning_rate) * cosine


def masked(ids_BT, share, tok):
    """(shown_BT, asked_BT): the ids that the network sees, and whether it must predict them. Of the latter, 80 % are
    replaced by [MASK] and 10 % by a random token. The ends of documents and the new tokens are never predicted."""
    n_ordinary = min(tok.specials.values())
    asked_BT = (torch.rand(ids_BT.shape) < share) & (ids_BT < n_ordinary)
    how_BT = torch.rand(ids_BT.shape)
    shown_BT = torch.where(asked_BT & (how_BT < 0.8), tok.specials["[MASK]"], ids_BT)
    return torch.where(asked_BT & (how_BT >= 0.9), torch.randint_like(ids_BT, n_ordinary), shown_BT), asked_BT


def loss_of(model, ids_BT, cfg, tok, device):
    """The mean cross-entropy in nats of the tokens that must be predicted."""
    ids_BT = F.pad(F.pad(ids_BT, (1, 0), value=tok.specials["[CLS]"]), (0, 1), value=tok.specials["[SEP]"])
    shown_BT, asked_BT = masked(ids_BT, cfg.masked, tok)
    if not asked_BT.any():
        asked_BT[0, 1] = True
    shown_BT, asked_BT, targets_N = shown_BT.to(device), asked_BT.to(device), ids_BT[asked_BT].to(device)
    with autocast(device, cfg.dtype):
        logits_NV = model.logits(model.hidden(shown_BT)[asked_BT])
    return F.cross_entropy(logits_NV.float(), targets_N)


@torch.no_grad()
def evaluate(model, val, cfg, tok, device):
    model.eval()
    torch.manual_seed(0)
    starts = val.spread(cfg.eval_windows)
    parts = [starts[i:i + cfg.micro_batch_size] for i in range(0, len(starts), cfg.micro_batch_size)]
    return sum(loss_of(model, val.cut(part)[0], cfg, tok, device).item() * len(part) for part in parts) / len(starts)


if __name__ == "__main__":
    run_script(main, PretrainEncoder)
