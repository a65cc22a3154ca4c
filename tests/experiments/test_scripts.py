"""train.py, evaluate.py and reconstruct.py as a user runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.runs import metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
STEPS = 80
TIMING = {"images_per_second", "data_wait_share"}

# --- Running scripts -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(paint, tmp_path_factory):
    """A folder of images, and one for compiled functions that all processes share."""
    root = tmp_path_factory.mktemp("place")
    paint(root / "images", {"train": 3, "val": 2})
    return root


def options(place, run_dir):
    """A tiny run on the folder of images, on one device."""
    return [
        "smoke",
        f"--run-dir={run_dir}",
        f"--data=folder:{place / 'images'}",
        f"--steps={STEPS}",
        "--batch-size=4",
        "--image-size=8",
        "--parallel=single",
        "--eval-every=40",
        "--checkpoint-every=10",
        "--evaluation.resize=1.0",
        "--evaluation.images=6",
        "--model.n-hid=4",
        "--model.n-init=4",
        "--model.vocab-size=8",
    ]


def environment(place, devices=1):
    """This process's, on so many simulated devices, compiling at once rather than well."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "NPROC": "8",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def start(place, script, *args, devices=1):
    return subprocess.Popen(
        [sys.executable, str(EXPERIMENTS / script), *map(str, args)],
        cwd=ROOT,
        env=environment(place, devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture
def here(run_script):
    return run_script


def snapshot(folder):
    return {
        p.relative_to(folder): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")
    }


def assert_refused(result, *words, script):
    status, _, err, changed = result
    assert status == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith(f"{script}: error: ")
    assert len(err) > len(f"{script}: error: ") + 10
    for word in words:
        assert word in err
    assert changed == set()


# --- Help ------------------------------------------------------------------------------------

HELP = {
    "train.py": """run-dir steps batch-size image-size seed likelihood parallel eval-every
        checkpoint-every data likelihood.min-log-scale debug beta.start temperature.steps
        learning-rate.shape optimizer.ema-decay model.vocab-size fsdp devices accumulate precision
        data.threads init-from freeze distributed coordinator num-processes process-id dry-run
        simulate topology memory-report profile""",
    "evaluate.py": "data split codecs json whole resize edges limit batch-size checkpoint",
    "reconstruct.py": "longest-side output enlarge checkpoint",
}


@pytest.mark.parametrize("script", HELP)
def test_help_names_every_option(here, script):
    status, out, err, changed = here(script, "--help")
    assert (status, err, changed) == (0, "", set())
    for option in HELP[script].split():
        assert f"--{option}" in out, option
    if script == "train.py":
        for words in ("photos", "smoke", "cifar10", "imagenet64", "dalle", "pmap", "mesh"):
            assert words in out
        for words in ("folder:PATH", "tfds:NAME", "pixels", "Updates", "default: photos"):
            assert words in out
    else:
        assert "RUN" in out


@pytest.mark.parametrize("preset", ["smoke", "dalle"])
def test_help_of_a_preset_shows_its_defaults(here, preset):
    status, out, _, _ = here("train.py", preset, "--help")
    assert status == 0
    assert {"smoke": "default: 8)", "dalle": "default: 3000000)"}[preset] in out


# --- Mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["smok"], ["'smok'", "smoke", "dalle"]),
        (["smoke", "--image-size", "17"], ["17 x 17", "multiples of 2"]),
        (["dalle", "--image-size", "100"], ["100 x 100", "multiples of 8"]),
        (["smoke", "--parallel", "pmap", "--batch-size", "6"], ["batch size 6", "4 devices"]),
        (["smoke", "--parallel", "mesh", "--batch-size", "6"], ["batch size 6", "4 devices"]),
        (["smoke", "--parallel", "warp"], ["warp", "pmap"]),
        (["smoke", "--no-such-option", "1"], ["--no-such-option"]),
        (["smoke", "--steps", "many"], ["many", "steps"]),
        (["smoke", "--steps"], ["steps"]),
        (["smoke", "--steps", "0"], ["steps must be 1 or more"]),
        (["smoke", "--batch-size", "0"], ["batch_size must be 1 or more"]),
        (["smoke", "--seed", "-1"], ["seed must be 0 or more"]),
        (["smoke", "--likelihood", "gauss"], ["unknown likelihood 'gauss'"]),
        (["smoke", "--likelihood.eps", "0.5"], ["eps", "0.5"]),
        (["smoke", "--model.n-hid", "6"], ["n_hid must be a multiple of 4"]),
        (["smoke", "--temperature.end", "0"], ["temperature must stay above 0"]),
        (["smoke", "--data", "folder:missing"], ["missing", "does not exist"]),
        (["smoke", "--data", "folder:."], ["no image"]),
        (["smoke", "--data", "nothing"], ["'nothing'", "photos", "tfds:NAME"]),
        (["smoke", "--data", "tfds:no_such_set", "--data.data-dir", "tf"], ["'no_such_set'"]),
        (["smoke", "--model.dtype", "float16"], ["--model.dtype follows --precision"]),
        (["smoke", "--model.stats-per-channel=4"], ["follows --likelihood"]),
        (["smoke", "--model.constant_scale", "shared"], ["follows --likelihood.scale"]),
        (["smoke", "--precision", "int8"], ["int8", "bfloat16"]),
        (["smoke", "--accumulate", "3"], ["batch size 8", "3 equal parts"]),
        (["smoke", "--fsdp", "--parallel", "pmap"], ["fsdp needs --parallel mesh"]),
        (["smoke", "--devices", "9"], ["9 devices were asked for, but there are 4"]),
        (["smoke", "--simulate", "4"], ["--simulate belongs to --dry-run"]),
        (["smoke", "--coordinator", "here:1"], ["--coordinator belongs to --distributed"]),
        (["smoke", "--init-from", "nowhere"], ["nowhere does not exist"]),
        (["smoke", "--freeze", "all"], ["all", "decoder"]),
        (["extra", "words"], ["'extra'"]),
        (["smoke", "words"], ["words"]),
    ],
    ids=" ".join,
)
def test_train_refuses_in_one_line(here, args, words):
    result = here("train.py", *args, *([] if args[0] == "smok" else ["--run-dir", "run"]))
    assert_refused(result, *words, script="train.py")


