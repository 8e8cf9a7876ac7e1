"""What came of one case: the errors of one answer in units, and the worst answer's numbers.

Nothing is decided or measured here; what a whole verdict is made of is `report`'s affair.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lalref.oracle.case import Case
from lalref.oracle.inputs import FloatArray


@dataclasses.dataclass(frozen=True)
class Result:
    """One case in one dtype.

    Attributes
    ----------
    name, reason, dtype : str
        Of the case.
    feature : str
        The extended feature that it probes; empty for a core case.
    outcome : {"holds", "differs", "unsupported"}
    value_units, grad_units : float
        The largest error; inf where there is no number to compare.
    note : str
        What it raised, or what else is wrong.
    """

    name: str
    reason: str
    dtype: str
    feature: str
    outcome: str
    value_units: float
    grad_units: float
    note: str = ""

    @property
    def units(self) -> float:
        """The larger of the two."""
        return max(self.value_units, self.grad_units)

    def decides(self, strict: bool) -> bool:
        """Whether the verdict depends on it.

        Parameters
        ----------
        strict : bool
            Whether extended features decide too.

        Returns
        -------
        bool
        """
        return strict or not self.feature


@dataclasses.dataclass(frozen=True, eq=False)
class Worst:
    """All numbers of the worst answer.

    Attributes
    ----------
    case : Case
        `name`, `reason`, `options` and the arrays that were given.
    dtype : str
    what : {"value", "gradient"}
    expected, got : float64 array
        The right numbers and the subject's, shaped as the value or the gradient.
    units : float64 array of that shape
        How far off each entry is, in error units (20).
    """

    case: Case
    dtype: str
    what: str
    expected: FloatArray
    got: FloatArray
    units: FloatArray

    @property
    def most(self) -> float:
        """Units of the worst entry."""
        return float(self.units.max(initial=0))

    @property
    def index(self) -> tuple[int, ...]:
        """Where the worst entry is."""
        return tuple(int(i) for i in np.unravel_index(int(self.units.argmax()), self.units.shape))
