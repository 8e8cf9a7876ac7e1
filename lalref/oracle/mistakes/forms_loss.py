"""Other forms of mistakes in reading and in stage 2: what people write differently.

Only forms of entries in `reading` and `entropy` may come in, each as the change that sets it apart.
"""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import dataclasses
import math

import numpy as np

from lalref.oracle.mistakes import entropy, reading
from lalref.oracle.mistakes.entry import Variant, variants_into
from lalref.oracle.mistakes.tape import Traced, column, exp, log, where
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook, Vjp

LOSS_FORMS: dict[str, tuple[Variant, ...]] = {}
also = variants_into(LOSS_FORMS)

# ---- reading


@also("height-and-width-swapped", "the other way round: (N, C, H, W) read as (N, C, W, H)")
class WidthAndHeightSwapped(Textbook):
    def layout(self, shape: tuple[int, ...], axis: int) -> Array:
        first = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1)  # (N, *S, C)
        return (
            np.swapaxes(first, 1, -2).reshape(-1, shape[axis])
            if len(shape) > 3
            else super().layout(shape, axis)
        )


@also("labels-transposed", "the other way round: y_k of the transposed image")
class LabelsReadAcross(Textbook):
    def labels(self, labels: Array, s: Scene) -> Array:
        return (
            np.swapaxes(labels, 1, -1).reshape(-1).astype(int)
            if labels.ndim > 2
            else super().labels(labels, s)
        )


@also("labels-as-signed-bytes", "−1 indexes the last class, and groups with itself")
class MinusOneIsLast(Textbook):
    def labels(self, labels: Array, s: Scene) -> Array:
        return labels.reshape(-1).astype(np.int8).astype(int)

    def classes(self, s: Scene) -> Array:
        return super().classes(_wrapped(s))

    def class_weight(self, s: Scene) -> Array:
        return super().class_weight(_wrapped(s))

    def own(self, v: Traced, s: Scene) -> Traced:
        return super().own(v, _wrapped(s))


def _wrapped(s: Scene) -> Scene:
    """Labels as indices that count from the end where they are negative."""
    return dataclasses.replace(s, y=np.where(s.y < 0, s.y + s.C, s.y))


class _HiddenInMemory(Textbook):
    """Logits under ignored labels are set to 0 where they lie, before they are misread."""

    def hidden(self, s: Scene) -> Array:
        axis = s.o["axis"] % (len(s.shape) + 1)
        shape = (*s.shape[:axis], s.C, *s.shape[axis:])
        cells = np.zeros(math.prod(shape), bool)
        cells[Textbook().layout(shape, axis)] = self.ignored(s)[:, None]
        return cells[self.layout(shape, axis)]


for name, read, told in (
    ("view-without-permute", reading.ViewWithoutPermute, ""),
    ("channels-last-read-as-first", reading.ChannelsLastReadAsFirst, ""),
    ("height-and-width-swapped", reading.HeightAndWidthSwapped, ""),
    ("height-and-width-swapped", WidthAndHeightSwapped, "the other way round, "),
):
    also(name, f"{told}ignored logits set to 0 before")(type("Hidden", (_HiddenInMemory, read), {}))


class _OutOfRange(Textbook):
    """Where an index is out of range, its class is another: the first, or the last."""

    last = False

    def classes(self, s: Scene) -> Array:
        y = np.where((s.y < 0) | (s.y >= s.C), s.C - 1 if self.last else 0, s.y)
        return super().classes(dataclasses.replace(s, y=y))


for name, cast in (
    ("labels-as-unsigned-bytes", reading.LabelsAsUnsignedBytes),
    ("always-ignores255", reading.AlwaysIgnores255),
):
    also(name, "an index out of range is that of class 0")(type("First", (_OutOfRange, cast), {}))
    also(name, "an index out of range is that of the last class")(
        type("Last", (_OutOfRange, cast), {"last": True})
    )


@also("half-precision-inside", "their gradients too")
class HalfPrecisionBack(reading.HalfPrecisionInside):
    def halved(self, ell: Traced) -> Traced:
        def narrow(v: Array) -> Array:
            with np.errstate(over="ignore"):
                return v.astype(np.float16).astype(v.dtype)

        return Traced(narrow(ell.value), (ell, narrow))


# ---- space


@also("pools-the-losses", "in both spaces")
class PoolsTheLossesOfBothSpaces(entropy.AverageOfLogarithms, entropy.PoolsTheLosses):
    pass


# ---- cross-entropy


