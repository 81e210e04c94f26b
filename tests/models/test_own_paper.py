"""A paper of one's own stands on the ground as those built here do, without a change to it.

Label maps, photos and orientation maps, two stages, the generator's step first, arguments of its
own.
"""

import argparse
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from torchext.models import checkpoint, papers, pictures
from torchext.models.__main__ import main
from torchext.models.data import PairedImages
from torchext.models.geometry import Field, Preparation
from torchext.models.loop import Loop
from torchext.models.losses import AdversarialLoss
from torchext.models.paper import Paper, Stage, chosen
from torchext.models.recipe import AdversarialRecipe, Batch, Passed, Phase, Recipe, Terms
from torchext.models.schedules import constant_then_linear
from torchext.models.training import checkpoints

CLASSES = 3


@dataclass(frozen=True)
class Network:
    width: int = 4
    size: tuple[int, ...] = (16, 24)


@dataclass(frozen=True)
class Loss:
    l1_weight: float = 10.0


@dataclass(frozen=True)
class Schedule:
    rate: float = 1e-2
    batch: int = 2
    epochs: int | None = 2
    iterations: int | None = None


@dataclass(frozen=True)
class Config:
    network: Network = Network()
    loss: Loss = Loss()
    schedule: Schedule = Schedule()


class Painter(nn.Module):
    """Labels, an angle and a feature map -> a picture."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(CLASSES + 2 + width, 4 * width, 3, padding=1)
        self.last = nn.Conv2d(4 * width, 3, 3, padding=1)

    def forward(self, condition: Tensor, features: Tensor) -> Tensor:
        x = torch.cat((condition, features), dim=1)
        return torch.sigmoid(self.last(F.leaky_relu(self.first(x), 0.2)))


def condition(batch: Mapping[str, Any]) -> Tensor:
    labels = F.one_hot(batch["labels"][:, 0], CLASSES).movedim(-1, 1).float()
    angle = 2 * batch["angle"]
    return torch.cat((labels, angle.sin(), angle.cos()), dim=1)


def networks(config: Config, names: Collection[str] | None = None) -> dict[str, nn.Module]:
    width = config.network.width
    builders = {
        "encoder": lambda: nn.Conv2d(CLASSES + 2, width, 3, padding=1),
        "generator": lambda: Painter(width),
        "discriminator": lambda: nn.Conv2d(CLASSES + 2 + 3, 1, 3),
    }
    return chosen(builders, names)


class Encoding(Recipe):
    """Features from which the photo's mean can be read."""

    def __init__(self, networks: dict, config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        parameters = networks["encoder"].parameters()
        self.optimizers["encoder"] = torch.optim.Adam(parameters, config.schedule.rate)

    def phases(self, iteration: int) -> list[Phase]:
        return [Phase(("encoder",), self.loss)]

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return {"encoder": self.config.schedule.rate * constant_then_linear(epoch, 5, 5)}

    def loss(self, batch: Batch, passed: Passed) -> Terms:
        features = self.networks["encoder"](condition(batch)).mean(dim=1, keepdim=True)
        return {"mean": F.mse_loss(features, batch["image"].mean(dim=1, keepdim=True))}

    def samples(self, batch: Batch) -> list[Tensor]:
        return [batch["image"], batch["labels"].float().expand(-1, 3, -1, -1) / CLASSES]


ORDER: list[str] = []


class Painting(AdversarialRecipe):
    first = "generator"
    fresh_fakes = True

    def __init__(self, networks: dict, config: Config, **options: Any) -> None:
        super().__init__(networks, config, **options)
        self.adversarial = AdversarialLoss("hinge")
        for name in ("generator", "discriminator"):
            parameters = networks[name].parameters()
            self.optimizers[name] = torch.optim.Adam(parameters, config.schedule.rate)

    def learning_rates(self, epoch: int, iteration: int) -> dict[str, float]:
        return dict.fromkeys(("generator", "discriminator"), self.config.schedule.rate)

    def fakes(self, batch: Batch) -> Tensor:
        ORDER.append("fakes" if torch.is_grad_enabled() else "fakes without gradient")
        with torch.no_grad():
            features = self.networks["encoder"](condition(batch))
        return self.networks["generator"](condition(batch), features)

    def _score(self, batch: Batch, image: Tensor) -> Tensor:
        return self.networks["discriminator"](torch.cat((condition(batch), image), dim=1))

    def generator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        ORDER.append("generator")
        return {
            "adversarial": self.adversarial.generator(self._score(batch, fakes)),
            "l1": self.config.loss.l1_weight * F.l1_loss(fakes, batch["image"]),
        }

    def discriminator_loss(self, batch: Batch, fakes: Tensor) -> Terms:
        ORDER.append("discriminator")
        assert not fakes.requires_grad
        real = self.adversarial.real(self._score(batch, batch["image"]))
        return {"discriminator": real + self.adversarial.fake(self._score(batch, fakes))}

    def samples(self, batch: Batch) -> list[Tensor]:
        return [batch["image"], self.fakes(batch)]


def train_arguments(parser: argparse.ArgumentParser) -> None:
    for name in FIELDS:
        parser.add_argument(f"--{name}", type=Path, required=True)


FIELDS = {"image": Field(), "labels": Field("labels"), "angle": Field("angle")}


def dataset(options: argparse.Namespace, config: Config, stage: Stage) -> PairedImages:
    folders = {name: getattr(options, name) for name in FIELDS}
    preparation = Preparation(tuple(config.network.size), "crop", flip=0.5)
    return PairedImages(folders, FIELDS, preparation, seed=options.seed)


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("labels", type=Path)
    parser.add_argument("--direction", type=float, default=0.0)


def edit(networks: dict[str, nn.Module], config: Config, options: argparse.Namespace) -> None:
    labels = torch.from_numpy(np.array(FIELDS["labels"].read(options.labels))).long()[None, None]
    batch = {"labels": labels, "angle": torch.full(labels.shape, options.direction)}
    features = networks["encoder"](condition(batch))
    painted = networks["generator"](condition(batch), features)[0]
    pictures.write(pictures.to_picture(painted), options.output)
    print(f"wrote {options.output}")


def load_published(content: Mapping[str, Any], config: Config, source: object) -> dict:
    built = networks(config, ["generator"])
    checkpoint.load_strictly(built["generator"], checkpoint.weights(content), source)
    return built


def example(config: Config) -> dict[str, tuple]:
    inputs = torch.rand(1, CLASSES + 2, *config.network.size)
    return {"generator": (inputs, torch.rand(1, config.network.width, *config.network.size))}


PAPER = Paper(
    name="own",
    title="A paper of one's own",
    does="label map to picture",
    config=Config,
    networks=networks,
    stages=(
        Stage("features", ("encoder",), Encoding),
        Stage("picture", ("generator", "discriminator"), Painting, needs=("encoder",)),
    ),
    dataset=dataset,
    train_arguments=train_arguments,
    load_published=load_published,
    example=example,
    edit=edit,
    edit_arguments=edit_arguments,
    options=lambda state: {},
    published="the generator",
)


@pytest.fixture(autouse=True)
def added() -> Iterator[None]:
    papers.add(PAPER)
    try:
        yield
    finally:
        del papers._added["own"]


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """As the command line takes them."""
    random = np.random.default_rng(0)
    for i in range(6):
        labels = random.integers(0, CLASSES, (4, 6)).repeat(8, 0).repeat(8, 1)
        photo = np.stack([80 * labels, 255 - 80 * labels, 40 * labels], -1)
        for name, values in (("image", photo), ("labels", labels), ("angle", 20 * labels)):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(path)
    return [word for name in FIELDS for word in (f"--{name}", str(tmp_path / name))]


def train(folders: list[str], output: Path, stage: str, *more: str) -> int:
    command = ["own", "train", *folders, "-o", str(output), "--stage", stage]
    return main([*command, "--workers", "0", "--device", "cpu", "--log-every", "1", *more])


def test_from_the_first_stage_to_an_edit(folders, tmp_path, capsys):
    first, second, resumed = (tmp_path / name for name in ("first", "second", "resumed"))
    assert train(folders, first, "features", "--iterations", "4") == 0
    assert train(folders, second, "picture", "--iterations", "4") == 1
    assert "expected a file with encoder, which stage picture uses" in capsys.readouterr().err
    given = ["--checkpoint", str(checkpoints(first)[-1])]
    ORDER.clear()
    assert train(folders, second, "picture", "--iterations", "40", *given) == 0
    step = ["fakes", "generator", "fakes without gradient", "discriminator"]
    assert ORDER[: 2 * len(step)] == 2 * step
    losses = [json.loads(line)["l1"] for line in (second / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    assert train(folders, resumed, "picture", "--iterations", "15", *given) == 0
    changed = ["--set", "batch=2", "--set", "epochs=9"]  # the schedule may change
    assert train(folders, resumed, "picture", "--iterations", "40", "--resume", *changed) == 0
    (whole, _), (parts, _) = (checkpoint.load(checkpoints(path)[-1]) for path in (second, resumed))
    assert whole.keys() == parts.keys()
    assert all(value.equal(parts[key]) for key, value in whole.items())
    encoder, _ = checkpoint.load(checkpoints(first)[-1])
    key = "networks.encoder.weight"
    assert whole[key].equal(encoder[key])  # used as it was

    labels = np.arange(24).reshape(4, 6).repeat(5, 0).repeat(5, 1) % CLASSES
    Image.fromarray(labels.astype(np.uint8)).save(tmp_path / "map.png")
    output = tmp_path / "out.png"
    command = ["own", "edit", str(tmp_path / "map.png"), "-o", str(output), "--direction", "0.5"]
    assert main([*command, "--checkpoint", str(checkpoints(second)[-1])]) == 0
    painted = np.asarray(Image.open(output)).astype(float)
    assert painted.shape == (20, 30, 3)
    means = [painted[labels == label].mean(0) for label in range(CLASSES)]
    assert means[0][0] < means[1][0] < means[2][0]  # red rises with the label, as trained
    assert (tmp_path / "second").glob("samples-*.png")


def test_a_resume_is_bound_by_networks_and_losses(folders, tmp_path, capsys):
    assert train(folders, tmp_path / "run", "features", "--iterations", "1") == 0
    for setting, message in (
        ("width=6", "width was 4 there, 6 is given"),
        ("l1_weight=3", "l1_weight was 10.0 there, 3.0 is given"),
    ):
        more = ("--iterations", "2", "--resume", "--set", setting)
        assert train(folders, tmp_path / "run", "features", *more) == 1
        assert message in capsys.readouterr().err
    more = ("--iterations", "2", "--resume", "--checkpoint", str(checkpoints(tmp_path / "run")[-1]))
    assert train(folders, tmp_path / "run", "picture", *more) == 1
    assert "a checkpoint of stage features, not of picture" in capsys.readouterr().err


def test_info_and_the_table(capsys):
    assert main(["own", "info"]) == 0
    text = capsys.readouterr().out
    assert "generator: 1,747 parameters" in text
    assert "size = (16, 24)" in text
    assert "features trains encoder; picture trains generator, discriminator (needs encoder" in text
    assert main([]) == 0
    text = capsys.readouterr().out
    assert "own" in text
    assert "label map to picture" in text
    for name in papers.NAMES:
        assert name in text


@pytest.mark.parametrize(
    "more, message",
    [
        (["--stage", "other"], "stage: expected one of features (encoder), picture (generator,"),
        (["--set", "depth=3"], "depth: expected one of the options"),
        (["--pretrained", "vgg16=x"], "--pretrained: expected none, as nothing is needed"),
        (["--pretrained", "vgg16"], "--pretrained: expected NAME=FILE, got 'vgg16'"),
    ],
)
def test_bad_options(more, message, folders, tmp_path, capsys):
    assert train(folders, tmp_path / "run", "features", "--iterations", "1", *more) == 1
    assert message in capsys.readouterr().err


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="paper: expected a name other than"):
        papers.add(PAPER)


def test_a_loop_needs_no_folder():
    """As inside an edit, which adapts networks to one photo."""
    config = Config()
    torch.manual_seed(0)
    batch = {
        "image": torch.rand(2, 3, 16, 24),
        "labels": torch.randint(CLASSES, (2, 1, 16, 24)),
        "angle": torch.rand(2, 1, 16, 24),
        "name": ["a", "b"],
    }

    def weights(steps: list[int]) -> dict[str, Tensor]:
        torch.manual_seed(1)
        loop = Loop(Painting(networks(config), config), average=0.5)
        for count in steps:
            for _ in range(count):
                loop.step([loop.moved(batch)], epoch=0)
            state = loop.state()
            loop = Loop(Painting(networks(config), config), average=0.5)
            loop.load_state(state, "memory")
            loop.iteration = count
        return loop.state()

    whole, parts = weights([5]), weights([3, 2])
    assert whole.keys() == parts.keys()
    assert all(value.equal(parts[key]) for key, value in whole.items())


def test_phases_share_one_forward_unless_fakes_are_fresh():
    class Shared(Painting):
        fresh_fakes = False
        first = "discriminator"

    config = Config()
    loop = Loop(Shared(networks(config), config))
    batch = {
        "image": torch.rand(2, 3, 8, 8),
        "labels": torch.zeros(2, 1, 8, 8, dtype=torch.int64),
        "angle": torch.zeros(2, 1, 8, 8),
    }
    ORDER.clear()
    loop.step([batch], epoch=0)
    assert ORDER == ["fakes", "discriminator", "generator"]
    ORDER.clear()
    loop.step([batch, batch], epoch=0)  # parts share nothing
    assert ORDER.count("fakes") == 4
