"""What a run says it needs, beside what it needs: memory, arithmetic, communication."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import loop, preflight
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.runs.launch import Launch
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.step import elbo_loss, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"

# Wide enough that convolutions are nearly all of the arithmetic, and fsdp has something to spread.
WIDE = tiny.config(
    run_dir="",
    data__source="photos",
    steps=10,
    batch_size=8,
    image_size=16,
    likelihood__min_log_scale=-5.0,
    beta=Schedule(0.5, 0.5),
    model=DVAEConfig(group_count=2, n_hid=64, n_blk_per_group=1, vocab_size=64, n_init=32),
).resolved()


@pytest.fixture
def here(run_script, tmp_path):
    """Run train.py: exit status, stdout, stderr and what is in the folder afterwards."""

    def run(*args):
        status, out, err, _ = run_script("train.py", *args)
        return status, out, err, sorted(path.name for path in tmp_path.iterdir())

    return run


def needs_of(config, mode, fsdp=False):
    layout = devices.choose(mode, config.batch_size, accumulate=config.accumulate, fsdp=fsdp)
    step = layout.compile(train_step, donate=True)
    return preflight.measure(config, layout, step), layout


@pytest.fixture(scope="module")
def needs():
    """What the wide model needs in every layout; each is compiled once."""
    modes = {"single": False, "pmap": False, "mesh": False, "mesh+fsdp": True}
    found = {name: needs_of(WIDE, name.split("+")[0], fsdp) for name, fsdp in modes.items()}
    found["parts"] = needs_of(dataclasses.replace(WIDE, accumulate=4), "single")
    return found


# --- Arithmetic ------------------------------------------------------------------------------


def convolutions(model, height, width):
    """(kernel size, channels in, channels out, height, width) of every convolution, in order."""
    widths = model.group_widths
    found = [(7, model.channels, widths[0], height, width)]
    n_in = widths[0]
    for group, n_out in enumerate(widths):
        for _ in range(model.n_blk_per_group):
            inside = n_out // 4
            shapes = [(3, n_in, inside), (3, inside, inside), (3, inside, inside)]
            shapes.append((1, inside, n_out))
            if n_in != n_out:
                shapes.append((1, n_in, n_out))
            found += [(*shape, height, width) for shape in shapes]
            n_in = n_out
        if group < model.group_count - 1:
            height, width = height // 2, width // 2
    found.append((1, n_in, model.vocab_size, height, width))
    found.append((1, model.vocab_size, model.n_init, height, width))
    n_in = model.n_init
    for group, n_out in enumerate(reversed(widths)):
        for block in range(model.n_blk_per_group):
            inside = n_out // 4
            # The two pointwise ones of a group's first block come before the doubling.
            found.append((1, n_in, inside, height, width))
            if n_in != n_out:
                found.append((1, n_in, n_out, height, width))
            if group > 0 and block == 0:
                height, width = 2 * height, 2 * width
            shapes = [(3, inside, inside), (3, inside, inside), (3, inside, n_out)]
            found += [(*shape, height, width) for shape in shapes]
            n_in = n_out
    found.append((1, n_in, model.channels * model.stats_per_channel, height, width))
    return found


def convolution_flops(config):
    """Floating-point operations of the convolutions of an update, forward and backward."""

    def along(kernel, side):  # products with the padding are none
        reach = kernel // 2
        return kernel * side - reach * (reach + 1)

    total = 0
    found = convolutions(config.model, config.image_size, config.image_size)
    for number, (kernel, n_in, n_out, height, width) in enumerate(found):
        forward = 2 * along(kernel, height) * along(kernel, width) * n_in * n_out
        # Backward: the kernel's gradient and the input's; nobody asks for the pixels'.
        total += forward * (2 if number == 0 else 3)
    return total * config.batch_size


def test_the_count_of_convolutions_is_that_of_the_parameters(needs):
    # The formula above names every convolution with its right size.
    sizes = [k * k * n_in * n_out + n_out for k, n_in, n_out, *_ in convolutions(WIDE.model, 8, 8)]
    assert sum(sizes) == needs["single"][0].parameters


@pytest.mark.parametrize("name", ["single", "pmap", "mesh", "mesh+fsdp"])
def test_flops_are_those_of_the_convolutions(needs, name):
    counted, expected = needs[name][0].flops, convolution_flops(WIDE)
    # Above it: softmax, noise, likelihood, optimiser. Measured 4 % with this model; a convolution
    # counted once too often, or a whole backward pass left out, would be far more.
    assert expected < counted < 1.08 * expected


def test_parts_of_a_batch_are_the_same_arithmetic(needs):
    # Counted on the whole batch, since a loop's body counts once.
    assert needs["parts"][0].flops == pytest.approx(needs["single"][0].flops, rel=0.02)


# --- Memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["single", "pmap", "mesh"])
def test_the_state_is_four_copies_of_the_parameters(needs, name):
    found, layout = needs[name]
    # Parameters, average, two moments; the step, the optimiser's count, and a key of two words.
    assert found.state_bytes - 4 * 4 * found.parameters in range(0, 65)
    assert found.batch_bytes == 8 * 16 * 16 * 3 // layout.count
    assert found.total_bytes == found.state_bytes + found.batch_bytes + found.working_bytes


def spread_bytes(config, layout):
    """What one device holds of the state, from the rule: an array of 4,096 or more numbers is cut
    along a side that the devices divide."""
    total = 0
    for leaf in jax.tree.leaves(preflight.shapes(config, layout)[0]):
        cut = leaf.size >= 4096 and any(side % layout.count == 0 for side in leaf.shape)
        total += 4 * leaf.size // (layout.count if cut else 1)
    return total


def test_a_spread_state_takes_its_share(needs):
    found, layout = needs["mesh+fsdp"]
    assert found.state_bytes - spread_bytes(WIDE, layout) in range(0, 65)
    # A quarter, and the small arrays whole.
    assert 4 * found.parameters < found.state_bytes < 1.5 * 4 * found.parameters


def test_parts_of_a_batch_need_less_memory(needs):
    whole, parts = needs["single"][0], needs["parts"][0]
    # Activations are a quarter; the gradients, which are as many as ever, are added to it.
    assert parts.working_bytes < 0.6 * whole.working_bytes
    assert parts.state_bytes == whole.state_bytes


def test_recomputing_keeps_less_for_the_backward_pass():
    # XLA's CPU backend merges what is computed twice, so its memory shows nothing; what the
    # backward pass is given does.
    kept = {}
    for remat in (False, True):
        model = dataclasses.replace(WIDE.model, n_blk_per_group=3, remat=remat)
        config = dataclasses.replace(WIDE, model=model)
        state, batch = preflight.shapes(config, devices.choose("single", WIDE.batch_size))

        def backward(state, pixels, config=config):
            key, indices = jax.random.key(0), np.arange(WIDE.batch_size, dtype=np.int32)
            return jax.vjp(
                lambda params: elbo_loss(params, pixels, key, state.step, config, indices)[0],
                state.params,
            )[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, state, batch["pixels"]))
        kept[remat] = sum(leaf.size * leaf.dtype.itemsize for leaf in residuals)
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(state.params))
    # A block keeps its input instead of some five arrays as large or a quarter as large.
    assert kept[True] - parameters < 0.6 * (kept[False] - parameters)


# --- The report of a run ---------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "fsdp"), [("pmap", False), ("mesh", True)])
def test_a_report_comes_first_and_changes_nothing(photographs, tmp_path, mode, fsdp):
    config = tiny.run_config(photographs, steps=2, parallel=mode, fsdp=fsdp, checkpoint_every=0)
    states, told = [], []
    for name, launch in (("told", Launch(memory_report=True)), ("plain", Launch())):
        (tmp_path / name).mkdir()
        with contextlib.chdir(tmp_path / name):
            states.append(loop.train(config, launch=launch, say=told.append).state)
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))
    for words in ("needs     on each of", "working memory", "FLOP"):
        assert sum(words in line for line in told) == 1
    with pytest.raises(RunError, match="not for --debug"):
        loop.train(
            tiny.change(config, debug=True, run_dir=str(tmp_path / "debug")),
            launch=Launch(memory_report=True),
        )
    assert not (tmp_path / "debug").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--simulate", "8"], "--simulate belongs to --dry-run"),
        (["--dry-run", "--simulate", "0"], "simulate must be 1 or more"),
        (["--dry-run", "--distributed"], "--dry-run is for one process"),
        (["--topology", "v5e:4x4"], "--topology belongs to --dry-run"),
        (["--dry-run", "--topology", "v5e:2x2", "--simulate", "2"], "not both"),
        (["--dry-run", "--topology", "v9:2x2"], "unknown topology 'v9:2x2'; there are v4, v5e"),
        (["--dry-run", "--topology", "v5e:4"], "'v5e:4' is no machine of v5es; one is v5e:2x2"),
        (["--dry-run", "--topology", "h100:0"], "'h100:0' is no machine of h100s; one is h100:1"),
        (["--dry-run", "--parallel", "pmap", "--batch-size", "6"], "batch size 6"),
    ],
)
def test_what_does_not_go_with_a_dry_run(here, args, words):
    status, _, err, left = here("smoke", *args)
    assert (status, left) == (2, [])
    assert len(err.splitlines()) == 1
    assert words in err


@pytest.mark.parametrize(("machine", "extra"), [("v6e:2x2", "tpu"), ("h100:8", "cuda12")])
def test_a_compiler_that_is_not_installed_is_named(here, monkeypatch, machine, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, _, err, left = here("smoke", "--dry-run", "--topology", machine)
    assert (status, left) == (2, [])
    name = machine.partition(":")[0]
    assert err.startswith(f"train.py: error: {name} needs the ")
    assert err.endswith(f"compiler: pip install 'jax[{extra}]'\n")


def test_what_does_not_fit_is_said_before_anything_is_rented(needs):
    found = needs["single"][0]
    preflight.require_fit(found, None)
    preflight.require_fit(found, found.total_bytes)
    with pytest.raises(RunError, match=r"an update needs .* on each device, which has .*--fsdp"):
        preflight.require_fit(found, found.total_bytes - 1)


def test_a_run_that_cannot_fit_is_refused(here, photographs, monkeypatch):
    monkeypatch.setattr(preflight, "available_bytes", lambda layout: 10_000)
    options = ["smoke", "--run-dir=run", f"--data=folder:{photographs}", "--image-size=8"]
    options += ["--batch-size=4", "--steps=2", "--parallel=single", "--memory-report"]
    status, out, err, left = here(*options)
    assert status == 2
    assert len(err.splitlines()) == 1, err
    assert err.startswith("train.py: error: an update needs ")
    for words in ("9.8 KiB", "--batch-size", "--accumulate", "--model.remat", "--fsdp"):
        assert words in err
    assert "needs     on each of 1 device" in out
    assert left == []


# --- Dry runs --------------------------------------------------------------------------------


def test_a_dry_run_needs_no_data_and_writes_nothing(here):
    status, out, err, left = here("photos", "--dry-run", "--data=folder:missing")
    assert (status, err, left) == (0, "", [])
    for words in ("needs     on each of 4 devices", "working memory", "FLOP", "138,234 parameters"):
        assert words in out


def test_a_dry_run_for_devices_that_are_not_there(tmp_path):
    model = ["--model.group-count=2", "--model.n-hid=64", "--model.n-blk-per-group=1"]
    model += ["--model.vocab-size=64", "--model.n-init=32"]
    command = [sys.executable, str(EXPERIMENTS / "train.py"), "smoke", "--dry-run"]
    command += ["--simulate=8", "--parallel=mesh", "--fsdp", "--data=tfds:no_such_set", *model]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert not list(tmp_path.iterdir())
    assert "needs     on each of 8 devices" in result.stdout
    layout = dataclasses.replace(devices.choose("mesh", 8), devices=tuple(jax.devices() * 2))
    assert layout.count == 8
    share = spread_bytes(WIDE, layout)
    printed = re.search(r"state ([\d.]+) KiB", result.stdout)
    # Printed to a tenth of a KiB; the key's two words are an argument too.
    assert float(printed[1]) * 1024 == pytest.approx(share, abs=64 + 52)
    parameters = int(re.search(r"([\d,]+) parameters;", result.stdout)[1].replace(",", ""))
    assert share < 0.3 * 16 * parameters
