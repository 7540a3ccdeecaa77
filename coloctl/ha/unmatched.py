"""Find QEMU's events and console lines of a guest that only the secondary has; pure.

Called by `supervisor.contrast` and `supervisor.compared`, which feed it; `ha.divergence` decides
what the findings prove.

Invariant: an event or a line that the primary has as well within a grace is no sign. A sound
secondary runs earlier or later than the primary, and a checkpoint may take it back to a moment
before the event.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: The primary has so long to do the same, seconds; and it has taken so many checkpoints meanwhile,
#: or had so much longer. Both guests of a sound pair come within 150 ms of each other
#: (docs/qemu.md, "How a guest ends in COLO"), and a checkpoint may lie between.
GRACE_S, GRACE_CHECKPOINTS, GRACE_LONGEST_S = 1.0, 2, 3.0
#: The clock says little where checkpoints come often or the host is busy. So many checkpoints, each
#: of which made both guests the same again, are enough with so long in which nothing kept the
#: primary's processors from running, seconds: three times what lies between two sound guests.
FREE_S = 0.5
#: An event of the primary excuses the secondary for so long, seconds: it may run later.
EXCUSED_S = 5.0
#: Where events take longer than that from a guest's machine, seconds, the primary has all of its
#: time, and this delay besides: checkpoints that are seen late prove nothing sooner.
LATE_S = 0.1

#: Lines and shapes that are remembered of one console.
MEMORY = 20_000
#: Longer lines are cut, bytes.
LONGEST = 400
#: Lines of the secondary of one sort that wait for the primary; what comes beyond that is dropped.
UNMET = 1000

#: Words of a kernel or its init when memory or code is damaged. A group matches the same text for
#: the same kind of damage.
DAMAGE = re.compile(
    rb"(BUG: |kernel BUG at|Oops|general protection|invalid opcode|unable to handle"
    rb"|Kernel panic|double fault|stack segment|segfault at|traps: |Bad page (?:state|map)"
    rb"|list_(?:add|del) corruption|is not a head|EXT4-fs error|corruption"
    rb"|Internal error|BTRFS (?:critical|error)|I/O error|Machine check|Hardware Error"
    rb"|Attempted to kill|double free|stack smashing|core dumped|terminated by signal"
    rb"|Segmentation fault|Illegal instruction|Bus error|scheduling while atomic"
    rb"|unexpected exception|Fatal trap|^panic: |Freezing execution|invalid pointer)"
)
#: Words of a guest that was late, and is not damaged.
LATENESS = re.compile(
    rb"lockup|rcu|blocked for more than|clocksource|hrtimer: interrupt took"
    rb"|transmit queue|RT throttling|watchdog|timekeeping|perf: interrupt took|timed out",
    re.IGNORECASE,
)
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_STAMP = re.compile(rb"^\s*(?:<\d+>)?\[\s*\d+\.\d+\](?:\[\s*[CT]\d+\])?\s*")
_NUMBER = re.compile(rb"\b(?:0x)?[0-9a-fA-F]*\d[0-9a-fA-F]*\b")

#: QEMU's events of a guest, by the name under which they count: of one kind, any excuses another.
GUEST_EVENTS: Mapping[str, str] = {
    "RESET": "reset",
    "GUEST_PANICKED": "panic",
    "GUEST_CRASHLOADED": "panic",
    "WATCHDOG": "watchdog",
    "MEMORY_FAILURE": "memory",
}


# -- time


@dataclass(frozen=True)
class Moment:
    """A moment, by the clock and by the primary's checkpoints."""

    at_s: float
    checkpoints: int
    #: How long the primary's processors were not kept from running, by a checkpoint or a busy host,
    #: seconds from any beginning; None where that is not known.
    free_s: float | None = None
    late_s: float = 0.0  #: an event of either guest is seen so late at most, seconds

    def ripe(self, now: Moment) -> bool:
        """Return whether the primary has had its time to do the same, and it would be seen."""
        late_s = max(self.late_s, now.late_s)
        passed_s = now.at_s - self.at_s - late_s
        if late_s > LATE_S:
            return passed_s >= GRACE_LONGEST_S
        taken = now.checkpoints - self.checkpoints
        known = self.free_s is not None and now.free_s is not None
        free_s = (now.free_s or 0.0) - (self.free_s or 0.0) if known else 0.0
        return (
            passed_s >= GRACE_LONGEST_S
            or (passed_s >= GRACE_S and taken >= GRACE_CHECKPOINTS)
            or (taken >= GRACE_CHECKPOINTS and free_s >= FREE_S)
        )


# -- events


