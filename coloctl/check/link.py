"""Measure the link between two hosts, and compute what it means for a pair's checkpoints.

Called by `check.machine_there`; runs `host.linktest` on both hosts.
"""

from __future__ import annotations

import json
import secrets

from coloctl.check.finding import Precondition, Severity
from coloctl.errors import PreconditionFailed
from coloctl.host.base import Host
from coloctl.host.linktest import SERVE_DEADLINE_S, LinkFigures
from coloctl.model.revive import revive

NAME = "link"
_MODULE = "coloctl.host.linktest"
#: A checkpoint of an idle guest, and what encryption adds to each megabyte of changed memory.
#: Measured with QEMU 11.1.3 (docs/qemu.md, "TLS").
IDLE_PAUSE_MS, TLS_MS_PER_MB = 12.0, 1.0
#: Changed memory of one checkpoint, for the example in the sentence.
_EXAMPLE_MB = 16


async def measure(here: Host, there: Host, address: str) -> LinkFigures:
    """Measure from ``here`` to ``address``, which is one of ``there``.

    Raises `PreconditionFailed` where the address is not there, or is not reached.
    """
    token = secrets.token_hex(8)
    async with there.converse([*there.machine.programs, _MODULE, "listen", address, token]) as far:
        line = await far.hear(SERVE_DEADLINE_S)
        if line is None:
            raise PreconditionFailed(
                f"{there.machine.name} has no address {address}.",
                hint=f"`ip address` there shows those it has: {far.last_words().strip()}",
            )
        port = str(json.loads(line)["port"])
        argv = [*here.machine.programs, _MODULE, "connect", address, port, token]
        done = await here.run(argv, deadline_s=SERVE_DEADLINE_S)
    if done.code:
        raise PreconditionFailed(
            f"{here.machine.name} does not reach {address} of {there.machine.name}: "
            f"{done.stderr.strip()}.",
            hint="look at the cable, the switch and the firewalls between both",
        )
    return revive(LinkFigures, json.loads(done.stdout))


def pause_ms(figures: LinkFigures, changed_mb: float) -> float:
    """Compute the pause of a checkpoint that sends ``changed_mb``, over TLS; pure."""
    per_mb = 1000 / max(figures.megabytes_s, 0.001) + TLS_MS_PER_MB
    return IDLE_PAUSE_MS + figures.round_trip_ms + changed_mb * per_mb


def findings(here: Host, there: Host, figures: LinkFigures) -> list[Precondition]:
    """Report the figures, and a frame size that one end believes in and the other never sees."""
    one, other = here.machine.name, there.machine.name
    sentence = (
        f"{one} to {other}: {figures.round_trip_ms:.2f} ms there and back, "
        f"{figures.megabytes_s:.0f} MB/s. A checkpoint with {_EXAMPLE_MB} MB of changed memory "
        f"pauses the guest for about {pause_ms(figures, _EXAMPLE_MB):.0f} ms."
    )
    found = [Precondition(NAME, Severity.OK, sentence)]
    if not figures.full_frame:
        sentence = f"A frame of {figures.mtu} bytes from {one} does not reach {other}."
        hint = "set one MTU on both machines, and on every switch between them"
        found.append(Precondition("mtu", Severity.ERROR, sentence, hint))
    return found
