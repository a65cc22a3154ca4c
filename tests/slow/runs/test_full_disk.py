"""A run on a disk that is really full, and on the same disk with room."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.runs import directory

ROOT = Path(__file__).parents[3]

OPTIONS = [
    *("smoke", "--run-dir=disk/run", "--parallel=single", "--steps=40", "--batch-size=4"),
    *("--image-size=8", "--eval-every=20", "--checkpoint-every=10", "--evaluation.resize=1.0"),
    *("--evaluation.images=6", "--model.n-hid=4", "--model.n-init=4", "--model.vocab-size=8"),
]
# A file system of its own, seen by these processes alone; it goes when they end.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=400k none disk && touch mounted || exit 77
"$@"; echo $? >first
mount -o remount,size=16m disk
cp -r disk/run full
"$@"; echo $? >second
cp -r disk/run run
"""


def test_a_real_full_disk(tmp_path):
    """400 KiB are too few for the third checkpoint; with more room the run goes on."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs Linux's unshare")
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(3):
            rows, columns = np.mgrid[:20, :24]
            pixels = np.stack([8 * rows + 20 * number, 6 * columns, 5 * rows], axis=-1)
            target = tmp_path / "images" / split / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(target)
    (tmp_path / "disk").mkdir()
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), *OPTIONS]
    command.append(f"--data=folder:{tmp_path / 'images'}")
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run(*words):
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    result = run(unshare, "-Urm", "sh", "-c", ON_A_SMALL_DISK, "sh", *command)
    if not (tmp_path / "mounted").exists():
        pytest.skip(f"no small file system could be made here: {result.stderr.strip()}")
    assert (tmp_path / "first").read_text().strip() == "2", result.stderr
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("train.py: error"))
    assert "is full" in line or "a checkpoint could not be written" in line  # who finds it first
    assert "the same command goes on from" in line
    assert (tmp_path / "second").read_text().strip() == "0", result.stderr
    # The same run on a disk with room.
    plain = run(*(word.replace("disk/run", "plain") for word in command))
    assert plain.returncode == 0, plain.stderr
    got, want = directory.load(tmp_path / "run"), directory.load(tmp_path / "plain")
    assert int(got.step) == 40
    for name in ("params", "ema_params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(got, name), getattr(want, name))

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        timing = {"images_per_second", "data_wait_share"}
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [{k: v for k, v in row.items() if k not in timing} for row in found]

    assert rows(tmp_path / "run") == rows(tmp_path / "plain")
    # What was written before is there, but for a line that the disk cut.
    before = rows(tmp_path / "full")
    assert before == rows(tmp_path / "plain")[: len(before)]
    assert [path for path in (tmp_path / "full" / "checkpoints").iterdir() if path.name.isdigit()]