class UnmatchedEvents:
    """QEMU's events of a guest that only the secondary sent."""

    def __init__(self) -> None:
        self.alone: dict[str, None] = {}
        self._pending: list[tuple[str, Moment]] = []
        self._primary_s = float("-inf")

    @property
    def undecided(self) -> bool:
        """True while the primary may still do what the secondary did."""
        return bool(self._pending)

    def eventful(self, at_s: float) -> bool:
        """Return whether either guest was reset or the like lately: it may be in its firmware."""
        return self.undecided or at_s - self._primary_s < EXCUSED_S

    def primary(self, event: str, at_s: float) -> None:
        """Note that the primary's guest did this: an event of the secondary about now is the same.

        A reset follows a panic, and a checkpoint may swallow one of the two.
        """
        self._primary_s = at_s
        self._pending.clear()

    def missed(self, at_s: float) -> None:
        """Note that events of either guest may have been missed, or may come late."""
        self.primary("", at_s)

    def secondary(self, event: str, moment: Moment) -> None:
        """Note that the secondary's guest did this, by itself or by an order to its monitor."""
        if moment.at_s - self._primary_s >= EXCUSED_S + moment.late_s:
            self._pending.append((event, moment))

    def judge(self, now: Moment) -> None:
        """Count against the secondary what the primary has not done within its time."""
        ripe = [event for event, moment in self._pending if moment.ripe(now)]
        self._pending = [one for one in self._pending if not one[1].ripe(now)]
        self.alone.update(dict.fromkeys(ripe))


# -- consoles


def shape(line: bytes) -> bytes:
    """Reduce a line to what both guests of a sound pair write alike: no stamps, no numbers."""
    bare = _STAMP.sub(b"", _ESCAPES.sub(b"", line[:LONGEST]))
    return b" ".join(_NUMBER.sub(b"#", bare).split())


def _marks(line: bytes) -> frozenset[bytes]:
    """Return the kinds of damage that a line reports."""
    return frozenset(found.lower() for found in DAMAGE.findall(line))


@dataclass
class _UnmatchedLine:
    """A line of the secondary that the primary has not written yet."""

    shape: bytes
    line: bytes
    moment: Moment
    marks: frozenset[bytes]  #: kinds of damage that it reports


class UnmatchedLines:
    """The lines that only the secondary wrote to its console."""

    def __init__(self) -> None:
        self.damage: dict[str, None] = {}  #: those about damage
        self.others = 0  #: of any kind, while the primary wrote none
        self._known: dict[bytes, None] = {}  # shapes of the primary
        self._marks: set[bytes] = set()  # kinds of damage of which the primary wrote
        # About damage, and others: a damaged guest writes so much that the first lines, which show
        # most, would be pushed out of one queue before the primary has had its time.
        self._unmet: tuple[deque[_UnmatchedLine], deque[_UnmatchedLine]] = (deque(), deque())
        self._primary_s = float("-inf")

    @property
    def undecided(self) -> bool:
        """True while the primary may still write a line about damage that the secondary wrote."""
        return bool(self._unmet[0])

    def before(self, lines: Iterable[bytes]) -> None:
        """Note what the primary wrote before this session."""
        for line in lines:
            self._know(shape(line))

    def primary(self, lines: Sequence[bytes], at_s: float) -> None:
        """Note what the primary wrote."""
        for line in lines:
            self._know(shape(line))
            self._marks |= _marks(line)
        if lines:
            self._primary_s = at_s

    def missed(self, at_s: float) -> None:
        """Note that some lines of the primary were not read: they may have been any."""
        self._primary_s = at_s
        for unmet in self._unmet:
            unmet.clear()

    def secondary(self, lines: Iterable[bytes], moment: Moment) -> None:
        """Note what the secondary wrote."""
        for line in lines:
            like = shape(line)
            if like and like not in self._known and not LATENESS.search(line):
                one = _UnmatchedLine(like, line[:LONGEST], moment, _marks(line[:LONGEST]))
                unmet = self._unmet[0 if one.marks else 1]
                if len(unmet) < UNMET:
                    unmet.append(one)

    def judge(self, now: Moment) -> None:
        """Count against the secondary what the primary has not done within its time."""
        for one in self._ripe(0, now):
            if not one.marks & self._marks:
                self._hold(one.line)
        silent = (one.moment.at_s - self._primary_s >= EXCUSED_S for one in self._ripe(1, now))
        self.others += sum(silent)

    def _ripe(self, of: int, now: Moment) -> list[_UnmatchedLine]:
        """Take the lines of that queue that the primary has had its time for and did not write."""
        waiting = [one for one in self._unmet[of] if one.shape not in self._known]
        ripe = [one for one in waiting if one.moment.ripe(now)]
        self._unmet[of].clear()
        self._unmet[of].extend(one for one in waiting if not one.moment.ripe(now))
        return ripe

    def _hold(self, line: bytes) -> None:
        text = _STAMP.sub(b"", _ESCAPES.sub(b"", line)).strip().decode(errors="replace")
        if len(self.damage) < 3:  # the first ones show most
            self.damage[text[:120]] = None

    def _know(self, like: bytes) -> None:
        self._known.pop(like, None)
        self._known[like] = None
        if len(self._known) > MEMORY:
            del self._known[next(iter(self._known))]
