"""Mistakes in stage 1: which cells a window has, and what happens at the border."""

from __future__ import annotations

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.textbook import Array, Scene, Textbook

WINDOWS: list[Mistake] = []
mistake = collector(WINDOWS)

# ---- window


@mistake(
    "window",
    "p_a − r_a ≤ q_a < p_a + r_a",
    "range(-r, r) stops one short, as every half-open range does.",
)
class WindowTooShort(Textbook):
    """Your window lacks its last row and column, as range(-r, r) does."""

    def offsets(self, s: Scene) -> Array:
        radius = (s.per_axis("kernel_size") - 1) // 2
        return self.box(-radius, np.maximum(radius - 1, 0))


@mistake(
    "window",
    "|p_a − q_a| < r_a",
    "A strict comparison where the window includes its rim.",
)
class WindowWithoutItsRim(Textbook):
    """Your window is one pixel too small on every side: its rim is left out."""

    def offsets(self, s: Scene) -> Array:
        radius = np.maximum((s.per_axis("kernel_size") - 1) // 2 - 1, 0)
        return self.box(-radius, radius)


@mistake(
    "window",
    "r_a = (kernel_size + 1) // 2",
    "Rounding the half width up, or adding one against the half-open range twice.",
)
class WindowTooWide(Textbook):
    """Your window is one pixel too large on every side."""

    def offsets(self, s: Scene) -> Array:
        radius = (s.per_axis("kernel_size") + 1) // 2
        return self.box(-radius, radius)


@mistake(
    "window",
    "r_a = kernel_size",
    "kernel_size is taken for the radius.",
)
class KernelSizeAsRadius(Textbook):
    """Your window reaches kernel_size pixels to every side: kernel_size is its whole width, not its radius."""

    def offsets(self, s: Scene) -> Array:
        radius = s.per_axis("kernel_size") * (s.per_axis("kernel_size") > 1)
        return self.box(-radius, radius)


@mistake(
    "window",
    "Σ_a (p_a − q_a)² ≤ r²",
    "A neighbourhood is often thought of as round.",
)
class RoundWindow(Textbook):
    """Your window is a disc: its corners are left out."""

    def offsets(self, s: Scene) -> Array:
        offsets = super().offsets(s)
        radius = (s.per_axis("kernel_size") - 1) // 2
        return offsets[(offsets**2).sum(1) <= radius.max(initial=0) ** 2]


@mistake(
    "window",
    "Σ_a |p_a − q_a| ≤ r",
    "The 4-neighbourhood's shape, grown to the kernel's size.",
)
class DiamondWindow(Textbook):
    """Your window is a diamond: only pixels within r steps along the axes are in it."""

    def offsets(self, s: Scene) -> Array:
        offsets = super().offsets(s)
        radius = (s.per_axis("kernel_size") - 1) // 2
        return offsets[abs(offsets).sum(1) <= radius.max(initial=0)]


@mistake(
    "window",
    "p_a − 2 r_a ≤ q_a ≤ p_a",
    "Padding on one side only, or a slice p : p + k that was never centred.",
    "castano/nvidia-texture-tools#158",
)
class WindowNotCentred(Textbook):
    """Your window ends at the pixel and is not centred on it."""

    def offsets(self, s: Scene) -> Array:
        radius = (s.per_axis("kernel_size") - 1) // 2
        return self.box(-2 * radius, 0 * radius)


@mistake(
    "window",
    "q_a = (p_a + δ_a) mod n_a",
    "np.roll and torch.roll shift cyclically.",
    "BrainLesion/preprocessing#170",
)
class WrapsAround(Textbook):
    """Your window continues at the opposite border, as with np.roll."""

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        return self.index(s.at[:, None, :1], (s.at[:, None, 1:] + offsets) % s.size, s)


@mistake(
    "window",
    "q = p + δ_1 W + δ_2 as one flat index",
    "In a flat buffer the end of one row lies beside the start of the next, and only the first and last pixel "
    "of an image are checked.",
)
class LeaksIntoTheNextRow(Textbook):
    """Your window runs over the end of a row into the next one: columns are not checked at the border."""

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        q = self.index(0 * s.at[:, None, :1], s.at[:, None, 1:] + offsets, s)  # within the image
        pixels = int(np.prod(s.size))
        return np.where((q >= 0) & (q < pixels), q + s.at[:, None, 0] * pixels, -1)


@mistake(
    "window",
    "rows run from 0 to N·H − 1",
    "Batch and rows are merged into one axis, and the seam is not checked.",
)
class LeaksIntoTheNextImage(Textbook):
    """Your window runs over the last row of an image into the next image of the batch."""

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        there = s.at[:, None, 1:] + offsets
        q = self.index(s.at[:, None, :1], there, s)
        inside = ((there >= 0) & (there < s.size))[..., 1:].all(-1) & (q >= 0) & (q < len(s.y))
        return np.where(inside, q, -1)


@mistake(
    "window",
    "q_a = min(max(p_a + δ_a, 0), n_a − 1)",
    "Padding with mode='edge' or 'replicate' seems harmless, but then border pixels are counted several times.",
)
class RepeatsTheBorder(Textbook):
    """Your window repeats border pixels where it leaves the image, as padding with mode="replicate" does."""

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        there = np.clip(s.at[:, None, 1:] + offsets, 0, s.size - 1)
        return self.index(s.at[:, None, :1], there, s)


@mistake(
    "window",
    "q_a mirrored at the border",
    "Padding with mode='reflect' is the default of many image filters.",
)
class MirrorsTheBorder(Textbook):
    """Your window is mirrored where it leaves the image, as padding with "symmetric" or "reflect" does."""

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        there = (s.at[:, None, 1:] + offsets) % (2 * s.size)
        return self.index(s.at[:, None, :1], np.minimum(there, 2 * s.size - 1 - there), s)


@mistake(
    "window",
    "windows only where the whole kernel fits",
    "A convolution with padding='valid' has no window at the border.",
)
class NoWindowsAtTheBorder(Textbook):
    """Your windows stand only where the whole kernel fits into the image, as with padding="valid"."""

    def on_grid(self, s: Scene) -> Array:
        radius = (s.per_axis("kernel_size") - 1) // 2
        fits = (s.at[:, 1:] >= radius) & (s.at[:, 1:] < s.size - radius)
        return super().on_grid(s) & fits.all(1)


@mistake(
    "window",
    "the cell δ = 0 is left out where there is another",
    "A 'neighbourhood' is taken without the pixel itself.",
)
class LeavesOutTheCentre(Textbook):
    """Your window averages the neighbours without the pixel itself."""

    def matrices(self, q: Array, member: Array, cells: Array, s: Scene) -> tuple[Array, Array]:
        others = member & (q != np.arange(len(s.y))[:, None])
        return super().matrices(q, np.where(others.any(1)[:, None], others, member), cells, s)


@mistake(
    "window",
    "the cell δ = 0 counts twice",
    "The pixel's own vector is added to the average of a window that already holds it.",
)
class CountsTheCentreTwice(Textbook):
    """Your window counts its centre twice."""

    def matrices(self, q: Array, member: Array, cells: Array, s: Scene) -> tuple[Array, Array]:
        w, members = super().matrices(q, member, cells, s)
        return w + np.diag(np.diag(w)), members + np.diag(np.diag(members))


@mistake(
    "window",
    "|p_2 − q_2| ≤ r, p_1 = q_1",
    "A separable filter of which the second pass was forgotten.",
)
class OneAxisOnly(Textbook):
    """Your window reaches along the last axis only."""

    def offsets(self, s: Scene) -> Array:
        offsets = super().offsets(s)
        return offsets[(offsets[:, :-1] == 0).all(1)]
