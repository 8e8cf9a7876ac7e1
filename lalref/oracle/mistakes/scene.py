"""What the pieces of the textbook hand to each other: inputs, and the matrices of stage 1. No formula here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # np.ndarray of the working dtype; NumPy's type stubs lose track of it
Vjp = Callable[[Array], Array]


@dataclasses.dataclass
class Scene:
    """Inputs as every piece finds them: options by name, labels and positions of all pixels in one list."""

    o: dict[str, Any]
    dtype: Any
    shape: tuple[int, ...]  # (N, *S)
    C: int
    y: Array  # (Q,)
    at: Array  # (Q, 1 + axes), image and position
    x: Array = None  # (Q, C), 0 in ignored pixels

    @property
    def size(self) -> Array:
        """(axes,) extent of an image."""
        return np.array(self.shape[1:], int)

    def per_axis(self, name: str) -> Array:
        """kernel_size or stride, (axes,)."""
        value = self.o[name]
        axes = len(self.shape) - 1
        return np.array([value] * axes if np.ndim(value) == 0 else value, int)


@dataclasses.dataclass
class Groups:
    """Stage 1's matrices: windows by pixels."""

    w: Array  # (Q, Q), weights, 0 outside the group
    members: Array  # (Q, Q), how often a pixel is a member: 0 or 1, unless there is a mistake
    D: Array  # (Q,)
    valid: Array  # (Q,)
    omega: Array  # (Q,), 0 where not valid
    ignored: Array  # (Q,)
