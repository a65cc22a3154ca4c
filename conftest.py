"""Leaves out the doctests of adapters whose library is not installed; a broken one still fails."""

import importlib.util

_LIBRARIES = {"numpyro": "numpyro", "tfp": "tensorflow_probability", "distrax": "distrax"}
collect_ignore = [
    f"logit_laplace_jax/adapters/{name}.py"
    for name, library in _LIBRARIES.items()
    if importlib.util.find_spec(library) is None
]
