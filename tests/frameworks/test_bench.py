"""The benchmark's contestants in PyTorch and JAX: right, on as many threads as it says, compiled for their shape."""

import os
import shutil
import subprocess
import sys

import pytest

from lalref.bench import contestants, inputs, measure, rounds

torch = pytest.importorskip("torch")

COMPILED = "torch shift and mask, compiled"
THEIRS = [c for c in contestants.CONTESTANTS if not c.name.startswith("lalref")]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own


@pytest.mark.parametrize("contestant", THEIRS, ids=lambda c: c.name)
def test_a_right_contestant_passes_its_check(contestant):
    pytest.importorskip(contestant.needs)
    if contestant.name == COMPILED and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++ here")
    assert measure.check(contestant, 3) < 1e-4


@pytest.mark.parametrize("contestant", THEIRS, ids=lambda c: c.name)
def test_a_contestant_of_another_loss_does_not(contestant, monkeypatch):
    """Another p in the formulations of this loss, another target in cross-entropy."""
    pytest.importorskip(contestant.needs)
    if contestant.name == COMPILED:  # its formula, without the time that compiling takes
        monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    if contestant.name == contestants.CROSS_ENTROPY:
        right = torch.nn.functional.cross_entropy
        monkeypatch.setattr(
            torch.nn.functional, "cross_entropy", lambda *a, **more: right(*a, **more, label_smoothing=0.01)
        )
    monkeypatch.setattr(contestants, "P", 5.05)
    with pytest.raises(ValueError, match="not timed"):
        measure.check(contestant, 3)


def test_it_is_compiled_for_its_shape_whatever_was_compiled_before(monkeypatch):
    """A second shape, or another window, would else be compiled for any shape: slower code."""
    shapes = []

    def backend(graph, given):
        shapes.append([tuple(g.shape) for g in given if isinstance(g, torch.Tensor)])
        assert not any(isinstance(g, torch.SymInt) for g in given)
        return graph.forward

    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **more: compiler(function, backend=backend, **more)
    )
    calls = [(k, (8 + i, 9)) for i in range(4) for k in (1, 3, 5)]  # more than torch keeps of one function
    for kernel_size, (H, W) in calls:
        x, y = inputs.logits((1, 4, H, W)), inputs.labels("blobs", (1, H, W), 4)
        contestants.torch_compiled(x, y, kernel_size)()
    for seen, (_, (H, W)) in zip(shapes, calls, strict=True):
        assert sorted(seen) == [(1, 4, H, W), (1, H, W)]
        assert all(type(n) is int for shape in seen for n in shape)


@pytest.mark.parametrize("number", [1, 2])
def test_the_number_of_threads_reaches_torch_and_then_is_as_before(monkeypatch, number):
    right = next(c for c in contestants.CONTESTANTS if c.name == contestants.CROSS_ENTROPY)
    before, seen = torch.get_num_threads(), set()

    def prepare(x, y, kernel_size):
        call = right.prepare(x, y, kernel_size)

        def seeing():
            seen.add(torch.get_num_threads())
            return call()

        return seeing

    monkeypatch.setattr(measure, "CONTESTANTS", (right._replace(prepare=prepare),))
    entries = [(measure.Setting((1, 4, 12, 20), "blobs", 3, number), right.name)]
    _, refused = measure.measure("g", entries, 0.0, lambda now: None)
    assert not refused
    assert seen == {number}
    assert torch.get_num_threads() == before


def test_everyone_gets_the_fewer_of_what_torch_and_numba_take(monkeypatch):
    numba = pytest.importorskip("numba")
    for of_numba, of_torch in ((8, 4), (4, 8)):
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", of_numba)
        monkeypatch.setattr(torch, "get_num_threads", lambda number=of_torch: number)
        assert rounds.number_of_threads() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's threads by name")
@pytest.mark.parametrize("number", [1, 3])
def test_the_number_of_threads_reaches_jax(number):
    pytest.importorskip("jax")
    program = f"""
import os
from lalref.bench import contestants, inputs, rounds
rounds.tell_jax({number})
contestants.jax_shift(inputs.logits((1, 3, 8, 9)), inputs.labels("noise", (1, 8, 9), 3), 3)()
names = [open(f"/proc/self/task/{{task}}/comm").read().strip() for task in os.listdir("/proc/self/task")]
print(names.count("tf_XLAEigen"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "NPROC"}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [str(number)]
