"""From answers to a report: the model's scores beside those of trivial baselines.

Teaches what a ROUGE score needs before one can trust it: its interval, the scores of the question itself and of the
context's first sentence as baselines, and how much the references themselves repeat and copy.
Not here: the scores (answers/scores.py).
"""
from answers import scores


def assess(short, test, predictions):
    """The scores for report.json: of the model, of the baselines and, for long answers, of the references."""
    sources = [f"{item.context} {item.prompt}".strip() for item in test]
    systems = {"model": [record["answer"] for record in predictions],
               "first sentence": [scores.first_sentence(item.context or item.prompt) for item in test],
               "the question itself": [item.prompt for item in test]}
    nats_N2 = [(-record["reference_log_probability"], record["reference_tokens"]) for record in predictions]
    report = {"n": len(test), "reference_log_perplexity": scores.bootstrap(nats_N2, [item.group for item in test])}
    if short:
        found = {name: [[(output, 0.0)] for output in outputs] for name, outputs in systems.items()}
        found["model"] = [record["candidates"] for record in predictions]
        return report | {name: short_scores(test, candidates) for name, candidates in found.items()}
    references = [item.answer for item in test]
    report |= {name: scores.text_scores(outputs, references, sources) for name, outputs in systems.items()}
    own = scores.text_scores(references, references, sources)
    return report | {"the references": {name: value for name, value in own.items() if isinstance(value, float)}}


def short_scores(test, *runs):
    """Exact match and F1 of each item, like SQuAD's script, and strict, lenient and MRR of each group, like BioASQ.
    Means over the runs; a run has the candidates of each item. For intervals, a group's scores are drawn together."""
    right, of, n = [item.answers or (item.answer,) for item in test], [item.group for item in test], len(runs)
    best = [(scores.ranked_answers(of_item) or [""])[0] for candidates in runs for of_item in candidates]
    found = {name: scores.mean([score(b, r) for b, r in zip(best, right * n, strict=True)], of * n)
             for name, score in (("exact_match", scores.exact_match), ("f1", scores.token_f1))}
    members = {group: [i for i, its in enumerate(of) if its == group] for group in dict.fromkeys(of)}
    ranks = []
    for candidates in runs:
        for of_group in members.values():
            ranked = scores.ranked_answers([one for i in of_group for one in candidates[i]])
            ranks.append(scores.factoid_scores(ranked, {answer for i in of_group for answer in right[i]}))
    found |= {name: scores.mean(values, [*range(len(members))] * n)
              for name, *values in zip(("strict", "lenient", "mrr"), *ranks, strict=True)}
    return found | {"questions": float(len(members))}


def span_scores(test, unanswerable, *runs):
    """The scores of one or more runs of extraction, from their records. If questions may have no answer, like SQuAD
    2.0's script: of all questions, of those with an answer and of those without one. Else short_scores."""
    if not unanswerable and all(item.answers for item in test):
        return short_scores(test, *([record["candidates"] for record in records] for records in runs))
    rows_N2 = [scores.squad2_scores(record["answer"], item.answers) for records in runs
               for item, record in zip(test, records, strict=True)]
    has_N, of = [bool(item.answers) for item in test] * len(runs), [item.group for item in test] * len(runs)
    found = {}
    for prefix, wanted in (("", (True, False)), ("has_answer_", (True,)), ("no_answer_", (False,))):
        chosen = [i for i, has in enumerate(has_N) if has in wanted]
        for column, name in enumerate(("exact_match", "f1")) if chosen else ():
            found[prefix + name] = scores.mean([rows_N2[i][column] for i in chosen], [of[i] for i in chosen])
    return found | {"answerable": float(sum(has_N) // len(runs))}


def summary(report):
    """The lines to print: one for each system."""
    lines = [f"{report['n']:,} test items; the references have a log-perplexity of "
             f"{shown(report['reference_log_perplexity'])} nats per token"]
    for system in ("model", "first sentence", "the question itself", "the references"):
        if system in report:
            lines.append(f"{system:20} " + "  ".join(f"{name} {shown(v)}" for name, v in report[system].items()))
    return "\n".join(lines)


def shown(value):
    if not isinstance(value, dict):
        return f"{value:.3g}"
    return f"{value['value']:.3f} [{value['interval'][0]:.3f}, {value['interval'][1]:.3f}]"
