"""A function under `gradcheck`, watched while it is called: what it returns, and how it behaves.

No slope is taken and no verdict given here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lalref.oracle.inputs import FloatArray


class Watched:
    """f at x: every call is given a fresh array, which is looked at afterwards.

    Attributes
    ----------
    value, grad : float, float64 array
        What f returns at x.
    eps : float
        Of the coarser of the dtypes of x and of the gradient.
    wrote : bool
        Whether f wrote to an array that it was given.

    Raises
    ------
    TypeError, ValueError
        f does not return one real number and an array shaped as x.
    """

    def __init__(self, f: Callable[..., Any], x: npt.NDArray[Any]) -> None:
        self.f, self.x = f, x
        self.wide: FloatArray = x.astype(np.float64)
        self.eps = float(ml_dtypes.finfo(x.dtype).eps)
        self.wrote = False
        self.value, self.grad = self.ask(x.copy())

    def ask(self, given: npt.NDArray[Any]) -> tuple[float, FloatArray]:
        """Call f; return value and gradient as float64."""
        before = given.astype(np.float64)
        with np.errstate(all="ignore"):
            found = self.f(given)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise TypeError(f"f returned a {type(found).__name__}; expected a tuple (value, gradient)")
        value, grad = np.asarray(found[0]), np.asarray(found[1])
        if value.size != 1 or value.dtype.kind not in "fiuV":
            raise TypeError(
                f"f returned a value of shape {value.shape} and dtype {value.dtype}; expected one real number"
            )
        if grad.shape != self.x.shape or grad.dtype.kind not in "fiuV":
            raise ValueError(
                f"f returned a gradient of shape {grad.shape} and dtype {grad.dtype}; "
                f"expected real numbers shaped as x, {self.x.shape}"
            )
        self.wrote = self.wrote or not np.array_equal(before, given.astype(np.float64), equal_nan=True)
        if grad.dtype.kind in "fV":
            self.eps = max(self.eps, float(ml_dtypes.finfo(grad.dtype).eps))
        return float(value.reshape(()).astype(np.float64)), grad.astype(np.float64)

    def near(self, displacement: FloatArray) -> tuple[float, float]:
        """The value at a = x + displacement, rounded to the dtype of x, and <grad, a - x>.

        The value is NaN where f raises, as outside of a function's domain.
        """
        a = (self.wide + displacement).astype(self.x.dtype)
        moved = np.where(np.isfinite(self.wide), a.astype(np.float64) - self.wide, 0.0)
        along = float(np.vdot(self.grad, moved))
        try:
            return self.ask(a)[0], along
        except (ArithmeticError, ValueError):
            return math.nan, along

    def phi(self, displacement: FloatArray) -> float:
        """The residual f(a) - <grad, a - x>."""
        value, along = self.near(displacement)
        return value - along

    def manners(self, tolerance: float) -> list[str]:
        """What is wrong with how it behaves: writing to x, or another answer for a view with strides."""
        told = ["f writes to its input x"] if self.wrote else []
        if self.x.ndim:
            spaced = np.full((*self.x.shape[:-1], 2 * self.x.shape[-1]), math.nan, self.x.dtype)
            view = spaced[..., ::2]
            view[...] = self.x
            try:
                value, grad = self.ask(view)
            except Exception as error:
                return [
                    *told,
                    f"f raises {type(error).__name__} for a view of x that is not contiguous: {error}",
                ]
            apart = float(abs(grad - self.grad).max()) > tolerance * float(abs(self.grad).max())
            if apart or not abs(value - self.value) <= tolerance * abs(self.value):
                told.append("f gives another answer for a view of x that is not contiguous")
        return told
