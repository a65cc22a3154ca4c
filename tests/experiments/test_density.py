"""density.py: its files, its options, and the numbers behind its figures."""

import contextlib
import importlib.util
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
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
TINY = ["--points", "40", "--grid", "7", "--dpi", "60"]
NAMES = [
    *("shapes", "moments", "centres", "ends", "families"),
    *("leak", "gradients", "scale", "epsilon"),
]

# Grids are computed in float64; a few roundings, and the library's cdf and log_prob, stay below.
ROUNDING = 1e-12
# The library promises 1e-10 for the moments in float64.
MOMENTS = 1e-9


@pytest.fixture(scope="module")
def script():
    """density.py as a module; `run` calls its main as the command line would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        spec = importlib.util.spec_from_file_location("script_density", EXPERIMENTS / "density.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def run(script):
    """A function of arguments that gives exit status, stdout and stderr."""

    def call(*args):
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["density.py", *map(str, args)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    script.run_script(script.main)
                except SystemExit as stop:
                    status = stop.code or 0
        return status, out.getvalue(), err.getvalue()

    return call


@pytest.fixture(scope="module")
def atlas(run, tmp_path_factory):
    """Every figure, tiny."""
    folder = tmp_path_factory.mktemp("atlas") / "made" / "here"
    status, out, err = run("--out", folder, "--format", "png", *TINY)
    assert (status, err) == (0, "")
    return folder, out


@pytest.fixture(scope="module")
def records(atlas, script):
    from _atlas.record import Record

    return {name: Record.read(atlas[0] / f"{name}.json") for name in NAMES}


def laplace(scale):
    return scipy.stats.laplace(scale=scale)


def expectation(function, loc, scale, space=scipy.special.expit):
    """E f(sigmoid(X)), X ~ Laplace(loc, scale), by adaptive quadrature; E f(space(X))."""
    total = 0.0
    for sign in (-1, 1):

        def integrand(z, sign=sign):
            return 0.5 * np.exp(-z) * function(space(loc + sign * scale * z))

        for low, high in ((0, 1), (1, 5), (5, 60)):
            total += scipy.integrate.quad(integrand, low, high, epsabs=1e-14, epsrel=1e-12)[0]
    return total


# --- Files -----------------------------------------------------------------------------------


def test_every_figure_is_written_and_named(atlas):
    folder, out = atlas
    wanted = {f"{name}.{end}" for name in NAMES for end in ("png", "json")}
    assert {p.name for p in folder.iterdir()} == wanted
    for name in wanted:
        assert str(folder / name) in out


def test_pictures_are_pictures(atlas):
    for name in NAMES:
        with Image.open(atlas[0] / f"{name}.png") as image:
            assert image.width == 7 * 60
            assert len(image.convert("RGB").getcolors(1 << 20)) > 50
            assert image.convert("L").getpixel((0, 0)) == 255


def test_json_is_strict_and_null_only_where_nothing_exists(atlas):
    def refuse(word):
        raise AssertionError(f"{word} in JSON")

    for name in NAMES:
        text = (atlas[0] / f"{name}.json").read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=refuse)
        assert content["figure"] == name
        assert content["settings"]["points"] == 40
        assert content["settings"]["eps"] == 0.1
        missing = {
            key: np.isnan(np.array(array["values"], float))
            for key, array in content["arrays"].items()
        }
        if name == "centres":
            b = np.array(content["axes"]["b"])
            np.testing.assert_array_equal(missing.pop("mode"), np.tile(b >= 1, (2, 1)))
        if name == "ends":
            loc = np.array(content["axes"]["loc"])
            np.testing.assert_array_equal(missing.pop("peak_limit"), loc == 0)
        if name == "epsilon":  # at ε = 0 the ends have no logit
            for key in ("logit", "logits_a_grey_level"):
                expected = np.zeros((5, 256), bool)
                expected[0, [0, 255]] = True
                np.testing.assert_array_equal(missing.pop(key), expected)
        assert not any(m.any() for m in missing.values()), name


# These have text axes, missing values and missing numbers.
@pytest.mark.parametrize("name", ["centres", "ends", "families", "scale"])
def test_pictures_can_be_redrawn_from_their_json(atlas, records, script, tmp_path, name):
    from _atlas import load, style

    with style.styled():
        style.save(load(name).draw(records[name]), tmp_path / "again.png", 60)
    assert (tmp_path / "again.png").read_bytes() == (atlas[0] / f"{name}.png").read_bytes()


def test_the_same_command_gives_the_same_bytes(atlas, run, tmp_path):
    folders = atlas[0], tmp_path / "again", tmp_path / "and again"
    for folder in folders[1:]:
        assert run("--out", folder, "--figures", "scale", *TINY)[0] == 0
    for end, first in (("png", 0), ("json", 0), ("svg", 1)):
        contents = {(folder / f"scale.{end}").read_bytes() for folder in folders[first:]}
        assert len(contents) == 1
    root = ElementTree.parse(tmp_path / "again" / "scale.svg").getroot()
    assert root.tag.endswith("svg")
    assert len(list(root.iter())) > 100


def test_arrays_must_fit_their_axes(script):
    from _atlas.record import Record

    with pytest.raises(ValueError, match=r"y has shape \(3,\)"):
        Record({"x": np.zeros(2)}, {"y": (("x",), np.zeros(3))})


# --- Numbers ---------------------------------------------------------------------------------


def test_shapes_are_laplace_in_logit_space(records):
    record = records["shapes"]
    b, loc, x = np.meshgrid(record["b"], record["loc"], record["x"], indexing="ij")
    law = laplace(b)
    z = scipy.special.logit(x) - loc
    np.testing.assert_allclose(record["density"], law.pdf(z) / (x * (1 - x)), rtol=1e-10)
    np.testing.assert_allclose(record["cdf"], law.cdf(z), rtol=1e-10, atol=ROUNDING)
    row = record.numbers["b=1 loc=0"]
    assert row["density at the median"] == pytest.approx(2.0)
    assert row["mass within 0.01 of an end"] == pytest.approx(1 / 99)


def test_moments_by_adaptive_quadrature(records):
    record = records["moments"]
    for i in (0, 2, 4):
        for j in (1, 3, 6):
            loc, b = record["loc"][j], np.exp(record["log_scale"][i])
            mean = expectation(lambda x: x, loc, b)
            variance = expectation(lambda x, mean=mean: (x - mean) ** 2, loc, b)
            assert record["mean"][i, j] == pytest.approx(mean, rel=MOMENTS)
            assert record["standard_deviation"][i, j] == pytest.approx(variance**0.5, rel=MOMENTS)
    # h(x) = h(X) + E ln x(1 - x), and ln x(1 - x) = ln sigmoid(X) sigmoid(-X).
    jacobian = expectation(lambda t: -t - 2 * np.logaddexp(0, -t), -2.0, 1.0, lambda t: t)
    entropy = 1 + np.log(2) + jacobian
    table = record.numbers["table"]["b=1 loc=-2"]
    assert table["entropy, nats"] == pytest.approx(entropy, abs=1e-8)


def test_centres(records):
    record = records["centres"]
    expected = [[expectation(lambda x: x, m, b) for b in record["b"]] for m in record["loc_shown"]]
    np.testing.assert_allclose(record["mean"], expected, rtol=MOMENTS)
    medians = scipy.special.expit(record["loc_shown"])[:, None]
    np.testing.assert_allclose(record["median"], np.broadcast_to(medians, (2, 40)), rtol=ROUNDING)
    row = record.numbers["table"]["b=1 loc=-2"]
    gap = expectation(lambda x: x, -2.0, 1.0) - row["median"]
    assert row["mean - median, grey levels"] == pytest.approx(255 / 0.8 * gap, rel=1e-8)
    error = expectation(lambda x: (x - row["median"]) ** 2, -2.0, 1.0)
    best = expectation(lambda x: (x - row["mean"]) ** 2, -2.0, 1.0)
    lost = row["PSNR of the median, lost dB"]
    assert lost == pytest.approx(10 * np.log10(error / best), rel=1e-7)


def test_the_limit_of_the_local_peak(script):
    from _atlas.ends import peak_limit

    def log_density(t, loc, b):  # of x, at its logit t, without the constant
        return -np.abs(t - loc) / b - np.log(scipy.special.expit(t) * scipy.special.expit(-t))

    for loc in (-3.0, -0.5, 1.0, 2.0):
        limit = float(peak_limit(np.array(loc)))
        for b in (1.001 * limit, 0.999 * limit):
            sides = log_density(loc + np.array([-1e-5, 1e-5]), loc, b)
            assert (sides < log_density(loc, loc, b)).all() == (b < limit)
    assert peak_limit(np.array(0.0)) == np.inf


def test_slopes_at_the_ends(records):
    numbers = records["ends"].numbers
    slopes = numbers["log-log slope of the density at x = 1e-6"]
    # x/(1-x) is x to 1e-6, and the grid's first step is a factor of 1.4.
    assert slopes == pytest.approx(numbers["1/b - 1"], abs=1e-5)
    assert numbers["1/b - 1"]["b=1.5"] == pytest.approx(-1 / 3)


def members(record, case):
    """SciPy's member of each family, from the parameters in the JSON."""
    for name, values in record.numbers[case]["families"].items():
        if name == "beta":
            yield name, scipy.stats.beta(values["α"], values["β"])
        elif name != "logit_normal":
            law = {"normal": "norm"}.get(name, name)
            scale = values[{"normal": "σ", "laplace": "b", "logistic": "s"}[name]]
            yield name, getattr(scipy.stats, law)(values["mean"], scale)


