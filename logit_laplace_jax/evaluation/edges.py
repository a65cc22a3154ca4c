"""Which pixels lie near an edge: by the slope of the picture itself, or from drawn boundary maps.

Likelihoods differ most where a picture jumps. Measures for pixels near edges and away from them
show it; both kinds of mask are bool [..., H, W], true near an edge.
"""

from collections import defaultdict
from functools import partial
from pathlib import Path, PurePath

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax.data.errors import DataError, UnreadableImage
from logit_laplace_jax.data.folder import find_images

THRESHOLD = 20.0
"""Slope, in grey levels a pixel, above which :func:`near_edges` sees an edge.

With radius 2 it marks 31 % of scikit-image's astronaut (512 x 512), and 15 to 31 %, on average
23 %, of five photographs of that package (astronaut, camera, chelsea, coffee, rocket): contours,
and the strongest strands of fur and hair. Halving a picture makes its slopes steeper: 49 % of the
astronaut, 14 to 49 %, on average 29 %, of the five.
"""

RADIUS = 2
"""Pixels around an edge that count as near it: as far as a 3 x 3 slope and a slight blur reach."""

_LUMA = (0.299, 0.587, 0.114)
_BOUNDARY = 128


@jax.jit
def sobel_magnitude(images: Array) -> Array:
    """Length of the brightness gradient by Sobel's operator, in grey levels a pixel.

    Brightness is ITU-R 601 luma times 255; the two 3 x 3 kernels are divided by 8, so that a ramp
    rising by s grey levels a pixel gives s, and a step of s gives s/2 on both of its sides. The
    image is reflected at its borders, which therefore are no edges.

    Args:
      images: float [..., H, W, C] in [0, 1]; C is 1 or 3, H and W at least 2.

    Returns:
      float32 [..., H, W], from 0 to 255 / √2 (about 180).

    >>> step = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1).repeat(3, axis=1)
    >>> sobel_magnitude(step)[0, 1].tolist()
    [0.0, 127.5, 127.5, 0.0]
    """
    chex.assert_type(images, float)
    if images.ndim < 3 or min(images.shape[-3:-1]) < 2 or images.shape[-1] not in (1, 3):
        raise AssertionError(f"images must be [..., H >= 2, W >= 2, 1 or 3], not {images.shape}")
    x = 255.0 * images.astype(jnp.float32)
    grey = x[..., 0]
    if x.shape[-1] == 3:
        red, green, blue = (weight * x[..., i] for i, weight in enumerate(_LUMA))
        grey = red + green + blue
    grey = jnp.pad(grey, [(0, 0)] * (grey.ndim - 2) + [(1, 1), (1, 1)], mode="reflect")
    across, down = grey[..., 2:] - grey[..., :-2], grey[..., 2:, :] - grey[..., :-2, :]
    across = across[..., :-2, :] + 2.0 * across[..., 1:-1, :] + across[..., 2:, :]
    down = down[..., :-2] + 2.0 * down[..., 1:-1] + down[..., 2:]
    return jnp.sqrt(across * across + down * down) / 8.0


@partial(jax.jit, static_argnames="radius")
def near_edges(images: Array, threshold: float = THRESHOLD, radius: int = RADIUS) -> Array:
    """Pixels within ``radius`` of a slope above ``threshold``, e.g. of the original images.

    Args:
      images: float [..., H, W, C] in [0, 1]; C is 1 or 3.
      threshold: of :func:`sobel_magnitude`, in grey levels a pixel. Why 20: :data:`THRESHOLD`.
      radius: rows and columns, at most, from the slope; static.

    Returns:
      bool [..., H, W].

    >>> step = jnp.where(jnp.arange(10) < 5, 0.25, 0.75).reshape(1, 1, 10, 1).repeat(3, axis=1)
    >>> near_edges(step, radius=1)[0, 0].astype(int).tolist()
    [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    """
    if radius < 0:
        raise ValueError(f"radius must be 0 or more, not {radius}")
    steep = sobel_magnitude(images) > threshold
    window = (1,) * (steep.ndim - 2) + (2 * radius + 1,) * 2
    return lax.reduce_window(steep, False, lax.bitwise_or, window, (1,) * steep.ndim, "SAME")


class BoundaryMaps:
    """A folder of boundary pictures, one for each image, matched by the name without its ending.

    For an image ``test/8068.jpg`` it is ``8068.png`` (or another image ending), anywhere below the
    folder. The reader is NumPy and Pillow, on the host.

    A boundary is white: 128 or more of 255 after conversion to grey, transparent counting as white.
    The ground truth of BSDS comes as several people's drawings in a .mat file; draw it once as
    pictures, white where at least half of the people saw a boundary, or wherever anybody did.

    Args:
      folder: searched recursively, hidden files left out.

    Raises:
      DataError: no such folder, or no image file in it. It is a ValueError of one line, as all
        errors of this class are.

    Example:
      ``BoundaryMaps(Path("boundaries")).mask("test/8068.jpg", (321, 481))`` is bool [321, 481].
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise DataError(f"the folder of boundary maps {self.folder} does not exist")
        self._files: defaultdict[str, list[Path]] = defaultdict(list)
        for file in find_images(str(self.folder))[0]:
            self._files[PurePath(file).stem].append(self.folder / file)
        if not self._files:
            raise DataError(f"no image in the folder of boundary maps {self.folder}")

    def mask(self, name: str, shape: tuple[int, int], radius: int = RADIUS) -> np.ndarray:
        """Pixels within ``radius`` of a boundary of one image.

        Args:
          name: the image's file name; folders in front of it and its ending do not matter.
          shape: (H, W) of the image. The map must have the same size, as nothing is resized: a
            boundary one pixel wide does not survive it.
          radius: rows and columns, at most, from a boundary.

        Returns:
          bool [H, W].

        Raises:
          DataError: no map or several of that name, one that cannot be read, has another size, or
            holds nothing above 1 (a mask of 0 and 1, whose boundaries would pass for black).
        """
        from PIL import Image, ImageFilter

        from logit_laplace_jax.data import images

        if radius < 0:
            raise ValueError(f"radius must be 0 or more, not {radius}")
        file = self._find(PurePath(name).stem)
        try:
            grey = images.decode(file, channels=1)[..., 0]
        except UnreadableImage as error:
            raise DataError(f"the boundary map {file} cannot be read: {error}") from error
        if grey.shape != tuple(shape):
            sizes = ["x".join(str(side) for side in size) for size in (grey.shape, shape)]
            raise DataError(
                f"the boundary map {file} has {sizes[0]} pixels and its image {sizes[1]} "
                "(height x width): draw it at the image's size"
            )
        if grey.max() == 1:
            raise DataError(f"the boundary map {file} holds only 0 and 1: draw boundaries as 255")
        boundary = Image.fromarray(np.where(grey >= _BOUNDARY, 255, 0).astype(np.uint8))
        return np.asarray(boundary.filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0

    def _find(self, stem: str) -> Path:
        files = self._files.get(stem, [])
        if not files:
            raise DataError(
                f"no boundary map {stem}.png (or another image ending) in {self.folder} or below it"
            )
        if len(files) > 1:
            raise DataError(f"{files[0]} and {files[1]} are both boundary maps of {stem}: keep one")
        return files[0]
