"""`torchext.models.orientation` and its command, under the name by which users know them."""

import sys

from .models.orientation import *  # noqa: F403
from .models.orientation.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
