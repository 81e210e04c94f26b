"""FE-GAN: what the networks see, losses, data, and editing from Python."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.training import SMALL, trainer
from torch import nn

from torchext.models import papers
from torchext.models.blocks import iterated
from torchext.models.fe_gan import (
    COLOURS,
    NAMES,
    PAPER,
    FashionEditor,
    FashionPhotos,
    InpaintingGenerator,
    ParsingGenerator,
    colour_map,
    coloured,
    composed_mask,
    guidance,
    inpainting_input,
    parsing_input,
    read_parsing,
    sketch_of,
)
from torchext.models.fe_gan.data import bilateral_filtered, median_filtered
from torchext.models.fe_gan.labels import picture_of
from torchext.models.fe_gan.networks import (
    DownBlock,
    InpaintingDiscriminator,
    ParsingBlock,
    UpBlock,
)
from torchext.models.fe_gan.prepare import main as prepare
from torchext.models.fe_gan.training import ParsingCompletion
from torchext.models.masks import GeneratedMasks
from torchext.models.vgg import SYNTHESIS_TAPS, VGGFeatures

skimage = pytest.importorskip("skimage.data")

CLASSES, FACE = 5, 2
H, W = 64, 48


def configuration(**options: object) -> object:
    return papers.configure(PAPER.config, {**SMALL["fe_gan"], **options})


def drawn(N: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """A photo, its parsing, a hole, and what is drawn everywhere."""
    random = torch.Generator().manual_seed(seed)

    def unit(channels: int) -> torch.Tensor:
        return torch.rand(N, channels, H, W, generator=random, dtype=torch.float64)

    hole = torch.zeros(N, 1, H, W, dtype=torch.float64)
    hole[..., 10:40, 8:30] = 1
    return {
        "image": unit(3),
        "labels": (CLASSES * unit(1)).long(),
        "hole": hole,
        "sketch": (unit(1) > 0.8).double(),
        "colours": unit(3),
        "strokes": (unit(1) > 0.5).double(),
        "noise": torch.randn(N, 1, H, W, generator=random, dtype=torch.float64),
    }


def guided(given: dict[str, torch.Tensor]) -> object:
    return guidance(*(given[name] for name in ("hole", "sketch", "colours", "strokes", "noise")))


# --- what the networks see ------------------------------------------------------------------------


def test_stage_one_sees_26_channels_in_order():
    given = drawn()
    seen = parsing_input(given["labels"], guided(given), CLASSES)
    assert seen.shape == (1, CLASSES + 6, H, W)
    inside = given["hole"][0, 0] > 0
    labels = given["labels"][0, 0].masked_fill(inside, 0)
    for number in range(CLASSES):
        assert torch.equal(seen[0, number] > 0, labels == number)
    mask, sketch, noise, *colour = seen[0, CLASSES:]
    assert torch.equal(mask, 2 * given["hole"][0, 0] - 1)
    assert torch.equal(sketch > 0, (given["sketch"][0, 0] > 0) & inside)
    assert torch.equal(sketch.abs(), torch.ones_like(sketch))
    assert torch.equal(noise[inside], given["noise"][0, 0][inside])
    assert (noise[~inside] == -1).all()
    painted = inside & (given["strokes"][0, 0] > 0)
    for channel, values in zip(colour, given["colours"][0], strict=True):
        torch.testing.assert_close(channel[painted], 2 * values[painted] - 1)
        assert (channel[~painted] == -1).all()


def test_stage_two_sees_29_channels_in_another_order():
    given = drawn()
    guide = guided(given)
    seen = inpainting_input(given["labels"], given["image"], guide, CLASSES)
    assert seen.shape == (1, CLASSES + 9, H, W)
    assert torch.equal(seen[:, :CLASSES].argmax(dim=1, keepdim=True), given["labels"])
    inside = given["hole"][0, 0] > 0
    image = seen[0, CLASSES : CLASSES + 3]
    assert (image[:, inside] == -1).all()
    torch.testing.assert_close(image[:, ~inside], 2 * given["image"][0][:, ~inside] - 1)
    mask = seen[0, CLASSES + 3]
    assert torch.equal(mask > 0, ~inside & (given["labels"][0, 0] != 0))
    rest = torch.cat((guide.noise, guide.colour, guide.sketch), dim=1)
    assert torch.equal(seen[:, CLASSES + 4 :], rest)


def test_holes_are_not_read():
    given = drawn()
    guide = guided(given)
    inside = given["hole"] > 0
    image = given["image"].masked_fill(inside, torch.nan)
    labels = torch.where(inside, 1, given["labels"])
    one = parsing_input(labels, guide, CLASSES)
    assert torch.equal(one, parsing_input(given["labels"], guide, CLASSES))
    two = inpainting_input(given["labels"], image, guide, CLASSES)
    assert torch.equal(two, inpainting_input(given["labels"], given["image"], guide, CLASSES))


def test_a_guide_outside_the_hole_is_not_read():
    given = drawn()
    outside = given["hole"] == 0
    other = {**given, "colours": torch.where(outside, 0.5, given["colours"])}
    other["sketch"] = torch.where(outside, 1 - given["sketch"], given["sketch"])
    other["noise"] = torch.where(outside, 7.0, given["noise"])
    assert all(torch.equal(a, b) for a, b in zip(guided(given), guided(other), strict=True))


# --- networks -------------------------------------------------------------------------------------


def generator(**options: object) -> InpaintingGenerator:
    torch.manual_seed(0)
    network = InpaintingGenerator(4, classes=CLASSES, blocks=1, **options).double().eval()
    return iterated(network, 20)


def seen_by_stage_two(seed: int = 0) -> torch.Tensor:
    given = drawn(seed=seed)
    return inpainting_input(given["labels"], given["image"], guided(given), CLASSES)


def test_the_background_is_not_seen_by_the_image_encoder():
    network, seen = generator(), seen_by_stage_two()
    background = seen[:, CLASSES + 3 : CLASSES + 4] == 0
    other = seen.clone()
    image = other[:, CLASSES : CLASSES + 3]
    image.copy_(torch.where(background, 0.3, image))
    with torch.no_grad():
        before = network(seen)
        assert torch.equal(before, network(other))
        image.copy_(torch.where(background, image, -image))
        assert (network(other) - before).abs().max() > 1e-4


@pytest.mark.parametrize("channels", [slice(5, 6), slice(9, 10), slice(10, 13), slice(13, 14)])
def test_each_input_matters(channels):
    network, seen = generator(), seen_by_stage_two()
    other = seen.clone()
    other[:, channels] = -other[:, channels] + 0.1
    with torch.no_grad():
        assert (network(other) - network(seen)).abs().max() > 1e-5


def test_a_batch_gives_what_its_images_give():
    network = generator()
    both = torch.cat((seen_by_stage_two(0), seen_by_stage_two(1)))
    with torch.no_grad():
        singles = torch.cat([network(one[None]) for one in both])
        torch.testing.assert_close(network(both), singles, rtol=1e-9, atol=1e-9)


def test_the_papers_layer_has_no_one():
    one_plus, plain = generator(), generator(one_plus=False)
    plain.load_state_dict(one_plus.state_dict())
    with torch.no_grad():
        assert (one_plus(seen_by_stage_two()) - plain(seen_by_stage_two())).abs().max() > 1e-5


@pytest.mark.parametrize("dilation", [1, 3])
def test_other_dilations(dilation):
    network = generator(dilation=dilation)
    first, second = network.middle[0].conv_block[1], network.middle[0].conv_block[5]
    assert (first.dilation, second.dilation) == ((dilation, dilation), (1, 1))
    assert network(seen_by_stage_two()).shape == (1, 3, H, W)


def test_a_partial_convolution_counts_what_is_valid():
    torch.manual_seed(0)
    block = DownBlock(3, 4, 4, 2, 1).double()
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    mask = (torch.rand(2, 1, 12, 8) > 0.6).double()
    mask[1, :, 4:] = 0
    y, updated = block(x, mask)
    ones = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    count = F.conv2d(mask.expand_as(x), ones, stride=2, padding=1)
    valid = count.clamp(0, 1)
    raw = F.conv2d(x * mask, block.conv.weight, stride=2, padding=1)
    wanted = F.instance_norm(raw * (48 / (count + 1e-8)) * valid).relu()
    torch.testing.assert_close(y, wanted)
    assert torch.equal(updated, valid)
    assert 0 < updated.mean() < 1


def test_the_parsing_network_trains_with_batch_statistics():
    torch.manual_seed(0)
    network = ParsingGenerator(11, CLASSES, 4, 2, 1).double().train()
    x = torch.randn(2, 11, 16, 12, dtype=torch.float64)
    norm = network.model[1][1]
    raw = network.model[1][0](F.pad(x, (3,) * 4, mode="reflect"))
    network(x)
    torch.testing.assert_close(norm.running_mean, 0.1 * raw.mean(dim=(0, 2, 3)))
    variance = raw.transpose(0, 1).flatten(1).var(dim=1)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)


def test_a_block_without_weights_is_the_identity():
    block = ParsingBlock(4)
    nn.init.zeros_(block.conv_block[4][1].weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_an_up_block_holds_both_layers_and_runs_one():
    x = torch.randn(1, 8, 6, 5)
    doubling, last = UpBlock(8, 4, 4, 2, 1), UpBlock(8, 3, 7, 1, 3)
    assert doubling(x).shape == (1, 4, 12, 10)
    assert torch.equal(last(x), last.last_up(x))
    assert last(x).shape == (1, 3, 6, 5)
    assert doubling.last_up[1].weight.shape == (3, 8, 7, 7)


def test_the_discriminators_first_layer_has_two_names():
    network = InpaintingDiscriminator(8, 4)
    assert network.conv1 is network.features
    keys = [key for key in network.state_dict() if key.startswith(("conv1", "features"))]
    assert len(keys) == 6
    (maps,) = network(torch.randn(2, 8, 48, 32))
    shapes = [(4, 24, 16), (8, 12, 8), (16, 6, 4), (32, 5, 3), (1, 4, 2)]
    assert [tuple(x.shape[1:]) for x in maps] == shapes
    assert maps[-1].min() < 0  # a score, not behind a leaky ReLU's slope alone
    assert all((x > -0.2 * x.max() * 100).all() for x in maps[:-1])


@pytest.mark.parametrize(
    "make, x, message",
    [
        (
            lambda: ParsingGenerator(11, 5, 4, 2, 1),
            torch.zeros(1, 11, 18, 16),
            r"x: expected a height and width that are multiples of 4, got 18 x 16",
        ),
        (
            lambda: ParsingGenerator(11, 5, 4, 2, 1),
            torch.zeros(1, 12, 16, 16),
            r"x: expected the shape \(N, 11, H, W\), got \(1, 12, 16, 16\)",
        ),
        (
            lambda: InpaintingGenerator(4, classes=5),
            torch.zeros(1, 14, 16, 8),
            r"x: expected a height and width of at least 12, got 16 x 8",
        ),
        (
            lambda: InpaintingGenerator(4, classes=5),
            torch.zeros(1, 14, 18, 16),
            r"x: expected a height and width that are multiples of 4, got 18 x 16",
        ),
        (
            lambda: InpaintingDiscriminator(8, 4),
            torch.zeros(1, 8, 16, 32),
            r"x: expected a height and width of at least 24, got 16 x 32",
        ),
    ],
)
def test_bad_input_of_the_networks_is_named(make, x, message):
    with pytest.raises(ValueError, match=message):
        make()(x)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"face": 5}, "face: expected 0 to 4, got 5"),
        ({"size": (60, 48)}, r"size: .* multiples of 16, got \(60, 48\)"),
        ({"size": "64"}, r"size: expected a height and width"),
        ({"classes": 1}, "classes: expected at least 2, got 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        configuration(**options)


# --- losses ---------------------------------------------------------------------------------------


def recipe(stage: str, pretrained: dict[str, Path], **options: object) -> object:
    config = configuration(**options)
    chosen = PAPER.stage(stage)
    torch.manual_seed(0)
    made = chosen.recipe(PAPER.networks(config, chosen.networks), config, pretrained=pretrained)
    return made.double().eval()


def l1(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().mean()


def gram(x: torch.Tensor) -> torch.Tensor:
    _, C, h, w = x.shape
    return torch.einsum("nchw,ndhw->ncd", x, x) / (C * h * w)


def test_the_losses_of_stage_one(pretrained):
    made, batch = recipe("parsing", pretrained), drawn(2)
    seen = parsing_input(batch["labels"], guided(batch), CLASSES)
    fake = made.fakes(batch)
    assert torch.equal(fake, made.networks["parsing"](seen))
    terms = made.generator_loss(batch, fake)
    real = F.one_hot(batch["labels"][:, 0], CLASSES).movedim(-1, 1).double()
    network = made.networks["parsing_discriminator"]
    of_fake, of_real = (network(torch.cat((seen, x), dim=1)) for x in (fake, real))
    pairs = []
    for one, other in zip(of_fake, of_real, strict=True):
        pairs += list(zip(one[:-1], other[:-1], strict=True))
    logarithm = fake.log_softmax(dim=1).gather(1, batch["labels"])
    wanted = {
        "adversarial": -(of_fake[0][-1].mean() + of_fake[1][-1].mean()) / 2,
        "matching": 10 / 2 * sum(l1(a, b) for a, b in pairs),
        "l1": 10 * l1(fake, real),
        "cross_entropy": -10 * logarithm.mean(),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value, msg=name)
    terms = made.discriminator_loss(batch, fake)
    for name, sign, scales in (("fake", 1, of_fake), ("real", -1, of_real)):
        value = sum((1 + sign * scale[-1]).relu().mean() for scale in scales) / 2
        torch.testing.assert_close(terms[f"discriminator_{name}"], value)


def test_the_losses_of_stage_two(pretrained):
    made, batch = recipe("inpainting", pretrained), drawn(2)
    labels, M = batch["labels"], batch["hole"]
    seen = inpainting_input(labels, batch["image"], guided(batch), CLASSES)
    G, I = made.fakes(batch), 2 * batch["image"] - 1  # noqa: E741
    assert torch.equal(G, made.networks["generator"](seen))
    terms = made.generator_loss(batch, G)
    face = (labels == FACE).double()
    composed = (1 - M) * (labels != 0)
    mixed = I * face * (face - face * M) + G * face * (face * M)
    vgg = VGGFeatures(19, [*SYNTHESIS_TAPS, "relu2_2", "relu3_4", "relu4_4", "relu5_2"])
    vgg = vgg.load(pretrained["vgg19"]).double()
    whole, inside = (vgg(G), vgg(I)), (vgg(G * M), vgg(I * M))
    score = made.networks["discriminator"](torch.cat((seen, G), dim=1))[0][-1]
    real = made.networks["discriminator"](torch.cat((seen, I), dim=1))[0][-1]
    weights = zip((1, 2, 3, 4, 5), (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), strict=True)
    wanted = {
        "mask": 5 * l1(G * M, I * M),
        "foreground": l1(G * composed, I * composed),
        "face": 50 * l1(G * face, I * face),
        "variation": 10 * (mixed.diff(dim=2).abs().mean() + mixed.diff(dim=3).abs().mean()),
        "vgg": 0.05
        * sum(w * l1(whole[0][f"relu{i}_1"], whole[1][f"relu{i}_1"]) for i, w in weights),
        "style": 200
        * sum(
            l1(gram(inside[0][tap]), gram(inside[1][tap]))
            for tap in ("relu2_2", "relu3_4", "relu4_4", "relu5_2")
        ),
        "adversarial": -0.001 * score.mean(),
    }
    assert terms.keys() == wanted.keys()
    for name, value in wanted.items():
        assert value != 0
        torch.testing.assert_close(terms[name], value, msg=name)
    terms = made.discriminator_loss(batch, G)
    torch.testing.assert_close(terms["discriminator_fake"], (1 + score).relu().mean())
    torch.testing.assert_close(terms["discriminator_real"], (1 - real).relu().mean())


def test_vgg_is_not_needed_where_its_losses_are_off():
    made = recipe("inpainting", {}, vgg_weight=0, style_weight=0)
    terms = made.generator_loss(drawn(), made.fakes(drawn()))
    assert not {"vgg", "style"} & terms.keys()


def test_weights_and_rates_begin_as_published():
    config = papers.configure(PAPER.config, {**SMALL["fe_gan"], "beta1": 0.0, "rate": 1e-4})
    torch.manual_seed(0)
    networks = PAPER.networks(config, PAPER.stage("parsing").networks)
    made = ParsingCompletion(networks, config)
    weight = networks["parsing"].model[9][0].weight
    fans = weight.shape[0] * 9 + weight.shape[1] * 9
    assert weight.std().item() == pytest.approx(0.02 * (2 / fans) ** 0.5, rel=0.05)
    assert (networks["parsing"].model[-2].bias == 0).all()
    hidden = networks["parsing_discriminator"].discriminator_0.model1[0][0].weight_orig
    assert hidden.std().item() < 0.02
    for name, rate in (("generator", 1e-4), ("discriminator", 4e-4)):
        assert {made.learning_rates(epoch, 9)[name] for epoch in (0, 19, 49)} == {rate}
        assert made.optimizers[name].defaults["betas"] == (0.0, 0.9)
    assert [phase.optimizers for phase in made.phases(0)] == [("generator",), ("discriminator",)]


def test_stage_two_leaves_the_parsing_network_as_it_is(photos, pretrained, tmp_path):
    run = trainer("fe_gan", photos, tmp_path, pretrained=pretrained, iterations=2)
    before = {k: v.clone() for k, v in run.recipe.networks["parsing"].state_dict().items()}
    run.run()
    after = run.recipe.networks["parsing"].state_dict()
    assert all(value.equal(after[key]) for key, value in before.items())


# --- sketches, colour maps, parsings --------------------------------------------------------------


def test_a_sketch_is_white_on_edges():
    image = torch.full((3, 40, 30), 0.1)
    image[:, 20:] = 0.9
    lines = sketch_of(image)
    assert lines.shape == (1, 40, 30)
    rows = lines[0].sum(dim=1).nonzero().flatten()
    assert 0 < len(rows) <= 2
    assert set(rows.tolist()) <= {19, 20}
    assert lines[0, rows[0], 5:25].min() == 1
    assert sketch_of(torch.full((3, 40, 30), 0.5)).sum() == 0


def test_filters_are_those_of_their_definitions():
    ndimage = pytest.importorskip("scipy.ndimage")
    image = torch.from_numpy(skimage.astronaut()[100:120, 200:216]).movedim(-1, 0).float()
    wanted = np.stack([ndimage.median_filter(c, 3, mode="nearest") for c in image.numpy()])
    assert np.array_equal(median_filtered(image).numpy(), wanted)
    values = np.pad(image.double().numpy(), ((0, 0), (3, 3), (3, 3)), mode="reflect")
    wanted = np.zeros((3, 20, 16))
    for y in range(20):
        for x in range(16):
            centre, total = values[:, y + 3, x + 3], 0.0
            for dy in range(-3, 4):
                for dx in range(-3, 4):
                    if dy * dy + dx * dx <= 9:
                        other = values[:, y + 3 + dy, x + 3 + dx]
                        colour = np.abs(other - centre).sum()
                        weight = np.exp(-(dy * dy + dx * dx) / 800) * np.exp(-(colour**2) / 800)
                        wanted[:, y, x] += weight * other
                        total += weight
            wanted[:, y, x] /= total
    np.testing.assert_allclose(bilateral_filtered(image.double()).numpy(), wanted, rtol=1e-9)


def test_a_colour_map_has_one_colour_for_each_class():
    image = torch.zeros(3, 20, 20)
    image[0, :, :10], image[1, :, 10:] = 0.6, 0.4
    image[2] = torch.rand(20, 20, generator=torch.Generator().manual_seed(0)) / 50
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    labels[:, 4:, :10], labels[:, 4:, 10:] = 3, 7
    made = colour_map(image, labels)
    assert (made[:, :4] == 0).all()  # the background
    for columns, channel, value in ((slice(10), 0, 0.6), (slice(10, 20), 1, 0.4)):
        part = made[:, 4:, columns]
        assert torch.equal(part, part[:, :1, :1].expand_as(part))
        assert part[channel, 0, 0] == pytest.approx(value, abs=0.05)
        assert part[1 - channel].max() < 0.05
    codes = made * 255
    torch.testing.assert_close(codes, codes.round())


def test_parsings_by_numbers_and_colours(tmp_path):
    numbers = np.arange(20, dtype=np.uint8).reshape(4, 5)
    labels = torch.from_numpy(numbers)[None, None].long()
    picture_of(labels[0]).save(tmp_path / "palette.png")
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    colours = (coloured(labels)[0] * 255).round().byte().movedim(0, -1).numpy()
    Image.fromarray(colours).save(tmp_path / "colours.png")
    for name in ("palette", "grey", "colours"):
        assert np.array_equal(np.asarray(read_parsing(tmp_path / f"{name}.png")), numbers), name
    assert len(NAMES) == len(COLOURS) == len(set(COLOURS)) == 20
    assert (NAMES[0], NAMES[13]) == ("background", "face")


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Three photos of the networks' size, and parsings."""
    made = {name: tmp_path / name for name in ("image", "labels")}
    for folder in made.values():
        folder.mkdir()
    picture = Image.fromarray(skimage.astronaut())
    for i in range(3):
        crop = picture.crop((60 * i, 0, 60 * i + 320, 426)).resize((W, H))
        crop.save(made["image"] / f"{i}.png")
        shades = crop.convert("L").point(lambda value: CLASSES * value // 256)
        shades.save(made["labels"] / f"{i}.png")
    return made


def photos_of(folders: dict[str, Path], **options: object) -> FashionPhotos:
    return FashionPhotos(folders, configuration(), GeneratedMasks("boxes", (0.2, 0.2)), **options)


def test_a_sample_has_all_that_the_networks_see(folders):
    data = photos_of(folders)
    sample = data[2, 1, 0]
    assert sample["labels"].dtype == torch.int64
    shapes = {"image": 3, "labels": 1, "sketch": 1, "colours": 3, "hole": 1, "strokes": 1}
    for name, channels in {**shapes, "noise": 1}.items():
        assert sample[name].shape == (channels, H, W), name
    for name in ("hole", "strokes", "sketch"):
        assert set(sample[name].unique().tolist()) == {0.0, 1.0}, name
    assert 0.2 <= sample["hole"].mean() < 0.25
    assert sample["strokes"].mean() < 0.2
    assert torch.equal(sample["colours"], colour_map(sample["image"], sample["labels"]))
    again, other = data[2, 1, 0], data[3, 1, 0]
    assert all(torch.equal(sample[name], again[name]) for name in sample if name != "name")
    for name in ("hole", "strokes", "noise"):
        assert not torch.equal(sample[name], other[name]), name


def test_prepared_files_give_what_photos_give(folders, tmp_path, capsys):
    command = [str(folders["image"]), "--parsings", str(folders["labels"]), "-o", str(tmp_path)]
    assert prepare([*command, "--classes", str(CLASSES)]) == 0
    assert "3 sketches and colour maps" in capsys.readouterr().out
    more = {"sketch": tmp_path / "sketches", "colours": tmp_path / "colours"}
    one, other = photos_of(folders)[0, 0, 1], photos_of({**folders, **more})[0, 0, 1]
    for name in one:
        assert np.array_equal(one[name], other[name]), name
    Image.new("L", (9, 9)).save(folders["labels"] / "1.png")
    assert prepare(command) == 1
    assert "labels/1.png: expected the size of" in capsys.readouterr().err


def test_strokes_and_masks_from_folders(folders, tmp_path):
    from torchext.models.masks import MaskFolder

    (tmp_path / "masks").mkdir()
    values = np.full((H, H), 255, np.uint8)
    values[10:20] = 0
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    data = photos_of(folders, strokes=MaskFolder(tmp_path / "masks", white="known"))
    assert torch.equal(data[0, 0, 0]["strokes"][0, :, 0].nonzero().flatten(), torch.arange(10, 20))


def test_a_number_that_is_no_class_is_named(folders):
    Image.new("L", (W, H), 9).save(folders["labels"] / "1.png")
    with pytest.raises(ValueError, match=r"labels/1\.png: expected labels from 0 to 4, got 9"):
        photos_of(folders)[0, 0, 1]


def test_a_missing_parsing_is_named(folders):
    (folders["labels"] / "2.png").unlink()
    with pytest.raises(ValueError, match=r"labels: expected a file 2\.\* in .*labels"):
        photos_of(folders)


def test_sketches_need_scikit_image(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.feature", None)
    with pytest.raises(ModuleNotFoundError, match="scikit-image: not installed"):
        photos_of(folders)[0, 0, 0]


# --- editing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def editor() -> FashionEditor:
    torch.manual_seed(0)
    networks = PAPER.networks(configuration(), ("parsing", "generator"))
    networks = {name: iterated(network.double()) for name, network in networks.items()}
    for network in networks.values():  # as if they had been trained
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2)
    for module in networks["parsing"].modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.zeros_(networks["parsing"].model[-2].bias)
    return FashionEditor(networks["parsing"], networks["generator"])


def asked(N: int = 1) -> dict[str, torch.Tensor]:
    given = drawn(N)
    wanted = ("image", "labels", "sketch", "colours", "strokes")
    return {"known": 1 - given["hole"], **{name: given[name] for name in wanted}}


def test_the_hole_alone_changes(editor):
    given = asked()
    image, labels = editor(**given)
    hole = (given["known"] == 0).expand_as(image)
    assert torch.equal(image[~hole], given["image"][~hole])
    assert (image[hole] != given["image"][hole]).all()
    assert image.min() >= 0
    assert image.max() <= 1
    assert labels.shape == (1, 1, H, W)
    assert len(labels.unique()) > 1


@pytest.mark.parametrize("change", ["sketch", "colours", "strokes", "seed"])
def test_each_guide_changes_the_hole(change, editor):
    given = asked()
    before = editor(**given)
    assert all(torch.equal(a, b) for a, b in zip(before, editor(**given), strict=True))
    if change == "seed":
        after = editor(**given, seed=1)
    else:
        after = editor(**{**given, change: 1 - given[change]})
    assert (after.image - before.image).abs().max() > 1e-6
    hole = given["known"] == 0
    assert torch.equal(after.image[:, :, ~hole[0, 0]], before.image[:, :, ~hole[0, 0]])


def test_nothing_drawn_is_nothing_in_the_inputs(editor):
    given = asked()
    bare = {name: given[name] for name in ("image", "labels", "known")}
    nothing = torch.zeros_like(given["known"])
    drawn_nowhere = {**bare, "sketch": nothing, "colours": given["colours"], "strokes": nothing}
    assert torch.equal(editor(**bare).image, editor(**drawn_nowhere).image)
    everywhere = {**bare, "colours": given["colours"]}
    with_ones = {**everywhere, "strokes": torch.ones_like(nothing)}
    assert torch.equal(editor(**everywhere).image, editor(**with_ones).image)


def test_an_edit_reads_no_hole_and_edits_batches(editor):
    given = asked(2)
    hole = given["known"] == 0
    result = editor(**given)
    other = {**given, "image": given["image"].masked_fill(hole, 0.5)}
    other["labels"] = torch.where(hole, 1, given["labels"])
    assert torch.equal(result.image, editor(**other).image)
    assert result.image.shape == (2, 3, H, W)


def test_stage_two_paints_by_the_parsing_of_stage_one(editor):
    given = asked()
    image, labels = editor(**given)
    noise = torch.randn(1, 1, H, W, generator=torch.Generator().manual_seed(0)).double()
    guide = guidance(1 - given["known"], given["sketch"], given["colours"], given["strokes"], noise)
    with torch.no_grad():
        made = editor.parsing(parsing_input(given["labels"], guide, CLASSES)).argmax(1)[:, None]
        painted = editor.generator(inpainting_input(made, given["image"], guide, CLASSES))
    assert torch.equal(labels, made)
    hole = (given["known"] == 0).expand_as(image)
    torch.testing.assert_close(image[hole], ((painted + 1) / 2)[hole])
    assert composed_mask(made, 1 - given["known"]).mean() < given["known"].mean()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"image": torch.zeros(3, H, W)}, ValueError, r"image: .*x\[None\] makes a batch"),
        ({"image": torch.full((1, 3, H, W), 2.0)}, ValueError, "image: expected values from 0"),
        ({"known": torch.ones(1, 1, 8, 8)}, ValueError, r"known: expected the shape \(1, 1, 64"),
        ({"labels": torch.zeros(1, 1, H, W)}, TypeError, "labels: expected"),
        (
            {"labels": torch.full((1, 1, H, W), 5)},
            ValueError,
            "labels: expected labels from 0 to 4, got 5",
        ),
        (
            {"labels": torch.zeros(1, 1, 8, 8, dtype=torch.long)},
            ValueError,
            r"labels: expected the shape \(1, 1, 64, 48\) of the image, got \(1, 1, 8, 8\)",
        ),
        ({"sketch": torch.ones(1, 3, H, W)}, ValueError, "sketch: expected the shape"),
        ({"strokes": torch.full((1, 1, H, W), 3.0)}, ValueError, "strokes: expected"),
        ({"colours": torch.ones(1, 1, H, W)}, ValueError, "colours: expected the shape"),
        ({"colours": torch.ones(1, 3, 8, 8)}, ValueError, "colours: expected the image's shape"),
        ({"colours": None}, ValueError, "strokes: expected colours with them, got none"),
    ],
)
def test_bad_edits_are_named(change, error, message, editor):
    with pytest.raises(error, match=message):
        editor(**{**asked(), **change})


def test_a_size_that_does_not_fit_is_named(editor):
    image, mask = torch.zeros(1, 3, 40, 48).double(), torch.zeros(1, 1, 40, 48)
    with pytest.raises(ValueError, match=r"image: .* multiples of 16, got 40 x 48"):
        editor(image, mask.long(), mask)
