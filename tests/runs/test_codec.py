"""The codec: what comes back is what went in, at the size that was promised; refusals."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models.prior_config import PriorConfig
from logit_laplace_jax.runs import codec as codecs
from logit_laplace_jax.runs.codec import Codec, Image
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.training import devices, prior_step
from logit_laplace_jax.training.config import LikelihoodConfig, PriorTrainConfig
from logit_laplace_jax.training.evaluation import Evaluator
from logit_laplace_jax.training.state import create_state

pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def codec(name="logit_laplace", prior=False, classes=(), **options):
    """A codec of a random model; trained ones are no different to it."""
    likelihood = LikelihoodConfig(
        name, **{"components": 2, **options} if "mix" in name else options
    )
    config = tiny.config(likelihood=likelihood, parallel="single").resolved()
    if prior:
        sizes = PriorConfig(features=8, layers=1, heads=2)
        config = PriorTrainConfig("", dvae=config, classes=classes, prior=sizes, parallel="single")
    state = create_state(config.resolved(), jax.random.key(0))
    wide = jax.tree.map(lambda leaf: 2 * leaf, state.ema_params)
    state = state.replace(params=wide, ema_params=wide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs.directory, "read_config", lambda folder: state.config)
        patch.setattr(codecs.directory, "load", lambda folder, checkpoint, kind: state)
        made = Codec("somewhere")
    return made, state


def pictures(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Image(f"{i}.png", rng.integers(0, 256, (*shape, 3)).astype(np.uint8))
        for i, shape in enumerate(shapes)
    ]


def assert_the_same(found, images):
    assert [image.name for image in found] == [image.name for image in images]
    for one, other in zip(found, images, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.label == other.label


@settings(max_examples=6, deadline=None)
@given(
    shapes=st.lists(st.sampled_from([(8, 8), (1, 1), (5, 19)]), max_size=3),
    prior=st.booleans(),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_images_come_back(shapes, prior, flat, seed):
    images = pictures(shapes, seed)
    if flat:  # improbable under this model, which has to cost bits and nothing else
        images = [dataclasses.replace(i, pixels=i.pixels // 255 * 255) for i in images]
    made, _ = codec(prior=prior)
    assert_the_same(made.decompress(made.compress(images).content), images)


CASES = [(name, {}) for name in likelihoods.names()]
CASES += [("normal", {"scale": "optimal"}), ("logistic_mixture", {"coupled": True})]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_likelihood(name, options):
    made, _ = codec(name, **options)
    images = pictures([(8, 8), (5, 11)])
    encoded = made.compress(images)
    assert_the_same(made.decompress(encoded.content), images)
    written = 8 * (len(encoded.content) - encoded.header_bytes)
    # The coder's last two words; quantising a probability to a multiple of 2^-24 costs or saves a
    # share of it, a thousandth over all symbols.
    assert written == pytest.approx(encoded.charged_bits, rel=1e-3, abs=64)
    assert encoded.charged_bits < (1 + 1e-5) * (encoded.token_bits + encoded.pixel_bits)


@pytest.mark.parametrize("classes", [(), ("cat", "dog")])
def test_the_size_is_the_evaluated_number(classes):
    made, state = codec(prior=True, classes=classes)
    images = [dataclasses.replace(i, label=n % 2) for n, i in enumerate(pictures([(8, 8)] * 24))]
    images = images if classes else [dataclasses.replace(i, label=0) for i in images]
    encoded = made.compress(images)
    assert_the_same(made.decompress(encoded.content), images)

    # The evaluation's own two numbers: other programs, which score all positions at once.
    batch = {
        "pixels": np.stack([image.pixels for image in images]),
        "mask": np.ones(24, np.float32),
        "id": np.arange(24, dtype=np.int32),
    }
    dvae = create_state(state.config.dvae, jax.random.key(0)).replace(ema_params=state.frozen)
    layout = devices.choose("single", 24)
    pixels = Evaluator(layout, dvae.config)(dvae, [batch], jax.random.key(0))["bpd_hard_pixels"]
    batch["labels"] = np.array([image.label for image in images], np.int32)
    scored = Evaluator(layout, state.config, prior_step.eval_step, prior_step.summary)
    codes = scored(state, [batch], jax.random.key(0))["bpd_prior_codes"]
    values = 24 * 8 * 8 * 3
    assert encoded.pixel_bits / values == pytest.approx(pixels, rel=1e-5)  # float32 masses
    assert encoded.token_bits / values == pytest.approx(codes, rel=1e-5)
    written = 8 * (len(encoded.content) - encoded.header_bytes)
    # 0.1 % for the masses as multiples of 2^-24, and the coder's last words.
    assert written == pytest.approx((pixels + codes) * values, rel=1e-3, abs=64)


def test_what_does_not_fit_is_refused():
    made, _ = codec(prior=True)
    content = made.compress(pictures([(8, 8)])).content
    flipped = bytearray(content)
    flipped[-3] ^= 1
    other, _ = codec("laplace")
    for reader, bad, words in [
        (made, b"", "no file of codec.py"),
        (made, b"PNG" + content, "no file of codec.py"),
        (made, content[:-1], "cut or damaged"),
        (made, content[:20], "no file of codec.py"),
        (made, bytes(flipped), "cut or damaged"),
        (other, content, "another model"),
    ]:
        with pytest.raises(RunError, match=words) as caught:
            reader.decompress(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="3 channels"):
        made.compress([Image("grey", np.zeros((8, 8, 1), np.uint8))])


def test_other_probabilities_than_the_writers_are_found(monkeypatch):
    made, _ = codec()
    content = made.compress(pictures([(8, 8)])).content
    real = codecs._probabilities
    monkeypatch.setattr(codecs, "_probabilities", lambda logs: real(logs)[:, ::-1].copy())
    with pytest.raises(RunError, match="other probabilities"):
        made.decompress(content)
