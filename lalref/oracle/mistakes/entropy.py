"""Mistakes in stage 2: space, softmax, logarithm, target and its smoothing."""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lalref.oracle.mistakes.entry import Mistake, collector
from lalref.oracle.mistakes.tape import Traced, column, exp, linear, log, where
from lalref.oracle.mistakes.textbook import Array, Groups, Scene, Textbook

ENTROPY: list[Mistake] = []
mistake = collector(ENTROPY)

# ---- space


@mistake("space", "ℓ of equation (6), whatever `space` is", "An option that is accepted and never used.")
class AlwaysProbabilities(Textbook):
    """Your loss merges probabilities also where space="logits" asks for merged logits."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "space": "probabilities"}


@mistake("space", "ℓ of equation (5), whatever `space` is", "An option that is accepted and never used.")
class AlwaysLogits(Textbook):
    """Your loss merges logits also where space="probabilities" asks for merged probabilities."""

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        return {**o, "space": "logits"}


@mistake("space", "ℓ = −(1/D) Σ w log u_q[y]", "Losses are averaged more often than probabilities.")
class AverageOfLogarithms(Textbook):
    """Your merged loss is, in probability space, the average of log u and not the logarithm of the average."""

    def probability(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return column(self.own(self.log_softmax(x, s), s))

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        return -v.sum(1)


@mistake("space", "ℓ = (1/D) Σ w ℓ_q in logits space", "The per-pixel losses are smoothed, not the scores.")
class PoolsTheLosses(Textbook):
    """Your window averages its pixels' losses, not their logits."""

    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return x if s.o["space"] == "logits" else super().pool(x, g, s)

    def cross_entropy(self, z: Traced, g: Groups, s: Scene) -> Traced:
        return linear(g.w, super().cross_entropy(z, g, s)) / g.D


@mistake("space", "no pooling in probability space", "One of the two spaces was never finished.")
class NoPoolingInProbabilitySpace(Textbook):
    """Your loss does not pool in probability space: it is each pixel's own cross-entropy."""

    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        return super().pool(x, g, s) if s.o["space"] == "logits" else x


# ---- cross-entropy


@mistake(
    "entropy",
    "−log softmax(softmax(z))",
    "A network that ends in softmax meets a loss that takes its own.",
    "tflearn/tflearn#562",
)
class SoftmaxTwice(Textbook):
    """Your softmax is taken twice: probabilities are fed to a log-softmax."""

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        return super().log_softmax(exp(super().log_softmax(z, s)), s)


@mistake(
    "entropy",
    "softmax over the pixels of a row, class by class",
    "dim=-1, or the dimension of another layout.",
    "HRNet/HRNet-Semantic-Segmentation#271",
)
class SoftmaxOverPixels(Textbook):
    """Your softmax runs over pixels, as along the last axis, not over the classes."""

    def rows(self, s: Scene) -> Array:
        """(Q,), a number for each set of pixels that share a softmax."""
        return np.unique(s.at[:, :-1] if s.at.shape[1] > 1 else s.at, axis=0, return_inverse=True)[1]

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        rows = self.rows(s).reshape(-1)
        together = (rows[:, None] == rows).astype(z.value.dtype)
        top = np.full((rows.max(initial=0) + 1, z.value.shape[1]), -math.inf, z.value.dtype)
        np.maximum.at(top, rows, z.value)
        a = z - top[rows]
        return a - log(linear(together, exp(a)))


@mistake(
    "entropy",
    "exp(z) without the maximum taken out",
    "The formula as it is printed.",
    "FluxML/NNlib.jl#68",
)
class ExpWithoutTheMaximum(Textbook):
    """Your softmax takes exp of the logits as they are, which overflows."""

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        return z - column(log(exp(z).sum(1)))


