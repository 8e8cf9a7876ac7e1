"""Rung 2 of the ladder of trust: value, gradient, jvp and hvp as balls with a proven radius.

No backward formula is here, only the definition, run on python-flint's balls (arb) and on power series
of balls (arb_series): with x + t v in place of x, the coefficient of t is the derivative along v. One
logit touches only the windows that read its pixel, so for each logit those windows' losses are worked
out again, and stage 3 from all of them. A Hessian-vector product is read from the coefficient of t² by
polarisation, e'Hv = (c2(v + e) - c2(v - e)) / 2.

Every number comes with a radius <= 2^-120 of itself, or of the largest entry where it is a true zero or cancels:
`lalref.proof` raises the working precision until that holds, for the numbers it does not yet hold for. Inputs are
taken exactly: float16, bfloat16, float32 and float64 all are balls of radius 0.

What may not come in: a derivative written by hand, anything of the engines or the front door, a float
sum. The one convention is the tie at p = inf, equation (9): its windows share the gradient in proportion
to omega, which `Truth.tied` says.
"""

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import numpy as np
from flint import arb

from .anynumber import Number, leading
from .balls import Key, Problem, Run
from .definition import Position
from .proof import BITS, Balls, arithmetic, prove


@dataclass(frozen=True)
class Truth:
    """Balls: `mid()` and `rad()` of each entry are a number and a proven bound of its error.

    Attributes
    ----------
    value, value_dot : arb, or for reduction="none" an object array (N, *grid) of them
        The loss, and its derivative along the tangent; None where it was not asked for.
    grad, grad_dot : object array of arb, shaped as the logits
        The gradient, and its derivative along the tangent; None where it was not asked for.
    tied : tuple
        At p = inf the windows (n, *p) that share the maximum, where more than one does.
    """

    value: Any
    _: KW_ONLY
    value_dot: Any = None
    grad: Any = None
    grad_dot: Any = None
    tied: tuple[Position, ...] = ()


@dataclass(frozen=True)
class Stages:
    """What each window goes through, on the stride grid, exact 0 where not valid, for bisecting a port.

    Attributes
    ----------
    group_size : int64 array (N, *grid)
        abs(G_p).
    D : object array (N, *grid) of arb
        The divisor, equation (7).
    merged : object array (N, C, *grid) of arb
        z_p, equation (4); in probability space (N, *grid), the merged probability (6).
    ell : object array (N, *grid) of arb
        The window losses.
    """

    group_size: Any
    D: Any
    merged: Any
    ell: Any


# ---- the public functions ------------------------------------------------------------------------


def value(logits: Any, labels: Any, **options: Any) -> Truth:
    """The loss as a ball; the same arguments as `lalref.lal_loss`, less check and engine.

    Parameters
    ----------
    logits : array (N, C, *S) of float16, bfloat16, float32 or float64
    labels : integer array (N, *S)
    **options
        Those of `lalref.lal_loss`, pixel_weight among them.

    Returns
    -------
    Truth
        With ``value``.

    Raises
    ------
    ValueError
        A NaN or infinite number is read, or a loss is infinite: these have no ball.
    ArithmeticError
        The proof was not found with 12288 bits.

    Examples
    --------
    >>> L = value([[0.0, 0.0]], [1]).value  # one pixel, two classes: log 2
    >>> float(L), bool(L.rad() < 1e-36)
    (0.6931471805599453, True)
    """
    return _value(Problem(logits, labels, options), terms=1)


