"""The decoder's likelihoods: one file a family, one small interface, one registry.

>>> import logit_laplace_jax as ll
>>> ll.likelihoods.get("logit_laplace", eps=0.1).num_stats
2
"""

from logit_laplace_jax.likelihoods.base import Likelihood
from logit_laplace_jax.likelihoods.registry import get, names

__all__ = ["Likelihood", "get", "names"]
