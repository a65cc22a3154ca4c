"""Evaluation: masks, means that depend on no batch or device, and the formulas behind them."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.stats import laplace

from logit_laplace_jax import pixel_map as pixel_maps
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.evaluation import Evaluator, reconstruct
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = 10
VOCAB = 8
CONFIG = tiny.config(
    run_dir="",
    data__source="photos",
    steps=10,
    batch_size=8,
    image_size=8,
    likelihood__min_log_scale=-0.5,  # high, so that some values lie below it
    temperature=Schedule(1.0, 0.5),
    model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=VOCAB, n_init=4),
).resolved()

# What the hard codes decide, and the KL: no noise is in it.
HARD = {"nll_hard", "psnr", "kl", "floor_share", "elbo_hard", "images"}
HARD |= {"bpd_hard", "bpd_hard_pixels", "bpd_hard_codes"}
USE = {"code_usage", "code_perplexity"}
RELAXED = {"nll_relaxed", "psnr_relaxed", "elbo_relaxed"}
RELAXED |= {"bpd_relaxed", "bpd_relaxed_pixels", "bpd_relaxed_codes", "bpd_gap"}


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(1, 200, (IMAGES, 1, 1, 1))
    return (low + rng.integers(0, 55, (IMAGES, 8, 8, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def state():
    # Wider than OpenAI's initialisation, so that several codes occur.
    fresh = create_state(CONFIG, jax.random.key(0))
    wide = jax.tree.map(lambda p: np.asarray(p) * 2, fresh.params)
    # Only the average may count.
    return fresh.replace(
        ema_params=jax.tree.map(jnp.asarray, wide),
        params=jax.tree.map(lambda p: p * np.nan, wide),
        step=np.int32(4),
    )


def batches(pixels, size, padding=0):
    for start in range(0, len(pixels), size):
        rows = pixels[start : start + size]
        full = np.zeros((size, *pixels.shape[1:]), np.uint8)
        if padding:
            full[:] = np.random.default_rng(padding).integers(0, 256, full.shape)
        full[: len(rows)] = rows
        ids = [zlib.crc32(row.tobytes()) >> 1 for row in full]
        yield {
            "pixels": full,
            "mask": (np.arange(size) < len(rows)).astype(np.float32),
            "id": np.asarray(ids, np.int32),
        }


@pytest.fixture(scope="module")
def results(pixels, state):
    """Means over the same images, by layout, batch size and padding."""
    compiled = {}

    def means(mode, size, padding=0, config=CONFIG, order=slice(None)):
        key = mode, config
        if key not in compiled:
            layout = devices.choose(mode, size)
            compiled[key] = layout, Evaluator(layout, config)
        layout, evaluator = compiled[key]
        placed = layout.replicate(state.replace(config=config))
        images = list(batches(pixels[order], size, padding))  # iterated twice for some scales
        return evaluator(placed, images, jax.random.key(7))

    return means


@pytest.fixture(scope="module")
def whole(results):
    return results("single", 4)


def close(got, want, names):
    assert names <= set(got) & set(want)
    for name in names:
        # float32 sums of 10 images in another order, and the compiler's choice of arithmetic for
        # another batch size: some 1e-6 of values below 40.
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_every_measure_is_there(whole):
    assert set(whole) == HARD | USE | RELAXED
    assert whole["images"] == IMAGES
    assert all(isinstance(value, float) and np.isfinite(value) for value in whole.values())


def test_padding_may_hold_anything(results, whole):
    # 10 = 4 + 4 + 2: two rows of padding, zeros there, noise here. The same compiled function.
    assert results("single", 4, padding=1) == whole


def test_padding_that_is_infinitely_unlikely(results):
    # With ε = 0 a zero pixel has density 0: unmasked, or multiplied by its mask, it would show.
    config = tiny.change(CONFIG, likelihood__eps=0.0)
    values = results("single", 4, config=config)
    assert all(np.isfinite(value) for value in values.values())


def test_the_batch_size_changes_nothing(results, whole):
    other = results("single", 8)
    close(other, whole, HARD | RELAXED)
    for name in USE:
        assert other[name] == pytest.approx(whole[name], rel=1e-12)  # whole counts


def test_the_order_changes_nothing(results, whole):
    close(results("single", 4, order=[7, 2, 9, 0, 1, 5, 8, 3, 6, 4]), whole, HARD | RELAXED | USE)


@pytest.mark.parametrize("mode", ["mesh", "pmap"])
def test_devices_change_nothing(results, mode):
    one, many = results("single", 8), results(mode, 8)
    close(many, one, HARD | RELAXED)
    for name in USE:
        assert many[name] == pytest.approx(one[name], rel=1e-12)


def test_an_optimal_scale_is_that_of_all_images(results, state, pixels):
    """ln b is the mean absolute deviation of all images together, whatever the batches."""
    config = tiny.change(CONFIG, likelihood__scale="optimal", likelihood__min_log_scale=None)
    fresh = state.replace(
        ema_params=jax.tree.map(lambda p: p * 3, create_state(config, jax.random.key(0)).params)
    )
    compiled = devices.choose("single", 4), devices.choose("pmap", 8)
    values = [
        Evaluator(layout, config)(
            layout.replicate(fresh.replace(config=config)),
            list(batches(pixels, size)),
            jax.random.key(7),
        )
        for layout, size in zip(compiled, (4, 8), strict=True)
    ]
    close(values[1], values[0], HARD | RELAXED | {"optimal_scale"})
    # nll is least at that scale: mean |t - mu| / b = 1 there, so nll = 1 + ln 2b + mean ln x(1-x).
    x = 0.8 * pixels / 255.0 + 0.1
    nll = 1 + np.log(2 * values[0]["optimal_scale"]) + np.log(x * (1 - x)).mean()
    assert values[0]["nll_hard"] == pytest.approx(nll, rel=1e-5)  # float32 sums


def test_elbo_formulas(whole):
    # f = 2, C = 3: twelve values a token. float64 on the host.
    kl, codes = whole["kl"] / 12, np.log(VOCAB) / 12
    assert whole["elbo_relaxed"] == pytest.approx(-(whole["nll_relaxed"] + kl), rel=1e-12)
    assert whole["elbo_hard"] == pytest.approx(-(whole["nll_hard"] + codes), rel=1e-12)
    assert 0 < whole["kl"] < np.log(VOCAB)
    bits = whole["bpd_hard_pixels"] + codes / np.log(2)
    assert whole["bpd_hard"] == pytest.approx(bits, rel=1e-12)
    assert whole["bpd_relaxed_codes"] == pytest.approx(kl / np.log(2), rel=1e-12)
    gap = whole["bpd_relaxed_pixels"] - whole["bpd_hard_pixels"]
    assert whole["bpd_gap"] == pytest.approx(gap, rel=1e-12)


def test_against_the_model_taken_apart(pixels, state, whole):
    params = {"params": state.ema_params}
    model = DVAE(CONFIG.model)

    @jax.jit
    def parts(pixels):
        x = pixel_maps.map_pixels(pixels, CONFIG.likelihood.eps)  # the map has tests of its own
        logits = model.apply(params, x, method="encode")
        tokens = jnp.argmax(logits, axis=-1)
        return logits, tokens, model.apply(params, tokens, method="decode_tokens")

    logits, tokens, stats = (np.asarray(a) for a in parts(pixels))
    counts = np.bincount(tokens.ravel(), minlength=VOCAB)
    assert 1 < (counts > 0).sum() < VOCAB  # a case that tells something
    share = counts[counts > 0] / counts.sum()
    x = 0.8 * pixels / 255.0 + 0.1
    mu, raw = stats[..., :3].astype(np.float64), stats[..., 3:].astype(np.float64)
    log_scale = -0.5 + np.logaddexp(0, raw + 0.5)
    nll = np.abs(np.log(x / (1 - x)) - mu) * np.exp(-log_scale) + log_scale
    nll += np.log(2 * x * (1 - x))
    # The exact mass, naively: float64 suffices where no bin lies far out, and b has a floor here.
    ends = 0.8 * (np.arange(257) - 0.5) / 255 + 0.1
    ends = np.concatenate([[-np.inf], np.log(ends[1:-1] / (1 - ends[1:-1])), [np.inf]])
    cdf = [laplace.cdf((ends[pixels + i] - mu) * np.exp(-log_scale)) for i in (0, 1)]
    bits = -np.log2(cdf[1] - cdf[0]).mean()
    image = np.clip((1 / (1 + np.exp(-mu)) - 0.1) / 0.8, 0, 1)
    mse = np.mean((image - pixels / 255.0) ** 2, axis=(1, 2, 3))
    log_p = logits.astype(np.float64)
    log_p -= np.logaddexp.reduce(log_p, axis=-1, keepdims=True)
    expected = {
        "nll_hard": nll.mean(),
        "bpd_hard_pixels": bits,
        "psnr": np.mean(-10 * np.log10(mse)),
        "kl": np.mean((np.exp(log_p) * (log_p + np.log(VOCAB))).sum(axis=-1)),
        "floor_share": np.mean(raw <= -0.5),
        "code_usage": np.mean(counts > 0),
        "code_perplexity": np.exp(-np.sum(share * np.log(share))),
    }
    assert 0 < expected["floor_share"] < 1
    close(whole, expected, set(expected))
    # The pictures are those that the PSNR is of; float32 division by 0.8.
    np.testing.assert_allclose(reconstruct(state, pixels), image, atol=2e-6)


def test_reconstruct_takes_other_sizes_and_refuses_other_kinds(state):
    wide = np.full((1, 4, 12, 3), 99, np.uint8)
    image = np.asarray(reconstruct(state, wide))
    assert image.shape == wide.shape
    assert ((image >= 0) & (image <= 1)).all()
    with pytest.raises(ValueError, match="image size 5 x 12"):
        reconstruct(state, np.zeros((1, 5, 12, 3), np.uint8))
    with pytest.raises(AssertionError):
        reconstruct(state, np.zeros((1, 4, 12, 3), np.float32))


def test_nothing_to_evaluate(state):
    layout = devices.choose("single", 4)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        Evaluator(layout, CONFIG)(state, [], jax.random.key(0))
