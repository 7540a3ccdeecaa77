"""The replication link: a connection counts as silent by what the kernel says alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeBeacon, FakeDeliveries, FakeHost, make_spec

from coloctl.ha.link import (
    CLEAN_MS,
    COVERED_MS,
    DOUBT_MS,
    LOOK_EVERY,
    REFUSED_MS,
    RESENT,
    Crossings,
    LinkWatch,
    MemorySent,
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


def test_a_report_that_is_late_is_no_silence_of_the_link() -> None:
    """Example: an agent's report carried nothing for 20 ms, and ssh is 100 ms late after it."""
    ends = Ends()
    ends.beacons["a"].reported_ms = BEAT_MS
    assert ends.beats(False, None, 6) == BEAT_MS
    ends.beacons["a"].reported_ms = 9 * BEAT_MS  # it was silent indeed
    assert ends.beats(False, None) == 7 * BEAT_MS
    ends.beacons["a"].reported_ms = 0.0
    assert ends.beats(True, None) == 0.0


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


# -- an agent that is late: its datagrams are missing, and QEMU's data crosses the link


class LateAgent(Wire):
    """Node b's agent sends nothing; ``acked`` and ``received`` grow by so much at each beat."""

    def __init__(self, acked: int, received: int, *, known: bool | None = False) -> None:
        super().__init__()
        self.grow = acked, received
        self.data = replace(CUT, unacked=0, resent=0, which=b"packets", port=1)
        self.hosts["a"].sent_data = (self.data,)
        self.after(CLEAN_MS)
        self.beacons["a"].answer, self.beacons["b"].answer = False, known

    def silent(self, *, beats: int) -> list[float]:
        found = []
        for _ in range(beats):
            acked, received = self.data.acked + self.grow[0], self.data.received + self.grow[1]
            self.data = replace(self.data, acked=acked, received=received)
            self.hosts["a"].sent_data = (self.data,)
            self.after(BEAT_MS)
            found.append(self.link.silent_ms or 0.0)
        return found


@pytest.mark.parametrize("known", [False, None])
def test_data_that_crosses_both_ways_shows_a_late_agent_and_no_silent_link(
    known: bool | None,
) -> None:
    whole = round(COVERED_MS / BEAT_MS)
    silent = LateAgent(100, 1, known=known).silent(beats=whole + 1)
    assert max(silent[: whole - 1]) <= DOUBT_MS + BEAT_MS
    assert silent[whole:] == [COVERED_MS + BEAT_MS]


@pytest.mark.parametrize(
    ("acked", "received", "known"),
    [
        pytest.param(0, 0, None, id="cut"),
        pytest.param(0, 0, False, id="cut, and both ends report"),
        pytest.param(0, 1, False, id="cut on the way there: what comes acknowledges nothing"),
        pytest.param(1, 0, None, id="its kernel alone is left"),
    ],
)
def test_a_link_that_is_cut_is_found_as_soon_as_without_the_data(
    acked: int, received: int, known: bool | None
) -> None:
    wire = LateAgent(acked, received, known=known)
    assert wire.silent(beats=50) == [BEAT_MS * n for n in range(1, 51)]


def test_a_link_full_of_memory_is_whole_while_both_ends_report() -> None:
    """The memory of a checkpoint goes one way, and the datagrams find no room."""
    silent = LateAgent(4096, 0, known=False).silent(beats=round(COVERED_MS / BEAT_MS) - 1)
    assert max(silent) <= DOUBT_MS + BEAT_MS


def test_memory_counts_as_sent_when_it_is_acknowledged() -> None:
    sent, one = MemorySent(), TcpConnection(b"memory", 1, unacked=0, resent=0, heard=0, acked=700)
    sent.see([one], LOOK_MS)
    assert (sent.bytes, sent.idle_ms) == (0, LOOK_MS)  # of a time before the first look
    sent.see([replace(one, acked=1000)], LOOK_MS)
    assert (sent.bytes, sent.idle_ms) == (300, 0.0)
    sent.see([replace(one, acked=1000)], LOOK_MS)
    sent.see([replace(one, which=b"another", acked=50)], LOOK_MS)
    assert (sent.bytes, sent.idle_ms) == (300, 2 * LOOK_MS)


def test_what_was_on_its_way_when_the_link_was_cut_covers_nothing() -> None:
    wire = LateAgent(100, 1)
    beats = round(DOUBT_MS / BEAT_MS)
    assert wire.silent(beats=beats)[-1] == DOUBT_MS
    wire.grow = 0, 0
    assert wire.silent(beats=1) == [DOUBT_MS + BEAT_MS]


def test_a_cut_is_counted_from_the_last_data_that_crossed() -> None:
    wire = LateAgent(100, 1)
    wire.silent(beats=10)
    wire.grow = 0, 0
    after = wire.silent(beats=6)
    assert after == [after[0] + n * BEAT_MS for n in range(6)]
    assert after[0] <= 2 * BEAT_MS


@given(
    st.lists(
        st.lists(
            st.builds(
                TcpConnection,
                which=st.sampled_from([b"disk", b"memory"]),
                port=st.just(DISK),
                unacked=st.just(0),
                resent=st.just(0),
                heard=st.just(0),
                acked=st.integers(0, 2),
                received=st.integers(0, 2),
            ),
            max_size=2,
            unique_by=lambda one: one.which,
        ),
        max_size=8,
    )
)
def test_data_has_crossed_where_both_counts_of_a_standing_connection_grew(
    looks: list[list[TcpConnection]],
) -> None:
    crossings, before = Crossings(), list[TcpConnection]()
    for found in looks:
        pairs = [(old, one) for old in before for one in found if old.which == one.which]
        acked = any(one.acked > old.acked for old, one in pairs)
        received = any(one.received > old.received for old, one in pairs)
        assert crossings.see(found) is (acked and received)
        before = found
