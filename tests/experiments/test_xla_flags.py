"""The flag for convolutions on CPUs: only where XLA knows it and nobody else decided."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def flags(monkeypatch):
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    import _xla_flags

    monkeypatch.setattr(_xla_flags, "_plugins", lambda: False)
    monkeypatch.setattr(_xla_flags, "version", lambda name: "0.12.3")
    return _xla_flags


def chosen(flags, **environ):
    flags.choose(environ)
    return environ.get("XLA_FLAGS", "")


def test_it_is_added_to_the_users_flags(flags):
    assert chosen(flags) == flags.EIGEN_CONVOLUTIONS
    assert chosen(flags, XLA_FLAGS="--other=1") == f"--other=1 {flags.EIGEN_CONVOLUTIONS}"


def test_it_is_added_once(flags):
    environ = {}
    flags.choose(environ)
    once = dict(environ)
    flags.choose(environ)
    assert environ == once


@pytest.mark.parametrize("found", ["0.9.2", "0.13.0", "1.0"])
def test_other_compilers_do_not_meet_it(flags, monkeypatch, found):
    monkeypatch.setattr(flags, "version", lambda name: found)
    assert chosen(flags) == ""


def test_accelerators_do_not_meet_it(flags, monkeypatch):
    monkeypatch.setattr(flags, "_plugins", lambda: True)
    assert chosen(flags) == ""
    assert chosen(flags, JAX_PLATFORMS="cpu") == flags.EIGEN_CONVOLUTIONS


def test_this_jaxlib_knows_the_flag_and_convolves_without_ynnpack():
    code = (
        "import os, sys, _xla_flags; os.environ['XLA_FLAGS'] = ''; _xla_flags.choose(os.environ)\n"
        "assert os.environ['XLA_FLAGS'] == _xla_flags.EIGEN_CONVOLUTIONS\n"
        "import jax, jax.numpy as jnp\n"
        "x, w = jnp.ones((32, 32, 32, 64)), jnp.ones((3, 3, 64, 16))\n"
        "dims = ('NHWC', 'HWIO', 'NHWC')\n"
        "f = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), 'SAME', "
        "dimension_numbers=dims)\n"
        "print(jax.jit(f).lower(x, w).compile().as_text())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(EXPERIMENTS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "convolution(" in done.stdout
    assert "ynn_fusion" not in done.stdout
