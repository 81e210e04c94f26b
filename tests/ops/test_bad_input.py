"""Bad arguments: the exact error, before any work is done."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import parameters, running

import torchext
from torchext import nn

X = torch.zeros(2, 3, 8, 6)
MASK = torch.ones(2, 1, 8, 6)
K7 = torch.zeros(1, 2, 7, 7)
K1 = torch.zeros(1, 1, 7, 7)
ONE = torch.zeros(1)
AFFINE = (K7, K1, ONE, K1, ONE)

REGION_NORM: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor, got list"),
    (
        {"x": X.long()},
        TypeError,
        "x: expected float32, float64, float16 or bfloat16, got torch.int64",
    ),
    ({"x": X[0]}, ValueError, "x: expected the shape (N, C, H, W), got (3, 8, 6)"),
    (
        {"x": X[..., :0], "mask": MASK[..., :0]},
        ValueError,
        "x: expected C, H and W of at least 1, got (2, 3, 8, 0)",
    ),
    (
        {"x": X[:, :, :0], "mask": MASK[:, :, :0]},
        ValueError,
        "x: expected C, H and W of at least 1, got (2, 3, 0, 6)",
    ),
    (
        {"x": X[:, :0]},
        ValueError,
        "x: expected C, H and W of at least 1, got (2, 0, 8, 6)",
    ),
    ({"mask": None}, TypeError, "mask: expected a torch.Tensor, got NoneType"),
    (
        {"mask": MASK.to(torch.complex64)},
        TypeError,
        "mask: expected a bool, integer or floating-point mask, got torch.complex64",
    ),
    (
        {"mask": MASK[..., :5]},
        ValueError,
        "mask: expected the shape (2 or 1, 1, 8, 6) for x of (2, 3, 8, 6), got (2, 1, 8, 5)",
    ),
    (
        {"mask": MASK[:, 0]},
        ValueError,
        "mask: expected the shape (2 or 1, 1, 8, 6) for x of (2, 3, 8, 6), got (2, 8, 6)",
    ),
    (
        {"mask": torch.ones(3, 1, 8, 6)},
        ValueError,
        "mask: expected the shape (2 or 1, 1, 8, 6) for x of (2, 3, 8, 6), got (3, 1, 8, 6)",
    ),
    (
        {"mask": torch.ones(2, 3, 8, 6)},
        ValueError,
        "mask: expected the shape (2 or 1, 1, 8, 6) for x of (2, 3, 8, 6), got (2, 3, 8, 6)",
    ),
    (
        {"mask": torch.ones(2, 1, 0, 6), "resize_mask": True},
        ValueError,
        "mask: expected the shape (2 or 1, 1, any, any), got (2, 1, 0, 6)",
    ),
    ({"mask": MASK.to("meta")}, ValueError, "mask: expected the device of x, cpu, got meta"),
    ({"mask": MASK * 0.5}, ValueError, "mask: expected only the values 0 and 1, got 0.500000"),
    ({"mask": MASK * float("nan")}, ValueError, "mask: expected only the values 0 and 1, got nan"),
    (
        {"mask": MASK.long() * 255},
        ValueError,
        "mask: expected labels from 0 to 1, got 255",
    ),
    (
        {"mask": -MASK.long(), "num_regions": 5},
        ValueError,
        "mask: expected labels from 0 to 4, got -1",
    ),
    (
        {"num_regions": 3},
        TypeError,
        "mask: expected integer labels for num_regions=3, got torch.float32",
    ),
    ({"num_regions": 0}, ValueError, "num_regions: expected 1 to 64, got 0"),
    ({"num_regions": 65}, ValueError, "num_regions: expected 1 to 64, got 65"),
    ({"num_regions": 2.0}, TypeError, "num_regions: expected an int, got float"),
    ({"scope": "image"}, ValueError, "scope: expected one of ['batch', 'instance'], got 'image'"),
    (
        {"eps_form": "paper"},
        ValueError,
        "eps_form: expected one of ['plain', 'published'], got 'paper'",
    ),
    ({"eps": 0.0}, ValueError, "eps: expected a positive finite number, got 0.0"),
    ({"eps": float("nan")}, ValueError, "eps: expected a positive finite number, got nan"),
    ({"eps": "1e-5"}, TypeError, "eps: expected a number, got str"),
    (
        {"weight": torch.ones(2, 3)},
        ValueError,
        "bias: expected both weight and bias, or none",
    ),
    (
        {"spatial_bias": torch.ones(2, 1, 8, 6)},
        ValueError,
        "spatial_weight: expected both spatial_weight and spatial_bias, or none",
    ),
    (
        {"weight": torch.ones(3), "bias": torch.ones(2, 3)},
        ValueError,
        "weight: expected the shape (2, 3), got (3,)",
    ),
    (
        {"weight": torch.ones(2, 3), "bias": torch.ones(2, 3).long()},
        TypeError,
        "bias: expected a floating-point tensor, got torch.int64",
    ),
    (
        {"weight": torch.ones(2, 3), "bias": torch.ones(2, 3, device="meta")},
        ValueError,
        "bias: expected the device of x, cpu, got meta",
    ),
    (
        {"spatial_weight": torch.ones(2, 3, 8, 6), "spatial_bias": torch.ones(2, 3, 8, 6)},
        ValueError,
        "spatial_weight: expected the shape (2, 1, 8, 6), got (2, 3, 8, 6)",
    ),
    (
        {
            "weight": torch.ones(2, 3),
            "bias": torch.ones(2, 3),
            "spatial_weight": torch.ones(2, 1, 8, 6),
            "spatial_bias": torch.ones(2, 1, 8, 6),
        },
        ValueError,
        "weight, spatial_weight: expected at most one of the two, got both",
    ),
    (
        {"process_group": object(), "scope": "instance"},
        ValueError,
        "process_group: expected scope 'batch' with it, got 'instance'",
    ),
]


@pytest.mark.parametrize("change, kind, message", REGION_NORM)
@pytest.mark.parametrize("name", parameters("cpu", "reference"))
def test_region_norm(change: dict, kind: type[Exception], message: str, name: str) -> None:
    arguments = {"x": X, "mask": MASK, **change}
    with pytest.raises(kind) as error, running(name):
        torchext.region_norm(arguments.pop("x"), arguments.pop("mask"), **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize("change, kind, message", [r for r in REGION_NORM if len(r[0]) == 1][:15])
def test_region_statistics(change: dict, kind: type[Exception], message: str) -> None:
    arguments = {"x": X, "mask": MASK, **change}
    with pytest.raises(kind) as error:
        torchext.region_statistics(arguments.pop("x"), arguments.pop("mask"), **arguments)
    assert str(error.value) == message


SELF_AWARE: list[tuple[int, Any, type[Exception], str]] = [
    (0, X[0], ValueError, "x: expected the shape (N, C, H, W), got (3, 8, 6)"),
    (1, None, TypeError, "conv_weight: expected a torch.Tensor, got NoneType"),
    (
        1,
        K1,
        ValueError,
        "conv_weight: expected the shape (1, 2, 7, 7), got (1, 1, 7, 7)",
    ),
    (
        1,
        torch.zeros(1, 2, 4, 4),
        ValueError,
        "conv_weight: expected the shape (1, 2, k, k) with k odd and at most 15, got (1, 2, 4, 4)",
    ),
    (
        1,
        torch.zeros(1, 2, 17, 17),
        ValueError,
        "conv_weight: expected the shape (1, 2, k, k) with k odd and at most 15,"
        " got (1, 2, 17, 17)",
    ),
    (2, K7, ValueError, "gamma_weight: expected the shape (1, 1, 7, 7), got (1, 2, 7, 7)"),
    (3, torch.zeros(2), ValueError, "gamma_bias: expected the shape (1,), got (2,)"),
    (
        4,
        K1.long(),
        TypeError,
        "beta_weight: expected a floating-point tensor, got torch.int64",
    ),
    (5, ONE.to("meta"), ValueError, "beta_bias: expected the device of x, cpu, got meta"),
    (6, "high", TypeError, "threshold: expected a number, got str"),
]


@pytest.mark.parametrize("position, value, kind, message", SELF_AWARE)
def test_self_aware(position: int, value: Any, kind: type[Exception], message: str) -> None:
    arguments = [X, *AFFINE, 0.8]
    arguments[position] = value
    *tensors, threshold = arguments
    for function in (torchext.self_aware_affine, torchext.self_aware_region_norm):
        with pytest.raises(kind) as error:
            function(*tensors, threshold=threshold)
        assert str(error.value) == message


def test_kernel_size() -> None:
    with pytest.raises(ValueError, match=r"kernel_size: expected 3 or 7, got 5"):
        nn.SelfAware_Affine(kernel_size=5)


# std::invalid_argument in C++: a ValueError up to torch 2.14, a RuntimeError from 2.15 on.
REFUSED = (ValueError, RuntimeError)


def test_ops_called_directly_check_what_memory_safety_needs() -> None:
    ops = torch.ops.torchext
    labels = torch.zeros(2, 1, 8, 6, dtype=torch.uint8)
    tail = (2, False, False)
    with pytest.raises(REFUSED, match="labels: expected values below num_regions"):
        ops.region_statistics(X, labels + 7, *tail)
    with pytest.raises(REFUSED, match="labels: expected the shape"):
        ops.region_statistics(X, labels[:, :, :4], *tail)
    with pytest.raises(REFUSED, match="expected a contiguous or channels_last tensor"):
        ops.region_statistics(X.transpose(2, 3), labels.transpose(2, 3).contiguous(), *tail)
    mean = torch.zeros(1, 2, 3)
    with pytest.raises(REFUSED, match="mean: expected contiguous"):
        ops.region_norm_apply(X, labels, mean[:, :1], mean, None, None, None, None, *tail)


@pytest.mark.parametrize("name", parameters("reference", "cpu", "cuda-emulated"))
def test_fuzz(name: str) -> None:
    """Any arguments either work, with a finite result of x's shape, or raise a named error."""
    sizes = st.integers(0, 9)
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32])
    masks = st.sampled_from([torch.bool, torch.uint8, torch.int64, torch.float32])

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.tuples(sizes, sizes, sizes, sizes),
        st.tuples(sizes, st.integers(1, 3), sizes, sizes),
        dtypes,
        masks,
        st.integers(-1, 70),
        st.booleans(),
        st.sampled_from(["batch", "instance", "layer"]),
        st.booleans(),
        st.booleans(),
        st.integers(0, 3),
    )
    def run(shape, mask_shape, dtype, mask_dtype, K, resize, scope, last, own_mask, high) -> None:
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.randn(shape, generator=generator).to(dtype)
        if last:
            x = x.to(memory_format=torch.channels_last)
        if own_mask:  # a mask that fits, so that a good share of the examples run
            mask_shape = (shape[0], 1, *shape[2:])
        mask = torch.randint(0, high + 1, mask_shape, generator=generator).to(mask_dtype)
        if dtype != torch.int32:
            x.requires_grad_()
        try:
            with running(name):
                y = torchext.region_norm(x, mask, num_regions=K, scope=scope, resize_mask=resize)
        except (TypeError, ValueError) as error:
            assert str(error).split(":")[0] in ("x", "mask", "num_regions", "scope")
            return
        except RuntimeError as error:  # a mask value, by a device assert
            assert name == "cuda-emulated"
            assert "assertion `label" in str(error)
            return
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert y.isfinite().all()
        y.sum().backward()
        assert x.grad.isfinite().all()

    run()