def value_and_grad(logits: Any, labels: Any, *, grad_output: Any = 1.0, **options: Any) -> Truth:
    """The loss and its gradient, which no backward formula makes.

    Parameters
    ----------
    logits, labels, **options
        As for `value`.
    grad_output : float, or for reduction="none" a map (N, *grid)
        What the gradient is multiplied by.

    Returns
    -------
    Truth
        With ``value``, ``grad`` and ``tied``.

    Raises
    ------
    ValueError, ArithmeticError
        As `value`.

    Examples
    --------
    >>> truth = value_and_grad([[0.0, 0.0]], [1])
    >>> [float(g) for g in truth.grad[0]]
    [0.5, -0.5]
    """
    problem = Problem(logits, labels, options)
    result = _value(problem, terms=1)

    def entries(run: Run, key: Key) -> Balls:
        n, q, c = key
        return (_coefficient(run.scalar(run.moved(n, q, c, 1), grad_output, run.reach[n, q]), 1),)

    found = prove(problem, _moving, entries, terms=2)
    grad = problem.like_logits({key: balls[0] for key, balls in found.items()})
    return replace(result, grad=grad, tied=problem.tied)


def jvp(logits: Any, labels: Any, tangent: Any, **options: Any) -> Truth:
    """The loss and its derivative along the tangent.

    Parameters
    ----------
    logits, labels, **options
        As for `value`.
    tangent : array shaped as the logits

    Returns
    -------
    Truth
        With ``value``, ``value_dot`` and ``tied``.

    Raises
    ------
    ValueError, ArithmeticError
        As `value`.

    Examples
    --------
    >>> truth = jvp([[0.0, 0.0]], [1], [[1.0, 0.0]])
    >>> float(truth.value_dot)
    0.5
    """
    return _value(Problem(logits, labels, options, tangent), terms=2)


def hvp(logits: Any, labels: Any, tangent: Any, *, grad_output: Any = 1.0, **options: Any) -> Truth:
    """The gradient and its derivative along the tangent; shares at ties of p = inf are held fixed.

    Parameters
    ----------
    logits, labels, tangent, **options
        As for `jvp`.
    grad_output : float, or for reduction="none" a map (N, *grid)
        What both are multiplied by.

    Returns
    -------
    Truth
        With ``value``, ``value_dot``, ``grad``, ``grad_dot`` and ``tied``.

    Raises
    ------
    ValueError, ArithmeticError
        As `value`.

    Examples
    --------
    >>> truth = hvp([[0.0, 0.0]], [1], [[1.0, 0.0]])
    >>> [float(g) for g in truth.grad_dot[0]]
    [0.25, -0.25]
    """
    problem = Problem(logits, labels, options, tangent)
    result = _value(problem, terms=2)

    def entries(run: Run, key: Key) -> Balls:
        n, q, c = key
        up, down = (run.scalar(run.moved(n, q, c, move), grad_output, run.reach[n, q]) for move in (1, -1))
        return tuple((_coefficient(up, k) - _coefficient(down, k)) / 2 for k in (1, 2))

    found = prove(problem, _moving, entries, terms=3)
    grad, grad_dot = (problem.like_logits({k: balls[i] for k, balls in found.items()}) for i in (0, 1))
    return replace(result, grad=grad, grad_dot=grad_dot, tied=problem.tied)


def _value(problem: Problem, terms: int) -> Truth:
    """Value, and with a tangent its derivative."""
    o = problem.options
    if o.reduction == "none":
        found = prove(problem, lambda run: [(i,) for i in range(len(run.windows))], _entry_of_map, terms)
    else:
        found = prove(problem, lambda run: [()] if run.windows else [], _reduced, terms)
    if not problem.windows and o.empty == "raise":
        raise ValueError("no valid window: every label is ignored or every weight is 0 (empty='raise')")
    values = []
    for column in range(2 if problem.tangent is not None else 1):
        if o.reduction == "none":
            values.append(problem.map({at: found[i,][column] for i, at in enumerate(problem.windows)}))
        else:
            values.append(found[()][column] if found else arb(0))
    if not found and o.empty == "nan" and o.reduction != "none":
        values[0] = arb.nan()  # a convention, not a number: it has no radius
    return Truth(values[0], value_dot=values[1] if len(values) > 1 else None, tied=problem.tied)


def _entry_of_map(run: Run, key: Key) -> Balls:
    ell = run.ells[key[0]] * run.omegas[key[0]]
    return leading(ell), _coefficient(ell, 1)


def _reduced(run: Run, key: Key) -> Balls:
    return run.value(), _coefficient(run.scalar(run.ells), 1)


