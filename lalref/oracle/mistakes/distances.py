"""Mistakes in stage 1: how far away a cell is, and what it weighs."""

from __future__ import annotations

import dataclasses

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.textbook import Array, Scene, Textbook

DISTANCES: list[Mistake] = []
mistake = collector(DISTANCES)


@mistake(
    "distance",
    "d = √Σ_a (p_a − q_a)²",
    "A Gaussian window is Euclidean nearly everywhere else, in every separable blur.",
)
class EuclideanDistance(Textbook):
    """Your weight falls with the Euclidean distance, not with the chessboard distance."""

    def distance(self, offsets: Array, s: Scene) -> Array:
        return np.sqrt((offsets**2).sum(-1))


@mistake("distance", "d = Σ_a |p_a − q_a|", "The other simple distance on a grid.")
class CityBlockDistance(Textbook):
    """Your weight falls with the sum of the distances along the axes, not with the larger of them."""

    def distance(self, offsets: Array, s: Scene) -> Array:
        return abs(offsets).sum(-1)


@mistake("distance", "d = min_a |p_a − q_a|", "min and max are one letter apart.")
class SmallerDistance(Textbook):
    """Your weight falls with the smaller of the distances along the axes, not with the larger."""

    def distance(self, offsets: Array, s: Scene) -> Array:
        return abs(offsets).min(-1, initial=2**31)


@mistake(
    "distance",
    "w = exp(−(d/σ)²)",
    "The ½ is easily lost; both ways to write a Gaussian are common.",
    "hjens/c2raytools#1",
)
class GaussianWithoutHalf(Textbook):
    """Your weight is exp(-(d/sigma)²): the ½ in the exponent is missing."""

    def weight(self, d: Array, sigma: float) -> Array:
        return np.exp(-((d / sigma) ** 2))


@mistake(
    "distance",
    "w = exp(−d² / (2σ))",
    "sigma is taken for the variance; nobody notices at sigma = 1.",
    "mattnedrich/MeanShift_cpp#4",
)
class SigmaNotSquared(Textbook):
    """Your weight is exp(-d²/(2 sigma)): sigma is not squared."""

    def weight(self, d: Array, sigma: float) -> Array:
        return np.exp(-(d**2) / (2 * sigma))


@mistake(
    "distance",
    "w = exp(−d² / 2 · σ²)",
    "-d**2 / 2 * sigma**2 lacks a pair of brackets; nobody notices at sigma = 1.",
    "TheAlgorithms/Python#2212",
)
class MultipliesBySigma(Textbook):
    """Your weight is exp(-d²/2 · sigma²): it multiplies by sigma² where it should divide."""

    def weight(self, d: Array, sigma: float) -> Array:
        return np.exp(-(d**2) / 2 * sigma**2)


@mistake("distance", "w = exp(−d / (2σ))", "The square of the distance is forgotten.")
class DistanceNotSquared(Textbook):
    """Your weight is exp(-½ d/sigma): the distance is not squared."""

    def weight(self, d: Array, sigma: float) -> Array:
        return np.exp(-(d / sigma) / 2)


@mistake(
    "distance",
    "w = exp(−½ (d/σ)²) / (σ √(2π))",
    "The density's factor comes along; it cancels in a weighted average, but not where the count divides.",
    "DiegoCatalano/Catalano-Framework#50",
)
class GaussianDensity(Textbook):
    """Your weight carries a density's factor, as 1/(sigma √(2π)), which normalize="count" does not cancel."""

    def weight(self, d: Array, sigma: float) -> Array:
        return super().weight(d, sigma) / (sigma * np.sqrt(2 * np.pi)).astype(d.dtype)


@mistake("distance", "w = exp(−½ (d / (r σ))²)", "Distances are brought to [0, 1] first, out of habit.")
class DistanceInRadii(Textbook):
    """Your distance is measured in radii of the window, not in pixels."""

    def cells(self, offsets: Array, s: Scene) -> Array:
        radius = max(1, int(((s.per_axis("kernel_size") - 1) // 2).max(initial=1)))
        sigma = None if s.o["sigma"] is None else s.o["sigma"] * radius
        return super().cells(offsets, dataclasses.replace(s, o={**s.o, "sigma": sigma}))


@mistake("distance", "w = 1", "The weights were left for later; a box average runs just as well.")
class FlatWeights(Textbook):
    """Your window is a plain average: every pixel of the group weighs the same."""

    def weight(self, d: Array, sigma: float) -> Array:
        return np.ones_like(d)


@mistake("distance", "w = 1 − exp(−½ (d/σ)²) but for the centre", "A weight that was meant as a penalty.")
class WeightGrowsWithDistance(Textbook):
    """Your weight grows with the distance: beyond the centre it is 1 - exp(-½ (d/sigma)²)."""

    def weight(self, d: Array, sigma: float) -> Array:
        return np.where(d == 0, 1, 1 - super().weight(d, sigma)).astype(d.dtype)


@mistake(
    "distance",
    "σ = 0.3 ((kernel_size − 1)/2 − 1) + 0.8",
    "OpenCV's getGaussianKernel derives sigma from the kernel's size when none is given.",
)
class SigmaFromKernelSize(Textbook):
    """Your sigma is derived from kernel_size, as OpenCV does, and the one given is not used."""

    def options(self, o: dict[str, object]) -> dict[str, object]:
        k = max(np.atleast_1d(np.asarray(o["kernel_size"])))
        return {**o, "sigma": float(0.3 * ((k - 1) / 2 - 1) + 0.8)}
