"""The tokenizer's contract: shapes, dtypes, values, one compilation a shape, clear refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logit_laplace_jax.models import DVAE, DVAEConfig, Tokenizer, init_params
from logit_laplace_jax.models.bottleneck import one_hot

CONFIG = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def tokenizer(params):
    return Tokenizer(CONFIG, params)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (2, 8, 4, 3), np.uint8)


def test_encode_is_the_argmax_of_the_logits(tokenizer, params, pixels):
    tokens = tokenizer.encode(pixels)
    assert tokens.shape == (2, 4, 2)
    assert tokens.dtype == jnp.int32
    mapped = jnp.asarray(0.8 * (pixels / 255.0) + 0.1, jnp.float32)
    logits = DVAE(CONFIG).apply({"params": params}, mapped, method="encode")
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    np.testing.assert_array_equal(tokenizer.encode(jnp.asarray(pixels)), tokens)


@pytest.mark.parametrize("eps", [0.1, 0.05])
def test_decode_is_the_median(params, eps):
    tokens = np.arange(8).reshape(1, 4, 2)
    image = Tokenizer(CONFIG, params, eps=eps).decode(tokens)
    assert image.shape == (1, 8, 4, 3)
    assert image.dtype == jnp.float32
    model = DVAE(CONFIG)
    stats = model.apply({"params": params}, one_hot(jnp.asarray(tokens), 16), method="decode")
    mu = np.asarray(stats, np.float64)[..., :3]
    expected = np.clip((1 / (1 + np.exp(-mu)) - eps) / (1 - 2 * eps), 0, 1)
    # float32 rounding of mu and of the affine map.
    np.testing.assert_allclose(image, expected, atol=1e-5)


def test_images_stay_in_range(params):
    loud = jax.tree.map(lambda leaf: 50 * leaf, params)
    image = Tokenizer(CONFIG, loud).decode(np.arange(16).reshape(1, 4, 4))
    assert float(image.min()) == 0.0
    assert float(image.max()) == 1.0


def test_one_compilation_a_shape(params, pixels):
    tokenizer = Tokenizer(CONFIG, params)
    for _ in range(3):
        tokens = tokenizer.encode(pixels)
        tokenizer.decode(tokens)
        tokenizer.decode(np.asarray(tokens, np.int64))
    assert tokenizer._encode._cache_size() == 1
    assert tokenizer._decode._cache_size() == 1
    tokenizer.encode(pixels[:1])
    assert tokenizer._encode._cache_size() == 2


def test_works_inside_jit(tokenizer, pixels):
    image = jax.jit(lambda p: tokenizer.decode(tokenizer.encode(p)))(pixels)
    np.testing.assert_allclose(image, tokenizer.decode(tokenizer.encode(pixels)), atol=1e-6)


def test_grey_and_other_likelihoods(pixels):
    config = DVAEConfig(
        group_count=1, n_hid=4, n_blk_per_group=1, vocab_size=4, n_init=4, channels=1,
        stats_per_channel=3,
    )  # fmt: skip
    params = init_params(config, jax.random.key(0))
    with pytest.raises(ValueError, match="reconstruct"):
        Tokenizer(config, params)
    tokenizer = Tokenizer(config, params, reconstruct=lambda stats: stats[..., 2:] * 0)
    tokens = tokenizer.encode(pixels[..., :1])
    assert tokens.shape == (2, 8, 4)
    assert tokenizer.decode(tokens).shape == (2, 8, 4, 1)


@pytest.mark.parametrize(
    ("pixels", "error", "words"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), TypeError, "uint8"),
        ([[0]], TypeError, "uint8"),
        (np.zeros((8, 8, 3), np.uint8), ValueError, "shape"),
        (np.zeros((1, 8, 8, 1), np.uint8), ValueError, "shape"),
        (np.zeros((1, 8, 7, 3), np.uint8), ValueError, "multiples of 2"),
    ],
)
def test_encode_refuses_in_one_line(tokenizer, pixels, error, words):
    with pytest.raises(error, match=words) as info:
        tokenizer.encode(pixels)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        (np.zeros((1, 4, 4), np.float32), TypeError, "integers"),
        (np.zeros((1, 4, 4), bool), TypeError, "integers"),
        (np.zeros((4, 4), np.int32), ValueError, "shape"),
        (np.full((1, 4, 4), 16), ValueError, r"\[0, 16\)"),
        (np.full((1, 4, 4), -1), ValueError, r"\[0, 16\)"),
        (np.full((1, 4, 4), 2**32), ValueError, r"\[0, 16\)"),
    ],
)
def test_decode_refuses_in_one_line(tokenizer, tokens, error, words):
    with pytest.raises(error, match=words) as info:
        tokenizer.decode(tokens)
    assert "\n" not in str(info.value)


def test_params_of_another_config_are_refused(params):
    for wrong in ({"params": params}, {"encoder": params["encoder"]}):
        with pytest.raises(ValueError, match="params are not those") as info:
            Tokenizer(CONFIG, wrong)
        assert "\n" not in str(info.value)
    wider = DVAEConfig(group_count=2, n_hid=16, n_blk_per_group=1, vocab_size=16, n_init=8)
    with pytest.raises(ValueError, match="n_hid=16"):
        Tokenizer(wider, params)
