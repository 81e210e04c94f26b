"""Calls of every public op, from which `tests/ops/test_every_op.py` makes its tests.

A new op needs rows here; tests of its own are for what sets it apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import torchext
from torchext.ops.op import OPS


class Sizes(NamedTuple):
    """Of a feature map."""

    N: int
    C: int
    H: int
    W: int


SMALL = Sizes(2, 4, 6, 8)  # for numerical derivatives
LARGE = Sizes(2, 36, 18, 22)  # several blocks and tiles of the kernels
EMPTY = Sizes(0, 4, 6, 8)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class OpCase:
    """A call of a public function.

    Attributes:
        name: of the case.
        call: takes the leaves and the constants by name; gives one tensor or several.
        leaves: the shapes of what has gradients, by name, for given sizes.
        constants: what has none, on the CPU; their values are the same at each call.
        parameters: the leaves that are float32 beside a feature map of a narrower dtype.
        length: of how many terms a result is the sum, at most, with `LARGE`.
        empty: whether it takes an empty batch.
        products: whether gradients come from PyTorch's own convolutions and products of matrices,
            whose sums depend on the number of threads.
        transforms: whether it is tried under compilers and torch.func too: one case for each way
            that an op's Python goes.
    """

    name: str
    call: Callable[..., Any]
    leaves: Callable[[Sizes], Shapes]
    constants: Callable[[Sizes], dict[str, Tensor]] = field(default=lambda size: {})
    parameters: tuple[str, ...] = ()
    length: int = 1000
    empty: bool = True
    products: bool = False
    transforms: bool = False

    def __str__(self) -> str:
        return self.name

    def tensors(
        self,
        size: Sizes = SMALL,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        last: bool = False,
    ) -> dict[str, Tensor]:
        """The leaves, without gradients as yet; the same numbers in every dtype."""
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        found = {}
        for name, shape in self.leaves(size).items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            value = value.to(device, accumulate if name in self.parameters else dtype)
            if last and value.dim() == 4:
                value = value.to(memory_format=torch.channels_last)
            found[name] = value
        return found

    def held(self, size: Sizes = SMALL, device: str = "cpu") -> dict[str, Tensor]:
        """The constants."""
        return {name: value.to(device) for name, value in self.constants(size).items()}

    def outputs(self, leaves: dict[str, Tensor], held: dict[str, Tensor]) -> list[Tensor]:
        found = self.call(**leaves, **held)
        return [found] if isinstance(found, Tensor) else list(found)

    def of_first(self, dtype: torch.dtype = torch.float32) -> tuple[Callable, Tensor]:
        """A function of the first leaf that gives all real outputs in one tensor; the leaf."""
        (name, first), *others = self.tensors(dtype=dtype).items()
        held = self.held()

        def function(value: Tensor) -> Tensor:
            outputs = self.outputs({name: value, **dict(others)}, held)
            real = [y for y in outputs if y.is_floating_point()]
            return real[0] if len(real) == 1 else torch.cat([y.flatten(1) for y in real], dim=1)

        return function, first


def _random(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _mask(size: Sizes, channels: int = 1) -> Tensor:
    """1 known, 0 hole."""
    return (_random((size.N, channels, size.H, size.W)) > 0.4).float()


def _labels(size: Sizes, classes: int) -> Tensor:
    return (_random((size.N, size.H, size.W)) * classes).long()


def _map(size: Sizes, channels: int | None = None) -> tuple[int, ...]:
    return size.N, size.C if channels is None else channels, size.H, size.W


def _masked(size: Sizes) -> dict[str, Tensor]:
    return {"mask": _mask(size)}


# --- region normalisation ------------------------------------------------------------------------


def _regions(size: Sizes, regions: int) -> dict[str, Tensor]:
    return {"mask": _labels(size, regions)[:, None]}


def _region_affine(size: Sizes, regions: int = 2) -> Shapes:
    return {"x": _map(size), "weight": (regions, size.C), "bias": (regions, size.C)}


def _spatial_affine(size: Sizes) -> Shapes:
    return {"x": _map(size), "spatial_weight": _map(size, 1), "spatial_bias": _map(size, 1)}


def _self_aware(kernel: int) -> Callable[[Sizes], Shapes]:
    return lambda size: {
        "x": _map(size),
        "conv_weight": (1, 2, kernel, kernel),
        "gamma_weight": (1, 1, kernel, kernel),
        "gamma_bias": (1,),
        "beta_weight": (1, 1, kernel, kernel),
        "beta_bias": (1,),
    }


def _region_parts(x: Tensor, spatial_weight: Tensor, spatial_bias: Tensor, mask: Tensor) -> tuple:
    """The ops between which processes add up their statistics."""
    x, labels = x.detach(), mask.to(torch.uint8)
    spatial = spatial_weight.detach(), spatial_bias.detach()
    tail = (2, False, False)
    count, mean, variance = OPS["region_statistics"](x, labels, *tail)
    rstd = (variance + 0.1).rsqrt()
    y = OPS["region_norm_apply"](x, labels, mean, rstd, None, None, *spatial, *tail)
    given = (y, x, labels)
    sums, *maps = OPS["region_norm_backward_sums"](*given, mean, rstd, spatial[0], *tail)
    grad_x = OPS["region_norm_backward_apply"](
        *given, count, mean, rstd, sums, None, spatial[0], None, None, *tail
    )
    return y, sums, *maps, grad_x


_AFFINE = ("weight", "bias", "spatial_weight", "spatial_bias")
_SELF_AWARE = ("conv_weight", "gamma_weight", "gamma_bias", "beta_weight", "beta_bias")

_REGIONS = [
    OpCase(
        name="region_norm",
        call=torchext.region_norm,
        leaves=_region_affine,
        constants=_masked,
        parameters=_AFFINE,
        transforms=True,
    ),
    OpCase(
        name="region_norm-without_affine",
        call=torchext.region_norm,
        leaves=lambda size: {"x": _map(size)},
        constants=lambda size: {"mask": _mask(size)[:1]},
    ),
    OpCase(
        name="region_norm-spatial",
        call=torchext.region_norm,
        leaves=_spatial_affine,
        constants=_masked,
        parameters=_AFFINE,
    ),
    OpCase(
        name="region_norm-instance_without_holes",
        call=lambda **given: torchext.region_norm(**given, scope="instance", ignore_holes=True),
        leaves=_spatial_affine,
        constants=_masked,
        parameters=_AFFINE,
        transforms=True,
    ),
    OpCase(
        name="region_norm-holes_plain_eps",
        call=lambda **given: torchext.region_norm(**given, ignore_holes=True, eps_form="plain"),
        leaves=_region_affine,
        constants=_masked,
        parameters=_AFFINE,
    ),
    OpCase(
        name="region_norm-labels",
        call=lambda **given: torchext.region_norm(**given, num_regions=4, scope="instance"),
        leaves=lambda size: _region_affine(size, 4),
        constants=lambda size: _regions(size, 4),
        parameters=_AFFINE,
    ),
    OpCase(
        name="region_norm-64_labels",
        call=lambda **given: torchext.region_norm(**given, num_regions=64),
        leaves=lambda size: _region_affine(size, 64),
        constants=lambda size: _regions(size, 64),
        parameters=_AFFINE,
    ),
    OpCase(
        name="region_norm-one_pixel",
        call=torchext.region_norm,
        leaves=lambda size: {"x": _map(size)},
        constants=lambda size: {
            "mask": torch.ones(1, 1, size.H, size.W).index_fill_(3, torch.tensor([0]), 0)
        },
    ),
    OpCase(
        name="region_statistics",
        call=lambda x, mask: torchext.region_statistics(x, mask, num_regions=3)[1:],
        leaves=lambda size: {"x": _map(size)},
        constants=lambda size: _regions(size, 3),
    ),
    OpCase(
        name="region_norm-with_given_statistics",
        call=_region_parts,
        leaves=_spatial_affine,
        constants=_masked,
        parameters=_AFFINE,
    ),
    OpCase(
        name="self_aware_affine",
        call=torchext.self_aware_affine,
        leaves=_self_aware(3),
        parameters=_SELF_AWARE,
        transforms=True,
    ),
    OpCase(
        name="self_aware_region_norm",
        call=torchext.self_aware_region_norm,
        leaves=_self_aware(3),
        parameters=_SELF_AWARE,
        empty=False,
        transforms=True,
    ),
    OpCase(
        name="self_aware_region_norm-instance",
        call=lambda **given: torchext.self_aware_region_norm(**given, scope="instance"),
        leaves=_self_aware(7),
        parameters=_SELF_AWARE,
        empty=False,
    ),
]

# --- modulated normalisation ---------------------------------------------------------------------


def _full_maps(size: Sizes) -> Shapes:
    return {name: _map(size) for name in ("x", "gamma", "beta", "weight")}


def _table(size: Sizes) -> Shapes:
    return {"x": _map(size), "gamma": (9, size.C), "beta": (9, size.C), "weight": _map(size, 1)}


def _modulated(statistics: str, **options: Any) -> Callable[..., Tensor]:
    return lambda **given: torchext.modulated_norm(**given, statistics=statistics, **options)


def _modulated_parts(x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor) -> tuple:
    """The ops between which processes add up their sums."""
    x, gamma, beta, weight = (value.detach() for value in (x, gamma, beta, weight))
    maps = x, gamma, beta, weight
    options = ("batch", False, 1e-5, "one_plus", 0.2)
    y, mean, rstd = OPS["modulated_norm"](*maps, None, None, None, *options)
    sums, *gradients = OPS["modulated_norm_backward_sums"](
        y.cos(), y, *maps, mean, rstd, None, "one_plus", 0.2, True
    )
    given = (y.cos(), y, x, gamma, weight, mean, rstd, None)
    grad_x = OPS["modulated_norm_backward_apply"](*given, sums / x[:, 0].numel(), "one_plus", 0.2)
    return y, *gradients, sums, grad_x


_MODULATED = [
    *(
        OpCase(
            name=f"modulated_norm-{statistics}",
            call=_modulated(statistics, gain="sigmoid", activation=0.2),
            leaves=_full_maps,
            transforms=statistics == "position",
        )
        for statistics in ("none", "instance", "batch", "position", "rms")
    ),
    OpCase(
        name="modulated_norm-by_image",
        call=_modulated("instance", gain="plain", activation="relu"),
        leaves=lambda size: {
            "x": _map(size),
            "gamma": (size.N, size.C),
            "beta": (size.N, size.C),
        },
        parameters=("gamma", "beta"),
        transforms=True,
    ),
    OpCase(
        name="modulated_norm-by_pixel",
        call=_modulated("position", unbiased=True),
        leaves=lambda size: {
            "x": _map(size),
            "gamma": _map(size, 1),
            "beta": _map(size, 1),
            "weight": _map(size, 1),
        },
        parameters=("gamma", "beta", "weight"),
    ),
    OpCase(
        name="modulated_norm-running",
        call=lambda running_mean, running_var, **given: torchext.modulated_norm(
            **given,
            statistics="batch",
            running_mean=running_mean.to(given["x"].dtype),
            running_var=running_var.to(given["x"].dtype),
            training=False,
        ),
        leaves=lambda size: {name: _map(size) for name in ("x", "gamma", "beta")},
        constants=lambda size: {
            "running_mean": _random((size.C,)),
            "running_var": _random((size.C,)) + 0.5,
        },
    ),
    OpCase(
        name="modulated_norm-with_given_sums", call=_modulated_parts, leaves=_full_maps, empty=False
    ),
    OpCase(
        name="modulated_norm-table",
        call=_modulated("batch", activation=0.2),
        leaves=_table,
        constants=lambda size: {"index": _labels(size, 8).int()},
        parameters=("gamma", "beta", "weight"),
    ),
]

# --- label maps ----------------------------------------------------------------------------------

_CLASSES = 7


def _label_map(size: Sizes) -> dict[str, Tensor]:
    return {"labels": _labels(size, _CLASSES)}


def _looked_up(labels: Tensor, **weights: Tensor) -> Tensor:
    """Of each pixel: the order of the rows is the backend's own."""
    windows = torchext.label_windows(labels)
    return torchext.spade_modulation_table(windows, **weights)[windows.index.long()]


