"""Fine-tuning on answers in words: a paragraph that answers a question, or one line that sums up a long letter.

Teaches that the loss is that of pretraining, on the answer's tokens only; the model gets one new token, which marks the
start of the answer. Scoring such text is the harder part: overlap with one reference is a poor measure. So the report
also has the reference's log-perplexity, signs of degeneration and trivial baselines.
Not here: the loop (training/finetuning.py), what the model reads (answers/examples.py), extraction
(answers/extraction.py), decoding (sample.py, answers/beam.py), scores (answers/scores.py), the files
(prepare/answers.py).

    python finetune_answers.py medquad --model stanford-crfm/BioMedLM      # consumers' questions, long answers
    python finetune_answers.py meqsum --lora-rank 16 --weights bfloat16    # a question of a page, summed up in a line
    python finetune_answers.py bioasq                                      # a name or number from a snippet
    python finetune_answers.py my_file.jsonl --decode sample               # your own: {"prompt", "answer"} per line
    python finetune_answers.py answer --model out/medquad/model --prompt "What causes gout?"
    python finetune_answers.py span --train F --test F                     # extraction: answers/extraction.py

A run writes the model that was best on dev to OUT/model, the scores to OUT/report.json and every answer to
OUT/predictions.jsonl. The same command resumes an interrupted run from OUT/training. The method is that of Bolton et
al. 2024 (arXiv 2403.18421), section 4.
"""
import plumbing.interrupt  # noqa: F401, I001  first, for Ctrl-C during the imports
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from answers.beam import beam_search
from answers.examples import START, AnswerModel, Example, Reader, read_items, splits_of
from answers.extraction import FinetuneSpan, finetune_spans
from answers.report import assess, summary
from answers.scores import ranked_answers
from baselines import add_tokens, load
from plumbing.common import UserError, check_ranges, free, run_script, say_next
from plumbing.runtime import Device, inference_dtype, pick_device
from sample import WARNING, Sampling, stream
from sampling.text import groups
from training import finetuning
from training.trainable import choose_weights


@dataclass(frozen=True)
class Decoding(Sampling):
    """How the model's distribution becomes an answer."""
    decode: Literal["greedy", "sample", "beam"] = free("greedy")
    max_new_tokens: int = free(400)
    top_p: float = free(0.95)                # for --decode sample, like temperature and top_k
    beams: int = free(5)                     # for --decode beam, like the next three; the paper's for summaries
    length_penalty: float = free(-0.5)       # scores are divided by length ** penalty; negative prefers short texts
    no_repeat_ngram: int = free(6)           # no n-gram of prompt and answer occurs twice; 0: no limit
    min_new_tokens: int = free(5)
    max_source: int = 510                    # tokens; a longer prompt loses its end, a longer context is cut in windows
    max_target: int = 510                    # tokens; a longer answer loses its end
    stride: int = 128                        # tokens from the start of one window to the start of the next
    decode_batch: int = free(8)              # sources of equal length that are answered together


@dataclass(frozen=True)
class FinetuneAnswers(Decoding, finetuning.Finetuning):
    """Fine-tune on prompts and answers, and score the answers to the test."""
    data: str = "data/answers/medquad.jsonl" # from prepare/answers.py; a file without splits is divided 80 : 10 : 10
    out: str = free("out/medquad")           # model, report.json, predictions.jsonl, log.jsonl
    short: bool = False                      # score exact match, F1 and ranks instead of ROUGE and BLEU
    seed: int = 0
    epochs: float = 5                        # our choice, like the learning rate and the batch size: none is published
    learning_rate: float = 1e-5
    batch_size: int = 8
    select_every: int = 0                    # steps between two evaluations on dev; 0 is after each epoch
    max_dev: int = 0                         # only the first n items of dev, in the split's random order; 0 is all
    max_test: int = free(0)                  # the same for the test


@dataclass(frozen=True)
class Answer(Decoding):
    """Answer one question with a fine-tuned model."""
    model: str = "out/medquad/model"
    prompt: str = ""
    context: str = ""
    seed: int = 0
    device: Device = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


# MeQSum: warm-up, seed, batch of 8 and beam search are those of the authors' script.
PRESETS = {
    "medquad": FinetuneAnswers(),
    "meqsum": FinetuneAnswers(data="data/answers/meqsum.jsonl", out="out/meqsum", seed=7, epochs=10, decode="beam"),
    "bioasq": FinetuneAnswers(data="data/answers/bioasq.jsonl", out="out/bioasq", short=True, decode="beam",
                              max_new_tokens=32, length_penalty=0.0, no_repeat_ngram=0, min_new_tokens=0),
    "file": FinetuneAnswers(data="data/answers/mine.jsonl", out="out/answers"),
    "answer": Answer(),
    # Extraction: BERT's settings for SQuAD, and BioM-Transformers' for BioASQ 8b with a model fine-tuned on SQuAD.
    "span": FinetuneSpan(),
    "bioasq8b": FinetuneSpan(train="data/qa/bioasq8b_train.json", test="data/qa/bioasq8b_test.json", out="out/bioasq8b",
                             epochs=3, batch_size=16, micro_batch_size=8, learning_rate=5e-5, warmup_ratio=0.0,
                             weight_decay=0.0),
}

