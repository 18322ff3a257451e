"""Convert the multiple-choice questions of all benchmarks to the format that finetune_qa.py reads.

    python prepare/qa.py medqa hub data/qa               # download: data/qa/medqa_{train,dev,test}.jsonl
    python prepare/qa.py medqa phrases_no_exclude_train.jsonl data/qa/medqa_train.jsonl      # or convert a file
    python prepare/qa.py pubmedqa ori_pqal.json data/qa/pubmedqa_test.jsonl --keep-ids test_ground_truth.json
    python prepare/qa.py sections abstracts.jsonl.gz data/qa     # make a task from abstracts: prepare/sections.py

Each line of OUT is {"id", "context", "question", "options": [...], "answer": index}. IN may already have this format.
You should see the number of questions, how often each answer is right, and the lengths of the texts.

Teaches the differences between five releases of similar data; each trap is marked where it is handled. A record that
cannot be read is named and skipped. The script stops if more than 1 % are skipped. OUT is written whole or not at all.
Not here: downloads (prepare/hub_qa.py), sources and licences (prepare/__init__.py), tokens (finetune_qa.py).
"""
import csv
import html
import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of prepare/

from plumbing.common import UserError, read_json, read_text, run_script, say_next
from prepare.hub_qa import fetch
from prepare.sections import Sections, make_sections
from questions.format import Question, write_questions

SHOWN = 10           # bad records that are named; all are counted
YES_NO = ["yes", "no"]
YES_NO_MAYBE = ["yes", "no", "maybe"]


@dataclass(frozen=True)
class Questions:
    """Convert a benchmark's questions. `qa.py sections --help`: make a task from abstracts."""
    # the benchmark of IN
    task: Annotated[Literal["medqa", "medqa5", "medmcqa", "pubmedqa", "bioasq", "mmlu"], tyro.conf.Positional]
    # .json, .jsonl or .csv, plain or .gz; "hub" downloads the benchmark
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]   # a file; with hub a folder
    keep_ids: Path | None = None     # JSON, a list of ids or an object with ids as keys: keep only these questions
    drop_ids: Path | None = None     # the same, but leave these questions out


class Malformed(Exception):
    """A record that is not as its release describes it; the message says why."""


# ---- From a record of each release to a Question; the id is "" if the release has none ----

def from_medqa(record):
    """USMLE: {"question", "options": {"A": text, ...}, "answer": text, "answer_idx": "C"}, 4 or 5 options."""
    options = record["options"]
    if isinstance(options, list):                    # a later release: [{"key": "A", "value": text}, ...]
        options = {option["key"]: option["value"] for option in options}
    letters, gold = sorted(options), record["answer_idx"]
    if gold not in options:
        raise Malformed(f"answer_idx {gold!r} is not one of {', '.join(letters)}")
    if str(record.get("answer", options[gold])).strip() != str(options[gold]).strip():
        raise Malformed(f"answer and answer_idx disagree: {record['answer']!r} is not option {gold}")
    question = record["question"].strip()
    if question.endswith('"') and question.count('"') % 2:       # TRAP: some end in an unmatched quote
        question = question[:-1].rstrip()
    return Question(record.get("id", ""), "", question, [options[letter] for letter in letters], letters.index(gold))


def from_medmcqa(record, first):
    """{"question", "opa", "opb", "opc", "opd", "cop"}. "exp" explains the answer, so it is not read."""
    gold = record.get("cop")
    if not isinstance(gold, int) or not first <= gold < first + 4:
        raise Malformed(f"cop {gold!r} is not the number of an option (the test set's answers are withheld)")
    return Question(record.get("id", ""), "", record["question"], [record["op" + c] for c in "abcd"], gold - first)


def first_option_of_medmcqa(records):
    """0 or 1: the number of the first option in these records.

    TRAP: cop counts from 1 in the authors' files. In the copy on the Hugging Face hub it counts from 0, and is -1 for a
    withheld answer. Only a 4 or a 0 in the file shows which it is.
    """
    cops = [record.get("cop") for _, record in records if isinstance(record, dict)]
    seen = Counter(cop for cop in cops if type(cop) is int)
    first = 0 if seen[0] + seen[-1] > seen[4] else 1
    certain = "" if seen[0] + seen[-1] + seen[4] else " (assumed, as in the authors' files: no record has 0 or 4)"
    if seen:
        print(f"medmcqa: cop counts the options from {first}{certain}")
    return first


def from_pubmedqa(record):
    """A value of the release's {PMID: {...}}, a row of the hub's copy, or a line of a fold.

    TRAP: LONG_ANSWER is the abstract's conclusion, which answers the question. It is never part of the input.
    """
    low = {key.lower(): value for key, value in record.items()}
    contexts = low["contexts"] if "contexts" in low else low["context"]["contexts"]
    if not isinstance(contexts, list):
        raise Malformed("its contexts are not a list of texts")
    gold = low.get("final_decision", low.get("label"))
    return yes_no(low.get("id", low.get("pubid", "")), " ".join(c.strip() for c in contexts), low["question"], gold,
                  YES_NO_MAYBE)


