"""From a question to a score for each option: what the model reads, and which of its outputs is the score.

    option        question[SEP] option[SEP]                               one number per option, from its last token
    label         <|CONTEXT|>context<|QUESTION|>question<|ANSWER|>        one number per label, from the last token
    likelihood    context, Question: question, Answer: option             the option's log-probability; no training

The first two are from the paper (section 4). "option" is for questions that each have their own options (MedQA),
"label" for questions that share their options (yes, no, maybe). "likelihood" needs no fine-tuning (zero_shot.py).
Not here: how trees become rows (packed.py), the network (model.py, baselines/).
"""
import math
from dataclasses import fields, replace

import torch
import torch.nn as nn
import torch.nn.functional as F

from plumbing.common import UserError
from questions.packed import Tree, read
from training.finetuning import evaluated


class Reader:
    """Turns questions into trees of ids. `cut` counts the questions that were shortened."""

    NEW_TOKENS = {               # special tokens that fine-tuning adds to the model
        "option": ("[SEP]", "[PAD]"),
        "label": ("<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>", "[PAD]"),
        "likelihood": ()}

    def __init__(self, head, tok, max_length, labels=()):
        self.head, self.tok, self.max_length, self.labels, self.cut = head, tok, max_length, labels, 0
        self.front = list(tok.front)     # the ids that begin every text of some families; GPT-2 has none
        self.special = {name: tok.specials[name] for name in self.NEW_TOKENS[head]}
        self.pad_id = self.special.get("[PAD]", 0)       # any id will do: no other token sees the padding

    def __call__(self, q):
        tree = {"option": self.option, "label": self.label, "likelihood": self.likelihood}[self.head](q)
        if tree.depth > self.max_length:
            raise UserError(f"question {q.id}: an option alone has more than the {self.max_length} tokens of a row; "
                            "raise --max-length or shorten it")
        return tree

    def ids(self, text):
        return self.tok.encode(text).tolist()

    def end_of(self, ids, room):
        """The last `room` ids: the end of a question is where the actual question is."""
        self.cut += len(ids) > room
        return ids[-room:] if room > 0 else []

    def option(self, q):
        sep = self.special["[SEP]"]
        options = [[*self.ids(" " + option.strip()), sep] for option in q.options]
        question = self.ids(f"{q.context.strip()} {q.question.strip()}".strip())
        room = self.max_length - len(self.front) - 1 - max(map(len, options))
        return Tree([*self.front, *self.end_of(question, room), sep], options)

    def label(self, q):
        context, asks, answers = (self.special[name] for name in ("<|CONTEXT|>", "<|QUESTION|>", "<|ANSWER|>"))
        question = self.ids(q.question.strip())
        most = self.max_length - len(self.front) - 3
        room = most - len(question)
        if room < 0:                     # no room for any context, nor for the whole question
            prefix = [context, asks, *self.end_of(question, most)]
        else:                            # a long context loses its end, as in the authors' code
            ids = self.ids(q.context.strip())
            self.cut += len(ids) > room
            prefix = [context, *ids[:room], asks, *question]
        return Tree([*self.front, *prefix], [[answers]], self.classes(q))

    def classes(self, q):
        return tuple(self.labels.index(option.strip()) for option in q.options)

    def likelihood(self, q):
        options = [self.ids(" " + option.strip()) for option in q.options]
        asked = f"{q.context.strip()}\nQuestion: {q.question.strip()}\nAnswer:".strip()
        room = self.max_length - len(self.front) - max(map(len, options))
        return Tree([*self.front, *self.end_of(self.ids(asked), room)], options)


def labels_of(questions):
    """The options of all questions, sorted, so that every file yields the same order."""
    labels = sorted({option.strip() for q in questions for option in q.options})
    if len(labels) > 10:
        raise UserError(f"--head label is for questions that share their options, such as yes and no; these have "
                        f"{len(labels)} different options. Use --head option")
    return labels


