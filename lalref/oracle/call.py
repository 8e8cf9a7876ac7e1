"""One call of a subject as NumPy arrays, and its answer: what `subjects`, `frameworks` and `command` share.

Nothing is asked here, and nothing judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle.inputs import FloatArray


class UsageError(ValueError):
    """The subject can't be asked: the message says what came and what is expected."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a subject returned, and whether it wrote to what it was given."""

    value: FloatArray
    grad: FloatArray
    changed: tuple[str, ...] = ()  # names of the inputs that were written to


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One case in one dtype, as NumPy arrays that a framework makes its own from.

    Attributes
    ----------
    function : callable
    logits, labels : array
    options : dict
        Those that the subject takes; pixel_weight among them as an array.
    grad_output : float or array
    takes_grad_output : bool
    layout : str
        How the arrays lie in memory, one of `LAYOUTS`; empty: contiguous.
    memo : dict
        What a framework remembers from call to call, such as compiled programs.
    """

    function: Callable[..., Any]
    logits: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    options: dict[str, Any]
    grad_output: Any
    takes_grad_output: bool
    layout: str
    memo: dict[Any, Any]

    def given(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name."""
        arrays = {"logits": self.logits, "labels": self.labels}
        return arrays | {k: v for k, v in self.options.items() if isinstance(v, np.ndarray)}


def _every_second(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    larger = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
    view = larger[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


def _reversed(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.flip(np.flip(a).copy())


def _class_innermost(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Axis 1 last in memory: channels-last for logits, columns before rows for labels."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 2 else a


LAYOUTS: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "every second element": _every_second,
    "reversed": _reversed,
    "class axis innermost": _class_innermost,
}


def came(thing: Any) -> str:
    """What a thing is, for a message."""
    return f"a {type(thing).__name__}" + (f" of {len(thing)}" if isinstance(thing, list | tuple) else "")


def as_float64(array: Any, what: str) -> FloatArray:
    """The numbers of a returned array; UsageError where it holds anything else."""
    try:
        numbers = np.asarray(array)
        if numbers.dtype.kind in "cSU":  # astype would drop imaginary parts, and read words as numbers
            raise TypeError(f"dtype {numbers.dtype}")
        return numbers.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"returned {came(array)} as the {what} ({error}); expected an array of real numbers"
        ) from error


def same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    """Whether two arrays hold the same numbers; NaN is NaN."""
    return bool(((a == b) | ((a != a) & (b != b))).all())
