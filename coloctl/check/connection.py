"""Report how late another machine answers, and by how much its clock differs.

Called by `check.doctor` for the machine of each node; asks it through `host.base` and by
`check.machine_there`. Nothing of a pair depends on either: a late answer delays what is noticed
about that machine, and clocks are for people.
"""

from __future__ import annotations

from coloctl.check.finding import Precondition, Severity
from coloctl.check.machine_there import examine_clock
from coloctl.clock import CLOCK
from coloctl.host.base import Host
from coloctl.host.records import Contact
from coloctl.model.pair import NodeName

NAME = "connection"

#: A machine that answers later is worth a warning, milliseconds: as long as the least limit on a
#: silence of the rescue monitor.
SLOW_MS = 100.0


async def examine_connection(host: Host, node: NodeName) -> list[Precondition]:
    """Measure one answer of the machine of ``node``, and its clock; nothing for this machine."""
    if host.reach.contact is Contact.HERE:
        return []
    began_s = CLOCK.now()
    await host.which("sh")
    answer_ms = (CLOCK.now() - began_s) * 1000
    found = [_connection(host.machine.name, node, answer_ms)]
    clock = await examine_clock(host)
    return [*found, *(one for one in clock if one.severity is not Severity.OK)]


def _connection(machine: str, node: NodeName, answer_ms: float) -> Precondition:
    if answer_ms < SLOW_MS:
        return Precondition(NAME, Severity.OK, f"{machine} answers within {answer_ms:.1f} ms.")
    sentence = (
        f"{machine} answers after {answer_ms / 1000:.1f} s: a silence of node {node}'s QEMU is"
        " noticed that much later."
    )
    hint = f"look at the network to it: `ping {machine}`"
    return Precondition(NAME, Severity.WARNING, sentence, hint)
