"""What importing the library costs and touches, seen from a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import logit_laplace_jax as ll

ROOT = Path(ll.__file__).parents[1]
HEAVY = {"flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "tensorboardX"}
HEAVY |= {"PIL", "tyro", "distrax", "numpyro", "tensorflow_probability"}


def fresh(code):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_loads_nothing_heavy():
    loaded = fresh("import sys, logit_laplace_jax; print(*{m.split('.')[0] for m in sys.modules})")
    assert {"jax", "numpy", "logit_laplace_jax"} <= set(loaded)
    assert not HEAVY & set(loaded)


def test_import_starts_no_backend_and_changes_no_setting():
    """The number of devices can be set only before the first computation."""
    code = """
import jax
before = dict(jax.config.values)
import logit_laplace_jax
assert dict(jax.config.values) == before
jax.config.update("jax_num_cpu_devices", 3)
print(jax.device_count())
"""
    assert fresh(code) == ["3"]


@pytest.mark.parametrize("name", ll.__all__)
def test_public_names_are_documented(name):
    assert getattr(ll, name).__doc__.strip()


def test_the_tests_see_four_simulated_devices():
    assert jax.device_count() == 4
