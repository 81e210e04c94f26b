"""Five pairs of geometry and appearance, and the fusion of their maps.

Photos and sketches are (N,3,H,W) in [-1,1].
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from torchext.nn import Conv2d

from ..checks import check_images
from ..discriminators import MultiscaleDiscriminator
from ..paper import chosen
from .config import APPEARANCE_DOUBLINGS, Config
from .drawing import DrawingDecoder, DrawingEncoder
from .layers import (
    AdaIN,
    ConvBlock,
    Norm,
    ResnetBlock,
    Style,
    decoding,
    encoding,
    numbered,
    reflecting,
)
from .parts import PARTS, Box, pasted


def _check_size(name: str, x: Tensor, channels: int, halvings: int) -> None:
    check_images(name, x, channels)
    step = 2**halvings
    if any(side % step or side < 2 * step for side in x.shape[2:]):
        raise ValueError(
            f"{name}: expected sides that are multiples of {step}, at least {2 * step}, got"
            f" {tuple(x.shape[2:])}"
        )


class GeometryEncoder(nn.Module):
    """The geometry of a sketch or of a photo; both kinds share one distribution of features.

    Args:
        input_nc: channels of the picture.
        ngf: channels of the first map; published files need 64.
        n_downsampling: halvings.
        n_blocks: residual blocks: 1 for sketches, 6 for photos, as published.

    Shape: (N,input_nc,H,W), H and W multiples of 2^n_downsampling, at least twice that ->
    (N,ngf*2^n_downsampling,H/2^n_downsampling,W/2^n_downsampling).

    Raises:
        TypeError, ValueError: the picture does not fit.
    """

    def __init__(
        self, input_nc: int = 3, ngf: int = 64, n_downsampling: int = 4, n_blocks: int = 1
    ) -> None:
        super().__init__()
        self.input_nc = input_nc
        self.n_downsampling = n_downsampling
        self.model = numbered(encoding(input_nc, ngf, n_downsampling, n_blocks))

    def forward(self, x: Tensor) -> Tensor:
        _check_size("x", x, self.input_nc, self.n_downsampling)
        return self.model(x)


class SketchDecoder(nn.Module):
    """The sketch of a geometry; `GeometryEncoder` backwards. Training alone needs it.

    No such network was published: layers and widths are ours.

    Args:
        output_nc: channels of the sketch.
        ngf, n_upsampling: as of the encoder.

    Shape: features of the encoder -> (N,output_nc,H,W) in (-1,1).
    """

    def __init__(self, output_nc: int = 3, ngf: int = 64, n_upsampling: int = 4) -> None:
        super().__init__()
        block = ResnetBlock(2**n_upsampling * ngf, "in")
        self.model = numbered({0: block, **decoding(1, ngf, output_nc, n_upsampling)})

    def layers(self, geometry: Tensor) -> list[Tensor]:
        """The geometry, what the block and each doubling give, and the sketch."""
        outputs = [geometry, self.model[0](geometry)]
        *doublings, last, tanh = list(self.model)[1:]
        for convolution, norm in zip(doublings[::2], doublings[1::2], strict=True):
            outputs.append(norm(convolution(outputs[-1])))
        return [*outputs, tanh(last(outputs[-1]))]

    def forward(self, geometry: Tensor) -> Tensor:
        return self.model(geometry)


class AppearanceEncoder(nn.Module):
    """The appearance of a photo as one vector: colours, material and light, without a place.

    Args:
        n_downsample: halvings, of which two double the channels.
        input_dim: channels of the photo.
        dim: channels of the first map; published files need 16.
        style_dim: length K of the vector.

    Shape: (N,input_dim,H,W), H and W at least 2^n_downsample -> (N,K,1,1).

    Raises:
        TypeError, ValueError: the photo does not fit.
    """

    def __init__(
        self, n_downsample: int = 5, input_dim: int = 3, dim: int = 16, style_dim: int = 18304
    ) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.n_downsample = n_downsample
        layers: list[nn.Module] = [ConvBlock(reflecting(input_dim, dim, 7))]
        channels = dim
        for i in range(n_downsample):
            wider = 2 * channels if i < APPEARANCE_DOUBLINGS else channels
            layers.append(ConvBlock(reflecting(channels, wider, 4, stride=2)))
            channels = wider
        layers += [nn.AdaptiveAvgPool2d(1), Conv2d(channels, style_dim, 1)]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        check_images("style", x, self.input_dim)
        least = 2**self.n_downsample
        if min(x.shape[2:]) < least:
            raise ValueError(
                f"style: expected a height and width of at least {least}, got {tuple(x.shape[2:])}"
            )
        return self.model(x)


class PartGenerator(nn.Module):
    """A part's feature map and picture from a geometry, in the appearance of a photo.

    The vector of the appearance holds, for each AdaIN layer in order, C shifts and then C scales.

    Args:
        output_nc: channels of the picture.
        ngf: channels of the feature map; published files need 64, coarse ones 32.
        n_downsampling: halvings of the geometry.
        n_blocks: residual blocks.
        norm_layer: behind the doublings: "adain"; or "in", of the branch for coarse sketches. The
            residual blocks have AdaIN in both.
        appearance_width, appearance_downsamplings: of the `AppearanceEncoder`.

    Shape: content (N,ngf*2^n_downsampling,h,w), style (N or 1,3,H,W) in [-1,1] ->
    (N,output_nc,h*2^n_downsampling,w*2^n_downsampling) in (-1,1).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        output_nc: int = 3,
        ngf: int = 64,
        n_downsampling: int = 4,
        n_blocks: int = 4,
        norm_layer: Norm = "adain",
        *,
        appearance_width: int = 16,
        appearance_downsamplings: int = 5,
    ) -> None:
        super().__init__()
        if norm_layer not in ("adain", "in"):
            raise ValueError(f"norm_layer: expected 'adain' or 'in', got {norm_layer!r}")
        self.channels = 2**n_downsampling * ngf
        blocks = {i: ResnetBlock(self.channels, "adain") for i in range(n_blocks)}
        doublings = decoding(n_blocks, ngf, output_nc, n_downsampling, norm_layer)
        self.model = numbered(blocks | doublings)
        self.splits = [
            2 * layer.num_features for layer in self.model.modules() if isinstance(layer, AdaIN)
        ]
        self.enc_style = AppearanceEncoder(
            appearance_downsamplings, 3, appearance_width, sum(self.splits)
        )

    def appearance(self, style: Tensor) -> Tensor:
        """Vectors (N,K) of photos; one serves any number of geometries."""
        return self.enc_style(style).flatten(1)

    def feature(self, content: Tensor, vector: Tensor) -> Tensor:
        """The feature map (N,ngf,H,W) of geometries in appearances (N or 1,K)."""
        check_images("content", content, self.channels)
        if vector.dim() != 2 or vector.shape[1] != sum(self.splits):
            raise ValueError(
                f"vector: expected the shape (N, {sum(self.splits)}), got {tuple(vector.shape)}"
            )
        vector = vector.expand(len(content), -1)
        styles = iter([self._style(given) for given in vector.split(self.splits, dim=1)])
        x = content
        for layer in list(self.model)[:-2]:
            if isinstance(layer, ResnetBlock):
                x = layer(x, next(styles), next(styles))
            else:
                x = layer(x, *next(styles)) if isinstance(layer, AdaIN) else layer(x)
        return x

    @staticmethod
    def _style(given: Tensor) -> Style:
        shift, scale = given.chunk(2, dim=1)
        return scale, shift

    def picture(self, feature: Tensor) -> Tensor:
        """The picture of a feature map; the fusion does without."""
        return self.model[-2:](feature)

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        return self.picture(self.feature(content, self.appearance(style)))


