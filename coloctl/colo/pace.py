"""Choose the delay to the next checkpoint, where a pair chooses it itself; pure.

Called by `supervisor.pacing` through `supervisor.state`, at every checkpoint in adaptive mode.

All that is known of a checkpoint is when the guest stopped for it and for how long (docs/qemu.md,
"Measuring from QMP alone"). Two things follow. First, the share of time in which the guest stands
still: a shorter delay costs more of it. Second, the reason why a checkpoint came before it was due:

* It came sooner after the one before than an answer may wait for the secondary's: two answers
  differed. That takes a checkpoint at once, however long the delay is, and the client waits for its
  pause only.
* It came later: an answer may have had no counterpart, and then its client waited for the whole of
  that time. A delay that is shorter than the wait spares it.

So a long delay serves every load best but the one whose answers wait. Setting the delay takes a
checkpoint, unless one is under way. So a change is wanted at the end of one checkpoint and made in
the middle of the next, and changes are few: the effect of the last one is looked at first, and a
delay that went wrong is not tried again soon.

Invariant: the delay lies within the budget's floor and ceiling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from coloctl.model.pair import CheckpointSpec

#: A checkpoint came before it was due when its period is less than this share of the delay. QEMU's
#: timer and the secondary's stop together were late by up to 8 ms, never early by more than 2.
EARLY_SHARE = 0.75
#: So many early ones without one on time come from the load; a single one may have any cause.
EARLY_ROW = 2
#: After so many checkpoints on time the delay grows, by this factor at most and by that at least.
PATIENCE = 2
GROWTH, GROWTH_MIN = 2.0, 1.25
#: Each time that a delay goes wrong, twice as many on time are awaited before it is tried again.
PATIENCE_MAX = 32
#: The pause that counts is the middle one of so many.
RECENT = 5


@dataclass(frozen=True)
class Budget:
    """The cost that checkpoints may have, and the bounds of the delay."""

    min_ms: int
    max_ms: int
    pause_share: float  #: of the time, that the guest may stand still
    held_ms: int  #: how long a pause may hold answers

    @classmethod
    def of(cls, checkpoint: CheckpointSpec) -> Budget:
        """Return the budget that the pair file states."""
        return cls(
            checkpoint.min_delay_ms,
            checkpoint.max_delay_ms,
            checkpoint.pause_share,
            checkpoint.held_ms,
        )

    def within(self, delay_ms: float) -> int:
        """Return the nearest delay that is allowed at all."""
        return round(min(max(delay_ms, self.min_ms), self.max_ms))

    def floor_ms(self, pause_ms: float) -> int:
        """Compute the shortest delay at which pauses of that length stay within their share of the
        time.

        A pause that holds answers for longer than they may be held counts as just so long. The more
        a guest writes between two checkpoints the longer it stands still, and a delay that grew
        with the pause would only feed it.
        """
        return self.within(math.ceil(min(pause_ms, self.held_ms) / self.pause_share))


@dataclass(frozen=True)
class Pace:
    """The delay in force, the one that is wanted, why, and what was seen since it was changed."""

    budget: Budget
    delay_ms: int
    wanted_ms: int
    why: str = "It is where adaptive mode begins."
    pauses_ms: tuple[float, ...] = ()
    early: int = 0  #: since the last on time, where an answer may have waited
    on_time: int = 0  #: in a row
    wall_ms: float = math.inf  #: the shortest delay that went wrong and was not borne since
    patience: int = PATIENCE  #: on time in a row, before the wall is tried again
    looking: bool = False  #: the next checkpoint is no sign for the delay that was just set

    @classmethod
    def begin(cls, budget: Budget, delay_ms: int) -> Pace:
        """Begin with a delay while nothing is known of the load."""
        within = budget.within(delay_ms)
        return cls(budget, within, within)

    def anew(self) -> Pace:
        """Begin another session of COLO with the delay at which the last one ended."""
        return Pace.begin(self.budget, self.delay_ms)

    def set(self) -> Pace:
        """Note that the wanted delay is in force."""
        return replace(self, delay_ms=self.wanted_ms, early=0, on_time=0, looking=True)

    def after(self, pause_ms: float, period_ms: float, wait_ms: int) -> Pace:
        """Note a checkpoint that held the guest for ``pause_ms``, ``period_ms`` after the one
        before.

        ``wait_ms`` is how long an answer waits for the secondary's
        (``checkpoint.compare_timeout_ms``).
        """
        seen = replace(self, pauses_ms=(*self.pauses_ms, pause_ms)[-RECENT:], looking=False)
        if self.looking:
            return seen
        if period_ms < EARLY_SHARE * self.delay_ms:
            waited = period_ms >= wait_ms
            return replace(seen, early=self.early + waited, on_time=0)._decided()
        return replace(seen, early=0, on_time=self.on_time + 1)._decided()

    def _decided(self) -> Pace:
        """Return the pace that wants the delay for which the observations call."""
        pause_ms, held_ms = median(self.pauses_ms), self.budget.held_ms
        floor_ms = self.budget.floor_ms(pause_ms)
        much_less = self.delay_ms / GROWTH_MIN
        if self.early >= EARLY_ROW and (target := max(floor_ms, held_ms)) < much_less:
            why = f"Answers wait for the secondary's before {self.delay_ms} ms are over."
            return self._back_to(target, why)
        if pause_ms > held_ms and (target := max(floor_ms, self.delay_ms // 2)) < much_less:
            why = f"Checkpoints hold answers for {pause_ms:.0f} ms, and {held_ms} ms are allowed."
            return self._back_to(target, why)
        if floor_ms > GROWTH_MIN * self.delay_ms:
            share = f"{self.budget.pause_share:.0%} of the time"
            why = f"The guest stands still for {pause_ms:.0f} ms, and {share} is allowed."
            return replace(self, wanted_ms=floor_ms, why=why)
        return self._forward(pause_ms)

    def _back_to(self, delay_ms: int, why: str) -> Pace:
        """Return to a shorter delay, because the one in force has gone wrong."""
        patience = min(2 * self.patience, PATIENCE_MAX)
        wanted = self.budget.within(delay_ms)
        wall_ms = min(self.wall_ms, self.delay_ms)
        return replace(self, wanted_ms=wanted, why=why, wall_ms=wall_ms, patience=patience)

    def _forward(self, pause_ms: float) -> Pace:
        """Choose a longer delay, where the load has borne this one for long enough.

        At worst pauses grow as the delay does, so it grows no further than they may.
        """
        at_wall = self.delay_ms >= self.wall_ms
        if at_wall and self.on_time >= self.patience:  # it did not go wrong this time
            return replace(self, wall_ms=math.inf, patience=PATIENCE)._forward(pause_ms)
        most = min(GROWTH, self.budget.held_ms / max(pause_ms, 1e-3)) * self.delay_ms
        before_wall = EARLY_SHARE * self.wall_ms
        if before_wall >= GROWTH_MIN * self.delay_ms:
            most, patience = min(most, before_wall), PATIENCE
        else:
            patience = PATIENCE if math.isinf(self.wall_ms) else self.patience
        wanted = self.budget.within(most)
        least = min(GROWTH_MIN * self.delay_ms, self.budget.max_ms)
        if self.on_time < patience or wanted < least or wanted <= self.delay_ms:
            return replace(self, wanted_ms=self.delay_ms)
        why = f"Checkpoints came on time at {self.delay_ms} ms."
        return replace(self, wanted_ms=wanted, why=why)