_LABELS = [
    OpCase(
        name="label_conv2d",
        call=lambda weight, bias, labels: torchext.label_conv2d(labels, weight, bias),
        leaves=lambda size: {"weight": (size.C, _CLASSES, 3, 3), "bias": (size.C,)},
        constants=_label_map,
        transforms=True,
    ),
    OpCase(
        name="spade_modulation_table",
        call=_looked_up,
        empty=False,
        products=True,
        leaves=lambda size: {
            "weight": (5, _CLASSES, 3, 3),
            "bias": (5,),
            "modulation_weight": (2 * size.C, 5, 3, 3),
            "modulation_bias": (2 * size.C,),
        },
        constants=_label_map,
    ),
]

# --- maps of masks, attention, filters -----------------------------------------------------------


def _attention(size: Sizes) -> Shapes:
    N, C, H, W = size
    return {
        "high": _map(size),
        "low": _map(size),
        "gate": (N, C),
        "attention": (N, 1, H, W),
    }


_MAPS = [
    OpCase(
        name="soft_diversity_map",
        call=torchext.soft_diversity_map,
        leaves=lambda size: {"logits": _map(size)},
        constants=_masked,
        transforms=True,
    ),
    OpCase(
        name="diversity_map",
        call=lambda mask: torchext.diversity_map(mask, [2, 3], 3, size=[(9, 7), (4, 5)]),
        leaves=lambda size: {},
        constants=_masked,
    ),
    OpCase(
        name="dual_attention",
        call=torchext.dual_attention,
        leaves=_attention,
        transforms=True,
    ),
    OpCase(
        name="dual_attention_pools",
        call=torchext.dual_attention_pools,
        leaves=lambda size: {"high": _map(size), "low": _map(size)},
    ),
    OpCase(
        name="gabor_orientation",
        call=lambda image, bank: torchext.gabor_orientation(image, bank, rectify="abs"),
        leaves=lambda size: {"image": _map(size, 1), "bank": (6, 3, 3)},
        transforms=True,
    ),
    OpCase(
        name="oriented_filter_max-symmetric",
        call=lambda image: torchext.oriented_filter_max(image, torchext.gabor_bank(6, 5)),
        leaves=lambda size: {"image": _map(size, 1)},
    ),
    OpCase(
        name="oriented_filter_max",
        call=torchext.oriented_filter_max,
        leaves=lambda size: {"image": _map(size, 1), "bank": (6, 3, 3)},
    ),
    *(
        OpCase(
            name=f"oriented_filter_statistics-{confidence}",
            products=True,
            call=lambda confidence=confidence, **given: torchext.oriented_filter_statistics(
                **given, confidence=confidence, border="wrap", eps=1e-12
            ),
            leaves=lambda size: {"image": _map(size, 1), "bank": (6, 3, 3)},
            constants=lambda size, angles=angles: angles,
            transforms=confidence == "variance",
        )
        for confidence, angles in (
            ("variance", {}),
            ("spread", {"angles": torch.tensor([0.1, 0.9, 0.4, 2.0, 2.9, 1.1])}),
        )
    ),
]

