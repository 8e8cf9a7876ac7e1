"""Other forms of mistakes in stage 3: what people write differently.

Only forms of entries in `minkowski` may come in, each as the change that sets it apart.
"""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import numpy as np

from lalref.oracle.mistakes import minkowski
from lalref.oracle.mistakes.entry import Variant, variants_into
from lalref.oracle.mistakes.tape import Traced
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook

MINKOWSKI_FORMS: dict[str, tuple[Variant, ...]] = {}
also = variants_into(MINKOWSKI_FORMS)

# ---- power mean


class _SumsAddUp(minkowski.PerImageThenMean):
    """Under reduction="sum" the parts are added up."""

    def part_count(self, g: Groups, s: Scene) -> int:
        return 1 if s.o["reduction"] == "sum" else super().part_count(g, s)


class _EveryClassCounts(minkowski.PerClassThenMean):
    def part_count(self, g: Groups, s: Scene) -> int:
        return s.C


for name, parts, told in (
    ("per-image-then-mean", minkowski.PerImageThenMean, ""),
    ("per-image-then-mean-of-all", minkowski.PerImageThenMeanOfAll, ""),
    ("per-class-then-mean", minkowski.PerClassThenMean, ""),
    ("per-class-then-mean", _EveryClassCounts, "all classes counted, "),
):
    also(name, f'{told}added up under reduction="sum"')(type("Sums", (_SumsAddUp, parts), {}))
also("per-class-then-mean", "all classes counted")(_EveryClassCounts)


@also("ignored-pixels-count", "B = Σω with ω = 1 where ignored")
class IgnoredWeighOne(Textbook):
    def base(self, g: Groups, s: Scene) -> Array:
        omega = np.where(g.ignored, 1, self.omega(s))[self.on_grid(s)]
        return s.dtype(omega.sum()) if s.o["reduction"] == "mean" else super().base(g, s)


@also("ignored-pixels-count", "B counts all pixels, on the grid or not")
class AllPixelsCount(Textbook):
    def base(self, g: Groups, s: Scene) -> Array:
        return s.dtype(s.y.size) if s.o["reduction"] == "mean" else super().base(g, s)


@also("ignored-pixels-count", "Σω (all windows / labelled windows)")
class IgnoredScaleTheMean(Textbook):
    def base(self, g: Groups, s: Scene) -> Array:
        on = self.on_grid(s)
        all_of = on.sum() / max((on & ~g.ignored).sum(), 1)
        return super().base(g, s) * s.dtype(all_of if s.o["reduction"] == "mean" else 1)


@also("counts-pixels-off-the-grid", "B counts the labelled pixels")
class CountsLabelledPixels(Textbook):
    def base(self, g: Groups, s: Scene) -> Array:
        return s.dtype((~g.ignored).sum()) if s.o["reduction"] == "mean" else super().base(g, s)


@also("divides-by-the-batch-size", "L = S^(1/p) / N")
class BatchSizeAfterTheRoot(Textbook):
    def base(self, g: Groups, s: Scene) -> Array:
        N = float(s.shape[0])
        return s.dtype(N ** s.o["p"]) if s.o["reduction"] == "mean" else super().base(g, s)


@also("map-of-powers", "L_p = (ω ℓ)^p in the map")
class MapOfWeightedPowers(Textbook):
    def window_map(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        return super().window_map(ell, g, s) ** s.o["p"]


# ---- weights


@also("weights-add", "ω = class_weight + pixel_weight where both are given")
class WeightsSum(Textbook):
    def omega(self, s: Scene) -> Array:
        both = s.o["class_weight"] is not None and s.o["pixel_weight"] is not None
        return self.class_weight(s) + self.pixel_weight(s) if both else super().omega(s)


@also("weights-add", "ω = class_weight + pixel_weight, each 1 where not given")
class WeightsSumAlways(Textbook):
    def omega(self, s: Scene) -> Array:
        return self.class_weight(s) + self.pixel_weight(s)


class _CountsWeightless(Textbook):
    """Windows of weight 0 are counted too."""

    def base(self, g: Groups, s: Scene) -> Array:
        count = (~g.ignored & self.on_grid(s)).sum()
        return s.dtype(count) if s.o["reduction"] == "mean" else super().base(g, s)


also("counts-instead-of-weights", "windows of weight 0 counted too")(_CountsWeightless)
also("weights-inside-the-power", "windows of weight 0 counted too")(
    type("Inside", (_CountsWeightless, minkowski.WeightsInsideThePower), {})
)


@also("weights-twice", "in the map as well")
class WeightsTwiceInTheMap(minkowski.WeightsTwice):
    def window_map(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        return super().window_map(ell, g, s) * g.omega


@also("weights-only-below", "not in the map either")
class WeightsOnlyBelowTheMean(minkowski.MapWithoutWeights, minkowski.WeightsOnlyBelow):
    pass
