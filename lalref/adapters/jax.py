"""The loss inside JAX: a function to differentiate, jit, vmap and shard.

engine="array" is traced into XLA, and has forward mode and any order of derivative too; with axis_name, which puts a
mesh's batch together in `lalref.adapters.jax_mesh`, it has the first derivative backwards alone. Every other choice
works on the host, with NumPy arrays and as a rule the numba engine, by a callback that jit leaves whole; JAX
differentiates it backwards, twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import numpy as np

import lalref
from lalref.adapters import calls
from lalref.functions import loss_for
from lalref.inputs import prepare
from lalref.options import OptionsDict

try:
    import jax
except ImportError as error:
    raise ImportError(
        "lalref.adapters.jax needs JAX: in a clone, pip install -c constraints.txt -e '.[jax]'"
    ) from error

from lalref.adapters.jax_mesh import of_the_whole

__all__ = ["locally_adaptive_loss"]

jnp = jax.numpy
Array = Any


def locally_adaptive_loss(
    logits: Array,
    labels: Array,
    *,
    pixel_weight: Array | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    **options: Unpack[OptionsDict],
) -> Array:
    """Return the loss of `logits` and `labels`, for jax.grad, jax.jit, jax.vmap and jax.shard_map.

    Parameters
    ----------
    logits : array (N, C, *S), float16, bfloat16, float32 or float64
    labels : integer array (N, *S)
    pixel_weight : floating-point array (N, *S), optional
        It gets no gradient.
    axis_name : str or tuple of str, optional
        Inside jax.shard_map, with engine="array": the mesh axes over which the batch is cut. The value is then
        that of the whole batch, on every device, and the gradient the whole's with respect to this device's
        logits: a first derivative backwards, and no other. Call shard_map inside jax.jit, else JAX takes minutes.
    **options
        As for `lalref.LocallyAdaptiveLoss`. With engine="array" labels can't be checked while tracing: pass
        check=False. By the callback they are, and a wrong one stops the run.

    Returns
    -------
    0-d array, or (N, *grid) for reduction="none"
        float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `lalref.lal_loss`; inside jax.jit, JAX wraps what the callback raises in an error of its own.
    NotImplementedError
        A second derivative with axis_name.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from lalref.adapters.jax import locally_adaptive_loss
    >>> logits, labels = jnp.zeros((1, 2, 3, 3)), jnp.zeros((1, 3, 3), jnp.uint8)
    >>> grad = jax.jit(jax.grad(locally_adaptive_loss))(logits, labels)
    >>> round(float(grad[0, 0].sum()), 6)
    -0.5
    """
    loss = loss_for(locally_adaptive_loss, options)
    logits, labels, pixel_weight = (
        jnp.asarray(a) if type(a) is np.ndarray else a for a in (logits, labels, pixel_weight)
    )
    inside = jax.sharding.get_abstract_mesh().manual_axes
    if loss.engine != "array" and (axis_name is not None or inside):  # else one's value passes for everyone's
        raise ValueError('axis_name= and jax.shard_map need engine="array", which devices run themselves')
    if loss.engine == "array":
        w = None if pixel_weight is None else jax.lax.stop_gradient(pixel_weight)
        if axis_name is not None:
            return of_the_whole(loss, axis_name, logits, labels, w)
        if loss.reduction == "none":
            return loss(logits, labels, pixel_weight=w)
        return _traced(loss, logits, labels, w)
    return _value(loss, logits, labels, pixel_weight)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _traced(loss: lalref.LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Array:
    return loss(*(jnp.asarray(a) for a in (x, y)), pixel_weight=w if w is None else jnp.asarray(w))


def _traced_jvp(loss: lalref.LocallyAdaptiveLoss, given: Any, tangents: Any) -> Any:
    """By the hand-written gradient: JAX's own would lose what is tiny and share alike among ties of any weight."""
    given = [a if a is None else jnp.asarray(a) for a in given]  # jax.grad hands NumPy's on
    x, y, w = given
    wide = _like(x).dtype  # so that a 16-bit gradient is rounded once, after upstream
    value, grad = loss.value_and_grad(x.astype(wide), y, pixel_weight=w)
    return value, jnp.sum(grad * tangents[0].astype(wide))


