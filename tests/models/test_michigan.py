"""MichiGAN: conditions, levels near hair, orientations, losses and data."""

import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.training import SMALL
from torch.utils.flop_counter import FlopCounterMode

from torchext import backend
from torchext.models import papers
from torchext.models.blocks import iterated
from torchext.models.michigan import (
    PAPER,
    AppearanceEncoder,
    Hair,
    HairEditor,
    HairGenerator,
    HairPhotos,
    OrientationInpainter,
    colour_code,
    complete_orientation,
    draw_noise,
    edited,
    fill_orientation,
    fill_strokes,
    guidance_of,
    losses,
    orientation_of,
)
from torchext.models.michigan.data import grown_stroke
from torchext.models.michigan.hair import round_hole
from torchext.models.michigan.inpainting import two_channel
from torchext.models.michigan.networks import background_mask, expansions
from torchext.models.michigan.regions import BAND, boxes
from torchext.orientation import convert_photo

skimage = pytest.importorskip("skimage.data")


def portrait(size: int = 64) -> torch.Tensor:
    """(1,1,H,W): hair above a face and on both sides of it."""
    hair = torch.zeros(1, 1, size, size)
    part = size // 8
    hair[..., part : 6 * part, 2 * part : 7 * part] = 1
    hair[..., 3 * part :, 3 * part : 6 * part] = 0
    return hair


def generator(**options: object) -> HairGenerator:
    torch.manual_seed(0)
    network = HairGenerator(4, "normal", **{"padding": 16, **options}).double().eval()
    iterated(network)  # else all is far beyond the tanh
    for name, value in network.named_buffers():  # as if it had been trained
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.2)
    return network


def inputs(hair: torch.Tensor, seed: int = 1) -> list[torch.Tensor]:
    """Of a generator, with the hair as target and reference."""
    torch.manual_seed(seed)
    N, _, H, W = hair.shape
    image, other, noise = (torch.rand(N, 3, H, W, dtype=torch.float64) for _ in range(3))
    code = torch.randint(256, (N, 1, H, W))
    orientation = two_channel(colour_code(code).double(), hair.double())
    return [other * 2 - 1, hair, image * 2 - 1, hair, orientation, noise]


# --- near hair ------------------------------------------------------------------------------------


def corner() -> torch.Tensor:
    hair = torch.zeros(1, 1, 64, 64)
    hair[..., 0, 63] = 1
    return hair


@pytest.mark.parametrize(
    "hair",
    [
        portrait(),
        corner(),
        torch.zeros(1, 1, 64, 64),
        torch.ones(1, 1, 64, 64),
        torch.cat((corner(), portrait())),
    ],
    ids=["portrait", "corner", "none", "all", "batch"],
)
@pytest.mark.parametrize("padding", [0, 16])
def test_levels_near_hair_equal_levels_everywhere(hair, padding):
    network = generator(padding=padding)
    given = inputs(hair)
    with torch.no_grad():
        near = network(*given)
        network.near_hair = False
        everywhere = network(*given)
    assert near.shape == given[0].shape
    assert 0.01 < everywhere.std() < 0.5
    torch.testing.assert_close(near, everywhere, rtol=1e-10, atol=1e-10)


def test_gradients_near_hair_equal_those_everywhere():
    network = generator()
    given = inputs(portrait())
    gradients = []
    for near in (True, False):
        network.near_hair = near
        orientation = given[4].clone().requires_grad_()
        y = network(*given[:4], orientation, given[5])
        wanted = [orientation, network.up_3.conv_0.weight_orig, network.fc.layer1.weight]
        gradients.append(torch.autograd.grad(y.square().sum(), wanted))
    for near, everywhere in zip(*gradients, strict=True):
        assert everywhere.abs().max() > 0
        torch.testing.assert_close(near, everywhere, rtol=1e-8, atol=1e-10)


def test_levels_near_hair_take_fewer_operations():
    # One that is large enough for the borders of boxes to be few; other masks than in a table.
    hair = portrait(256)
    counts = []
    for near in (True, False):
        network = generator(padding=0)
        network.near_hair = near
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), backend.use("reference"), counter:
            network(*inputs(hair))
        counts.append(counter.get_total_flops())
    assert counts[0] < 0.75 * counts[1]


