"""What every op must do alike, on every backend: the cases of `support.op_cases`."""

from typing import Any

import pytest
import torch
from support.backends import emulator, parameters, running
from support.op_cases import CASES, EMPTY, LARGE, SMALL, OpCase, Sizes
from support.tolerance import assert_close
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from torchext.ops.op import OPS

cases = pytest.mark.parametrize("case", CASES, ids=str)


def evaluate(
    case: OpCase,
    size: Sizes,
    dtype: torch.dtype,
    device: str,
    last: bool = False,
    exact: bool = False,
) -> dict[str, Tensor]:
    """The outputs by their number, and the gradients by name.

    Args:
        exact: compute in float64, from the numbers that the dtype rounds to.
    """
    leaves = case.tensors(size, dtype, device, last)
    leaves = {name: leaf.double() if exact else leaf for name, leaf in leaves.items()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    outputs = case.outputs(leaves, case.held(size, device))
    found = {str(i): y.detach() for i, y in enumerate(outputs)}
    differentiable = [y for y in outputs if y.requires_grad]
    if differentiable:
        generator = torch.Generator().manual_seed(1)
        given = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)
            for y in differentiable
        ]
        found |= zip(
            leaves, torch.autograd.grad(differentiable, [*leaves.values()], given), strict=True
        )
    return found


@cases
@pytest.mark.parametrize("name", parameters())
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_forward_and_backward(case: OpCase, name: str, last: bool) -> None:
    size = SMALL if name == "triton-interpreted" else LARGE  # the interpreter takes long
    with running("reference"):
        expected = evaluate(case, size, torch.float32, "cpu", exact=True)
    with running(name) as device:
        got = evaluate(case, size, torch.float32, device, last)
    pixels = size.N * size.H * size.W
    assert got.keys() == expected.keys()
    for key, value in got.items():
        if not value.is_floating_point():
            assert torch.equal(value.cpu(), expected[key])
            continue
        scale = max(expected[key].abs().max().item(), 1.0)
        if key in case.parameters:  # sums over all pixels of terms of either sign
            scale = max(scale, pixels**0.5)
        assert_close(key, value, expected[key], length=case.length, scale=scale)


@cases
@pytest.mark.parametrize("name", parameters())
def test_dtypes(case: OpCase, name: str) -> None:
    """Outputs and gradients have the dtypes, and with coarse bounds the values, that they must."""
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with running("reference"):
            expected = evaluate(case, SMALL, dtype, "cpu", exact=True)
        with running(name) as device:
            got = evaluate(case, SMALL, dtype, device, last=dtype == torch.bfloat16)
            leaves = case.tensors(SMALL, dtype)
        for key, value in got.items():
            if key in leaves:
                assert value.dtype == leaves[key].dtype
                assert value.shape == leaves[key].shape
            if value.is_floating_point():
                scale = 8 * max(expected[key].abs().max().item(), 1.0)
                # A mask is not converted.
                coarser = max(dtype, value.dtype, key=lambda dtype: torch.finfo(dtype).eps)
                assert_close(key, value, expected[key], length=1000, dtype=coarser, scale=scale)


@pytest.mark.parametrize("case", [case for case in CASES if case.empty], ids=str)
@pytest.mark.parametrize("name", parameters())
def test_empty_batch(case: OpCase, name: str) -> None:
    """Nothing in, nothing out but what is of no image; parameters get gradients of zero."""
    with running("reference"):
        expected = evaluate(case, EMPTY, torch.float32, "cpu")
    with running(name) as device:
        found = evaluate(case, EMPTY, torch.float32, device)
        full = evaluate(case, SMALL, torch.float32, device)
    for key, value in found.items():
        assert value.dtype == full[key].dtype
        assert value.dim() == full[key].dim()
        assert torch.equal(value.cpu(), expected[key])
        assert key.isdigit() or value.count_nonzero() == 0


@cases
@pytest.mark.parametrize("name", parameters("cpu", "cuda-emulated", "cuda", "triton"))
def test_gradcheck(case: OpCase, name: str) -> None:
    """Under Triton's interpreter it would take long, and `test_dtypes` holds as much."""
    with running(name) as device:
        leaves, held = case.tensors(SMALL, torch.float64, device), case.held(SMALL, device)
        values = [leaf.requires_grad_() for leaf in leaves.values()]

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            outputs = case.outputs(dict(zip(leaves, values, strict=True)), held)
            return tuple(y for y in outputs if y.requires_grad)

        if not values or not function(*values):
            pytest.skip("has no gradients")
        fast = name != "cpu" or sum(value.numel() for value in values) > 150
        assert torch.autograd.gradcheck(function, values, fast_mode=fast)
        if name == "cpu":
            assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@cases
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", parameters("cuda-emulated"))
def test_thread_order(case: OpCase, name: str, last: bool) -> None:
    """A missing barrier or an order-dependent sum shows as a difference between thread orders."""
    results = []
    with running(name) as device:
        for order in ("forward", "reverse", "shuffled:7"):
            with emulator().order(order):
                results.append(evaluate(case, LARGE, torch.float32, device, last))
    for key, value in results[0].items():
        assert all(torch.equal(value, other[key]) for other in results[1:]), key


@cases
@pytest.mark.parametrize("name", parameters("cpu"))
def test_threads_do_not_change_a_bit(case: OpCase, name: str) -> None:
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with running(name) as device:
                results.append(evaluate(case, LARGE, torch.float32, device))
    finally:
        torch.set_num_threads(threads)
    for key, value in results[0].items():
        if key.isdigit() or not case.products:
            assert all(torch.equal(value, other[key]) for other in results[1:]), key


# --- what PyTorch is told of the ops -------------------------------------------------------------


class Calls(TorchDispatchMode):
    """The calls of our ops, those inside of ops made of others too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, tuple[str, tuple]] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        namespace, name = op._schema.name.split("::")
        if namespace != "torchext":
            return op(*args, **(kwargs or {}))
        # One call for each kind of arguments.
        kind = (name, *(_kind(argument) for argument in args))
        self.found.setdefault(kind, (name, tree_map(_copy, args)))
        if OPS[name].compose is None:
            return op(*args)
        with self:
            return OPS[name].compose(torch.ops.torchext, *args)


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return (argument.dim(), argument.dtype, argument.is_contiguous(), argument.requires_grad)
    return argument is None or (argument if isinstance(argument, bool) else type(argument))


def _copy(argument: Any) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().clone().requires_grad_(argument.requires_grad)


def _detached(argument: Any) -> Any:
    return argument.detach() if isinstance(argument, Tensor) else argument


def calls_of(case: OpCase, last: bool) -> list[tuple[str, tuple]]:
    with running("cpu"), Calls() as calls:
        evaluate(case, LARGE, torch.float32, "cpu", last)
    return [*calls.found.values()]


EVERY = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)
# Without a compiled form, for sizes that depend on data.
OF_DATA = ("test_schema", "test_faketensor")


@cases
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_opcheck(case: OpCase, last: bool) -> None:
    for name, arguments in calls_of(case, last):
        op = getattr(torch.ops.torchext, name)
        # What compilers make of it does not depend on the memory format.
        whole = name not in ("number_windows", "label_windows") and not last
        utilities = EVERY if whole else OF_DATA
        if OPS[name].backward is not None:
            torch.library.opcheck(op, arguments, test_utils=utilities)
        torch.library.opcheck(op, tree_map(_detached, arguments), test_utils=utilities)


def test_every_op_has_a_case() -> None:
    called = {name for case in CASES for name, _ in calls_of(case, last=False)}
    assert called == set(OPS)
