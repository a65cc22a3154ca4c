"""The compiler's flags that the scripts set on machines without an accelerator.

XLA's CPU backend has two libraries for convolutions. YNNPACK, its choice in jaxlib 0.10 to 0.12,
takes a quarter to a half more time for a training step of the dVAE than Eigen (``benchmark.py
step`` measures both); for sums and chains of elementwise operations it is the faster one, and
stays.
"""

import importlib.util
import re
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

_NAME = "--xla_cpu_experimental_ynn_fusion_type"
EIGEN_CONVOLUTIONS = f"{_NAME}=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"

_KNOWN = ((0, 10), (0, 12))
"""First and last jaxlib that was tried: XLA ends the process at a flag that it does not know."""


def choose(environ: MutableMapping[str, str]) -> None:
    """Adds the flag to ``XLA_FLAGS``; before the first import of jax.

    Nothing changes where an accelerator's plug-in is installed, unless ``JAX_PLATFORMS`` is cpu
    (a TPU's own compiler reads the same variable), nor where the user has set this flag.

    >>> environ = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{_NAME}="}
    >>> choose(environ)
    >>> environ["XLA_FLAGS"] == f"{_NAME}="
    True
    """
    flags = environ.get("XLA_FLAGS", "")
    cpu = environ.get("JAX_PLATFORMS") == "cpu" or not _plugins()
    if cpu and _NAME not in flags and _KNOWN[0] <= _jaxlib() <= _KNOWN[1]:
        environ["XLA_FLAGS"] = f"{flags} {EIGEN_CONVOLUTIONS}".strip()


def expect_no_tpu(args: list[str], environ: MutableMapping[str, str]) -> None:
    """Where a TPU's compiler is asked without a TPU; before the first import of jax.

    The import looks for one, asks the cloud what machine this is, and complains at length.
    """
    if any(word.split("=")[0] in ("--topology", "compiled") for word in args):
        environ |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
        }


def _plugins() -> bool:
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def _jaxlib() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in re.findall(r"\d+", version("jaxlib"))[:2])
    except PackageNotFoundError:  # the script will say so
        return (0, 0)
