"""The training loop without a framework, shortened."""

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad

spec = importlib.util.spec_from_file_location(
    "train_numpy", Path(__file__).parents[1] / "examples" / "train_numpy.py"
)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def test_it_learns_what_it_was_not_shown(tmp_path, capsys):
    losses, before, after, judged = example.train(steps=20, crop=48)
    assert "step 20/20, loss" in capsys.readouterr().err
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert after > before + 0.15
    example.draw(losses, judged, tmp_path / "out" / "picture.png")
    assert (tmp_path / "out" / "picture.png").stat().st_size > 10_000


def test_it_imports_numpy_scipy_and_lalref_and_draws_only_when_asked():
    """Beside the standard library, and what lalref itself brings: no progress bar, no picture, no images of others."""
    tree = ast.parse(Path(example.__file__).read_text(encoding="utf-8"))
    at_once = {id(node) for node in tree.body}
    named = {
        (name.partition(".")[0], id(node) in at_once)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
    }
    foreign = {(name, first) for name, first in named if name not in sys.stdlib_module_names}
    assert foreign == {("numpy", True), ("scipy", True), ("lalref", True), ("matplotlib", False)}


@pytest.mark.parametrize("name", ["W1", "b1", "W2", "b2"])
def test_the_backward_of_its_model(name):
    image = example.scene(1)[0][:12, :12]
    x = example.features(image)[None].astype(np.float64)
    y = np.arange(144).reshape(1, 12, 12) // 5 % example.CLASSES
    model = example.Model(x.shape[1])
    weights = getattr(model, name).astype(np.float64)

    def objective(flat):
        setattr(model, name, flat.reshape(weights.shape))
        return float(example.loss(model.forward(x)[0].astype(np.float64), y))

    def gradient(flat):
        setattr(model, name, flat.reshape(weights.shape))
        logits, hidden = model.forward(x)
        grad = example.loss.value_and_grad(logits.astype(np.float64), y)[1]
        return model.backward(x, hidden, grad)[name].ravel()

    assert check_grad(objective, gradient, weights.ravel(), seed=0) < 1e-5
