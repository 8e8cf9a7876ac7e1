"""Two mistakes at once: one in the loss and one in the gradient, or two in the same half.

A first mistake is one that has the values, or some of the numbers; a second is tried on top of it. Nothing
is named here that does not have every number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lalref.oracle.mistakes import CATALOGUE, Mistake, Textbook
from lalref.oracle.suspects import AGREES, Observed, Suspect

PARTNERS = 6  # first mistakes that are tried with all others


def mixed(core: Sequence[Observed], wrong: Sequence[Observed]) -> Iterator[Suspect]:
    """One mistake that has all values, and another in the formulas of the gradient."""
    value_wrong = [each for each in wrong if each.value_wrong]
    if not value_wrong:
        return
    for loss in CATALOGUE:
        for kind in loss.forms if loss.forward else ():
            form = kind()
            suspect = Suspect((loss.id,), loss.sentence, form, form, loss.dtypes)
            if all(suspect.apart(each, "value") <= AGREES for each in (*value_wrong[:3], *core)):
                yield from in_the_gradient(loss, form, suspect.values)


def in_the_gradient(loss: Mistake, forward: Textbook, values: dict[object, object]) -> Iterator[Suspect]:
    """A mistake in the loss, and every other in the formulas of its gradient."""
    for other in CATALOGUE:
        if other.stage == "state" or other.id == loss.id:
            continue
        for kind in other.forms:
            if not other.forward and (both := _joined(kind, type(forward))):
                yield _pair(loss, other, forward, both, values)
            yield _pair(loss, other, forward, kind(), values)


def joint(firsts: Sequence[Suspect], values_right: bool, thorough: bool) -> Iterator[Suspect]:
    """Two mistakes, both in the loss or both in the gradient; `firsts` have some of the numbers."""
    eligible = [m for m in CATALOGUE if m.stage != "state" and m.forward != values_right]
    whole = [each.forward for each in firsts if each.forward is each.backward and each.forward is not None]
    first_forms = dict.fromkeys(type(form) for form in whole)
    pairs = [(mistake, form) for form in first_forms for mistake in eligible if form in mistake.forms][
        :PARTNERS
    ]
    if not pairs and thorough:
        pairs = [(mistake, mistake.form) for mistake in eligible]
    tried = set()
    for one, form in pairs:
        for two in eligible:
            for kind in two.forms if one.id != two.id else ():
                for first, second in ((form, kind), (kind, form)):
                    again = (second, first) in tried and not (_pieces(form) & _pieces(kind))
                    both = None if (first, second) in tried or again else _joined(first, second)
                    tried.add((first, second))
                    if both:
                        yield _pair(one, two, both, both)


def _joined(first: type[Textbook], second: type[Textbook]) -> Textbook | None:
    """Both in one, the first outermost; None where one contains the other."""
    if issubclass(first, second) or issubclass(second, first):
        return None
    try:
        both: Textbook = type("Pair", (first, second), {})()
    except TypeError:  # no order in which both could be asked
        return None
    return both


def _pieces(form: type[Textbook]) -> set[str]:
    own = [kind for kind in form.__mro__ if kind not in (Textbook, object)]
    return {name for kind in own for name in vars(kind) if not name.startswith("__")}


def _pair(
    one: Mistake,
    two: Mistake,
    forward: Textbook,
    backward: Textbook,
    values: dict[object, object] | None = None,
) -> Suspect:
    sentence = f"{one.sentence} And: {two.sentence}"
    dtypes = tuple(d for d in one.dtypes if d in two.dtypes)
    return Suspect((one.id, two.id), sentence, forward, backward, dtypes, {} if values is None else values)
