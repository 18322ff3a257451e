"""The house rules: what the README says is so, and every file can be read."""
import ast
import functools
import importlib
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import fields

import pytest
import tyro
from conftest import ROOT

from plumbing import common

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:torchrun [^\n]*?|python )(\S+\.py[^\n#]*)", README, re.M)
RIVALS = re.findall(r"`(?:torchrun [^`]*?|python )(finetune\S+\.py[^`]*)`",
                    (ROOT / "results/baselines.md").read_text(encoding="utf-8"))
FILES = [ROOT / name for name in subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True,
                                                text=True).stdout.split()]
SOURCES = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]


class Parsed(Exception):
    pass


@pytest.mark.parametrize("command", COMMANDS + RIVALS)
def test_every_command_in_the_readme_and_for_the_rivals_parses(command, monkeypatch):
    """Run the script up to the point where its own parser has accepted the words."""
    parse, subcommands = common.parse_args, tyro.extras.subcommand_cli_from_dict

    def stopped(function):
        @functools.wraps(function)
        def parsed(*args, **kwargs):
            raise Parsed
        return parsed

    def parse_and_stop(*args, **kwargs):
        parse(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(common, "parse_args", parse_and_stop)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", lambda table, **kwargs: subcommands(
        {name: stopped(function) for name, function in table.items()}, **kwargs))
    script, *words = shlex.split(command)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_there_are_commands():
    assert len(COMMANDS) >= 8 and len(RIVALS) >= 8 and "make demo" in README and "make test" in README


def test_the_readmes_tree_is_the_repositorys():
    listed = set(re.findall(r"^([\w/.-]+\.py)\s{2,}\S", README, re.M))
    assert listed == {path.relative_to(ROOT).as_posix() for path in SOURCES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_opens_with_what_it_is_for_and_has_no_globals(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "open with what the file teaches"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: globals hide what a function reads"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: a bare except"
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 90, f"{node.name} is too long to be taken in"


@pytest.mark.parametrize("script, config", [
    ("train", "Train"), ("finetune_qa", "FinetuneQA"), ("finetune_answers", "FinetuneAnswers"),
    ("answers.extraction", "FinetuneSpan"), ("sample", "Sample")])
def test_every_setting_is_read_somewhere(script, config):
    # Whom a script hands its settings to.
    shared = ["sample", "training.finetuning", "training.trainable", "questions.heads"]
    rooms = [] if script in ("train", "sample") else shared
    source = "".join((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8") for name in [script, *rooms])
    unread = [f.name for f in fields(getattr(importlib.import_module(script), config))
              if not re.search(rf"(cfg|sampling)\.{f.name}\b|\"{f.name}\"", source)]
    assert not unread


DEFINITIONS = ast.FunctionDef, ast.ClassDef
EXERCISES = (ROOT / "EXERCISES.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file, name", re.findall(r"^### \d+\. ([\w/]+\.py): (?:.*`)([\w.]+)`", EXERCISES, re.M))
def test_every_exercise_names_what_there_is(file, name):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name.split(".")[-1] in {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}


@pytest.mark.parametrize("file, words", re.findall(r"^    pytest (\S+) -k (.+)$", EXERCISES, re.M))
def test_every_exercise_is_checked_by_tests(file, words):
    names = re.findall(r"^def (test\w+)", (ROOT / file).read_text(encoding="utf-8"), re.M)
    assert all(any(word in name for name in names) for word in words.strip('"').split(" or "))
