"""Presets of train.py: one short module each, with ``CONFIG`` and a header that says what it is."""

import importlib

from logit_laplace_jax.training.config import TrainConfig

PRESETS = {
    "photos": "real photographs that scikit-image brings along; two CPU cores, minutes (default)",
    "smoke": "a tiny model on the same photographs; seconds, for tests",
    "cifar10": "CIFAR-10 by TFDS; one accelerator",
    "imagenet64": "ImageNet at 64 x 64 by TFDS; one accelerator",
    "dalle": "the paper's run, 256 x 256, batch 512; a pod",
}


def load(preset: str) -> TrainConfig:
    """The preset's configuration."""
    config = importlib.import_module(f"configs.{preset}").CONFIG
    assert isinstance(config, TrainConfig)
    return config
