"""What this machine offers lalref: versions, engines and why each is or isn't available, threads.

Only looks and reports. Frameworks are asked for their version without being imported, because importing one
takes seconds; an engine is asked by giving it a call, so that what is said here is what a call would say.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import os
import platform
import sys
import time
from typing import Any, NamedTuple

import numpy as np

import lalref
from lalref.options import ENGINES

#: Distributions that bring each package; the first installed one counts.
PACKAGES = {
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "numba": ("numba",),
    "array-api-compat": ("array-api-compat",),
    "ml_dtypes": ("ml_dtypes",),
    "python-flint": ("python-flint",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "torch": ("torch",),
    "jax": ("jax",),
    "tensorflow": ("tensorflow-cpu", "tensorflow"),
    "keras": ("keras",),
    "dask": ("dask",),
}

#: Variables that change how many threads the libraries beneath take.
THREAD_VARIABLES = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Engine(NamedTuple):
    """An engine's name, whether a call of it works here, and if not, the reason a caller is given."""

    name: str
    available: bool
    reason: str


def versions() -> dict[str, str | None]:
    """Return the installed version of Python, lalref and each of `PACKAGES`; None for what is not installed.

    Examples
    --------
    >>> from lalref.doctor import versions
    >>> list(versions())[:3]
    ['python', 'lalref', 'numpy']
    """
    installed = {
        dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()
    }
    found: dict[str, str | None] = {"python": platform.python_version(), "lalref": lalref.__version__}
    for package, distributions in PACKAGES.items():
        names = [name.replace("_", "-") for name in distributions]
        found[package] = next((installed[name] for name in names if name in installed), None)
    return found


def engines() -> list[Engine]:
    """Return the state of every engine, each tried on a loss of one pixel.

    Examples
    --------
    >>> from lalref.doctor import engines
    >>> [each.available for each in engines() if each.name == "array"]
    [True]
    """
    found = []
    for name in ENGINES[1:]:  # the first is "auto"
        xp = _cupy() if name == "cuda" else np
        logits, labels = (
            xp.zeros((1, 2, 1, 1)),
            xp.zeros((1, 1, 1), dtype=xp.int64),
        )  # (N, C, H, W), (N, H, W)
        try:
            lalref.lal_loss(logits, labels, engine=name)
        except (ValueError, ImportError) as error:
            found.append(Engine(name, False, str(error)))
        else:
            found.append(Engine(name, True, ""))
    return found


def compilation() -> dict[str, str]:
    """Return what the numba engine's first loss and gradient cost by dtype and space: compiled now, or had from disk.

    Compiles what was not compiled before on this machine, for a minute or so. Empty where numba is not installed.

    Examples
    --------
    >>> from lalref.doctor import compilation
    >>> sorted(compilation())
    ['float32', 'float32 probabilities', 'float64', 'float64 probabilities']
    """
    if importlib.util.find_spec("numba") is None:
        return {}
    from numba.core import event

    from lalref.engines.loops_cache import compile_seconds, path_of

    found = {}
    for dtype, space in itertools.product(("float32", "float64"), ("logits", "probabilities")):
        began = time.perf_counter()
        with event.install_listener("numba:compile", event.TimingListener()) as compiling:
            lalref.lal_value_and_grad(
                np.zeros((1, 2, 3, 3), dtype), np.zeros((1, 3, 3), np.int64), space=space, engine="numba"
            )
        spent = time.perf_counter() - began
        path = path_of(np.dtype(dtype), space)
        if compiling.done:
            found[path] = f"compiled in {compiling.duration:.1f} s, once for this machine and version"
        else:
            seconds = compile_seconds().get(path)
            took = "" if seconds is None else f" in {seconds} s of processor time"
            found[path] = f"compiled before{took}, ready in {spent:.2f} s"
    return found


def _cupy() -> Any:
    """CuPy if it can be used here, else NumPy: the engine itself says what is lacking."""
    if importlib.util.find_spec("cupy") is None:
        return np
    import cupy

    return cupy if cupy.cuda.is_available() else np


def threads() -> dict[str, str]:
    """Return the number of processors that this process may use, and the variables that limit threads."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {"processors": str(allowed)} | {name: os.environ.get(name, "not set") for name in THREAD_VARIABLES}
