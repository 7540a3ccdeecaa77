"""Delay a reaction for a moment where a QEMU may be about to end, to name the right cause.

Called by `supervisor.reactor` before it acts; finds the secondary by `ha.monitoring_path`.

Invariant: nothing is delayed for longer than the limits below, and nothing that is proven already
is delayed at all.
"""

from __future__ import annotations

from collections.abc import Callable

from coloctl.clock import Clock
from coloctl.ha.monitoring_path import holder, members
from coloctl.model.observation import Diagnosis, Finding, Notice, Observation
from coloctl.model.pair import NodeName, Role

#: Both sides of a pair in COLO power off within milliseconds of each other, or not at all where
#: the primary waits for its secondary in a checkpoint. Seconds.
POWER_OFF_TOGETHER_S = 1.0
#: The kernel closes the connections of a dying QEMU before it reports the death, so its peer may
#: report the one before the kernel reports the other. For so long its end is looked for, which no
#: thread of it may show yet: a QEMU closes its connections first, and another machine's agent takes
#: a moment to report, and the time on its way over ssh comes to this. Seconds.
NOTICE_S = 0.05
#: A QEMU that is seen dying is waited for so long. The kernel reported an end after 3.6 to 10.8 ms
#: at load 8 on two processors, and once, at load 12, more than 50 ms after its connections. The
#: fence would wait for the same report. Seconds.
DYING_S = 1.0

#: Findings about a pair whose secondary is ending, until its primary does.
_ENDING = frozenset(
    {Diagnosis.SECONDARY_DEAD, Diagnosis.REPLICA_WRITE_ERROR, Diagnosis.LINK_BROKEN}
)
#: Findings that one side reports when its peer has gone, for any reason.
_PEER_GONE = frozenset({Diagnosis.REPLICA_WRITE_ERROR, Diagnosis.LINK_BROKEN})


class ExitGrace:
    """The moments since which an end seems to be near; ``clock`` is that of the pair.

    ``dying`` returns whether the end of a node's QEMU has begun (`host.base.Process.dying`).
    """

    def __init__(self, clock: Clock, dying: Callable[[NodeName], bool]) -> None:
        self._clock, self._dying = clock, dying
        self._off_since: float | None = None
        self._lost_since: float | None = None

    def near(self, seen: Observation, finding: Finding) -> bool:
        """Return whether the end of a QEMU may explain the finding in a moment."""
        return self._powers_off(seen, finding) or self._dies(seen, finding)

    def cause(self, seen: Observation, finding: Finding, lost: NodeName) -> Diagnosis:
        """Return why ``lost`` is given up: its death, where its QEMU is still dying.

        The finding alone names what its peer reported, as the kernel proves no death yet.
        """
        if not _peer_is_gone(seen, finding) or not self._dying(lost):
            return finding.diagnosis
        primary = seen.nodes[lost].role is Role.PRIMARY
        return Diagnosis.PRIMARY_DEAD if primary else Diagnosis.SECONDARY_DEAD

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
        """Return whether one side lost its connections to the other just now, or to one that dies.

        The kernel's report of that death is waited for, because the decision rests on it: the peer
        of a primary that dies is to take over, and is not the one to give up.
        """
        if not _peer_is_gone(seen, finding):
            self._lost_since = None
            return False
        if self._lost_since is None:
            self._lost_since = self._clock.now()
        passed_s = self._clock.now() - self._lost_since
        way_s = max(one.agent_delay_ms for one in seen.nodes.values()) / 1000
        dying = any(self._dying(node) for node in members(seen))
        return passed_s < way_s + (DYING_S if dying else NOTICE_S)


def _peer_is_gone(seen: Observation, finding: Finding) -> bool:
    """Return whether the finding is what one side reports when its peer has gone.

    Not where the link itself has been silent for its limit: that is proven already.
    """
    silent_ms = seen.link_silent_ms or 0.0
    return finding.diagnosis in _PEER_GONE and silent_ms < seen.limits.link_ms
