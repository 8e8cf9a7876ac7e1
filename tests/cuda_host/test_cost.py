"""What a window costs: by class in proportion to its radius, and where it goes by cells to the square of it.

Counted in steps, which no machine's speed goes into: basic blocks of the kernels' text as g++ compiles it, each
counted whenever a thread enters it.
"""

import ctypes

import numpy as np
import pytest

import lalref
from cuda_host.engine import compiled, on_host
from lalref.engines.kernels_geometry import CHANNELS
from lalref.oracle.inputs import eighths, scattered

COUNTED = ("-fsanitize-coverage=trace-pc",)
ONE_CLASS = np.zeros((1, 96, 256), int)
SPACES = ("logits", "probabilities")


def steps(space, r, labels=ONE_CLASS, true_class=0.0, **options):
    """How many steps value and gradient take, windows reaching r pixels to each side."""
    N, H, W = labels.shape
    x = eighths((N, max(2, labels.max() + 1), H, W), 1).astype(np.float32)
    x[:, 0] += true_class
    module = compiled("float32", space, CHANNELS, options=COUNTED)
    counter = ctypes.c_ulonglong.in_dll(module.library, "host_steps")
    counter.value = 0
    with on_host(options=COUNTED):
        lalref.lal_value_and_grad(x, labels, space=space, kernel_size=2 * r + 1, sigma=None, **options)
    return counter.value


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    ("r", "larger"), [(4, 8), (7, 14), (16, 32)]
)  # to 15 all at once, from 16 in two sweeps
def test_twice_the_radius_takes_at_most_twice_the_steps(space, r, larger):
    assert steps(space, larger) < 2 * steps(space, r)


@pytest.mark.parametrize("space", SPACES)
def test_two_sweeps_take_less_than_twice_the_steps_of_one(space):
    assert steps(space, 16) < 2 * steps(space, 15)


SMALL = (1, 48, 128)
BY_CELLS = {
    "many classes in every tile": {"labels": scattered(SMALL, 2, 12)},
    "strides": {"labels": np.zeros(SMALL, int), "stride": 2},
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("options", BY_CELLS.values(), ids=BY_CELLS.keys())
def test_by_cells_it_is_nearly_the_square_and_the_count_shows_it(space, options):
    assert steps(space, 16, **options) > 2.5 * steps(space, 8, **options)


def test_so_it_is_where_probabilities_are_too_small_to_be_added_up():
    options = {"labels": np.zeros(SMALL, int), "true_class": -120}
    assert steps("probabilities", 16, **options) > 2.5 * steps("probabilities", 8, **options)
