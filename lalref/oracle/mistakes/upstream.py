"""Mistakes at both ends of the backward: the upstream gradient, and what is done to the result."""

from __future__ import annotations

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.tape import Traced
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook

UPSTREAM: list[Mistake] = []
mistake = collector(UPSTREAM)


@mistake(
    "backward",
    "L̄ = 1",
    "A loss is the last step, so its upstream gradient is 1: until it is scaled or summed.",
    "SeanNaren/warp-ctc#69",
)
class UpstreamIgnored(Textbook):
    """Your backward ignores the upstream gradient."""

    def upstream(self, g_out: Array, s: Scene) -> Array:
        return np.ones_like(g_out)


@mistake(
    "backward",
    "L̄²",
    "Multiplied in by the backward of the power mean, and once more at the end.",
)
class UpstreamTwice(Textbook):
    """Your backward multiplies the upstream gradient in twice."""

    def upstream(self, g_out: Array, s: Scene) -> Array:
        return g_out**2


@mistake("backward", "|L̄|", "A scale is taken to be positive.")
class UpstreamWithoutItsSign(Textbook):
    """Your backward drops the sign of the upstream gradient."""

    def upstream(self, g_out: Array, s: Scene) -> Array:
        return abs(g_out)


@mistake(
    "backward",
    "L̄ of the first window for all",
    "A scalar load of grad_output, from the time when it was one number.",
    "linkedin/Liger-Kernel#1298",
)
class UpstreamOfTheFirstWindow(Textbook):
    """Your backward uses the first entry of the upstream map for every window."""

    def upstream(self, g_out: Array, s: Scene) -> Array:
        first = s.o["grad_output"]
        return g_out if np.ndim(first) == 0 else np.full_like(g_out, np.ravel(first)[0])


@mistake("backward", "mean of L̄", "The upstream map is averaged to one factor.")
class UpstreamAveraged(Textbook):
    """Your backward averages the upstream map and scales every window by the mean."""

    def upstream(self, g_out: Array, s: Scene) -> Array:
        given = s.o["grad_output"]
        return g_out if np.ndim(given) == 0 else np.full_like(g_out, np.mean(given))


@mistake("backward", "−x̄", "t − softmax, or ascent for descent.", "HIPS/autograd#412")
class WrongSign(Textbook):
    """Your gradient has the wrong sign."""

    def finish(self, x_bar: Array, g: Groups, s: Scene) -> Array:
        return -x_bar


@mistake(
    "backward", "x̄ = 0", "The value went through .item(), or the graph was cut by detach().", "bboylyg/NAD#8"
)
class ZeroGradient(Textbook):
    """Your gradient is 0 everywhere: nothing flows back."""

    def finish(self, x_bar: Array, g: Groups, s: Scene) -> Array:
        return 0 * x_bar


@mistake(
    "backward",
    "x̄ / N",
    "The batch's gradient is averaged over its images once more.",
    "felipecode/coiltraine#37",
)
class DividedByTheBatchSize(Textbook):
    """Your gradient is divided by the number of images once more."""

    def finish(self, x_bar: Array, g: Groups, s: Scene) -> Array:
        return x_bar / s.dtype(s.shape[0])


@mistake(
    "backward",
    "softmax(x_q) L̄ / B in ignored pixels",
    "The one-hot of an ignored label is 0, so softmax minus one-hot is not.",
    "PaddlePaddle/Paddle#28622",
)
class IgnoredPixelsReceive(Textbook):
    """Your ignored pixels receive a gradient: the softmax part is not masked there."""

    def finish(self, x_bar: Array, g: Groups, s: Scene) -> Array:
        P = np.exp(self.log_softmax(Traced(s.x), s).value)
        share = np.mean(s.o["grad_output"]) / s.dtype(max(g.valid.sum(), 1))
        return np.where(g.ignored[:, None], P * share, x_bar).astype(s.dtype)


@mistake("backward", "gradient written in channels-first order", "The gradient's buffer has another layout.")
class GradientInTheWrongLayout(Textbook):
    """Your gradient for axis=-1 is written with channels first."""

    def gradient_layout(self, shape: tuple[int, ...], axis: int) -> Array:
        first = np.moveaxis(np.empty(shape, np.uint8), axis, 1).shape
        return self.layout(first, 1)
