"""Hold what goes on beside the acts of a pair: its guests compared, its copies verified.

Held by `supervisor.state`; written by `supervisor.contrast`, which compares guests by
`ha.divergence`, and by `supervisor.verifying`.

Invariant: evidence counts only against the secondary of which it was found.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from coloctl.ha.divergence import EARLIER
from coloctl.model.observation import Contrast
from coloctl.model.pair import Role
from coloctl.model.strangers import Stranger, TurnedAway
from coloctl.model.verified import Verified
from coloctl.vm import VM

#: Acts that a verification goes on beside; any other cancels it.
_BESIDE = frozenset({"checkpoint", "set"})
#: A divergence so long ago is no sign about the next secondary, seconds.
LATELY_S = 600.0


async def _at_once() -> None:
    """Return: there is nothing to wait for."""


@dataclass
class Beside:
    """Results of the work beside the acts.

    The defaults are those of a pair that is not watched yet.
    """

    contrast: Contrast = field(default_factory=Contrast)  #: between the guests of both nodes
    compared: VM | None = None  #: the secondary that `contrast` is about
    unlike: tuple[str, ...] = ()  #: why the secondary's disks are given up, sentences
    unlike_of: VM | None = None  #: the secondary that this was found of
    diverged_s: list[float] = field(default_factory=list)  #: when a secondary was found to have
    #: Returns when no sign that was observed of the guests is undecided.
    settle: Callable[[], Awaitable[None]] = _at_once
    verified: Verified | None = None  #: what the last verification found
    verification: asyncio.Task[None] | None = None
    left: VM | None = None  #: a primary that may still show its disks to programs
    asking: bool = False  #: a verification has asked for the checkpoint that comes next
    lent: tuple[VM, ...] = ()  #: QEMUs that may still have the file that took their memory
    #: Removes what a cancelled verification has left.
    tidy: Callable[[], Awaitable[None]] = _at_once

    #: How many strangers were cut off from each wire, the first one's moment, the last one.
    strangers: Counter[str] = field(default_factory=Counter)
    first_stranger_s: float = 0.0
    last_stranger: Stranger | None = None

    def turn_away(self, who: Stranger, now_s: float) -> None:
        """Count a stranger that was cut off."""
        if not self.strangers:
            self.first_stranger_s = now_s
        self.strangers[who.wire] += 1
        self.last_stranger = who

    def turned_away(self, now_s: float) -> TurnedAway | None:
        """Return all strangers that were cut off, for people; None where there was none."""
        if self.last_stranger is None:
            return None
        since_s = round(now_s - self.first_stranger_s, 1)
        last = self.last_stranger.sentence()
        return TurnedAway(self.strangers.total(), dict(self.strangers), since_s, last)

    def found_before(self, secondary: VM) -> None:
        """Record against ``secondary`` the divergence that an earlier supervisor found."""
        self.contrast, self.compared = Contrast(events=(EARLIER,)), secondary

    def may_show(self, vm: VM, role: Role) -> None:
        """Note that an adopted primary may still show its disks to a verification."""
        if role is Role.PRIMARY:
            self.left = vm

    def of(self, secondary: VM | None) -> Contrast:
        """Return the contrast of that secondary.

        An empty one where it was another that was compared.
        """
        known = secondary is not None and secondary is self.compared
        return self.contrast if known else Contrast()

    def diverged(self, now_s: float) -> None:
        """Note that a secondary has diverged; forget those before `LATELY_S`."""
        self.diverged_s = [at_s for at_s in self.diverged_s if now_s - at_s < LATELY_S]
        self.diverged_s.append(now_s)

    def lately(self, now_s: float) -> int:
        """Count the secondaries that have diverged lately: the next one may do so too."""
        return sum(now_s - at_s < LATELY_S for at_s in self.diverged_s)

    def make_way(self, act: str) -> None:
        """Cancel a verification that ``act`` cannot go on beside; nothing is waited for."""
        if self.verification is not None and act not in _BESIDE:
            self.verification.cancel()
