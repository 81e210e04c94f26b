"""Region normalisation. State keys and calls are used as published."""

from typing import Any

from torchext.nn import RN_B, RN_L, RN_binarylabel, SelfAware_Affine

from .base import Adapter


class RNLAdapter(Adapter):
    """A call may also look at the maps inside: `affine` is the module's own."""

    def bindings(self, module: RN_L) -> dict[str, Any]:
        return {
            **super().bindings(module),
            "affine": module.sa,
            "threshold": module.threshold,
        }


ADAPTERS: dict[str, Adapter] = {
    "RN_binarylabel": Adapter(RN_binarylabel, "rn"),
    "RN_B": Adapter(RN_B, "rn_b"),
    "RN_L": RNLAdapter(RN_L, "rn_l"),
    "SelfAware_Affine": Adapter(SelfAware_Affine, "affine"),
}
