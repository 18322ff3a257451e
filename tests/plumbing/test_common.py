"""Files that the scripts read and write: whatever is there, one clear line."""
import pytest

from plumbing.common import UserError, read_json, read_json_lines, speaking_to_the_user, written_whole


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "{", "\"", "nul"])
def test_json_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "values.json"
    path.write_text(text)
    with pytest.raises(UserError, match="values.json: settings was expected, but it is not JSON"):
        read_json(path, "settings")
    with pytest.raises(UserError, match="values.json, line 1: no question"):
        read_json_lines(path, "question", "prepare/qa.py writes it", lambda value: value["id"])


@pytest.mark.parametrize("taken_by", ["a folder", "a file"])
def test_a_path_that_is_taken_is_named_in_one_line_and_left_alone(tmp_path, capsys, taken_by):
    """A folder where a file should go, and a file where a folder should go: exit code 2, nothing left behind."""
    taken = tmp_path / "taken"
    path = taken if taken_by == "a folder" else taken / "out.jsonl"
    taken.mkdir() if taken_by == "a folder" else taken.write_text("kept")

    with pytest.raises(SystemExit) as stopped, speaking_to_the_user(), written_whole(path) as temporary:
        temporary.write_text("new")

    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {taken}: ")
    assert list(tmp_path.iterdir()) == [taken]
