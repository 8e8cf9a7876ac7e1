"""The few operations the definition needs beyond + - * /, for numbers of any type.

exp, log and powers that follow IEEE arithmetic at its edges and raise nothing, and the one way in which
numbers are compared. What may not come in: anything about the loss.
"""

import cmath
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

Number = Any  # float, complex, mpf, arb, arb_series, a dual number, …


def leading(x: Number) -> Number:
    """The real part of a number, the constant coefficient of a power series."""
    if hasattr(x, "coeffs"):
        x = x[0]
    return getattr(x, "real", x)


def order(x: Number) -> Number:
    """What numbers are compared by: a plain real number, the midpoint where x is a ball."""
    x = leading(x)
    return x.mid() if hasattr(x, "mid") else x


def largest(values: Iterable[Number]) -> Number:
    """The value of the highest `order`; a NaN wins over everything."""
    values = list(values)
    for v in values:
        if not order(v) == order(v):  # noqa: SIM201  NaN; for balls only == tells it, != does not
            return v
    return max(values, key=order)


def total(terms: Iterable[Number]) -> Number:
    """Sum from left to right (the built-in sum differs between Python versions)."""
    result = None
    for term in terms:
        result = term if result is None else result + term
    return result


def exp(x: Number) -> Number:
    """e to the x in x's own type; overflow is inf, as in IEEE arithmetic, and raises nothing."""
    if isinstance(x, np.generic):
        return np.exp(x)
    if hasattr(x, "context"):  # mpmath, whose numbers have an attribute exp that is something else
        return x.context.exp(x)
    if hasattr(x, "exp"):
        return x.exp()
    try:
        return cmath.exp(x) if isinstance(x, complex) else math.exp(x)
    except OverflowError:
        return math.inf


def log(x: Number) -> Number:
    """Natural logarithm in x's own type; -inf at 0, NaN below, as in IEEE arithmetic, and raises nothing."""
    if isinstance(x, np.generic):
        return np.log(x)
    if hasattr(x, "context"):
        return x.context.log(x)
    if hasattr(x, "log"):
        return x.log()
    if x == 0:
        return -math.inf
    if isinstance(x, complex):
        return cmath.log(x)
    return math.nan if x < 0 else math.log(x)


def power(x: Number, a: float) -> Number:
    """x to the a, for x >= 0 and a >= 1."""
    if a == 1:
        return x
    return x * 0 if leading(x) == 0 else exp(log(x) * a)


def root(x: Number, a: float) -> Number:
    """x to the 1/a, for x > 0; a is divided by, for 1/a need not be a float."""
    return x if a == 1 else exp(log(x) / a)
