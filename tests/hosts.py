"""The three libraries that the adapters serve, under common names, and arguments for them."""

import importlib
import types

import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll

U32 = 2.0**-24
_RNG = np.random.default_rng(3)
X = _RNG.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
LOC = _RNG.normal(size=(4, 3)).astype(np.float32)
LOG_SCALE = _RNG.uniform(-1.2, 1, (4, 3)).astype(np.float32)
# At these arguments the terms of a log density sum to less than 40, and two correct results differ
# by at most two bounds of 8u times the terms.
TOL = 16 * 40 * U32

_TAILS = {"log_prob": ll.log_prob, "cdf": ll.cdf, "log_cdf": ll.log_cdf}
_UPPER = {"survival_function": ll.survival, "log_survival_function": ll.log_survival}


def load(name):
    """One of the libraries.

    Returns:
      name; adapter: our class; dist: the library's distributions; compose(loc, log_scale): its own
      composition; draw(d, key, shape); scored(d, key, n): draws and their log densities; of_x and
      of_parameters: its methods, with the library's functions that they are; composed: those that
      its own composition has too; kl(p, q).
    """
    return _HOSTS[name]()


def _numpyro():
    library, adapter = _import("numpyro", "numpyro")
    dist = library.distributions
    sigmoid = dist.transforms.SigmoidTransform()

    def scored(d, key, n):
        x, intermediates = d.sample_with_intermediates(key, (n,))
        return x, d.log_prob(x, intermediates)

    return types.SimpleNamespace(
        name="numpyro",
        adapter=adapter,
        dist=dist,
        compose=lambda loc, log_scale: dist.TransformedDistribution(
            dist.Laplace(loc, jnp.exp(log_scale)), sigmoid
        ),
        draw=lambda d, key, shape: d.sample(key, shape),
        scored=scored,
        of_x={**_TAILS, "icdf": ll.quantile},
        of_parameters=("mean", "variance", "mode", "entropy"),
        composed=("log_prob", "cdf", "icdf"),
        kl=dist.kl_divergence,
    )


def _tfp():
    library, adapter = _import("tfp", "tensorflow_probability.substrates.jax")
    tfd, sigmoid = library.distributions, library.bijectors.Sigmoid()
    of_x = {**_TAILS, **_UPPER, "quantile": ll.quantile}
    return types.SimpleNamespace(
        name="tfp",
        adapter=adapter,
        dist=tfd,
        compose=lambda loc, log_scale: tfd.TransformedDistribution(
            tfd.Laplace(loc, jnp.exp(log_scale)), sigmoid
        ),
        draw=lambda d, key, shape: d.sample(shape, seed=key),
        scored=lambda d, key, n: d.experimental_sample_and_log_prob(n, seed=key),
        of_x=of_x,
        of_parameters=("mean", "variance", "mode", "entropy"),
        composed=tuple(of_x),
        kl=tfd.kl_divergence,
    )


def _distrax():
    library, adapter = _import("distrax", "distrax")
    return types.SimpleNamespace(
        name="distrax",
        adapter=adapter,
        dist=library,
        compose=lambda loc, log_scale: library.Transformed(
            library.Laplace(loc, jnp.exp(log_scale)), library.Sigmoid()
        ),
        draw=lambda d, key, shape: d.sample(seed=key, sample_shape=shape),
        scored=lambda d, key, n: d.sample_and_log_prob(seed=key, sample_shape=n),
        of_x={**_TAILS, **_UPPER},
        of_parameters=("mean", "variance", "median", "mode", "entropy"),
        composed=("log_prob", "prob"),
        kl=lambda p, q: p.kl_divergence(q),
    )


def _import(host, module):
    library = pytest.importorskip(module, reason=f"needs the extra [{host}]")
    return library, importlib.import_module(f"logit_laplace_jax.adapters.{host}").LogitLaplace


_HOSTS = {"numpyro": _numpyro, "tfp": _tfp, "distrax": _distrax}
EVERY = tuple(_HOSTS)
