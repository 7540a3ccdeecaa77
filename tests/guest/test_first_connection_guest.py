"""Goal: the first client of a guest that was just protected waits no longer than a later one.

Method: a fresh pair whose guest boots alone, draws its TCP secrets at the first client, as most
guests do, and stays without a client for many checkpoints; then one connection is opened and asked,
and another one. `test_fresh_code_guest.py` does the same with a guest that boots inside COLO.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.clients import booted, first_as_later, guest_spec
from support.pairs import supervised

from coloctl.check import freshcode
from coloctl.lab import guest, qemu
from coloctl.lab.network import Lab
from coloctl.model.protection import Protection

pytestmark = pytest.mark.guest

#: Checkpoints without a client.
IDLE = 12


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-first") as lab:
        yield lab


async def test_the_first_client_waits_no_longer_than_a_later_one(
    lab: Lab,
    guest_image: guest.GuestImage,
    tmp_path: Path,
    qemu_builds: Callable[[str], qemu.Build],
) -> None:
    build = qemu_builds("11.1")
    freshcode.provide(build.binary)
    spec = guest_spec(lab, guest_image, tmp_path, build, loopback=False, syncookies=1)
    spec = replace(spec, guest=replace(spec.guest, ready_line=guest.READY_LINE))

    async with supervised(spec) as stage:
        await stage.start()
        await booted(stage)
        for _ in range(IDLE // 4):
            await stage.checkpoints(4)
        assert stage.state.protection is Protection.COLO
        await first_as_later(stage, lab)
