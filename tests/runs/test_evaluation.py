"""The whole evaluation: answers known beforehand, and what must change nothing."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.stats import laplace

from logit_laplace_jax.data.pipeline import whole_batches
from logit_laplace_jax.data.sources import Source
from logit_laplace_jax.runs.evaluation import POINTS, measure_step, measures
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.evaluation import Evaluator
from logit_laplace_jax.training.state import create_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOCAB = 8
CONFIG = tiny.config(likelihood__min_log_scale=None).resolved()
LOC, LOG_SCALE = 0.3, -1.2


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 100, (6, 1, 1, 1))
    noise = rng.integers(0, 20, (6, 8, 8, 3))
    step = np.where(np.arange(8) >= 6, 120, 0)[None, None, :, None]  # an edge, with pixels far off
    return (low + noise + step).astype(np.uint8)


def state_of(fixed):
    """A random state whose codes differ, or one that predicts the same everywhere."""
    state = create_state(CONFIG, jax.random.key(0))
    params = jax.tree.map(lambda p: p * 2, state.params)
    if fixed:
        output = params["decoder"]["output"]
        bias = jnp.array([LOC] * 3 + [LOG_SCALE] * 3)
        params["decoder"]["output"] = {
            "kernel": jnp.zeros_like(output["kernel"]),
            "bias": bias.reshape(output["bias"].shape),
        }
    return state.replace(ema_params=params)


def batches(pixels, size):
    for start in range(0, len(pixels), size):
        rows = pixels[start : start + size]
        full = np.zeros((size, *pixels.shape[1:]), np.uint8)
        full[: len(rows)] = rows
        ids = np.asarray([zlib.crc32(row.tobytes()) >> 1 for row in full], np.int32)
        yield {"pixels": full, "mask": (np.arange(size) < len(rows)).astype(np.float32), "id": ids}


@pytest.fixture(scope="module")
def evaluators():
    layouts = {"single": devices.choose("single", 4), "pmap": devices.choose("pmap", 8)}
    return {
        name: (layout, Evaluator(layout, CONFIG, measure_step, measures))
        for name, layout in layouts.items()
    }


def result(evaluators, state, images, mode="single"):
    layout, evaluator = evaluators[mode]
    return evaluator(layout.replicate(state), images, jax.random.key(3))


def exact_bits(pixels):
    """Bits a value at the fixed statistics, from the definition; float64 has digits enough here."""
    ends = 0.8 * (np.arange(257) - 0.5) / 255 + 0.1
    ends = np.concatenate([[-np.inf], np.log(ends[1:-1] / (1 - ends[1:-1])), [np.inf]])
    cdf = laplace.cdf((ends - LOC) * np.exp(-LOG_SCALE))
    return -np.log2(np.diff(cdf))[pixels].mean()


def test_a_known_answer(evaluators, pixels):
    values = result(evaluators, state_of(fixed=True), list(batches(pixels, 4)))
    # float32 log masses, averaged: below 1e-6 of some 9 bits.
    assert values["bpd_hard_pixels"] == pytest.approx(exact_bits(pixels), rel=1e-5)
    assert values["bpd_relaxed_pixels"] == pytest.approx(exact_bits(pixels), rel=1e-5)
    assert values["bpd_hard_codes"] == pytest.approx(np.log2(VOCAB) / 12)  # 4 pixels of 3 values
    both = values["edge_share"] * values["bpd_edges"]
    both += (1 - values["edge_share"]) * values["bpd_flat"]
    assert both == pytest.approx(values["bpd_hard_pixels"], rel=1e-5)
    # The median is one grey level: the sigmoid of loc, on its bin.
    median = round(255 * (1 / (1 + np.exp(-LOC)) - 0.1) / 0.8)
    error = np.abs(pixels.astype(float) - median)
    assert values["mae_median"] == pytest.approx(error.mean(), rel=1e-5)
    mse = ((error / 255) ** 2).mean((1, 2, 3))
    assert values["psnr_median"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-5)
    # Every value's transform falls into one of 20 bins.
    assert sum(values["pit_counts"]) == pixels.size
    assert sum(values["code_counts"]) == 6 * 16


@pytest.fixture(scope="module")
def plain(evaluators, pixels):
    return result(evaluators, state_of(fixed=False), list(batches(pixels, 4)))


def assert_same(got, want):
    assert set(got) == set(want)
    for name, value in want.items():
        # Sums over an image in another order, and values on the border of a bin or of two grey
        # levels: 1e-5, and in counts of 1,152 values a few.
        if name == "pit_counts":
            assert np.abs(np.subtract(got[name], value)).sum() <= 4
        else:
            np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def test_batches_order_and_devices_change_nothing(evaluators, pixels, plain):
    state = state_of(fixed=False)
    assert 1 < sum(n > 0 for n in plain["code_counts"]) <= VOCAB
    assert_same(result(evaluators, state, list(batches(pixels, 6))), plain)
    assert_same(result(evaluators, state, list(batches(pixels[::-1], 4))), plain)
    assert_same(result(evaluators, state, list(batches(pixels, 8)), "pmap"), plain)


def test_whole_images_of_any_size(evaluators, pixels, plain):
    """At the crops' size the same numbers; padding, where a side is odd, counts nowhere."""
    state = state_of(fixed=False)

    def source(images):
        return Source("demo", "validation", read=images.__getitem__, name=str, count=len(images))

    same = whole_batches(source(list(pixels)), multiple=2, batch_size=4, threads=0)
    assert_same(result(evaluators, state, same), plain)

    odd = [pixels[0][:7, :5], pixels[1], pixels[2][:7, :5], pixels[3][:, :3]]
    values = result(
        evaluators, state_of(fixed=True), whole_batches(source(odd), multiple=2, batch_size=2)
    )
    flat = np.concatenate([image.ravel() for image in odd])
    assert values["bpd_hard_pixels"] == pytest.approx(exact_bits(flat), rel=1e-5)
    tokens = 4 * 3 + 16 + 4 * 3 + 4 * 2  # sides rounded up
    assert values["bpd_hard_codes"] == pytest.approx(np.log2(VOCAB) * tokens / flat.size)
    assert sum(values["pit_counts"]) == flat.size
    assert values["images"] == 4
    for point in POINTS:
        assert np.isfinite(values[f"psnr_{point}"])


