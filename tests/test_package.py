"""Promises of the package around the loss: light to import, installable from a wheel, its README true."""

import doctest
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lalref
from lalref.cli import main
from lalref.doctor import engines
from lalref.options import ENGINES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ["numba", "cupy", "torch", "jax", "tensorflow", "matplotlib", "flint", "scipy", "rich"]


def run(*command, cwd, env=None):
    """Run a program; return what it printed, or fail with it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(("module", "unwanted"), [("lalref", HEAVY), ("lalref.cli", HEAVY)])
def test_importing_imports_nothing_heavy(module, unwanted):
    loaded = run(sys.executable, "-c", f"import sys, {module}; print(*sys.modules)", cwd=ROOT).split()
    assert module in loaded
    assert not set(unwanted) & set(loaded)


def test_modules_that_readme_names_are_there_without_an_import_of_their_own():
    program = "import lalref; print(lalref.oracle.verify, lalref.truth, lalref.definition)"
    said = run(sys.executable, "-c", program, cwd=ROOT)
    assert said.startswith("<function verify")
    with pytest.raises(AttributeError, match="no attribute 'oracles'"):
        lalref.oracles  # noqa: B018


def test_completion_offers_what_is_public_and_nothing_else():
    assert {n for n in dir(lalref) if n[0] != "_"} == {*lalref.__all__, "definition", "oracle", "truth"}
    assert not [n for n in dir(lalref) if not hasattr(lalref, n)]
    assert not hasattr(lalref, "version")
    assert not hasattr(lalref, "PackageNotFoundError")


DOCUMENTED = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "lalref").rglob("*.py")
    if file.parent.name != "adapters"  # tests/frameworks runs those
    and ">>> " in file.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("module", DOCUMENTED)
def test_examples_in_docstrings_print_what_they_say(module):
    failed, tried = doctest.testmod(importlib.import_module(module))
    assert tried
    assert not failed


def test_version_is_said_once():
    assert lalref.__version__ == PYPROJECT["project"]["version"] == version("lalref")


def required():
    """Every requirement that an environment of the Makefile installs."""
    groups = PYPROJECT["dependency-groups"]
    # a group that another one includes is listed by itself too
    named = [each for group in groups.values() for each in group if isinstance(each, str)]
    return PYPROJECT["project"]["dependencies"] + named


def test_constraints_pin_every_requirement_to_a_version_it_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert list(pins) == [canonicalize_name(name) for name in sorted(pins)], "sorted, names in canonical form"
    for text in required():
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_makefile_has_every_target_that_readme_and_ci_name():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    in_readme = set(re.findall(r"^ *make ([a-z-]+)|`make ([a-z-]+)", README, flags=re.MULTILINE))
    in_ci = set(re.findall(r"^step make ([a-z-]+)$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE))
    assert in_ci >= {"lint", "test"}
    assert {a or b for a, b in in_readme} >= {"demo", "test"}
    assert {a or b for a, b in in_readme} | in_ci <= targets


def test_readme_names_only_commands_and_options_that_exist():
    named = re.findall(r"^ *lalref ([a-z]+)(.*)$", README, flags=re.MULTILINE)
    assert {command for command, _ in named} >= {"verify", "doctor"}
    for command, rest in named:
        options = {
            o for each in main.commands[command].params if isinstance(each, click.Option) for o in each.opts
        }
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, f"lalref {command}{rest}"


def test_readme_says_which_engines_are_here():
    said = dict(re.findall(r"^\| `(\w+)` \|.*\| (yes|not yet) \|$", README, flags=re.MULTILINE))
    missing = {engine.name for engine in engines() if "not in this version" in engine.reason}
    assert said == {name: "not yet" if name in missing else "yes" for name in ENGINES[1:]}


def test_readme_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link and link[0] != "#"]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A new environment with lalref in it from a built wheel; what lalref needs is borrowed from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("lalref-*.whl")
    python = folder / "env" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return python


@pytest.mark.slow
def test_wheel_installs_and_works_elsewhere(installed, tmp_path):
    program = """
import pathlib, numpy as np, lalref
assert pathlib.Path(lalref.__file__).with_name("py.typed").is_file()
value, grad = lalref.lal_value_and_grad(np.zeros((1, 2, 3, 3)), np.zeros((1, 3, 3), int))
assert abs(value - np.log(2)) < 1e-15, value
print(lalref.__file__)
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    file = run(installed, "-c", program, cwd=tmp_path, env=environment).strip()
    assert Path(file).is_relative_to(installed.parent.parent)
    lalref_command = installed.with_name("lalref")
    assert version("lalref") in run(lalref_command, "--version", cwd=tmp_path, env=environment)
    port = ROOT / "examples/ports/numpy_port.py:value_and_grad"
    run(lalref_command, "verify", port, "--quick", cwd=tmp_path, env=environment)  # needs the golden values
