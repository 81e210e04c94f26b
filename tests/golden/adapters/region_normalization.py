"""Region normalisation. State keys are used as published, calls where they are Python."""

from typing import Any

from torch import Tensor, nn

from golden.recipe import Golden
from torchext.models import checkpoint
from torchext.models.losses import AdversarialLoss
from torchext.models.pictures import composite
from torchext.models.region_normalization import D_Net, G_Net, saRN_ResnetBlock
from torchext.models.region_normalization.training import l1_in_holes
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


class NetworkAdapter(Adapter):
    """Loads as the paper's checkpoint loader does."""

    def load(self, module: nn.Module, state: dict[str, Tensor]) -> None:
        checkpoint.load_strictly(module, state, "golden file")


class GeneratorAdapter(NetworkAdapter):
    """The input that is no mask and no cotangent is the image; features are cut before storing."""

    def outputs(
        self, module: G_Net, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        (image,) = (inputs[name] for name in inputs if name not in ("mask", "cotangent"))
        encoder = module.encode(image, 1 - inputs["mask"])
        middle = module.middle(encoder)
        cut = (slice(None), slice(None, None, 8), slice(None, None, 2), slice(None, None, 2))
        return {
            "y": module(image, 1 - inputs["mask"]),
            "encoder": encoder[cut],
            "middle": middle[cut],
        }


class DiscriminatorAdapter(NetworkAdapter):
    """In training mode a second input goes through behind the first, and u and v are looked at."""

    def outputs(
        self, module: D_Net, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        score, features = module(inputs["image"])
        results = {"y": score, **{f"f{i}": x[:, ::8] for i, x in enumerate(features)}}
        if "fake" in inputs:
            results["y_fake"] = module(inputs["fake"])[0]
            for i, stage in enumerate(module.children()):
                results[f"u{i}"] = stage[0].weight_u
                results[f"v{i}"] = stage[0].weight_v
        return results


class LossesAdapter(Adapter):
    """The training losses, in the weights of the published script."""

    def outputs(
        self, module: nn.Module, golden: Golden, inputs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        gt, known = inputs["gt"], inputs["mask"]
        real, fake = inputs["d_real"], inputs["d_fake"]
        published, squares, hinge = map(AdversarialLoss, ("probability", "least_squares", "hinge"))
        l1 = l1_in_holes(gt, composite(gt, known, inputs["pred"]), 1 - known)
        gan = published.generator(fake)
        return {
            "l1": l1,
            "gan": gan,
            "g": l1 + 0.1 * gan,
            "d": (published.real(real) + published.fake(fake)) / 2,
            "lsgan_real": squares.real(real),
            "hinge_d_real": hinge.real(real),
            "hinge_d_fake": hinge.fake(fake),
            "hinge_g": hinge.generator(fake),
        }


ADAPTERS: dict[str, Adapter] = {
    "RN_binarylabel": Adapter(RN_binarylabel, "rn"),
    "RN_B": Adapter(RN_B, "rn_b"),
    "RN_L": RNLAdapter(RN_L, "rn_l"),
    "SelfAware_Affine": Adapter(SelfAware_Affine, "affine"),
    "saRN_ResnetBlock": NetworkAdapter(saRN_ResnetBlock, "block"),
    "G_Net": GeneratorAdapter(G_Net),
    "D_Net": DiscriminatorAdapter(D_Net),
    "training losses": LossesAdapter(nn.Identity),
}
