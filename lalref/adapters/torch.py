"""The loss inside PyTorch: a function and a module, with autograd, autocast and torch.compile.

Tensors on the CPU go to the numba engine and tensors on a GPU to the cuda engine, the same memory under another
name, in torch's current stream. Three custom operators, which compilers leave whole, are all that autograd sees:
the value with its gradient, that gradient on its own, and a Hessian-vector product for double backward.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import numpy as np

import lalref
from lalref.minkowski import Parts
from lalref.options import OptionsDict

try:
    import torch
except ImportError as error:
    raise ImportError("lalref.adapters.torch needs PyTorch: pip install 'lalref[torch]'") from error

Tensor = Any  # torch has types, but need not be installed where these are checked


def locally_adaptive_loss(
    input: Tensor,
    target: Tensor,
    *,
    pixel_weight: Tensor | None = None,
    total: Parts | None = None,
    **options: Unpack[OptionsDict],
) -> Tensor:
    """Return the loss of `input` and `target`, which autograd differentiates, twice too.

    Parameters
    ----------
    input : Tensor (N, C, *S), float16, bfloat16, float32 or float64
        Logits, on any device. 16-bit ones, as under autocast, are worked out in float32.
    target : integer Tensor (N, *S) on the same device
    pixel_weight : floating-point Tensor (N, *S), optional
        It gets no gradient, so it must not require one.
    total : Parts, optional
        The `lalref.combine`-d parts of a whole, from `LocallyAdaptiveLoss.parts`: the value is then the
        whole's, and the gradient that of the whole's value.
    **options
        As for `lalref.LocallyAdaptiveLoss`. torch ignores the label -100 where nobody says otherwise, lalref
        255: say ignore_index=-100 for labels made for torch. class_weight may be a tensor.

    Returns
    -------
    0-d Tensor, or (N, *grid) for reduction="none"
        float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `lalref.lal_loss`, and where tensors are on different devices.

    Examples
    --------
    >>> import torch
    >>> from lalref.adapters.torch import locally_adaptive_loss
    >>> logits = torch.zeros(1, 2, 3, 3, requires_grad=True)
    >>> value = locally_adaptive_loss(logits, torch.zeros(1, 3, 3, dtype=torch.int64), p=1)
    >>> value.backward()
    >>> round(float(logits.grad[0, 0].sum()), 6)
    -0.5
    """
    return _apply(input, target, pixel_weight, total, _spelt(**options))


class LocallyAdaptiveLoss(torch.nn.Module):  # type: ignore[misc]
    """`locally_adaptive_loss` with its options fixed, to stand where torch.nn.CrossEntropyLoss stood.

    Parameters
    ----------
    **options
        As for `lalref.LocallyAdaptiveLoss`, which checks them here.

    Examples
    --------
    >>> import torch
    >>> from lalref.adapters.torch import LocallyAdaptiveLoss
    >>> criterion = LocallyAdaptiveLoss(kernel_size=3, ignore_index=-100)
    >>> float(criterion(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8)))
    0.6931471824645996
    """

    def __init__(self, **options: Unpack[OptionsDict]) -> None:
        super().__init__()
        self._spelt = _spelt(**options)

    @property
    def options(self) -> lalref.LocallyAdaptiveLoss:
        """The checked options."""
        return _loss(self._spelt)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        pixel_weight: Tensor | None = None,
        *,
        total: Parts | None = None,
    ) -> Tensor:
        """Return the loss, as `locally_adaptive_loss` does."""
        return _apply(input, target, pixel_weight, total, self._spelt)

    def parts(self, input: Tensor, target: Tensor, pixel_weight: Tensor | None = None) -> Parts:
        """Return what these tensors contribute to the loss of a larger batch, for `lalref.combine`; no gradient."""
        _check(input, target, pixel_weight)
        bridge = _bridge(input.device, self.options)
        with bridge.entered():
            found = self.options.parts(
                *map(bridge.to, (_wide(input), target)), pixel_weight=bridge.to(pixel_weight)
            )
            return dataclasses.replace(
                found, **{name: bridge.back(getattr(found, name)) for name in _NUMBERS}
            )

    def extra_repr(self) -> str:
        """The options that differ from their defaults."""
        return ", ".join(f"{k}={v!r}" for k, v in json.loads(self._spelt).items())


# --- From options and tensors to what an operator takes, and back -----------------------------------------------

_NUMBERS = ("maximum", "power_sum", "weight", "count")  # of Parts


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _spelt(**options: Any) -> str:
    """The checked options as text, which an operator can take and a compiler can keep."""
    loss = lalref.LocallyAdaptiveLoss(**options)
    said = {f.name: (getattr(loss, f.name), f.default) for f in dataclasses.fields(loss)}
    return json.dumps({name: value for name, (value, default) in said.items() if value is not default})


@functools.cache
def _loss(options: str) -> lalref.LocallyAdaptiveLoss:
    return lalref.LocallyAdaptiveLoss(**json.loads(options))


def _check(input: Tensor, target: Tensor, pixel_weight: Tensor | None) -> None:
    """What the operators can't tell any more; the rest is checked at lalref's own door."""
    for name, tensor in {"input": input, "target": target, "pixel_weight": pixel_weight}.items():
        if tensor is None and name == "pixel_weight":
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor; got {type(tensor).__name__}: torch.as_tensor() makes one"
            )
        if tensor.device != input.device:
            raise ValueError(
                f"input and {name} must be on one device; got {input.device} and {tensor.device}: move one of them"
            )
        if name != "input" and tensor.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, and the loss has none for it: pass {name}.detach()"
            )


def _apply(
    input: Tensor, target: Tensor, pixel_weight: Tensor | None, total: Parts | None, options: str
) -> Tensor:
    _check(input, target, pixel_weight)
    packed = None if total is None else _packed(total, input, _loss(options))
    eager = input.requires_grad and torch.is_grad_enabled()
    return _value_and_grad(input, target, pixel_weight, packed, options, eager)[0]


def _packed(total: Parts, input: Tensor, loss: lalref.LocallyAdaptiveLoss) -> Tensor:
    """The numbers of a Parts as float64 (4,) on the logits' device."""
    if not isinstance(total, Parts):
        raise TypeError(f"total= takes the Parts that combine() returns; got {type(total).__name__}")
    dtype = "float64" if input.dtype == torch.float64 else "float32"
    if loss.reduction == "none" or (total.options, total.dtype) != (loss, dtype):
        raise ValueError(
            f"total= takes the combined parts of this loss, {loss} in {dtype}; got {total.options} in {total.dtype}"
        )
    numbers = [torch.as_tensor(getattr(total, name), device=input.device) for name in _NUMBERS]
    return torch.stack([number.to(torch.float64) for number in numbers])