class GlobalGenerator(nn.Module):
    """Image translation: fuses feature maps into a photo, or makes a sketch of a photo.

    Args:
        input_nc, output_nc: channels.
        ngf: channels of the first map.
        n_downsampling: halvings.
        n_blocks: residual blocks.
        norm: "in" with affine, or "bn" (the fusion of coarse sketches, in evaluation).

    Shape: (N,input_nc,H,W), H and W multiples of 2^n_downsampling, at least twice that ->
    (N,output_nc,H,W) in (-1,1).

    Raises:
        TypeError, ValueError: the input does not fit.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int = 3,
        ngf: int = 64,
        n_downsampling: int = 4,
        n_blocks: int = 4,
        norm: Norm = "in",
    ) -> None:
        super().__init__()
        self.input_nc = input_nc
        self.n_downsampling = n_downsampling
        layers = encoding(input_nc, ngf, n_downsampling, n_blocks, norm)
        layers |= decoding(3 * n_downsampling + 4 + n_blocks, ngf, output_nc, n_downsampling, norm)
        self.model = numbered(layers)

    def forward(self, x: Tensor) -> Tensor:
        _check_size("x", x, self.input_nc, self.n_downsampling)
        return self.model(x)


def canvas(
    generators: Mapping[str, PartGenerator],
    places: Mapping[str, Box],
    geometry: Callable[[str], Tensor],
    appearance: Callable[[str], Tensor],
) -> Tensor:
    """What the fusion sees: the parts' feature maps in their places.

    Args:
        generators: by part.
        places: see `parts.boxes`.
        geometry: gives the geometry of a part.
        appearance: gives the appearance's vector for a part.

    Returns:
        (N,ngf,size,size).
    """
    return pasted(lambda part: generators[part].feature(geometry(part), appearance(part)), places)


# --- all together ---------------------------------------------------------------------------------


def named(kind: str) -> tuple[str, ...]:
    """The networks of a kind, one for each part."""
    return tuple(f"{kind}_{part}" for part in PARTS)


def builders(config: Config) -> dict[str, Callable[[], nn.Module]]:
    """What makes each network, by name."""
    given = config.network
    width, halvings = given.width, given.downsamplings
    discriminator = partial(
        MultiscaleDiscriminator,
        given.discriminators,
        given.discriminator_layers + 1,
        given.discriminator_width,
        3,
        "instance",
    )
    appearance = {
        "appearance_width": given.appearance_width,
        "appearance_downsamplings": given.appearance_downsamplings,
    }
    encoder = partial(GeometryEncoder, 3, width, halvings)
    generator = partial(PartGenerator, 3, n_downsampling=halvings, n_blocks=given.generator_blocks,
                        **appearance)  # fmt: skip
    coarse = given.coarse_width
    of_each = {
        "sketch_encoder": partial(encoder, given.sketch_blocks),
        "sketch_decoder": partial(SketchDecoder, 3, width, halvings),
        "image_encoder": partial(encoder, given.image_blocks),
        "generator": partial(generator, ngf=width),
        "discriminator": discriminator,
        "coarse_encoder": partial(GeometryEncoder, coarse, coarse, halvings, 0),
        "coarse_generator": partial(generator, ngf=coarse, norm_layer="in"),
    }
    found = {f"{kind}_{part}": make for kind, make in of_each.items() for part in PARTS}
    for part, box in given.boxes.items():
        how = (given.code, coarse, given.drawing_downsamplings)
        found[f"drawing_encoder_{part}"] = partial(DrawingEncoder, box.side, 1, *how)
        found[f"drawing_decoder_{part}"] = partial(DrawingDecoder, box.side, coarse, *how)
    found["fusion"] = partial(GlobalGenerator, width, 3, width, halvings, given.fusion_blocks)
    found["fusion_discriminator"] = discriminator
    found["extractor"] = partial(
        GlobalGenerator, 3, 3, given.extractor_width, halvings, given.extractor_blocks
    )
    found["coarse_fusion"] = partial(
        GlobalGenerator, coarse, 3, coarse, halvings, given.coarse_fusion_blocks, "bn"
    )
    return found


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    return chosen(builders(config), names)


def example(config: Config) -> dict[str, tuple]:
    """Inputs at the paper's size."""
    given = config.network
    size, step = given.size, 2**given.downsamplings
    photo = torch.rand(1, 3, size, size)
    inputs = {
        "fusion": (torch.rand(1, given.width, size, size),),
        "fusion_discriminator": (photo,),
        "extractor": (photo,),
        "coarse_fusion": (torch.rand(1, given.coarse_width, size, size),),
    }
    for part, box in given.boxes.items():
        picture = torch.rand(1, 3, box.side, box.side)
        for kind in ("sketch_encoder", "image_encoder", "discriminator"):
            inputs[f"{kind}_{part}"] = (picture,)
        side = box.side // step
        for kind, width in (("", given.width), ("coarse_", given.coarse_width)):
            geometry = torch.rand(1, width * step, side, side)
            inputs[f"{kind}generator_{part}"] = (geometry, picture)
            if not kind:
                inputs[f"sketch_decoder_{part}"] = (geometry,)
        drawn = torch.rand(1, given.coarse_width, box.side, box.side)
        inputs[f"coarse_encoder_{part}"] = (drawn,)
        inputs[f"drawing_encoder_{part}"] = (picture[:, :1],)
        inputs[f"drawing_decoder_{part}"] = (torch.rand(1, given.code),)
    return inputs
