"""Swap the known layers inside an existing model for the fused ones.

A recogniser goes by a layer's structure: its class name, its children and parameters, and its
attributes. What it builds holds the old layer's own dictionaries of parameters, buffers and hooks,
so an optimiser, a state dict or a handle of a hook that knew the old layer knows the new one.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .nn import RN_B, RN_L, SPADE, ANLs, PartialConv, PartialConv2d, PartialConv3d, PixelNorm
from .nn.modulated_norm import SPDNorm, _ParameterFreeNorm
from .ops import diversity_map, modulated_norm

_ORIGINAL = "_accelerated_from"  # attribute of a new layer; not a child, so it has no keys
# Largest difference, as a share of the largest value, between two right results.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_SIZE = (20, 28)  # height and width of the inputs of the comparison
_ATTEMPTS = 16
_MOST_DILATIONS = 32


class _UnsupportedError(Exception):
    """A layer that looks like a published one, and why it is left alone."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: its path in the model ("" for the model itself).
        kind: its class.
        swapped: whether it was replaced.
        reason: why not, "" if it was.
    """

    name: str
    kind: str
    swapped: bool
    reason: str = ""


@dataclass
class Report:
    """What `accelerate` found; `print` shows it as a table."""

    layers: list[LayerReport] = field(default_factory=list)

    @property
    def swapped(self) -> list[LayerReport]:
        return [layer for layer in self.layers if layer.swapped]

    @property
    def left(self) -> list[LayerReport]:
        return [layer for layer in self.layers if not layer.swapped]

    def __str__(self) -> str:
        if not self.layers:
            return "accelerate: no known layer in this model; nothing was changed"
        rows = [
            (layer.name or "(model)", layer.kind, "swapped" if layer.swapped else layer.reason)
            for layer in self.layers
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
        summary = f"accelerate: {len(self.swapped)} swapped, {len(self.left)} left as they were"
        return "\n".join([*lines, summary])


def accelerate(model: nn.Module, *, verify: bool = True) -> tuple[nn.Module, Report]:
    """Replace the published layers inside a model by the fused ones, in place.

    Known are partial convolutions (the authors' `PartialConv2d`, `PartialConv3d`; `PartialConv` of
    the widely used U-Net and of PD-GAN), `RN_B` and `RN_L`, `SPDNorm` and PD-GAN's hard diversity
    map, `SPADE`, FE-GAN's `ANLs`, AdaIN whose scale and shift are set as attributes, and pixel
    norm, with the structure and attributes of the published code. Parameters stay the same objects;
    buffers, hooks, mode, device, dtype and state-dict keys stay as they are.

    Args:
        model: any module, also inside DataParallel or DistributedDataParallel.
        verify: run a copy of each old and new layer on random inputs first, forward and backward,
            in training and in evaluation, and keep the old layer where they differ by more than
            rounding. The model itself is not run, and none of its state changes.

    Returns:
        The model (another module only if the model itself is a known layer), and the report of all
        layers that were found.

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    report = Report()
    done: dict[int, nn.Module] = {}

    def replacement(name: str, module: nn.Module) -> nn.Module | None:
        """The new layer; None if the module is not a known layer, or is left alone."""
        if id(module) in done:
            return done[id(module)]
        if type(module).__module__.split(".")[0] == "torchext":
            return None
        try:
            found = _recognised(module)
            if found is None:
                return None
            new = found.build(module)
            if verify:
                _verify(found, module, new)
        except _UnsupportedError as problem:
            report.layers.append(LayerReport(name, type(module).__name__, False, str(problem)))
            return None
        new.__dict__[_ORIGINAL] = module
        done[id(module)] = new
        report.layers.append(LayerReport(name, type(module).__name__, True))
        return new

    new_model = replacement("", model)
    if new_model is not None:
        return new_model, report
    for name, parent, key, child in list(_children(model, "")):
        new = replacement(name, child)
        if new is not None:
            parent._modules[key] = new
    return model, report


