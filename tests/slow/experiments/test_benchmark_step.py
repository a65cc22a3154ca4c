"""benchmark.py step: our contestant, in a process that has only what a lean GPU image has."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXPERIMENTS = ROOT / "experiments"


def test_our_step_is_timed_without_tyro_and_data_sets(monkeypatch, tmp_path):
    for name in ("tyro", "grain", "tensorflow_datasets", "matplotlib", "torch"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError(name=__name__)")
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    worker = importlib.import_module("benchmarks.worker")
    arguments = {"folder": str(tmp_path), "side": 8, "batch": 1, "n_hid": 64, "blocks": 1}
    arguments |= {"vocab": 512, "precision": "float32", "seed": 0}
    lean = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    lean["PYTHONPATH"] = f"{tmp_path}:{EXPERIMENTS}:{ROOT}"
    with worker.Worker("step_jax", arguments, lean) as ours:
        assert {"loss", "kl", "grad_norm", "platform", "device"} <= set(ours.facts)
        assert ours.call(1) > 0
        peak = ours.finish()["step_bytes"]
        assert peak is None or peak > 1e7
    for name in ("parameters.npz", "pixels.npy", "noise.npy"):
        assert (tmp_path / name).exists()
    with pytest.raises(worker.WorkerError, match="Missing: torch is not installed"):
        worker.Worker("step_torch", arguments | {"compiled": False}, lean)
