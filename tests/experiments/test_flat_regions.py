"""flat_regions.py: what it trains on, and what it refuses (tests/slow runs it)."""

from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_the_frame_covers_as_much_as_the_photograph(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import flat_regions

    photo = np.random.default_rng(0).integers(0, 255, (60, 40, 3)).astype(np.uint8)
    white = (flat_regions.framed(photo) == 255).all(-1)
    assert white.mean() == pytest.approx(0.5, abs=0.02)  # whole pixels on each side
    assert (~white).sum() == 60 * 40


def test_no_steps_is_refused(run_script):
    status, _, err, changed = run_script("flat_regions.py", "--steps=0")
    assert (status, changed) == (2, set())
    assert "steps must be 1 or more" in err
