"""Other forms of mistakes in stage 1: what people write differently where a sentence leaves it open.

What becomes of a lonely pixel, of a kernel of 1, of logits under ignored labels, at a seam. Only forms of
entries in `windows`, `distances` and `members` may come in, each as the change that sets it apart.
"""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import dataclasses

import numpy as np

from lalref.oracle.mistakes import members, windows
from lalref.oracle.mistakes.entry import Variant, variants_into
from lalref.oracle.mistakes.tape import Traced
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook

POOLING_FORMS: dict[str, tuple[Variant, ...]] = {}
also = variants_into(POOLING_FORMS)

# ---- the window


@also("kernel-size-as-radius", "r_a = kernel_size, also for a kernel of 1")
class RadiusOfOne(Textbook):
    def offsets(self, s: Scene) -> Array:
        return self.box(-s.per_axis("kernel_size"), s.per_axis("kernel_size"))


@also("round-window", "Σ_a (p_a − q_a)² ≤ (r + ½)²")
class RoundAboutTheCells(Textbook):
    def offsets(self, s: Scene) -> Array:
        offsets = super().offsets(s)
        return offsets[(offsets**2).sum(1) <= (s.per_axis("kernel_size").max(initial=0) / 2) ** 2]


@also("round-window", "|p_a − q_a| = r on every axis is left out")
class WithoutItsCorners(Textbook):
    def offsets(self, s: Scene) -> Array:
        offsets, radius = super().offsets(s), (s.per_axis("kernel_size") - 1) // 2
        return offsets[~((abs(offsets) == radius) & (radius > 0)).all(1)]


