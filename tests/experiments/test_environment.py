"""Every script under a hostile environment: what the caller exports, and who reads the output."""

import contextlib
import os
import sys
from pathlib import Path

import pytest
import tiny

from logit_laplace_jax.runs import loop

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(path.name for path in EXPERIMENTS.glob("*.py") if path.name[0] != "_")
NOTEBOOK = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "FORCE_COLOR": "1",
    "CLICOLOR_FORCE": "1",
}
"""What Jupyter exports."""
JOBS = {
    "benchmark.py": (
        ["loss", "--quick", "--batch=1", "--side=8", "--rounds=1", "--out=out"],
        ["out/loss.json", "out/loss.md", "out/loss.png"],
    ),
    "codec.py": (["compress", "RUN", "IMAGE", "--output=file"], ["file"]),
    "compare.py": (["smoke", "--report-only", "--results=out"], ["out/results.json"]),
    "density.py": (["--figures", "scale", "--points=20"], ["runs/density/scale.json"]),
    "evaluate.py": (["RUN", "--json=all.json"], ["all.json", "run/evaluation.json"]),
    "export.py": (["RUN", "model.safetensors"], ["model.safetensors"]),
    "reconstruct.py": (["RUN", "IMAGE", "--output=out"], ["out/0_step1.png"]),
    "tokens.py": (["encode", "RUN", "IMAGE", "--output=t.npz"], ["t.npz"]),
    "train.py": (
        [
            *("smoke", "--run-dir=new", "--data=FOLDER", "--steps=2", "--batch-size=4"),
            *("--image-size=8", "--eval-every=2", "--evaluation.images=2", "--model.n-hid=4"),
            *("--model.n-init=4", "--model.vocab-size=8", "--parallel=single"),
        ],
        ["new/checkpoints/2", "new/metrics.jsonl"],
    ),
    "train_prior.py": (
        [
            *("RUN", "--prior-dir=prior", "--steps=2", "--batch-size=4", "--eval-every=0"),
            *("--prior.features=8", "--prior.layers=1", "--prior.heads=2", "--parallel=single"),
        ],
        ["prior/checkpoints/2", "prior/metrics.jsonl"],
    ),
}
"""A short job of each script, and what it has to leave."""

LONGER = ("flat_regions.py", "sample.py", "realism.py")
"""These have none that is short: the first trains, the others need a prior (test_generating)."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_from_a_notebook_to_an_ascii_terminal_on_a_safe_path(start, script):
    variables = {"PYTHONIOENCODING": "ascii", "PYTHONSAFEPATH": "1", "COLUMNS": "40", **NOTEBOOK}
    process = start(EXPERIMENTS / script, "--help", env=os.environ | variables)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.isascii()
    assert "\x1b" not in out  # no colors
    assert "--" in out


@pytest.fixture(scope="module")
def trained(photographs, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = tiny.run_config(photographs, run_dir=str(folder), steps=1, evaluation__images=2)
    loop.train(config, say=lambda line: None)
    return folder


@contextlib.contextmanager
def nobody_reads():
    """Standard output as an ASCII pipe whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="ascii") as stream, contextlib.redirect_stdout(stream):
        yield


def test_every_script_has_a_job():
    assert sorted([*JOBS, *LONGER]) == SCRIPTS


@pytest.mark.parametrize("script", JOBS)
def test_a_reader_that_is_gone_loses_nothing(
    script, trained, photographs, run_script, monkeypatch, tmp_path
):
    for name, value in NOTEBOOK.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run").symlink_to(trained)
    words = {
        "RUN": "run",
        "IMAGE": photographs / "val" / "0.png",
        "--data=FOLDER": f"--data=folder:{photographs}",
    }
    args, files = JOBS[script]
    with nobody_reads():
        status, out, err, _ = run_script(script, *(words.get(arg, arg) for arg in args))
    assert (status, out, err) == (0, "", "")
    for name in files:
        assert (tmp_path / name).exists(), name


@pytest.mark.parametrize("script", ["export.py", "density.py"])
def test_a_closed_output_is_no_error(script, trained, run_script, monkeypatch, tmp_path):
    (tmp_path / "run").symlink_to(trained)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    args, files = JOBS[script]
    assert run_script(script, *("run" if arg == "RUN" else arg for arg in args))[0] == 0
    assert (tmp_path / files[0]).exists()


def test_mistakes_are_still_said_when_nobody_reads(run_script):
    with nobody_reads():
        status, out, err, _ = run_script("export.py", "nowhere", "a.safetensors")
    assert (status, out) == (2, "")
    assert "nowhere is not a run directory" in err
