"""`python prepare/qa.py TASK hub data/qa`: the questions of a benchmark from their public home, split as published.

What is published about each release's splits, and what we chose where nothing is:

    medqa, medqa5    10,178 / 1,272 / 1,273 questions of the US licensing examination, with 4 and 5 options
    medmcqa          182,822 to train on; the paper's score is that of the 4,183 for validation, since the answers of
                     the test are withheld. So these are our test, and every 44th question to train on is our dev
    pubmedqa         fold 0 of the authors' ten: 450 / 50 / 500
    mmlu             the test of six medical subjects, each and all; nothing to train on
    bioasq           not here: it wants a registration (participants-area.bioasq.org)

Not here: what a record means (qa.py). We pass none of them on: mind each one's licence.
"""
import json
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from plumbing.common import UserError, write_json_lines

SUBJECTS = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics",
            "professional_medicine")
US = "data_clean/questions/US"
# task -> (name on the Hugging Face hub, {what it becomes: (file there, member of that archive)})
HOMES = {
    "medqa": ("bigbio/med_qa", {split: ("data_clean.zip", f"{US}/4_options/phrases_no_exclude_{split}.jsonl")
                                for split in ("train", "dev", "test")}),
    "medqa5": ("bigbio/med_qa", {split: ("data_clean.zip", f"{US}/{split}.jsonl")
                                 for split in ("train", "dev", "test")}),
    "medmcqa": ("openlifescienceai/medmcqa", {"train": ("data/train-00000-of-00001.parquet", ""),
                                              "test": ("data/validation-00000-of-00001.parquet", "")}),
    "pubmedqa": ("bigbio/pubmed_qa", {"train": ("pqal.zip", "pqal_fold0/train_set.json"),
                                      "dev": ("pqal.zip", "pqal_fold0/dev_set.json"),
                                      "test": ("pqal.zip", "pqal_test_set.json")}),
    "mmlu": ("cais/mmlu", {f"{subject}_test": ("data.tar", f"data/test/{subject}_test.csv") for subject in SUBJECTS}),
}
EVERY = 44


def fetch(task, out, convert):
    """Download a benchmark and write OUT/TASK_SPLIT.jsonl for every split; convert(source, out) makes one of a file.

    Returns {split: questions}. Raises UserError for what cannot be had.
    """
    if task not in HOMES:
        raise UserError(f"{task} has no public home on the hub; download it from participants-area.bioasq.org after "
                        "registration, and give the file as IN")
    name, files = HOMES[task]
    made = {}
    with TemporaryDirectory() as folder:
        for split, (file, member) in files.items():
            source = extracted(downloaded(name, file), member, Path(folder), split)
            for part, path in held_out(source, split) if task == "medmcqa" else [(split, source)]:
                made[part] = convert(path, out / f"{task}_{part}.jsonl")
    if task == "mmlu":
        made["test"] = [q for questions in made.values() for q in questions]
        write_json_lines(out / "mmlu_test.jsonl", [vars(q) for q in made["test"]])
    return made


def downloaded(name, file):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{name}: the Hugging Face hub did not give {file} ({reason})") from error


def extracted(path, member, folder, split):
    """The member of an archive, or a .parquet's rows as JSON lines, as a file of its own in `folder`."""
    if path.suffix == ".parquet":
        target = folder / f"{split}.jsonl"
        write_json_lines(target, rows_of(path))
        return target
    target = folder / Path(member).name
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                target.write_bytes(archive.read(member))
        else:
            with tarfile.open(path) as archive:
                target.write_bytes(archive.extractfile(member).read())
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{path}: no {member} in it ({error}); the release has changed, give the file as IN") from error
    return target


def rows_of(path):
    import pyarrow
    import pyarrow.parquet
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: no parquet file ({error}); delete it and fetch it again") from error


def held_out(source, split):
    """MedMCQA's training questions as (train, dev): see above."""
    if split != "train":
        return [(split, source)]
    lines = source.read_text(encoding="utf-8").split("\n")[:-1]
    parts = {"train": [line for i, line in enumerate(lines) if i % EVERY != EVERY - 1], "dev": lines[EVERY - 1::EVERY]}
    for part, chosen in parts.items():
        write_json_lines(source.with_name(f"medmcqa_{part}.jsonl"), map(json.loads, chosen))
    return [(part, source.with_name(f"medmcqa_{part}.jsonl")) for part in parts]
