"""Real taps: those that a process holds are left as they are, and the guest's own are put right.

Goal: neither a second start nor a slip of the hand takes a guest off its LAN. Method: a firmware
guest on the lab's tap, a start of the same pair from another state folder, and the tap set down.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.moments import Mortal
from support.smallpair import put_on_hosts, write_small_pair
from test_netns_host import TAP_OWNER

from coloctl import paths
from coloctl.colo import taps
from coloctl.host import NetnsHost
from coloctl.lab import layout, netns, qemu
from coloctl.lab.network import Lab
from coloctl.pairfile import load

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-taps") as lab:
        yield lab


@pytest.fixture
def pair(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    """A pair of firmware guests on the lab's taps."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    file = write_small_pair(tmp_path / "taps.toml", qemu.provide("11.1"))
    nic = (
        '[[nic]]\nid = "hn0"\nmac = "52:54:00:c0:10:07"\n'
        f'tap = {{ a = "{layout.TAPS["host-a"]}", b = "{layout.TAPS["host-b"]}", '
        f'bridge = "{layout.BRIDGE}" }}\n'
    )
    put_on_hosts(file, lab, nic)
    pair = Mortal(file)
    try:
        yield pair
    finally:
        if paths.pair_dir(pair.name).exists():
            pair.type("stop", pair.name, "--force", "--yes")


def is_up(lab: Lab, host: str) -> bool:
    async def asked() -> bool | None:
        async with NetnsHost(layout.namespace(lab.name, host)) as there:
            return await there.tap_is_up(layout.TAPS[host])

    return asyncio.run(asked()) is True


def set_down(lab: Lab, host: str) -> None:
    async def done() -> None:
        async with NetnsHost(layout.namespace(lab.name, host)) as there:
            await there.tap(layout.TAPS[host], up=False)

    asyncio.run(done())


async def test_taps_that_a_process_holds_are_left_up(
    lab: Lab, pair: Mortal, tmp_path: Path
) -> None:
    spec = load(pair.file)
    fifo, tap = tmp_path / "fifo", layout.TAPS["host-a"]
    os.mkfifo(fifo)

    async with NetnsHost(lab.host_a) as host:
        await host.tap(tap, up=True)
        assert not await host.tap_held(tap)
        argv = [sys.executable, "-c", TAP_OWNER, tap, str(fifo)]
        with netns_process(lab.host_a, argv) as owner:
            assert owner.stdout is not None and b"attached" in owner.stdout.readline()
            assert await host.tap_held(tap)
            await taps.lower_free(spec, host, "a")
            assert await host.tap_is_up(tap)
        await taps.lower_free(spec, host, "a")
        assert await host.tap_is_up(tap) is False
        assert not await host.tap_held("no-such-tap")
        assert await host.tap_is_up("no-such-tap") is None


class netns_process:  # noqa: N801 - a context that reads like a function
    """A program in that namespace; it has ended behind the block."""

    def __init__(self, namespace: str, argv: list[str]) -> None:
        def started() -> subprocess.Popen[bytes]:
            return subprocess.Popen(argv, stdout=subprocess.PIPE)

        self._process = netns.inside(namespace, started)

    def __enter__(self) -> subprocess.Popen[bytes]:
        return self._process

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_start_from_another_state_folder_leaves_the_guest_on_its_lan(
    lab: Lab, pair: Mortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.type("start", str(pair.file), "--no-protect")
    (guest,) = pair.qemus()
    assert is_up(lab, "host-a")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("COLOCTL_STATE_DIR", str(tmp_path / "other"))
        for words in ((), ("--no-protect", "--from", "b", "--yes")):
            refused = pair.type("start", str(pair.file), *words)
            assert "is in use by process" in refused or "held by another process" in refused
    assert is_up(lab, "host-a") and pair.qemus() == (guest,)


def test_a_tap_that_was_set_down_is_up_again_and_status_says_so(lab: Lab, pair: Mortal) -> None:
    pair.type("start", str(pair.file), "--no-protect")
    set_down(lab, "host-a")
    pair.until(lambda: is_up(lab, "host-a"))
    pair.until(lambda: "set down from outside" in pair.view()["reason"])
    journal = (paths.pair_dir(pair.name) / "journal.jsonl").read_text()
    assert '"tap-down"' in journal
    pair.type("stop", pair.name, "--force", "--yes")
    assert not is_up(lab, "host-a")