def test_levels_are_computed_everywhere_where_norms_look_at_the_whole_map(monkeypatch):
    seen = []
    module = sys.modules[HairGenerator.__module__]
    monkeypatch.setattr(module, "added_inside", lambda *given: seen.append(given))
    instance = generator(norm_G="spectralspadeinstance3x3")
    with torch.no_grad():
        assert instance(*inputs(portrait())).isfinite().all()
    assert generator().train()(*inputs(portrait().repeat(2, 1, 1, 1))).isfinite().all()
    assert not seen


def test_boxes_cover_what_is_wanted_and_leave_the_face_out():
    size = 4 * BAND
    near = portrait(size)[0, 0] > 0
    found = boxes(near, size, size)
    covered = torch.zeros(size, size, dtype=torch.bool)
    for box in found:
        assert not box.of(covered).any()
        box.of(covered).fill_(True)
    assert covered[near].all()
    around = near.any(dim=0).float().mean() * near.any(dim=1).float().mean()
    assert covered.float().mean() < 0.8 * around  # the face is wider than a band
    assert boxes(torch.zeros(9, 9, dtype=torch.bool), 18, 18) == []


# --- conditions -----------------------------------------------------------------------------------


def test_codes_give_the_same_as_two_channels():
    network, given = generator(), inputs(portrait())
    code = torch.randint(256, (1, 1, 64, 64)).double()
    doubled = code * (2 * torch.pi / 255)
    pair = torch.cat((doubled.sin(), doubled.cos()), dim=1) * given[1]
    with torch.no_grad():
        one = network(*given[:4], code, given[5])
        two = network(*given[:4], pair, given[5])
    torch.testing.assert_close(one, two)


def test_each_condition_matters_and_no_more():
    network, given = generator(), inputs(portrait())
    with torch.no_grad():
        before = network(*given)

        def changed(place: int, value: torch.Tensor) -> torch.Tensor:
            other = list(given)
            other[place] = value
            return (network(*other) - before).abs().amax(dim=(0, 1))

        hair = given[1]
        outside = torch.where(hair > 0, given[0], -given[0])
        assert changed(0, outside).max() < 1e-12  # the reference's background is not read
        assert changed(0, -given[0]).max() > 1e-4
        under = torch.where(background_mask(hair, 5) > 0, given[2], -given[2])
        assert changed(2, under).max() < 1e-12  # nor the target's hair, and what is near it
        assert changed(2, -given[2]).max() > 1e-4
        assert changed(4, -given[4]).max() > 1e-4
        far = background_mask(hair, 7)[0, 0] > 0
        assert changed(4, -given[4])[far].max() < 1e-12  # structure stays in the hair
        assert changed(5, 1 - given[5]).max() > 1e-6


def test_the_background_is_fuzzy_in_training():
    assert expansions(512, 0.05) == [21, 23, 25, 27, 29]
    assert expansions(40, 0.05) == [1, 1, 3, 5, 7]
    network = generator().train()
    sides, given = set(), inputs(corner())
    for _ in range(40):
        conditions = network.conditions(*given)
        sides.add(int((conditions.background[0, 0, 0] == 0).sum()) * 2 - 1)
    assert sides == set(expansions(64, 0.05))
    hair = portrait().double()
    network = generator(random_expand=0.0).train()
    assert network.conditions(*inputs(hair)).background.equal(1 - hair)


def test_an_appearance_without_hair_is_zero_and_passes_no_nan():
    encoder = AppearanceEncoder(2)
    image = torch.rand(3, 3, 64, 96).requires_grad_()
    reference, target = torch.ones(3, 1, 64, 96), torch.ones(3, 1, 64, 96)
    reference[0] = 0
    target[1] = 0
    y = encoder(image, reference, target)
    assert y.shape == (3, 32, 2, 3)
    assert not y[:2].any()
    assert y[2].any()
    y.square().sum().backward()
    assert image.grad.isfinite().all()
    assert not image.grad[:2].any()
    with pytest.raises(ValueError, match="reference_norm: expected 'instance' or 'none'"):
        AppearanceEncoder(2, "batch")


