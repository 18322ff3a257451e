"""Does a vocabulary learned from PubMed help? The paper's comparison, with the control that it lacks.

    python bench/vocabulary.py data --abstracts abstracts.jsonl.gz --gpt2 FOLDER       # vocab.json, merges.txt of GPT-2
    python bench/vocabulary.py train --arm A2 --seed 0 --rate 1e-3 --steps 244
    python bench/vocabulary.py score --arm A2 --seed 0 --steps 244 --sections FOLDER   # of prepare/qa.py sections
    python bench/vocabulary.py report --steps 244

The paper trained GPT-2 small twice on PubMed: with GPT-2's 50,257 tokens, and with 28,896 learned from PubMed. Its two
vocabularies differ both in size and in the text they were learned from. Three arms are compared here:

    A1    8,192 tokens learned from the training documents alone
    A2    the first 8,192 tokens of GPT-2: merges are ordered, so this is what GPT-2's would be at that size
    A3    GPT-2's 50,257

All arms read the same documents in the same order, with the same shape, rate and seeds. The rate is constant after the
warm-up, so that every step of a run is a fair end, and a run can be extended. The arms are compared after equal
arithmetic ("flops") and after equal text ("bytes").
results/vocabulary.md has the settings, which were written down before the first run, and the result.
"""
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's own modules, from any directory
# ruff: noqa: E402

import tyro

import train as pretraining
from baselines import load
from bench.evidence import first_lines
from data import Corpus, read_meta
from model import GPTConfig
from plumbing.common import ROOT, read_json, read_json_lines, speaking_to_the_user, write_json, write_json_lines
from plumbing.documents import texts_in
from prepare.exclude import Excluded, read_excluded
from tokenizer import Tokenizer

