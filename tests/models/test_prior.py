"""The prior over tokens: what depends on what, that it is a distribution, the cache, the draws."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logit_laplace_jax.models import Prior, PriorConfig, init_prior, sample
from logit_laplace_jax.models.prior import empty_cache, prior_shapes
from logit_laplace_jax.models.prior_config import PRIORS
from logit_laplace_jax.models.sampling import kept_codes
from logit_laplace_jax.training import devices

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = PriorConfig(vocab_size=7, height=2, width=3, features=8, layers=2, heads=2, classes=3)
LENGTH = TINY.length
TOKENS = jnp.array([[0, 6, 3, 3, 1, 5], [2, 2, 4, 0, 6, 1]])
LABELS = jnp.array([0, 2])


def random_params(config, seed=0):
    """Parameters of deviation 0.5: with the initial ones all logits would be nearly equal."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.float32(0.5 * rng.normal(size=leaf.shape)), prior_shapes(config)
    )


PARAMS = random_params(TINY)


@jax.jit(static_argnames=("config", "method"))
def run(params, *args, config=TINY, method=None):
    return Prior(config).apply({"params": params}, *args, method=method)


def stepwise(config, params, tokens, labels):
    """The logits by one position at a time."""

    def step(cache, at):
        previous, position = at
        logits, cache = Prior(config).apply(
            {"params": params}, previous, position, cache, labels, method="step"
        )
        return cache, logits

    # Before the first token the step is given garbage, which it must not read.
    previous = jnp.concatenate([jnp.full((1, len(tokens)), 5), tokens.T[:-1]])
    cache = empty_cache(config, len(tokens))
    _, logits = jax.jit(lambda *xs: jax.lax.scan(step, cache, xs))(
        previous, jnp.arange(config.length)
    )
    return logits.swapaxes(0, 1)


# --- Configuration and parameters ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 1),
        ("height", 0),
        ("width", 2.0),
        ("features", 130),
        ("layers", 0),
        ("heads", True),
        ("classes", -1),
        ("dtype", "float64"),
        ("remat", 1),
        ("attention", "flash"),
        ("attention", "cudnn"),  # with float32
    ],
)
def test_bad_fields_are_one_line_value_errors(field, value):
    with pytest.raises(ValueError, match=field) as info:
        PriorConfig(**{field: value})
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("name", "millions"), [("small", 0.927), ("medium", 33.6), ("large", 319.2), ("paper", 12_160)]
)
def test_sizes(name, millions):
    config = PRIORS[name]
    shapes = jax.tree.leaves(prior_shapes(config))
    assert {leaf.dtype for leaf in shapes} == {jnp.dtype("float32")}
    count = sum(math.prod(leaf.shape) for leaf in shapes)
    block = 12 * config.features**2 + 13 * config.features  # kernels; biases and two norms
    outside = 2 * config.vocab_size + config.height + config.width + 3
    assert count == config.layers * block + outside * config.features + config.vocab_size
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_initial_deviations_and_loss():
    config = PriorConfig(vocab_size=64, height=2, width=3, features=64, layers=8, classes=9)
    params = init_prior(config, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, prior_shapes(config))
    # Every kernel has 2^15 values or more: their deviation is known to 1/sqrt(2^16) = 0.4 %.
    for name, deviation in [
        ("qkv", 0.02),
        ("hidden", 0.02),
        ("attention_output", 0.005),
        ("mlp_output", 0.005),
    ]:
        kernel = params["blocks"][name]["kernel"]
        assert kernel.std() == pytest.approx(deviation, rel=0.02)
        assert not np.array_equal(kernel[0], kernel[1])  # the layers are drawn apart
    # Logits of deviation 0.02 sqrt(64) = 0.16 add half their variance, 0.013, to ln V.
    log_prob = run(params, TOKENS, LABELS, config=config, method="log_prob")
    assert -log_prob.mean() == pytest.approx(math.log(64), abs=0.3)


