"""The README's code runs, and its commands and links point at things that exist."""

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines_train_a_model():
    (code,) = re.findall(r"```python\n(import jax\n.*?)```", README, re.DOTALL)
    maps = jnp.array([0.0, 0.0, 0.0, -1.0, -1.0, -1.0])
    model = SimpleNamespace(
        apply=lambda params, x: jnp.broadcast_to(maps + params, (*x.shape[:-1], 6))
    )
    scope = {"model": model}
    exec(code, scope)
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    loss, slope = jax.value_and_grad(scope["loss_fn"])(0.0, pixels)
    assert loss.shape == ()
    assert np.isfinite(loss)
    assert float(slope) != 0
    assert float(scope["reconstruct"](jnp.zeros(()))) == 0.5


@pytest.mark.parametrize("script", sorted(set(re.findall(r"experiments/\w+\.py", README))))
def test_named_scripts_exist(script):
    assert (ROOT / script).is_file()


def test_the_table_of_likelihoods_is_complete():
    table = README.split("| statistics per channel |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in table.split("\n")[2:]))
    assert sorted(named) == sorted(ll.likelihoods.names())


@pytest.mark.parametrize("room", ["", ".likelihoods", ".models", ".tokens", ".data", ".runs"])
def test_every_public_name_is_in_the_reference(room):
    module = importlib.import_module(f"logit_laplace_jax{room}")
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split()
    for name in set(module.__all__) - {"likelihoods"}:
        assert f"{module.__name__}.{name}" in reference, name


def test_it_is_short_and_its_links_resolve():
    assert len(README.splitlines()) <= 200
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_ci_runs_the_readme_test_line():
    line = re.search(r"<!-- test line -->\n```sh\n(.*)\n```", README)
    assert line is not None
    assert line.group(1).startswith("python3 -m venv .venv && ")
    assert "<!-- test line -->" in (ROOT / ".ci/run").read_text(encoding="utf-8")
