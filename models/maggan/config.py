"""The options of all networks, of the losses and of training."""

from dataclasses import dataclass
from typing import Literal

from .attributes import ATTRIBUTES, check_names
from .discriminators import levels
from .parser import MULTIPLE
from .regions import influence_table

Norm = Literal["none", "bn", "in"]
State = Literal["stu", "gru", "direct"]
Statistics = Literal["batch", "syncbatch", "instance"]


@dataclass(frozen=True)
class Network:
    """What decides shapes: MagGAN's values; see `STGAN` for those of its published files.

    Attributes:
        model: "maggan", or "stgan", which sees no masks and has published files.
        attributes: names of those that can be edited, in the order of the generator's input.
        regions: rows of the influence table that differ from `regions.INFLUENCE`, such as
            "Bald+:hair|hat"; see `regions.influence_table`.
        condition: what a generator is told of the attributes: their "difference", or, of STGAN, the
            "target".
        size: of the images, height and width.
        width: channels behind the generator's first layer; doubled by each further one, at most
            1024.
        layers: halvings of the generator.
        use_stu: selective transfer units (STGAN; MagGAN has them always).
        stu_inject_layers, shortcut_layers, inject_layers: how many units are told the attributes,
            and layers of the decoder that get an encoder's map, and the attributes.
        stu_kernel, stu_norm, stu_state: see `ConvGRUCell`.
        one_more_conv: 0, or the kernel of a further layer at full size (STGAN).
        norm: of MagGAN's decoder: statistics of the "batch", of all processes ("syncbatch"), or of
            each image ("instance").
        base_size: of what each of MagGAN's discriminators sees.
        discriminator_width, fc_width, discriminator_layers: of STGAN's discriminator, which is
            MagGAN's coarsest.
        patch_width, patch_layers: of the finer ones.
        parser_width: channels behind the face parser's first layer; published files have 64.
        classifier_width, classifier_size: of the classifier of attributes, and its images.
    """

    model: Literal["maggan", "stgan"] = "maggan"
    attributes: tuple[str, ...] = ATTRIBUTES
    regions: tuple[str, ...] = ()
    condition: Literal["difference", "target"] = "difference"
    size: int = 1024
    width: int = 64
    layers: int = 5
    use_stu: bool = True
    stu_inject_layers: int = 4
    shortcut_layers: int = 4
    inject_layers: int = 4
    stu_kernel: int = 3
    stu_norm: Norm = "none"
    stu_state: State = "stu"
    one_more_conv: int = 0
    norm: Statistics = "batch"
    base_size: int = 256
    discriminator_width: int = 64
    fc_width: int = 1024
    discriminator_layers: int = 6
    patch_width: int = 64
    patch_layers: int = 3
    parser_width: int = 64
    classifier_width: int = 32
    classifier_size: int = 128

    def __post_init__(self) -> None:
        check_names("attributes", self.attributes)
        influence_table(self.regions)
        for name in ("width", "layers", "patch_width", "classifier_width", "parser_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.size < self.multiple or self.size % self.multiple:
            raise ValueError(
                f"size: expected a multiple of {self.multiple}, as the generator has"
                f" {self.layers} halvings, got {self.size}"
            )
        if self.model == "maggan":
            levels(self.size, self.base_size)
            if self.condition != "difference":
                raise ValueError(
                    f"condition: expected 'difference' for maggan, got {self.condition!r}"
                )

    @property
    def multiple(self) -> int:
        """Of which the sides of a generator's images are."""
        return 2**self.layers


@dataclass(frozen=True)
class Loss:
    """Weights and forms of the losses: STGAN's published values; that of the masks is ours.

    Attributes:
        adversarial: "wasserstein", whose gradients are penalised between photos and fakes; with
            "least_squares" and "non_saturating" they are so around photos (DRAGAN), as published.
        penalty_weight: of the gradients' norms.
        discriminator_attribute_weight, attribute_weight: of the attributes of photos, for the
            discriminator, and of edited ones, for the generator.
        reconstruction_weight: of the photo that is made with nothing to change.
        mask_weight: of what an edit changes outside its influence regions (MagGAN).
        normalise: of that: "mean" over all pixels, or over the "area" that is preserved.
    """

    adversarial: Literal["wasserstein", "least_squares", "non_saturating"] = "wasserstein"
    penalty_weight: float = 10.0
    discriminator_attribute_weight: float = 1.0
    attribute_weight: float = 10.0
    reconstruction_weight: float = 100.0
    mask_weight: float = 100.0
    normalise: Literal["mean", "area"] = "mean"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    An iteration is a batch, and a step of the discriminator or of the generator.

    Attributes:
        rate: of Adam, for generator and discriminator.
        beta1, beta2: of Adam.
        decay_epochs: behind each of these the rate is a tenth of that before.
        discriminator_steps: for each of the generator, each on a batch of its own.
        momentum: share of a batch in the running statistics of the generator's batch norms, but
            those of SPADE; runs of less than some thousand iterations need more than this.
        flip: probability of a mirror image (STGAN's files: 0).
        resize: "antialias", or STGAN's "tensorflow"; see `photos.resize_bicubic`.
        crop: "square", the largest in the middle, or STGAN's of CelebA's aligned photos, "celeba".
        parser_rate, parser_decay, parser_iterations, warm_up: of the face parser's gradient
            descent, the weights' decay, and the iterations in which its rate falls, behind those in
            which it rises.
        parser_size, parser_crop: photos are brought to the size, times a factor from 0.75 to 2, and
            windows cut out of them; multiples of 32.
        parser_threshold: losses of pixels count above that of this probability.
        classifier_rate, classifier_decay: of the attribute classifier, and the weight of its
            weights' squares.
        batch, epochs, iterations: of training; 16 are what one needs for 256 pixels.
    """

    rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    decay_epochs: int = 100
    discriminator_steps: int = 5
    momentum: float = 1e-3
    flip: float = 0.5
    resize: Literal["antialias", "tensorflow"] = "antialias"
    crop: Literal["square", "celeba"] = "square"
    parser_rate: float = 1e-2
    parser_decay: float = 5e-4
    parser_iterations: int = 80_000
    warm_up: int = 1000
    parser_size: int = 512
    parser_crop: int = 448
    parser_threshold: float = 0.7
    classifier_rate: float = 2e-4
    classifier_decay: float = 1e-4
    batch: int = 16
    epochs: int | None = 100
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name in ("decay_epochs", "discriminator_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"momentum: expected above 0, at most 1, got {self.momentum}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip: expected a probability from 0 to 1, got {self.flip}")
        for name in ("parser_size", "parser_crop"):
            value = getattr(self, name)
            if value < MULTIPLE or value % MULTIPLE:
                raise ValueError(f"{name}: expected a multiple of {MULTIPLE}, got {value}")
        if not 0 <= self.warm_up < self.parser_iterations:
            raise ValueError(
                f"warm_up: expected from 0 to below parser_iterations, {self.parser_iterations},"
                f" got {self.warm_up}"
            )
        if not 0 < self.parser_threshold < 1:
            raise ValueError(
                f"parser_threshold: expected a probability between 0 and 1, got"
                f" {self.parser_threshold}"
            )


@dataclass(frozen=True)
class Config:
    """Every option; the names of all differ."""

    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


# What STGAN's published files are of, and the training that made them.
STGAN = {
    "model": "stgan", "size": 128, "discriminator_layers": 5, "flip": 0.0, "resize": "tensorflow",
    "crop": "celeba", "batch": 32, "epochs": 200,
}  # fmt: skip
