"""What a run says it needs, beside what it needs: memory, arithmetic, communication."""

import contextlib
import dataclasses
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
from logit_laplace_jax.runs import loop, preflight, records
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import Launch
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.step import elbo_loss, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
STEPS = 3
TIMING = {"images_per_second", "data_wait_share"}

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


# --- Communication ---------------------------------------------------------------------------


def test_communication(needs):
    assert needs["single"][0].communicated_bytes == 0
    # One mean of all gradients and of some scalars: the loss and its parts.
    gradients = 4 * needs["pmap"][0].parameters
    assert needs["pmap"][0].communicated_bytes - gradients in range(4, 65)
    assert gradients <= needs["mesh"][0].communicated_bytes <= 1.1 * gradients + 64
    # Spread: parameters are gathered for the forward or also for the backward pass, and the
    # gradients summed.
    assert 1.5 * gradients < needs["mesh+fsdp"][0].communicated_bytes < 6 * gradients


PROGRAMS = {
    # 8 x 4 numbers of 4 bytes.
    "%r = f32[8,4]{1,0} all-reduce(f32[8,4]{1,0} %x), replica_groups={}, to_apply=%add": 128,
    "ROOT %r = bf16[8,4]{1,0} all-reduce(bf16[8,4]{1,0} %x), to_apply=%add": 64,
    "%r = f32[] all-reduce(f32[] %x), to_apply=%add": 4,
    "%r = (f32[3]{0}, f32[2,2]{1,0}) all-reduce(f32[3]{0} %x, f32[2,2]{1,0} %y)": 28,
    "%r = f32[32]{0} all-gather(f32[8]{0} %x), dimensions={0}": 128,
    "%r = f32[8]{0} reduce-scatter(f32[32]{0} %x), dimensions={0}, to_apply=%add": 32,
    "%r = (s8[4]{0}, s8[4]{0}) all-to-all(s8[4]{0} %x, s8[4]{0} %y)": 8,
    "%r = u32[5]{0} collective-permute(u32[5]{0} %x), source_target_pairs={{0,1}}": 20,
    # Layouts as accelerators have them.
    "%r = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-gather(bf16[2,128]{1,0:T(8,128)} %x)": 2048,
    # Asynchronous forms: all-reduce gives results alone, the others operands before them; the end
    # of each adds nothing.
    "%s = f32[8,4]{1,0} all-reduce-start(f32[8,4]{1,0} %x), to_apply=%add": 128,
    "%s = (f32[3]{0}, f32[4]{0}) all-reduce-start(f32[3]{0} %x, f32[4]{0} %y)": 28,
    "%s = (f32[8]{0}, f32[32]{0}) all-gather-start(f32[8]{0} %x), dimensions={0}": 128,
    "%s = ((f32[8]{0}, f32[2]{0}), (f32[32]{0}, f32[8]{0})) all-gather-start(f32[8]{0} %x)": 160,
    "%s = (f32[5]{0}, f32[5]{0}) collective-permute-start(f32[5]{0} %x)": 20,
    "%s = (f32[5]{0}, f32[5]{0}, u32[], u32[]) collective-permute-start(f32[5]{0} %x)": 20,
    "%s = ((f32[32]{0}), f32[8]{0}) reduce-scatter-start(f32[32]{0} %x)": 32,
    "%d = f32[8,4]{1,0} all-reduce-done(f32[8,4]{1,0} %s)": 0,
    "%d = f32[32]{0} all-gather-done((f32[8]{0}, f32[32]{0}) %s)": 0,
    "%d = f32[5]{0} collective-permute-done((f32[5]{0}, f32[5]{0}, u32[], u32[]) %s)": 0,
    # And what only looks like one.
    "%all-reduce.1 = f32[8]{0} add(f32[8]{0} %x, f32[8]{0} %all-gather.2)": 0,
    "%g = f32[8]{0} get-tuple-element((f32[8]{0}) %all-reduce), index=0": 0,
}


@pytest.mark.parametrize("line", PROGRAMS)
def test_each_collective_is_counted(line):
    assert preflight.communicated(f"  {line}") == PROGRAMS[line]


