"""The loss in torch: by hand, by torch.distributions, and compiled."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _bench import machine, rounds
from _bench.entry import Entry


def device(accelerator: bool) -> torch.device:
    """The GPU if the others run on one and torch has it, else the CPU with all of our cores.

    Raises:
      RuntimeError: the others run on an accelerator that this torch cannot use.
    """
    if not accelerator:
        torch.set_num_threads(machine.cores())
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("this torch has no CUDA, and the others run on an accelerator")
    return torch.device("cuda")


def loss(x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """The formula, elementwise."""
    log_x, log_1mx = torch.log(x), torch.log1p(-x)
    distance = torch.abs(log_x - log_1mx - loc)
    return distance * torch.exp(-log_scale) + log_scale + math.log(2.0) + log_x + log_1mx


def distribution_loss(x: torch.Tensor, loc: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """The same by torch.distributions."""
    base = torch.distributions.Laplace(loc, log_scale.exp(), validate_args=False)
    sigmoid = torch.distributions.transforms.SigmoidTransform()
    whole = torch.distributions.TransformedDistribution(base, [sigmoid], validate_args=False)
    return -whole.log_prob(x)


def timed(work: Callable[[], Any], where: torch.device) -> rounds.Call:
    """Times ``work`` up to the arrival of the results."""

    def call(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            work()
        if where.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return call


def entry(variant: str, inputs: Any, nbytes: float, keep: bool, accelerator: bool) -> Any:
    """A contestant of the loss suite: mean loss and both gradients.

    With ``keep``, compiled, and written into the same arrays each time.
    """
    where = device(accelerator)
    x, loc, log_scale = (
        torch.from_numpy(a).to(where) for a in (inputs.x, inputs.loc, inputs.log_scale)
    )

    if keep or variant == "torch compile":

        def mean(loc: torch.Tensor, log_scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return loss(x, loc, log_scale).mean()

        both: Any = torch.func.grad_and_value(mean, argnums=(0, 1))
        if keep:
            out = torch.empty_like(loc), torch.empty_like(log_scale)

            def write(*args: torch.Tensor) -> torch.Tensor:
                grads, value = both(*args)
                for target, grad in zip(out, grads, strict=True):
                    target.copy_(grad)
                return value

            compiled = torch.compile(write, fullgraph=True)

            def work() -> Any:
                return compiled(loc, log_scale, x), out

        else:
            compiled = torch.compile(both, fullgraph=True)

            def work() -> Any:
                return compiled(loc, log_scale, x)[::-1]

    else:
        function = distribution_loss if variant == "torch.distributions" else loss
        leaves = [a.clone().requires_grad_() for a in (loc, log_scale)]

        def work() -> Any:
            value = function(x, *leaves).mean()
            return value.detach(), torch.autograd.grad(value, leaves)

    def results() -> Any:
        value, grads = work()
        return np.float32(value.item()), tuple(g.cpu().numpy() for g in grads)

    return Entry(variant, nbytes, timed(work, where), results)


def small(inputs: Any, accelerator: bool) -> Any:
    """The loss alone of a few values, waited for at every call."""
    where = device(accelerator)
    arrays = [torch.from_numpy(a).to(where) for a in (inputs.x, inputs.loc, inputs.log_scale)]
    work = functools.partial(loss, *arrays)

    def waited() -> None:
        work()
        if where.type == "cuda":
            torch.cuda.synchronize()

    def results() -> Any:
        return np.float32(work().mean().item()), (np.zeros(1),) * 2

    return Entry("torch", 0, timed(waited, where), results)
