"""Run a program that acts for a fault until the fault is healed.

Called by `chaos.faults.guest` and `chaos.faults.stranger`, whose programs need another user or
network namespace than the engine's, and by `chaos.faults.machine`. The program prints "ready" once
it acts, works until its standard input ends, and prints its result.
"""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from coloctl.chaos.faults.fault import Fault, NothingToHit, P

#: Starts a program somewhere; takes the options of `subprocess.Popen`.
Start = Callable[..., "subprocess.Popen[Any]"]
#: How long a program may take until it acts, seconds.
READY_S = 60.0


class Child:
    """One program that acts for a fault and is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.output: str | None = None  #: what it printed, once it was ended

    @classmethod
    def begin(cls, start: Start, argv: Sequence[str], deadline_s: float = READY_S) -> Self | None:
        """Start ``argv``; None where it ends, or is late, without being ready."""
        process = start(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        said, _, _ = select.select([process.stdout], [], [], deadline_s)
        if said and process.stdout.readline().strip() == "ready":
            return cls(process)
        process.kill()
        process.communicate()
        return None

    def end(self, patience_s: float) -> None:
        """End the program, and keep what it printed; it is killed after ``patience_s``."""
        if self.output is not None:
            return
        try:
            self.output = self._process.communicate("", patience_s)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.output = self._process.communicate()[0]


class ActedByChild(Fault[P]):
    """A fault that lasts as long as a program of it acts; the base of several kinds."""

    lasting = True
    missing: ClassVar[str]  #: a sentence part about a program that cannot act
    patience_s: ClassVar[float] = 5.0  #: how long the program may take to print its result
    _child: Child | None = None

    def start(self, start: Start, argv: Sequence[str]) -> float:
        """Start the program; return when it acts."""
        self._child = Child.begin(start, argv)
        if self._child is None:
            raise NothingToHit(self.missing)
        return time.monotonic()

    @property
    def output(self) -> str | None:
        """The text that the program printed; None before it was ended."""
        return self._child.output if self._child else None

    def heal(self) -> None:
        """End the program."""
        if self._child is not None:
            self._child.end(self.patience_s)
