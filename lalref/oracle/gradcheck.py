"""A gradient checker for any NumPy function: does the gradient that it returns fit the values that it returns?

It knows nothing of the loss, so it can't tell a wrong loss with a matching backward from a right one; that is
what `verify` is for. What sets it apart from its cousins: every tolerance is relative to the size of the slope,
so that the tiny gradients of a mean over many pixels are judged as strictly as any; the function's own noise is
measured, and where it hides the answer that is said; kinks are noticed. Differences are taken in `differences`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lalref.oracle.differences import Slope, coarsest, direction, noise_of, search, slope
from lalref.oracle.inputs import FloatArray
from lalref.oracle.watched import Watched

RANDOM = 4  # directions; one more follows the gradient itself
SAFETY = 4.0  # a difference is called wrong when it is beyond the tolerance by this many of its errors
ATTEMPTS = 4  # points to try, where there are kinks
SEARCHES = 100  # parts of x that are looked at to find wrong entries
TOLD = 3  # wrong entries
DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Direction:
    """What was found along one direction: the slope by differences, and what the gradient says."""

    name: str
    expected: float
    got: float
    error: float
    size: float
    found: Slope = dataclasses.field(repr=False)

    @property
    def off(self) -> float:
        """The difference, relative to the size of the slope."""
        return abs(self.got - self.expected) / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class Entry:
    """A wrong entry of the gradient."""

    index: tuple[int, ...]
    expected: float
    got: float


@dataclasses.dataclass(frozen=True)
class GradientCheck:
    """A verdict on a gradient; true when it is right, and readable when printed.

    Attributes
    ----------
    verdict : {"right", "wrong", "inconclusive"}
    message : str
        What was found, in words.
    notes : tuple of str
        What else was noticed: kinks, inputs written to.
    directions : tuple of Direction
    entries : tuple of Entry
        The worst wrong entries, where single ones could be found.
    tolerance : float
        Relative to the size of the slope.
    noise : float
        Standard deviation of the rounding of f's value.
    """

    verdict: str
    message: str
    notes: tuple[str, ...] = ()
    directions: tuple[Direction, ...] = ()
    entries: tuple[Entry, ...] = ()
    tolerance: float = math.nan
    noise: float = math.nan

    def __bool__(self) -> bool:
        return self.verdict == "right"

    def __str__(self) -> str:
        lines = [f"{self.verdict}: {self.message}", *self.notes]
        if self.verdict != "right" and self.directions:
            worst = max(self.directions, key=lambda d: d.off)
            lines.append(
                f"Along {worst.name} the gradient says {worst.got:.9g}; differences say {worst.expected:.9g}, "
                f"give or take {worst.error:.1g}:"
            )
            rungs = worst.found.rungs
            best = [h for h, _ in rungs].index(worst.found.step)
            for h, residual in rungs[max(0, best - 3) : best + 3]:
                lines.append(f"  step {h:<10.3g} slope {worst.got + residual:.9g}")
        return "\n".join(lines)


def gradcheck(f: Callable[..., Any], x: npt.ArrayLike, *, tolerance: float | None = None) -> GradientCheck:
    """Tell whether the gradient that `f` returns is that of the value that it returns.

    Parameters
    ----------
    f : callable
        ``f(x) -> (value, gradient)``: one real number, and an array shaped as x.
    x : array, float16, bfloat16, float32 or float64
        Where to check, of any shape. f is given arrays of this dtype.
    tolerance : float, optional
        Relative to the size of the slope along random directions. The default follows the coarsest dtype of x,
        of the gradient and of the numbers that the values turn out to be: sqrt(eps) = 1.5e-8 in float64, and
        where rounding leaves fewer digits to differences, cbrt(eps) = 0.005 in float32, 0.1 in float16.

    Returns
    -------
    GradientCheck
        True when it is right; print it. A difference is wrong only where it is beyond the tolerance by several
        times its own error, and right only where tolerance is left after adding that error; between the two, for
        instance where the rounding of a float16 value hides the slope, the verdict is "inconclusive".

    Raises
    ------
    TypeError, ValueError
        x is not an array of floats, f returns something else, or the shapes do not fit.

    Notes
    -----
    An entry that is wrong by less than the tolerance times the size of the whole gradient is not noticed.
    Along a direction v, <grad, v> is compared with central differences of f, extrapolated by Richardson over
    steps from 1/4 of the largest abs(x) (or of 1) downwards; about 150 calls of f.

    Examples
    --------
    >>> import numpy as np
    >>> from lalref.oracle import gradcheck
    >>> x = np.linspace(-1, 1, 5)
    >>> gradcheck(lambda x: ((x**3).mean(), 3 * x**2 / x.size), x).verdict
    'right'
    >>> print(gradcheck(lambda x: ((x**3).mean(), -3 * x**2 / x.size), x).message.split(": ")[0])
    the whole gradient is negated
    """
    given = np.asarray(x)
    if given.dtype.name not in DTYPES:
        raise TypeError(f"x is of dtype {given.dtype}; it can be {', '.join(DTYPES)}")
    notes: list[str] = []
    for attempt in range(ATTEMPTS):
        found, kink = _at(f, given, tolerance, notes)
        if kink is None:
            return found
        where = f", entries {', '.join(map(str, kink))}" if kink else ""
        notes.append(
            f"f has a kink at {'x' if not attempt else 'that point too'}{where}: checked at one nearby."
        )
        moved = given.astype(np.float64) + _size(given) * 2.0**-7 * direction(given.shape, 77 + attempt)
        given = moved.astype(given.dtype)
    return GradientCheck(
        "inconclusive", f"f has kinks at all {ATTEMPTS} points that were tried", tuple(notes)
    )


def _size(x: npt.NDArray[Any]) -> float:
    """The largest number of x, infinite ones and NaN aside."""
    wide = abs(x.astype(np.float64))
    return float(wide.max(initial=0.0, where=np.isfinite(wide))) or 1.0


def _tolerance(eps: float) -> float:
    """Half of the digits; a third of them where rounding leaves no more to differences."""
    return math.sqrt(eps) if eps < 1e-12 else math.cbrt(eps)


def _at(
    f: Callable[..., Any], x: npt.NDArray[Any], tolerance: float | None, notes: list[str]
) -> tuple[GradientCheck, tuple[tuple[int, ...], ...] | None]:
    """Check at one point: what was found, and entries on a kink (None where there is no kink)."""
    watched = Watched(f, x)
    early = _before_any_step(watched)
    if early is not None:
        return dataclasses.replace(early, notes=tuple(notes)), None
    size, eps_x = _size(x), float(ml_dtypes.finfo(x.dtype).eps)
    directions = {f"random direction {i + 1}": direction(x.shape, 1 + i) for i in range(RANDOM)}
    if watched.grad.any():
        directions["the gradient's own signs"] = np.sign(watched.grad) * (1 + abs(direction(x.shape, 9))) / 2
    first = max(size, 1.0) / 4
    last = min(size, 1.0) * (2.0 * eps_x**0.5 if eps_x < 1e-5 else 8 * eps_x)
    v, tiny = directions["random direction 1"], 16 * eps_x * size
    seen = [watched.near(h * v)[0] for h in (first / 3, -first / 3, last, tiny, -tiny, 3 * tiny)]
    eps_value = coarsest([each for each in seen if math.isfinite(each)])
    noise = max(noise_of(watched.phi, v, tiny), 0.3 * eps_value * abs(watched.value))
    if tolerance is None:
        tolerance = _tolerance(max(watched.eps, eps_value))
    found = {name: slope(watched.phi, v, first, last, noise, eps_value) for name, v in directions.items()}
    if any(math.isnan(s.value) for s in found.values()):
        return GradientCheck(
            "inconclusive", "f is finite at x, but hardly anywhere near it", tuple(notes)
        ), None
    told = _told(found, directions, watched.grad)
    worst = max(told, key=lambda d: d.off)
    if not _right(worst, tolerance):  # a kink shows in every direction, but on the lowest rungs only
        found[worst.name] = slope(
            watched.phi, directions[worst.name], first, last, noise, eps_value, whole=True
        )
        told = _told(found, directions, watched.grad)
    for d in told:
        if d.found.bend > tolerance * d.size:
            return GradientCheck("inconclusive", ""), _kinks(watched, directions[d.name], d.found, noise)
    flat = not watched.grad.any() and all(abs(d.expected) <= SAFETY * d.error for d in told)
    wrong = [d for d in told if abs(d.got - d.expected) > tolerance * d.size + SAFETY * d.error]
    unsure = [d for d in told if not _right(d, tolerance) and d not in wrong]
    entries: tuple[Entry, ...] = ()
    if flat:
        verdict = "right" if max(watched.eps, eps_value) < 1e-12 else "inconclusive"
        message = "f does not change along any direction beyond its own rounding, and its gradient is 0"
    elif wrong:
        verdict = "wrong"
        message, entries = _what_is_wrong(watched, told, directions, tolerance, noise)
    elif unsure:
        verdict, worst = "inconclusive", max(unsure, key=lambda d: d.error / d.size)
        message = (
            f"along {worst.name} the slope {worst.expected:.3g} is known to {worst.error:.1g} only, the tolerance is "
            f"{tolerance * worst.size:.1g}: f's values are rounded by about {noise:.1g}. "
            f"The gradient says {worst.got:.3g}; a wider dtype would tell"
        )
    else:
        verdict = "right"
        message = (
            f"the gradient fits the slopes of f along {len(told)} directions to {max(d.off for d in told):.1g} "
            f"of their size (tolerance {tolerance:.2g})"
        )
    manners = watched.manners(tolerance)
    if manners and verdict == "right":
        verdict, message = "wrong", f"{manners.pop(0)} (apart from that, {message})"
    said = (*notes, *(f"{each}." for each in manners))
    return GradientCheck(verdict, message, said, tuple(told), entries, tolerance, noise), None


def _before_any_step(watched: Watched) -> GradientCheck | None:
    """What can be said of the values at x alone."""
    if watched.x.size == 0:
        return GradientCheck("inconclusive", "x has no entries")
    if not math.isfinite(watched.value):
        return GradientCheck("inconclusive", f"f(x) is {watched.value}: nothing can be compared")
    bad = np.argwhere(~np.isfinite(watched.grad))
    if len(bad):
        index = tuple(int(i) for i in bad[0])
        message = (
            f"{len(bad)} entries of the gradient are not finite, the first {watched.grad[index]} at {index}"
        )
        return GradientCheck("wrong", message)
    value, grad = watched.ask(watched.x.copy())
    if value != watched.value:
        told = f"f gives {watched.value!r} and then {value!r} for the same x: fix its random state"
        return GradientCheck("inconclusive", told)
    if not np.array_equal(grad, watched.grad):
        return GradientCheck("wrong", "f returns another gradient when it is called again with the same x")
    return None


def _told(found: dict[str, Slope], directions: dict[str, FloatArray], grad: FloatArray) -> list[Direction]:
    """Put slopes of the residual and what the gradient says together; the size is that along all directions."""
    got = {name: float(np.vdot(grad, v)) for name, v in directions.items()}
    sizes = {name: max(abs(got[name]), abs(got[name] + found[name].value)) for name in found}
    typical = math.sqrt(np.mean([sizes[name] ** 2 for name in found if name.startswith("random")]))
    return [
        Direction(name, got[name] + s.value, got[name], s.error, max(sizes[name], typical), s)
        for name, s in found.items()
    ]


def _right(d: Direction, tolerance: float) -> bool:
    return abs(d.got - d.expected) + d.error <= tolerance * d.size


def _what_is_wrong(
    watched: Watched, told: list[Direction], vectors: dict[str, FloatArray], tolerance: float, noise: float
) -> tuple[str, tuple[Entry, ...]]:
    """In words: one factor for all, or the worst entries by name."""
    worst = max(told, key=lambda d: d.off)
    where = (
        f"along {worst.name} the slope of f is {worst.expected:.6g}, the gradient says {worst.got:.6g} "
        f"(off by {worst.off:.2g} of its size; the tolerance is {tolerance:.2g})"
    )
    expected = np.array([d.expected for d in told])
    factor = float(np.dot([d.got for d in told], expected) / np.dot(expected, expected))
    if all(abs(d.got - factor * d.expected) <= 10 * tolerance * d.size + SAFETY * d.error for d in told):
        whole = {0.0: "zero", -1.0: "negated"}
        near = [word for c, word in whole.items() if abs(factor - c) < max(1e-3, tolerance)]
        return (
            f"the whole gradient is {near[0] if near else f'{factor:.6g} times what it should be'}: {where}",
            (),
        )
    step, v = worst.found.step, vectors[worst.name]

    def off(part: FloatArray) -> float:
        wide, narrow = ((watched.phi(h * part) - watched.phi(-h * part)) / (2 * h) for h in (step, step / 2))
        return abs(narrow + (narrow - wide) / 3)

    threshold = max(tolerance * worst.size, SAFETY * worst.error, 4 * noise / step)
    entries = []
    for index in search(off, v, threshold, most=TOLD, tries=SEARCHES):
        alone = np.zeros_like(v)
        alone[index] = 1.0
        found = slope(watched.phi, alone, 2 * step, step / 4, noise, watched.eps)
        got = float(watched.grad[index])
        entries.append(Entry(index, got + found.value, got))
    if not entries:
        return f"{where}; no single entry stands out", ()
    named = "; ".join(f"{e.index}: expected {e.expected:.6g}, got {e.got:.6g}" for e in entries)
    return f"{where}; wrong entries found: {named}", tuple(entries)


def _kinks(watched: Watched, v: FloatArray, found: Slope, noise: float) -> tuple[tuple[int, ...], ...]:
    """Entries of x that lie on a kink."""
    h = max(found.rungs[-1][0], 40 * noise / found.bend)
    here = watched.phi(np.zeros_like(v))

    def bend(part: FloatArray) -> float:
        return abs(watched.phi(h * part) - 2 * here + watched.phi(-h * part)) / h

    return tuple(search(bend, v, found.bend / 100, most=TOLD, tries=SEARCHES))
