"""A typical call of every public function that runs a kernel, for tests of what a call costs."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

import torchext

CLASSES = 35


class Call(NamedTuple):
    """A function of no arguments, and the tensors that its gradients are of."""

    function: Callable[[], Tensor | tuple[Tensor, ...]]
    leaves: tuple[Tensor, ...] = ()

    def forward(self) -> list[Tensor]:
        """The outputs that have gradients, or all where none has."""
        found = self.function()
        outputs = [found] if isinstance(found, Tensor) else list(found)
        return [y for y in outputs if y.requires_grad] or outputs

    def backward(self, outputs: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
        torch.autograd.grad(list(outputs), self.leaves, list(gradients), allow_unused=True)


def calls(shape: tuple[int, int, int, int], dtype: torch.dtype, last: bool) -> dict[str, Call]:
    """By name; feature maps have the shape, the dtype and, if last, channels last."""
    generator = torch.Generator().manual_seed(0)
    N, C, H, W = shape

    def normal(*size: int, dtype: torch.dtype = dtype) -> Tensor:
        x = torch.randn(size, generator=generator).to(dtype)
        if last and x.dim() == 4 and min(size[1:]) > 1:
            x = x.to(memory_format=torch.channels_last)
        return x.requires_grad_()

    def small(*size: int) -> Tensor:
        """A parameter or a map of numbers from 0 to 1, float32 whatever the maps are."""
        return torch.rand(size, generator=generator).requires_grad_()

    x, other, third = normal(*shape), normal(*shape), normal(*shape)
    mask = torch.zeros(N, 1, H, W)
    mask[..., H // 4 : -H // 8, W // 8 :] = 1  # 1 known
    labels = torch.randint(CLASSES, (N, H // 4, W // 4), generator=generator)
    labels = labels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    channel, bias = small(C), small(C)
    regions, region_bias = small(2, C), small(2, C)
    affine = [
        normal(*s, dtype=torch.float32)
        for s in ((1, 2, 7, 7), (1, 1, 7, 7), (1,), (1, 1, 7, 7), (1,))
    ]
    weight, kernel_bias = normal(C, C, 3, 3), normal(C)
    image = (255 * small(N, 1, H, W).detach()).requires_grad_()
    rows = 64
    index = torch.randint(rows, (N, H // 4, W), generator=generator, dtype=torch.int32)
    index = index.repeat_interleave(4, 1)
    table = small(2, rows, C).detach()
    gammas, betas = (t.clone().requires_grad_() for t in table)
    taps = normal(C, CLASSES, 3, 3, dtype=torch.float32)
    window_weights = [normal(*s, dtype=torch.float32) for s in
                      ((16, CLASSES, 3, 3), (16,), (2 * C, 16, 3, 3), (2 * C,))]  # fmt: skip
    bank = torchext.gabor_bank().requires_grad_()
    few = torchext.gabor_bank(8, 5).requires_grad_()
    gate, shift, attention, pixels = small(N, C), small(N, C), small(N, 1, H, W), small(N, 1, H, W)
    running = (torch.zeros(C), torch.ones(C))
    masked_norm = torchext.nn.MaskedBatchNorm2d(C)
    return {
        "region_norm": Call(
            lambda: torchext.region_norm(x, mask, regions, region_bias), (x, regions, region_bias)
        ),
        "region_norm instance": Call(
            lambda: torchext.region_norm(x, mask, regions, region_bias, scope="instance"),
            (x, regions, region_bias),
        ),
        "region_norm spatial": Call(
            lambda: torchext.region_norm(
                x, mask, spatial_weight=attention, spatial_bias=pixels, scope="instance"
            ),
            (x, attention, pixels),
        ),
        "region_statistics": Call(lambda: torchext.region_statistics(x.detach(), mask)),
        "self_aware_affine": Call(lambda: torchext.self_aware_affine(x, *affine), (x, *affine)),
        "self_aware_region_norm": Call(
            lambda: torchext.self_aware_region_norm(x, *affine), (x, *affine)
        ),
        "mask_window": Call(lambda: torchext.mask_window(mask, 3, padding=1)),
        "mask_window of channels": Call(
            lambda: torchext.mask_window(mask.expand(N, C, H, W).contiguous(), 3, padding=1)
        ),
        "partial_conv2d": Call(
            lambda: torchext.partial_conv2d(x, mask, weight, kernel_bias, padding=1),
            (x, weight, kernel_bias),
        ),
        "partial_conv2d without a mask": Call(
            lambda: torchext.partial_conv2d(x, None, weight, kernel_bias, padding=1),
            (x, weight, kernel_bias),
        ),
        "partial_conv2d of a block": Call(
            lambda: torchext.partial_conv2d(
                x, mask, weight, padding=1, norm_weight=channel, norm_bias=bias, negative_slope=0.2
            ),
            (x, weight, channel, bias),
        ),
        "partial_upsample_conv2d": Call(
            lambda: torchext.partial_upsample_conv2d(x, mask, weight, kernel_bias),
            (x, weight, kernel_bias),
        ),
        "upsample_conv2d": Call(
            lambda: torchext.upsample_conv2d(x, weight, kernel_bias), (x, weight, kernel_bias)
        ),
        "modulated_norm instance": Call(
            lambda: torchext.modulated_norm(x, other, third), (x, other, third)
        ),
        "modulated_norm batch, activated": Call(
            lambda: torchext.modulated_norm(
                x, other, third, weight=attention, statistics="batch", activation=0.2
            ),
            (x, other, third, attention),
        ),
        "modulated_norm batch, running": Call(
            lambda: torchext.modulated_norm(
                x, statistics="batch", running_mean=running[0], running_var=running[1]
            ),
            (x,),
        ),
        "nn.MaskedBatchNorm2d": Call(lambda: masked_norm(x, mask), (x, *masked_norm.parameters())),
        "modulated_norm position": Call(
            lambda: torchext.modulated_norm(
                x, other, third, weight=attention, statistics="position"
            ),
            (x, other, third, attention),
        ),
        "modulated_norm of channels": Call(
            lambda: torchext.modulated_norm(x, gate, shift), (x, gate, shift)
        ),
        "modulated_norm position of channels": Call(
            lambda: torchext.modulated_norm(x, gate, shift, statistics="position"),
            (x, gate, shift),
        ),
        "modulated_norm of pixels": Call(
            lambda: torchext.modulated_norm(x, attention, pixels), (x, attention, pixels)
        ),
        "modulated_norm of a table": Call(
            lambda: torchext.modulated_norm(x, gammas, betas, index=index), (x, gammas, betas)
        ),
        "label_conv2d": Call(lambda: torchext.label_conv2d(labels, taps, bias), (taps, bias)),
        "label_windows": Call(lambda: torchext.label_windows(labels).windows),
        "spade_modulation_table": Call(
            lambda: torchext.spade_modulation_table(
                torchext.label_windows(labels), *window_weights
            ),
            tuple(window_weights),
        ),
        "dual_attention_pools": Call(lambda: torchext.dual_attention_pools(x, other), (x, other)),
        "dual_attention": Call(
            lambda: torchext.dual_attention(x, other, gate, attention),
            (x, other, gate, attention),
        ),
        "diversity_map": Call(lambda: torchext.diversity_map(mask, 4, 5)),
        "soft_diversity_map": Call(lambda: torchext.soft_diversity_map(x, mask), (x,)),
        "oriented_filter_max": Call(
            lambda: torchext.oriented_filter_max(image, bank), (image, bank)
        ),
        "oriented_filter_statistics": Call(
            lambda: torchext.oriented_filter_statistics(image, few), (image, few)
        ),
        "gabor_orientation": Call(
            lambda: torchext.gabor_orientation(image.detach() / 255, "gabor")
        ),
        "gabor_orientation of dog": Call(
            lambda: torchext.gabor_orientation(image.detach() / 255, "dog")
        ),
    }
