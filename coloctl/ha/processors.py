"""Find a secondary whose processors spin or stand still, and is not just starved; pure.

Called by `supervisor.compared` and `supervisor.cpu_sampling`, which feed it; `ha.divergence`
decides what the findings prove. `ProcessorLoad` compares how much both guests' processors ran,
`Stuck` follows their registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

#: A look at the processors is worth something after so much time in which both guests ran, seconds.
WINDOW_S = 0.25
#: Times that were read longer ago are not compared, seconds: since then a checkpoint may have held
#: the guest. An agent sends them every 40 ms (`host.agent.beat`).
FRESH_S = 0.1
#: A processor that never rests, of its time (what it waited for a processor of the host counts, so
#: that a busy host hides nothing); the primary's rests for half of it or more, and used a quarter
#: of the time or less. Measured on a sound pair: 0.47 at most on both sides, within 10 % of each
#: other; on a secondary that spins: 0.98 against 0.04 (docs/detection.md).
NEVER_RESTS, RESTS, TIMES = 0.9, 0.5, 4.0
#: A guest that does nothing uses less than a tenth of what the primary's does, which works.
NOTHING, SOMETHING = 0.1, 0.01
#: A window in which the secondary is busy for this share, and the primary for this share of that,
#: is a reason to look at the registers; so is this many checkpoints for which
#: the secondary's packet was missing.
BUSY, LESS, SUSPECT_UNMATCHED = 0.8, 0.75, 1
#: A processor is stuck after so many looks in a row, between which it ran so long in all, seconds.
#: A look before which it ran for less than `RAN_S` says nothing: its thread was starved.
STUCK_LOOKS, STUCK_RAN_S, RAN_S = 3, 0.02, 0.001
#: It is proven after so many looks between two checkpoints, or where so many stretches between two
#: checkpoints in a row ended so: a checkpoint gives it the state of the primary's again.
PROOF_LOOKS, PROOF_STRETCHES = 8, 3


@dataclass(frozen=True)
class Worked:
    """The work of one guest's processors up to a moment, seconds."""

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
class ProcessorLoad:
    """The windows in a row in which only the secondary's processors never rest, or do nothing."""

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


@dataclass
class _Row:
    """The looks at one processor since the last checkpoint, and how stretches before it ended."""

    stretch: int  #: the checkpoint since which `seen`, `looks` and what follows count
    seen: int = 0
    looks: int = 0  #: looks in a row, the last one included, in one place without interrupts
    page: int = 0
    halted: bool = False
    first_s: float = 0.0  #: how long it had run at the first of `looks`
    last_s: float = 0.0
    ended: int = 0  #: stretches in a row before this one that it ended stuck

    @property
    def stuck(self) -> bool:
        """True where it takes no interrupt: halted so, or it ran in one place for long enough."""
        ran = self.halted or self.last_s - self.first_s >= STUCK_RAN_S
        return self.looks >= STUCK_LOOKS and ran

    def begin(self, stretch: int) -> None:
        """Begin with the stretch after a checkpoint."""
        if self.seen >= STUCK_LOOKS:  # fewer say nothing of how it ended
            self.ended = self.ended + 1 if self.stuck else 0
        self.stretch, self.seen, self.looks = stretch, 0, 0

    def feed(self, now: Processor) -> None:
        """Count a look."""
        if self.looks and not now.halted and now.ran_s - self.last_s < RAN_S:
            return
        self.seen += 1
        self.last_s = now.ran_s
        if now.interrupts:
            self.looks = 0
        elif self.looks and (now.page, now.halted) == (self.page, self.halted):
            self.looks += 1
        else:
            self.looks, self.page, self.halted = 1, now.page, now.halted
            self.first_s = now.ran_s


class Stuck:
    """The processors of one guest that stay in one place with their interrupts off, look by look.

    A processor with its interrupts off leaves its place by itself only. One whose thread hardly ran
    between two looks was starved, unless it is halted: with its interrupts off it never runs again.
    """

    def __init__(self) -> None:
        self._rows: dict[int, _Row] = {}

    def feed(self, stretch: int, look: Sequence[Processor]) -> None:
        """Count a look at every processor; ``stretch`` numbers the checkpoint before it."""
        for number, now in enumerate(look):
            row = self._rows.setdefault(number, _Row(stretch))
            if row.stretch != stretch:
                row.begin(stretch)
            row.feed(now)

    @property
    def suspicious(self) -> bool:
        """True where a processor was in one place without interrupts twice in a row."""
        return any(row.looks > 1 for row in self._rows.values())

    @property
    def suspected(self) -> bool:
        """True where a stretch ended so, or may end so."""
        return any(row.ended or row.looks for row in self._rows.values())

    def seen_so(self, stretch: int) -> set[int]:
        """Return the numbers of the processors that took no interrupt at the last look."""
        return {n for n, row in self._rows.items() if row.looks and row.stretch == stretch}

    def proven(self) -> set[int]:
        """Return the numbers of the processors that are stuck for certain.

        Certain after `PROOF_LOOKS` looks in one stretch, or `PROOF_STRETCHES` stretches in a row.
        """
        return {
            number
            for number, row in self._rows.items()
            if row.stuck and (row.looks >= PROOF_LOOKS or row.ended + 1 >= PROOF_STRETCHES)
        }
