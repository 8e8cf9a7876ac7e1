"""The locally adaptive learning loss for semantic segmentation: reference, teaching code and oracle.

Public names only: importing lalref imports neither numba, cupy nor a framework. Its modules `definition`,
`truth` and `oracle` are imported when they are first asked for.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from lalref.functions import lal_hvp, lal_jvp, lal_loss, lal_value_and_grad
from lalref.loss import Inspection, LocallyAdaptiveLoss
from lalref.minkowski import Parts, combine

try:
    __version__ = version("lalref")
except PackageNotFoundError:  # a checkout that nobody installed
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


def __getattr__(name: str) -> ModuleType:
    """Import a public module at its first use, as in ``lalref.oracle.verify``."""
    if name in ("definition", "oracle", "truth"):
        return import_module(f"lalref.{name}")
    raise AttributeError(f"module 'lalref' has no attribute {name!r}")
