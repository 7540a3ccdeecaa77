"""Keep the programs of a host that were killed and have not ended yet, until they have.

Used by `host.local`, which kills helper programs and undoes launches that were cancelled; waits
through `host.process` and `host.program`. The kernel ends a process that waits for a disk only when
the disk has answered: on a busy one `qemu-img create` outlived its SIGKILL by 0.36 s, the worst of
53. A caller that is cancelled or late waits for that a moment only, and the host for the rest of it
when it is closed.

Invariant: the end of a program that takes long never hides why it was killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal as signals

from coloctl.clock import Deadline
from coloctl.errors import FencingFailed
from coloctl.host.process import LocalProcess
from coloctl.host.program import Program

log = logging.getLogger(__name__)

#: How long a caller waits for the end of a helper program that was killed.
REAP_WAIT_S = 2.0

#: How long `LateEnds.aclose` waits for all of them. With `REAP_WAIT_S` it is as long as the fence
#: of a QEMU waits for the kernel.
LATE_WAIT_S = 8.0


class LateEnds:
    """Programs of one host that were killed, and lived when their caller went on."""

    def __init__(self) -> None:
        self._programs: list[LocalProcess | Program] = []

    async def end(self, program: LocalProcess) -> None:
        """Kill a helper program that still runs, with its process group, and release it."""
        try:
            if program.alive():
                # Before the leader is reaped its number cannot be another group's.
                os.killpg(program.identity.pid, signals.SIGKILL)
                with contextlib.suppress(FencingFailed):
                    await program.kill(REAP_WAIT_S)
        finally:
            self.note(program, gone=not program.alive())

    def note(self, program: LocalProcess | Program, *, gone: bool) -> None:
        """Release a program that was killed and is ``gone``, and keep one that is not."""
        if gone:
            program.close()
        else:
            self._programs.append(program)

    async def aclose(self) -> None:
        """Wait until those that were kept have ended; what lives after `LATE_WAIT_S` is logged."""
        deadline = Deadline(LATE_WAIT_S)
        while self._programs:
            one = self._programs.pop()
            try:
                await one.kill(deadline.remaining())
            except FencingFailed:
                pid, name = one.identity.pid, one.argv[0]
                log.warning("Process %d (%s) was killed and has not ended yet.", pid, name)
            finally:
                one.close()
