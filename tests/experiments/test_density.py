"""density.py: its files, its options, what its figures show, and what docs/density.md quotes."""

import importlib
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from PIL import Image

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
PAGE = ROOT / "docs" / "density.md"
NAMES = [
    *("shapes", "moments", "centres", "ends", "families"),
    *("leak", "gradients", "scale", "epsilon"),
]
TINY = ["--points=40", "--dpi=60", "--format=png"]

# Grids are computed in float64; a few roundings, and the library's cdf and log_prob, stay below.
ROUNDING = 1e-12
# The library promises 1e-10 for the moments in float64.
MOMENTS = 1e-9


@pytest.fixture(scope="module")
def atlas():
    """A function of a name that gives a module of the atlas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield lambda name: importlib.import_module(f"atlas.{name}" if name else "atlas")


@pytest.fixture(scope="module")
def drawn(atlas):
    """A function of a figure's name: its numbers, and its curves as [panel][curve] = (x, y)."""
    settings, cache = atlas("").Settings(points=40), {}

    def draw(name):
        if name not in cache:
            with jax.enable_x64(True):
                figure, numbers = atlas("").load(name)(settings)
            curves = [
                [line.get_xydata().T for line in axes.lines if len(line.get_xdata()) > 2]
                for axes in figure.axes
            ]
            cache[name] = curves, numbers
        return cache[name]

    return draw


def expectation(function, loc, scale, space=scipy.special.expit):
    """E f(space(X)), X ~ Laplace(loc, scale), by adaptive quadrature."""
    total = 0.0
    for sign in (-1, 1):

        def integrand(z, sign=sign):
            return 0.5 * np.exp(-z) * function(space(loc + sign * scale * z))

        for low, high in ((0, 1), (1, 5), (5, 60)):
            total += scipy.integrate.quad(integrand, low, high, epsabs=1e-14, epsrel=1e-12)[0]
    return total


def moments(loc, scale):
    mean = expectation(lambda x: x, loc, scale)
    return mean, expectation(lambda x: (x - mean) ** 2, loc, scale)


# --- What the figures show -------------------------------------------------------------------


def test_shapes_are_laplace_in_logit_space(drawn):
    curves, numbers = drawn("shapes")
    for j, loc in enumerate((-2.0, 0.0, 1.0)):
        for i, b in enumerate((0.1, 0.3, 1.0, 3.0)):
            (x, density), (_, cdf) = curves[j][i], curves[3 + j][i]
            law, z = scipy.stats.laplace(scale=b), scipy.special.logit(x) - loc
            np.testing.assert_allclose(density, law.pdf(z) / (x * (1 - x)), rtol=1e-10)
            np.testing.assert_allclose(cdf, law.cdf(z), rtol=1e-10, atol=ROUNDING)
    row = numbers["b=1 loc=0"]
    assert row["density at the median"] == pytest.approx(2.0)
    assert row["mass within 0.01 of an end"] == pytest.approx(1 / 99)


def test_moments_by_adaptive_quadrature(drawn):
    for loc, b in ((-2.0, 1.0), (1.0, 0.1), (0.0, 3.0)):
        row = drawn("moments")[1]["table"][f"b={b:g} loc={loc:g}"]
        mean, variance = moments(loc, b)
        assert row["mean"] == pytest.approx(mean, rel=MOMENTS)
        assert row["standard deviation"] == pytest.approx(variance**0.5, rel=MOMENTS)
        # h(x) = h(X) + E ln x(1 - x), and ln x(1 - x) = ln sigmoid(X) sigmoid(-X).
        jacobian = expectation(lambda t: -t - 2 * np.logaddexp(0, -t), loc, b, lambda t: t)
        assert row["entropy, nats"] == pytest.approx(1 + np.log(2 * b) + jacobian, abs=1e-8)


