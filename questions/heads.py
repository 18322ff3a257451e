"""From a question to a score for each option: what the model is given to read, and which of its outputs is the answer.

    option        question[SEP] option[SEP]                                 a number for each option, off its last token
    label         <|CONTEXT|>context<|QUESTION|>question<|ANSWER|>          a number for each label, off the last token
    likelihood    context, Question: question, Answer: option               the option's log-probability; no training

The first two are the paper's (section 4): "option" where every question has options of its own (MedQA), "label" where
all questions share theirs (yes, no, maybe). The third is what a language model can do before it is fine-tuned.
Not here: how trees become rows (packed.py), the network (model.py).
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from plumbing.common import UserError
from questions.packed import Tree, pack
from training.finetuning import outputs_by_length

NEW_TOKENS = {"option": ("[SEP]", "[PAD]"), "label": ("<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>", "[PAD]"),
              "likelihood": ("[PAD]",)}


class Reader:
    """Turns questions into trees of ids; `cut` counts those that were too long and lost some of their beginning."""

    def __init__(self, head, tok, first_new, max_length, labels=()):
        self.head, self.tok, self.max_length, self.labels, self.cut = head, tok, max_length, labels, 0
        self.front = list(tok.front)     # nothing, or what a model of another family wants first
        self.special = {name: first_new + i for i, name in enumerate(NEW_TOKENS[head])}

    def __call__(self, q):
        tree = {"option": self.option, "label": self.label, "likelihood": self.likelihood}[self.head](q)
        if tree.depth > self.max_length:
            raise UserError(f"question {q.id}: an option alone has more than the {self.max_length} tokens of a row; "
                            "raise --max-length or shorten it")
        return tree

    def ids(self, text):
        return self.tok.encode(text).tolist()

    def end_of(self, ids, room):
        """The last `room` ids: what is asked stands at a question's end, so its beginning goes."""
        self.cut += len(ids) > room
        return ids[-room:] if room > 0 else []

    def option(self, q):
        sep = self.special["[SEP]"]
        options = [[*self.ids(" " + option.strip()), sep] for option in q.options]
        question = self.ids(f"{q.context.strip()} {q.question.strip()}".strip())
        room = self.max_length - len(self.front) - 1 - max(map(len, options))
        return Tree([*self.front, *self.end_of(question, room), sep], options)

    def label(self, q):
        context, asks, answers = (self.special[name] for name in NEW_TOKENS["label"][:3])
        question = self.ids(q.question.strip())
        most = self.max_length - len(self.front) - 3
        room = most - len(question)
        if room < 0:                     # no room for any context, and not for all of the question
            prefix = [context, asks, *self.end_of(question, most)]
        else:                            # as in the authors' code, a long context loses its end: the question stays
            read = self.ids(q.context.strip())
            self.cut += len(read) > room
            prefix = [context, *read[:room], asks, *question]
        classes = tuple(self.labels.index(option.strip()) for option in q.options)
        return Tree([*self.front, *prefix], [[answers]], classes)

    def likelihood(self, q):
        options = [self.ids(" " + option.strip()) for option in q.options]
        asked = f"{q.context.strip()}\nQuestion: {q.question.strip()}\nAnswer:".strip()
        room = self.max_length - len(self.front) - max(map(len, options))
        return Tree([*self.front, *self.end_of(self.ids(asked), room)], options)


def labels_of(questions):
    """The options that all questions share, sorted: their order must not depend on who occurs, or first."""
    labels = sorted({option.strip() for q in questions for option in q.options})
    if len(labels) > 10:
        raise UserError(f"--head label is for questions that share their options, such as yes and no; these have "
                        f"{len(labels)} different ones. Use --head option")
    return labels


def read(gpt, trees, pad_id):
    """The packed trees, and the last hidden state of each of their tokens."""
    # Attention over a row of T tokens costs T / 6D of what the matrix products cost: a third of D keeps it to 6 %.
    packed = pack(trees, gpt.cfg.n_embd // 3, pad_id, gpt.ln_f.weight.device)
    return packed, gpt.hidden(packed.ids_BT, visible_BTS=packed.visible_BTS, position_BT=packed.position_BT)


class Classifier(nn.Module):
    """A GPT and a linear layer on the last token of every branch. (read: how trees are laid into rows and read.)"""

    def __init__(self, gpt, pad_id, labels=(), read=read):
        super().__init__()
        self.gpt, self.pad_id, self.read = gpt, pad_id, read
        del gpt.lm_head              # nobody will ask for the next token
        gpt.lm_head = None
        self.score = nn.Linear(gpt.cfg.n_embd, len(labels) or 1, bias=not labels)     # as in the authors' two scripts
        nn.init.normal_(self.score.weight, 0.0, gpt.cfg.initializer_range)
        if not labels:
            nn.init.zeros_(self.score.bias)

    @property
    def h(self):
        return self.gpt.h            # the blocks, where parallel.py looks for what it is to slice

    def forward(self, trees):
        """trees: a question each. Returns scores_QO in fp32; -inf where a question has fewer options."""
        packed, x_BTD = self.read(self.gpt, trees, self.pad_id)
        scores_NC = self.score(x_BTD[packed.row_N, packed.last_N]).float()
        scores = [of_tree[0, list(tree.classes)] if tree.classes else of_tree[:, 0]
                  for tree, of_tree in zip(trees, scores_NC.split(packed.sizes), strict=True)]
        return nn.utils.rnn.pad_sequence(scores, batch_first=True, padding_value=-torch.inf)


class Likelihood(nn.Module):
    """A GPT as it is: the log-probability, in nats, of each option behind its question."""

    def __init__(self, gpt, pad_id):
        super().__init__()
        self.gpt, self.pad_id = gpt, pad_id

    def forward(self, trees):
        packed, x_BTD = read(self.gpt, trees, self.pad_id)
        branches = [branch for tree in trees for branch in tree.branches]
        scores = []
        for row, stem, last, branch in zip(packed.row_N, packed.stem_N, packed.last_N, branches, strict=True):
            # The prefix's last token predicts the option's first; each of the option's the one behind it.
            before = torch.cat([stem[None], torch.arange(last - len(branch) + 1, last, device=last.device)])
            logits_TV = self.gpt.logits(x_BTD[row, before]).float()
            target_T = torch.tensor(branch, device=last.device)
            scores.append(-F.cross_entropy(logits_TV, target_T, reduction="sum"))
        return nn.utils.rnn.pad_sequence(torch.stack(scores).split(packed.sizes), batch_first=True,
                                         padding_value=-torch.inf)


def predict(model, trees, cfg, world):
    """The scores of every question's options, as lists, on every process."""
    counts = [len(tree.classes or tree.branches) for tree in trees]
    scores_QO = torch.zeros(len(trees), max(counts), device=world.device)
    for part, of_part in outputs_by_length(model, trees, cfg.batch_size, world, cfg.dtype):
        scores_QO[torch.tensor(part), :of_part.shape[1]] = of_part
    return [scores[:n] for scores, n in zip(world.sum(scores_QO).tolist(), counts, strict=True)]
