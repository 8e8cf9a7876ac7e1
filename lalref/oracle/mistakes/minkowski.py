"""Mistakes in stage 3: power mean, what it divides by, and the windows' weights."""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.tape import Traced
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook

MINKOWSKI: list[Mistake] = []
mistake = collector(MINKOWSKI)


@mistake("minkowski", "L = S / B", "The exponent outside the sum in Eq. 5 is small and easily overlooked.")
class NoRoot(Textbook):
    """Your root is forgotten: the value is the mean of the powers."""

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        p = s.o["p"]
        return (
            self.power_sum(ell, p, g, s) / self.base(g, s) if p < math.inf else super().minkowski(ell, g, s)
        )


@mistake("minkowski", "L = (S / B)^½", "A root is a square root, unless one looks twice.")
class SquareRoot(Textbook):
    """Your root is always the square root, whatever p."""

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        p = s.o["p"]
        if p == math.inf:
            return super().minkowski(ell, g, s)
        if not ell.value.any():
            return Traced(np.zeros((), s.dtype))
        return (self.power_sum(ell, p, g, s) / self.base(g, s)) ** 0.5


@mistake("minkowski", "L = S^(1/p) / B", "The mean is taken after the root.")
class DividesAfterTheRoot(Textbook):
    """Your mean is divided after the root is taken, not inside it."""

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        B = self.base(g, s)
        B = B if B > 0 and s.o["p"] < math.inf else s.dtype(1)
        return super().minkowski(ell, g, s) * (B ** (1 / s.o["p"]) / B)


@mistake("minkowski", "p = 1", "An option that is accepted and never used.")
class IgnoresP(Textbook):
    """Your pooling is a plain mean of the window losses: p is not used."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "p": 1.0}


@mistake("minkowski", "p = ⌊p⌋", "An exponent declared as an integer.", "huggingface/transformers#47468")
class WholeExponents(Textbook):
    """Your exponent p is cast to an integer."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return o if o["p"] == math.inf else {**o, "p": float(int(o["p"]))}


@mistake("minkowski", "L = max ℓ", "The power mean is replaced by the maximum that scales it.")
class OnlyTheMaximum(Textbook):
    """Your value is the largest window loss, whatever p."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "p": math.inf}


@mistake(
    "minkowski",
    "Σ ω ℓ^p without ℓ / max ℓ",
    "The formula as it is printed; a loss of 2000 to the power 100 is beyond every float.",
)
class PowersNotScaled(Textbook):
    """Your powers are taken of the losses as they are, which overflows."""

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        p = s.o["p"]
        if p == math.inf or not ell.value.any():
            return super().minkowski(ell, g, s)
        return self.root(self.power_sum(ell, p, g, s) / self.base(g, s), p)


@mistake(
    "minkowski",
    "L = (1/N) Σ_n L_n",
    "A loss for one image, averaged over the batch: the mean of means.",
    "meta-pytorch/torchtune#1875",
)
class PerImageThenMean(Textbook):
    """Your images are pooled one by one and then averaged, images without a window left out."""

    def parts(self, s: Scene) -> Array:
        """(Q,), which pixels are pooled together."""
        return s.at[:, 0]

    def part_count(self, g: Groups, s: Scene) -> int:
        """What the sum of the parts is divided by."""
        return len(np.unique(self.parts(s)[g.valid]))

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        total = Traced(np.zeros((), s.dtype))
        for part in np.unique(self.parts(s)[g.valid]):
            here = g.valid & (self.parts(s) == part)
            some = Groups(g.w, g.members, g.D, here, np.where(here, g.omega, 0), g.ignored)
            total = total + super().minkowski(ell * here, some, s)
        return total / s.dtype(max(self.part_count(g, s), 1))


@mistake(
    "minkowski",
    "L = (1/N) Σ_n L_n, all N images counted",
    "As before, with images that are all ignored counted as loss 0.",
    "pytorch/torchtitan#4167",
)
class PerImageThenMeanOfAll(PerImageThenMean):
    """Your images are pooled one by one and then averaged, images that are all ignored counted as 0."""

    def part_count(self, g: Groups, s: Scene) -> int:
        return s.shape[0]


@mistake("minkowski", "L = (1/#classes) Σ_c L_c", "Averaging over classes evens out their frequencies.")
class PerClassThenMean(PerImageThenMean):
    """Your classes are pooled one by one and then averaged."""

    def parts(self, s: Scene) -> Array:
        return s.y


@mistake("minkowski", "L = Σ_n L_n", "A loss for one image, added up over the batch.")
class PerImageThenSum(PerImageThenMean):
    """Your images are pooled one by one and then added up."""

    def part_count(self, g: Groups, s: Scene) -> int:
        return 1


@mistake(
    "minkowski",
    "B counts all windows, valid or not",
    "loss.mean() over a map in which ignored pixels are 0.",
    "qubvel-org/segmentation_models.pytorch#852",
)
class IgnoredPixelsCount(Textbook):
    """Your mean divides by all windows, ignored ones included."""

    def base(self, g: Groups, s: Scene) -> Array:
        return s.dtype(self.on_grid(s).sum()) if s.o["reduction"] == "mean" else super().base(g, s)


@mistake(
    "minkowski", "B = number of labelled pixels, whatever the stride", "The mask is summed before striding."
)
class CountsPixelsOffTheGrid(Textbook):
    """Your mean divides by all labelled pixels, also by those between the stride's grid."""

    def base(self, g: Groups, s: Scene) -> Array:
        omega = np.where(g.ignored, 0, self.omega(s))
        return omega.sum() if s.o["reduction"] == "mean" else super().base(g, s)


