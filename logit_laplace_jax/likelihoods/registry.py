"""Likelihoods by name."""

import dataclasses
import difflib
from typing import Any

from logit_laplace_jax.likelihoods.base import Likelihood
from logit_laplace_jax.likelihoods.categorical import CategoricalLikelihood
from logit_laplace_jax.likelihoods.continuous_bernoulli import ContinuousBernoulliLikelihood
from logit_laplace_jax.likelihoods.laplace import LaplaceLikelihood
from logit_laplace_jax.likelihoods.logistic import LogisticLikelihood
from logit_laplace_jax.likelihoods.logistic_mixture import LogisticMixtureLikelihood
from logit_laplace_jax.likelihoods.logit_laplace import LogitLaplaceLikelihood
from logit_laplace_jax.likelihoods.logit_normal import LogitNormalLikelihood
from logit_laplace_jax.likelihoods.normal import NormalLikelihood
from logit_laplace_jax.likelihoods.truncated_laplace import TruncatedLaplaceLikelihood
from logit_laplace_jax.likelihoods.truncated_normal import TruncatedNormalLikelihood

_FAMILIES: dict[str, type[Likelihood]] = {
    family.name: family
    for family in (
        LogitLaplaceLikelihood,
        LaplaceLikelihood,
        NormalLikelihood,
        LogisticLikelihood,
        LogitNormalLikelihood,
        TruncatedNormalLikelihood,
        TruncatedLaplaceLikelihood,
        ContinuousBernoulliLikelihood,
        LogisticMixtureLikelihood,
        CategoricalLikelihood,
    )
}


def names() -> tuple[str, ...]:
    """The registered names, sorted.

    >>> "logit_laplace" in names()
    True
    """
    return tuple(sorted(_FAMILIES))


def options(name: str) -> tuple[str, ...]:
    """The names of that family's options, in the order of its fields.

    Raises:
      ValueError: the name is unknown.

    >>> options("logit_laplace")
    ('scale', 'fixed_scale', 'min_log_scale', 'eps')
    >>> options("categorical")
    ()
    """
    return tuple(field.name for field in dataclasses.fields(_family(name)))


def get(name: str, **options: Any) -> Likelihood:
    """Builds the likelihood of that name.

    Args:
      name: one of :func:`names`.
      **options: the family's own options, such as ``eps`` and ``min_log_scale``.

    Raises:
      ValueError: the name is unknown, or an option's value is out of its range.
      TypeError: the family has no such option.

    >>> get("logit_laplace", min_log_scale=-5.0).min_log_scale
    -5.0
    >>> get("logit_laplcae")
    Traceback (most recent call last):
    ...
    ValueError: unknown likelihood 'logit_laplcae'; did you mean 'logit_laplace'?
    """
    family = _family(name)
    known = {field.name for field in dataclasses.fields(family)}
    for option in options:
        if option not in known:
            has = ", ".join(sorted(known)) or "none"
            raise TypeError(f"likelihood {name!r} has no option {option!r}; it has {has}")
    return family(**options)


def _family(name: str) -> type[Likelihood]:
    if name not in _FAMILIES:
        close = difflib.get_close_matches(name, _FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names())}"
        raise ValueError(f"unknown likelihood {name!r}; {hint}")
    return _FAMILIES[name]
