"""Impaired wires of a real lab, each measured by what it does to packets between two sockets."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from labtools import NAME, NEEDS_ROOT, leftovers, ping, stand_in, tcp_pair, transferred
from support.pair_under_test import InjectedFault
from support.pairfiles import pair_text
from support.views import PROTECTED

from coloctl import pairfile
from coloctl.chaos.faults.fault import PairUnderTest
from coloctl.chaos.run.site import LabSite
from coloctl.lab import layout, netns
from coloctl.lab.impairment import Impairment
from coloctl.lab.network import Lab

pytestmark = pytest.mark.guest

#: What a test waits for at most, seconds; nothing measures against it.
PATIENCE_S = 10.0

SO_RCVBUFFORCE = 33  # asm-generic/socket.h


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip(NEEDS_ROOT)
    with Lab.up(NAME) as standing:
        yield standing
    assert not leftovers(NAME)


@pytest.fixture(autouse=True)
def _healed(lab: Lab) -> Iterator[None]:
    yield
    lab.link("replication").heal()
    assert lab.link("replication").state() == "up"
    assert not pumps(lab)


@pytest.fixture
def pair(lab: Lab, tmp_path: Path) -> PairUnderTest:
    hosts = (f"netns:{lab.host_a}", f"netns:{lab.host_b}")
    text = pair_text("wires", hosts=hosts, network="10.66.0")
    (tmp_path / "wires.toml").write_text(f"{text}\n[replication]\nbase_port = 7000\n")

    def ask(name: str, timeout_s: float, /, **arguments: Any) -> Any:
        raise AssertionError("a fault of a wire asks no supervisor")

    return PairUnderTest("wires", LabSite(lab), tmp_path, lambda: PROTECTED, ask)


def inject(
    pair: PairUnderTest, kind: str, target: str = "replication", **params: Any
) -> InjectedFault:
    return InjectedFault(pair, kind, target, params)


def pumps(lab: Lab) -> list[int]:
    """The pumps of any wire of the lab."""
    return [
        pid
        for homes in lab.processes().values()
        for pid, command in homes.items()
        if command.startswith("pump-")
    ]


def until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@contextlib.contextmanager
def udp(lab: Lab, sender: str = "a", port: int = 0) -> Iterator[tuple[socket.socket, Any]]:
    """Two sockets that are connected over the replication wire: the sender's and the other's."""
    addresses = {"a": layout.REPLICATION_A, "b": layout.REPLICATION_B}
    homes = {"a": lab.host_a, "b": lab.host_b}

    def bound(node: str) -> socket.socket:
        made = netns.inside(homes[node], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        made.settimeout(0.3)
        made.bind((addresses[node], port))
        return made

    with bound("a") as a, bound("b") as b:
        a.connect(b.getsockname())
        b.connect(a.getsockname())
        yield (a, b) if sender == "a" else (b, a)


def arrivals(
    lab: Lab, count: int, *, sender: str = "a", size: int = 100
) -> list[tuple[int, float]]:
    """Which of ``count`` datagrams sent at once arrived, in their order, and after how long."""
    found: list[tuple[int, float]] = []
    with udp(lab, sender) as (near, far):
        for number in range(count):
            near.send(struct.pack("!Id", number, time.monotonic()).ljust(size, b"."))
        with contextlib.suppress(TimeoutError):
            while len(found) < count:
                number, sent_s = struct.unpack_from("!Id", far.recv(size))
                found.append((number, time.monotonic() - sent_s))
    return found


def test_loss_takes_its_share_and_healing_gives_it_back(lab: Lab) -> None:
    assert len(arrivals(lab, 500)) == 500
    lab.link("replication").impair(Impairment(loss_percent=30))
    assert lab.link("replication").state() == "impaired"
    for sender in "ab":
        assert 250 < len(arrivals(lab, 500, sender=sender)) < 450
    lab.link("replication").heal()
    assert len(arrivals(lab, 500)) == 500


def test_a_delay_makes_every_frame_late_in_the_order_in_which_they_were_sent(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=30, jitter_ms=10))
    for sender in "ab":
        came = arrivals(lab, 50, sender=sender)
        assert [number for number, _ in came] == list(range(50))
        assert min(late_s for _, late_s in came) >= 0.020


def test_a_delay_one_way_leaves_the_other_as_it_was(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=80), sender=lab.host_b)
    assert min(late_s for _, late_s in arrivals(lab, 5, sender="b")) >= 0.080
    assert min(late_s for _, late_s in arrivals(lab, 5, sender="a")) < 0.080


def test_reordering_changes_the_order_and_loses_nothing(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=20, reorder_percent=20))
    order = [number for number, _ in arrivals(lab, 200)]
    assert sorted(order) == list(range(200)) and order != sorted(order)


def test_a_narrow_wire_carries_no_more_than_it_is_wide(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(rate_kbit=8000))
    near, far = tcp_pair((lab.host_b, layout.REPLICATION_B), lab.host_a)
    with near, far:
        began_s = time.monotonic()
        assert transferred(near, far, 500_000)
        assert time.monotonic() - began_s >= 0.5


def test_large_frames_pass_a_slow_wire_whole_and_right(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=2))
    near, far = tcp_pair((lab.host_b, layout.REPLICATION_B), lab.host_a)
    with near, far:
        pattern = os.urandom(60_000)
        assert transferred(near, far, 32 << 20)
        far.sendall(pattern)  # its own end is still open
        came = b""
        while len(came) < len(pattern):
            came += near.recv(len(pattern))
        assert came == pattern


def test_a_wire_that_flaps_lets_some_bursts_through_and_others_not(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(up_s=0.2, down_s=0.2))
    heard = []
    with udp(lab) as (near, far):
        far.setblocking(False)
        for number in range(80):
            near.send(bytes([number]))
            time.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(far.recv(1)[0])
    gaps = sum(b - a > 3 for a, b in itertools.pairwise(heard))
    assert gaps >= 2 and 10 < len(heard) < 70


def test_the_clients_lan_is_impaired_with_its_checksums_right(lab: Lab) -> None:
    stand_in(lab, "host-a")
    before = lab.bad_checksums()
    near, far = tcp_pair((lab.host_a, layout.GUEST), lab.client)
    lab.link("client").impair(Impairment(delay_ms=5, loss_percent=1))
    with near, far:
        assert transferred(far, near, 1_000_000)
    lab.link("client").heal()
    assert lab.bad_checksums() == before
    assert not pumps(lab)


def test_a_cut_goes_one_way_and_healing_ends_it(lab: Lab, pair: PairUnderTest) -> None:
    fault = inject(pair, "cut-one-way", sender="secondary")
    assert len(arrivals(lab, 3, sender="a")) == 3
    assert not arrivals(lab, 3, sender="b")
    fault.heal()
    assert len(arrivals(lab, 3, sender="b")) == 3
    fault.heal()


@pytest.mark.parametrize("carrier", [False, True])
def test_a_cut_of_the_primarys_lan_leaves_the_other_wires_alone(
    lab: Lab, pair: PairUnderTest, carrier: bool
) -> None:
    fault = inject(pair, "cut", "lan-primary", carrier=carrier)
    assert (fault.nodes, fault.role) == (("a",), "primary")
    assert lab.link("lan-a").state() == ("unplugged" if carrier else "cut")
    assert lab.link("lan-b").state() == lab.link("replication").state() == "up"
    fault.heal()
    assert lab.link("lan-a").state() == "up"


@pytest.mark.parametrize("kind", ["loss", "delay", "reorder", "bandwidth", "flap"])
def test_each_kind_of_impairment_strikes_and_heals(
    lab: Lab, pair: PairUnderTest, kind: str
) -> None:
    fault = inject(pair, kind)
    assert lab.link("replication").state() == "impaired"
    fault.heal()
    assert lab.link("replication").state() == "up" and not pumps(lab)


def test_a_cut_of_a_service_hits_its_connections_and_no_others(
    lab: Lab, pair: PairUnderTest
) -> None:
    ports = pairfile.load(pair.home / "wires.toml").replication

    def connected(port: int) -> tuple[socket.socket, socket.socket]:
        return tcp_pair((lab.host_b, layout.REPLICATION_B), lab.host_a, port)

    with contextlib.ExitStack() as stack:
        nbd, other = (
            [*map(stack.enter_context, connected(port))]
            for port in (ports.nbd_port(), ports.migration_port())
        )
        fault = inject(pair, "cut-service", service="nbd")
        for near, far in (nbd, nbd[::-1]):
            near.send(b"late")
            far.settimeout(0.3)
            with pytest.raises(TimeoutError):
                far.recv(4)
        for near, far in (other, other[::-1]):
            near.send(b"on time")
            assert far.recv(7) == b"on time"
        second = inject(pair, "cut-service", service="heartbeat")
        with udp(lab, port=ports.heartbeat_port()) as (near, far):
            near.send(b"lost")
            with pytest.raises(TimeoutError):
                far.recv(4)
            second.heal()
            near.send(b"heard")
            assert far.recv(5) == b"heard"
        fault.heal()
        for _, far in (nbd, nbd[::-1]):
            far.settimeout(PATIENCE_S)
            assert far.recv(4) == b"late"


def test_a_killed_pump_is_a_cut_that_healing_ends(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=1))
    assert ping(lab.host_a, layout.REPLICATION_B)
    (pid,) = pumps(lab)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not pumps(lab))
    assert not ping(lab.host_a, layout.REPLICATION_B, 0.2)
    lab.link("replication").heal()
    assert ping(lab.host_a, layout.REPLICATION_B)


def test_a_pump_that_stands_still_is_ended_too(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=1))
    (pid,) = pumps(lab)
    os.kill(pid, signal.SIGSTOP)
    lab.link("replication").impair(Impairment(delay_ms=1))
    assert pumps(lab) != [pid] and len(pumps(lab)) == 1


CRASH = """
import os, signal, sys
from coloctl.lab.impairment import Impairment
from coloctl.lab.network import Lab
Lab.open(sys.argv[1]).link("replication").impair(Impairment(delay_ms=1))
print("impaired", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_pump_ends_with_whoever_started_it_and_the_wire_can_be_healed(lab: Lab) -> None:
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH, lab.name], stdout=subprocess.PIPE, check=False
    )
    assert crashed.stdout == b"impaired\n"
    until(lambda: not pumps(lab))
    lab.link("replication").heal()
    assert ping(lab.host_a, layout.REPLICATION_B)


def test_an_impaired_lab_goes_down_without_a_trace_and_nobody_is_told_to_go() -> None:
    name = f"{NAME}-i"
    standing = Lab.up(name)
    try:
        standing.link("replication").impair(Impairment(delay_ms=5))
        standing.link("client").impair(Impairment(loss_percent=1))
        standing.link("replication").cut_ports("nbd", tcp=[7099])
        assert len(pumps(standing)) == 2
    finally:
        deeds = standing.down()
    assert deeds == [] and not leftovers(name)


def test_building_a_lab_again_heals_what_was_impaired(lab: Lab) -> None:
    lab.link("replication").impair(Impairment(delay_ms=5))
    lab.link("replication").cut_ports("heartbeat", udp=[7097])
    Lab.up(lab.name)
    assert lab.link("replication").state() == "up" and not pumps(lab)
    with udp(lab, port=7097) as (near, far):
        near.send(b"heard")
        assert far.recv(5) == b"heard"
