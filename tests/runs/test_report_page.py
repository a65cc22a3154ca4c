"""The terminal table and the page: every number is there, and nothing overlaps."""

import itertools
import re

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from logit_laplace_jax.runs import report_page

RNG = np.random.default_rng(0)
KINDS = ("median", "mean", "sample")


def everything():
    """Results with every key, every number different."""
    numbers = {
        "bpd": ("hard_pixels", "hard_codes", "hard", "relaxed_pixels", "relaxed_codes", "relaxed"),
        **dict.fromkeys(("psnr", "ssim", "ms_ssim", "mae"), KINDS),
    }
    names = [f"{name}_{kind}" for name, kinds in numbers.items() for kind in kinds]
    names += ["nll_hard", "nll_relaxed", "elbo_hard", "elbo_relaxed", "kl", "psnr_relaxed"]
    names += ["pit_tv", "pit_ks", "pit_mean_shift", "pit_variance_ratio", "optimal_scale", "psnr"]
    names += ["bits_per_token", "bpd_prior_codes", "bpd_uniform_codes", "bpd_prior", "bpd_uniform"]
    names += ["bpd_png", "bpd_webp", "psnr_kmeans", "bpd_kmeans", "psnr_jpeg"]
    names += ["rate_tokens", "rate_jpeg"]
    names += [f"{name}_{place}" for name in ("bpd", "psnr", "mae") for place in ("edges", "flat")]
    results = {name: 1.2345 + 1.0101 * i for i, name in enumerate(names)}
    return {
        **results,
        "bpd_gap": -0.1234,
        "likelihood": "logit_laplace",
        "data": "photos",
        "step": 2000.0,
        "images": 92.0,
        "values_per_image": 3072,
        "edge_share": 0.3111,
        "code_usage": 0.7311,
        "code_perplexity": 69.4,
        "floor_share": 0.0123,
        "vocab_size": 256,
        "code_counts": RNG.multinomial(5888, RNG.dirichlet(np.full(256, 0.15))).tolist(),
        "pit_counts": [1000 + 40 * abs(10 - i) for i in range(20)],
    }


def pictures(*shape):
    return {name: RNG.random(shape) for name in ("original", *KINDS)}


def collapsed():
    """A broken run: one code of 8192, NaN, infinity, enormous numbers, a long path."""
    counts = np.zeros(8192, int)
    counts[77] = 5888
    return {
        **everything(),
        "data": "folder:/home/" + "long_" * 60 + "/with_$dollars$",
        "values_per_image": 178_956_970,
        "vocab_size": 8192,
        "code_counts": counts,
        "code_usage": 1 / 8192,
        "code_perplexity": 1.0,
        "pit_counts": [0] * 19 + [282_624],
        "ms_ssim_median": float("nan"),
        "bpd_hard_pixels": 12345.678,
        "bpd_hard": 12345.845,
        "nll_hard": -1.23456e7,
        "bpd_edges": float("inf"),
        "psnr_edges": float("nan"),
        "mae_flat": 0.0,
    }


def many_codes():
    """All of 8192 codes, code lengths in the thousands, and half of the keys."""
    large = {"bpd_edges": 12345.6, "bpd_flat": 12346.7, "mae_edges": 254.96, "mae_flat": 254.97}
    kept = {k: v for k, v in everything().items() if "relaxed" not in k and "psnr" not in k}
    counts = RNG.multinomial(3_200_000, RNG.dirichlet(np.full(8192, 0.5)))
    return {**kept, **large, "code_counts": counts, "vocab_size": 8192, "pit_counts": [5] * 20}


# --- The table -------------------------------------------------------------------------------


def test_the_table_has_every_number():
    results = everything()
    table = report_page.table(results)
    decimals = {"psnr": 2, "mae": 2, "rate": 3}
    for name, value in results.items():
        if isinstance(value, list):
            continue
        if name in ("edge_share", "code_usage", "floor_share"):
            text = f"{100 * value:.2f}"
        elif name in ("step", "images", "values_per_image", "vocab_size"):
            text = f"{value:,.0f}"
        elif name == "code_perplexity":
            text = "69.4"
        elif isinstance(value, float):
            text = f"{value:.{decimals.get(name.split('_')[0], 4)}f}"
        else:
            text = value
        assert re.search(rf"(?<![\d.]){re.escape(text)}(?![\d.])", table), (name, text)
    sections = [line for line in table.splitlines() if line and not line.startswith(" ")]
    assert [re.split("  +", line)[0] for line in sections] == [
        "logit_laplace · photos · step 2,000 · 92 images · 3,072 values an image",
        *("code length", "code length with the prior", "other codecs", "files without loss"),
        *("distortion", "near edges and away", "codes", "calibration"),
    ]
    for unit in ("bits/dim", "nats/value", "nats/token", "dB", "grey levels", "%", "codes"):
        assert f"  {unit} " in table


@pytest.mark.parametrize("results", [everything, collapsed, many_codes])
def test_the_table_is_aligned(results):
    blocks = report_page.table(results()).split("\n\n")[1:]
    assert blocks
    ends = set()
    for block in blocks:
        lines = block.splitlines()
        assert all(line == line.rstrip() for line in lines)
        if re.search("  +", lines[0]):  # the heads of the columns
            ends |= {m.end() for m in re.finditer(r"(?<=  )\S+", lines[0])}
    for line in (line for block in blocks for line in block.splitlines()[1:]):
        last = re.search(r"(nan|inf|[-+.,e\d]*\d)$", line)
        assert last is not None, line
        assert last.end() in ends, line


