"""A mistake that has most of the wrong numbers, and not all: told with what it leaves unexplained.

People who make one mistake differ in what becomes of a kernel of 1, a lonely pixel or a stride, and some make
two. What is said is a count, so that it is true whatever the rest is. What explains everything goes before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from lalref.oracle.suspects import AGREES, Observed, Suspect, all_suspects

MOST = 0.5  # of the cases that are wrong or that the mistake would make wrong
EVIDENCE = 2  # cases with finite wrong numbers that are the mistake's
PROBES = 8  # wrong answers by which suspects are ranked
LISTED = 6  # cases named among those that are left


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A suspect, and how far it goes.

    Attributes
    ----------
    suspect : Suspect
    what : {"both", "value"}
        What of each answer was compared.
    its, left : list of Observed
        Wrong answers that are the suspect's; those that are otherwise wrong, or right where it would not be.
    units : float
        The largest difference among `its`.
    """

    suspect: Suspect
    what: str
    its: list[Observed]
    left: list[Observed]
    units: float

    @property
    def share(self) -> float:
        """Of all that it would change."""
        return len(self.its) / max(len(self.its) + len(self.left), 1)

    def sentence(self) -> str:
        """What can be said for certain."""
        of = len(self.its) + len(self.left)
        whose = "your numbers are" if self.what == "both" else "your value is"
        told = (
            f"{self.suspect.sentence} So it is in {len(self.its)} of {of} cases, where {whose} this mistake's"
        )
        if self.what == "value":
            told += "; your gradient is not always this loss's, nor always the right one"
        if not self.left:
            return told + "."
        names = [each.case.name for each in self.left]
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        return f"{told}; something else is in: {', '.join(names[:LISTED])}{more}."


def one_dtype(core: Sequence[Observed]) -> list[Observed]:
    """The answers of the finest dtype: each case counts once."""
    finest = next((d for d in ("float64", "float32") if any(each.dtype == d for each in core)), None)
    return [each for each in core if finest is None or each.dtype == finest]


def probes(wrong: Sequence[Observed]) -> list[Observed]:
    """A few telling answers, first those with an idle stage: there one of two mistakes is seen alone."""
    found: dict[tuple[object, ...], Observed] = {}
    for each in sorted(wrong, key=lambda e: (len(e.case.stages), e.case.logits.size)):
        if each.telling:
            found.setdefault((each.case.stages, *sorted(each.case.asks_for())), each)
    rest = [each for each in wrong if each.telling and each not in found.values()]
    several = list(found.values())
    half = PROBES // 2
    spread = several[half:] + rest
    return several[:half] + spread[:: max(1, len(spread) // half)][:half]


def ranked(
    core: Sequence[Observed], suspects: Iterable[Suspect] | None = None, what: str = "both"
) -> list[tuple[int, Suspect]]:
    """Suspects (by default all of them) that have some of the probed numbers, with how many; the best first."""
    wrong = [each for each in one_dtype(core) if each.wrong]
    probed = probes([each for each in wrong if what == "both" or each.value_wrong])
    found = []
    for suspect in all_suspects(wrong) if suspects is None else suspects:
        if what == "value" and suspect.forward is not suspect.backward:
            continue  # the same value once more
        hits = sum(suspect.apart(each, what) <= AGREES for each in probed)
        if hits:
            found.append((hits, suspect))
    return sorted(found, key=lambda pair: -pair[0])


def parts(core: Sequence[Observed], order: Iterable[tuple[int, Suspect]], what: str) -> list[Part]:
    """How far the best of `ranked` go, the furthest first; none of those that don't go far enough."""
    found = []
    for _, suspect in order:
        its, left, units = [], [], 0.0
        for each in one_dtype(core):
            off = suspect.apart(each, what)
            wrong = each.wrong if what == "both" else each.value_wrong
            if off > AGREES:
                left.append(each)
            elif wrong and each.telling:
                its.append(each)
                units = max(units, off)
        part = Part(suspect, what, its, left, units)
        if len(its) >= EVIDENCE and part.share >= MOST:
            found.append(part)
    return sorted(found, key=lambda part: (-part.share, part.suspect.forward is not part.suspect.backward))
