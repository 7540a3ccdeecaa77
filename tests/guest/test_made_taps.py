"""Taps that coloctl makes itself: what they are, whose they stay, and that none is left.

Goal: `bridge` alone connects a card; a device of another program is never touched, and after every
end, also of a supervisor that was killed, no tap of the pair is left. Method: a bridge in the lab's
namespaces, descriptors opened as QEMU opens them, and a pair of firmware guests that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.moments import Moment, Mortal, survive
from support.smallpair import put_on_hosts, write_small_pair

from coloctl import paths
from coloctl.errors import PreconditionFailed
from coloctl.host import NetnsHost, local_access, maketap
from coloctl.lab import layout, netns, qemu
from coloctl.lab.network import Lab
from coloctl.model.launch import Account, TapOrder

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]

ORDER = TapOrder("ct-test", layout.BRIDGE, "coloctl-web-1 a hn0", vnet_header=True)
SOMEBODY = Account("nobody", 65534, 65534)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(f"t{os.getpid()}-made") as lab:
        yield lab


def ip(namespace: str, *words: str) -> str:
    argv = ["ip", "netns", "exec", namespace, "ip", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def described(namespace: str, name: str) -> dict[str, Any] | None:
    """The device as iproute2 shows it; None where there is none."""
    found = [one for one in json.loads(ip(namespace, "-j", "-d", "link")) if one["ifname"] == name]
    return found[0] if found else None


def made(namespace: str) -> list[str]:
    """The taps that coloctl made there and left."""
    listed = json.loads(ip(namespace, "-j", "link"))
    return [one["ifname"] for one in listed if one["ifname"].startswith("ct-")]


async def test_a_tap_is_a_port_of_the_bridge_and_its_users_alone(lab: Lab) -> None:
    ip(lab.host_a, "link", "set", layout.BRIDGE, "mtu", "1400")
    bridge = described(lab.host_a, layout.BRIDGE)
    assert bridge is not None
    async with NetnsHost(lab.host_a) as host:
        await host.tap_room(ORDER)
        assert described(lab.host_a, ORDER.ifname) is None
        for _ in range(2):  # what an earlier start left is made anew
            await host.make_tap(replace(ORDER, account=SOMEBODY))
        seen = described(lab.host_a, ORDER.ifname)
        assert seen is not None
        tun = seen["linkinfo"]["info_data"]
        assert (seen["master"], seen["mtu"], seen["ifalias"]) == (layout.BRIDGE, 1400, ORDER.mark)
        assert (tun["type"], tun["persist"], tun["user"], tun["group"]) == (
            "tap", True, "nobody", "nogroup",
        )  # fmt: skip
        assert "UP" not in seen["flags"]
        now = described(lab.host_a, layout.BRIDGE)
        assert now is not None and now["address"] == bridge["address"]
        await host.check_tap(ORDER.ifname)
        assert await host.remove_tap(ORDER.ifname, ORDER.mark)
        assert await host.remove_tap(ORDER.ifname, ORDER.mark)
        assert described(lab.host_a, ORDER.ifname) is None


async def test_a_device_of_another_program_is_left_as_it_is(lab: Lab) -> None:
    ip(lab.host_a, "tuntap", "add", ORDER.ifname, "mode", "tap")
    try:
        before = described(lab.host_a, ORDER.ifname)
        async with NetnsHost(lab.host_a) as host:
            for asked in (host.tap_room, host.make_tap):
                with pytest.raises(PreconditionFailed, match="that this pair did not make"):
                    await asked(ORDER)
            assert await host.remove_tap(ORDER.ifname, ORDER.mark)
        assert described(lab.host_a, ORDER.ifname) == before
    finally:
        ip(lab.host_a, "link", "del", ORDER.ifname)


async def test_a_tap_that_is_open_is_kept_until_it_is_closed(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_access, "LET_GO_S", 0.05)
    async with NetnsHost(lab.host_a) as host:
        await host.make_tap(ORDER)
        node = netns.inside(lab.host_a, lambda: maketap.tap.attach(ORDER.ifname, vnet_header=True))
        try:
            assert not await host.remove_tap(ORDER.ifname, ORDER.mark)
            with pytest.raises(PreconditionFailed, match="in use by another process"):
                await host.make_tap(ORDER)
            assert described(lab.host_a, ORDER.ifname) is not None
        finally:
            os.close(node)
        assert await host.remove_tap(ORDER.ifname, ORDER.mark)
        with pytest.raises(PreconditionFailed, match="is not a bridge of the kernel"):
            await host.make_tap(replace(ORDER, bridge="lo"))


#: Makes the tap and is killed by its own signal at the call whose number is the first argument.
KILLED = """
import fcntl, os, signal, sys
from coloctl.host import maketap, netdevice
from coloctl.model.launch import TapOrder
left = int(sys.argv[1])
def counted(call):
    def made(*words, **named):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **named)
    return made
