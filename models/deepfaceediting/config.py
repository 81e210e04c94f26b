"""Every option, with the published values."""

from dataclasses import dataclass
from typing import Literal

from .parts import SIZE, Box, boxes

Consistency = Literal["ends", "layers"]
APPEARANCE_DOUBLINGS = 2  # of the appearance encoder's channels


@dataclass(frozen=True)
class Network:
    """All networks, with the published values.

    Attributes:
        width: channels of the first maps, and of the maps that are fused.
        size: height and width of photos; at another one the parts' boxes are scaled.
        downsamplings: halvings of the geometry encoders.
        sketch_blocks, image_blocks: residual blocks of the geometry encoders.
        generator_blocks, fusion_blocks: of the generators and of the fusion.
        appearance_width: channels of the first map of the appearance encoders.
        appearance_downsamplings: their halvings.
        extractor_width, extractor_blocks: of the network that makes sketches of photos.
        coarse_width: of all networks of the branch for coarse sketches.
        coarse_fusion_blocks: residual blocks of its fusion.
        drawing_downsamplings: halvings of its auto-encoders.
        code: length of their codes.
        discriminators: scales of each discriminator; not published, as all of training.
        discriminator_width: channels of its first map.
        discriminator_layers: its strided convolutions.
    """

    width: int = 64
    size: int = SIZE
    downsamplings: int = 4
    sketch_blocks: int = 1
    image_blocks: int = 6
    generator_blocks: int = 4
    fusion_blocks: int = 4
    appearance_width: int = 16
    appearance_downsamplings: int = 5
    extractor_width: int = 32
    extractor_blocks: int = 9
    coarse_width: int = 32
    coarse_fusion_blocks: int = 9
    drawing_downsamplings: int = 5
    code: int = 512
    discriminators: int = 3
    discriminator_width: int = 64
    discriminator_layers: int = 3

    def __post_init__(self) -> None:
        least = {"drawing_downsamplings": 2, "appearance_downsamplings": APPEARANCE_DOUBLINGS}
        least |= dict.fromkeys(("sketch_blocks", "image_blocks", "extractor_blocks"), 0)
        for name, value in vars(self).items():
            if value < least.get(name, 1):
                raise ValueError(f"{name}: expected at least {least.get(name, 1)}, got {value}")
        step = 2 ** max(self.downsamplings, self.drawing_downsamplings)
        smallest = max(2 * step, 2**self.appearance_downsamplings)
        if self.size % step or min(box.side for box in self.boxes.values()) < smallest:
            raise ValueError(
                f"size: expected a multiple of {step} at which every part has at least {smallest}"
                f" pixels in width, got {self.size}"
            )

    @property
    def boxes(self) -> dict[str, Box]:
        """Where the parts lie."""
        return boxes(self.size, 2 ** max(self.downsamplings, self.drawing_downsamplings))


@dataclass(frozen=True)
class Loss:
    """Training was not published: the paper names the terms, weights are those of a later
    implementation by others, and what neither tells is ours.

    Attributes:
        consistency: what stage "image" compares besides the geometry: the decoded sketches ("ends",
            paper) or what all layers of the decoder give ("layers", as others do).
        lab_weight: of two photos' colours, a and b of Lab.
        matching_weight: of their features in the discriminator.
        vgg_weight: of their features in VGG-19, whose file is needed unless this is 0.
        geometry_weight: of the swapped photo's geometry.
        cycle_weight: of the photo whose appearance was swapped there and back.
        coarse_weight: of the L1 of stage "coarse".
    """

    consistency: Consistency = "ends"
    lab_weight: float = 1.0
    matching_weight: float = 10.0
    vgg_weight: float = 10.0
    geometry_weight: float = 1.0
    cycle_weight: float = 1.0
    coarse_weight: float = 10.0


@dataclass(frozen=True)
class Schedule:
    """How long and how fast, in every stage: as others trained it, the paper's was not published.

    Attributes:
        rate, discriminator_rate: of Adam.
        beta1, beta2: of Adam.
        batch, epochs, iterations: of training.
    """

    rate: float = 4e-4
    discriminator_rate: float = 4e-5
    beta1: float = 0.0
    beta2: float = 0.999
    batch: int = 8
    epochs: int | None = None
    iterations: int | None = 200_000


@dataclass(frozen=True)
class Config:
    """Every option; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()
