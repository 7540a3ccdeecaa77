"""Watch the replication link: beacons at both ends, and whether QEMU's own data arrives.

Called by `ha.heartbeat` at every beat; `host.watching` sends and receives the beacons,
`host.delivery` asks the kernel about QEMU's connections.

Invariants: a silence grows only by time in which this process itself ran and the end was known: a
machine out of reach is no silent link, nor is one whose reports are late on their way. Nor is one
over which QEMU's data goes both ways: an agent that is starved sends no datagram. A connection
counts as silent only while the link carries everything else: on a link that loses datagrams a
connection may have to send again for seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from coloctl.host.delivery import Deliveries, TcpConnection
from coloctl.host.watching import Beacon
from coloctl.model.pair import NodeName, PairSpec

#: Called with node, path ("rescue", "command" or "link") and seconds for each probe answered.
Timed = Callable[[str, str, float], None]

#: The kernel is asked about each connection at every so many beats, and looked through for new
#: ones at every so many: that costs a millisecond on a host with room for many.
LOOK_EVERY = 5
FIND_EVERY = 100
#: So often in a row the kernel has sent something again, by its own measure of this link, before
#: that it is not acknowledged says anything.
RESENT = 2
#: A link that lost a datagram is not trusted to carry everything for so long, milliseconds.
CLEAN_MS = 5000.0
#: A peer whose kernel answered that no program has the port sends no datagram, so for this long
#: none is missed, milliseconds. Linux sends six such answers at once and then one a second
#: (``icmp_ratelimit``; seen on 6.18 between two network namespaces), and one may be lost.
REFUSED_MS = 2500.0
#: A link without datagrams is in doubt after so long, milliseconds: two beats, and then the kernel
#: is asked at each. QEMU's data that crosses it both ways after that shows that the link is whole
#: and the agent late. On a link that was cut, what is on its way has arrived by then.
DOUBT_MS = 40.0
#: It shows that for so long at most, milliseconds: a link that carries no datagram for longer is
#: no link for this purpose. As long as an agent may report nothing (`ha.limits`).
COVERED_MS = 1000.0


def channels(spec: PairSpec) -> dict[int, str]:
    """Name the connections for which the guest waits, by port.

    Packets to compare are not among them: without them every checkpoint comes early, and the pair
    works. That data arrives shows a link that is whole, whichever connection it is.
    """
    replication = spec.replication
    return {replication.nbd_port(): "disk", replication.migration_port(): "memory"}


class Silences:
    """The silences of one host's connections: how long sent data has had no answer; pure."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[TcpConnection, float]] = {}

    def see(self, sent: Iterable[TcpConnection], passed_ms: float) -> tuple[float, int]:
        """Return the longest silence that the kernel attests, milliseconds, and its port.

        Both are zero where there is none. ``passed_ms`` is the time since the last look. Any data
        that comes in ends a silence.
        """
        before, self._seen = self._seen, {}
        worst = (0.0, 0)
        for one in sent:
            earlier, silent_ms = before.get(one.which, (None, 0.0))
            waits = earlier is not None and earlier.unacked > 0 and one.unacked > 0
            still = waits and earlier is not None and earlier.heard == one.heard
            silent_ms = silent_ms + passed_ms if still else 0.0
            self._seen[one.which] = (one, silent_ms)
            if one.unacked and one.resent >= RESENT:
                worst = max(worst, (silent_ms, one.port))
        return worst


