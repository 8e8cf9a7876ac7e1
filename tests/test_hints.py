"""A refused call is told what it most likely meant, and nothing is mended in silence."""

import copy
import dataclasses
import inspect
import pickle
import re

import numpy as np
import pytest
from samples import V, X, Y, refused

from lalref import LocallyAdaptiveLoss, lal_hvp, lal_jvp, lal_loss, lal_value_and_grad

LIKELY = [
    ("no batch axis", X[0], Y[0], 1, "logits[None] and labels[None]"),
    ("no batch axis of logits", X[0], Y[:1], 1, "pass logits[None]"),
    ("no batch axis of labels", X[:1], Y[0], 1, "pass labels[None]"),
    ("one-hot", X, (X > 0).astype(int), 1, "labels.argmax(1)"),
    ("one-hot, channels-last", np.moveaxis(X, 1, -1), np.moveaxis(X > 0, 1, -1) * 1, -1, "labels.argmax(-1)"),
    ("axis of length 1", X, Y[:, None], 1, "pass labels[:, 0]"),
    ("axis of length 1, one class", X[:, :1], Y[:, None], 1, "pass labels[:, 0]"),
    ("axis of length 1, last", X, Y[..., None], 1, "pass labels[:, :, :, 0]"),
    ("channels-last", np.moveaxis(X, 1, -1), Y, 1, "pass axis=-1"),
    ("channels-first", X, Y, -1, "pass axis=1"),
    ("classes between", np.moveaxis(X, 1, 2), Y, 1, "pass axis=2"),
]


@pytest.mark.parametrize(("x", "y", "axis", "hint"), [c[1:] for c in LIKELY], ids=[c[0] for c in LIKELY])
@pytest.mark.parametrize("call", [lal_loss, lal_value_and_grad])
def test_a_likely_mistake_of_shape_is_told_how_to_mend(call, x, y, axis, hint):
    """And never mended in silence."""
    with refused(ValueError, str(x.shape), f"got {y.shape}", hint):
        call(x, y, axis=axis)


def test_no_hint_is_given_where_none_is_likely():
    for y in (Y[:, :4], Y.ravel(), Y[0]):
        with pytest.raises(ValueError, match=rf"got {re.escape(str(y.shape))}$"):
            lal_loss(X, y)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("kernel", "kernel_size"), ("reductoin", "reduction"), ("ignore_label", "ignore_index"),
     ("pixel_weights", "pixel_weight"), ("weight", "class_weight")],
)  # fmt: skip
def test_an_unknown_option_is_refused_by_the_function_that_was_called(name, meant):
    for call, args in (
        (lal_loss, (X, Y)),
        (lal_value_and_grad, (X, Y)),
        (lal_jvp, (X, Y, V)),
        (lal_hvp, (X, Y, V)),
    ):
        with refused(TypeError, f"{call.__name__}()", f"'{name}'", f"did you mean {meant}=?"):
            call(*args, **{name: 3})
    with refused(TypeError, "LocallyAdaptiveLoss()", f"'{name}'"):
        LocallyAdaptiveLoss(**{name: 3})


def test_an_option_of_other_losses_is_told_what_holds_here():
    with refused(TypeError, "'from_logits': the loss takes logits: leave the softmax out of the last layer"):
        lal_loss(X, Y, from_logits=True)


def test_the_object_tells_what_was_meant_too():
    with refused(TypeError, "LocallyAdaptiveLoss()", "'kernal'", "did you mean kernel_size=?"):
        LocallyAdaptiveLoss(kernal=3)
    with pytest.raises(TypeError, match="positional"):
        LocallyAdaptiveLoss(3)
    loss = LocallyAdaptiveLoss(kernel_size=3)
    assert pickle.loads(pickle.dumps(loss)) == loss == copy.deepcopy(loss)
    assert dataclasses.replace(loss, p=2.0).p == 2.0
    assert list(inspect.signature(LocallyAdaptiveLoss).parameters)[:2] == ["kernel_size", "sigma"]


def test_an_option_like_no_other_is_refused_with_all_there_are():
    with refused(
        TypeError, "lal_loss()", "'temperature'", "allowed are axis, ", "kernel_size", "sigma, space, stride"
    ):
        lal_loss(X, Y, temperature=2.0)
