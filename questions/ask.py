"""`finetune_qa.py ask`: ask a model that finetune_qa.py has fine-tuned and written to OUT/model.

Such a folder needs more than the weights: the kind of head, its labels, and the length of its input.
Not here: how a question becomes a score (heads.py).

    python finetune_qa.py ask --model out/medqa/model --question "Which vitamin prevents scurvy?" --options A B12 C
    python finetune_qa.py ask --model out/pubmedqa/model --question "Does it help?" --context "Of 40 patients ..."
    python finetune_qa.py ask --model out/medqa/model --file questions.jsonl --out predictions.jsonl
    python finetune_qa.py ask --model out/medqa/model --interactive
"""
import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch

from baselines import load
from plumbing.common import UserError, check_ranges, read_json, say_next, write_json_lines
from plumbing.huggingface import file_of, find_folder, read_tensors
from plumbing.runtime import Device, inference_dtype, pick_device
from questions.format import Question, read_questions
from questions.heads import Classifier, predict, reader_for
from questions.metrics import probabilities
from training.parallel import World

HEAD = "question_head"       # the key in config.json: {"head", "labels", "max_length"}
NOT_ADVICE = "not medical advice: for research only; the probabilities say what the model prefers, not what is true"
BAR = 30                     # length in characters of the bar for a probability of 1


@dataclass(frozen=True)
class Ask:
    """Answer multiple-choice questions with a fine-tuned model."""
    model: str = "out/medqa/model"           # OUT/model of a fine-tuning
    question: str = ""
    options: tuple[str, ...] = ()            # not needed by a model with labels, such as yes, no and maybe
    context: str = ""                        # an abstract that the question is about
    file: str = ""                           # many questions: JSON lines as for training; "answer" may be missing
    out: str = "predictions.jsonl"           # for --file: JSON lines {"id", "scores", "prediction"}
    interactive: bool = False                # read questions from the terminal, one after the other
    batch_size: int = 16                     # for --file: questions per forward pass
    device: Device = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"     # of matrix products


def ask(cfg):
    """Print or write the answers. Returns the scores of each question's options."""
    check_ranges(cfg, ["batch_size"])
    if bool(cfg.question) + bool(cfg.file) + cfg.interactive != 1:
        raise UserError("give one of --question, --file and --interactive")
    answerer = Answerer(cfg)
    print(NOT_ADVICE, file=sys.stderr)
    if cfg.interactive:
        return answerer.converse()
    if not cfg.file:
        return answerer.show(cfg.question, cfg.options, cfg.context)

    questions = read_questions(cfg.file, answered=False, options=answerer.labels)
    scores = answerer.scores(questions)
    write_json_lines(cfg.out, [{"id": q.id, "scores": s, "prediction": s.index(max(s))}
                               for q, s in zip(questions, scores, strict=True)])
    print(f"Wrote {cfg.out}: {len(questions):,} predictions; {answerer.reader.cut:,} of the questions were cut")
    if all(q.answer is not None for q in questions):
        say_next("finetune_qa.py", "evaluate", "--predictions", cfg.out, "--questions", cfg.file)
    return scores


class Answerer:
    """A fine-tuned model with its head and its reader."""

    def __init__(self, cfg):
        self.world = World(0, 1, pick_device(cfg.device))
        self.cfg = replace(cfg, dtype=inference_dtype(cfg.dtype, self.world.device))
        folder = find_folder(cfg.model)
        config = read_json(file_of(folder, "config.json"), "a model's configuration")
        if HEAD not in config:
            raise UserError(f"{folder}: has no head for multiple choice; give the OUT/model of a `finetune_qa.py` run")
        about = config[HEAD]
        self.labels = about["labels"]
        half = config.get("dtype") == self.cfg.dtype == "bfloat16"
        gpt, tok = load(folder, torch.bfloat16 if half else torch.float32, self.world.device, allow_encoders=True)
        self.reader = reader_for(gpt)(about["head"], tok, about["max_length"], self.labels)
        model = Classifier(gpt, self.reader.pad_id, self.labels)
        stored = {name.removeprefix("score."): tensor for name, tensor in read_tensors(folder, head=True)}
        try:
            model.score.load_state_dict(stored)
        except RuntimeError as error:            # other names or shapes
            raise UserError(f"{folder}: the weights of the head do not fit config.json; copy it again") from error
        self.model = model.to(self.world.device)

    def scores(self, questions):
        """For each question a list of one score per option."""
        for q in questions:
            unknown = [option for option in q.options if option.strip() not in self.labels]
            if self.labels and unknown:
                raise UserError(f"question {q.id}: this model only chooses among {', '.join(self.labels)}; "
                                f"{unknown[0]!r} is none of them")
        return predict(self.model, [self.reader(q) for q in questions], self.cfg, self.world)

    def show(self, text, options, context):
        """Print the probability of each option of a question. Returns the scores."""
        q = Question("asked", context, text, list(options or self.labels), None)
        try:
            q.check(answered=False)
        except ValueError as error:
            raise UserError(f"{error}; give them with --options") from error
        scores = self.scores([q])
        for p, option in zip(probabilities(scores[0]), q.options, strict=True):
            print(f"{p:6.1%}  {'#' * round(BAR * p):{BAR}}  {option}")
        return scores

    def converse(self):
        """Read and answer questions until an empty line or the end of the input."""
        while text := typed("question"):
            context = typed("context, if any") if self.labels else ""
            options = self.labels or [option.strip() for option in typed("options, separated by ;").split(";")]
            try:
                self.show(text, options, context)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)


def typed(what):
    """A line from the terminal; "" at the end of the input."""
    print(f"{what}: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()
