"""The locally adaptive learning loss for semantic segmentation: reference, teaching code and oracle.

Public names only: importing lalref imports neither numba, cupy nor a framework. Its modules `definition`,
`truth` and `oracle` are imported when they are first asked for.
"""

from importlib import import_module as _import_module
from importlib import metadata as _metadata
from types import ModuleType as _ModuleType

from lalref.functions import lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.loss import LocallyAdaptiveLoss
from lalref.minkowski import Parts, combine
from lalref.steps import Inspection

try:
    __version__ = _metadata.version("lalref")
except _metadata.PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

__all__ = [
    "Inspection",
    "LocallyAdaptiveLoss",
    "Parts",
    "combine",
    "lal_hvp",
    "lal_jvp",
    "lal_loss",
    "lal_value_and_grad",
]
_MODULES = ("definition", "oracle", "truth")


def __getattr__(name: str) -> _ModuleType:
    """Import a public module at its first use, as in ``lalref.oracle.verify``."""
    if name in _MODULES:
        return _import_module(f"lalref.{name}")
    raise AttributeError(f"module 'lalref' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what is public, the modules that are imported at their first use too."""
    return sorted([*__all__, *_MODULES, "__version__"])
