"""Likelihoods by name."""

import dataclasses
import difflib
from typing import Any

from logit_laplace_jax.likelihoods.base import Likelihood
from logit_laplace_jax.likelihoods.logit_laplace import LogitLaplaceLikelihood

_FAMILIES: dict[str, type] = {"logit_laplace": LogitLaplaceLikelihood}


def names() -> tuple[str, ...]:
    """The registered names, sorted.

    >>> "logit_laplace" in names()
    True
    """
    return tuple(sorted(_FAMILIES))


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
    if name not in _FAMILIES:
        close = difflib.get_close_matches(name, _FAMILIES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names())}"
        raise ValueError(f"unknown likelihood {name!r}; {hint}")
    family = _FAMILIES[name]
    known = {field.name for field in dataclasses.fields(family)}
    for option in options:
        if option not in known:
            raise TypeError(
                f"likelihood {name!r} has no option {option!r}; it has {', '.join(sorted(known))}"
            )
    likelihood: Likelihood = family(**options)
    return likelihood
