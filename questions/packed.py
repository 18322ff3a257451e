"""Each question is read once: options share their question, and several questions share a row.

Four options would take four rows that repeat the question. But in causal attention the question never sees an option,
and its keys and values are the same in all four. So one row contains

    question  option A  option B  option C ...        positions  0 .. 9  10 .. 12  10 .. 13  10 .. 11

with a mask in which each option sees the question and itself, and positions that restart after the question: a tree.
Several trees share a row, and none sees another. Scores, loss and gradients equal those of separate rows; only dropout
has one mask for a question and all its options.

In an encoder a question's states depend on the option after it, so each option has a copy of its question.
Not here: what the tokens are and how they are scored (heads.py).
"""
from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Tree:
    """The tokens of a question, and of each option that follows it."""
    prefix: list[int]
    branches: list[list[int]]
    classes: tuple[int, ...] = ()    # head "label": the class of each option; all are scored on the only branch

    def __len__(self):
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def depth(self):
        """The length of the longest option with its question: the number of positions that the tree needs."""
        return len(self.prefix) + max(map(len, self.branches))


@dataclass(frozen=True)
class Packed:
    """Trees laid into rows. N counts the branches of all trees, in the order of the trees."""
    ids_BT: torch.Tensor             # int64
    position_BT: torch.Tensor        # int64: the token's position in a row of its own
    tree_BT: torch.Tensor            # int64: the tree of the token, counted from 1; 0 is padding
    branch_BT: torch.Tensor          # int64: its branch, counted from 1; 0 is the prefix
    row_N: torch.Tensor              # int64: the row of each branch,
    prefix_end_N: torch.Tensor       # the column of the last token of its prefix,
    branch_end_N: torch.Tensor       # and the column of its own last token


def row_length(gpt):
    """Tokens per row. Attention over T tokens costs T / 6D of what the matrix products cost: 6 % with T = D / 3."""
    return gpt.cfg.n_embd // 3


def read(gpt, trees, pad_id):
    """(Packed, x_BTD): the trees in rows, and the last hidden state of each token. For an encoder, branch_end_N is the
    column of [CLS], which its heads read."""
    if gpt.causal:
        packed = pack(trees, row_length(gpt), pad_id, gpt.wte.weight.device)
        visible_BTS = visible(packed.tree_BT, packed.branch_BT)
        return packed, gpt.hidden(packed.ids_BT, visible_BTS=visible_BTS, position_BT=packed.position_BT)

    texts = [Tree(tree.prefix, [branch]) for tree in trees for branch in tree.branches]
    packed = pack(texts, row_length(gpt), pad_id, gpt.wte.weight.device)
    type_BT = packed.branch_BT.clamp(max=gpt.cfg.n_types - 1)
    visible_BTS = packed.tree_BT[:, :, None] == packed.tree_BT[:, None]
    x_BTD = gpt.hidden(packed.ids_BT, type_BT, visible_BTS, packed.position_BT)
    length_N = torch.tensor([len(text) for text in texts], device=x_BTD.device)
    return replace(packed, branch_end_N=packed.branch_end_N + 1 - length_N), x_BTD


def pack(trees, length, pad_id, device=None, even=True):
    """Lay trees into rows of at most `length` tokens, or of the longest tree's; the rest of a row is padding."""
    lengths = [len(tree) for tree in trees]
    rows = (even_rows if even else first_fit)(lengths, max(length, *lengths))
    widest = max(sum(lengths[i] for i in row) for row in rows)
    ids_BT, position_BT, tree_BT, branch_BT = torch.zeros(4, len(rows), widest, dtype=torch.int64)
    ids_BT += pad_id
    ends = [[] for _ in trees]
    for b, row in enumerate(rows):
        t = 0
        for i in row:
            tree, prefix_end = trees[i], t + len(trees[i].prefix) - 1
            tree_BT[b, t:t + lengths[i]] = i + 1
            for n, part in enumerate([tree.prefix, *tree.branches]):
                first, here = len(tree.prefix) if n else 0, slice(t, t + len(part))
                ids_BT[b, here] = torch.tensor(part, dtype=torch.int64)
                position_BT[b, here] = torch.arange(first, first + len(part))
                branch_BT[b, here] = n
                t += len(part)
                if n:
                    ends[i].append((b, prefix_end, t - 1))
    ends_3N = torch.tensor([end for tree_ends in ends for end in tree_ends]).T     # row_N, prefix_end_N, branch_end_N
    return Packed(*(tensor.to(device) for tensor in (ids_BT, position_BT, tree_BT, branch_BT, *ends_3N)))


def even_rows(lengths, room):
    """first_fit with the smallest room that needs no more rows: two padded rows of 700 are better than 850 and 550."""
    rows = first_fit(lengths, room)
    smallest = max(max(lengths), -(-sum(lengths) // len(rows)))
    for smaller in range(smallest, room, 8):
        even = first_fit(lengths, smaller)
        if len(even) == len(rows):
            return even
    return rows


def first_fit(lengths, room):
    """Divide the indices of `lengths` into rows of at most `room`: longest first, into the first row that has room."""
    rows, left = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, space in enumerate(left) if space >= lengths[i]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            left.append(room)
        rows[row].append(i)
        left[row] -= lengths[i]
    return rows


def visible(tree_BT, branch_BT):
    """visible_BTS: t sees s if s is not after t, in the same tree, and in the prefix (branch 0) or in t's own branch.
    Padding is tree 0 and sees the padding before it, because the softmax of a query that sees no key is nan."""
    T = tree_BT.shape[1]
    same_tree = tree_BT[:, :, None] == tree_BT[:, None, :]
    shared = (branch_BT[:, None, :] == 0) | (branch_BT[:, :, None] == branch_BT[:, None, :])
    return same_tree & shared & torch.ones(T, T, dtype=torch.bool, device=tree_BT.device).tril()
