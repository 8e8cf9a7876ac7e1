"""One unknown constant: which value of it reproduces a subject's numbers, as "your sigma is 0.707".

A constant is fitted on one wrong answer, by bracketing and bisection, and then has to hold for all others.
Factors of value and gradient need no fit: they are compared with named quantities of each case. Mistakes
without a constant are `mistakes`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq

from lalref.oracle.factors import Found, factors, nice, shown
from lalref.oracle.mistakes import Textbook
from lalref.oracle.mistakes.tape import Traced, exp, log, where
from lalref.oracle.mistakes.textbook import Groups, Scene
from lalref.oracle.suspects import AGREES, Observed, Suspect, scope_of

FITTED_ON = 2  # wrong answers, one after the other

_WIDE = (1e-3, 1e-2, 0.1, 0.2, 0.35, 0.55, 0.8, 1.0, 1.3, 2.0, 3.2, 5.5, 10.0, 1e2, 1e3)
_TINY = (1e-16, 1e-13, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3, 1e-2, 0.1, 0.3)
_POWERS = (0.1, 0.5, 0.9, 1.2, 1.6, 2.3, 2.8, 3.5, 4.5, 5.5, 7.5, 10.5, 15.5, 21.0, 40.0)


@dataclasses.dataclass(frozen=True)
class Family:
    """Forms of the textbook with a constant in them."""

    name: str
    sentence: str  # {} is the constant
    grid: Any
    make: Callable[[float], Textbook]


def _option(name: str, new: Callable[[Any, float], Any]) -> Callable[[float], Textbook]:
    def make(theta: float) -> Textbook:
        class Fitted(Textbook):
            def options(self, o: dict[str, Any]) -> dict[str, Any]:
                usable = o[name] is not None and o[name] != math.inf
                return {**o, name: new(o[name], theta)} if usable else o

        return Fitted()

    return make


def _piece(name: str, new: Callable[..., Any]) -> Callable[[float], Textbook]:
    """Override one piece: `new(theta, right piece, *arguments)`."""

    def make(theta: float) -> Textbook:
        form = Textbook()
        right = getattr(form, name)
        setattr(form, name, lambda *arguments: new(theta, right, *arguments))
        return form

    return make


def _loss_plus(theta: float, right: Any, ell: Traced, g: Groups, s: Scene) -> Traced:
    return right(ell + theta * g.valid.astype(s.dtype), g, s)  # type: ignore[no-any-return]


def _loss_clamped(theta: float, right: Any, ell: Traced, g: Groups, s: Scene) -> Traced:
    return right(where((ell.value > theta) | ~g.valid, ell, s.dtype(theta)), g, s)  # type: ignore[no-any-return]


def _centre(theta: float, right: Any, offsets: Any, s: Scene) -> Any:
    return np.where((offsets == 0).all(-1), s.dtype(theta), right(offsets, s))


def _log_plus(theta: float, right: Any, z: Traced, s: Scene) -> Traced:
    return log(exp(right(z, s)) + s.dtype(theta))


def _log_clamped(theta: float, right: Any, z: Traced, s: Scene) -> Traced:
    a, least = right(z, s), s.dtype(math.log(theta))
    return where(a.value > least, a, least)


def _merged_plus(theta: float, right: Any, v: Traced, g: Groups, s: Scene) -> Traced:
    return right(v + s.dtype(theta), g, s)  # type: ignore[no-any-return]


def _focal(theta: float, right: Any, z: Traced, g: Groups, s: Scene) -> Traced:
    ell = right(z, g, s)
    return ell * where(ell.value > 0, 1 - exp(-ell), 1) ** theta  # type: ignore[no-any-return]


FAMILIES: tuple[Family, ...] = (
    Family("sigma", "Your sigma is {}.", _WIDE, _option("sigma", lambda _, t: t)),
    Family(
        "sigma-factor",
        "Your sigma is {} times what is asked for.",
        _WIDE,
        _option("sigma", lambda v, t: v * t),
    ),
    Family("p", "Your p is {}.", _POWERS, _option("p", lambda _, t: t)),
    Family(
        "p-plus",
        "Your p is off by {}.",
        (-3.5, -2.4, -1.5, -0.6, -0.1, 0.1, 0.6, 1.5, 2.6, 6.0),
        _option("p", lambda v, t: max(v + t, 0.1)),
    ),
    Family("p-factor", "Your p is {} times what is asked for.", _WIDE, _option("p", lambda v, t: v * t)),
    Family(
        "label-smoothing",
        "Your label_smoothing is {}.",
        (-1e-3, 1e-3, 0.03, 0.07, 0.14, 0.22, 0.35, 0.6, 0.95, 1.05),
        _option("label_smoothing", lambda _, t: t),
    ),
    Family(
        "label-smoothing-factor",
        "Your label_smoothing is {} times what is asked for.",
        _WIDE,
        _option("label_smoothing", lambda v, t: v * t),
    ),
    Family(
        "temperature",
        "Your logits are multiplied by {} before softmax.",
        _WIDE,
        _piece("log_softmax", lambda t, right, z, s: right(z * s.dtype(t), s)),
    ),
    Family("log-plus", "Your logarithm is that of softmax + {}.", _TINY, _piece("log_softmax", _log_plus)),
    Family(
        "probability-clamp",
        "Your probabilities are clamped to at least {}.",
        _TINY,
        _piece("log_softmax", _log_clamped),
    ),
    Family(
        "merged-plus",
        "Your logarithm, in probability space, is that of the merged probability + {}.",
        _TINY,
        _piece("negative_log", _merged_plus),
    ),
    Family(
        "divisor-plus",
        "Your divisor is D + {}.",
        _TINY,
        _piece("divisor", lambda t, right, w, members, s: right(w, members, s) + s.dtype(t)),
    ),
    Family("loss-plus", "Your window losses are {} too large.", _TINY, _piece("minkowski", _loss_plus)),
    Family(
        "loss-clamp",
        "Your window losses are clamped to at least {}.",
        _TINY,
        _piece("minkowski", _loss_clamped),
    ),
    Family("centre-weight", "Your window's centre weighs {}, not 1.", _WIDE, _piece("cells", _centre)),
    Family(
        "distance-exponent",
        "Your weight is exp(-½ (d/sigma)^{}).",
        _POWERS[:11],
        _piece("weight", lambda t, right, d, sigma: np.exp(-((d / sigma) ** d.dtype.type(t)) / 2)),
    ),
    Family(
        "focal",
        "Your window losses carry a focal factor (1 - P)^{}.",
        _POWERS[:11],
        _piece("cross_entropy", _focal),
    ),
    Family(
        "weight-exponent",
        "Your weights are raised to the power {}.",
        (-2.1, -1.2, -0.6, -0.1, 0.3, 0.7, 1.3, 1.7, 2.4, 3.6, 8.0),
        _piece("omega", lambda t, right, s: np.where(right(s) > 0, right(s), 1) ** t * (right(s) > 0)),
    ),
)


def fitted(core: Sequence[Observed], wrong: Sequence[Observed]) -> Found | None:
    """Return the first constant that all answers agree with, as (name=value, sentence, units)."""
    for factor in factors(core, wrong):
        return factor
    for family in FAMILIES:
        if (found := _fit(family, core, wrong)) is not None:
            return found
    return None


def _fit(family: Family, core: Sequence[Observed], wrong: Sequence[Observed]) -> Found | None:
    right = Textbook()
    finite = [
        w
        for w in wrong
        if np.isfinite(w.answer.grad).all()
        and np.isfinite(w.answer.value).all()
        and (w.answer.value.shape, w.answer.grad.shape) == (w.right.value.shape[1:], w.right.grad.shape[1:])
    ]
    values = any(w.value_wrong for w in wrong)
    grads = any(w.grad_wrong for w in wrong)
    for which in ("own", "loss", "gradient"):
        if (
            (which == "gradient" and values)
            or (which == "loss" and not values)
            or (which == "own" and not (values and grads))
        ):
            continue

        def suspect(theta: float, which: str = which) -> Suspect:
            form = family.make(theta)
            name = f"{family.name}={shown(theta)}"
            sentence = family.sentence.format(shown(theta))
            if which == "loss":
                sentence = f"In the loss alone: {sentence}"
            if which == "gradient":
                sentence = f"In the gradient alone: {sentence}"
            backward, forward = (right if which == "loss" else form), (right if which == "gradient" else form)
            return Suspect((name,), sentence, forward, backward)

        for at in _spread(finite):
            for theta in _roots(suspect, at, family.grid):
                for constant in (*nice(theta), theta):
                    candidate = suspect(constant)
                    if all(candidate.apart(w) <= AGREES for w in wrong[:3]):
                        scope = scope_of(candidate, core)
                        if scope is not None:
                            where_ = f" This is so {scope[0]} only." if scope[0] else ""
                            return candidate.ids[0], candidate.sentence + where_, scope[1]
    return None


def _spread(wrong: Sequence[Observed]) -> list[Observed]:
    """A few wrong answers, small ones, of unlike options."""
    found: dict[frozenset[str], Observed] = {}
    for each in wrong:
        found.setdefault(frozenset(each.case.asks_for()), each)
    return list(found.values())[:FITTED_ON]


def _possible(values: bool, grads: bool) -> tuple[str, ...]:
    """Where a constant can be wrong, by what is wrong."""
    return (("own", "loss") if grads else ("loss",)) if values else ("gradient",)


def _roots(suspect: Callable[[float], Suspect], at: Observed, grid: Any) -> Iterator[float]:
    """Constants that give the answer `at`, by the sign of what is left along its error."""
    value_error = at.answer.value - at.right.value[0]
    grad_error = at.answer.grad - at.right.grad[0]
    use_value = at.value_wrong
    error = value_error if use_value else grad_error
    norm = float((error**2).sum())
    if not 0 < norm < math.inf:
        return

    def left(theta: float) -> float:
        made = suspect(float(theta))
        got = np.asarray(made.value(at) if use_value else made.grad(at), np.float64)
        goal = at.answer.value if use_value else at.answer.grad
        return float((error * (got - goal)).sum() / norm) if got.shape == goal.shape else math.nan

    points = np.unique(grid)
    lefts = [left(t) for t in points]
    if np.ptp(lefts) == 0:  # the constant plays no part in this case
        return
    for low, high, f_low, f_high in zip(points, points[1:], lefts, lefts[1:], strict=False):
        if math.isfinite(f_low) and math.isfinite(f_high):
            if f_low == 0:
                yield float(low)
            elif f_low * f_high < 0:
                yield float(brentq(left, low, high, xtol=1e-300, rtol=4e-15, maxiter=200))
