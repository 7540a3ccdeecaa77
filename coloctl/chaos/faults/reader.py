"""Take away the reader of a supervisor's output, or let it fall asleep.

A supervisor under systemd, or in a terminal, writes into a pipe or a socket. Here its output goes
through a pipe whose reader is a thread of the supervisor's own process (`outlet`), which does what
the file of this run says.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from coloctl.chaos.faults import outlet
from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Params, Staging
from coloctl.chaos.faults.inside import FOLDER, inside
from coloctl.chaos.scenario.values import Planned


class ReaderGone(Params):
    """``gone``: the pipe is broken for good. ``asleep``: nothing is read until it is healed."""

    how: Literal["gone", "asleep"] = "gone"


def _file(home: Path) -> Path:
    return home / FOLDER / "reader"


@contextlib.contextmanager
def prepare(staging: Staging) -> Iterator[None]:
    """Let the output of the run's supervisors go through a pipe, which is read until then."""
    file = _file(staging.home)
    with inside(staging, outlet.__file__, outlet.VARIABLE, file):
        file.write_text(outlet.READS)
        yield


def strike(ground: Ground, fault: Planned, _ask: Ask) -> Blow:
    """Close the read end of the supervisor's output, or stop reading from it."""
    file = _file(ground.home)
    if not file.exists():
        return Blow(time.monotonic(), missed="the supervisor's output is no pipe of this run")

    def heal() -> None:
        if file.exists():
            file.write_text(outlet.READS)

    at_s = time.monotonic()
    file.write_text(fault.params["how"])
    return Blow(at_s, heal, note=fault.params["how"])


FAULTS: Mapping[str, FaultKind] = {
    "reader-gone": FaultKind(
        "What reads the supervisor's output has gone, or is asleep until it is healed.",
        strike,
        ("supervisor",),
        ReaderGone,
        lasting=True,
        prepare=prepare,
    ),
}
