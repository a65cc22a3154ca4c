"""Data: sources of images, the paper's augmentation, and the batches that training reads.

    photos | folder:PATH | tfds:NAME  ─►  sources  ─►  augment  ─►  pipeline  ─►  uint8 batches

Importing this package loads nothing heavy; each name below loads its module on first use, and
raises a `DataError` that names the extra to install where a package is missing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from logit_laplace_jax.data.errors import DataError, TooSmallImage, UnreadableImage

if TYPE_CHECKING:
    from logit_laplace_jax.data.augment import eval_crop, grid_crops, train_crop
    from logit_laplace_jax.data.images import decode
    from logit_laplace_jax.data.pipeline import (
        check_source,
        eval_batches,
        train_batches,
        whole_batches,
    )
    from logit_laplace_jax.data.sources import Source, open_source

_MODULES = {
    "eval_crop": "augment",
    "grid_crops": "augment",
    "train_crop": "augment",
    "decode": "images",
    "check_source": "pipeline",
    "eval_batches": "pipeline",
    "train_batches": "pipeline",
    "whole_batches": "pipeline",
    "Source": "sources",
    "open_source": "sources",
}

__all__ = [
    "DataError",
    "Source",
    "TooSmallImage",
    "UnreadableImage",
    "check_source",
    "decode",
    "eval_batches",
    "eval_crop",
    "grid_crops",
    "open_source",
    "train_batches",
    "train_crop",
    "whole_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
