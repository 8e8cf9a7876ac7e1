"""One answer to one case held against the right one: how far off in units, and whether that is too far.

Right answers and units come from elsewhere and are only put together; what follows for the whole subject is
`verify`'s affair.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from lalref.oracle.case import Case
from lalref.oracle.golden import Golden
from lalref.oracle.inputs import FloatArray
from lalref.oracle.result import Result, Worst
from lalref.oracle.subjects import Answer, UsageError
from lalref.oracle.units import Units, error_unit

LIMIT = 8.0  # units: beyond this an answer is wrong
RAISED = "raised "  # how the note of a subject's exception begins


def judge(
    subject: Callable[[Case, str], Answer], case: Case, dtype: str, feature: str, right: Golden
) -> tuple[Result, Worst | None]:
    """Ask for one case in one dtype and measure the answer.

    Raises
    ------
    UsageError
        The subject can't be asked. Any other exception of its own is an outcome.
    """
    try:
        answer = subject(case, dtype)
    except UsageError:
        raise
    except Exception as error:
        outcome = "unsupported" if feature else "differs"
        return Result(case.name, case.reason, dtype, feature, outcome, math.inf, math.inf, told(error)), None
    return measure(answer, case, dtype, feature, right)


def measure(
    answer: Answer, case: Case, dtype: str, feature: str, right: Golden, unit: Units | None = None
) -> tuple[Result, Worst | None]:
    """Measure an answer; `unit` only where it is not the case's own."""

    def result(outcome: str, value: float, grad: float, note: str) -> Result:
        return Result(case.name, case.reason, dtype, feature, outcome, value, grad, note)

    for what in ("value", "grad"):
        got, expected = getattr(answer, what).shape, getattr(right, what).shape[1:]
        if got != expected:
            name = {"value": "value", "grad": "gradient"}[what]
            return result("differs", math.inf, math.inf, f"{name} of shape {got}, expected {expected}"), None
    unit = unit_of(case, dtype, right) if unit is None else unit
    value_units = in_units(answer.value, right.value, unit.value)
    grad_units = in_units(answer.grad, right.grad, unit.grad)
    value, grad = float(value_units.max(initial=0)), float(grad_units.max(initial=0))
    note = f"wrote to its input {' and '.join(answer.changed)}" if answer.changed else ""
    outcome = "differs" if note or max(value, grad) > LIMIT else "holds"
    if value > grad:
        picture = Worst(case, dtype, "value", right.value[0], answer.value, value_units)
    else:
        picture = Worst(case, dtype, "gradient", right.grad[0], answer.grad, grad_units)
    return result(outcome, value, grad, note), picture


def told(error: Exception) -> str:
    """An exception in one line."""
    return f"{RAISED}{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


@functools.cache
def unit_of(case: Case, dtype: str, right: Golden) -> Units:
    """The error unit of a case, worked out once."""
    return error_unit(case, dtype, right.value[0], right.grad[0])


def in_units(got: FloatArray, right: FloatArray, unit: FloatArray) -> FloatArray:
    """Errors of `got` against high and low part `right` (2, ...), in units; inf where only one is NaN."""
    with np.errstate(all="ignore"):
        error = abs((got - right[0]) - right[1])
        units = np.where(got == right[0], 0.0, error / unit)
    units = np.where(np.isnan(units), math.inf, units)
    return np.where(np.isnan(got) & np.isnan(right[0]), 0.0, units)
