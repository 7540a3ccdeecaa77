"""Watch the replication link: beacons at both ends, and whether QEMU's own data arrives.

Called by `ha.heartbeat` at every beat; `host.watching` sends and receives the beacons,
`host.delivery` asks the kernel about QEMU's connections.

Invariants: a silence grows only by time in which this process itself ran and the end was known: a
machine out of reach is no silent link. A connection counts as silent only while the link carries
everything else: on a link that loses datagrams a connection may have to send again for seconds, and
taking that for a cut would break a pair that works.
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


def channels(spec: PairSpec) -> dict[int, str]:
    """Name the connections for which the guest waits, by port.

    Packets to compare are not among them: without them every checkpoint comes early, and the pair
    works.
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


class _LinkEnd:
    """One end of the link: how long it has received nothing, and whether that is known now."""

    def __init__(self, beacon: Beacon) -> None:
        self.beacon = beacon
        self.known = True
        self.silent_ms = 0.0
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
            self.silent_ms = 0.0
        elif self.known and not self._excused_ms:
            self.silent_ms += awake_ms
        return bool(carried)


class LinkWatch:
    """Both ends of the replication link, and how long each has received nothing.

    ``deliveries`` are of the same nodes; without them only the beacons count.
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
        if self._number % LOOK_EVERY == 0:
            self._look()
        self._number += 1

    def _look(self) -> None:
        find = self._number % FIND_EVERY == 0
        self._worst = max(
            (
                self._silences[node].see(one.find() if find else one.look(), self._passed_ms)
                for node, one in self._deliveries.items()
            ),
            default=(0.0, 0),
        )
        self._passed_ms = 0.0

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

    def close(self) -> None:
        """Close the beacons and the views of the kernel."""
        for end in self._ends.values():
            end.beacon.close()
        for one in self._deliveries.values():
            one.close()