def test_centres(drawn):
    curves, numbers = drawn("centres")
    for loc, (median, mean, mode) in zip((1.0, 3.0), (curves[0][:3], curves[0][3:]), strict=True):
        expected = [expectation(lambda x: x, loc, b) for b in mean[0]]
        np.testing.assert_allclose(mean[1], expected, rtol=MOMENTS)
        np.testing.assert_allclose(median[1], scipy.special.expit(loc), rtol=ROUNDING)
        np.testing.assert_array_equal(np.isnan(mode[1]), mode[0] >= 1)
    row = numbers["table"]["b=1 loc=-2"]
    mean, variance = moments(-2.0, 1.0)
    gap = mean - scipy.special.expit(-2.0)
    assert row["mean - median, grey levels"] == pytest.approx(255 / 0.8 * gap, rel=1e-8)
    lost = 10 * np.log10((variance + gap**2) / variance)
    assert row["PSNR of the median, lost dB"] == pytest.approx(lost, rel=1e-7)


def test_the_limit_of_the_local_peak(atlas):
    peak_limit = atlas("distribution").peak_limit

    def log_density(t, loc, b):  # of x, at its logit t, without the constant
        return -np.abs(t - loc) / b - np.log(scipy.special.expit(t) * scipy.special.expit(-t))

    for loc in (-3.0, -0.5, 1.0, 2.0):
        limit = float(peak_limit(loc))
        for b in (1.001 * limit, 0.999 * limit):
            sides = log_density(loc + np.array([-1e-5, 1e-5]), loc, b)
            assert (sides < log_density(loc, loc, b)).all() == (b < limit)
    assert peak_limit(0.0) == np.inf


def test_slopes_at_the_ends(drawn):
    slopes = drawn("ends")[1]["log-log slope of the density at x = 1e-6"]
    # x/(1-x) is x to 1e-6, and the grid's first step is a factor of 1.4.
    expected = {f"b={b:g}": 1 / b - 1 for b in (0.5, 1.0, 1.5, 3.0)}
    assert slopes == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("case", "loc", "b"), [(0, 0.0, 0.3), (1, 2.0, 0.5), (2, 0.0, 2.0)])
