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
from typing import Any, ClassVar

from coloctl.chaos.faults.fault import Fault, NothingToHit, P

#: Starts a program somewhere; takes the options of `subprocess.Popen`.
Start = Callable[..., "subprocess.Popen[Any]"]
#: How long a program may take until it acts, seconds.
READY_S = 60.0


class ActedByChild(Fault[P]):
    """A fault that lasts as long as a program of it acts; the base of several kinds."""

    lasting = True
    missing: ClassVar[str]  #: a sentence part about a program that cannot act
    wait_s: ClassVar[float] = 5.0  #: how long the program may take to print its result
    output: str | None = None  #: what the program printed, once it was ended
    _process: subprocess.Popen[str] | None = None

    def start(self, start: Start, argv: Sequence[str], deadline_s: float = READY_S) -> float:
        """Start the program, and return when it acts.

        Raises `NothingToHit` where it ends, or is late, without acting.
        """
        pipe = subprocess.PIPE
        self._process = process = start(
            argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        said, _, _ = select.select([process.stdout], [], [], deadline_s)
        if not said or process.stdout.readline().strip() != "ready":
            process.kill()
            process.communicate()
            self._process = None
            raise NothingToHit(self.missing)
        return time.monotonic()

    def heal(self) -> None:
        """End the program, and keep what it printed; it is killed after `wait_s`."""
        if self._process is None or self.output is not None:
            return
        try:
            self.output = self._process.communicate("", self.wait_s)[0]
        except subprocess.TimeoutExpired:
            self._process.kill()
            self.output = self._process.communicate()[0]
