"""The logit-Laplace distribution as a member of other libraries' families.

One module per library, each with one class ``LogitLaplace(loc, log_scale)``:

    logit_laplace_jax.adapters.numpyro    a numpyro.distributions.Distribution
    logit_laplace_jax.adapters.tfp        a TensorFlow Probability distribution (its JAX substrate)
    logit_laplace_jax.adapters.distrax    a distrax.Distribution

The parameters keep this package's names and meaning, μ in logit space and ln b, and every number
comes from this package's functions. So the edges are those of :func:`logit_laplace_jax.log_prob`,
where the libraries' own composition of Laplace and sigmoid gives NaN.

Importing this package loads none of the libraries. Importing a module whose library is missing
raises an ImportError that names the extra to install.
"""


def _missing(adapter: str, package: str, reason: BaseException) -> ImportError:
    """The error for a library that cannot be loaded: one line, with the command that installs it.

    >>> print(_missing("tfp", "tfp-nightly", ModuleNotFoundError("No module named 'x'")))
    logit_laplace_jax.adapters.tfp needs tfp-nightly: pip install 'logit-laplace-jax[tfp]'
    (No module named 'x')
    """
    return ImportError(
        f"logit_laplace_jax.adapters.{adapter} needs {package}: "
        f"pip install 'logit-laplace-jax[{adapter}]' ({' '.join(str(reason).split())})"
    )
