"""The table of several priors' realism, over seeds."""

import pytest

from logit_laplace_jax.runs import realism_report
from logit_laplace_jax.runs.realism import SETS


def result(likelihood, seed, distance, scale="per_pixel"):
    own = {"sliced_wasserstein_mean": distance, "spectrum_error": 10 * distance}
    return {
        "data": "folder:digits",
        "likelihood": likelihood,
        "scale": scale,
        "seed": seed,
        "sets": dict.fromkeys(SETS, own | {"spectrum": [1.0, 2.0]}),
        "real_spectrum": [0.0, 0.0],
        "nearest": {"draws": 20.0, "held out": 30.0},
    }


@pytest.fixture
def results():
    # The differences, paired by seed, are 0.1 each; the means differ by what seed 2 adds.
    first = [result("laplace", seed, 0.2 + 0.1 * seed) for seed in range(3)]
    return [*first, *(result("normal", seed, 0.3 + 0.1 * seed) for seed in range(2))]


def rows(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: cells for name, *cells in lines}


def test_groups_have_means_with_intervals_and_paired_differences(results):
    told = rows(realism_report.text(results))
    # Of 0.2, 0.3, 0.4: 4.303 standard deviations of 0.1 over the root of 3.
    assert told["sliced Wasserstein, laplace"] == ["0.300 ± 0.248"] * len(SETS)
    assert told["normal - laplace"] == ["0.100 ± 0.000", "1.000 ± 0.000"]
    assert told["normal"] == ["20.000 ± 0.000", "30.000 ± 0.000"]


def test_one_prior_has_no_interval(results):
    told = rows(realism_report.text(results[:1]))
    assert told["sliced Wasserstein, laplace"] == ["0.200"] * len(SETS)
    other = result("laplace", 0, 0.2, scale="shared")
    assert "spectrum, dB, laplace, shared scale" in rows(realism_report.text([other]))


def test_the_spectra_are_drawn(results, tmp_path):
    realism_report.spectra(tmp_path / "spectra.png", results)
    assert (tmp_path / "spectra.png").read_bytes().startswith(b"\x89PNG")