# --- convolutions --------------------------------------------------------------------------------


def _convolution(
    out: int, kernel: tuple[int, ...] = (3, 3), groups: int = 1
) -> Callable[[Sizes], Shapes]:
    return lambda size: {
        "x": _map(size),
        "weight": (out, size.C // groups, *kernel),
        "bias": (out,),
    }


def _normed(size: Sizes) -> Shapes:
    return {**_convolution(6)(size), "norm_weight": (6,), "norm_bias": (6,)}


def _volume(size: Sizes) -> Shapes:
    N, C, H, W = size
    return {"x": (N, C, 3, H, W), "weight": (5, C, 3, 3, 3), "bias": (5,)}


def _decoder(size: Sizes) -> Shapes:
    N, C, H, W = size
    return {
        "x": _map(size),
        "weight": (5, C + 3, 3, 3),
        "bias": (5,),
        "skip": (N, 3, 2 * H, 2 * W),
    }


def _decoder_masks(size: Sizes) -> dict[str, Tensor]:
    return {"mask": _mask(size), "skip_mask": _mask(size._replace(H=2 * size.H, W=2 * size.W))}


def _four_times(size: Sizes) -> Sizes:
    return size._replace(C=3, H=4 * size.H, W=4 * size.W)


def _mostly_hole(size: Sizes) -> Tensor:
    mask = torch.zeros(_map(size, 1))
    mask[..., : size.W // 3] = 1
    return mask


def _partial(**options: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda **given: torchext.partial_conv2d(**given, **options)


_CONVOLUTIONS = [
    OpCase(
        name="partial_conv2d",
        products=True,
        call=_partial(padding=1),
        leaves=_convolution(6),
        constants=_masked,
        transforms=True,
    ),
    OpCase(
        name="partial_conv2d-sum_of_masks",
        products=True,
        call=lambda **given: torchext.partial_conv2d(**given, padding=1, form="sum"),
        leaves=_convolution(6),
        constants=lambda size: {"mask": _mask(size, size.C) * 0.5},
    ),
    OpCase(
        name="partial_conv2d-groups_of_masks",
        products=True,
        call=lambda x, mask, **given: torchext.partial_conv2d(
            x,
            mask,
            **given,
            stride=2,
            padding=(2, 1),
            dilation=(2, 1),
            groups=2,
            mask_channels=(1, x.shape[1] - 1),
        ),
        leaves=_convolution(6, groups=2),
        constants=lambda size: {"mask": _mask(size, 2)},
    ),
    OpCase(
        name="partial_conv2d-norm_and_activation",
        products=True,
        call=_partial(padding=1, negative_slope=0.2, mask_output=True),
        leaves=_normed,
        constants=_masked,
    ),
    OpCase(
        name="partial_conv2d-reflect",
        products=True,
        call=_partial(padding=1, padding_mode="reflect", negative_slope=0.0),
        leaves=_normed,
        constants=_masked,
    ),
    OpCase(
        name="partial_conv2d-mostly_hole",
        products=True,
        call=_partial(stride=(1, 2), padding=1),
        leaves=lambda size: _convolution(6)(_four_times(size)),
        constants=lambda size: {"mask": _mostly_hole(_four_times(size))},
    ),
    OpCase(
        name="partial_conv2d-all_known",
        products=True,
        call=lambda **given: torchext.partial_conv2d(mask=None, padding=1, **given),
        leaves=_convolution(6),
    ),
    OpCase(
        name="partial_conv3d",
        products=True,
        call=lambda x, mask, **given: torchext.partial_conv3d(
            x, mask[:, :, None].expand(-1, -1, 3, -1, -1), padding=1, **given
        ),
        leaves=_volume,
        constants=_masked,
    ),
    OpCase(
        name="partial_upsample_conv2d",
        products=True,
        call=torchext.partial_upsample_conv2d,
        leaves=_decoder,
        constants=_decoder_masks,
    ),
    OpCase(
        name="upsample_conv2d",
        products=True,
        call=torchext.upsample_conv2d,
        leaves=_convolution(5),
        transforms=True,
    ),
    OpCase(
        name="upsample_conv2d-added",
        products=True,
        call=torchext.upsample_conv2d,
        leaves=lambda size: {
            **_convolution(5, (1, 5))(size),
            "addend": (size.N, 5, 2 * size.H, 2 * size.W),
        },
    ),
    OpCase(
        name="mask_window",
        call=lambda mask: torchext.mask_window(mask, 3, stride=(2, 1), padding=1, bias=True),
        leaves=lambda size: {},
        constants=lambda size: {"mask": _mask(size, 2)},
    ),
    OpCase(
        name="winograd_conv2d",
        call=torchext.winograd_conv2d,
        leaves=_convolution(5),
    ),
    OpCase(
        name="winograd_conv2d-2x2_dilated",
        call=lambda **given: torchext.winograd_conv2d(**given, padding=2, dilation=(2, 1)),
        leaves=_convolution(5, kernel=(2, 2)),
    ),
]

CASES = [*_REGIONS, *_MODULATED, *_LABELS, *_MAPS, *_CONVOLUTIONS]
TRANSFORMED = [case for case in CASES if case.transforms]
