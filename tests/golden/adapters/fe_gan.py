"""FE-GAN: the attention normalisation layer. A call is prose: x and the condition."""

from torchext.nn import ANLs

from .base import Adapter
from .dagan import SpadeAdapter

ADAPTERS: dict[str, Adapter] = {"ANLs": SpadeAdapter(ANLs)}
