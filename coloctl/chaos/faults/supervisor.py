"""Change the surroundings of a supervisor process: its wall clock, and the reader of its output.

A program is run inside each supervisor of a run, before anything else. Python imports one
``sitecustomize`` at its start, so both faults share the one that is made here; the supervisor's
environment leads there. Called by `chaos.faults` alone.

The wall clock jumps as when a person or a time server sets it. No other process sees that: neither
QEMU nor the engine. (libfaketime does not do for that: the one of Debian 12 breaks `time.sleep`,
later ones need a newer C library than their machine's.)

A supervisor under systemd, or in a terminal, writes into a pipe or a socket. Here its output goes
through a pipe whose reader is a thread of the supervisor's own process (`outlet`), which obeys the
file of this run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Literal

from coloctl.chaos.faults import outlet, wallclock
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, P, Setup, fault
from coloctl.chaos.scenario.tables import Params

#: Beside the pair file; its contents belong to this run.
FOLDER = "inside"
#: These words are on the command line of a supervisor, and of nothing that it starts.
SUPERVISOR = ("coloctl.cli.main", "run")

_BEGIN = """import sys
if all(word in sys.orig_argv for word in {words!r}):
    __import__("runpy").run_path({program!r})["begin"]({file!r})
"""


def order_of(program: ModuleType, home: Path) -> Path:
    """Return the file of a run that ``program`` obeys."""
    return home / FOLDER / Path(str(program.__file__)).stem


@contextlib.contextmanager
def inside(program: ModuleType, setup: Setup) -> Iterator[None]:
    """Make each supervisor of the run begin with ``program``, which obeys a file of the run."""
    file = order_of(program, setup.home)
    folder = file.parent
    folder.mkdir(exist_ok=True)
    try:
        program.write(file, program.USUAL)
        with (folder / "sitecustomize.py").open("a") as begin:
            given = {"program": program.__file__, "file": str(file)}
            begin.write(_BEGIN.format(words=SUPERVISOR, **given))
        others = setup.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        if str(folder) not in others.split(os.pathsep):
            places = [str(folder), *([others] if others else [])]
            setup.environment["PYTHONPATH"] = os.pathsep.join(places)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


#: Prepares a wall clock that can jump for the supervisors; it is right until then.
shiftable_clock = partial(inside, wallclock)
#: Routes the output of the run's supervisors through a pipe, which is read for now.
output_pipe = partial(inside, outlet)


class InsideSupervisor(Fault[P]):
    """An order to the program that a supervisor began with; the base of several kinds."""

    targets = ("supervisor",)
    lasting = True
    program: ClassVar[ModuleType]
    missing: ClassVar[str]

    def order(self) -> tuple[object, str]:
        """Return the order to the program, and a note."""
        raise NotImplementedError

    def begin(self) -> Injected:
        """Write the order; raises `NothingToHit` where nothing was prepared."""
        file = order_of(self.program, self.pair.home)
        if not file.exists():
            raise NothingToHit(self.missing)
        order, note = self.order()
        at_s = time.monotonic()
        self.program.write(file, order)
        return Injected(at_s, note=note)

    def heal(self) -> None:
        """Write the file as it was, while the run still has it."""
        file = order_of(self.program, self.pair.home)
        if file.exists():
            self.program.write(file, self.program.USUAL)


class ClockJumpParams(Params):
    """The distance of the jump; below 0 it goes back."""

    seconds: float = 3600.0


@fault("clock-jump")
class ClockJump(InsideSupervisor[ClockJumpParams]):
    """A wrong wall clock of the supervisor, until it is healed."""

    params = ClockJumpParams
    prepare = shiftable_clock
    program: ClassVar[ModuleType] = wallclock
    missing = "the supervisor's clock was not prepared to jump"

    def order(self) -> tuple[object, str]:
        return self.given.seconds, f"by {self.given.seconds:g} s"


class ReaderGoneParams(Params):
    """``gone``: the pipe is broken for good. ``asleep``: nothing is read until it is healed."""

    how: Literal["gone", "asleep"] = "gone"


@fault("reader-gone")
class ReaderGone(InsideSupervisor[ReaderGoneParams]):
    """A reader of the supervisor's output that has gone, or sleeps until it is healed."""

    params = ReaderGoneParams
    prepare = output_pipe
    program: ClassVar[ModuleType] = outlet
    missing = "the supervisor's output is no pipe of this run"

    def order(self) -> tuple[object, str]:
        return self.given.how, self.given.how
