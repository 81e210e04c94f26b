"""Strokes, unit ranking, and editing of files by semantic photo manipulation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support.training import SMALL, write_mask, write_photo
from torch import Tensor

from torchext.models import papers
from torchext.models.__main__ import main
from torchext.models.semantic_photo_manipulation import (
    PAPER,
    Config,
    PhotoEditor,
    ProgressiveGenerator,
    Stroke,
    UnitClass,
    add,
    class_values,
    compose,
    edited,
    keep_mask,
    networks,
    rank_units,
    read_classes,
    remove,
    restyle,
    style_values,
    unit_iou,
    unit_quantiles,
    write_classes,
)
from torchext.models.semantic_photo_manipulation.ranking import sampled_codes
from torchext.models.semantic_photo_manipulation.strokes import edit_region, without

SIZES = (16, 16, 12, 12, 8, 8, 6)


@pytest.fixture
def generator() -> ProgressiveGenerator:
    torch.manual_seed(0)
    return ProgressiveGenerator(sizes=SIZES).eval()


def box(top: int, left: int, size: int = 16, side: int = 128) -> Tensor:
    region = torch.zeros(1, 1, side, side)
    region[..., top : top + size, left : left + size] = 1
    return region


# --- strokes --------------------------------------------------------------------------------------


def test_a_soft_stroke_blends_units_inside_alone():
    code = torch.randn(2, 12, 8, 8)
    half = box(32, 48, 16)
    half[..., 32:48, 48:56] = 0  # half of the cell (2, 3)
    stroke = Stroke(half, (1, 4, 1), (2.0, -1.0, 3.0), alpha=0.8, pooling="average")
    found = edited(code, [stroke])
    wanted = code.clone()
    for unit, value in ((1, 3.0), (4, -1.0)):  # the last value of a unit counts, once
        wanted[:, unit, 2, 3] = 0.6 * code[:, unit, 2, 3] + 0.4 * value
    torch.testing.assert_close(found, wanted)
    assert edited(code, []) is code


def test_strokes_compose_as_one_after_the_other():
    """Blending twice equals blending once with A and V, also for fractions under a value."""
    random = torch.Generator().manual_seed(0)
    regions = [torch.rand(1, 1, 64, 64, generator=random) * (box(0, k, 40, 64)) for k in (0, 16)]
    strokes = [
        Stroke(regions[0], (0, 3), (2.0, -1.0), alpha=0.7, pooling="average"),
        Stroke(regions[1], (3, 5), 4.0, alpha=0.5, pooling="average"),
    ]
    code = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    wanted = edited(edited(code, strokes[:1]), strokes[1:])
    torch.testing.assert_close(edited(code, strokes), wanted, rtol=1e-5, atol=1e-6)
    alpha, value = compose(strokes, 6)
    assert alpha.isfinite().all()
    assert value.isfinite().all()
    assert not value[alpha == 0].any()
    assert alpha[1:3].sum() == 0


def test_any_painted_pixel_of_a_cell_counts_by_default():
    region = torch.zeros(1, 1, 100, 100)  # no multiple of 8
    region[..., 30, 61] = 1
    code = torch.ones(1, 3, 8, 8)
    changed = edited(code, [remove(region, (2,))]) != code
    assert changed.nonzero().tolist() == [[0, 2, 2, 4]]


def test_actions():
    region, values = box(0, 0), torch.arange(12.0)
    assert remove(region, (3, 5)).value == 0
    assert add(region, (3, 5), values).value == (3.0, 5.0)
    assert add(region, (3, 5), values, strength=1.5).value == (4.5, 7.5)
    assert restyle(region, (5, 3), values).value == (5.0, 3.0)
    assert without((3, 418, 5), (418,)) == (3, 5)


def test_style_is_the_mean_of_positive_activations_in_the_region():
    torch.manual_seed(0)
    code = torch.randn(1, 12, 8, 8)
    code[:, 7] = -1
    values = style_values(code, box(32, 48, 32), (2, 7))
    seen = code[0, 2, 2:4, 3:5].flatten()
    assert 0 < (seen > 0).sum() < 4
    torch.testing.assert_close(values[2], seen[seen > 0].mean())
    assert values[7] == 0  # nowhere positive
    assert values.nonzero().flatten().tolist() == [2]
    with pytest.raises(ValueError, match="region: expected painted pixels"):
        style_values(code, torch.zeros(1, 1, 128, 128), (2,))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"region": torch.zeros(1, 1, 8, 8) - 1}, "region: expected values from 0 to 1"),
        ({"region": torch.zeros(2, 1, 8, 8)}, r"region: expected the shape \(1, 1, H, W\)"),
        ({"region": torch.zeros(1, 3, 8, 8)}, r"region: expected the shape \(N, 1, H, W\)"),
        ({"units": ()}, "units: expected numbers from 0 on, at least one"),
        ({"units": (-1,)}, "units: expected numbers from 0 on"),
        ({"value": (1.0, 2.0)}, "value: expected one for each of 1 units, got 2"),
        ({"alpha": 1.5}, "alpha: expected 0 to 1, got 1.5"),
        ({"pooling": "mean"}, "pooling: expected 'max' or 'average'"),
    ],
)
def test_bad_strokes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        Stroke(**{"region": torch.ones(1, 1, 8, 8), "units": (0,), **change})


def test_a_unit_that_there_is_not_is_named():
    with pytest.raises(ValueError, match="units: expected 0 to 11, got 12"):
        edited(torch.zeros(1, 12, 8, 8), [remove(torch.ones(1, 1, 8, 8), (12,))])


@pytest.mark.parametrize("place", [(60, 50), (0, 0), (127, 127)])
def test_kept_region_is_that_of_scipy(place):
    ndimage = pytest.importorskip("scipy.ndimage")
    region = np.zeros((128, 128), np.float64)
    region[place[0] : place[0] + 9, place[1] : place[1] + 3] = 0.3  # any value above 0
    grown = ndimage.binary_dilation(region > 0, iterations=16).astype(np.float64)
    wanted = 1 - ndimage.gaussian_filter(grown, 4, mode="nearest")
    found = keep_mask(torch.from_numpy(region)[None, None])
    np.testing.assert_allclose(found[0, 0].numpy(), wanted, atol=1e-12)
    assert found.max() == 1  # far away exactly
    single = keep_mask(torch.from_numpy(region).float()[None, None])
    assert single.min() >= 0
    assert (single[0, 0].numpy() == 1).mean() == pytest.approx((wanted == 1).mean(), abs=0.02)


def test_no_stroke_keeps_all():
    assert keep_mask(torch.zeros(1, 1, 64, 64)).eq(1).all()
    assert keep_mask(box(8, 8), sigma=0).unique().tolist() == [0, 1]
    both = edit_region([remove(0.2 * box(0, 0), (0,)), remove(box(40, 40), (0,))])
    assert torch.equal(both, box(0, 0) + box(40, 40))


# --- units ----------------------------------------------------------------------------------------


def test_quantiles_are_exact(generator):
    codes = torch.cat([*sampled_codes(generator, 40, batch=7)])
    assert codes.shape == (40, 12, 8, 8)
    z = np.random.RandomState(1).standard_normal((40, 16))
    wanted = generator.run(torch.from_numpy(z).float()[:, :, None, None], last=4)
    torch.testing.assert_close(codes, wanted)
    for q in (0.99, 0.5, 0.0, 1.0):
        found = unit_quantiles(generator, quantile=q, samples=40, batch=7)
        torch.testing.assert_close(found, codes.movedim(1, 0).flatten(1).quantile(q, dim=1))


def left_half(image: Tensor) -> Tensor:
    """A "segmenter" whose class is the left half."""
    scores = torch.zeros_like(image[:, 0])
    scores[:, :, : image.shape[3] // 2 + 8] = 1
    return scores


def test_values_of_a_class_are_weighted_by_its_share_of_a_cell(generator):
    codes = torch.cat([*sampled_codes(generator, 10)])
    share = torch.tensor([1.0] * 4 + [0.5] + [0] * 3)  # 72 of 128 columns
    wanted = (codes * share).sum((0, 2, 3)) / (share.sum() * 80)
    torch.testing.assert_close(class_values(generator, left_half, samples=10), wanted)
    thresholds = torch.zeros(12)
    active = (codes > 0).float()
    both = (active * share).sum((0, 2, 3))
    either = torch.maximum(active, share.expand_as(active)).sum((0, 2, 3))
    found = unit_iou(generator, left_half, thresholds, samples=10)
    torch.testing.assert_close(found, both / either)
    with pytest.raises(ValueError, match="expected the class in some of 10 samples, found none"):
        class_values(generator, lambda image: torch.zeros_like(image[:, 0]), samples=10)
    with pytest.raises(ValueError, match=r"segment: expected a result of the shape \(8, H, W\)"):
        class_values(generator, lambda image: image, samples=10)


def test_ranking_agrees_with_each_units_own_effect():
    """Turned off alone where the class is, and on alone where it is not, by plain arithmetic."""
    torch.manual_seed(0)
    generator = ProgressiveGenerator(sizes=(16, 16, 12, 12)).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("wscale.b"):
                parameter.zero_()

    def bright(image: Tensor) -> Tensor:
        return torch.sigmoid(4 * image.mean(1))

    values = unit_quantiles(generator, samples=40)
    how = {"values": values, "start": torch.full((12,), 0.3), "samples": 40, "epochs": 20}
    losses = []
    found, effects = rank_units(
        generator, bright, progress=lambda _, loss: losses.append(loss), **how
    )
    code = torch.cat([*sampled_codes(generator, 40, batch=2)])
    measured = []
    with torch.no_grad():
        present = bright(generator.run(code, 5)) > 0.5
        cells = F.adaptive_max_pool2d(present.float(), 8)
        for unit in range(12):
            off, on = code.clone(), code.clone()
            off[:, unit] *= 1 - cells
            on[:, unit] = on[:, unit] * cells + values[unit] * (1 - cells)
            without_it, with_it = (bright(generator.run(c, 5)).mean() for c in (off, on))
            measured.append((with_it - without_it).item())
    assert {*found.units[:5]} == {*np.argsort(measured)[-5:].tolist()}
    assert np.corrcoef(effects.numpy(), measured)[0, 1] > 0.7, (effects, measured)
    assert sorted(found.units) == [*range(12)]
    assert effects[[*found.units]].diff().le(0).all()
    assert 0 <= effects.min() < 0.1 < effects.max() <= 1
    assert sum(losses[-1].values()) < sum(losses[0].values())
    assert len(losses) == 40
    again, _ = rank_units(generator, bright, **how)
    assert again.units == found.units
    with pytest.raises(ValueError, match=r"samples: expected at least batch \* accumulate, 20"):
        rank_units(generator, bright, samples=10)


def test_ranking_starts_from_the_overlap(generator):
    small = {"samples": 4, "batch": 2, "accumulate": 1, "epochs": 1}
    found, effects = rank_units(generator, left_half, **small)
    wanted = class_values(generator, left_half, samples=4, batch=2)
    torch.testing.assert_close(found.values, wanted)
    assert effects.max() > 0.9  # the largest began with 1


def test_classes_come_back_from_their_file(tmp_path):
    classes = {"tree": UnitClass((3, 1), torch.tensor([0.1, -2.5, 3.0, 1 / 3]))}
    write_classes(tmp_path / "classes.json", classes)
    (found,) = read_classes(tmp_path / "classes.json").values()
    assert found.units == (3, 1)
    assert torch.equal(found.values, classes["tree"].values)
    for text in ("[1]", "{", '{"tree": {"units": [9], "values": [1.0]}}', '{"tree": {}}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json: expected classes"):
            read_classes(tmp_path / "bad.json")


# --- one photo ------------------------------------------------------------------------------------


@pytest.fixture
def editor(generator: ProgressiveGenerator) -> PhotoEditor:
    config = papers.configure(Config, {"vgg_weight": 0.0, "dilation": 4, "sigma": 2.0})
    with torch.no_grad():
        code = generator.run(torch.randn(1, 16, 1, 1), last=4)
    photo = F.interpolate(torch.rand(1, 3, 16, 16), (128, 128), mode="bilinear")
    return PhotoEditor(generator, None, photo, config, code=code)


def test_undo_takes_the_last_stroke_back(editor):
    first, second = remove(box(0, 0), (1,)), add(box(32, 32), (2,), torch.ones(12))
    pictures = [editor.preview()]
    for stroke in (first, second):
        editor.paint(stroke)
        pictures.append(editor.preview())
    assert not torch.equal(pictures[1], pictures[2])
    assert editor.undo() is second
    assert torch.equal(editor.preview(), pictures[1])
    assert editor.undo() is first
    assert torch.equal(editor.preview(), pictures[0])
    assert editor.edited_code is editor.code
    assert editor.keep.eq(1).all()
    with pytest.raises(IndexError):
        editor.undo()


def test_the_final_picture_is_nearer_to_the_photo_and_keeps_the_edit(editor):
    editor.paint(add(box(40, 40, 40), range(12), torch.linspace(-3, 3, 12)))
    photo, keep = (editor.photo + 1) / 2, editor.keep
    plain, final = editor.preview(), editor.render(steps=60)

    def outside(picture: Tensor) -> float:
        return ((picture - photo).abs() * keep).mean().item()

    assert outside(final) < 0.95 * outside(plain)
    mixed = editor.composite(final)
    assert torch.equal(mixed[(keep == 1).expand_as(mixed)], photo[(keep == 1).expand_as(mixed)])
    assert torch.equal(mixed[(keep == 0).expand_as(mixed)], final[(keep == 0).expand_as(mixed)])
    assert final.min() >= 0
    assert final.max() <= 1


def test_the_interactive_picture_needs_one_forward(editor):
    with pytest.raises(ValueError, match="expected a call of prepare before"):
        editor.show()
    editor.prepare(steps=3)
    unedited = editor.show()
    editor.paint(remove(box(40, 40, 40), range(6)))
    shown = editor.show()
    assert not torch.equal(shown, unedited)
    mask = edit_region(editor.strokes)
    with torch.no_grad():
        wanted = (editor.tuned(editor.edited_code, mask) + 1) / 2
    assert torch.equal(shown, wanted)


def test_what_an_editor_does_not_take(editor, generator):
    with pytest.raises(ValueError, match=r"region: expected the photo's size \(128, 128\)"):
        editor.paint(remove(torch.ones(1, 1, 64, 64), (0,)))
    with pytest.raises(ValueError, match="units: expected 0 to 11, got 12"):
        editor.paint(remove(box(0, 0), (12,)))
    assert not editor.strokes
    photo = torch.rand(1, 3, 128, 128)
    with pytest.raises(ValueError, match="encoder, code: expected one of them"):
        PhotoEditor(generator, None, photo)
    with pytest.raises(ValueError, match=r"code: expected the shape \(1, 12, 8, 8\)"):
        PhotoEditor(generator, None, photo, code=torch.zeros(1, 12, 4, 4))
    with pytest.raises(ValueError, match=r"photo: expected the shape \(1, 3, 128, 128\)"):
        PhotoEditor(generator, None, photo[..., :64], code=torch.zeros(1, 12, 8, 8))
    with pytest.raises(ValueError, match="image: expected values from 0 to 1"):
        PhotoEditor(generator, None, photo * 2 - 1, code=torch.zeros(1, 12, 8, 8))


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> list[str]:
    """The command line up to what is edited, with a photo and a mask beside it."""
    config = papers.configure(Config, SMALL[PAPER.name])
    torch.manual_seed(0)
    papers.save(tmp_path / "networks.safetensors", PAPER, config, networks(config))
    write_photo(tmp_path)
    write_mask(tmp_path)
    how = ["--checkpoint", str(tmp_path / "networks.safetensors"), "--refine-steps", "1"]
    return [PAPER.name, "edit", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out.png"), *how]


def run(saved: list[str], mask: Path | None, *more: object) -> int:
    given = [*saved[:3], *([] if mask is None else [str(mask)]), *saved[3:]]
    return main([*given, "--steps", "3", *map(str, more)])


def test_several_strokes_of_a_file(saved, tmp_path, capsys):
    values = np.linspace(-2, 2, 16).tolist()
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"tree": {"units": [7, 5, 2], "values": values}}))
    folder = tmp_path / "strokes"
    folder.mkdir()
    write_mask(folder)
    Image.open(tmp_path / "photo.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(
        folder / "other.png"
    )
    strokes = [
        {"mask": "mask.png", "units": [0, 1]},
        {"mask": "mask.png", "action": "add", "class": "tree", "count": 2, "strength": 2},
        {
            "mask": "mask.png", "action": "restyle", "units": [3], "alpha": 0.5,
            "reference": "other.png", "reference_mask": "mask.png", "pooling": "average",
        },
    ]  # fmt: skip
    (folder / "strokes.json").write_text(json.dumps(strokes))
    pictures = []
    for count in (1, 2, 3):
        (folder / "some.json").write_text(json.dumps(strokes[:count]))
        more = ("--strokes", folder / "some.json", "--classes", classes, "--variant", "none")
        assert run(saved, None, *more) == 0
        pictures.append(np.asarray(Image.open(tmp_path / "out.png")).astype(int))
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    assert run(saved, None, "--strokes", folder / "some.json", "--classes", classes) == 0
    assert "mean difference outside the strokes" in capsys.readouterr().out


def test_units_of_a_class_or_of_the_options_do_the_same(saved, tmp_path, capsys):
    classes = tmp_path / "classes.json"
    values = np.linspace(-2, 2, 16).tolist()
    classes.write_text(json.dumps({"tree": {"units": [7, 5, 2, 1], "values": values}}))
    pictures = []
    for more in (
        ("--class", "tree", "--classes", classes, "--count", "2", "--exclude", "5"),
        ("--units", "7,2"),
    ):
        assert run(saved, tmp_path / "mask.png", *more, "--variant", "none") == 0
        pictures.append(np.asarray(Image.open(tmp_path / "out.png")))
    assert np.array_equal(*pictures)
    assert run(saved, tmp_path / "mask.png", "--units", "7", "--action", "add") == 0
    assert "units take their 0.99 quantile over 200 samples" in capsys.readouterr().out


def test_pasted_pixels_are_the_files_own_away_from_the_strokes(saved, tmp_path):
    options = ("--units", "0,3", "--paste", "--variant", "interactive")
    assert run(saved, tmp_path / "mask.png", *options) == 0
    before, after = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("photo", "out"))
    assert before.shape == after.shape
    changed = (before != after).any(axis=2)
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 0
    assert changed[mask].mean() > 0.9
    assert not changed[:, :7].any()  # left of the middle square
    assert not changed[-1].any()
    assert 0.1 < changed.mean() < 0.9


def test_variants_of_the_perturbations(saved, tmp_path):
    results = set()
    for more in ((), ("--perturbed", "all"), ("--additive",), ("--variant", "interactive")):
        assert run(saved, tmp_path / "mask.png", "--units", "0", *more) == 0
        results.add((tmp_path / "out.png").read_bytes())
    assert len(results) == 4


def test_features_of_vgg(saved, tmp_path, pretrained, capsys):
    config = papers.configure(Config, {**SMALL[PAPER.name], "vgg_weight": 1.0})
    papers.save(tmp_path / "networks.safetensors", PAPER, config, networks(config))
    mask, more = tmp_path / "mask.png", ("--units", "0")
    assert run(saved, mask, *more, "--vgg", tmp_path / "absent.pth") == 1
    assert "expected torchvision's VGG16" in capsys.readouterr().err
    assert run(saved, mask, *more, "--vgg", pretrained["vgg16"]) == 0
    first = (tmp_path / "out.png").read_bytes()
    assert run(saved, mask, *more, "--without-vgg") == 0
    assert (tmp_path / "out.png").read_bytes() != first


@pytest.mark.parametrize(
    "more, message",
    [
        ((), "units, class: expected one of them"),
        (("--units", "a"), "--units: expected numbers such as 5,9,120, got 'a'"),
        (("--units", "16"), "units: expected some from 0 to 15"),
        (("--units", "3", "--exclude", "3"), "that are not excluded"),
        (("--class", "tree"), "--class: expected one of [] in --classes, got 'tree'"),
        (("--units", "0", "--steps", "-1"), "--steps: expected at least 0, got -1"),
        (("--units", "0", "--alpha", "2"), "alpha: expected 0 to 1, got 2.0"),
        (("--units", "0", "--strength", "-1"), "strength: expected a number from 0 on"),
        (("--units", "0", "--action", "restyle"), "reference: expected one, for restyle"),
        (("--units", "0", "--reference", "x.png"), "reference: expected none but for restyle"),
        (("--units", "0", "--strokes", "x.json"), "mask: expected a mask or --strokes"),
    ],
)
def test_bad_options_are_named(more, message, saved, tmp_path, capsys):
    assert run(saved, tmp_path / "mask.png", *more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "strokes.json: expected JSON"),
        ("[]", "expected a list of strokes, at least one"),
        ("[3]", "stroke 0: expected an object, got 3"),
        ('[{"units": [0]}]', "stroke 0: expected a mask"),
        ('[{"mask": "mask.png", "units": [0], "colour": 1}]', "got 'colour'"),
        ('[{"mask": "mask.png", "units": ["a"]}]', "units: expected numbers from 0 on"),
        ('[{"mask": "mask.png", "units": [0], "action": "draw"}]', "got 'draw'"),
        ('[{"mask": "absent.png", "units": [0]}]', "absent.png: No such file"),
        ('[{"mask": "small.png", "units": [0]}]', "expected the photo's size, 90 x 75 pixels"),
        ('[{"mask": "edge.png", "units": [0]}]', "expected something painted in the photo's mid"),
        ('[{"mask": "out.png", "units": [0]}]', "--output: "),
    ],
)
def test_bad_stroke_files_are_named(text, message, saved, tmp_path, capsys):
    Image.new("L", (10, 10), 255).save(tmp_path / "small.png")
    edge = np.zeros((75, 90), np.uint8)
    edge[:, :3] = 255
    Image.fromarray(edge).save(tmp_path / "edge.png")
    (tmp_path / "strokes.json").write_text(text)
    if "out.png" in text:
        write_mask(tmp_path).rename(tmp_path / "out.png")
    assert run(saved, None, "--strokes", tmp_path / "strokes.json") == 1
    assert message in capsys.readouterr().err


def test_a_checkpoint_without_an_encoder_is_named(saved, tmp_path, capsys):
    config = papers.configure(Config, SMALL[PAPER.name])
    only = networks(config, ["generator"])
    papers.save(tmp_path / "networks.safetensors", PAPER, config, only)
    assert run(saved, tmp_path / "mask.png", "--units", "0") == 1
    assert "expected generator and encoder, found ['generator']" in capsys.readouterr().err
