r"""The logit-Laplace distribution: its density and what follows from it.

If X ~ Laplace(μ, b) then x = sigmoid(X) has the logit-Laplace density (Ramesh et al. 2021,
"Zero-Shot Text-to-Image Generation", arXiv:2102.12092, appendix A.3, equation 2)

    f(x | μ, b) = exp(-|logit x - μ| / b) / (2 b x (1 - x)),    0 < x < 1.

Throughout: ``x`` lies in (0, 1), ``loc`` is μ (any real, in logit space), ``log_scale`` is ln b.
Every function is pure and elementwise, broadcasts its arguments, computes in float32 (float64 if
an argument is float64 and x64 is on) and returns that type, so 16-bit inputs give float32.
Logarithms are natural: densities are in nats.

Three choices make the results exact to rounding and total:

* logit x is 2 atanh(2x - 1) near x = 1/2, and ln(x / (1 - x)) far from it. The usual
  ln x - ln(1 - x) cancels near 1/2; 2x - 1 is exact there, so that the *relative* error is small,
  which is what a sharp scale b multiplies.
* Subnormal x is read through its bits, because CPUs and accelerators under XLA flush subnormal
  operands to zero: ``x > 0`` is False for them, and their logarithm is wrong.
* Derivatives are written by hand (``jax.custom_jvp``, which transposes to the VJP), so that value
  and gradients come from one pass and never from 0 · inf. A derivative whose true value
  overflows saturates at the largest finite number.
"""

from logit_laplace_jax.distribution.arguments import broadcast, debug_parameters, working_arrays
from logit_laplace_jax.distribution.density import (
    fisher_information,
    laplace_nll,
    laplace_nll_partials,
    log_prob,
    score,
)
from logit_laplace_jax.distribution.divergence import kl_divergence
from logit_laplace_jax.distribution.estimation import fit
from logit_laplace_jax.distribution.moments import entropy, mean, median, mode, variance
from logit_laplace_jax.distribution.quantiles import central_interval, isf, quantile, sample
from logit_laplace_jax.distribution.tails import cdf, log_cdf, log_survival, pit, survival

__all__ = [
    "broadcast",
    "cdf",
    "central_interval",
    "debug_parameters",
    "entropy",
    "fisher_information",
    "fit",
    "isf",
    "kl_divergence",
    "laplace_nll",
    "laplace_nll_partials",
    "log_cdf",
    "log_prob",
    "log_survival",
    "mean",
    "median",
    "mode",
    "pit",
    "quantile",
    "sample",
    "score",
    "survival",
    "variance",
    "working_arrays",
]
