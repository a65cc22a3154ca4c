"""Range checks for debugging, off unless asked for, and a word on values of a wrong range.

A check makes an effect of its own in a traced program even where nobody looks at it, and JAX
dispatches a compiled program with effects through Python: some 200 µs a call in place of 10.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax import Array

# Known to the cache of jax.jit: what was traced without checks is traced anew with them.
_enabled = jax.make_user_context(False)


def debug_checks(enabled: bool = True) -> AbstractContextManager[Any]:
    """Switches on, for a block, the library's range checks behind ``checkify``.

    In the block every function checks that its parameters are finite and that values and pixels
    lie in their ranges. Called on concrete arrays it raises ``checkify.JaxRuntimeError``, a
    ValueError. Inside ``jit``, ``grad`` or ``vmap``, ``jax.experimental.checkify`` must transform
    the calling function, and tells what failed; without it nothing is reported.

    Args:
      enabled: False switches them off again in an inner block.

    Returns:
      A context manager. It belongs to the thread that enters it.

    >>> import jax.numpy as jnp
    >>> import logit_laplace_jax as ll
    >>> from jax.experimental import checkify
    >>> checked = checkify.checkify(jax.jit(ll.logit_laplace_loss))
    >>> with ll.debug_checks():
    ...     error, value = checked(jnp.float32(0.5), jnp.float32(jnp.nan), 0.0)
    >>> print(error.get().split(" (")[0])
    loc must be finite
    """
    context: AbstractContextManager[Any] = _enabled(enabled)
    return context


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``jax.jit``, and under :func:`debug_checks` a call on concrete arrays raises by itself.

    >>> with debug_checks():
    ...     jit(lambda v: check(lambda: v > 0, "v must be positive"))(-1.0)
    Traceback (most recent call last):
    jax._src.checkify.JaxRuntimeError: v must be positive (...)
    """
    compiled = jax.jit(function, **options)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not _enabled.value or _traced((args, kwargs)):
            return compiled(*args, **kwargs)
        from jax.experimental import checkify

        error, result = checkify.checkify(lambda: compiled(*args, **kwargs))()
        if not _traced(error):  # as it is inside of a trace that none of the arguments is part of
            error.throw()
        return result

    return call


def check(holds: Callable[[], Array], message: str) -> None:
    """Reports ``message`` where ``holds()``, a scalar, is false; only under :func:`debug_checks`.

    >>> check(lambda: 1 / 0, "never evaluated")
    """
    if _enabled.value:
        from jax.experimental import checkify

        held = holds()
        if _traced(held):
            checkify.debug_check(held, message)
        else:
            checkify.check(held, message)


class RangeWarning(UserWarning):
    """Values that may be right, but look like those of another range."""


_LOOKS = 8
"""Eager calls whose values are looked at, for each kind of argument: a look waits for them."""

_looked: dict[str, int] = {}


def suspect(kind: str, values: Any, described: Callable[[float, float], str | None]) -> None:
    """Warns, once, where the values of a concrete array look like those of another range.

    Args:
      kind: what is asked; a few calls are looked at for each, and none after a warning.
      values: an array; nothing is done if it is traced, empty, or spread over several hosts.
      described: of the least and the greatest value, what they look like and what to do; None if
        they are as they should be. NaN among the values makes both NaN.

    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     suspect("x of an example", np.ones(3), lambda low, high: f"all lie at {low}")
    >>> str(told[0].message)
    'all lie at 1.0'
    """
    if _looked.get(kind, 0) >= _LOOKS or _traced(values):
        return
    if isinstance(values, Array) and not values.is_fully_addressable:
        return
    _looked[kind] = _looked.get(kind, 0) + 1
    with jax.transfer_guard("allow"):
        array = np.asarray(values)
    if array.size and (what := described(float(array.min()), float(array.max()))):
        _looked[kind] = _LOOKS
        warnings.warn(what, RangeWarning, stacklevel=3)


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
