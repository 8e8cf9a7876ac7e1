"""Mistakes in stage 1: who is in a group, what the sum is divided by, and where windows stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook

MEMBERS: list[Mistake] = []
mistake = collector(MEMBERS)

# ---- membership


@mistake(
    "membership", "G_p = the whole window", "The selection by class, the point of the loss, is forgotten."
)
class ReadsEveryClass(Textbook):
    """Your window averages all its pixels, of whatever class, ignored ones too."""

    def joins(self, q: Array, s: Scene) -> Array:
        return np.ones(q.shape, bool)


@mistake("membership", "G_p = the window without ignored pixels", "Only void pixels are masked out.")
class ReadsEveryClassButVoid(Textbook):
    """Your window averages pixels of every class; only ignored ones are left out."""

    def joins(self, q: Array, s: Scene) -> Array:
        return ~self.ignored(s)[q]


@mistake("membership", "y_q ≠ y_p", "The comparison is turned round; the centre is kept.")
class ReadsOtherClasses(Textbook):
    """Your window averages the pixels of the other classes: the comparison is turned round."""

    def joins(self, q: Array, s: Scene) -> Array:
        centre = q == np.arange(len(s.y))[:, None]
        return (~super().joins(q, s) & ~self.ignored(s)[q]) | centre


@mistake(
    "membership",
    "y_q = y_p or y_q ignored",
    "Void pixels are treated as a wildcard that fits every class.",
)
class VoidJoinsEveryGroup(Textbook):
    """Your groups take in ignored pixels: void matches every class."""

    def joins(self, q: Array, s: Scene) -> Array:
        return super().joins(q, s) | self.ignored(s)[q]


@mistake(
    "membership",
    "y = 0 where ignored; windows there still do not count",
    "Labels are clamped so that one-hot encoding works, and the mask is applied to the loss alone.",
    "PaddlePaddle/PaddleSeg#1899",
)
class VoidPoolsAsClassZero(Textbook):
    """Your ignored pixels join the groups of class 0: their label was replaced before pooling."""

    def joins(self, q: Array, s: Scene) -> Array:
        y = np.where(self.ignored(s), 0, s.y)
        return y[q] == y[:, None]


@mistake(
    "membership",
    "y = 0 where ignored, everywhere",
    "Void is counted as background.",
    "facebookresearch/MaskFormer#57",
)
class VoidIsClassZero(Textbook):
    """Your ignored pixels count as class 0, in groups and in the loss."""

    def ignored(self, s: Scene) -> Array:
        s.y = np.where(super().ignored(s), 0, s.y)
        return np.zeros(s.y.shape, bool)


@mistake("membership", "ω_q = 0 ⇒ q ∉ G_p", "Weight 0 is taken to mean that a pixel does not exist.")
class WeightlessPixelsAreNoNeighbours(Textbook):
    """Your groups leave out pixels of weight 0; only their windows should go."""

    def joins(self, q: Array, s: Scene) -> Array:
        return super().joins(q, s) & (self.omega(s) > 0)[q]


@mistake("membership", "w_pq ω_q", "Weights are applied wherever a sum over pixels is taken.")
class WeightsPoolToo(Textbook):
    """Your class and pixel weights also weigh the neighbours inside a window."""

    def matrices(self, q: Array, member: Array, cells: Array, s: Scene) -> tuple[Array, Array]:
        w, members = super().matrices(q, member, cells, s)
        return w * self.omega(s), members


@mistake(
    "membership",
    "argmax_c x_q[c] = y_p, or q = p",
    "Fig. 2 of the paper can be read as selecting vectors by the class that they predict.",
)
class SelectsByPrediction(Textbook):
    """Your window selects neighbours by the class that they predict, not by their label."""

    def joins(self, q: Array, s: Scene) -> Array:
        centre = q == np.arange(len(s.y))[:, None]
        return ((s.x.argmax(1)[q] == s.y[:, None]) & ~self.ignored(s)[q]) | centre


# ---- divisor


@mistake(
    "divisor",
    "D = Σ w over all k² cells",
    "The kernel is normalised once, before masking; avg_pool2d with count_include_pad does the same.",
    "apache/tvm#1144",
)
class DividesByTheWindowArea(Textbook):
    """Your sum is divided by the weights of the whole window, members or not, inside the image or not."""

    def divisor(self, w: Array, members: Array, s: Scene) -> Array:
        cells = self.cells(self.offsets(s), s)
        return np.full(len(s.y), len(cells) if s.o["normalize"] == "count" else cells.sum(), s.dtype)


@mistake(
    "divisor",
    "D = Σ w over the cells inside the image",
    "Other classes are set to 0 and not left out, so they still count below.",
)
class CountsOtherClasses(Textbook):
    """Your divisor counts the window's pixels of other classes too: they were zeroed, not left out."""

    def groups(self, s: Scene) -> Groups:
        g = super().groups(s)
        offsets = self.offsets(s)
        q = self.neighbours(offsets, s)
        D = self.divisor(*self.matrices(q, q >= 0, self.cells(offsets, s), s), s)
        g.D = np.where(g.valid, D, 1).astype(s.dtype)
        return g


