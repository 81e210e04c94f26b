"""Whole networks with the published operation sequences, in pure PyTorch.

The U-Net of partial convolutions carries masks of all channels and sums them by dense convolutions
of ones; the other generators have the published layers in place of ours, those of DAGAN and MaskGAN
on one-hot label maps.
"""

import copy
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.models.dagan import SPADEGenerator
from torchext.models.deepfaceediting.layers import AdaIN, InstanceNorm
from torchext.models.fe_gan.networks import DownBlock, InpaintingGenerator
from torchext.models.maggan import MagGANGenerator
from torchext.models.maskgan.networks import (
    ConvBlock,
    DenseMappingNetwork,
    InstanceNormReLU,
    ResidualBlock,
)
from torchext.models.michigan.networks import AppearanceEncoder, HairGenerator
from torchext.models.partial_convolutions import PConvUNet
from torchext.models.pd_gan.networks import SPDNormGenerator
from torchext.models.region_normalization import G_Net
from torchext.models.semantic_photo_manipulation.networks import (
    NormConvBlock,
    NormUpscaleConvBlock,
    OutputConvBlock,
    ProgressiveGenerator,
)
from torchext.nn import RN_B, RN_L, SPADE, ANLs, SPADEResnetBlock, SPDNormResnetBlock

from . import modulated_layers, region_norm
from .dual_attention import DualAttention
from .partial_conv import PartialConv, PartialConv2d


def with_published_partial_conv(ours: nn.Module) -> PartialConv:
    """The published layer on the weights of ours."""
    conv = ours.input_conv
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    layer = PartialConv(*shape)
    layer.input_conv = conv
    return layer


class Stage(nn.Module):
    """Partial convolution, batch norm, activation, one after the other."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.conv = with_published_partial_conv(ours.conv)
        self.bn = getattr(ours, "bn", None)
        self.slope = ours.slope

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = self.conv(x, mask)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.slope is None else F.leaky_relu(x, self.slope), mask


class UNet(nn.Module):
    """The published U-Net, nearest up-sampling, on the weights of ours."""

    def __init__(self, ours: PConvUNet) -> None:
        super().__init__()
        count = range(1, ours.layer_size + 1)
        self.enc = nn.ModuleList(Stage(ours.get_submodule(f"enc_{i}")) for i in count)
        self.dec = nn.ModuleList(Stage(ours.get_submodule(f"dec_{i}")) for i in reversed(count))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask.expand_as(x).contiguous()
        features, masks = [x], [mask]
        for stage in self.enc:
            x, mask = stage(x, mask)
            features.append(x)
            masks.append(mask)
        features.pop()
        masks.pop()
        for stage in self.dec:
            x, mask = (F.interpolate(value, scale_factor=2, mode="nearest") for value in (x, mask))
            x, mask = torch.cat((x, features.pop()), 1), torch.cat((mask, masks.pop()), 1)
            x, mask = stage(x, mask)
        return x, mask


def with_published_layers(
    ours: nn.Module, layers: Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]
) -> nn.Module:
    """A copy of a network, with the same weights.

    Args:
        ours: the network.
        layers: by class of our layers, what makes the published one of such a layer.
    """
    network = copy.deepcopy(ours, {id(value): value for value in ours.parameters()})
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in layers:
                setattr(parent, name, layers[type(layer)](layer))
    return network


def with_published_region_norm(ours: G_Net) -> nn.Module:
    def of_mask(layer: RN_B) -> nn.Module:
        norm = region_norm.RN_B(len(layer.foreground_gamma))
        norm.load_state_dict(layer.state_dict())
        return norm

    def self_aware(layer: RN_L) -> nn.Module:
        norm = region_norm.RN_L(layer.feature_channels, layer.threshold)
        norm.load_state_dict(layer.state_dict())
        return norm

    return with_published_layers(ours, {RN_B: of_mask, RN_L: self_aware})


class SPDNormBlock(nn.Module):
    """PD-GAN's residual block with the published layers, on the weights of ours."""

    def __init__(self, ours: SPDNormResnetBlock) -> None:
        super().__init__()
        for name in ("conv_0", "conv_1", "conv_s", "conv_to_f", "attention"):
            self.add_module(name, getattr(ours, name))
        for name in ("norm_0", "norm_1", "norm_s"):
            layer = getattr(ours, name)
            norm = modulated_layers.SPDNorm(layer.mlp_gamma.out_channels, "position")
            norm.load_state_dict(layer.state_dict())
            self.add_module(name, norm)
        hard = ours.mask_conv
        self.mask_conv = modulated_layers.HardMap(hard.steps, hard.window, hard.base)

    def forward(self, x: Tensor, prior: Tensor, mask: Tensor) -> Tensor:
        prior, mask = (F.interpolate(value, size=x.shape[2:]) for value in (prior, mask))
        hard = self.mask_conv(mask)
        logits = torch.cat((self.conv_to_f(prior), x), dim=1)
        soft = self.attention(logits) * (1 - mask) + mask
        shortcut = self.conv_s(self.norm_s(x, prior, soft))
        main = self.conv_0(F.leaky_relu(self.norm_0(x, prior, hard), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, prior, hard), 0.2))
        return shortcut + main


