"""Measure the link between two hosts, and compute what it means for a pair's checkpoints.

Called by `check.machine_there`; `colo.frames` runs the measurement on both hosts.
"""

from __future__ import annotations

from coloctl.check.finding import Precondition, Severity
from coloctl.colo import frames
from coloctl.host.base import Host
from coloctl.host.linktest import LinkFigures
from coloctl.model.revive import revive

NAME = "link"
#: A checkpoint of an idle guest, and what encryption adds to each megabyte of changed memory.
#: Measured with QEMU 11.1.3 (docs/qemu.md, "TLS").
IDLE_PAUSE_MS, TLS_MS_PER_MB = 12.0, 1.0
#: Changed memory of one checkpoint, for the example in the sentence.
_EXAMPLE_MB = 16


async def measure(here: Host, there: Host, address: str) -> LinkFigures:
    """Measure from ``here`` to ``address``, which is one of ``there``; raises as `probe`."""
    return revive(LinkFigures, await frames.probe(here, there, address, "connect"))


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
    if lost := frames.lost_frame(one, other, figures):
        found.append(Precondition("mtu", Severity.ERROR, lost, frames.ONE_MTU))
    return found
