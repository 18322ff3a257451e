"""Files that the scripts read: whatever is in them, one clear line."""
import pytest

from plumbing.common import UserError, read_json, read_json_lines


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, "{", "\"", "nul"])
def test_json_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "values.json"
    path.write_text(text)
    with pytest.raises(UserError, match="values.json: settings was expected, but it is not JSON"):
        read_json(path, "settings")
    with pytest.raises(UserError, match="values.json, line 1: no question"):
        read_json_lines(path, "question", "prepare/qa.py writes it", lambda value: value["id"])
