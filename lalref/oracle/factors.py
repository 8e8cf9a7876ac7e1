"""Factors: value or gradient off by a constant, or by a quantity that each case has its own value of.

No fit is needed: the ratio of one wrong answer to the right one is compared with named quantities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lalref.oracle.mistakes import Textbook
from lalref.oracle.mistakes.textbook import Scene
from lalref.oracle.suspects import AGREES, Observed, Suspect, scope_of

Found = tuple[str, str, float]  # name with value, sentence, units


def nice(theta: float) -> Iterator[float]:
    """Numbers that somebody may have written, close to a fitted one."""
    known = [math.sqrt(2), math.sqrt(0.5), math.log(2), math.e, math.pi, 1 / 3, 2 / 3, 1 / 6, 2**0.25]
    rounded = [float(f"{theta:.{digits}g}") for digits in (1, 2, 3, 4)]
    yield from (n for n in rounded + known if n and abs(theta / n - 1) < 1e-5)


def shown(theta: float) -> str:
    return f"{theta:.4g}"


class _Factor(Suspect):
    """The right answer times something."""

    def __init__(self, name: str, sentence: str, of: Callable[[Observed], float], what: str) -> None:
        super().__init__((name,), sentence, Textbook(), Textbook())
        object.__setattr__(self, "of", of)
        object.__setattr__(self, "what", what)

    def value(self, seen: Observed) -> Any:
        factor = self.of(seen) if self.what != "gradient" else 1.0  # type: ignore[attr-defined]
        with np.errstate(all="ignore"):
            return seen.right.value[0] * factor

    def grad(self, seen: Observed) -> Any:
        factor = self.of(seen) if self.what != "value" else 1.0  # type: ignore[attr-defined]
        with np.errstate(all="ignore"):
            return seen.right.grad[0] * factor


def _quantities(seen: Observed) -> Mapping[str, float]:
    """Numbers of a case that a mean may have been divided by, or not."""
    case, o = seen.case, seen.case.all_options
    form = Textbook()
    shape = case.labels.shape
    s = Scene(
        {**case.arguments}, np.float64, shape, case.logits.shape[o["axis"]], case.labels.reshape(-1), None
    )
    s.at = np.indices(shape).reshape(len(shape), -1).T
    g = form.groups(s)
    return {
        "the number of valid windows": float(g.valid.sum()),
        "the number of windows, valid or not": float(form.on_grid(s).sum()),
        "the number of pixels": float(case.labels.size),
        "the number of labelled pixels": float((~g.ignored).sum()),
        "the number of pixels in an image": float(np.prod(shape[1:])),
        "the number of images": float(shape[0]),
        "the number of classes": float(s.C),
        "the sum of the weights": float(g.omega.sum()),
        "the window's number of cells": float(np.prod(s.per_axis("kernel_size"))),
        "the window's width": float(np.max(s.per_axis("kernel_size"))),
        "p": float(o["p"]),
        "sigma": float(o["sigma"] or math.nan),
        "the stride's area": float(np.prod(s.per_axis("stride"))),
        "log 2": math.log(2),
        "the upstream gradient": float(case.grad_output) if np.ndim(case.grad_output) == 0 else math.nan,
    }


def factors(core: Sequence[Observed], wrong: Sequence[Observed]) -> Iterator[Found]:
    """Value, gradient or both are off by a factor that is a constant or has a name."""
    values, grads = any(w.value_wrong for w in wrong), any(w.grad_wrong for w in wrong)
    what = "both" if values and grads else "value" if values else "gradient"
    first = wrong[0]
    ratio = _ratio(first, what)
    if ratio is None:
        return
    quantities = {each.case.name: _quantities(each) for each in core}
    subject = {
        "both": "Your value and gradient are",
        "value": "Your value is",
        "gradient": "Your gradient is",
    }[what]
    for name, of in _named_factors(ratio):

        def factor(seen: Observed, of: Callable[[Mapping[str, float]], float] = of) -> float:
            return of(quantities[seen.case.name])

        at = factor(first)
        if not math.isfinite(at) or at == 0 or abs(at / ratio - 1) > 1e-3:
            continue
        sentence = f"{subject} off by the factor {name}."
        suspect = _Factor(f"{what}-factor={name}", sentence, factor, what)
        if (
            all(suspect.apart(w) <= AGREES for w in wrong[:3])
            and (scope := scope_of(suspect, core)) is not None
        ):
            where_ = f" This is so {scope[0]} only." if scope[0] else ""
            yield suspect.ids[0], sentence + where_, scope[1]


def _ratio(seen: Observed, what: str) -> float | None:
    got, right = (
        (seen.answer.grad, seen.right.grad[0])
        if what == "gradient"
        else (seen.answer.value, seen.right.value[0])
    )
    norm = float((right * right).sum())
    if got.shape != right.shape or not 0 < norm < math.inf or not np.isfinite(got).all():
        return None
    return float((got * right).sum() / norm) or None


def _named_factors(ratio: float) -> Iterator[tuple[str, Callable[[Mapping[str, float]], float]]]:
    for value in (*nice(ratio), ratio):
        yield shown(value), lambda q, value=value: value  # type: ignore[misc]
    names = list(_NAMES)
    powers = {
        "": lambda q: 1.0,
        " to the power 1/p": lambda q: 1 / q["p"],
        ", its square root": lambda q: 0.5,
    }
    for suffix, power in powers.items():
        for a in names:
            yield f"{a}{suffix}", lambda q, a=a, power=power: q[a] ** power(q)  # type: ignore[misc]
            yield f"1 / {a}{suffix}", lambda q, a=a, power=power: q[a] ** -power(q)  # type: ignore[misc]
            for b in names:
                if a != b:
                    yield (
                        f"({a} / {b}){suffix}",
                        lambda q, a=a, b=b, power=power: (q[a] / q[b]) ** power(q),  # type: ignore[misc]
                    )


_NAMES = (
    "the number of valid windows",
    "the number of windows, valid or not",
    "the number of pixels",
    "the number of labelled pixels",
    "the number of pixels in an image",
    "the number of images",
    "the number of classes",
    "the sum of the weights",
    "the window's number of cells",
    "the window's width",
    "p",
    "sigma",
    "the stride's area",
    "log 2",
    "the upstream gradient",
)