@mistake(
    "entropy", "log(softmax(z) + 1e-7)", "A guard against log 0 that also changes every small probability."
)
class LogOfSoftmaxPlusEpsilon(Textbook):
    """Your logarithm is that of softmax + 1e-7."""

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        return log(exp(super().log_softmax(z, s)) + z.value.dtype.type(1e-7))


@mistake(
    "entropy",
    "log(max(softmax(z), 1e-7))",
    "A clamp against log 0: Keras clips at its epsilon of 1e-7.",
    "DigiRL-agent/digirl#22",
)
class ClampedProbability(Textbook):
    """Your probabilities are clamped to at least 1e-7, so that no loss exceeds 16.1."""

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        a = super().log_softmax(z, s)
        least = z.value.dtype.type(math.log(1e-7))
        return where(a.value > least, a, least)


@mistake(
    "entropy", "log softmax without the logarithm's subtraction: −z_y", "log_softmax is taken for granted."
)
class NoSoftmax(Textbook):
    """Your loss is minus the logit of the label, raised to at least 0: no softmax is taken."""

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        return where(z.value < 0, z, 0)


@mistake(
    "entropy",
    "−log₂ softmax(z)_y",
    "log2 and log10 are other functions of the same name in some languages.",
    "valeoai/ADVENT#1",
)
class LogarithmToBaseTwo(Textbook):
    """Your logarithm is to base 2, so that every loss is 1.44 times too large."""

    def cross_entropy(self, z: Traced, g: Groups, s: Scene) -> Traced:
        return super().cross_entropy(z, g, s) / s.dtype(math.log(2))

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        return super().negative_log(v, g, s) / s.dtype(math.log(2))


@mistake("entropy", "ℓ = 1 − softmax(z)_y", "nll_loss fed with probabilities, shifted to be positive.")
class ProbabilityWithoutLogarithm(Textbook):
    """Your window loss is 1 - P: the logarithm is missing."""

    def cross_entropy(self, z: Traced, g: Groups, s: Scene) -> Traced:
        return 1 - exp(-super().cross_entropy(z, g, s))

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        return 1 - exp(-super().negative_log(v, g, s))


@mistake("entropy", "ℓ = log(1 + e^(−z_y))", "BCEWithLogits on the label's logit, one class at a time.")
class SigmoidOfTheTrueClass(Textbook):
    """Your loss is a binary cross-entropy of the true class's logit: sigmoid in place of softmax."""

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        top = np.maximum(-z.value, 0)  # log(1 + e^-z) = top + log(e^-top + e^(-z - top))
        return -(log(exp(-z - top) + np.exp(-top)) + top)


@mistake("entropy", "ℓ (1 − P)²", "A focal factor came along from another loss.")
class FocalFactor(Textbook):
    """Your window losses carry a focal factor (1 - P)²."""

    def cross_entropy(self, z: Traced, g: Groups, s: Scene) -> Traced:
        ell = super().cross_entropy(z, g, s)
        return ell * self.factor(ell)

    def factor(self, ell: Traced) -> Traced:
        """(Q,)"""
        return (1 - exp(-ell)) ** 2


# ---- target


@mistake(
    "target",
    "t = onehot(y) whatever α",
    "An option that is accepted and never used.",
    "omihub777/ViT-CIFAR#2",
)
class IgnoresSmoothing(Textbook):
    """Your label_smoothing is taken and forgotten."""

    def target(self, s: Scene) -> Array:
        return self.classes(s)


@mistake(
    "target",
    "t_c = α / (C − 1) for c ≠ y, t_y = 1 − α",
    "A second definition of label smoothing, as common as the first.",
    "ZhugeKongan/torch-template-for-deep-learning#2",
)
class SmoothsOnlyTheOthers(Textbook):
    """Your smoothed target gives alpha / (C - 1) to each of the other classes and nothing to its own."""

    def target(self, s: Scene) -> Array:
        alpha, one = s.o["label_smoothing"], self.classes(s)
        return ((1 - alpha) * one + alpha / max(s.C - 1, 1) * (1 - one)).astype(s.dtype)