class PDGAN(nn.Module):
    """The generator with the published layers, on the weights of ours."""

    def __init__(self, ours: SPDNormGenerator) -> None:
        super().__init__()
        self.latent = ours.latent
        self.fc = ours.fc
        self.blocks = nn.ModuleList(SPDNormBlock(unit.block) for unit in ours.generated)
        self.ups = nn.ModuleList(unit.up for unit in ours.generated)
        self.conv_img = ours.conv_img

    def forward(self, z: Tensor, prior: Tensor, mask: Tensor) -> Tensor:
        x = self.fc(z).unflatten(1, (-1, *self.latent))
        for block, up in zip(self.blocks, self.ups, strict=True):
            x = up(block(x, prior, mask))
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


class SPADEBlock(nn.Module):
    """SPADE's residual block with the published layers, on the weights of ours."""

    def __init__(self, ours: SPADEResnetBlock) -> None:
        super().__init__()
        self.learned_shortcut = ours.learned_shortcut
        ends = ("0", "1", "s") if self.learned_shortcut else ("0", "1")
        for end in ends:
            self.add_module(f"conv_{end}", getattr(ours, f"conv_{end}"))
            layer = getattr(ours, f"norm_{end}")
            norm = modulated_layers.SPADE("batch", layer.mlp_gamma.out_channels, layer.label_nc)
            norm.load_state_dict(layer.state_dict())
            self.add_module(f"norm_{end}", norm)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, labels)) if self.learned_shortcut else x
        main = self.conv_0(F.leaky_relu(self.norm_0(x, labels), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, labels), 0.2))
        return shortcut + main


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """(N,classes,H,W) of integers (N,1,H,W), as users have them from files."""
    N, _, H, W = labels.shape
    return like.new_zeros((N, classes, H, W)).scatter_(1, labels, 1.0)


class DAGAN(nn.Module):
    """The generator with the published layers, on the weights of ours.

    Integer label maps (N,1,H,W) become one-hot in every call.
    """

    def __init__(self, ours: SPADEGenerator) -> None:
        super().__init__()
        self.start, self.classes, self.more = ours.start, ours.semantic_nc, ours.more
        self.fc = ours.fc
        names = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
        self.blocks = nn.ModuleList(SPADEBlock(ours.get_submodule(name)) for name in names)
        self.conv_64, self.conv_img = ours.conv_64, ours.conv_img
        self.attention = DualAttention(ours)

    def forward(self, labels: Tensor) -> Tensor:
        condition = one_hot(labels, self.classes, self.conv_img.weight)
        x = self.fc(F.interpolate(condition, size=self.start))
        for i, block in enumerate(self.blocks):
            if i > 0 and (i != 2 or self.more):
                x = F.interpolate(x, scale_factor=2)
            wide, x = x, block(x, condition)
        return torch.tanh(self.conv_img(self.attention(self.conv_64(wide), x)))


