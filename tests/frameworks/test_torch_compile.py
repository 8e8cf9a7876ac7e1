"""The loss under torch.compile: taken whole, its labels checked, and what is left to torch or refused."""

import shutil

import pytest
from samples import OMEGA, X, Y

from lalref import combine

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402

from lalref.adapters.torch import LocallyAdaptiveLoss, locally_adaptive_loss  # noqa: E402
from lalref.adapters.torch_distributed import distributed_loss  # noqa: E402


def tensors(dtype=torch.float64):
    return torch.tensor(X, dtype=dtype, requires_grad=True), torch.from_numpy(Y), torch.from_numpy(OMEGA)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # torch's own, by its compiler
@pytest.mark.parametrize(
    "options", [{}, {"reduction": "none", "stride": 2}, {"space": "probabilities"}], ids=str
)
def test_torch_compile_takes_it_whole(options):
    torch._dynamo.reset()
    layer = torch.nn.Conv2d(3, 3, 1, dtype=torch.float64)
    criterion = LocallyAdaptiveLoss(**options)
    x, y, w = tensors()

    def step(x, y, w):
        return criterion(layer(x), y, w).sum() + locally_adaptive_loss(layer(x), y, p=2.0)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for rows in (5, 5, 4, 3):  # of other sizes, which the compiler then leaves open
        args = x[:, :, :rows].detach().requires_grad_(), y[:, :rows], w[:, :rows]
        found, right = (torch.autograd.grad(f(*args), (args[0], layer.weight)) for f in (compiled, step))
        for a, b in zip(found, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    wrong = torch.full_like(y, 99)
    with pytest.raises(ValueError, match="99, first"):  # labels are checked in the compiled graph too
        compiled(x, wrong, w)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's own compiler needs g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchs_own_compiler_takes_it_whole(tmp_path, monkeypatch):
    """It checks the sizes and strides that were told while tracing against what comes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    layer = torch.nn.Conv2d(3, 3, 1)
    of_map, last = LocallyAdaptiveLoss(reduction="none", stride=2), LocallyAdaptiveLoss(axis=-1)
    x, y, w = tensors(torch.float32)

    def step(x):
        logits = layer(x).relu()
        return of_map(logits, y, w).sum() + last(2 * logits.movedim(1, -1), y)

    with torch._inductor.config.patch(compile_threads=1):
        compiled = torch.compile(step, fullgraph=True)
        found, right = (torch.autograd.grad(f(x), (x, layer.weight)) for f in (compiled, step))
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{}, {"reduction": "none", "stride": 2}, {"axis": -1}], ids=str)
def test_the_operator_keeps_torchs_rules(options):
    """Nothing is written to, and the shapes that are told while tracing hold."""
    x, y, w = tensors(torch.float32)
    x = x.detach().movedim(1, -1) if "axis" in options else x.detach()
    criterion = LocallyAdaptiveLoss(kernel_size=3, **options)
    upstream = torch.full_like(criterion(x, y, w), 2.0)
    for what, more in {
        "value": [],
        "value_and_grad": [],
        "gradient": [upstream],
        "hvp": [upstream, x],
    }.items():
        arguments = what, criterion._spelt, [x, y, w, *more]
        torch.library.opcheck(
            torch.ops.lalref.call.default, arguments, test_utils=["test_schema", "test_faketensor"]
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, by its compiler where it lets torch take over
def test_torch_compile_leaves_parts_of_a_whole_to_torch():
    torch._dynamo.reset()
    criterion, (x, y, _) = LocallyAdaptiveLoss(kernel_size=3), tensors()
    total = combine(criterion.parts(x[:1], y[:1]), criterion.parts(x[1:], y[1:]))
    compiled = torch.compile(lambda x, y: 2 * criterion(3 * x, y, total=total), backend="aot_eager")
    found, right = (
        torch.autograd.grad(f(x, y), x)[0]
        for f in (compiled, lambda x, y: 2 * criterion(3 * x, y, total=total))
    )
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore")  # torch's own, by its compiler where it lets torch take over
def test_a_compiled_step_does_not_keep_the_first_class_weights():
    x, y, _ = tensors()

    def step(x, w):
        return locally_adaptive_loss(x, y, kernel_size=3, class_weight=w)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="eager")
    for w in (torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 0.125, 1.0])):
        assert compiled(x, w) == step(x, w)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="make a LocallyAdaptiveLoss before"):
        torch.compile(step, backend="eager", fullgraph=True)(x, torch.ones(3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, by its compiler where it lets torch take over
def test_a_value_of_the_whole_is_the_wholes_where_no_gradient_is_asked_for():
    torch._dynamo.reset()
    criterion, (x, y, _) = LocallyAdaptiveLoss(kernel_size=3), tensors()
    total = combine(criterion.parts(x[:1], y[:1]), criterion.parts(x[1:], y[1:]))
    compiled = torch.compile(lambda x, y: criterion(x, y, total=total), backend="aot_eager")
    with torch.no_grad():
        assert compiled(x[:1], y[:1]) == criterion(x, y) != criterion(x[:1], y[:1])
    with pytest.raises(torch._dynamo.exc.Unsupported, match="total= is not compiled"):
        torch.compile(lambda x, y: criterion(x, y, total=total), fullgraph=True, backend="aot_eager")(x, y)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, by its compiler where it lets torch take over
def test_a_compiled_step_may_ask_for_parts_and_for_other_processes(tmp_path):
    """Here there is one process; what several give is in test_torch_distributed.py."""
    criterion, (x, y, _) = LocallyAdaptiveLoss(kernel_size=3), tensors()
    torch._dynamo.reset()
    assert torch.compile(lambda x: criterion.parts(2 * x, y).value, backend="aot_eager")(x) == criterion(
        2 * x, y
    )
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        compiled = torch.compile(lambda x: distributed_loss(criterion, 2 * x, y), backend="aot_eager")
        (found,), (right,) = (torch.autograd.grad(v, x) for v in (compiled(x), criterion(2 * x, y)))
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"reduction": "none"}], ids=str)
def test_a_compiled_loss_is_not_differentiated_twice(options):
    """torch tells by what the compiled backward keeps: the logits, where they are what goes in."""
    torch._dynamo.reset()
    criterion, (x, y, _) = LocallyAdaptiveLoss(**options), tensors()
    compiled = torch.compile(lambda x: 2 * criterion(x, y).sum(), backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(grad.square().sum(), x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: criterion(2 * x, y).sum(), backend="aot_eager")
    (grad,) = torch.autograd.grad(compiled(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.square().sum().backward()