@also("softmax-twice", "z = (1/D) Σ w softmax(x)")
class SoftmaxBeforePooling(Textbook):
    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return super().pool(exp(self.log_softmax(x, s)) if s.o["space"] == "logits" else x, g, s)

    def probability(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return super().probability(exp(self.log_softmax(x, s)), g, s)


class _DividedEverywhere(Textbook):
    def groups(self, s: Scene) -> Groups:
        g = super().groups(s)
        D = self.divisor(g.w, g.members, s)
        return dataclasses.replace(g, D=np.where(D > 0, D, 1).astype(s.dtype))


class _OverOneImage(entropy.SoftmaxOverPixels):
    def rows(self, s: Scene) -> Array:
        return s.at[:, 0]


class _OverAColumn(entropy.SoftmaxOverPixels):
    def rows(self, s: Scene) -> Array:
        others = np.delete(s.at, 1, axis=1) if s.at.shape[1] > 1 else s.at
        return np.unique(others, axis=0, return_inverse=True)[1]


for over, rows in (("last", entropy.SoftmaxOverPixels), ("first", _OverAColumn), ("image", _OverOneImage)):
    told = {"last": "a row of pixels", "first": "a column of pixels", "image": "all pixels of an image"}[over]
    if over != "last":
        also("softmax-over-pixels", f"softmax over {told}")(rows)
    also("softmax-over-pixels", f"softmax over {told}, z divided off the grid too")(
        type("Everywhere", (_DividedEverywhere, rows), {})
    )


@also("exp-without-the-maximum", "log(exp(z) / Σ exp(z))")
class QuotientWithoutTheMaximum(Textbook):
    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        return log(exp(z) / column(exp(z).sum(1)))


@also("log-of-softmax-plus-epsilon", "log(v + 1e-7) of the merged probability")
class EpsilonAfterPooling(entropy.LogOfSoftmaxPlusEpsilon):
    def probability(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return Textbook().probability(x, g, s)

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        return super().negative_log(v + s.dtype(1e-7), g, s)


@also("clamped-probability", "log(max(v, 1e-7)) of the merged probability")
class ClampedAfterPooling(entropy.ClampedProbability):
    def probability(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return Textbook().probability(x, g, s)

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        return super().negative_log(where(v.value > 1e-7, v, s.dtype(1e-7)), g, s)


@also("no-softmax", "in probability space −(1/D) Σ w x_q[y], raised to at least 0")
class NoSoftmaxInBothSpaces(entropy.NoSoftmax):
    def probability(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return column(self.own(x, s))

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        return -where(v.value < 0, v, 0).sum(1)


@also("probability-without-logarithm", "ℓ = Σ t (1 − P)")
class ProbabilityOfEachClass(entropy.ProbabilityWithoutLogarithm):
    def cross_entropy(self, z: Traced, g: Groups, s: Scene) -> Traced:
        return (self.target(s) * (1 - exp(self.log_softmax(z, s)))).sum(1)


class _FocalInBothSpaces(entropy.FocalFactor):
    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        ell = super().negative_log(v, g, s)
        return ell * self.factor(ell)


class _FocalDetached(entropy.FocalFactor):
    def factor(self, ell: Traced) -> Traced:
        return Traced(super().factor(ell).value)


also("focal-factor", "in both spaces")(_FocalInBothSpaces)
also("focal-factor", "no gradient through the factor")(_FocalDetached)
also("focal-factor", "in both spaces, no gradient through the factor")(
    type("Both", (_FocalDetached, _FocalInBothSpaces), {})
)


# ---- target


class _SoftmaxMinusTarget(Textbook):
    """Softmax minus target, which is the slope only where the target sums to 1."""

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        return ell_bar[:, None] * (np.exp(self.log_softmax(Traced(z), s).value) - self.target(s))


@also("smoothing-turned-round", "also without smoothing")
class AlwaysTurnedRound(Textbook):
    def target(self, s: Scene) -> Array:
        alpha = s.o["label_smoothing"]
        return (alpha * self.classes(s) + (1 - alpha) / s.C).astype(s.dtype)


@also("uniform-part-not-scaled", "also without smoothing")
class UniformPartAlways(Textbook):
    def target(self, s: Scene) -> Array:
        return ((1 - s.o["label_smoothing"]) * self.classes(s) + 1 / s.C).astype(s.dtype)


for name, form, told in (
    ("smoothing-on-top", entropy.SmoothingOnTop, ""),
    ("keeps-too-much-of-the-label", entropy.KeepsTooMuchOfTheLabel, ""),
    ("keeps-too-little-of-the-label", entropy.KeepsTooLittleOfTheLabel, ""),
    ("uniform-part-not-scaled", entropy.UniformPartNotScaled, ""),
    ("uniform-part-not-scaled", UniformPartAlways, "also without smoothing, "),
    ("smoothing-weighted-by-class", entropy.SmoothingWeightedByClass, ""),
):
    also(name, f"{told}its slope is taken for softmax − t")(type("Slope", (_SoftmaxMinusTarget, form), {}))


@also("labels-count-from-one", "no target for class 0")
class NothingBeforeTheFirst(entropy.LabelsCountFromOne):
    def classes(self, s: Scene) -> Array:
        return Textbook().classes(dataclasses.replace(s, y=np.where(s.y < s.C, s.y - 1, s.y)))


@also("labels-count-from-one", "class 0 stays class 0")
class FirstStaysFirst(Textbook):
    def classes(self, s: Scene) -> Array:
        return super().classes(_lowered(s))

    def own(self, v: Traced, s: Scene) -> Traced:
        return super().own(v, _lowered(s))


def _lowered(s: Scene) -> Scene:
    return dataclasses.replace(s, y=np.maximum(np.clip(s.y, 0, s.C) - 1, 0))
