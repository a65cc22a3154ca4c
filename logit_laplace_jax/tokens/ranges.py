"""The range of pixel values, said out loud: 0..255, 0..1 or -1..1, checked on the way in.

A wrong range is the commonest mistake with a published tokenizer, and a silent one: black images,
or the same token everywhere. So floating-point values never have a default here, and

* what **cannot** be right is an error: values outside the stated range, NaN, a range that does not
  go with the dtype;
* what is only **suspect** is a `RangeWarning`: values that are all inside the stated range but look
  like those of another (`as_pixels` lists the cases). They may be right, so nothing is refused.

That values were mapped by φ already (into [ε, 1-ε]) cannot be seen unless they touch both ends.
"""

import functools
import warnings
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.checks import RangeWarning, check

ValueRange = Literal["uint8", "unit", "symmetric"]
"""`uint8`: dtype uint8, 0..255. `unit`: floats 0..1. `symmetric`: floats -1..1."""

_CHOICES = "'uint8' (dtype uint8, 0..255), 'unit' (floats 0..1) or 'symmetric' (floats -1..1)"


def as_array(values: Any) -> Any:
    """Other libraries' arrays (torch's tensors on the host, ...) as NumPy's; the rest as it is."""
    if isinstance(values, np.ndarray | jax.Array) or not hasattr(values, "__array__"):
        return values
    return np.asarray(values)


def as_pixels(
    values: np.ndarray | jax.Array, value_range: ValueRange | None = None, eps: float = 0.1
) -> np.ndarray | jax.Array:
    """Brings images of a stated range to what `logit_laplace_jax.map_pixels` takes.

    Values may exceed their range by four units in the last place of 1 in their own dtype (4.8e-7
    in float32), as sums and resampling in it leave them; these are clipped. Float values need not
    lie on the 256 levels.

    The values of floating-point arrays are looked at in one pass, which waits for them. Under a
    caller's own `jit` there are no values to look at: there only dtypes and names are checked, and
    values outside are clipped (`logit_laplace_jax.debug_checks` finds them, and NaN).

    Args:
      values: an array of any shape; uint8 or floating point.
      value_range: the range. None is `uint8` for a uint8 array, and an error for any other.
      eps: ε of the map that will be applied, to recognise values that it was applied to already.

    Returns:
      The same array for uint8; else float32 in [0, 1], of the same shape.

    Raises:
      TypeError: the dtype is neither uint8 nor floating point, or it is floating point and no range
        is stated.
      ValueError: no such range, one that does not go with the dtype, NaN, or values outside it.

    Warns:
      RangeWarning: uint8 on the host with values 0 and 1 only; `unit` with no value above 1/255, or
        reaching exactly from ε to 1-ε; `symmetric` with no negative value in an image that is not
        flat.

    Example:
      >>> as_pixels(np.float32([-1.0, 0.0, 1.0]), "symmetric")
      Array([0. , 0.5, 1. ], dtype=float32)
      >>> as_pixels(np.float32([0.0, 255.0]), "unit")
      Traceback (most recent call last):
        ...
      ValueError: value_range='unit' means floats in 0..1, but the pixels go from 0 to 255: they ...
    """
    check_name(value_range)
    dtype = getattr(values, "dtype", None)
    if dtype == np.uint8:
        if value_range not in (None, "uint8"):
            raise ValueError(
                f"value_range={value_range!r} is for floats, but the pixels are uint8: "
                "leave value_range out"
            )
        _check_bytes(values)
        return values
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        found = type(values).__name__ if dtype is None else dtype
        raise TypeError(
            f"pixels must be an array of uint8 (0..255), or of floats with a value_range, got "
            f"{found}"
        )
    extremes = None
    if not isinstance(values, jax.core.Tracer) and values.size:
        low, high = np.asarray(_extremes(values), np.float64).tolist()
        extremes = low, high
    if value_range is None:
        guess = "" if extremes is None else f"; {_described(*extremes)}"
        raise TypeError(f"pixels of dtype {dtype} need a value_range, {_CHOICES}{guess}")
    if value_range == "uint8":
        raise ValueError(
            f"value_range='uint8' is for dtype uint8, got {dtype}: for floats in 0..255 pass "
            "np.rint(pixels).astype(np.uint8)"
        )
    # Wider types are rounded to float32 before anybody looks at them.
    slack = 4.0 * max(float(jnp.finfo(dtype).eps), float(jnp.finfo(jnp.float32).eps))
    if extremes is not None:
        _check_values(value_range, *extremes, slack, eps)
    return _to_unit(values, symmetric=value_range == "symmetric", slack=slack)