class AdaptiveBlock(nn.Module):
    """Convolution, AdaIN, and a ReLU or none."""

    def __init__(self, ours: ConvBlock) -> None:
        super().__init__()
        self.conv = ours.conv
        self.norm = modulated_layers.AdaptiveInstanceNorm2d(ours.conv.out_channels)
        self.relu = ours.activation is not None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """style (N,2,C): shift, then scale."""
        self.norm.bias, self.norm.weight = style.unbind(1)
        x = self.norm(self.conv(x))
        return F.relu_(x) if self.relu else x


class AdaptiveResidualBlock(nn.Module):
    def __init__(self, ours: ResidualBlock) -> None:
        super().__init__()
        self.first, self.second = (AdaptiveBlock(block) for block in ours.conv_block)

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        y = self.second(self.first(x, styles[:, 0]), styles[:, 1])
        y += x
        return y


class MaskGAN(nn.Module):
    """The dense mapping network with the published layers, on the weights of ours.

    Integer label maps (N,1,H,W) become one-hot in every call.
    """

    def __init__(self, ours: DenseMappingNetwork) -> None:
        super().__init__()
        self.classes, self.style_shape = ours.model[0].in_channels, ours.style_shape
        self.enc_style, self.enc_label = ours.enc_style, ours.enc_label
        self.model = nn.ModuleList()
        for layer in ours.model:
            if isinstance(layer, InstanceNormReLU):
                channels = self.model[-1].out_channels
                self.model += [nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)]
            elif isinstance(layer, ResidualBlock):
                self.model.append(AdaptiveResidualBlock(layer))
            else:
                self.model.append(layer)

    def forward(self, labels: Tensor, style_labels: Tensor, style_image: Tensor) -> Tensor:
        layout, of_style = (one_hot(x, self.classes, style_image) for x in (labels, style_labels))
        style = self.enc_style(style_image, *self.enc_label(of_style)).flatten(1)
        styles = iter(style.unflatten(1, self.style_shape).unbind(1))
        x = layout
        for layer in self.model:
            adaptive = isinstance(layer, AdaptiveResidualBlock)
            x = layer(x, next(styles)) if adaptive else layer(x)
        return x


# --- hair, clothes, faces, scenes -----------------------------------------------------------------


class _Appearance(nn.Module):
    """MichiGAN's encoder of a reference's hair, on the weights of ours."""

    def __init__(self, ours: AppearanceEncoder) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for layer in ours.children():
            shape = (layer.in_channels, layer.out_channels, layer.kernel_size)
            conv = PartialConv2d(*shape, layer.stride, layer.padding, return_mask=True)
            conv.load_state_dict(layer.state_dict())
            self.layers.append(conv)
        self.norms = nn.ModuleList(nn.InstanceNorm2d(conv.out_channels) for conv in self.layers)

    def forward(
        self, image: Tensor, hair_reference: Tensor, hair_target: Tensor, size: tuple[int, int]
    ) -> Tensor:
        x, known = image, hair_reference
        for conv, norm in zip(self.layers, self.norms, strict=True):
            x, known = conv(x, known)
            x = F.leaky_relu(norm(x), 0.2)
        inside, target = (F.interpolate(m, x.shape[2:]) for m in (hair_reference, hair_target))
        area = inside.sum((2, 3), keepdim=True).clamp(min=1)
        spread = (x * inside).sum((2, 3), keepdim=True) / area * target
        return F.interpolate(spread, size=size, mode="bilinear", align_corners=False)


def michigan(ours: HairGenerator) -> nn.Module:
    """All levels everywhere, as published."""
    network = with_published_layers(ours, {SPADEResnetBlock: SPADEBlock})
    network.fc = _Appearance(ours.fc)
    network.near_hair = False
    return network


class _Down(nn.Module):
    """FE-GAN's partial convolution of a mask of all channels, on the weights of ours."""

    def __init__(self, ours: DownBlock) -> None:
        super().__init__()
        conv = ours.conv
        self.reflected = ours.reflected
        self.conv = PartialConv2d(
            *(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding),
            bias=False,
            multi_channel=True,
            return_mask=True,
        )
        self.conv.load_state_dict(conv.state_dict())
        self.norm = ours.norm

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask.expand(-1, x.shape[1], -1, -1)
        if self.reflected:
            x, mask = (F.pad(value, (self.reflected,) * 4, mode="reflect") for value in (x, mask))
        x, mask = self.conv(x, mask)
        return F.relu(self.norm(x)), mask[:, :1]


