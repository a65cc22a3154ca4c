"""The tokenizer's contract: shapes, dtypes, values, one compilation a shape, clear refusals."""

import copy
import dataclasses
import multiprocessing
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import logit_laplace_jax as ll
from logit_laplace_jax.models import DVAE, DVAEConfig
from logit_laplace_jax.models.bottleneck import one_hot
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.tokens import Tokenizer
from logit_laplace_jax.tokens.ranges import RangeWarning
from logit_laplace_jax.weights import exchange

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Every test takes images of this shape and tokens of GRID's, so few programs are compiled.
GRID = np.arange(16).reshape(2, 4, 2)
CONFIG = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)


@pytest.fixture(scope="module")
def params():
    return tiny.params(CONFIG)


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


@pytest.mark.parametrize(("eps", "loudness"), [(0.1, 1), (0.05, 1), (0.1, 50)])
def test_decode_is_the_median(params, eps, loudness):
    loud = jax.tree.map(lambda leaf: loudness * leaf, params)
    image = Tokenizer(CONFIG, loud, eps=eps).decode(GRID)
    assert image.shape == (2, 8, 4, 3)
    assert image.dtype == jnp.float32
    stats = DVAE(CONFIG).apply({"params": loud}, one_hot(jnp.asarray(GRID), 16), method="decode")
    mu = np.asarray(stats, np.float64)[..., :3]
    expected = np.clip((scipy.special.expit(mu) - eps) / (1 - 2 * eps), 0, 1)
    # float32 rounding of mu and of the affine map.
    np.testing.assert_allclose(image, expected, atol=1e-5)
    if loudness > 1:
        assert (float(image.min()), float(image.max())) == (0.0, 1.0)


def test_one_compilation_a_shape_and_one_for_floats(params, pixels):
    tokenizer = Tokenizer(CONFIG, params)
    for _ in range(2):
        tokens = tokenizer.encode(pixels)
        tokenizer.decode(tokens)
        tokenizer.decode(np.asarray(tokens, np.int64), "uint8")
        tokenizer.decode(np.asarray(tokens, np.int8), "symmetric")
    assert tokenizer._encode._cache_size() == 1
    assert tokenizer._decode._cache_size() == 1
    unit = pixels / np.float32(255)
    for _ in range(2):
        tokenizer.encode(unit, "unit")
        tokenizer.encode(2 * unit - 1, "symmetric")
    assert tokenizer._encode._cache_size() == 2
    tokenizer.encode(pixels[:1])
    assert tokenizer._encode._cache_size() == 3


def test_works_inside_jit(tokenizer, pixels):
    tokens, image = jax.jit(lambda p: (t := tokenizer.encode(p), tokenizer.decode(t)))(pixels)
    np.testing.assert_array_equal(tokens, tokenizer.encode(pixels))
    np.testing.assert_allclose(image, tokenizer.decode(tokens), atol=1e-6)
    unit = pixels / np.float32(255)
    floats = jax.jit(lambda v: tokenizer.encode(v, "unit"))(unit)
    np.testing.assert_array_equal(floats, tokens)
    with pytest.raises(TypeError, match="value_range"):
        jax.jit(tokenizer.encode)(unit)


def test_grey_and_other_likelihoods(pixels):
    config = DVAEConfig(
        group_count=1, n_hid=4, n_blk_per_group=1, vocab_size=4, n_init=4, channels=1,
        stats_per_channel=3,
    )  # fmt: skip
    params = tiny.params(config)
    with pytest.raises(ValueError, match="reconstruct"):
        Tokenizer(config, params)
    tokenizer = Tokenizer(config, params, reconstruct=lambda stats: stats[..., 2:] * 0)
    tokens = tokenizer.encode(pixels[..., :1])
    assert tokens.shape == (2, 8, 4)
    assert tokenizer.decode(tokens).shape == (2, 8, 4, 1)


def images(shape=(1, 8, 4, 3), value=0, dtype=np.float32):
    return np.full(shape, value, dtype)


