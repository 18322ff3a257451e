"""`python prepare/qa.py TASK hub data/qa`: download a benchmark from the Hugging Face hub, in its published splits.

The sizes of train / dev / test, and our choice where the release lacks a split:

    medqa, medqa5    10,178 / 1,272 / 1,273 questions of the US licensing examination, with 4 and 5 options
    medmcqa          178,667 / 4,155 / 4,183. The answers to the test are withheld, so the paper uses the validation set
                     as test set, and so do we. Our dev set is every 44th training question
    pubmedqa         450 / 50 / 500: fold 0 of the authors' ten
    mmlu             test sets only: six medical subjects, one file for each and one for all
    bioasq           not on the hub, because it needs a registration (participants-area.bioasq.org)

Not here: what a record means (prepare/qa.py), the licences (prepare/__init__.py).
"""
import tarfile
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from plumbing.common import UserError, asking_the_hub, write_json_lines

SUBJECTS = ("anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics",
            "professional_medicine")
US = "data_clean/questions/US"
# task -> (repository on the hub, {split: (file in it, member of that archive)})
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
EVERY = 44          # every 44th training question of MedMCQA is for dev


def fetch(task, out, convert):
    """Download a benchmark, and let convert(source, out) write OUT/TASK_SPLIT.jsonl for every split. Returns
    {split: questions}."""
    if task not in HOMES:
        raise UserError(f"{task} is not on the hub; register at participants-area.bioasq.org, download it there, and "
                        "give the file as IN")
    from huggingface_hub import hf_hub_download
    name, files = HOMES[task]
    made = {}
    with TemporaryDirectory() as folder:
        for split, (file, member) in files.items():
            with asking_the_hub(f"{name}: cannot download {file} from the Hugging Face hub"):
                path = Path(hf_hub_download(name, file, repo_type="dataset"))
            if path.suffix == ".parquet":
                parts = from_parquet(path, split, Path(folder))
            else:
                parts = {split: extracted(path, member, Path(folder))}
            for part, source in parts.items():
                made[part] = convert(source, out / f"{task}_{part}.jsonl")
    if task == "mmlu":
        made["test"] = [q for questions in made.values() for q in questions]
        write_json_lines(out / "mmlu_test.jsonl", [vars(q) for q in made["test"]])
    return made


def extracted(path, member, folder):
    """A member of an archive as a file in `folder`."""
    target = folder / Path(member).name
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                target.write_bytes(archive.read(member))
        else:
            with tarfile.open(path) as archive:
                target.write_bytes(archive.extractfile(member).read())
    except (KeyError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot read {member} ({error}); give the release's file as IN") from error
    return target


def from_parquet(path, split, folder):
    """{split: file of JSON lines in `folder`}. The training rows are divided into train and dev."""
    import pyarrow
    import pyarrow.parquet
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file ({error}); delete it and run the command again") from error
    parts = {split: rows}
    if split == "train":
        parts = {"train": [row for i, row in enumerate(rows) if i % EVERY != EVERY - 1], "dev": rows[EVERY - 1::EVERY]}
    for part, chosen in parts.items():
        write_json_lines(folder / f"{part}.jsonl", chosen)
    return {part: folder / f"{part}.jsonl" for part in parts}
