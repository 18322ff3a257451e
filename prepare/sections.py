"""Sentences of structured abstracts to questions: which section is this sentence from?

    python prepare/qa.py sections abstracts.jsonl.gz data/qa

A task of real text whose labels cost nothing: many authors head the parts of their abstract BACKGROUND, METHODS and so
on. OUT receives sections_{train,dev,test}.jsonl, where a question is one sentence without its heading and the options
are the five sections, and sections_documents.jsonl with the abstracts of all three splits. Give the latter to
`prepare/pubmed.py --exclude`, so that pretraining reads neither these abstracts nor the articles that contain them.

You should see the number of sentences and abstracts of each split, and how common each section is. Labels are the
authors' own headings; a heading of two sections (METHODS AND RESULTS) or of none (FUNDING) labels no sentence.

Teaches how to split text without leaks: by document, no sentence twice, no two abstracts that share 20 words in a row.
The order of the abstracts is that of their CRC-32, the test set first: it does not depend on the order of the file.
Not here: reading the formats (plumbing/documents.py), fine-tuning on the questions (finetune_qa.py).
"""
import re
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated
from zlib import crc32

import tyro

from plumbing.common import UserError, check_ranges, write_json_lines
from plumbing.documents import Bad, documents
from prepare.exclude import shingles
from questions.format import Question, write_questions

SECTIONS = ["background", "objective", "methods", "results", "conclusions"]
SPLITS = ("test", "dev", "train")      # in the order in which they take abstracts
SHORTEST = 20                          # characters of a sentence; shorter ones are fragments
SHOWN = 10                             # unreadable records that are named; all are counted


@dataclass(frozen=True)
class Sections:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]   # abstracts: .jsonl, .txt or .xml
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]     # the folder for the four files
    test_documents: int = 180          # structured abstracts for the test set,
    dev_documents: int = 60            # for the development set
    train_documents: int = 300         # and for the training set


# ---- Headings: their words decide the section ----

HEADING_WORDS = {
    "background": "background context introduction rationale",
    "objective": "aim aims goal goals objective objectives purpose purposes",
    "methods": "analyses analysis animals design intervention interventions material materials measure measurement "
               "measurements measures method methodology methods outcome outcomes participants patients population "
               "procedure procedures sample setting settings statistical statistics subject subjects",
    "results": "finding findings result results",
    "conclusions": "conclusion conclusions implications interpretation significance",
    "any": "and clinical experimental for in key main of primary principal relevance research secondary study the used",
    "other": "approval discussion ethics funding identifier level limitations number registration trial trials unique",
}
SECTION_OF = {word: section for section, words in HEADING_WORDS.items() for word in words.split()}

# A heading ends in a colon. It begins a line or a sentence; one in capitals may begin anywhere.
HEADING = re.compile(r"""
    (?: (?<=\n) | (?<=[.?!)\]"]\s) )  ([A-Z][^.:;?!\n]{1,70})  :\s+
    |                      (?<=\s)    ([A-Z][A-Z/,&\ -]+[A-Z]) \s?:\s*
""", re.VERBOSE)
LEFT_OVER = re.compile(rf"\b(?:{'|'.join(w for w in SECTION_OF if SECTION_OF[w] in SECTIONS)})\s*:", re.IGNORECASE)


def section_of(heading):
    """"MATERIALS AND METHODS" -> "methods"; "" for a heading of several or other sections; None if it is no heading.

    Text before a colon is a heading if it is in capitals or if every word of it is known from headings.
    """
    words = re.findall(r"\w+", heading.lower())
    named = {SECTION_OF.get(word, "unknown") for word in words} - {"any"}
    if len(named) == 1 and named <= set(SECTIONS):
        return named.pop()
    return "" if heading.isupper() or named and "unknown" not in named else None


def labelled(text):
    """[(section, its text), ...] of one abstract, in order; what has no label, such as the title, is left out."""
    heads = []
    for match in HEADING.finditer(text):
        section = section_of(match[1] or match[2])
        # At the beginning of a line any phrase counts: PubMed's labels are printed there, and they may say anything.
        if section is not None or text[match.start() - 1] == "\n":
            heads.append((match.start(), match.end(), section))
    ends = [start for start, _, _ in heads[1:]] + [len(text)]
    return [(section, text[begin:end]) for (_, begin, section), end in zip(heads, ends, strict=False) if section]


