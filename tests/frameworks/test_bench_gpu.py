"""What `make bench-gpu` times beside this engine computes the same loss: its torch formulations, here on a CPU."""

import numpy as np
import pytest
from cuda_host.stand_in import as_if_on_a_gpu

import lalref
from lalref.bench import gpu, inputs

torch = pytest.importorskip("torch")
SHAPE = (1, 4, 40, 48)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("kernel_size", [3, 7, 15])
def test_the_contestants_of_torch_are_right(kernel_size, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # What a compiler makes of it is timed, not this.
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    with as_if_on_a_gpu():
        contestants = gpu.contestants(SHAPE, kernel_size)
        torchs = {name: each for name, each in contestants.items() if name.startswith("torch")}
        for each in torchs.values():
            gpu.check(each)
        found = {name: each.call(0) for name, each in torchs.items()}
    x, y = inputs.logits(SHAPE), inputs.labels("blobs", (1, *SHAPE[2:]), SHAPE[1])
    options = {"torch cross_entropy": {"kernel_size": 1, "p": 1}}
    expected = {"torch cross_entropy"}
    expected |= {name for name, largest in gpu.LARGEST_TORCH_WINDOW.items() if kernel_size <= largest}
    assert set(found) == expected
    for name, (value, grad) in found.items():
        right = lalref.lal_value_and_grad(x, y, **options.get(name, {"kernel_size": kernel_size}))
        np.testing.assert_allclose(value.item(), right[0], rtol=1e-5)
        np.testing.assert_allclose(grad.numpy(), right[1], rtol=1e-3, atol=1e-4 * abs(right[1]).max())
