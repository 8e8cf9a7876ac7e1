"""Other forms of mistakes in the backward and of memory: what people write differently.

Only forms of entries in `backward`, `upstream` and `state` may come in, each as the change that sets it apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lalref.oracle.mistakes import backward, state
from lalref.oracle.mistakes.entry import Variant, variants_into
from lalref.oracle.mistakes.tape import Traced
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook, Vjp

BACKWARD_FORMS: dict[str, tuple[Variant, ...]] = {}
also = variants_into(BACKWARD_FORMS)

# ---- of the pooling


@also("neighbours-divisor", "D = 1 where there is no window")
class NeighboursOwnDivisor(Textbook):
    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return (g.w.T @ z_bar) / g.D[:, None]


@also("unweighted-neighbours", "w = 1 above D alone")
class UnweightedAboveD(Textbook):
    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return g.members.T @ (z_bar / g.D[:, None])


@also("flows-to-other-classes", "ignored pixels receive too")
class FlowsToVoidToo(backward.FlowsToOtherClasses):
    def hidden(self, s: Scene) -> Array:
        return np.zeros((len(s.y), 1), bool)


# ---- of the cross-entropy


@also("only-the-labels-entry", "in both spaces")
class OnlyTheLabelsEntryInBothSpaces(backward.OnlyTheLabelsEntry):
    def probability_back(self, u_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return back(u_bar) * self.classes(s)


@also("normaliser-forgotten", "in both spaces")
class NormaliserForgottenInBothSpaces(backward.NormaliserForgotten):
    def probability_back(self, u_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return u_bar * self.probability(Traced(x), g, s).value * self.classes(s)


@also("extra-factor-of-p", "in both spaces")
class ExtraFactorInBothSpaces(backward.ExtraFactorOfP):
    def probability_back(self, u_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return back(u_bar) * np.exp(self.log_softmax(Traced(x), s).value)


@also("softmax-of-the-pixels-own-logits", "and not pooled on its way back")
class OwnLogitsAlone(backward.SoftmaxOfThePixelsOwnLogits):
    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return z_bar if s.o["space"] == "logits" else back(z_bar)


# ---- of the power mean


@also("exponent-not-lowered", "ℓ^p for ℓ^(p − 1), not scaled by the maximum")
class ExponentOfTheLoss(Textbook):
    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) * ell


class _MeanOfPowers(backward.RootNotDifferentiated):
    scaled, inner = True, False  # by the maximum; with the power's own factor p

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        top, p = ell.max(initial=0), s.o["p"]
        if top == 0 or p == math.inf:
            return back(g_out)
        factor = (1 if self.scaled else top ** (p - 1)) * (p if self.inner else 1)
        return super().minkowski_back(g_out, back, ell, g, s) * factor


for scaled, inner, formula in (
    (True, True, "p ω r^(p − 1) / B"),
    (False, False, "ω ℓ^(p − 1) / B"),
    (False, True, "p ω ℓ^(p − 1) / B"),
):
    also("root-not-differentiated", formula)(
        type("Shares", (_MeanOfPowers,), {"scaled": scaled, "inner": inner})
    )


@also("mean-not-divided", "the shares lack 1/B, the root has it")
class SharesNotDivided(Textbook):
    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) * self.base(g, s)


@also("shares-of-a-plain-mean", "1 / M")
class SharesOfACount(Textbook):
    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        count = g.valid.sum() if s.o["reduction"] == "mean" else 1
        return g_out * g.valid / s.dtype(max(count, 1))


# ---- of memory


@also("gradient-accumulates", "one buffer for all shapes of as many pixels, until the dtype changes")
class AccumulatesRows(state.GradientAccumulates):
    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        axis, wide = options.get("axis", 1), logits.astype(self.precision(logits.dtype))
        value, grad = Textbook.__call__(self, wide, labels, **options)
        moved = np.moveaxis(grad, axis, -1)
        rows = moved.reshape(-1, moved.shape[-1])
        before = self.buffers.get(rows.shape)
        self.buffers[rows.shape] = rows if before is None or before.dtype != rows.dtype else rows + before
        return value, np.moveaxis(self.buffers[rows.shape].reshape(moved.shape), -1, axis).astype(
            logits.dtype
        )


@also("weights-of-the-first-call", "the first sigma of each kernel")
class SigmaOfTheFirstCall(state.WeightsOfTheFirstCall):
    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "sigma": self.first.setdefault(str(o["kernel_size"]), o["sigma"])}


@also("labels-of-the-call-before", "y of the very call before, if the shape is the same")
class LabelsOfTheLastCall(state.LabelsOfTheCallBefore):
    def labels(self, labels: Array, s: Scene) -> Array:
        now = Textbook.labels(self, labels, s)
        before: Array = self.seen.get(labels.shape, now)
        self.seen[labels.shape] = now
        return before
