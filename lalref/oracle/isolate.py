"""The first stage in which a subject without a known mistake differs, by asking its smallest wrong case again.

With reduction="none" an answer is that of stages 1 and 2 alone, and at kernel_size=1 that of stage 2. A subject
without these options is asked at p=1, and where it has none at all, cases in which pixels have no neighbours say what
can be said. No mistake is named here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lalref.oracle import golden
from lalref.oracle.call import Answer
from lalref.oracle.case import Case
from lalref.oracle.subjects import Subject
from lalref.oracle.suspects import Observed

Ask = Callable[[Case, str], Answer]
ONE, TWO, THREE = "stage 1, pooling", "stage 2, cross-entropy", "stage 3, Minkowski pooling"


def first_stage(core: Sequence[Observed], ask: Ask | None) -> str:
    """Say in which stage the first difference is, as far as that can be told; of values before gradients."""
    values = any(each.value_wrong for each in core)
    wrong = [each for each in core if (each.value_wrong if values else each.grad_wrong)]
    at = min(wrong, key=_plainness)

    def right(**options: object) -> bool | None:
        """Whether it is right there with these options; None where it can't be asked."""
        case = at.case.refitted(options)
        if ask is None or case is None or not _serves(ask, case, core):
            return None
        try:
            found = Observed(case, at.dtype, ask(case, at.dtype), golden.make(case))
        except Exception:  # a subject's own
            return None
        return not (found.value_wrong if values else found.grad_wrong)

    rest = (
        ("how inputs and options are read",)
        if values
        else ("how weights enter", "what the gradient ends with")
    )
    what = "window losses" if values else "gradients of the window losses"
    where = f'In the case "{at.case.name}"'
    if (losses := right(reduction="none")) is not None:
        if losses:
            return f"{where} the {what} are right: {THREE}."
        alone = right(reduction="none", kernel_size=1)
        if alone:
            return f"{where} the {what} are wrong, and right at kernel_size=1: {ONE}."
        if alone is None:
            return f"{where} the {what} are wrong: {_either(ONE, TWO, *rest)}."
        return f"{where} the {what} are wrong even at kernel_size=1: {_either(TWO, *rest)}."
    lonely, plain = right(kernel_size=1), right(p=1.0)
    if lonely and plain:
        return f"{where} it is wrong only as long as both neighbours and p play a part."
    if lonely:
        return f"{where} it is right at kernel_size=1: {ONE}."
    if plain:
        return f"{where} it is right at p=1: {THREE}."
    both = right(kernel_size=1, p=1.0)
    if both:
        return f"{where} it is right at kernel_size=1 and p=1, and with neither alone: {ONE}, and {THREE}."
    if both is False:
        mean = "the mean over the windows"
        return f"{where} it is wrong even at kernel_size=1 and p=1: {_either(TWO, *rest, mean)}."
    return _by_inputs(core)


def _by_inputs(core: Sequence[Observed]) -> str:
    """What cases without neighbours say, of a subject without options that is wrong in most of the others."""
    lonely = [e for e in core if "minkowski" in e.case.stages and "pooling" not in e.case.stages]
    pooled = [e for e in core if "pooling" in e.case.stages]
    if lonely and not any(e.wrong for e in lonely) and 2 * sum(e.wrong for e in pooled) > len(pooled):
        return f"Where no pixel has a neighbour of its class it is right, which points to {ONE}."
    return ""


def _either(*parts: str) -> str:
    return f"{', '.join(parts[:-1])}, or {parts[-1]}"


def _plainness(each: Observed) -> tuple[bool, bool, bool, int, int]:
    """What makes a wrong answer a good one to ask about: a loss that is not 0, finite numbers, few of them."""
    empty = not each.right.value[0].any()
    return each.dtype != "float64", empty, not each.telling, each.case.logits.size, len(each.case.options)


def _serves(ask: Ask, case: Case, core: Sequence[Observed]) -> bool:
    """Whether the subject takes all options that the case needs."""
    if isinstance(ask, Subject):
        return not ask.lacks(case)
    return case.asks_for() <= set().union(*(each.case.asks_for() for each in core))