_traced.defjvp(_traced_jvp)


# --- On the host ------------------------------------------------------------------------------------------------


def _call(function: Callable[..., Any], loss: Any, like: list[Any], x: Array, *arrays: Array | None) -> Any:
    """function(loss, x, *arrays) of `lalref.adapters.calls` on the host, with results like `like`.

    16-bit logits go in float32, so that the gradient is rounded once, after upstream has been applied.
    """

    def host(*arrays: Array | None) -> Any:
        found = function(loss, *(a if a is None else np.asarray(a) for a in arrays))
        return [np.asarray(a, b.dtype) for a, b in zip(found, like, strict=True)]

    wide = x.astype(_like(x).dtype)
    return jax.pure_callback(host, like, wide, *arrays, vmap_method="sequential")


def _like(x: Array) -> Any:
    return jax.ShapeDtypeStruct(x.shape, jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def _like_value(loss: lalref.LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Any:
    """The shape and dtype of the value; what doesn't fit is told here, before anything runs."""
    traced = dataclasses.replace(loss, check=False, empty="zero")
    grid = jax.eval_shape(lambda x, y, w: prepare(x, y, w, traced).valid, x, y, w).shape
    return jax.ShapeDtypeStruct(grid if loss.reduction == "none" else (), _like(x).dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _value(loss: lalref.LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Array:
    return _call(calls.value, loss, [_like_value(loss, x, y, w)], x, y, w)[0]


def _value_fwd(loss: lalref.LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Any:
    if loss.reduction == "none":  # its gradient waits for what comes from above
        return _value(loss, x, y, w), (x, y, w, None)
    value, grad = _value_and_grad(loss, x, y, w)
    return value, (x, y, w, grad)


def _value_bwd(loss: lalref.LocallyAdaptiveLoss, kept: Any, upstream: Array) -> Any:
    x, y, w, grad = kept
    x_bar = _gradient(loss, x, y, w, upstream) if grad is None else grad * upstream
    return x_bar.astype(x.dtype), None, None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _value_and_grad(loss: lalref.LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Any:
    """The value and the gradient of upstream 1 in the working dtype."""
    return tuple(_call(calls.value_and_grad, loss, [_like_value(loss, x, y, w), _like(x)], x, y, w))


def _value_and_grad_fwd(loss: lalref.LocallyAdaptiveLoss, x: Array, y: Array, w: Array | None) -> Any:
    value, grad = _value_and_grad(loss, x, y, w)
    return (value, grad), (x, y, w, grad)


def _value_and_grad_bwd(loss: lalref.LocallyAdaptiveLoss, kept: Any, bars: tuple[Array, Array]) -> Any:
    x, y, w, grad = kept
    value_bar, tangent = bars
    one = jnp.ones_like(value_bar)
    grad_dot = _call(calls.hvp, loss, [_like(x), one], x, y, w, one, tangent)[0]
    return (value_bar * grad + grad_dot).astype(x.dtype), None, None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(loss: Any, x: Array, y: Array, w: Array | None, upstream: Array) -> Array:
    """The gradient of a map times `upstream`, in the working dtype."""
    return _call(calls.gradient, loss, [_like(x)], x, y, w, upstream)[0]


def _gradient_fwd(loss: Any, x: Array, y: Array, w: Array | None, upstream: Array) -> Any:
    return _gradient(loss, x, y, w, upstream), (x, y, w, upstream)


def _gradient_bwd(loss: lalref.LocallyAdaptiveLoss, kept: Any, tangent: Array) -> Any:
    x, upstream = kept[0], kept[-1]
    like = [_like(x), jax.ShapeDtypeStruct(upstream.shape, upstream.dtype)]
    x_bar, upstream_bar = _call(calls.hvp, loss, like, *kept, tangent)
    return x_bar.astype(x.dtype), None, None, upstream_bar


_value.defvjp(_value_fwd, _value_bwd)
_value_and_grad.defvjp(_value_and_grad_fwd, _value_and_grad_bwd)
_gradient.defvjp(_gradient_fwd, _gradient_bwd)
