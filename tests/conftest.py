"""Settings that must precede the first import of jax, and fixtures that all tests share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

# Four simulated CPU devices. On few cores their collectives can wait for each other for ever,
# unless the thread pool is told of more cores than there are.
os.environ["NPROC"] = "8"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Each program is compiled once, for all workers, scripts and later sessions of this checkout. JAX
# names programs by everything that decides them, so an old one is never taken for a new one.
_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# pytest runs with --import-mode=importlib, which adds nothing to the path: `import oracle, tiny`.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "reference"))

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SLOW = Path(__file__).parent / "slow"


def pytest_ignore_collect(collection_path, config):
    """tests/slow runs when it is asked for by its path, not with the others."""
    if SLOW not in (collection_path, *collection_path.parents):
        return None
    asked = (Path(arg.split("::")[0]).absolute() for arg in config.args)
    return None if any(SLOW in (path, *path.parents) for path in asked) else True


@pytest.fixture
def start():
    """A function that starts a Python process, which ends with its test and with pytest."""
    processes = []

    def start(*args, **options):
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
        command = [sys.executable, "-c", _END_WITH_PARENT, *map(str, args)]
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


# Linux kills the process when its parent ends, however that ends (prctl's PR_SET_PDEATHSIG is 1).
_END_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


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
def paint():
    """A function that writes images with a gradient each into the folders of some splits."""

    def paint(folder, counts):
        for split, count in counts.items():
            (folder / split).mkdir(parents=True)
            for i in range(count):
                y, x = np.mgrid[:20, :24]
                pixels = np.stack([8 * y + 20 * i, 6 * x, 5 * (x + y)], axis=-1).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"{i}.png")
        return folder

    return paint


@pytest.fixture(scope="session")
def photographs(paint, tmp_path_factory):
    """A folder of images: three for training, two held out."""
    return paint(tmp_path_factory.mktemp("photographs"), {"train": 3, "val": 2})


@pytest.fixture
def run_script(tmp_path, monkeypatch, capfd):
    """Run a script's main in this process (four devices), in an empty folder.

    Returns a function of script and arguments that gives exit status, stdout, stderr and the
    files that were written, removed or changed under the folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXPERIMENTS))

    def snapshot():
        return {
            str(p.relative_to(tmp_path)): p.read_bytes() if p.is_file() else b""
            for p in tmp_path.rglob("*")
        }

    def run(script, *args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        spec = importlib.util.spec_from_file_location(f"script_{script[:-3]}", EXPERIMENTS / script)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        before = snapshot()
        capfd.readouterr()
        status = 0
        try:
            spec.loader.exec_module(module)
            module.run_script(module.main)
        except SystemExit as stop:
            status = stop.code or 0
        out, err = capfd.readouterr()
        after = snapshot()
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        return status, out, err, changed

    return run


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
