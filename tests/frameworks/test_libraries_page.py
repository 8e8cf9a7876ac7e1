"""docs/howto/libraries.md: no block is left out but mmsegmentation's, which is run with a stand-in for the registry."""

import sys
import types

import numpy as np
import pytest
from documents import ROOT, blocks, lacking

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from lalref.adapters.torch import locally_adaptive_loss  # noqa: E402

BLOCKS = blocks(ROOT / "docs" / "howto" / "libraries.md")


def test_only_the_block_for_mmsegmentation_is_left_out():
    """tests/test_documents.py runs what is not."""
    assert [lacking(block) for block in BLOCKS if "mmseg" not in block.said["needs"]] == ["", ""]


class Registry:
    """What the block uses of mmengine's registry, and what builds a decode head's losses from a config."""

    def __init__(self):
        self.found = {}

    def register_module(self):
        return lambda made: self.found.setdefault(made.__name__, made)

    def build(self, config):
        return self.found[config["type"]](**{k: v for k, v in config.items() if k != "type"})


@pytest.fixture
def registry(monkeypatch):
    module = types.ModuleType("mmseg.registry")
    module.MODELS = Registry()
    monkeypatch.setitem(sys.modules, "mmseg", types.ModuleType("mmseg"))
    monkeypatch.setitem(sys.modules, "mmseg.registry", module)
    (block,) = (block for block in BLOCKS if "mmseg" in block.said["needs"])
    exec(compile(block.text, "libraries.md", "exec"), {"__name__": "__main__"})
    return module.MODELS


def test_a_decode_head_of_mmsegmentation_can_build_and_call_the_loss(registry):
    loss = registry.build({"type": "LocallyAdaptive", "kernel_size": 3, "loss_weight": 0.5})
    assert loss.loss_name.startswith("loss_")
    logits = torch.linspace(-1, 1, 2 * 4 * 8 * 8, dtype=torch.float64).reshape(2, 4, 8, 8).requires_grad_()
    labels = torch.arange(2 * 8 * 8).reshape(2, 8, 8) // 10 % 4
    labels[:, 0] = 255
    weight = torch.linspace(0.5, 1, 2 * 8 * 8).reshape(2, 8, 8)
    for given in (None, weight):  # as BaseDecodeHead.loss_by_feat calls it, with a pixel sampler and without
        value = loss(logits, labels, weight=given, ignore_index=255)
        right = locally_adaptive_loss(logits.detach(), labels, kernel_size=3, pixel_weight=given)
        np.testing.assert_allclose(value.item(), 0.5 * right.item(), rtol=1e-12)
        (grad,) = torch.autograd.grad(value, logits)
        assert grad[:, :, 0].eq(0).all()
        assert grad[:, :, 1:].ne(0).any()
