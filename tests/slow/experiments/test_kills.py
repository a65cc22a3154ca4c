"""train.py killed at any moment, and started again: the same run to the bit."""

import json
import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from logit_laplace_jax.runs import directory

TRAIN = Path(__file__).parents[3] / "experiments" / "train.py"
STEPS = 200
TIMING = {"images_per_second", "data_wait_share"}


def options(folder, photographs):
    return [
        *(TRAIN, "smoke", f"--run-dir={folder}", f"--data=folder:{photographs}"),
        *(f"--steps={STEPS}", "--batch-size=4", "--image-size=8", "--parallel=single"),
        *("--eval-every=50", "--checkpoint-every=7", "--evaluation.images=2"),
        *("--model.n-hid=4", "--model.n-init=4", "--model.vocab-size=8"),
    ]


def rows_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


@pytest.fixture
def unbroken(start, photographs, tmp_path):
    process = start(*options(tmp_path / "unbroken", photographs))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return tmp_path / "unbroken"


def assert_same_run(folder, other):
    assert rows_of(folder) == rows_of(other)
    states = [directory.load(path) for path in (folder, other)]
    for name in ("params", "ema_params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, *(getattr(state, name) for state in states))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_again_and_again_it_is_the_unbroken_run(
    start, photographs, unbroken, tmp_path, number
):
    chance, folder = random.Random(int(number)), tmp_path / "broken"
    stopped = 0
    for _ in range(4):
        process = start(*options(folder, photographs))
        target = chance.randrange(10, STEPS - 20)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            rows = folder / "metrics.jsonl"
            if rows.exists() and rows.read_text().count("\n") > target:
                process.send_signal(number)
                break
            time.sleep(0.01)
        _, err = process.communicate(timeout=120)
        # Before its handlers stand, a signal ends the process at once; later it saves first.
        assert process.returncode in {0, -number, 128 + number}, err
        stopped += process.returncode != 0
        assert not [path for path in folder.rglob("*.png") if not path.stat().st_size]
    process = start(*options(folder, photographs))
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert stopped > 0
    assert_same_run(folder, unbroken)


def test_a_second_process_is_refused(start, photographs, tmp_path):
    folder = tmp_path / "run"
    first = start(*options(folder, photographs), "--steps=100000", "--checkpoint-every=5")
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    second = start(*options(folder, photographs), "--steps=100000", "--checkpoint-every=5")
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "another process is training" in err
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM
