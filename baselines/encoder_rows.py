"""How an encoder is asked: heads.py for a network in which every token sees all others.

    option        [CLS] question [SEP] option [SEP]         a row for each option; a number off [CLS]
    label         [CLS] question [SEP] context [SEP]        a row; a number for each label, off [CLS]
    span          [CLS] question [SEP] context [SEP]        spans.py: two numbers off each token; [CLS] is "no answer"

Teaches why options cannot share one reading of their question here (packed.py): the question's tokens see the option
behind them, so their states differ from option to option. What can be shared is a row: texts side by side, of which
none sees another. The module has heads.py's names for what finetune_qa.py asks of either.
Not here: the network (baselines/encoder.py).
"""
import torch

from plumbing.common import UserError
from questions import heads
from questions.packed import Packed, Tree, even_rows

NEW_TOKENS = {"option": (), "label": ()}        # that fine-tuning would have to add
SPAN = ("[CLS]", "[SEP]", "[SEP]")              # spans.py: before the question, the context and the end


class Reader(heads.Reader):
    """Turns questions into trees whose branches are to be read in rows of their own, the first part as type 0."""

    def __init__(self, head, tok, first_new, max_length, labels=()):
        if head not in NEW_TOKENS:
            raise UserError(f"an encoder does not tell how likely a text is, which --head {head} asks")
        super().__init__(head, tok, first_new, max_length, labels)
        if lacking := [name for name in SPAN if name not in tok.specials]:
            raise UserError(f"the tokenizer has no {lacking[0]}, which an encoder reads before and between texts")
        self.cls, self.sep = (tok.specials[name] for name in SPAN[:2])

    def option(self, q):
        options = [[*self.ids(" " + option.strip()), self.sep] for option in q.options]
        question = self.ids(f"{q.context.strip()} {q.question.strip()}".strip())
        return Tree([self.cls, *self.end_of(question, self.max_length - 2 - max(map(len, options))), self.sep], options)

    def label(self, q):
        question, context = self.ids(q.question.strip()), self.ids(q.context.strip())
        room = self.max_length - 3 - len(question)
        if room < 1:                     # no room for any context, and not for all of the question
            prefix, context = [self.cls, *self.end_of(question, self.max_length - 2), self.sep], []
        else:
            self.cut += len(context) > room
            prefix, context = [self.cls, *question, self.sep], context[:room]
        return Tree(prefix, [[*context, self.sep] if context else []],
                    tuple(self.labels.index(option.strip()) for option in q.options))


def read(encoder, trees, pad_id):
    """(where the branches stand, x_BTD): every branch behind its own copy of the prefix, several such texts in a row.
    last_N is [CLS]: what a causal model knows at the end of a branch, an encoder knows there, too."""
    packed, type_BT = pack(trees, encoder.cfg.n_embd // 3, pad_id, encoder.device)
    type_BT = type_BT.clamp(max=encoder.cfg.n_types - 1)
    return packed, encoder.hidden(packed.ids_BT, type_BT, packed.visible_BTS, packed.position_BT)


def pack(trees, length, pad_id, device):
    """Lay the texts into rows of at most `length` tokens, or of the longest text's: (Packed, type_BT)."""
    texts = [(tree.prefix, branch) for tree in trees for branch in tree.branches]
    rows = even_rows([len(prefix) + len(branch) for prefix, branch in texts], length)
    width = max(sum(len(texts[i][0]) + len(texts[i][1]) for i in row) for row in rows)
    ids_BT, position_BT, type_BT, text_BT = torch.zeros(4, len(rows), width, dtype=torch.int64)
    ids_BT += pad_id
    places = [None] * len(texts)
    for b, row in enumerate(rows):
        t = 0
        for i in row:
            prefix, branch = texts[i]
            start, stem, t = t, t + len(prefix), t + len(prefix) + len(branch)
            ids_BT[b, start:t] = torch.tensor(prefix + branch)
            position_BT[b, start:t] = torch.arange(t - start)
            type_BT[b, stem:t], text_BT[b, start:t] = 1, i + 1
            places[i] = b, stem - 1, start
    row_N, stem_N, last_N = torch.tensor(places).T.to(device)
    text_BT = text_BT.to(device)                 # 0 is padding, which sees padding: a softmax over nothing is nan
    return Packed(ids_BT.to(device), position_BT.to(device), text_BT[:, :, None] == text_BT[:, None], row_N, stem_N,
                  last_N, [len(tree.branches) for tree in trees]), type_BT.to(device)
