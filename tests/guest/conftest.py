"""What several tests with a real guest begin with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.clients import guest_spec

from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.pair import PairSpec


@pytest.fixture
def described(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> PairSpec:
    """The lab's guest as a pair in the test's own ``lab``, with the QEMU that can do most."""
    return guest_spec(lab, guest_image, tmp_path, qemu_builds("11.1"))
