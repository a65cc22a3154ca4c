"""Edge masks on steps, ramps and a photograph, and boundary maps from files."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data, filters

from logit_laplace_jax.evaluation import edges


def photograph():
    return jnp.asarray(data.astronaut(), jnp.float32) / 255


# --- The slope -------------------------------------------------------------------------------


def test_a_ramp_gives_its_slope():
    ramp = jnp.broadcast_to(3 * jnp.arange(20.0)[:, None, None] / 255, (2, 20, 9, 3))
    slope = edges.sobel_magnitude(ramp)
    assert (slope.shape, slope.dtype) == ((2, 20, 9), jnp.float32)
    # Differences of values up to 57 in float32: 57 ulp(1) / 2.
    np.testing.assert_allclose(slope[:, 1:-1], 3.0, atol=1e-5)


def test_the_slope_is_scikit_images():
    x = photograph()[100:180, 100:200]
    luma = np.asarray(x, np.float64) @ [0.299, 0.587, 0.114]
    # scikit-image divides by 4 and by √2 instead of by 8, and treats the border otherwise.
    expected = 255 / np.sqrt(2) * filters.sobel(luma)[1:-1, 1:-1]
    # Sums of eight values up to 255 in float32, divided by 8.
    np.testing.assert_allclose(edges.sobel_magnitude(x)[1:-1, 1:-1], expected, atol=1e-4)


def test_borders_are_no_edges():
    flat = jnp.full((1, 6, 7, 3), 0.8)
    # Luma weights applied to equal values: rounding only.
    assert float(edges.sobel_magnitude(flat).max()) < 1e-3
    # A step that runs into the border is as steep there as inside.
    step = jnp.broadcast_to(jnp.where(jnp.arange(8) < 4, 0.0, 0.5)[:, None], (1, 5, 8, 1))
    slope = np.asarray(edges.sobel_magnitude(step))[0]
    np.testing.assert_array_equal(slope, np.broadcast_to(slope[2], slope.shape))
    np.testing.assert_allclose(slope[2], [0, 0, 0, 63.75, 63.75, 0, 0, 0])


def test_the_steepest_possible_slope():
    corner = jnp.zeros((1, 8, 8, 1)).at[:, 4:, 4:].set(1.0)
    diagonal = jnp.tril(jnp.ones((8, 8)))[None, ..., None]
    most = max(float(edges.sobel_magnitude(x).max()) for x in (corner, diagonal))
    # The largest of all: both differences of a corner at 3/8 of 255 each, or of a diagonal.
    assert 127.5 < most <= 255 / np.sqrt(2)


def test_grey_and_colour_agree_and_turning_does_not_matter():
    grey = photograph()[:64, :48, :1]
    slope = edges.sobel_magnitude(grey)
    # The weights sum to 1 to rounding; values up to 255.
    np.testing.assert_allclose(edges.sobel_magnitude(grey.repeat(3, -1)), slope, atol=2e-4)
    turned = edges.sobel_magnitude(jnp.rot90(grey))
    np.testing.assert_allclose(turned, jnp.rot90(slope), atol=2e-4)
    # A constant added, or black and white exchanged, leaves the slope alone.
    np.testing.assert_allclose(edges.sobel_magnitude(1 - grey), slope, atol=2e-4)


def test_shapes_and_dtypes_are_checked(strict):
    edges.near_edges(jnp.zeros((2, 4, 4, 3)))
    for wrong in (
        jnp.zeros((4, 4)),
        jnp.zeros((1, 4, 4, 2)),
        jnp.zeros((1, 1, 4, 3)),
        jnp.zeros((1, 4, 4, 3), jnp.uint8),
    ):
        with pytest.raises(AssertionError):
            edges.sobel_magnitude(wrong)
    with pytest.raises(ValueError, match="radius must be 0 or more, not -1"):
        edges.near_edges(jnp.zeros((1, 4, 4, 3)), radius=-1)


# --- The mask --------------------------------------------------------------------------------


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_near_a_step(radius):
    step = jnp.broadcast_to(jnp.where(jnp.arange(20) < 10, 0.2, 0.8)[:, None], (1, 6, 20, 3))
    mask = np.asarray(edges.near_edges(step, radius=radius))
    assert (mask.shape, mask.dtype) == ((1, 6, 20), np.bool_)
    # The slope stands on the two columns at the step.
    expected = (np.arange(20) >= 9 - radius) & (np.arange(20) <= 10 + radius)
    np.testing.assert_array_equal(mask, np.broadcast_to(expected, mask.shape))


def test_the_mask_is_the_slope_above_the_threshold_widened():
    x = photograph()[:120, :100][None]
    slope = np.asarray(edges.sobel_magnitude(x))[0]
    for threshold, radius in ((5.0, 0), (20.0, 2), (60.0, 3)):
        expected = ndimage.maximum_filter(slope > threshold, 2 * radius + 1, mode="constant")
        mask = edges.near_edges(x, threshold, radius)
        np.testing.assert_array_equal(mask[0], expected)
    assert not edges.near_edges(x, 255.0).any()


def test_the_default_splits_a_photograph_sensibly():
    share = float(edges.near_edges(photograph()[None]).mean())
    # The documented 31 %, to half of the last digit.
    assert share == pytest.approx(0.31, abs=0.005)


# --- Boundary maps ---------------------------------------------------------------------------


def draw(path, boundary, value=255):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(boundary, value, 0).astype(np.uint8)).save(path)


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_boundary_maps_are_read_and_widened(tmp_path, radius):
    boundary = np.random.default_rng(0).random((30, 41)) < 0.02
    draw(tmp_path / "test" / "8068.png", boundary)
    mask = edges.BoundaryMaps(tmp_path).mask("images/test/8068.jpg", (30, 41), radius)
    assert (mask.shape, mask.dtype) == ((30, 41), np.bool_)
    np.testing.assert_array_equal(mask, ndimage.maximum_filter(boundary, 2 * radius + 1))


def test_white_is_a_boundary(tmp_path):
    levels = np.array([[0, 1, 127, 128, 255]], np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.b.png")
    Image.fromarray(levels >= 128).save(tmp_path / "two_colours.png")
    maps = edges.BoundaryMaps(str(tmp_path))
    for name in ("a.b.jpg", "two_colours"):
        assert maps.mask(name, (1, 5), radius=0).tolist() == [[False, False, False, True, True]]
    # A picture may be without any boundary.
    draw(tmp_path / "sky.png", np.zeros((4, 4)))
    assert not edges.BoundaryMaps(tmp_path).mask("sky.jpg", (4, 4)).any()


def test_what_is_wrong_with_boundary_maps_is_said(tmp_path):
    with pytest.raises(ValueError, match="no image in the folder of boundary maps"):
        edges.BoundaryMaps(tmp_path)
    with pytest.raises(ValueError, match=r"boundary maps .*nowhere does not exist"):
        edges.BoundaryMaps(tmp_path / "nowhere")
    boundary = np.eye(4, 6)
    draw(tmp_path / "right.png", boundary)
    draw(tmp_path / "twice.png", boundary)
    draw(tmp_path / "more" / "twice.bmp", boundary)
    draw(tmp_path / "ones.png", boundary, value=1)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / ".hidden.png").write_bytes(b"")
    maps = edges.BoundaryMaps(tmp_path)
    cases = {
        "val/left.jpg": r"no boundary map left\.png .*or below it",
        ".hidden.jpg": r"no boundary map \.hidden\.png",
        "twice.jpg": r"twice\.bmp and .*twice\.png are both boundary maps of twice",
        "ones.jpg": r"ones\.png holds only 0 and 1",
        "broken.jpg": r"broken\.png cannot be read: no image of a known format",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            maps.mask(name, (4, 6))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"right\.png has 4x6 pixels and its image 8x6"):
        maps.mask("right.jpg", (8, 6))
    with pytest.raises(ValueError, match="radius must be 0 or more"):
        maps.mask("right.jpg", (4, 6), radius=-1)
