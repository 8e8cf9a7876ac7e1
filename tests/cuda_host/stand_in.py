"""CuPy where there is no GPU: NumPy's arrays behind a wall, to count how often a call waits at it.

An array here can do what CuPy's can, and hides its numbers as CuPy's does: whoever asks for one on the host waits,
which `Wall.waits` counts, and NumPy is refused. The engine's kernels run on the CPU. What is here can't show what
takes no time on a device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import operator
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any
from unittest import mock

import array_api_compat.numpy
import numpy as np

import lalref.engines
from cuda_host.engine import compiled
from lalref.engines import kernels


@dataclasses.dataclass(frozen=True)
class Device:
    """One of the devices behind a wall; as a context it is the current one."""

    wall: Wall
    id: int = 0

    def __enter__(self) -> Device:
        self.wall.entered.append(self.id)
        return self

    def __exit__(self, *error: object) -> None:
        assert self.wall.entered.pop() == self.id


class Array:
    """A NumPy array whose numbers have to be waited for, on the device where it was made."""

    __array_ufunc__ = None  # NumPy's numbers leave the arithmetic to this class
    __hash__ = None

    def __init__(self, wall: Wall, numbers: Any) -> None:
        self.wall, self.numbers = wall, np.asarray(numbers)
        wall.hold(self.numbers)
        self.device = Device(wall, wall.entered[-1])

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.wall

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "ndim", "dtype", "strides", "size", "nbytes"):
            raise AttributeError(name)
        return getattr(self.numbers, name)

    def __dlpack__(self, **_: object) -> Any:
        return self.numbers.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numbers.__dlpack_device__()

    def get(self) -> np.ndarray:
        """Copy the numbers to the host, which waits for them."""
        self.wall.waits += 1
        self.wall.busy = False
        return self.numbers.copy()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self) -> bytes:
        return self.get().tobytes()

    def item(self) -> Any:
        return self.get().item()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __index__(self) -> int:
        return operator.index(self.get())

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(self.shape[0]))

    def __getitem__(self, index: Any) -> Array:
        return Array(self.wall, self.wall.inside(self)[self.wall.inside(index)])

    def __neg__(self) -> Array:
        return self.wall.negative(self)

    def __invert__(self) -> Array:
        return self.wall.bitwise_invert(self)


def _operator(name: str, reflected: bool = False) -> Any:
    def act(self: Array, other: Any) -> Array:
        if isinstance(other, np.ndarray):
            raise TypeError(f"{name}: an array of NumPy's can't meet one on the device")
        operands = self.wall.inside(self), self.wall.inside(other)
        with np.errstate(all="ignore"):
            result = np.asarray(getattr(operator, name)(*(operands[::-1] if reflected else operands)))
        self.wall.move(operands, result)
        return Array(self.wall, result)

    return act


for _name in ("lt", "le", "eq", "ne", "gt", "ge"):
    setattr(Array, f"__{_name}__", _operator(_name))
for _name in ("add", "sub", "mul", "truediv", "pow", "and_", "or_", "mod", "floordiv"):
    setattr(Array, f"__{_name.rstrip('_')}__", _operator(_name))
    setattr(Array, f"__r{_name.rstrip('_')}__", _operator(_name, reflected=True))


class Wall:
    """The array-API namespace of `Array`: NumPy's, with `waits`, how often a number was asked for.

    `most_held` is the most memory that there was at any time and `sizes` every piece of it, `moved` how much the
    `operations` read and wrote, all in bytes and beside what kernels do. `busy` is true from when a kernel that takes
    its time is launched until somebody waits. The last of `entered` is the current device's number, and what is on
    another can't be worked with.
    """

    __name__ = "cupy"

    def __init__(self) -> None:
        self.waits, self.busy = 0, False
        self.entered = [0]
        self.owners: dict[int, int] = {}  # bytes of memory that is held, by who holds it
        self.most_held = self.moved = self.operations = 0
        self.sizes: list[int] = []

    def hold(self, numbers: np.ndarray) -> None:
        """Count the memory of `numbers` until nobody has it any more; a view takes none of its own."""
        owner = numbers
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if id(owner) in self.owners:
            return
        self.owners[id(owner)] = owner.nbytes
        weakref.finalize(owner, self.owners.pop, id(owner))
        self.sizes.append(owner.nbytes)
        self.most_held = max(self.most_held, sum(self.owners.values()))

    def move(self, operands: Any, result: np.ndarray) -> None:
        """Count what an operation reads and writes; for a view it is nothing."""
        arrays = [a for a in operands if isinstance(a, np.ndarray)]
        if not any(np.may_share_memory(a, result) for a in arrays):
            self.moved += result.nbytes + sum(a.nbytes for a in arrays)
            self.operations += 1

    def inside(self, value: Any) -> Any:
        """`value` with what is behind the wall taken out from there; nothing waits."""
        if isinstance(value, tuple | list):
            return type(value)(map(self.inside, value))
        if not isinstance(value, Array):
            return value
        if value.device.id != self.entered[-1]:
            raise ValueError(
                f"the array is on device {value.device.id}, the current one is {self.entered[-1]}"
            )
        return value.numbers

    def __getattr__(self, name: str) -> Any:
        found = getattr(array_api_compat.numpy, name)
        if isinstance(found, type) or not callable(found):
            return found

        def call(*args: Any, device: Device | None = None, **kwargs: Any) -> Any:
            if name != "asarray" and any(isinstance(a, np.ndarray) and a.ndim > 0 for a in args):
                raise TypeError(f"{name}: takes arrays on the device, got one of NumPy's")
            with np.errstate(all="ignore"):
                result = found(*self.inside(args), **{k: self.inside(v) for k, v in kwargs.items()})
            if not isinstance(result, np.ndarray | np.generic):
                return result
            result = np.asarray(result)
            if name != "empty":
                self.move(self.inside(args), result)
            return Array(self, result)

        return call


@contextlib.contextmanager
def behind_a_wall(launched: Any = lambda name: None) -> Iterator[Wall]:
    """Give the cuda engine arrays of `Array`, its kernels running on the CPU; `launched` hears of each."""
    wall = Wall()

    def load(*which: Any) -> Any:
        module = compiled(*which)

        def get_function(name: str) -> Any:
            def launch(grid: Any, block: Any, args: tuple[Any, ...], shared_mem: int) -> None:
                for a in args:
                    if isinstance(a, np.ndarray) and not a.dtype.names:
                        raise TypeError(f"{name}: the device can't read an array of NumPy's")
                module.get_function(name)(grid, block, wall.inside(args), shared_mem=shared_mem)
                launched(name)

            return launch

        return types.SimpleNamespace(get_function=get_function)

    with (
        mock.patch.object(kernels, "load", load),
        mock.patch.object(
            lalref.engines,
            "_not_for_kernels",
            lambda _, call: "" if call in ("loss", "gradient") else f"no {call}",
        ),
    ):
        yield wall


def cupy_of(wall: Wall, clock: list[float]) -> types.ModuleType:
    """What benchmark and tests take from CuPy. Its events read `clock`, which a copy puts forward by 2 milliseconds."""

    def synchronize(self: object) -> None:
        wall.busy = False

    class Stream(contextlib.nullcontext):
        def __init__(self, non_blocking: bool) -> None:
            super().__init__(self)

        @property
        def done(self) -> bool:
            return not wall.busy

    class CurrentDevice(Device):
        def __init__(self) -> None:
            super().__init__(wall, wall.entered[-1])

    Stream.synchronize = CurrentDevice.synchronize = synchronize

    def raw_kernel(text: str, name: str) -> Any:
        def launch(grid: object, block: object, args: tuple[int]) -> None:
            wall.busy = args[0] > 0

        return launch

    class Event:
        def record(self) -> None:
            self.at, self.behind_a_kernel = clock[0], wall.busy

        @property
        def done(self) -> bool:
            return not (self.behind_a_kernel and wall.busy)

        def synchronize(self) -> None:
            wall.waits += 1

    def copyto(to: Array, what: Array) -> None:
        to.numbers[...] = what.numbers
        clock[0] += 2.0

    cupy = types.ModuleType("cupy")
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    cupy.__version__ = "a stand-in"
    cupy.ndarray = type("ndarray", (), {})  # array_api_compat asks whose array something is
    cupy.asarray, cupy.ones, cupy.empty_like = wall.asarray, wall.ones, wall.empty_like
    cupy.abs, cupy.max = wall.abs, wall.max
    cupy.from_dlpack = lambda array: (
        array if isinstance(array, Array) else wall.asarray(np.from_dlpack(array))
    )
    cupy.copyto, cupy.RawKernel = copyto, raw_kernel
    properties = {"name": b"no GPU: the kernels on the CPU", "major": 0, "minor": 0}
    cupy.cuda = types.SimpleNamespace(
        Event=Event,
        Stream=Stream,
        Device=CurrentDevice,
        is_available=lambda: True,
        get_elapsed_time=lambda begin, end: end.at - begin.at,
        runtime=types.SimpleNamespace(
            getDeviceProperties=lambda device: properties,
            driverGetVersion=lambda: 0,
            runtimeGetVersion=lambda: 0,
        ),
    )
    return cupy


@contextlib.contextmanager
def as_if_on_a_gpu() -> Iterator[list[float]]:
    """Let `lalref.bench.gpu` find a CuPy that is none; yield its clock, on which a kernel takes 1 millisecond."""
    clock = [0.0]

    def launched(name: str) -> None:
        clock[0] += 1.0

    real = sys.modules.get("cupy")
    with behind_a_wall(launched) as wall:
        sys.modules["cupy"] = cupy_of(wall, clock)
        try:
            yield clock
        finally:
            del sys.modules["cupy"]
            if real is not None:
                sys.modules["cupy"] = real
