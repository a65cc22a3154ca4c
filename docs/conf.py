"""Sphinx's configuration: python -m sphinx -W --keep-going docs docs/_build."""

project = "logit_laplace_jax"
author = "the authors of logit_laplace_jax"
html_title = "logit_laplace_jax"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2}
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_ivar = True
# Links from pages to files of the repository that are no pages.
suppress_warnings = ["myst.xref_missing"]
autodoc_inherit_docstrings = False


def setup(app):
    """Keeps ``|t - μ|`` in docstrings an absolute value: reStructuredText reads a substitution."""

    def escape(app, what, name, obj, options, lines):
        for number, line in enumerate(lines):
            pieces = line.split("``")  # every second one is code
            pieces[::2] = [piece.replace("|", r"\|") for piece in pieces[::2]]
            lines[number] = "``".join(pieces)

    app.connect("autodoc-process-docstring", escape)
