"""The supervisor's wall clock jumps, as when somebody sets it, or a time server does.

No other process sees it: neither QEMU nor whoever judges. (libfaketime does not do for that: the
one of Debian 12 breaks `time.sleep`, later ones need a newer C library than their machine's.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from coloctl.chaos.nemesis import wallclock
from coloctl.chaos.nemesis.fault import Ask, Blow, FaultKind, Ground, Params, Staging
from coloctl.chaos.scenario import Planned

#: Beside the pair file; what is in it belongs to this run.
FOLDER = "clock"


class ClockJump(Params):
    """How far it jumps; below 0 it goes back."""

    seconds: float = 3600.0


def _file(home: Path) -> Path:
    return home / FOLDER / "offset"


@contextlib.contextmanager
def prepare(staging: Staging) -> Iterator[None]:
    """The supervisor's wall clock is one that can jump; it is right until then."""
    folder = staging.home / FOLDER
    folder.mkdir()
    try:
        wallclock.write(_file(staging.home), 0.0)
        begin = f"import runpy\nrunpy.run_path({wallclock.__file__!r}, run_name='__main__')\n"
        (folder / "sitecustomize.py").write_text(begin)
        others = staging.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
        roads = [str(folder), *([others] if others else [])]
        staging.environment["PYTHONPATH"] = os.pathsep.join(roads)
        staging.environment[wallclock.VARIABLE] = str(_file(staging.home))
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
