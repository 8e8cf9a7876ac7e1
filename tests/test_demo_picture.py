"""docs/images/demo.png, which README and the first page show, is what `make demo` draws."""

import importlib.util

import pytest
from documents import ROOT
from matplotlib.image import imread

from lalref import LocallyAdaptiveLoss

SHOWN = imread(ROOT / "docs" / "images" / "demo.png")[..., :3]  # (height, width, 3) in [0, 1]
APART = 0.015  # on average; a palette alone makes 0.004, and a last bit may lead the fit elsewhere


@pytest.fixture
def demo(tmp_path):
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.OUT = tmp_path
    return module


def drawn(demo):
    demo.main_job()
    return imread(demo.OUT / "demo.png")[..., :3]


@pytest.mark.slow
def test_the_committed_picture_is_what_the_demo_draws(demo):
    now = drawn(demo)
    assert now.shape == SHOWN.shape, "copy out/demo.png to docs/images/demo.png"
    assert abs(now - SHOWN).mean() < APART, "copy out/demo.png to docs/images/demo.png"


@pytest.mark.slow
def test_a_picture_of_another_loss_is_noticed(demo):
    demo.loss = LocallyAdaptiveLoss(p=1)
    demo.ITERATIONS = 10
    assert abs(drawn(demo) - SHOWN).mean() > 3 * APART
