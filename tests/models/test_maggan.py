"""MagGAN and STGAN beside the golden files: networks, attributes, regions, published files."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.recipe import draw
from support.training import SMALL
from torch import Tensor

from torchext.models import checkpoint, papers
from torchext.models.face_labels import BISENET_NAMES
from torchext.models.maggan import (
    ATTRIBUTES,
    CELEBA,
    INFLUENCE,
    PAPER,
    STGAN,
    AttributeClassifier,
    AttributeEditor,
    BiSeNet,
    Config,
    ConvGRUCell,
    MagGANGenerator,
    MultiLevelPatchDiscriminator,
    PatchDiscriminator,
    STGANDiscriminator,
    STGANGenerator,
    classify,
    convert_tensorflow_checkpoint,
    difference,
    gradient_penalty,
    hard_example_cross_entropy,
    influence_regions,
    influence_table,
    labels_of,
    mask_guided_reconstruction,
    networks,
    one_hot,
    overlay,
    parse,
    read_attributes,
    scattered,
    slide,
    target_of,
)
from torchext.models.maggan.editing import feathered
from torchext.models.maggan.parser import prepared, resize_labels
from torchext.models.maggan.photos import resize_bicubic
from torchext.models.maggan.prepare import from_tensorflow, main, read_tensorflow
from torchext.models.maggan.tensorflow import read_variables
from torchext.models.paper import configure
from torchext.models.pictures import to_picture

# Written by TensorFlow 2.21, with the values of `golden.recipe.draw` of each variable's name.
TENSORFLOW = Path(__file__).parent / "tensorflow" / "small.ckpt"
SHAPES = {"layers": 2, "width": 1, "attributes": "Male", "size": 8, "discriminator_layers": 2}
SHAPES |= {"discriminator_width": 1, "fc_width": 2, "model": "stgan"}


def small(**changes: object) -> Config:
    return configure(Config, {**SMALL["maggan"], **changes})


def generator(**changes: object) -> MagGANGenerator:
    torch.manual_seed(0)
    return networks(small(**changes), ["generator"])["generator"].eval()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- networks -------------------------------------------------------------------------------------


def count(**changes: object) -> dict[str, int]:
    with torch.device("meta"):
        built = networks(configure(Config, changes))
    return {name: papers.parameters(network) for name, network in built.items()}


def test_parameters_of_the_published_sizes():
    assert count(size=256)["generator"] == 79_482_867
    assert count(size=256)["discriminator"] == 61_498_254
    assert count()["discriminator"] == 61_498_254 + 2 * 661_633
    of_stgan = count(**STGAN)
    assert of_stgan["generator"] == 74_998_771
    assert of_stgan["discriminator"] == 44_718_990
    assert of_stgan["parser"] == 13_300_416
    wide = {**STGAN, "size": 384, "width": 48, "discriminator_width": 48, "fc_width": 512}
    assert (count(**wide)["generator"], count(**wide)["discriminator"]) == (42_303_891, 119_526_574)
    with torch.device("meta"):
        parts = STGANGenerator()
        keys = {n: len(x.state_dict()) for n, x in networks(configure(Config, STGAN)).items()}
        assert len(MagGANGenerator().state_dict()) == 104
    assert papers.parameters(parts.encoder) == 11_148_160
    assert papers.parameters(parts.stu) == 30_145_280
    assert papers.parameters(parts.decoder) == 33_705_331
    assert (keys["generator"], keys["discriminator"], keys["parser"]) == (88, 23, 191)


@pytest.mark.parametrize(
    "size, of_maggan, of_stgan", [(128, 19.7, 15.0), (256, 78.9, 60.1), (1024, 1262, 961)]
)
def test_operations_at_the_published_sizes(size, of_maggan, of_stgan):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for model, expected in (("maggan", of_maggan), ("stgan", of_stgan)):
        config = configure(Config, {"model": model, "size": size, "base_size": 128})
        with FakeTensorMode():
            built = networks(config, ["generator"])["generator"].eval()
            found = papers.floating_point_operations(built, PAPER.example(config)["generator"])
        assert found / 1e9 == pytest.approx(expected, rel=0.005)


def test_the_condition_acts_where_it_is_told():
    """With all else equal, pixels far from a region that is told keep their values."""
    network = generator(layers=2, size=64, norm="instance", shortcut_layers=1).double()
    for layer in network.decoder[:-1]:  # statistics of instances would carry it everywhere
        layer.norm.param_free_norm = torch.nn.Identity()
    x = random(1, 3, 64, 64).double() * 2 - 1
    att, condition = torch.zeros(1, 13).double(), torch.zeros(1, 13, 64, 64).double()
    before = network(x, att, condition)
    condition[:, 3, :8, :8] = 1
    changed = (network(x, att, condition) - before).abs().amax(dim=1)[0]
    assert changed[:8, :8].min() > 0
    assert changed[40:].max() == 0
    assert changed[:, 40:].max() == 0


def test_separate_widths_and_the_start_from_stgan():
    network = STGANGenerator(3, 4, 3, stu_layers=2, enc_dim=4, dec_dim=6, stu_dim=2)
    assert network(random(1, 3, 16, 24), torch.zeros(1, 3)).shape == (1, 3, 16, 24)
    assert [cell.up.out_channels for cell in network.stu] == [4, 2]
    assert [layer.conv.out_channels for layer in network.decoder] == [24, 12, 3]
    theirs = STGANGenerator(3, 4, 3, stu_layers=2)
    ours = MagGANGenerator(3, 4, 3, 2)
    ours.load_stgan(theirs)
    for key, value in theirs.state_dict().items():
        if not key.startswith("decoder"):
            assert value.equal(ours.state_dict()[key])


def test_one_graph_for_compilers():
    network = generator()
    inputs = random(1, 3, 64, 64), random(1, 13), random(1, 13, 64, 64)
    with torch.no_grad():
        expected = network(*inputs)
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*inputs), expected)
        exported = torch.export.export(network, inputs).module()
        torch.testing.assert_close(exported(*inputs), expected)


@pytest.mark.parametrize("size", [(1024, 1024), (96, 160)])
def test_photos_of_any_size(size):
    network = generator()
    x, condition = random(1, 3, *size), torch.zeros(1, 13, *size)
    with torch.no_grad():
        made = network(x * 2 - 1, torch.zeros(1, 13), condition)
    assert made.shape == (1, 3, *size)
    assert made.abs().max() <= 1
    assert made.std() > 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ConvGRUCell(2, 2, 2, norm="ln"), "norm: expected 'none', 'bn' or 'in', got 'ln'"),
        (lambda: ConvGRUCell(2, 2, 2, pass_state="x"), "pass_state: expected 'stu', 'gru'"),
        (lambda: ConvGRUCell(2, 2, 2, 4), "kernel_size: expected an odd number, got 4"),
        (lambda: STGANGenerator(stu_layers=3), "stu_layers: expected 4, one less than n_layers"),
        (lambda: STGANGenerator(one_more_conv=2), "one_more_conv: expected 0, 1 or 3, got 2"),
        (lambda: STGANDiscriminator(image_size=(64, 50)), "image_size: expected multiples of 32"),
        (lambda: STGANDiscriminator(image_size=32), "more than one pixel behind them, got 32"),
        (lambda: MultiLevelPatchDiscriminator(image_size=768), "base_size, 256, times a power"),
        (lambda: AttributeClassifier(image_size=100), "image_size: expected multiples of 32"),
        (lambda: MagGANGenerator(norm="layer"), "config_text: expected 'spade', 'batch'"),
        (lambda: PatchDiscriminator(n_layers=0), "n_layers: expected at least 1, got 0"),
        (lambda: small(attributes="Bald,Bold"), "attributes: expected attributes of CelebA"),
        (lambda: small(attributes="Bald,Bald"), "attributes: expected attributes, each once"),
        (lambda: small(size=100), "size: expected a multiple of 32, as the generator has 5"),
        (lambda: small(size=96), "size: expected base_size, 32, times a power of 2, got 96"),
        (lambda: small(condition="target"), "condition: expected 'difference' for maggan"),
        (lambda: small(regions="Bald:hair"), r"regions: expected rows such as 'Bald\+:hair\|hat'"),
        (lambda: small(regions="Bald+:fur"), "regions: expected parts of .* for Bald, got 'fur'"),
        (lambda: small(regions="Bold+:hair"), "regions: expected an attribute of CelebA"),
        (lambda: small(parser_crop=50), "parser_crop: expected a multiple of 32, got 50"),
        (lambda: small(warm_up=200), "warm_up: expected from 0 to below parser_iterations, 200"),
        (lambda: small(discriminator_steps=0), "discriminator_steps: expected at least 1, got 0"),
        (lambda: small(momentum=0), "momentum: expected above 0, at most 1, got 0"),
        (lambda: small(parser_threshold=1.0), "parser_threshold: expected a probability"),
    ],
)
def test_bad_options(make, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make()


def test_bad_inputs_of_networks():
    network = generator()
    x, att, condition = random(1, 3, 64, 64), torch.zeros(1, 13), torch.zeros(1, 13, 64, 64)
    with pytest.raises(
        ValueError, match=r"x: expected sides that are multiples of 32, got \(64, 6"
    ):
        network(x[..., :60], att, condition)
    with pytest.raises(ValueError, match=r"att: expected the shape \(1, 13\), .* got \(1, 12\)"):
        network(x, att[:, :12], condition)
    with pytest.raises(ValueError, match=r"condition: expected the shape \(1, 13, 64, 64\)"):
        network(x, att, condition[..., :32])
    judge = MultiLevelPatchDiscriminator(2, 64, 32, 2, 4, 3, 2, 2)
    with pytest.raises(ValueError, match=r"offsets: expected the shape \(1, 1, 2\), got \(2, 1, 2"):
        judge(x, torch.zeros(2, 1, 2).long())
    with pytest.raises(
        ValueError, match=r"offsets: expected places from 0 to \[32\] of each level"
    ):
        judge(x, [[[0, 33]]])
    with pytest.raises(ValueError, match=r"x: expected the height and width 64, got \(32, 32\)"):
        judge(x[..., :32, :32], [[[0, 0]]])
    with pytest.raises(ValueError, match="x: expected sides that are multiples of 32"):
        BiSeNet(width=2)(random(1, 3, 64, 48))


def test_patches_are_those_of_the_image():
    judge = MultiLevelPatchDiscriminator(2, 64, 16, 2, 4, 2, 2, 2)
    torch.manual_seed(0)
    offsets = torch.stack([judge.draw_offsets(200) for _ in range(5)])
    assert offsets[:, 0].min() == 0
    assert offsets[:, 0].max() == 16
    assert offsets[:, 1].max() > 44
    x = random(2, 3, 64, 64)
    views = judge.views(x, [[[3, 5], [16, 0]], [[48, 1], [7, 30]]])
    half = F.avg_pool2d(x, 2)
    assert torch.equal(views[1][0], half[0, :, 3:19, 5:21])
    assert torch.equal(views[1][1], half[1, :, 16:32, 0:16])
    assert torch.equal(views[2][0], x[0, :, 48:64, 1:17])
    torch.testing.assert_close(views[0], F.avg_pool2d(x, 4))


# --- attributes -----------------------------------------------------------------------------------


def asked(source: set[str], *edits: str, **intensities: float) -> dict[str, float]:
    chosen = dict.fromkeys(edits, 1.0) | intensities
    row = difference(labels_of(source), chosen)[0].tolist()
    return {name: value for name, value in zip(ATTRIBUTES, row, strict=True) if value}


def test_edits_flip_and_exclude():
    assert asked({"Young"}, "Young") == {"Young": -1}
    assert asked({"Black_Hair"}, "Blond_Hair") == {"Black_Hair": -1, "Blond_Hair": 1}
    assert asked({"Bangs"}, "Bald") == {"Bangs": -1, "Bald": 1}
    assert asked({"Bald"}, "Bangs") == {"Bangs": 1, "Bald": -1}
    assert asked({"Bald"}, "Bald") == {"Bald": -1}  # nothing is excluded where one is taken away
    assert asked({"Mustache"}, "No_Beard") == {"No_Beard": 1}
    assert asked({"Young"}, "Bald", "Eyeglasses") == {"Bald": 1, "Eyeglasses": 1}


def test_intensities():
    assert asked(set(), Eyeglasses=2) == {"Eyeglasses": 1.5}
    assert asked({"Young"}, Young=2) == {"Young": -1.5}
    assert asked(set(), Eyeglasses=2, Male=0.5) == {"Eyeglasses": 1.5, "Male": 0.75}
    # Also where a later edit took it away again.
    assert asked(set(), Blond_Hair=3, Black_Hair=1) == {"Blond_Hair": -1, "Black_Hair": 1}
    target = target_of(labels_of(()), {"Male": 2})
    assert target[0].tolist() == [1 if name == "Male" else -0.5 for name in ATTRIBUTES]


def test_slide():
    rows = slide(labels_of({"Male"}), "Male")
    place = ATTRIBUTES.index("Male")
    torch.testing.assert_close(rows[:, place], torch.linspace(-1, 1, 10) - 0.5)
    assert rows.count_nonzero() == 10
    assert slide(labels_of(()), "Young", steps=3)[:, -1].tolist() == [-0.5, 0.5, 1.5]
    with pytest.raises(ValueError, match="steps: expected at least 2, got 1"):
        slide(labels_of(()), "Young", steps=1)
    with pytest.raises(ValueError, match="source: expected the labels of one photo, got 2"):
        slide(torch.zeros(2, 13), "Young")


@pytest.mark.parametrize(
    "source, edits, error, message",
    [
        (labels_of(()), ["Old"], ValueError, "attribute: expected one of .*, got 'Old'"),
        (labels_of(()), {"Male": 0}, ValueError, "intensity: expected a number above 0 for Male"),
        (labels_of(()), {"Male": float("nan")}, ValueError, "intensity: expected a number above"),
        (torch.zeros(1, 12), ["Male"], ValueError, r"source: expected the shape \(N, 13\)"),
        (labels_of(()) - 1, ["Male"], ValueError, "source: expected labels 0 and 1, got -1"),
        ([[0] * 13], ["Male"], TypeError, "source: expected a tensor of labels, got list"),
    ],
)
def test_bad_edits(source, edits, error, message):
    with pytest.raises(error, match=message):
        difference(source, edits)


@pytest.mark.parametrize("counted", [True, False])
def test_attributes_of_a_data_set(counted, tmp_path):
    rows = ["000001.jpg -1  1", "some.png 1 -1"]
    lines = (["2"] if counted else []) + ["Bald Young", *rows]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = read_attributes(tmp_path / "list.txt")
    assert found == {"000001": {"Bald": 0, "Young": 1}, "some": {"Bald": 1, "Young": 0}}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected the attributes' names and a line for each file"),
        ("2\nBald Bold\n", "line 2: expected attributes of CelebA .* got 'Bold'"),
        ("Bald Young\na.jpg 1", "line 2: expected a file's name and -1 or 1 for each of 2"),
        ("Bald Young\na.jpg 1 0", r"line 2: .* got 'a\.jpg 1 0'"),
    ],
)
def test_bad_attribute_files(text, message, tmp_path):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_attributes(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"list\.txt: expected a text, a line for each file"):
        read_attributes(tmp_path / "list.txt")


# --- regions --------------------------------------------------------------------------------------


def parts_of(attribute: str, sign: int, table: dict = INFLUENCE) -> set[str]:
    """What may change, of a face that has every part."""
    masks = one_hot(torch.arange(19)[None, None, None])
    att = torch.zeros(1, 13)
    att[0, ATTRIBUTES.index(attribute)] = sign
    edit = influence_regions(masks, att, table=table).edit[0, 0, 0]
    return {name for name, value in zip(BISENET_NAMES, edit.tolist(), strict=True) if value}


def test_what_the_paper_says_of_regions():
    assert parts_of("Blond_Hair", 1) == parts_of("Blond_Hair", -1) == {"hair"}
    assert parts_of("Bald", 1) == {"hair"}
    ears = {"l_ear", "r_ear", "ear_r"}
    assert parts_of("Bald", -1) == {"background", "skin", *ears}
    assert not parts_of("Pale_Skin", 1) & {"cloth", "hat", "hair", "u_lip", "neck_l"}
    for sign in (1, -1):
        for attribute in ATTRIBUTES:
            assert not parts_of(attribute, sign) & {"cloth", "hat"}


def test_a_table_of_ones_own():
    table = influence_table(["Bald+:hair|hat", "Young-:skin"])
    assert parts_of("Bald", 1, table) == {"hair", "hat"}
    assert parts_of("Bald", -1, table) == parts_of("Bald", -1)
    assert parts_of("Young", -1, table) == {"skin"}
    assert parts_of("Young", 1, table) == parts_of("Young", 1)
    further = influence_table(["Smiling+:mouth"], table)
    assert further["Smiling"] == (("mouth",), ("mouth",))
    lacking = {"Bald": INFLUENCE["Bald"]}
    with pytest.raises(ValueError, match="table: expected a row for each attribute, lacks"):
        influence_regions(torch.zeros(1, 19, 2, 2), torch.zeros(1, 13), table=lacking)
    with pytest.raises(ValueError, match=r"masks: expected the shape \(N, 19, H, W\)"):
        influence_regions(torch.zeros(1, 18, 2, 2), torch.zeros(1, 13))
    with pytest.raises(ValueError, match=r"att: expected the shape \(1, 13\), got \(1, 4\)"):
        influence_regions(torch.zeros(1, 19, 2, 2), torch.zeros(1, 4))


def test_label_maps():
    labels = torch.arange(6).view(1, 1, 2, 3)
    large = resize_labels(labels, 5, 4)[0, 0]
    assert large[:, 0].tolist() == [0, 0, 0, 3, 3]  # floor(i * 2 / 5)
    assert large[0].tolist() == [0, 0, 1, 2]  # floor(i * 3 / 4)
    with pytest.raises(ValueError, match="labels: expected labels from 0 to 18, got 19"):
        one_hot(torch.full((1, 1, 2, 2), 19))
    with pytest.raises(ValueError, match="labels: expected labels from 0 to 18, got -1"):
        overlay(torch.zeros(1, 3, 2, 2), torch.full((1, 1, 2, 2), -1))


def test_parsing_a_photo():
    torch.manual_seed(0)
    parser = BiSeNet(width=4).eval()
    photo = random(2, 3, 50, 70)
    labels = parse(parser, photo, size=64)
    assert labels.shape == (2, 1, 50, 70)
    soft = parse(parser, photo, size=64, soft=True)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(2, 50, 70))
    assert len(labels.unique()) > 1
    # The network's own answer at the parser's size.
    seen = np.asarray(prepared(to_picture(photo[1]), 64)).astype(np.float32) / 255
    seen = (seen - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    with torch.no_grad():
        scores = parser(torch.from_numpy(seen.transpose(2, 0, 1)[None]).float())[0]
    assert torch.equal(resize_labels(scores.argmax(1, keepdim=True), 50, 70), labels[1:])


def test_bicubic_of_tensorflow():
    ramp = torch.arange(8.0, dtype=torch.float64).expand(1, 3, 8, 8)
    torch.testing.assert_close(resize_bicubic(ramp, 8, 8), ramp)
    doubled = resize_bicubic(ramp, 8, 16)[0, 0, 0]
    torch.testing.assert_close(doubled[2:12], torch.arange(2, 12).double() / 2)  # not shifted


# --- losses ---------------------------------------------------------------------------------------


def test_the_penalty_of_a_plane():
    """The gradient of x @ w is w, wherever it is taken; that of its length is w / |w|."""
    w = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64, requires_grad=True)
    real, fake, alpha = (random(2, 3, 1, 1, seed=i).double() for i in range(3))
    alpha = alpha[:, :1]
    penalty = gradient_penalty(lambda x: x.flatten(1) @ w[:, None], real, fake, alpha)
    assert penalty.item() == pytest.approx(16)  # (5 - 1)^2
    (slope,) = torch.autograd.grad(penalty, w)
    torch.testing.assert_close(slope, 2 * 4 * w.detach() / 5)
    with pytest.raises(ValueError, match=r"alpha: expected the shape \(2, 1, 1, 1\)"):
        gradient_penalty(lambda x: x, real, fake, alpha[0])
    with pytest.raises(ValueError, match=r"other: expected the shape \(2, 3, 1, 1\)"):
        gradient_penalty(lambda x: x, real, fake[:1], alpha)


@pytest.mark.parametrize("dragan", [False, True])
def test_second_derivatives_of_the_discriminators(dragan):
    torch.manual_seed(0)
    judge = MultiLevelPatchDiscriminator(2, 32, 16, 2, 3, 2, 2, 2).double()
    real, fake = (random(2, 3, 32, 32, seed=i).double() * 2 - 1 for i in (0, 1))
    offsets, alpha = judge.draw_offsets(2), random(2, 1, 1, 1).double()
    weights = [judge.levels[0].body[0].conv.weight, judge.levels[1].body[1].norm.weight]

    def penalty() -> Tensor:
        views, fakes = judge.views(real, offsets), judge.views(fake, offsets)
        total = torch.zeros((), dtype=torch.float64)
        for level, (view, other) in enumerate(zip(views, fakes, strict=True)):
            other = scattered(view, random(*view.shape).double()) if dragan else other
            score = lambda x, at=level: judge.score(at, x)  # noqa: E731
            total = total + gradient_penalty(score, view, other, alpha)
        return total

    slopes = torch.autograd.grad(penalty(), weights)
    for weight, slope in zip(weights, slopes, strict=True):
        step = random(*weight.shape).double() - 0.5
        with torch.no_grad():
            weight += 1e-5 * step
        after = penalty().item()
        with torch.no_grad():
            weight -= 2e-5 * step
        before = penalty().item()
        with torch.no_grad():
            weight += 1e-5 * step
        expected = (slope * step).sum().item()
        assert (after - before) / 2e-5 == pytest.approx(expected, rel=1e-4, abs=1e-8)
        assert abs(expected) > 1e-6


def test_what_an_edit_is_to_preserve():
    x, edited = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    nothing = torch.zeros(2, 1, 4, 4)
    l1 = F.l1_loss(x, edited)
    torch.testing.assert_close(mask_guided_reconstruction(x, edited, nothing), l1)
    torch.testing.assert_close(mask_guided_reconstruction(x, edited, nothing, "area"), l1)
    assert mask_guided_reconstruction(x, edited, nothing + 1, "area") == 0
    half = nothing.clone()
    half[..., :2] = 1
    outside = (x - edited)[..., 2:].abs()
    torch.testing.assert_close(mask_guided_reconstruction(x, edited, half, "area"), outside.mean())
    mean = mask_guided_reconstruction(x, edited, half)
    torch.testing.assert_close(mean, outside.mean() / 2)
    with pytest.raises(ValueError, match=r"edit: expected the shape \(2, 1, 4, 4\)"):
        mask_guided_reconstruction(x, edited, x)
    with pytest.raises(ValueError, match="normalise: expected 'mean' or 'area', got 'sum'"):
        mask_guided_reconstruction(x, edited, half, "sum")


def test_hard_examples():
    confident = torch.tensor([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.0, -2.0])
    logits = torch.stack((confident, torch.zeros(8)))[None, :, None]
    labels = torch.zeros(1, 1, 8).long()
    each = F.cross_entropy(logits, labels, reduction="none").flatten().sort().values
    # Two are above -log(0.7): more than one at least, fewer than three at least.
    loss = hard_example_cross_entropy(logits, labels, least=1)
    torch.testing.assert_close(loss, each[-2:].mean())
    loss = hard_example_cross_entropy(logits, labels[:, None], least=3)
    torch.testing.assert_close(loss, each[-3:].mean())
    with pytest.raises(ValueError, match="least: expected from 1 to 7, below all pixels, got 8"):
        hard_example_cross_entropy(logits, labels, least=8)
    with pytest.raises(ValueError, match="threshold: expected a probability between 0 and 1"):
        hard_example_cross_entropy(logits, labels, 1.0)


# --- published files ------------------------------------------------------------------------------


def drawn(path: Path = TENSORFLOW) -> dict[str, np.ndarray]:
    """The variables that the file was made of."""
    names = {name: value.shape for name, value in read_variables(path).items()}
    return {name: draw(name, shape) for name, shape in names.items() if "Adam" not in name}


def test_a_checkpoint_that_tensorflow_wrote():
    variables = read_variables(TENSORFLOW)
    assert variables["counter/counter"] == 7
    assert variables["beta1_power"] == np.float32(0.5)
    for name, value in drawn().items():
        if name not in ("counter/counter", "beta1_power"):
            assert np.array_equal(variables[name], value), name
    for path in (TENSORFLOW, f"{TENSORFLOW}.index", f"{TENSORFLOW}.data-00000-of-00001"):
        assert read_tensorflow(Path(path)).keys() == variables.keys()
    found, config = from_tensorflow(read_tensorflow(TENSORFLOW), "file", {"attributes": "Male"})
    told = {name: getattr(config.network, name) for name in SHAPES if name != "attributes"}
    assert told == {name: value for name, value in SHAPES.items() if name != "attributes"}
    assert [*found] == ["generator", "discriminator"]
    weight = found["generator"].stu[0].update.weight
    expected = draw("Gstu/Conv_1/weights", (3, 3, 2, 1)).transpose(3, 2, 0, 1)
    assert np.array_equal(weight.detach().numpy(), expected)
    # Channels first behind the map: the mean of a linear layer's place and channel.
    linear = draw("D/flatten_fully_connected_2/fully_connected/weights", (8, 2))
    ours = found["discriminator"].att[0].weight.detach().numpy().reshape(2, 2, 2, 2)
    assert np.array_equal(ours[1, 1, 0, 1], linear.reshape(2, 2, 2, 2)[0, 1, 1, 1])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("part", ["index", "data-00000-of-00001"])
def test_cut_off_checkpoints_of_tensorflow(part, share, tmp_path, capsys):
    for file in TENSORFLOW.parent.glob(f"{TENSORFLOW.name}*"):
        shutil.copy(file, tmp_path)
    path = tmp_path / f"{TENSORFLOW.name}.{part}"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    command = ["convert", str(tmp_path / TENSORFLOW.name), "-o", str(tmp_path / "a.safetensors")]
    assert main(command) == 1
    assert "small.ckpt.index: cut off, or no checkpoint of TensorFlow" in capsys.readouterr().err
    path.unlink()
    assert main(command) == 1


@pytest.mark.parametrize("form", ["npz", "pth", "ckpt"])
def test_converted_files_load(form, tmp_path, capsys):
    if form == "ckpt":
        path = TENSORFLOW
    elif form == "npz":
        path = tmp_path / "variables.npz"
        np.savez(path, **drawn())
    else:
        path = tmp_path / "variables.pth"
        torch.save({name: torch.as_tensor(value) for name, value in drawn().items()}, path)
        direct, _ = papers.load(path, PAPER, configure(Config, SHAPES))
        assert [*direct] == ["generator", "discriminator"]
        with pytest.raises(ValueError, match=r"other options .*--set model=stgan"):
            papers.load(path, PAPER)
    output = tmp_path / "stgan.safetensors"
    assert main(["convert", str(path), "-o", str(output), "--set", "attributes=Male"]) == 0
    assert "generator, discriminator" in capsys.readouterr().out
    found, config = papers.load(output, PAPER)
    assert config.network.model == "stgan"
    states = convert_tensorflow_checkpoint(drawn())
    for name, network in found.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, states[name][key].view_as(value))
    further = tmp_path / "maggan.safetensors"
    settings = ["--set", "size=64", "--set", "base_size=32"]
    assert main(["initialise", str(output), "-o", str(further), *settings]) == 0
    begun, config = papers.load(further, PAPER)
    assert (config.network.model, config.network.attributes) == ("maggan", ("Male",))
    assert torch.equal(begun["generator"].stu[0].up.weight, found["generator"].stu[0].up.weight)


def test_bad_variables(tmp_path, capsys):
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:50])
    output = str(tmp_path / "out.safetensors")
    for file, message in (
        ("other.npz", "expected variables of STGAN such as Genc/Conv/weights, found a"),
        ("cut.npz", "cut off, or no archive of arrays"),
        ("absent.npz", "No such file"),
    ):
        assert main(["convert", str(tmp_path / file), "-o", output]) == 1
        assert message in capsys.readouterr().err
    assert main(["convert", str(TENSORFLOW), "-o", str(tmp_path / "out.png")]) == 1
    assert "--output: expected a name such as stgan.safetensors" in capsys.readouterr().err
    with pytest.raises(checkpoint.MisfitError, match="Genc/Other/weights: expected a variable of"):
        convert_tensorflow_checkpoint({**drawn(), "Genc/Other/weights": np.zeros(3)})
    with pytest.raises(checkpoint.MisfitError, match=r"gan\.0\.weight: expected 4 x 4 pixels of 2"):
        convert_tensorflow_checkpoint(drawn(), image_size=16)
    assert main(["initialise", str(TENSORFLOW), "-o", output]) == 1


def test_the_classifier_of_tensorflow():
    torch.manual_seed(0)
    network = AttributeClassifier(3, 4, (64, 32))
    names, state = {}, network.state_dict()
    for i in range(10):
        scope = "classifier/Conv" + (f"_{i}" if i else "")
        names[f"{scope}/weights"] = state[f"features.{i}.conv.weight"].permute(2, 3, 1, 0)
        for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
            names[f"{scope}/BatchNorm/{theirs}"] = state[f"features.{i}.norm.{ours}"]
        names[f"{scope}/BatchNorm/moving_mean"] = state[f"features.{i}.norm.running_mean"]
        names[f"{scope}/BatchNorm/moving_variance"] = state[f"features.{i}.norm.running_var"]
    for i in (0, 1):
        scope = "classifier/flatten_fully_connected" + (f"_{i}" if i else "") + "/fully_connected"
        weight = state[f"fc.{i}.weight"]
        if i == 0:  # channels last
            weight = weight.view(-1, 32, 2, 1).permute(0, 2, 3, 1).flatten(1)
        names |= {f"{scope}/weights": weight.T, f"{scope}/biases": state[f"fc.{i}.bias"]}
    found = convert_tensorflow_checkpoint(names, classifier_size=(64, 32))["classifier"]
    assert found.keys() == state.keys()
    assert all(value.equal(found[key]) for key, value in state.items())


@pytest.mark.parametrize("name", ["generator", "discriminator", "parser", "classifier"])
@pytest.mark.parametrize(
    "changes", [{}, {"model": "stgan", "stu_norm": "bn"}, {"norm": "instance", "stu_norm": "in"}]
)
def test_options_are_told_by_shapes(name, changes, tmp_path):
    config = small(**changes)
    torch.manual_seed(0)
    network = networks(config, [name])[name]
    path = tmp_path / "file.pth"
    torch.save(network.state_dict(), path)
    loaded, _ = papers.load(path, PAPER, config)
    assert [*loaded] == [name]
    assert all(v.equal(loaded[name].state_dict()[k]) for k, v in network.state_dict().items())
    with pytest.raises(ValueError, match="its shapes are those of other options") as error:
        papers.load(path, PAPER)
    told = dict(part.split("=") for part in re.findall(r"--set (\S+)", str(error.value)))
    again, _ = papers.load(path, PAPER, configure(Config, told))
    assert [*again] == [name]


def test_files_in_a_folder(tmp_path):
    config = small()
    built = networks(config)
    torch.save(built["parser"].state_dict(), tmp_path / "79999_iter.pth")
    torch.save({"state_dict": built["generator"].state_dict()}, tmp_path / "generator.pth")
    found, _ = papers.load(tmp_path, PAPER, config)
    assert {*found} == {"generator", "parser"}


# --- editing --------------------------------------------------------------------------------------


def face(size: int = 64) -> tuple[Tensor, Tensor]:
    """A photo, and a label map: hair above, skin in the middle, cloth below."""
    labels = torch.full((1, 1, size, size), BISENET_NAMES.index("skin"))
    labels[..., : size // 4, :] = BISENET_NAMES.index("hair")
    labels[..., -size // 4 :, :] = BISENET_NAMES.index("cloth")
    return random(1, 3, size, size), labels


def test_an_edit_in_python():
    photo, labels = face()
    editor = AttributeEditor(generator(), photo, labels_of({"Young"}), masks=one_hot(labels))
    made = editor(["Blond_Hair"])
    assert torch.equal(made.region, (labels == BISENET_NAMES.index("hair")).float())
    pasted = editor.paste(made)
    assert torch.equal(pasted[..., 16:, :], photo[..., 16:, :])
    assert torch.equal(pasted[..., :16, :], made.photo[..., :16, :])
    soft = editor.paste(made, feather=4)
    assert torch.equal(soft[..., 16:, :], photo[..., 16:, :])
    assert torch.equal(soft[..., :12, :], made.photo[..., :12, :])
    assert not torch.equal(soft[..., 12:16, :], made.photo[..., 12:16, :])
    # By hand, from the parts that the editor puts together.
    att = difference(labels_of({"Young"}), ["Blond_Hair"])
    condition = torch.zeros(1, 13, 64, 64)
    condition[:, ATTRIBUTES.index("Blond_Hair"), :16] = 1
    with torch.no_grad():
        expected = (editor.generator(photo * 2 - 1, att, condition) + 1) / 2
    torch.testing.assert_close(made.photo, expected)
    stronger = editor({"Blond_Hair": 2})
    assert not torch.allclose(stronger.photo, made.photo)
    assert editor.reconstruct().region.max() == 0
    steps = editor.slide("Male", 4)
    assert [step.difference[0, 7].item() for step in steps] == pytest.approx(
        [-0.5, 1 / 6, 5 / 6, 1.5]
    )
    assert editor.sheet().shape == (3, 64, 64 + 6 + 64 * 14)


def test_several_photos_and_soft_masks():
    photo = torch.cat([face()[0], random(1, 3, 64, 64, seed=3)])
    masks = (3 * random(2, 19, 64, 64)).softmax(dim=1)
    source = torch.cat([labels_of({"Male"}), labels_of({"Bald"})])
    editor = AttributeEditor(generator(), photo, source, masks=masks)
    both = editor(["Bald", "Pale_Skin"])
    alone = AttributeEditor(generator(), photo[1:], source[1:], masks=masks[1:])(
        ["Bald", "Pale_Skin"]
    )
    torch.testing.assert_close(both.photo[1:], alone.photo, atol=1e-5, rtol=1e-4)
    assert both.difference[:, 0].tolist() == [1, -1]
    assert editor.paste(both, 2).isfinite().all()
    with pytest.raises(ValueError, match="photo: expected one for a sheet, got 2"):
        editor.sheet()


def test_stgan_sees_no_masks_and_may_be_told_the_target():
    config = small(model="stgan", condition="target")
    torch.manual_seed(0)
    network = networks(config, ["generator"])["generator"].eval()
    photo, labels = face()
    editor = AttributeEditor(network, photo, labels_of({"Male"}), condition="target")
    made = editor(["Bald"])
    assert made.region.min() == 1
    told = target_of(labels_of({"Male"}), ["Bald"])
    with torch.no_grad():
        torch.testing.assert_close(made.photo * 2 - 1, network(photo * 2 - 1, told))
    within = AttributeEditor(
        network, photo, labels_of({"Male"}), masks=one_hot(labels), condition="target"
    )(["Bald"])
    assert torch.equal(within.photo, made.photo)
    assert within.region.mean() == 0.25


def test_bad_input_of_the_editor():
    photo, labels = face()
    masks, network = one_hot(labels), generator()
    with pytest.raises(ValueError, match="masks: expected those of the face's parts, which MagGAN"):
        AttributeEditor(network, photo, labels_of(()))
    with pytest.raises(ValueError, match="masks: expected the photo's height and width"):
        AttributeEditor(network, photo, labels_of(()), masks=masks[..., :32])
    with pytest.raises(ValueError, match="source: expected the labels of 1 photos"):
        AttributeEditor(network, photo, labels_of(()).repeat(2, 1), masks=masks)
    editor = AttributeEditor(network, photo, labels_of(()), masks=masks)
    with pytest.raises(ValueError, match=r"attribute: expected one of .* got 'Smiling'"):
        editor(["Smiling"])
    with pytest.raises(ValueError, match="intensity: expected a number above 0 for Bald, got -1"):
        editor({"Bald": -1})
    with pytest.raises(ValueError, match="feather: expected at least 0 pixels, got -1"):
        feathered(masks[:, :1], -1)


def test_classified_labels():
    torch.manual_seed(0)
    network = AttributeClassifier(dim=4, image_size=32).eval()
    photo = random(2, 3, 48, 48)
    found = classify(network, photo)
    assert found.shape == (2, len(CELEBA))
    assert set(found.unique().tolist()) == {0, 1}
