"""The reference has every public name, and each says what goes in, what comes out, what is raised, with an example."""

import ast
import importlib
import re

import pytest
from documents import ROOT

import lalref
from lalref import oracle

PAGES = [page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md"))]
NAMED = re.findall(r"^\.\. auto(?:class|function|exception):: ([\w.]+)", "\n".join(PAGES), flags=re.MULTILINE)
ROOMS = {  # whose public functions and classes all belong into the reference
    "lalref/scenes.py": {"Tile", "check_maps", "tiles"},  # but for these, which adapters share
    "lalref/truth.py": set(),
    "lalref/adapters/torch.py": set(),
    "lalref/adapters/torch_distributed.py": set(),
    "lalref/adapters/jax.py": {"combine_over"},
    "lalref/adapters/tensorflow.py": set(),
    "lalref/adapters/dask.py": set(),
}
RAISE_NOTHING = {"lalref.truth.doubles", "lalref.oracle.pytest_plugin.suite"}
FUNCTIONS = [name for name in NAMED if name.rpartition(".")[2][0].islower()]


def definitions(file):
    """The functions and classes of a module, read as text: adapters can't be imported without their framework."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def docstring(name):
    """The docstring of a function of the reference."""
    module, _, function = name.rpartition(".")
    if module.startswith("lalref.adapters."):
        return ast.get_docstring(definitions(f"{module.replace('.', '/')}.py")[function])
    return getattr(importlib.import_module(module), function).__doc__


def test_every_public_name_is_in_the_reference_once():
    public = {f"lalref.{name}" for name in lalref.__all__} | {
        f"lalref.oracle.{name}" for name in oracle.__all__
    }
    for file, private in ROOMS.items():
        names = {name for name in definitions(file) if name[0] != "_"} - private
        public |= {f"{file.removesuffix('.py').replace('/', '.')}.{name}" for name in names}
    assert public <= set(NAMED)
    assert len(NAMED) == len(set(NAMED))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_goes_in_what_comes_out_and_what_is_raised(name):
    text = docstring(name)
    raises = [] if name in RAISE_NOTHING else ["Raises"]
    for section in ["Parameters", "Returns", *raises, "Examples"]:
        assert re.search(rf"^ *{section}\n *-+$", text, flags=re.MULTILINE), section
