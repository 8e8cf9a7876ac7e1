"""What a call takes beside its arguments: one gradient, and maps; counted on the stand-in for CuPy.

    python -m cuda_host.test_memory

prints the numbers of docs/cuda.md.
"""

from typing import Any, NamedTuple
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
        wall.moved, wall.operations, wall.most_held = 0, 0, before
        wall.sizes.clear()
        result = lalref.lal_value_and_grad(x, y, space=space, **weight, **options)
        wall.most_held -= before
        del result
    return wall


class Most(NamedTuple):
    """A call, and what it takes at most: bytes a pixel held at a time and moved by the front door; operations."""

    call: dict[str, Any]
    held: int
    moved: dict[Any, int]  # by the dtype of labels
    operations: int


PLAIN, WEIGHED = ({np.uint8: 91, np.int64: 125}, 29), ({np.uint8: 236, np.int64: 270}, 45)
CALLS = {
    "logits": Most({}, 38, *PLAIN),
    "far windows": Most({"kernel_size": 31, "sigma": None}, 39, *PLAIN),
    "counted, weighed": Most({"normalize": "count", "weights": True}, 54, *WEIGHED),
    "probabilities": Most({"space": "probabilities"}, 48, *PLAIN),
    "probabilities, counted, weighed": Most(
        {"space": "probabilities", "normalize": "count", "weights": True}, 60, *WEIGHED
    ),
}
each_call = pytest.mark.parametrize("most", CALLS.values(), ids=CALLS.keys())
PLANE = 4 * H * W  # bytes of one channel of one image: the least scratch


def a_pixel(wall):
    """Bytes a pixel that a call with the least scratch held beside the gradient and that, and moved; operations."""
    return (wall.most_held - LOGITS - PLANE) / PIXELS, wall.moved / PIXELS, wall.operations


@each_call
def test_only_the_gradient_is_as_large_as_the_logits(most):
    sizes = sorted(a_call(**most.call).sizes)
    assert sizes[-1] == LOGITS
    assert sizes[-2] <= LOGITS // 4  # slopes, of which there is one piece
    assert sum(size > 8 * PIXELS for size in sizes) <= 2


@pytest.mark.parametrize("labels", [np.uint8, np.int64])
@each_call
def test_beside_the_gradient_and_the_scratch_it_is_a_few_maps_in_a_few_operations(most, labels):
    held, moved, operations = a_pixel(a_call(labels=labels, scratch=PLANE, **most.call))
    assert held <= most.held
    assert moved <= most.moved[labels]
    assert operations <= most.operations


def test_one_more_map_would_be_noticed(monkeypatch):
    """Of float32, made by one operation before the way back and kept to its end."""
    most, backward = CALLS["counted, weighed"], kernels._Work.backward

    def with_one_more(self, kept, g):
        one_more = g + 0
        return backward(self, kept, g), one_more

    monkeypatch.setattr(kernels._Work, "backward", lambda *arguments: with_one_more(*arguments)[0])
    held, moved, operations = a_pixel(a_call(labels=np.uint8, scratch=PLANE, **most.call))
    assert held > most.held
    assert moved > most.moved[np.uint8]
    assert operations > most.operations


def test_a_copy_of_the_logits_would_be_noticed(monkeypatch):
    backward = kernels._Work.backward

    def copying(self, *arguments):
        copy = self.logits + 0
        return backward(self, *arguments), copy

    monkeypatch.setattr(kernels._Work, "backward", lambda *arguments: copying(*arguments)[0])
    with pytest.raises(AssertionError):
        test_only_the_gradient_is_as_large_as_the_logits(CALLS["logits"])


if __name__ == "__main__":
    for name, most in CALLS.items():
        for labels in (np.uint8, np.int64):
            held, moved, operations = a_pixel(a_call(labels=labels, scratch=PLANE, **most.call))
            print(
                f"{name}, {labels.__name__}: {held:.0f} bytes a pixel held, "
                f"{moved:.0f} moved in {operations} operations"
            )
