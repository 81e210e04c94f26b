"""Small training runs of the papers: what tests and the processes that they spawn run."""

import argparse
import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from torchext.models import checkpoint, papers
from torchext.models.blocks import iterated
from torchext.models.data import Place, Sample
from torchext.models.masks import GeneratedMasks, MaskSource
from torchext.models.training import Options, Trainer, checkpoints

# Reduced networks; what follows a paper's name tells its runs apart.
SMALL: dict[str, dict[str, Any]] = {
    "partial_convolutions": {
        "layers": 4, "width": 8, "size": 32, "learning_rate": 5e-3, "form": "ratio"
    },
    "region_normalization": {
        "width": 8, "residual_blocks": 1, "size": 32, "learning_rate": 2e-3, "threshold": 0.5
    },
    "pd_gan": {"width": 4, "size": 128, "noise": 16, "rate_2": 4e-3},
    "pd_gan stage 1": {"width": 4, "size": 128, "rate_1": 1e-2},
    "dagan": {
        "width": 4, "labels": 5, "dont_care": False, "first_label": 0, "size": 64, "margin": 8,
        "rate": 4e-3,
    },
    "maskgan stage 1": {
        "size": 128, "width": 4, "downsamplings": 2, "residual_blocks": 1, "blender_width": 2,
        "discriminator_width": 4,
        "discriminator_layers": 2, "vae_width": 1, "code": 8, "parser_scale": 16,
    },
    "michigan": {
        "width": 4, "size": 64, "upsampling": "normal", "padding": 16, "inpainting_width": 4,
        "inpainting_blocks": 1, "inpainting_size": 32, "rate": 4e-3, "bank": "dog",
    },
    "semantic_photo_manipulation": {
        "resolution": 128, "width": 16, "encoder_width": 4, "vgg_weight": 0.0,
        "trunk_rate": 5e-3, "layers_rate": 5e-3, "joint_rate": 5e-3,
    },
    "fe_gan": {
        "width": 4, "size": (64, 48), "classes": 5, "face": 2, "parsing_blocks": 1,
        "inpainting_blocks": 1, "rate": 4e-3, "beta1": 0.5,
    },
    "deepfaceediting": {
        "width": 2, "size": 128, "image_blocks": 2, "fusion_blocks": 2, "appearance_width": 2,
        "extractor_width": 2, "extractor_blocks": 2, "coarse_width": 2, "coarse_fusion_blocks": 2,
        "drawing_downsamplings": 3, "code": 16, "discriminators": 2, "discriminator_width": 2,
        "discriminator_layers": 2, "rate": 4e-3, "discriminator_rate": 4e-3,
    },
    "maggan": {
        "width": 4, "size": 64, "base_size": 32, "discriminator_width": 4, "fc_width": 8,
        "discriminator_layers": 3, "patch_width": 4, "patch_layers": 2, "discriminator_steps": 1,
        "rate": 4e-3, "parser_width": 4, "parser_size": 64, "parser_crop": 64, "warm_up": 2,
        "parser_iterations": 200, "classifier_width": 4, "classifier_size": 32,
    },
}  # fmt: skip
# Of the last stage, whose networks are not trained apart here.
SMALL["maskgan"] = SMALL["maskgan stage 1"]
SMALL["michigan stage orientation"] = {**SMALL["michigan"], "rate": 2e-2, "inpainting_size": 64}
SMALL["fe_gan stage parsing"] = {**SMALL["fe_gan"], "width": 8, "rate": 1e-3}
for _stage in ("generator", "resnet", "layers", "joint"):
    SMALL[f"semantic_photo_manipulation stage {_stage}"] = SMALL["semantic_photo_manipulation"]
for _stage in ("parser", "classifier"):
    SMALL[f"maggan stage {_stage}"] = {**SMALL["maggan"], "classifier_rate": 1e-2}
for _stage in ("extractor", "sketch", "image", "appearance", "coarse", "coarse_fusion"):
    SMALL[f"deepfaceediting stage {_stage}"] = SMALL["deepfaceediting"]


# --- what the commands of a paper read ------------------------------------------------------------


class Kind(NamedTuple):
    """Of papers that read the same.

    Attributes:
        train: arguments of `train`, for a folder of photos.
        edit: writes what `edit` reads into a folder; its arguments.
        check: fails if a picture is not what `edit` makes of the files in that folder.
    """

    train: Callable[[Path], list[str]]
    edit: Callable[[Path], list[str]]
    check: Callable[[Path, Path], None]