FROM_1 = ("max_new_tokens", "beams", "max_source", "max_target", "stride", "decode_batch")
RANGES = {"top_p": (0, 1), "length_penalty": (-100, 100)}


def main(cfg):
    """Run the command that cfg belongs to, and return the report (or the answer)."""
    if isinstance(cfg, FinetuneSpan):
        return finetune_spans(cfg)
    if isinstance(cfg, Answer):
        check_ranges(cfg, FROM_1, **RANGES)
        return answer(cfg)
    finetuning.check(cfg, *FROM_1, **RANGES)
    with finetuning.processes_of(cfg) as (cfg, world):
        return finetune_and_report(cfg, world)


def finetune_and_report(cfg, world):
    """Fine-tune, answer the test with the model that was best on dev, and score the answers. Returns the report."""
    started = time.perf_counter()
    splits = read_splits(cfg, world)
    with finetuning.prepare_out(cfg, world, "training"):
        folder = Path(cfg.out) / "training" / "best"
        log, best, cut = finetune(cfg, world, folder, splits)
        predictions = predict(cfg, world, folder, splits["test"])
        if world.rank:
            return None

        report = assess(cfg.short, splits["test"], predictions) | {
            "splits": {name: len(items) for name, items in splits.items()}, "best": best, "truncated": cut}
        report = finetuning.write_results(cfg, started, folder, log, predictions, report, cfg.data, summary(report))
        print(f"{summary(report)}\nWrote {cfg.out}/report.json and {cfg.out}/model")
        say_next("finetune_answers.py", "answer", "--model", f"{cfg.out}/model", "--prompt", "TEXT")
        return report


