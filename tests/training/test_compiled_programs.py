"""The folder of compiled programs: switched on by the scripts, and out of the user's way."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from logit_laplace_jax.training import compiled_programs

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
OPTIONS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def _as_before():
    before = {name: jax.config.values[name] for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def chosen():
    return jax.config.values["jax_compilation_cache_dir"]


def test_every_kind_of_processor_has_its_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(tmp_path))
    compiled_programs.keep()
    first = chosen()
    assert first.startswith(str(tmp_path / "programs"))
    monkeypatch.setattr(compiled_programs.platform, "machine", lambda: "another")
    jax.config.update("jax_compilation_cache_dir", None)
    compiled_programs.keep()
    assert chosen().startswith(str(tmp_path / "programs" / "another_"))
    assert chosen() != first


def test_a_processor_that_tells_nothing_has_one_too(monkeypatch, tmp_path):
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(tmp_path))

    def absent(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(compiled_programs.Path, "read_text", absent)
    compiled_programs.keep()
    assert chosen().startswith(str(tmp_path / "programs"))


def test_the_users_own_choice_stands(monkeypatch, tmp_path):
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", "")  # nowhere
    compiled_programs.keep()
    assert chosen() is None
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    compiled_programs.keep()
    assert chosen() == "elsewhere"


def test_a_script_keeps_its_programs_and_finds_them_again(tmp_path):
    changed = {"LOGIT_LAPLACE_JAX_CACHE": str(tmp_path / "cache")}
    listings, metrics = [], []
    for name, threads in (("a", "1"), ("b", "2")):  # an option without a part in the arithmetic
        run = tmp_path / name
        command = ["smoke", "--run-dir", run, "--steps", "1", "--data-threads", threads]
        subprocess.run(
            [sys.executable, TRAIN, *command],
            env=os.environ | changed,
            check=True,
            capture_output=True,
        )
        listings.append(sorted(p.name for p in (tmp_path / "cache").rglob("*-cache")))
        lines = (run / "metrics.jsonl").read_text().splitlines()
        metrics.append([line.partition("images_per_second")[0] for line in lines])
    assert listings[0]
    assert listings[0] == listings[1]
    assert metrics[0] == metrics[1]
