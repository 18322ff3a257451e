"""Metrics for a few hundred questions, and how far to trust them.

Teaches the interval of an accuracy, F1, calibration, a test whether one model is better than another, what guessing
reaches, and how to find test questions in the training set.
"""
import math
import re
from collections import Counter

import numpy as np

Z95 = 1.959964      # standard deviations on either side that hold 95 % of a normal distribution


def accuracy(predictions, answers):
    return sum(p == a for p, a in zip(predictions, answers, strict=True)) / len(answers)


def wilson_interval(share, n):
    """The 95 % interval of a share measured on n questions. It also holds for few questions, and near 0 and 1.

    50.3 % on MedQA's 1,273 questions: wilson_interval(0.503, 1273) -> (0.476, 0.530)
    """
    centre, spread = share + Z95**2 / (2 * n), Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return (centre - spread) / (1 + Z95**2 / n), (centre + spread) / (1 + Z95**2 / n)


def macro_f1(predictions, answers):
    """The mean of 2 TP / (2 TP + FP + FN) over the classes in `answers`. All have the same weight, however rare."""
    scores = []
    for label in set(answers):
        hits = sum(p == a == label for p, a in zip(predictions, answers, strict=True))
        scores.append(2 * hits / (predictions.count(label) + answers.count(label)))
    return sum(scores) / len(scores)


def mean_and_deviation(values):
    """The mean and the sample standard deviation (0 for one value)."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1))


def probabilities(scores):
    """Softmax over the options of one question."""
    weights = np.exp(np.asarray(scores, dtype=np.float64) - max(scores))
    return weights / weights.sum()


def brier_score(scores, answers):
    """The mean over questions of the sum over options of (p - 1)^2 for the answer and p^2 for the others. 0 means
    certain and right, 2 certain and wrong, 1 - 1/n a guess among n options. (Brier 1950, for several categories.)"""
    total = 0.0
    for p, answer in zip(map(probabilities, scores), answers, strict=True):
        total += float((p ** 2).sum() - 2 * p[answer] + 1)
    return total / len(answers)


def calibration_error(scores, answers, bins=15):
    """Expected calibration error: of the answers with probability p, a share of p should be right. The mean difference
    of confidence and accuracy in `bins` bins of equal width, weighted by their questions (Guo et al. 2017)."""
    p = [probabilities(of_question) for of_question in scores]
    confidence, right = np.array([q.max() for q in p]), np.array([q.argmax() for q in p]) == np.array(answers)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return sum(abs(confidence[bin_of == b].sum() - right[bin_of == b].sum()) for b in range(bins)) / len(answers)


def paired_test(ours, theirs, draws=20_000):
    """The two-sided p-value of a difference in accuracy on the same questions.

    ours, theirs: for each question the share of right answers over the seeds. If neither model were better, the sign of
    each difference would be random; so the test flips signs at random, and counts how often the sum is at least as
    large. With one seed each this is McNemar's exact test, except for the random draws.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    difference = difference[difference != 0]
    if not len(difference):
        return 1.0
    rng, as_large = np.random.default_rng(0), 0
    for _ in range(draws // 1000):
        sums = rng.choice([-1.0, 1.0], (1000, len(difference))) @ difference
        as_large += int((abs(sums) >= abs(difference.sum()) - 1e-9).sum())
    return (as_large + 1) / (draws + 1)


def guessing_accuracy(train, test):
    """The accuracy on `test` of two ways to guess: (at random, the option that was most often right in `train`, or one
    of those at random)."""
    right = Counter(q.options[q.answer] for q in train)
    chance = sum(1 / len(q.options) for q in test) / len(test)
    commonest = 0.0
    for q in test:
        most = max(right[option] for option in q.options)
        favourites = [i for i, option in enumerate(q.options) if right[option] == most]
        commonest += (q.answer in favourites) / len(favourites)
    return chance, commonest / len(test)


# ---- Overlap of test and training set ----

# Training and test questions often come from the same banks, and a score on memorised questions is worthless.
# Exact overlap: the same context, question and options, ignoring case, punctuation and the order of the options.
# Near overlap: of all runs of WORDS words in context and question, at least the share NEAR is in the training set.
WORDS = 8
NEAR = 0.5


def words(text):
    return re.findall(r"\w+", text.lower())


def windows(q):
    asked = words(f"{q.context} {q.question}")
    return {tuple(asked[i:i + WORDS]) for i in range(max(1, len(asked) - WORDS + 1))}


def same(q):
    """A key that is equal for two copies of a question."""
    return tuple(words(f"{q.context} {q.question}")), tuple(sorted(" ".join(words(option)) for option in q.options))


def overlap(train, test):
    """{"exact": n, "near": n, "ids": the first ten}: test questions that are also in train. near excludes exact."""
    seen, known = {same(q) for q in train}, set().union(*map(windows, train))
    exact = [q.id for q in test if same(q) in seen]
    near = [q.id for q in test if same(q) not in seen and len(windows(q) & known) >= NEAR * len(windows(q))]
    return {"exact": len(exact), "near": len(near), "ids": (exact + near)[:10]}
