"""The mean of the training loss, value and gradients in one pass.

On a GPU or TPU, and wherever the compiler fuses, these are the means of the elementwise losses and
nothing else. XLA's CPU backend instead reads everything once for the mean and once for each
gradient; there a C function does all in one pass, if it can be built (`native/library.py`). The
elementwise form stays the reference: it is what is batched, differentiated twice, differentiated in
x, and spread over devices.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from logit_laplace_jax import distribution, losses
from logit_laplace_jax import pixels as pixel_maps
from logit_laplace_jax.checks import check
from logit_laplace_jax.distribution.arguments import reject_integers
from logit_laplace_jax.native import library

Results = tuple[Array, Array, Array]
"""The mean loss, and its gradients in loc and log_scale."""


@jax.jit
def logit_laplace_mean_loss(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """``logit_laplace_loss(x, loc, log_scale).mean()``, in one pass on CPUs too.

    The same number to rounding, and the same gradients. On a CPU and a single device it is
    computed by a C function, from float32 or from bfloat16 ``loc`` and ``log_scale``, built on
    first use with the system's compiler (``cc``, or ``CC``) and kept in the user's cache folder;
    everywhere else by XLA. ``LOGIT_LAPLACE_JAX_NATIVE=0`` in the environment leaves it to XLA there
    too (a program that is to be exported needs that: it can hold no function of this machine).

    Args:
      x: targets in (0, 1), floating point: pixels mapped by :func:`map_pixels`; any shape.
      loc: predicted μ, broadcastable with ``x``.
      log_scale: predicted ln b, broadcastable with ``x``.

    Returns:
      The mean over all elements of the broadcast shape in nats, a scalar, in float32 at least;
      +inf if any ``x`` is outside (0, 1), whose own gradients are 0.

    Raises:
      TypeError: ``x`` is an integer array (pixels that were not mapped).
      ValueError: the shapes do not broadcast.

    Source: Ramesh et al. 2021, appendix A.3, equation 2, with the sign turned.

    >>> x = jnp.array([0.5, 0.9])
    >>> print(f"{logit_laplace_mean_loss(x, loc=0.0, log_scale=0.0):.4f}")
    -0.1054
    >>> print(jax.grad(logit_laplace_mean_loss, argnums=1)(x, jnp.array([1.0, 1.0]), 0.0))
    [ 0.5 -0.5]
    """
    reject_integers("x", x)
    x, *wide = distribution.broadcast(x=x, loc=loc, log_scale=log_scale)
    check(lambda: jnp.all((x > 0) & (x < 1)), "x must lie in (0, 1)")
    distribution.debug_parameters(*wide)
    loc, log_scale = _statistics(wide, loc, log_scale)
    return _mean_loss(x, loc, log_scale, None)


def logit_laplace_pixel_mean_loss(
    pixels: ArrayLike, loc: ArrayLike, log_scale: ArrayLike, eps: float = 0.1
) -> Array:
    """``logit_laplace_pixel_loss(pixels, loc, log_scale, eps).mean()``, in one pass on CPUs too.

    See :func:`logit_laplace_mean_loss`.

    Args:
      pixels: uint8 in 0..255, any shape.
      loc: predicted μ of the *mapped* pixels, broadcastable with ``pixels``.
      log_scale: predicted ln b, broadcastable with ``pixels``.
      eps: ε of the map, in [0, 0.5), a Python number.

    Returns:
      The mean over all elements of the broadcast shape in nats, a scalar, in float32 at least.

    Raises:
      TypeError: ``pixels`` is not uint8.
      ValueError: ``eps`` is outside [0, 0.5), or the shapes do not broadcast.

    >>> pixels = np.array([0, 128], np.uint8)
    >>> print(f"{logit_laplace_pixel_mean_loss(pixels, loc=0.0, log_scale=0.0):.4f}")
    -0.1022
    """
    return _pixel_mean_loss(pixel_maps.as_uint8(pixels), loc, log_scale, pixel_maps.check_eps(eps))


@partial(jax.jit, static_argnames=("eps",))
def _pixel_mean_loss(pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float) -> Array:
    like, *wide = distribution.broadcast(pixels=pixels, loc=loc, log_scale=log_scale)
    distribution.debug_parameters(*wide)
    targets = jnp.broadcast_to(pixels, like.shape)
    loc, log_scale = _statistics(wide, loc, log_scale)
    return _mean_loss(targets, loc, log_scale, eps)


def _statistics(wide: list[Array], *given: ArrayLike) -> list[Array]:
    """``wide``, float32 and broadcast; but bfloat16 as it is, if both came in it.

    The loss converts them where it reads them, and the C function does that in the same pass.
    """
    arrays = [jnp.asarray(a) for a in given]
    if any(a.dtype != jnp.bfloat16 for a in arrays):
        return wide
    return [jnp.broadcast_to(a, wide[0].shape) for a in arrays]


# --- What is differentiated ---------------------------------------------------------------------


def _mean_loss(target: Array, loc: Array, log_scale: Array, eps: float | None) -> Array:
    if target.dtype in (jnp.float32, jnp.uint8) and _one_pass(loc, log_scale):
        return _fused(target, loc, log_scale, eps)
    return _reference(target, loc, log_scale, eps)


def _one_pass(*arrays: Array) -> bool:
    # XLA cannot split a foreign function over devices.
    alone = jax.default_backend() == "cpu" and jax.device_count() == 1
    known = all(a.dtype in (jnp.float32, jnp.bfloat16) for a in arrays)
    return alone and known and library.ready()


def _reference(target: Array, loc: Array, log_scale: Array, eps: float | None) -> Array:
    """The mean of the elementwise loss; ``eps`` is None for targets in (0, 1)."""
    if eps is None:
        return losses.logit_laplace_loss(target, loc, log_scale).mean()
    return losses.logit_laplace_pixel_loss(target, loc, log_scale, eps).mean()


def _reference_results(
    target: Array, loc: Array, log_scale: Array, eps: float | None = None
) -> Results:
    value, gradients = jax.value_and_grad(_reference, argnums=(1, 2))(target, loc, log_scale, eps)
    return value, *gradients


def _level_map(eps: float) -> np.ndarray:
    """(a, b, c) of the map a k + b k + c of levels k: (1 - 2ε)/255 in two parts, and ε.

    In two parts because 255 roundings of the factor would be as many of x.
    """
    step = (1.0 - 2.0 * eps) / 255.0
    return np.array([step, step - float(np.float32(step)), eps], np.float32)


@lru_cache(maxsize=64)
def _foreign(eps: float | None) -> Any:
    """The C function, for given ε of 8-bit targets or None."""

    @custom_vmap
    def call(target: Array, loc: Array, log_scale: Array) -> Results:
        like = jax.ShapeDtypeStruct(loc.shape, loc.dtype)
        types = (jax.ShapeDtypeStruct((), jnp.float32), like, like)
        operands = (target, loc, log_scale, *([] if eps is None else [_level_map(eps)]))
        value, by_loc, by_log_scale = jax.ffi.ffi_call(library.TARGET, types)(*operands)
        return value, by_loc, by_log_scale

    @call.def_vmap
    def batched(size: int, is_batched: list[bool], *args: Array) -> tuple[Results, Any]:
        axes = [0 if has_axis else None for has_axis in is_batched]
        results = jax.vmap(partial(_reference_results, eps=eps), axes, axis_size=size)(*args)
        return results, (True, True, True)

    return call


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _results(target: Array, loc: Array, log_scale: Array, eps: float | None) -> Results:
    return _foreign(eps)(target, loc, log_scale)


@_results.defjvp
def _results_jvp(eps: float | None, primals: Any, tangents: Any) -> Any:
    return jax.jvp(partial(_reference_results, eps=eps), primals, tangents)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _fused(target: Array, loc: Array, log_scale: Array, eps: float | None) -> Array:
    return _results(target, loc, log_scale, eps)[0]


def _fused_jvp(eps: float | None, primals: Any, tangents: Any) -> tuple[Array, Array]:
    if eps is None and not isinstance(tangents[0], SymbolicZero):
        return jax.jvp(partial(_reference, eps=eps), primals, _instantiated(primals, tangents))
    value, *gradients = _results(*primals, eps)
    tangent = jnp.zeros_like(value)
    for gradient, along in zip(gradients, tangents[1:], strict=True):
        if not isinstance(along, SymbolicZero):
            wide, along = (a.astype(value.dtype) for a in (gradient, along))
            tangent = tangent + jnp.vdot(wide, along)
    return value, tangent


def _instantiated(primals: Any, tangents: Any) -> Any:
    return tuple(
        jnp.zeros_like(p) if isinstance(t, SymbolicZero) else t
        for p, t in zip(primals, tangents, strict=True)
    )


_fused.defjvp(_fused_jvp, symbolic_zeros=True)