def labels_of(photos: Path) -> Path:
    """The folder of the photos' label maps, of five classes."""
    return photos.with_name(f"{photos.name}-labels")


def attributes_of(photos: Path) -> Path:
    """The file of the photos' attributes."""
    return photos.with_name(f"{photos.name}-attributes.txt")


def write_photo(folder: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (75, 90, 3), np.uint8)
    Image.fromarray(values).save(folder / "photo.png")
    return folder / "photo.png"


def write_mask(folder: Path) -> Path:
    values = np.zeros((75, 90), np.uint8)
    values[20:40, 30:70] = 255
    Image.fromarray(values).save(folder / "mask.png")
    return folder / "mask.png"


def write_strokes(folder: Path) -> Path:
    (folder / "strokes.json").write_text("[[[32, 22], [60, 38]]]")
    return folder / "strokes.json"


def write_label_map(folder: Path) -> Path:
    values = np.arange(30, dtype=np.uint8).reshape(5, 6).repeat(15, 0).repeat(15, 1) % 5
    Image.fromarray(values).save(folder / "labels.png")
    return folder / "labels.png"


def check_that_the_hole_alone_changed(folder: Path, output: Path) -> None:
    files = (folder / "photo.png", folder / "mask.png", output)
    before, mask, after = (np.asarray(Image.open(path)) for path in files)
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert (before[mask > 0] != after[mask > 0]).mean() > 0.5


def check_that_a_photo_was_made(folder: Path, output: Path) -> None:
    photo = np.asarray(Image.open(output))
    assert photo.shape == (64, 64, 3)  # the reduced network's own
    assert photo.std() > 0


def check_that_a_face_was_made(folder: Path, output: Path) -> None:
    photo = np.asarray(Image.open(output))
    assert photo.shape == (112, 128, 3)  # the network's width, the photo's form
    assert photo.std() > 0


def check_that_the_background_stayed(folder: Path, output: Path) -> None:
    files = (folder / "photo.png", folder / "mask.png", output)
    before, mask, after = (np.asarray(Image.open(path)) for path in files)
    new = (before != after).any(axis=2)
    assert new[mask > 0].mean() > 0.5
    assert not new[:5].any()
    assert not new[-5:].any()


def check_that_a_square_was_made(folder: Path, output: Path) -> None:
    photo = np.asarray(Image.open(output))
    assert photo.shape == (128, 128, 3)  # the reduced generator's own
    assert photo.std() > 0


INPAINTING = Kind(
    lambda photos: [str(photos)],
    lambda folder: [str(write_photo(folder)), str(write_mask(folder))],
    check_that_the_hole_alone_changed,
)
FROM_LABELS = Kind(
    lambda photos: [str(photos), "--labels", str(labels_of(photos))],
    lambda folder: [str(write_label_map(folder))],
    check_that_a_photo_was_made,
)
FACES = Kind(
    FROM_LABELS.train,
    lambda folder: [
        str(write_photo(folder)),
        str(write_label_map(folder)),
        "--labels",
        str(write_label_map(folder)),
    ],
    check_that_a_face_was_made,
)
HAIR = Kind(
    lambda photos: [str(photos), "--hair", str(labels_of(photos)), "--threshold", "2"],
    lambda folder: [
        *(
            str(write_photo(folder)),
            str(write_mask(folder)),
            "--strokes",
            str(write_strokes(folder)),
        ),
        "--paste",
    ],
    check_that_the_background_stayed,
)
STROKES = Kind(
    lambda photos: [str(photos)],
    lambda folder: [
        *INPAINTING.edit(folder),
        *("--units", "0,3", "--steps", "2", "--refine-steps", "2"),
    ],
    check_that_a_square_was_made,
)
FASHION = Kind(
    lambda photos: [str(photos), "--parsings", str(labels_of(photos))],
    lambda folder: [
        *INPAINTING.edit(folder),
        str(write_label_map(folder)),
        *("--sketch", str(write_mask(folder)), "--colours", str(write_photo(folder))),
    ],
    check_that_the_hole_alone_changed,
)
SKETCHES = Kind(
    lambda photos: [str(photos), "--sketches", str(labels_of(photos))],
    lambda folder: [str(write_photo(folder)), "--sketch", f"mouth={write_mask(folder)}"],
    check_that_a_square_was_made,
)
ATTRIBUTES = Kind(
    lambda photos: [*FROM_LABELS.train(photos), "--attributes", str(attributes_of(photos))],
    lambda folder: [
        *(str(write_photo(folder)), "Blond_Hair", "Eyeglasses=1.5", "--have", "Young,No_Beard"),
        *("--labels", str(write_label_map(folder))),
    ],
    check_that_a_photo_was_made,
)
KINDS = {
    "partial_convolutions": INPAINTING,
    "region_normalization": INPAINTING,
    "pd_gan": INPAINTING,
    "dagan": FROM_LABELS,
    "maskgan": FACES,
    "michigan": HAIR,
    "semantic_photo_manipulation": STROKES,
    "deepfaceediting": SKETCHES,
    "fe_gan": FASHION,
    "maggan": ATTRIBUTES,
}
FILLING = [name for name, kind in KINDS.items() if kind is INPAINTING]


