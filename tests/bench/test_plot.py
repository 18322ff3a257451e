"""The picture of a run's log."""
import json

import pytest
from conftest import ROOT

from bench.plot import Plot, main
from plumbing.common import UserError

LINES = [{"step": i, "loss": 5 - i / 10, "grad_norm": 1.0, "lr": 1e-3} for i in range(20)]
LINES[9] |= {"val_loss": 4.2}
LINES[12] |= {"loss": float("nan"), "skipped": 1}


def written(folder, name, lines):
    path = folder / name / "log.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_two_runs_with_a_skipped_step_become_a_picture(tmp_path, capsys):
    logs = written(tmp_path, "a", LINES), written(tmp_path, "b", LINES[:5])
    main(Plot(logs, tmp_path / "loss.png"))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "b: 5 steps, last 4 with loss 4.6" in capsys.readouterr().out


def test_what_is_no_log_is_named(tmp_path):
    with pytest.raises(UserError, match="README.md"):
        main(Plot((ROOT / "README.md",), tmp_path / "loss.png"))
    with pytest.raises(UserError, match="end in .png"):
        main(Plot((written(tmp_path, "a", LINES),), tmp_path / "loss.txt"))
    assert not list(tmp_path.glob("loss*"))
