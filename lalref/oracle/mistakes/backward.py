"""Mistakes in the backward alone: the loss is right, its gradient is not."""

from __future__ import annotations

import math

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.tape import Traced, vjp
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook, Vjp

BACKWARD: list[Mistake] = []
mistake = collector(BACKWARD)

# ---- of the pooling


@mistake(
    "backward",
    "x̄ = (A z̄) / D",
    "The forward pools and then divides; the backward has to divide first.",
)
class NeighboursDivisor(Textbook):
    """Your backward divides by the neighbour's weight sum, not by the window's own."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        whole = self.divisor(g.w, g.members, s)  # of every pixel's own window
        return (g.w.T @ z_bar) / np.where(whole > 0, whole, 1)[:, None]


@mistake("backward", "x̄_p = z̄_p / D_p", "The neighbours are read through a detached copy, or .item().")
class CentreOnly(Textbook):
    """Your backward sends a window's gradient to its centre alone."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return np.diag(g.w)[:, None] * z_bar / g.D[:, None]


@mistake("backward", "x̄ = z̄", "Pooling is taken for a smoothing that the gradient need not go through.")
class PoolingPassedStraightThrough(Textbook):
    """Your backward leaves pooling out: each pixel gets the gradient of the window around it."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return z_bar


@mistake(
    "backward", "w = 1 in the backward", "The backward of an average pooling, where the forward is weighted."
)
class UnweightedNeighbours(Textbook):
    """Your backward gives all members of a window the same share, however far away they are."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return g.members.T @ (z_bar / np.maximum(g.members.sum(1), 1)[:, None])


@mistake("backward", "x̄ = A z̄", "The derivative of a sum, where the forward divides it.")
class DivisorForgotten(Textbook):
    """Your backward pools without dividing by D."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return g.w.T @ z_bar


@mistake("backward", "x̄ = A (z̄ / D²)", "Once by the forward's saved average, and once by hand.")
class DividedTwice(Textbook):
    """Your backward divides by D twice."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return back(z_bar / g.D[:, None])


@mistake("backward", "x̄ over the whole window", "The forward's mask is not kept for the backward.")
class FlowsToOtherClasses(Textbook):
    """Your backward sends gradient to all pixels of the window, of whatever class."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        offsets = self.offsets(s)
        q = self.neighbours(offsets, s)
        w, _ = self.matrices(q, q >= 0, self.cells(offsets, s), s)
        return w.T @ (z_bar / g.D[:, None])


@mistake(
    "backward", "x̄ = 0 off the stride grid", "The gradient of a strided map is thought to live on its grid."
)
class PixelsBetweenTheGridGetNothing(Textbook):
    """Your backward gives pixels between the stride's grid no gradient."""

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return np.where(self.on_grid(s)[:, None], back(z_bar), 0)


# ---- of the cross-entropy


@mistake("backward", "softmax(x_p) − t", "The wrong one of two score tensors is at hand in the backward.")
class SoftmaxOfThePixelsOwnLogits(Textbook):
    """Your backward takes softmax of the pixel's own logits, not of the merged vector."""

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        return vjp(lambda x: self.cross_entropy(x, g, s), s.x)[1](ell_bar)


@mistake(
    "backward", "softmax(z) − onehot(y)", "Softmax minus one-hot is known by heart; the target changed since."
)
class OnehotForASmoothedTarget(Textbook):
    """Your backward subtracts the one-hot label, though the target is smoothed."""

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        return back(ell_bar) + ell_bar[:, None] * (self.target(s) - self.classes(s))


@mistake("backward", "(P − t) at the label's entry only", "Only the label's logit is seen in the formula.")
class OnlyTheLabelsEntry(Textbook):
    """Your backward reaches the label's own logit alone; the other classes get nothing."""

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        return back(ell_bar) * self.classes(s)


@mistake("backward", "−t", "The normaliser of the softmax is detached, or forgotten.")
class NormaliserForgotten(Textbook):
    """Your backward lacks the softmax: it subtracts the target from 0."""

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        return -ell_bar[:, None] * self.target(s)


@mistake("backward", "P ⊙ (P − t)", "The derivative of a sigmoid comes along: an extra factor P.")
class ExtraFactorOfP(Textbook):
    """Your backward multiplies softmax minus target by the softmax once more."""

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        return back(ell_bar) * np.exp(self.log_softmax(Traced(z), s).value)


