"""Attributes of faces changed in photos: from Python, and from plain files."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .. import papers, pictures
from ..checks import check_images
from ..face_labels import BISENET_NAMES, read_labels
from ..inpainting import check_not_read
from ..label_maps import add_palette, check_labels, read_palette
from .attributes import (
    ATTRIBUTES,
    CELEBA,
    as_seen,
    check_attribute,
    difference,
    labels_of,
    slide,
    target_of,
)
from .classifier import AttributeClassifier
from .config import Config
from .networks import MagGANGenerator, STGANGenerator
from .parser import one_hot, overlay, parse, resize_labels
from .photos import CELEBA_SIZE, celeba_crop, resize_bicubic
from .regions import INFLUENCE, Table, influence_regions, influence_table


class Edit(NamedTuple):
    """A photo with other attributes.

    Attributes:
        photo: (N,3,H,W) in [0,1], the generator's.
        difference: (N,n), what it was asked for; 0 of attributes that stay.
        region: (N,1,H,W) in [0,1], where the photo may change; 1 everywhere without masks.
    """

    photo: Tensor
    difference: Tensor
    region: Tensor


class AttributeEditor:
    """Edits of photos, which are encoded once.

    Args:
        generator: trained, in evaluation mode.
        photo: (N,3,H,W) in [0,1], H and W multiples of 2^n_layers.
        source: (N,n) labels, 0 or 1: the attributes that the photos show.
        masks: (N,19,H,W) in [0,1], the parts of the faces; see `parser.one_hot`. MagGAN needs them;
            for STGAN they say what `paste` keeps.
        attributes: names of the labels.
        table: what each attribute may change.
        condition: what an STGAN generator was trained to be told; see `config.Network`.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        generator: MagGANGenerator | STGANGenerator,
        photo: Tensor,
        source: Tensor,
        *,
        masks: Tensor | None = None,
        attributes: Sequence[str] = ATTRIBUTES,
        table: Table = INFLUENCE,
        condition: Literal["difference", "target"] = "difference",
    ) -> None:
        check_images("photo", photo, 3)
        if masks is None and isinstance(generator, MagGANGenerator):
            raise ValueError("masks: expected those of the face's parts, which MagGAN looks at")
        if masks is not None and masks.shape[2:] != photo.shape[2:]:
            raise ValueError(
                f"masks: expected the photo's height and width {tuple(photo.shape[2:])}, got"
                f" {tuple(masks.shape[2:])}"
            )
        if len(source) != len(photo):
            raise ValueError(f"source: expected the labels of {len(photo)} photos")
        target_of(source, {}, attributes)  # for its checks
        self.generator = generator
        self.photo = photo
        self.source = source.to(photo)
        self.masks = None if masks is None else masks.to(photo)
        self.attributes = tuple(attributes)
        self.table = table
        self.condition = condition
        with torch.no_grad():
            self.maps = generator.encode(photo * 2 - 1)

    @torch.no_grad()
    def apply(self, asked: Tensor) -> Edit:
        """The edit of a difference (N,n) of target and source; 0 leaves an attribute as it is."""
        asked = asked.to(self.photo)
        condition, region = None, torch.ones_like(self.photo[:, :1])
        if self.masks is not None:
            found = influence_regions(self.masks, asked, self.attributes, self.table)
            condition, region = found.condition, found.edit
        told = asked if self.condition == "difference" else asked + as_seen(self.source)
        made = self.generator.decode(self.maps, told, condition)
        return Edit((made + 1) / 2, asked, region)

    def __call__(self, edits: Mapping[str, float] | Sequence[str]) -> Edit:
        """The edit that flips attributes, one after the other.

        Args:
            edits: names, each with its intensity; names alone mean 1. STGAN's published figures are
                those of 2. See `attributes.target_of`.

        Raises:
            ValueError: an unknown attribute, or an intensity that is no number above 0.
        """
        return self.apply(difference(self.source, edits, self.attributes))

    def reconstruct(self) -> Edit:
        """The photo with nothing changed, as the generator makes it."""
        return self.apply(torch.zeros_like(self.source))

    def slide(self, attribute: str, steps: int = 10) -> list[Edit]:
        """Edits from an attribute's absence to its presence, in equal steps; of one photo."""
        rows = slide(self.source, attribute, self.attributes, steps=steps)
        return [self.apply(row[None]) for row in rows]

    def paste(self, edit: Edit, feather: int = 0) -> Tensor:
        """The edit within its region, and the photo's own pixels elsewhere. (N,3,H,W) in [0,1].

        Args:
            edit: of these photos.
            feather: pixels over which its border fades, inwards: what is preserved stays so.
        """
        return pictures.composite(self.photo, 1 - feathered(edit.region, feather), edit.photo)

    def sheet(self) -> Tensor:
        """STGAN's picture of a photo (3,H,W'): itself, a black strip, as made, every edit alone."""
        if len(self.photo) != 1:
            raise ValueError(f"photo: expected one for a sheet, got {len(self.photo)}")
        black = torch.zeros_like(self.photo[..., : self.photo.shape[3] // 10])
        edits = [self((name,)).photo for name in self.attributes]
        return torch.cat([self.photo, black, self.reconstruct().photo, *edits], dim=3)[0]


def feathered(region: Tensor, width: int) -> Tensor:
    """A region (N,1,H,W) whose border fades inwards; 0 stays 0.

    Args:
        region: in [0,1].
        width: pixels, at least 0.
    """
    if width < 0:
        raise ValueError(f"feather: expected at least 0 pixels, got {width}")
    region = region.clamp(0, 1)
    if not width:
        return region
    mean = F.avg_pool2d(region, 2 * width + 1, 1, width, count_include_pad=False)
    return region * mean


@torch.no_grad()
def classify(classifier: AttributeClassifier, photo: Tensor) -> Tensor:
    """Labels (N,n), 0 or 1, of photos (N,3,H,W) in [0,1], stretched to the classifier's size.

    Args:
        classifier: trained, in evaluation mode.
    """
    check_images("photo", photo, 3)
    size = classifier.image_size
    small = F.interpolate(photo, size, mode="bicubic", antialias=True, align_corners=False)
    return (classifier(small.clamp(0, 1) * 2 - 1) > 0).to(photo.dtype)


# --- files ----------------------------------------------------------------------------------------


def working_size(source: tuple[int, int], size: int, multiple: int) -> tuple[int, int]:
    """Width and height in which a photo of another width and height is edited.

    The width is `size`, the height follows the photo's form in whole multiples.
    """
    height = round(size * source[1] / source[0] / multiple) * multiple
    return size, max(height, multiple)


def photo_tensor(picture: Image.Image, size: tuple[int, int], resize: str) -> Tensor:
    """(1,3,H,W) in [0,1] of an RGB picture; `resize` as in `config.Schedule`."""
    if resize == "tensorflow":
        image = torch.from_numpy(np.array(picture, np.float32)).movedim(-1, 0)[None]
        return resize_bicubic(image, size[1], size[0]).clamp(0, 255) / 255
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return pictures.to_tensor(picture)[None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photo", type=Path, help="a photo of a face, aligned as in CelebA-HQ")
    parser.add_argument(
        "attributes",
        nargs="*",
        metavar="ATTRIBUTE",
        help="to add, or to take away where the photo has it, one after the other: a name such as"
        f" Blond_Hair, or with an intensity, Blond_Hair=1.5; {', '.join(ATTRIBUTES)}",
    )
    parser.add_argument(
        "--intensity",
        type=float,
        default=1.0,
        help="of attributes without one (default: %(default)s; STGAN's published figures: 2)",
    )
    parser.add_argument(
        "--have",
        help="the attributes that the photo shows, joined by commas, '' for none (without: by the"
        " classifier)",
    )
    parser.add_argument("--classifier", type=Path, help="a file of the attribute classifier")
    parser.add_argument(
        "--labels",
        type=Path,
        help="the label map of its parts: numbers, or the data set's colours (without: by the face"
        " parser)",
    )
    add_palette(parser)
    parser.add_argument(
        "--numbering",
        choices=("bisenet", "celebamask"),
        default="bisenet",
        help="what the numbers of --labels mean: those of face parsers trained as BiSeNets, such as"
        " ours, or the data set's own (default: %(default)s)",
    )
    parser.add_argument("--parser", type=Path, help="a file of the face parser, 79999_iter.pth")
    parser.add_argument(
        "--soft", action="store_true", help="the parser's probabilities in place of its labels"
    )
    parser.add_argument(
        "--regions",
        action="append",
        default=[],
        metavar="ROW",
        help="a row of the table of what an attribute may change, such as 'Bald+:hair|hat' (adding)"
        " or 'Bald-:background|skin' (taking away); may be given several times",
    )
    parser.add_argument("--size", type=int, help="width to edit in (default: the networks')")
    parser.add_argument(
        "--slide", metavar="ATTRIBUTE", help="ten pictures side by side, from without to with it"
    )
    parser.add_argument(
        "--sheet", action="store_true", help="photo, reconstruction and every edit side by side"
    )
    parser.add_argument(
        "--paste", action="store_true", help="keep the photo's own pixels outside the regions"
    )
    parser.add_argument(
        "--feather",
        type=int,
        default=0,
        help="with --paste: pixels, at the size of the edit, over which regions fade inwards",
    )
    parser.add_argument(
        "--write-parsing",
        action="store_true",
        help="also write a picture of the photo's parts, as NAME-parsing.png",
    )


def read_edits(words: Sequence[str], intensity: float) -> dict[str, float]:
    """Attributes and intensities from a command line's NAME or NAME=INTENSITY.

    Raises:
        ValueError: no number, or an attribute twice.
    """
    edits: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            value = float(number) if number else intensity
        except ValueError:
            raise ValueError(
                f"{word}: expected an attribute, or one and its intensity, as in {name}=1.5"
            ) from None
        if name in edits:
            raise ValueError(f"attribute: expected each once, got {name} twice")
        edits[name] = value
    return edits


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for bad values of `add_arguments`."""
    if not hasattr(options, "slide"):  # of `train`
        return
    asked = bool(options.attributes), options.slide is not None, options.sheet
    if sum(asked) != 1:
        raise ValueError("attribute: expected some of them, --slide or --sheet, one of these")
    read_edits(options.attributes, options.intensity)
    if options.feather < 0:
        raise ValueError(f"--feather: expected at least 0, got {options.feather}")
    if options.feather and not options.paste:
        raise ValueError("--feather: expected --paste")
    if options.paste and not options.attributes:
        raise ValueError("--paste: expected attributes, one picture")


def _network(
    name: str,
    networks: dict[str, nn.Module],
    config: Config,
    path: Path | None,
    device: str,
) -> tuple[nn.Module | None, Config]:
    """A network and its options: of a file of its own, if there is one, else of the checkpoint."""
    if path is None:
        return networks.get(name), config
    found, own = papers.load(path, papers.find("maggan"), config)
    if name not in found:
        raise ValueError(f"{path}: expected a {name}, found {[*found]}")
    return found[name].to(device).eval(), own


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    """Write the photo with other attributes, in the form of the photo or pasted into it."""
    given, names = config.network, config.network.attributes
    if "generator" not in networks:
        raise ValueError(f"{options.checkpoint}: expected a generator, found {[*networks]}")
    edits = read_edits(options.attributes, options.intensity)
    for name in (*edits, *([] if options.slide is None else [options.slide])):
        check_attribute(name, names)
    table = influence_table(options.regions, influence_table(given.regions))
    size = given.size if options.size is None else options.size
    if size < given.multiple or size % given.multiple:
        raise ValueError(f"--size: expected a multiple of {given.multiple}, got {size}")

    source = pictures.read_photo(options.photo)
    picture = pictures.read_image(options.photo)
    wanted = working_size(picture.size, size, given.multiple)
    cropped = config.schedule.crop == "celeba" and picture.size == CELEBA_SIZE
    if cropped:
        if options.paste:
            raise ValueError("--paste: expected --set crop=square, as the edit is of a crop")
        picture, wanted = picture.crop(celeba_crop(size)), (size, size)
    photo = photo_tensor(picture, wanted, config.schedule.resize).to(options.device)
    if options.have is None:
        classifier, _ = _network("classifier", networks, config, options.classifier, options.device)
        if classifier is None:
            raise ValueError("--have: expected the photo's attributes, or --classifier FILE")
        found = classify(classifier, photo)[:, [CELEBA.index(name) for name in names]]
    else:
        present = [name.strip() for name in options.have.split(",") if name.strip()]
        try:
            found = labels_of(present, names)
        except ValueError as error:
            raise ValueError(f"--have: {error}") from None
    masks = _masks(networks, config, options, photo, source.size, cropped)
    editor = AttributeEditor(
        networks["generator"],
        photo,
        found,
        masks=masks,
        attributes=names,
        table=table,
        condition=given.condition,
    )
    if options.sheet:
        made = editor.sheet()
    elif options.slide is not None:
        made = torch.cat([step.photo for step in editor.slide(options.slide)], dim=3)[0]
    else:
        made = editor(edits)
    if isinstance(made, Tensor):
        pictures.write(pictures.to_picture(made), options.output)
    elif not options.paste:
        pictures.write(pictures.to_picture(made.photo[0]), options.output)
    else:
        pasted = _pasted(source, made, options.feather)
        for note in pictures.write_photo(pasted, options.output):
            print(f"warning: {note}", file=sys.stderr)
    print(f"wrote {options.output}")


def _masks(
    networks: dict[str, nn.Module],
    config: Config,
    options: argparse.Namespace,
    photo: Tensor,
    source: tuple[int, int],
    cropped: bool,
) -> Tensor | None:
    """Masks of the face's parts, by a label map or the parser; None where STGAN has neither.

    Args:
        photo: (1,3,H,W), as it is edited.
        source: width and height of its file.
        cropped: whether a part of it was cut out.
    """
    height, width = photo.shape[2:]
    if options.labels is not None:
        palette = None if options.palette is None else read_palette(options.palette)
        picture = read_labels(options.labels, palette, options.numbering, "bisenet")
        if abs(picture.size[0] * source[1] / (picture.size[1] * source[0]) - 1) > 0.01:
            raise ValueError(
                f"{options.labels}: expected the photo's form, {source[0]} x {source[1]}, got"
                f" {picture.size[0]} x {picture.size[1]}"
            )
        if cropped:
            picture = picture.resize(source, Image.Resampling.NEAREST).crop(celeba_crop(width))
        labels = torch.from_numpy(np.array(picture))[None, None]
        labels = check_labels(labels, len(BISENET_NAMES), str(options.labels))
        masks = one_hot(resize_labels(labels, height, width))
    else:
        parser, own = _network("parser", networks, config, options.parser, options.device)
        if parser is None:
            if config.network.model == "maggan" or options.paste or options.write_parsing:
                raise ValueError(
                    "--labels: expected a label map, or --parser FILE, as the checkpoint has no"
                    " face parser"
                )
            return None
        found = parse(parser, photo, size=own.schedule.parser_size, soft=options.soft)
        masks = found if options.soft else one_hot(found)
    if options.write_parsing:
        output = options.output.with_name(f"{options.output.stem}-parsing.png")
        check_not_read(output, options)
        shown = overlay(photo.cpu(), masks.argmax(dim=1, keepdim=True).cpu())
        pictures.write(pictures.to_picture(shown[0]), output)
        print(f"wrote {output}")
    return masks.to(options.device)


def _pasted(source: pictures.Photo, made: Edit, feather: int) -> pictures.Photo:
    """The file's photo with the edit within its region, at the file's size."""
    width, height = source.size
    region = F.interpolate(made.region.cpu(), (height, width), mode="nearest").clamp(0, 1)
    if feather:  # inwards: what is preserved stays so
        soft = feathered(made.region.cpu(), feather)
        soft = F.interpolate(soft, (height, width), mode="bilinear", align_corners=False)
        region = torch.where(region > 0, soft, region)
    large = F.interpolate(
        made.photo.cpu(), (height, width), mode="bicubic", antialias=True, align_corners=False
    )
    mixed = pictures.composite(source.tensor()[None], 1 - region, large)
    return source.with_fill(mixed[0], (region == 0).float()[0])