def test_state_spreads_over_four_devices():
    config = dataclasses.replace(TINY, features=32, heads=4)
    layout = devices.choose("mesh", 8, fsdp=True)
    params = layout.create(lambda key: init_prior(config, key), jax.random.key(0))
    kernels = [params["blocks"][name]["kernel"] for name in ("qkv", "hidden", "mlp_output")]
    assert all(kernel.addressable_data(0).size == kernel.size // 4 for kernel in kernels)
    batch = {"tokens": np.tile(TOKENS, (4, 1)), "labels": np.tile(LABELS, 4)}
    compiled = layout.compile(
        lambda params, batch, key, axis_name: run(
            params, batch["tokens"], batch["labels"], config=config, method="log_prob"
        )
    )
    got = compiled(params, layout.shard(batch), jax.random.key(0))
    want = run(
        init_prior(config, jax.random.key(0)), TOKENS, LABELS, config=config, method="log_prob"
    )
    # Sums of at most 128 products, in another order.
    np.testing.assert_allclose(got, np.tile(want, (4, 1)), rtol=1e-5)


# --- The full pass ------------------------------------------------------------------------------


def test_logits_depend_on_all_earlier_tokens_and_on_no_other():
    base = jnp.tile(TOKENS[:1], (LENGTH, 1))
    labels = jnp.zeros(LENGTH, jnp.int32)
    changed = (base + jnp.eye(LENGTH, dtype=base.dtype)) % TINY.vocab_size
    # The same program on the same shapes: what does not depend on the change is equal bit by bit.
    differs = (run(PARAMS, base, labels) != run(PARAMS, changed, labels)).any(axis=-1)
    np.testing.assert_array_equal(differs, np.triu(np.ones((LENGTH, LENGTH), bool), 1))


def test_every_logit_depends_on_the_label():
    logits = run(PARAMS, jnp.tile(TOKENS[:1], (3, 1)), jnp.arange(3))
    for a, b in itertools.combinations(range(3), 2):
        assert (logits[a] != logits[b]).any(axis=-1).all()


@pytest.mark.parametrize("classes", [0, 2])
def test_probabilities_of_all_images_add_up_to_one(classes):
    config = PriorConfig(3, 2, 2, features=8, layers=1, heads=2, classes=classes)
    tokens = jnp.array(list(itertools.product(range(3), repeat=4)))
    labels = jnp.ones(len(tokens), jnp.int32) if classes else None
    log_prob = run(random_params(config), tokens, labels, config=config, method="log_prob")
    assert log_prob.dtype == jnp.float32
    # 81 terms, each to a few roundings of sums of logarithms around 10 (6e-8 of each).
    assert np.exp(np.float64(log_prob).sum(axis=1)).sum() == pytest.approx(1, rel=1e-5)


def test_log_prob_is_the_log_softmax_at_the_tokens():
    log_probs = jax.nn.log_softmax(run(PARAMS, TOKENS, LABELS))
    want = np.take_along_axis(np.asarray(log_probs), np.asarray(TOKENS)[..., None], -1)[..., 0]
    # The same sums in another order of subtraction; the logits are around 5.
    np.testing.assert_allclose(run(PARAMS, TOKENS, LABELS, method="log_prob"), want, atol=5e-6)


@pytest.mark.parametrize("token", [-1, 7])
def test_a_token_outside_the_vocabulary_gives_nan(token):
    for place, nan in [(2, [True] * 6), (5, [False] * 5 + [True])]:
        tokens = TOKENS.at[0, place].set(token)
        log_prob = np.isnan(run(PARAMS, tokens, LABELS, method="log_prob"))
        np.testing.assert_array_equal(log_prob, [nan, [False] * 6])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_gives_nan(label):
    assert np.isnan(run(PARAMS, TOKENS, jnp.array([label, 1]))).all(axis=(1, 2)).tolist() == [1, 0]


def test_missing_and_unexpected_labels_are_refused():
    with pytest.raises(ValueError, match="label in"):
        run(PARAMS, TOKENS)
    config = dataclasses.replace(TINY, classes=0)
    with pytest.raises(ValueError, match="no classes"):
        run(random_params(config), TOKENS, LABELS, config=config)
    with pytest.raises(AssertionError):
        run(PARAMS, TOKENS[:, :-1], LABELS)


def test_bfloat16_is_float32_to_its_rounding():
    config = dataclasses.replace(TINY, dtype="bfloat16")
    low, high = (run(PARAMS, TOKENS, LABELS, config=c) for c in (config, TINY))
    assert low.dtype == jnp.float32
    # Some ten roundings of 2^-9 on the way, relative to the logits' own size.
    assert np.abs(low - high).max() < 10 * 2**-9 * np.abs(high).max()
    assert (low != high).any()


@pytest.mark.parametrize("remat", [False, True])
def test_every_parameter_gets_a_finite_gradient(remat):
    config = dataclasses.replace(TINY, remat=remat, dtype="bfloat16" if remat else "float32")

    def loss(params):
        return -run(params, TOKENS, LABELS, config=config, method="log_prob").mean()

    gradient = jax.jit(jax.grad(loss))(PARAMS)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient))


