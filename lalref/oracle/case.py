"""What a case is: the inputs and options of one call of the loss, with the reason they are there.

No case is made here (that is the table in `cases`), and no right answer either (`golden`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.loss import LocallyAdaptiveLoss
from lalref.oracle.inputs import FloatArray

OPTIONS: Mapping[str, Any] = {
    "kernel_size": 5,
    "sigma": 1.0,
    "stride": 1,
    "space": "logits",
    "normalize": "weights",
    "p": 5.0,
    "label_smoothing": 0.0,
    "ignore_index": 255,
    "class_weight": None,
    "reduction": "mean",
    "axis": 1,
    "empty": "zero",
}
"""The loss's options and their defaults, as the specification gives them."""

ARGUMENTS: Mapping[str, Any] = {**OPTIONS, "pixel_weight": None, "grad_output": 1.0}
"""The options, and the two arguments that belong to a call."""

SHARED_SHAPE = (2, 3, 6, 7)  # of the logits of most cases
STAGES = ("pooling", "cross-entropy", "minkowski")
QUICK_TOO = ("kernel-3", "stride-2", "sum", "none", "channels-last")
"""Names of the cases by which a quick run notices that kernel_size, stride, reduction or axis is ignored."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One named input of the loss.

    Attributes
    ----------
    name, reason : str
        What it is called, and one sentence that says what it is for.
    logits : float64 array
        Every number exact in float16 and bfloat16. `unread` marks the pixels' entries that nothing may read.
    labels : integer array
    options : mapping
        The options that are not at their default.
    pixel_weight : float64 array or None
    grad_output : float or float64 array
        The upstream gradient: an array only with reduction="none".
    feature : str
        The extended feature that the case probes; empty for a core case.
    stages : tuple of str
        The stages in which a mistake could show.
    accurate : bool
        True where the answer is beyond the textbook algorithm (losses far below eps, probabilities that
        underflow): the relative accuracy of equations (17) and (18) is asked for instead.
    unread : boolean array or None
        Where logits are NaN for the subject; truth is worked out with zeros there.
    """

    name: str
    reason: str
    logits: FloatArray
    labels: npt.NDArray[Any]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pixel_weight: FloatArray | None = None
    grad_output: float | FloatArray = 1.0
    feature: str = ""
    stages: tuple[str, ...] = STAGES
    accurate: bool = False
    unread: npt.NDArray[np.bool_] | None = None

    @property
    def core(self) -> bool:
        """True when the case takes part in every verdict."""
        return not self.feature

    @property
    def quick(self) -> bool:
        """True for the core cases of a quick run: of one shape, and one case each for the options below."""
        if self.name in QUICK_TOO:
            return True
        o = self.all_options
        plain = (o["kernel_size"], o["stride"], o["axis"], o["reduction"]) == (5, 1, 1, "mean")
        return self.core and plain and self.logits.shape == SHARED_SHAPE

    @property
    def all_options(self) -> dict[str, Any]:
        """Every option by name, defaults filled in."""
        return {**OPTIONS, **self.options}

    @property
    def arguments(self) -> dict[str, Any]:
        """Every keyword argument of the call: the options, pixel_weight and grad_output."""
        return {**self.all_options, "pixel_weight": self.pixel_weight, "grad_output": self.grad_output}

    @property
    def given_logits(self) -> FloatArray:
        """The logits as a subject meets them: NaN where nothing may read."""
        return self.logits if self.unread is None else np.where(self.unread, math.nan, self.logits)

    def refitted(self, fixed: Mapping[str, Any]) -> Case | None:
        """Return the case with the options `fixed` in place of its own, or None where they don't go with it.

        For a subject that has options built in: void pixels get the new label, the class axis is moved.
        """
        own, options = self.all_options, {**self.all_options, **fixed}
        labels, axis, new_axis = self.labels, own["axis"], options["axis"]
        try:
            loss, axes = LocallyAdaptiveLoss(**options), labels.ndim - 1
            radii, _ = loss.radii(axes), loss.strides(axes)
        except (ValueError, TypeError):
            return None
        if new_axis == 0 or not -self.logits.ndim < new_axis < self.logits.ndim:
            return None
        weights = options["class_weight"]
        if weights is not None and len(weights) != self.logits.shape[axis]:
            return None
        if options["ignore_index"] != own["ignore_index"]:
            void = np.isin(labels, () if own["ignore_index"] is None else own["ignore_index"])
            new = options["ignore_index"]
            if isinstance(new, int):
                labels = np.where(void, labels.dtype.type(new), labels)
            elif void.any():
                return None
        idle = set() if any(radii) else {"pooling"}
        if options["p"] == 1 or options["reduction"] == "none":
            idle.add("minkowski")
        kept = {k: v for k, v in options.items() if v != OPTIONS[k]}
        return dataclasses.replace(
            self,
            name=f"{self.name}, " + ", ".join(f"{k}={v}" for k, v in fixed.items()),
            logits=np.ascontiguousarray(np.moveaxis(self.logits, axis, new_axis)),
            labels=labels,
            options=kept,
            stages=tuple(s for s in self.stages if s not in idle),
        )

    def asks_for(self) -> set[str]:
        """Names of the arguments that the case does not leave at their default."""
        given = set(self.options)
        if self.pixel_weight is not None:
            given.add("pixel_weight")
        if np.ndim(self.grad_output) or self.grad_output != 1.0:
            given.add("grad_output")
        return given
