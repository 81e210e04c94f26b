"""The U-Net of partial convolutions. Mask: **1 known, 0 hole**, or between.

Masks stay one channel inside: an encoder mask is one channel, a decoder's is grouped, one channel
for the up-sampled part and the skip's own. The updated masks that stages return are views of one
channel.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import PartialConv
from torchext.nn.plain import plain

from ..checks import check_images, check_mask
from ..paper import chosen

Form = Literal["ratio", "sum"]
Upsampling = Literal["nearest", "bilinear", "bicubic"]
# Kernel size, stride, padding.
SAMPLES = {"down-7": (7, 2, 3), "down-5": (5, 2, 2), "down-3": (3, 2, 1), "none-3": (3, 1, 1)}
SLOPES = {"relu": 0.0, "leaky": 0.2, None: None}


@dataclass(frozen=True)
class Network:
    """The U-Net, with the published values.

    Attributes:
        layers: stages of the encoder and of the decoder; 8 is the paper's depth for 512 pixels.
        upsampling: of features in the decoder; masks are always up-sampled by nearest neighbour.
        form: "sum" is what the released checkpoint needs; "ratio" is the paper's formula.
        width: channels behind the first stage.
        size: of the training images.
    """

    layers: int = 7
    upsampling: Upsampling = "nearest"
    form: Form = "sum"
    width: int = 64
    size: int = 256


@dataclass(frozen=True)
class Loss:
    """The five terms, with the published weights.

    Attributes:
        valid_weight, hole_weight, perceptual_weight, style_weight, variation_weight: of the terms.
        variation: where total variation is measured: the whole composite (code), or the holes grown
            by one pixel (paper).
    """

    valid_weight: float = 1.0
    hole_weight: float = 6.0
    perceptual_weight: float = 0.05
    style_weight: float = 120.0
    variation_weight: float = 0.1
    variation: Literal["image", "hole"] = "image"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        learning_rate, finetuning_rate: of Adam, in the first and the second phase.
        finetune_at: the iteration at which the second phase begins, in which the statistics of the
            encoder's batch norms stand still; 0: at once; none: never.
        flip: probability of a mirror image.
        batch, iterations, epochs: of training.
    """

    learning_rate: float = 2e-4
    finetuning_rate: float = 5e-5
    finetune_at: int | None = 500_000
    flip: float = 0.0
    batch: int = 16
    iterations: int | None = 1_000_000
    epochs: int | None = None


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