@pytest.mark.parametrize(
    ("pixels", "value_range", "error", "words"),
    [
        (images(), None, TypeError, "value_range"),
        ([[0]], None, TypeError, "uint8"),
        (images((8, 8, 3), dtype=np.uint8), None, ValueError, "shape"),
        (images((1, 8, 8, 1), dtype=np.uint8), None, ValueError, "shape"),
        (images((1, 8, 7, 3), dtype=np.uint8), None, ValueError, "multiples of 2"),
        (images((1, 8, 4)), "unit", ValueError, "shape"),
        (images((1, 8, 5, 3)), "unit", ValueError, "multiples of 2"),
        (images(value=255), "unit", ValueError, "look like 0..255"),
        (images(value=np.nan), "unit", ValueError, "NaN"),
        (images(value=7, dtype=np.uint8), "symmetric", ValueError, "uint8"),
    ],
)
def test_encode_refuses_in_one_line(tokenizer, pixels, value_range, error, words):
    with pytest.raises(error, match=words) as info:
        tokenizer.encode(pixels, value_range)
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


# --- Ranges ------------------------------------------------------------------------------------


def test_the_same_image_in_every_range_gives_the_same_tokens(tokenizer, pixels):
    tokens = np.asarray(tokenizer.encode(pixels))
    assert len(np.unique(tokens)) > 1
    unit = pixels / np.float32(255)
    forms = [
        (pixels, "uint8"),
        (unit, "unit"),
        (jnp.asarray(unit), "unit"),
        (unit.astype(np.float64), "unit"),
        (2 * unit - 1, "symmetric"),
    ]
    for form, value_range in forms:
        np.testing.assert_array_equal(tokenizer.encode(form, value_range), tokens)


def test_a_wrong_range_would_have_changed_the_tokens(tokenizer, pixels):
    """What the errors are for: these went through silently."""
    tokens = np.asarray(tokenizer.encode(pixels))
    with pytest.warns(RangeWarning, match="twice") as caught:
        black = tokenizer.encode(pixels / np.float32(255) / 255, "unit")
    assert caught[0].filename == __file__
    assert (np.asarray(black) != tokens).any()


def test_decode_to_every_range(tokenizer):
    unit = np.asarray(tokenizer.decode(GRID))
    np.testing.assert_array_equal(tokenizer.decode(GRID, "unit"), unit)
    pixels = tokenizer.decode(GRID, "uint8")
    assert pixels.dtype == jnp.uint8
    np.testing.assert_array_equal(pixels, np.rint(np.float32(255) * unit))
    # 2v - 1 rounds once.
    np.testing.assert_allclose(tokenizer.decode(GRID, "symmetric"), 2 * unit - 1, atol=2**-23)
    with pytest.raises(ValueError, match="unknown value_range"):
        tokenizer.decode(GRID, "bytes")


# --- Fingerprints ------------------------------------------------------------------------------


def plain_params(config):
    """Parameters that do not depend on a random generator's version."""
    return jax.tree.map(
        lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) / 64,
        param_shapes(config),
    )


def test_the_fingerprint_is_the_same_for_ever():
    # Recorded when this was written: another value orphans every file of tokens.
    assert Tokenizer(CONFIG, plain_params(CONFIG)).fingerprint == "1c4518503b6e4414"


def test_the_fingerprint_does_not_depend_on_form_or_place(params):
    want = Tokenizer(CONFIG, params).fingerprint
    assert len(want) == 16
    assert set(want) <= set("0123456789abcdef")
    host = jax.tree.map(np.asarray, params)
    backwards = {half: dict(reversed(host[half].items())) for half in reversed(host)}
    fortran = jax.tree.map(np.asfortranarray, host)
    mesh = Mesh(np.array(jax.devices()), ("d",))
    spread = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    double = jax.tree.map(lambda leaf: leaf.astype(np.float64), host)
    for same in (host, backwards, fortran, spread, double):
        assert Tokenizer(CONFIG, same).fingerprint == want
    training = dataclasses.replace(CONFIG, remat=True, straight_through=True)
    assert Tokenizer(training, params).fingerprint == want


def test_the_fingerprint_changes_with_all_that_tokens_depend_on(params):
    host = jax.tree.map(np.array, params)
    seen = {Tokenizer(CONFIG, host).fingerprint}
    seen.add(Tokenizer(CONFIG, host, eps=0.05).fingerprint)
    seen.add(Tokenizer(dataclasses.replace(CONFIG, dtype="bfloat16"), host).fingerprint)
    tokenizer = Tokenizer(CONFIG, host)
    for leaf in jax.tree.leaves(host):
        leaf.ravel()[-1] = np.nextafter(leaf.ravel()[-1], np.float32(9))
        seen.add(Tokenizer.fingerprint.func(tokenizer))  # past the cache
    assert len(seen) == 3 + len(jax.tree.leaves(host))


