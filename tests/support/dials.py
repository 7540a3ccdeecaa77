"""A way to an agent without ssh: a command of this machine that is it, or leads to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from coloctl.errors import HostOutOfReach
from coloctl.host.remote.dial import ended


@dataclass(frozen=True)
class PlainDial:
    """Implements `host.remote.dial.Dial`."""

    command: tuple[str, ...]
    name: str

    def argv(self) -> Sequence[str]:
        """See `Dial.argv`."""
        return self.command

    def failure(self, code: int | None, output: str) -> HostOutOfReach:
        """See `Dial.failure`."""
        return HostOutOfReach(ended(self.name, self.command[0], code, output))


#: The agent of this checkout, as another machine would run it.
AGENT = PlainDial((sys.executable, "-m", "coloctl.host.agent.main"), "hv2")

#: Leads to the command in its arguments; what goes through is late in either direction.
_SLOWLY = """
import collections, os, select, socket, subprocess, sys, time
delay_s = float(sys.argv[1])
ours, its = socket.socketpair()
subprocess.Popen(sys.argv[2:], stdin=its, stdout=its); its.close()
out = {0: ours.sendall, ours.fileno(): lambda data: os.write(1, data)}
waiting = collections.deque()
while True:
    wait_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
    for one in select.select(list(out), [], [], wait_s)[0]:
        data = os.read(one, 65536)
        if not data: sys.exit()
        waiting.append((time.monotonic() + delay_s, out[one], data))
    while waiting and waiting[0][0] <= time.monotonic():
        _, write, data = waiting.popleft()
        write(data)
"""


def slow(round_trip_s: float, dial: PlainDial = AGENT) -> PlainDial:
    """Make a way on which each answer takes ``round_trip_s``."""
    words = (sys.executable, "-I", "-S", "-c", _SLOWLY, str(round_trip_s / 2))
    return PlainDial((*words, *dial.command), dial.name)
