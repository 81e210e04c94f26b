"""Layers of projects in use, with their structure and arithmetic, in plain PyTorch.

MONAI (1.6), LivePortrait and SadTalker, the semantic diffusion model (SDM), StableSR, SUPIR,
climatereconstructionAI, SparK and nnssl, and MAT.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _resized(value: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(value, size=x.shape[2:], mode="nearest")


def _convolution(dims: int) -> Any:
    return nn.Conv2d if dims == 2 else nn.Conv3d


# --- MONAI --------------------------------------------------------------------------------------


class Convolution(nn.Sequential):
    """`conv`, then `adn`: an instance norm `N` or a leaky ReLU `A`, or neither."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, size: int = 3, *, norm: bool = False,
        activation: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = _convolution(dims)(inputs, outputs, size, padding=size // 2)
        if norm or activation:
            self.adn = nn.Sequential()
            if norm:
                kind = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
                self.adn.add_module("N", kind(outputs))
            if activation:
                self.adn.add_module("A", nn.LeakyReLU(0.01))


class MonaiSPADE(nn.Module):
    """Maps are instance norms of convolutions; the norm may be one of groups, or have an affine."""

    def __init__(
        self,
        label_nc: int,
        norm_nc: int,
        kernel_size: int = 3,
        spatial_dims: int = 2,
        hidden_channels: int = 64,
        norm: str = "INSTANCE",
        norm_params: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if norm == "GROUP":
            self.param_free_norm = nn.GroupNorm(num_channels=norm_nc, **(norm_params or {}))
        else:
            kind = getattr(nn, f"{norm.capitalize()}Norm{spatial_dims}d")
            self.param_free_norm = kind(norm_nc)
        dims, sizes = spatial_dims, (hidden_channels, norm_nc, kernel_size)
        self.mlp_shared = Convolution(dims, label_nc, hidden_channels, kernel_size, activation=True)
        self.mlp_gamma = Convolution(dims, *sizes, norm=True)
        self.mlp_beta = Convolution(dims, *sizes, norm=True)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x.contiguous())
        hidden = self.mlp_shared(_resized(segmap, x))
        return normalized * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SPADENetResBlock(nn.Module):
    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, label_nc: int,
        spade_intermediate_channels: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        dims, middle = spatial_dims, min(in_channels, out_channels)
        options = {"spatial_dims": dims, "hidden_channels": spade_intermediate_channels}
        self.conv_0 = Convolution(dims, in_channels, middle)
        self.conv_1 = Convolution(dims, middle, out_channels)
        self.norm_0 = MonaiSPADE(label_nc, in_channels, **options)
        self.norm_1 = MonaiSPADE(label_nc, middle, **options)
        self.learned = in_channels != out_channels
        if self.learned:
            self.conv_s = Convolution(dims, in_channels, out_channels, 1)
            self.norm_s = MonaiSPADE(label_nc, in_channels, **options)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        main = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, seg), 0.2))
        return main + (self.conv_s(self.norm_s(x, seg)) if self.learned else x)


