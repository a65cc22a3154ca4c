"""flat_regions.py at toy size."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


@pytest.fixture
def smoke(monkeypatch):
    """The tiny preset in place of the default one."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import configs

    preset = configs.load("smoke")
    monkeypatch.setattr(configs, "load", lambda name: preset)


def test_both_runs_are_made_stored_and_shown(run_script, smoke, tmp_path):
    status, out, err, _ = run_script("flat_regions.py", "--out=out", "--steps=2")
    assert status == 0, err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["step"] for row in results["course"]] == [1, 2, 1, 2]
    assert [row["values"] for row in results["ends"]] == ["white", "others"] * 2
    for row in results["ends"]:
        assert all(np.isfinite(row[name]) for name in ("share", "ln b", "nats", "bits"))
        assert f"{row['nats']:.3f}" in out
    assert results["ends"][0]["share"] + results["ends"][1]["share"] == pytest.approx(1)
    # Again: the pictures and the runs are there, and nothing is trained.
    status, again, _, changed = run_script("flat_regions.py", "--out=out", "--steps=2")
    assert status == 0
    assert again.count("complete") == 2
    assert again.split("\n\n")[1:] == out.split("\n\n")[1:]
    assert changed == set()