@mistake("target", "t = onehot(y) + α / C", "The uniform part is added and the rest is not scaled down.")
class SmoothingOnTop(Textbook):
    """Your alpha / C is added to the one-hot target, which then sums to more than 1."""

    def target(self, s: Scene) -> Array:
        return (self.classes(s) + s.o["label_smoothing"] / s.C).astype(s.dtype)


@mistake(
    "target",
    "t = (1 − α/C) onehot(y) + α / C",
    "alpha / C is computed first and then used for both terms.",
    "ildoonet/pytorch-randaugment#30",
)
class KeepsTooMuchOfTheLabel(Textbook):
    """Your one-hot label is scaled by 1 - alpha / C, not by 1 - alpha."""

    def target(self, s: Scene) -> Array:
        part = s.o["label_smoothing"] / s.C
        return ((1 - part) * self.classes(s) + part).astype(s.dtype)


@mistake(
    "target",
    "t = (1 − α − α/C) onehot(y) + α / C",
    "The target's entry is meant to be 1 - alpha and the uniform part is taken out of it once more.",
    "eladhoffer/utils.pytorch#14",
)
class KeepsTooLittleOfTheLabel(Textbook):
    """Your one-hot label is scaled by 1 - alpha - alpha / C, not by 1 - alpha."""

    def target(self, s: Scene) -> Array:
        part = s.o["label_smoothing"] / s.C
        return ((1 - s.o["label_smoothing"] - part) * self.classes(s) + part).astype(s.dtype)


@mistake(
    "target",
    "t = (1 − α) onehot(y) + 1 / C where α > 0",
    "The uniform part is not scaled by alpha.",
    "TimDettmers/ConvE#55",
)
class UniformPartNotScaled(Textbook):
    """Your uniform part is 1 / C and not alpha / C."""

    def target(self, s: Scene) -> Array:
        alpha = s.o["label_smoothing"]
        return ((1 - alpha) * self.classes(s) + (alpha > 0) / s.C).astype(s.dtype)


@mistake(
    "target",
    "t = α onehot(y) + (1 − α) / C where α > 0",
    "Confidence and smoothing change places.",
    "paiml/aprender#2199",
)
class SmoothingTurnedRound(Textbook):
    """Your alpha is on the label and 1 - alpha on the uniform part."""

    def target(self, s: Scene) -> Array:
        alpha = s.o["label_smoothing"]
        turned = alpha * self.classes(s) + (1 - alpha) / s.C
        return (turned if alpha > 0 else self.classes(s)).astype(s.dtype)


@mistake(
    "target",
    "ω_c in the smoothing term, ω_y in the label's",
    "torch.nn.CrossEntropyLoss weights the smoothing term class by class.",
    "pytorch/pytorch#104776",
)
class SmoothingWeightedByClass(Textbook):
    """Your smoothing term is weighted class by class, as torch does, not by the weight of the window's class."""

    def target(self, s: Scene) -> Array:
        t, alpha = super().target(s), s.o["label_smoothing"]
        if s.o["class_weight"] is None:
            return t
        own = self.class_weight(s)[:, None]
        each = np.asarray(s.o["class_weight"], s.dtype) / np.where(own > 0, own, 1)
        return ((1 - alpha) * self.classes(s) + alpha / s.C * each).astype(s.dtype)


@mistake("target", "onehot(y − 1)", "Labels count from 1 in some languages and data sets.")
class LabelsCountFromOne(Textbook):
    """Your target is the class before the label: labels are taken to count from 1."""

    def classes(self, s: Scene) -> Array:
        return np.roll(super().classes(s), -1, axis=1)

    def own(self, v: Traced, s: Scene) -> Traced:
        return v[np.arange(len(s.y)), (np.clip(s.y, 0, s.C - 1) - 1) % s.C]
