"""Changes that look like mistakes and provably change nothing: they must be let pass."""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from lalref.oracle.mistakes.tape import Traced, column, exp, log
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook, Vjp


@dataclasses.dataclass(frozen=True)
class Equivalent:
    """A change of the textbook, and the proof that it is none of the loss."""

    id: str
    change: str
    proof: str
    form: type[Textbook]


class _Mirrored(Textbook):
    def offsets(self, s: Scene) -> Array:
        return -super().offsets(s)


class _WeightsNormalisedFirst(Textbook):
    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        normalised = dataclasses.replace(g, w=g.w / g.D[:, None], D=np.ones_like(g.D))
        return super().pool(x, normalised, s)


class _WeightsScaled(Textbook):
    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return super().pool(x, dataclasses.replace(g, w=2 * g.w, D=2 * g.D), s)


class _ShiftedByAnotherNumber(Textbook):
    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        a = z - z.value.max(1, keepdims=True, initial=-np.inf) + z.value.dtype.type(1)
        return a - column(log(exp(a).sum(1)))


class _ScaledByTwiceTheMaximum(Textbook):
    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        return super().minkowski(ell * s.dtype(0.5), g, s) * s.dtype(2)


class _MaximumFollowed(Textbook):
    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        p = s.o["p"]
        if not ell.value.any() or p == math.inf:
            return super().minkowski(ell, g, s)
        top = ell[int(ell.value.argmax())]
        return self.root(self.power_sum(ell / top, p, g, s) / self.base(g, s), p) * top


class _WeightlessWindowsTakePart(Textbook):
    def groups(self, s: Scene) -> Groups:
        g = super().groups(s)
        if not g.valid.any():
            return g
        valid = ~g.ignored & self.on_grid(s)
        D = self.divisor(g.w, g.members, s)
        return dataclasses.replace(g, valid=valid, D=np.where(valid & (D > 0), D, 1).astype(s.dtype))


class _TransposedPooling(Textbook):
    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        return g.w @ (z_bar / g.D[:, None])


class _IgnoredLogitsKept(Textbook):
    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        none = options.get("ignore_index", 255) is None
        ignored = np.isin(labels, [] if none else options.get("ignore_index", 255))
        spread = np.expand_dims(ignored, options.get("axis", 1) % logits.ndim)
        return super().__call__(logits + spread.astype(logits.dtype), labels, **options)


EQUIVALENT: tuple[Equivalent, ...] = (
    Equivalent(
        "window-mirrored",
        "The window's cells are visited in the opposite order, as a convolution does to a correlation.",
        "The box and the distance are the same for δ and −δ, so w(d(p, q)) and G_p are; a sum has no order.",
        _Mirrored,
    ),
    Equivalent(
        "weights-normalised-first",
        "Weights are divided by D before the sum, not the sum afterwards.",
        "D_p does not depend on q: (1/D_p) Σ w x_q = Σ (w / D_p) x_q.",
        _WeightsNormalisedFirst,
    ),
    Equivalent(
        "weights-and-divisor-scaled",
        'Weights and divisor carry a common factor, as the density\'s 1/(σ√(2π)) under normalize="weights".',
        "The factor stands above and below the fraction of equation (4).",
        _WeightsScaled,
    ),
    Equivalent(
        "another-shift-in-softmax",
        "Logits are shifted by another number than their maximum.",
        "log softmax(z) = log softmax(z + a) for every number a: e^a cancels.",
        _ShiftedByAnotherNumber,
    ),
    Equivalent(
        "another-scale-in-the-power-mean",
        "Losses are scaled by another number than their maximum before powers are taken.",
        "Equation (8) is homogeneous: L(cℓ) = c L(ℓ), so what is divided out comes back.",
        _ScaledByTwiceTheMaximum,
    ),
    Equivalent(
        "maximum-followed-in-both-places",
        "The gradient of max ℓ is followed, both outside the root and inside.",
        "L does not depend on m in equation (8), so ∂L/∂m = 0: both ways cancel.",
        _MaximumFollowed,
    ),
    Equivalent(
        "weightless-windows-take-part",
        "Windows with ω = 0 take part in the sums, as long as their losses are finite.",
        "They add 0 to S and to Σω, and their share of the gradient has the factor ω = 0.",
        _WeightlessWindowsTakePart,
    ),
    Equivalent(
        "pooling-not-transposed",
        "The backward pools with A where Aᵀ is meant.",
        "Membership is mutual and the distance symmetric: A = Aᵀ.",
        _TransposedPooling,
    ),
    Equivalent(
        "ignored-logits-changed",
        "Logits of ignored pixels are anything finite.",
        "An ignored label is in no valid window's group, so those logits are in no sum.",
        _IgnoredLogitsKept,
    ),
)
