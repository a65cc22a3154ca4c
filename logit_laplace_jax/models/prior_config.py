"""What a prior over tokens is made of: one frozen dataclass, free of Flax as `config` is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from logit_laplace_jax.models.config import ComputeDtype, check_fields

Attention = Literal["xla", "cudnn"]


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """Sizes and options of the causal transformer over the tokens of one image.

    Raises:
      ValueError: a field is out of its range (one line, naming the field).

    Example:
      >>> config = PriorConfig(vocab_size=512, height=8, width=8)
      >>> config.length, config.head_size
      (64, 32)
      >>> PriorConfig(features=100, heads=8)
      Traceback (most recent call last):
        ...
      ValueError: features must be a multiple of heads, got 100 and 8

    Source: Ramesh et al. 2021, appendix B: full attention in place of its sparse patterns, and no
    text. The paper has no dropout inside its network either.
    """

    vocab_size: int = 512
    """Number of codes that a position can take, at least 2: the dVAE's."""
    height: int = 8
    """Rows of the token grid."""
    width: int = 8
    """Columns of the token grid."""
    features: int = 128
    """Width of the residual stream, a multiple of ``heads``."""
    layers: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads per block."""
    classes: int = 0
    """Class labels that condition the tokens; 0: unconditional."""
    dtype: ComputeDtype = "float32"
    """Compute dtype of the blocks; parameters, softmax, logits and loss stay float32."""
    remat: bool = False
    """Recompute every block in the backward pass: less memory, about a third more arithmetic."""
    attention: Attention = "xla"
    """Implementation of the full pass's attention; cudnn needs an NVIDIA GPU and 16-bit compute."""

    def __post_init__(self) -> None:
        check_fields(self, vocab_size=2, classes=0)
        for name, choices in (
            ("dtype", get_args(ComputeDtype)),
            ("attention", get_args(Attention)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.features % self.heads:
            raise ValueError(
                f"features must be a multiple of heads, got {self.features} and {self.heads}"
            )
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ValueError("attention cudnn needs dtype bfloat16 or float16, got 'float32'")

    @property
    def length(self) -> int:
        """Tokens per image."""
        return self.height * self.width

    @property
    def head_size(self) -> int:
        """Features per attention head."""
        return self.features // self.heads


PRIORS: Mapping[str, PriorConfig] = MappingProxyType(
    {
        "small": PriorConfig(),
        "medium": PriorConfig(8192, 16, 16, features=512, layers=8, heads=8, dtype="bfloat16"),
        "large": PriorConfig(
            8192, 32, 32, features=1024, layers=24, heads=16, dtype="bfloat16", remat=True
        ),
        "paper": PriorConfig(
            8192, 32, 32, features=3968, layers=64, heads=62, dtype="bfloat16", remat=True
        ),
    }
)
"""Priors by size: small trains in minutes on two CPU cores; paper has the 12 billion parameters of
Ramesh et al. 2021 (table 1 there: 64 layers of 62 heads, 64 features each)."""
