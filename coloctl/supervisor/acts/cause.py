"""Describe why a failover happened and how it ended, as sentences for an operator; pure.

Called by `supervisor.acts.failover`, `supervisor.acts.switchover` and `supervisor.acts.unprotect`,
and by `supervisor.adopt` for one that it finishes.
"""

from __future__ import annotations

from coloctl.model.observation import Diagnosis
from coloctl.model.pair import NodeName

#: `Timeline.cause` of a failover that a person asked for, of one that was planned, and of a
#: protection that a person took away.
OPERATOR, SWITCHOVER, UNPROTECTED = "operator", "switchover", "unprotected"


def outcome(survivor: NodeName, lost: NodeName, cause: str, killed: str = "") -> str:
    """Describe how a failover ended, as the reason of the state in which it ended.

    ``killed`` is the end of the lost QEMU, where the kernel killed it for its memory.
    """
    if cause == UNPROTECTED:
        return f"The guest runs on node {survivor} alone, as it was asked for."
    if cause == SWITCHOVER:
        return f"The guest has gone over to node {survivor}, as planned."
    if cause == Diagnosis.GUEST_RESET:
        return (
            f"The guest is rebooting on node {survivor}, alone: under TCG node {lost} would not "
            "have survived that. It can be protected when it has booted."
        )
    why = f": {killed}" if killed else ""
    return f"The guest runs on node {survivor} alone since node {lost} was lost{why}."


def reason(survivor: NodeName, lost: NodeName, cause: str) -> str:
    """Describe why a failover has begun."""
    if cause in (OPERATOR, SWITCHOVER, UNPROTECTED):
        words = {
            OPERATOR: f"A failover to node {survivor}",
            SWITCHOVER: f"A switchover to node {survivor}",
            UNPROTECTED: f"An end of the protection on node {survivor}",
        }
        return f"{words[cause]} was asked for."
    if cause == Diagnosis.GUEST_RESET:
        return f"The guest was reset; node {lost} is given up for that."
    return f"Node {lost} is lost ({cause}); node {survivor} takes over."
