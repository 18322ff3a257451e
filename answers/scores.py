"""Scores of generated text: overlap with a reference, exact answers, and signs of degeneration.

    ROUGE, BLEU               words in common with the reference (by rouge-score and sacrebleu); blind to what is true
    exact match, F1           short answers, compared as SQuAD's official scripts do (0 to 1, theirs 0 to 100)
    strict, lenient, MRR      a ranked list of short answers, as BioASQ scores factoid questions
    distinct-n, copy rate     low and high for text that repeats itself or its prompt: overlap does not show it

Teaches how each is counted, and the interval behind it: what another sample of questions might have given.
"""
import re
import string
from collections import Counter

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from questions.metrics import words

ROUGES = ("rouge1", "rouge2", "rougeL")
DRAWS = 1000


def bootstrap(rows_NF, groups=None, score=lambda row: row[0] / row[1]):
    """{"value", "interval"}: score(the sum of all rows), and the middle 95 % of what it is over questions drawn again
    with replacement. Rows of one group (snippets of a question) are drawn together, since they are not independent."""
    rows_NF = np.asarray(rows_NF, dtype=np.float64)
    _, group_N = np.unique(np.arange(len(rows_NF)) if groups is None else groups, return_inverse=True)
    sums_GF = np.zeros((group_N.max() + 1, rows_NF.shape[1]))
    np.add.at(sums_GF, group_N, rows_NF)
    times_DG = np.random.default_rng(0).multinomial(len(sums_GF), np.full(len(sums_GF), 1 / len(sums_GF)), DRAWS)
    drawn = [score(row) for row in times_DG @ sums_GF]
    return {"value": float(score(rows_NF.sum(0))), "interval": np.percentile(drawn, [2.5, 97.5]).tolist()}


def mean(values, groups=None):
    """The mean of one number per item, with its interval."""
    return bootstrap([(value, 1.0) for value in values], groups)


def text_scores(outputs, references, sources):
    """ROUGE-1, -2 and -L (F1 of stemmed words, per text), BLEU (of the corpus), lengths, distinct-n and copy rate."""
    scorer, bleu = RougeScorer(ROUGES, use_stemmer=True), BLEU(effective_order=True)
    rouge = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
    counts = [bleu.sentence_score(output, [reference]) for output, reference in zip(outputs, references, strict=True)]
    rows_NF = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in counts]
    return {name: mean([one[name].fmeasure for one in rouge]) for name in ROUGES} | {
        "bleu": bootstrap(rows_NF, score=bleu_of_counts), "words": float(np.mean([len(words(o)) for o in outputs])),
        "distinct_1": distinct(outputs, 1), "distinct_2": distinct(outputs, 2), "copied": copy_rate(outputs, sources)}


def bleu_of_counts(row):
    """sacrebleu's corpus BLEU (0 to 100) from its sums: n-grams that match, n-grams, and the two lengths."""
    match, total = row[:4], row[4:8]
    output_length, reference_length = row[8:]
    bleu = BLEU.compute_bleu(list(match), list(total), int(output_length), int(reference_length), smooth_method="exp")
    return bleu.score


def ngrams(text, n):
    w = words(text)
    return [tuple(w[i:i + n]) for i in range(len(w) - n + 1)]


def distinct(texts, n):
    """Different n-grams over all n-grams of the texts together (Li et al. 2016); compare texts of equal number."""
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / max(1, len(grams))


def copy_rate(outputs, sources, n=3):
    """The share of the outputs' word 3-grams that also occur in their own sources."""
    copied = total = 0
    for output, source in zip(outputs, sources, strict=True):
        grams, known = ngrams(output, n), set(ngrams(source, n))
        copied, total = copied + sum(gram in known for gram in grams), total + len(grams)
    return copied / max(1, total)


def first_sentence(text):
    """The trivial summary."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


# ---- Short answers ----

def normalized(answer):
    """As SQuAD's script: lower case, no ASCII punctuation, no articles, single spaces."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction, answers):
    return float(any(normalized(prediction) == normalized(answer) for answer in answers))


def token_f1(prediction, answers):
    """The best F1 over the words that prediction and an answer share. (SQuAD 1.1's script: nothing in common is 0.)"""
    best, ours = 0.0, normalized(prediction).split()
    for answer in answers:
        theirs = normalized(answer).split()
        same = sum((Counter(ours) & Counter(theirs)).values())
        best = max(best, 2 * same / (len(ours) + len(theirs)) if same else 0.0)
    return best


def squad2_scores(prediction, answers):
    """(exact match, F1) as SQuAD 2.0's script: for a question without answers, only the empty text "" is right."""
    answers = [answer for answer in answers if normalized(answer)] or [""]
    exact = exact_match(prediction, answers)
    return exact, token_f1(prediction, answers) if normalized(prediction) else exact


def best_threshold(margins, answered, silent):
    """(the best mean score, the threshold that reaches it): an item whose margin, which speaks for silence, is above
    the threshold scores as `silent`, else as `answered`. As in SQuAD 2.0's script, only margins that occur are tried.
    """
    margins, answered, silent = (np.asarray(values, dtype=np.float64) for values in (margins, answered, silent))
    order = np.argsort(margins, kind="stable")
    gain_N, last_N = np.cumsum((answered - silent)[order]), np.append(np.diff(margins[order]) > 0, True)
    best = int(np.where(last_N, gain_N, -np.inf).argmax())
    if gain_N[best] <= 0:
        return silent.mean(), float(margins[order[0]]) - 1        # say nothing at all
    return float((silent.sum() + gain_N[best]) / len(margins)), float(margins[order[best]])


def factoid_scores(ranked, answers):
    """(strict, lenient, reciprocal rank) of one question: is the first of up to five answers right, is any, and 1 / the
    place of the first that is. BioASQ compares lower-cased text as it is."""
    right = {answer.strip().lower() for answer in answers}
    place = next((i for i, answer in enumerate(ranked[:5], 1) if answer.strip().lower() in right), 0)
    return float(place == 1), float(place > 0), 1 / place if place else 0.0


def ranked_answers(candidates):
    """Different answers by the sum of their probabilities over a question's snippets, the best first. candidates:
    (text, log-probability), and spellings that differ in case count as one."""
    total, spelling = Counter(), {}
    for text, log_p in candidates:
        if key := text.strip().lower():
            total[key] += float(np.exp(log_p))
            spelling.setdefault(key, text.strip())
    return [spelling[key] for key, _ in total.most_common()]