# --- Files -------------------------------------------------------------------------------------


def test_a_file_of_ours_brings_its_epsilon_and_likelihood(params, tmp_path):
    exchange.save(tmp_path / "plain.safetensors", CONFIG, params)
    plain = Tokenizer.from_file(tmp_path / "plain.safetensors")
    assert plain.fingerprint == Tokenizer(CONFIG, params).fingerprint
    np.testing.assert_array_equal(plain.decode(GRID), Tokenizer(CONFIG, params).decode(GRID))
    exchange.save(
        tmp_path / "l1.safetensors", CONFIG, params, {"eps": 0.05, "likelihood": "laplace"}
    )
    other = Tokenizer.from_file(tmp_path / "l1.safetensors")
    assert other.eps == 0.05
    stats = DVAE(CONFIG).apply({"params": params}, jnp.asarray(GRID), method="decode_tokens")
    # Laplace's location is that of 2v - 1.
    expected = np.clip((np.asarray(stats, np.float64)[..., :3] + 1) / 2, 0, 1)
    np.testing.assert_allclose(other.decode(GRID), expected, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"likelihood": "gauss"}, "unknown likelihood"),
        ({"likelihood": "categorical"}, "256 maps"),
        ({"eps": 0.7}, "eps"),
        ({"eps": "small"}, "small"),
        ({"likelihood": "laplace", "likelihood_options": {"scale": "huge"}}, "huge"),
    ],
)
def test_a_file_that_says_nonsense_is_refused_in_one_line(params, tmp_path, metadata, words):
    exchange.save(tmp_path / "model.safetensors", CONFIG, params, metadata)
    with pytest.raises(ValueError, match=words) as info:
        Tokenizer.from_file(tmp_path / "model.safetensors")
    assert "model.safetensors" in str(info.value)
    assert "\n" not in str(info.value)


def test_a_published_pair(tmp_path):
    config = DVAEConfig(n_hid=64, n_blk_per_group=1, vocab_size=512, n_init=8)  # their least
    params = plain_params(config)
    files = tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"
    tiny.save_pair(*files, params)
    tokenizer = Tokenizer.from_openai(*files)
    assert tokenizer.fingerprint == Tokenizer(config, params).fingerprint
    with pytest.raises(ValueError, match="encoder"):
        Tokenizer.from_openai(*reversed(files))


# --- objects that are passed around -------------------------------------------------------------


class Tensor:
    """Like torch's: an array to NumPy, with a dtype that NumPy does not know."""

    dtype = "torch.uint8"

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_copies_and_pickles(tokenizer, pixels):
    want = tokenizer.encode(pixels)
    for again in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        np.testing.assert_array_equal(again.encode(pixels), want)
        np.testing.assert_array_equal(again.decode(want), tokenizer.decode(want))
        assert again.fingerprint == tokenizer.fingerprint


def test_a_spawned_worker_gets_the_tokenizer(tokenizer, pixels):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        tokens = pool.apply(tokenizer.encode, (pixels,))
    np.testing.assert_array_equal(tokens, tokenizer.encode(pixels))


def test_tensors_of_other_libraries(tokenizer, pixels):
    tokens = tokenizer.encode(pixels)
    np.testing.assert_array_equal(tokenizer.encode(Tensor(pixels)), tokens)
    np.testing.assert_array_equal(
        tokenizer.decode(Tensor(np.asarray(tokens))), tokenizer.decode(tokens)
    )
    loss = ll.logit_laplace_pixel_loss(Tensor(pixels), 0.0, -1.0)
    np.testing.assert_array_equal(loss, ll.logit_laplace_pixel_loss(pixels, 0.0, -1.0))
    np.testing.assert_array_equal(ll.map_pixels(Tensor(pixels)), ll.map_pixels(pixels))
    with pytest.raises(TypeError, match="Tensor"):
        ll.logit_laplace_loss(ll.map_pixels(pixels), Tensor(pixels), -1.0)