def test_most_up_samples_once_more():
    torch.manual_seed(0)
    network = iterated(HairGenerator(2, "most", padding=0)).eval()
    hair = torch.zeros(1, 1, 128, 128)
    hair[..., 30:90, 20:100] = 1
    given = [x.float() for x in inputs(hair)]
    with torch.no_grad():
        near = network(*given)
        network.near_hair = False
        assert near.shape == (1, 3, 128, 128)
        torch.testing.assert_close(near, network(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "place, change, message",
    [
        (0, lambda x: x[..., :32], "reference: expected the target's shape"),
        (0, lambda x: x.byte(), "reference: expected a floating-point tensor"),
        (1, lambda x: x * 2, "hair_reference: expected values"),
        (2, lambda x: x[:, :1], r"target: expected the shape \(N, 3, H, W\)"),
        (3, lambda x: x[..., :32], "hair_target: expected the shape"),
        (4, lambda x: x.repeat(1, 2, 1, 1), r"orientation: expected the shape \(1, 2, 64, 64\)"),
        (5, lambda x: x[:, :2], r"noise: expected the shape \(N, 3, H, W\)"),
    ],
)
def test_bad_input_of_the_generator_is_named(place, change, message):
    given = inputs(portrait())
    given[place] = change(given[place])
    with pytest.raises((TypeError, ValueError), match=message):
        generator()(*given)


def test_a_size_that_does_not_fit_is_named():
    given = [x[..., :48] for x in inputs(portrait())]
    with pytest.raises(ValueError, match="target: expected a height and width that make multiples"):
        generator()(*given)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 500}, "size: expected a size"),
        ({"padding": 10}, "padding: expected a size"),
        ({"upsampling": "least"}, "upsampling: expected one of"),
        ({"expand": 4}, "expand: expected an odd number"),
        ({"inpainting_size": 30}, "inpainting_size: expected a multiple of 4"),
        ({"edge": 0.5}, "edge: expected at least 1"),
        ({"bank": "sobel"}, "bank: expected"),
        ({"fuzzy_shape": 0.7}, "fuzzy_shape: expected 0 to below 0.5"),
        ({"margin": -1.0}, "margin: expected at least 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        papers.configure(PAPER.config, options)


# --- orientations ---------------------------------------------------------------------------------


def test_colours_of_angles():
    code = torch.arange(256).view(1, 1, 16, 16)
    rgb = colour_code(code)
    assert (255 * rgb[0, :, 0, 0]).round().tolist() == [255, 127, 127]  # a horizontal strand
    pair = two_channel(rgb, torch.ones(1, 1, 16, 16))
    angle = torch.atan2(pair[:, 0], pair[:, 1]) / 2 % torch.pi
    difference = (angle - code[:, 0] * (torch.pi / 255) + torch.pi / 2) % torch.pi - torch.pi / 2
    assert difference.abs().max() < 0.01  # of 8 bits


@pytest.mark.parametrize("size", [32, 16])
def test_what_is_known_of_an_orientation_stays(size):
    torch.manual_seed(0)
    rgb, noise = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    hair = portrait(32)
    hole = hair * (torch.arange(32) < 16)
    network = OrientationInpainter(4, 4, 1).eval()
    filled = fill_orientation(network, hole, rgb, noise, size)
    assert filled[:, :, hole[0, 0] == 0].equal(rgb[:, :, hole[0, 0] == 0])
    assert not filled[:, :, hole[0, 0] == 1].isclose(rgb[:, :, hole[0, 0] == 1]).all()
    # What lies in the hole is not read.
    other = torch.where(hole > 0, 1 - rgb, rgb)
    torch.testing.assert_close(fill_orientation(network, hole, other, noise, size), filled)


def test_strokes_are_seen():
    torch.manual_seed(0)
    rgb, noise, hair = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64), portrait()
    network = OrientationInpainter(5, 4, 1).eval()
    stroke = torch.zeros(1, 1, 64, 64)
    stroke[..., 20:23, 20:40] = 1
    guidance = guidance_of(stroke, hair)
    assert (guidance.hole >= guidance.stroke).all()
    given = (network, guidance.hole, rgb, noise, guidance.stroke)
    one = fill_strokes(*given, guidance.rgb, 64)
    other = fill_strokes(*given, 1 - guidance.rgb, 64)
    assert not one.isclose(other).all()
    assert one[:, :, guidance.hole[0, 0] == 0].equal(rgb[:, :, guidance.hole[0, 0] == 0])


def test_an_orientation_that_is_known_needs_no_network():
    rgb, hair = torch.rand(1, 3, 32, 32), portrait(32)
    assert complete_orientation(rgb, hair, hair, rgb, None).equal(rgb)


@pytest.mark.parametrize("shape", [(1, 4, 30, 32), (1, 4, 4, 32), (1, 5, 32, 32)])
def test_bad_input_of_the_inpainter_is_named(shape):
    with pytest.raises(ValueError, match="x: expected"):
        OrientationInpainter(4, 2, 1)(torch.rand(shape))


