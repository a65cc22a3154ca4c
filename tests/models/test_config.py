"""The configuration: its checks, its arithmetic, and that it needs no Flax."""

import dataclasses
import subprocess
import sys

import pytest

from logit_laplace_jax.models.config import DVAEConfig


def test_defaults_are_openais():
    config = DVAEConfig()
    assert (config.group_count, config.n_hid, config.n_blk_per_group) == (4, 256, 2)
    assert (config.vocab_size, config.n_init, config.channels) == (8192, 128, 3)
    assert config.downsampling == 8
    assert config.blocks == 8
    assert config.post_gain == 1 / 64
    assert config.group_widths == (256, 512, 1024, 2048)
    assert config.token_grid(256, 256) == (32, 32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("group_count", 0),
        ("group_count", 2.0),
        ("n_hid", 30),
        ("n_hid", 0),
        ("n_blk_per_group", -1),
        ("vocab_size", 1),
        ("n_init", 0),
        ("channels", True),
        ("stats_per_channel", 0),
        ("dtype", "float64"),
        ("straight_through", 1),
        ("remat", "yes"),
    ],
)
def test_bad_fields_are_one_line_value_errors(field, value):
    with pytest.raises(ValueError, match=field) as info:
        DVAEConfig(**{field: value})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (0, 8), (-8, 8)])
def test_check_size_names_the_multiple(size):
    with pytest.raises(ValueError, match="positive multiples of 8") as info:
        DVAEConfig().check_size(*size)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("group_count", [1, 2, 5])
def test_check_size_takes_every_multiple(group_count):
    config = DVAEConfig(group_count=group_count)
    side = config.downsampling
    config.check_size(side, 3 * side)
    assert config.token_grid(side, 3 * side) == (1, 3)


def test_is_frozen_and_hashable():
    config = DVAEConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.n_hid = 4
    assert hash(config) == hash(DVAEConfig())


def test_config_needs_no_flax():
    code = (
        "import sys; from logit_laplace_jax.models.config import DVAEConfig; DVAEConfig();"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('flax', 'optax')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_package_exports():
    from logit_laplace_jax import models

    for name in models.__all__:
        assert getattr(models, name).__module__.startswith("logit_laplace_jax.models.")
    assert set(models.__all__) <= set(dir(models))
    with pytest.raises(AttributeError, match="no_such_name"):
        models.no_such_name  # noqa: B018