def test_remat_changes_no_gradient():
    def gradient(config):
        def loss(params):
            return run(params, TOKENS, LABELS, config=config, method="log_prob").mean()

        return jax.jit(jax.grad(loss))(PARAMS)

    plain, again = gradient(TINY), gradient(dataclasses.replace(TINY, remat=True))
    # The same operations, which XLA may fuse in another way: roundings of sums of order 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, again)


# --- The cache ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"classes": 0}, {"height": 1, "width": 1}, {"dtype": "bfloat16"}], ids=str
)
def test_one_position_at_a_time_equals_the_full_pass(changes):
    config = dataclasses.replace(TINY, **changes)
    params = random_params(config)
    tokens, labels = TOKENS[:, : config.length], LABELS if config.classes else None
    full = run(params, tokens, labels, config=config)
    # Roundings of a few sums of at most 32 products of order 1, or of bfloat16's 2^-9.
    tolerance = 2e-6 if config.dtype == "float32" else 10 * 2**-9
    atol = tolerance * np.abs(full).max()
    np.testing.assert_allclose(stepwise(config, params, tokens, labels), full, rtol=0, atol=atol)


# --- Sampling -----------------------------------------------------------------------------------


def kept_by_numpy(logits, temperature, top_k, top_p):
    """The definition: rank the codes, keep k, then add up until the nucleus is full."""
    keep = np.zeros(logits.shape, bool)
    for row, kept in zip(np.float64(logits), keep, strict=True):
        ranked = np.argsort(-row)[: top_k or len(row)]
        probs = np.exp((row[ranked] - row.max()) / temperature)
        probs /= probs.sum()
        total = 0.0
        for code, prob in zip(ranked, probs, strict=True):
            kept[code] = True
            total += prob
            if top_p is not None and total >= top_p:
                break
    return keep


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [None, 1, 4, 9, 20])
@pytest.mark.parametrize("top_p", [None, 1e-6, 0.5, 0.9, 1.0])
def test_kept_codes_are_numpys(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(30, 9)).astype(np.float32)
    got = kept_codes(jnp.asarray(logits), temperature, top_k, top_p)
    np.testing.assert_array_equal(got, kept_by_numpy(logits, temperature, top_k, top_p))


def test_codes_that_tie_with_the_last_kept_one_are_kept():
    logits = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.2, 0.1]))
    for keep in (kept_codes(logits, top_k=2), kept_codes(logits, top_p=0.5)):
        assert keep.tolist() == [False, True, True, True, False]
    # The sum reaches 1 in float32 long before the last code; a nucleus of 1 is still everything.
    flat = jnp.zeros(8192).at[0].set(30.0)
    assert kept_codes(flat, top_p=1.0).all()
    assert kept_codes(flat, temperature=0.0, top_p=1e-9).sum() == 1


