"""Published files load strictly, whatever they are wrapped in; wrong ones are named."""

import argparse
import copy
import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.training import SMALL
from torch.optim.swa_utils import AveragedModel

from torchext.models import checkpoint, papers
from torchext.models.papers import configure
from torchext.models.partial_convolutions import classifiers
from torchext.models.pd_gan import first_stage
from torchext.models.vgg import VGGFeatures

# Reduced networks of every paper.
CONFIGS = {
    name: configure(papers.find(name).config, options)
    for name, options in {
        "region_normalization": {"width": 4, "residual_blocks": 2},
        "partial_convolutions": {"width": 4, "layers": 5},
        "pd_gan": {"width": 2, "size": 128},
        "dagan": {"width": 2, "labels": 5, "dont_care": False, "first_label": 0, "size": 64},
        "maskgan": SMALL["maskgan"],
        "michigan": SMALL["michigan"],
        "semantic_photo_manipulation": SMALL["semantic_photo_manipulation"],
        "deepfaceediting": SMALL["deepfaceediting"],
        "fe_gan": SMALL["fe_gan"],
        "maggan": SMALL["maggan"],
    }.items()
}
PAPERS = [papers.find(name) for name in CONFIGS]
RN, PCONV, PDGAN, DAGAN = (
    papers.find(name)
    for name in ("region_normalization", "partial_convolutions", "pd_gan", "dagan")
)


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


def test_every_paper_is_tried():
    assert CONFIGS.keys() == set(papers.NAMES)


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
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


@pytest.mark.parametrize(
    "ours, theirs",
    [pytest.param(a, b, id=f"{a.name}-{b.name}") for a, b in itertools.permutations(PAPERS, 2)],
)
@pytest.mark.parametrize("which", [0, -1])
def test_checkpoint_of_another_paper_is_recognised(ours, theirs, which, tmp_path):
    content = list(states(theirs).values())[which]
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
    with pytest.raises(ValueError, match=r"holds an object of the class torch\.nn\..*Linear"):
        checkpoint.load_published(tmp_path / "file.pth")


def test_vgg_weights_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"vgg16: torchvision.* --pretrained vgg16=FILE"):
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
        texts = {key: str(value) for key, value in papers.options_of(config)}
        assert configure(paper.config, texts) == config
        assert configure(paper.config, json.loads(json.dumps(dataclasses.asdict(config)))) == config
        names = [key for key, _ in papers.options_of(config)]
        assert len(set(names)) == len(names)


# --- one rule of unwrapping -----------------------------------------------------------------------


def averaged(network: torch.nn.Module) -> dict[str, Any]:
    model = AveragedModel(network)
    model.update_parameters(network)
    return model.state_dict()


def compiled(network: torch.nn.Module) -> dict[str, Any]:
    return torch.compile(network).state_dict()


