"""DeepFaceEditing's networks: sizes, boxes, pasting, coarse drawings and their projection."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from torchext.models import papers
from torchext.models.deepfaceediting import drawing
from torchext.models.deepfaceediting.config import Config
from torchext.models.deepfaceediting.drawing import (
    DrawingDecoder,
    DrawingEncoder,
    nearest_rows,
    project,
    read_bank,
)
from torchext.models.deepfaceediting.layers import BatchNorm, InstanceNorm
from torchext.models.deepfaceediting.networks import (
    AppearanceEncoder,
    GeometryEncoder,
    GlobalGenerator,
    PartGenerator,
    SketchDecoder,
    canvas,
    example,
    networks,
)
from torchext.models.deepfaceediting.parts import PARTS, boxes, pasted

# Parameters and GFLOP at the published size.
PARAMETERS = {
    "sketch_encoder_bg": 25_162_752,
    "image_encoder_nose": 119_565_312,
    "generator_eye1": 83_212_899,
    "fusion": 88_274_755,
    "extractor": 45_642_243,
    "coarse_encoder_bg": 1_619_872,
    "coarse_generator_mouth": 21_224_035,
    "coarse_fusion": 45_687_715,
}
OPERATIONS = {
    "sketch_encoder_bg": 82.2,
    "sketch_encoder_mouth": 11.6,
    "sketch_encoder_nose": 8.0,
    "sketch_encoder_eye2": 5.1,
    "image_encoder_bg": 275.5,
    "fusion": 342,
    "extractor": 111,
}


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        built = networks(Config())
    counts = {name: papers.parameters(network) for name, network in built.items()}
    assert PARAMETERS.items() <= counts.items()
    millions = {n: round(c / 1e6, 2) for n, c in counts.items() if n.startswith("drawing")}
    of_each = {"eye1": (13.27, 15.65), "eye2": (13.27, 15.65), "nose": (15.63, 18.01)}
    of_each |= {"mouth": (18.52, 20.90), "bg": (76.19, 78.69)}
    for part, (encoder, decoder) in of_each.items():
        assert millions[f"drawing_encoder_{part}"] == encoder
        assert millions[f"drawing_decoder_{part}"] == decoder
    assert papers.parameters(built["generator_bg"].enc_style) == 1_429_984


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_the_published_ones(name):
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = Config()
    with FakeTensorMode():
        network = networks(config, [name])[name].eval()
        count = papers.floating_point_operations(network, example(config)[name])
    assert count / 1e9 == pytest.approx(
        OPERATIONS[name], abs=0.5 if count > 1e11 and name != "image_encoder_bg" else 0.06
    )


def test_every_network_has_an_example_but_those_of_no_input():
    assert example(Config()).keys() == networks(Config(), []).keys() | {
        *networks_of("meta", Config())
    }


def networks_of(device: str, config: Config) -> dict[str, nn.Module]:
    with torch.device(device):
        return networks(config)


# --- parts ----------------------------------------------------------------------------------------


def test_boxes_are_scaled_and_stay_inside():
    published = boxes()
    assert published["eye1"] == (108, 156, 128, 128)
    assert published["nose"] == (182, 232, 160, 124)
    for size, step in ((64, 4), (128, 32), (256, 16), (1024, 32)):
        for part, box in boxes(size, step).items():
            assert box.side % step == 0, part
            assert min(box[:2]) >= 0, part
            assert max(box[:2]) + box.side <= size, part
            before = published[part]
            for place, wanted in zip(box[:2], before[:2], strict=True):
                centre = (wanted + before.side / 2) * size / 512
                at_border = place in (0, size - box.side)
                assert abs(place + box.side / 2 - centre) <= 1 or at_border, (part, size)
    assert boxes(256, 16)["mouth"].side == 96


def test_parts_are_pasted_in_the_published_order():
    values = dict(zip(PARTS, (0.0, 1.0, 2.0, 3.0, 4.0), strict=True))
    places, made = boxes(), []

    def maps(part: str) -> Tensor:
        made.append(part)
        return torch.full((1, 2, places[part].side, places[part].side), values[part])

    result = pasted(maps, places)
    assert made == ["bg", "mouth", "nose", "eye1", "eye2"]
    seen = result[0, 1]
    assert seen[155, 150] == 0
    assert seen[156, 108] == seen[283, 235] == values["eye1"]
    assert seen[270, 300] == values["eye2"]  # over the nose
    assert seen[355, 250] == values["nose"]  # over the mouth
    assert seen[356, 250] == values["mouth"]  # the nose's last rows are left out
    assert seen[492, 360] == values["mouth"]
    assert seen[493, 360] == values["bg"]


def test_pasting_writes_into_the_background_itself():
    places, maps = boxes(64, 4), {}
    for part, box in boxes(64, 4).items():
        maps[part] = torch.rand(1, 3, box.side, box.side)
    result = pasted(maps.__getitem__, places)
    assert result is maps["bg"]
    learning = {part: value.clone().requires_grad_() for part, value in maps.items()}
    pasted(learning.__getitem__, places).sum().backward()
    covered = sum(value.grad.sum() for value in learning.values())
    assert covered == 3 * 64 * 64  # each place counts for one part
    assert learning["nose"].grad[..., places["nose"].rows :, :].abs().max() == 0
    assert learning["bg"].grad[..., 40, 30].abs().max() == 0


# --- networks -------------------------------------------------------------------------------------


def test_instance_norm_is_pytorchs():
    ours, theirs = InstanceNorm(5, "relu"), nn.InstanceNorm2d(5, affine=True)
    for module in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, generator=generator)
    x = torch.randn(2, 5, 6, 7)
    torch.testing.assert_close(ours(x), theirs(x).relu())
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_batch_statistics_in_evaluation_leave_the_running_ones():
    norm = BatchNorm(3, of_batch=True)
    x = torch.randn(4, 3, 5, 5) * 3 + 1
    trained = norm(x)
    before = norm.running_mean.clone()
    assert before.abs().max() > 0
    evaluated = norm.eval()(x)
    torch.testing.assert_close(trained, evaluated)
    assert norm.running_mean.equal(before)
    assert not BatchNorm(3).eval()(x).allclose(evaluated)


def test_each_photo_has_its_own_appearance():
    torch.manual_seed(0)
    generator = PartGenerator(ngf=4, n_downsampling=2, n_blocks=1, appearance_downsamplings=3)
    content, style = torch.randn(2, 16, 4, 4), torch.rand(2, 3, 16, 16) * 2 - 1
    both = generator(content, style)
    for i in range(2):
        alone = generator(content[i : i + 1], style[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone)
    shared = generator.feature(content, generator.appearance(style[:1]))
    torch.testing.assert_close(generator.picture(shared)[:1], both[:1])
    assert not generator.picture(shared)[1:].allclose(both[1:])


def test_shifts_come_before_scales():
    torch.manual_seed(0)
    generator = PartGenerator(ngf=2, n_downsampling=1, n_blocks=1, appearance_downsamplings=3)
    assert generator.splits == [8, 8, 4]
    vector = torch.zeros(1, 20)
    vector[:, 16:18] = 7.0  # shifts of the last norm, whose scales stay 0
    feature = generator.feature(torch.randn(1, 4, 2, 2), vector)
    torch.testing.assert_close(feature, torch.full_like(feature, 7.0))


def test_the_decoder_gives_all_its_layers():
    torch.manual_seed(0)
    encoder, decoder = GeometryEncoder(ngf=2, n_downsampling=2), SketchDecoder(3, 2, 2)
    geometry = encoder(torch.rand(1, 3, 16, 12))
    found = decoder.layers(geometry)
    assert [tuple(x.shape[1:]) for x in found] == [
        *((8, 4, 3), (8, 4, 3), (4, 8, 6), (2, 16, 12), (3, 16, 12))
    ]
    torch.testing.assert_close(found[-1], decoder(geometry))
    assert len(SketchDecoder(3, 1, 4).layers(torch.rand(1, 16, 4, 4))) == 7


def test_the_canvas_takes_each_parts_geometry_and_appearance():
    torch.manual_seed(0)
    given = papers.configure(
        Config,
        {"width": 2, "size": 64, "downsamplings": 2, "appearance_downsamplings": 4,
         "drawing_downsamplings": 2},
    ).network  # fmt: skip
    config = Config(given)
    generators = {p: networks(config, [f"generator_{p}"])[f"generator_{p}"].eval() for p in PARTS}
    geometry = {p: torch.randn(1, 8, b.side // 4, b.side // 4) for p, b in given.boxes.items()}
    vectors = {p: generators[p].appearance(torch.rand(1, 3, 32, 32)) for p in PARTS}
    with torch.no_grad():
        before = canvas(generators, given.boxes, geometry.get, vectors.get)
        vectors["mouth"] = vectors["mouth"] + 1
        after = canvas(generators, given.boxes, geometry.get, vectors.get)
    changed = (before != after).any(dim=1)[0]
    box = given.boxes["mouth"]
    inside = torch.zeros_like(changed)
    box.crop(inside)[:] = True
    assert changed.any()
    assert not changed[~inside].any()
    assert not given.boxes["nose"].crop(changed)[: given.boxes["nose"].rows].any()  # lies above


@pytest.mark.parametrize(
    "make, x, message",
    [
        (lambda: GeometryEncoder(ngf=2), torch.rand(1, 3, 40, 48), "x: expected sides that are mu"),
        (lambda: GeometryEncoder(ngf=2), torch.rand(1, 1, 48, 48), r"x: expected the shape \(N, 3"),
        (lambda: GlobalGenerator(4, ngf=2), torch.rand(1, 4, 16, 16), "at least 32, got"),
        (lambda: AppearanceEncoder(5), torch.rand(1, 3, 31, 40), "style: expected a height and wi"),
        (lambda: DrawingEncoder(64), torch.rand(1, 1, 32, 64), "x: expected a height and width of"),
    ],
)
def test_bad_pictures_are_named(make, x, message):
    with pytest.raises(ValueError, match=message):
        make()(x)


def test_bad_vectors_and_norms_are_named():
    generator = PartGenerator(ngf=2, n_downsampling=1, n_blocks=1)
    with pytest.raises(ValueError, match=r"vector: expected the shape \(N, 20\), got \(1, 19\)"):
        generator.feature(torch.rand(1, 4, 2, 2), torch.rand(1, 19))
    with pytest.raises(ValueError, match="norm_layer: expected 'adain' or 'in', got 'bn'"):
        PartGenerator(norm_layer="bn")
    with pytest.raises(ValueError, match=r"norm: expected one of .*, got 'batch'"):
        GlobalGenerator(3, ngf=2, norm="batch")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"size": 500}, "size: expected a multiple of 32 at which every part has at least 64"),
        ({"size": 64}, "size: expected a multiple of 32"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"drawing_downsamplings": 1}, "drawing_downsamplings: expected at least 2, got 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        papers.configure(Config, options)


# --- drawings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("halvings", [2, 3, 5])
def test_drawings_of_any_size(halvings):
    torch.manual_seed(0)
    side = 2 ** (halvings + 1)
    encoder = DrawingEncoder(side, 1, 6, 2, halvings).eval()
    decoder = DrawingDecoder(side, 4, 6, 2, halvings).eval()
    code = encoder(torch.rand(2, 1, side, side))
    assert code.shape == (2, 6)
    assert decoder(code).shape == (2, 4, side, side)


def test_the_published_decoder_narrows_as_published():
    widths = [
        layer.conv[0].out_channels
        for layer in DrawingDecoder(64, 32, 8).conv
        if isinstance(layer, drawing._Doubling)
    ]
    assert widths == [256, 256, 128, 64, 64]


def test_projection_finds_a_code_on_the_manifold():
    torch.manual_seed(0)
    bank = torch.randn(40, 3) @ torch.randn(3, 20)  # a plane of three dimensions
    on = bank[3] + 0.1 * (bank[5] - bank[3])
    off = on + torch.randn(20) * 0.05
    moved = project(torch.stack((on, off)), bank)
    torch.testing.assert_close(moved[0], on, atol=0.02, rtol=0)
    basis = torch.linalg.qr(bank.T[:, :3]).Q
    distances = [(x - basis @ (basis.T @ x)).norm() for x in (off, moved[1])]
    assert distances[1] < 1e-4 < distances[0]
    half = project(off[None], bank, 0.5)
    torch.testing.assert_close(half, (off + moved[1])[None] / 2)
    assert project(off[None], bank, 0.0).equal(off[None])


def test_equal_rows_do_no_harm():
    bank = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).repeat(6, 1)
    assert project(bank[:1] + 0.1, bank).isfinite().all()


def test_neighbours_are_the_nearest_in_order():
    bank = torch.arange(30.0)[:, None].expand(30, 4)
    indices, distances = nearest_rows(torch.full((1, 4), 12.2), bank, 4)
    assert indices.tolist() == [[12, 13, 11, 14]]
    torch.testing.assert_close(distances, 4 * torch.tensor([[0.04, 0.64, 1.44, 3.24]]))


def test_bad_banks_are_named(tmp_path):
    code = torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"bank: expected the shape \(rows, 4\)"):
        project(code, torch.zeros(20, 5))
    with pytest.raises(ValueError, match="count: expected 1 to the bank's 9 rows, got 15"):
        project(code, torch.zeros(9, 4))
    with pytest.raises(ValueError, match="amount: expected 0 to 1, got 2"):
        project(code, torch.zeros(20, 4), 2)
    with pytest.raises(FileNotFoundError, match="man_bg_feature: expected a file of codes"):
        read_bank(tmp_path / "man_bg_feature")
    path = tmp_path / "bank"
    path.write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="bank: expected rows of 4 float32 numbers, got 20 bytes"):
        read_bank(path, 4)
    np.full(8, np.nan, np.float32).tofile(path)
    with pytest.raises(ValueError, match="bank: expected finite numbers"):
        read_bank(path, 4)
    values = np.arange(12, dtype=np.float32)
    values.tofile(path)
    assert read_bank(path, 4).equal(torch.from_numpy(values).reshape(3, 4))