def test_what_is_missing_is_left_out():
    assert report_page.table({}) == ""
    table = report_page.table({"psnr_mean": 20.0, "kl": None, "step": 3, "pit_counts": [1, 2]})
    assert table.splitlines()[0] == "step 3"
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["distortion", "mean"],
        ["PSNR", "dB", "20.00"],
    ]


def test_other_numbers_come_last_under_their_names():
    given = {
        "psnr_mean": 20.0,
        "extra": np.float32(0.5),
        "note": "text",
        "list": [1.0],
        "none": None,
    }
    table = report_page.table(given)
    assert [line.split() for line in table.splitlines()[-2:]] == [["other"], ["extra", "0.5000"]]
    assert "text" not in table


# --- The page --------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Writes a page and returns its pixels and matplotlib's figure."""
    figures = []
    save = Figure.savefig

    def keep(self, *args, **kwargs):
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)

    def write(results, shown, title="runs/photos"):
        path = tmp_path / "new" / "page.png"
        report_page.write_page(path, results, shown, title)
        assert [p.name for p in path.parent.iterdir()] == ["page.png"]
        return np.asarray(Image.open(path).convert("RGB")), figures.pop()

    return write


def drawn_texts(figure):
    """Every text on the page and its box in pixels."""
    unseen = set()
    for axes in figure.findobj(matplotlib.axes.Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                outside = not low <= tick.get_loc() <= high
                unseen |= {tick.label2, *([tick.label1] if outside else [])}
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t not in unseen]


def assert_tidy(figure):
    texts = drawn_texts(figure)
    width, height = figure.bbox.size
    for text, box in texts:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for (one, a), (two, b) in itertools.combinations(texts, 2):
        # Boxes hold the font's full height; up to a pixel of it may be shared unseen.
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(across, down) <= 1, (one, two)
    return [text for text, _ in texts]


def test_a_full_page(page):
    results, shown = everything(), pictures(9, 32, 32, 3)
    before = dict(matplotlib.rcParams)
    pixels, figure = page(results, shown)
    assert dict(matplotlib.rcParams) == before
    texts = assert_tidy(figure)
    used = np.count_nonzero(results["code_counts"])
    wanted = {"runs/photos", PIT, f"{used} of 256 codes in use", "density", "count", "uniform"}
    assert set(texts) >= wanted | {*shown}
    # The table of the terminal, with real minus signs.
    headline, *lines = filter(None, report_page.table(results).splitlines())
    assert set(texts) >= {headline, *(re.sub(r"-(?=\d)", "−", line) for line in lines)}
    # 8 of 9 pictures a row, side by side with gaps of 2.
    strips = figure.findobj(matplotlib.image.AxesImage)
    assert [strip.get_array().shape for strip in strips] == [(32, 8 * 32 + 7 * 2, 3)] * 4
    assert (pixels[:, :20] == 255).all()
    assert (pixels[:, -20:] == 255).all()
    assert np.mean(pixels < 250) > 0.2
    assert 1500 < pixels.shape[1] < 2500


PIT = "Calibration of the predicted scale"


@pytest.mark.parametrize(
    ("results", "shown", "title"),
    [
        (collapsed, pictures(3, 8, 8, 1), "runs/" + "a_$long$_name_" * 12),
        (many_codes, pictures(8, 20, 60, 3), "wide pictures"),
    ],
)
def test_extreme_pages_stay_tidy(page, results, shown, title):
    pixels, figure = page(results(), shown, title)
    assert_tidy(figure)
    assert 0.02 < np.mean(pixels < 250) < 0.9


@pytest.mark.parametrize(
    ("results", "shown", "present"),
    [
        ({}, {}, []),
        ({"psnr_mean": 20.0}, {"none": np.zeros((0, 8, 8, 3))}, []),
        ({"pit_counts": [1, 2, 3]}, {}, [PIT]),
        ({"code_counts": np.int64([1, 0])}, {"white": np.ones((1, 60, 20, 1))}, ["1 of 2 codes"]),
        ({"code_counts": [0] * 8, "pit_counts": [0] * 20, "bpd_hard": np.nan}, {}, []),
    ],
)
def test_charts_without_numbers_are_left_out(page, results, shown, present):
    pixels, figure = page(results, shown, "a title")
    texts = assert_tidy(figure)
    charts = {axes.get_title(loc="left") for axes in figure.findobj(matplotlib.axes.Axes)} - {""}
    assert [title.removesuffix(" in use") for title in charts] == present
    assert "a title" in texts
    assert (pixels < 128).any()
    assert "none" not in texts


def test_a_page_replaces_an_older_one(page, tmp_path):
    path = tmp_path / "new" / "page.png"
    path.parent.mkdir()
    path.write_bytes(b"old")
    broken = np.full((1, 4, 4, 3), np.nan)
    pixels, _ = page({}, {"broken": broken, "bytes": np.zeros((1, 4, 4, 3), np.uint8)})
    assert pixels.ndim == 3
