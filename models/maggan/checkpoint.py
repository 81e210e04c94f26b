"""Published files: STGAN's TensorFlow variables, the face parser, and networks by these keys."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import MisfitError, State, by_network, load_strictly, part
from .config import Config
from .networks import networks

# Files in a folder, by network.
FILES = {
    "generator": "generator.*",
    "discriminator": "discriminator.*",
    "parser": "79999_iter.pth",
    "classifier": "classifier.*",
}
# An entry by which the network in a single file is known; the first that is there counts.
_ENTRIES = {
    "generator": "encoder.0.conv.weight",
    "parser": "cp.resnet.conv1.weight",
    "classifier": "features.0.conv.weight",
    "discriminator": "body.0.conv.weight",
}
_LEVELS = "levels.0.body.0.conv.weight"


def load_published(
    content: Mapping[str, Any], config: Config, source: object
) -> dict[str, nn.Module]:
    """The networks of one file, or of several given by name.

    Args:
        content: of a file, or of the files by the names in `FILES`; with variables of TensorFlow,
            those of STGAN or of its classifier.
        config: of the networks.
        source: named in errors.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    with torch.device("meta"):
        known = networks(config)
    if is_tensorflow(content):
        size = config.network.size, config.network.classifier_size
        states = _converted(content, *size)
    else:
        default = "discriminator" if _LEVELS in content else "generator"
        states = by_network(content, known, FILES, _ENTRIES, default)
    found = networks(config, states)
    for name, state in states.items():
        load_strictly(found[name], state, source)
    return found


# --- TensorFlow -----------------------------------------------------------------------------------

_SKIPPED = re.compile(
    r".*/Adam(_\d+)?$|beta[12]_power(_\d+)?$|counter/.*|global_step$|.*/(Adam|beta[12]_power).*"
)
_SCOPES = ("Genc/", "Gstu/", "Gdec/", "D/", "classifier/")
_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_LAYER = re.compile(
    r"(?P<scope>Genc|Gstu|Gdec|D|classifier)/"
    r"(?P<kind>Conv2d_transpose|Conv|flatten_fully_connected)(?:_(?P<number>\d+))?/"
    r"(?:(?P<norm>BatchNorm|InstanceNorm)/|fully_connected/)?"
    r"(?P<entry>weights|biases|gamma|beta|moving_mean|moving_variance)"
)
_GATES = ("reset", "update", "info")


def is_tensorflow(content: Mapping[str, Any]) -> bool:
    """Whether these are variables of STGAN or its classifier by the names of TensorFlow."""
    return any(str(name).startswith(_SCOPES) for name in content)


def _key(name: str) -> tuple[str, str]:
    """The network and the key of a variable."""
    match = _LAYER.fullmatch(name)
    if match is None:
        raise MisfitError(f"{name}: expected a variable of STGAN or of its classifier")
    scope, kind, norm, entry = (match[group] for group in ("scope", "kind", "norm", "entry"))
    number = int(match["number"] or 0)
    network = {"D": "discriminator", "classifier": "classifier"}.get(scope, "generator")
    last = _NORM.get(entry, {"weights": "weight", "biases": "bias"}.get(entry, ""))
    if kind == "flatten_fully_connected":
        if network == "classifier":
            return network, f"fc.{number}.{last}"
        return network, f"{('gan', 'att')[number // 2]}.{number % 2}.{last}"
    if scope == "Gstu":
        if kind == "Conv2d_transpose":
            return network, f"stu.{number}.up.{last}"
        gate = _GATES[number % 3] + ("_norm" if norm else "")
        return network, f"stu.{number // 3}.{gate}.{last}"
    part = {"Genc": "encoder", "Gdec": "decoder", "D": "body", "classifier": "features"}[scope]
    return network, f"{part}.{number}.{'norm' if norm else 'conv'}.{last}"


def convert_tensorflow_checkpoint(
    variables: Mapping[str, Any],
    *,
    image_size: int | Sequence[int] | None = None,
    classifier_size: int | Sequence[int] | None = None,
) -> dict[str, State]:
    """The state of each network from the variables of an STGAN checkpoint of TensorFlow.

    Args:
        variables: arrays or tensors by their names in the graph, such as
            `tf.train.load_checkpoint` gives them; those of optimisers are passed over.
        image_size: of the discriminator's images, one number or (height, width), as its first
            linear layers see channels last there; squares by default.
        classifier_size: the same of the attribute classifier.

    Returns:
        By "generator", "discriminator" and "classifier", those that there are.

    Raises:
        MisfitError: a name that is none of STGAN's, or a linear layer that fits no such image.
    """
    states: dict[str, State] = {}
    for name, value in variables.items():
        if _SKIPPED.fullmatch(name):
            continue
        tensor = torch.as_tensor(value)
        network, key = _key(name)
        if tensor.dim() == 4:
            tensor = tensor.permute(3, 2, 0, 1).contiguous()
        state = states.setdefault(network, {})
        state[key] = tensor
        if key.endswith(".running_mean"):
            count = key.replace("running_mean", "num_batches_tracked")
            state[count] = torch.zeros((), dtype=torch.int64)
    sizes = {"discriminator": image_size, "classifier": classifier_size}
    for network, state in states.items():
        inner = [key for key in state if re.fullmatch(r"(body|features)\.\d+\.conv\.weight", key)]
        channels = (
            state[max(inner, key=lambda key: int(key.split(".")[1]))].shape[0] if inner else 1
        )
        # Two convolutions for each halving of the classifier.
        halvings = len(inner) // (2 if network == "classifier" else 1)
        for key, value in state.items():
            if value.dim() != 2:
                continue
            first = key in ("gan.0.weight", "att.0.weight", "fc.0.weight")
            state[key] = (
                _flattened(value, channels, halvings, sizes[network], key) if first else value.T
            ).contiguous()
    return states


