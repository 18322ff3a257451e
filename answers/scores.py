"""Scores of generated text: overlap with a reference, exact answers, and signs of degeneration.

    ROUGE, BLEU               words in common with the reference (by rouge-score and sacrebleu); not whether it is true
    exact match, F1           short answers, compared as in SQuAD's official scripts (here 0 to 1, there 0 to 100)
    strict, lenient, MRR      a ranked list of short answers, as BioASQ scores factoid questions
    distinct-n                low for text that repeats itself, which overlap does not show
    copy rate                 high for text that repeats its prompt

Each has an interval: the values that another sample of questions might have given.
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
    """{"value", "interval"}: score(the sum of all rows), and its 95 % interval over samples drawn with replacement.
    Rows of one group, such as the snippets of a question, are not independent, and are drawn together."""
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
    """ROUGE-1, -2 and -L (mean F1 of stemmed words), BLEU of the corpus, length in words, distinct-n and copy rate."""
    scorer, bleu = RougeScorer(ROUGES, use_stemmer=True), BLEU(effective_order=True)
    rouge = [scorer.score(reference, output) for output, reference in zip(outputs, references, strict=True)]
    counts = [bleu.sentence_score(output, [reference]) for output, reference in zip(outputs, references, strict=True)]
    rows_NF = [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in counts]
    return {name: mean([one[name].fmeasure for one in rouge]) for name in ROUGES} | {
        "bleu": bootstrap(rows_NF, score=bleu_of_counts), "words": float(np.mean([len(words(o)) for o in outputs])),
        "distinct_1": distinct(outputs, 1), "distinct_2": distinct(outputs, 2), "copied": copy_rate(outputs, sources)}


def bleu_of_counts(row):
    """sacrebleu's corpus BLEU (0 to 100) from sums over the texts: matching n-grams, all n-grams, and both lengths."""
    output_length, reference_length = map(int, row[8:])
    return BLEU.compute_bleu(list(row[:4]), list(row[4:8]), output_length, reference_length, smooth_method="exp").score


def ngrams(text, n):
    w = words(text)
    return [tuple(w[i:i + n]) for i in range(len(w) - n + 1)]


def distinct(texts, n):
    """Different n-grams divided by all n-grams (Li et al. 2016). Compare only equally many texts."""
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
    """A trivial baseline for a summary."""
    return re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]


# ---- Short answers ----

def normalized(answer):
    """Like SQuAD's script: lower case, no ASCII punctuation, no articles, single spaces."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact_match(prediction, answers):
    return float(any(normalized(prediction) == normalized(answer) for answer in answers))


def token_f1(prediction, answers):
    """The F1 of the words shared with the best of the answers. Like SQuAD 1.1's script, 0 if no word is shared."""
    best, ours = 0.0, normalized(prediction).split()
    for answer in answers:
        theirs = normalized(answer).split()
        same = sum((Counter(ours) & Counter(theirs)).values())
        best = max(best, 2 * same / (len(ours) + len(theirs)) if same else 0.0)
    return best


def squad2_scores(prediction, answers):
    """(exact match, F1) like SQuAD 2.0's script: for a question without answers, only the empty text is right."""
    answers = [answer for answer in answers if normalized(answer)] or [""]
    exact = exact_match(prediction, answers)
    return exact, token_f1(prediction, answers) if normalized(prediction) else exact


def best_threshold(margins, answered, silent):
    """(the best mean score, the threshold that reaches it). An item with a margin above the threshold is not answered,
    and scores `silent`; else it scores `answered`. Like SQuAD 2.0's script, this only tries margins that occur."""
    margins, answered, silent = (np.asarray(values, dtype=np.float64) for values in (margins, answered, silent))
    order = np.argsort(margins, kind="stable")
    gain_N, last_N = np.cumsum((answered - silent)[order]), np.append(np.diff(margins[order]) > 0, True)
    best = int(np.where(last_N, gain_N, -np.inf).argmax())
    if gain_N[best] <= 0:
        return silent.mean(), float(margins[order[0]]) - 1        # answer nothing at all
    return float((silent.sum() + gain_N[best]) / len(margins)), float(margins[order[best]])


def factoid_scores(ranked, answers):
    """(strict, lenient, reciprocal rank) of up to five ranked answers: whether the first is right, whether any is, and
    1 / the rank of the first right one. Like BioASQ, this compares lower-cased text."""
    right = {answer.strip().lower() for answer in answers}
    place = next((i for i, answer in enumerate(ranked[:5], 1) if answer.strip().lower() in right), 0)
    return float(place == 1), float(place > 0), 1 / place if place else 0.0


def ranked_answers(candidates):
    """The different answers, ignoring case, best first: by the sum of their probabilities over all snippets of a
    question. candidates: (text, log-probability)."""
    total, spelling = Counter(), {}
    for text, log_p in candidates:
        if key := text.strip().lower():
            total[key] += float(np.exp(log_p))
            spelling.setdefault(key, text.strip())
    return [spelling[key] for key, _ in total.most_common()]
