"""The pytest plugin: one line makes a suite, its failures can be read, and having it installed costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
ROOT = Path(__file__).resolve().parent.parent

PORT = """
import numpy as np
from lalref.oracle.mistakes import BY_ID, Textbook

right = Textbook()
wrong = BY_ID["centre-only"].subject()


def few(logits, labels, *, p=5.0, sigma=1.0):
    return right(logits, labels, p=p, sigma=sigma)


def narrow(logits, labels, *, p=5.0):
    return right(logits, labels, p=p, kernel_size=3, sigma=1.5)


def raising(logits, labels):
    raise NotImplementedError("one day")
"""


@pytest.fixture
def run(pytester):
    """Run a test file in a pytest of its own, with the plugin once however it is installed; count outcomes."""
    pytester.makepyfile(port=PORT)

    def run(code, *arguments):
        pytester.makepyfile(test_it=code)
        return pytester.runpytest_subprocess(
            "-p", "no:lalref", "-p", "lalref.oracle.pytest_plugin", "-p", "no:cacheprovider", "-q", *arguments
        )

    return run


def test_one_line_makes_a_suite_that_a_right_port_passes(run):
    result = run(
        "from lalref.oracle.pytest_plugin import suite\nfrom port import right\ntest_right = suite(right)"
    )
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] > 100  # core cases in two dtypes, and the verdict


def test_a_failing_case_shows_its_reason_and_its_numbers_without_a_traceback(run):
    code = "from lalref.oracle.pytest_plugin import suite\nfrom port import wrong\ntest_wrong = suite(wrong)"
    result = run(code, "-k", "plain-float64 or kernel-1-float64 or verdict")
    result.assert_outcomes(passed=1, failed=2)
    text = result.stdout.str()
    for said in (
        "is wrong in the case plain in float64. Blobs of three classes, every option at its default.",
        "Worst: gradient at (",
        "expected",
        "core cases are wrong",
    ):
        assert said in text
    assert "pytest_plugin.py" not in text.split("short test summary")[0].replace("test_it.py", "")


def test_cases_that_need_a_missing_option_are_skipped_with_the_reason(run):
    result = run(
        "from lalref.oracle.pytest_plugin import suite\nfrom port import few\n"
        "test_few = suite(few, dtypes=['float32'])",
        "-rs",
    )
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed", "skipped"}
    assert outcomes["passed"] > 12
    result.stdout.fnmatch_lines(["SKIPPED*few does not take stride*"])


def test_cases_are_refitted_to_what_is_built_in(run):
    line = "test_narrow = suite(narrow, fixed={'kernel_size': 3, 'sigma': 1.5}, dtypes=['float64'])"
    code = f"from lalref.oracle.pytest_plugin import suite\nfrom port import narrow\n{line}"
    run(code, "-k", "plain or column or kernel-7").assert_outcomes(passed=3)


def test_what_a_port_raises_comes_through_with_its_traceback(run):
    code = "from lalref.oracle.pytest_plugin import suite\nfrom port import raising\ntest_raising = suite(raising)"
    result = run(code, "-k", "plain-float64")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*port.py:*NotImplementedError*"])


def test_the_fixtures_give_cases_answers_and_checks(run):
    result = run(
        """
import numpy as np
import pytest
from port import right, wrong

def test_by_hand(lal_case, lal_oracle):
    value, grad = right(lal_case.given_logits, lal_case.labels, **lal_case.arguments)
    expected_value, expected_grad = lal_oracle.answer(lal_case)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-6, atol=1e-9)

def test_by_check(lal_case, lal_oracle):
    lal_oracle.check(right, lal_case, "float32")

def test_verify(lal_oracle):
    assert lal_oracle.verify(right, quick=True).units < 1
    with pytest.raises(pytest.fail.Exception, match="core cases are wrong"):
        lal_oracle.verify(wrong, quick=True)

def test_gradcheck(lal_oracle):
    lal_oracle.gradcheck(lambda x: (np.sum(x**2), 2 * x), np.ones(3))
    with pytest.raises(pytest.fail.Exception, match="the whole gradient is negated"):
        lal_oracle.gradcheck(lambda x: (np.sum(x**2), -2 * x), np.ones(3))
"""
    )
    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}, result.stdout.str()
    assert outcomes["passed"] > 100


def test_the_fixtures_are_listed_with_what_they_give(run):
    text = run("", "--fixtures").stdout.str()
    assert "lal_case" in text
    assert "lal_oracle" in text
    assert "Right answers to the locally adaptive learning loss" in text


def test_importing_the_plugin_imports_nothing_heavy():
    heavy = {
        "numba",
        "cupy",
        "torch",
        "jax",
        "tensorflow",
        "matplotlib",
        "flint",
        "scipy",
        "rich",
        "hypothesis",
    }
    program = "import sys, lalref.oracle.pytest_plugin; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "lalref.oracle.pytest_plugin" in loaded
    assert not heavy & loaded
    assert not [name for name in loaded if name.startswith(("lalref.engines.", "lalref.adapters."))]


def test_an_installed_lalref_brings_the_plugin_by_itself():
    import tomllib

    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pyproject["project"]["entry-points"]["pytest11"] == {"lalref": "lalref.oracle.pytest_plugin"}
