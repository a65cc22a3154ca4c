"""The losses of other libraries, as functions: loaded if installed, named as skipped if not.

Each maker returns an elementwise loss of (x, loc, log_scale), in nats: the negative log density
of the logit-Laplace, written as that library's users would write it.
"""

import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from benchmarks import machine, rounds

Loss = Callable[[Any, Any, Any], Any]


class Missing(Exception):
    """A library cannot be loaded; the message says why, in one line."""


def load(module: str) -> Any:
    """Imports a library.

    Raises:
      Missing: it is not installed, or does not load beside what is.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        because = "" if missing == package else f" (it needs {missing})"
        raise Missing(f"{package} is not installed{because}") from None
    except Exception as error:  # releases that do not fit together fail in many ways
        raise Missing(f"{package} does not load: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """Kind and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def formula(x: Array, loc: Array, log_scale: Array) -> Array:
    """The formula in jnp as one writes it down, for autodiff."""
    log_x, log_1mx = jnp.log(x), jnp.log1p(-x)
    distance = jnp.abs(log_x - log_1mx - loc)
    return distance * jnp.exp(-log_scale) + log_scale + math.log(2.0) + log_x + log_1mx


def numpyro() -> Loss:
    """NumPyro's Laplace through its sigmoid."""
    load("numpyro")
    dist = load("numpyro.distributions")

    def loss(x: Array, loc: Array, log_scale: Array) -> Array:
        base = dist.Laplace(loc, jnp.exp(log_scale))
        sigmoid = dist.transforms.SigmoidTransform()
        return -dist.TransformedDistribution(base, sigmoid).log_prob(x)

    return loss


def tfp() -> Loss:
    """TFP's (on JAX) Laplace through its sigmoid."""
    tfp = load("tensorflow_probability.substrates.jax")

    def loss(x: Array, loc: Array, log_scale: Array) -> Array:
        base = tfp.distributions.Laplace(loc, jnp.exp(log_scale))
        return -tfp.distributions.TransformedDistribution(base, tfp.bijectors.Sigmoid()).log_prob(x)

    return loss


def distrax() -> Loss:
    """distrax's Laplace through its sigmoid."""
    distrax = load("distrax")

    def loss(x: Array, loc: Array, log_scale: Array) -> Array:
        base = distrax.Laplace(loc, jnp.exp(log_scale))
        return -distrax.Transformed(base, distrax.Sigmoid()).log_prob(x)

    return loss


def torch_formula() -> Loss:
    """The formula in torch, of tensors."""
    torch = load("torch")

    def loss(x: Any, loc: Any, log_scale: Any) -> Any:
        log_x, log_1mx = torch.log(x), torch.log1p(-x)
        distance = torch.abs(log_x - log_1mx - loc)
        return distance * torch.exp(-log_scale) + log_scale + math.log(2.0) + log_x + log_1mx

    return loss


def torch_distributions() -> Loss:
    """The same by torch.distributions, of tensors."""
    dist = load("torch.distributions")

    def loss(x: Any, loc: Any, log_scale: Any) -> Any:
        base = dist.Laplace(loc, log_scale.exp(), validate_args=False)
        sigmoid = dist.transforms.SigmoidTransform()
        return -dist.TransformedDistribution(base, [sigmoid], validate_args=False).log_prob(x)

    return loss


def torch_device(accelerator: bool) -> Any:
    """The GPU if the others run on one, else the CPU with all of our cores.

    Raises:
      RuntimeError: the others run on an accelerator that this torch cannot use.
    """
    torch = load("torch")
    torch.set_num_threads(machine.cores())
    if accelerator and not torch.cuda.is_available():
        raise RuntimeError("this torch has no CUDA, and the others run on an accelerator")
    return torch.device("cuda" if accelerator else "cpu")


def torch_timed(work: Callable[[], Any], device: Any) -> rounds.Call:
    """Times ``work`` in torch up to the arrival of the results."""

    def call(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            work()
        if device.type == "cuda":
            load("torch").cuda.synchronize()
        return time.perf_counter() - started

    return call


JAX_LOSSES: dict[str, Callable[[], Loss]] = {
    "the formula in jnp": lambda: formula,
    "NumPyro": numpyro,
    "TFP": tfp,
    "distrax": distrax,
}
TORCH_LOSSES: dict[str, Callable[[], Loss]] = {
    "torch": torch_formula,
    "torch.distributions": torch_distributions,
    "torch.compile": torch_formula,
}
