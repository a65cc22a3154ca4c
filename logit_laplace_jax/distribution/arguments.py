"""What every public function does with its arguments: types, shapes, ranges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from logit_laplace_jax.checks import check


def working_arrays(**named: ArrayLike) -> list[Array]:
    """Casts the named arguments to the working type: float64 if one of them is, else float32.

    Casts are explicit, so that callers may forbid implicit promotion
    (``jax_numpy_dtype_promotion='strict'``).

    Raises:
      TypeError: an argument is boolean, complex or not numeric.

    >>> [a.dtype.name for a in working_arrays(x=jnp.float16(0.5), loc=0)]
    ['float32', 'float32']
    """
    arrays = {name: jnp.asarray(value) for name, value in named.items()}
    for name, array in arrays.items():
        if not (
            jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)
        ):
            raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    strong = [a.dtype for a in arrays.values() if not a.weak_type]
    floats = [d for d in strong if jnp.issubdtype(d, jnp.floating)]
    default = jnp.float32 if floats else jnp.result_type(float)
    dtype = jnp.float64 if jnp.dtype("float64") in floats else default
    return [lax.convert_element_type(a, dtype) for a in arrays.values()]


def broadcast(**named: ArrayLike) -> list[Array]:
    """The named arguments in the working type, broadcast against each other.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> [a.shape for a in broadcast(x=jnp.zeros((2, 1)), loc=jnp.zeros(3))]
    [(2, 3), (2, 3)]
    """
    arrays = working_arrays(**named)
    try:
        shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        shapes = ", ".join(f"{name} {a.shape}" for name, a in zip(named, arrays, strict=True))
        raise ValueError(f"shapes do not broadcast: {shapes}") from None
    return of_one_sharding([jnp.broadcast_to(a, shape) for a in arrays])


def of_one_sharding(arrays: list[Array]) -> list[Array]:
    """Arrays of one rank, each sharded along whatever one of them is sharded along.

    Under a mesh with Explicit axes (what ``jax.make_mesh`` gives) a sharding is part of the type,
    and a choice between two arrays wants both of one sharding. Elsewhere nothing is to be done.

    >>> [a.shape for a in of_one_sharding([jnp.ones(2), jnp.zeros(2)])]
    [(2,), (2,)]
    """
    shardings = [jax.typeof(a).sharding for a in arrays]
    if len({s.spec for s in shardings}) == 1:
        return arrays
    axes = [
        next((axis for axis in along if axis is not None), None)
        for along in zip(*(s.spec for s in shardings), strict=True)
    ]
    mesh = next(s.mesh for s in shardings if any(axis is not None for axis in s.spec))
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return [jax.sharding.reshard(a, sharding) for a in arrays]


def gathered(array: Array, axes: tuple[int, ...]) -> Array:
    """The array, no longer sharded along ``axes``: for sorting, or reshaping, under Explicit axes.

    >>> gathered(jnp.ones(2), (0,))
    Array([1., 1.], dtype=float32)
    """
    sharding = jax.typeof(array).sharding
    spec = [None if i in axes else along for i, along in enumerate(sharding.spec)]
    if tuple(spec) == tuple(sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def reject_integers(name: str, value: ArrayLike) -> None:
    """Refuses integer arrays as ``x``: raw pixels by mistake. A Python 0 or 1 is an edge.

    Raises:
      TypeError: ``value`` is an integer array.

    >>> reject_integers("x", 1)
    """
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.integer) and not array.weak_type:
        raise TypeError(
            f"{name} must be floating point in (0, 1), got dtype {array.dtype}; "
            "map 8-bit pixels with map_pixels, or use logit_laplace_pixel_loss"
        )


def debug_parameters(loc: Array, log_scale: Array) -> None:
    """Checks both for NaN and infinity, under :func:`logit_laplace_jax.debug_checks`.

    >>> debug_parameters(jnp.array(jnp.nan), jnp.array(0.0))
    """
    check(lambda: jnp.all(jnp.isfinite(loc)), "loc must be finite")
    check(lambda: jnp.all(jnp.isfinite(log_scale)), "log_scale must be finite")
