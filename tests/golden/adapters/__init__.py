"""Which adapter runs a golden file: one for each (paper, class).

To add a class: in `adapters/PAPER.py` (underscores for hyphens) put an `Adapter` into `ADAPTERS`
under the `class` of its files, and the paper into `_PAPERS` below. If the class is constructed from
the files' `args`, its state keys are the published ones and `call` is Python, the adapter is

    "RN_B": Adapter(RN_B, "rn_b")        # the class, and what a call calls the module

Otherwise subclass `base.Adapter` and override what differs: `build`, `load` (published keys),
`parameters` (the same for grad.KEY), `bindings` (further names in a call), `outputs` (a call that
is prose; take its numbers from `golden.config`, never from here), `objective`, `tolerance`.
Nothing may depend on a single file: others of the same class must run too. Put the files into
`tests/golden/data`.
"""

from . import (
    dagan,
    deepfaceediting,
    fe_gan,
    hair,
    living,
    maggan,
    maskgan,
    michigan,
    partial_convolutions,
    pd_gan,
    region_normalization,
    semantic_photo_manipulation,
)
from .base import Adapter, MissingOutputError

__all__ = ["Adapter", "MissingOutputError", "find"]

_PAPERS: dict[str, dict[str, Adapter]] = {
    "partial-convolutions": partial_convolutions.ADAPTERS,
    "dagan": dagan.ADAPTERS,
    "deepfaceediting": deepfaceediting.ADAPTERS,
    "fe-gan": fe_gan.ADAPTERS,
    "hair-orientation": hair.ADAPTERS,
    "living": living.ADAPTERS,
    "maggan": maggan.ADAPTERS,
    "maskgan": maskgan.ADAPTERS,
    "pd-gan": pd_gan.ADAPTERS,
    "michigan": michigan.ADAPTERS,
    "region-normalization": region_normalization.ADAPTERS,
    "semantic-photo-manipulation": semantic_photo_manipulation.ADAPTERS,
}


def find(paper: str, class_name: str) -> Adapter | None:
    """The adapter of a class, None if there is none yet."""
    return _PAPERS.get(paper, {}).get(class_name)
