"""Mistakes of memory: right once, wrong when it matters how often, in what order or on what memory it is called."""

from __future__ import annotations

from typing import Any

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.textbook import Array, Scene, Textbook

STATE: list[Mistake] = []
mistake = collector(STATE)


@mistake(
    "state",
    "x ← x − max x",
    "Taking the maximum out in place saves an array.",
    "unslothai/unsloth#5002",
)
class OverwritesTheLogits(Textbook):
    """Your loss overwrites the caller's logits."""

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        answer = super().__call__(logits, labels, **options)
        logits -= logits.max(axis=options.get("axis", 1), keepdims=True)
        return answer


@mistake(
    "state",
    "y ← 0 where ignored",
    "Ignored labels are set to a valid class in place, so that one-hot encoding works.",
    "PaddlePaddle/PaddleSeg#2360",
)
class OverwritesTheLabels(Textbook):
    """Your loss overwrites the caller's labels where they are ignored."""

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        answer = super().__call__(logits, labels, **options)
        none = options.get("ignore_index", 255) is None
        labels[np.isin(labels, [] if none else options.get("ignore_index", 255))] = 0
        return answer


@mistake(
    "state",
    "x̄ ← x̄ + x̄ of the calls before",
    "A gradient buffer that is added to and never cleared.",
    "karpathy/micrograd#102",
)
class GradientAccumulates(Textbook):
    """Your gradient is added to that of the calls before: a buffer is not cleared."""

    def __init__(self) -> None:
        self.buffers: dict[Any, Array] = {}

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        value, grad = super().__call__(logits, labels, **options)
        key = (logits.shape, logits.dtype.name)
        self.buffers[key] = grad + self.buffers.get(key, 0)
        return value, self.buffers[key].copy()


@mistake(
    "state",
    "w of the first call",
    "A cache of the window's weights without sigma and kernel_size in its key.",
)
class WeightsOfTheFirstCall(Textbook):
    """Your window's weights are those of the first call: a cache does not notice other sigmas and kernels."""

    def __init__(self) -> None:
        self.first: dict[str, Any] = {}

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        self.first = self.first or {k: o[k] for k in ("sigma", "kernel_size")}
        return {**o, **self.first}


@mistake(
    "state",
    "y of the call before, if the shape is the same",
    "Labels cached by shape, as one-hot tensors are.",
)
class LabelsOfTheCallBefore(Textbook):
    """Your labels are those of an earlier call with the same shape: a cache does not look at their content."""

    def __init__(self) -> None:
        self.seen: dict[Any, Array] = {}

    def labels(self, labels: Array, s: Scene) -> Array:
        y: Array = self.seen.setdefault((labels.shape, s.C), super().labels(labels, s))
        return y


@mistake(
    "state",
    "reads the buffer as if its strides were those of a fresh array",
    "Raw pointers know no strides.",
    "MrNeRF/optimized-fused-ssim#1",
)
class AssumesContiguousMemory(Textbook):
    """Your loss reads memory as if every array were contiguous: a transposed or sliced view is misread."""

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        def raw(a: Array) -> Array:
            base = a
            while isinstance(base.base, np.ndarray) and base.base.dtype == a.dtype:
                base = base.base
            if a.flags.c_contiguous or base.size < a.size:
                return a
            # in the order of its memory
            return np.lib.stride_tricks.as_strided(base, (base.size,), (a.itemsize,))[: a.size].reshape(
                a.shape
            )

        return super().__call__(raw(logits), raw(labels), **options)