def restore(model: nn.Module) -> nn.Module:
    """Undo `accelerate`: the old layers return, with the present parameters, buffers and mode.

    Args:
        model: what `accelerate` returned, or a copy of it.

    Returns:
        The model (another module only if the model itself was replaced).

    Raises:
        TypeError: model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    for _, parent, key, child in list(_children(model, "")):
        if _ORIGINAL in child.__dict__:
            parent._modules[key] = _original(child)
    return _original(model) if _ORIGINAL in model.__dict__ else model


def _original(new: nn.Module) -> nn.Module:
    old = new.__dict__[_ORIGINAL]
    old.train(new.training)
    return old


def _children(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module, str, nn.Module]]:
    """(path, parent, key, child) of every module below; also where one module stands twice."""
    for key, child in module._modules.items():
        if child is not None:
            path = f"{prefix}{key}"
            yield path, module, key, child
            yield from _children(child, path + ".")


# --- recognising --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """A published layer.

    Attributes:
        build: makes the new layer; raises _UnsupportedError for what only looks alike.
        inputs: random arguments for the comparison, several calls.
        children: the names of its child modules that it must have.
        prepare: sets what a layer needs before a call, on the copies that are compared.
    """

    build: Callable[[nn.Module], nn.Module]
    inputs: Callable[[nn.Module, nn.Module, "_Draw"], list[tuple[Any, ...]]]
    children: frozenset[str] = frozenset()
    prepare: Callable[[nn.Module], None] | None = None


def _recognised(module: nn.Module) -> _Known | None:
    name = type(module).__name__
    known = _KNOWN.get(name)
    if known is None and list(module._modules) == ["mask_conv"]:
        known = _HARD_MAP  # its class has no settled name
    if known is None:
        bases = [base.__name__ for base in type(module).__mro__[1:] if base.__name__ in _KNOWN]
        if bases:
            raise _UnsupportedError(f"a subclass of {bases[0]}, which may behave otherwise")
        return None
    if not known.children <= set(module._modules):
        return None  # another layer of that name
    for path, part in module.named_modules():
        hooks = [*part._forward_hooks.values(), *part._backward_hooks.values()]
        hooks += [
            hook
            for hook in part._forward_pre_hooks.values()
            if type(hook).__name__ not in ("SpectralNorm", "WeightNorm")
        ]
        if hooks:
            raise _UnsupportedError(f"a hook looks inside ({path or 'itself'})")
        if "forward" in part.__dict__:
            raise _UnsupportedError(f"forward is replaced on the instance ({path or 'itself'})")
    return known


def _expect(condition: bool, text: str) -> None:
    if not condition:
        raise _UnsupportedError(text)


def _attribute(module: nn.Module, name: str, *allowed: Any, label: str = "") -> Any:
    """An attribute that must have one of the values that the new layer knows."""
    value = getattr(module, name, None)
    _expect(
        value in allowed, f"{label}{name} is {value!r}, known are {', '.join(map(repr, allowed))}"
    )
    return value


def _share(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give a new layer the old one's parameters, buffers, hooks and mode."""
    for name in vars(old):
        if name in ("_parameters", "_buffers") or name.endswith("_hooks"):
            new.__dict__[name] = old.__dict__[name]
    new.training = old.training
    return new


def _plain_convolution(module: nn.Module, name: str) -> nn.Conv2d:
    conv = getattr(module, name, None)
    _expect(isinstance(conv, nn.Conv2d), f"{name} is no Conv2d")
    _attribute(conv, "dilation", (1, 1), label=f"{name}.")
    _attribute(conv, "groups", 1, label=f"{name}.")
    _attribute(conv, "padding_mode", "zeros", label=f"{name}.")
    return conv


# --- the layers ---------------------------------------------------------------------------------


