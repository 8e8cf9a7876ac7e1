"""The catalogue: single mistakes that people plausibly make in this loss, each run over a textbook.

`textbook` is the right loss in small dense matrices, cut into pieces; `tape` derives its gradients; each
mistake is a piece overridden. `CATALOGUE` has them all, `EQUIVALENT` has the changes that provably change
nothing. What a verdict is, and what an honest error is, may not come in.
"""

import dataclasses
from collections.abc import Mapping

from lalref.oracle.mistakes.backward import BACKWARD
from lalref.oracle.mistakes.distances import DISTANCES
from lalref.oracle.mistakes.entropy import ENTROPY
from lalref.oracle.mistakes.entry import Mistake
from lalref.oracle.mistakes.equivalent import EQUIVALENT, Equivalent
from lalref.oracle.mistakes.forms_backward import BACKWARD_FORMS
from lalref.oracle.mistakes.forms_loss import LOSS_FORMS
from lalref.oracle.mistakes.forms_minkowski import MINKOWSKI_FORMS
from lalref.oracle.mistakes.forms_pooling import POOLING_FORMS
from lalref.oracle.mistakes.members import MEMBERS
from lalref.oracle.mistakes.minkowski import MINKOWSKI
from lalref.oracle.mistakes.reading import READING
from lalref.oracle.mistakes.state import STATE
from lalref.oracle.mistakes.textbook import Textbook, evaluate, evaluated
from lalref.oracle.mistakes.upstream import UPSTREAM
from lalref.oracle.mistakes.windows import WINDOWS

_ENTRIES = (
    *WINDOWS,
    *DISTANCES,
    *MEMBERS,
    *ENTROPY,
    *MINKOWSKI,
    *READING,
    *BACKWARD,
    *UPSTREAM,
    *STATE,
)
_FORMS = {**POOLING_FORMS, **LOSS_FORMS, **MINKOWSKI_FORMS, **BACKWARD_FORMS}

CATALOGUE: tuple[Mistake, ...] = tuple(
    dataclasses.replace(mistake, variants=_FORMS.get(mistake.id, ())) for mistake in _ENTRIES
)
"""Every mistake, by stage."""

BY_ID: Mapping[str, Mistake] = {mistake.id: mistake for mistake in CATALOGUE}

__all__ = ["BY_ID", "CATALOGUE", "EQUIVALENT", "Equivalent", "Mistake", "Textbook", "evaluate", "evaluated"]