class PCBActiv(nn.Module):
    """Partial convolution, batch norm, activation: a stage of the U-Net.

    In evaluation the norm and the activation are part of the convolution's epilogue. The result is
    not masked: it is not 0 in holes, as published.

    Args:
        in_ch, out_ch: channels.
        bn: batch norm behind the convolution.
        sample: "down-7", "down-5", "down-3" (all with stride 2) or "none-3".
        activ: "relu", "leaky" (slope 0.2) or None.
        conv_bias: of the convolution.
        form: of the partial convolution, see `torchext.partial_conv2d`.

    Shape: input (N,in_ch,H,W), mask (N or 1,1 or in_ch,H,W), or with mask_channels as many channels
    as that names, each standing for so many of the input's -> y and the updated mask
    (N,out_ch,Ho,Wo), a view of one channel. With `skip` and `skip_mask`, its mask of one channel,
    input is first up-sampled by two (nearest) and put in front of skip; neither is built.

    Raises: what `torchext.partial_conv2d` raises; ValueError: an unknown sample or activ.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        bn: bool = True,
        sample: str = "none-3",
        activ: str | None = "relu",
        conv_bias: bool = False,
        *,
        form: Form = "sum",
    ) -> None:
        super().__init__()
        if sample not in SAMPLES:
            raise ValueError(f"sample: expected one of {sorted(SAMPLES)}, got {sample!r}")
        if activ not in SLOPES:
            raise ValueError(f"activ: expected 'relu', 'leaky' or None, got {activ!r}")
        self.conv = PartialConv(in_ch, out_ch, *SAMPLES[sample], bias=conv_bias)
        if bn:
            self.bn = nn.BatchNorm2d(out_ch)
        self.form: Form = form
        self.slope = SLOPES[activ]

    def forward(
        self,
        input: Tensor,
        mask: Tensor,
        mask_channels: Sequence[int] | None = None,
        *,
        skip: Tensor | None = None,
        skip_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        norm = getattr(self, "bn", None)
        plain_conv = plain(self.conv, PartialConv) and self.conv.is_plain()
        fused = plain_conv and (norm is None or _is_an_affine(norm))
        conv = self.conv.input_conv
        options: dict[str, Any] = {"form": self.form}
        if fused:
            options["negative_slope"] = self.slope
            options |= {} if norm is None else _inference_affine(norm)
        if not plain_conv:
            if skip is not None:
                mask_channels = (input.shape[1], skip.shape[1])
                input, mask = (
                    torch.cat((F.interpolate(low, scale_factor=2.0), high), dim=1)
                    for low, high in ((input, skip), (mask[:, :1], skip_mask))
                )
            elif mask_channels is None and mask.shape[1] == 1:
                mask_channels = (input.shape[1],)
            y, updated = self.conv(input, mask, mask_channels, self.form)
            updated = updated[:, :1]
        elif skip is not None:
            y, updated = torchext.partial_upsample_conv2d(
                input, mask, conv.weight, conv.bias, skip=skip, skip_mask=skip_mask, **options
            )
        else:
            if mask_channels is None and mask.shape[1] == 1:
                mask_channels = (conv.in_channels,)
            options["mask_channels"] = mask_channels
            y, updated = torchext.partial_conv2d(
                input, mask, conv.weight, conv.bias, conv.stride, conv.padding, **options
            )
        if not fused:
            y = y if norm is None else norm(y)
            if self.slope is not None:
                y = F.leaky_relu(y, self.slope)
        return y, updated.expand_as(y)


def _is_an_affine(norm: nn.Module) -> bool:
    """Whether a norm does no more than `_inference_affine` says."""
    known = plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm) and not norm.training
    return known and norm.running_var is not None and norm.affine


def _inference_affine(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    weight = norm.weight / (norm.running_var + norm.eps).sqrt()
    return {"norm_weight": weight, "norm_bias": norm.bias - norm.running_mean * weight}


class PConvUNet(nn.Module):
    """The inpainting network (stages `enc_1` .. `enc_L`, `dec_L` .. `dec_1`).

    Args:
        layer_size: L, at least 4.
        input_channels: of the image.
        upsampling_mode: of features in the decoder.
        width: channels behind the first stage; 8 times that at most.
        form: see `Network`.

    Shape: input (N,C,H,W), mask (N or 1,1 or C,H,W) -> image (N,C,H,W) and the final mask, a view
    of one channel. H and W are multiples of 2^L.

    `freeze_enc_bn`: then `train()` leaves the encoder's batch norms in evaluation mode; their
    parameters still learn.

    Raises:
        TypeError: another dtype.
        ValueError: L below 4, another size or shape, or a mask with values outside 0 to 1.
    """

    def __init__(
        self,
        layer_size: int = 7,
        input_channels: int = 3,
        upsampling_mode: Upsampling = "nearest",
        *,
        width: int = 64,
        form: Form = "sum",
    ) -> None:
        super().__init__()
        if layer_size < 4:
            raise ValueError(f"layer_size: expected at least 4, got {layer_size}")
        if upsampling_mode not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(
                "upsampling_mode: expected 'nearest', 'bilinear' or 'bicubic',"
                f" got {upsampling_mode!r}"
            )
        self.layer_size = layer_size
        self.input_channels = input_channels
        self.upsampling_mode = upsampling_mode
        self.freeze_enc_bn = False
        channels = [input_channels, *(width * min(2**i, 8) for i in range(layer_size))]
        samples = {1: "down-7", 2: "down-5", 3: "down-5"}
        for i in range(1, layer_size + 1):
            sample = samples.get(i, "down-3")
            stage = PCBActiv(channels[i - 1], channels[i], bn=i > 1, sample=sample, form=form)
            self.add_module(f"enc_{i}", stage)
        for i in range(layer_size, 0, -1):
            last = i == 1
            stage = PCBActiv(
                channels[i] + channels[i - 1],
                channels[i - 1],
                bn=not last,
                activ=None if last else "leaky",
                conv_bias=last,
                form=form,
            )
            self.add_module(f"dec_{i}", stage)

    def forward(self, input: Tensor, input_mask: Tensor) -> tuple[Tensor, Tensor]:
        self._check(input, input_mask)
        features, masks = [input], [input_mask]
        for i in range(1, self.layer_size + 1):
            y, mask = self.get_submodule(f"enc_{i}")(features[-1], masks[-1])
            features.append(y)
            masks.append(mask[:, :1])
        y, mask = features.pop(), masks.pop()
        corners = {} if self.upsampling_mode == "nearest" else {"align_corners": False}
        for i in range(self.layer_size, 0, -1):
            stage = self.get_submodule(f"dec_{i}")
            # Under autocast the network's input is wider than the features.
            skip, skip_mask = features.pop().to(y.dtype), masks.pop().to(mask)
            if self.upsampling_mode == "nearest" and skip_mask.shape[1] == 1:
                y, mask = stage(y, mask[:, :1], skip=skip, skip_mask=skip_mask)
                continue
            counts = [skip.shape[1] // skip_mask.shape[1]] * skip_mask.shape[1]
            up = F.interpolate(y, scale_factor=2, mode=self.upsampling_mode, **corners)
            up_mask = F.interpolate(mask[:, :1], scale_factor=2, mode="nearest")
            batch = max(len(up_mask), len(skip_mask))
            both = [part.expand(batch, -1, -1, -1) for part in (up_mask, skip_mask)]
            y, mask = stage(
                torch.cat((up, skip), dim=1), torch.cat(both, dim=1), (up.shape[1], *counts)
            )
        return y, mask

    def _check(self, input: Tensor, mask: Tensor) -> None:
        C, multiple = self.input_channels, 2**self.layer_size
        check_images("input", input, C)
        H, W = input.shape[2:]
        if H % multiple or W % multiple:
            raise ValueError(
                f"input: expected a height and a width that are multiples of {multiple},"
                f" got {H} x {W}"
            )
        check_mask("input_mask", mask, input, (1, C))

    def train(self, mode: bool = True) -> "PConvUNet":
        super().train(mode)
        if mode and self.freeze_enc_bn:
            for name, module in self.named_modules():
                if isinstance(module, nn.BatchNorm2d) and name.startswith("enc"):
                    module.eval()
        return self


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network

    def generator() -> PConvUNet:
        return PConvUNet(
            given.layers, upsampling_mode=given.upsampling, width=given.width, form=given.form
        )

    return chosen({"generator": generator}, names)


def example(config: Config) -> dict[str, tuple[Tensor, ...]]:
    """Inputs at the paper's size."""
    size = max(config.network.size, 2**config.network.layers)
    return {"generator": (torch.rand(1, 3, size, size), torch.ones(1, 1, size, size))}
