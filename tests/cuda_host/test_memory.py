"""What a call takes beside its arguments: one gradient, and maps; counted on the stand-in for CuPy.

    python -m cuda_host.test_memory

prints the numbers of docs/cuda.md.
"""

from unittest import mock

import numpy as np
import pytest

import lalref
from cuda_host.stand_in import behind_a_wall
from lalref.engines import kernels, kernels_geometry
from lalref.oracle.inputs import blobs, eighths

N, C, H, W = SHAPE = 2, 40, 16, 32
PIXELS, LOGITS = N * H * W, 4 * N * C * H * W  # how many there are; bytes


def a_call(space="logits", labels=np.int64, weights=False, scratch=kernels_geometry.SCRATCH, **options):
    """The wall after one call of value and gradient, float32; what was there before it is not counted."""
    with behind_a_wall() as wall, mock.patch.object(kernels_geometry, "SCRATCH", scratch):
        x = wall.asarray(eighths(SHAPE, 1).astype(np.float32))
        y = wall.asarray(blobs((N, H, W), C).astype(labels))
        weight = {"pixel_weight": wall.asarray(np.ones((N, H, W), np.float32))} if weights else {}
        before = sum(wall.owners.values())
        wall.moved, wall.most_held = 0, before
        wall.sizes.clear()
        result = lalref.lal_value_and_grad(x, y, space=space, **weight, **options)
        wall.most_held -= before
        del result
    return wall


CALLS = {
    "logits": {},
    "far windows": {"kernel_size": 31, "sigma": None},
    "counted, weighed": {"normalize": "count", "weights": True},
    "probabilities": {"space": "probabilities"},
    "probabilities, counted, weighed": {"space": "probabilities", "normalize": "count", "weights": True},
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@each_call
def test_only_the_gradient_is_as_large_as_the_logits(call):
    sizes = sorted(a_call(**call).sizes)
    assert sizes[-1] == LOGITS
    assert sizes[-2] <= LOGITS // 4  # slopes, of which there is one piece
    assert sum(size > 8 * PIXELS for size in sizes) <= 2


# Bytes a pixel: what is held at a time, and what the front door reads and writes without weights and with them.
MOST_HELD, MOST_MOVED, MOST_MOVED_WEIGHED = 60, 140, 290
PLANE = 4 * H * W  # of one channel of one image: the least scratch


@each_call
def test_beside_the_gradient_there_are_maps_and_the_scratch(call):
    assert a_call(scratch=PLANE, **call).most_held <= LOGITS + PLANE + MOST_HELD * PIXELS


@each_call
def test_what_the_front_door_reads_and_writes_is_a_few_times_the_labels(call):
    assert a_call(**call).moved <= (MOST_MOVED_WEIGHED if "weights" in call else MOST_MOVED) * PIXELS


def test_a_copy_of_the_logits_would_be_noticed(monkeypatch):
    backward = kernels._Work.backward

    def copying(self, *arguments):
        copy = self.logits + 0
        return backward(self, *arguments), copy

    monkeypatch.setattr(kernels._Work, "backward", lambda *arguments: copying(*arguments)[0])
    for test in (
        test_only_the_gradient_is_as_large_as_the_logits,
        test_beside_the_gradient_there_are_maps_and_the_scratch,
        test_what_the_front_door_reads_and_writes_is_a_few_times_the_labels,
    ):
        with pytest.raises(AssertionError):
            test({})


if __name__ == "__main__":
    for name, call in CALLS.items():
        for labels in (np.uint8, np.int64):
            wall = a_call(labels=labels, scratch=PLANE, **call)
            held = (wall.most_held - LOGITS - PLANE) / PIXELS
            print(
                f"{name}, {labels.__name__}: {held:.0f} bytes a pixel held, {wall.moved / PIXELS:.0f} moved"
            )