class Crossings:
    """Data that crossed the link both ways from one look to the next; pure.

    The peer's kernel acknowledged what was sent, so the link carries both ways. A machine of which
    only the kernel lives acknowledges too: its QEMU has sent something as well, or its agent
    reports. The latter is so in a checkpoint on a link that is full, where memory goes one way and
    datagrams get lost.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, TcpConnection] = {}

    def see(self, found: Iterable[TcpConnection], *, reported: bool = False) -> bool:
        """Compare with the last look; a connection that is new since then shows nothing.

        ``reported``: both ends report of themselves just now.
        """
        before, self._seen = self._seen, {one.which: one for one in found}
        pairs = [(before[which], one) for which, one in self._seen.items() if which in before]
        acked = any(one.acked > earlier.acked for earlier, one in pairs)
        return acked and (
            reported or any(one.received > earlier.received for earlier, one in pairs)
        )


class MemorySent:
    """The guest's memory that one host's connections have carried, as acknowledged; pure."""

    def __init__(self) -> None:
        self.bytes, self.idle_ms = 0, 0.0
        self._acked: dict[bytes, int] = {}

    def see(self, sent: Iterable[TcpConnection], passed_ms: float) -> None:
        """Count what was acknowledged since the last look, ``passed_ms`` ago."""
        before, self._acked = self._acked, {one.which: one.acked for one in sent}
        grown = sum(
            max(0, acked - before.get(which, acked)) for which, acked in self._acked.items()
        )
        self.bytes += grown
        self.idle_ms = 0.0 if grown else self.idle_ms + passed_ms


class _LinkEnd:
    """One end of the link: how long it has received nothing, and whether that is known now."""

    def __init__(self, beacon: Beacon) -> None:
        self.beacon = beacon
        self.known = True
        self.missed_ms = 0.0  # since the last datagram, as far as is reported
        self._awake_ms = 0.0  # the same as this process counts it
        self._covered_ms = 0.0  # of that, until data was seen to cross the link
        self._refused = beacon.refused
        self._excused_ms = 0.0  # for so long a datagram of the peer is not expected

    def beat(self, awake_ms: float) -> bool:
        """Send and receive; return whether both directions carried a datagram."""
        carried, refused = self.beacon.beat(), self.beacon.refused
        self._excused_ms = max(0.0, self._excused_ms - awake_ms)
        answered, self._refused = refused > self._refused, refused
        if answered:  # the peer's kernel received one of ours, and its answer has come
            self._excused_ms = REFUSED_MS
        self.known = carried is not None
        if carried or answered:
            self.missed_ms = self._awake_ms = self._covered_ms = 0.0
        elif self.known and not self._excused_ms:
            self._awake_ms += awake_ms
            reported_ms = self.beacon.reported_ms  # a report of a datagram may be on its way
            known_ms = self._awake_ms if reported_ms is None else reported_ms
            self.missed_ms = min(self._awake_ms, known_ms)
        return bool(carried)

    def cover(self, passed_ms: float) -> None:
        """Note that data crossed the link within the last ``passed_ms``."""
        self._covered_ms = max(self._covered_ms, self.missed_ms - passed_ms)

    @property
    def silent_ms(self) -> float:
        """The time since a datagram, or data where that is enough, crossed the link."""
        covered_ms = self._covered_ms if self.missed_ms < COVERED_MS else 0.0
        return self.missed_ms - covered_ms


class LinkWatch:
    """Both ends of the replication link, and how long each has received nothing.

    ``deliveries`` are of the same nodes; without them only the beacons count. ``names`` are the
    ports of those of them for which the guest waits.
    """

    def __init__(
        self,
        beacons: Mapping[NodeName, Beacon],
        deliveries: Mapping[NodeName, Deliveries],
        names: Mapping[int, str],
    ) -> None:
        self._ends = {node: _LinkEnd(beacon) for node, beacon in beacons.items()}
        self._deliveries, self._names = deliveries, names
        self._silences = {node: Silences() for node in deliveries}
        self._crossings = {node: Crossings() for node in deliveries}
        self._memory = {node: MemorySent() for node in deliveries}
        self._in_doubt = False  # at the last beat
        self._number = 0
        self._passed_ms = 0.0  # since the last look at the connections
        self._lost = 0
        self._clean_ms = 0.0  # since a datagram was lost, while both ends were known
        self._worst = (0.0, 0)

    def beat(self, awake_ms: float, timed: Timed) -> None:
        """Read what came since the last beat, and send the next datagrams."""
        for node, end in self._ends.items():
            if end.beat(awake_ms):
                timed(node, "link", end.beacon.delay_s or 0.0)
        lost = sum(end.beacon.lost for end in self._ends.values())
        if lost != self._lost:
            self._lost, self._clean_ms = lost, 0.0
        elif all(end.known for end in self._ends.values()):
            self._clean_ms += awake_ms
        self._passed_ms += awake_ms
        doubted, self._in_doubt = self._in_doubt, (self.silent_ms or 0.0) >= DOUBT_MS
        if self._in_doubt or self._number % LOOK_EVERY == 0:
            crossed = self._look()
            # The first look in doubt may show what crossed before the last datagram.
            if crossed and doubted:
                for end in self._ends.values():
                    end.cover(awake_ms)
        self._number += 1

    def _look(self) -> bool:
        """Ask the kernels about each connection; return whether data crossed since the last look.

        Data has crossed where one end alone shows both directions.
        """
        find, crossed = self._number % FIND_EVERY == 0, False
        reported = all(end.known for end in self._ends.values())
        self._worst = (0.0, 0)
        for node, one in self._deliveries.items():
            found = one.find() if find else one.look()
            crossed |= self._crossings[node].see(found, reported=reported)
            waited = [each for each in found if each.port in self._names]
            memory = [each for each in waited if self._names[each.port] == "memory"]
            self._memory[node].see(memory, self._passed_ms)
            self._worst = max(self._worst, self._silences[node].see(waited, self._passed_ms))
        self._passed_ms = 0.0
        return crossed

    @property
    def silent_ms(self) -> float | None:
        """The silence of the end that has been silent for longer, milliseconds; None: not known.

        One end is enough: what it receives confirms what it has sent.
        """
        return max((end.silent_ms for end in self._ends.values() if end.known), default=None)

    @property
    def unacked(self) -> tuple[float | None, str]:
        """The time for which a connection's data had no answer while all else arrived, and which.

        None where the kernel does not show it.
        """
        if not self._deliveries:
            return None, ""
        silent_ms, port = self._worst
        if self._clean_ms < CLEAN_MS or not silent_ms:
            return 0.0, ""
        return silent_ms, self._names.get(port, "")

    def sent(self, node: NodeName) -> tuple[int, float | None]:
        """Return the bytes of memory that ``node`` has sent, and for how long it has sent none.

        The time is None where the kernel does not show it.
        """
        memory = self._memory.get(node)
        return (0, None) if memory is None else (memory.bytes, memory.idle_ms)

    def close(self) -> None:
        """Close the beacons and the views of the kernel."""
        for end in self._ends.values():
            end.beacon.close()
        for one in self._deliveries.values():
            one.close()
