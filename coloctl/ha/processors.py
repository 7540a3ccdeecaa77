"""Tell a secondary whose processors spin or stand still from one that works, or is starved; pure.

`supervisor.contrast` feeds it, `ha.divergence` says what it proves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

#: A look at the processors is worth something after so much time in which both guests ran, seconds.
WINDOW_S = 0.25
#: A processor that never rests, of its time (what it waited for a processor of the host counts, so
#: that a busy host hides nothing); the primary's rests for half of it or more, and used a quarter
#: of the time or less. Measured on a sound pair: 0.47 at most on both sides, within 10 % of each
#: other; on a secondary that spins: 0.98 against 0.04 (docs/detection.md).
NEVER_RESTS, RESTS, TIMES = 0.9, 0.5, 4.0
#: A guest that does nothing uses less than a tenth of what the primary's does, which works.
NOTHING, SOMETHING = 0.1, 0.01
#: A window in which the secondary is busy for this share, and the primary for this share of that,
#: is a reason to look at the registers; so are this many such checkpoints.
BUSY, LESS, SUSPECT_UNMATCHED = 0.8, 0.75, 2
#: A processor has run between so many looks before its place says anything.
RAN_LOOKS = 3


@dataclass(frozen=True)
class Worked:
    """What the processors of one guest have done up to a moment, seconds."""

    at_s: float
    held_s: float  #: how long checkpoints have held the guest
    threads: tuple[tuple[float, float], ...]  #: of each: it ran, and it waited to run


@dataclass(frozen=True)
class _Share:
    """Of the time in which the guest was not held, between two moments."""

    long_s: float
    busiest: float  #: the processor that ran or waited most
    most: float  #: the processor that ran most
    all: float  #: all of them together, run only


def _share(before: Worked, after: Worked) -> _Share:
    long_s = (after.at_s - before.at_s) - (after.held_s - before.held_s)
    ran = [new[0] - old[0] for old, new in zip(before.threads, after.threads, strict=True)]
    wanted = [sum(new) - sum(old) for old, new in zip(before.threads, after.threads, strict=True)]
    span = max(long_s, 1e-6)
    return _Share(long_s, max(wanted) / span, max(ran) / span, sum(ran) / span)


@dataclass
class Load:
    """How many windows in a row only the secondary's processors never rest, or do nothing."""

    spinning: int = 0
    halted: int = 0
    uneven: bool = False  #: in the last window, by enough to look closer
    _last: tuple[Worked, Worked] | None = field(default=None, repr=False)

    def feed(self, primary: Worked, secondary: Worked) -> bool:
        """Compare what both did since the last window; False where that is too little to tell."""
        last = self._last
        same = last is not None and all(
            len(old.threads) == len(new.threads) and new.threads
            for old, new in zip(last, (primary, secondary), strict=True)
        )
        if last is None or not same:
            self._last = (primary, secondary)
            return False
        one, two = _share(last[0], primary), _share(last[1], secondary)
        if min(one.long_s, two.long_s) < WINDOW_S:
            return False
        self._last = (primary, secondary)
        spins = two.busiest >= NEVER_RESTS and one.busiest <= RESTS
        self.spinning = self.spinning + 1 if spins and two.most >= TIMES * one.most else 0
        idle = two.busiest <= NOTHING * one.busiest and one.all >= SOMETHING
        self.halted = self.halted + 1 if idle else 0
        self.uneven = idle or (two.busiest >= BUSY and one.busiest <= LESS * two.busiest)
        return True


# -- registers


@dataclass(frozen=True)
class Processor:
    """One processor of a guest at one look."""

    interrupts: bool
    halted: bool
    page: int  #: of 4 KiB, where its next instruction is
    ran_s: float  #: how long its thread has run so far


def deaf(looks: Sequence[Sequence[Processor]]) -> set[int]:
    """Return the processors that stood in one place with interrupts off at every look.

    One whose thread hardly ran between the looks was starved, unless it is halted: with its
    interrupts off it never runs again.
    """
    found = set[int]()
    for number in range(min(map(len, looks), default=0)):
        seen = [look[number] for look in looks]
        one_place = len({one.page for one in seen}) == 1
        ran = sum(new.ran_s > old.ran_s for old, new in pairwise(seen)) >= RAN_LOOKS
        off = not any(one.interrupts for one in seen)
        if off and one_place and (ran or all(one.halted for one in seen)):
            found.add(number)
    return found
