"""The one table of named cases: inputs and options, each with the reason it is there.

Tests, golden values and `lalref verify` all read this table. A case holds inputs only; the right answers
are in `golden`, made by truth. *Core* cases (2-D images, int64 labels, an odd integer kernel, finite
sigma, p and logits, one integer ignore_index) decide a verdict; the others probe one *extended* feature
each, named in `feature`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lalref.oracle.case import Case
from lalref.oracle.inputs import (
    VOID,
    IntArray,
    blobs,
    certain,
    checkerboard,
    edges,
    eighths,
    mix,
    objects,
    scattered,
    singles,
    thousands,
    weights,
)

TWO = (2, 6, 7)  # (N, H, W); most cases share a shape, for frameworks that compile
NO_POOLING = ("cross-entropy", "minkowski")


def _plain(
    name: str, reason: str, labels: IntArray, salt: int, *, classes: int = 3, limit: int = 31, **rest: Any
) -> Case:
    """A case whose logits are eighths by hash; `rest` are fields of Case, or options."""
    fields = {f.name for f in dataclasses.fields(Case)}
    options = {k: rest.pop(k) for k in list(rest) if k not in fields}
    x = rest.pop("logits", None)
    if x is None:
        x = eighths((labels.shape[0], classes, *labels.shape[1:]), salt, limit)
    if options.get("axis") == -1:
        x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    return Case(name, reason, x, labels, options, **rest)


def _all_of(shape: tuple[int, ...], label: int) -> IntArray:
    return np.full(shape, label, dtype=np.int64)


# fmt: off
def _core() -> list[Case]:
    c = _plain
    half_ignored = np.where(np.indices(TWO)[0] == 1, VOID, blobs(TWO, 3))
    tied = np.round(eighths((2, 3, 6, 7), 14, 12))  # whole numbers from -2 to 2: many ties
    y = scattered(TWO, 30, 3, VOID)
    return [
        # every option at its default
        c("plain", "Blobs of three classes, every option at its default.", blobs(TWO, 3), 1),
        c("scattered", "Labels without structure: groups of every size and shape.", scattered(TWO, 2, 3), 2),
        c("batch", "Two images of very different losses: one mean over both, no mean of means.",
          blobs(TWO, 3), 3, logits=eighths((2, 3, 6, 7), 3, 15) * np.array([1.0, 8.0]).reshape(2, 1, 1, 1)),
        c("checkerboard", "Same-class neighbours touch only at corners.", checkerboard(TWO), 4),
        c("single-pixel-groups", "No window finds a neighbour of its class, so pooling changes nothing.",
          singles(TWO, 3), 5, classes=9, stages=NO_POOLING),
        c("one-class", "All pixels of one class: only the border limits a group.", _all_of(TWO, 1), 6),
        c("wrap-around", "Opposite borders share a class: a window that wraps around would join them.",
          edges(TWO), 7),
        c("void-borders", "Objects outlined in void, as VOC's annotations are.", objects(TWO), 8),
        c("scattered-void", "One pixel in eight ignored, inside groups and at borders.",
          scattered(TWO, 9, 3, VOID), 9),
        c("all-ignored", "No valid window: value 0 and gradient exactly 0.", _all_of(TWO, VOID), 10,
          stages=()),
        c("one-image-ignored", "One image of the batch is all ignored: it counts nowhere.", half_ignored, 11),
        c("small-image", "The kernel is larger than the image on both axes.", blobs((2, 2, 3), 2, 1, 2), 12,
          classes=2),
        c("one-pixel", "A 1 by 1 image is one window with one member.", _all_of((1, 1, 1), 1), 13,
          stages=("cross-entropy",)),
        c("tied-logits", "Whole-number logits: the largest class is often tied.", scattered(TWO, 14, 3), 14,
          logits=tied),
        c("one-channel", "With C = 1 every loss is 0: value 0, gradient 0, not 0/0.", _all_of(TWO, 0), 15,
          classes=1,
          stages=()),
        c("thousands", "Logits of -1000, 0, 1000: exp must not overflow.", scattered(TWO, 16, 3), 16,
          logits=thousands((2, 3, 6, 7), 16)),
        c("flat", "All logits equal: every window loss is log C, every share the same.", blobs(TWO, 3), 17,
          logits=np.zeros((2, 3, 6, 7)), stages=()),
        c("wide-range", "Logits to 16: right and badly wrong predictions side by side.",
          scattered(TWO, 18, 3), 18, limit=127),
        c("many-classes", "Eight classes: a softmax sum with many terms.", scattered((1, 5, 5), 19, 8), 19,
          classes=8),
        c("column", "A tall thin image: rows and columns can't be mistaken for each other.",
          blobs((1, 11, 2), 3), 20),
        # one option at a time
        c("upstream-1.7", "An upstream gradient other than 1.", blobs(TWO, 3), 22, grad_output=1.703125),
        c("upstream-negative", "A negative upstream gradient turns every sign.", objects(TWO), 23,
          grad_output=-0.5),
        c("kernel-1", "A kernel of one pixel: the loss without its pooling.", y, 24, kernel_size=1,
          stages=NO_POOLING),
        c("kernel-3", "The paper's 3 by 3 window.", y, 25, kernel_size=3),
        c("kernel-7", "The paper's 7 by 7 window, wider than the image.", scattered(TWO, 26, 3, VOID), 26,
          kernel_size=7),
        c("kernel-15", "A kernel far larger than the image sees all of it.", y, 27, kernel_size=15,
          sigma=3.0),
        c("sigma-half", "A narrow Gaussian: neighbours weigh e^-2 and e^-8.", blobs(TWO, 2), 28, sigma=0.5),
        c("sigma-3", "A wide Gaussian: weights far from 0, so mistakes in distance show.", y, 29, sigma=3.0),
        c("sigma-100", "Nearly flat weights.", scattered(TWO, 30, 2), 30, sigma=100.0, kernel_size=3),
        c("softmax-cross-entropy", "kernel_size = 1, p = 1: the frameworks' own loss.", y, 31, kernel_size=1,
          p=1.0,
          stages=("cross-entropy",)),
        c("p-1", "A plain mean of the window losses.", y, 32, p=1.0, stages=("pooling", "cross-entropy")),
        c("p-2", "The root of the mean square.", objects(TWO), 33, p=2.0),
        c("p-2.5", "An exponent that is not whole.", y, 34, p=2.5),
        c("p-20", "A high power: far from the maximum r^20 is next to nothing.", blobs(TWO, 3), 35, p=20.0),
        c("p-20-thousands", "Losses of 2000 to the power 20 overflow unless scaled by the maximum first.",
          scattered(TWO, 36, 3), 36, logits=thousands((2, 3, 6, 7), 36), p=20.0),
        c("stride-2", "Windows on every second pixel; the pixels between are still read.",
          scattered(TWO, 37, 3, VOID), 37,
          stride=2),
        c("stride-3", "A stride that the image is no multiple of.", blobs(TWO, 2), 38, stride=3, p=2.0),
        c("stride-9", "A stride larger than the image: one window an image, at its origin.",
          scattered(TWO, 39, 2), 39, stride=9),
        c("count", "Divide by the number of members.", objects(TWO), 40, normalize="count"),
        c("count-ragged", "Dividing by the count where groups differ in size.", y, 41, normalize="count",
          kernel_size=3),
        c("smoothing", "A smoothed target.", y, 42, label_smoothing=0.125),
        c("smoothing-full", "label_smoothing = 1: the target no longer knows the label.", blobs(TWO, 3), 43,
          label_smoothing=1.0),
        c("probabilities", "The merged distribution in place of merged logits.", y, 44,
          space="probabilities"),
        c("probabilities-void", "The merged distribution beside void borders.", objects(TWO), 45,
          space="probabilities",
          sigma=3.0),
        c("probabilities-count", "Dividing by the count adds to the loss, not to the slope.",
          scattered(TWO, 46, 3), 46,
          space="probabilities", normalize="count", p=2.0),
        c("class-weight", "One weight a class.", y, 47, class_weight=(0.5, 2.0, 1.25)),
        c("class-weight-zero", "A class of weight 0 has no valid window.", blobs(TWO, 3), 48,
          class_weight=(1.0, 0.0, 3.0)),
        c("pixel-weight", "Weights pixel by pixel, some 0: those windows go, but the pixels stay neighbours.",
          y, 49,
          pixel_weight=weights(TWO, 49)),
        c("all-weightless", "Every weight is 0: no valid window, although no label is ignored.",
          blobs(TWO, 3), 50,
          pixel_weight=np.zeros(TWO), empty="nan", stages=()),
        c("sum", "The power sum, not divided by the number of windows.", y, 51, reduction="sum"),
        c("none", "The map of window losses; p plays no part.", y, 52, reduction="none",
          stages=("pooling", "cross-entropy")),
        c("none-upstream", "An upstream gradient of its own for every window.", objects(TWO), 53,
          reduction="none",
          grad_output=eighths(TWO, 53), stages=("pooling", "cross-entropy")),
        c("ignore-negative", "torch's habit: the ignored label is -100.", scattered(TWO, 54, 3, -100), 54,
          ignore_index=-100),
        c("ignore-class-0", "The ignored label is a class that has logits.", scattered(TWO, 55, 3), 55,
          ignore_index=0),
        c("channels-last", "The class axis is the last one.", scattered(TWO, 56, 3, VOID), 56, axis=-1),
        c("empty-nan", "empty='nan': the value of no window at all is NaN, its gradient still 0.",
          _all_of(TWO, VOID), 57,
          empty="nan", stages=()),
        # several together
        c("weights-and-sum", "Class and pixel weights multiply; the sum has no divisor.",
          scattered(TWO, 58, 3, VOID), 58,
          class_weight=(0.5, 2.0, 1.25), pixel_weight=weights(TWO, 58), reduction="sum", p=2.5,
          kernel_size=3),
        c("weights-none-stride", "The map under weights, strides and an upstream gradient.", blobs(TWO, 2),
          59,
          class_weight=(0.5, 2.0, 1.5), reduction="none", stride=2, sigma=3.0,
          grad_output=eighths((2, 3, 4), 59), stages=("pooling", "cross-entropy")),
        c("smoothing-count-stride", "Smoothing, counted members and strides in one.", y, 60,
          label_smoothing=0.25,
          normalize="count", stride=2, p=2.0, grad_output=3.0),
        c("probabilities-weights", "Probability space with weights, strides and channels last.",
          scattered(TWO, 61, 3, VOID),
          61, space="probabilities", class_weight=(1.0, 0.5, 2.0), pixel_weight=weights(TWO, 61), stride=2,
          axis=-1, sigma=3.0),
        c("smoothing-class-weight", "A window's class weight multiplies its whole loss, smoothing and all.", y, 92,
          label_smoothing=0.125, class_weight=(0.5, 2.0, 1.25)),
        c("p-100-thousands", "Losses of 2000 to the power 100 overflow float64 too.", scattered(TWO, 93, 3), 93,
          logits=thousands((2, 3, 6, 7), 93), p=100.0),
    ]


def _extended() -> list[Case]:
    c = _plain
    y = scattered(TWO, 70, 3, VOID)
    void = np.broadcast_to((y == VOID)[:, None], (2, 3, 6, 7))
    other = np.broadcast_to((scattered(TWO, 72, 3) == 2)[:, None], (2, 3, 6, 7))
    z = scattered(TWO, 73, 2, VOID)  # no pixel of class 2
    third = np.arange(3).reshape(1, 3, 1, 1) == 2
    never = np.where(third, -math.inf, eighths((2, 3, 6, 7), 73))
    partly = np.where(third & (mix((2, 3, 6, 7), 74) % 3 == 0), -math.inf, eighths((2, 3, 6, 7), 74))
    sure = scattered(TWO, 75, 3)
    volume, line, points = (1, 3, 2, 4), (2, 9), (5,)
    mirrored = eighths((1, 3, 6, 7), 82)
    mirrored = np.concatenate([mirrored, mirrored[:, :, ::-1]])  # the same windows again, upside down
    images = blobs((1, 6, 7), 3)
    images = np.concatenate([images, images[:, ::-1]])
    return [
        c("points", "No spatial axis: logits (N, C), labels (N,).", scattered(points, 62, 3, VOID), 62,
          feature="0 spatial axes", stages=NO_POOLING),
        c("line", "One spatial axis.", scattered(line, 63, 3, VOID), 63, feature="1 spatial axis"),
        c("volume", "Three spatial axes.", scattered(volume, 64, 3, VOID), 64, feature="3 spatial axes",
          kernel_size=3),
        c("volume-last", "Three spatial axes, class axis last, strided.", scattered(volume, 65, 2), 65,
          axis=-1,
          feature="3 spatial axes", kernel_size=3, stride=2, space="probabilities"),
        c("uint8", "A mask as it is read from a PNG.", scattered(TWO, 66, 3, VOID).astype(np.uint8), 66,
          feature="uint8 labels"),
        c("uint8-class-0", "A uint8 mask with no void label to speak of.", blobs(TWO, 3).astype(np.uint8), 67,
          feature="uint8 labels", kernel_size=3, ignore_index=0),
        c("kernel-3-by-5", "A window with a side of its own on each axis.", y, 68, kernel_size=(3, 5),
          feature="tuple kernel_size"),
        c("kernel-5-by-1", "A window one pixel wide, in probability space.", y, 69, kernel_size=(5, 1),
          feature="tuple kernel_size", space="probabilities"),
        c("stride-1-by-2", "A stride of its own on each axis.", y, 70, stride=(1, 2), feature="tuple stride"),
        c("stride-3-by-2", "Strides, counted members and a map.", y, 71, stride=(3, 2),
          feature="tuple stride",
          normalize="count", reduction="none", stages=("pooling", "cross-entropy")),
        c("flat-weights", "sigma=None: a plain average.", y, 72, sigma=None, feature="sigma=None"),
        c("flat-weights-7", "A plain average over a window wider than the image.", objects(TWO), 73,
          sigma=None,
          feature="sigma=None", kernel_size=7, p=2.5),
        c("sigma-tiny", "Weights that underflow to 0 read nothing, but their pixels are still counted.", y,
          74, sigma=0.0625,
          feature="weights that underflow", normalize="count"),
        c("infinity", "p = inf: the largest window loss.", y, 75, p=math.inf, feature="p=inf"),
        c("infinity-ties", "Two images, one upside down: every tie is shared in proportion to the weights.",
          images, 82,
          logits=mirrored, p=math.inf, feature="p=inf", stages=("pooling", "cross-entropy")),
        c("infinity-weights", "Weights share a tie, but do not scale the maximum.", blobs(TWO, 3), 83,
          p=math.inf,
          logits=np.zeros((2, 3, 6, 7)), feature="p=inf", class_weight=(0.5, 2.0, 1.0), stages=()),
        c("infinity-probabilities", "The largest window loss in probability space.", y, 84, p=math.inf,
          feature="p=inf", space="probabilities", reduction="sum", kernel_size=3),
        c("ignore-several", "Several ignored labels, one of them a class.", scattered(TWO, 85, 3, VOID), 85,
          ignore_index=(VOID, 1), feature="several ignored labels"),
        c("ignore-several-negative", "Ignored labels on both sides of the classes.",
          scattered(TWO, 86, 3, -1), 86,
          ignore_index=(-1, VOID), feature="several ignored labels", kernel_size=3),
        c("ignore-none", "ignore_index=None: every label counts.", blobs(TWO, 3), 87, ignore_index=None,
          feature="ignore_index=None"),
        c("ignore-none-1", "Cross-entropy of every pixel.", scattered(TWO, 88, 3), 88, ignore_index=None,
          feature="ignore_index=None", kernel_size=1, p=1.0, stages=("cross-entropy",)),
        c("nan-ignored", "NaN in the logits of ignored pixels is never read.", y, 89, unread=void,
          feature="NaN isolation"),
        c("nan-ignored-probabilities", "NaN in ignored pixels, in probability space.", y, 90, unread=void,
          feature="NaN isolation", space="probabilities", stride=2),
        c("nan-weightless-class", "NaN in the pixels of a class of weight 0 reaches no other class.",
          scattered(TWO, 72, 3),
          91, unread=other, feature="NaN isolation", class_weight=(1.0, 2.0, 0.0)),
        c("excluded-class", "A class at -inf everywhere: probability 0, gradient 0.", z, 73, logits=never,
          feature="-inf logits"),
        c("excluded-here-and-there",
          "A class at -inf in some pixels excludes it from the windows that read them.", z, 74,
          logits=partly, feature="-inf logits", kernel_size=3),
        c("sure", "Nearly perfect predictions: every window loss between 1e-30 and 1e-6.", sure, 75,
          logits=certain(sure, 3, 75, 16, 66), accurate=True, feature="tiny losses"),
        c("sure-p-1", "Nearly perfect predictions under a plain mean.", sure, 76,
          logits=certain(sure, 3, 76, 16, 66), p=1.0,
          accurate=True, feature="tiny losses", stages=("pooling", "cross-entropy")),
        c("sure-probabilities", "Nearly perfect predictions, merged as probabilities.", sure, 77,
          logits=certain(sure, 3, 77, 16, 66), accurate=True, feature="tiny losses", space="probabilities"),
        c("sure-probabilities-p-2", "Nearly perfect probabilities: root mean square, 3 by 3.", sure, 78,
          logits=certain(sure, 3, 78, 16, 66), accurate=True, feature="tiny losses", space="probabilities",
          p=2.0,
          kernel_size=3),
        c("thousands-probabilities", "Probabilities of e^-2000 underflow, their logarithms do not.",
          scattered(TWO, 79, 3),
          79, logits=thousands((2, 3, 6, 7), 79), accurate=True, feature="underflowing probabilities",
          space="probabilities"),
        c("thousands-probabilities-none", "The map where some merged probabilities underflow.", y, 80,
          logits=thousands((2, 3, 6, 7), 80), accurate=True, feature="underflowing probabilities",
          space="probabilities", reduction="none", stages=("pooling", "cross-entropy")),
        c("no-image", "An empty batch: value 0.", _all_of((0, 6, 7), 0), 81, feature="empty batch",
          stages=()),
    ]


# fmt: on


CASES: tuple[Case, ...] = (*_core(), *_extended())
"""The table."""

BY_NAME: Mapping[str, Case] = {case.name: case for case in CASES}
