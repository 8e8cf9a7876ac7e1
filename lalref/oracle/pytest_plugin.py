"""The oracle inside pytest: fixtures, and one line that turns a port into a test-suite.

    from lalref.oracle.pytest_plugin import suite
    from my_package import my_loss

    test_my_loss = suite(my_loss)

pytest loads this module in every run wherever lalref is installed, so nothing is imported here that takes long:
no framework, no numba, no CuPy; cases and answers are read when a test asks for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lalref.oracle import GradientCheck, Report
    from lalref.oracle.case import Case
    from lalref.oracle.subjects import Subject

VERDICT = "verdict"  # the test of a suite that asks for everything at once


def suite(
    f: Callable[..., Any] | Subject,
    *,
    framework: str = "numpy",
    fixed: Mapping[str, Any] | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
) -> Callable[..., None]:
    """Return a test of `f`, one for each core case and dtype, and one for the verdict of `lalref verify`.

    Parameters
    ----------
    f, framework, fixed
        As for `lalref.oracle.verify`.
    dtypes : sequence of str
        The dtypes that each case is put to it in.

    Returns
    -------
    callable
        Give it a name that pytest collects: ``test_my_loss = suite(my_loss)``. Cases that need an option which
        `f` lacks are skipped and say so. What `f` raises comes through with its traceback.

    Examples
    --------
    >>> import lalref
    >>> from lalref.oracle.pytest_plugin import suite
    >>> test_my_loss = suite(lalref.lal_value_and_grad, dtypes=["float64"])
    """
    from lalref.oracle.cases import CASES

    runs = [(case, dtype) for case in CASES if case.core for dtype in dtypes]
    ids = [f"{case.name}-{dtype}" for case, dtype in runs]

    @pytest.mark.parametrize(("case", "dtype"), [*runs, (None, "")], ids=[*ids, VERDICT])
    def test(case: Case | None, dtype: str) -> None:
        if case is None:
            LalOracle().verify(f, framework=framework, fixed=fixed)
        else:
            LalOracle().check(f, case, dtype, framework=framework, fixed=fixed)

    test.__doc__ = "The locally adaptive learning loss, one case after the other."
    return test


class LalOracle:
    """What the fixture `lal_oracle` gives: right answers, and checks that fail the test with a readable message.

    Examples
    --------
    >>> import lalref
    >>> from lalref.oracle.cases import BY_NAME
    >>> from lalref.oracle.pytest_plugin import LalOracle
    >>> oracle, case = LalOracle(), BY_NAME["plain"]  # in a test, the fixtures lal_oracle and lal_case
    >>> value, grad = oracle.answer(case)
    >>> grad.shape == case.given_logits.shape
    True
    >>> oracle.check(lalref.lal_value_and_grad, case)  # right, so nothing happens
    """

    def answer(self, case: Case) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The right value and gradient of a case of the table, to the last digit of float64.

        Parameters
        ----------
        case : Case
            As `lal_case` gives them.

        Returns
        -------
        value, grad : float64 arrays
            The value is 0-d, or a map for reduction="none"; the gradient is shaped as ``case.given_logits``.
        """
        from lalref.oracle import golden

        right = golden.load()[case.name]
        return right.value[0], right.grad[0]

    def check(
        self,
        f: Callable[..., Any] | Subject,
        case: Case,
        dtype: str = "float64",
        *,
        framework: str = "numpy",
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        """Fail unless `f` is right in `case`; skip where it lacks an option that the case needs.

        Parameters
        ----------
        f : callable or Subject
            As for `lalref.oracle.verify`.
        case : Case
        dtype : str
            Of the logits that `f` is given.
        framework : {"numpy", "torch", "jax", "tensorflow"}
        fixed : mapping, optional
            Options that `f` has built in, with their values.

        Raises
        ------
        Failed, Skipped
            pytest's own.
        """
        from lalref.oracle import golden, render
        from lalref.oracle.judge import measure

        subject = _subject(f, framework, tuple((fixed or {}).items()))
        lacking = subject.lacks(case)
        refitted = None
        if lacking and set(lacking) <= set(subject.fixed):
            refitted = case.refitted({option: subject.fixed[option] for option in lacking})
        if lacking and refitted is None:
            pytest.skip(f"{subject.name} does not take {', '.join(lacking)}")
        right = golden.load()[case.name] if refitted is None else golden.make(refitted)
        case = refitted or case
        result, worst = measure(subject(case, dtype), case, dtype, case.feature, right)
        if result.outcome == "differs":
            told = [f"{subject.name} is wrong in the case {case.name} in {dtype}. {case.reason}"]
            told += [result.note] if result.note else []
            told += [render.plain(worst)] if worst is not None and worst.most > 0 else []
            pytest.fail("\n".join(told), pytrace=False)

    def verify(self, f: Callable[..., Any] | Subject, **options: Any) -> Report:
        """Fail unless `lalref.oracle.verify` finds `f` right, with its report.

        Parameters
        ----------
        f, **options
            As for `lalref.oracle.verify`.

        Returns
        -------
        Report

        Raises
        ------
        Failed
            pytest's own.
        """
        from lalref.oracle import verify

        report = verify(f, **options)
        if report.verdict != "right":
            pytest.fail(str(report), pytrace=False)
        return report

    def gradcheck(self, f: Callable[..., Any], x: npt.ArrayLike, **options: Any) -> GradientCheck:
        """Fail unless `lalref.oracle.gradcheck` finds the gradient of `f` at `x` right.

        Parameters
        ----------
        f, x, **options
            As for `lalref.oracle.gradcheck`.

        Returns
        -------
        GradientCheck

        Raises
        ------
        Failed
            pytest's own.
        """
        from lalref.oracle import gradcheck

        found = gradcheck(f, x, **options)
        if not found:
            pytest.fail(str(found), pytrace=False)
        return found


@functools.lru_cache(maxsize=1)  # the cases of one suite come one after the other
def _subject(f: Any, framework: str, fixed: tuple[tuple[str, Any], ...]) -> Subject:
    from lalref.oracle.subjects import Subject

    return f if isinstance(f, Subject) else Subject(f, framework, dict(fixed))


@pytest.fixture(scope="session")
def lal_oracle() -> LalOracle:
    """Right answers to the locally adaptive learning loss: answer(case), check(f, case), verify(f), gradcheck(f, x)."""
    return LalOracle()


@pytest.fixture
def lal_case(request: pytest.FixtureRequest) -> Case:
    """A core case of the locally adaptive learning loss, one after the other: given_logits, labels, arguments."""
    case: Case = request.param
    return case


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `lal_case` once for each core case."""
    if "lal_case" in metafunc.fixturenames:
        from lalref.oracle.cases import CASES

        cases = [case for case in CASES if case.core]
        metafunc.parametrize("lal_case", cases, ids=[case.name for case in cases], indirect=True)
