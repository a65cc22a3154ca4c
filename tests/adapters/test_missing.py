"""The adapters' libraries are optional: none is loaded unasked, and absence is one clear line."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import logit_laplace_jax as ll

LIBRARIES = {
    "numpyro": "numpyro",
    "tfp": "tensorflow_probability",
    "distrax": "distrax",
}


def test_the_package_of_adapters_loads_no_library():
    code = "import sys, logit_laplace_jax.adapters; print(*{m.split('.')[0] for m in sys.modules})"
    root = Path(ll.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not set(LIBRARIES.values()) & set(done.stdout.split())


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_one_line_with_the_command(name, monkeypatch):
    module = f"logit_laplace_jax.adapters.{name}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    library = LIBRARIES[name]
    for loaded in [library, *(m for m in sys.modules if m.startswith(f"{library}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)  # what `import` takes for absent
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    message = str(caught.value)
    assert message.startswith(f"{module} needs ")
    assert f"pip install 'logit-laplace-jax[{name}]'" in message
    assert "\n" not in message
    assert caught.value.__suppress_context__  # no second traceback above it
