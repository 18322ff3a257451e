"""Convert the prompts and answers of three releases to the format that finetune_answers.py reads.

    python prepare/answers.py medquad MedQuAD/ data/answers/medquad.jsonl           # the repository's XML, or .jsonl
    python prepare/answers.py meqsum meqsum.csv data/answers/meqsum.jsonl           # the sheet saved as CSV, or .jsonl
    python prepare/answers.py bioasq train.json data/answers/bioasq.jsonl --test test.json       # in SQuAD's format

Each line of OUT is {"id", "prompt", "answer", "context", "answers", "group", "split"}. MedQuAD and MeQSum have no
published split. The one made here depends on a hash, so it is the same for everyone.

Teaches how such data leaks from training into the test. MedQuAD asks many questions about each disease, so all of them
are in the same split. Different years of BioASQ share snippets and questions, so those of the test are left out of
training.
Not here: sources and licences (prepare/__init__.py), how items become tokens (answers/examples.py).
"""
import sys
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of prepare/

from answers.examples import SHARES, Item, splits_of, unasked
from answers.spans import read_squad
from plumbing.common import UserError, run_script, say_next, write_json_lines
from prepare.qa import converted, read_records


@dataclass(frozen=True)
class Answers:
    task: Annotated[Literal["medquad", "meqsum", "bioasq"], tyro.conf.Positional]        # the release of IN
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    test: Path | None = None         # for bioasq: a file of test questions; IN is then divided into train and dev


def from_medquad(source):
    """The items of a folder of XML files, or of a file of questions.

    TRAP: the nine collections use the same ids, and some answers were removed.
    """
    if source.is_dir():
        files = [(str(path), path) for path in sorted(source.rglob("*.xml"))]
        return chain(*converted(source, "medquad", files, from_medquad_xml)[0])
    return converted(source, "medquad", read_records(source), lambda where, record: medquad_item(
        where, record["focus"], record["question"], record["answer"]))[0]


def from_medquad_xml(where, path):
    document = ET.parse(path).getroot()
    focus = document.findtext("Focus") or path.stem
    return [medquad_item(f"{path.parent.name}/{path.stem}-{pair.get('pid')}", focus, pair.findtext("Question"),
                         pair.findtext("Answer")) for pair in document.iter("QAPair")]


def medquad_item(id_, focus, question, answer):
    question = squeezed(question).replace(" ?", "?")
    return Item(id_, question, squeezed(answer), group=squeezed(focus).lower())


def from_meqsum(where, record):
    """A row of the sheet, (File, CHQ, Summary), or a JSON object. Questions keep their line breaks."""
    if isinstance(record, list):
        record = dict(zip(("id", "question", "summary"), record, strict=True))
    prompt = record["question"].strip()
    return Item(str(record["id"]) or where, prompt, squeezed(record["summary"]), group=" ".join(prompt.split()))


def from_squad(path):
    """Yield an Item for each question of each snippet."""
    for item in read_squad(path)[0]:
        answers = tuple(dict.fromkeys(answer.strip() for answer in item.answers))
        yield Item(item.id, squeezed(item.prompt), answers[0], item.context.strip(), answers, item.group)


def bioasq(cfg):
    """The items of both files, each with its split. TRAP: the test of 7b and later training sets share questions."""
    if cfg.test is None:
        return list(from_squad(cfg.source))
    test = [replace(item, split="test") for item in from_squad(cfg.test)]
    left = list(from_squad(cfg.source))
    rest = unasked(left, test)
    print(f"{cfg.source}: {len(left) - len(rest):,} items left out, because the test has their question or snippet")
    divided = splits_of(rest, {"train": 0.9, "dev": 0.1})
    return [replace(item, split=name) for name, items in divided.items() for item in items] + test


def squeezed(text):
    return " ".join((text or "").split())


def main(cfg):
    if cfg.task == "medquad":
        items = from_medquad(cfg.source)
    elif cfg.task == "meqsum":
        records = [(where, record) for where, record in read_records(cfg.source)
                   if not isinstance(record, list) or record[1:2] != ["CHQ"]]       # the sheet's header
        items = converted(cfg.source, "meqsum", records, from_meqsum)[0]
    else:
        items = bioasq(cfg)
    good, n_left_out = checked(list(items))
    if not good:
        raise UserError(f"{cfg.source}: holds no prompt with an answer")
    shares = {"train": 0.45, "dev": 0.05, "test": 0.5} if cfg.task == "meqsum" else SHARES     # half and half is usual
    divided = splits_of(good, shares)
    good = [replace(item, split=name) for name, members in divided.items() for item in members]
    write_json_lines(cfg.out, map(asdict, good))
    print(f"{cfg.out}: {len(good):,} items; {n_left_out:,} without an answer or occurring twice are left out")
    report(divided)
    say_next("finetune_answers.py", cfg.task, "--data", cfg.out)
    return good


def checked(items):
    """(the items that have an answer, each once and with its own id; how many were left out)"""
    good, seen, ids = [], set(), set()
    for number, item in enumerate(items, 1):
        if item.prompt and item.answer and (item.prompt, item.context, item.answer) not in seen:
            seen.add((item.prompt, item.context, item.answer))
            good.append(replace(item, id=f"{item.id}-{number}") if item.id in ids else item)
            ids.add(good[-1].id)
    return good, len(items) - len(good)


def report(divided):
    learned = {item.answer for item in divided["train"]}
    for name, items in divided.items():
        if items:
            half, top = np.percentile([len(item.answer) for item in items], [50, 100]).astype(int)
            known = sum(item.answer in learned for item in items) if name != "train" else 0
            print(f"{name:5} {len(items):7,} items in {len({item.group for item in items}):,} groups; answers of "
                  f"{half:,} characters, the longest {top:,}; {known:,} of them are also in train")


if __name__ == "__main__":
    run_script(main, Answers)
