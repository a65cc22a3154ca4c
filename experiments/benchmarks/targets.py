"""The compilers of TPUs and GPUs on a machine that has neither: they tell bytes, not seconds.

XLA compiles ahead of time for a described topology. ``JAX_PLATFORMS=cpu`` and the variables below
must be set before jax is imported: :func:`prepare`.
"""

import dataclasses
import importlib.util
from collections.abc import MutableMapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Target:
    """A device by its published peaks.

    Attributes:
      platform: tpu or cuda.
      topology: XLA's name of the smallest machine with it.
      bandwidth: bytes per second between its memory and its processor.
      peak: FLOP per second in bfloat16.
      host: chips of one host, for TPUs.
    """

    platform: str
    topology: str
    bandwidth: float
    peak: float
    host: tuple[int, int, int] = (2, 2, 1)


# Peaks: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), NVIDIA's data sheet of the H100 SXM.
TARGETS = {
    "v4": Target("tpu", "v4:2x2x1", 1228e9, 275e12),
    "v5e": Target("tpu", "v5e:2x2", 819e9, 197e12),
    "v5p": Target("tpu", "v5p:2x2x1", 2765e9, 459e12),
    "v6e": Target("tpu", "v6e:2x2", 1640e9, 918e12),
    "h100": Target("cuda", "1x1x1", 3352e9, 989e12),
}

_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 patch: 0 } device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""XLA's GpuTargetConfigProto of an H100 SXM, as text."""


def prepare(target: str, environ: MutableMapping[str, str]) -> None:
    """Sets what the target's compiler needs; before the first import of jax.

    Raises:
      ValueError: the compiler is not installed; the message says what to install.
    """
    if TARGETS[target].platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise ValueError(f"--target {target} needs the TPU's compiler: pip install 'jax[tpu]'")
        environ["JAX_PLATFORMS"] = "cpu"
        environ["TPU_SKIP_MDS_QUERY"] = "1"  # it asks the cloud what machine this is
        environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no device that two processes could fight for
        return
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise ValueError(f"--target {target} needs the GPU's compiler: pip install 'jax[cuda12]'")
    environ.pop("JAX_PLATFORMS", None)
    environ["CUDA_VISIBLE_DEVICES"] = "-1"
    environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    flags = environ.get("XLA_FLAGS", "")
    environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def sharding(target: str) -> Any:
    """Where the arguments of a program for one device of the target lie."""
    import jax
    from jax.experimental import topologies

    described = TARGETS[target]
    if described.platform == "tpu":
        topology = topologies.get_topology_desc(
            described.topology, "tpu", chips_per_host_bounds=described.host
        )
    else:
        _accept_cuda_for_gpu()
        topology = topologies.get_topology_desc(
            platform="cuda", topology=described.topology, target_config=_H100
        )
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


def _accept_cuda_for_gpu() -> None:
    # jax asks for the platform "gpu" and, without a GPU, knows only "cuda" (its issues 23971 and
    # 28376). Nothing public changes that.
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        return "cuda" if platform in ("gpu", "cuda") else known(platform)

    xla_bridge.canonicalize_platform = canonical
