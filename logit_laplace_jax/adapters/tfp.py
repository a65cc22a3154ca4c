"""The logit-Laplace distribution for TensorFlow Probability on JAX.

It needs ``tfp-nightly``: tensorflow-probability 0.25, the last stable release, does not load under
jax 0.10 or newer.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, appendix A.3,
equation 2. Densities and entropies are in nats.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

import logit_laplace_jax as ll
from logit_laplace_jax.adapters import _draws, _missing

try:
    from tensorflow_probability.substrates import jax as tfp
    from tensorflow_probability.substrates.jax import bijectors as tfb
    from tensorflow_probability.substrates.jax import distributions as tfd
except (ModuleNotFoundError, AttributeError) as error:  # the latter from the stable release
    raise _missing("tfp", "tfp-nightly", error) from None

__all__ = ["LogitLaplace"]

_Properties = tfp.util.ParameterProperties


def _parameters(*values: Any) -> tuple[jnp.dtype, list[Any]]:
    """The type that the library computes in for these parameters, and the two in that type.

    JAX also rebuilds pytrees with placeholders for the arrays; those stay as they are.
    """
    known = (jax.Array, np.ndarray, np.generic, float, int, list, tuple)
    if not all(isinstance(v, known) for v in values):
        return jnp.dtype(jnp.float32), list(values)
    arrays = [jnp.asarray(v) for v in values]
    dtype = jax.eval_shape(ll.median, *arrays).dtype
    return dtype, [a.astype(dtype) for a in arrays]


def _require(condition: ArrayLike, message: str) -> None:
    """Raises ValueError where the condition is false for some element; silent under jit."""
    if not isinstance(condition, jax.core.Tracer) and not np.all(condition):
        raise ValueError(message)


class LogitLaplace(tfd.AutoCompositeTensorDistribution):
    r"""x = sigmoid(X) with X ~ Laplace(μ, b), on the open interval (0, 1).

        f(x | μ, b) = exp(-|logit x - μ| / b) / (2 b x (1 - x))

    A pytree like TFP's own distributions, with all of their methods; ``experimental_fit`` gives
    the maximum-likelihood estimate. ``log_prob`` is -inf, with gradients 0, at and beyond 0
    and 1; the tails of ``log_cdf`` and ``log_survival_function`` are exact. Samples are
    reparameterised: differentiable in both parameters.

    Args:
      loc: μ, any real, in logit space; the batch shape is its broadcast with ``log_scale``.
      log_scale: ln b, any real. (Not b: this is no ``scale`` of TFP's.)
      validate_args: raises ValueError, outside of jit, for parameters that are not finite and for
        values outside [0, 1].
      allow_nan_stats: if False, ``mode`` raises ValueError, outside of jit, where b >= 1; if True
        it is NaN there.
      name: the name that TFP shows.

    Raises:
      TypeError: a parameter is boolean or complex.
      ValueError: the shapes do not broadcast, or as said above.

    >>> d = LogitLaplace(jnp.array([0.0, 1.0]), -1.0)
    >>> d
    <tfp.distributions.LogitLaplace 'LogitLaplace' batch_shape=[2] event_shape=[] dtype=float32>
    >>> d.log_prob(0.5)
    Array([ 1.6931472, -1.0251...], dtype=float32)
    >>> d.sample(3, seed=jax.random.key(0)).shape
    (3, 2)
    """

    def __init__(
        self,
        loc: ArrayLike,
        log_scale: ArrayLike,
        validate_args: bool = False,
        allow_nan_stats: bool = True,
        name: str = "LogitLaplace",
    ) -> None:
        parameters = dict(locals())
        dtype, (self._loc, self._log_scale) = _parameters(loc, log_scale)
        super().__init__(
            dtype=dtype,
            reparameterization_type=tfd.FULLY_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: Any = None) -> dict[str, Any]:
        return {"loc": _Properties(), "log_scale": _Properties()}

    @property
    def loc(self) -> Array:
        """μ, in logit space."""
        return self._loc

    @property
    def log_scale(self) -> Array:
        """ln b."""
        return self._log_scale

    @property
    def _pair(self) -> tuple[Array, Array]:
        return self._loc, self._log_scale

    def _event_shape(self) -> Any:
        return tfp.tf2jax.TensorShape([])

    def _event_shape_tensor(self) -> Any:
        return np.zeros(0, np.int32)

    def _sample_n(self, n: Any, seed: Any = None) -> Array:
        key = tfp.random.sanitize_seed(seed)
        return ll.sample(key, *self._pair, shape=(int(n), *self.batch_shape))

    def _sample_and_log_prob(self, sample_shape: Any, seed: Any = None) -> tuple[Array, Array]:
        key, shape = tfp.random.sanitize_seed(seed), (*map(int, sample_shape), *self.batch_shape)
        return _draws.sample_and_log_prob(key, *self._pair, shape=shape)

    def _log_prob(self, x: Array) -> Array:
        return ll.log_prob(x, *self._pair)

    def _cdf(self, x: Array) -> Array:
        return ll.cdf(x, *self._pair)

    def _log_cdf(self, x: Array) -> Array:
        return ll.log_cdf(x, *self._pair)

    def _survival_function(self, x: Array) -> Array:
        return ll.survival(x, *self._pair)

    def _log_survival_function(self, x: Array) -> Array:
        return ll.log_survival(x, *self._pair)

    def _quantile(self, p: Array) -> Array:
        return ll.quantile(p, *self._pair)

    def _mean(self) -> Array:
        return ll.mean(*self._pair)

    def _variance(self) -> Array:
        return ll.variance(*self._pair)

    def _mode(self) -> Array:
        if not self.allow_nan_stats:
            _require(self._log_scale < 0, "mode is undefined where b >= 1, that is log_scale >= 0")
        return ll.mode(*self._pair)

    def _entropy(self) -> Array:
        return ll.entropy(*self._pair)

    @classmethod
    def _maximum_likelihood_parameters(cls, value: Array) -> dict[str, Array]:
        loc, log_scale = ll.fit(value, axis=0)
        return {"loc": loc, "log_scale": log_scale}

    def _default_event_space_bijector(self) -> Any:
        return tfb.Sigmoid(validate_args=self.validate_args)

    def _parameter_control_dependencies(self, is_init: bool) -> list[Any]:
        if is_init and self.validate_args:
            for name, value in (("loc", self._loc), ("log_scale", self._log_scale)):
                if isinstance(value, jax.Array):
                    _require(jnp.isfinite(value), f"{name} must be finite")
        return []

    def _sample_control_dependencies(self, x: Array) -> list[Any]:
        if self.validate_args:  # TFP counts the ends of an interval in
            _require((x >= 0) & (x <= 1), "values must lie in [0, 1]")
        return []


def register_kl(pairs: Iterable[tuple[type, type]], laplace: Any, sigmoid: Any) -> None:
    """Registers the KL divergence for pairs of classes, ours or compositions of two objects.

    Args:
      pairs: of p and q in KL(p‖q), each with loc and log_scale, or with distribution and bijector.
      laplace: the class, or classes, that the distribution of a composition must have.
      sigmoid: the class, or classes, that its bijector must have.
    """

    def parameters(d: Any) -> tuple[Array, Array]:
        if hasattr(d, "log_scale"):
            return d.loc, d.log_scale
        base, bijector = d.distribution, d.bijector
        onto_unit_interval = getattr(bijector, "low", None) is getattr(bijector, "high", None)
        if isinstance(base, laplace) and isinstance(bijector, sigmoid) and onto_unit_interval:
            return base.loc, jnp.log(base.scale)
        raise NotImplementedError(
            "KL with a LogitLaplace needs another, or a Laplace distribution under a Sigmoid "
            f"bijector onto (0, 1); got {base.name} under {bijector.name}"
        )

    def kl_divergence(p: Any, q: Any, *args: Any, **kwargs: Any) -> Array:
        """KL(p‖q) in nats, in closed form."""
        return ll.kl_divergence(*parameters(p), *parameters(q))

    for pair in pairs:
        tfd.RegisterKL(*pair)(kl_divergence)


_composition = tfd.TransformedDistribution
register_kl(
    [(LogitLaplace, LogitLaplace), (LogitLaplace, _composition), (_composition, LogitLaplace)],
    tfd.Laplace,
    tfb.Sigmoid,
)