# Tags are recognised by their names, because texts contain "p<0.05".
TAG = re.compile(r"</?(a|abstracttext|b|br|div|em|font|i|p|small|span|strong|sub|sup|u)(\s[^<>]*=[^<>]*)?\s*/?>", re.I)


def without_html(text):
    """<b>AIM</b>:<br>CO<sub>2</sub> &lt; 5 becomes AIM: CO2 < 5."""
    text = re.sub(r'<AbstractText Label="([^"]*)"[^<>]*>', r" \1: ", text)
    text = TAG.sub(lambda tag: " " if tag[1].lower() in ("br", "div", "p", "abstracttext") else "", text)
    return " ".join(html.unescape(text).split())


def from_bioasq(record):
    """Golden sets: {"type": "yesno", "body", "snippets": [{"text"}, ...], "exact_answer"}; or {"question", "label"}."""
    snippets = [s["text"] if isinstance(s, dict) else s for s in record["snippets"]]
    plain = [without_html(s) for s in snippets]      # TRAP: snippets contain HTML, and some occur twice
    gold = record.get("exact_answer", record.get("label"))
    return yes_no(record.get("id", ""), " ".join(dict.fromkeys(plain)), record.get("body", record.get("question")),
                  gold[0] if isinstance(gold, list) and gold else gold, YES_NO)


def yes_no(id_, context, question, gold, options):
    """A Question from a spelled answer. TRAP: it is "yes" or "Yes"."""
    gold = str(gold).strip().lower()
    if gold not in options:
        raise Malformed(f"the answer is {gold!r}, not one of {', '.join(options)}")
    return Question(id_, context, question, options, options.index(gold))


def from_mmlu(record):
    """A CSV row: question, four options, letter. TRAP: fields contain newlines, and there is no header."""
    if isinstance(record, dict):                     # a row of the hub's copy
        return Question("", "", record["question"], record["choices"], record["answer"])
    if len(record) != 6:
        raise Malformed(f"{len(record)} columns instead of 6 (question, A, B, C, D, answer)")
    *options, gold = record[1:]
    if gold.strip() not in ("A", "B", "C", "D"):
        raise Malformed(f"the answer is {gold!r}, not a letter A to D")
    return Question("", "", record[0], options, "ABCD".index(gold.strip()))


# ---- Reading and converting files, the same for all releases ----