@mistake("backward", "1 / v forgotten in −log v", "The logarithm's inner derivative.")
class LogarithmNotDifferentiated(Textbook):
    """Your backward lacks, in probability space, the factor 1/v of the logarithm's derivative."""

    def negative_log_back(self, ell_bar: Array, back: Vjp, v: Array, g: Groups, s: Scene) -> Array:
        return -ell_bar[:, None]


# ---- of the power mean


@mistake("backward", "r^p for r^(p − 1)", "The exponent is not lowered in the derivative.")
class ExponentNotLowered(Textbook):
    """Your shares carry r^p in place of r^(p - 1)."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) * (ell / max(ell.max(initial=0), np.finfo(s.dtype).tiny))


@mistake("backward", "p times too much", "The factor 1/p of the root's derivative is forgotten.")
class FactorOneOverPForgotten(Textbook):
    """Your gradient is p times too large: the root's derivative lacks its factor 1/p."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) * (s.o["p"] if s.o["p"] < math.inf else 1)


@mistake("backward", "p times too little", "The factor p of the power's derivative is forgotten.")
class FactorPForgotten(Textbook):
    """Your gradient is p times too small: the power's derivative lacks its factor p."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) / (s.o["p"] if s.o["p"] < math.inf else 1)


@mistake("backward", "ω r^(p − 1) / B", "The root is taken for a rescaling of the value.")
class RootNotDifferentiated(Textbook):
    """Your shares are those of the mean of powers: what the root adds is left out."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        top, p = ell.max(initial=0), s.o["p"]
        if top == 0 or p == math.inf:
            return back(g_out)
        return back(g_out) / (self.power_sum(Traced(ell / top), p, g, s).value / self.base(g, s)) ** (
            1 / p - 1
        )


@mistake("backward", "ω / B", "The gradient of a mean, where the forward is a power mean.")
class SharesOfAPlainMean(Textbook):
    """Your backward shares the gradient as a plain mean does, whatever p."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return g_out * g.omega / np.where(g.valid.any(), self.base(g, s), 1)


@mistake("backward", "1/B forgotten", "The forward's mean, the backward of its sum.")
class MeanNotDivided(Textbook):
    """Your gradient is that of reduction="sum" where the value is a mean."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) * self.base(g, s) ** (1 / s.o["p"])


@mistake(
    "backward",
    "∂L/∂m added: gradient flows through max ℓ outside, not inside",
    "max ℓ cancels, if it is detached in both places or in none.",
    "yifita/deep_cage#16",
)
class MaximumDetachedInside(Textbook):
    """Your gradient follows max ell outside the root but not inside: the largest loss gets L / max ell more."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) + self.through_maximum(g_out, ell, g, s)

    def through_maximum(self, g_out: Array, ell: Array, g: Groups, s: Scene) -> Array:
        """What flows through max ell in one of its two places."""
        top, p = ell.max(initial=0), s.o["p"]
        if top == 0 or p == math.inf:
            return 0 * ell
        tied = ell == top
        mean = self.power_sum(Traced(ell / top), p, g, s).value / self.base(g, s)
        return g_out * mean ** (1 / p) * tied / tied.sum()


@mistake(
    "backward",
    "∂L/∂m taken away: gradient flows through max ℓ inside, not outside",
    "As before, the other way round.",
)
class MaximumDetachedOutside(MaximumDetachedInside):
    """Your gradient follows max ell inside the root but not outside: the largest loss gets L / max ell less."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) - self.through_maximum(g_out, ell, g, s)


@mistake(
    "backward", "ω left out of the shares", "The weights are applied in the forward, outside the saved graph."
)
class WeightsMissingInTheShares(Textbook):
    """Your backward leaves the weights out of the windows' shares."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) / np.where(g.valid, g.omega, 1)

    window_map_back = minkowski_back


@mistake(
    "backward", "ω² in the shares", "Saved losses already carry the weight, and it is multiplied in again."
)
class WeightsTwiceInTheShares(Textbook):
    """Your backward multiplies the windows' shares by their weights twice."""

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        return back(g_out) * g.omega

    window_map_back = minkowski_back
