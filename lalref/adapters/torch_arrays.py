"""From torch's tensors to an engine's arrays and back: the same memory under another name.

Tensors on the CPU go to the numba engine as NumPy arrays; tensors on a GPU to the cuda engine as CuPy arrays, through
DLPack and in torch's current stream. It is a room apart from `lalref.adapters.torch` for it knows devices and
compilers and nothing of autograd, and that one the other way round. Options come as text, which a compiler can keep.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import torch

import lalref
from lalref.adapters import calls
from lalref.functions import loss_for
from lalref.minkowski import Parts
from lalref.options import OptionsDict

Tensor = Any


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def spelt_of(caller: Callable[..., Any], **options: Unpack[OptionsDict]) -> str:
    """The checked options as text, which an operator can take and a compiler can keep."""
    if getattr(options.get("class_weight"), "requires_grad", False):
        told = "and the loss has none for it: pass class_weight.detach()"
        raise ValueError(f"class_weight requires a gradient, {told}")
    return json.dumps(calls.said(loss_for(caller, options)))


@functools.cache
def loss_of(spelt: str) -> lalref.LocallyAdaptiveLoss:
    return lalref.LocallyAdaptiveLoss(**json.loads(spelt))


def call(what: str, spelt: str, *tensors: Tensor | None, total: Parts | None = None) -> list[Tensor]:
    """A call of `lalref.adapters.calls`; to a compiler, an operator."""
    if torch.compiler.is_compiling():
        found: list[Tensor] = torch.ops.lalref.call(what, spelt, tensors)
        return found
    return on_engine(getattr(calls, what), spelt, *tensors, *([] if total is None else [total]))


def on_engine(function: Callable[..., Any], spelt: str, *given: Any) -> list[Any]:
    """function(loss, *arrays) of the tensors' own memory, as tensors; of tensors themselves where torch works."""
    loss, x = loss_of(spelt), given[0]
    given = tuple(_each(_detached, a) for a in given)
    if loss.engine == "array" or not (x.is_cpu or x.is_cuda):
        return list(function(loss, *given))
    if x.is_cpu:
        results = function(loss, *(_each(np.asarray, a) for a in given))
        return [_each(lambda a: torch.from_numpy(np.asarray(a)), found) for found in results]
    try:
        import cupy
    except ImportError as error:
        clone = "in a clone of lalref, pip install -c constraints.txt -e '.[cuda13]'"
        told = f"{clone} or, for older drivers, '.[cuda12]'; or pass engine=\"array\""
        raise ImportError(f"tensors on a GPU need CuPy: {told}") from error
    stream = torch.cuda.current_stream(x.device).cuda_stream
    with cupy.cuda.Device(x.device.index), cupy.cuda.ExternalStream(stream, x.device.index):
        results = function(loss, *(_each(cupy.from_dlpack, a) for a in given))
        return [_each(torch.from_dlpack, found) for found in results]


def _detached(a: Any) -> Any:
    return a.detach() if isinstance(a, torch.Tensor) and a.requires_grad else a


def _each(change: Callable[[Any], Any], thing: Any) -> Any:
    """change() of a tensor or an array, or of the numbers of Parts; anything else as it is."""
    if isinstance(thing, Parts):
        names = "maximum", "power_sum", "weight", "count"
        return dataclasses.replace(thing, **{name: change(getattr(thing, name)) for name in names})
    return change(thing) if hasattr(thing, "dtype") else thing


def once(upstream: Tensor, x: Tensor) -> Tensor:
    """A compiled backward's `upstream`, for which it must keep `x`.

    torch refuses to differentiate a compiled backward where one of the tensors that it keeps requires a gradient.
    Where none does, the second derivatives are left out without a word.
    """
    return torch.ops.lalref.once(upstream, x)


torch.library.define("lalref::once", "(Tensor upstream, Tensor x) -> Tensor")
torch.library.impl("lalref::once", "CompositeExplicitAutograd")(lambda upstream, x: upstream.clone())
torch.library.register_fake("lalref::once")(lambda upstream, x: upstream.clone())
torch.library.define("lalref::call", "(str what, str spelt, Tensor?[] given) -> Tensor[]")


@torch.library.impl("lalref::call", "CompositeExplicitAutograd")  # type: ignore[untyped-decorator]
def _(what: str, spelt: str, given: list[Any]) -> list[Tensor]:
    return [found.contiguous() for found in on_engine(getattr(calls, what), spelt, *given)]


@torch.library.register_fake("lalref::call")  # type: ignore[untyped-decorator]
def _(what: str, spelt: str, given: list[Any]) -> list[Tensor]:
    """Tensors of the shapes that the operator will return."""
    x, loss = given[0], loss_of(spelt)
    grad, value = x.new_empty(x.shape), x.new_empty(())
    if loss.reduction == "none":
        grid = (slice(None), *(slice(None, None, s) for s in loss.strides(x.ndim - 2)))
        value = x.new_empty(x.select(loss.axis, 0)[grid].shape)
    results = {"value": [value], "gradient": [grad], "hvp": [grad, value]}
    return results.get(what, [value, grad] if loss.reduction != "none" else [value])
