"""Extraction: the answer is a span of the context, given by its first and its last token.

    GPT         <|QUESTION|> question <|CONTEXT|> context <|ANSWER|>       no answer: <|ANSWER|>
    encoders    [CLS] question [SEP] context [SEP]                         no answer: [CLS]

Teaches how a long context is read in windows, how the best of all spans is found, and how a span of tokens becomes
text again: it is cut out of the context by offsets, so that it keeps the context's spelling.

A causal model sees only the tokens before a token. So the question must come before the context, and even then the
model scores a start token without seeing what follows, while an encoder sees the whole sentence.
Not here: the run (extraction.py), EM and F1 (scores.py), how rows are packed (questions/packed.py).

A file has the format of SQuAD 1.1 or 2.0: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers":
[{"text", "answer_start"}], "is_impossible"}]}]}]}. Rajpurkar et al. 2016 (arXiv 1606.05250), 2018 (1806.03822).
"""
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from answers.examples import Item, windows
from plumbing.common import UserError, read_json
from questions.packed import Tree, read
from tokenizer import well_formed

CERTAIN = 1e9            # the margin of an empty context, which has no answer for sure (JSON has no infinity)
SPAN = ("<|QUESTION|>", "<|CONTEXT|>", "<|ANSWER|>")     # before the question, before the context, and at the end


@dataclass(frozen=True)
class SpanItem(Item):
    """A question about a context. If `answers` is empty, the context does not answer it. starts: where each answer
    begins in the context, in characters; -1 for an answer that is not in it."""
    starts: tuple[int, ...] = ()


def read_squad(path):
    """(items, {"answers", "moved", "absent"}) of a file in SQuAD's format: how many answers it has, how many are at
    another offset than the file says, and how many are not in their context."""
    items, count = [], {"answers": 0, "moved": 0, "absent": 0}
    try:
        for article in read_json(path, "a file in SQuAD's format", kind=object)["data"]:
            for paragraph in article["paragraphs"]:
                context = well_formed(paragraph["context"])
                for qa in paragraph["qas"]:
                    items.append(item := span_item(qa, context))
                    count["answers"] += len(item.starts)
                    count["absent"] += item.starts.count(-1)
                    count["moved"] += sum(start not in (-1, answer["answer_start"])
                                          for start, answer in zip(item.starts, qa["answers"], strict=False))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: no questions in SQuAD's format ({error!r})") from error
    if not items:
        raise UserError(f"{path}: holds no question")
    if len({item.id for item in items}) < len(items):
        raise UserError(f"{path}: an id occurs twice; each question of each context needs its own")
    return items, count


def span_item(qa, context):
    answers = [] if qa.get("is_impossible") else [(well_formed(a["text"]), a["answer_start"]) for a in qa["answers"]]
    texts, id_ = tuple(text for text, _ in answers), str(qa["id"])
    # TRAP: BioASQ's ids are QUESTION_NNN, one for each snippet. All snippets of a question are one group.
    group = re.sub(r"_\d{3}$", "", id_)
    return SpanItem(id_, well_formed(qa["question"]), texts[0] if texts else "", context, texts, group,
                    starts=tuple(found_at(context, text, start) for text, start in answers))


def found_at(context, text, start):
    """Where the answer begins: the place nearest to the file's offset; if there is none, ignoring case; else -1."""
    for where, what in ((context, text), (context.lower(), text.lower())):
        if what.strip() and len(where) == len(context):           # "İ" has two letters in lower case
            places = [match.start() for match in re.finditer(re.escape(what), where)]
            if places:
                return min(places, key=lambda place: abs(place - start))
    return -1


# ---- Tokens and characters ----

def located(tok, text):
    """(ids, [(first character, one past the last) of each token]), without the spaces around a token. A token that
    begins or ends inside a character gets the whole character, so that no span can break one."""
    if hasattr(tok, "located"):
        ids, spans = tok.located(text)
    else:
        ids = tok.encode(text).tolist()
        char_of = np.repeat(np.arange(len(text)), [len(character.encode()) for character in text]).tolist()
        ends = np.cumsum([len(tok.decode_bytes([i])) for i in ids]).tolist()
        spans = [(char_of[a], char_of[b - 1] + 1) for a, b in zip([0, *ends], ends, strict=False)]
    return ids, [trimmed(text, a, b) for a, b in spans]


def trimmed(text, a, b):
    inside = text[a:b]
    return (b, b) if not inside.strip() else (b - len(inside.lstrip()), a + len(inside.rstrip()))


@dataclass(frozen=True)
class Window:
    """The question and a piece of the context of one item."""
    tree: Tree
    item: int                            # index of the item
    chars: list[tuple[int, int]]         # the characters of each token of the context: (first, one past the last)
    target: tuple[int, int]              # first and last token of the answer, counted from 1; (0, 0): no answer

    def __len__(self):
        return len(self.tree)


