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
    rows = adapters.main(seconds=0.1)
    assert list(rows) == [
        "numba engine",
        "least autograd.Function",
        "torch adapter",
        "U-Net step, cross_entropy",
        "U-Net step, lalref",
    ]
    assert all(0 < row.outside < row.seconds for row in list(rows.values())[:3])  # the engine's part is seen
    assert rows["U-Net step, cross_entropy"].outside == rows["U-Net step, cross_entropy"].seconds
    assert "(1, 5, 40, 40) float32" in capsys.readouterr().out

    right = adapters.LocallyAdaptiveLoss
    monkeypatch.setattr(adapters, "LocallyAdaptiveLoss", lambda: right(p=4.0))
    with pytest.raises(ValueError, match="not timed"):
        adapters.adapter_and_engine()


def test_the_benchmark_compares_what_was_timed_in_one_round():
    from lalref.bench.adapters import Times, compared

    slow_rounds = [1.0, 4.0, 1.0, 4.0, 4.0]
    base = [Times(t, t) for t in slow_rounds]
    row = compared([Times(1.1 * t, 0.9 * t) for t in slow_rounds], base)
    assert (row.ratio, *row.interval) == pytest.approx((1.1, 1.1, 1.1))
    assert (row.seconds, row.outside) == pytest.approx((4.4, 0.8))
    assert compared([*base[1:], Times(1.0, 1.0)], base).ratio == 1  # of ratios .25, 1, 4, 1 and .25
    _, _, (low, high), _ = compared([Times(t, 0.0) for t in range(1, 60)], [Times(1.0, 1.0)] * 59)
    assert 15 < low < 25 < 30 < 35 < high < 45
