"""The DALL-E discrete VAE in Flax Linen.

Names are loaded on first use, so that ``logit_laplace_jax.models.config`` needs no Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logit_laplace_jax.models.config import DVAEConfig
    from logit_laplace_jax.models.dvae import DVAE, DVAEOutput, init_params


__all__ = ["DVAE", "DVAEConfig", "DVAEOutput", "init_params"]

_HOME = {
    "DVAE": "logit_laplace_jax.models.dvae",
    "DVAEConfig": "logit_laplace_jax.models.config",
    "DVAEOutput": "logit_laplace_jax.models.dvae",
    "init_params": "logit_laplace_jax.models.dvae",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
