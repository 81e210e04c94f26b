"""The first stage: an encoder and decoder of partial convolutions. Mask: **1 known, 0 hole**.

Layers take a list [x, mask] and return (y, updated mask), as published.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import Conv2d
from torchext.nn.plain import plain

from ..blocks import instance_norm
from ..checks import check_images, check_mask


class PartialConv(nn.Module):
    """The partial convolution of the published files, whose mask kernels need not be ones.

    y = conv(x * mask, weight) / s + bias where s, the mask's convolution with `mask_conv`, is not
    0, else 0; s may be negative. The published initialiser overwrites the frozen mask kernels with
    noise, and networks trained that way need them. Where all are one number, as built here, the
    mask stays a single channel.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias: of the convolution; with a
            bias the mask's has a frozen one too.

    Shape: [x (N,Ci,H,W), mask (N,1 or Ci,H,W)] -> y and the updated mask (N,Co,Ho,Wo).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        shape = (in_channels, out_channels, kernel_size, stride, padding)
        self.input_conv = Conv2d(*shape, bias=bias)
        self.mask_conv = Conv2d(*shape, bias=bias).requires_grad_(False)
        nn.init.kaiming_normal_(self.input_conv.weight, a=0, mode="fan_in")
        nn.init.ones_(self.mask_conv.weight)
        if bias:
            nn.init.zeros_(self.input_conv.bias)
            nn.init.zeros_(self.mask_conv.bias)
        # The value of all mask weights; None if they differ, or there is a bias.
        self.constant: float | None = 1.0
        self.register_load_state_dict_post_hook(lambda layer, keys: layer.refresh())

    def refresh(self) -> None:
        """Look at the mask kernels again; to be called when they have been changed by hand."""
        kernel, bias = self.mask_conv.weight, self.mask_conv.bias
        first = kernel.flatten()[0].item()
        plain = bias is None or not bias.any()
        self.constant = first if plain and first != 0 and (kernel == first).all() else None

    def forward(self, source: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, mask = source
        conv, of_mask = self.input_conv, self.mask_conv
        if self.constant is not None and plain(conv, nn.Conv2d, Conv2d):
            weight = conv.weight if self.constant == 1 else conv.weight / self.constant
            y, updated = torchext.partial_conv2d(
                x, mask, weight, conv.bias, conv.stride, conv.padding, form="sum"
            )
            return y, updated.expand(len(x), conv.out_channels, *updated.shape[2:])
        with torch.no_grad():
            s = of_mask(mask.expand(len(x), x.shape[1], -1, -1))
            known = s != 0
            scale = torch.where(known, s, 1).reciprocal()
        bias = 0 if conv.bias is None else conv.bias[:, None, None]
        y = (conv(x * mask) - bias) * scale + bias
        return torch.where(known, y, 0), known.to(x.dtype)


class PCBActiv(nn.Module):
    """Activation, partial convolution, norm: one layer of the encoder.

    As published, the activated tensor takes the input's place in the list.

    Args:
        in_ch, out_ch: channels.
        norm_layer: "instance", with an affine, or None.
        sample: "down-4": kernel 4, stride 2, padding 1.
        activ: "leaky", slope 0.2, or None.
        conv_bias: of the convolution.
    """

    def __init__(
        self,
        in_ch: int,
        out_ch: int,
        norm_layer: str | None = None,
        sample: str = "down-4",
        activ: str | None = "leaky",
        conv_bias: bool = False,
    ) -> None:
        super().__init__()
        for name, value, known in (
            ("norm_layer", norm_layer, ("instance", None)),
            ("sample", sample, ("down-4",)),
            ("activ", activ, ("leaky", None)),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {known}, got {value!r}")
        self.conv = PartialConv(in_ch, out_ch, 4, stride=2, padding=1, bias=conv_bias)
        if norm_layer == "instance":
            self.norm = instance_norm(out_ch, affine=True)
        self.activ = activ

    def forward(self, source: list[Tensor]) -> tuple[Tensor, Tensor]:
        if self.activ == "leaky":
            source[0] = F.leaky_relu(source[0], 0.2)
        y, mask = self.conv(source)
        return self.norm(y) if hasattr(self, "norm") else y, mask


class ResnetBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), partial convolutions, each with its predecessor's mask.

    Args:
        dim: channels.
        norm: "instance", without an affine.
    """

    def __init__(self, dim: int, norm: str = "instance") -> None:
        super().__init__()
        if norm != "instance":
            raise ValueError(f"norm: expected 'instance', got {norm!r}")
        self.conv_1 = PartialConv(dim, dim, 3, padding=1, bias=False)
        self.norm_1 = instance_norm(dim)
        self.conv_2 = PartialConv(dim, dim, 3, padding=1, bias=False)
        self.norm_2 = instance_norm(dim)

    def forward(self, source: list[Tensor]) -> tuple[Tensor, Tensor]:
        x, _ = source
        y, mask = self.conv_1(source)
        y, mask = self.conv_2([F.relu(self.norm_1(y)), mask])
        return x + self.norm_2(y), mask


class Encoder(nn.Module):
    """EN: six partial convolutions and four residual blocks.

    Args:
        input_nc, output_nc, ngf, norm: channels of the image, of the result (not used here), behind
            the first layer; the norm, "instance".

    Shape: [image * mask (N,C,H,W), mask (N,1 or C,H,W)] -> (after the blocks, enc5, ..., enc1); H
    and W are multiples of 64, one of them at least 128.

    Raises:
        TypeError: another dtype.
        ValueError: another size or shape, or a mask with values outside 0 to 1.
    """

    def __init__(
        self, input_nc: int = 3, output_nc: int = 3, ngf: int = 64, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.input_nc = input_nc
        widths = (input_nc, ngf, 2 * ngf, 4 * ngf, 8 * ngf, 8 * ngf, 8 * ngf)
        for i in range(1, 7):
            stage = PCBActiv(
                widths[i - 1],
                widths[i],
                norm_layer=norm if 1 < i < 6 else None,
                activ="leaky" if i > 1 else None,
            )
            self.add_module(f"Encoder_{i}", stage)
        self.middle = nn.Sequential(*(ResnetBlock(8 * ngf, norm) for _ in range(4)))

    def forward(self, source: list[Tensor]) -> tuple[Tensor, ...]:
        x, mask = source
        check_images("source[0]", x, self.input_nc)
        check_mask("source[1]", mask, x, (1, self.input_nc))
        H, W = x.shape[2:]
        if H % 64 or W % 64 or max(H, W) < 128 or min(H, W) < 64:
            raise ValueError(
                "source: expected a height and a width that are multiples of 64, one of them at"
                f" least 128, got {H} x {W}"
            )
        skips = []
        for i in range(1, 7):
            source = [x, mask]
            x, mask = self.get_submodule(f"Encoder_{i}")(source)
            skips.append(source[0])  # activated
        for block in self.middle:
            x, mask = block([x, mask])
        return (x, *reversed(skips[1:]))


class Decoder(nn.Module):
    """DE: six transposed convolutions with skips.

    Args:
        input_nc, output_nc, ngf, norm: channels of the image (not used here), of the result,
            of enc1; the norm, "instance".

    Shape: enc1, ..., enc5 and what the blocks gave -> (N,output_nc,H,W) in (-1,1).
    """

    def __init__(
        self, input_nc: int = 3, output_nc: int = 3, ngf: int = 64, norm: str = "instance"
    ) -> None:
        super().__init__()
        if norm != "instance":
            raise ValueError(f"norm: expected 'instance', got {norm!r}")
        before = (8, 16, 16, 8, 4, 2)
        behind = (8 * ngf, 8 * ngf, 4 * ngf, 2 * ngf, ngf, output_nc)
        for i, (inner, outer) in enumerate(zip(before, behind, strict=True), start=1):
            layers = [nn.ReLU(), nn.ConvTranspose2d(inner * ngf, outer, 4, stride=2, padding=1)]
            layers.append(instance_norm(outer, affine=True) if i < 6 else nn.Tanh())
            stage = nn.Module()
            stage.model = nn.Sequential(*layers)
            self.add_module(f"Decoder_{i}", stage)

    def forward(self, *encoded: Tensor) -> Tensor:
        *skips, x = encoded
        for i in range(1, 7):
            if i > 1:
                x = torch.cat((x, skips[6 - i]), dim=1)
            x = self.get_submodule(f"Decoder_{i}").model(x)
        return x


def restore(encoder: Encoder, decoder: Decoder, image: Tensor, known: Tensor) -> Tensor:
    """The prior image (N,3,H,W) in (-1,1) of an image in [-1,1]. Mask: 1 known, 0 hole.

    Raises:
        TypeError, ValueError: image or mask does not fit; see `Encoder`.
    """
    check_images("image", image, encoder.input_nc)
    check_mask("known", known, image, (1, encoder.input_nc))
    known = known.to(image.dtype)
    masked = torch.where(known > 0, image * known, 0)
    return decoder(*reversed(encoder([masked, known])))
