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


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def next_commands():
    """The commands that scripts name at their end. What is only known then is X, or else a task."""
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "say_next":
                words = " ".join(arg.value if isinstance(arg, ast.Constant) else "X" for arg in node.args
                                 if not isinstance(arg, ast.Starred))
                yield words.replace("qa.py X", "qa.py medqa").replace("answers.py X", "answers.py medquad")


class Parsed(Exception):
    pass


@pytest.mark.parametrize("command", COMMANDS + RIVALS + sorted(set(next_commands())))
def test_every_command_that_is_recommended_parses(command, monkeypatch):
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


# From the ground up: a room imports from lower floors only, and two rooms of one floor do not import each other.
FLOORS = [
    {"plumbing"},
    {"kernels", "data", "tokenizer"},
    {"model"},
    {"training", "sampling"},
    {"baselines"},
    {"questions"},
    {"sample"},
    {"answers"},
    {"launch"},
    {"train", "finetune_qa", "finetune_answers"},
    {"prepare"},
    {"bench"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SIGNED = ["training", "questions", "answers", "sampling", "plumbing", "kernels", "baselines", "prepare"]


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    """The rooms whose modules a file imports, anywhere in it."""
    for node in ast.walk(tree_of(path)):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else \
            [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (module.split(".")[0] for module in modules)


def test_seven_files_stand_at_the_top():
    assert {path.name for path in SOURCES if path.parent == ROOT} == {
        f"{name}.py" for name in ("tokenizer", "model", "data", "train", "finetune_qa", "finetune_answers", "sample")}


def test_imports_point_down():
    wrong = [f"{path.relative_to(ROOT)} imports {room}" for path in SOURCES for room in imported_rooms(path)
             if room in FLOOR and room != room_of(path) and FLOOR[room] >= FLOOR[room_of(path)]]
    assert not wrong


def test_no_files_import_each_other_in_a_circle():
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES}
    modules = {name.removesuffix(".__init__"): path for path, name in names.items()}

    def neighbours(path):
        for node in ast.walk(tree_of(path)):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            yield from (name for name in names if name in modules and "." in name or name in modules
                        and modules[name].parent == ROOT)

    graph = {name: set(neighbours(path)) - {name} for name, path in modules.items()}
    while leaves := [name for name, needs in graph.items() if not needs]:
        for name in leaves:
            del graph[name]
        for needs in graph.values():
            needs.difference_update(leaves)
    assert not graph, "these files need each other"


@pytest.mark.parametrize("room", SIGNED)
def test_a_rooms_door_sign_lists_its_files(room):
    sign = ast.get_docstring(tree_of(ROOT / room / "__init__.py"))
    listed = set(re.findall(r"^(\w+\.py)\s{2,}\S", sign, re.M))
    assert listed == {path.name for path in SOURCES if path.parent == ROOT / room} - {"__init__.py"}


def test_the_readme_names_the_seven_files_and_every_room():
    listed = set(re.findall(r"^([\w-]+(?:\.py|/))\s{2,}\S", README, re.M))
    rooms = {f"{path.relative_to(ROOT).parts[0]}/" for path in FILES if path.parent != ROOT}
    assert listed == rooms | {path.name for path in SOURCES if path.parent == ROOT} | {"results/"}


def test_the_readme_fits_160_lines():
    assert len(README.splitlines()) <= 160


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_opens_with_what_it_is_for_and_has_no_globals(path):
    tree = tree_of(path)
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
    shared = ["sample", "training.finetuning", "training.trainable", "training.monitor", "questions.heads"]
    rooms = {"train": ["training.monitor"], "sample": []}.get(script, shared)
    source = "".join((ROOT / f"{name.replace('.', '/')}.py").read_text(encoding="utf-8") for name in [script, *rooms])
    unread = [f.name for f in fields(getattr(importlib.import_module(script), config))
              if not re.search(rf"(cfg|sampling)\.{f.name}\b|\"{f.name}\"", source)]
    assert not unread


DEFINITIONS = ast.FunctionDef, ast.ClassDef
EXERCISES = (ROOT / "EXERCISES.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("file, name", re.findall(r"^### \d+\. ([\w/]+\.py): (?:.*`)([\w.]+)`", EXERCISES, re.M))
def test_every_exercise_names_what_there_is(file, name):
    tree = tree_of(ROOT / file)
    assert name.split(".")[-1] in {node.name for node in ast.walk(tree) if isinstance(node, DEFINITIONS)}


@pytest.mark.parametrize("file, words", re.findall(r"^    pytest (\S+) -k (.+)$", EXERCISES, re.M))
def test_every_exercise_is_checked_by_tests(file, words):
    names = re.findall(r"^def (test\w+)", (ROOT / file).read_text(encoding="utf-8"), re.M)
    assert all(any(word in name for name in names) for word in words.strip('"').split(" or "))
