"""Delay a reaction for a moment where a QEMU may be about to end, to name the right cause.

Called by `supervisor.reactor` before it acts; finds the secondary by `ha.monitoring_path`.

Invariant: nothing is delayed for longer than the limits below, and nothing that is proven already
is delayed at all.
"""

from __future__ import annotations

from coloctl.clock import Clock
from coloctl.ha.monitoring_path import holder
from coloctl.model.observation import Diagnosis, Finding, Notice, Observation
from coloctl.model.pair import Role

#: Both sides of a pair in COLO power off within milliseconds of each other, or not at all where
#: the primary waits for its secondary in a checkpoint. Seconds.
POWER_OFF_TOGETHER_S = 1.0
#: The kernel closes the connections of a dying QEMU before it reports the death, so its peer may
#: report the one before the kernel reports the other: a few milliseconds, more on a busy machine.
#: Seconds.
DYING_S = 0.05

#: Findings about a pair whose secondary is ending, until its primary does.
_ENDING = frozenset(
    {Diagnosis.SECONDARY_DEAD, Diagnosis.REPLICA_WRITE_ERROR, Diagnosis.LINK_BROKEN}
)
#: Findings that one side reports when its peer has gone, for any reason.
_PEER_GONE = frozenset({Diagnosis.REPLICA_WRITE_ERROR, Diagnosis.LINK_BROKEN})


class ExitGrace:
    """The moments since which an end seems to be near; ``clock`` is that of the pair."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._off_since: float | None = None
        self._lost_since: float | None = None

    def near(self, seen: Observation, finding: Finding) -> bool:
        """Return whether the end of a QEMU may explain the finding in a moment."""
        return self._powers_off(seen, finding) or self._dies(seen, finding)

    def _powers_off(self, seen: Observation, finding: Finding) -> bool:
        """Return whether the secondary's guest powered off and the primary's may be about to.

        For a moment only; a guest that did so on one side only has left its pair.
        """
        now, secondary = self._clock.now(), holder(seen, Role.SECONDARY)
        if secondary is None or finding.diagnosis not in _ENDING:
            self._off_since = None
            return False
        if Notice.GUEST_SHUTDOWN not in seen.nodes[secondary].notices:
            return False
        if self._off_since is None:
            self._off_since = now
        return now - self._off_since < POWER_OFF_TOGETHER_S

    def _dies(self, seen: Observation, finding: Finding) -> bool:
        """Return whether one side lost its connections to the other just now.

        The other one's process is looked at once more first. Not where the link itself has been
        silent for its limit: that is proven already.
        """
        now, silent_ms = self._clock.now(), seen.link_silent_ms or 0.0
        if finding.diagnosis not in _PEER_GONE or silent_ms >= seen.limits.link_ms:
            self._lost_since = None
            return False
        if self._lost_since is None:
            self._lost_since = now
        return now - self._lost_since < DYING_S