OUT = Path("out/vocabulary")
ARMS = ("A1", "A2", "A3")
SEEDS = (0, 1, 2)
SIZE = 8192
SHAPE = GPTConfig(n_positions=256, n_embd=128, n_layer=4, n_head=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
HELD_OUT = 0.1                 # of the documents
SCORED = 300                   # held-out documents for bits per byte; the pairs are made from the others
PAIRS = 1000                   # of each kind


# ---- Data ----


def data(abstracts: Path, gpt2: Path, exclude: tuple[Path, ...] = (), out: Path = OUT):
    """Divide the documents, make three tokenizers, and write nine folders of shards."""
    out.mkdir(parents=True, exist_ok=True)
    texts = allowed(list(texts_in([abstracts])), exclude)
    held_out = [text for text in texts if crc32(text.encode()) % 1000 < 1000 * HELD_OUT]
    read = [text for text in texts if crc32(text.encode()) % 1000 >= 1000 * HELD_OUT]
    random.Random(0).shuffle(held_out)
    write_json_lines(out / "held_out.jsonl", [{"text": text} for text in held_out[:SCORED]])
    write_json_lines(out / "pairs.jsonl", pairs_of(held_out[SCORED:]))

    Tokenizer.train(read, SIZE).save(out / "A1")
    whole = Tokenizer.load(gpt2)
    Tokenizer(whole.merges[:SIZE - 257]).save(out / "A2")
    whole.save(out / "A3")

    for seed in SEEDS:
        random.Random(seed).shuffle(read)
        source = out / f"read_{seed}.jsonl"
        write_json_lines(source, [{"text": text} for text in read])
        for arm in ARMS:
            subprocess.run([sys.executable, ROOT / "prepare/pubmed.py", "--inputs", source, "--tokenizer", out / arm,
                            "--val-fraction", "0.01", "--out", out / f"data/{arm}_{seed}"], check=True)


def allowed(texts, exclude):
    """The texts without those that share 20 words in a row with a file of `exclude`."""
    if not exclude:
        return texts
    with TemporaryDirectory() as folder:
        Excluded.save(Path(folder), [read_excluded(path) for path in exclude])
        found = Excluded(Path(folder)).find([None] * len(texts), texts)
    print(f"{len(found):,} of {len(texts):,} documents left out: they are in a test set")
    return [text for i, text in enumerate(texts) if i not in found]


def read_lines(path):
    return read_json_lines(path, "text or pair", "`python bench/vocabulary.py data` writes it", dict)


# ---- Pairs: a passage, and the same with a finding reversed or with another drug or disease ----

OPPOSITES = ("increased decreased, increase decrease, increases decreases, higher lower, improved worsened, better "
             "worse, more less, high low, longer shorter, greater smaller, positive negative, effective ineffective, "
             "early late, upregulated downregulated, stronger weaker, safe unsafe")
DRUGS = ("aspirin, ibuprofen, paracetamol, morphine, fentanyl, ketamine, propofol, bupivacaine, lidocaine, "
         "metformin, insulin, warfarin, heparin, clopidogrel, simvastatin, atorvastatin, losartan, enalapril, "
         "captopril, atenolol, propranolol, metoprolol, amlodipine, nifedipine, furosemide, digoxin, prednisone, "
         "prednisolone, dexamethasone, methotrexate, cisplatin, paclitaxel, docetaxel, tamoxifen, doxorubicin, "
         "cyclophosphamide, haloperidol, risperidone, olanzapine, clozapine, quetiapine, fluoxetine, sertraline, "
         "paroxetine, lithium, diazepam, gabapentin, naloxone, methadone, omeprazole, amoxicillin, vancomycin, "
         "ciprofloxacin, rituximab, infliximab")
DISEASES = ("asthma, pneumonia, tuberculosis, influenza, malaria, sepsis, stroke, epilepsy, migraine, dementia, "
            "schizophrenia, depression, anxiety, diabetes, obesity, hypertension, hypotension, cancer, leukemia, "
            "lymphoma, melanoma, osteoporosis, osteoarthritis, psoriasis, anemia, cirrhosis, hepatitis, "
            "pancreatitis, colitis, endometriosis, preeclampsia, glaucoma, cataract, thrombosis, atherosclerosis, "
            "angina, nausea, vomiting, delirium, insomnia, autism, pain")


def pairs_of(texts):
    """PAIRS pairs of each kind: [{"kind", "original", "changed"}]. A passage gives at most one pair of a kind."""
    random_, found = random.Random(0), []
    opposite = {}
    for pair in OPPOSITES.split(", "):
        a, b = pair.split()
        opposite |= {a: b, b: a}
    lists = [DRUGS.split(", "), DISEASES.split(", ")]

    for kind, words in (("finding", list(opposite)), ("entity", lists[0] + lists[1])):
        pattern, made = re.compile(rf"\b({'|'.join(words)})\b", re.I), []
        for text in texts:
            for passage in passages(text):
                match = pattern.search(passage)
                if match:
                    old = match[1].lower()
                    new = opposite.get(old) or another(old, passage.lower(), lists, random_)
                    changed = re.sub(rf"\b{old}\b", new, passage)
                    changed = re.sub(rf"\b{old.capitalize()}\b", new.capitalize(), changed)
                    if changed != passage:
                        made.append({"kind": kind, "original": passage, "changed": changed})
        found += random_.sample(made, PAIRS)
    return found


def passages(text):
    """Three sentences each, of at most 600 characters."""
    sentences = re.split(r"(?<=[.?!])\s+(?=[A-Z])", text)
    joined = [" ".join(sentences[i:i + 3]) for i in range(0, len(sentences), 3)]
    return [passage for passage in joined if 100 <= len(passage) <= 600]


def another(word, passage, lists, random_):
    """A drug for a drug, a disease for a disease, that the passage does not mention."""
    names = next(names for names in lists if word in names)
    return random_.choice([name for name in names if name not in passage])


# ---- Training ----


class InOrder(Corpus):
    """Reads the windows as they lie in the shards, so that arms with other tokens read the same documents."""

    def batch(self, step, batch_size, rows=slice(None)):
        numbers = np.arange(step * batch_size, (step + 1) * batch_size)[rows]
        return self.cut((numbers % self.n_windows * self.window).tolist())


def train(arm: str, seed: int, rate: float, steps: int, out: Path = OUT, run: str = ""):
    """Train one arm to both of its ends, and keep the model at each. `steps` is A2's number."""
    pretraining.Corpus = InOrder
    name = run or f"{arm}_{seed}"
    for end in sorted(set(ends(arm, seed, steps, out).values())):
        kept = out / f"models/{name}_{end}"
        if not kept.exists():
            pretraining.main(replace(
                pretraining.PRESETS["laptop"], data=str(out / f"data/{arm}_{seed}"), out=str(out / f"runs/{name}"),
                model=SHAPE, steps=end, learning_rate=rate, final_learning_rate=rate, warmup_steps=40, seed=seed,
                eval_every=50, checkpoint_every=50))
            shutil.copytree(out / f"runs/{name}/model", f"{kept}.part")
            os.rename(f"{kept}.part", kept)


def ends(arm, seed, steps, out):
    """{"flops": step, "bytes": step}: where this arm has done A2's arithmetic of `steps`, and read A2's text.

    A3 has no second end: it would do 2.6 times A2's arithmetic.
    """
    meta, theirs = (read_meta(out / f"data/{name}_{seed}") for name in (arm, "A2"))
    flops = [replace(SHAPE, vocab_size=m["vocab_size"]).flops_per_token(SHAPE.n_positions) for m in (meta, theirs)]
    per_token = [m["train"]["bytes"] / m["train"]["tokens"] for m in (meta, theirs)]
    end = {"flops": round(steps * flops[1] / flops[0]), "bytes": round(steps * per_token[1] / per_token[0])}
    return {"flops": end["flops"]} if arm == "A3" else end


# ---- Scores ----


def score(arm: str, seed: int, steps: int, sections: Path, out: Path = OUT):
    """Score an arm at each of its ends: held-out documents, pairs, and the task `sections`."""
    few = first_lines(sections / "sections_train.jsonl", 1000, out / "sections_train.jsonl")
    broken = broken_by_gpt2(out)
    for end in sorted(set(ends(arm, seed, steps, out).values())):
        folder, target = out / f"models/{arm}_{seed}_{end}", out / f"scores/{arm}_{seed}_{end}.json"
        if target.exists():
            continue
        model, tok = load(str(folder), torch.float32, "cpu")
        result = {"documents": [document_score(model, tok, line["text"], broken)
                                for line in read_lines(out / "held_out.jsonl")],
                  "pairs": [nats(model, tok, pair["changed"])[1].sum() - nats(model, tok, pair["original"])[1].sum()
                            for pair in read_lines(out / "pairs.jsonl")]}

        report = out / f"sections/{arm}_{seed}_{end}"
        if not (report / "report.json").exists():
            subprocess.run([sys.executable, ROOT / "finetune_qa.py", "sections", "--model", folder, "--train", few,
                            "--dev", sections / "sections_dev.jsonl", "--test", sections / "sections_test.jsonl",
                            "--epochs", "5", "--seeds", str(seed), "--out", report], check=True)
        result["sections"] = read_json(report / "report.json", "a report")["accuracy"]
        target.parent.mkdir(exist_ok=True)
        write_json(target, result)


@torch.no_grad()
def nats(model, tok, text):
    """(ids, nats of each): a window of 256 moves by 128, so a token has 128 before it or all there are."""
    ids = tok.encode(text).astype(np.int64)
    row = torch.from_numpy(np.concatenate([[tok.eos_id], ids]))
    window, losses = SHAPE.n_positions, []
    for start in range(0, max(1, len(row) - window + window // 2), window // 2):
        part = row[start:start + window + 1]
        loss_T = F.cross_entropy(model(part[None, :-1])[0], part[1:], reduction="none")
        losses.append(loss_T[window // 2 if start else 0:])
    losses = torch.cat(losses).double().numpy()
    assert len(losses) == len(ids), (len(losses), len(ids))
    return ids, losses


def document_score(model, tok, text, broken):
    """[bytes, nats, bytes inside terms, nats inside terms]; a term is a word that A1 keeps whole and A2 breaks."""
    ids, losses = nats(model, tok, text)
    end_of = np.cumsum([len(tok.bytes_of[i]) for i in ids.tolist()])
    begin_of = np.concatenate([[0], end_of[:-1]])
    term_bytes = term_nats = 0
    for match in WORD.finditer(text):
        if match[0] in broken:
            begin, end = (len(text[:place].encode()) for place in match.span())
            inside = (begin_of >= begin) & (end_of <= end)
            term_bytes += end - begin
            term_nats += losses[inside].sum()
    return [len(text.encode()), losses.sum(), term_bytes, term_nats]


WORD = re.compile(r" [A-Za-z]{6,}(?![A-Za-z])")


def broken_by_gpt2(out):
    """The words, with their space, of the held-out documents that are one token of A1 and several of A2."""
    ours, theirs = (Tokenizer.load(out / arm) for arm in ("A1", "A2"))
    words = {word for line in read_lines(out / "held_out.jsonl") for word in WORD.findall(line["text"])}
    return {word for word in words if len(ours.encode(word)) == 1 and len(theirs.encode(word)) > 1}


# ---- Report ----


def report(steps: int, arms: tuple[str, ...] = ARMS, seeds: tuple[int, ...] = SEEDS, out: Path = OUT):
    """Means over seeds, and the differences to A2 with 95 % intervals (bootstrap over documents, pairs)."""
    result = {}
    for at in ("flops", "bytes"):
        scores = {arm: [read_json(out / f"scores/{arm}_{seed}_{ends(arm, seed, steps, out)[at]}.json", "scores")
                        for seed in seeds] for arm in arms if at in ends(arm, 0, steps, out)}
        result[at] = {arm: line_of(parts, scores["A2"]) for arm, parts in scores.items()}
        for arm, line in result[at].items():
            print(at, arm, json.dumps(line))
    write_json(out / "report.json", result)


def line_of(parts, theirs):
    """One arm's scores, beside A2's."""
    documents, others = (np.array([part["documents"] for part in p]) for p in (parts, theirs))      # (seeds, docs, 4)
    pairs, other_pairs = (np.array([part["pairs"] for part in p]) > 0 for p in (parts, theirs))     # (seeds, pairs)
    line = {"seeds": len(parts), "bits_per_byte": [round(bits(d[None], 0).item(), 4) for d in documents]}
    for name, kind in (("all", 0), ("terms", 2), ("rest", -1)):
        ours, theirs_ = bits(documents, kind), bits(others, kind)
        draws = np.random.default_rng(0).integers(documents.shape[1], size=(10_000, documents.shape[1]))
        differences = np.concatenate([bits(documents[:, part], kind, 1) - bits(others[:, part], kind, 1)
                                      for part in np.array_split(draws, 100)])
        line[name] = {"bits_per_byte": round(float(ours), 4), "minus_A2": round(float(ours - theirs_), 4),
                      "interval": np.quantile(differences, (0.025, 0.975)).round(4).tolist()}
    for name, part in (("findings", slice(0, PAIRS)), ("entities", slice(PAIRS, None))):
        line[name] = {"accuracy": mean(pairs[:, part]), "per_seed": pairs[:, part].mean(1).round(4).tolist(),
                      "minus_A2": round(mean(pairs[:, part]) - mean(other_pairs[:, part]), 4),
                      "interval": interval(pairs[:, part].mean(0) - other_pairs[:, part].mean(0))}
    accuracies = [part["sections"] for part in parts]
    line["sections"] = {"accuracy": mean(accuracies), "per_seed": accuracies}
    return line


def bits(documents_SDK, kind, axis=0):
    """Bits per byte over documents, mean over seeds. kind: 0 of all text, 2 inside terms, -1 outside them.

    axis: 0 for (seeds, docs, 4); 1 for (seeds, draws, docs, 4), giving one number per draw.
    """
    sums = documents_SDK.sum(-2)
    read, cost = sums[..., 0], sums[..., 1]
    if kind == 2:
        read, cost = sums[..., 2], sums[..., 3]
    elif kind == -1:
        read, cost = read - sums[..., 2], cost - sums[..., 3]
    return (cost / read / math.log(2)).mean(0)


def mean(values):
    return round(float(np.mean(values)), 4)


def interval(values):
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    return np.quantile(values[draws].mean(1), (0.025, 0.975)).round(4).tolist()


if __name__ == "__main__":
    with speaking_to_the_user():
        tyro.extras.subcommand_cli_from_dict({"data": data, "train": train, "score": score, "report": report})
