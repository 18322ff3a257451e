"""prepare/answers.py: three releases to one format, and nothing of the test in training."""
import json

import pytest
from launched import launched

from answers.examples import read_items, splits_of
from plumbing.common import UserError
from prepare.answers import Answers, main

XML = """<?xml version="1.0"?><Document id="1"><Focus>Gout {n}</Focus><QAPairs>
<QAPair pid="1"><Question qid="1-1" qtype="information">What is (are) Gout {n} ?</Question><Answer>A disease
   {n}.</Answer></QAPair><QAPair pid="2"><Question>Who gets it ?</Question><Answer></Answer></QAPair>
<QAPair pid="3"><Question>Is it rare ?</Question><Answer>No, not {n}.</Answer></QAPair></QAPairs></Document>"""


def test_medquads_folder_keeps_the_questions_of_a_disease_together(tmp_path):
    for n in range(20):
        (tmp_path / "in" / f"{n % 3}_QA").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{n % 3}_QA" / f"{n:07}.xml").write_text(XML.format(n=n))
    items = main(Answers("medquad", tmp_path / "in", tmp_path / "out.jsonl"))
    assert len(items) == 40 and "What is (are) Gout 3?" in {i.prompt for i in items}      # the empty answers are gone
    assert "A disease 3." in {i.answer for i in items}
    splits = {}
    for item in read_items(tmp_path / "out.jsonl"):
        splits.setdefault(item.group, set()).add(item.split)
    assert all(len(its) == 1 for its in splits.values())
    assert [len(m) for m in splits_of(items).values()] == [32, 4, 4]


def test_meqsum_is_read_from_a_sheet_or_from_lines_and_halved(tmp_path):
    rows = [("id", f"SUBJECT: gout {n}\nMESSAGE: my toe", f"What helps  against gout {n}?") for n in range(20)]
    (tmp_path / "sheet.csv").write_text("File,CHQ,Summary\n" + "".join(f'{a},"{b}",{c}\n' for a, b, c in rows))
    (tmp_path / "lines.jsonl").write_text("".join(
        json.dumps({"id": a, "question": b, "summary": c}) + "\n" for a, b, c in rows))
    sheet, lines = (main(Answers("meqsum", tmp_path / name, tmp_path / "out.jsonl"))
                    for name in ("sheet.csv", "lines.jsonl"))
    assert sheet == lines and len({item.id for item in sheet}) == 20
    assert sheet[0].prompt.startswith("SUBJECT: gout") and "\nMESSAGE" in sheet[0].prompt
    assert [len(members) for members in splits_of(sheet).values()] == [9, 1, 10]


def squad(path, entries):
    path.write_text(json.dumps({"version": "1", "data": [{"title": "t", "paragraphs": [
        {"context": context, "qas": [{"id": id_, "question": question, "answers": [
            {"text": text, "answer_start": context.index(text)}]}]} for id_, question, context, text in entries]}]}))
    return path


def test_bioasq_leaves_out_of_training_what_the_test_asks_or_reads(tmp_path):
    train = squad(tmp_path / "train.json", [
        ("a_000", "Which gene?", "It is ABC.", "ABC"), ("b_000", "Which drug?", "It is DEF.", "DEF"),
        ("c_000", "Which cell?", "The T cell in blood.", "T cell"), ("d_000", "Which organ?", "A liver.", "liver"),
        ("d_001", "Which organ?", "The Liver.", "Liver")])
    test = squad(tmp_path / "test.json", [("x_000", "which gene?", "No, XYZ.", "XYZ"),
                                          ("y_000", "What?", "The T cell in blood.", "blood")])
    items = main(Answers("bioasq", train, tmp_path / "out.jsonl", test))
    assert {i.id for i in items if i.split != "test"} == {"b_000", "d_000", "d_001"}
    assert {i.id for i in items if i.split == "test"} == {"x_000", "y_000"}
    assert len({i.split for i in items if i.group == "d"}) == 1


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n')
    for task in ("medquad", "meqsum", "bioasq"):
        with pytest.raises(UserError, match="in.jsonl"):
            main(Answers(task, tmp_path / "in.jsonl", tmp_path / "out.jsonl"))
    done = launched("prepare/answers.py", "meqsum", tmp_path / "nowhere.csv", tmp_path / "out.jsonl")
    assert done.returncode == 2 and "no such file" in done.stderr and not (tmp_path / "out.jsonl").exists()


def test_one_bad_record_in_a_hundred_is_named_and_left_out_and_two_are_an_error(tmp_path, capsys):
    good = [json.dumps({"id": n, "question": f"What about gout {n}?", "summary": f"Gout {n}?"}) for n in range(99)]
    for bad in ("9" * 5000, "[" * 1200, '{"id": 1, "question": null, "summary": ""}', "[1]", "no JSON"):
        (tmp_path / "in.jsonl").write_text("\n".join([*good, bad]))
        assert len(main(Answers("meqsum", tmp_path / "in.jsonl", tmp_path / "out.jsonl"))) == 99
        assert "in.jsonl, line 100" in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text("\n".join([*good[:98], "no JSON", "[1]"]))
    with pytest.raises(UserError, match="2 of 100 records are malformed, more than 1 %"):
        main(Answers("meqsum", tmp_path / "in.jsonl", tmp_path / "other.jsonl"))
    assert not (tmp_path / "other.jsonl").exists()