@also("window-not-centred", "the centred kernel's weights, laid over p_a − 2 r_a ≤ q_a ≤ p_a")
class KernelLaidAside(Textbook):
    def neighbours(self, offsets: Array, s: Scene) -> Array:
        return super().neighbours(offsets - (s.per_axis("kernel_size") - 1) // 2, s)


@also("leaks-into-the-next-row", "rows are checked, columns are not")
class RowsChecked(windows.LeaksIntoTheNextRow):
    def neighbours(self, offsets: Array, s: Scene) -> Array:
        rows = s.at[:, None, 1:-1] + offsets[:, :-1]
        inside = ((rows >= 0) & (rows < s.size[:-1])).all(-1)
        return np.where(inside, super().neighbours(offsets, s), -1)


@also("leaks-into-the-next-row", "only the ends of the whole batch are checked")
class OneBuffer(Textbook):
    def neighbours(self, offsets: Array, s: Scene) -> Array:
        q = self.index(s.at[:, None, :1], s.at[:, None, 1:] + offsets, s)
        return np.where((q >= 0) & (q < len(s.y)), q, -1)


@also("leaks-into-the-next-row", "rows are checked, and the ends of the whole batch")
class RowsOfOneBuffer(OneBuffer):
    def neighbours(self, offsets: Array, s: Scene) -> Array:
        rows = s.at[:, None, 1:-1] + offsets[:, :-1]
        inside = ((rows >= 0) & (rows < s.size[:-1])).all(-1)
        return np.where(inside, super().neighbours(offsets, s), -1)


@also("leaks-into-the-next-image", "the first row of an image is checked")
class LeaksForwardOnly(windows.LeaksIntoTheNextImage):
    def neighbours(self, offsets: Array, s: Scene) -> Array:
        above = (s.at[:, None, 1:2] + offsets[:, :1] < 0).any(-1)
        return np.where(above, -1, super().neighbours(offsets, s))


@also("mirrors-the-border", "mirrored without repeating the border, as mode='reflect' does")
class Reflects(Textbook):
    def neighbours(self, offsets: Array, s: Scene) -> Array:
        period = np.maximum(2 * s.size - 2, 1)
        there = (s.at[:, None, 1:] + offsets) % period
        return self.index(s.at[:, None, :1], np.minimum(there, period - there), s)


@also("no-windows-at-the-border", "the stride's grid starts at the first window that fits")
class GridStartsInside(Textbook):
    def on_grid(self, s: Scene) -> Array:
        radius = (s.per_axis("kernel_size") - 1) // 2
        fits = (s.at[:, 1:] >= radius) & (s.at[:, 1:] < s.size - radius)
        return (fits & ((s.at[:, 1:] - radius) % s.per_axis("stride") == 0)).all(1)


@also("leaves-out-the-centre", "z = 0 for a pixel without neighbours")
class LonelyIsZero(Textbook):
    def matrices(self, q: Array, member: Array, cells: Array, s: Scene) -> tuple[Array, Array]:
        return super().matrices(q, member & (q != np.arange(len(s.y))[:, None]), cells, s)


@also("leaves-out-the-centre", "no window for a pixel without neighbours")
class LonelyIsDropped(LonelyIsZero):
    def groups(self, s: Scene) -> Groups:
        g = super().groups(s)
        valid = g.valid & g.members.any(1)
        return dataclasses.replace(g, valid=valid, omega=np.where(valid, g.omega, 0).astype(s.dtype))


@also("counts-the-centre-twice", "twice above the fraction, once below")
class CentreTwiceAbove(Textbook):
    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return super().pool(x, dataclasses.replace(g, w=g.w + np.diag(np.diag(g.w))), s)


# ---- the distance


@also("gaussian-density", "w = exp(−½ (d/σ)²) / (2π σ²)")
class DensityOfThePlane(Textbook):
    def weight(self, d: Array, sigma: float) -> Array:
        return super().weight(d, sigma) / d.dtype.type(2 * np.pi * sigma**2)


@also("weight-grows-with-distance", "w = 1 − exp(−½ (d/σ)²), 0 at the centre")
class CentreWeighsNothing(Textbook):
    def weight(self, d: Array, sigma: float) -> Array:
        return 1 - super().weight(d, sigma)


# ---- who is in a group


class _VoidIsRead(Textbook):
    """Logits under ignored labels are read as they are, and get their gradient."""

    def hidden(self, s: Scene) -> Array:
        return np.zeros((len(s.y), 1), bool)


class _VoidIsReadOneWay(_VoidIsRead):
    """They are read, and their gradient is set to 0."""

    def finish(self, x_bar: Array, g: Groups, s: Scene) -> Array:
        return np.where(g.ignored[:, None], 0, x_bar)


class _OthersAndVoid(members.ReadsOtherClasses):
    def joins(self, q: Array, s: Scene) -> Array:
        centre = q == np.arange(len(s.y))[:, None]
        return (s.y[q] != s.y[:, None]) | centre


for name, form in (
    ("reads-every-class", members.ReadsEveryClass),
    ("void-joins-every-group", members.VoidJoinsEveryGroup),
    ("void-pools-as-class-zero", members.VoidPoolsAsClassZero),
    ("reads-other-classes", _OthersAndVoid),
):
    also(name, "ignored logits are read as they are")(type("Read", (_VoidIsRead, form), {}))
    also(name, "ignored logits are read, and get no gradient")(type("OneWay", (_VoidIsReadOneWay, form), {}))


@also("reads-other-classes", "y_q ≠ y_p, without the centre")
class OthersWithoutTheCentre(Textbook):
    def joins(self, q: Array, s: Scene) -> Array:
        return ~super().joins(q, s) & ~self.ignored(s)[q]


@also("selects-by-prediction", "argmax_c x_q[c] = argmax_c x_p[c]")
class PredictsTheSame(Textbook):
    def joins(self, q: Array, s: Scene) -> Array:
        predicted = s.x.argmax(1)
        return (predicted[q] == predicted[:, None]) & ~self.ignored(s)[q]


@also("selects-by-prediction", "argmax_c x_q[c] = y_p, the centre like every other")
class PredictsTheLabel(Textbook):
    def joins(self, q: Array, s: Scene) -> Array:
        return (s.x.argmax(1)[q] == s.y[:, None]) & ~self.ignored(s)[q]


@also("weights-pool-too", "above the fraction only")
class WeightsPoolAbove(Textbook):
    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return super().pool(x, dataclasses.replace(g, w=g.w * self.omega(s)), s)


# ---- divisor and stride


@also("counts-other-classes", "D = Σ w over the labelled cells inside the image")
class CountsLabelledClasses(Textbook):
    def groups(self, s: Scene) -> Groups:
        g, offsets = super().groups(s), self.offsets(s)
        q = self.neighbours(offsets, s)
        labelled = (q >= 0) & ~g.ignored[np.maximum(q, 0)]
        D = self.divisor(*self.matrices(q, labelled, self.cells(offsets, s), s), s)
        return dataclasses.replace(g, D=np.where(g.valid, D, 1).astype(s.dtype))


@also("grid-starts-half-a-stride-in", "a window beyond the last pixel stands on it")
class GridKeepsItsSize(Textbook):
    def on_grid(self, s: Scene) -> Array:
        on = np.ones(len(s.y), bool)
        for a, (n, stride) in enumerate(zip(s.size, s.per_axis("stride"), strict=True)):
            on &= np.isin(s.at[:, 1 + a], np.minimum(np.arange(0, n, stride) + stride // 2, n - 1))
        return on


@also("drops-the-last-windows", "no window at all where the stride is larger than the image")
class NoWindowInASmallImage(Textbook):
    def on_grid(self, s: Scene) -> Array:
        stride = s.per_axis("stride")
        return super().on_grid(s) & (s.at[:, 1:] < s.size // stride * stride).all(1)
