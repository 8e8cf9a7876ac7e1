"""How the numba engine's entry points are compiled: once, and kept on disk until any room of the engine changes.

numba asks only whether the file that holds a function has changed. These functions are compiled together with
what they call in other files, and after an upgrade that changed one of those, the old code must not be run. Files
carry the digest of all rooms in their names, so that two versions at work at once never write to the same one.

Here too: a word to whoever waits for the first compilation, and how long it took.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import IndexDataCacheFile


def sources_digest(folder: Path) -> str:
    """Sha256 of all rooms of the engine."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("loops*.py")):
        found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


STAMP = sources_digest(Path(__file__).parent)

_folder: Path | None = None  # where compiled code is kept; None with NUMBA_DISABLE_JIT
_asked: set[str] = set()


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call for each dtype, free of the GIL, with IEEE arithmetic."""
    global _folder
    options = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    try:
        kernel = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder may be written: then each process compiles for itself
        return njit(**options)(function)
    if hasattr(kernel, "_cache"):  # not with NUMBA_DISABLE_JIT
        cache = kernel._cache
        base = f"{cache._impl.filename_base}-{STAMP[:12]}"
        cache._cache_file = IndexDataCacheFile(cache.cache_path, base, STAMP)
        _folder = Path(cache.cache_path)
    return kernel


def compile_seconds() -> dict[str, float]:
    """How much processor time compiling took on this machine, by what `path_of` calls it; empty before the first."""
    found: dict[str, float] = {}
    for kind, seconds in _recorded().items():
        path = kind.rpartition(" ")[0]
        found[path] = round(found.get(path, 0.0) + seconds, 1)
    return found


def path_of(logits_dtype: Any, space: str) -> str:
    """What is compiled apart: "float32" (in which 16-bit logits are worked out too) or "float64", and probabilities."""
    dtype = "float64" if logits_dtype == np.float64 else "float32"
    return dtype if space == "logits" else f"{dtype} {space}"


@contextlib.contextmanager
def first_call(logits_dtype: Any, space: str, what: str) -> Iterator[None]:
    """Around a call for the "value" or the "gradient": the first to compile a path says so, and its time is kept.

    A gradient compiles what a value needs too; after a value it takes only the rest.
    """
    path = path_of(logits_dtype, space)
    kind = f"{path} {what}"
    if kind in _asked or _folder is None:
        yield
        return
    _asked.add(kind)
    if {kind, f"{path} gradient"} & _recorded().keys():
        yield
        return
    told = f"lalref: compiling for {path}, once, about half a minute; kept in {_folder}"
    logging.getLogger("lalref").info(told)
    if sys.stderr is not None and sys.stderr.isatty():
        print(told, file=sys.stderr, flush=True)
    begin = time.process_time()
    yield
    seconds = {**_recorded(), kind: round(time.process_time() - begin, 1)}
    with contextlib.suppress(OSError):
        _record().parent.mkdir(parents=True, exist_ok=True)
        _record().write_text(json.dumps(seconds) + "\n", encoding="utf-8")


def _recorded() -> dict[str, float]:
    """Seconds of the first calls, by path and what was asked for: "float32 gradient"."""
    try:
        return dict(json.loads(_record().read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _record() -> Path:
    return (_folder or Path()) / f"loops-{STAMP[:12]}.seconds.json"
