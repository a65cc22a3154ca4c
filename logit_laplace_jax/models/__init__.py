"""The DALL-E discrete VAE and the prior over its tokens, in Flax Linen.

Names are loaded on first use, so that ``config`` and ``prior_config`` need no Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logit_laplace_jax.models.config import DVAEConfig
    from logit_laplace_jax.models.dvae import DVAE, DVAEOutput, init_params
    from logit_laplace_jax.models.prior import Prior, init_prior
    from logit_laplace_jax.models.prior_config import PriorConfig
    from logit_laplace_jax.models.sampling import sample


__all__ = [
    "DVAE",
    "DVAEConfig",
    "DVAEOutput",
    "Prior",
    "PriorConfig",
    "init_params",
    "init_prior",
    "sample",
]

_HOME = {
    "DVAE": "logit_laplace_jax.models.dvae",
    "DVAEConfig": "logit_laplace_jax.models.config",
    "DVAEOutput": "logit_laplace_jax.models.dvae",
    "Prior": "logit_laplace_jax.models.prior",
    "PriorConfig": "logit_laplace_jax.models.prior_config",
    "init_params": "logit_laplace_jax.models.dvae",
    "init_prior": "logit_laplace_jax.models.prior",
    "sample": "logit_laplace_jax.models.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