def test_families_have_the_mean_the_variance_and_their_curves(drawn, case, loc, b):
    curves, numbers = drawn("families")
    numbers = numbers[f"loc={loc:g} b={b:g}"]
    mean, variance = moments(loc, b)
    found, logit = numbers["families"], scipy.special.logit
    lines = zip(("logistic", "laplace", "normal", "logit_normal", "beta"), *[
        curves[k][:5] for k in (case, 3 + case)
    ], strict=True)  # fmt: skip
    scales = {"normal": "σ", "laplace": "b", "logistic": "s"}
    for name, (x, density), (_, cdf) in lines:
        inside = (x > 0) & (x < 1)
        values = found[name]
        if name == "logit_normal":
            law = scipy.stats.norm(values["m"], values["s"])
            z = logit(np.where(inside, x, 0.5))
            wanted = law.pdf(z) / np.where(inside, x * (1 - x), 1), law.cdf(z)
        elif name == "beta":
            law = scipy.stats.beta(values["α"], values["β"])
            wanted = law.pdf(x), law.cdf(x)
        else:
            scipy_name = "norm" if name == "normal" else name
            law = getattr(scipy.stats, scipy_name)(values["mean"], values[scales[name]])
            wanted = law.pdf(x), law.cdf(x)
            leak = law.cdf(0) + law.sf(1)
            assert values["mass outside (0, 1)"] == pytest.approx(leak, rel=1e-9)
            inside[:] = True
        np.testing.assert_allclose(density[inside], wanted[0][inside], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(cdf[inside], wanted[1][inside], rtol=1e-9, atol=1e-12)
        if name != "logit_normal":
            assert law.mean() == pytest.approx(mean, rel=MOMENTS)
            assert law.var() == pytest.approx(variance, rel=MOMENTS)


def test_logit_normal_matches_wherever_it_can(atlas):
    matching = atlas("matching")
    mean, share = np.meshgrid([0.003, 0.05, 0.3, 0.5, 0.9, 0.997], [1e-4, 0.01, 0.3, 0.7, 0.9])
    mean, share = mean.ravel(), share.ravel()
    variance = share * mean * (1 - mean)
    with jax.enable_x64(True):
        loc, scale = jax.jit(jax.vmap(matching.FAMILIES["logit_normal"].match))(mean, variance)
        m, v, within = jax.vmap(matching.logit_normal_moments)(loc, scale)
    np.testing.assert_allclose(m, mean, rtol=1e-9)
    np.testing.assert_allclose(v, variance, rtol=1e-9)
    np.testing.assert_allclose(within, mean * (1 - mean) - variance, rtol=1e-8)
    # The same moments by adaptive quadrature.
    law = scipy.stats.norm(loc[13], scale[13])
    x, whole = scipy.special.expit, (-np.inf, np.inf)
    by_quadrature = scipy.integrate.quad(lambda z: law.pdf(z) * x(z), *whole, epsabs=1e-13)[0]
    assert by_quadrature == pytest.approx(mean[13], rel=MOMENTS)


def test_leak_is_both_tails(drawn):
    curves, numbers = drawn("leak")
    mean, variance = moments(-2.0, 1.0)
    law = scipy.stats.norm(mean, variance**0.5)
    row = numbers["table"]["loc=-2 b=1"]
    assert row["normal"] == pytest.approx(law.cdf(0) + law.sf(1), rel=1e-8)
    (b, normal), (_, laplace) = curves[0][:2]
    assert normal[list(b).index(1.0)] == row["normal"]
    alike = numbers["b at which normal and Laplace leak the same"]["loc=-2"]
    assert (normal < laplace)[b < alike].all()
    assert (normal > laplace)[b > alike].all()
    # Wider logit-Laplace densities make wider normals, which leak more.
    assert (np.diff(normal) > 0).all()


def test_gradients_in_closed_form(drawn):
    curves = drawn("gradients")[0]
    for j, target in enumerate((0, 64, 128)):
        x = 0.1 + 0.8 * target / 255
        above, in_loc, in_p = curves[j], curves[3 + j], curves[6 + j]
        p = above[0][0]
        difference, slope = p - x, p * (1 - p)
        away = np.abs(difference) > 1e-12
        assert (~away).sum() == 1  # the tie, where the size on a log axis is missing
        sign = np.sign(difference)
        forces = [sign, sign * slope, 2 * difference * slope]
        losses = [
            np.abs(scipy.special.logit(p) - scipy.special.logit(x)),
            np.abs(difference),
            difference**2,
        ]
        for k in range(3):
            np.testing.assert_allclose(above[k][1], losses[k], rtol=1e-9, atol=ROUNDING)
            np.testing.assert_allclose(in_loc[k][1][away], forces[k][away], rtol=1e-9)
            size = np.abs(forces[k] / slope)[away]
            np.testing.assert_allclose(in_p[k][1][away], size, rtol=1e-9)


def test_scale(drawn):
    (losses, gradients), numbers = drawn("scale")
    x, logit = numbers["x"], scipy.special.logit
    for k, residual in enumerate((0.0, 0.5, 2.0, 8.0, 32.0)):
        (s, loss), (_, gradient) = losses[k], gradients[k]
        d = logit(x) - logit(0.1 + 0.8 * (128 - residual) / 255)
        # Logits near 0 differ by their rounding (1e-16), which b = e^-8 multiplies.
        np.testing.assert_allclose(gradient, 1 - d * np.exp(-s), rtol=1e-9, atol=1e-10)
        expected = d * np.exp(-s) + s + np.log(2 * x * (1 - x))
        np.testing.assert_allclose(loss, expected, rtol=1e-9, atol=1e-10)
        if residual:
            best = numbers["best"][f"{residual:g} grey levels"]
            assert best["loss there, nats"] <= loss.min()
            assert best["best ln b"] == pytest.approx(np.log(d), abs=1e-9)
    assert "0 grey levels" not in numbers["best"]


def test_epsilon(drawn):
    logits, steps, masses = drawn("epsilon")[0]
    for k, eps in enumerate((0.0, 0.01, 0.05, 0.1, 0.2)):
        x = eps + (1 - 2 * eps) * np.arange(256) / 255
        inside = (x > 0) & (x < 1)
        np.testing.assert_array_equal(np.isnan(logits[k][1]), ~inside)
        logit = scipy.special.logit(x[inside])
        np.testing.assert_allclose(logits[k][1][inside], logit, atol=1e-12)
        step = (1 - 2 * eps) / 255 / (x * (1 - x))[inside]
        np.testing.assert_allclose(steps[k][1][inside], step, rtol=1e-9)
        # Mass beyond the outer edges of the bins next to the ends: two equal tails at μ = 0.
        edge = scipy.special.logit(eps + (1 - 2 * eps) * 0.5 / 255)
        b, mass = masses[k]
        np.testing.assert_allclose(mass, 2 * scipy.stats.laplace(scale=b).cdf(edge), rtol=1e-9)


# --- Files and options -----------------------------------------------------------------------


def test_files_are_written_named_and_not_overwritten(run_script, tmp_path):
    args = ("density.py", "--out=made/here", "--figures", "scale", "epsilon", *TINY)
    status, out, err, changed = run_script(*args)
    assert (status, err) == (0, "")
    files = {f"made/here/{n}.{end}" for n in ("scale", "epsilon") for end in ("png", "json")}
    assert changed == {"made", "made/here", *files}
    assert all(name in out for name in files)
    with Image.open(tmp_path / "made/here/scale.png") as image:
        assert image.width == 7 * 60
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50
    numbers = json.loads((tmp_path / "made/here/scale.json").read_text(encoding="utf-8"))
    assert set(numbers["best"]) == {f"{r} grey levels" for r in ("0.5", "2", "8", "32")}

    status, _, err, changed = run_script(*args)
    assert (status, changed) == (2, set())
    assert "made/here/scale.png and 3 more exist; choose another --out folder" in err
    status, _, err, changed = run_script(*args, "--overwrite")
    assert (status, err, changed) == (0, "", set())  # the same command gives the same bytes


def test_formats_and_parameters(run_script, tmp_path):
    status, _, err, changed = run_script(
        *("density.py", "--out=.", "--figures", "shapes", "--format", "pdf", "svg"),
        *("--locs", "-1.5", "--scales", "0.5", "2", "--points=40"),
    )
    assert (status, err) == (0, "")
    assert changed == {"shapes.pdf", "shapes.svg", "shapes.json"}
    assert (tmp_path / "shapes.pdf").read_bytes().startswith(b"%PDF")
    assert "</svg>" in (tmp_path / "shapes.svg").read_text()
    assert set(json.loads((tmp_path / "shapes.json").read_text())) == {
        *("b=0.5 loc=-1.5", "b=2 loc=-1.5")
    }


def test_help_explains_every_option(run_script):
    status, out, err, _ = run_script("density.py", "--help")
    assert (status, err) == (0, "")
    words = " ".join(out.replace("│", " ").split())
    for option in ("out", "figures", "format", "dpi", "overwrite", "locs", "targets", "points"):
        assert f"--{option}" in words
    for text in ("logit units", "8-bit grey levels", "Dots per inch", "default: 0.1", *NAMES):
        assert text in words


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--scales", "0"], ["--scales", "[0.02, 20]", "0"]),
        (["--scales", "nan"], ["--scales", "nan"]),
        (["--scales", "1", "1"], ["--scales", "different"]),
        (["--locs", "11"], ["--locs", "[-10, 10]", "11"]),
        (["--locs", "0", "1", "2", "3", "4"], ["--locs", "1 to 4", "got 5"]),
        (["--locs", "left"], ["left"]),
        (["--targets", "256"], ["--targets", "[0, 255]", "256"]),
        (["--eps", "0.5"], ["--eps", "0.5"]),
        (["--points", "3"], ["--points", "[20, 4000]", "3"]),
        (["--dpi", "10"], ["--dpi", "[50, 1200]", "10"]),
        (["--figures", "shape"], ["shape"]),
        (["--format", "gif"], ["gif"]),
        (["--no-such-option"], ["--no-such-option"]),
        (["--out", "taken/deeper"], ["taken is a file; choose another --out folder"]),
    ],
)
def test_mistakes_are_one_line(run_script, tmp_path, args, words):
    (tmp_path / "taken").write_text("")
    status, out, err, changed = run_script("density.py", *args)
    assert (status, out, changed) == (2, "", set())
    assert len(err.splitlines()) == 1, err
    assert err.startswith("density.py: error: ")
    for word in words:
        assert word in err