SENTENCE_END = re.compile(r"""
    (?: (?<=[.?!]) | (?<=[.?!][)\]"]) )  (?<!\b[A-Z]\.)        # not after an initial
    (?<! \bvs\. ) (?<! \bal\. ) (?<! e\.g\. ) (?<! i\.e\. ) (?<! \bNo\. ) (?<! \bDr\. ) (?<! \bca\. )
    \s+  (?= [A-Z0-9("\[] )
""", re.VERBOSE)


def sentences(text):
    """[(section, sentence), ...] of one abstract; [] if fewer than three sections occur."""
    parts = labelled("\n" + text)                 # a heading may also open the text
    if len({section for section, _ in parts}) < 3:
        return []
    pairs = [(section, sentence.strip()) for section, part in parts for sentence in SENTENCE_END.split(part)]
    return [(section, sentence) for section, sentence in pairs
            if len(sentence) >= SHORTEST and not LEFT_OVER.search(sentence)]


# ---- Abstracts to splits ----


def structured(texts):
    """The structured abstracts in the order of their CRC-32. Of those that share 20 words in a row, only the first."""
    known = set()
    for text in sorted(texts, key=lambda text: (crc32(text.encode()), text)):
        if sentences(text):
            windows = set(shingles(text).tolist())
            if known.isdisjoint(windows):
                yield text
            known |= windows


def questions_of(texts, used):
    """A Question per sentence of the texts, but for sentences in `used`, to which they are added."""
    questions = []
    for text in texts:
        name = f"{crc32(text.encode()):08x}"
        for number, (section, sentence) in enumerate(sentences(text)):
            if sentence not in used:
                used.add(sentence)
                questions.append(Question(f"{name}-{number}", "", sentence, SECTIONS, SECTIONS.index(section)))
    return questions


def read_abstracts(path):
    """The documents of a file; those that cannot be read are named and left out."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; IN is a file of abstracts")
    texts, bad = [], 0
    for item in documents(path):
        if not isinstance(item, Bad):
            texts.append(item)
            continue
        bad += 1
        if bad <= SHOWN:
            print(f"skipped {item.where}: {item.reason}", file=sys.stderr)
    if bad > 0.01 * (bad + len(texts)):
        raise UserError(f"{path}: {bad:,} of {bad + len(texts):,} documents cannot be read, more than 1 %; "
                        "nothing was written")
    return texts


def make_sections(cfg):
    """Write the four files; returns {split: questions}."""
    check_ranges(cfg, {"test_documents": (1, None), "dev_documents": (1, None), "train_documents": (1, None)})
    if cfg.out.exists() and not cfg.out.is_dir():
        raise UserError(f"{cfg.out}: OUT must be a folder")
    sizes = {split: getattr(cfg, f"{split}_documents") for split in SPLITS}
    chosen = list(islice(structured(read_abstracts(cfg.source)), sum(sizes.values())))
    if len(chosen) < sum(sizes.values()):
        raise UserError(f"{cfg.source}: {len(chosen):,} abstracts have headings of three sections, but "
                        f"{sum(sizes.values()):,} are needed; lower --train-documents, or give more abstracts")

    questions, used, first = {}, set(), 0
    for split, size in sizes.items():
        questions[split] = questions_of(chosen[first:first + size], used)
        first += size

    for split, part in questions.items():
        write_questions(cfg.out / f"sections_{split}.jsonl", part)
        report(f"{cfg.out}/sections_{split}.jsonl", part, sizes[split])
    listed = [{"id": f"{crc32(text.encode()):08x}", "text": text} for text in chosen]
    write_json_lines(cfg.out / "sections_documents.jsonl", listed)
    print(f"{cfg.out}/sections_documents.jsonl: {len(listed):,} abstracts; give it and sections_test.jsonl to "
          "prepare/pubmed.py --exclude")
    return questions


def report(name, questions, documents):
    total, counts = len(questions), Counter(q.options[q.answer] for q in questions)
    print(f"{name}: {total:,} sentences of {documents:,} abstracts; always the commonest section: "
          f"{max(counts.values()) / total:.1%}")
    print("   ".join(["", *(f"{section} {counts[section]:,} ({counts[section] / total:.1%})" for section in SECTIONS)]))
