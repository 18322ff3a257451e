"""Make questions from structured abstracts: to which section does a sentence belong?

    python prepare/qa.py sections abstracts.jsonl.gz data/qa

This is a task of real text whose labels cost nothing, because many authors give the parts of their abstracts headings
such as BACKGROUND and METHODS. The script writes to the folder OUT:

    sections_{train,dev,test}.jsonl    a question is one sentence without its heading; the options are the five sections
    sections_documents.jsonl           the abstracts of all three splits. Give it to `prepare/pubmed.py --exclude`, so
                                       that pretraining reads neither these abstracts nor articles that contain them

You should see the number of sentences and abstracts of each split, and how common each section is.

Teaches how to split text without leaks: by document, with no sentence twice, and with no two abstracts that share 20
words in a row. Abstracts are taken in the order of their CRC-32, so the splits do not depend on the order of the file.
Not here: reading the formats (plumbing/documents.py), fine-tuning on the questions (finetune_qa.py).
"""
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated
from zlib import crc32

import tyro

from plumbing.common import UserError, check_ranges, say_next, write_json_lines
from plumbing.documents import texts_in
from prepare.exclude import shingles
from questions.format import Question, write_questions

SECTIONS = ["background", "objective", "methods", "results", "conclusions"]
SPLITS = ("test", "dev", "train")      # in the order in which abstracts are taken
SHORTEST = 20                          # characters of a sentence; shorter ones are fragments


@dataclass(frozen=True)
class Sections:
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]   # abstracts: .jsonl, .txt or .xml
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]     # the folder for the four files
    test_documents: int = 180          # structured abstracts in the test set
    dev_documents: int = 60            # in the development set
    train_documents: int = 300         # in the training set


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

# A heading ends in a colon, and begins a line or a sentence. A heading in capitals may begin anywhere.
HEADING = re.compile(r"""
    (?: (?<=\n) | (?<=[.?!)\]"]\s) )  ([A-Z][^.:;?!\n]{1,70})  :\s+
    |                      (?<=\s)    ([A-Z][A-Z/,&\ -]+[A-Z]) \s?:\s*
""", re.VERBOSE)
LEFT_OVER = re.compile(rf"\b(?:{'|'.join(w for w in SECTION_OF if SECTION_OF[w] in SECTIONS)})\s*:", re.IGNORECASE)


def section_of(heading):
    """"MATERIALS AND METHODS" -> "methods". "" for headings of several or of other sections; None for other text.

    Text before a colon is a heading if it is in capitals, or if all its words are in HEADING_WORDS.
    """
    words = re.findall(r"\w+", heading.lower())
    named = {SECTION_OF.get(word, "unknown") for word in words} - {"any"}
    if len(named) == 1 and named <= set(SECTIONS):
        return named.pop()
    return "" if heading.isupper() or named and "unknown" not in named else None


def labelled(text):
    """[(section, its text), ...] of one abstract, in order. Text without a label, such as the title, is left out."""
    heads = []
    for match in HEADING.finditer(text):
        section = section_of(match[1] or match[2])
        # At the beginning of a line any phrase is a heading: PubMed's labels are there, and can be any text.
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
    parts = labelled("\n" + text)                 # the text may begin with a heading
    if len({section for section, _ in parts}) < 3:
        return []
    pairs = [(section, sentence.strip()) for section, part in parts for sentence in SENTENCE_END.split(part)]
    return [(section, sentence) for section, sentence in pairs
            if len(sentence) >= SHORTEST and not LEFT_OVER.search(sentence)]


# ---- From abstracts to splits ----

def structured(texts):
    """The structured abstracts in the order of their CRC-32; only the first of those that share 20 words in a row."""
    known = set()
    for text in sorted(texts, key=lambda text: (crc32(text.encode()), text)):
        if sentences(text):
            windows = set(shingles(text).tolist())
            if known.isdisjoint(windows):
                yield text
            known |= windows


def questions_of(texts, used):
    """A Question for each sentence of the texts that is not in the set `used`. Adds these sentences to it."""
    questions = []
    for text in texts:
        name = f"{crc32(text.encode()):08x}"
        for number, (section, sentence) in enumerate(sentences(text)):
            if sentence not in used:
                used.add(sentence)
                questions.append(Question(f"{name}-{number}", "", sentence, SECTIONS, SECTIONS.index(section)))
    return questions


def make_sections(cfg):
    """Write the four files. Returns {split: questions}."""
    check_ranges(cfg, ("test_documents", "dev_documents", "train_documents"))
    if cfg.out.exists() and not cfg.out.is_dir():
        raise UserError(f"{cfg.out}: OUT must be a folder")
    sizes = {split: getattr(cfg, f"{split}_documents") for split in SPLITS}
    chosen = list(islice(structured(texts_in([cfg.source])), sum(sizes.values())))
    if len(chosen) < sum(sizes.values()):
        raise UserError(f"{cfg.source}: {len(chosen):,} abstracts have headings of three sections, but "
                        f"{sum(sizes.values()):,} are needed; lower --train-documents, or give more abstracts")

    texts, used = iter(chosen), set()
    questions = {split: questions_of(islice(texts, size), used) for split, size in sizes.items()}

    for split, part in questions.items():
        write_questions(cfg.out / f"sections_{split}.jsonl", part)
        report(f"{cfg.out}/sections_{split}.jsonl", part, sizes[split])
    listed = [{"id": f"{crc32(text.encode()):08x}", "text": text} for text in chosen]
    write_json_lines(cfg.out / "sections_documents.jsonl", listed)
    print(f"{cfg.out}/sections_documents.jsonl: {len(listed):,} abstracts; give it and sections_test.jsonl to "
          "prepare/pubmed.py --exclude")
    say_next("finetune_qa.py", "sections", *(word for split in SPLITS
                                             for word in (f"--{split}", cfg.out / f"sections_{split}.jsonl")))
    return questions


def report(name, questions, documents):
    total, counts = len(questions), Counter(q.options[q.answer] for q in questions)
    print(f"{name}: {total:,} sentences of {documents:,} abstracts; the most common section is right for "
          f"{max(counts.values()) / total:.1%}")
    print("   ".join(["", *(f"{section} {counts[section]:,} ({counts[section] / total:.1%})" for section in SECTIONS)]))
