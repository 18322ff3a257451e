"""Rows for an encoder, a network in which every token sees all others: packed.py for baselines/encoder.py.

Teaches why options cannot share one reading of their question here: the question's tokens see the option after them, so
their states differ from option to option. What can be shared is a row: it holds several texts, and none sees another.
Not here: what the tokens are and how they are scored (heads.py); the network (baselines/encoder.py).
"""
import torch

from questions.packed import Packed, even_rows, row_length


def read(encoder, trees, pad_id):
    """(Packed, x_BTD): each branch after its own copy of the prefix, several such texts in a row, and an encoder's last
    hidden state of each token. branch_end_N is [CLS]: an encoder is asked there, a causal model at the branch's end."""
    packed, type_BT = pack(trees, row_length(encoder), pad_id, encoder.device)
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
            start = t
            second = start + len(prefix)
            t = second + len(branch)
            ids_BT[b, start:t] = torch.tensor(prefix + branch)
            position_BT[b, start:t] = torch.arange(t - start)
            type_BT[b, second:t] = 1
            text_BT[b, start:t] = i + 1
            places[i] = b, second - 1, start
    text_BT = text_BT.to(device)                 # 0 is padding, which sees padding
    visible_BTS = text_BT[:, :, None] == text_BT[:, None]
    sizes = [len(tree.branches) for tree in trees]
    places = torch.tensor(places).T.to(device)   # row_N, prefix_end_N, branch_end_N
    return Packed(ids_BT.to(device), position_BT.to(device), visible_BTS, *places, sizes), type_BT.to(device)
