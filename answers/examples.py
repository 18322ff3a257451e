"""Questions that are answered in words: their file format, and what the model reads and learns.

    source <|startoftext|> target <|endoftext|>            only target and <|endoftext|> have a loss

Teaches the paper's format for paragraphs and summaries (section 4), and how examples share a row without seeing each
other. A prompt that is too long loses its end, as in the paper. A long context is cut into overlapping windows: an
answer that the end of one window cuts is whole in another.
Not here: the loop (finetune_answers.py), generation (sample.py, beam.py), scores (scores.py).

A file has one JSON object per line: {"prompt", "answer"}. Optional keys:

    id         the line number if it is missing
    context    a text that contains the answer
    answers    all answers that count as right
    group      items of one group are in the same split, such as the questions about one document
    split      train, dev or test; for all lines or for none
"""
import zlib
from dataclasses import dataclass, replace

import numpy as np
import torch.nn as nn
import torch.nn.functional as F

from data import document_starts
from plumbing.common import UserError, read_json_lines
from questions.packed import Tree, pack, row_length

START = "<|startoftext|>"
SHARES = {"train": 0.8, "dev": 0.1, "test": 0.1}


@dataclass(frozen=True)
class Item:
    """A prompt and the answer to it."""
    id: str
    prompt: str
    answer: str
    context: str = ""
    answers: tuple[str, ...] = ()    # all that count as right; (): only `answer`
    group: str = ""
    split: str = ""


def read_items(path):
    """The items of a file. UserError names the line that is wrong."""
    items = read_json_lines(path, "prompt and answer",
                            "prepare/answers.py writes one, or write JSON lines with prompt, answer", item_of)
    items = [replace(item, id=item.id or str(number)) for number, item in enumerate(items, 1)]
    if len({item.split == "" for item in items}) > 1:
        raise UserError(f"{path}: some lines name their split and some do not; name all or none")
    return items


def item_of(record):
    item = Item(str(record.get("id", "")), record["prompt"], record["answer"], record.get("context", ""),
                tuple(record.get("answers", ())), str(record.get("group", record["prompt"])), record.get("split", ""))
    if not all(isinstance(text, str) for text in (item.prompt, item.answer, item.context, *item.answers)):
        raise ValueError("prompt, answer, context and answers must be text")
    if not item.prompt.strip() or not item.answer.strip():
        raise ValueError("the prompt or the answer is empty")
    if item.split not in ("", *SHARES):
        raise ValueError(f"split {item.split!r} is none of {', '.join(SHARES)}")
    return item


def splits_of(items, shares=None):
    """{"train": items, "dev": ..., "test": ...}, in the order of a hash, so that the first n are a random sample. Items
    without a split are divided by `shares` (SHARES if None), by a hash of their group."""
    split = {}
    if not all(item.split for item in items):
        groups = sorted({item.group for item in items}, key=hashed)
        names, ends = zip(*(shares or SHARES).items(), strict=True)
        ends = np.round(np.cumsum(ends) * len(groups))
        split = {group: names[int((ends <= i).sum())] for i, group in enumerate(groups)}
    by_name = {name: [] for name in SHARES}
    for item in sorted(items, key=lambda item: (hashed(item.group), hashed(item.id))):
        by_name[split.get(item.group, item.split)].append(item)
    return by_name


def unasked(items, test):
    """The items whose question and context are not in the test."""
    asked = {item.group for item in test} | {item.prompt.lower() for item in test}
    read = {item.context for item in test} - {""}
    return [item for item in items if not asked & {item.group, item.prompt.lower()} and item.context not in read]


def hashed(text):
    return zlib.crc32(text.encode())


@dataclass(frozen=True)
class Example:
    """The ids of one text to learn."""
    source: list[int]                # ends in <|startoftext|>
    target: list[int]                # ends in <|endoftext|>

    def __len__(self):
        return len(self.source) + len(self.target)


class Reader:
    """Turns items into ids. `cut` counts the prompts and answers that were too long and lost their end."""

    def __init__(self, tok, start_id, max_source, max_target, stride):
        self.tok, self.start_id, self.cut = tok, start_id, 0
        self.front = list(tok.front)     # the ids that begin every text of some families; GPT-2 has none
        self.max_source, self.max_target, self.stride = max_source, max_target, stride

    def shortened(self, ids, room):
        self.cut += len(ids) > room
        return ids[:room]

    def windows(self, item):
        """(a piece of the context, the source with it) of each window; without a context of one empty piece."""
        asked = ("\n" if item.context else "") + item.prompt.strip()
        asked = self.shortened(self.tok.encode(asked).tolist(), self.max_source)
        pieces = windows(self.tok.encode(item.context.strip()).tolist(), self.max_source - len(asked), self.stride)
        return [(piece, [*self.front, *piece, *asked, self.start_id]) for piece in pieces]

    def sources(self, item):
        return [source for _, source in self.windows(item)]

    def target(self, text):
        return [*self.shortened(self.tok.encode(text.strip()).tolist(), self.max_target), self.tok.eos_id]

    def examples(self, item, every_window=False):
        """The windows of an item that contain the answer, or the first if none does, with the answer as target. With
        every_window, for training, also the other windows, with an empty target."""
        pieces, target = self.windows(item), self.target(item.answer)
        holds = [item.answer.strip() in self.tok.decode(piece) for piece, _ in pieces]
        holds[0] |= not any(holds)
        return [Example(source, target if held else [self.tok.eos_id])
                for (_, source), held in zip(pieces, holds, strict=True) if held or every_window]


def windows(ids, room, stride):
    """Windows of `room` ids that start every `stride` ids, up to the one that contains the end (BERT's doc_stride)."""
    if len(ids) <= room or room < 1:
        return [ids[:max(0, room)]]
    stride = min(stride, room)
    return [ids[start:start + room] for start in range(0, len(ids) - room + stride, stride)]


class AnswerModel(nn.Module):
    """A GPT without a new head: the log-probability of each example's target after its source."""

    def __init__(self, gpt, eos_id):
        super().__init__()
        self.gpt, self.eos_id = gpt, eos_id

    def forward(self, examples):
        """log_p_N in nats (fp32), one for each example."""
        trees = [Tree(example.source, [example.target]) for example in examples]
        packed = pack(trees, row_length(self.gpt), self.eos_id, self.gpt.wte.weight.device, even=False)

        # Each example ends in <|endoftext|>, and padding consists of it. So they are separated like documents.
        start_BT = document_starts(packed.ids_BT, self.eos_id)
        x_BTD = self.gpt.hidden(packed.ids_BT, doc_start_BT=start_BT, position_BT=packed.position_BT)

        row_M, column_M = packed.branch_BT.nonzero(as_tuple=True)                  # the tokens of the targets
        logits_MV = self.gpt.logits(x_BTD[row_M, column_M - 1]).float()
        log_p_M = -F.cross_entropy(logits_MV, packed.ids_BT[row_M, column_M], reduction="none")
        return log_p_M.new_zeros(len(examples)).index_add(0, packed.tree_BT[row_M, column_M] - 1, log_p_M)
