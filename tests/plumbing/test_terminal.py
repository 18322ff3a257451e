"""What a script says, and its exit code, when the terminal or the pipe behind it fails."""
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from plumbing.common import speaking_to_the_user
with speaking_to_the_user():
    {body}
"""


def run(shell, body, tmp_path, **environment):
    """(exit code, stderr, stdout) of a script whose main is `body`; `shell` has {} for the command."""
    (tmp_path / "script.py").write_text(SCRIPT.format(root=str(ROOT), body=body))
    command = shell.format(f"{sys.executable} {tmp_path}/script.py")
    finished = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, env=environment)
    return finished.returncode, finished.stderr.decode(), finished.stdout.decode(errors="replace")


pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
LINES = "for i in range(20_000): print('a line of text')"


@pytest.mark.parametrize("shell, code, said", [
    ("{} | head -1", 141, ""),
    ("{} > /dev/full", 1, "error: the output: the disk is full\n"),
    ("{} >&-", 1, "error: standard output is closed; redirect it to a file or to /dev/null\n")])
def test_an_output_that_cannot_be_written_is_at_most_one_line(shell, code, said, tmp_path):
    assert run(shell, LINES, tmp_path)[:2] == (code, said)


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path):
    assert run("{}", r"print('\u03b2 \udce9')", tmp_path, PYTHONIOENCODING="ascii") == (
        0, "", "\\u03b2 \\udce9\n")


def test_bytes_on_stdin_that_are_not_utf_8_are_no_traceback(tmp_path):
    assert run("printf 'caf\\xe9' | {}", "print(ascii(sys.stdin.read()))", tmp_path, PYTHONIOENCODING="utf-8") == (
        0, "", "'caf\\udce9'\n")


def test_ctrl_c_during_the_imports_is_one_line():
    finished = subprocess.run([sys.executable, "-c", "import plumbing.interrupt\nraise KeyboardInterrupt"], cwd=ROOT,
                              capture_output=True)
    assert finished.stderr == b"interrupted\n" and finished.returncode in (-2, 130)