class SPADEResBlock(nn.Module):
    """Of the autoencoder: groups without an affine, SiLU."""

    def __init__(
        self, spatial_dims: int, in_channels: int, norm_num_groups: int, norm_eps: float,
        out_channels: int, label_nc: int, spade_intermediate_channels: int,
    ) -> None:  # fmt: skip
        super().__init__()
        groups = {"num_groups": norm_num_groups, "eps": norm_eps, "affine": False}
        options = (3, spatial_dims, spade_intermediate_channels, "GROUP", groups)
        self.norm1 = MonaiSPADE(label_nc, in_channels, *options)
        self.conv1 = Convolution(spatial_dims, in_channels, out_channels)
        self.norm2 = MonaiSPADE(label_nc, out_channels, *options)
        self.conv2 = Convolution(spatial_dims, out_channels, out_channels)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = Convolution(spatial_dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        main = self.conv1(F.silu(self.norm1(x, seg)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(main, seg)))


class SPADEDiffResBlock(nn.Module):
    """Of the diffusion model, without a change of size: groups with an affine, SiLU."""

    def __init__(
        self, spatial_dims: int, in_channels: int, temb_channels: int, label_nc: int,
        out_channels: int, norm_num_groups: int = 32, norm_eps: float = 1e-6,
        spade_intermediate_channels: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        groups = {"num_groups": norm_num_groups, "eps": norm_eps}
        options = (3, spatial_dims, spade_intermediate_channels, "GROUP", groups)
        self.norm1 = MonaiSPADE(label_nc, in_channels, *options)
        self.conv1 = Convolution(spatial_dims, in_channels, out_channels)
        self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = MonaiSPADE(label_nc, out_channels, *options)
        self.conv2 = Convolution(spatial_dims, out_channels, out_channels)
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = Convolution(spatial_dims, in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor, seg: Tensor) -> Tensor:
        main = self.conv1(F.silu(self.norm1(x, seg)))
        main = main + self.time_emb_proj(F.silu(emb))[..., None, None]
        return self.conv2(F.silu(self.norm2(main, seg))) + self.skip_connection(x)


# --- LivePortrait and SadTalker -------------------------------------------------------------------


class SPADE(nn.Module):
    """Without a configuration: instance norm, 3x3, 128 hidden channels."""

    def __init__(self, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(norm_nc, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, 128, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(128, norm_nc, 3, padding=1)
        self.mlp_beta = nn.Conv2d(128, norm_nc, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        hidden = self.mlp_shared(_resized(segmap, x))
        return normalized * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SPADEResnetBlock(nn.Module):
    def __init__(self, fin: int, fout: int, norm_G: str, label_nc: int) -> None:
        super().__init__()
        middle = min(fin, fout)
        spectral = nn.utils.spectral_norm if "spectral" in norm_G else lambda layer: layer
        self.conv_0 = spectral(nn.Conv2d(fin, middle, 3, padding=1))
        self.conv_1 = spectral(nn.Conv2d(middle, fout, 3, padding=1))
        self.norm_0 = SPADE(fin, label_nc)
        self.norm_1 = SPADE(middle, label_nc)
        self.learned = fin != fout
        if self.learned:
            self.conv_s = spectral(nn.Conv2d(fin, fout, 1, bias=False))
            self.norm_s = SPADE(fin, label_nc)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        main = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, seg), 0.2))
        return main + (self.conv_s(self.norm_s(x, seg)) if self.learned else x)


class SPADEDecoder(nn.Module):
    """The features are their own condition; upscale 2 doubles the image by a pixel shuffle."""

    def __init__(
        self, upscale: int = 1, max_features: int = 256, block_expansion: int = 64,
        out_channels: int = 64, num_down_blocks: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        c = min(max_features, block_expansion * 2**num_down_blocks)
        kind = "spadespectralinstance"
        self.fc = nn.Conv2d(c, 2 * c, 3, padding=1)
        for i in range(6):
            self.add_module(f"G_middle_{i}", SPADEResnetBlock(2 * c, 2 * c, kind, c))
        self.up_0 = SPADEResnetBlock(2 * c, c, kind, c)
        self.up_1 = SPADEResnetBlock(c, out_channels, kind, c)
        last = nn.Conv2d(out_channels, 3 * upscale**2, 3, padding=1)
        self.conv_img = last if upscale == 1 else nn.Sequential(last, nn.PixelShuffle(upscale))

    def forward(self, feature: Tensor) -> Tensor:
        x = self.fc(feature)
        for i in range(6):
            x = self.get_submodule(f"G_middle_{i}")(x, feature)
        for block in (self.up_0, self.up_1):
            x = block(F.interpolate(x, scale_factor=2.0), feature)
        return torch.sigmoid(self.conv_img(F.leaky_relu(x, 0.2)))


# --- semantic diffusion model ---------------------------------------------------------------------


class SPADEGroupNorm(nn.Module):
    """32 groups without an affine; the eps that it is given is not used."""

    def __init__(self, norm_nc: int, label_nc: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, norm_nc, affine=False)
        self.eps = eps
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, 128, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(128, norm_nc, 3, padding=1)
        self.mlp_beta = nn.Conv2d(128, norm_nc, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        x = self.norm(x)
        hidden = self.mlp_shared(_resized(segmap, x))
        return x * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SDMResBlock(nn.Module):
    """With scale and shift by the step's embedding, and without a change of size."""

    def __init__(
        self, channels: int, emb_channels: int, dropout: float, c_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        self.in_norm = SPADEGroupNorm(channels, c_channels)
        self.in_layers = nn.Sequential(nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.out_norm = SPADEGroupNorm(out_channels, c_channels)
        last = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection: nn.Module = nn.Identity()
        if channels != out_channels:
            self.skip_connection = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, cond: Tensor, emb: Tensor) -> Tensor:
        main = self.in_layers(self.in_norm(x, cond))
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        main = self.out_norm(main, cond) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers(main)


# --- StableSR -------------------------------------------------------------------------------------


class GroupNorm32(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if x.dtype in (torch.half, torch.bfloat16) else x).to(x)


class StableSRSPADE(nn.Module):
    """Conditions by the text of x's width; an affine group norm."""

    def __init__(self, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        self.param_free_norm = GroupNorm32(32, norm_nc)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, 128, 3, padding=1), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(128, norm_nc, 3, padding=1)
        self.mlp_beta = nn.Conv2d(128, norm_nc, 3, padding=1)

    def forward(self, x: Any, segmap: dict[str, Tensor], size: int | None = None) -> Tensor:
        if size is not None:
            x = x[str(size)]
        hidden = self.mlp_shared(segmap[str(x.shape[-1])])
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


# --- SUPIR ----------------------------------------------------------------------------------------


class ZeroSFT(nn.Module):
    """A group norm of the features and what a control adds to them, modulated by that control."""

    def __init__(self, label_nc: int, norm_nc: int, concat_channels: int = 0) -> None:
        super().__init__()
        C = norm_nc + concat_channels
        self.param_free_norm = GroupNorm32(32, C)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, 128, 3, padding=1), nn.SiLU())
        self.zero_mul = nn.Conv2d(128, C, 3, padding=1)
        self.zero_add = nn.Conv2d(128, C, 3, padding=1)
        self.zero_conv = nn.Conv2d(label_nc, norm_nc, 1)
        self.pre_concat = bool(concat_channels)

    def forward(
        self, c: Tensor, h: Tensor, h_ori: Tensor | None = None, control_scale: float = 1
    ) -> Tensor:
        raw = h if h_ori is None else torch.cat((h_ori, h), dim=1)
        h = h + self.zero_conv(c)
        if self.pre_concat:
            h = torch.cat((h_ori, h), dim=1)
        hidden = self.mlp_shared(c)
        h = self.param_free_norm(h) * (self.zero_mul(hidden) + 1) + self.zero_add(hidden)
        return h * control_scale + raw * (1 - control_scale)


# --- climatereconstructionAI ----------------------------------------------------------------------


def bound_pad(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Around the globe; zeros at its poles."""
    x = F.pad(x, (*padding[:2], 0, 0), mode="circular")
    return F.pad(x, (0, 0, *padding[2:]))


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Statistics of the known; their variance is biased in the buffers too."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean, variance = self.running_mean, self.running_var
        if self.training:
            count = mask.sum(dim=(0, 2, 3))
            mean = x.sum(dim=(0, 2, 3)) / count
            variance = ((x - mean[:, None, None]).square() * mask).sum(dim=(0, 2, 3)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance, self.momentum)
                self.num_batches_tracked = self.num_batches_tracked + 1
        scale = self.weight / (variance + self.eps).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + self.bias[:, None, None]


class PConvBlock(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int],
        stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int,
        bias: bool, activation: nn.Module | None, bn: bool, around: bool,
        masked_bn: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.padding = (*padding, *padding)
        self.trans_pad = bound_pad if around else F.pad
        shape = (in_channels, out_channels, kernel, stride, 0, dilation, groups)
        self.input_conv = nn.Conv2d(*shape, bias)
        self.mask_conv = nn.Conv2d(*shape, False)
        nn.init.ones_(self.mask_conv.weight)
        self.mask_conv.weight.requires_grad_(False)
        self.activation = activation
        if bn:
            self.bn = (MaskedBatchNorm2d if masked_bn else nn.BatchNorm2d)(out_channels)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.input_conv(self.trans_pad(x * mask, self.padding))
        with torch.no_grad():
            s = self.mask_conv(self.trans_pad(mask, self.padding))
        holes, bias = s == 0, torch.zeros_like(output)
        if self.input_conv.bias is not None:
            bias = self.input_conv.bias[None, :, None, None].expand_as(output)
        output = ((output - bias) / s.masked_fill(holes, 1.0) + bias).masked_fill(holes, 0.0)
        known = torch.ones_like(output).masked_fill(holes, 0.0)
        if hasattr(self, "bn"):
            masked = isinstance(self.bn, MaskedBatchNorm2d)
            output = self.bn(output, known) if masked else self.bn(output)
        if self.activation is not None:
            output = self.activation(output)
        return output, known


# --- SparK and nnssl ------------------------------------------------------------------------------

_cur_active: Tensor | None = None  # (N,1,f,f) or (N,1,f,f,f), 1 visible


@contextlib.contextmanager
def active(mask: Tensor) -> Iterator[None]:
    global _cur_active
    before, _cur_active = _cur_active, mask
    try:
        yield
    finally:
        _cur_active = before


def _active_at(size: tuple[int, ...]) -> Tensor:
    mask = _cur_active
    if all(n < m for n, m in zip(size, mask.shape[2:], strict=True)):
        return mask.new_ones((len(mask), 1, *size))
    for dim, n in enumerate(size, start=2):
        mask = mask.repeat_interleave(n // mask.shape[dim], dim)
    return mask


def _hidden_behind(self: Any, x: Tensor) -> Tensor:
    y = super(type(self), self).forward(x)
    return y.mul_(_active_at(tuple(y.shape[2:])))


def _of_a_list(self: Any, x: Tensor) -> Tensor:
    """Batch norm of all visible positions, one after the other."""
    seen = _active_at(tuple(x.shape[2:]))[:, 0].bool()
    last = x.movedim(1, -1)
    y = torch.zeros_like(last)
    y[seen] = super(type(self), self).forward(last[seen])
    return y.movedim(-1, 1)


def _of_lists(self: Any, x: Tensor) -> Tensor:
    """Instance norm of the visible positions of each image, equally many in all."""
    seen = _active_at(tuple(x.shape[2:]))[:, 0].bool()
    last = x.movedim(1, -1)
    rows = last[seen].view(len(x), -1, x.shape[1])
    y = torch.zeros_like(last)
    y[seen] = super(type(self), self).forward(rows.mT).mT.reshape(-1, x.shape[1])
    return y.movedim(-1, 1)


class SparseConv2d(nn.Conv2d):
    forward = _hidden_behind


class SparseConv3d(nn.Conv3d):
    forward = _hidden_behind


class SparseMaxPooling(nn.MaxPool2d):
    forward = _hidden_behind


class SparseAvgPooling(nn.AvgPool2d):
    forward = _hidden_behind


class SparseBatchNorm2d(nn.BatchNorm1d):
    forward = _of_a_list


class SparseInstanceNorm3d(nn.InstanceNorm1d):
    forward = _of_lists


class SparseConvNeXtLayerNorm(nn.LayerNorm):
    def __init__(
        self, normalized_shape: int, eps: float = 1e-6, data_format: str = "channels_last",
        sparse: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(normalized_shape, eps)
        self.data_format = data_format
        self.sparse = sparse

    def forward(self, x: Tensor) -> Tensor:
        last = x if self.data_format == "channels_last" else x.movedim(1, -1)
        y = super().forward(last)
        if self.sparse:
            y = y * _active_at(tuple(last.shape[1:3]))[:, 0, :, :, None]
        return y if self.data_format == "channels_last" else y.movedim(-1, 1)


class SparseConvNeXtBlock(nn.Module):
    def __init__(
        self, dim: int, drop_path: float = 0.0, layer_scale_init_value: float = 1e-6,
        sparse: bool = True, ks: int = 7,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, ks, padding=ks // 2, groups=dim)
        self.norm = SparseConvNeXtLayerNorm(dim, sparse=sparse)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value))
        self.drop_path: nn.Module = nn.Dropout3d(drop_path) if drop_path else nn.Identity()
        self.sparse = sparse

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        y = y.permute(0, 3, 1, 2)
        if self.sparse:
            y = y * _active_at(tuple(x.shape[2:]))
        return x + self.drop_path(y)


# --- MAT ------------------------------------------------------------------------------------------


class Conv2dLayer(nn.Module):
    """StyleGAN's convolution, resampled."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, bias: bool, activation: str,
        up: int, down: int, resample_filter: list[int], conv_clamp: float | None, trainable: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        self.register_buffer("resample_filter", taps.outer(taps) / taps.sum().square())
        self.padding = kernel_size // 2
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act_gain = 1.0 if activation == "linear" else math.sqrt(2)
        weight = torch.randn(out_channels, in_channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, pad = self.weight * self.weight_gain, self.padding
        C = x.shape[1] if self.down > 1 else weight.shape[0]
        kernel = self.resample_filter.to(x.dtype).expand(C, 1, -1, -1)
        if self.up > 1:
            x = F.conv_transpose2d(x, weight.flip((2, 3)).transpose(0, 1), stride=2)
            x = F.conv2d(F.pad(x, [2 - pad] * 4), 4 * kernel, groups=C)
        elif self.down > 1:
            x = F.conv2d(F.pad(x, [pad + 1] * 4), kernel, groups=C)
            x = F.conv2d(x, weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=pad)
        x = x if self.bias is None else x + self.bias[:, None, None]
        x = {"linear": lambda v: v, "relu": F.relu, "lrelu": lambda v: F.leaky_relu(v, 0.2)}[
            self.activation
        ](x) * self.act_gain
        return x if self.conv_clamp is None else x.clamp(-self.conv_clamp, self.conv_clamp)


class Conv2dLayerPartial(nn.Module):
    """The ratio behind the activation; what is convolved is not masked."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, bias: bool = True,
        activation: str = "linear", up: int = 1, down: int = 1,
        resample_filter: tuple[int, ...] = (1, 3, 3, 1), conv_clamp: float | None = None,
        trainable: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = Conv2dLayer(
            in_channels, out_channels, kernel_size, bias, activation, up, down,
            list(resample_filter), conv_clamp, trainable,
        )  # fmt: skip
        self.weight_maskUpdater = torch.ones(1, 1, kernel_size, kernel_size)
        self.slide_winsize = kernel_size**2
        self.stride = down
        self.padding = kernel_size // 2

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if mask is None:
            return self.conv(x), None
        with torch.no_grad():
            kernel = self.weight_maskUpdater.to(x)
            update = F.conv2d(mask.to(x), kernel, stride=self.stride, padding=self.padding)
            ratio = self.slide_winsize / (update + 1e-8)
            update = torch.clamp(update, 0, 1)
            ratio = ratio * update
        return self.conv(x) * ratio, update


MonaiSPADE.__name__ = StableSRSPADE.__name__ = "SPADE"  # as in their projects