def _unpacked(
    packed: Tensor | None, x: Tensor, loss: lalref.LocallyAdaptiveLoss, to: Callable[..., Any]
) -> Any:
    if packed is None:
        return None
    maximum, power_sum, weight, count = (
        to(number)[()] for number in (*packed[:3], packed[3].to(torch.int64))
    )
    return Parts(maximum, power_sum, weight, count, loss, str(x.dtype).removeprefix("torch."))


def _wide(x: Tensor) -> Tensor:
    """16-bit logits in float32, so that the gradient is rounded once, after upstream has been applied."""
    return (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x).detach()


class _Bridge(NamedTuple):
    entered: Callable[[], Any]  # a context to work in
    to: Callable[[Tensor | None], Any]  # tensor -> array of the same memory
    back: Callable[[Any], Tensor]


def _bridge(device: Any, loss: lalref.LocallyAdaptiveLoss) -> _Bridge:
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
def _value_and_grad(
    x: Tensor, y: Tensor, w: Any, total: Any, options: str, eager: bool
) -> tuple[Tensor, Tensor]:
    """The value, and for a number that autograd will ask for also its gradient, in the working dtype."""
    loss, x = _loss(options), _wide(x)
    bridge = _bridge(x.device, loss)
    with bridge.entered():
        call = {"pixel_weight": bridge.to(w)}
        arrays = bridge.to(x), bridge.to(y)
        whole = _unpacked(total, x, loss, bridge.to)
        if eager and loss.reduction != "none":
            value, grad = loss.value_and_grad(*arrays, total=whole, **call)
            return bridge.back(value), bridge.back(grad)
        value = loss(*arrays, **call) if whole is None else whole.value
        return bridge.back(value), x.new_empty(0)


@_value_and_grad.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, y: Tensor, w: Any, total: Any, options: str, eager: bool) -> tuple[Tensor, Tensor]:
    loss = _loss(options)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad = x.shape if eager and loss.reduction != "none" else (0,)
    return x.new_empty(_map_shape(x, loss), dtype=dtype), x.new_empty(grad, dtype=dtype)


@_operator("gradient", "Tensor upstream", "Tensor")  # type: ignore[untyped-decorator]
def _gradient(x: Tensor, y: Tensor, w: Any, total: Any, options: str, upstream: Tensor) -> Tensor:
    """The gradient times `upstream`, in the dtype of x."""
    loss, wide = _loss(options), _wide(x)
    bridge = _bridge(x.device, loss)
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
    loss, wide = _loss(options), _wide(x)
    if total is not None:
        raise NotImplementedError("total= gives first derivatives only: take second ones of the whole batch")
    bridge = _bridge(x.device, loss)
    with bridge.entered():
        x_, y_, w_, g_, v_ = map(bridge.to, (wide, y, w, upstream.detach(), _wide(tangent)))
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
    if grad is None or torch.is_grad_enabled() or _loss(ctx.options).reduction == "none":
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


_value_and_grad.register_autograd(_back, setup_context=_keep)
_gradient.register_autograd(_back_again, setup_context=_keep_again)
