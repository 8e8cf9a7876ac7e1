"""What can be said of a mistake without a name: its stage, what switches it on, the smallest input it shows on.

Whether a gradient at least belongs to its own loss is told here too. No mistake is named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lalref.oracle.case import OPTIONS, Case
from lalref.oracle.differences import direction
from lalref.oracle.isolate import Ask, first_stage
from lalref.oracle.suspects import Observed

STEPS = (1e-3, 5e-4)  # of the central differences, extrapolated
CONSISTENT = 1e-4  # relative: a gradient this near to differences of its loss belongs to it
TRIED = 4  # wrong cases whose loss is differenced


def whereabouts(core: Sequence[Observed], ask: Ask | None) -> str:
    """Say with what option it is wrong, or in which stage the first difference is, and where it is smallest."""
    wrong = [each for each in core if each.wrong]
    told = [*_alike(wrong), _half(core), _switch(core) or first_stage(core, ask)]
    smallest = min(wrong, key=lambda e: (e.case.logits.size, len(e.case.asks_for())))
    options = "".join(f", {k}={v!r}" for k, v in smallest.case.options.items())
    what = "value" if smallest.value_wrong else "gradient"
    shape = " by ".join(map(str, smallest.case.logits.shape))
    told.append(f'The smallest case with a wrong {what} is "{smallest.case.name}" (logits {shape}{options}).')
    return " ".join(part for part in told if part)


def _alike(wrong: Sequence[Observed]) -> list[str]:
    """What is the same number in every wrong answer, as of a function that is not written yet."""
    told = []
    for what, name in (("value", "value"), ("grad", "gradient")):
        numbers = [getattr(e.answer, what).ravel() for e in wrong if getattr(e, f"{what}_wrong")]
        if len(numbers) > 1 and (one := np.unique(np.concatenate(numbers))).size == 1:
            told.append(f"Every wrong {name} is {one[0]:g}.")
    return told


def _half(core: Sequence[Observed]) -> str:
    """Whether all values or all gradients are right."""
    if not any(each.value_wrong for each in core):
        return "All values are right: the mistake is in the backward."
    if not any(each.grad_wrong for each in core):
        return "All gradients are right: the mistake is in the value alone."
    return ""


def _switch(core: Sequence[Observed]) -> str:
    """The option without which all is right; of several the one with which least is right."""
    live = [each for each in core if each.case.stages]
    found: dict[str, float] = {}
    for option in (*OPTIONS, "pixel_weight", "grad_output"):
        asked = [each for each in live if option in each.case.asks_for()]
        others = [each for each in live if option not in each.case.asks_for()]
        if asked and others and not any(e.wrong for e in others):
            found[option] = sum(e.wrong for e in asked) / len(asked)
    if found and (most := max(found, key=found.__getitem__)) and found[most] > 0:
        return f"It is wrong only where {most} is not at its default."
    void = [each for each in live if _ignored(each.case)]
    if void and any(e.wrong for e in void) and not any(e.wrong for e in live if not _ignored(e.case)):
        return "It is wrong only where pixels are ignored."
    return ""


def _ignored(case: Case) -> bool:
    ignored = case.all_options["ignore_index"]
    return bool(np.isin(case.labels, [] if ignored is None else ignored).any())


def consistency(core: Sequence[Observed], ask: Ask) -> bool | None:
    """Whether the subject's gradient is that of its own loss, along one direction a case; None if it can't be told."""
    wrong = _differenced(core)
    if wrong and not any(each.value_wrong for each in core):
        return False  # its own loss is the right one
    own = [_belongs(each.case, ask) for each in wrong[:: max(1, len(wrong) // TRIED)][:TRIED]]
    return None if not own or None in own else all(own)


def whose(core: Sequence[Observed], consistent: bool | None) -> str:
    """Say what `consistency` found."""
    if consistent and any(each.value_wrong for each in _differenced(core)):
        return "Your gradient matches your forward, but your forward is another loss."
    return "Your gradient is not that of your own loss." if consistent is False else ""


def _differenced(core: Sequence[Observed]) -> list[Observed]:
    """Wrong answers whose loss can be differenced."""
    wrong = [e for e in core if e.wrong and np.isfinite(e.answer.grad).all() and e.answer.grad.any()]
    return [e for e in wrong if e.dtype == "float64" and not np.ndim(e.case.grad_output)]


def _belongs(case: Case, ask: Ask) -> bool | None:
    """Whether the slope along one direction is the gradient's; None where it raises or is no number."""
    v = direction(case.logits.shape, 0)
    nudged = case.logits + 0.01 * np.sin(np.arange(case.logits.size)).reshape(case.logits.shape)  # off ties

    def value(step: float) -> float:
        moved = dataclasses.replace(case, logits=nudged + step * v)
        return float(ask(moved, "float64").value.sum())

    try:
        slopes = [(value(h) - value(-h)) / (2 * h) for h in STEPS]
        slope = (4 * slopes[1] - slopes[0]) / 3 * float(case.grad_output)
        grad = ask(dataclasses.replace(case, logits=nudged), "float64").grad
    except Exception:  # a subject's own: it has been told already
        return None
    size = float(abs(grad).sum())
    return bool(abs(slope - float((grad * v).sum())) <= CONSISTENT * size) if np.isfinite(slope) else None