def test_families_have_the_mean_and_variance(records):
    record = records["families"]
    assert record.notes == ()
    assert list(record["case"]) == ["loc=0 b=0.3", "loc=2 b=0.5", "loc=0 b=2"]
    for case in record["case"]:
        numbers = record.numbers[case]
        loc, b = (float(part.partition("=")[2]) for part in case.split())
        mean = expectation(lambda x: x, loc, b)
        variance = expectation(lambda x, mean=mean: (x - mean) ** 2, loc, b)
        assert numbers["mean"] == pytest.approx(mean, rel=MOMENTS)
        assert numbers["variance"] == pytest.approx(variance, rel=MOMENTS)
        laws = dict(members(record, case))
        assert set(laws) == {"normal", "laplace", "logistic", "beta"}
        for law in laws.values():
            assert law.mean() == pytest.approx(mean, rel=MOMENTS)
            assert law.var() == pytest.approx(variance, rel=MOMENTS)
        values = numbers["families"]["logit_normal"]

        def moment(f, m=values["m"], s=values["s"]):
            def integrand(z):
                return scipy.stats.norm.pdf(z) * f(scipy.special.expit(m + s * z))

            return scipy.integrate.quad(integrand, -10, 10, epsabs=1e-13, limit=200)[0]

        assert moment(lambda x: x) == pytest.approx(mean, rel=MOMENTS)
        assert moment(lambda x, mean=mean: (x - mean) ** 2) == pytest.approx(variance, rel=1e-8)


