"""With TORCHEXT_EMULATOR_RACES=1 a test fails if its emulated kernels race."""

import os
from collections.abc import Iterator

import pytest
from support.backends import emulator

if os.environ.get("TORCHEXT_EMULATOR_RACES", "0") not in ("", "0"):

    @pytest.fixture(autouse=True)
    def no_races() -> Iterator[None]:
        yield
        _, found = emulator().races()
        assert not found