def test_one_line_in_a_process_of_its_own(place, tmp_path):
    # Beside what is printed here, libraries' notes at start-up and at exit would show.
    args = ["smoke", f"--run-dir={tmp_path / 'run'}", "--batch-size=6", "--parallel=pmap"]
    batch = start(place, "train.py", *args, devices=4)
    folder = start(
        place, "train.py", "smoke", f"--run-dir={tmp_path / 'run'}", f"--data=folder:{tmp_path}/no"
    )
    for process, words in ((batch, "batch size 6"), (folder, "does not exist")):
        status, _, err = finish(process)
        assert_refused((status, "", err, set()), words, script="train.py")
    assert not list(tmp_path.iterdir())


def test_train_refuses_a_foreign_folder(here, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    result = here("train.py", "smoke", "--run-dir", "thesis")
    assert_refused(result, "thesis", "not empty", script="train.py")


@pytest.mark.parametrize(
    ("script", "args", "words"),
    [
        ("evaluate.py", [], ["run"]),
        ("evaluate.py", ["nowhere"], ["nowhere", "not a run directory"]),
        ("evaluate.py", [".", "--data", "photos"], ["not a run directory"]),
        ("evaluate.py", ["--no-such-option"], ["--no-such-option"]),
        ("reconstruct.py", [], ["Run directory"]),
        ("reconstruct.py", ["nowhere", "a.png"], ["nowhere", "not a run directory"]),
        ("reconstruct.py", ["nowhere"], ["image"]),
        ("reconstruct.py", ["nowhere", "a.png", "--enlarge", "0"], ["--enlarge"]),
        ("reconstruct.py", ["nowhere", "a.png", "--longest-side", "0"], ["--longest-side"]),
        ("reconstruct.py", ["nowhere", "a.png", "--enlarge", "big"], ["big"]),
    ],
)
def test_other_scripts_refuse_in_one_line(here, script, args, words):
    assert_refused(here(script, *args), *words, script=script)


# --- A run, broken and unbroken --------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(place):
    """A run that nothing disturbed, in a process of its own."""
    status, out, err = finish(start(place, "train.py", *options(place, place / "reference")))
    assert status == 0, err
    return place / "reference", out


def without_timing(folder):
    rows = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def test_the_directory(reference):
    folder, out = reference
    assert {p.name for p in folder.iterdir()} >= {
        *("config.json", "metrics.jsonl", "checkpoints", "reconstructions", "tensorboard"),
    }
    for row in metrics.read(folder / "metrics.jsonl"):
        assert {"step", "split"} <= row.keys()
    assert "PSNR" in out
    assert f"evaluate.py {folder}" in out


def test_the_same_command_on_a_finished_run_changes_nothing(here, place, reference):
    folder = reference[0]
    before = snapshot(folder)
    status, out, err, _ = here("train.py", *options(place, folder))
    assert status == 0, err
    assert "complete" in out
    assert snapshot(folder) == before


def test_another_configuration_is_refused(here, place, reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference[0], folder)
    args = [*options(place, folder), "--seed=4", "--model.n-hid=8"]
    words = ("seed: 0 there, 4 here", "model.n_hid: 4 there, 8 here", "--run-dir")
    assert_refused(here("train.py", *args), *words, script="train.py")


def test_a_damaged_checkpoint_is_named(here, place, reference, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reference[0], folder)
    args = options(place, folder)
    for path in (folder / "checkpoints" / str(STEPS)).rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    image = next((place / "images").rglob("*.png"))
    for script, rest in (("evaluate.py", [folder]), ("reconstruct.py", [folder, image])):
        status, _, err, _ = here(script, *rest)
        assert status == 2
        assert len(err.splitlines()) == 1, err
        assert f"checkpoint {STEPS}" in err
    # Training goes on from the one before.
    status, out, err, _ = here("train.py", *args)
    assert (status, err) == (0, "")
    assert f"damaged   checkpoint {STEPS}" in out
    assert "resuming  at step" in out
    assert (folder / "checkpoints" / f"{STEPS}.damaged").is_dir()


def test_a_loss_that_is_not_finite_is_status_1(here, place, tmp_path):
    # Steps this large overflow at once.
    args = [*options(place, tmp_path / "run"), "--learning-rate.start=1e30"]
    status, _, err, _ = here("train.py", *args)
    assert status == 1
    assert len(err.splitlines()) == 1, err
    assert "the last good step is" in err
    assert "checkpoint" in err
    rows = without_timing(tmp_path / "run")
    assert rows[-1]["loss"] is None
    good = int(err.split("the last good step is ")[1].split(",")[0])
    assert rows[-1]["step"] == good + 1


# --- evaluate.py -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(place, reference):
    target = place / "evaluated.json"
    process = start(place, "evaluate.py", reference[0], reference[0], f"--json={target}")
    status, out, err = finish(process)
    assert status == 0, err
    return target, out


def test_evaluate_equals_the_last_validation_row(reference, evaluated):
    rows = [row for row in without_timing(reference[0]) if row["split"] == "validation"]
    expected = {name: value for name, value in rows[-1].items() if name != "split"}
    assert expected["step"] == STEPS
    results = json.loads(evaluated[0].read_text())[str(reference[0])]
    for name, value in expected.items():
        # The same sums in another compilation: some 1e-6 of values below 20.
        assert results[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for words in ("PSNR", "SSIM", "ELBO", "bits/dim", "perplexity", "near edges", f"step {STEPS}"):
        assert words in evaluated[1]
    assert f"{results['bpd_hard']:.4f}" in evaluated[1]


def test_evaluate_writes_its_page_beside_the_run(reference, evaluated):
    assert json.loads((reference[0] / "evaluation.json").read_text())["step"] == STEPS
    with Image.open(reference[0] / "evaluation.png") as page:
        assert min(page.size) > 500
        assert len(page.convert("L").getcolors()) > 20  # something is drawn


def test_evaluate_whole_images_with_boundary_maps(here, reference, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for name, (width, height) in {"a": (17, 12), "b": (16, 16)}.items():
        pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{name}.png")
        boundary = np.zeros((height, width), np.uint8)
        boundary[:, width // 2] = 255
        Image.fromarray(boundary).save(tmp_path / "maps" / f"{name}.png")
    data = f"--data=folder:{tmp_path / 'images'}"
    options = ["--whole", data, "--split", "all", "--codecs", "--json", "whole.json"]
    status, out, err, _ = here("evaluate.py", reference[0], *options, "--edges", "maps")
    assert status == 0, err
    values = json.loads((tmp_path / "whole.json").read_text())[str(reference[0])]
    assert values["images"] == 2
    # Five columns are near the line.
    assert values["edge_share"] == pytest.approx((5 * 12 + 5 * 16) / (17 * 12 + 16 * 16))
    assert 0 < values["bpd_hard"] < 100
    assert "near edges" in out
    # Noise: no code makes it shorter, and JPEG's header alone takes more than the tokens' rate.
    assert 8 < values["bpd_png"] < values["rate_jpeg"]
    assert values["rate_tokens"] < 1 < values["rate_jpeg"]
    assert {"psnr_kmeans", "bpd_kmeans", "psnr_jpeg"} <= values.keys()
    assert "k-means" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--edges", "maps"], "--whole"),
        (["--resize", "0.5"], "--whole"),
        (["--whole", "--edges", "maps", "--resize", "0.5"], "leave out --resize"),
        (["--whole", "--resize", "2"], "resize must be in (0, 1]"),
    ],
)
def test_evaluate_refuses_options_that_do_not_go_together(here, reference, options, words):
    result = here("evaluate.py", reference[0], *options)
    assert_refused(result, words, script="evaluate.py")


def test_evaluate_overwrites_nothing(here, reference, tmp_path):
    (tmp_path / "old.json").write_text("{}")
    result = here("evaluate.py", reference[0], "--json", "old.json")
    assert_refused(result, "old.json exists", script="evaluate.py")


@pytest.mark.parametrize("target", ["no/such/folder.json", "file/below.json"])
def test_evaluate_refuses_a_file_that_it_cannot_write(here, reference, tmp_path, target):
    (tmp_path / "file").write_text("")
    result = here("evaluate.py", reference[0], "--json", target)
    assert_refused(result, target.split("/")[0], script="evaluate.py")
    assert "PSNR" not in result[1]  # before anything long starts


def test_evaluate_on_other_images(here, reference):
    result = here("evaluate.py", reference[0], "--data", "folder:missing")
    assert_refused(result, "missing", "does not exist", script="evaluate.py")


# --- reconstruct.py --------------------------------------------------------------------------


def test_reconstruct_writes_pictures_of_the_right_size(here, place, reference, tmp_path):
    rng = np.random.default_rng(0)
    # Odd sides are cut to a multiple of 2, the model's downsampling; long ones are shrunk.
    cases = {"odd": ((17, 23), (22, 16)), "long": ((20, 80), (40, 10)), "grey": ((8, 8), (8, 8))}
    for name, ((height, width), _) in cases.items():
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels if name != "grey" else pixels[..., 0]).save(f"{name}.png")
    status, out, err, changed = here(
        "reconstruct.py",
        reference[0],
        *(f"{name}.png" for name in cases),
        *("--longest-side", "40", "--output", "pictures", "--enlarge", "3"),
    )
    assert (status, err) == (0, "")
    endings = ("", "_tokens")
    written = {f"pictures/{name}_step{STEPS}{e}.png" for name in cases for e in endings}
    assert changed == {"pictures", *written}
    assert out.count("bits/dim: ") == out.count("as WebP") == len(cases)
    for name, (_, (width, height)) in cases.items():
        picture = np.asarray(Image.open(f"pictures/{name}_step{STEPS}.png"))
        # Original and reconstruction with a gap of two pixels, three times as large.
        assert picture.shape == (3 * height, 3 * (2 * width + 2), 3)
        cut = "" if name == "grey" else " (resized or cut)"
        assert f"{width} x {height} pixels{cut}, PSNR" in out
        tokens = Image.open(f"pictures/{name}_step{STEPS}_tokens.png")
        assert tokens.size == (width // 2, height // 2)
    left = np.asarray(Image.open(f"pictures/odd_step{STEPS}.png"))[::3, : 3 * 22 : 3]
    np.testing.assert_array_equal(left, np.asarray(Image.open("odd.png"))[:16, :22])


def test_reconstruct_goes_into_the_run_by_default(here, place, reference, tmp_path):
    shutil.copytree(reference[0], tmp_path / "run")
    image = place / "images" / "val" / "0.png"
    status, _, err, changed = here("reconstruct.py", "run", image)
    assert (status, err) == (0, "")
    assert changed == {f"run/reconstructions/0_step{STEPS}{end}.png" for end in ("", "_tokens")}


def test_reconstruct_keeps_images_of_equal_names_apart(here, place, reference, tmp_path):
    images = [place / "images" / split / "0.png" for split in ("train", "val")]
    status, out, err, changed = here("reconstruct.py", reference[0], *images, "--output", "out")
    if status == 2:  # refusing is as good
        assert_refused((status, out, err, changed), "0.png", script="reconstruct.py")
    else:
        assert len(changed - {"out"}) == 4


def test_reconstruct_overwrites_nothing(here, place, reference, tmp_path):
    image = place / "images" / "val" / "0.png"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"0_step{STEPS}.png").write_bytes(b"something else")
    here("reconstruct.py", reference[0], image, "--output", "out")
    assert (tmp_path / "out" / f"0_step{STEPS}.png").read_bytes() == b"something else"


@pytest.mark.parametrize("case", ["junk", "empty", "missing", "folder"])
def test_reconstruct_refuses_an_unreadable_image(here, place, reference, tmp_path, case):
    path = tmp_path / "bad.png"
    if case == "junk":
        path.write_bytes(b"no image")
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "folder":
        path.mkdir()
    good = place / "images" / "val" / "0.png"
    result = here("reconstruct.py", reference[0], good, path, "--output", "out")
    assert_refused(result, "bad.png", script="reconstruct.py")


def test_reconstruct_refuses_an_output_that_is_a_file(here, place, reference, tmp_path):
    (tmp_path / "out").write_text("")
    image = place / "images" / "val" / "0.png"
    result = here("reconstruct.py", reference[0], image, "--output", "out")
    assert_refused(result, "out", script="reconstruct.py")