class _Draw:
    """Random tensors of a layer's dtype and device."""

    def __init__(self, layer: nn.Module, seed: int) -> None:
        some = next((p for p in layer.parameters() if p.is_floating_point()), torch.empty(0))
        self.dtype, self.device = some.dtype, some.device
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        value = torch.randn(shape, generator=self.generator)
        return value.to(self.device, self.dtype).requires_grad_()

    def mask(self, *shape: int) -> Tensor:
        """0 and 1 in blobs, with whole holes."""
        coarse = torch.rand(
            (*shape[:-2], *(-(-n // 5) for n in shape[-2:])), generator=self.generator
        )
        fine = coarse.repeat_interleave(5, -2).repeat_interleave(5, -1)
        return (fine[..., : shape[-2], : shape[-1]] > 0.4).to(self.device, self.dtype)


def _build_published_partial(old: nn.Module) -> nn.Module:
    kind = PartialConv2d if isinstance(old, nn.Conv2d) else PartialConv3d
    _expect(isinstance(old, (nn.Conv2d, nn.Conv3d)), "no subclass of Conv2d or Conv3d")
    multi_channel = _attribute(old, "multi_channel", False, True)
    return_mask = _attribute(old, "return_mask", False, True)
    kernel = getattr(old, "weight_maskUpdater", None)
    if isinstance(kernel, Tensor):
        _expect(bool((kernel == 1).all()), "weight_maskUpdater holds other values than 1")
    with torch.device("meta"):
        new = kind(
            old.in_channels,
            old.out_channels,
            old.kernel_size,
            old.stride,
            old.padding,
            old.dilation,
            old.groups,
            old.bias is not None,
            old.padding_mode,
            multi_channel=multi_channel,
            return_mask=return_mask,
            published_cache=True,  # as the old layer does
        )
    return _share(new, old)


def _published_partial_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    size = _SIZE if isinstance(old, nn.Conv2d) else (8, *_SIZE)
    C = old.in_channels
    x = draw.normal(2, C, *size)
    channels = C if old.multi_channel else 1
    return [
        (x,),
        (x, draw.mask(2, channels, *size)),
        (x, draw.mask(2, 1, *size).expand(2, channels, *size)),
    ]


class _AcceleratedPartialConv(PartialConv):
    """`PartialConv` that also takes [input, mask], as PD-GAN's layer does."""

    def forward(self, input: Any, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(*input) if mask is None else super().forward(input, mask)


def _build_port_partial(old: nn.Module) -> nn.Module:
    conv, mask_conv = _plain_convolution(old, "input_conv"), _plain_convolution(old, "mask_conv")
    _expect(bool((mask_conv.weight == 1).all()), "mask_conv.weight holds other values than 1")
    _expect(
        mask_conv.bias is None or not mask_conv.bias.any(),
        "mask_conv.bias holds other values than 0",
    )
    for name in ("kernel_size", "stride", "padding", "in_channels"):
        _expect(
            getattr(conv, name) == getattr(mask_conv, name),
            f"{name} of the two convolutions differ",
        )
    _expect(not conv._forward_pre_hooks, "the weight of input_conv is reparametrised")
    with torch.device("meta"):
        new = _AcceleratedPartialConv(1, 1, 1)
    new._modules = old._modules
    return _share(new, old)


def _port_partial_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    C = old.input_conv.in_channels
    x = draw.normal(2, C, *_SIZE)
    masks = [draw.mask(2, 1, *_SIZE).expand(2, C, *_SIZE), draw.mask(2, C, *_SIZE)]
    try:
        with torch.no_grad():
            _copy(old)(x, masks[0])
    except TypeError:  # PD-GAN's takes one list
        return [([x, mask],) for mask in masks]
    return [(x, mask) for mask in masks]


def _build_rn_b(old: nn.Module) -> nn.Module:
    names = {"foreground_gamma", "foreground_beta", "background_gamma", "background_beta"}
    _expect(set(old._parameters) == names, f"its parameters are {sorted(old._parameters)}")
    _expect(old.foreground_gamma.dim() == 1, "foreground_gamma has another shape than (C,)")
    with torch.device("meta"):
        new = RN_B(old.foreground_gamma.numel())
    new._modules = old._modules
    return _share(new, old)


def _rn_b_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    C = old.foreground_gamma.numel()
    mask = draw.mask(2, 1, 2 * _SIZE[0], 2 * _SIZE[1])
    return [(draw.normal(2, C, *_SIZE), mask), (draw.normal(2, C, *_SIZE), torch.zeros_like(mask))]


def _build_rn_l(old: nn.Module) -> nn.Module:
    threshold = getattr(old, "threshold", None)
    _expect(isinstance(threshold, (int, float)), f"threshold is {threshold!r}, no number")
    sa = old.sa
    for name, bias in (("conv1", False), ("gamma_conv", True), ("beta_conv", True)):
        conv = _plain_convolution(sa, name)
        _expect(conv.padding == tuple(k // 2 for k in conv.kernel_size), f"{name} is not padded")
        _expect((conv.bias is not None) == bias, f"{name} has another bias")
        _expect(not conv._forward_pre_hooks, f"the weight of {name} is reparametrised")
    with torch.device("meta"):
        new = RN_L(1, threshold)
        new.sa = _share(type(new.sa)(sa.conv1.kernel_size[0]), sa)
    new.sa._modules = sa._modules
    new._modules = {**old._modules, "sa": new.sa}
    new.feature_channels = getattr(old, "feature_channels", 1)
    return _share(new, old)


def _rn_l_inputs(_: nn.Module, new: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    """Inputs whose saliency keeps away from the threshold: beside it rounding decides."""
    best, margin = draw.normal(2, 6, *_SIZE), -1.0
    for _attempt in range(_ATTEMPTS):
        x = draw.normal(2, 6, *_SIZE)
        with torch.no_grad():
            saliency = new.sa(x)[0]
        distance = float((saliency - new.threshold).abs().min())
        if distance > margin:
            best, margin = x, distance
    return [(best,)]


def _norm_of(old: nn.Module, name: str) -> nn.Module:
    """The parameter-free norm of a modulated layer, with the old one's buffers."""
    norm = getattr(old, name)
    _expect(getattr(norm, "affine", False) is False, f"{name} has an affine")
    kinds = {
        "BatchNorm2d": "batch",
        "SyncBatchNorm": "syncbatch",
        "SynchronizedBatchNorm2d": "syncbatch",
        "InstanceNorm2d": "instance",
        "PositionalNorm2d": "position",
    }
    kind = kinds.get(type(norm).__name__)
    _expect(kind is not None, f"{name} is a {type(norm).__name__}")
    if kind == "instance":
        _expect(not getattr(norm, "track_running_stats", False), f"{name} tracks statistics")
    if kind in ("batch", "syncbatch"):
        _expect(norm.running_mean is not None, f"{name} tracks no statistics")
        _expect(norm.momentum is not None, f"{name} has a cumulative average")
    channels = getattr(norm, "num_features", 1)
    with torch.device("meta"):
        new = _ParameterFreeNorm(
            channels, "batch" if kind == "syncbatch" else kind, synchronised=kind == "syncbatch"
        )
    new.eps = getattr(norm, "eps", new.eps)
    new.momentum = getattr(norm, "momentum", new.momentum)
    without = new._buffers
    _share(new, norm)
    if kind == "position":  # the published class has no buffers, ours has empty ones
        new._buffers = without
    return new


def _modulated(new: nn.Module, old: nn.Module, norm: str) -> nn.Module:
    new._modules = {**old._modules, norm: _norm_of(old, norm)}
    return _share(new, old)


def _hidden_is_relu(shared: nn.Module, name: str) -> None:
    kinds = [type(part).__name__ for part in shared] if isinstance(shared, nn.Sequential) else []
    _expect(kinds == ["Conv2d", "ReLU"], f"{name} is no Conv2d with ReLU")


def _build_spade(old: nn.Module) -> nn.Module:
    _hidden_is_relu(old.mlp_shared, "mlp_shared")
    for name in ("mlp_gamma", "mlp_beta"):
        _plain_convolution(old, name)
    with torch.device("meta"):
        new = SPADE("spadebatch3x3", 1, 1)
    return _modulated(new, old, "param_free_norm")


def _spade_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    label_nc, C = old.mlp_shared[0].in_channels, old.mlp_gamma.out_channels
    coarse = draw.mask(2, label_nc, *_SIZE)
    return [
        (draw.normal(2, C, *_SIZE), coarse),
        (draw.normal(2, C, *_SIZE), draw.normal(2, label_nc, 40, 56)),
    ]


def _build_spdnorm(old: nn.Module) -> nn.Module:
    _hidden_is_relu(old.mlp_activate, "mlp_activate")
    for name in ("mlp_gamma", "mlp_beta"):
        _plain_convolution(old, name)
    with torch.device("meta"):
        new = SPDNorm(1)
    return _modulated(new, old, "param_free_norm")


def _spdnorm_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    C, prior = old.mlp_gamma.out_channels, old.mlp_activate[0].in_channels
    x = draw.normal(2, C, *_SIZE)
    return [
        (x, draw.normal(2, prior, 40, 56), draw.mask(2, 1, *_SIZE)),
        (x, draw.normal(2, prior, *_SIZE), draw.normal(2, C, *_SIZE)),
    ]


def _build_anl(old: nn.Module) -> nn.Module:
    _hidden_is_relu(old.shared, "shared")
    for name in ("gamma", "beta", "conv"):
        _plain_convolution(old, name)
    with torch.device("meta"):
        new = ANLs(1, 1)
    return _modulated(new, old, "batch_norm")


def _anl_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    C, label_nc = old.gamma.out_channels, old.shared[0].in_channels
    return [(draw.normal(2, C, *_SIZE), draw.normal(2, label_nc, 40, 56))]


def _build_pixel_norm(old: nn.Module) -> nn.Module:
    _expect(not old._parameters and not old._modules, "it has parameters or children")
    eps = next((vars(old)[name] for name in ("eps", "epsilon") if name in vars(old)), 1e-8)
    _expect(isinstance(eps, float), f"eps is {eps!r}, no number")
    return _share(PixelNorm(eps), old)


def _pixel_norm_inputs(_: nn.Module, __: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    return [(draw.normal(2, 7, *_SIZE),), (draw.normal(2, 16, 1, 1),)]


class AdaptiveInstanceNorm2d(nn.Module):
    """AdaIN whose scale and shift are set from outside before the call, under the old names.

    It has the name of the published class, by which networks find their AdaIN layers.
    """

    def __init__(self, num_features: int, eps: float, names: tuple[str, str]) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = (getattr(self, name) for name in self.names)
        if scale is None or shift is None:
            raise ValueError(f"{', '.join(self.names)}: set both before the call")
        scale, shift = (value.reshape(x.shape[0], x.shape[1]) for value in (scale, shift))
        return modulated_norm(x, scale, shift, gain="plain", eps=self.eps)


_ADAIN_NAMES = (("weight", "bias"), ("scale", "shift"))


def _build_adain(old: nn.Module) -> nn.Module:
    _expect(not old._parameters and not old._modules, "it has parameters or children")
    found = [names for names in _ADAIN_NAMES if all(hasattr(old, name) for name in names)]
    known = " or ".join(", ".join(names) for names in _ADAIN_NAMES)
    _expect(len(found) == 1, f"its scale and shift are not the attributes {known}")
    _expect(isinstance(getattr(old, "eps", None), float), "eps is no number")
    _expect(isinstance(getattr(old, "num_features", None), int), "num_features is no number")
    new = _share(AdaptiveInstanceNorm2d(old.num_features, old.eps, found[0]), old)
    for name in found[0]:
        setattr(new, name, getattr(old, name))
    return new


def _adain_inputs(old: nn.Module, new: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    return [(draw.normal(2, old.num_features, *_SIZE),)]


def _prepare_adain(layer: nn.Module) -> None:
    """Scale and shift of the comparison; the published code sets them flat, image after image."""
    names = next(names for names in _ADAIN_NAMES if all(hasattr(layer, name) for name in names))
    generator = torch.Generator().manual_seed(6)
    for name in names:
        setattr(layer, name, torch.randn(2 * layer.num_features, generator=generator))


def _build_hard_map(old: nn.Module) -> nn.Module:
    """Its number of dilations and its base are read off the map of one known pixel."""
    window = _plain_convolution(old, "mask_conv")
    size = window.kernel_size[0]
    _expect(
        (window.in_channels, window.out_channels, window.bias) == (1, 1, None)
        and window.kernel_size == (size, size)
        and size % 2 == 1
        and window.padding == (size // 2, size // 2)
        and window.stride == (1, 1),
        "mask_conv is no odd window of one channel that keeps the size",
    )
    _expect(bool((window.weight > 0).all()), "mask_conv.weight holds values that are not positive")
    extent = size // 2 * _MOST_DILATIONS
    mask = torch.zeros(1, 1, 1, 2 * extent + 1).to(window.weight)
    mask[..., 0] = 1
    try:
        with torch.no_grad():
            rings = _copy(old)(mask)
    except Exception as problem:  # whatever a user's layer may raise
        raise _UnsupportedError("it does not take a mask alone") from problem
    _expect(isinstance(rings, Tensor) and rings.shape == mask.shape, "it gives no map of that size")
    values = rings.double().unique().flip(0)
    _expect(2 <= len(values) <= _MOST_DILATIONS and float(values[-1]) > 0, "its map has no rings")
    return _share(_HardMap(len(values) - 1, size, float(values[0] / values[1]), old._modules), old)


class _HardMap(nn.Module):
    """PD-GAN's hard diversity map."""

    def __init__(self, steps: int, window: int, base: float, modules: dict[str, Any]) -> None:
        super().__init__()
        self.steps = steps
        self.window = window
        self.base = base
        self._modules = modules

    def forward(self, mask: Tensor) -> Tensor:
        return diversity_map(mask, self.steps, self.window, self.base).to(mask.dtype)


def _hard_map_inputs(old: nn.Module, _: nn.Module, draw: _Draw) -> list[tuple[Any, ...]]:
    mask = torch.zeros(2, 1, 64, 72, dtype=draw.dtype, device=draw.device)
    mask[0, 0, 3:9, 5:30] = 1  # the second image has no known pixel
    return [(mask,), (draw.mask(2, 1, *_SIZE),)]


_PARTIAL = _Known(_build_published_partial, _published_partial_inputs)
_HARD_MAP = _Known(_build_hard_map, _hard_map_inputs)
_PIXEL_NORM = _Known(_build_pixel_norm, _pixel_norm_inputs)
_SA = frozenset({"sa"})
_MODULATED = frozenset({"param_free_norm", "mlp_gamma", "mlp_beta"})
_KNOWN = {
    "PartialConv2d": _PARTIAL,
    "PartialConv3d": _PARTIAL,
    "PartialConv": _Known(
        _build_port_partial, _port_partial_inputs, frozenset({"input_conv", "mask_conv"})
    ),
    "RN_B": _Known(_build_rn_b, _rn_b_inputs),
    "RN_L": _Known(_build_rn_l, _rn_l_inputs, _SA),
    "SPDNorm": _Known(_build_spdnorm, _spdnorm_inputs, _MODULATED | {"mlp_activate"}),
    "SPADE": _Known(_build_spade, _spade_inputs, _MODULATED | {"mlp_shared"}),
    "ANLs": _Known(
        _build_anl, _anl_inputs, frozenset({"batch_norm", "conv", "shared", "gamma", "beta"})
    ),
    "AdaptiveInstanceNorm2d": _Known(_build_adain, _adain_inputs, prepare=_prepare_adain),
    "PixelNorm": _PIXEL_NORM,
    "PixelNormLayer": _PIXEL_NORM,
    "PixelwiseNorm": _PIXEL_NORM,
}


# --- proof --------------------------------------------------------------------------------------


def _verify(known: _Known, old: nn.Module, new: nn.Module) -> None:
    """Raise _UnsupportedError unless copies of both agree, forward, backward and in state."""
    for training in (True, False):
        copies = [_copy(layer).train(training) for layer in (old, new)]
        for layer in copies if known.prepare else ():
            known.prepare(layer)
        calls = known.inputs(old, new, _Draw(old, seed=int(training)))
        for arguments in calls:
            try:
                got = [_run(layer, arguments) for layer in copies]
            except Exception as problem:  # whatever a user's layer may raise
                text = f"{type(problem).__name__}: {problem}".splitlines()[0]
                raise _UnsupportedError(f"the comparison failed: {text}") from problem
            _compare(*got, "training" if training else "evaluation")


def _copy(layer: nn.Module) -> nn.Module:
    """A deep copy, also where old spectral norm left its last weight, which is no leaf."""
    derived = {
        id(value): value.detach().clone()
        for part in layer.modules()
        for value in vars(part).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(layer, derived)


def _run(layer: nn.Module, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    """Outputs, gradients and the state afterwards."""
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(leaf(item) for item in value)
        if isinstance(value, Tensor) and value.requires_grad:
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]
        return value

    layer.zero_grad()
    with torch.enable_grad():
        outputs = layer(*(leaf(argument) for argument in arguments))
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    results = {f"output {i}": value.detach() for i, value in enumerate(outputs)}
    differentiable = [value for value in outputs if value.requires_grad]
    generator = torch.Generator().manual_seed(2)
    gradients = [
        torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
        for value in differentiable
    ]
    torch.autograd.backward(differentiable, gradients)
    for i, value in enumerate(leaves):
        results[f"gradient of input {i}"] = (
            torch.zeros_like(value) if value.grad is None else value.grad
        )
    for name, parameter in layer.named_parameters():
        if parameter.grad is not None:
            results[f"gradient of {name}"] = parameter.grad.clone()
    results.update({f"buffer {name}": value.clone() for name, value in layer.named_buffers()})
    return results


def _compare(old: dict[str, Tensor], new: dict[str, Tensor], mode: str) -> None:
    for name in old.keys() | new.keys():
        if name not in old or name not in new:
            raise _UnsupportedError(f"only one of the two has {name}, in {mode}")
        a, b = old[name], new[name]
        _expect(a.shape == b.shape, f"{name} differs in shape, in {mode}")
        _expect(a.dtype == b.dtype, f"{name} differs in dtype, in {mode}")
        if a.numel() == 0:
            continue
        scale = max(float(a.double().abs().max()), 1e-3)
        error = float((a.double() - b.double()).abs().max()) / scale
        if not error <= _TOLERANCES.get(a.dtype, 0.0):
            raise _UnsupportedError(f"{name} differs by {error:.1e} of its largest, in {mode}")
