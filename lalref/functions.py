"""The `lal_*` functions: the calls of `LocallyAdaptiveLoss` with the options beside the arrays.

Nothing is worked out here, and no option is named a second time.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Unpack

from lalref.arrays import Array
from lalref.hints import refuse_unknown
from lalref.loss import LocallyAdaptiveLoss
from lalref.options import NAMES, Options, OptionsDict


def _with_options(function: Callable[..., Any]) -> Any:
    """Show the options by name and default in the signature, where help() and editors look."""
    signature = inspect.signature(function, eval_str=False)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in dataclasses.fields(Options)
    ]
    positional = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    keyword = [p for p in own if p.kind is p.KEYWORD_ONLY]
    function.__signature__ = signature.replace(parameters=[*positional, *options, *keyword])  # type: ignore[attr-defined]
    return function


def loss_for(function: Callable[..., Any], options: OptionsDict) -> LocallyAdaptiveLoss:
    """The loss of these options; an unknown one is told by the name of the function that was called."""
    if not options.keys() <= set(NAMES):
        own = [p.name for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
        refuse_unknown(function.__name__, options, {*own, *NAMES})
    return LocallyAdaptiveLoss(**options)


@_with_options
def lal_loss(
    logits: Array, labels: Array, *, pixel_weight: Array | None = None, **options: Unpack[OptionsDict]
) -> Array:
    """Return the locally adaptive learning loss of `logits` and `labels`.

    Parameters
    ----------
    logits : array (N, C, *S), float16, bfloat16, float32 or float64
        0 to 5 spatial axes S, of any array-API library; never written to.
    labels : integer array (N, *S) of the same library and device
        Classes 0 to C-1, or ignored ones.
    pixel_weight : floating-point array (N, *S), optional
        A weight for each pixel's window; 0 leaves the window out, the pixel stays its neighbours' neighbour.
    **options
        As for `LocallyAdaptiveLoss`.

    Returns
    -------
    0-d array, or (N, *grid) for reduction="none"
        float64 for float64 logits, else float32.

    Raises
    ------
    TypeError
        Arrays of a dtype or library that isn't taken.
    ValueError
        Shapes that don't fit, labels out of range, weights or options that aren't allowed, an engine that
        can't serve the call.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> logits = np.array([[[0.0, 2.0, 0.0]], [[0.0, 0.0, 4.0]]]).transpose(1, 0, 2)  # (1, 2, 3)
    >>> float(lalref.lal_loss(logits, np.array([[0, 0, 1]]), kernel_size=1, p=1))  # softmax cross-entropy
    0.2794083731735758
    """
    return loss_for(lal_loss, options)(logits, labels, pixel_weight=pixel_weight)


@_with_options
def lal_value_and_grad(
    logits: Array,
    labels: Array,
    *,
    grad_output: float | Array = 1.0,
    pixel_weight: Array | None = None,
    **options: Unpack[OptionsDict],
) -> tuple[Array, Array]:
    """Return the loss and its gradient with respect to the logits, by the hand-written backward (11) to (14).

    Parameters
    ----------
    logits, labels, pixel_weight, **options
        As for `lal_loss`.
    grad_output : float, 0-d array, or for reduction="none" an array like the map
        What the gradient is multiplied by, before it is rounded to the dtype of the logits.

    Returns
    -------
    value, grad
        The value as `lal_loss` returns it; the gradient in the shape and dtype of the logits, exactly 0
        where no valid window reads.

    Raises
    ------
    TypeError, ValueError
        As `lal_loss`.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> value, grad = lalref.lal_value_and_grad(np.zeros((1, 2, 1)), np.array([[0]]))
    >>> grad[0, :, 0]
    array([-0.5,  0.5])
    """
    return loss_for(lal_value_and_grad, options).value_and_grad(
        logits, labels, grad_output=grad_output, pixel_weight=pixel_weight
    )


@_with_options
def lal_jvp(
    logits: Array,
    labels: Array,
    tangent: Array,
    *,
    pixel_weight: Array | None = None,
    **options: Unpack[OptionsDict],
) -> tuple[Array, Array]:
    """Return the loss and its derivative along `tangent`: forward mode, equation (15).

    Parameters
    ----------
    logits, labels, pixel_weight, **options
        As for `lal_loss`.
    tangent : array shaped as the logits
        Its values at ignored pixels are never read.

    Returns
    -------
    value, value_dot
        Both in the shape and dtype of the value.

    Raises
    ------
    TypeError, ValueError
        As `lal_loss`.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> x, y = np.zeros((1, 2, 1)), np.array([[0]])
    >>> float(lalref.lal_jvp(x, y, np.array([[[1.0], [0.0]]]))[1])
    -0.5
    """
    return loss_for(lal_jvp, options).jvp(logits, labels, tangent, pixel_weight=pixel_weight)


@_with_options
def lal_hvp(
    logits: Array,
    labels: Array,
    tangent: Array,
    *,
    grad_output: float | Array = 1.0,
    pixel_weight: Array | None = None,
    **options: Unpack[OptionsDict],
) -> tuple[Array, Array]:
    """Return the gradient and its derivative along `tangent`, a Hessian-vector product: equation (16).

    Parameters
    ----------
    logits, labels, tangent, pixel_weight, **options
        As for `lal_jvp`.
    grad_output : float, 0-d array, or for reduction="none" an array like the map
        Multiplies both results.

    Returns
    -------
    grad, grad_dot
        In the shape and dtype of the logits. At ties of p = inf and at ell = 0 the shares are held fixed.

    Raises
    ------
    TypeError, ValueError
        As `lal_loss`.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> x, y = np.zeros((1, 2, 1)), np.array([[0]])
    >>> lalref.lal_hvp(x, y, np.array([[[1.0], [0.0]]]), p=1)[1][0, :, 0]
    array([ 0.25, -0.25])
    """
    return loss_for(lal_hvp, options).hvp(
        logits, labels, tangent, grad_output=grad_output, pixel_weight=pixel_weight
    )
