"""Rows for an encoder (baselines/encoder.py), a network in which every token sees all others; packed.py for encoders.

Teaches why options cannot share their question here: its tokens see the option after them, so their states differ from
option to option. What can be shared is a row: it holds several texts, and none sees another.
Not here: what the tokens are and how they are scored (heads.py); the network (baselines/encoder.py).
"""
import torch

from questions.packed import Packed, empty_rows, even_rows, places, row_length


def read(encoder, trees, pad_id):
    """(Packed, x_BTD): the texts in rows, and the last hidden state of each token of an encoder.

    A text is a branch after its own copy of the prefix. branch_end_N is the column of [CLS], which an encoder's head
    reads; the head of a causal model reads the branch's last token.
    """
    packed, type_BT = pack(trees, row_length(encoder), pad_id, encoder.device)
    type_BT = type_BT.clamp(max=encoder.cfg.n_types - 1)
    return packed, encoder.hidden(packed.ids_BT, type_BT, packed.visible_BTS, packed.position_BT)


def pack(trees, length, pad_id, device):
    """Lay the texts into rows of at most `length` tokens, or of the longest text's: (Packed, type_BT)."""
    texts = [(tree.prefix, branch) for tree in trees for branch in tree.branches]
    lengths = [len(prefix) + len(branch) for prefix, branch in texts]
    rows = even_rows(lengths, length)
    ids_BT, position_BT, type_BT, text_BT = empty_rows(4, rows, lengths)
    ids_BT += pad_id
    ends = [None] * len(texts)
    for i, b, start in places(rows, lengths):
        prefix, branch = texts[i]
        second, end = start + len(prefix), start + lengths[i]
        ids_BT[b, start:end] = torch.tensor(prefix + branch)
        position_BT[b, start:end] = torch.arange(lengths[i])
        type_BT[b, second:end] = 1
        text_BT[b, start:end] = i + 1
        ends[i] = b, second - 1, start
    text_BT = text_BT.to(device)                 # padding is text 0, and sees padding
    visible_BTS = text_BT[:, :, None] == text_BT[:, None]
    sizes = [len(tree.branches) for tree in trees]
    ends_3N = torch.tensor(ends).T.to(device)    # row_N, prefix_end_N, branch_end_N
    return Packed(ids_BT.to(device), position_BT.to(device), visible_BTS, *ends_3N, sizes), type_BT.to(device)
