"""Where each attribute may change a face: a table of parts, and the masks that follow from it."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_images
from ..face_labels import BISENET_NAMES
from .attributes import ATTRIBUTES, CELEBA

Parts = tuple[str, ...]
Table = Mapping[str, tuple[Parts, Parts]]  # of each attribute: what adding and removing may change
_BROWS, _EYES, _EARS = ("l_brow", "r_brow"), ("l_eye", "r_eye"), ("l_ear", "r_ear")
_LIPS = ("u_lip", "l_lip")
_HAIR: Parts = ("hair",)
_MOUTH: Parts = ("skin", "mouth", *_LIPS)
_MUSTACHE: Parts = ("skin", "u_lip")  # parsers see one as skin or upper lip
_BEARD: Parts = ("skin", *_LIPS, "neck")
_PALE: Parts = ("skin", *_EARS, "nose", "neck")
_FACE: Parts = ("skin", *_BROWS, *_EYES, *_EARS, "nose", "mouth", *_LIPS, "neck", "hair")

# Of the paper are: Bald, Blond_Hair (hair alone) and Pale_Skin (not what is worn).
INFLUENCE: Table = MappingProxyType(
    {
        # New hair grows over what lies around it.
        "Bald": (_HAIR, ("background", "skin", *_EARS, "ear_r")),
        "Bangs": (("skin", *_BROWS, "hair"), ("skin", "hair")),
        "Black_Hair": (_HAIR, _HAIR),
        "Blond_Hair": (_HAIR, _HAIR),
        "Brown_Hair": (_HAIR, _HAIR),
        "Bushy_Eyebrows": (("skin", *_BROWS), _BROWS),
        # Frames cross skin and nose; where they were, all must be drawn anew.
        "Eyeglasses": (("skin", *_BROWS, *_EYES, "eye_g", "nose"), (*_BROWS, *_EYES, "eye_g")),
        "Male": (_FACE, (*_FACE, "background", "ear_r")),
        "Mouth_Slightly_Open": (_MOUTH, _MOUTH),
        "Mustache": (_MUSTACHE, _MUSTACHE),
        "No_Beard": (_BEARD, _BEARD),
        "Pale_Skin": (_PALE, _PALE),
        "Young": (_FACE, _FACE),
    }
)


def influence_table(
    rows: Sequence[str], table: Table = INFLUENCE
) -> dict[str, tuple[Parts, Parts]]:
    """A table with other rows.

    Args:
        rows: "ATTRIBUTE+:PART|PART|..." of what adding the attribute may change, and
            "ATTRIBUTE-:..." of what removing it may; parts by `face_labels.BISENET_NAMES`. A row
            stands for the whole of what was there.
        table: that they change.

    Raises:
        ValueError: a row of another form, an unknown attribute or part.
    """
    changed = dict(table)
    for row in rows:
        head, colon, tail = row.partition(":")
        attribute, sign = head.strip()[:-1], head.strip()[-1:]
        parts = tuple(part.strip() for part in tail.split("|") if part.strip())
        if not colon or sign not in ("+", "-") or not parts:
            raise ValueError(
                f"regions: expected rows such as 'Bald+:hair|hat' or 'Bald-:skin', got {row!r}"
            )
        if attribute not in CELEBA:
            raise ValueError(f"regions: expected an attribute of CelebA in {row!r}")
        before = changed.get(attribute, (parts, parts))
        changed[attribute] = (parts, before[1]) if sign == "+" else (before[0], parts)
    _check_parts(changed)
    return changed


def _check_parts(table: Table) -> None:
    for attribute, both in table.items():
        for part in (*both[0], *both[1]):
            if part not in BISENET_NAMES:
                raise ValueError(
                    f"regions: expected parts of {BISENET_NAMES} for {attribute}, got {part!r}"
                )


class Influence(NamedTuple):
    """Where an edit acts.

    Attributes:
        regions: (N,n,H,W) in [0,1], of each attribute; 0 of one that stays.
        condition: (N,n,H,W), the regions times what is asked for: what MagGAN's generator sees.
        edit: (N,1,H,W) in [0,1], where anything may change; the rest is to be preserved.
    """

    regions: Tensor
    condition: Tensor
    edit: Tensor


def influence_regions(
    masks: Tensor, att: Tensor, atts: Sequence[str] = ATTRIBUTES, table: Table = INFLUENCE
) -> Influence:
    """The regions that an edit may change, from the masks of a face's parts.

    Args:
        masks: (N,19,H,W) in [0,1]: one-hot labels by `face_labels.BISENET_NAMES`, or their
            probabilities.
        att: (N,n), the difference that is asked for: above 0 adds, below 0 removes, 0 leaves.
        atts: names of the attributes.
        table: what each may change.

    Raises:
        TypeError, ValueError: an argument does not fit, or the table lacks an attribute.
    """
    check_images("masks", masks, len(BISENET_NAMES))
    if att.shape != (len(masks), len(atts)):
        raise ValueError(
            f"att: expected the shape ({len(masks)}, {len(atts)}), got {tuple(att.shape)}"
        )
    _check_parts(table)
    if missing := [name for name in atts if name not in table]:
        raise ValueError(f"table: expected a row for each attribute, lacks {missing}")
    rows = [
        [[float(part in table[name][side]) for part in BISENET_NAMES] for name in atts]
        for side in (0, 1)
    ]
    adding, removing = torch.tensor(rows, dtype=masks.dtype, device=masks.device)
    signs = att.sign().to(masks.dtype)
    # One row of parts for each attribute of each image, then one product.
    chosen = adding * (signs > 0)[..., None] + removing * (signs < 0)[..., None]
    regions = torch.einsum("nap,nphw->nahw", chosen, masks)
    condition = att.to(masks.dtype)[:, :, None, None] * regions
    return Influence(regions, condition, regions.amax(dim=1, keepdim=True))
