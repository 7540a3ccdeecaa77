"""Require both machines' replication addresses, and full frames that pass between them.

Called by `cli.verbs.start` before a start, by `check.network` and by `check.link`; runs
`host.linktest` on both hosts. A link that carries nothing is no reason to refuse a start here: the
guest then runs alone, and is protected when the link is back.

Rules: an address that a machine does not have refuses the start, because no wire could ever use it.
A frame of a device's full size that does not arrive refuses it as well, where small ones do: TCP
connects over such a link, and the first checkpoint stands still. Example: hv1's device has an MTU
of 9000 and the switch one of 1500.
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from coloctl.colo.ground import Ground
from coloctl.errors import DeadlineMissed, PreconditionFailed
from coloctl.host.base import Host
from coloctl.host.linktest import SERVE_DEADLINE_S, FrameFigures
from coloctl.model.pair import NODES, NodeName, PairSpec
from coloctl.model.revive import revive
from coloctl.model.wires import Endpoint
from coloctl.tasks import side_by_side

ONE_MTU = "set one MTU on both machines, and on every switch between them"
_MODULE = "coloctl.host.linktest"


async def require_way(spec: PairSpec, ground: Ground, *, protect: bool) -> None:
    """Require the address of each node, and for ``protect`` full frames both ways.

    Raises `PreconditionFailed`, which names the machine.
    """
    if spec.shares_machine():
        return
    await side_by_side(
        *(
            require_address(ground.hosts[node], spec.nodes[node].address, node)
            for node in (NODES if protect else NODES[:1])
        )
    )
    if not protect or ground.facts.one_machine:
        return
    here, there = (ground.hosts[node] for node in NODES)
    try:
        figures = await measured(here, there, spec.nodes["b"].address)
    except PreconditionFailed:  # the link carries nothing now: `colo.link` meets that at its time
        return
    if lost := lost_frame(here.machine.name, there.machine.name, figures):
        raise PreconditionFailed(lost, hint=ONE_MTU)


async def require_address(host: Host, address: str, node: NodeName) -> None:
    """Require that the host has the address; raises `PreconditionFailed`, which names it."""
    try:
        (await host.listen(Endpoint(address, 0))).close()
    except PreconditionFailed as error:
        raise PreconditionFailed(
            f"{host.machine.name} has no address {address}, which node.{node}.address names.",
            hint=f"`ip address` on {host.machine.name} shows those that it has",
        ) from error


async def measured(here: Host, there: Host, address: str) -> FrameFigures:
    """Try full frames between ``here`` and ``address`` of ``there``; raises as `probe`."""
    return revive(FrameFigures, await probe(here, there, address, "frames"))


def lost_frame(one: str, other: str, figures: FrameFigures) -> str:
    """Return the sentence about a full frame that gets lost between two machines; "" for none.

    Where no frame came back at all, a filter drops them, and nothing is known about their size.
    """
    if figures.full_frame and figures.back_frame:
        return ""
    if not figures.back_mtu:
        return ""
    if not figures.full_frame:
        return f"A frame of {figures.mtu} bytes from {one} does not reach {other}."
    return f"A frame of {figures.back_mtu} bytes from {other} does not reach {one}."


async def probe(here: Host, there: Host, address: str, how: str) -> dict[str, Any]:
    """Run a measurement from ``here`` to ``address``, which is one of ``there``.

    Raises `PreconditionFailed` where the address is not there, or is not reached, and where a
    machine is too busy to measure: a machine under TCG on a busy processor was seen to be.
    """
    try:
        return await _probe(here, there, address, how)
    except DeadlineMissed as error:
        raise PreconditionFailed(
            f"The link from {here.machine.name} to {there.machine.name} was not measured within "
            f"{SERVE_DEADLINE_S:.0f} s: {error.message}",
            hint="one of both machines is busy; try again",
        ) from error


async def _probe(here: Host, there: Host, address: str, how: str) -> dict[str, Any]:
    """Measure as `probe` does; raises `DeadlineMissed` too."""
    token = secrets.token_hex(8)
    async with there.converse([*there.machine.programs, _MODULE, "listen", address, token]) as far:
        line = await far.hear(SERVE_DEADLINE_S)
        if line is None:
            raise PreconditionFailed(
                f"{there.machine.name} has no address {address}.",
                hint=f"`ip address` there shows those it has: {far.last_words().strip()}",
            )
        port = str(json.loads(line)["port"])
        argv = [*here.machine.programs, _MODULE, how, address, port, token]
        done = await here.run(argv, deadline_s=SERVE_DEADLINE_S)
    if done.code:
        raise PreconditionFailed(
            f"{here.machine.name} does not reach {address} of {there.machine.name}: "
            f"{done.stderr.strip()}.",
            hint="look at the cable, the switch and the firewalls between both",
        )
    return dict(json.loads(done.stdout))
