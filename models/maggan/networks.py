"""STGAN's and MagGAN's generators, and all networks of a configuration."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from torchext.nn import SPADE, Conv2d

from ..checks import check_images
from ..paper import chosen
from .attributes import CELEBA
from .classifier import AttributeClassifier
from .config import Config, Norm, State, Statistics
from .discriminators import MultiLevelPatchDiscriminator, STGANDiscriminator, levels
from .parser import SIZE, BiSeNet

WIDEST = 1024
EPS, MOMENTUM = 1e-3, 1e-3  # of batch norms, as in the TensorFlow original


# --- the generators -------------------------------------------------------------------------------


def _widths(first: int, count: int) -> list[int]:
    return [min(first * 2**i, WIDEST) for i in range(count)]


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


class _Layer(nn.Module):
    """A convolution and, where there is one, its norm; what calls them has the activation."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = conv
        if norm is not None:
            self.norm = norm


class ConvGRUCell(nn.Module):
    """A selective transfer unit: which part of an encoder's map the decoder gets (STGAN, 3.2).

    Args:
        in_channels: of the encoder's map.
        state_channels: of the state, which comes from the next coarser level.
        out_channels: of the result.
        kernel_size: of the convolutions at x's size, odd.
        norm: of these: "none", "bn" or "in".
        pass_state: what is handed on: "stu", the state that is selected; "gru", the result;
            "direct", the up-sampled state.

    Shape: x (N,in_channels,H,W), state (N,state_channels,H/2,W/2) -> the result and the next state,
    both (N,out_channels,H,W).

    Raises:
        ValueError: an argument is none of these.
    """

    def __init__(
        self,
        in_channels: int,
        state_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        norm: Norm = "none",
        pass_state: State = "stu",
    ) -> None:
        super().__init__()
        if norm not in ("none", "bn", "in"):
            raise ValueError(f"norm: expected 'none', 'bn' or 'in', got {norm!r}")
        if pass_state not in ("stu", "gru", "direct"):
            raise ValueError(f"pass_state: expected 'stu', 'gru' or 'direct', got {pass_state!r}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, got {kernel_size}")
        self.pass_state = pass_state
        self.up = nn.ConvTranspose2d(state_channels, out_channels, 4, stride=2, padding=1)
        for name in ("reset", "update", "info"):
            convolution = Conv2d(
                in_channels + out_channels,
                out_channels,
                kernel_size,
                padding=kernel_size // 2,
                bias=norm == "none",
            )
            self.add_module(name, convolution)
            if norm == "bn":
                self.add_module(f"{name}_norm", _batch_norm(out_channels))
            elif norm == "in":
                of_each = nn.InstanceNorm2d(out_channels, eps=1e-6, affine=True)
                self.add_module(f"{name}_norm", of_each)

    def _gate(self, name: str, x: Tensor, state: Tensor) -> Tensor:
        result = self.get_submodule(name)(torch.cat((x, state), dim=1))
        norm = self._modules.get(f"{name}_norm")
        return result if norm is None else norm(result)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before = self.up(state)
        selected = self._gate("reset", x, before).sigmoid() * before
        update = self._gate("update", x, before).sigmoid()
        info = self._gate("info", x, selected).tanh()
        result = torch.lerp(before, info, update)  # (1 - update) * before + update * info
        return result, {"stu": selected, "gru": result, "direct": before}[self.pass_state]