def fe_gan(ours: InpaintingGenerator) -> nn.Module:
    def attention(layer: ANLs) -> nn.Module:
        norm = modulated_layers.ANLs(layer.gamma.out_channels, layer.shared[0].in_channels)
        norm.load_state_dict(layer.state_dict())
        return norm

    return with_published_layers(ours, {DownBlock: _Down, ANLs: attention})


class _ModulatedReLU(modulated_layers.SPADE):
    """SPADE, then ReLU, on the weights of ours."""

    def __init__(self, ours: SPADE) -> None:
        super().__init__("batch", ours.mlp_gamma.out_channels, ours.label_nc)
        self.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor, segmap: Tensor, activation: float) -> Tensor:
        return F.relu(super().forward(x, segmap))


def maggan(ours: MagGANGenerator) -> nn.Module:
    return with_published_layers(ours, {SPADE: _ModulatedReLU})


class _Instance(nn.InstanceNorm2d):
    """Instance norm with affine, and a ReLU or none, on the weights of ours."""

    def __init__(self, ours: InstanceNorm) -> None:
        super().__init__(ours.num_features, affine=True)
        self.load_state_dict(ours.state_dict())
        self.relu = ours.activation is not None

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return F.relu(x) if self.relu else x


class _Adaptive(AdaIN):
    """Published AdaIN with scale and shift (N,C), and a ReLU or none."""

    def __init__(self, ours: AdaIN) -> None:
        super().__init__(ours.num_features, ours.activation)
        self.norm = modulated_layers.AdaptiveInstanceNorm2d(ours.num_features)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        self.norm.weight, self.norm.bias = scale, shift
        x = self.norm(x)
        return x if self.activation is None else F.relu(x)


class DeepFaceEditing(nn.Module):
    """A part's picture from a sketch and a photo: its encoder and its generator.

    Args:
        encoder, generator: ours, or those of `deepfaceediting`.
    """

    def __init__(self, encoder: nn.Module, generator: nn.Module) -> None:
        super().__init__()
        self.encoder, self.generator = encoder, generator

    def forward(self, sketch: Tensor, photo: Tensor) -> Tensor:
        return self.generator(self.encoder(sketch), photo)


def deepfaceediting(ours: DeepFaceEditing) -> nn.Module:
    return with_published_layers(ours, {InstanceNorm: _Instance, AdaIN: _Adaptive})


class _NormConv(nn.Module):
    """Pixel norm, up-sampling where there is one, convolution, scale, bias, leaky ReLU or none."""

    def __init__(self, ours: NormConvBlock | OutputConvBlock) -> None:
        super().__init__()
        self.norm = modulated_layers.PixelNorm()
        self.upsamples = isinstance(ours, NormUpscaleConvBlock)
        conv = ours.conv
        padding = conv.kernel_size[0] // 2 if self.upsamples else conv.padding
        shape = (conv.in_channels, conv.out_channels, conv.kernel_size)
        self.conv = nn.Conv2d(*shape, padding=padding, bias=False)
        self.conv.load_state_dict(conv.state_dict())
        self.wscale = ours.wscale
        self.clamp = isinstance(ours, OutputConvBlock) and ours.clamp

    def forward(self, x: Tensor, delta: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        if self.upsamples:
            x = F.interpolate(x, scale_factor=2)
        x = self.conv(x) * self.wscale.scale + self.wscale.b[None, :, None, None]
        if self.wscale.slope is not None:
            x = F.leaky_relu(x, self.wscale.slope)
        if delta is not None:
            x = x * (1 + delta)
        return x.clamp(-1, 1) if self.clamp else x


def progressive(ours: ProgressiveGenerator) -> nn.Module:
    kinds = (NormConvBlock, NormUpscaleConvBlock, OutputConvBlock)
    return with_published_layers(ours, dict.fromkeys(kinds, _NormConv))