def _flattened(
    weight: Tensor, channels: int, halvings: int, size: int | Sequence[int] | None, key: str
) -> Tensor:
    """A linear layer behind a map whose pixels came before its channels: (h*w*c,out)."""
    places = len(weight) // channels
    if size is None:
        height = width = math.isqrt(places)
    else:
        sides = (size, size) if isinstance(size, int) else size
        height, width = (side // 2**halvings for side in sides)
    if height * width * channels != len(weight):
        raise MisfitError(
            f"{key}: expected {height} x {width} pixels of {channels} channels, got"
            f" {len(weight)} numbers; of what size are the images?"
        )
    whole = weight.reshape(height, width, channels, -1)
    return whole.permute(3, 2, 0, 1).flatten(1)


def _converted(
    content: Mapping[str, Any], size: int | None = None, classifier_size: int | None = None
) -> dict[str, State]:
    try:
        return convert_tensorflow_checkpoint(
            content, image_size=size, classifier_size=classifier_size
        )
    except MisfitError:
        return convert_tensorflow_checkpoint(content)  # squares: the load names what does not fit


# --- options --------------------------------------------------------------------------------------


def options(state: Mapping[str, Any]) -> dict[str, Any]:
    """Model, widths and depths, as far as the networks in a file have them."""
    if is_tensorflow(state):
        told: dict[str, Any] = {}
        for converted in _converted(state).values():
            told |= _told(_shapes(converted))
        return told | {"model": "stgan"}
    apart = [part(state, name) for name in _ENTRIES]
    told = {}
    for inner in [state, *apart]:
        told |= _told(_shapes(inner))
    return told


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items() if isinstance(value, Tensor)}


def _count(shapes: Mapping[str, Any], form: str) -> int:
    return sum(re.fullmatch(form, key) is not None for key in shapes)


def _told(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    if "encoder.0.conv.weight" in shapes and "decoder.0.conv.weight" in shapes:
        told |= _of_generator(shapes)
    for body, levels in (
        ("body", 0),
        ("levels.0.body", _count(shapes, r"levels\.\d+\.score.weight")),
    ):
        first, linear = f"{body}.0.conv.weight", f"{body.removesuffix('body')}gan.0.weight"
        if first not in shapes or linear not in shapes:
            continue
        layers = _count(shapes, rf"{re.escape(body)}\.\d+\.conv\.weight")
        channels = shapes[f"{body}.{layers - 1}.conv.weight"][0]
        side = math.isqrt(shapes[linear][1] // channels) * 2**layers
        told |= {
            "model": "maggan" if body != "body" else "stgan",
            "discriminator_width": shapes[first][0],
            "discriminator_layers": layers,
            "fc_width": shapes[linear][0],
            "size": side * 2**levels,
        }
        if body != "body":
            told["base_size"] = side
        if levels:
            told["patch_width"] = shapes["levels.1.body.0.conv.weight"][0]
            told["patch_layers"] = _count(shapes, r"levels\.1\.body\.\d+\.conv\.weight")
    if "cp.resnet.conv1.weight" in shapes:
        told["parser_width"] = shapes["cp.resnet.conv1.weight"][0]
    if "features.0.conv.weight" in shapes and "fc.0.weight" in shapes:
        width = 2 * shapes["features.0.conv.weight"][0]
        places = shapes["fc.0.weight"][1] // (8 * width)
        told |= {"classifier_width": width, "classifier_size": 32 * math.isqrt(places)}
    return told


def _of_generator(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    layers = _count(shapes, r"encoder\.\d+\.conv\.weight")
    told: dict[str, Any] = {
        "model": "maggan" if "decoder.0.norm.mlp_shared.0.weight" in shapes else "stgan",
        "width": shapes["encoder.0.conv.weight"][0],
        "layers": layers,
        "use_stu": "stu.0.up.weight" in shapes,
    }
    if told["model"] == "maggan":
        buffered = "decoder.0.norm.param_free_norm.running_mean" in shapes
        told["norm"] = "batch" if buffered else "instance"
    if told["use_stu"]:
        told["stu_kernel"] = shapes["stu.0.reset.weight"][2]
        normed = "stu.0.reset_norm.weight" in shapes
        of_batch = "stu.0.reset_norm.running_mean" in shapes
        told["stu_norm"] = ("bn" if of_batch else "in") if normed else "none"
    if further := shapes.get(f"decoder.{layers}.conv.weight"):
        told["one_more_conv"] = further[2]
    return told
