"""Mistakes in reading the inputs: layout of memory, dtypes, options."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.tape import Traced
from lalref.oracle.mistakes.textbook import Array, Scene, Textbook

READING: list[Mistake] = []
mistake = collector(READING)

# ---- layout


@mistake(
    "layout",
    "logits.reshape(-1, C) of (N, C, H, W)",
    "view(-1, C) needs a permute before it, and runs without one.",
    "irfanICMLL/structure_knowledge_distillation#11",
)
class ViewWithoutPermute(Textbook):
    """Your logits are flattened to (-1, C) without moving the class axis last, which mixes pixels and classes."""

    def layout(self, shape: tuple[int, ...], axis: int) -> Array:
        return np.arange(math.prod(shape)).reshape(-1, shape[axis])


@mistake(
    "layout", "axis = 1 whatever is asked for", "A buffer is read in the order that its author is used to."
)
class ChannelsLastReadAsFirst(Textbook):
    """Your axis=-1 is not used: memory with channels last is read as if they came first."""

    def layout(self, shape: tuple[int, ...], axis: int) -> Array:
        first = np.moveaxis(np.empty(shape, np.uint8), axis, 1).shape
        return super().layout(first, 1)


@mistake(
    "layout",
    "logits (N, C, W, H) read as (N, C, H, W)",
    "Images are (width, height) in some libraries and (row, column) in others.",
    "tpfister/caffe-heatmap#13",
)
class HeightAndWidthSwapped(Textbook):
    """Your logits are read with height and width exchanged."""

    def layout(self, shape: tuple[int, ...], axis: int) -> Array:
        first = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1)  # (N, *S, C)
        turned = np.moveaxis(first.reshape(first.shape[0], *first.shape[-2:0:-1], -1), 1, -2)
        return turned.reshape(-1, shape[axis]) if len(shape) > 3 else first.reshape(-1, shape[axis])


@mistake(
    "layout", "labels (N, W, H) read as (N, H, W)", "Masks come transposed out of MATLAB and Julia files."
)
class LabelsTransposed(Textbook):
    """Your labels are read column by column where they are stored row by row."""

    def labels(self, labels: Array, s: Scene) -> Array:
        turned = labels.reshape(labels.shape[0], *labels.shape[:0:-1])
        return (
            np.ascontiguousarray(turned.transpose(0, *range(turned.ndim - 1, 0, -1))).reshape(-1).astype(int)
        )


@mistake("layout", "y of image n + 1 for image n", "A batch is reversed or rolled on one side only.")
class LabelsOfAnotherImage(Textbook):
    """Your labels belong to the next image of the batch."""

    def labels(self, labels: Array, s: Scene) -> Array:
        return np.roll(labels, -1, axis=0).reshape(-1).astype(int)


# ---- dtype


@mistake(
    "dtype",
    "all arithmetic in float32",
    "A float32 constant or cast in the middle; everything after it has seven digits.",
    dtypes=("float64",),
)
class SinglePrecisionInside(Textbook):
    """Your loss is worked out in float32 (or with float32 constants) though the logits are float64."""

    def precision(self, dtype: Any) -> Any:
        return np.float32


@mistake(
    "dtype",
    "ℓ rounded to float16",
    "Autocast, or a cast somewhere in the forward.",
)
class HalfPrecisionInside(Textbook):
    """Your window losses are held in float16."""

    def halved(self, ell: Traced) -> Traced:
        """Through float16 and back."""
        with np.errstate(over="ignore"):
            return Traced(ell.value.astype(np.float16).astype(ell.value.dtype), (ell, lambda g: g))

    def cross_entropy(self, z: Traced, g: Any, s: Scene) -> Traced:
        return self.halved(super().cross_entropy(z, g, s))

    def negative_log(self, v: Traced, g: Any, s: Scene) -> Traced:
        return self.halved(super().negative_log(v, g, s))


@mistake(
    "dtype",
    "S and B summed one by one in float16",
    "A running sum that is declared in the type of its terms: what is small beside it is lost.",
    "chainer/chainer#6702",
)
class AccumulatesInHalf(Textbook):
    """Your sums over the windows are accumulated in float16."""

    def summed(self, terms: Array) -> Array:
        """Term after term, each step rounded."""
        return np.cumsum(terms.astype(np.float16), dtype=np.float16)[-1].astype(terms.dtype)

    def power_sum(self, r: Traced, p: float, g: Any, s: Scene) -> Traced:
        terms = r**p * g.omega
        return Traced(
            self.summed(terms.value), (terms, lambda g_out: np.broadcast_to(g_out, terms.value.shape))
        )

    def base(self, g: Any, s: Scene) -> Array:
        return self.summed(g.omega) if s.o["reduction"] == "mean" else s.dtype(1)


@mistake(
    "dtype",
    "labels as int8: 255 becomes −1",
    "A byte is signed by default in C, Java and torch.int8.",
    "meetps/pytorch-semseg#91",
)
class LabelsAsSignedBytes(Textbook):
    """Your labels are cast to int8, so that 255 becomes -1: ignored pixels count as the last class."""

    def labels(self, labels: Array, s: Scene) -> Array:
        y = labels.reshape(-1).astype(np.int8).astype(int)
        return np.where(y == -1, s.C - 1, y)


@mistake("dtype", "labels as uint8: −100 becomes 156", "Masks are uint8, until ignore_index is negative.")
class LabelsAsUnsignedBytes(Textbook):
    """Your labels are cast to uint8, so that a negative ignore_index no longer matches any."""

    def labels(self, labels: Array, s: Scene) -> Array:
        return labels.reshape(-1).astype(np.uint8).astype(int)


# ---- options


@mistake("option", "ignore_index = 255", "The data set's void label is written into the code.")
class AlwaysIgnores255(Textbook):
    """Your loss ignores label 255, whatever ignore_index is."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "ignore_index": 255}


@mistake(
    "option", "every y outside [0, C) is ignored, and nothing else", "A range check in place of ignore_index."
)
class IgnoresLabelsOutOfRange(Textbook):
    """Your loss ignores labels outside 0 to C - 1 and not ignore_index, which may be a valid class."""

    def ignored(self, s: Scene) -> Array:
        return (s.y < 0) | (s.y >= s.C)


@mistake("option", "label 0 is ignored too", "'reduce_zero_label', or background left out of a loss.")
class BackgroundIgnored(Textbook):
    """Your loss also ignores class 0, as if it were background."""

    def ignored(self, s: Scene) -> Array:
        return super().ignored(s) | (s.y == 0)


@mistake("option", "σ = 1", "An option that is accepted and never used.")
class IgnoresSigma(Textbook):
    """Your sigma is always 1 pixel: the option is not used."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "sigma": 1.0}


@mistake("option", "kernel_size = 5", "An option that is accepted and never used.", "ChsHub/SSIM-PIL#3")
class IgnoresKernelSize(Textbook):
    """Your window is always 5 by 5: kernel_size is not used."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "kernel_size": 5}