def _coefficient(x: Number, k: int) -> arb:
    return x[k] if hasattr(x, "coeffs") else arb(0)


def _moving(run: Run) -> list[Key]:
    """The logits (n, q, c) that a loss depends on; every other gradient entry is exactly 0."""
    live = [(n, q) for (n, q), windows in run.reach.items() if not all(run.constant[i] for i in windows)]
    return [(n, q, c) for n, q in live for c in range(run.problem.C) if not run.is_still(n, q, c)]


def stages(logits: Any, labels: Any, **options: Any) -> Stages:
    """Group sizes, divisors, merged vectors (or probabilities) and losses of all windows, as balls.

    Parameters
    ----------
    logits, labels, **options
        As for `value`.

    Returns
    -------
    Stages
        A class excluded by -inf has the merged score -inf.

    Raises
    ------
    ValueError, ArithmeticError
        As `value`.

    Examples
    --------
    >>> maps = stages([[[0.0, 2.0], [0.0, 0.0]]], [[0, 0]], sigma=None)  # two pixels of class 0
    >>> maps.group_size
    array([[2, 2]])
    >>> [float(z) for z in maps.merged[0, :, 0]]  # the mean of (0, 0) and (2, 0)
    [1.0, 0.0]
    """
    problem = Problem(logits, labels, options)

    def windows(run: Run) -> list[Key]:
        return [(i,) for i in range(len(run.windows))]

    def of_window(run: Run, key: Key) -> Balls:
        return run.windows[key[0]][1].D, run.ells[key[0]]

    def merged(run: Run, key: Key) -> Balls:
        return (run.z[key[0]][key[1]],) if len(key) == 2 else ((-run.ells[key[0]]).exp(),)

    def of_merged(run: Run) -> list[Key]:
        if problem.options.space == "probabilities":
            return windows(run)
        return [(i, c) for i in range(len(run.windows)) for c in range(problem.C) if run.z[i][c].is_finite()]

    found = prove(problem, windows, of_window, terms=1)
    scores = {key: balls[0] for key, balls in prove(problem, of_merged, merged, terms=1).items()}
    at = problem.windows
    if problem.options.space == "probabilities":
        z = problem.map({at[i]: ball for (i,), ball in scores.items()})
    else:
        columns = (
            {at[i]: scores.get((i, c), arb.neg_inf()) for i in range(len(at))} for c in range(problem.C)
        )
        z = np.stack([problem.map(column) for column in columns], 1)
    size = np.zeros((problem.N, *problem.grid), np.int64)
    for index, n in zip(at, problem.group_sizes, strict=True):
        size[index] = n
    D, ell = (problem.map({at[i]: balls[k] for (i,), balls in found.items()}) for k in (0, 1))
    return Stages(size, D, z, ell)


def doubles(balls: Any, n: int = 2) -> tuple[Any, Any]:
    """Float64 arrays for storage: n doubles per ball, to be added up, and a proven bound of what is left.

    Parameters
    ----------
    balls : arb, or object array of them, shape S
    n : 2 keep about 106 bits of a number, 3 about 159

    Returns
    -------
    parts : float64 array (n, *S), the largest first
    radius : float64 array S
        The number itself is within ``radius`` of the sum of its parts.

    Examples
    --------
    >>> parts, radius = doubles(value([[0.0, 0.0]], [1]).value)
    >>> float(parts[0]), bool(abs(parts[1]) < 1e-16), bool(radius < 1e-32)
    (0.6931471805599453, True, True)
    """
    array: Any = np.asarray(balls, dtype=object)  # S
    parts, radius = np.zeros((n, *array.shape)), np.zeros(array.shape)
    with arithmetic(BITS[2], 1):
        for index in np.ndindex(array.shape):
            left = array[index]
            for k in range(n):
                parts[k, *index] = float(left.mid())
                left -= arb(parts[k, *index])
            bound = float(left.abs_upper())
            radius[index] = 0.0 if left.is_zero() else math.nextafter(bound, math.inf)
    return parts, radius
