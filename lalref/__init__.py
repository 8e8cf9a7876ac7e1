"""The locally adaptive learning loss for semantic segmentation: reference, teaching code and oracle.

Public names only: importing lalref imports neither numba, cupy nor a framework.
"""

from importlib.metadata import PackageNotFoundError, version

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
