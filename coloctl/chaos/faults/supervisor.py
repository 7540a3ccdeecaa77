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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from coloctl.chaos.faults import outlet, wallclock
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, P, Setup, fault
from coloctl.chaos.scenario.tables import Params

#: Beside the pair file; its contents belong to this run.
FOLDER = "inside"
#: These words are on the command line of a supervisor, and of nothing that it starts.
SUPERVISOR = ("coloctl.cli.main", "run")

_BEGIN = """import sys
if all(word in sys.orig_argv for word in {!r}):
    __import__("runpy").run_path({!r})[{!r}]({!r})
"""


class InsideProgram(NamedTuple):
    """A program that a supervisor begins with: a function of ``path``, which obeys a file."""

    path: str
    begin: str
    write: Callable[[Path, Any], None]
    usual: float | str

    def file(self, home: Path) -> Path:
        """Return the file of a run that the program obeys."""
        return home / FOLDER / Path(self.path).stem


CLOCK = InsideProgram(wallclock.__file__, wallclock.begin.__name__, wallclock.write, 0.0)
READER = InsideProgram(outlet.__file__, outlet.begin.__name__, outlet.write, outlet.READS)


@contextlib.contextmanager
def inside(program: InsideProgram, setup: Setup) -> Iterator[None]:
    """Make each supervisor of the run begin with ``program``, which obeys a file of the run."""
    file = program.file(setup.home)
    folder = file.parent
    folder.mkdir(exist_ok=True)
    try:
        program.write(file, program.usual)
        with (folder / "sitecustomize.py").open("a") as begin:
            begin.write(_BEGIN.format(SUPERVISOR, program.path, program.begin, str(file)))
        others = setup.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        if str(folder) not in others.split(os.pathsep):
            places = [str(folder), *([others] if others else [])]
            setup.environment["PYTHONPATH"] = os.pathsep.join(places)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


#: Prepares a wall clock that can jump for the supervisors; it is right until then.
shiftable_clock = partial(inside, CLOCK)
#: Routes the output of the run's supervisors through a pipe, which is read for now.
output_pipe = partial(inside, READER)


class InsideSupervisor(Fault[P]):
    """An order to the program that a supervisor began with; the base of several kinds."""

    targets = ("supervisor",)
    lasting = True
    program: ClassVar[InsideProgram]
    missing: ClassVar[str]

    def order(self) -> tuple[object, str]:
        """Return the order to the program, and a note."""
        raise NotImplementedError

    def begin(self) -> Injected:
        """Write the order; raises `NothingToHit` where nothing was prepared."""
        file = self.program.file(self.pair.home)
        if not file.exists():
            raise NothingToHit(self.missing)
        order, note = self.order()
        at_s = time.monotonic()
        self.program.write(file, order)
        return Injected(at_s, note=note)

    def heal(self) -> None:
        """Write the file as it was, while the run still has it."""
        file = self.program.file(self.pair.home)
        if file.exists():
            self.program.write(file, self.program.usual)


class ClockJumpParams(Params):
    """The distance of the jump; below 0 it goes back."""

    seconds: float = 3600.0


@fault("clock-jump")
class ClockJump(InsideSupervisor[ClockJumpParams]):
    """A wrong wall clock of the supervisor, until it is healed."""

    params = ClockJumpParams
    prepare = shiftable_clock
    program = CLOCK
    missing = "the supervisor's clock was not prepared to jump"

    def order(self) -> tuple[object, str]:
        """Return the seconds by which the clock jumps."""
        return self.given.seconds, f"by {self.given.seconds:g} s"


class ReaderGoneParams(Params):
    """``gone``: the pipe is broken for good. ``asleep``: nothing is read until it is healed."""

    how: Literal["gone", "asleep"] = "gone"


@fault("reader-gone")
class ReaderGone(InsideSupervisor[ReaderGoneParams]):
    """A reader of the supervisor's output that has gone, or sleeps until it is healed."""

    params = ReaderGoneParams
    prepare = output_pipe
    program = READER
    missing = "the supervisor's output is no pipe of this run"

    def order(self) -> tuple[object, str]:
        """Return what becomes of the reader."""
        return self.given.how, self.given.how
