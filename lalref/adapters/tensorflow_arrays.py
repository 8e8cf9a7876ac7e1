"""Keras's tensors at lalref's door: dtypes, what tf.function knows of shapes, and on the host Keras's own shapes.

Keras's labels and weights may have a last axis of length 1, and its weights may be one for an image. It is a room
apart from `lalref.adapters.tensorflow`, which knows derivatives and nothing of that, and this one the other way round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import tensorflow as tf

import lalref
from lalref.arrays import FLOATS, INTEGERS
from lalref.inputs import prepare

Tensor = Any


def wide_of(x: Tensor) -> Any:
    """The dtype that logits are worked out in."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def at_the_door(loss: Any, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None) -> Any:
    """Logits, labels and weights as tensors, and what can be told of them before anything runs."""
    x, y = tf.convert_to_tensor(y_pred), tf.convert_to_tensor(y_true)
    if x.dtype.name not in FLOATS:  # others would be made floating-point on the way to the engine
        raise TypeError(f"y_pred, the logits, must be of dtype {', '.join(FLOATS)}; got {x.dtype.name}")
    if y.dtype.name not in INTEGERS:
        hint = (
            ". Keras casts labels for a plain function: pass LocallyAdaptiveLoss(), the class of "
            "lalref.adapters.tensorflow"
        )
        told = f"y_true: labels must be integers (class indices, uint8 masks too); got {y.dtype.name}"
        raise TypeError(told + hint * y.dtype.is_floating)
    w = None if sample_weight is None else tf.convert_to_tensor(sample_weight)
    if w is not None and (w.dtype.is_integer or w.dtype.is_bool):
        w = tf.cast(w, wide_of(x))
    if not tf.executing_eagerly():
        _check_while_tracing(loss, x, y, w)
    return x, y, w


def on_host(function: Callable[..., Any], loss: Any, x: Any, y: Any, w: Any, *more: Any) -> Any:
    """function(loss, x, y, w, *more) of NumPy arrays, in lalref's shapes where they come in Keras's."""
    last = x.ndim and loss.axis % x.ndim == x.ndim - 1
    y, w = (a[..., 0] if last and np.ndim(a) == x.ndim and a.shape[-1] == 1 else a for a in (y, w))
    if w is not None and w.ndim == 1 < y.ndim:
        if len(w) != len(y):
            raise ValueError(f"sample_weight has {len(w)} weights for {len(y)} images: pass one for each")
        w = np.broadcast_to(w.reshape(-1, *(1,) * (y.ndim - 1)), y.shape)
    try:
        return function(loss, x, y, w, *more)
    except (TypeError, ValueError) as error:
        error.args = (str(error).replace("pixel_weight", "sample_weight"),)
        raise


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def _check_while_tracing(loss: lalref.LocallyAdaptiveLoss, x: Tensor, y: Tensor, w: Tensor | None) -> None:
    """Tell here what doesn't fit, by zeros of these dtypes and shapes."""
    tensors = [y] if w is None else [y, w]
    if not x.shape.rank or any(t.shape.rank is None for t in tensors):
        return
    c = loss.axis % x.shape.rank
    classes = x.shape[c] if x.shape[c] is not None else len(loss.class_weight or "1")
    sizes = [*x.shape[:c], *x.shape[c + 1 :]]
    for t in tensors:  # what one tensor doesn't know another may
        sizes = [b if a is None else a for a, b in zip_longest(sizes, t.shape[: len(sizes)])]
    sizes = [1 if a is None else a for a in sizes]

    def zeros(t: Tensor, sizes: Sequence[int]) -> Any:
        known = zip_longest(t.shape, sizes[: t.shape.rank], fillvalue=1)
        shape = [b if a is None else a for a, b in known]
        return np.broadcast_to(np.zeros((), t.dtype.as_numpy_dtype), shape)

    traced = dataclasses.replace(loss, check=False, empty="zero")
    logits = zeros(x, [*sizes[:c], classes, *sizes[c:]])
    try:
        on_host(_fits, traced, logits, *(t if t is None else zeros(t, sizes) for t in (y, w)))
    except ValueError as error:
        if None in x.shape:
            error.args = (f"{error} (1 stands for a size that is not known while tracing)",)
        raise


def _fits(loss: lalref.LocallyAdaptiveLoss, x: Any, y: Any, w: Any) -> None:
    prepare(x, y, w, loss)
