"""Mistakes at the edges of tiles, images and channels: a few calls that each of them turns wrong.

One build of the kernels has every mistake in it, each of them behind the number that `host_mistake` is set to.
"""

import contextlib
import ctypes
import functools
from unittest import mock

import numpy as np
import pytest

import lalref
from cuda_host.engine import on_host
from cuda_host.host import HostModule
from lalref.engines import kernels, kernels_geometry
from lalref.engines.kernels import kernel_names, source
from lalref.oracle.inputs import blobs, eighths

# Where in the text, what is there, and what is there by mistake. Of several places it is the first without one.
MISTAKES = {
    "a halo one column short": ("k < width; k", "k < width", "k < width - 1"),
    "a halo one column short, in sweeps": ("k < width; k", "k < width", "k < width - 1"),
    "a column beyond the right border": ("b < in.columns && a", "b < in.columns", "b <= in.columns"),
    "a row below the image": ("d > 0 && a + d < in.rows", "a + d < in.rows", "a + d <= in.rows"),
    "the rows beyond the width one short": ("d = r; d >= span;", "d >= span", "d > span"),
    "the rows beyond the width one short, in sweeps": (
        "d > call.reach_w; --d", "d > call.reach_w", "d > call.reach_w + 1"),
    "a block of four forgotten": ("if (t % FOUR == 0)", "t % FOUR == 0", "t % FOUR == 1"),
    "a sweep that starts again": ("begins ? T(0)", "begins", "true"),
    "a sweep's last round too long": (
        "min(call.span, r_w + 1 - done)", "min(call.span, r_w + 1 - done)", "call.span"),
    "the column of the window itself twice": ("t > 0 ? at", "t > 0", "t >= 0"),
    "the first row of strided windows rounded down": (
        "a_0 = max(0, (i - call.reach_h + in.step_h - 1) / in.step_h)",
        "i - call.reach_h + in.step_h - 1", "i - call.reach_h"),
    "the last column of strided windows left out": (
        "b_1 = min(in.columns - 1, (j + call.reach_w) / in.step_w)", "in.columns - 1", "in.columns - 2"),
    "a label narrowed to 8 bits": ("p.label << 8 | id", "p.label", "(p.label & 255)"),
    "an odd channel counted twice": ("if (c + g < call.C) f.add", "c + g < call.C", "c + g <= call.C"),
    "another image's labels": ("n = first_n + image;\n    const Map out", "first_n + image", "image"),
    "another image's classes": ("kinds + (n * tiles_of(map) + tile)", "(n * tiles_of(map) + tile)", "tile"),
    "strided windows of another image": ("first = n * call.rows * call.columns;\n    const Map out",
        "n * call.rows * call.columns", "n * call.H * call.W"),
    "a sum of next to nothing": ("z[1] < sure(T()) ?", "z[1] < sure(T())", "false"),
}  # fmt: skip


def with_mistakes() -> str:
    text = source()
    for number, (name, (where, right, wrong)) in enumerate(MISTAKES.items(), start=1):
        assert where in text, f"the kernels no longer say {where!r}: {name}"
        text = text.replace(
            where, where.replace(right, f"(host_mistake == {number} ? ({wrong}) : ({right}))"), 1
        )
    return 'extern "C" { int host_mistake; }\n' + text


@functools.cache
def build(dtype: str, space: str, channels: int = 0) -> HostModule:
    return HostModule(with_mistakes(), tuple(kernel_names(dtype, space, channels).values()))


@contextlib.contextmanager
def making(mistake: str):
    number = list(MISTAKES).index(mistake) + 1 if mistake else 0

    def load(*which):
        module = build(*which)
        ctypes.c_int.in_dll(module.library, "host_mistake").value = number
        return module

    with on_host(small_tiles=True), mock.patch.object(kernels, "load", load):
        yield


FEW = blobs((2, 9, 90), 3, 4, 7)  # three tiles across, the last of them cut
FEW[0] %= 2  # the images have other classes
TALL = {"kernel_size": (13, 9), "sigma": 4.0}
LARGE_LABELS = np.where(np.arange(40) % 2, 3, 259)[None, None].repeat(3, 1)
DEEP = eighths((2, 3, 9, 31), 5) - 150 * (np.arange(3)[:, None, None] == 1)
CALLS = {
    "at once": (eighths((2, 3, 9, 90), 1), FEW, TALL),
    "in sweeps": (eighths((2, 3, 9, 90), 2), FEW, TALL, 2000),
    "strides": (eighths((2, 3, 9, 31), 3), FEW[:, :, :31], {"kernel_size": 7, "stride": (2, 3)}),
    "large labels": (eighths((1, 260, 3, 40), 4), LARGE_LABELS, {"kernel_size": 9, "ignore_index": None}),
    "probabilities": (
        DEEP,
        FEW[:, :, :31],
        {"kernel_size": 5, "stride": 2, "space": "probabilities", "grad_output": 1e3},
    ),
}


def wrong_calls(mistake: str) -> list[str]:
    """Which of the calls the mistake turns wrong."""
    wrong = []
    for name, (x, y, options, *shared) in CALLS.items():
        right_value, right = lalref.lal_value_and_grad(x, y, engine="array", p=2, **options)
        bytes_a_block = shared[0] if shared else kernels_geometry.SHARED_MEMORY
        with making(mistake), mock.patch.object(kernels_geometry, "SHARED_MEMORY", bytes_a_block):
            value, grad = lalref.lal_value_and_grad(x.astype(np.float32), y, p=2, **options)
        close = np.isclose(grad, right, rtol=1e-4, atol=1e-5 * abs(right).max()).all()
        if not (close and np.isclose(value, right_value, rtol=1e-5)):
            wrong.append(name)
    return wrong


def test_without_a_mistake_every_call_is_right():
    assert wrong_calls("") == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_at_an_edge_turns_a_call_wrong(mistake):
    assert wrong_calls(mistake) != []
