"""`make ... PYTHON=...` means that Python, also where an environment of another one is there already."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@pytest.fixture
def dry_run(tmp_path):
    """What `make test` would do in a clone whose environment is ready, made by this Python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").symlink_to(Path(sys.executable).resolve())
    (tmp_path / ".venv" / "ready").touch()

    def dry_run(*arguments, target="test", **variables):
        environment = {
            k: v for k, v in os.environ.items() if k not in ("PYTHON", "CUDA", "MAKEFLAGS")
        } | variables
        return subprocess.run(
            ["make", "-n", target, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    return dry_run


@pytest.fixture
def another_python(tmp_path):
    """A Python that says it is another one."""
    path = tmp_path / "another"
    path.write_text("#!/bin/sh\necho /elsewhere=3.99.0\n")
    path.chmod(0o755)
    return path


def test_another_python_makes_the_environment_again(dry_run, another_python):
    assert "-m venv" not in dry_run()
    assert "-m venv" not in dry_run(f"PYTHON={sys.executable}")
    assert "-m venv --clear .venv" in dry_run(f"PYTHON={another_python}")
    assert "-m venv --clear .venv" in dry_run(PYTHON=str(another_python))
    assert "-m venv --clear .venv" in dry_run(
        "PYTHON=/no/such/python"
    )  # and then the recipe says what is missing


def test_each_cuda_version_has_an_environment_of_its_own(dry_run, tmp_path):
    (tmp_path / ".venv-gpu-cuda12").mkdir()
    (tmp_path / ".venv-gpu-cuda12" / "ready").touch()
    assert "-m venv" not in dry_run(target="test-gpu")
    other = dry_run("CUDA=13", target="test-gpu")
    assert "-m venv .venv-gpu-cuda13" in other
    assert ".[cuda13,torch]" in other
    assert ".venv-gpu-cuda13/bin/python -m pytest tests/gpu" in other
    assert other == dry_run(target="test-gpu", CUDA="13")
