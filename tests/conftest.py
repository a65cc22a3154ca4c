"""Settings that must precede the first import of jax, and fixtures that all tests share."""

import os
import sys
from pathlib import Path

# Four simulated CPU devices. On few cores their collectives can wait for each other for ever,
# unless the thread pool is told of more cores than there are.
os.environ["NPROC"] = "8"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# pytest runs with --import-mode=importlib, which adds nothing to the path: `import oracle`.
sys.path.insert(0, str(Path(__file__).parent / "reference"))

import jax
import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """No implicit dtype promotion and no implicit rank promotion, as careful users run JAX."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """Compile at once rather than well, for modules in which nothing runs long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def check_transforms():
    """Return a check that every JAX transformation of `f` gives what the plain call gives.

    `args` are arrays with a leading axis of 4 (one slice a device) and all of one shape;
    `wrt` are the positions of the differentiable ones.
    """

    def check(f, args, wrt, tol):
        args = tuple(jnp.asarray(a) for a in args)

        def both(*a):  # the values and the gradients of their sum, which are elementwise too
            return f(*a), jax.grad(lambda *b: f(*b).sum(), wrt)(*a)

        plain = both(*args)
        assert jax.tree.map(jnp.shape, plain) == (args[0].shape, (args[0].shape,) * len(wrt))

        def close(got, want, name):
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b, rtol=tol, atol=tol, err_msg=name)

        close(jax.jit(both)(*args), plain, "jit")
        close(jax.jit(jax.vmap(jax.vmap(both)))(*args), plain, "jit of vmap of vmap")
        close(jax.lax.scan(lambda c, row: (c, both(*row)), None, args)[1], plain, "scan")
        close(jax.pmap(both)(*args), plain, "pmap")

        # jvp in one common direction is the sum of the partials.
        ones = [jnp.ones_like(a) if i in wrt else _zero(a) for i, a in enumerate(args)]
        value, tangent = jax.jvp(f, args, tuple(ones))
        close(value, plain[0], "jvp")
        scale = max(np.abs(g).max() for g in plain[1])
        total = sum(np.asarray(g) for g in plain[1])
        np.testing.assert_allclose(tangent, total, atol=len(wrt) * tol * scale, err_msg="jvp")

    return check


def _zero(integers):
    """The tangent of an integer array."""
    return np.zeros(integers.shape, jax.dtypes.float0)
