"""The table of functions that the generic layers of tests run over."""

import dataclasses
from collections.abc import Callable
from typing import Any

import moments_oracle
import numpy as np
import oracle

import logit_laplace_jax as ll

SHAPE = (4, 3)
LOC_MAX, SCALE_MAX = 1e4, 80.0  # ranges that the contract names for loc and |log_scale|


def _draw(seed, low, high):
    return np.random.default_rng(seed).uniform(low, high, SHAPE).astype(np.float32)


# By kind of argument: generic values, apart from every kink. b >= exp(-1), so that all conditions,
# at most (|logit x| + |loc|) / b + |loc| / b and the like, stay below CONDITION.
SAMPLES = {
    "x": _draw(1, 0.1, 0.9),
    "interior": _draw(1, 0.1, 0.9),
    "loc": _draw(2, -2, 2),
    "log_scale": _draw(3, -1, 1),
    "negative_log_scale": _draw(4, -1, -0.1),
    "loc_q": _draw(5, -2, 2),
    "log_scale_q": _draw(6, -1, 1),
    "p": _draw(7, 0.03, 0.97),
    "pixel": np.random.default_rng(8).integers(0, 256, SHAPE).astype(np.uint8),
}
SAMPLES["pixel"][0, :2] = 0, 255  # the outer bins as well
CONDITION = 20
X = ("x", "loc", "log_scale")
PARAMETERS = ("loc", "log_scale")


@dataclasses.dataclass(frozen=True)
class Case:
    """One output of one function."""

    name: str
    f: Callable[..., Any]
    kinds: tuple[str, ...]
    # Of numpy scalars, to a triple (low, true, high) for `oracle.excess_of_interval`.
    oracle: Callable[..., Any]

    @property
    def slow(self):
        """Compiled in seconds, not in tenths of them."""
        return self.name in ("mean", "variance", "entropy")

    @property
    def args(self):
        return tuple(SAMPLES[k] for k in self.kinds)

    @property
    def wrt(self):
        """Positions of the differentiable arguments."""
        return tuple(i for i, k in enumerate(self.kinds) if k != "pixel")

    @property
    def method(self):
        """The same by way of the method of `LogitLaplace`."""
        name, _, part = self.name.partition(".")

        def call(*args):
            if name == "kl_divergence":
                return ll.LogitLaplace(*args[:2]).kl_divergence(ll.LogitLaplace(*args[2:]))
            out = getattr(ll.LogitLaplace(*args[-2:]), name)(*args[:-2])
            return out[int(part)] if part else out

        return call


def _moment(index):
    def triple(loc, log_scale):
        true = moments_oracle.moments(oracle.exact(loc), oracle.exact(log_scale))[index]
        permitted = 1e-5 if loc.dtype == np.float32 else 1e-10
        slack = permitted * (1 if index == 3 else true)
        return true - slack, true, true + slack

    return triple


def _score(index):
    def triple(x, loc, log_scale):
        truths, terms = oracle.score(x, loc, log_scale)[index]
        slack = 8 * oracle.UNIT[x.dtype] * terms
        return min(truths) - slack, truths[0], max(truths) + slack

    return triple


def _tail(name):
    return lambda *args: oracle.tail(name, *args)


CASES = [
    *[Case(n, getattr(ll, n), X, _tail(n)) for n in ("cdf", "log_cdf", "survival")],
    Case("log_survival", ll.log_survival, X, _tail("log_survival")),
    Case("pit", ll.pit, ("interior", *PARAMETERS), _tail("cdf")),
    Case("isf", ll.isf, ("p", *PARAMETERS), oracle.isf),
    Case("mean", ll.mean, PARAMETERS, _moment(0)),
    Case("variance", ll.variance, PARAMETERS, _moment(2)),
    Case("entropy", ll.entropy, PARAMETERS, _moment(3)),
    Case("mode", ll.mode, ("loc", "negative_log_scale"), oracle.mode),
    Case(
        "kl_divergence",
        ll.kl_divergence,
        ("loc", "log_scale", "loc_q", "log_scale_q"),
        oracle.kl_divergence,
    ),
    Case("pixel_log_prob", ll.pixel_log_prob, ("pixel", *PARAMETERS), oracle.pixel_log_prob),
    Case("pixel_pit", ll.pixel_pit, ("pixel", *PARAMETERS), oracle.pixel_pit),
]


def _part(name, index, kinds, triple):
    function = getattr(ll, name)
    return Case(f"{name}.{index}", lambda *args: function(*args)[index], kinds, triple)


for _i in (0, 1):
    CASES += [
        _part(
            "central_interval",
            _i,
            ("p", *PARAMETERS),
            lambda *args, i=_i: oracle.central_interval(*args)[i],
        ),
        _part("score", _i, X, _score(_i)),
        _part(
            "fisher_information",
            _i,
            PARAMETERS,
            lambda *args, i=_i: oracle.fisher_information(*args)[i],
        ),
    ]
