"""What a discrete VAE is made of: one frozen dataclass, free of Flax so that scripts start fast."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

ComputeDtype = Literal["float32", "bfloat16", "float16"]
ConstantScale = Literal["none", "per_channel", "shared"]


def check_fields(config: Any, **minimum: int) -> None:
    """Refuses integers below their minimum, 1 unless another is given, and what is no bool.

    Raises:
      ValueError: names the field.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int":
            low = minimum.get(field.name, 1)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{field.name} must be an integer >= {low}, got {value!r}")
        elif field.type == "bool" and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be True or False, got {value!r}")


@dataclasses.dataclass(frozen=True)
class DVAEConfig:
    """Sizes and options of the DALL-E dVAE; the defaults are OpenAI's published model.

    The encoder halves the image ``group_count - 1`` times, so the tokens of an ``H x W`` image form
    an ``H / downsampling x W / downsampling`` grid.

    Raises:
      ValueError: a field is out of its range (one line, naming the field).

    Example:
      >>> config = DVAEConfig(group_count=3, n_hid=32, vocab_size=512)
      >>> config.downsampling
      4
      >>> config.check_size(30, 32)
      Traceback (most recent call last):
        ...
      ValueError: image size 30 x 32: both sides must be positive multiples of 4 (group_count=3)

    Source: openai/DALL-E ``encoder.py`` and ``decoder.py``; Ramesh et al. 2021, appendix A.
    """

    group_count: int = 4
    """Groups of residual blocks, each at its own resolution, in the encoder and in the decoder."""
    n_hid: int = 256
    """Width of the group at full resolution, a multiple of 4; each halving doubles the width."""
    n_blk_per_group: int = 2
    """Residual blocks per group."""
    vocab_size: int = 8192
    """Number of codes that a position can take, at least 2."""
    n_init: int = 128
    """Width of the decoder's first convolution: the length of a codebook vector."""
    channels: int = 3
    """Colour channels of the image: 3 for RGB, 1 for grey."""
    stats_per_channel: int = 2
    """Statistics per channel: 2 for the logit-Laplace likelihood (mu, then ln b)."""
    constant_scale: ConstantScale = "none"
    """Second statistic: predicted maps (none), one learned ln b per channel, or one shared ln b."""
    dtype: ComputeDtype = "float32"
    """Compute dtype of the blocks; parameters and what touches the codes stay float32."""
    straight_through: bool = False
    """Feed the decoder one-hot codes with the relaxation's gradient (not in the paper)."""
    remat: bool = False
    """Recompute every block in the backward pass: less memory, about a third more arithmetic."""

    def __post_init__(self) -> None:
        check_fields(self, vocab_size=2)
        if self.n_hid % 4:
            raise ValueError(
                f"n_hid must be a multiple of 4 (blocks are n_hid/4 wide inside), got {self.n_hid}"
            )
        if self.constant_scale not in get_args(ConstantScale):
            raise ValueError(
                f"constant_scale must be one of {', '.join(get_args(ConstantScale))}, "
                f"got {self.constant_scale!r}"
            )
        if self.constant_scale != "none" and self.stats_per_channel != 2:
            raise ValueError(
                f"constant_scale is for two maps per channel, not {self.stats_per_channel}"
            )
        if self.dtype not in get_args(ComputeDtype):
            raise ValueError(
                f"dtype must be one of {', '.join(get_args(ComputeDtype))}, got {self.dtype!r}"
            )

    @property
    def downsampling(self) -> int:
        """Image pixels per token along each side: ``2 ** (group_count - 1)``."""
        return int(2 ** (self.group_count - 1))

    @property
    def blocks(self) -> int:
        """Residual blocks in the encoder (the decoder has as many)."""
        return self.group_count * self.n_blk_per_group

    @property
    def maps(self) -> int:
        """Feature maps that the decoder's last convolution gives."""
        return self.channels * (1 if self.constant_scale != "none" else self.stats_per_channel)

    @property
    def post_gain(self) -> float:
        """Factor on every residual branch: ``1 / blocks ** 2``."""
        return 1.0 / self.blocks**2

    @property
    def group_widths(self) -> tuple[int, ...]:
        """Widths of the groups from full resolution down; the decoder runs them backwards."""
        return tuple(self.n_hid * 2**group for group in range(self.group_count))

    def check_size(self, height: int, width: int) -> None:
        """Refuses an image that the encoder cannot halve often enough.

        Raises:
          ValueError: height or width is not a positive multiple of ``downsampling``.
        """
        factor = self.downsampling
        if height < 1 or width < 1 or height % factor or width % factor:
            raise ValueError(
                f"image size {height} x {width}: both sides must be positive multiples of "
                f"{factor} (group_count={self.group_count})"
            )

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the token grid of an image.

        Raises:
          ValueError: as `check_size`.

        Example:
          >>> DVAEConfig().token_grid(256, 384)
          (32, 48)
        """
        self.check_size(height, width)
        return height // self.downsampling, width // self.downsampling
