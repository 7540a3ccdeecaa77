"""The lab in real namespaces: what passes, what a cut stops, what is counted."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl

import pytest
from labtools import NAME, NEEDS_ROOT, checksum, ping, stand_in, tcp_pair, transferred

from coloctl.errors import LabError
from coloctl.lab import devices, layout, link, netns, network
from coloctl.lab.network import Lab, labs

pytestmark = pytest.mark.guest

CLIENT_MAC = bytes.fromhex("02000a4d0002")
GUEST_MAC = bytes.fromhex("525400123456")


@pytest.fixture(scope="module", autouse=True)
def _rights() -> None:
    if os.geteuid() != 0:
        pytest.skip(NEEDS_ROOT)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(NAME) as standing:
        yield standing


@pytest.mark.parametrize("host", ["host-a", "host-b"])
def test_the_client_reaches_a_guest_on_either_host(lab: Lab, host: str) -> None:
    stand_in(lab, host)
    assert ping(lab.client, layout.GUEST)


def test_the_replication_link_carries_tcp_between_the_hosts(lab: Lab) -> None:
    near, far = tcp_pair((lab.host_b, layout.REPLICATION_B), lab.host_a)
    with near, far:
        assert near.getsockname()[0] == layout.REPLICATION_A
        assert transferred(near, far, 1_000_000)


def test_the_hosts_do_not_reach_each_other_over_the_guests_lan(lab: Lab) -> None:
    lab.link("replication").cut()
    assert not ping(lab.host_a, layout.REPLICATION_B, 0.3)


PATHS: dict[str, Callable[[Lab, str], bool]] = {
    "replication": lambda lab, _: ping(lab.host_a, layout.REPLICATION_B, 0.3),
    "lan-a": lambda lab, host: host == "host-a" and ping(lab.client, layout.GUEST, 0.3),
    "lan-b": lambda lab, host: host == "host-b" and ping(lab.client, layout.GUEST, 0.3),
    "client": lambda lab, _: ping(lab.client, layout.GUEST, 0.3),
}


@pytest.mark.parametrize("carrier", [False, True])
@pytest.mark.parametrize("which", list(PATHS))
def test_a_cut_stops_this_link_alone_and_healing_restores_it(which: str, carrier: bool) -> None:
    host = "host-b" if which == "lan-b" else "host-a"
    with Lab.up(NAME) as lab:
        stand_in(lab, host)
        assert PATHS[which](lab, host)
        lab.link(which).cut(carrier=carrier)
        assert lab.link(which).state() == ("unplugged" if carrier else "cut")
        with contextlib.suppress(OSError):  # a pulled plug may make the sender fail at once
            assert not PATHS[which](lab, host)
        others = {name: state["state"] for name, state in lab.describe()["links"].items()}
        assert [name for name, state in others.items() if state != "up"] == [which]
        lab.link(which).heal()
        assert lab.link(which).state() == "up"
        # Echoes after a plug was pulled are lost until address resolution asks again.
        assert any(PATHS[which](lab, host) for _ in range(20))


def test_a_silent_cut_sends_no_reset_and_keeps_the_carrier(lab: Lab) -> None:
    near, far = tcp_pair((lab.host_b, layout.REPLICATION_B), lab.host_a)
    with near, far:
        lab.link("replication").cut()
        assert carrier(lab.host_a, "replication") and carrier(lab.host_b, "replication")
        near.sendall(b"lost for now")
        far.settimeout(0.3)
        with pytest.raises(TimeoutError):
            far.recv(100)
        lab.link("replication").heal()
        far.settimeout(5)
        assert far.recv(100) == b"lost for now"


def test_a_pulled_plug_takes_the_carrier_away(lab: Lab) -> None:
    lab.link("replication").ends[1].plug(up=False)
    assert not carrier(lab.host_a, "replication")
    assert lab.link("replication").state() == "mixed"


def carrier(ns: str, device: str) -> bool:
    """Whether the device has a carrier."""
    return link.netlink(
        ns, lambda ip: bool(ip.link("get", index=link.index_of(ip, device))[0].get("carrier"))
    )


def test_a_cut_can_go_one_way_only(lab: Lab) -> None:
    heard = netns.inside(lab.host_b, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with heard:
        heard.bind((layout.REPLICATION_B, 0))
        heard.settimeout(2)
        assert ping(lab.host_a, layout.REPLICATION_B)
        lab.link("replication").ends[1].drop()
        address = heard.getsockname()
        with netns.inside(
            lab.host_a, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ) as speaker:
            speaker.sendto(b"one way", address)
        assert heard.recv(100) == b"one way"
        assert not ping(lab.host_a, layout.REPLICATION_B, 0.3)


@contextlib.contextmanager
def guest_tap(ns: str, name: str) -> Iterator[int]:
    """The tap, opened and raised as QEMU and its launcher would; frames carry a vnet header."""

    def attach() -> int:
        node = os.open(network.TUN_NODE, os.O_RDWR | os.O_CLOEXEC)
        ioctl(node, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x2 | 0x1000 | 0x4000))
        return node

    node = netns.inside(ns, attach)
    try:
        link.netlink(ns, lambda ip: ip.link("set", index=link.index_of(ip, name), state="up"))
        yield node
    finally:
        os.close(node)


def segment(corrupt: bool) -> bytes:
    """An Ethernet frame with a TCP segment from the guest to the client."""
    addresses = socket.inet_aton(layout.GUEST) + socket.inet_aton(layout.CLIENT)
    bare = struct.pack("!HHIIBBHHH", 6379, 40000, 1, 1, 5 << 4, 0x10, 1024, 0, 0) + b"payload!"
    right = checksum(addresses + struct.pack("!BBH", 0, 6, len(bare)) + bare)
    tcp = bare[:16] + struct.pack("!H", right ^ (0x5555 if corrupt else 0)) + bare[18:]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 1, 0, 64, 6, 0) + addresses
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    return CLIENT_MAC + GUEST_MAC + b"\x08\x00" + header + tcp


@pytest.mark.parametrize(("host", "tap"), list(layout.TAPS.items()))
def test_one_corrupt_segment_from_a_tap_is_counted_at_the_client(
    lab: Lab, host: str, tap: str
) -> None:
    ns = layout.namespace(lab.name, host)
    with (
        guest_tap(ns, tap) as node,
        netns.inside(
            lab.client,
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x800)),
        ) as seen,
    ):
        seen.settimeout(2)
        for corrupt in (False, True, False):
            frame = segment(corrupt)
            before = lab.bad_checksums()
            os.write(node, bytes(10) + frame)
            while seen.recv(2048) != frame:
                pass
            # The count follows the capture in the same softirq, a moment later.
            wait_for(lambda before=before, corrupt=corrupt: lab.bad_checksums() == before + corrupt)
            assert lab.bad_checksums() == before + corrupt


def wait_for(true: Callable[[], bool]) -> None:
    """Returns when the predicate holds, or after 2 s."""
    end = time.monotonic() + 2
    while not true() and time.monotonic() < end:
        time.sleep(0.01)


def test_ordinary_tcp_from_a_bridge_to_the_client_has_right_checksums(lab: Lab) -> None:
    stand_in(lab, "host-a")
    near, far = tcp_pair((lab.host_a, layout.GUEST), lab.client)
    with near, far:
        assert transferred(far, near, 1_000_000)
    assert lab.bad_checksums() == 0


def test_a_device_that_keeps_an_offload_is_an_error(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link.IoctlEthtool, "set_offload_flag", lambda *_: None)
    netns.inside(lab.host_a, lambda: None)
    with pytest.raises(LabError, match="tx-checksumming"):
        netns.inside(lab.host_a, lambda: link.check_checksums("replication"))


def test_taps_start_down_and_keep_their_state_when_the_lab_is_mended(lab: Lab) -> None:
    def up(name: str) -> bool:
        listed = link.netlink(lab.host_a, devices.listed)
        return next(bool(device["up"]) for device in listed if device["name"] == name)

    assert not up("tap-a")
    with guest_tap(lab.host_a, "tap-a"):
        Lab.up(NAME)
        assert up("tap-a")


def test_no_machine_of_the_lab_speaks_by_itself(lab: Lab) -> None:
    """Guests must see deterministic traffic: nothing is heard on the LAN for half a second."""
    with netns.inside(
        lab.client, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x3))
    ) as heard:
        heard.settimeout(0.5)
        with pytest.raises(TimeoutError):
            heard.recv(2048)
    text = lab.run(["cat", "/proc/net/if_inet6"], check=False).stdout
    assert text == ""


def test_commands_run_inside_and_their_failures_are_sentences(lab: Lab) -> None:
    listed = lab.run(["cat", "/proc/net/dev"], where="host-b").stdout
    assert "tap-b" in listed and "lan-b" in listed
    with pytest.raises(LabError, match="no-such-command"):
        lab.run(["no-such-command"])
    with pytest.raises(LabError, match="ended with 3"):
        lab.run(["sh", "-c", "exit 3"])
    with pytest.raises(LabError, match=r"within 0\.1 s"):
        lab.run(["sleep", "10"], deadline_s=0.1)
    with pytest.raises(LabError, match="host-c"):
        lab.run(["true"], where="host-c")


def test_a_lab_that_goes_while_labs_are_listed_is_not_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netns, "names", lambda: [f"t{os.getpid()}-gone-lan"])
    assert labs() == []
