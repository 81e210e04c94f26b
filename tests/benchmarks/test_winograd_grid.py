"""The grid of shapes on which the choice of a convolution is held against the clock."""

import json
from pathlib import Path

import pytest

from benchmarks import winograd_grid


def test_command_writes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert len(set(winograd_grid.SHAPES)) == 60
    monkeypatch.setattr(winograd_grid, "SHAPES", [(1, 64, 32, 16, 1), (2, 8, 16, 9, 2)])
    output = tmp_path / "grid.json"
    winograd_grid.main(["--rounds", "1", "--output", str(output)])
    first, second = json.loads(output.read_text())["rows"]
    assert first["shape"] == [1, 64, 32, 16, 1]
    for row in (first, second):
        for kind in winograd_grid.KINDS:
            assert row[kind]["measured"] > 0
            assert row[kind]["chosen"] == (row[kind]["slower"] != 1.0)
    assert first["kept"]["chosen"]
    assert not second["kept"]["chosen"]
    assert "1 64->32 16 1" in capsys.readouterr().out
