"""The reference has every public name, and each says what goes in, what comes out, what is raised, with an example."""

import ast
import inspect
import re

import pytest
from documents import ROOT

import lalref
from lalref import oracle

PAGES = "\n".join(
    page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
)
DIRECTIVE = r"^\.\. auto(class|function|exception):: ([\w.]+).*\n(?: +:members:(.*)\n)?"
DIRECTIVES = re.findall(DIRECTIVE, PAGES, flags=re.MULTILINE)
NAMED = [name for _, name, _ in DIRECTIVES]
ROOMS = (  # beside what `lalref` and `lalref.oracle` give, their public names are for everybody
    "lalref.scenes",
    "lalref.truth",
    "lalref.adapters.torch",
    "lalref.adapters.torch_distributed",
    "lalref.adapters.jax",
    "lalref.adapters.tensorflow",
    "lalref.adapters.dask",
)
RAISE_NOTHING = {
    "lalref.truth.doubles",
    "lalref.oracle.pytest_plugin.suite",
    "lalref.oracle.pytest_plugin.LalOracle.answer",
    "lalref.oracle.Result.decides",
}
RETURN_NOTHING = {"lalref.oracle.pytest_plugin.LalOracle.check"}
EXAMPLE_ELSEWHERE = (  # at the class, at the function of the same name, or at a method that goes with it
    "lalref.LocallyAdaptiveLoss.",
    "lalref.adapters.torch.LocallyAdaptiveLoss.",
    "lalref.oracle.Result.",
    "lalref.oracle.Report.",
    "lalref.oracle.pytest_plugin.LalOracle.",
)


def module_text(module):
    file = ROOT.joinpath(*module.split("."))
    return (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8")


def definitions(tree):
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def public_names(module):
    """What `from module import *` would give of its own: __all__, or what has no underscore before it."""
    tree = ast.parse(module_text(module))  # adapters can't be imported without their framework
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return {name for name in definitions(tree) if name[0] != "_"}


def definition(name):
    """Where a function or class is defined, as a piece of syntax."""
    module, _, short = name.rpartition(".")
    tree = ast.parse(module_text(module))
    if short in (found := definitions(tree)):
        return found[short]
    (origin,) = (
        node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and short in [alias.name for alias in node.names]
    )
    return definition(f"{origin}.{short}")


def members(name, listed):
    """The methods of a class that its page shows."""
    found = definitions(definition(name))
    wanted = [member.strip() for member in listed.split(",") if member.strip()]
    return {m: node for m, node in found.items() if (m in wanted if wanted else m[0] != "_")}


def is_property(node):
    return any(ast.unparse(decorator) == "property" for decorator in node.decorator_list)


CALLABLES, CLASSES = {}, {}
for kind, name, listed in DIRECTIVES:
    if kind == "function":
        CALLABLES[name] = definition(name)
    elif kind == "class":
        CLASSES[name] = definition(name)
        if f"{name}\n   :members:" in PAGES or listed:
            CALLABLES |= {f"{name}.{member}": node for member, node in members(name, listed).items()}


def sections(node):
    return re.findall(r"^(\w+)\n-+$", inspect.cleandoc(ast.get_docstring(node)), flags=re.MULTILINE)


def test_every_public_name_is_in_the_reference_once():
    public = {f"lalref.{name}" for name in lalref.__all__}
    public |= {f"lalref.oracle.{name}" for name in oracle.__all__}
    public |= {f"{room}.{name}" for room in ROOMS for name in public_names(room)}
    assert public <= set(NAMED)
    assert len(NAMED) == len(set(NAMED))


@pytest.mark.parametrize("name", CALLABLES)
def test_a_function_says_what_goes_in_what_comes_out_and_what_is_raised(name):
    node = CALLABLES[name]
    if is_property(node):
        assert ast.get_docstring(node)
        assert node.returns is not None
        return
    wanted = {"Parameters", "Returns", "Raises", "Examples"}
    takes_nothing = [arg.arg for arg in node.args.args + node.args.kwonlyargs] == ["self"]
    if takes_nothing:
        wanted -= {"Parameters", "Raises"}
    if name in RAISE_NOTHING:
        wanted -= {"Raises"}
    if name in RETURN_NOTHING:
        wanted -= {"Returns"}
    if name.startswith(EXAMPLE_ELSEWHERE):
        wanted -= {"Examples"}
    assert wanted <= set(sections(node))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_says_what_it_holds_or_is_made_of(name):
    found = set(sections(CLASSES[name]))
    if "Attributes" not in found:  # no record that a function returns, whose example serves
        assert "Examples" in found
        assert {"Parameters"} <= found or not any(
            node.name == "__init__" for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)
        )
