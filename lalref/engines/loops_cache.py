"""How the numba engine's entry points are compiled: once, and kept on disk until any room of the engine changes.

numba asks only whether the file that holds a function has changed. These functions are compiled together with
what they call in other files, and after an upgrade that changed one of those, the old code must not be run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def sources_digest(folder: Path) -> str:
    """Sha256 of all rooms of the engine."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("loops*.py")):
        found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


STAMP = sources_digest(Path(__file__).parent)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile `function` at its first call for each dtype, free of the GIL, with IEEE arithmetic."""
    kernel = njit(nogil=True, cache=True, error_model="numpy", no_cfunc_wrapper=True)(function)
    if hasattr(kernel, "_cache"):  # not with NUMBA_DISABLE_JIT
        kernel._cache._cache_file._source_stamp = STAMP
    return kernel