@pytest.fixture(scope="module")
def drawn():
    return sample(TINY, PARAMS, jax.random.key(1), jnp.arange(600) % 3, 600)


def test_draws_follow_the_priors_distribution(drawn):
    tokens = np.asarray(drawn)
    assert tokens.shape == (600, LENGTH)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < 7
    # The expected score of a draw is the entropy: each position's surprise less its own entropy
    # has mean 0, so the mean over 600 images is 0 to four standard errors.
    labels = jnp.arange(600) % 3
    log_probs = np.float64(jax.nn.log_softmax(run(PARAMS, drawn, labels)))
    entropy = -(np.exp(log_probs) * log_probs).sum(-1)
    surprise = -np.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    excess = (surprise - entropy).sum(axis=1)
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(600)
    # And the frequencies of the first token under each label: chi-squared with 6 degrees of
    # freedom exceeds 27.9 once in 10,000 times.
    for label in range(3):
        expected = 200 * np.exp(log_probs[label, 0])
        counts = np.bincount(tokens[label::3, 0], minlength=7)
        assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_the_same_seed_gives_the_same_tokens_whatever_the_batch(drawn):
    for start, num in [(0, 5), (5, 2), (250, 1)]:
        labels = (start + jnp.arange(num)) % 3
        part = sample(TINY, PARAMS, jax.random.key(1), labels, num, start=start)
        np.testing.assert_array_equal(part, drawn[start : start + num])
    other = sample(TINY, PARAMS, jax.random.key(2), jnp.arange(5) % 3, 5)
    assert (other != drawn[:5]).any()


def test_temperature_zero_and_top_one_are_the_argmax():
    labels = jnp.arange(3)
    want = np.zeros((3, LENGTH), np.int32)
    for i in range(LENGTH):
        want[:, i] = np.argmax(run(PARAMS, jnp.asarray(want), labels)[:, i], axis=-1)
    for options in ({"temperature": 0.0}, {"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        got = sample(TINY, PARAMS, jax.random.key(3), labels, 3, **options)
        np.testing.assert_array_equal(got, want, err_msg=str(options))


def test_draws_stay_within_what_is_kept():
    options = {"temperature": 1.5, "top_k": 4, "top_p": 0.8}
    labels = jnp.arange(60) % 3
    tokens = sample(TINY, PARAMS, jax.random.key(4), labels, 60, **options)
    keep = np.asarray(kept_codes(run(PARAMS, tokens, labels), **options))
    assert np.take_along_axis(keep, np.asarray(tokens)[..., None], -1).all()
    assert len(np.unique(tokens)) > 1


@pytest.mark.parametrize("n", [0, 3, 6])
def test_known_tokens_are_completed(drawn, n):
    """The given ones stay; given what would have been drawn, the rest is drawn as before."""
    got = sample(TINY, PARAMS, jax.random.key(1), jnp.arange(4) % 3, 4, known=drawn[:4, :n])
    np.testing.assert_array_equal(got, drawn[:4])
    known = (drawn[:4, :n] + 1) % 7
    got = sample(TINY, PARAMS, jax.random.key(1), jnp.arange(4) % 3, 4, known=known)
    np.testing.assert_array_equal(got[:, :n], known)
    assert n in (0, 6) or (got[:, n:] != drawn[:4, n:]).any()


def test_what_has_no_distribution_draws_minus_one():
    tokens = sample(TINY, PARAMS, jax.random.key(0), jnp.array([3, 1]), 2)
    assert (tokens[0] == -1).all()
    assert (tokens[1] >= 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num": 0}, "num"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"known": jnp.zeros((2, 7), jnp.int32)}, "an image has 6"),
        ({"labels": None}, "conditional"),
    ],
    ids=str,
)
def test_bad_options_are_one_line_value_errors(options, words):
    with pytest.raises(ValueError, match=words) as info:
        sample(TINY, PARAMS, jax.random.key(0), **{"labels": LABELS, "num": 2} | options)
    assert "\n" not in str(info.value)