def other(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that are not the wanted ones."""
    return {key: torch.zeros_like(value) for key, value in network.state_dict().items()}


WRAPPERS: dict[str, Callable[[torch.nn.Module], dict[str, Any]]] = {
    "bare": lambda network: network.state_dict(),
    "DataParallel": lambda network: torch.nn.DataParallel(network).state_dict(),
    "torch.compile": compiled,
    "compiled, then parallel": lambda network: prefixed(compiled(network), "module."),
    "AveragedModel": averaged,
    "state_dict": lambda network: {"state_dict": network.state_dict(), "epoch": 3},
    "model": lambda network: {"model": averaged(network), "optimizer": {"state": {0: {}}}},
    "net": lambda network: {"net": compiled(network), "losses": torch.zeros(9)},
    "nested": lambda network: {"checkpoint": 1, "state_dict": {"model": network.state_dict()}},
    "Lightning": lambda network: {
        "state_dict": prefixed(network.state_dict(), "model."),
        "pytorch-lightning_version": "2.0",
        "hyper_parameters": {"rate": 1e-3},
        "callbacks": {},
    },
    "ema first": lambda network: {"model": other(network), "ema": network.state_dict()},
    "ema without weights": lambda network: {
        "model": network.state_dict(),
        "ema": {"decay": 0.9, "shadow": [torch.zeros(2)]},
    },
    "numbers beside": lambda network: {
        **network.state_dict(),
        "epoch": 3,
        "best": np.float64(0.5),
        "step": np.int64(7),
        "iteration": torch.tensor(7),
        "arch": "net",
    },
    "settings beside": lambda network: {
        "model": network.state_dict(),
        "args": argparse.Namespace(rate=1e-3),
        "curve": np.arange(4.0),
        "best": np.float32(0.5),
    },
    "no batch counts": lambda network: {
        key: value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    },
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_opened(wrapper, legacy, tmp_path):
    torch.manual_seed(1)
    network = PCONV.networks(CONFIGS["partial_convolutions"])["generator"]
    wanted = copy.deepcopy(network.state_dict())
    path = tmp_path / "file.pth"
    torch.save(WRAPPERS[wrapper](network), path, _use_new_zipfile_serialization=not legacy)
    assert_loaded(PCONV, path, {"generator": wanted})


@pytest.mark.parametrize("paper", [RN, PDGAN, DAGAN], ids=lambda paper: paper.name)
def test_networks_side_by_side(paper, tmp_path):
    wanted = states(paper)
    content = {name: prefixed(state, "module.") for name, state in wanted.items()}
    torch.save({**content, "optimizer": {"state": {}}, "epoch": 3}, tmp_path / "file.pth")
    assert_loaded(paper, tmp_path / "file.pth", wanted)


def test_wrapped_vgg_and_classifiers():
    features = VGGFeatures(16, ("relu1_2",))
    state = prefixed(features.state_dict(), "module.")
    loaded = VGGFeatures(16, ("relu1_2",)).load_torchvision({"state_dict": state}, "file")
    assert loaded.features[2].weight.equal(features.features[2].weight)
    network = classifiers.build("pdresnet18")
    other_one = classifiers.build("pdresnet18")
    classifiers.load_published(other_one, {"model": averaged(network)})
    assert other_one.conv1.weight.equal(network.conv1.weight)


# --- what a file is -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["file.bin", "file.pt", "file", "file.safetensors"])
def test_safetensors_under_any_name(name, tmp_path):
    wanted = states(RN)
    content = prefixed(wanted["generator"], "generator.")
    save_file({key: value.contiguous() for key, value in content.items()}, tmp_path / name)
    assert_loaded(RN, tmp_path / name, {"generator": wanted["generator"]})
    config = CONFIGS[RN.name]
    papers.save(tmp_path / "ours.safetensors", RN, config, RN.networks(config))
    (tmp_path / "ours.safetensors").rename(tmp_path / name)
    assert papers.load(tmp_path / name, RN)[1] == config


def test_a_pickle_named_safetensors(tmp_path):
    wanted = states(RN)["generator"]
    torch.save(wanted, tmp_path / "file.safetensors")
    assert_loaded(RN, tmp_path / "file.safetensors", {"generator": wanted})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (LFS, "is a pointer of git-lfs, not the file itself"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page, not a checkpoint"),
        (b"<html><body>Quota exceeded</body></html>", "is a web page, not a checkpoint"),
        (b"Not Found", "cut off, or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, message, suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    for load in (checkpoint.load_published, lambda path: papers.load(path, RN)):
        with pytest.raises(ValueError, match=rf"file{suffix}: {message}"):
            load(path)


def test_a_folder_is_named(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a checkpoint file, got a folder \(model\.pth\)"):
        papers.load(tmp_path, RN)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "tensors.safetensors"])
def test_cut_off_files_are_named(name, share, tmp_path):
    state = {"a.weight": torch.randn(100, 100)}
    if name == "tensors.safetensors":
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name == "zip.pth")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"{name}: cut off"):
        checkpoint.load_published(tmp_path / name)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:.*looks like a TorchScript")
def test_a_program_is_named(tmp_path):
    traced = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(traced, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"file\.pt: is a TorchScript archive"):
        checkpoint.load_published(tmp_path / "file.pt")


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), "text"])
def test_what_is_no_dictionary_is_named(content, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, got"):
        checkpoint.load_published(tmp_path / "file.pth")


def test_a_class_is_not_run(tmp_path):
    class Run:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": Run()}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"holds an object of the class (posix|nt)\.mkdir"):
        checkpoint.load_published(tmp_path / "file.pth")
    assert not (tmp_path / "made").exists()


# --- other options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "paper, trained, given, told",
    [
        (PCONV, {"layers": 5, "width": 4}, {"width": 4}, "--set layers=5"),
        (PCONV, {"layers": 5, "width": 4}, {"layers": 5, "width": 8}, "--set width=4"),
        (PCONV, {"layers": 4, "width": 4}, {"width": 8}, "--set layers=4 --set width=4"),
        (RN, {"width": 4, "residual_blocks": 2}, {"width": 4}, "--set residual_blocks=2"),
        (RN, {"width": 4}, {"width": 8}, "--set width=4"),
        (PDGAN, {"width": 2, "size": 128}, {"width": 2}, "--set size=128"),
        (PDGAN, {"width": 2, "noise": 16}, {"width": 2}, "--set noise=16"),
    ],
)
def test_the_options_of_a_checkpoint_are_told(paper, trained, given, told, tmp_path):
    networks = paper.networks(configure(paper.config, trained))
    content = {name: network.state_dict() for name, network in networks.items()}
    path = tmp_path / "file.pth"
    torch.save(content if len(content) > 1 else {"model": content["generator"]}, path)
    with pytest.raises(ValueError) as error:
        papers.load(path, paper, configure(paper.config, given))
    assert str(error.value).endswith(f"of other options than the given ones: {told}")
    assert "it looks like" not in str(error.value)


def test_the_options_of_a_first_stage_are_told(tmp_path):
    networks = PDGAN.networks(configure(PDGAN.config, {"width": 2}), PDGAN.stage("1").networks)
    content = {name: network.state_dict() for name, network in networks.items()}
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=r"than the given ones: --set width=2$"):
        papers.load(tmp_path / "file.pth", PDGAN, configure(PDGAN.config, {"width": 4}))


def test_a_file_of_another_paper_is_named_by_its_keys():
    for name in papers.NAMES:
        for network, state in states(papers.find(name)).items():
            assert papers.looks_like(state) == name
            assert papers.looks_like(prefixed(state, f"{network}.")) == name
    others = ("conv1.weight", "fc.weight", "some.other.key")
    assert papers.looks_like(dict.fromkeys(others, torch.zeros(2))) is None
    assert papers.looks_like({}) is None


@pytest.mark.parametrize(
    "paper, options",
    [
        (DAGAN, {}),
        (DAGAN, {"width": 16}),
        (DAGAN, {"labels": 19, "dont_care": False, "first_label": 0}),
        (PDGAN, {}),
        (PDGAN, {"width": 16}),
    ],
)
def test_discriminators_of_one_make_are_told_apart_by_their_shapes(paper, options):
    with torch.device("meta"):
        networks = paper.networks(configure(paper.config, options), ["discriminator"])
    state = networks["discriminator"].state_dict()
    assert papers.looks_like(state) == paper.name
    assert papers.looks_like(prefixed(state, "discriminator.")) == paper.name


def test_files_of_before_the_options_had_parts(tmp_path):
    """Flat options, the stage among them."""
    config = CONFIGS["pd_gan"]
    networks = PDGAN.networks(config, ["encoder", "decoder"])
    path = tmp_path / "file.safetensors"
    papers.save(path, PDGAN, config, networks)
    tensors, head = checkpoint.load(path)
    flat = {**dict(papers.options_of(config)), "stage": 1}
    checkpoint.save(path, tensors, {**head, "config": flat})
    loaded, found = papers.load(path, PDGAN)
    assert found == config
    assert list(loaded) == ["encoder", "decoder"]


# --- saving ---------------------------------------------------------------------------------------


def test_saving_where_folders_cannot_be_opened(tmp_path, monkeypatch):
    real = os.open

    def refuse(path: object, *arguments: object, **options: object) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    checkpoint.save(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"number": 1})
    checkpoint.save(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {"number": 2})
    tensors, header = checkpoint.load(tmp_path / "a.safetensors")
    assert tensors["a"].equal(torch.zeros(2))
    assert header["number"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {})
    monkeypatch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "a.safetensors", {"a": torch.zeros(2)}, {})
    assert checkpoint.load(tmp_path / "a.safetensors")[0]["a"].equal(torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_networks_own_model_is_not_taken_off():
    network = torch.nn.Module()
    network.model = torch.nn.Linear(2, 2)
    state = network.state_dict()
    assert checkpoint.weights(state, [network]).keys() == state.keys()
    assert checkpoint.weights(prefixed(state, "net."), [network]).keys() == state.keys()
    assert checkpoint.weights(state, [torch.nn.Linear(2, 2)]).keys() == {"weight", "bias"}
