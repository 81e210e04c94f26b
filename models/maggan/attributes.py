"""Attributes of faces: names, CelebA's file of labels, and what an edit asks for.

Labels are 0 (absent) and 1 (present); the networks see them as -0.5 and 0.5.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

CELEBA = (
    *("5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs"),
    *("Big_Lips", "Big_Nose", "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair"),
    *("Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee", "Gray_Hair"),
    *("Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache"),
    *("Narrow_Eyes", "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline"),
    *("Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair", "Wavy_Hair", "Wearing_Earrings"),
    *("Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young"),
)
# Those that published files edit, in the order of the generator's input.
ATTRIBUTES = (
    *("Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Bushy_Eyebrows", "Eyeglasses"),
    *("Male", "Mouth_Slightly_Open", "Mustache", "No_Beard", "Pale_Skin", "Young"),
)
HALF = 0.5  # what labels are to the networks, minus or plus
_NO_HAIR = ("Bald", "Receding_Hairline")
_HAIR_COLOURS = ("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair")
_HAIR_FORMS = ("Straight_Hair", "Wavy_Hair")


def check_names(name: str, attributes: Collection[str]) -> None:
    """Raise ValueError for names that are no attributes of CelebA, none, or one twice."""
    for attribute in attributes:
        if attribute not in CELEBA:
            raise ValueError(f"{name}: expected attributes of CelebA {CELEBA}, got {attribute!r}")
    if not attributes or len(set(attributes)) != len(attributes):
        raise ValueError(f"{name}: expected attributes, each once, got {tuple(attributes)}")


def check_attribute(attribute: str, attributes: Sequence[str]) -> int:
    """The place of an attribute among those given.

    Raises:
        ValueError: it is none of them.
    """
    if attribute not in attributes:
        raise ValueError(f"attribute: expected one of {tuple(attributes)}, got {attribute!r}")
    return attributes.index(attribute)


# --- labels of a data set -------------------------------------------------------------------------


def read_attributes(path: Path) -> dict[str, dict[str, int]]:
    """CelebA's `list_attr_celeba.txt`: the labels of each file, 0 or 1.

    A line with the number of files (which may be missing), one with the attributes' names, then a
    line for each file: its name, and -1 or 1 for each attribute.

    Returns:
        By the file's name without its suffix, then by attribute.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line of another form.
    """
    try:
        lines = [line.split() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a text, a line for each file") from None
    numbered = [(i, words) for i, words in enumerate(lines, start=1) if words]
    if numbered and len(numbered[0][1]) == 1 and numbered[0][1][0].isdigit():
        numbered = numbered[1:]
    if not numbered:
        raise ValueError(f"{path}: expected the attributes' names and a line for each file")
    names = numbered[0][1]
    try:
        check_names(f"{path}, line {numbered[0][0]}", names)
    except ValueError as error:
        raise ValueError(str(error)) from None
    found = {}
    for i, (file, *values) in numbered[1:]:
        if len(values) != len(names) or not {*values} <= {"-1", "1"}:
            raise ValueError(
                f"{path}, line {i}: expected a file's name and -1 or 1 for each of {len(names)}"
                f" attributes, got {' '.join([file, *values])!r}"
            )
        labels = [int(value) > 0 for value in values]
        found[Path(file).stem] = dict(zip(names, map(int, labels), strict=True))
    return found


# --- edits ----------------------------------------------------------------------------------------


def _flipped(labels: dict[str, float], attribute: str) -> None:
    """Flip an attribute; one that is added takes away what it excludes (STGAN's rules)."""
    labels[attribute] = 1 - labels[attribute]
    if not labels[attribute]:
        return
    excluded: tuple[str, ...] = ()
    if attribute in _NO_HAIR:
        excluded = ("Bangs",)
    elif attribute == "Bangs":
        excluded = _NO_HAIR
    for group in (_HAIR_COLOURS, _HAIR_FORMS):
        if attribute in group:
            excluded = tuple(name for name in group if name != attribute)
    labels.update({name: 0 for name in excluded if name in labels})


def target_of(
    source: Tensor,
    edits: Mapping[str, float] | Sequence[str],
    attributes: Sequence[str] = ATTRIBUTES,
) -> Tensor:
    """What the networks are asked to show after edits: -0.5 or 0.5, edited ones times intensity.

    Attributes are flipped one after the other; one that is added takes away what it excludes, such
    as another colour of hair.

    Args:
        source: (N,n) labels, 0 or 1, of the photos.
        edits: attributes to flip, in this order, each with its intensity; names alone mean 1.
            STGAN's published accuracies are those of 2.
        attributes: names of the labels.

    Returns:
        (N,n), floating point.

    Raises:
        TypeError, ValueError: labels of another form, an unknown attribute, or an intensity that
            is no finite number above 0.
    """
    _check_labels(source, attributes)
    edits = edits if isinstance(edits, Mapping) else dict.fromkeys(edits, 1.0)
    for attribute, intensity in edits.items():
        check_attribute(attribute, attributes)
        if not 0 < float(intensity) < float("inf"):
            raise ValueError(
                f"intensity: expected a number above 0 for {attribute}, got {intensity}"
            )
    dtype = source.dtype if source.is_floating_point() else torch.float32
    target = torch.zeros(source.shape, dtype=dtype)
    for n, row in enumerate(source.tolist()):
        labels = dict(zip(attributes, row, strict=True))
        for attribute in edits:
            _flipped(labels, attribute)
        values = [(2 * labels[name] - 1) * HALF * edits.get(name, 1.0) for name in attributes]
        target[n] = torch.tensor(values, dtype=dtype)
    return target.to(source.device)


def as_seen(labels: Tensor) -> Tensor:
    """-0.5 and 0.5, of labels 0 and 1."""
    return (2 * labels - 1) * HALF


def difference(
    source: Tensor,
    edits: Mapping[str, float] | Sequence[str],
    attributes: Sequence[str] = ATTRIBUTES,
) -> Tensor:
    """What a generator is told: the target minus the source; see `target_of`.

    0 to leave an attribute as it is, above 0 to add it, below 0 to take it away.
    """
    target = target_of(source, edits, attributes)
    return target - as_seen(source.to(target.dtype))


def slide(
    source: Tensor, attribute: str, attributes: Sequence[str] = ATTRIBUTES, *, steps: int = 10
) -> Tensor:
    """Differences (steps,n) whose targets for one attribute go from -1 to 1 in equal steps.

    The others stay; nothing is flipped or excluded.

    Args:
        source: (1,n) labels, 0 or 1, of a photo.
        attribute: one of the names.
        attributes: names of the labels.
        steps: at least 2.

    Raises:
        TypeError, ValueError: as of `target_of`; not one photo; fewer than 2 steps.
    """
    _check_labels(source, attributes)
    place = check_attribute(attribute, attributes)
    if len(source) != 1:
        raise ValueError(f"source: expected the labels of one photo, got {len(source)}")
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, got {steps}")
    seen = as_seen(source.to(source.dtype if source.is_floating_point() else torch.float32))
    target = seen.repeat(steps, 1)
    target[:, place] = torch.linspace(-1, 1, steps, dtype=seen.dtype)
    return target - seen


def labels_of(present: Collection[str], attributes: Sequence[str] = ATTRIBUTES) -> Tensor:
    """float32 (1,n): 1 for each attribute that a photo shows.

    Raises:
        ValueError: an unknown attribute.
    """
    for attribute in present:
        check_attribute(attribute, attributes)
    return torch.tensor([[float(name in present) for name in attributes]])


def _check_labels(source: Tensor, attributes: Sequence[str]) -> None:
    if not isinstance(source, Tensor) or source.is_complex():
        raise TypeError(f"source: expected a tensor of labels, got {type(source).__name__}")
    if source.dim() != 2 or source.shape[1] != len(attributes):
        raise ValueError(
            f"source: expected the shape (N, {len(attributes)}), a label for each attribute, got"
            f" {tuple(source.shape)}"
        )
    wrong = source[(source != 0) & (source != 1)]
    if wrong.numel():
        raise ValueError(f"source: expected labels 0 and 1, got {wrong.flatten()[0].item():g}")
