"""Custom operators of PyTorch over lalref's engines, and what autograd does with them.

Tensors on the CPU go to the numba engine and tensors on a GPU to the cuda engine, the same memory under another
name, in torch's current stream. Three operators, which compilers leave whole, are all that autograd sees: the
value with its gradient, that gradient on its own, and a Hessian-vector product for double backward. Options come
as text; whatever is wrong with tensors is told by lalref's own door or by `lalref.adapters.torch`.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import lalref
from lalref.minkowski import Parts

Tensor = Any

NUMBERS = ("maximum", "power_sum", "weight", "count")  # of Parts, in the order in which operators take them


@functools.cache
def loss_of(options: str) -> lalref.LocallyAdaptiveLoss:
    return lalref.LocallyAdaptiveLoss(**json.loads(options))


def _unpacked(
    packed: Tensor | None, x: Tensor, loss: lalref.LocallyAdaptiveLoss, to: Callable[..., Any]
) -> Any:
    if packed is None:
        return None
    maximum, power_sum, weight, count = (
        to(number)[()] for number in (*packed[:3], packed[3].to(torch.int64))
    )
    return Parts(maximum, power_sum, weight, count, loss, str(x.dtype).removeprefix("torch."))


def widened(x: Tensor) -> Tensor:
    """16-bit logits in float32, so that the gradient is rounded once, after upstream has been applied."""
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).detach()


class _Bridge(NamedTuple):
    entered: Callable[[], Any]  # a context to work in
    to: Callable[[Tensor | None], Any]  # tensor -> array of the same memory
    back: Callable[[Any], Tensor]


def bridge_for(device: Any, loss: lalref.LocallyAdaptiveLoss) -> _Bridge:
    """How tensors on `device` reach an engine; engine="array" and other devices work on the tensors themselves."""
    if loss.engine == "array" or device.type not in ("cpu", "cuda"):
        return _Bridge(contextlib.nullcontext, lambda t: t, lambda a: a.contiguous())
    if device.type == "cpu":
        return _Bridge(
            contextlib.nullcontext,
            lambda t: None if t is None else t.detach().numpy(),
            lambda a: torch.from_numpy(np.asarray(a)).contiguous(),
        )
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "tensors on a GPU need CuPy: pip install 'lalref[cuda13]' or, for older drivers, 'lalref[cuda12]'; "
            'or pass engine="array"'
        ) from error

    @contextlib.contextmanager
    def entered() -> Any:
        stream = torch.cuda.current_stream(device)
        with cupy.cuda.Device(device.index), cupy.cuda.ExternalStream(stream.cuda_stream, device.index):
            yield

    return _Bridge(
        entered,
        lambda t: None if t is None else cupy.from_dlpack(t.detach()),
        lambda a: torch.from_dlpack(a).contiguous(),
    )


# --- The operators ----------------------------------------------------------------------------------------------

_INPUTS = "Tensor x, Tensor y, Tensor? w, Tensor? total, str options"


def _operator(name: str, arguments: str, result: str) -> Any:
    return torch.library.custom_op(
        f"lalref::{name}", mutates_args=(), schema=f"({_INPUTS}, {arguments}) -> {result}"
    )


def _map_shape(x: Tensor, loss: lalref.LocallyAdaptiveLoss) -> tuple[Any, ...]:
    if loss.reduction != "none":
        return ()
    N, *S = (n for a, n in enumerate(x.shape) if a != loss.axis % x.ndim)
    return (N, *(-(-n // s) for n, s in zip(S, loss.strides(len(S)), strict=True)))


@_operator("value_and_grad", "bool eager", "(Tensor, Tensor)")  # type: ignore[untyped-decorator]
def value_and_grad(
    x: Tensor, y: Tensor, w: Any, total: Any, options: str, eager: bool
) -> tuple[Tensor, Tensor]:
    """The value, and for a number that autograd will ask for also its gradient, in the working dtype."""
    loss, x = loss_of(options), widened(x)
    bridge = bridge_for(x.device, loss)
    with bridge.entered():
        call = {"pixel_weight": bridge.to(w)}
        arrays = bridge.to(x), bridge.to(y)
        whole = _unpacked(total, x, loss, bridge.to)
        if eager and loss.reduction != "none":
            value, grad = loss.value_and_grad(*arrays, total=whole, **call)
            return bridge.back(value), bridge.back(grad)
        value = loss(*arrays, **call) if whole is None else whole.value
        return bridge.back(value), x.new_empty(0)


@value_and_grad.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, total: Any, options: str, eager: bool) -> tuple[Tensor, Tensor]:
    loss = loss_of(options)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad = x.shape if eager and loss.reduction != "none" else (0,)
    return x.new_empty(_map_shape(x, loss), dtype=dtype), x.new_empty(grad, dtype=dtype)


@_operator("gradient", "Tensor upstream", "Tensor")  # type: ignore[untyped-decorator]
def _gradient(x: Tensor, y: Tensor, w: Any, total: Any, options: str, upstream: Tensor) -> Tensor:
    """The gradient times `upstream`, in the dtype of x."""
    loss, wide = loss_of(options), widened(x)
    bridge = bridge_for(x.device, loss)
    with bridge.entered():
        x_, y_, w_, g_ = map(bridge.to, (wide, y, w, upstream.detach()))
        whole = _unpacked(total, wide, loss, bridge.to)
        _, grad = loss.value_and_grad(x_, y_, pixel_weight=w_, grad_output=g_, total=whole)
        return bridge.back(grad).to(x.dtype)


@_gradient.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, total: Any, options: str, upstream: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_operator("hvp", "Tensor upstream, Tensor tangent", "(Tensor, Tensor)")  # type: ignore[untyped-decorator]
def _hvp(
    x: Tensor, y: Tensor, w: Any, total: Any, options: str, upstream: Tensor, tangent: Tensor
) -> tuple[Tensor, Tensor]:
    """The derivatives of <gradient, tangent> with respect to upstream and x."""
    loss, wide = loss_of(options), widened(x)
    if total is not None:
        raise NotImplementedError("total= gives first derivatives only: take second ones of the whole batch")
    bridge = bridge_for(x.device, loss)
    with bridge.entered():
        x_, y_, w_, g_, v_ = map(bridge.to, (wide, y, w, upstream.detach(), widened(tangent)))
        _, value_dot = loss.jvp(x_, y_, v_, pixel_weight=w_)
        _, grad_dot = loss.hvp(x_, y_, v_, pixel_weight=w_, grad_output=g_)
        return bridge.back(value_dot).to(upstream.dtype), bridge.back(grad_dot).to(x.dtype)


@_hvp.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, total: Any, options: str, upstream: Tensor, tangent: Tensor) -> Any:
    return upstream.new_empty(upstream.shape), x.new_empty(x.shape)


# --- What autograd does with them -------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, w, total, ctx.options, _ = inputs
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
        return _gradient(x, y, w, total, ctx.options, upstream), *(None,) * 5
    traced = type(upstream) is not torch.Tensor
    if traced or upstream.device.type != "cpu" or upstream != 1:  # a GPU would have to be waited for
        grad = grad * upstream
    return grad.to(x.dtype), *(None,) * 5


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, y, w, total, ctx.options, upstream = inputs
    ctx.save_for_backward(x, y, w, total, upstream)


def _back_again(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    x, y, w, total, upstream = ctx.saved_tensors
    upstream_dot, x_dot = _hvp(x, y, w, total, ctx.options, upstream, tangent)
    return x_dot, None, None, None, None, upstream_dot


value_and_grad.register_autograd(_back, setup_context=_keep)
_gradient.register_autograd(_back_again, setup_context=_keep_again)