def read_splits(cfg, world):
    """{"train", "dev", "test"}: the items of cfg.data, none of them empty."""
    splits = splits_of(read_items(cfg.data))
    splits |= {"dev": splits["dev"][:cfg.max_dev or None], "test": splits["test"][:cfg.max_test or None]}
    counts = {name: len(items) for name, items in splits.items()}
    if not all(counts.values()):
        raise UserError(f"{cfg.data}: train, dev and test need an item each; there are {counts}")
    if world.rank == 0:
        print(f"{cfg.data}: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()), flush=True)
    return splits


def finetune(cfg, world, folder, splits):
    """Fine-tune once, and keep the best model on dev in `folder`. Returns the log, the best evaluation, and how many
    texts of train and dev were cut."""
    torch.manual_seed(cfg.seed)
    model, tok, reader = build(cfg)
    train = [example for item in splits["train"] for example in reader.examples(item, every_window=True)]
    cut, reader.cut = reader.cut, 0
    dev = [example for item in splits["dev"] for example in reader.examples(item)]
    if world.rank == 0:
        print(f"{len(train):,} training examples, {sum(len(e.target) for e in train):,} tokens with a loss; {cut:,} "
              f"texts were cut to {cfg.max_source} or {cfg.max_target} tokens", flush=True)

    def loss_of(net, part):
        examples = [train[j] for j in part]
        n_N = torch.tensor([len(example.target) for example in examples], device=world.device)
        # The mean over an answer's tokens: every example has the same weight, as in the authors' batches of 1 example.
        return -(net(examples) / n_N).sum()

    def evaluate(step, best):
        """The log-perplexity of dev's answers (nats per token). If it is the lowest so far, save the model."""
        log_p = sum(finetuning.evaluated(model, dev, cfg.micro_batch_size, world, cfg.dtype))
        metrics = {"dev_log_perplexity": -log_p / sum(len(example.target) for example in dev)}
        if not best or metrics["dev_log_perplexity"] < best["dev_log_perplexity"]:
            best = metrics | {"step": step}
            finetuning.save_model(model, tok, folder, cfg, world)
        return metrics, best

    log, best = finetuning.fine_tune(cfg, world, cfg.seed, folder.parent, model, len(train), loss_of, evaluate,
                                     ["data"], cfg.select_every)
    world.wait()                                                   # until process 0 has written the folder
    return log, best, {"train": cut, "dev": reader.cut}


def build(cfg):
    """(model with its new token, tokenizer, reader of items)."""
    gpt, tok = load(cfg.model, getattr(torch, cfg.weights), "cpu")
    n_new = add_tokens(gpt, tok, [START])
    model = AnswerModel(gpt, tok.eos_id)
    choose_weights(model, cfg, n_new)
    return model, tok, make_reader(cfg, tok, gpt.cfg)


def make_reader(cfg, tok, gpt_cfg):
    special = len(tok.front) + 2         # the tokens before the source, at the start of the answer, and at its end
    if cfg.max_source + cfg.max_target + special > gpt_cfg.n_positions:
        raise UserError(f"--max-source {cfg.max_source} and --max-target {cfg.max_target} with {special} special "
                        f"tokens are longer than the model's {gpt_cfg.n_positions} positions; lower them")
    return Reader(tok, tok.specials[START], cfg.max_source, cfg.max_target, cfg.stride)


# ---- Answering ----

def predict(cfg, world, folder, test):
    """Answer all items with the best model; processes share the items. Returns the records of predictions.jsonl."""
    gpt, tok = load(folder, getattr(torch, cfg.dtype), world.device)
    reader, alone = make_reader(cfg, tok, gpt.cfg), replace(world, rank=0, size=1)
    mine, model = test[world.rank::world.size], AnswerModel(gpt, tok.eos_id)

    references = [example for item in mine for example in reader.examples(item)[:1]]
    reference_log_p = finetuning.evaluated(model, references, cfg.micro_batch_size, alone, cfg.dtype)

    # Generate an answer or more from each window of an item, and their log-probabilities.
    sources = [(i, source) for i, item in enumerate(mine) for source in reader.sources(item)]
    answers = decode(cfg, gpt, tok, [source for _, source in sources])
    candidates = [(i, Example(source, [*ids, tok.eos_id])) for (i, source), found in zip(sources, answers, strict=True)
                  for ids in found]
    log_p = finetuning.evaluated(model, [example for _, example in candidates], cfg.micro_batch_size, alone, cfg.dtype)
    texts = [[] for _ in mine]
    for (i, example), value in zip(candidates, log_p, strict=True):
        texts[i].append((tok.decode(example.target[:-1]).strip(), value))

    records = []
    for item, found, reference, nats in zip(mine, texts, references, reference_log_p, strict=True):
        ranked = ranked_answers(found) if cfg.short else [found[0][0]]
        records.append({"id": item.id, "group": item.group, "answer": ranked[0] if ranked else "", "candidates": found,
                        "reference_log_probability": nats, "reference_tokens": len(reference.target)})
    order = {item.id: i for i, item in enumerate(test)}
    return sorted(world.gather(records), key=lambda record: order[record["id"]])


def decode(cfg, gpt, tok, sources):
    """The answers to each source (ids), as lists of ids: one answer, or the best `beams` with --decode beam."""
    answers = {}
    for indices in groups([len(source) for source in sources], cfg.decode_batch):
        prompts = [sources[i] for i in indices]
        if cfg.decode == "beam":
            found = beam_search(gpt, prompts, cfg.max_new_tokens, cfg.beams, cfg.length_penalty, cfg.no_repeat_ngram,
                                cfg.min_new_tokens, tok.eos_id)
            found = [[ids for _, ids in best] for best in found]
        else:
            found = [[[]] for _ in prompts]                         # one answer for each prompt, still empty
            sampling = cfg if cfg.decode == "sample" else replace(cfg, temperature=0.0)
            for column in stream(gpt, prompts, cfg.max_new_tokens, sampling, seed=cfg.seed, eos_id=tok.eos_ids):
                for row, token in column:
                    found[row][0].append(token)
        answers.update(zip(indices, found, strict=True))
    return [answers[i] for i in range(len(sources))]


def answer(cfg):
    """Print the answer to one prompt."""
    if not cfg.prompt.strip():
        raise UserError("--prompt is empty; give a question")
    device = pick_device(cfg.device)
    gpt, tok = load(cfg.model, getattr(torch, inference_dtype(cfg.dtype, device)), device)
    if START not in tok.specials:
        raise UserError(f"{cfg.model} was not fine-tuned by this script: its tokenizer has no {START}")
    sources = make_reader(cfg, tok, gpt.cfg).sources(cfg)
    print(WARNING, file=sys.stderr)
    texts = [tok.decode(found[0]).strip() for found in decode(cfg, gpt, tok, sources)]
    print(text := next(filter(None, texts), ""))        # of the first window of the context that gives an answer
    return text


def with_file(words):
    """The words of the command line. If the first names a .jsonl file, it becomes the preset "file" with its flags."""
    if words and words[0].endswith(".jsonl"):
        return ["file", "--data", words[0], "--out", f"out/{Path(words[0]).stem}", *words[1:]]
    return words


if __name__ == "__main__":
    run_script(main, FinetuneAnswers, PRESETS, with_file(sys.argv[1:]))