class _Generator(nn.Module):
    """What both generators share: all but the norm of the decoder.

    Args:
        norm: of a decoder's layer, for a number of channels.
        others: as for `STGANGenerator`.
    """

    def __init__(
        self,
        norm: Callable[[int], nn.Module],
        *,
        n_att: int,
        dim: int,
        n_layers: int,
        use_stu: bool,
        stu_layers: int,
        stu_inject_layers: int,
        shortcut_layers: int,
        inject_layers: int,
        stu_kernel_size: int,
        stu_norm: Norm,
        stu_state: State,
        one_more_conv: int,
        enc_dim: int | None,
        dec_dim: int | None,
        stu_dim: int | None,
    ) -> None:
        super().__init__()
        if n_layers < 1:
            raise ValueError(f"n_layers: expected at least 1, got {n_layers}")
        if use_stu and stu_layers != n_layers - 1:
            raise ValueError(
                f"stu_layers: expected {n_layers - 1}, one less than n_layers, got {stu_layers}"
            )
        if one_more_conv not in (0, 1, 3):
            raise ValueError(f"one_more_conv: expected 0, 1 or 3, got {one_more_conv}")
        self.n_att = n_att
        self.n_layers = n_layers
        self.stu_inject_layers = stu_inject_layers
        self.shortcut_layers = min(shortcut_layers, n_layers - 1)
        self.inject_layers = min(inject_layers, n_layers - 1)
        encoded = _widths(dim if enc_dim is None else enc_dim, n_layers)
        decoded = _widths(dim if dec_dim is None else dec_dim, n_layers)
        transferred = _widths(dim if stu_dim is None else stu_dim, n_layers)
        self.encoder = nn.ModuleList(
            _Layer(Conv2d(before, after, 4, stride=2, padding=1, bias=False), _batch_norm(after))
            for before, after in zip([3, *encoded], encoded, strict=False)
        )
        skips = list(encoded)  # channels of what the decoder gets of each level
        if use_stu:
            self.stu = nn.ModuleList()
            state = encoded[-1] + n_att
            for i, level in enumerate(reversed(range(n_layers - 1))):
                cell = ConvGRUCell(
                    *(encoded[level], state, transferred[level], stu_kernel_size),
                    norm=stu_norm,
                    pass_state=stu_state,
                )
                self.stu.append(cell)
                skips[level] = transferred[level]
                state = transferred[level] + (n_att if stu_inject_layers > i else 0)
        self.decoder = nn.ModuleList()
        channels = encoded[-1] + n_att
        for i in range(n_layers - 1):
            level = n_layers - 2 - i
            inner = decoded[level + 1]
            up = nn.ConvTranspose2d(channels, inner, 4, stride=2, padding=1, bias=False)
            self.decoder.append(_Layer(up, norm(inner)))
            channels = inner + (skips[level] if self.shortcut_layers > i else 0)
            channels += n_att if self.inject_layers > i else 0
        if not one_more_conv:
            self.decoder.append(_Layer(nn.ConvTranspose2d(channels, 3, 4, stride=2, padding=1)))
        else:
            inner = (dim if dec_dim is None else dec_dim) // 4
            up = nn.ConvTranspose2d(channels, inner, 4, stride=2, padding=1, bias=False)
            self.decoder.append(_Layer(up, norm(inner)))
            last = nn.ConvTranspose2d(inner, 3, one_more_conv, padding=one_more_conv // 2)
            self.decoder.append(_Layer(last))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As in the original: Xavier-uniform weights, biases 0; norms keep what they begin with."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _joined(self, maps: Sequence[Tensor], att: Tensor | None) -> Tensor:
        """Maps and, behind them, the attributes at every pixel."""
        if att is not None:
            N, _, H, W = maps[0].shape
            maps = [*maps, att.to(maps[0].dtype)[:, :, None, None].expand(N, -1, H, W)]
        return torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]

    def _check_attributes(self, att: Tensor, count: int) -> None:
        if att.dim() != 2 or att.shape != (count, self.n_att):
            raise ValueError(
                f"att: expected the shape ({count}, {self.n_att}), a number for each attribute, got"
                f" {tuple(att.shape)}"
            )

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps, finest first: (N,D,H/2,W/2) to (N,D,H/2^n_layers,W/2^n_layers).

        Args:
            x: (N,3,H,W) in [-1,1], H and W multiples of 2^n_layers.
        """
        check_images("x", x, 3)
        multiple = 2**self.n_layers
        if x.shape[2] % multiple or x.shape[3] % multiple:
            raise ValueError(
                f"x: expected sides that are multiples of {multiple}, got {tuple(x.shape[2:])}"
            )
        maps = []
        for layer in self.encoder:
            x = nn.functional.leaky_relu(layer.norm(layer.conv(x)), 0.2)
            maps.append(x)
        return maps

    def transfer(self, maps: Sequence[Tensor], att: Tensor) -> list[Tensor]:
        """The maps that the decoder gets of each level: the deepest as it is, the others selected.

        Args:
            maps: of `encode`.
            att: (N,n_att).
        """
        passed = list(maps)
        if not hasattr(self, "stu"):
            return passed
        state = self._joined(maps[-1:], att)
        for i, cell in enumerate(self.stu):
            level = self.n_layers - 2 - i
            passed[level], state = cell(maps[level], state)
            state = self._joined([state], att if self.stu_inject_layers > i else None)
        return passed

    def _activated(self, norm: nn.Module, z: Tensor, condition: Tensor | None) -> Tensor:
        """Norm and ReLU of a decoder's layer."""
        raise NotImplementedError

    def _decode(self, maps: Sequence[Tensor], att: Tensor, condition: Tensor | None) -> Tensor:
        self._check_attributes(att, len(maps[0]))
        passed = self.transfer(maps, att)
        z = self._joined(passed[-1:], att)
        *inner, last = self.decoder
        for i, layer in enumerate(inner):
            z = self._activated(layer.norm, layer.conv(z), condition)
            skip = [passed[self.n_layers - 2 - i]] if self.shortcut_layers > i else []
            z = self._joined([z, *skip], att if self.inject_layers > i else None)
        return last.conv(z).tanh()


