"""Was the test in the training set? Exact and near overlap between two files of questions.

Benchmarks are scraped from the same question banks as their training sets, and a score on questions that were learned
by heart says nothing. Exact: the same context, question and options, whatever the case, the punctuation and the order
of the options. Near: at least half of the 8-word windows of context and question occur in the training questions (in
any of them); a shorter text is one window.
Not here: overlap with the text of pretraining, which takes an index of that text.
"""
import re

WORDS, NEAR = 8, 0.5


def words(text):
    return re.findall(r"\w+", text.lower())


def windows(q):
    asked = words(f"{q.context} {q.question}")
    return {tuple(asked[i:i + WORDS]) for i in range(max(1, len(asked) - WORDS + 1))}


def same(q):
    """What two records of one question have in common."""
    return tuple(words(f"{q.context} {q.question}")), tuple(sorted(" ".join(words(option)) for option in q.options))


def overlap(train, test):
    """{"exact": n, "near": n, "ids": the first ten} of the test questions that train holds; near excludes exact."""
    seen, known = {same(q) for q in train}, set().union(*map(windows, train)) if train else set()
    exact = [q.id for q in test if same(q) in seen]
    near = [q.id for q in test if same(q) not in seen
            and len(windows(q) & known) >= NEAR * len(windows(q))]
    return {"exact": len(exact), "near": len(near), "ids": (exact + near)[:10]}