def test_families_have_their_curves_and_leaks(records):
    record = records["families"]
    names = list(record["family"])
    for i, case in enumerate(record["case"]):
        x = record["x"][i]
        for name, law in members(record, case):
            k = names.index(name)
            np.testing.assert_allclose(record["density"][k, i], law.pdf(x), rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(record["cdf"][k, i], law.cdf(x), rtol=1e-9, atol=1e-12)
            leak = record.numbers[case]["families"][name]["mass outside (0, 1)"]
            assert leak == pytest.approx(law.cdf(0) + law.sf(1), rel=1e-9)
            assert (leak > 0) == (name != "beta")
        values = record.numbers[case]["families"]["logit_normal"]
        inside = (x > 0) & (x < 1)
        law = scipy.stats.norm(values["m"], values["s"])
        k = names.index("logit_normal")
        t = scipy.special.logit(x[inside])
        density = law.pdf(t) / (x * (1 - x))[inside]
        np.testing.assert_allclose(record["density"][k, i, inside], density, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(record["cdf"][k, i, inside], law.cdf(t), rtol=1e-9, atol=1e-12)


def test_logit_normal_matches_wherever_it_can(script):
    from _atlas import matching

    mean, share = np.meshgrid([0.003, 0.05, 0.3, 0.5, 0.9, 0.997], [1e-4, 0.01, 0.3, 0.7, 0.9])
    mean, share = mean.ravel(), share.ravel()
    variance = share * mean * (1 - mean)
    with jax.enable_x64(True):
        loc, scale = jax.jit(jax.vmap(matching.FAMILIES["logit_normal"].match))(mean, variance)
        m, v, within = jax.vmap(matching.logit_normal_moments)(loc, scale)
    np.testing.assert_allclose(m, mean, rtol=1e-9)
    np.testing.assert_allclose(v, variance, rtol=1e-9)
    np.testing.assert_allclose(within, mean * (1 - mean) - variance, rtol=1e-8)


def test_a_family_without_a_match_is_said(run, script, tmp_path, monkeypatch):
    import dataclasses

    from _atlas import matching

    family = dataclasses.replace(
        matching.FAMILIES["logit_normal"], match=lambda mean, variance: (mean * np.nan, variance)
    )
    monkeypatch.setitem(matching.FAMILIES, "logit_normal", family)
    args = ("--figures", "families", "--cases", "0", "0.3", "--format", "png", *TINY)
    status, out, err = run("--out", tmp_path, *args)
    assert (status, err) == (0, "")
    assert "no logit-normal was found with mean and variance of loc=0 b=0.3" in out
    content = json.loads((tmp_path / "families.json").read_text())
    assert len(content["notes"]) == 1
    assert set(content["numbers"]["loc=0 b=0.3"]["families"]) == {
        *("normal", "laplace", "logistic", "beta")
    }


def test_leak_is_both_tails(records):
    record = records["leak"]
    mean = expectation(lambda x: x, -2.0, 1.0)
    variance = expectation(lambda x: (x - mean) ** 2, -2.0, 1.0)
    law = scipy.stats.norm(mean, variance**0.5)
    row = record.numbers["table"]["loc=-2 b=1"]
    assert row["normal"] == pytest.approx(law.cdf(0) + law.sf(1), rel=1e-8)
    i, j = list(record["loc"]).index(-2.0), list(record["b"]).index(1.0)
    assert record["leaked"][0, i, j] == row["normal"]
    alike = record.numbers["b at which normal and Laplace leak the same"]["loc=-2"]
    below, above = record["b"] < alike, record["b"] > alike
    assert (record["leaked"][0, i, below] < record["leaked"][1, i, below]).all()
    assert (record["leaked"][0, i, above] > record["leaked"][1, i, above]).all()
    # Wider logit-Laplace densities make wider normals, which leak more.
    assert (np.diff(record["leaked"][0, i]) > 0).all()


def test_gradients_in_closed_form(records):
    record = records["gradients"]
    assert list(record["loss"]) == ["logit_laplace", "l1", "l2"]
    np.testing.assert_allclose(record["x"], [0.1, 0.1 + 0.8 * 64 / 255, 0.1 + 0.8 * 128 / 255])
    x, loc, p = record["x"][:, None], record["loc"], record["p"]
    difference = p - x
    tie = np.abs(difference) < 1e-12
    assert tie.sum() == 3
    away = ~tie
    sign, slope = np.sign(difference), p * (1 - p)
    expected = np.stack([sign * np.ones_like(loc), sign * slope, 2 * difference * slope])
    got = record["gradient_in_loc"]
    np.testing.assert_allclose(got[:, away], expected[:, away], rtol=1e-9)
    got = record["gradient_in_p"]
    np.testing.assert_allclose(got[:, away], (expected / slope)[:, away], rtol=1e-9)
    logit = np.log(x) - np.log1p(-x)
    losses = np.stack([np.abs(loc - logit), np.abs(difference), difference**2])
    np.testing.assert_allclose(record["above_minimum"], losses, rtol=1e-9, atol=ROUNDING)


def test_gradient_scale_divides_the_force(run, tmp_path):
    args = ("--figures", "gradients", "--gradient-scale", "0.25", "--targets", "255", *TINY)
    assert run("--out", tmp_path, *args)[0] == 0
    content = json.loads((tmp_path / "gradients.json").read_text())
    force = content["numbers"]["gradients"]["target=255 loc=0"]["logit_laplace, in loc"]
    assert force == pytest.approx(-4.0)
    assert content["axes"]["target"] == [255]


def test_scale(records):
    record = records["scale"]
    d, s = record["distance"][:, None], record["log_scale"]
    # Logits near 0 differ by their rounding (1e-16), which b = e^-8 multiplies.
    np.testing.assert_allclose(record["gradient"], 1 - d * np.exp(-s), rtol=1e-9, atol=1e-10)
    x = record.numbers["x"]
    loss = d * np.exp(-s) + s + np.log(2 * x * (1 - x))
    np.testing.assert_allclose(record["loss"], loss, rtol=1e-9, atol=1e-10)
    assert record["distance"][0] == 0
    best = record.numbers["best"]
    assert best["0 grey levels"]["best ln b"] is None
    for row, residual in zip(record["loss"][1:], ("0.5", "2", "8", "32"), strict=True):
        values = best[f"{residual} grey levels"]
        assert values["loss there, nats"] <= row.min()
        assert abs(s[row.argmin()] - values["best ln b"]) <= s[1] - s[0]


def test_epsilon(records):
    record = records["epsilon"]
    eps, grey = record["eps"][:, None], record["grey"]
    x = eps + (1 - 2 * eps) * grey / 255
    inside = (x > 0) & (x < 1)
    np.testing.assert_allclose(record["logit"][inside], scipy.special.logit(x[inside]), atol=1e-12)
    step = (1 - 2 * eps) / 255 / (x * (1 - x) + ~inside)
    np.testing.assert_allclose(record["logits_a_grey_level"][inside], step[inside], rtol=1e-9)
    # Mass beyond the outer edges of the bins next to the ends: two equal tails at μ = 0.
    edge = scipy.special.logit(eps + (1 - 2 * eps) * 0.5 / 255)
    expected = 2 * laplace(record["b"]).cdf(edge)
    np.testing.assert_allclose(record["end_mass"], expected, rtol=1e-9)


# --- Options ---------------------------------------------------------------------------------


def test_help_explains_every_option(run):
    status, out, err = run("--help")
    assert (status, err) == (0, "")
    words = " ".join(out.replace("│", " ").split())
    for option in (
        *("out", "figures", "format", "dpi", "overwrite", "locs", "scales", "cases", "targets"),
        *("gradient-scale", "residuals", "eps", "eps-values", "points", "grid"),
    ):
        assert f"--{option}" in words
    for text in ("logit units", "8-bit grey levels", "Dots an inch", "default: 0.1", *NAMES):
        assert text in words


def test_subset_formats_and_parameters(run, tmp_path):
    status, _, err = run(
        *("--out", tmp_path, "--figures", "shapes", "--format", "pdf"),
        *("--locs", "-1.5", "--scales", "0.5", "2", *TINY),
    )
    assert (status, err) == (0, "")
    assert {p.name for p in tmp_path.iterdir()} == {"shapes.pdf", "shapes.json"}
    assert (tmp_path / "shapes.pdf").read_bytes().startswith(b"%PDF")
    content = json.loads((tmp_path / "shapes.json").read_text())
    assert content["axes"]["loc"] == [-1.5]
    assert content["axes"]["b"] == [0.5, 2.0]
    assert content["settings"]["scales"] == [0.5, 2.0]


def test_nothing_is_overwritten_unless_asked(run, tmp_path):
    picture = tmp_path / "scale.png"
    picture.write_bytes(b"a thesis")
    args = ("--out", tmp_path, "--figures", "scale", *TINY)
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert err == (
        f"density.py: error: {picture} exists; choose another --out folder, or add --overwrite\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["scale.png"]
    assert picture.read_bytes() == b"a thesis"
    assert run(*args, "--overwrite")[0] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run(*args)[0] == 2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--scales", "0"], ["--scales", "[0.02, 20]", "0"]),
        (["--scales", "nan"], ["--scales", "nan"]),
        (["--scales", "1", "1"], ["--scales", "different"]),
        (["--locs", "11"], ["--locs", "[-10, 10]", "11"]),
        (["--locs", "0", "1", "2", "3", "4"], ["--locs", "1 to 4", "got 5"]),
        (["--locs", "left"], ["left"]),
        (["--cases", "0", "-1"], ["--cases", "-1"]),
        (["--cases", "0", "1", "0", "1"], ["--cases", "different"]),
        (["--targets", "256"], ["--targets", "[0, 255]", "256"]),
        (["--gradient-scale", "0"], ["--gradient-scale"]),
        (["--residuals", "-1"], ["--residuals"]),
        (["--eps", "0.5"], ["--eps", "[0, 0.5)"]),
        (["--eps-values", "0.1", "0.7"], ["--eps-values", "0.7"]),
        (["--eps", "0"], ["--eps 0", "infinite"]),
        (["--points", "3"], ["--points", "[20, 4000]", "3"]),
        (["--grid", "2"], ["--grid"]),
        (["--dpi", "10"], ["--dpi", "[50, 1200]", "10"]),
        (["--figures", "shape"], ["shape"]),
        (["--format", "gif"], ["gif"]),
        (["--no-such-option"], ["--no-such-option"]),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("density.py: error: ")
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(run, tmp_path):
    (tmp_path / "taken").write_text("")
    status, _, err = run("--out", tmp_path / "taken" / "deeper")
    assert status == 2
    assert err == (
        f"density.py: error: {tmp_path / 'taken'} is a file; choose another --out folder\n"
    )


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
def test_the_page_quotes_the_numbers(records, text, figure, keys, form):
    page = " ".join((ROOT / "docs" / "density.md").read_text(encoding="utf-8").split())
    value = records[figure].numbers
    for key in keys:
        value = value[key]
    said = form.format(value).replace("-", "−").replace("%", " %")
    assert said in text
    assert text in page


def test_the_example_of_the_page_runs():
    page = (ROOT / "docs" / "density.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = {}
    exec(code, scope)
    assert scope["grid"].shape == (2, 2, 99)
    assert scope["grid"][1, 1, 49] == pytest.approx(2.0)  # 1/(2 b x (1-x)) at the median


def test_the_page_shows_every_figure():
    page = (ROOT / "docs" / "density.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"](density/{name}.png)" in page
        assert (ROOT / "docs" / "density" / f"{name}.png").is_file()