def test_holes_are_circles_inside_what_is_known_and_what_is_not():
    hair = portrait()[0, 0]
    known = hair * (torch.arange(64) < 40)
    hole = round_hole(hair, known, 0.2, 100)
    assert ((hole == 0) | (hole == 1)).all()
    assert (hole <= hair).all()
    assert (hole[(hair > 0) & (known == 0)] == 1).all()
    inside = int((hole * known).sum())
    assert 0 < inside <= 1.1 * 0.2 * known.sum()
    # As another photo's hair leaves it: nothing lies outside the own.
    beyond = torch.ones(64, 64)
    assert (round_hole(hair, beyond, 0.2, 0) <= hair).all()
    assert round_hole(hair, torch.zeros(64, 64), 1.0, 0).equal(hair)


def test_noise_has_several_scales():
    noise = draw_noise(128, 96, np.random.default_rng(0))
    assert noise.shape == (3, 128, 96)
    assert abs(noise.mean() - 0.5) < 0.05
    assert noise.equal(draw_noise(128, 96, np.random.default_rng(0)))
    coarse = torch.nn.functional.avg_pool2d(noise, 16)
    assert coarse.std() > 3 * 0.25 / 5 / 16  # white noise alone would vanish in averages


def test_a_grown_stroke_follows_the_strands():
    hair = torch.ones(1, 64, 64)
    for code in (0, 60, 128, 200):
        rgb = colour_code(torch.full((1, 1, 64, 64), code))[0]
        (line,) = grown_stroke(rgb, hair, 32 * 64 + 32, np.random.default_rng(0))
        (x0, y0), (x1, y1) = line[0], line[-1]
        angle = math.atan2(y0 - y1, x1 - x0) % math.pi
        difference = (angle - code * math.pi / 255 + math.pi / 2) % math.pi - math.pi / 2
        assert abs(difference) < 0.02
        assert math.hypot(x1 - x0, y1 - y0) >= 20
        assert (32.0, 32.0) in line
    assert grown_stroke(rgb, torch.zeros(1, 64, 64), 0, np.random.default_rng(0)) == []


# --- losses ---------------------------------------------------------------------------------------


def test_the_edge_lies_on_both_sides():
    hair = torch.zeros(1, 1, 100, 100)
    hair[..., 50:, :] = 1
    found = losses.edge(hair, 100, 100)
    assert found[0, 0, :, 50].nonzero().flatten().tolist() == list(range(48, 53))
    weight = losses.HairHinge(2.0).weight(hair, torch.zeros(1, 1, 100, 100))
    assert weight.unique().tolist() == [1, 2]


def test_grey_has_no_colour_and_hair_alone_counts():
    grey = torch.rand(2, 1, 8, 8).expand(-1, 3, -1, -1) * 2 - 1
    assert losses.lab(grey)[:, 1:].abs().max() < 0.02
    assert losses.lab(torch.ones(1, 3, 1, 1))[0, 0] == pytest.approx(100)
    a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    hair = (torch.arange(8) < 4).float().expand(2, 1, 8, 8)
    pasted = torch.where(hair > 0, a, b)
    assert losses.background(pasted, b, hair) == 0
    assert losses.background(pasted, a, hair) > 0
    assert losses.average_colour(pasted, a, hair, hair) == 0
    assert losses.inside((pasted - a).abs(), hair) == 0
    none = torch.zeros(2, 1, 8, 8)
    assert losses.average_colour(a, b, none, none) == 0
    assert losses.inside(a, none) == 0


def test_terms_that_are_off_can_be_put_on(photos, pretrained, tmp_path):
    from support.training import trainer

    terms = ("confidence", "content", "style", "background", "rgb", "average")
    settings = {f"{term}_weight": 1.0 for term in terms}
    losses_of = {}
    for name, more in (("whole", {}), ("hair", {"hair_only": True, "fuzzy_shape": 0.1})):
        run = trainer(
            "michigan", photos, tmp_path / name, pretrained=pretrained, iterations=1,
            settings={**settings, **more},
        )  # fmt: skip
        losses_of[name] = run.run()
        assert losses_of[name].keys() >= set(terms)
        assert all(value > 0 for term, value in losses_of[name].items() if term != "adversarial")
    assert losses_of["whole"]["matching"] != losses_of["hair"]["matching"]


def test_the_orientation_networks_stay_as_they_are(photos, pretrained, tmp_path):
    from support.training import trainer

    run = trainer("michigan", photos, tmp_path, pretrained=pretrained, iterations=2)
    network = run.recipe.networks["orientation"]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    run.run()
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())