# --- The page in docs ------------------------------------------------------------------------

# Text of docs/density.md and where its number stands: figure, keys, format.
QUOTED = [
    ("20.0 at μ = 0", "shapes", ("b=0.1 loc=0", "density at the median"), "{:.1f} at μ = 0"),
    ("47.6 at μ = −2", "shapes", ("b=0.1 loc=-2", "density at the median"), "{:.1f} at μ = −2"),
    ("21.6 %", "shapes", ("b=3 loc=0", "mass within 0.01 of an end"), "{:.1%}"),
    ("2.16 at μ = 1", "ends", ("b below which sigmoid(loc) is a local maximum", "loc=1"), "{:.2f}"),
    ("1.31 at μ = 2", "ends", ("b below which sigmoid(loc) is a local maximum", "loc=2"), "{:.2f}"),
    *(
        (text, "families", (case, "families", name, key), form)
        for text, case, name, key, form in (
            ("at most 0.012", "loc=0 b=0.3", "laplace", "largest cdf difference", "{:.3f}"),
            ("0.050 for", "loc=0 b=0.3", "normal", "largest cdf difference", "{:.3f}"),
            ("5.9 %", "loc=2 b=0.5", "normal", "mass outside (0, 1)", "{:.1%}"),
            ("β = 0.66", "loc=0 b=2", "beta", "β", "{:.2f}"),
            ("s = 2.20", "loc=0 b=2", "logit_normal", "s", "{:.2f}"),
        )
    ),
    *(
        (text, "leak", ("b at which normal and Laplace leak the same", loc), "{:.1f}")
        for text, loc in (("1.6 for", "loc=0"), ("0.8 for", "loc=1"), ("0.5 for", "loc=-2"))
    ),
    ("normal 16.2 %", "leak", ("table", "loc=-2 b=1", "normal"), "{:.1%}"),
    ("Laplace 12.5 %", "leak", ("table", "loc=-2 b=1", "laplace"), "{:.1%}"),
    ("0.0099", "gradients", ("gradients", "target=0 loc=4.6", "l1, in loc"), "{:.4f}"),
    ("0.0175", "gradients", ("gradients", "target=0 loc=4.6", "l2, in loc"), "{:.4f}"),
    ("101 at", "gradients", ("gradients", "target=0 loc=4.6", "logit_laplace, in p"), "{:.0f}"),
    ("−5.07", "scale", ("best", "0.5 grey levels", "best ln b"), "{:.2f}"),
    ("2.197", "epsilon", ("eps=0.1", "largest |logit|"), "{:.3f}"),
    ("11.3 %", "epsilon", ("eps=0.1", "mass of 0 and 255 at loc=0", "b=1"), "{:.1%}"),
    ("1.2 %", "epsilon", ("eps=0.01", "mass of 0 and 255 at loc=0", "b=1"), "{:.1%}"),
]


@pytest.mark.parametrize(("text", "figure", "keys", "form"), QUOTED)
def test_the_page_quotes_the_numbers(drawn, text, figure, keys, form):
    value = drawn(figure)[1]
    for key in keys:
        value = value[key]
    assert form.format(value).replace("-", "−").replace("%", " %") in text
    assert text in " ".join(PAGE.read_text(encoding="utf-8").split())


def test_the_page_shows_every_figure_and_its_example_runs():
    page = PAGE.read_text(encoding="utf-8")
    for name in NAMES:
        assert f"](density/{name}.png)" in page
        assert (PAGE.parent / "density" / f"{name}.png").is_file()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["grid"].shape == (2, 2, 99)
    assert scope["grid"][1, 1, 49] == pytest.approx(2.0)  # 1/(2 b x (1-x)) at the median
