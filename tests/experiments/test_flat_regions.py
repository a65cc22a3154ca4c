"""flat_regions.py at toy size."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for name in ("_cli", "configs", "flat_regions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import configs
    import flat_regions

    smoke = configs.load("smoke")
    monkeypatch.setattr(configs, "load", lambda name: smoke)
    return flat_regions


def test_the_frame_covers_as_much_as_the_photograph(script):
    photo = np.random.default_rng(0).integers(0, 255, (60, 40, 3)).astype(np.uint8)
    framed = script.framed(photo)
    white = (framed == 255).all(-1)
    assert white.mean() == pytest.approx(0.5, abs=0.02)
    assert (~white).sum() == 60 * 40


def test_both_runs_are_made_and_shown(script, tmp_path, monkeypatch, capsys):
    script.main(["--out", str(tmp_path / "out"), "--steps", "2"])
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith(("with floor ", "without "))]
    course, ends = rows[:4], rows[4:]
    assert [row.split()[-6] for row in course] == ["1", "2", "1", "2"]  # steps
    assert [row.split()[-5] for row in ends] == ["white", "others"] * 2
    assert all(np.isfinite(float(word)) for row in course for word in row.split()[-5:])
    assert all(np.isfinite(float(word)) for row in ends for word in row.split()[-4:])
    shares = [float(row.split()[-4]) for row in ends]
    assert shares[0] + shares[1] == pytest.approx(100, abs=0.11)  # one printed decimal each
    # Again: the pictures and the runs are there, and nothing is trained.
    script.main(["--out", str(tmp_path / "out"), "--steps", "2"])
    again = capsys.readouterr().out
    assert again.count("complete") == 2
    assert [line for line in again.splitlines() if line in rows] == rows


def test_no_steps_is_refused(script, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(["--steps", "0"])
    assert stop.value.code == 2
    assert "--steps must be 1 or more" in capsys.readouterr().err
