"""What the tests of the promises share: one table of engines, dtypes, layouts and options, and small inputs.

An engine joins by its name in ENGINES. The cuda engine is held to the same tests on the CPU, by
`make test-cuda-host`, which names it in LALREF_TEST_ENGINES; conftest.py then launches its kernels there.
Inputs come from the formulas of `lalref.oracle.inputs`.
"""

import math
import os
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from lalref.oracle.inputs import VOID, eighths, scattered, weights

INF, NAN = math.inf, math.nan

ENGINES = tuple(os.environ.get("LALREF_TEST_ENGINES", "array,numba").split(","))
MOST_AXES = {"array": 5, "numba": 3, "cuda": 2}  # spatial ones
AXES = 0, min(3, *(MOST_AXES[engine] for engine in ENGINES))  # that every engine here takes
DTYPES = ("float16", "bfloat16", "float32", "float64")
OPTIONS = {
    "default": {},
    "p 1, kernel 1": {"p": 1, "kernel_size": 1},
    "p 1, flat weights": {"p": 1, "sigma": None, "kernel_size": 3},
    "p inf": {"p": INF},
    "p 2.5, sum, count": {"p": 2.5, "reduction": "sum", "normalize": "count"},
    "smoothing, stride 2": {"label_smoothing": 0.25, "stride": 2},
    "none, tuples": {"reduction": "none", "stride": (1, 2), "kernel_size": (1, 3), "sigma": 2.0},
    "weights": {"class_weight": (0.5, 2.0, 1.25), "p": 2},
    "class of weight 0, ignored class": {"class_weight": (0.0, 1.0, 3.0), "ignore_index": (VOID, 1)},
    "probabilities": {"space": "probabilities"},
    "probabilities, p 1, count, stride 2": {
        "space": "probabilities", "p": 1, "normalize": "count", "stride": 2, "sigma": 3.0},
    "probabilities, none, weights": {
        "space": "probabilities", "reduction": "none", "class_weight": (0.5, 2.0, 1.25), "kernel_size": 3},
    "probabilities, p inf, sum": {"space": "probabilities", "p": INF, "reduction": "sum"},
}  # fmt: skip

each_engine = pytest.mark.parametrize("engine", ENGINES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
each_space = pytest.mark.parametrize("space", ["logits", "probabilities"])

X = eighths((2, 3, 5, 4), 1)
V = eighths((2, 3, 5, 4), 2)
Y = scattered((2, 5, 4), 3, 3, VOID)
OMEGA = weights((2, 5, 4), 4)  # some are 0


def of_dtype(array, name):
    """`array` in the float dtype of that name, bfloat16 too."""
    return array.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def refused(kind, *words):
    """Expect an error of this kind whose message has all of these texts in it."""
    everything = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(kind, match=f"(?s){everything}")


def same_bits(a, b):
    """Whether two results are one, bit for bit: NaN equals NaN, and 0 is not -0."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def spread(array):
    """The array as every second element of a larger one."""
    larger = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
    larger[tuple(slice(None, None, 2) for _ in array.shape)] = array
    return larger[tuple(slice(None, None, 2) for _ in array.shape)]


def reversed_in_memory(array):
    """The array with every stride negative."""
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[backwards])[backwards]


def read_only(array):
    """A copy that can't be written to."""
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def unaligned(array):
    """The array one byte beside where its numbers should lie."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    beside = memory[1:].view(array.dtype).reshape(array.shape)
    beside[...] = array
    return beside


def broadcast_images(array):
    """The first image, once in memory and as often in the batch as before: a stride of 0."""
    return np.broadcast_to(array[:1], array.shape)


def broadcast_columns(array):
    """The first column of each image, a stride of 0 along the last axis."""
    return np.broadcast_to(array[..., :1], array.shape)


LAYOUTS = {
    "spread": spread,
    "reversed": reversed_in_memory,
    "Fortran-ordered": np.asfortranarray,
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "little-endian": lambda array: array.astype(array.dtype.newbyteorder("<")),
    "broadcast over the batch": broadcast_images,
    "broadcast over columns": broadcast_columns,
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


@st.composite
def problems(
    draw,
    *,
    axes=AXES,
    smoothed=True,
    reductions=("mean", "sum", "none"),
    exponents=None,
):
    """Draw logits (N, C, *S), labels with void ones, and keyword arguments over every option of the loss."""
    S = tuple(draw(st.lists(st.integers(1, 5), min_size=axes[0], max_size=axes[1])))
    N, C = draw(st.integers(1, 2)), draw(st.integers(1, 4))
    salt = draw(st.integers(0, 2**16))
    space = draw(st.sampled_from(["logits", "probabilities"]))
    alpha = draw(st.sampled_from([0.0, 0.25, 1.0])) if smoothed and space == "logits" else 0.0
    if exponents is None:
        exponents = st.one_of(st.sampled_from([1.0, 2.0, 5.0, INF]), st.floats(1.0, 8.0))

    def per_axis(values):
        lengths = st.lists(st.sampled_from(values), min_size=len(S), max_size=len(S)).map(tuple)
        return draw(st.one_of(st.sampled_from(values), lengths))

    options = {
        "kernel_size": per_axis([1, 3, 5, 7]),
        "stride": per_axis([1, 2, 3]),
        "sigma": draw(st.sampled_from([None, 0.5, 1.0, 3.0])),
        "space": space,
        "normalize": draw(st.sampled_from(["weights", "count"])),
        "p": draw(exponents),
        "label_smoothing": alpha,
        "ignore_index": draw(st.sampled_from([VOID, (VOID, 0)])),
        "class_weight": draw(st.sampled_from([None, (0.5, 2.0, 0.0, 1.25)[:C]])),
        "reduction": draw(st.sampled_from(reductions)),
        "pixel_weight": draw(st.sampled_from([None, weights((N, *S), salt + 3)])),
    }
    return eighths((N, C, *S), salt), scattered((N, *S), salt + 1, C, VOID), options


def upstream_for(options, grid, salt=9):
    """An upstream gradient: a map for reduction="none", else a number."""
    return eighths(grid, salt) if options["reduction"] == "none" else 1.703125