def test_calibration_of_a_model_that_is_right(evaluators):
    """Pixels drawn from the prediction itself have a uniform transform; scaled up, a hump."""
    from logit_laplace_jax import likelihoods

    stats = np.tile(np.float32([LOC] * 3 + [LOG_SCALE] * 3), (48, 8, 8, 1))
    drawn = likelihoods.get("logit_laplace").sample(jax.random.key(1), jnp.asarray(stats))
    images = np.round(np.asarray(drawn) * 255).astype(np.uint8)
    values = result(evaluators, state_of(fixed=True), list(batches(images, 8)))
    # 9,216 values in 20 bins: total variation of about 0.4 sqrt(20 / 9216) = 0.019 by chance.
    assert values["pit_tv"] < 0.035
    assert abs(values["pit_mean_shift"]) < 0.01
    narrow = np.clip(np.round(128 + 0.3 * (images - 128.0)), 0, 255).astype(np.uint8)
    assert result(evaluators, state_of(fixed=True), list(batches(narrow, 8)))["pit_tv"] > 0.15


def test_an_optimal_scale_is_reported(pixels):
    config = tiny.change(CONFIG, likelihood__name="normal", likelihood__scale="optimal")
    layout = devices.choose("single", 6)
    state = create_state(config, jax.random.key(0))
    evaluator = Evaluator(layout, config, measure_step, measures)
    values = evaluator(layout.replicate(state), list(batches(pixels, 6)), jax.random.key(3))
    # The root mean square error, in units of y = 2v - 1, of the mean, which is the median here.
    assert values["optimal_scale"] > 0
    mse = (values["optimal_scale"] / 2) ** 2
    pooled = [values[f"psnr_{part}"] for part in ("edges", "flat")]
    shares = [values["edge_share"], 1 - values["edge_share"]]
    rms = sum(w * 10 ** (-p / 10) for w, p in zip(shares, pooled, strict=True))
    # The median is rounded to grey levels, which moves the mean square by less than 1 %.
    assert mse == pytest.approx(rms, rel=0.02)
