"""The compilers of TPUs and GPUs on a machine that has neither: they tell bytes, not seconds.

XLA compiles ahead of time for a described topology, without a device.
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Target:
    """A device by its published figures.

    Attributes:
      platform: tpu or cuda.
      smallest: the smallest machine with it.
      memory: bytes of one device.
      bandwidth: bytes per second between its memory and its processor.
      peak: FLOP per second in bfloat16.
      host: devices of one host: chips along three axes for TPUs, their number for GPUs.
    """

    platform: str
    smallest: str
    memory: int
    bandwidth: float
    peak: float
    host: tuple[int, ...] = (2, 2, 1)


# cloud.google.com/tpu/docs (v4, v5e, v5p, v6e), NVIDIA's data sheet of the H100 SXM.
TARGETS = {
    "v4": Target("tpu", "2x2x1", 32 * 2**30, 1228e9, 275e12),
    "v5e": Target("tpu", "2x2", 16 * 2**30, 819e9, 197e12),
    "v5p": Target("tpu", "2x2x1", 95 * 2**30, 2765e9, 459e12),
    "v6e": Target("tpu", "2x2", 32 * 2**30, 1640e9, 918e12),
    "h100": Target("cuda", "1", 80 * 2**30, 3352e9, 989e12, (8,)),
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


def parse(topology: str) -> tuple[str, str]:
    """The target's name and the machine's shape; without one, the smallest.

    Raises:
      ValueError: it is not known, or its shape is none of that target's.

    >>> parse("v5e:4x4"), parse("h100:8"), parse("v5p")
    (('v5e', '4x4'), ('h100', '8'), ('v5p', '2x2x1'))
    """
    name, _, shape = topology.partition(":")
    if name not in TARGETS:
        raise ValueError(f"unknown topology {topology!r}; there are {', '.join(TARGETS)}")
    smallest = TARGETS[name].smallest
    shape = shape or smallest
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") != smallest.count("x"):
        raise ValueError(f"{topology!r} is no machine of {name}s; one is {name}:{smallest}")
    return name, shape


def prepare(name: str) -> None:
    """Sets what the target's compiler needs; before JAX looks for devices.

    Raises:
      ValueError: the compiler is not installed; the message says what to install.
    """
    on_tpu = TARGETS[name].platform == "tpu"
    if on_tpu and importlib.util.find_spec("libtpu") is None:
        raise ValueError(f"{name} needs the TPU's compiler: pip install 'jax[tpu]'")
    plugins = [importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)]
    if not on_tpu and not any(plugins):
        raise ValueError(f"{name} needs the GPU's compiler: pip install 'jax[cuda12]'")
    # What is kept could not be read again: it needs the device.
    jax.config.update("jax_enable_compilation_cache", False)
    if on_tpu:
        jax.config.update("jax_platforms", "cpu")
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return
    jax.config.update("jax_platforms", None)
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def devices(name: str, shape: str) -> list[jax.Device]:
    """The devices of a described machine, good to compile for; after :func:`prepare`.

    Raises:
      ValueError: the compiler knows no such machine.
    """
    from jax.experimental import topologies

    target = TARGETS[name]
    sides = [int(side) for side in shape.split("x")]
    options: dict[str, Any]
    if target.platform == "tpu":
        padded = (*sides, 1)[:3]
        host = tuple(min(pair) for pair in zip(target.host, padded, strict=True))
        # A v4's two cores are one device, as a TPU's runtime shows them.
        chip = "megacore" if name == "v4" else "default"
        described = f"{name}:{shape}"
        options = {"chips_per_host_bounds": host, "chip_config_name": chip}
    else:
        _accept_cuda_for_gpu()
        each = math.gcd(sides[0], target.host[0])
        described = ""  # the plug-in reads the shape from an option
        options = {"topology": f"1x{sides[0] // each}x{each}", "target_config": _H100}
    try:
        topology = topologies.get_topology_desc(described, target.platform, **options)
    except Exception as error:  # the plug-ins raise errors of their own
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the compiler knows no machine {name}:{shape}: {reason}") from error
    return list(topology.devices)


def _accept_cuda_for_gpu() -> None:
    # jax asks for the platform "gpu" and, without a GPU, knows only "cuda" (its issues 23971 and
    # 28376). Nothing public changes that.
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        return "cuda" if platform in ("gpu", "cuda") else known(platform)

    xla_bridge.canonicalize_platform = canonical
