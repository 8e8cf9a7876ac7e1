"""What is written about training: the page, the adapters' examples; and the benchmark of the adapter in small."""

import doctest
import importlib

import pytest
from documents import ROOT, blocks, lacking

pytest.importorskip("torch")
pytest.importorskip("jax")
pytest.importorskip("keras")
pytest.importorskip("dask")


@pytest.mark.parametrize("page", ["frameworks.md", "howto/shard.md", "howto/lower-resolution.md"])
def test_where_the_frameworks_are_no_block_is_left_out(page):
    """tests/test_documents.py, which runs them, leaves out what lacks a library, or Pascal VOC."""
    found = [block for block in blocks(ROOT / "docs" / page) if "examples/train_voc.py" not in block.text]
    assert found
    assert [block.line for block in found if lacking(block) or "not run" in block.said] == []


@pytest.mark.parametrize("name", ["torch", "torch_distributed", "jax", "tensorflow", "dask"])
def test_examples_in_docstrings_print_what_they_say(name):
    failed, tried = doctest.testmod(importlib.import_module(f"lalref.adapters.{name}"))
    assert tried
    assert not failed


def test_the_benchmark_checks_and_then_times(monkeypatch, capsys):
    from lalref.bench import adapters

    monkeypatch.setattr(adapters, "SHAPE", (1, 5, 40, 40))
    ratios = adapters.main(seconds=0.1)
    assert list(ratios) == [
        "numba engine",
        "least autograd.Function",
        "torch adapter",
        "U-Net step, cross_entropy",
        "U-Net step, lalref",
    ]
    assert all(ratio > 0 for ratio in ratios.values())
    assert "(1, 5, 40, 40) float32" in capsys.readouterr().out

    right = adapters.LocallyAdaptiveLoss
    monkeypatch.setattr(adapters, "LocallyAdaptiveLoss", lambda: right(p=4.0))
    with pytest.raises(ValueError, match="not timed"):
        adapters.adapter_and_engine()