def from_unit(images: jax.Array, value_range: ValueRange = "unit") -> jax.Array:
    """Brings images in [0, 1] to a range.

    Args:
      images: float32 in [0, 1], any shape.
      value_range: `unit`: as they are. `symmetric`: float32 2v - 1. `uint8`: uint8, 255 v rounded
        to the nearest integer, halves to the even one.

    Raises:
      ValueError: no such range.

    Example:
      >>> from_unit(jnp.array([0.0, 0.5, 1.0]), "uint8")
      Array([  0, 128, 255], dtype=uint8)
      >>> from_unit(jnp.array([0.0, 0.5, 1.0]), "symmetric")
      Array([-1.,  0.,  1.], dtype=float32)
    """
    check_name(value_range)
    if value_range == "uint8":
        return _to_bytes(images)
    return 2.0 * images - 1.0 if value_range == "symmetric" else images


def check_name(value_range: str | None) -> None:
    """Refuses a range that does not exist.

    Raises:
      ValueError: neither None nor one of `ValueRange`.

    >>> check_name("0-1")
    Traceback (most recent call last):
      ...
    ValueError: unknown value_range '0-1': give 'uint8' (dtype uint8, 0..255), 'unit' (floats ...
    """
    if value_range is not None and value_range not in get_args(ValueRange):
        raise ValueError(f"unknown value_range {value_range!r}: give {_CHOICES}")


@jax.jit
def _extremes(values: jax.Array) -> jax.Array:
    """The least and the greatest value, both NaN if any is."""
    # Asked for by itself: min and max of a long array lose NaN on CPU (jax 0.10.2 and 0.12).
    any_nan = jnp.isnan(values).any()
    extremes = jnp.stack([values.min(), values.max()]).astype(jnp.float32)
    return jnp.where(any_nan, jnp.float32(jnp.nan), extremes)


@functools.partial(jax.jit, static_argnames=("symmetric", "slack"))
def _to_unit(values: jax.Array, symmetric: bool, slack: float) -> jax.Array:
    values = values.astype(jnp.float32)
    low = -1.0 if symmetric else 0.0
    check(
        lambda: jnp.all((values >= low - slack) & (values <= 1.0 + slack)),
        "pixels lie outside the stated value_range",
    )
    return jnp.clip(0.5 * values + 0.5 if symmetric else values, 0.0, 1.0)


@jax.jit
def _to_bytes(images: jax.Array) -> jax.Array:
    return jnp.round(255.0 * images).astype(jnp.uint8)


def _described(low: float, high: float) -> str:
    """What values from ``low`` to ``high`` look like, and what to do with them."""
    if np.isnan(low):
        return "they hold NaN"
    if low >= 0 and 2 < high <= 255:
        return "they look like 0..255: pass np.rint(pixels).astype(np.uint8)"
    if low >= 0 and high <= 1:
        return "they look like 0..1: pass value_range='unit'"
    if -1 <= low < 0 and high <= 1:
        return "they look like -1..1: pass value_range='symmetric'"
    if -10 < low < 0 and high < 10:
        return "they look normalised by a mean and a deviation: undo that first"
    if low >= 0 and high <= 2:
        return "if resampling overshot the range, clip them first"
    return "they fit no range"


def _check_bytes(values: Any) -> None:
    """Warns of what is suspect; on a device a look would make every caller wait."""
    if isinstance(values, np.ndarray) and values.size and values.max() == 1:
        _warn("every value is 0 or 1 of 255: floats in 0..1 cast to uint8 without 255 times them?")


def _check_values(
    value_range: ValueRange, low: float, high: float, slack: float, eps: float
) -> None:
    """Refuses what cannot be of the range, and warns of what is suspect."""
    if np.isnan(low):
        raise ValueError("the pixels hold NaN")
    least = -1 if value_range == "symmetric" else 0
    if low < least - slack or high > 1 + slack:
        raise ValueError(
            f"value_range={value_range!r} means floats in {least}..1, but the pixels go from "
            f"{low:g} to {high:g}: {_described(low, high)}"
        )
    if value_range == "symmetric":
        if 0 <= low < high:
            _warn("no value is negative: are they in 0..1, value_range='unit'?")
    elif 0 < high <= np.float32(1 / 255):
        _warn(f"the greatest value is {high:.2g}, less than a grey level: divided by 255 twice?")
    elif eps > 0 and max(abs(low - eps), abs(high - 1 + eps)) < 1e-6:
        _warn(f"they reach exactly from {eps:g} to {1 - eps:g}: mapped by map_pixels already?")


def _warn(what: str) -> None:
    # Levels: this function, the one that checks, as_pixels, Tokenizer.encode, its caller.
    warnings.warn(f"the pixels may be of another range: {what}", RangeWarning, stacklevel=5)
