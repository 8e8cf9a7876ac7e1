"""What a window costs: by class in proportion to its radius, and where it goes by cells to the square of it.

Counted in steps, which no machine's speed goes into: basic blocks of the kernels' text as g++ compiles it, each
counted whenever a thread enters it.
"""

import ctypes

import numpy as np
import pytest

import lalref
from cuda_host.engine import compiled, on_host
from lalref.engines import kernels_geometry
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


SMALL = np.zeros((1, 48, 128), int)
NOISE = scattered(SMALL.shape, 2, 6)


def test_noise_of_few_classes_costs_no_square_either():
    assert steps("probabilities", 15, NOISE) < 2 * steps("probabilities", 8, NOISE)


def test_with_more_classes_in_a_tile_than_are_pooled_one_by_one_it_is_nearly_the_square(monkeypatch):
    monkeypatch.setattr(kernels_geometry, "MOST_KINDS", 4)
    assert steps("probabilities", 15, NOISE) > 2.5 * steps("probabilities", 8, NOISE)


@pytest.mark.parametrize("options", [{"stride": 2}, {"true_class": -120}], ids=["strides", "next to none"])
def test_so_it_is_with_strides_and_where_probabilities_are_too_small_to_be_added_up(options):
    assert steps("probabilities", 16, SMALL, **options) > 2.5 * steps("probabilities", 8, SMALL, **options)


if __name__ == "__main__":  # the numbers of docs/cuda.md
    for space in SPACES:
        print(space, {r: round(steps(space, r) / ONE_CLASS.size) for r in (1, 2, 4, 8, 15, 16, 31, 63)})