@mistake("divisor", 'D = Σ w under normalize="count" too', "An option that is accepted and never used.")
class IgnoresNormalize(Textbook):
    """Your divisor is the sum of the weights even with normalize="count"."""

    def divisor(self, w: Array, members: Array, s: Scene) -> Array:
        return w.sum(1)


@mistake("divisor", "D = |G_p| always", "The paper's text can be read as dividing by the number of pixels.")
class AlwaysCounts(Textbook):
    """Your divisor is the number of pixels in the group, not the sum of their weights."""

    def divisor(self, w: Array, members: Array, s: Scene) -> Array:
        return members.sum(1)


@mistake("divisor", "D = 1", "A convolution with a Gaussian kernel sums; the division was forgotten.")
class NoDivisor(Textbook):
    """Your window sums and does not average: nothing is divided by D."""

    def divisor(self, w: Array, members: Array, s: Scene) -> Array:
        return np.ones(len(s.y), s.dtype)


@mistake("divisor", "z = (1/D²) Σ w x", "The weights were normalised, and the sum divided once more.")
class DividesTwice(Textbook):
    """Your weighted sum is divided by D twice."""

    def divisor(self, w: Array, members: Array, s: Scene) -> Array:
        return super().divisor(w, members, s) ** 2


# ---- stride


@mistake("stride", "p = s // 2, s // 2 + s, …", "Cells of a coarser grid are thought of by their centres.")
class GridStartsHalfAStrideIn(Textbook):
    """Your windows stand at stride // 2, stride // 2 + stride, and so on, not at 0, stride, ..."""

    def on_grid(self, s: Scene) -> Array:
        stride = s.per_axis("stride")
        return ((s.at[:, 1:] - stride // 2) % stride == 0).all(1)


@mistake("stride", "p < s · (n // s)", "n // s windows along an axis, where there are ceil(n / s).")
class DropsTheLastWindows(Textbook):
    """Your grid lacks its last windows where the image is no multiple of the stride."""

    def on_grid(self, s: Scene) -> Array:
        stride = s.per_axis("stride")
        full = np.maximum(s.size // stride, 1) * stride
        return super().on_grid(s) & (s.at[:, 1:] < full).all(1)


@mistake("stride", "s = 1", "An option that is accepted and never used.", "deeplearning4j/libnd4j#793")
class IgnoresStride(Textbook):
    """Your windows stand on every pixel: stride is not used."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "stride": 1}


@mistake("stride", "q = p + s δ", "Logits and labels are subsampled first, and pooled afterwards.")
class SubsamplesFirst(Textbook):
    """Your windows step over pixels: the image was subsampled by the stride before it was pooled."""

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        return super().neighbours(offsets * s.per_axis("stride"), s)


@mistake("stride", "q on the stride grid", "Pixels that are no centre of a window are thought not to matter.")
class ReadsTheGridOnly(Textbook):
    """Your windows read only pixels that are centres themselves; those between are never read."""

    def joins(self, q: Array, s: Scene) -> Array:
        return super().joins(q, s) & self.on_grid(s)[q]
