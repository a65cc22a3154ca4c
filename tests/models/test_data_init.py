"""The data-dependent initialisation: every encoder convolution normalised, nothing else touched."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.data_init import initial_codebook, normalise_encoder
from logit_laplace_jax.models.dvae import DVAE, init_params
from logit_laplace_jax.models.layers import Conv

CONFIG = DVAEConfig(group_count=3, n_hid=8, n_blk_per_group=1, vocab_size=64, n_init=8)


@pytest.fixture(scope="module")
def images():
    # Smooth, brightness-dominated crops, as photographs are: the case that collapses without it.
    level = jax.random.uniform(jax.random.key(0), (64, 1, 1, 3), minval=0.2, maxval=0.8)
    return level + 0.1 * jax.random.uniform(jax.random.key(1), (64, 16, 16, 3))


@pytest.fixture(scope="module")
def params(images):
    return init_params(CONFIG, jax.random.key(2))


def conv_outputs(params, images):
    seen = {}

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            seen["/".join(context.module.path)] = y
        return y

    with nn.intercept_methods(record):
        DVAE(CONFIG).apply({"params": params}, images, method="encode")
    return seen


def test_outputs_have_mean_zero_and_the_asked_deviation(params, images):
    outputs = conv_outputs(normalise_encoder(CONFIG, params, images, logit_std=3.0), images)
    assert len(outputs) == 1 + 3 * 4 + 2 + 1  # input, blocks, two changes of width, output
    for path, y in outputs.items():
        target = 3.0 if path.endswith("output") else 1.0
        # float32 sums over 64·16·16 values, through up to 15 layers that multiply the rounding.
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0.0, atol=1e-3 * target, err_msg=path)
        np.testing.assert_allclose(y.std((0, 1, 2)), target, rtol=1e-3, err_msg=path)


def test_more_codes_win_than_before(params, images):
    def used(p):
        logits = DVAE(CONFIG).apply({"params": p}, images, method="encode")
        return len(np.unique(bottleneck.hard_codes(logits)))

    # Brightness alone decides before; 64 random directions of normalised features after.
    assert used(normalise_encoder(CONFIG, params, images, logit_std=3.0)) > 2 * used(params)


def test_the_decoder_and_the_argument_stay(params, images):
    before = jax.tree.map(np.asarray, params)
    after = normalise_encoder(CONFIG, params, images, logit_std=3.0)
    jax.tree.map(np.testing.assert_array_equal, before, params)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, after["decoder"], params["decoder"])


def test_options_of_the_run_do_not_matter(params, images):
    other = DVAEConfig(**{**vars(CONFIG), "dtype": "bfloat16", "remat": True})
    a = normalise_encoder(CONFIG, params, images, logit_std=3.0)
    b = normalise_encoder(other, params, images, logit_std=3.0)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_constant_image_gives_finite_parameters(params):
    flat = np.full((4, 16, 16, 3), 0.5, np.float32)
    new = normalise_encoder(CONFIG, params, flat, logit_std=3.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))


def test_a_deviation_of_zero_is_refused(params, images):
    with pytest.raises(ValueError, match="logit_std must be positive"):
        normalise_encoder(CONFIG, params, images, logit_std=0.0)


def test_codes_start_as_centres_of_patches(params, images):
    key = jax.random.key(3)
    new = initial_codebook(CONFIG, params, images, 10.0, key)
    assert jax.tree.map(np.shape, new) == jax.tree.map(np.shape, params)
    logits = DVAE(CONFIG).apply({"params": new}, images, method="encode")
    # The average over codes is what is asked for; float32 sums over 64·16 positions.
    assert float(logits.std((0, 1, 2)).mean()) == pytest.approx(10.0, rel=1e-3)

    def spread_inside(p):
        """Variance of the patches' mean colours that their tokens do not tell."""
        tokens = bottleneck.hard_codes(DVAE(CONFIG).apply({"params": p}, images, method="encode"))
        tokens = np.asarray(tokens).ravel()
        colours = np.asarray(images).reshape(64, 4, 4, 4, 4, 3).mean((2, 4)).reshape(-1, 3)
        centres = (
            np.stack([np.bincount(tokens, colours[:, c], 64) for c in range(3)], -1)
            / np.maximum(np.bincount(tokens, minlength=64), 1)[:, None]
        )
        return ((colours - centres[tokens]) ** 2).mean()

    # Measured: a quarter of what a random partition leaves; seeds agree.
    random = spread_inside(normalise_encoder(CONFIG, params, images, logit_std=3.0))
    assert spread_inside(new) < random / 2
    other = initial_codebook(CONFIG, params, images, 10.0, jax.random.key(4))
    assert spread_inside(other) < random / 2


def test_a_codebook_of_constant_images_is_finite(params):
    flat = np.full((4, 16, 16, 3), 0.5, np.float32)
    new = initial_codebook(CONFIG, params, flat, 3.0, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new))
