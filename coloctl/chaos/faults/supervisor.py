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
from pathlib import Path
from typing import ClassVar, Literal

from coloctl.chaos.faults import outlet, wallclock
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, P, Setup
from coloctl.chaos.scenario.tables import Params

#: Beside the pair file; its contents belong to this run.
FOLDER = "inside"
CLOCK, READER = "clock-offset", "reader"
#: These words are on the command line of a supervisor, and of nothing that it starts.
SUPERVISOR = ("coloctl.cli.main", "run")

_BEGIN = """import sys
if all(word in sys.orig_argv for word in {words!r}):
    __import__("runpy").run_path({program!r}, run_name="__main__")
"""


@contextlib.contextmanager
def inside(setup: Setup, program: str, variable: str, file: Path) -> Iterator[None]:
    """Make each supervisor run the file ``program``, and find ``file`` through ``variable``.

    ``file`` lies in `FOLDER` of the run's home, which is made here and removed afterwards.
    """
    folder = file.parent
    folder.mkdir(exist_ok=True)
    try:
        with (folder / "sitecustomize.py").open("a") as begin:
            begin.write(_BEGIN.format(words=SUPERVISOR, program=program))
        others = setup.environment.get("PYTHONPATH") or os.environ.get("PYTHONPATH", "")
        if str(folder) not in others.split(os.pathsep):
            places = [str(folder), *([others] if others else [])]
            setup.environment["PYTHONPATH"] = os.pathsep.join(places)
        setup.environment[variable] = str(file)
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def shiftable_clock(setup: Setup) -> Iterator[None]:
    """Prepare a wall clock that can jump for the supervisors; it is right until then."""
    file = setup.home / FOLDER / CLOCK
    with inside(setup, wallclock.__file__, wallclock.VARIABLE, file):
        wallclock.write(file, 0.0)
        yield


@contextlib.contextmanager
def output_pipe(setup: Setup) -> Iterator[None]:
    """Route the output of the run's supervisors through a pipe, which is read for now."""
    file = setup.home / FOLDER / READER
    with inside(setup, outlet.__file__, outlet.VARIABLE, file):
        file.write_text(outlet.READS)
        yield


class InsideSupervisor(Fault[P]):
    """A file that a supervisor obeys is changed; the base of several kinds."""

    targets = ("supervisor",)
    lasting = True
    name: ClassVar[str]
    missing: ClassVar[str]

    def change(self, write: Callable[[Path], object], note: str) -> Injected:
        """Write the file of this run; raises `NothingToHit` where nothing was prepared."""
        file = self.pair.home / FOLDER / self.name
        if not file.exists():
            raise NothingToHit(self.missing)
        at_s = time.monotonic()
        write(file)
        return Injected(at_s, note=note)

    def restore(self, write: Callable[[Path], object]) -> None:
        """Write the file as it was, while the run still has it."""
        file = self.pair.home / FOLDER / self.name
        if file.exists():
            write(file)


class ClockJumpParams(Params):
    """The distance of the jump; below 0 it goes back."""

    seconds: float = 3600.0


class ClockJump(InsideSupervisor[ClockJumpParams]):
    """The supervisor's wall clock is wrong, until it is healed."""

    kind = "clock-jump"
    params = ClockJumpParams
    prepare = shiftable_clock
    name = CLOCK
    missing = "the supervisor's clock was not prepared to jump"

    def begin(self) -> Injected:
        """Shift the clock."""
        seconds = self.given.seconds
        return self.change(lambda file: wallclock.write(file, seconds), f"by {seconds:g} s")

    def heal(self) -> None:
        """Set the clock right again."""
        self.restore(lambda file: wallclock.write(file, 0.0))


class ReaderGoneParams(Params):
    """``gone``: the pipe is broken for good. ``asleep``: nothing is read until it is healed."""

    how: Literal["gone", "asleep"] = "gone"


class ReaderGone(InsideSupervisor[ReaderGoneParams]):
    """The reader of the supervisor's output has gone, or is asleep until it is healed."""

    kind = "reader-gone"
    params = ReaderGoneParams
    prepare = output_pipe
    name = READER
    missing = "the supervisor's output is no pipe of this run"

    def begin(self) -> Injected:
        """Order the reader to go, or to sleep."""
        how = self.given.how
        return self.change(lambda file: file.write_text(how), how)

    def heal(self) -> None:
        """Read again; a pipe that was broken stays broken."""
        self.restore(lambda file: file.write_text(outlet.READS))


FAULTS = (ClockJump, ReaderGone)
