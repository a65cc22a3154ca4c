"""The decoder's likelihoods: one file a family, one small interface, one registry.

>>> import logit_laplace_jax as ll
>>> ll.likelihoods.get("logit_laplace", eps=0.1).num_stats
2
>>> len(ll.likelihoods.names())
10
"""

from logit_laplace_jax.likelihoods.base import Likelihood
from logit_laplace_jax.likelihoods.location_scale import LocationScale
from logit_laplace_jax.likelihoods.registry import get, names, options

__all__ = ["Likelihood", "LocationScale", "get", "names", "options"]
