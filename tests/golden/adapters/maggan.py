"""MagGAN: the SPADE layer that it takes from its authors."""

from torchext.nn import SPADE

from .base import Adapter
from .dagan import SpadeAdapter

ADAPTERS: dict[str, Adapter] = {"SPADE": SpadeAdapter(SPADE)}
