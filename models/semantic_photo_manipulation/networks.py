"""Progressive generator and its discriminator, layered encoder, perturbations, and every option.

Layers count from 1, as in the published keys; r_i is the output of layer i, and r_4, an 8x8 map,
is the latent code that edits change.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchext
from torchext.nn import Conv2d, PixelNorm, UpsampleConv2d

from ..blocks import BasicBlock, PointwiseConv2d
from ..checks import check_images
from ..paper import chosen

SLOPE = 0.2
WIDTH = 512
CODE_LAYER = 4  # h: what edits change is the output of this layer
CODE_SIZE = 8  # height and width of that output
# Channels of the latent code z, then of each resolution from 4x4 on.
SIZES: dict[int, tuple[int, ...]] = {
    64: (512, 512, 512, 512, 256, 128),
    128: (512, 512, 512, 512, 256, 128, 64),
    256: (512, 512, 512, 512, 256, 128, 64, 32),
    1024: (512, 512, 512, 512, 512, 256, 128, 64, 32, 16),
}
ENCODED = (128, 256)  # resolutions for which there is an encoder
Maps = Mapping[int, Tensor]  # by layer


@dataclass(frozen=True)
class Network:
    """What decides shapes; the published values for LSUN's churches, bedrooms, kitchens, ...

    Attributes:
        resolution: of the photos.
        width: channels of the code and of the lowest layers; the others keep their share of it.
            Published files need 512.
        encoder_width: channels of the encoder's first convolution; published files need 64.
    """

    resolution: Literal[64, 128, 256, 1024] = 256
    width: int = WIDTH
    encoder_width: int = 64

    def __post_init__(self) -> None:
        if self.resolution not in SIZES:
            raise ValueError(f"resolution: expected one of {tuple(SIZES)}, got {self.resolution!r}")
        for name in ("width", "encoder_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Channels of the code, then of each resolution from 4x4 on."""
        return tuple(max(1, size * self.width // WIDTH) for size in SIZES[self.resolution])


@dataclass(frozen=True)
class Loss:
    """Terms of the trainings, and of fitting one photo.

    Attributes:
        penalty_weight: of the gradients' norms, in the generator's training.
        drift_weight: of the squared scores of photos, there.
        vgg_weight: of VGG-16's features (up to relu4_2) in `refine` and `tune`; with 0 no file of
            VGG-16 is needed.
        layer_weight: of the encoder's layers: cosine error of what the generator's layer makes of
            the estimate.
        photo_weight: of the squared error of the folder's photos, in the joint stage; ours: the
            published encoder sees generated images alone (0).
        delta_weight: of the squared perturbations of an image-specific generator.
        sigma: of the Gaussian by which the kept region fades, in pixels.
        dilation: of the stroke before that, in pixels.
    """

    penalty_weight: float = 10.0
    drift_weight: float = 0.001
    vgg_weight: float = 1.0
    layer_weight: float = 0.01
    photo_weight: float = 0.0
    delta_weight: float = 0.1
    sigma: float = 4.0
    dilation: int = 16


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: the published values.

    Attributes:
        generator_rate: of the generator's stage, and of its discriminator.
        growth_iterations: of each phase of that stage; 800,000 images in batches of 16.
        trunk_rate, layers_rate, joint_rate: of the encoder's stages resnet, layers and joint.
        period: iterations that count as an epoch when rates fall.
        batch, epochs, iterations: of training; 100,000 iterations are those of the joint stage, the
            others took 10,000.
        refine_rate, refine_steps: of the refinement of a photo's code.
        adapt_rate, adapt_steps: of the image-specific generator.
        tune_rate, tune_steps: of the interactive one, each of two fits.
    """

    generator_rate: float = 1e-3
    growth_iterations: int = 50_000
    trunk_rate: float = 1e-2
    layers_rate: float = 1e-4
    joint_rate: float = 1e-5
    period: int = 100
    batch: int = 32
    epochs: int | None = None
    iterations: int | None = 100_000
    refine_rate: float = 1e-2
    refine_steps: int = 3000
    adapt_rate: float = 0.1
    adapt_steps: int = 1000
    tune_rate: float = 1e-2
    tune_steps: int = 1000

    def __post_init__(self) -> None:
        for name in ("period", "growth_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("refine_steps", "adapt_steps", "tune_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")


@dataclass(frozen=True)
class Config:
    """Every option, with the published values; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


# --- generator ------------------------------------------------------------------------------------


class _Perturbed(torch.autograd.Function):
    """y * (1 + delta): one pass forward, one for each gradient; autograd's own takes six."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, delta: Tensor) -> Tensor:
        return torch.addcmul(y, y, delta)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, delta = ctx.saved_tensors
        of_y = torch.addcmul(grad, grad, delta) if ctx.needs_input_grad[0] else None
        of_delta = (grad * y).sum_to_size(delta.shape) if ctx.needs_input_grad[1] else None
        return of_y, of_delta


def perturbed(y: Tensor, delta: Tensor | None) -> Tensor:
    """y * (1 + delta) of a layer's output (N,C,H,W); delta (N or 1,C,H,W), None for 0."""
    return y if delta is None else _Perturbed.apply(y, delta)


def scaled_and_perturbed(
    x: Tensor, scale: float, bias: Tensor, slope: float | None, delta: Tensor | None = None
) -> Tensor:
    """What follows each convolution: leaky(x * scale + bias) * (1 + delta).

    Args:
        x: (N,C,H,W).
        scale: a fixed number (equalised learning rate).
        bias: (C,).
        slope: of the leaky ReLU; None for none.
        delta: (N or 1,C,H,W), 0 by default.
    """
    shift = bias.expand(x.shape[0], -1)
    gain = torch.full_like(shift, scale)
    y = torchext.modulated_norm(x, gain, shift, statistics="none", gain="plain", activation=slope)
    return perturbed(y, delta)


class WScale(nn.Module):
    """The run-time scale and bias of a convolution whose weight is stored unscaled (key `b`).

    Args:
        channels: C.
        scale: of the convolution's result.
        slope: of the leaky ReLU behind; None for none.

    Shape: (N,C,H,W), and delta (N or 1,C,H,W) or None -> (N,C,H,W).
    """

    def __init__(self, channels: int, scale: float, slope: float | None) -> None:
        super().__init__()
        self.scale = scale
        self.slope = slope
        self.b = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        return scaled_and_perturbed(x, self.scale, self.b, self.slope, delta)


class _Folded(nn.Module):
    """What is left of a `WScale` whose scale and bias its convolution has: see `folded`."""

    def __init__(self, slope: float | None) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        if self.slope is not None:  # nobody else has the convolution's result
            x = F.leaky_relu(x, self.slope, inplace=True)
        return perturbed(x, delta)


class NormConvBlock(nn.Module):
    """Pixel norm of the input, convolution without bias, scale and bias, leaky ReLU.

    The scale is sqrt(2 / C_in) / kernel_size; weights are stored with deviation 1.

    Args:
        in_channels, out_channels, kernel_size, padding: of the convolution.

    Shape: x (N,C_in,H,W), delta (N or 1,C_out,H',W') or None -> (N,C_out,H',W'), times 1 + delta.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv = self._convolution(in_channels, out_channels, kernel_size, padding)
        nn.init.normal_(self.conv.weight)
        self.wscale = WScale(out_channels, (2 / in_channels) ** 0.5 / kernel_size, SLOPE)

    def _convolution(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int
    ) -> nn.Conv2d:
        return Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)

    def forward(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        return self.wscale(self.conv(self.norm(x)), delta)


class NormUpscaleConvBlock(NormConvBlock):
    """The same with nearest up-sampling by two before the convolution, which keeps the size.

    Shape: x (N,C_in,H,W) -> (N,C_out,2H,2W).

    Raises:
        ValueError: a padding other than half the kernel size.
    """

    def _convolution(
        self, in_channels: int, out_channels: int, kernel_size: int, padding: int
    ) -> nn.Conv2d:
        if kernel_size % 2 == 0 or padding != kernel_size // 2:
            raise ValueError(
                "kernel_size, padding: expected an odd size and its half, got"
                f" {kernel_size} and {padding}"
            )
        return UpsampleConv2d(in_channels, out_channels, kernel_size, bias=False)


class OutputConvBlock(nn.Module):
    """Pixel norm, 1x1 convolution to 3 colours, scale 1 / sqrt(C_in) and bias.

    Args:
        in_channels: C_in.
        tanh: cut to [-1,1]; published under this name.

    Shape: (N,C_in,H,W) -> (N,3,H,W).
    """

    def __init__(self, in_channels: int, tanh: bool = True) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv = Conv2d(in_channels, 3, 1, bias=False)
        nn.init.normal_(self.conv.weight)
        self.wscale = WScale(3, in_channels**-0.5, None)
        self.clamp = tanh

    def colours(self, x: Tensor) -> Tensor:
        """Not cut off."""
        return self.wscale(self.conv(self.norm(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.colours(x)
        return y.clamp(-1, 1) if self.clamp else y


class ProgressiveGenerator(nn.Module):
    """The progressive GAN's generator (Karras et al., 2018) with the published keys.

    Args:
        resolution: of the images: 64, 128, 256 or 1024, which gives the published sizes.
        sizes: instead of it, channels of the code, then of 4x4, 8x8, ...; the images are
            2 ** len(sizes) pixels wide.
        tanh: cut the images to [-1,1].

    Shape: z (N,C) or (N,C,1,1), whose length does not matter -> (N,3,H,H) in [-1,1].

    Raises:
        ValueError: neither or both of resolution and sizes, or others than there are.
        TypeError, ValueError: a tensor does not fit.
    """

    def __init__(
        self,
        resolution: int | None = None,
        sizes: Sequence[int] | None = None,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        if (resolution is None) == (sizes is None):
            raise ValueError("resolution, sizes: expected one of them")
        if sizes is None:
            if resolution not in SIZES:
                raise ValueError(f"resolution: expected one of {tuple(SIZES)}, got {resolution!r}")
            sizes = SIZES[resolution]
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes: expected at least two numbers above 0, got {tuple(sizes)}")
        self.sizes = tuple(sizes)
        self.layers = 2 * (len(sizes) - 1)
        self.resolution = 2 ** len(sizes)
        self.output = f"output_{self.resolution}x{self.resolution}"
        for i in range(1, self.layers + 1):
            before, behind = self.channels(i - 1), self.channels(i)
            if i == 1:
                layer = NormConvBlock(before, behind, 4, 3)  # a dense layer from 1x1 to 4x4
            elif i % 2:
                layer = NormUpscaleConvBlock(before, behind, 3, 1)
            else:
                layer = NormConvBlock(before, behind, 3, 1)
            self.add_module(f"layer{i}", layer)
        self.add_module(self.output, OutputConvBlock(sizes[-1], tanh))

    def channels(self, layer: int) -> int:
        """Of a layer's output; layer 0 is the code z."""
        return self.sizes[(layer + 1) // 2]

    def side(self, layer: int) -> int:
        """Height and width of a layer's output."""
        return 2 ** ((layer + 1) // 2 + 1) if layer else 1

    def shape(self, layer: int) -> tuple[int, int, int]:
        """(C,H,W) of a layer's output."""
        return self.channels(layer), self.side(layer), self.side(layer)

    def run(
        self,
        x: Tensor,
        first: int = 1,
        last: int | None = None,
        *,
        offsets: Maps | None = None,
        deltas: Maps | None = None,
    ) -> Tensor:
        """A part of the network.

        Args:
            x: (N,C,H,W), the output of the layer before the first.
            first: layer that begins; behind the last one nothing but the image is left.
            last: layer that ends; None goes on to the image.
            offsets: by layer, (N or 1,C,H,W), added to its output.
            deltas: by layer, (N or 1,C,H,W): its output is multiplied by 1 + delta.

        Returns:
            The last layer's output, or the image (N,3,H,W) in [-1,1].

        Raises:
            TypeError, ValueError: x, an offset or a delta does not fit.
        """
        end = self.layers if last is None else last
        if first < 1 or not first - 1 <= end <= self.layers:
            raise ValueError(
                f"first, last: expected layers from 1 to {self.layers}, got {first}, {last}"
            )
        check_images("x", x)
        if tuple(x.shape[1:]) != self.shape(first - 1):
            raise ValueError(
                f"x: expected the shape (N, {', '.join(map(str, self.shape(first - 1)))}) before"
                f" layer {first}, got {tuple(x.shape)}"
            )
        offsets, deltas = offsets or {}, deltas or {}
        for name, maps in (("offsets", offsets), ("deltas", deltas)):
            for layer, value in maps.items():
                if not first <= layer <= end:
                    raise ValueError(
                        f"{name}: expected layers from {first} to {end}, got {layer!r}"
                    )
                if value.shape[0] not in (1, len(x)) or tuple(value.shape[1:]) != self.shape(layer):
                    raise ValueError(
                        f"{name}[{layer}]: expected the shape (N or 1,"
                        f" {', '.join(map(str, self.shape(layer)))}), got {tuple(value.shape)}"
                    )
        for i in range(first, end + 1):
            x = self.get_submodule(f"layer{i}")(x, deltas.get(i))
            if i in offsets:
                x = x + offsets[i]
        return self.get_submodule(self.output)(x) if last is None else x

    def forward(self, z: Tensor) -> Tensor:
        return self.run(as_map(z))


def as_map(z: Tensor) -> Tensor:
    """A latent code (N,C) as (N,C,1,1)."""
    return z[:, :, None, None] if z.dim() == 2 else z


@torch.no_grad()
def folded(generator: ProgressiveGenerator, but: Collection[int] = ()) -> ProgressiveGenerator:
    """A frozen copy, equal to rounding, whose convolutions hold their scales and biases.

    Its gradients to inputs and perturbations take fewer passes, as nothing sums those of frozen
    scales and biases. Its keys are not the published ones.

    Args:
        generator: with its own weights, which stay as they are.
        but: layers that stay as they are, such as those that are to be trained.
    """
    copied = copy.deepcopy(generator).eval().requires_grad_(False)
    kept = {f"layer{layer}" for layer in but}
    for name, block in copied.named_children():
        if name not in kept:
            block.conv.weight.mul_(block.wscale.scale)
            block.conv.bias = block.wscale.b
            block.wscale = _Folded(block.wscale.slope)
    return copied


# --- discriminator --------------------------------------------------------------------------------


class ScaledConvBlock(nn.Module):
    """Convolution without bias, scale and bias, leaky ReLU: a block without a norm.

    The scale is that of the generator's blocks, without an activation 1 / sqrt(2) of it; weights
    begin with deviation 1, biases with 0.

    Args:
        in_channels, out_channels, kernel_size, padding: of the convolution.
        slope: of the leaky ReLU; None for none.

    Shape: (N,C_in,H,W) -> (N,C_out,H',W').
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        padding: int = 0,
        slope: float | None = SLOPE,
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        nn.init.normal_(self.conv.weight)
        gain = 1 if slope is None else 2
        self.wscale = WScale(out_channels, (gain / in_channels) ** 0.5 / kernel_size, slope)
        nn.init.zeros_(self.wscale.b)

    def forward(self, x: Tensor) -> Tensor:
        return self.wscale(self.conv(x))


def with_deviation(x: Tensor) -> Tensor:
    """(N,C,H,W) and a channel of one number: the batch's deviation, averaged over all elements.

    By it a discriminator sees whether the images of a batch differ (Karras et al., 2018).
    """
    deviation = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
    return torch.cat((x, deviation.expand(len(x), 1, *x.shape[2:])), dim=1)


class ProgressiveDiscriminator(nn.Module):
    """The generator's mirror image, for images of each of its resolutions (Karras et al., 2018).

    Args:
        sizes: channels of the generator; see `ProgressiveGenerator`.

    Shape: image (N,3,H,H), H from 4 to the generator's resolution -> score (N,1). `alpha` in [0,1]
    fades the highest level in: with 0 it is passed over.

    Raises:
        TypeError, ValueError: the image does not fit.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sides = tuple(4 * 2**level for level in range(len(sizes) - 1))
        below = sizes[1]
        for side, channels in zip(self.sides, sizes[1:], strict=True):
            self.add_module(f"input_{side}x{side}", ScaledConvBlock(3, channels, 1))
            if side > 4:
                first = ScaledConvBlock(channels, channels, 3, 1)
                second = ScaledConvBlock(channels, below, 3, 1)
                self.add_module(f"level_{side}x{side}", nn.Sequential(first, second))
            below = channels
        self.judge = nn.Sequential(
            ScaledConvBlock(sizes[1] + 1, sizes[1], 3, 1),
            ScaledConvBlock(sizes[1], sizes[1], 4),
            ScaledConvBlock(sizes[1], 1, 1, slope=None),
        )

    def forward(self, image: Tensor, alpha: float = 1.0) -> Tensor:
        check_images("image", image, 3)
        side = image.shape[3]
        if side not in self.sides or image.shape[2] != side:
            raise ValueError(
                f"image: expected a square of {', '.join(map(str, self.sides))} pixels, got"
                f" {image.shape[2]} x {side}"
            )
        x = self.get_submodule(f"input_{side}x{side}")(image)
        while side > 4:
            x = F.avg_pool2d(self.get_submodule(f"level_{side}x{side}")(x), 2)
            side //= 2
            if alpha < 1 and 2 * side == image.shape[3]:
                lower = self.get_submodule(f"input_{side}x{side}")(F.avg_pool2d(image, 2))
                x = torch.lerp(lower, x, alpha)
        return self.judge(with_deviation(x)).flatten(1)


def lower_outputs(sizes: Sequence[int]) -> nn.ModuleDict:
    """The output blocks of a growing generator's resolutions below its own, by `output_4x4`, ..."""
    sides = (4 * 2**level for level in range(len(sizes) - 2))
    pairs = zip(sides, sizes[1:-1], strict=True)
    return nn.ModuleDict({f"output_{s}x{s}": OutputConvBlock(channels) for s, channels in pairs})


# --- encoder --------------------------------------------------------------------------------------


class _Last(nn.Module):
    """1x1 convolution and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv5 = Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv5(x), SLOPE)


class ResNetEncoder(nn.Module):
    """ResNet-18's trunk, then a 1x1 convolution: an estimate of the 8x8 code r_4.

    Args:
        channels: of the code.
        width: of the first convolution.
        halfsize: max pool of stride 1, for photos of 128 pixels.

    Shape: photo (N,3,H,W) in [-1,1] -> (N,channels,H/32,W/32), or H/16, W/16 with halfsize.
    """

    def __init__(self, channels: int = WIDTH, width: int = 64, halfsize: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=1 if halfsize else 2, padding=1)
        before = width
        for i in range(4):
            behind = width * 2**i
            blocks = (BasicBlock(before, behind, 2 if i else 1), BasicBlock(behind, behind))
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            before = behind
        self.layer5 = _Last(before, channels)

    def forward(self, photo: Tensor) -> Tensor:
        check_images("photo", photo, 3)
        x = self.maxpool(F.relu(self.bn1(self.conv1(photo))))
        for i in range(1, 6):
            x = self.get_submodule(f"layer{i}")(x)
        return x


class LayerNormEncoder(nn.Module):
    """An inverse of one layer: pixel norm, twice conv3-BN-leaky, conv1x1 (inv2, inv3, inv4).

    Args:
        chan_in, chan_out: C_in and C_out.
        stride: of the last convolution.
        skip_conv3: leave that out.

    Shape: (N,C_in,H,W) -> (N,C_out,H/stride,W/stride).
    """

    def __init__(
        self, chan_in: int, chan_out: int, stride: int = 1, skip_conv3: bool = False
    ) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv1 = Conv2d(chan_in, chan_out, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(chan_out)
        self.conv2 = Conv2d(chan_out, chan_out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(chan_out)
        self.conv3 = None if skip_conv3 else PointwiseConv2d(chan_out, chan_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn1(self.conv1(self.norm(x))), SLOPE)
        x = F.leaky_relu(self.bn2(self.conv2(x)), SLOPE)
        return x if self.conv3 is None else self.conv3(x)


class _CodeNorm(nn.BatchNorm2d):
    """A batch norm that in training takes a single value of each channel by its running statistics.

    So one photo at a time can be trained on, where PyTorch's own refuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == self.num_features:
            running = (self.running_mean, self.running_var)
            return F.batch_norm(x, *running, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class CodeEncoder(nn.Module):
    """An inverse of the first layer: pixel norm, conv4-BN-leaky, conv1x1, pixel norm (inv1).

    Shape: (N,chan_in,4,4) -> (N,chan_out,1,1).
    """

    def __init__(self, chan_in: int, chan_out: int) -> None:
        super().__init__()
        self.norm = PixelNorm()
        self.conv1 = Conv2d(chan_in, chan_out, 4)
        self.bn1 = _CodeNorm(chan_out)
        self.conv2 = Conv2d(chan_out, chan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.bn1(self.conv1(self.norm(x))), SLOPE)
        return self.norm(self.conv2(x))


class HybridLayerNormEncoder(nn.Module):
    """The layered encoder E: a ResNet down to r_4, then an inverse of each lower layer.

    Args:
        halfsize: for photos of 128 pixels instead of 256.
        sizes: channels of z, of r_1 and r_2, of r_3 and r_4.
        width: of the ResNet.

    Shape: photo (N,3,H,H) in [-1,1] -> z (N,C,1,1), of which each pixel has the length sqrt(C).

    Raises:
        TypeError, ValueError: the photo does not fit.
    """

    def __init__(
        self,
        halfsize: bool = False,
        *,
        sizes: Sequence[int] = (WIDTH, WIDTH, WIDTH),
        width: int = 64,
    ) -> None:
        super().__init__()
        self.resolution = 128 if halfsize else 256
        code, low, high = sizes[:3]
        self.resnet = ResNetEncoder(high, width, halfsize)
        self.inv4 = LayerNormEncoder(high, high)
        self.inv3 = LayerNormEncoder(high, low, stride=2)
        self.inv2 = LayerNormEncoder(low, low, skip_conv3=True)
        self.inv1 = CodeEncoder(low, code)

    def invert(self, r4: Tensor) -> Tensor:
        """z (N,C,1,1) of a code (N,C,8,8)."""
        return self.inv1(self.inv2(self.inv3(self.inv4(r4))))

    def forward(self, photo: Tensor) -> Tensor:
        check_images("photo", photo, 3)
        if photo.shape[2:] != (self.resolution, self.resolution):
            raise ValueError(
                f"photo: expected {self.resolution} x {self.resolution} pixels, got"
                f" {photo.shape[2]} x {photo.shape[3]}"
            )
        return self.invert(self.resnet(photo))


# --- perturbations --------------------------------------------------------------------------------


def perturbed_layers(generator: ProgressiveGenerator) -> tuple[int, ...]:
    """The layers that an image-specific generator perturbs: every second one, from 8 on.

    8, 10, 12 and 14 of 256 pixels, as published. The paper's text has all behind the code, from 5
    on: `range(5, generator.layers + 1)`.
    """
    return tuple(range(8, generator.layers + 1, 2))


def _check_layers(generator: ProgressiveGenerator, layers: Sequence[int]) -> tuple[int, ...]:
    layers = tuple(sorted(layers))
    inside = all(CODE_LAYER < layer <= generator.layers for layer in layers)
    if not layers or not inside or len(set(layers)) < len(layers):
        raise ValueError(
            f"layers: expected some from {CODE_LAYER + 1} to {generator.layers}, each once, got"
            f" {layers}"
        )
    return layers


class FreeMaps(nn.Module):
    """A map for each of some layers, 0 at first, that is fitted itself: offsets or perturbations.

    Args:
        generator: whose layers they belong to.
        layers: which.

    Returns of a call: by layer, (1,C,H,W).
    """

    def __init__(self, generator: ProgressiveGenerator, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        like = next(generator.parameters())
        for layer in self.layers:
            value = torch.zeros(1, *generator.shape(layer), dtype=like.dtype, device=like.device)
            self.register_parameter(f"d{layer}", nn.Parameter(value))

    def forward(self) -> dict[int, Tensor]:
        return {layer: self.get_parameter(f"d{layer}") for layer in self.layers}


class PerturbationBlock(nn.Module):
    """conv3-BN-leaky, and beside it a 3x3 convolution to a layer's perturbation, 0 at first.

    The sources tell strides and channels; kernel, norm and the zero are ours.

    Shape: (N,features,H,W) -> (N,features,H/stride,W/stride), (N,channels,H/stride,W/stride).
    """

    def __init__(self, features: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = Conv2d(features, features, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(features)
        self.side = Conv2d(features, channels, 3, padding=1)
        nn.init.zeros_(self.side.weight)
        nn.init.zeros_(self.side.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.leaky_relu(self.bn(self.conv(x)), SLOPE)
        return x, self.side(x)


class PerturbationNetwork(nn.Module):
    """R: perturbations of a generator's layers from one fixed map of noise, without a photo.

    A block for each layer, the highest first; with the four published layers eight convolutions.

    Args:
        generator: whose layers it perturbs.
        layers: which; see `perturbed_layers`.
        features: of the blocks, and channels of the noise (standard normal, of a fixed seed).

    Returns of a call: by layer, (1,C,H,W), all 0 at first.

    Raises:
        ValueError: layers that do not lie behind the code.
    """

    noise: Tensor

    def __init__(
        self,
        generator: ProgressiveGenerator,
        layers: Sequence[int] | None = None,
        features: int = 32,
    ) -> None:
        super().__init__()
        self.layers = _check_layers(
            generator, perturbed_layers(generator) if layers is None else layers
        )
        side = generator.resolution
        noise = np.random.RandomState(1).standard_normal((1, features, side, side))
        self.register_buffer("noise", torch.from_numpy(noise.astype(np.float32)))
        for layer in reversed(self.layers):
            stride = side // generator.side(layer)
            side = generator.side(layer)
            block = PerturbationBlock(features, generator.channels(layer), stride)
            self.add_module(f"block{layer}", block)

    def forward(self) -> dict[int, Tensor]:
        x, deltas = self.noise, {}
        for layer in reversed(self.layers):
            x, deltas[layer] = self.get_submodule(f"block{layer}")(x)
        return deltas


# --- all ------------------------------------------------------------------------------------------


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network
    builders: dict[str, Callable[[], nn.Module]] = {
        "generator": lambda: ProgressiveGenerator(sizes=given.sizes),
        "outputs": lambda: lower_outputs(given.sizes),
        "discriminator": lambda: ProgressiveDiscriminator(given.sizes),
    }
    if given.resolution in ENCODED:
        builders["encoder"] = lambda: HybridLayerNormEncoder(
            given.resolution == 128, sizes=given.sizes, width=given.encoder_width
        )
    if names is not None and "encoder" in names and "encoder" not in builders:
        raise ValueError(
            f"resolution: expected one of {ENCODED}, for which there is an encoder, got"
            f" {given.resolution}"
        )
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple[Any, ...]]:
    """Inputs at the paper's size."""
    given = config.network
    side = given.resolution
    return {
        "generator": (torch.rand(1, given.sizes[0]),),
        "discriminator": (torch.rand(1, 3, side, side),),
        "encoder": (torch.rand(1, 3, side, side),),
    }
