"""Each question is read once: options share their question, and several questions share a row.

An option is scored after its question, so four options would be four rows that repeat the question. But causal
attention never lets the question see an option: its keys and values are the same in all four. So one row holds

    question  option A  option B  option C ...        positions  0 .. 9  10 .. 12  10 .. 13  10 .. 11

with a mask in which each option sees the question and itself, and positions that restart behind the question: a tree.
Several trees share a row, and none sees another. Scores, loss and gradients are those of separate rows; only dropout
differs, because the question has one mask for all its options.
Not here: what the tokens are and how they are scored (heads.py); rows for an encoder (encoder_rows.py).
"""
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tree:
    """A question's tokens, and those of each option that follows it."""
    prefix: list[int]
    branches: list[list[int]]
    classes: tuple[int, ...] = ()    # head "label": the class of each option; all are scored on the only branch

    def __len__(self):
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def depth(self):
        """The number of positions it needs: the length of the longest separate row."""
        return len(self.prefix) + max(map(len, self.branches))


@dataclass(frozen=True)
class Packed:
    """Trees laid into rows. N counts the branches of all trees, in the order of the trees."""
    ids_BT: torch.Tensor             # int64
    position_BT: torch.Tensor        # int64: of the token in its separate row
    visible_BTS: torch.Tensor        # bool: query t sees key s
    row_N: torch.Tensor              # int64: the row of each branch,
    prefix_end_N: torch.Tensor       # the column of the last token of its prefix,
    branch_end_N: torch.Tensor       # and the column of its own last token
    sizes: list[int]                 # branches of each tree: they add up to N


def row_length(gpt):
    """Tokens per row. Attention over T tokens costs T / 6D of what the matrix products cost: D / 3 keeps it to 6 %."""
    return gpt.cfg.n_embd // 3


def read(gpt, trees, pad_id):
    """(Packed, x_BTD): the trees in rows, and a causal model's last hidden state of each token."""
    packed = pack(trees, row_length(gpt), pad_id, gpt.ln_f.weight.device)
    return packed, gpt.hidden(packed.ids_BT, visible_BTS=packed.visible_BTS, position_BT=packed.position_BT)


def pack(trees, length, pad_id, device=None):
    """Lay trees into rows of at most `length` tokens, or of the longest tree's; the rest of a row is padding."""
    rows = even_rows([len(tree) for tree in trees], length)
    width = max(sum(len(trees[i]) for i in row) for row in rows)
    ids_BT, position_BT, tree_BT, branch_BT = torch.zeros(4, len(rows), width, dtype=torch.int64)
    ids_BT += pad_id
    ends = [None] * len(trees)
    for b, row in enumerate(rows):
        ids, position, tree_of, branch_of = [], [], [], []
        for i in row:
            tree, ends[i] = trees[i], []
            prefix_end = len(ids) + len(tree.prefix) - 1
            for n, part in enumerate([tree.prefix, *tree.branches]):
                first = len(tree.prefix) if n else 0
                ids += part
                position += range(first, first + len(part))
                tree_of += [i + 1] * len(part)
                branch_of += [n] * len(part)
                if n:
                    ends[i].append((b, prefix_end, len(ids) - 1))
        for laid, values in ((ids_BT, ids), (position_BT, position), (tree_BT, tree_of), (branch_BT, branch_of)):
            laid[b, :len(values)] = torch.tensor(values)
    row_N, prefix_end_N, branch_end_N = torch.tensor([end for tree_ends in ends for end in tree_ends]).T.to(device)
    visible_BTS = visible(tree_BT.to(device), branch_BT.to(device))
    return Packed(ids_BT.to(device), position_BT.to(device), visible_BTS, row_N, prefix_end_N, branch_end_N,
                  [len(tree.branches) for tree in trees])


def even_rows(lengths, room):
    """first_fit with the smallest room that gives as few rows: two rows of 700 rather than 850 and 550, because all
    rows are padded to the longest."""
    room = max(room, max(lengths))
    rows = first_fit(lengths, room)
    smallest = max(max(lengths), -(-sum(lengths) // len(rows)))
    for smaller in range(smallest, room, 8):
        even = first_fit(lengths, smaller)
        if len(even) == len(rows):
            return even
    return rows


def first_fit(lengths, room):
    """Indices of `lengths` in rows of at most `room`: the longest first, each into the first row with room left."""
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
    """Query t sees key s: not after it, in the same tree, and in the prefix (branch 0) or in the query's own branch.

    Padding is tree 0 and sees the padding before it: the softmax of a query that sees no key is nan.
    """
    T = tree_BT.shape[1]
    same_tree = tree_BT[:, :, None] == tree_BT[:, None, :]
    shared = (branch_BT[:, None, :] == 0) | (branch_BT[:, :, None] == branch_BT[:, None, :])
    return same_tree & shared & torch.ones(T, T, dtype=torch.bool, device=tree_BT.device).tril()
