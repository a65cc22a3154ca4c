"""Likelihoods by name: what is built, and how a mistake is said."""

import pytest

from logit_laplace_jax import likelihoods


def test_names_are_sorted_and_every_one_builds():
    names = likelihoods.names()
    assert list(names) == sorted(set(names))
    assert "logit_laplace" in names
    for name in names:
        built = likelihoods.get(name)
        assert built.name == name
        assert built.num_stats >= 1


def test_the_contracts_families():
    expected = "logit_laplace laplace normal logistic logit_normal truncated_normal "
    expected += "truncated_laplace continuous_bernoulli logistic_mixture categorical"
    assert set(likelihoods.names()) == set(expected.split())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("laplace", {"scale", "fixed_scale", "min_log_scale"}),
        ("logit_normal", {"scale", "fixed_scale", "min_log_scale", "eps"}),
        ("logistic_mixture", {"components", "coupled", "min_log_scale"}),
        ("categorical", set()),
    ],
)
def test_options_of_a_family(name, options):
    assert set(likelihoods.options(name)) == options
    with pytest.raises(ValueError, match="did you mean"):
        likelihoods.options(name + "e")


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("categorical", {"eps": 0.1}, TypeError, ["'categorical'", "'eps'", "none"]),
        ("continuous_bernoulli", {"scale": "fixed"}, TypeError, ["'scale'", "none"]),
        ("laplace", {"eps": 0.1}, TypeError, ["'eps'", "fixed_scale"]),
        ("logit_laplcae", {}, ValueError, ["logit_laplcae", "did you mean 'logit_laplace'"]),
        ("", {}, ValueError, ["unknown likelihood ''", "logit_laplace"]),
        ("zebra", {}, ValueError, ["'zebra'", "choose one of", "logit_laplace"]),
        ("logit_laplace", {"epsilon": 0.1}, TypeError, ["'epsilon'", "eps", "min_log_scale"]),
        ("logit_laplace", {"eps": 0.5}, ValueError, ["eps", "0.5"]),
        ("logit_laplace", {"eps": -0.1}, ValueError, ["eps", "-0.1"]),
        ("logit_laplace", {"eps": float("nan")}, ValueError, ["eps", "nan"]),
        ("logit_laplace", {"min_log_scale": float("inf")}, ValueError, ["min_log_scale", "inf"]),
        ("logit_laplace", {"min_log_scale": float("nan")}, ValueError, ["min_log_scale", "nan"]),
    ],
)
def test_a_mistake_is_said_in_one_line(name, options, error, words):
    with pytest.raises(error) as caught:
        likelihoods.get(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_options_arrive():
    built = likelihoods.get("logit_laplace", eps=0.2, min_log_scale=-3.0)
    assert (built.eps, built.min_log_scale) == (0.2, -3.0)