class STGANGenerator(_Generator):
    """STGAN's generator: an encoder and decoder with selective transfer units between them.

    Args:
        n_att: number of attributes.
        dim: channels behind the first layer; doubled by each further one, at most 1024.
        n_layers: halvings.
        use_stu: without, with one shortcut and one injection, this is AttGAN.
        stu_layers: n_layers - 1.
        stu_inject_layers: of how many units the state is told the attributes; the first's always.
        shortcut_layers, inject_layers: layers of the decoder behind which a map of the encoder, and
            the attributes, are joined.
        stu_kernel_size, stu_norm, stu_state: see `ConvGRUCell`.
        one_more_conv: 0, or the kernel size, 1 or 3, of a further layer.
        enc_dim, dec_dim, stu_dim: `dim` of each part where they differ.

    Shape: x (N,3,H,W) in [-1,1], H and W multiples of 2^n_layers; att (N,n_att), the difference of
    target and source labels of -0.5 and 0.5: 0 to reconstruct -> (N,3,H,W) in (-1,1).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        n_att: int = 13,
        dim: int = 64,
        n_layers: int = 5,
        use_stu: bool = True,
        stu_layers: int = 4,
        stu_inject_layers: int = 4,
        shortcut_layers: int = 4,
        inject_layers: int = 4,
        stu_kernel_size: int = 3,
        stu_norm: Norm = "none",
        stu_state: State = "stu",
        one_more_conv: int = 0,
        *,
        enc_dim: int | None = None,
        dec_dim: int | None = None,
        stu_dim: int | None = None,
    ) -> None:
        super().__init__(
            _batch_norm,
            n_att=n_att,
            dim=dim,
            n_layers=n_layers,
            use_stu=use_stu,
            stu_layers=stu_layers,
            stu_inject_layers=stu_inject_layers,
            shortcut_layers=shortcut_layers,
            inject_layers=inject_layers,
            stu_kernel_size=stu_kernel_size,
            stu_norm=stu_norm,
            stu_state=stu_state,
            one_more_conv=one_more_conv,
            enc_dim=enc_dim,
            dec_dim=dec_dim,
            stu_dim=stu_dim,
        )

    def _activated(self, norm: nn.Module, z: Tensor, condition: Tensor | None) -> Tensor:
        return norm(z).relu()

    def decode(
        self, maps: Sequence[Tensor], att: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """The image of `encode`'s maps; the condition is not looked at."""
        return self._decode(maps, att, None)

    def forward(self, x: Tensor, att: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.decode(self.encode(x), att)


class MagGANGenerator(_Generator):
    """MagGAN's generator: STGAN's, whose decoder sees by SPADE where each attribute may act.

    The paper's text on the placement was not at hand: SPADE takes the place of the decoder's batch
    norms, and the encoder is left alone, as the source must stay whole for reconstruction.

    Args:
        n_att, dim, n_layers, stu_layers, stu_inject_layers, shortcut_layers, inject_layers,
            stu_kernel_size, stu_norm, stu_state, enc_dim, dec_dim, stu_dim: as for
            `STGANGenerator`; encoder and units have its keys.
        norm: statistics of the decoder's SPADE layers: "batch", "syncbatch" or "instance".

    Shape: x and att as for `STGANGenerator`; condition (N,n_att,H,W), the signed influence regions
    (see `regions.influence_regions`) -> (N,3,H,W) in (-1,1).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        n_att: int = 13,
        dim: int = 64,
        n_layers: int = 5,
        stu_layers: int = 4,
        stu_inject_layers: int = 4,
        shortcut_layers: int = 4,
        inject_layers: int = 4,
        stu_kernel_size: int = 3,
        stu_norm: Norm = "none",
        stu_state: State = "stu",
        norm: Statistics = "batch",
        *,
        enc_dim: int | None = None,
        dec_dim: int | None = None,
        stu_dim: int | None = None,
    ) -> None:
        super().__init__(
            lambda channels: SPADE(f"spade{norm}3x3", channels, n_att),
            n_att=n_att,
            dim=dim,
            n_layers=n_layers,
            use_stu=True,
            stu_layers=stu_layers,
            stu_inject_layers=stu_inject_layers,
            shortcut_layers=shortcut_layers,
            inject_layers=inject_layers,
            stu_kernel_size=stu_kernel_size,
            stu_norm=stu_norm,
            stu_state=stu_state,
            one_more_conv=0,
            enc_dim=enc_dim,
            dec_dim=dec_dim,
            stu_dim=stu_dim,
        )

    def _activated(self, norm: nn.Module, z: Tensor, condition: Tensor | None) -> Tensor:
        return norm(z, condition, activation=0.0)  # a slope of 0: ReLU

    def decode(self, maps: Sequence[Tensor], att: Tensor, condition: Tensor) -> Tensor:
        """The image of `encode`'s maps."""
        N, _, H, W = maps[0].shape
        expected = (N, self.n_att, 2 * H, 2 * W)
        check_images("condition", condition, self.n_att)
        if condition.shape != expected:
            raise ValueError(
                f"condition: expected the shape {expected}, a map for each attribute, got"
                f" {tuple(condition.shape)}"
            )
        return self._decode(maps, att, condition)

    def forward(self, x: Tensor, att: Tensor, condition: Tensor) -> Tensor:
        return self.decode(self.encode(x), att, condition)

    def load_stgan(self, generator: STGANGenerator) -> None:
        """Begin with the encoder and the transfer units of an STGAN generator of the same options.

        Raises:
            RuntimeError: they have other shapes.
        """
        self.encoder.load_state_dict(generator.encoder.state_dict())
        self.stu.load_state_dict(generator.stu.state_dict())


# --- all of them ----------------------------------------------------------------------------------


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    given = config.network
    count = len(given.attributes)

    def generator() -> nn.Module:
        same = {
            "n_att": count,
            "dim": given.width,
            "n_layers": given.layers,
            "stu_layers": given.layers - 1,
            "stu_inject_layers": given.stu_inject_layers,
            "shortcut_layers": given.shortcut_layers,
            "inject_layers": given.inject_layers,
            "stu_kernel_size": given.stu_kernel,
            "stu_norm": given.stu_norm,
            "stu_state": given.stu_state,
        }
        if given.model == "maggan":
            built: nn.Module = MagGANGenerator(**same, norm=given.norm)
        else:
            further = {"use_stu": given.use_stu, "one_more_conv": given.one_more_conv}
            built = STGANGenerator(**same, **further)
        for module in built.modules():
            if type(module) is nn.BatchNorm2d:  # not SPADE's, which has a class of its own
                module.momentum = config.schedule.momentum
        return built

    def discriminator() -> nn.Module:
        same = {
            "n_att": count,
            "dim": given.discriminator_width,
            "fc_dim": given.fc_width,
            "n_layers": given.discriminator_layers,
        }
        if given.model == "stgan":
            return STGANDiscriminator(**same, image_size=given.size)
        return MultiLevelPatchDiscriminator(
            **same,
            image_size=given.size,
            base_size=given.base_size,
            patch_dim=given.patch_width,
            patch_layers=given.patch_layers,
        )

    builders = {
        "generator": generator,
        "discriminator": discriminator,
        "parser": lambda: BiSeNet(width=given.parser_width),
        "classifier": lambda: AttributeClassifier(
            len(CELEBA), given.classifier_width, given.classifier_size
        ),
    }
    return chosen(builders, names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the size of the options."""
    given = config.network
    count, size = len(given.attributes), given.size
    image = torch.rand(1, 3, size, size)
    attributes = torch.rand(1, count)
    of_maggan = (torch.rand(1, count, size, size),) if given.model == "maggan" else ()
    patches = (torch.zeros(levels(size, given.base_size) - 1, 1, 2).long(),) if of_maggan else ()
    side = given.classifier_size
    return {
        "generator": (image, attributes, *of_maggan),
        "discriminator": (image, *patches),
        "parser": (torch.rand(1, 3, SIZE, SIZE),),
        "classifier": (torch.rand(1, 3, side, side),),
    }
