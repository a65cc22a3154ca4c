"""evaluate.py --checkpoint: the latest, the best or a numbered one, and clear words otherwise."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import tiny

from logit_laplace_jax.runs import loop, metrics
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.training.config import OptimizerConfig
from logit_laplace_jax.training.schedules import Schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def here(run_script):
    """Run evaluate.py: exit status, stdout, stderr and the files that changed."""
    return functools.partial(run_script, "evaluate.py")


def snapshot(folder):
    return {
        p.relative_to(folder): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")
    }


def config_of(run_dir, folder):
    return tiny.run_config(
        folder,
        run_dir=str(run_dir),
        steps=8,
        evaluation__every=2,
        evaluation__images=2,
        evaluation__resize=None,
        data__min_crop=1.0,
        checkpoint_every=1,
        # Small steps first, then ruinous ones: the best is not the latest.
        learning_rate=Schedule(1e-3, 0.5, 6),
        beta=Schedule(0.1, 0.1, 1),
        temperature=Schedule(1.0, 1.0, 1),
        optimizer=OptimizerConfig(ema_decay=0.0),
    )


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """A run whose best checkpoint is not its latest; its folder, and its best step."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    loop.train(config_of(folder, photographs), say=lambda line: None)
    rows = metrics.read(folder / "metrics.jsonl")
    measured = {r["step"]: r["bpd_hard"] for r in rows if r["split"] == "validation"}
    best = min(measured, key=lambda step: (measured[step], step))
    assert best < 7  # or the cases below would be the same
    return folder, best, measured


def test_each_checkpoint_gives_its_own_numbers(here, trained, tmp_path):
    source, best, measured = trained
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    steps = {p.name for p in (folder / "checkpoints").iterdir()}
    assert steps == {str(best), "7", "8"}
    for name, step in ((None, 8), ("best", best), ("7", 7)):
        option = [] if name is None else [f"--checkpoint={name}"]
        status, out, err, changed = here("run", *option)
        assert (status, err) == (0, "")
        assert changed <= {"run/evaluation.json", "run/evaluation.png"}
        assert f"run: step {step}, evaluated" in out
        values = json.loads((folder / "evaluation.json").read_text())
        assert values["step"] == step
        if step in measured:
            # The same sums in another compilation: some 1e-6 of values below 20.
            assert values["bpd_hard"] == pytest.approx(measured[step], rel=1e-5)
    assert abs(measured[best] - measured[8]) > 1e-3  # so that one is not taken for the other


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("newest", ["checkpoint must be latest, best or a number, got 'newest'"]),
        ("", ["checkpoint must be latest, best or a number, got ''"]),
        ("-1", ["-1"]),
        ("7.0", ["got '7.0'"]),
        ("²", ["got '²'"]),
        ("5000", ["no checkpoint of step 5000 in ", "(there: "]),
        ("1", ["no checkpoint of step 1 in "]),  # there once, and removed since
    ],
)
def test_what_is_no_checkpoint_is_refused(here, trained, tmp_path, name, words):
    shutil.copytree(trained[0], tmp_path / "run")
    status, _, err, changed = here("run", f"--checkpoint={name}")
    assert status == 2
    assert len(err.splitlines()) == 1, err
    assert err.startswith("evaluate.py: error: ")
    assert all(word in err for word in words), err
    assert changed == set()


def test_a_damaged_one_is_refused_and_others_are_not(here, trained, tmp_path):
    source, best, _ = trained
    folder = tmp_path / "run"
    shutil.copytree(source, folder)
    for path in (folder / "checkpoints" / "8" / "state" / "d").iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    status, _, err, changed = here("run")
    assert status == 2
    assert len(err.splitlines()) == 1, err
    assert "checkpoint 8 in" in err
    assert "cannot be read" in err
    assert changed == set()
    status, out, err, _ = here("run", "--checkpoint=best")
    assert (status, err) == (0, "")
    assert f"step {best}, evaluated" in out


def test_a_run_without_an_evaluated_checkpoint(here, trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    for path in (folder / "checkpoints").iterdir():
        if path.name != "7":  # odd steps were not evaluated
            shutil.rmtree(path)
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        assert (checkpoints.steps, checkpoints.best) == ([7], None)
    status, _, err, changed = here("run", "--checkpoint=best")
    assert (status, changed) == (2, set())
    assert len(err.splitlines()) == 1
    assert "no checkpoint of run was evaluated: give --checkpoint latest" in err


def test_a_run_that_saved_nothing_yet(here, trained, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(trained[0] / "config.json", folder)
    for name in ("latest", "best", "3"):
        status, _, err, changed = here("run", f"--checkpoint={name}")
        assert (status, changed) == (2, set())
        assert len(err.splitlines()) == 1
        assert "no complete checkpoint" in err