# --- data -----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Two photos and their hair masks, whose values are 0 and 1, and 0 and 255."""
    for name in ("photos", "hair"):
        (tmp_path / name).mkdir()
    for i, (left, white) in enumerate(((60, 1), (200, 255))):
        picture = Image.fromarray(skimage.astronaut()).crop((left, 0, left + 160, 160))
        picture.save(tmp_path / "photos" / f"{i}.png")
        mask = (portrait(160)[0, 0].numpy() * white).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / "hair" / f"{i}.png")
    return {"image": tmp_path / "photos", "hair": tmp_path / "hair"}


def configuration(**options: object) -> object:
    return papers.configure(PAPER.config, {**SMALL["michigan"], "margin": 0.0, **options})


def test_masks_of_any_values(folders):
    data = HairPhotos(folders, configuration(flip=0.0))
    first, second = data[0, 0, 0], data[0, 0, 1]
    assert first["hair"].equal(second["hair"])
    assert first["hair"].unique().tolist() == [0, 1]
    for sample in (first, second):
        assert sample["hole"].unique().tolist() == [0, 1]
        assert (sample["hole"] <= sample["hair"]).all()
        assert not (sample["rgb"] * (1 - sample["hair"])).any()
        assert sample["shape"].equal(sample["hair"])
    assert first["noise"].equal(data[0, 0, 0]["noise"])
    assert not first["noise"].equal(data[1, 0, 0]["noise"])


def test_orientations_from_photos_equal_those_from_files(folders, tmp_path):
    (tmp_path / "maps").mkdir()
    for i in range(2):
        convert_photo(
            folders["image"] / f"{i}.png", tmp_path / "maps" / f"{i}.png",
            folders["hair"] / f"{i}.png",
        )  # fmt: skip
    found = HairPhotos(folders, configuration())
    read = HairPhotos({**folders, "orientation": tmp_path / "maps"}, configuration())
    for place in ((0, 0, 0), (0, 1, 1), (2, 0, 1)):
        same = (found[place]["rgb"] == read[place]["rgb"]).float().mean()
        assert same > 0.999  # a code may lie at a step


def test_a_mirror_image_mirrors_angles(folders):
    pairs = {}
    for flip in (0.0, 1.0):
        for mirror in (True, False):
            data = HairPhotos(folders, configuration(flip=flip, mirror_angles=mirror))
            sample = data[0, 0, 0]
            pairs[flip, mirror] = two_channel(sample["rgb"][None], sample["hair"][None])[0]
    plain, mirrored = pairs[0.0, True], pairs[1.0, True].flip(-1)
    tolerance = {"rtol": 0, "atol": 0.03}  # of 8 bits
    torch.testing.assert_close(mirrored[0], -plain[0], **tolerance)
    torch.testing.assert_close(mirrored[1], plain[1], **tolerance)
    torch.testing.assert_close(pairs[1.0, False].flip(-1), plain, **tolerance)  # by oversight


def test_a_fuzzy_shape_grows_and_shrinks(folders):
    data = HairPhotos(folders, configuration(fuzzy_shape=0.1))
    areas = []
    for position in range(12):
        sample = data[0, position, 0]
        areas.append(float(sample["shape"].sum() - sample["hair"].sum()))
        larger = sample["shape"] >= sample["hair"]
        assert larger.all() or (sample["shape"] <= sample["hair"]).all()
    assert min(areas) < 0 < max(areas)


def test_strokes_of_training_lie_in_their_holes(folders):
    data = HairPhotos(folders, configuration(), "orientation")
    for place in ((0, 0, 0), (0, 1, 1), (1, 0, 0)):
        sample = data[place]
        assert sample["stroke"].any()
        assert (sample["stroke"] <= sample["stroke_hole"]).all()
        assert (sample["stroke_hole"] <= sample["hair"]).all()
        assert not (sample["stroke_rgb"] * (1 - sample["stroke"])).any()
        assert (sample["hole"] <= sample["hair"]).all()


def test_a_photo_without_hair_trains(folders, pretrained, tmp_path):
    for path in folders["hair"].iterdir():
        Image.new("L", (160, 160)).save(path)
    data = HairPhotos(folders, configuration(), "orientation")
    sample = data[0, 0, 0]
    assert not sample["hole"].any()
    assert not sample["stroke"].any()


def test_a_missing_mask_is_named(folders):
    (folders["hair"] / "1.png").unlink()
    with pytest.raises(ValueError, match=r"hair: expected a file 1\.\* in "):
        HairPhotos(folders, configuration())