class EncoderReader(Reader):
    """The same for an encoder, which reads each branch with a copy of the prefix. The score comes from [CLS].

        option        [CLS] question [SEP] option [SEP]
        label         [CLS] question [SEP] context [SEP]
    """

    NEW_TOKENS = {"option": (), "label": ()}

    def __init__(self, head, tok, max_length, labels=()):
        if head not in self.NEW_TOKENS:
            raise UserError(f"an encoder has no probability for a text, which --head {head} needs")
        super().__init__(head, tok, max_length, labels)
        for name in ("[CLS]", "[SEP]"):
            if name not in tok.specials:
                raise UserError(f"the tokenizer has no {name}, which an encoder reads before and between texts")
        self.front, self.special = [tok.specials["[CLS]"]], {"[SEP]": tok.specials["[SEP]"]}

    def label(self, q):
        sep = self.special["[SEP]"]
        question, context = self.ids(q.question.strip()), self.ids(q.context.strip())
        room = self.max_length - 3 - len(question)
        if room < 1:                     # no room for any context, nor for the whole question
            prefix, context = [*self.front, *self.end_of(question, self.max_length - 2), sep], []
        else:
            self.cut += len(context) > room
            prefix, context = [*self.front, *question, sep], context[:room]
        return Tree(prefix, [[*context, sep] if context else []], self.classes(q))


def reader_for(gpt):
    return Reader if gpt.causal else EncoderReader


class Classifier(nn.Module):
    """A model with a linear layer on the last token of every branch (for an encoder, on the first token)."""

    def __init__(self, gpt, pad_id, labels=()):
        super().__init__()
        self.gpt, self.pad_id = gpt, pad_id
        # A classifier has no language-modelling head, nor has its configuration.
        del gpt.lm_head
        gpt.lm_head = None
        without = {"tied": True, "masked_head": False}              # Llama's, an encoder's
        gpt.cfg = replace(gpt.cfg, **{f.name: without[f.name] for f in fields(gpt.cfg) if f.name in without})

        self.score = nn.Linear(gpt.cfg.n_embd, len(labels) or 1, bias=not labels)     # as in the authors' two scripts
        nn.init.normal_(self.score.weight, 0.0, gpt.cfg.initializer_range)
        if not labels:
            nn.init.zeros_(self.score.bias)

    def forward(self, trees):
        """scores_QO (fp32) for trees of one question each; -inf where a question has fewer options."""
        rows, x_BTD = read(self.gpt, trees, self.pad_id)
        scores_NC = self.score(x_BTD[rows.row_N, rows.branch_end_N]).float()
        by_tree = scores_NC.split([len(tree.branches) for tree in trees])
        scores = [of_tree[0, list(tree.classes)] if tree.classes else of_tree[:, 0]
                  for tree, of_tree in zip(trees, by_tree, strict=True)]
        return nn.utils.rnn.pad_sequence(scores, batch_first=True, padding_value=-torch.inf)


class Likelihood(nn.Module):
    """A GPT without a new head: the log-probability in nats of each option after its question."""

    def __init__(self, gpt, pad_id):
        super().__init__()
        self.gpt, self.pad_id = gpt, pad_id

    def forward(self, trees):
        rows, x_BTD = read(self.gpt, trees, self.pad_id)
        branches = [branch for tree in trees for branch in tree.branches]
        scores = []
        places = zip(rows.row_N, rows.prefix_end_N, rows.branch_end_N, branches, strict=True)
        for row, prefix_end, branch_end, branch in places:
            # The prefix's last token predicts the option's first token; each token of the option predicts the next.
            inside = torch.arange(branch_end - len(branch) + 1, branch_end, device=branch_end.device)
            logits_TV = self.gpt.logits(x_BTD[row, torch.cat([prefix_end[None], inside])]).float()
            target_T = torch.tensor(branch, device=branch_end.device)
            scores.append(-F.cross_entropy(logits_TV, target_T, reduction="sum"))
        by_tree = torch.stack(scores).split([len(tree.branches) for tree in trees])
        return nn.utils.rnn.pad_sequence(by_tree, batch_first=True, padding_value=-torch.inf)


def predict(model, trees, cfg, world):
    """For each question a list of its options' scores, on every process."""
    padded = evaluated(model, trees, cfg.batch_size, world, cfg.dtype)
    scores = [of_tree[:len(tree.classes or tree.branches)] for tree, of_tree in zip(trees, padded, strict=True)]
    if not all(math.isfinite(score) for of_question in scores for score in of_question):
        raise UserError(f"a score is not finite in {cfg.dtype}; use --dtype float32, or other weights")
    return scores