# --- runs -----------------------------------------------------------------------------------------


def centre_box(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """The same hole for all: losses that are divided by its share can be averaged."""
    known = np.ones((height, width), np.float32)
    known[height // 4 : -height // 4, width // 4 : -width // 4] = 0
    return known


class InDouble(Dataset):
    """Samples in float64, in which rounding does not hide what differs."""

    def __init__(self, samples: Dataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: Place) -> Sample:
        sample = self.samples[place]
        return {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v
            for k, v in sample.items()
        }


def trainer(
    name: str,
    photos: Path,
    output: Path,
    *,
    pretrained: Mapping[str, Path] = MappingProxyType({}),
    settings: dict[str, Any] | None = None,
    masks: MaskSource | None = None,
    double: bool = False,
    settled: bool = False,
    **options: Any,
) -> Trainer:
    """A trainer of a small network of a paper.

    `settled` leaves nothing to the power iterations of spectral norms, of which each part of a
    batch makes one.
    """
    paper = papers.find(name.split()[0])
    stage = paper.stage(name.partition(" stage ")[2] or None)
    config = papers.configure(paper.config, {**SMALL[name], **(settings or {})})
    torch.manual_seed(0)
    recipe = stage.recipe(paper.networks(config, stage.networks), config, pretrained=pretrained)
    parser = argparse.ArgumentParser()
    paper.train_arguments(parser)
    given = parser.parse_args(KINDS[paper.name].train(photos))
    given.masks, given.seed = masks or GeneratedMasks("boxes", (0.2, 0.2)), 0
    dataset = paper.dataset(given, config, stage)
    if double:
        recipe, dataset = recipe.double(), InDouble(dataset)
    if settled:
        iterated(recipe, 3000)
    given = {"iterations": 4, "batch": 2, "quiet": True, "log_every": 1, **options}
    return Trainer(paper, config, stage, recipe, dataset, Options(output=output, **given))


def worker(rank: int, folder: str, name: str, arguments: dict[str, Any]) -> None:
    """One of two processes that train together; as `torchrun` starts it."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": arguments.pop("port"),
    }  # fmt: skip
    torch.set_num_threads(1)
    trainer(name, output=Path(folder), **arguments).run()


def weights(folder: Path) -> dict[str, Tensor]:
    """What the newest checkpoint of a run holds."""
    tensors, _ = checkpoint.load(checkpoints(folder)[-1])
    return tensors


def log(folder: Path) -> list[dict[str, float]]:
    """Losses of each iteration of a run."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def train_in_two_processes(name: str, folder: Path, **arguments: object) -> None:
    arguments |= {"port": free_port()}
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=worker, args=(rank, str(folder), name, arguments))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]


def assert_same_gradients(one: Path, other: Path) -> None:
    """By Adam's first moments after one step; the step itself blows rounding errors up."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    moments = [key for key in first if key.endswith("exp_avg")]
    largest = {key.split(".")[1]: 0.0 for key in moments}
    for key in moments:
        name = key.split(".")[1]
        largest[name] = max(largest[name], first[key].abs().max().item())
    for key in moments:
        # A bias in front of an instance norm has no gradient but rounding.
        scale = max(first[key].abs().max().item(), 1e-3 * largest[key.split(".")[1]])
        assert scale > 0
        assert (first[key] - second[key]).abs().max().item() < 1e-6 * scale, key
