"""What TPUs' and GPUs' own compilers say: traffic of the building blocks, dry runs for machines.

It runs where a compiler is installed, without the hardware: in environments of their own with
``jax[tpu]`` or ``jax[cuda12]``.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def _found(*names):
    return any(importlib.util.find_spec(name) is not None for name in names)


needs_tpu = pytest.mark.skipif(not _found("libtpu"), reason="needs the TPU's compiler: jax[tpu]")
needs_gpu = pytest.mark.skipif(
    not _found("jax_cuda12_plugin", "jax_cuda13_plugin"),
    reason="needs the GPU's compiler: jax[cuda12]",
)

# Bytes moved over the ideal, at most: the contract's for loss, map and mass; losses of the other
# families twice the ideal (their gradients lie in one array, of another shape than the values).
LIMITS = {
    "map_pixels": 1.1,
    "loss_float32": 1.1,
    "loss_bfloat16": 1.1,
    "pixel_loss_float32": 1.1,
    "pixel_loss_bfloat16": 1.1,
    "pixel_log_prob_float32": 1.5,
    "pixel_log_prob_bfloat16": 1.5,
    "normal_loss": 2.0,
    "logit_normal_loss": 2.0,
    "laplace_loss": 2.0,
    "logistic_loss": 2.0,
    "truncated_normal_loss": 2.0,
    "truncated_laplace_loss": 2.0,
    "continuous_bernoulli_loss": 2.0,
    "pixel_pit": 1.1,
}

# For pooling and upsampling those of the best peer: nn.max_pool's (1,728 of 576 MiB) and
# jnp.repeat's (1,088 of 320) on a v5e, ours on an H100, where nn.max_pool takes 3.89. A softmax
# over 256 logits is read for its largest, its sum and its gradient, 4 passes of 2, and what one
# channel's worth of numbers adds.
OWN = {
    "v5e": {"categorical_loss": 2.1, "max_pool": 3.01, "upsample": 3.41},
    "h100": {"max_pool": 1.7, "upsample": 1.01},
}


def run(tmp_path, *args):
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "target", [pytest.param("v5e", marks=needs_tpu), pytest.param("h100", marks=needs_gpu)]
)
def test_the_building_blocks_are_at_the_memorys_limit(tmp_path, target):
    limits = LIMITS | OWN[target]
    command = (EXPERIMENTS / "benchmark.py", "compiled", "--target", target, "--ours")
    status, _, err = run(tmp_path, *command, "--out", "out", "--blocks", *limits)
    assert status == 0, err
    rows = json.loads((tmp_path / "out" / "compiled.json").read_text())["rows"]
    found = {row["block"]: row["bytes"] / row["ideal_bytes"] for row in rows}
    over = {name: found[name] for name, limit in limits.items() if found[name] > limit}
    assert not over
    assert not any(row["gathers"] for row in rows)


@pytest.mark.parametrize(
    ("options", "devices", "memory", "megaflops"),
    [
        pytest.param(["--topology", "v5e:2x2"], 4, "16.0 GiB", "3.09", marks=needs_tpu),
        pytest.param(
            ["--topology=v5e:4x4", "--batch-size=16", "--parallel=mesh", "--fsdp"],
            16,
            "16.0 GiB",
            "3.08",
            marks=needs_tpu,
        ),
        pytest.param(["--topology", "h100:8"], 8, "80.0 GiB", "3.09", marks=needs_gpu),
    ],
)
def test_a_dry_run_for_a_machine_that_is_not_there(tmp_path, options, devices, memory, megaflops):
    status, out, err = run(tmp_path, EXPERIMENTS / "train.py", "smoke", "--dry-run", *options)
    assert (status, err) == (0, "")
    assert not list(tmp_path.iterdir())
    assert f"needs     on each of {devices} devices: " in out
    assert f"of {memory}" in out
    # tests/runs/test_preflight.py holds the count to the convolutions' own; what an update does
    # once, whatever its images, is shared by more of them in the larger batch.
    assert f"{megaflops} MFLOP per image" in out
    assert re.search(r"on each device [\d.]+ MiB of memory traffic; .* [\d.]+ ms at least", out)


@needs_tpu
def test_what_does_not_fit_is_refused(tmp_path):
    model = ["--model.vocab-size=8192", "--model.n-hid=256", "--batch-size=1024", "--steps=1"]
    status, _, err = run(
        tmp_path,
        *(EXPERIMENTS / "train.py", "smoke", "--dry-run", "--topology=v5e:2x2", "--image-size=128"),
        *model,
    )
    assert status == 2
    assert len(err.splitlines()) == 1
    assert "--accumulate" in err
