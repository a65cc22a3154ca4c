"""Range checks for debugging: off unless asked for, and then without a trace in what is compiled.

A check makes an effect of its own in a traced program even where nobody looks at it, and JAX
dispatches a compiled program with effects through Python: some 200 µs a call in place of 10.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import Array

# Known to the cache of jax.jit: what was traced without checks is traced anew with them.
_enabled = jax.make_user_context(False)


def debug_checks(enabled: bool = True) -> AbstractContextManager[Any]:
    """Switches on, for a block, the library's range checks behind ``checkify``.

    In the block every function checks that its parameters are finite and that values and pixels
    lie in their ranges. What fails is told by ``jax.experimental.checkify``, which must transform
    the calling function; without it nothing is reported.

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


def check(holds: Callable[[], Array], message: str) -> None:
    """Reports ``message`` where ``holds()``, a scalar, is false; only under :func:`debug_checks`.

    >>> check(lambda: 1 / 0, "never evaluated")
    """
    if _enabled.value:
        from jax.experimental import checkify

        checkify.debug_check(holds(), message)