def test_a_mask_of_another_size_is_left_out(folders):
    Image.new("L", (10, 10)).save(folders["hair"] / "0.png")
    data = HairPhotos(folders, configuration())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert data[0, 0, 0]["name"].endswith("1.png")
    assert "expected the size of" in str(caught[0].message)


# --- edits in Python ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def editor() -> HairEditor:
    torch.manual_seed(0)
    networks = PAPER.networks(papers.configure(PAPER.config, SMALL["michigan"]))
    for network in networks.values():
        iterated(network).eval()
    return HairEditor(networks["generator"], networks["orientation"], networks["strokes"], size=32)


def photograph(name: str = "astronaut") -> torch.Tensor:
    picture = Image.fromarray(getattr(skimage, name)()).resize((64, 64))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255


def test_each_edit_changes_the_hair(editor):
    hair = portrait()
    target = Hair(photograph(), hair)
    other = Hair(photograph("coffee"), hair.flip(-1))
    same = editor(target)
    assert same.shape == (1, 3, 64, 64)
    assert editor(target).equal(same)
    assert editor(target, structure=target, appearance=target, shape=hair).equal(same)
    stroke = torch.zeros(1, 1, 64, 64)
    stroke[..., 12:16, 20:50] = 1
    edits = {
        "shape": {"shape": hair.flip(-1)},
        "structure": {"structure": other},
        "strokes": {"strokes": stroke},
        "appearance": {"appearance": other},
        "background": {"background": other.photo},
        "seed": {"seed": 1},
        "all": {"shape": hair.flip(-1), "structure": other, "appearance": other, "strokes": stroke},
    }
    results = {name: editor(target, **given) for name, given in edits.items()}
    shown = [same, *results.values()]
    for i, one in enumerate(shown):
        assert one.isfinite().all()
        assert all(not one.equal(another) for another in shown[:i])


def test_an_edit_without_changes_is_the_generators_own(editor):
    target, network = Hair(photograph(), portrait()), editor.generator
    code = orientation_of(target.photo, target.mask)
    orientation = two_channel(colour_code(code) * target.mask, target.mask)
    noise = draw_noise(64, 64, np.random.default_rng(0))[None]
    image = target.photo * 2 - 1
    with torch.no_grad():
        y = network(image, target.mask, image, target.mask, orientation, noise)
    torch.testing.assert_close(editor(target), (y + 1) / 2)


def test_networks_are_left_as_they_were():
    torch.manual_seed(0)
    networks = PAPER.networks(papers.configure(PAPER.config, SMALL["michigan"]))
    network = networks["generator"]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    HairEditor(network)(Hair(photograph(), portrait()))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(value.equal(after[key]) for key, value in before.items())


def test_a_map_of_angles_stands_for_the_structure(editor):
    target = Hair(photograph(), portrait())
    source = Hair(photograph("coffee"), portrait())
    code = orientation_of(source.photo, source.mask)
    given = editor(target, structure=source, orientation=code)
    assert given.equal(editor(target, structure=source))


def test_what_was_edited():
    hair, shape = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    hair[..., 4, 4] = 1
    shape[..., 10, 10] = 1
    assert edited(hair, shape).sum() == 2
    assert edited(hair, shape, 1).sum() == 18
    with pytest.raises(ValueError, match="margin: expected at least 0"):
        edited(hair, shape, -1)


def test_bad_edits_are_named(editor):
    hair = portrait()
    target = Hair(photograph(), hair)
    alone = HairEditor(editor.generator, size=32)
    assert alone(target).isfinite().all()  # all is known
    cases = [
        (editor, {"shape": hair * 2}, "shape: expected values"),
        (editor, {"shape": hair[..., :32]}, "shape: expected the shape"),
        (editor, {"appearance": Hair(photograph()[..., :32], hair)}, "appearance: expected one"),
        (editor, {"structure": Hair(photograph(), hair[:, :0])}, "structure's mask: expected"),
        (editor, {"orientation": hair}, "orientation: expected uint8"),
        (editor, {"strokes": hair[..., :32]}, "strokes: expected the shape"),
        (editor, {"background": photograph()[..., :32]}, "background: expected one photo"),
        (alone, {"shape": hair.flip(-1)}, "shape: expected hair only where the structure has"),
        (alone, {"strokes": hair}, "strokes: expected none, as there is no network"),
    ]
    for one, given, message in cases:
        with pytest.raises(ValueError, match=message):
            one(target, **given)
