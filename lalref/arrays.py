"""What differs between array libraries, said once: dtype names, the widest float, tracing, warnings.

Nothing of the loss may come in here, and no library may be imported that the caller has not imported.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

import array_api_compat
import numpy as np

# An array of whichever library the caller uses, and that library's array-API namespace.
Array = Any
Namespace = Any

FLOATS = ("float16", "bfloat16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def namespace(*arrays: Array) -> Namespace:
    """Return the array-API namespace that `arrays` share."""
    if all(map(is_torch, arrays)):  # said here, for torch.compile warns of array_api_compat's cached look-ups
        import array_api_compat.torch as xp

        return xp
    return array_api_compat.array_namespace(*arrays)


def library(xp: Namespace) -> str:
    """Return ``"numpy"``, ``"torch"``, ``"jax"``, ``"cupy"`` or another library's name."""
    return str(xp.__name__).removeprefix("array_api_compat.").partition(".")[0]


def is_torch(array: Array) -> bool:
    """Tell a torch tensor without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def device_of(array: Array) -> Any:
    """Return the device that `array` is on, in its library's terms."""
    return array.device if is_torch(array) else array_api_compat.device(array)


def dtype_name(dtype: Any) -> str:
    """Return ``"float32"`` for float32 of any library (ml_dtypes' bfloat16 too)."""
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]


def working_dtype(xp: Namespace, dtype: Any) -> Any:
    """Return the dtype that the loss of logits of `dtype` is worked out in: 16-bit ones in float32."""
    return xp.float64 if dtype_name(dtype) == "float64" else xp.float32


def wide_dtype(xp: Namespace) -> Any:
    """Return float64, or float32 where JAX runs without 64-bit types."""
    if library(xp) == "jax" and not sys.modules["jax"].config.jax_enable_x64:
        return xp.float32
    return xp.float64


def epsilon(dtype: Any) -> float:
    """Return the spacing of the float `dtype` at 1."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[
        dtype_name(dtype)
    ]


def known(flag: Array) -> bool | None:
    """Return the 0-d boolean `flag`, or None where tracing (jax.jit, torch.compile, vmap) hides its value."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.compiler.is_compiling():
        return None
    try:
        return bool(flag)
    except TypeError:  # JAX's tracers
        return None
    except RuntimeError:  # torch's batched tensors; elsewhere it is a device's own error
        if is_torch(flag):
            return None
        raise


class Refusals:
    """What only the values of arrays can refuse, asked for together, so that a device is waited for only once."""

    def __init__(self) -> None:
        self._all: list[tuple[Array, Callable[[], str], str]] = []

    def where(self, wrong: Array, message: Callable[[], str], while_tracing: str) -> None:
        """Refuse the call with one of these messages where the 0-d boolean `wrong` is true or hidden by tracing."""
        self._all.append((wrong, message, while_tracing))
        if isinstance(wrong, np.bool_):  # NumPy's, which is there already
            self.speak()

    def speak(self) -> None:
        """Raise ValueError with the first refusal, if there is any. It is one flag that is read to tell."""
        flags = [wrong for wrong, *_ in self._all]
        if not flags or known(functools.reduce(operator.or_, flags)) is False:
            return
        for wrong, message, while_tracing in self._all:
            if (refused := known(wrong)) is None:
                raise ValueError(while_tracing)
            if refused:
                raise ValueError(message())


def at_home(xp: Namespace, array: Array) -> contextlib.AbstractContextManager[Any]:
    """Work where `array` is: on CuPy's device of it, in the stream that is current there.

    NumPy's floating-point warnings are silent: NaN and inf are answers here, not accidents.
    """
    name = library(xp)
    if name == "cupy":
        on_device: contextlib.AbstractContextManager[Any] = array.device
        return on_device
    return np.errstate(all="ignore") if name in ("numpy", "array_api_strict") else contextlib.nullcontext()


def as_scalar(value: Array) -> Array:
    """Return a 0-d `value` as its library's users meet it: NumPy's scalar, the others' 0-d array."""
    return value[()] if isinstance(value, np.ndarray) else value


def native(array: Array) -> Array:
    """The array in this machine's byte order."""
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        return array.astype(array.dtype.newbyteorder("="))
    return array


def to_numpy(array: Array) -> np.ndarray:
    """The array as NumPy's, brought from its device."""
    if is_torch(array):
        array = array.detach().cpu()
    elif library(namespace(array)) == "cupy":
        array = array.get()
    return np.asarray(array)