class SpanReader:
    """Turns items into windows. `count`: questions that were cut, items whose answers do not begin and end with a
    token, and contexts of more than one window. front: ids that begin every text, such as Llama's <s>."""

    def __init__(self, tok, ids, max_length, max_question, stride, front=()):
        self.tok, self.ids, self.front = tok, ids, list(front)
        self.max_length, self.max_question, self.stride = max_length, max_question, stride
        self.count = {"cut": 0, "unaligned": 0, "long": 0}

    def __call__(self, items):
        return [window for i, item in enumerate(items) for window in self.windows(i, item)]

    def windows(self, i, item):
        before, between, behind = self.ids
        question = self.tok.encode(item.prompt.strip()).tolist()
        self.count["cut"] += len(question) > self.max_question
        prefix = [*self.front, before, *question[:self.max_question], between]
        if (room := self.max_length - 1 - len(prefix)) < 1:
            raise UserError(f"question {item.id} leaves no room for its context within {self.max_length} tokens; lower "
                            "--max-question or raise --max-length")
        ids, chars = located(self.tok, item.context)
        spans = [cover(chars, start, start + len(text)) for text, start in zip(item.answers, item.starts, strict=True)]
        self.count["unaligned"] += any(spans) and not any(
            span and (chars[span[0]][0], chars[span[1]][1]) == trimmed(item.context, start, start + len(text))
            for span, start, text in zip(spans, item.starts, item.answers, strict=True))
        pieces = windows(range(len(ids)), room, self.stride)
        self.count["long"] += len(pieces) > 1
        return [Window(Tree(prefix, [[*ids[piece.start:piece.stop], behind]]), i, chars[piece.start:piece.stop],
                       target(spans, piece)) for piece in pieces]


def cover(chars, a, b):
    """(first, last) of the tokens that overlap the characters [a, b), or None."""
    inside = [t for t, (start, end) in enumerate(chars) if start < b and end > a >= 0 and start < end]
    return (inside[0], inside[-1]) if inside else None


def target(spans, piece):
    """(first, last) token, counted from 1, of the first answer that is whole in this piece; (0, 0) if none is."""
    whole = [span for span in spans if span and piece.start <= span[0] and span[1] < piece.stop]
    return (whole[0][0] - piece.start + 1, whole[0][1] - piece.start + 1) if whole else (0, 0)


# ---- The model, and its best spans ----

class SpanModel(nn.Module):
    """A GPT or an encoder with two scores for each token: as the first and as the last token of the answer."""

    def __init__(self, gpt, pad_id):
        super().__init__()
        self.gpt, self.pad_id = gpt, pad_id
        self.qa_outputs = nn.Linear(gpt.cfg.n_embd, 2)            # transformers' name
        nn.init.normal_(self.qa_outputs.weight, 0.0, gpt.cfg.initializer_range)
        nn.init.zeros_(self.qa_outputs.bias)

    def forward(self, windows):
        """start_NS and end_NS (fp32): for each window the scores of "no answer" and of its tokens; then -inf."""
        packed, x_BTD = read(self.gpt, [window.tree for window in windows], self.pad_id)
        length_N = torch.tensor([len(window.chars) for window in windows], device=x_BTD.device)
        s_S = torch.arange(int(length_N.max()) + 1, device=x_BTD.device)
        real_NS = s_S <= length_N[:, None]
        # "No answer" is scored at the token where both kinds of model classify a question: branch_end_N.
        token_NS = packed.prefix_end_N[:, None] + s_S
        place_NS = torch.where(real_NS & (s_S > 0), token_NS, packed.branch_end_N[:, None])
        logits_NS2 = self.qa_outputs(x_BTD[packed.row_N[:, None], place_NS]).float()
        return logits_NS2.masked_fill(~real_NS[..., None], -torch.inf).unbind(-1)


def span_loss(start_NS, end_NS, windows):
    """The mean of the cross-entropies of the first and of the last token of the answer, summed over windows."""
    targets_2N = torch.tensor([window.target for window in windows], device=start_NS.device).T
    return sum(F.cross_entropy(logits_NS, target_N, reduction="sum") / 2
               for logits_NS, target_N in zip((start_NS, end_NS), targets_2N, strict=True))


def best_spans(start_S, end_S, max_tokens, n):
    """(log p of "no answer", the n best spans [(log p, first, last), ...]) of a window. Tokens are counted from 0.

    log p = log p(first) + log p(last), each from a softmax over the window. Unlike plain scores, these can be compared
    between windows: a constant added to all scores of a window would not change its loss.
    """
    start_S, end_S = (scores_S[scores_S > -torch.inf].double().log_softmax(0) for scores_S in (start_S, end_S))
    score_SS = start_S[1:, None] + end_S[None, 1:]
    valid_SS = torch.ones_like(score_SS, dtype=torch.bool).triu().tril(max_tokens - 1)
    score_SS = score_SS.masked_fill(~valid_SS, -torch.inf)
    best, places = score_SS.flatten().topk(min(n, int(valid_SS.sum())))
    return (start_S[0] + end_S[0]).item(), [
        (value, *divmod(place, len(score_SS))) for value, place in zip(best.tolist(), places.tolist(), strict=True)]


def read_off(items, windows, found):
    """For each item (margin, [(text, log p), ...]), over all its windows, the best text first; one that occurs twice
    counts once, with its better score. margin: the lowest log p of "no answer" in any window, minus the best text's."""
    nulls, texts = [np.inf] * len(items), [{} for _ in items]
    for window, (null, spans) in zip(windows, found, strict=True):
        i, context = window.item, items[window.item].context
        nulls[i] = min(nulls[i], null)
        for log_p, first, last in spans:
            text = context[window.chars[first][0]:window.chars[last][1]].strip()
            if text and log_p > texts[i].get(text.lower(), ("", -np.inf))[1]:
                texts[i][text.lower()] = text, log_p
    ranked = [sorted(of_item.values(), key=lambda one: -one[1]) for of_item in texts]
    return [(null - best[0][1] if best else CERTAIN, best) for null, best in zip(nulls, ranked, strict=True)]
