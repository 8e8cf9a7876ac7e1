"""How Sphinx builds these pages; `make docs` runs it. Nothing is fetched: MathJax comes with a package."""

import inspect
import re
from pathlib import Path

from docutils.nodes import Text, math_block

from lalref import __version__

HERE = Path(__file__).parent

project = "lalref"
author = "the lalref developers"
copyright = author
release = version = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "numpydoc",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
smartquotes = False  # reduction="none" and --help are to be copied as they are
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are committed with their outputs; `make notebooks-check` runs them

autodoc_typehints = "none"  # numpydoc's parameter lists say the types, and shapes with them
autodoc_mock_imports = ["torch", "jax", "tensorflow", "keras", "dask", "pytest"]  # need not be here
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

mathjax3_config = {"chtml": {"matchFontHeight": False}}  # formulas no larger than the text

html_theme = "pydata_sphinx_theme"
html_title = "lalref"
html_static_path = ["_static"]
html_css_files = ["lalref.css"]
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 1,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
    "header_links_before_dropdown": 7,
}
html_sidebars = {"index": []}


def bring_notebooks(app):
    """Copy the executed notebooks beside the pages, for Sphinx reads nothing from outside its folder."""
    there = HERE / "notebooks"
    there.mkdir(exist_ok=True)
    for old in there.glob("*.ipynb"):
        old.unlink()
    for notebook in sorted((HERE.parent / "notebooks").glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (there / notebook.name).write_text(text, encoding="utf-8")


def show_shapes(app, what, name, obj, options, lines):
    """Shapes such as (N, C, *S) are no emphasis."""
    lines[:] = [re.sub(r"\*(S|grid|p)\b", r"\\*\1", line) for line in lines]


def show_stars(app, ctx, lines):
    """Nor is **options in the help of a command."""
    lines[:] = [line.replace("*", r"\*") for line in lines]


def show_options(app, what, name, obj, options, signature, returns):
    """The options by name and default, which autodoc would not see for the class's __new__."""
    if name == "lalref.LocallyAdaptiveLoss":
        found = inspect.signature(obj)
        bare = [p.replace(annotation=p.empty) for p in found.parameters.values()]
        return str(found.replace(parameters=bare, return_annotation=found.empty)), ""
    return None


def keep_equations(app, doctree):
    """Sphinx would put lines that are broken by two backslashes into a split, and MathJax allows no tag there."""
    for node in doctree.findall(math_block):
        if r"\\" in node.astext() and not node.get("no-wrap"):
            node.children = [Text(rf"\[{node.astext()}\]")]
            node["no-wrap"] = node["nowrap"] = True


def setup(app):
    """Hook in."""
    app.connect("builder-inited", bring_notebooks)
    app.connect("doctree-read", keep_equations)
    app.connect("autodoc-process-signature", show_options)
    app.connect("autodoc-process-docstring", show_shapes, priority=100)  # before numpydoc
    app.connect("sphinx-click-process-description", show_stars)
