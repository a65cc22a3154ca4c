"""train_prior.py, sample.py, evaluate.py --prior and codec.py as a user runs them, in a row."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image

from logit_laplace_jax.runs import loop

pytestmark = pytest.mark.usefixtures("quick_compilation")

PRIOR = (
    *("--prior-dir", "prior", "--steps", "2", "--batch-size", "4", "--eval-every", "0"),
    *("--prior.features", "8", "--prior.layers", "1", "--prior.heads", "2", "--parallel", "single"),
)


@pytest.fixture
def here(run_script, photographs, tmp_path):
    """A dVAE of one update in ``run``, and a function that runs a script."""
    config = tiny.run_config(photographs, run_dir=str(tmp_path / "run"), steps=1)
    loop.train(config, say=lambda line: None)
    return run_script


def refused(result, *words):
    status, _, err, changed = result
    assert (status, changed) == (2, set())
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err


def test_from_a_dvae_to_sheets_numbers_and_files(here, photographs, tmp_path):
    refused(here("train_prior.py"), "name the run directory")
    refused(here("train_prior.py", "nowhere"), "not a run directory")
    refused(here("train_prior.py", "run", "--size", "huge"), "small, medium, large, paper")
    refused(here("train_prior.py", "run", "--prior.height", "3"), "follows the run")
    refused(here("train_prior.py", "run", "--conditional", *PRIOR), "single class")
    refused(here("sample.py", "run"), "run of a dVAE")

    status, out, err, _ = here("train_prior.py", "run", "--dry-run", *PRIOR)
    assert (status, "parameters" in out) == (0, True), err
    status, out, err, changed = here("train_prior.py", "run", *PRIOR)
    assert status == 0, err
    assert {"prior/config.json", "prior/samples/step_0000002.png"} <= changed
    assert "sample.py" in out
    status, out, _, _ = here("train_prior.py", "run", *PRIOR)
    assert (status, "complete" in out) == (0, True)

    # The same seed gives the same sheet, whatever the batch size.
    for name, size in (("a.png", 5), ("b.png", 2)):
        status, _, err, changed = here(
            "sample.py", "prior", "--num", 5, "--columns", 3, "--output", name, "--batch-size", size
        )
        assert (status, changed) == (0, {name}), err
    one, other = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (3 * 18, 3 * 28, 3)
    refused(here("sample.py", "prior", "--output", "a.png"), "exists")
    refused(here("sample.py", "prior", "--temperature", "-1"), "temperature")
    refused(here("sample.py", "prior", "--label", "cat"), "no classes")

    image = photographs / "val" / "0.png"
    args = ("prior", "--complete", image, "--num", 2, "--output", "lower.png", "--enlarge", 1)
    status, out, err, _ = here("sample.py", *args, "--timing")
    assert status == 0, err
    assert "without the cache" in out
    sheet = np.asarray(Image.open(tmp_path / "lower.png"))
    assert sheet.shape == (8, 28, 3)

    told = ("--num", 8, "--among", 4, "--output", "real")
    status, out, err, changed = here("realism.py", "prior", "prior", *told)
    assert status == 0, err
    assert {"prior/realism.json", "prior/realism.png", "real/realism.md"} <= changed
    assert {"real/realism.json", "real/spectra.png"} <= changed
    one, other = json.loads((tmp_path / "real" / "realism.json").read_text())
    assert one == other  # the same seed draws the same images
    assert one["images"] == 8
    refused(here("realism.py", "prior", *told), "exists")
    refused(here("realism.py", "run"), "run of a dVAE")

    status, out, err, _ = here("evaluate.py", "run", "--prior", "prior")
    assert status == 0, err
    numbers = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    total = numbers["bpd_hard_pixels"] + numbers["bpd_prior_codes"]
    assert numbers["bpd_prior"] == total
    assert numbers["bpd_uniform_codes"] == pytest.approx(numbers["bpd_hard_codes"])
    assert "PNG" in out
    refused(here("evaluate.py", "run", "--prior", "prior", "--whole"), "leave out --whole")

    # The same crops in a file: the same length.
    status, out, err, _ = here("codec.py", "compress", "prior", "--held-out", 6, "--output", "f")
    assert status == 0, err
    assert f"promised  {total:.3f}" in out
    status, _, err, _ = here("codec.py", "compress", "run", image, "--output", "g")
    assert status == 0, err
    status, out, err, _ = here("codec.py", "decompress", "run", "g", "--output", "back")
    assert status == 0, err
    decoded = np.asarray(Image.open(tmp_path / "back" / "00000_0.png"))
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(image)))
    refused(here("codec.py", "decompress", "prior", "g", "--output", "h"), "another model")
    refused(here("codec.py", "compress", "run", "--output", "h"), "give images")
