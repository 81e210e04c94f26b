"""Published files load strictly, whatever they are wrapped in; wrong ones are named."""

import dataclasses
from pathlib import Path

import pytest
import torch

from torchext.models import checkpoint, papers
from torchext.models.partial_convolutions import classifiers
from torchext.models.pd_gan import first_stage
from torchext.models.vgg import VGGFeatures

RN, PCONV, PDGAN = (
    papers.find(name) for name in ("region_normalization", "partial_convolutions", "pd_gan")
)
CONFIGS = {
    "region_normalization": RN.config(width=4, residual_blocks=2),
    "partial_convolutions": PCONV.config(width=4, layers=5),
    "pd_gan": PDGAN.config(width=2, size=128),
}


def states(paper: papers.Paper, seed: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    networks = paper.networks(CONFIGS[paper.name])
    return {name: network.state_dict() for name, network in networks.items()}


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def assert_loaded(paper: papers.Paper, path: Path, wanted: dict) -> None:
    networks, _ = papers.load(path, paper, CONFIGS[paper.name])
    assert networks.keys() == wanted.keys()
    for name, state in wanted.items():
        loaded = networks[name].state_dict()
        assert loaded.keys() == state.keys()
        assert all(value.equal(loaded[key]) for key, value in state.items())


@pytest.mark.parametrize("module", ["", "module."])
def test_region_normalization_wrapper(module, tmp_path):
    wanted = states(RN)
    content = prefixed(wanted["generator"], f"generator.{module}")
    discriminator = dict(wanted["discriminator"])
    if module:  # as released
        for key in [key for key in discriminator if key.startswith("conv1.0.")]:
            discriminator[key.replace("conv1.0.", "features.0.")] = discriminator[key]
    content |= prefixed(discriminator, f"discriminator.{module}")
    content["adversarial_loss.real_label"] = torch.tensor(1.0)
    content["adversarial_loss.fake_label"] = torch.tensor(0.0)
    torch.save(content, tmp_path / "file.pth")
    assert_loaded(RN, tmp_path / "file.pth", wanted)


def test_region_normalization_keys_are_the_published_ones():
    networks = RN.networks(RN.config())
    assert len(networks["generator"].state_dict()) == 146
    assert len(networks["discriminator"].state_dict()) == 15
    key = "middle.7.conv_block.6.sa.gamma_conv.weight"
    assert networks["generator"].state_dict()[key].shape == (1, 1, 7, 7)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("mask_kernels", [True, False])
def test_partial_convolutions(wrapped, mask_kernels, tmp_path):
    wanted = states(PCONV)
    state = {k: v for k, v in wanted["generator"].items() if mask_kernels or "mask_conv" not in k}
    content = {"model": state, "optimizer": {"state": {}}, "n_iter": 7} if wrapped else state
    torch.save(content, tmp_path / "1000000.pth")
    assert_loaded(PCONV, tmp_path / "1000000.pth", wanted)


def test_mask_kernels_of_the_unet_must_be_ones(tmp_path):
    state = dict(states(PCONV)["generator"])
    state["enc_2.conv.mask_conv.weight"] = state["enc_2.conv.mask_conv.weight"] * 2
    torch.save({"model": state}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"enc_2\.conv\.mask_conv\.weight: expected only ones"):
        papers.load(tmp_path / "file.pth", PCONV, CONFIGS["partial_convolutions"])


def test_pd_gan_from_a_folder_and_from_single_files(tmp_path):
    wanted = states(PDGAN)
    names = {"encoder": "EN", "decoder": "DE", "generator": "PDGAN", "discriminator": "D"}
    for name, short in names.items():
        content = {"net": wanted[name], "optimize": {"state": {}}}
        torch.save(content, tmp_path / f"120_net_{short}.pth")
    assert_loaded(PDGAN, tmp_path, wanted)
    for name, short in names.items():
        assert_loaded(PDGAN, tmp_path / f"120_net_{short}.pth", {name: wanted[name]})


def test_stored_mask_kernels_of_the_first_stage_are_used():
    layer = first_stage.PartialConv(3, 4, 4, 2, 1, bias=False)
    x, mask = torch.randn(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    mask[..., :4, :4] = 0
    plain, _ = layer([x, mask])
    state = layer.state_dict()
    layer.load_state_dict({**state, "mask_conv.weight": state["mask_conv.weight"] * 3})
    assert layer.constant == 3
    torch.testing.assert_close(layer([x, mask])[0] * 3, plain)
    noise = torch.randn_like(state["mask_conv.weight"])
    layer.load_state_dict({**state, "mask_conv.weight": noise})
    assert layer.constant is None
    raw = torch.nn.functional.conv2d(x * mask, layer.input_conv.weight, None, 2, 1)
    s = torch.nn.functional.conv2d(mask, noise, None, 2, 1)
    expected = torch.where(s == 0, 0, raw / torch.where(s == 0, 1, s))
    torch.testing.assert_close(layer([x, mask])[0], expected)


@pytest.mark.parametrize("name", ["pdresnet18", "pdresnet50", "pdvgg11_bn"])
def test_classifiers(name):
    with torch.device("meta"):
        shapes = classifiers.build(name, num_classes=1000).state_dict()
    counts = {"pdresnet18": 11_689_512, "pdresnet50": 25_557_032, "pdvgg11_bn": 132_868_840}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    trained = [value for key, value in shapes.items() if not key.endswith(buffers)]
    assert sum(value.numel() for value in trained) == counts[name]
    if "vgg" in name:  # half a gigabyte
        return
    network = classifiers.build(name)
    state = prefixed(network.state_dict(), "module.")
    classifiers.load_published(network, {"state_dict": state, "epoch": 1, "arch": name})
    part = {key: value for key, value in state.items() if "layer1" not in key}
    with pytest.raises(ValueError, match=r"lacks .*layer1"):
        classifiers.load_published(network, {"state_dict": part})


@pytest.mark.parametrize("paper", [RN, PCONV, PDGAN], ids=lambda paper: paper.name)
def test_own_format(paper, tmp_path):
    path = tmp_path / "networks.safetensors"
    config = CONFIGS[paper.name]
    torch.manual_seed(2)
    networks = paper.networks(config)
    papers.save(path, paper, config, networks)
    loaded, found = papers.load(path, paper)
    assert found == config
    for name, network in networks.items():
        for key, value in network.state_dict().items():
            assert value.equal(loaded[name].state_dict()[key])
    assert list(tmp_path.iterdir()) == [path]  # nothing unfinished


@pytest.mark.parametrize("theirs", [RN, PCONV, PDGAN], ids=lambda paper: paper.name)
@pytest.mark.parametrize("ours", [RN, PCONV, PDGAN], ids=lambda paper: paper.name)
def test_checkpoint_of_another_paper_is_recognised(ours, theirs, tmp_path):
    if ours is theirs:
        pytest.skip("the same paper")
    content = next(iter(states(theirs).values()))
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=f"it looks like a checkpoint of {theirs.name}"):
        papers.load(tmp_path / "file.pth", ours, CONFIGS[ours.name])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda state: state.pop("encoder_conv1.bias"), "lacks encoder_conv1.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "holds unexpected extra"),
        (
            lambda state: state.update({"encoder_conv1.bias": torch.zeros(7)}),
            r"encoder_conv1.bias has the shape \(7,\), expected \(4,\)",
        ),
        (lambda state: state.update({"encoder_conv1.bias": 3}), "is no tensor but int"),
    ],
)
def test_misfits_are_named(change, message, tmp_path):
    state = dict(states(RN)["generator"])
    change(state)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        papers.load(tmp_path / "file.pth", RN, CONFIGS["region_normalization"])


def test_code_in_a_file_is_refused(tmp_path):
    torch.save({"net": torch.nn.Linear(2, 2)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="cut off, or no checkpoint"):
        checkpoint.load_published(tmp_path / "file.pth")


def test_vgg_weights_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weights of VGG-16"):
        VGGFeatures(16).load()
    source = VGGFeatures(16, ("relu2_2",))
    (tmp_path / "checkpoints").mkdir()
    torch.save(source.state_dict(), tmp_path / "checkpoints" / "vgg16-397923af.pth")
    loaded = VGGFeatures(16, ("relu1_2",)).load()
    assert loaded.features[2].weight.equal(source.features[2].weight)
    with pytest.raises(ValueError, match=r"does not fit VGGFeatures: lacks features\.10"):
        VGGFeatures(16, ("relu3_1",)).load()


def test_configurations_come_back_from_text():
    for name, config in CONFIGS.items():
        paper = papers.find(name)
        texts = {key: str(value) for key, value in dataclasses.asdict(config).items()}
        assert papers.configure(paper.config, texts) == config