def test_collectives_of_a_compiled_program():
    # The text of the compiler that is installed, with known sizes.
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("d",))
    spec = jax.sharding.PartitionSpec

    def counted(function, where, to):
        mapped = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=where, out_specs=to))
        text = mapped.lower(jax.ShapeDtypeStruct((16, 6), np.float32)).compile().as_text()
        return preflight.communicated(text)

    spread, whole = spec("d"), spec()
    # Each of four devices holds 4 x 6 numbers, 96 bytes, of the 384.
    assert counted(lambda x: jax.lax.psum(x, "d"), spread, whole) == 96
    assert counted(lambda x: jax.lax.psum(x.sum(), "d"), spread, whole) == 4
    assert counted(lambda x: jax.lax.all_gather(x, "d"), spread, spread) == 384
    assert counted(lambda x: jax.lax.psum_scatter(x, "d", tiled=True), spread, spread) == 24
    turn = [(i, (i + 1) % 4) for i in range(4)]
    assert counted(lambda x: jax.lax.ppermute(x, "d", turn), spread, spread) == 96
    assert counted(lambda x: jax.lax.all_to_all(x, "d", 0, 1, tiled=True), spread, spread) == 96
    assert counted(lambda x: 2 * x, spread, spread) == 0

    def looped(x):  # three times round
        return jax.lax.fori_loop(0, 3, lambda _, y: jax.lax.ppermute(y, "d", turn) * 2, x)

    assert counted(looped, spread, spread) == 3 * 96


# --- The report of a run ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(photographs):
    return tiny.config(
        run_dir="run",
        data__source=f"folder:{photographs}",
        steps=STEPS,
        batch_size=4,
        image_size=8,
        evaluation__every=0,
        checkpoint_every=0,
        likelihood__min_log_scale=-5.0,
        evaluation__images=2,
        beta=Schedule(0.0, 0.5, 4),
        temperature=Schedule(1.0, 0.5, STEPS),
        learning_rate=Schedule(1e-2, 1e-3, STEPS),
        model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
    )


@contextlib.contextmanager
def counting_steps():
    """Collects the names of the programs that are compiled and hold the step."""
    compiled = []

    def listen(event, duration, **about):
        name = about.get("fun_name", "")
        if event.endswith("backend_compile_duration") and "train_step" in name:
            compiled.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def train(config, folder, launch):
    said = []
    folder.mkdir()
    with contextlib.chdir(folder), counting_steps() as compiled:
        run = loop.Run(config, said.append, launch)
        before = list(Path().iterdir())
        run.train()
    rows = records.read(folder / "run" / "metrics.jsonl")
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in rows]
    return run, rows, said, compiled, before


@pytest.mark.parametrize(("mode", "fsdp"), [("pmap", False), ("mesh", True)])
def test_a_report_comes_first_and_changes_nothing(base, tmp_path, mode, fsdp):
    config = dataclasses.replace(base, parallel=mode, fsdp=fsdp)
    told = train(config, tmp_path / "told", Launch(memory_report=True))
    plain = train(config, tmp_path / "plain", Launch())
    jax.tree.map(np.testing.assert_array_equal, told[0].state, plain[0].state)
    assert told[1] == plain[1]
    assert told[4] == []  # nothing was written before it
    # The program that was measured is the one that ran. What pmap compiles has no name of its own.
    assert len(told[3]) == len(plain[3]) == (mode == "mesh")
    assert isinstance(told[0]._step._function, jax.stages.Compiled)
    assert not isinstance(plain[0]._step._function, jax.stages.Compiled)
    text = "\n".join(told[2])
    for words in ("needs     on each of", "working memory", "FLOP", "through each device's links"):
        assert words in text
        assert words not in "\n".join(plain[2])
    assert text.index("needs ") < text.index("compiling the step") < text.index("trained")


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


def test_a_report_does_not_go_with_debug(base, tmp_path):
    config = dataclasses.replace(base, debug=True, run_dir=str(tmp_path / "run"))
    with pytest.raises(loop.RunError, match="not for --debug"):
        loop.Run(config, lambda line: None, Launch(memory_report=True))
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--simulate", "8"], "--simulate belongs to --dry-run"),
        (["--dry-run", "--simulate", "0"], "simulate must be 1 or more"),
        (["--dry-run", "--distributed"], "--dry-run is for one process"),
        (["--dry-run", "--parallel", "pmap", "--batch-size", "6"], "batch size 6"),
    ],
)
def test_what_does_not_go_with_a_dry_run(here, monkeypatch, args, words):
    # Without the process that watches over a distributed run: it would fork this one.
    monkeypatch.setitem(sys.modules, "_supervisor", type(sys)("_supervisor"))
    sys.modules["_supervisor"].supervise = lambda name: None
    status, _, err, left = here("smoke", *args)
    assert (status, left) == (2, [])
    assert len(err.splitlines()) == 1
    assert words in err
