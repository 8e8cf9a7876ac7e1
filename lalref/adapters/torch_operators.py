"""Custom operators of PyTorch over lalref's engines, and what autograd does with them.

Tensors on the CPU go to the numba engine and tensors on a GPU to the cuda engine, the same memory under another
name, in torch's current stream. Three operators, which compilers leave whole, are all that autograd sees: the
value with its gradient, that gradient on its own, and a Hessian-vector product for double backward. Options come
as text and logits in 32 or 64 bits; whatever is wrong with tensors is told by lalref's own door or by
`lalref.adapters.torch`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

import lalref
from lalref.minkowski import Parts

Tensor = Any


@functools.cache
def loss_of(options: str) -> lalref.LocallyAdaptiveLoss:
    return lalref.LocallyAdaptiveLoss(**json.loads(options))


def on_engine(
    loss: lalref.LocallyAdaptiveLoss, call: Callable[..., Iterable[Any]], *tensors: Tensor | None
) -> list[Tensor]:
    """call(*arrays) of the tensors' own memory, as tensors; of tensors themselves where torch does the work."""
    device = tensors[0].device  # type: ignore[union-attr]
    given = [t if t is None else t.detach() for t in tensors]
    if loss.engine == "array" or device.type not in ("cpu", "cuda"):
        return [found.contiguous() for found in call(*given)]
    if device.type == "cpu":
        results = call(*(t if t is None else t.numpy() for t in given))
        return [torch.from_numpy(np.asarray(found)).contiguous() for found in results]
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "tensors on a GPU need CuPy: pip install 'lalref[cuda13]' or, for older drivers, 'lalref[cuda12]'; "
            'or pass engine="array"'
        ) from error
    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream, device.index):
        results = call(*(t if t is None else cupy.from_dlpack(t) for t in given))
        return [torch.from_dlpack(found).contiguous() for found in results]


# --- The operators ----------------------------------------------------------------------------------------------


def _operator(name: str, arguments: str, result: str) -> Any:
    schema = f"(Tensor x, Tensor y, Tensor? w, str options, {arguments}) -> {result}"
    return torch.library.custom_op(f"lalref::{name}", mutates_args=(), schema=schema)


def parts_of(numbers: Any, x: Tensor, loss: lalref.LocallyAdaptiveLoss) -> Any:
    """The Parts of four numbers, in the dtype of x; None where there are none."""
    if numbers is None:
        return None
    maximum, power_sum, weight, count = numbers
    return Parts(maximum, power_sum, weight, count, loss, str(x.dtype).removeprefix("torch."))


@_operator("value_and_grad", "Tensor? total, bool eager", "(Tensor, Tensor)")  # type: ignore[untyped-decorator]
def value_and_grad(
    x: Tensor, y: Tensor, w: Any, options: str, total: Any, eager: bool
) -> tuple[Tensor, Tensor]:
    """The value, and for a number that autograd will ask for also its gradient."""
    loss = loss_of(options)

    def call(x_: Any, y_: Any, w_: Any, total_: Any) -> Iterable[Any]:
        whole = parts_of(total_, x, loss)
        if eager and loss.reduction != "none":
            return loss.value_and_grad(x_, y_, pixel_weight=w_, total=whole)
        return [loss(x_, y_, pixel_weight=w_) if whole is None else whole.value]

    value, *grad = on_engine(loss, call, x, y, w, total)
    return value, grad[0] if grad else x.new_empty(0)


@value_and_grad.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, options: str, total: Any, eager: bool) -> tuple[Tensor, Tensor]:
    loss = loss_of(options)
    if loss.reduction != "none":
        return x.new_empty(()), x.new_empty(x.shape if eager else 0)
    grid = (slice(None), *(slice(None, None, s) for s in loss.strides(x.ndim - 2)))
    return x.new_empty(x.select(loss.axis, 0)[grid].shape), x.new_empty(0)


@_operator("gradient", "Tensor? total, Tensor upstream", "Tensor")  # type: ignore[untyped-decorator]
def gradient(x: Tensor, y: Tensor, w: Any, options: str, total: Any, upstream: Tensor) -> Tensor:
    """The gradient times `upstream`."""
    loss = loss_of(options)

    def call(x_: Any, y_: Any, w_: Any, total_: Any, g: Any) -> Iterable[Any]:
        whole = parts_of(total_, x, loss)
        return loss.value_and_grad(x_, y_, pixel_weight=w_, total=whole, grad_output=g)[1:]

    return on_engine(loss, call, x, y, w, total, upstream)[0]


@gradient.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, options: str, total: Any, upstream: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_operator("hvp", "Tensor upstream, Tensor tangent", "(Tensor, Tensor)")  # type: ignore[untyped-decorator]
def hvp(
    x: Tensor, y: Tensor, w: Any, options: str, upstream: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """The derivatives of <gradient, tangent> with respect to upstream and x."""
    loss = loss_of(options)

    def call(x_: Any, y_: Any, w_: Any, g: Any, v: Any) -> Iterable[Any]:
        _, value_dot = loss.jvp(x_, y_, v, pixel_weight=w_)
        return value_dot, loss.hvp(x_, y_, v, pixel_weight=w_, grad_output=g)[1]

    value_dot, grad_dot = on_engine(loss, call, x, y, w, upstream, tangent)
    return value_dot, grad_dot


@hvp.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, options: str, upstream: Tensor, tangent: Tensor) -> Any:
    return upstream.new_empty(upstream.shape), x.new_empty(x.shape)


# --- What autograd does with them -------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, w, ctx.options, total, _ = inputs
    ctx.save_for_backward(x, y, w, total)
    ctx.grad = output[1]  # given away by the first backward: x.grad then is this memory, not a copy of it
    ctx.mark_non_differentiable(ctx.grad)
    ctx.set_materialize_grads(False)  # none for the gradient, which is as large as the logits


def _back(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Any, ...]:
    x, y, w, total = ctx.saved_tensors
    if upstream is None:
        return (None,) * 6
    grad, ctx.grad = ctx.grad, None
    if grad is None or torch.is_grad_enabled() or loss_of(ctx.options).reduction == "none":
        return gradient(x, y, w, ctx.options, total, upstream), *(None,) * 5
    traced = type(upstream) is not torch.Tensor
    if traced or upstream.device.type != "cpu" or upstream.item() != 1:  # a GPU would have to be waited for
        grad = grad * upstream
    return grad, *(None,) * 5


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, w, ctx.options, total, upstream = inputs
    ctx.save_for_backward(x, y, w, total, upstream)


def _back_again(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    x, y, w, total, upstream = ctx.saved_tensors
    if total is not None:
        raise NotImplementedError("total= gives first derivatives only: take second ones of the whole batch")
    upstream_dot, x_dot = hvp(x, y, w, ctx.options, upstream, tangent)
    return x_dot, *(None,) * 4, upstream_dot


value_and_grad.register_autograd(_back, setup_context=_keep)
gradient.register_autograd(_back_again, setup_context=_keep_again)
