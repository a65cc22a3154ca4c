"""The rooms of the package import downwards only (pyproject.toml, [tool.importlinter])."""

from pathlib import Path

from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


def test_imports_point_down():
    pyproject = Path(__file__).parents[1] / "pyproject.toml"
    assert lint_imports(config_filename=str(pyproject), no_cache=True) == EXIT_STATUS_SUCCESS
