"""Pictures of reconstructions, as PNG."""

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_GAP = 2


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Rounds [0, 1] to 0..255 (uint8 passes through), and repeats grey to RGB.

    >>> to_uint8(np.array([[[[0.5]]]])).tolist()
    [[[[128, 128, 128]]]]
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        images = np.round(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def side_by_side(*columns: np.ndarray) -> np.ndarray:
    """Images of equal height beside each other with a white gap: [H, W, C] each to [H, W', 3].

    >>> side_by_side(np.zeros((4, 4, 3)), np.zeros((4, 6, 3))).shape
    (4, 12, 3)
    """
    pictures = [to_uint8(c) for c in columns]
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
    parts = [p for picture in pictures for p in (gap, picture)][1:]
    return np.concatenate(parts, axis=1)


def grid(rows: Sequence[np.ndarray], limit: int = 12) -> np.ndarray:
    """A sheet with one row per kind of picture, e.g. originals above reconstructions.

    Args:
      rows: arrays [N, H, W, C] of equal shape.
      limit: at most this many images a row.

    >>> grid([np.zeros((3, 8, 8, 3)), np.ones((3, 8, 8, 3))]).shape
    (18, 28, 3)
    """
    strips = [side_by_side(*row[:limit]) for row in rows]
    gap = np.full((_GAP, strips[0].shape[1], 3), 255, np.uint8)
    parts = [p for strip in strips for p in (gap, strip)][1:]
    return np.concatenate(parts, axis=0)


def token_colours(vocab_size: int) -> np.ndarray:
    """A colour for each code, neighbours far apart: uint8 [vocab_size, 3].

    >>> token_colours(2).tolist()
    [[229, 114, 114], [70, 90, 140]]
    """
    golden = 0.618033988749895  # multiples of it, modulo 1, spread evenly whatever their number
    hues = (golden * np.arange(vocab_size)) % 1.0
    values = (0.9, 0.55, 0.75)
    colours = [colorsys.hsv_to_rgb(h, 0.5, values[i % 3]) for i, h in enumerate(hues)]
    return (np.array(colours) * 255.0).astype(np.uint8)


def save_png(path: Path, picture: np.ndarray, scale: int = 1) -> None:
    """Writes uint8 [H, W, 3] as PNG, enlarged by a whole factor with sharp pixels.

    The file appears complete or not at all.
    """
    from PIL import Image

    image = Image.fromarray(picture)
    if scale > 1:
        image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    _write_whole(path, lambda part: image.save(part, format="PNG"))


def save_figure(path: Path, figure: Any) -> None:
    """Writes a matplotlib figure as PNG, which appears complete or not at all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    _write_whole(path, lambda part: figure.savefig(part, format="png"))


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
