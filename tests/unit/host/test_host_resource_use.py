"""What a lost QEMU could still reach: its images and its taps, asked of the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coloctl.errors import PreconditionFailed
from coloctl.host import LocalHost
from coloctl.host.resource_use import WRITER_BYTE, written
from coloctl.host.tap import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF

pytestmark = pytest.mark.unit

TAP = f"t{os.getpid()}-grip"


@pytest.fixture
def tap() -> Iterator[str]:
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    made = subprocess.run(
        ["ip", "tuntap", "add", TAP, "mode", "tap", "vnet_hdr"], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip("needs the right to make a tap")
    yield TAP
    subprocess.run(["ip", "link", "del", TAP], check=True)


@contextlib.contextmanager
def locked(image: Path, byte: int) -> Iterator[None]:
    """As QEMU does for a permission that it has on an image."""
    with image.open("rb") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)
        yield


def held(images: list[Path], taps: list[str]) -> tuple[str, ...]:
    async def ask() -> tuple[str, ...]:
        async with LocalHost() as host:
            return await host.still_held(images=images, taps=taps)

    return asyncio.run(ask())


def test_only_who_may_write_to_an_image_counts(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1024))
    assert not written(image)
    with locked(image, WRITER_BYTE - 1):  # consistent reads: a backup, `qemu-img info`
        assert not written(image) and held([image], []) == ()
    with locked(image, WRITER_BYTE):
        assert written(image)
        assert f"the image {image} may be written to by" in held([image], [])[0]
    assert held([image], []) == ()


def test_what_cannot_be_asked_is_left_out(tmp_path: Path) -> None:
    assert held([tmp_path / "none"], ["no-such-tap0"]) == ()


def test_a_tap_has_a_user_also_while_it_is_down(tap: str) -> None:
    assert held([], [tap]) == ()
    node = os.open("/dev/net/tun", os.O_RDWR)
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(node, TUNSETIFF, struct.pack("16sH22x", tap.encode(), flags))
        assert held([], [tap])[0].startswith(f"the tap {tap} is open in ")
    finally:
        os.close(node)
    assert held([], [tap]) == ()

    async def usable() -> None:
        async with LocalHost() as host:
            await host.check_tap(tap)

    with contextlib.suppress(PreconditionFailed):
        asyncio.run(usable())
    assert held([], [tap]) == ()
