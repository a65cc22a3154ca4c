"""The folder of compiled programs: switched on by the scripts, and out of the user's way."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from logit_laplace_jax.runs import compiled_programs

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
    # One device: a program for several simulated ones is not kept.
    changed = {"LOGIT_LAPLACE_JAX_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": ""}
    environment = os.environ | changed
    for name in [name for name in environment if "COMPILATION_CACHE" in name]:
        del environment[name]
    listings = []
    for name, threads in (("a", "1"), ("b", "2")):
        # Two runs that differ in an option without a part in the arithmetic.
        command = ["smoke", "--run-dir", tmp_path / name, "--steps", "1", "--data.threads", threads]
        subprocess.run([sys.executable, TRAIN, *command], env=environment, check=True)
        # Which of the small ones take long enough to be kept changes from run to run.
        steps = (tmp_path / "cache").rglob("jit_train_step-*-cache")
        listings.append(sorted(path.name for path in steps))
    assert len(listings[0]) == 1
    assert listings[0] == listings[1]


def test_a_folder_that_cannot_be_is_no_mistake(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(tmp_path / "file"))
    compiled_programs.keep()
    assert chosen() is None