@mistake("minkowski", "B = N", "'batchmean', as in torch's kl_div.", "EleutherAI/bergson#344")
class DividesByTheBatchSize(Textbook):
    """Your mean divides by the number of images, not by the number of windows."""

    def base(self, g: Groups, s: Scene) -> Array:
        return s.dtype(s.shape[0]) if s.o["reduction"] == "mean" else super().base(g, s)


@mistake("minkowski", "B = 1 always", "The 1/M of Eq. 5 is forgotten.")
class NeverDivides(Textbook):
    """Your reduction="mean" is a sum: it is not divided by the number of windows."""

    def base(self, g: Groups, s: Scene) -> Array:
        return s.dtype(1)


@mistake("minkowski", "B = Σω always", "An option that is accepted and never used.")
class AlwaysMean(Textbook):
    """Your reduction="sum" is a mean: it is divided by the number of windows."""

    def base(self, g: Groups, s: Scene) -> Array:
        return g.omega.sum()


@mistake(
    "minkowski", 'Σ ω ℓ under reduction="sum"', "A sum is a sum; the power mean is only thought of as a mean."
)
class PlainSum(Textbook):
    """Your reduction="sum" adds up the window losses without powers and root."""

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        return (ell * g.omega).sum() if s.o["reduction"] == "sum" else super().minkowski(ell, g, s)


@mistake("minkowski", "L_p = ω ℓ^p in the map", "The power is applied before the reduction is looked at.")
class MapOfPowers(Textbook):
    """Your reduction="none" gives powers of the window losses; p plays no part there."""

    def window_map(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        return super().window_map(ell ** s.o["p"], g, s)


@mistake(
    "minkowski",
    "NaN where no window is valid",
    "0 / 0, which torch.nn.CrossEntropyLoss gives too.",
    "BVLC/caffe#2335",
)
class NanForNoWindow(Textbook):
    """Your value is NaN for a batch without any valid window, where empty="zero" asks for 0."""

    def empty(self, s: Scene) -> float:
        return math.nan


@mistake("minkowski", "0 where no window is valid", "An option that is accepted and never used.")
class IgnoresEmpty(Textbook):
    """Your value is 0 for a batch without any valid window, where empty="nan" asks for NaN."""

    def empty(self, s: Scene) -> float:
        return 0.0


# ---- weights


@mistake("weights", "class_weight = 1", "An option that is accepted and never used.")
class IgnoresClassWeight(Textbook):
    """Your class_weight is taken and forgotten."""

    def class_weight(self, s: Scene) -> Array:
        return np.ones(s.y.shape, s.dtype)


@mistake("weights", "pixel_weight = 1", "An option that is accepted and never used.")
class IgnoresPixelWeight(Textbook):
    """Your pixel_weight is taken and forgotten."""

    def pixel_weight(self, s: Scene) -> Array:
        return np.ones(s.y.shape, s.dtype)


@mistake("weights", "ω = class_weight + pixel_weight − 1", "Weights are added where they should multiply.")
class WeightsAdd(Textbook):
    """Your class and pixel weights are added, not multiplied."""

    def omega(self, s: Scene) -> Array:
        return np.maximum(self.class_weight(s) + self.pixel_weight(s) - 1, 0)


@mistake(
    "weights",
    "ω cast to an integer",
    "A table of weights made as an integer tensor.",
    "pytorch/pytorch#23369",
)
class WholeWeights(Textbook):
    """Your class weights are cast to integers."""

    def class_weight(self, s: Scene) -> Array:
        return np.trunc(super().class_weight(s))


@mistake(
    "weights",
    "B = M",
    "The weighted losses are averaged by mean(), which counts.",
    "pytorch/pytorch#61309",
)
class CountsInsteadOfWeights(Textbook):
    """Your mean divides by the number of windows, not by the sum of their weights."""

    def base(self, g: Groups, s: Scene) -> Array:
        return s.dtype(g.valid.sum()) if s.o["reduction"] == "mean" else super().base(g, s)


@mistake("weights", "Σ (ω ℓ)^p / M", "The weighted cross-entropy is handed on to the power mean.")
class WeightsInsideThePower(Textbook):
    """Your weights multiply the losses before the power is taken, and the mean counts windows."""

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        one = Groups(g.w, g.members, g.D, g.valid, g.valid.astype(s.dtype), g.ignored)
        return super().minkowski(ell * g.omega, one, s)


@mistake("weights", "Σ (ω ℓ)^p / Σω", "The weighted losses are handed on, and divided by the weights' sum.")
class WeightsRaisedToThePower(Textbook):
    """Your weights are raised to the power p together with the losses."""

    def power_sum(self, r: Traced, p: float, g: Groups, s: Scene) -> Traced:
        return ((r * g.omega) ** p).sum()


@mistake("weights", "Σ ω² r^p / Σω", "A weight applied by cross_entropy, and once more in the mean.")
class WeightsTwice(Textbook):
    """Your weights are applied twice above the fraction."""

    def power_sum(self, r: Traced, p: float, g: Groups, s: Scene) -> Traced:
        return (r**p * g.omega**2).sum()


@mistake("weights", "Σ r^p / Σω", "The weights reach the divisor alone.")
class WeightsOnlyBelow(Textbook):
    """Your weights are in the divisor alone; the powers are added up without them."""

    def power_sum(self, r: Traced, p: float, g: Groups, s: Scene) -> Traced:
        return (r**p * g.valid).sum()


@mistake("weights", "L_p = ℓ in the map", 'Weights are thought of as part of "mean" and "sum".')
class MapWithoutWeights(Textbook):
    """Your reduction="none" gives window losses without their weights."""

    def window_map(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        return ell * g.valid
