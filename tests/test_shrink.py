"""The smallest failing input: it is small, it still fails, and its code fails when it is run as it is printed."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lalref import oracle
from lalref.oracle import golden
from lalref.oracle.cases import BY_NAME
from lalref.oracle.command import Command
from lalref.oracle.judge import judge
from lalref.oracle.mistakes import BY_ID, Textbook
from lalref.oracle.paste import code
from lalref.oracle.shrink import shrink, start
from lalref.oracle.subjects import Subject

ROOT = Path(__file__).resolve().parent.parent
textbook = Textbook()
LONG = 60.0  # seconds: no test depends on how fast this machine is


def without_a_root(logits, labels, *, p=5.0, sigma=1.0, class_weight=None, stride=1, grad_output=1.0):
    """The mean of the powers; every other number is right."""
    options = {"p": p, "sigma": sigma, "class_weight": class_weight, "stride": stride}
    value, grad = textbook(logits, labels, grad_output=grad_output, **options)
    return value**p, grad


def ignores_sigma(logits, labels, *, sigma=1.0, kernel_size=5):
    """A window weight that is built in."""
    return textbook(logits, labels, kernel_size=kernel_size)


def confuses_void(logits, labels):
    """The second class' logits are lost where a pixel is ignored anywhere."""
    value, grad = textbook(logits, labels)
    return value, grad * (1 if (labels != 255).all() else -1)


@pytest.mark.parametrize(
    ("f", "name", "most"),
    [
        (without_a_root, "plain", 2),
        (without_a_root, "class-weight", 2),
        (without_a_root, "stride-2", 2),
        (without_a_root, "upstream-negative", 2),
        (ignores_sigma, "sigma-3", 8),
        (confuses_void, "scattered-void", 6),
    ],
)
def test_a_failing_case_becomes_a_few_numbers(f, name, most):
    found = shrink(Subject(f), BY_NAME[name], "float64", seconds=LONG)
    assert found.case.logits.size <= most
    assert judge(Subject(f), found.case, "float64", "", found.right)[0].outcome == "differs"
    assert np.abs(found.case.logits).max() <= 1
    if f is without_a_root:
        assert not found.case.options
        assert found.case.grad_output == 1.0


@pytest.mark.parametrize("mistake", ["centre-only", "no-root", "sigma-from-kernel-size", "ignores-stride"])
def test_the_code_of_a_shrunken_mistake_runs_and_fails(mistake):
    f = BY_ID[mistake].form()
    shrunk = 0
    for name in ("scattered-void", "kernel-7", "stride-2"):
        found = shrink(Subject(f), BY_NAME[name], "float64", seconds=3.0)
        if found is not None:
            shrunk += 1
            with pytest.raises(AssertionError):
                exec(found.code, {"f": f})
            exec(found.code, {"f": textbook})  # and the right one passes it
    assert shrunk


def test_what_does_not_fail_is_not_shrunk():
    assert shrink(Subject(textbook), BY_NAME["plain"], "float64") is None


def test_every_core_case_is_code_that_a_right_subject_passes_and_a_wrong_one_fails():
    def wrong(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return value + 1, grad

    for name in (
        "plain",
        "class-weight",
        "none-upstream",
        "pixel-weight",
        "channels-last",
        "p-100-thousands",
    ):
        case, right = BY_NAME[name], golden.load()[name]
        text = code(Subject(textbook), case, right, "float32")
        exec(text, {"f": textbook})
        with pytest.raises(AssertionError, match="value"):
            exec(text, {"f": wrong})


def test_a_subject_that_raises_is_shrunk_too():
    def f(logits, labels):
        if labels.max() > 100:
            raise IndexError("label out of range")
        return textbook(logits, labels)

    found = shrink(Subject(f), BY_NAME["scattered-void"], "float64", seconds=LONG)
    assert found.case.labels.size == 1
    with pytest.raises(IndexError):
        exec(found.code, {"f": f})


def test_verify_gives_it_on_request_and_it_runs_as_a_program_of_its_own(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples" / "ports")
    from broken_port import value_and_grad

    assert oracle.verify(value_and_grad, quick=True).shrunk is None
    report = oracle.verify(value_and_grad, quick=True, shrink=True)
    assert report.shrunk.case.logits.size <= 6
    assert report.shrunk.code in str(report)
    done = subprocess.run(
        [sys.executable, "-c", report.shrunk.code],
        cwd=ROOT / "examples/ports",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "AssertionError" in done.stderr
    assert max(map(len, report.shrunk.code.splitlines())) <= 80


def test_the_code_for_a_program_runs_it(tmp_path):
    np.save(tmp_path / "value.npy", np.array(0.5))
    command = f"sh -c 'cp {tmp_path}/value.npy {{out}}; cp {{case}}/logits.npy {{out}}/grad.npy'"
    subject = Command(command, takes=["sigma", "p"])
    found = shrink(subject, BY_NAME["plain"], "float32", seconds=3.0)
    with pytest.raises(AssertionError, match="gradient"):
        exec(found.code, {})


def test_it_starts_from_the_plainest_case_with_numbers():
    report = oracle.verify(without_a_root, dtype="float64", quick=True)
    failed = [r for r in report.results if r.outcome == "differs"]
    case, dtype = start(failed, {r.name: BY_NAME[r.name] for r in failed})
    assert not case.options
    assert dtype == "float64"
    assert math.isfinite(next(r for r in failed if r.name == case.name).units)
