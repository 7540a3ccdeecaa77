"""The replication link: a connection counts as silent by what the kernel says alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeBeacon, FakeDeliveries, FakeHost, make_spec

from coloctl.ha.link import (
    CLEAN_MS,
    LOOK_EVERY,
    REFUSED_MS,
    RESENT,
    LinkWatch,
    Silences,
    channels,
)
from coloctl.host.delivery import TcpConnection
from coloctl.model.pair import NODES, NodeName

pytestmark = pytest.mark.unit

BEAT_MS = 20.0
LOOK_MS = LOOK_EVERY * BEAT_MS
SPEC = make_spec()
DISK = SPEC.replication.nbd_port()
CUT = TcpConnection(b"disk", DISK, unacked=3, resent=RESENT, heard=70)


def last(*looks: TcpConnection) -> float:
    """What a look every 100 ms says in the end."""
    silences = Silences()
    return [silences.see([one], LOOK_MS)[0] for one in looks][-1]


def test_what_is_sent_again_and_not_acknowledged_is_silent_since_it_was_first_seen() -> None:
    assert last(CUT) == 0
    assert last(replace(CUT, resent=0), replace(CUT, resent=1), CUT, CUT) == 3 * LOOK_MS


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(replace(CUT, unacked=0, resent=0), id="all of it is acknowledged"),
        pytest.param(replace(CUT, heard=71), id="something came in"),
        pytest.param(replace(CUT, resent=RESENT - 1), id="hardly sent again"),
        # A peer that reads nothing acknowledges all the same, then has no room: the kernel asks
        # whether it has some again, which is no retransmission.
        pytest.param(replace(CUT, unacked=0, resent=0, heard=75), id="the peer does not read"),
        pytest.param(replace(CUT, which=b"another"), id="it is another connection"),
    ],
)
def test_whatever_else_may_be_so_is_no_silence(one: TcpConnection) -> None:
    assert last(CUT, CUT, CUT, one) == 0


SENT = st.builds(
    TcpConnection,
    which=st.sampled_from([b"disk", b"memory"]),
    port=st.just(DISK),
    unacked=st.integers(0, 2),
    resent=st.integers(0, 3),
    heard=st.integers(0, 2),
)


@given(st.lists(st.lists(SENT, max_size=2, unique_by=lambda one: one.which), max_size=12))
def test_a_silence_is_no_longer_than_the_time_since_something_was_heard(
    looks: list[list[TcpConnection]],
) -> None:
    silences = Silences()
    for number, sent in enumerate(looks):
        said, _ = silences.see(sent, LOOK_MS)
        assert said <= number * LOOK_MS
        assert not said or any(one.resent >= RESENT and one.unacked for one in sent)
        for one in sent:
            earlier = [e for e in looks[number - 1] if e.which == one.which] if number else []
            if len(sent) == 1 and (not earlier or earlier[0].heard != one.heard):
                assert said == 0


class Wire:
    """A link whose connections and datagrams are as the test says."""

    def __init__(self) -> None:
        self.hosts = {node: FakeHost(node, []) for node in NODES}
        self.beacons = {node: FakeBeacon(host) for node, host in self.hosts.items()}
        deliveries = {node: FakeDeliveries(host) for node, host in self.hosts.items()}
        self.link = LinkWatch(self.beacons, deliveries, channels(SPEC))

    def after(self, passed_ms: float) -> tuple[float | None, str]:
        for _ in range(round(passed_ms / BEAT_MS)):
            self.link.beat(BEAT_MS, lambda *_: None)
        return self.link.unacked


def test_a_cut_connection_is_told_by_its_name_while_the_link_carries_all_else() -> None:
    for node in NODES:
        wire = Wire()
        assert wire.after(CLEAN_MS) == (0.0, "")
        wire.hosts[node].sent_data = (CUT,)
        silent_ms, name = wire.after(1200)
        assert name == "disk"
        assert silent_ms is not None
        assert 1000 <= silent_ms <= 1200
        wire.hosts[node].sent_data = (replace(CUT, unacked=0, resent=0, heard=71),)
        assert wire.after(LOOK_MS) == (0.0, "")


def test_on_a_link_that_loses_datagrams_a_connection_proves_nothing() -> None:
    wire = Wire()
    wire.after(CLEAN_MS)
    wire.hosts["a"].sent_data = (CUT,)
    assert wire.after(1000)[0]
    wire.hosts["b"].lost += 1
    assert wire.after(CLEAN_MS - BEAT_MS) == (0.0, "")
    assert wire.after(2 * BEAT_MS)[0]


def test_a_new_watch_trusts_its_link_only_after_a_while() -> None:
    wire = Wire()
    wire.hosts["a"].sent_data = (CUT,)
    assert wire.after(CLEAN_MS - BEAT_MS) == (0.0, "")


def test_without_the_kernels_word_there_is_only_the_beacons() -> None:
    beacons = {node: FakeBeacon(FakeHost(node, [])) for node in NODES}
    link = LinkWatch(beacons, {}, channels(SPEC))
    link.beat(BEAT_MS, lambda *_: None)
    assert (link.unacked, link.silent_ms) == ((None, ""), 0.0)


def test_packets_to_compare_are_not_watched() -> None:
    replication = SPEC.replication
    assert set(channels(SPEC)) == {replication.nbd_port(), replication.migration_port()}


# -- ends that are out of reach, and peers whose program has ended


class Ends:
    """A link whose ends answer at each beat what the test sets: True, False or None."""

    def __init__(self) -> None:
        self.hosts = {node: FakeHost(node, []) for node in NODES}
        self.beacons = {node: FakeBeacon(host) for node, host in self.hosts.items()}
        self.link = LinkWatch(self.beacons, {}, {})
        self.timed: list[tuple[str, str]] = []

    def beats(self, a: bool | None, b: bool | None, times: int = 1) -> float | None:
        self.beacons["a"].answer, self.beacons["b"].answer = a, b
        for _ in range(times):
            self.link.beat(BEAT_MS, lambda node, path, _s: self.timed.append((node, path)))
        return self.link.silent_ms


@pytest.mark.parametrize(
    ("a", "b", "silent_ms"),
    [
        (True, True, 0.0),
        (True, None, 0.0),
        (None, True, 0.0),
        (False, None, 3 * BEAT_MS),
        (None, False, 3 * BEAT_MS),
        (False, True, 3 * BEAT_MS),
        (False, False, 3 * BEAT_MS),
        (None, None, None),
    ],
)
def test_an_end_that_is_not_known_is_left_out(
    a: bool | None, b: bool | None, silent_ms: float | None
) -> None:
    ends = Ends()
    assert ends.beats(True, True) == 0.0
    assert ends.beats(a, b, 3) == silent_ms


def test_a_silence_does_not_grow_while_its_end_is_not_known() -> None:
    ends = Ends()
    assert ends.beats(False, True, 2) == 2 * BEAT_MS
    assert ends.beats(None, True, 50) == 0.0
    assert ends.beats(False, True) == 3 * BEAT_MS
    assert ends.beats(True, True) == 0.0


@pytest.mark.parametrize("node", NODES)
def test_a_peer_whose_kernel_answers_is_no_silent_link_and_its_silence_after_that_is(
    node: NodeName,
) -> None:
    """The program at the other end has ended; its machine and the link are there."""
    ends = Ends()
    here, there = (False, None) if node == "a" else (None, False)
    for _ in range(3):  # one answer a second
        ends.beacons[node].refused += 1
        assert ends.beats(here, there, 50) == 0.0
    excused = round(REFUSED_MS / BEAT_MS) - 50
    assert ends.beats(here, there, excused) == 0.0
    assert ends.beats(here, there, 6) == pytest.approx(6 * BEAT_MS, abs=BEAT_MS)
    assert ends.timed == [], "no datagram has come"


ANSWERS = st.sampled_from([True, False, None])


@given(st.lists(st.tuples(ANSWERS, ANSWERS, st.booleans()), max_size=40))
def test_a_link_is_silent_for_no_longer_than_an_end_has_known(
    beats: list[tuple[bool | None, bool | None, bool]],
) -> None:
    ends = Ends()
    known = {"a": 0, "b": 0}
    for a, b, refused in beats:
        ends.beacons["a"].refused += refused
        silent_ms = ends.beats(a, b)
        known["a"] = 0 if a or refused else known["a"] + (a is False)
        known["b"] = 0 if b else known["b"] + (b is False)
        assert (silent_ms is None) == (a is None and b is None)
        assert (silent_ms or 0.0) <= max(known.values()) * BEAT_MS


def test_connections_prove_nothing_where_an_end_may_have_lost_datagrams_unseen() -> None:
    wire = Wire()
    wire.beacons["b"].answer = None
    wire.hosts["a"].sent_data = (CUT,)
    assert wire.after(2 * CLEAN_MS) == (0.0, "")
    wire.beacons["b"].answer = True
    assert wire.after(CLEAN_MS - BEAT_MS) == (0.0, "")
    assert wire.after(2 * BEAT_MS)[0]
