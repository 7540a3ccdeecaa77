"""The supervisor's wall clock jumps, as when somebody sets it, or a time server does.

No other process sees it: neither QEMU nor whoever judges. (libfaketime does not do for that: the
one of Debian 12 breaks `time.sleep`, later ones need a newer C library than their machine's.)
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from coloctl.chaos.faults import wallclock
from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params, Staging
from coloctl.chaos.faults.inside import FOLDER, inside
from coloctl.chaos.scenario.values import Planned


class ClockJump(Params):
    """How far it jumps; below 0 it goes back."""

    seconds: float = 3600.0


def _file(home: Path) -> Path:
    return home / FOLDER / "clock-offset"


@contextlib.contextmanager
def prepare(staging: Staging) -> Iterator[None]:
    """The supervisor's wall clock is one that can jump; it is right until then."""
    file = _file(staging.home)
    with inside(staging, wallclock.__file__, wallclock.VARIABLE, file):
        wallclock.write(file, 0.0)
        yield


def clock_jump(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """The supervisor's time of the day is another one; healing sets it right again."""
    file = _file(ground.home)
    if not file.exists():
        return Blow(time.monotonic(), missed="the supervisor's clock was not prepared to jump")

    def heal() -> None:
        if file.exists():
            wallclock.write(file, 0.0)

    at_s = time.monotonic()
    wallclock.write(file, fault.params["seconds"])
    return Blow(at_s, heal, note=f"by {fault.params['seconds']:g} s")


FAULTS: Mapping[str, FaultKind] = {
    "clock-jump": FaultKind(
        "The supervisor's wall clock is wrong, until it is healed.",
        clock_jump,
        ("supervisor",),
        ClockJump,
        lasting=True,
        prepare=prepare,
    ),
}
