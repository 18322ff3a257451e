"""Downloads of the benchmarks, each in the shape of its release, from a folder that replaces the Hugging Face hub."""
import io
import json
import tarfile
import zipfile

import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from plumbing.common import UserError
from prepare import hub_qa, qa
from questions.format import read_questions


def medqa(n, letters="ABCD"):
    return {"question": f"Q{n}?", "options": {letter: f"{letter}{n}" for letter in letters}, "answer": f"B{n}",
            "answer_idx": "B", "meta_info": "step1"}


def jsonl(records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hf_hub_download out of a folder, whose files have the shapes of the real ones."""
    home = tmp_path / "hub"
    for name in ("bigbio/med_qa", "bigbio/pubmed_qa", "cais/mmlu", "openlifescienceai/medmcqa/data"):
        (home / name).mkdir(parents=True)
    with zipfile.ZipFile(home / "bigbio/med_qa/data_clean.zip", "w") as archive:
        for i, split in enumerate(("train", "dev", "test")):
            archive.writestr(f"data_clean/questions/US/4_options/phrases_no_exclude_{split}.jsonl",
                             jsonl(medqa(j) for j in range(3 - i)))
            archive.writestr(f"data_clean/questions/US/{split}.jsonl", jsonl([medqa(9, "ABCDE")]))
    with zipfile.ZipFile(home / "bigbio/pubmed_qa/pqal.zip", "w") as archive:
        for i, member in enumerate(("pqal_fold0/train_set.json", "pqal_fold0/dev_set.json", "pqal_test_set.json")):
            archive.writestr(member, json.dumps({f"1{i}": {"QUESTION": "Does it?", "CONTEXTS": ["We tried."],
                                                           "LONG_ANSWER": "SECRET", "final_decision": "no"}}))
    with tarfile.open(home / "cais/mmlu/data.tar", "w") as archive:
        for subject in hub_qa.SUBJECTS:
            row = f'"About {subject},\nwhat?",a,b,c,d,D\n'.encode()
            member = tarfile.TarInfo(f"data/test/{subject}_test.csv")
            member.size = len(row)
            archive.addfile(member, io.BytesIO(row))
    for split, n in (("train", 100), ("validation", 7)):
        rows = [{"id": f"{split}{i}", "question": f"{split} {i}?", "opa": "a", "opb": "b", "opc": "c", "opd": "d",
                 "cop": i % 4, "choice_type": "single", "exp": "SECRET", "subject_name": "Anatomy"} for i in range(n)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows),
                                    home / f"openlifescienceai/medmcqa/data/{split}-00000-of-00001.parquet")

    def download(name, file, repo_type):
        assert repo_type == "dataset"
        if not (home / name / file).is_file():
            raise LocalEntryNotFoundError("no network")
        return str(home / name / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return home


def fetched(task, tmp_path):
    qa.main(qa.Questions(task, qa.Path("hub"), tmp_path / "qa"))
    return {path.stem: read_questions(path) for path in sorted((tmp_path / "qa").iterdir())}


@pytest.mark.parametrize("task, sizes, options", [("medqa", (3, 2, 1), 4), ("medqa5", (1, 1, 1), 5)])
def test_medqa_with_four_and_five_options(hub, tmp_path, task, sizes, options):
    made = fetched(task, tmp_path)
    assert {name: len(made[name]) for name in made} == dict(zip([f"{task}_train", f"{task}_dev", f"{task}_test"], sizes,
                                                                strict=True))
    assert made[f"{task}_test"][0].answer == 1 and len(made[f"{task}_test"][0].options) == options


def test_medmcqa_is_tested_on_its_validation_and_gives_a_dev_set_from_its_training(hub, tmp_path, capsys):
    made = fetched("medmcqa", tmp_path)
    assert [q.id for q in made["medmcqa_dev"]] == ["train43", "train87"] and len(made["medmcqa_train"]) == 98
    assert [q.answer for q in made["medmcqa_test"]] == [0, 1, 2, 3, 0, 1, 2]
    printed = capsys.readouterr().out
    assert "cop counts the options from 0" in printed and "SECRET" not in str(made)
    paths = " ".join(f"--{split} {tmp_path}/qa/medmcqa_{split}.jsonl" for split in ("train", "dev", "test"))
    assert printed.count("next: ") == 1 and printed.endswith(f"next: python finetune_qa.py medmcqa {paths}\n")


def test_pubmedqa_is_the_authors_fold_0(hub, tmp_path):
    made = fetched("pubmedqa", tmp_path)
    assert [(name, q.id, q.options[q.answer]) for name in made for q in made[name]] == [
        ("pubmedqa_dev", "11", "no"), ("pubmedqa_test", "12", "no"), ("pubmedqa_train", "10", "no")]
    assert "SECRET" not in str(made)


def test_mmlu_is_six_subjects_and_all_of_them(hub, tmp_path):
    made = fetched("mmlu", tmp_path)
    assert len(made) == 7 and len(made["mmlu_test"]) == len({q.id for q in made["mmlu_test"]}) == 6
    assert made["mmlu_anatomy_test"][0].question == "About anatomy,\nwhat?" and made["mmlu_test"][0].answer == 3


MEDQA_ZIP, MMLU_TAR = "bigbio/med_qa/data_clean.zip", "cais/mmlu/data.tar"
MEDMCQA_PARQUET = "openlifescienceai/medmcqa/data/train-00000-of-00001.parquet"


@pytest.mark.parametrize("task, file, content, words", [
    ("medqa", MEDQA_ZIP, None, "cannot download data_clean.zip .*no network"),
    ("medqa", MEDQA_ZIP, b"<html>", "give the release's file as IN"),
    ("mmlu", MMLU_TAR, b"<html>", "give the release's file as IN"),
    ("medmcqa", MEDMCQA_PARQUET, b"x", "not a parquet file"),
    ("bioasq", MMLU_TAR, b"", "register at participants-area")])
def test_a_failed_download_is_one_line_that_says_what_to_do(hub, tmp_path, task, file, content, words):
    (hub / file).unlink()
    if content is not None:
        (hub / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        fetched(task, tmp_path)