fcntl.ioctl = counted(fcntl.ioctl)
netdevice.mark_and_join = counted(netdevice.mark_and_join)
maketap.make(TapOrder("ct-test", sys.argv[2], "coloctl-web-1 a hn0", vnet_header=True), "here")
print("made")
"""


def test_no_end_of_its_maker_leaves_a_tap_without_its_mark(lab: Lab) -> None:
    """Killed before each of its calls; what it leaves is the whole tap or none."""
    for number in range(1, 9):
        argv = [sys.executable, "-P", "-c", KILLED, str(number), layout.BRIDGE]
        words = ["ip", "netns", "exec", lab.host_a, *argv]
        done = subprocess.run(words, capture_output=True, check=False)
        seen = described(lab.host_a, ORDER.ifname)
        if done.returncode == 0:
            assert number > 4, done
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert seen is None
    else:
        raise AssertionError("it never came to its end")
    assert seen is not None and seen["ifalias"] == ORDER.mark
    netns.inside(lab.host_a, lambda: maketap.remove(ORDER.ifname, ORDER.mark))


@pytest.fixture
def pair(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mortal]:
    """A pair of firmware guests, one in each host of the lab, connected by `bridge` alone."""
    monkeypatch.setenv("COLOCTL_STATE_DIR", str(tmp_path / "s"))
    monkeypatch.setenv("NO_COLOR", "1")
    file = write_small_pair(tmp_path / "made.toml", qemu.provide("11.1"))
    nic = f'[[nic]]\nid = "hn0"\nmac = "52:54:00:c0:10:09"\nbridge = "{layout.BRIDGE}"\n'
    put_on_hosts(file, lab, nic)
    pair = Mortal(file)
    try:
        yield pair
    finally:
        if paths.pair_dir(pair.name).exists():
            pair.type("stop", pair.name, "--force", "--yes")


def test_a_bridge_alone_is_enough_and_nothing_of_it_is_left(
    lab: Lab, pair: Mortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor is killed while it starts; then all that runs; the next start clears up."""
    assert "A tap can be made on bridge" in pair.type("doctor", str(pair.file))
    assert made(lab.host_a) + made(lab.host_b) == []
    outcome = survive(pair, Moment("start", "secondary"))
    assert outcome.supervised and outcome.qemus, outcome
    pair.type("start", str(pair.file))
    assert pair.view()["protection"] == "colo"
    for host, up in ((lab.host_a, True), (lab.host_b, False)):
        (tap,) = made(host)
        seen = described(host, tap)
        assert seen is not None and ("UP" in seen["flags"]) is up
        assert seen["master"] == layout.BRIDGE
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("COLOCTL_STATE_DIR", str(tmp_path / "other"))
        assert "is in use by process" in pair.type("start", str(pair.file), "--no-protect")
    qemus = pair.qemus()
    os.killpg(os.getpgid(pair.view()["supervisor_pid"]), signal.SIGKILL)  # its watcher too
    for pid in qemus:
        os.kill(pid, signal.SIGKILL)
    assert made(lab.host_a) and made(lab.host_b)
    pair.file.write_text(pair.file.read_text().replace('id = "hn0"', 'id = "other"'))
    pair.type("start", str(pair.file), "--no-protect", "--from", "a", "--yes")
    assert len(made(lab.host_a)) == 1 and made(lab.host_b) == []
    pair.type("stop", pair.name, "--force", "--yes")
    assert made(lab.host_a) + made(lab.host_b) == []