def read_records(path):
    """[(where, record), ...]. A record that is not JSON is a Malformed, which `converted` reports."""
    text, name = read_text(path, "IN is a file of questions"), path.name.removesuffix(".gz")
    if text.startswith("version https://git-lfs"):
        raise UserError(f"{path}: a git-lfs pointer instead of the file; run `git lfs pull`")
    if name.endswith(".csv"):
        rows = csv.reader(io.StringIO(text, newline=""))
        try:
            return [(f"line {rows.line_num}", row) for row in rows if row]
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num}: {error}; repair or remove it") from error
    whole = Malformed() if name.endswith(".jsonl") else as_json(text)
    if isinstance(whole, Malformed):                 # TRAP: MedMCQA's .json files have one record per line
        return [(f"line {i}", as_json(line)) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    return unfolded(path, whole)


def as_json(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:    # ValueError also for a number of more than 4,300 digits
        return Malformed(f"not JSON ({error})")


def unfolded(path, whole):
    """The records of a file with one JSON value: BioASQ's "questions", PubMedQA's object of PMIDs, or a list."""
    if isinstance(whole, dict) and isinstance(whole.get("questions"), list):
        whole = [q for q in whole["questions"] if not isinstance(q, dict) or q.get("type", "yesno") == "yesno"]
        print(f"{path}: {len(whole)} yes/no questions; the other types are left out")
    elif isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        return [(f"record {key}", {"id": key, **value}) for key, value in whole.items()]
    if not isinstance(whole, list):
        raise UserError(f"{path}: holds no multiple-choice questions. A file with answers only is for --keep-ids; for "
                        "BioASQ's factoid questions use prepare/answers.py")
    return [(f"record {i}", record) for i, record in enumerate(whole, 1)]


def from_ours(record):
    """The Question of a record in our format; None for any other record."""
    if (isinstance(record, dict) and {"id", "question", "options", "answer"} <= set(record)
            and isinstance(record["options"], list) and isinstance(record["answer"], int)):
        return Question(record["id"], record.get("context", ""), record["question"], record["options"],
                        record["answer"])


def from_release(task, records):
    """The function that turns a record of this task's release into a Question."""
    if task == "medmcqa":
        return partial(from_medmcqa, first=first_option_of_medmcqa(records))
    return {"medqa": from_medqa, "medqa5": from_medqa, "pubmedqa": from_pubmedqa, "bioasq": from_bioasq,
            "mmlu": from_mmlu}[task]


def checked(q, id_):
    """The question with an id and stripped texts, as read_questions accepts it. Raises Malformed or ValueError."""
    q.check()
    if q.id is not None and not isinstance(q.id, (str, int)):
        raise Malformed(f"its id {q.id!r} is neither text nor a number")
    own_id = "" if q.id is None else str(q.id).strip()
    options = [option.strip() for option in q.options]
    q = Question(own_id or id_, q.context.strip(), q.question.strip(), options, q.answer)
    if not q.question:
        raise Malformed("the question is empty")
    if any("\ud800" <= c <= "\udfff" for c in q.context + q.question + "".join(q.options)):
        raise Malformed("half a surrogate pair in the text, which UTF-8 cannot represent")
    return q


FAULTS = KeyError, IndexError, ValueError, TypeError, AttributeError, RecursionError, Malformed, ET.ParseError


def converted(source, task, records, convert):
    """([convert(where, record) of each record], the number of malformed records). The first SHOWN of these are named;
    more than 1 % are an error."""
    made, bad = [], []
    for where, record in records:
        try:
            if isinstance(record, Malformed):
                raise record
            made.append(convert(where, record))
        except FAULTS as error:
            bad.append((where, f"it has no {error}" if isinstance(error, KeyError) else str(error)))

    for where, why in bad[:SHOWN]:
        print(f"skipped {source}, {where}: {why}", file=sys.stderr)
    if len(bad) > 0.01 * len(records):
        raise UserError(f"{source}: {len(bad):,} of {len(records):,} records are malformed, more than 1 %; first "
                        f"{bad[0][0]}: {bad[0][1]}. Is it a file of {task}? Nothing was written")
    return made, len(bad)


def questions_of(cfg, records):
    """(the questions in order, each with its own id; the number of malformed records)."""
    convert, taken = from_release(cfg.task, records), {}
    number = {where: n for n, (where, _) in enumerate(records, 1)}

    def question_of(where, record):
        q = checked(from_ours(record) or convert(record), f"{cfg.source.name.split('.')[0]}-{number[where]}")
        if q.id in taken:
            raise Malformed(f"its id {q.id} is already the id of {taken[q.id]}")
        taken[q.id] = where
        return q

    return converted(cfg.source, cfg.task, records, question_of)


def selected(cfg, questions):
    """The questions that remain after --keep-ids and --drop-ids."""
    for path, keep in ((cfg.keep_ids, True), (cfg.drop_ids, False)):
        if path:
            listed = read_json(path, "a list of ids, or an object with them as keys", kind=object)
            if not isinstance(listed, (list, dict)):
                raise UserError(f"{path}: neither a list of ids nor an object with them as keys")
            ids = {str(i) for i in listed}
            if lacking := ids - {q.id for q in questions}:
                raise UserError(f"{path}: {len(lacking):,} of its {len(ids):,} ids are not in {cfg.source}, such as "
                                f"{min(lacking)}; is it for another split?")
            questions = [q for q in questions if (q.id in ids) == keep]
    if not questions:
        raise UserError(f"{cfg.source}: holds no question of {cfg.task}, or --keep-ids and --drop-ids leave none")
    return questions


def main(cfg):
    if cfg.source == Path("hub"):
        if cfg.out.is_file():
            raise UserError(f"{cfg.out}: OUT must be a folder for the files from the hub")
        made = fetch(cfg.task, cfg.out, lambda source, out: convert(replace(cfg, source=source, out=out)))
        paths = {split: cfg.out / f"{cfg.task}_{split}.jsonl" for split in ("train", "dev", "test") if split in made}
    else:
        made = convert(cfg)
        paths = {next((split for split in ("train", "dev") if split in cfg.out.stem), "test"): cfg.out}
    say_next("finetune_qa.py", cfg.task, *(word for split, path in paths.items() for word in (f"--{split}", path)))
    return made


def convert(cfg):
    """Convert one file, and return its questions."""
    if cfg.out.is_dir() or cfg.out.resolve() == cfg.source.resolve():
        raise UserError(f"{cfg.out}: OUT must be a file, neither a folder nor IN itself")
    questions, n_bad = questions_of(cfg, read_records(cfg.source))
    questions = selected(cfg, questions)
    write_questions(cfg.out, questions)
    report(cfg, questions, n_bad)
    return questions


def report(cfg, questions, n_bad):
    print(f"{cfg.out}: {len(questions):,} questions, {n_bad:,} malformed ones skipped")
    by_name = all(q.options in (YES_NO, YES_NO_MAYBE) for q in questions)
    counts = Counter(q.options[q.answer] if by_name else f"{q.answer + 1}." for q in questions)
    print("right answer " + "  ".join(f"{name} {n:,} ({n / len(questions):.1%})" for name, n in sorted(counts.items())))
    for what, lengths in (("context", [len(q.context) for q in questions]),
                          ("question", [len(q.question) for q in questions]),
                          ("option", [len(option) for q in questions for option in q.options])):
        low, half, high, top = np.percentile(lengths, [5, 50, 95, 100]).astype(int)
        print(f"{what:9} characters: 5 % {low:,}   half {half:,}   95 % {high:,}   longest {top:,}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["sections"]:
        run_script(make_sections, Sections, argv=sys.argv[2:])
    else:
        run_script(main, Questions)
