"""What every adapter asks of a loss: its value and its derivatives, each as a list of arrays.

Frameworks differentiate by chains of such calls: the value, what comes back from it, and for second derivatives
what comes back from that. Arrays are those of the engine; no framework may come in.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lalref.loss import LocallyAdaptiveLoss
from lalref.minkowski import Parts

Array = Any


def value(loss: LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None, total: Parts | None = None) -> Any:
    """The value, or that of the whole of which `total` are the parts."""
    if total is None:
        return [loss(x, y, pixel_weight=w)]
    return loss.forward(x, y, pixel_weight=w, total=total)[:1]


def value_and_grad(
    loss: LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None, total: Parts | None = None
) -> Any:
    """The value, and the gradient of upstream 1 but for a map: its gradient waits for what comes from above."""
    if loss.reduction == "none":
        return value(loss, x, y, w, total)
    return loss.value_and_grad(x, y, pixel_weight=w, total=total)


def gradient(
    loss: LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None, g: Array, total: Parts | None = None
) -> Any:
    """The gradient times upstream `g`."""
    return loss.value_and_grad(x, y, pixel_weight=w, grad_output=g, total=total)[1:]


def hvp(loss: LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None, g: Array, v: Array) -> Any:
    """The derivatives of <gradient times g, v> with respect to x and g."""
    _, value_dot = loss.jvp(x, y, v, pixel_weight=w)
    return [loss.hvp(x, y, v, pixel_weight=w, grad_output=g)[1], value_dot]


def parts(loss: LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Any:
    """What these arrays contribute to the loss of a larger batch."""
    return [loss.parts(x, y, pixel_weight=w)]


def said(loss: LocallyAdaptiveLoss) -> dict[str, Any]:
    """The options that are not their defaults, of which the same loss can be made again."""
    values = {field.name: (getattr(loss, field.name), field.default) for field in dataclasses.fields(loss)}
    return {name: value for name, (value, default) in values.items() if value is not default}
