"""What a bench does to a pair: a process killed or stopped, or the wire between the hosts cut.

Invariant: what was hurt is known by a pidfd from before the fault, so nothing else is ever hit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

from coloctl.errors import NotProtected
from coloctl.lab.network import Lab


class Cause(StrEnum):
    """A fault by name."""

    KILL = "kill"  #: SIGKILL to the primary's QEMU
    FREEZE = "freeze"  #: SIGSTOP to the primary's QEMU; woken again after the failover
    LINK = "link"  #: the replication wire swallows every frame; no carrier is lost
    SECONDARY_KILL = "secondary-kill"
    SECONDARY_FREEZE = "secondary-freeze"

    @property
    def loser(self) -> str:
        """The role whose node should be fenced."""
        return "primary" if self in (Cause.KILL, Cause.FREEZE) else "secondary"


class Victim:
    """The QEMU that a fault takes out of the pair."""

    def __init__(self, node: str, pid: int) -> None:
        """Known from now on, whatever becomes of its number. Raises `NotProtected` when gone."""
        self.node = node
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            raise NotProtected(f"The QEMU of node {node} is gone before the fault.") from None

    def tell(self, number: signal.Signals) -> None:
        """It got the signal, unless it is dead."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    def alive(self) -> bool:
        """Its process has not ended."""
        return not select.select([self._handle], [], [], 0)[0]

    def close(self) -> None:
        os.close(self._handle)


@contextlib.contextmanager
def victim(cause: Cause, view: Mapping[str, Any]) -> Iterator[Victim]:
    """The node that the fault will cost the pair; runs again behind the block if it still can.

    ``view`` is the answer of query-pair. Raises `NotProtected` when no node has that role.
    """
    found = [node for node in view["nodes"] if node["role"] == cause.loser and node["pid"]]
    if not found:
        raise NotProtected(f"The pair has no {cause.loser} to attack: {view['reason']}")
    held = Victim(found[0]["name"], found[0]["pid"])
    try:
        yield held
    finally:
        held.tell(signal.SIGCONT)
        held.close()


def strike(cause: Cause, lab: Lab, target: Victim) -> float:
    """The fault has happened; answers the monotonic second at which it began."""
    at_s = time.monotonic()
    if cause is Cause.LINK:
        lab.link("replication").cut()
    else:
        frozen = cause in (Cause.FREEZE, Cause.SECONDARY_FREEZE)
        target.tell(signal.SIGSTOP if frozen else signal.SIGKILL)
    return at_s


def lingers(target: Victim, within_s: float) -> bool:
    """Woken up, the victim still lives after that time: nobody made sure that it is dead."""
    target.tell(signal.SIGCONT)
    give_up = time.monotonic() + within_s
    while target.alive():
        if time.monotonic() > give_up:
            return True
        time.sleep(0.02)
    return False
