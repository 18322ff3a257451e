"""Multiple-choice questions: one file format for all benchmarks, written by prepare/ and read by finetune_qa.py.

    {"id": "12377809", "context": "", "question": "...?", "options": ["yes", "no", "maybe"], "answer": 0}

One JSON object per line. The number of options may differ between questions. The answer is an index into them.
"""
from collections import Counter
from dataclasses import asdict, dataclass

from plumbing.common import UserError, read_json_lines, write_json_lines


@dataclass(frozen=True)
class Question:
    id: str
    context: str                # an abstract, snippets; "" for none
    question: str
    options: list[str]
    answer: int | None          # None: unknown

    def check(self, answered=True):
        """Raise ValueError if this cannot be asked, or, with `answered`, if the answer is not one of the options."""
        if not all(isinstance(text, str) for text in (self.context, self.question)):
            raise ValueError("context and question must be text")
        if not isinstance(self.options, list) or len(self.options) < 2:
            raise ValueError("a question needs at least two options")
        if not all(isinstance(option, str) and option.strip() for option in self.options):
            raise ValueError("options must be text, none of them empty")
        if answered and (type(self.answer) is not int or not 0 <= self.answer < len(self.options)):
            raise ValueError(f"answer {self.answer!r} is no index of the {len(self.options)} options")


def read_questions(path, answered=True, options=()):
    """The questions of a file; UserError names the line that is wrong. answered=False: "answer" may be missing.
    options: those of a question that has none in the file."""
    def question_of(record):
        if type(record["id"]) not in (str, int):
            raise ValueError(f"the id must be text or a whole number, not {record['id']!r}")
        chosen = record.get("options", options) if options else record["options"]
        answer = record["answer"] if answered else record.get("answer")
        q = Question(str(record["id"]), record.get("context", ""), record["question"], list(chosen), answer)
        q.check(answered)
        return q

    return read_json_lines(path, "question", "prepare/qa.py or prepare/demo.py writes questions", question_of)


def read_test(path):
    """The questions of a test. Their ids must differ, because predictions refer to them."""
    questions = read_questions(path)
    if repeated := [id_ for id_, n in Counter(q.id for q in questions).items() if n > 1]:
        raise UserError(f"{path}: {len(repeated):,} ids occur more than once, such as {repeated[0]}; make them unique, "
                        "because predictions refer to them")
    return questions


def write_questions(path, questions):
    write_json_lines(path, map(asdict, questions))
