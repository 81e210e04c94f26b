"""Irregular holes, as a brush leaves them: those that the models are trained on."""

from torchext.models.masks import irregular_hole

__all__ = ["irregular_hole"]
