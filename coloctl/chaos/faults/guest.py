"""Make a guest start again, power off, panic, or flood its console.

Registered in `chaos.faults`; finds the guest by the addresses of `lab.layout`. The guest's own
program obeys messages on a redis channel. A program on the clients' machine sends them, by
`lab.network`; the flood is a `child`.
"""

from __future__ import annotations

import sys
import time
from typing import ClassVar

from coloctl.chaos.faults.child import ActedByChild
from coloctl.chaos.faults.fault import Fault, Injected, NothingToHit, fault
from coloctl.chaos.scenario.tables import Params
from coloctl.lab import layout

#: A guest that dies at once may not have answered; its answer is not awaited for longer.
ANSWER_WAIT_S = 3.0

#: Prints "refused" where the message was not taken; a guest that dies of it need not answer.
_SEND = """
import socket, sys
_, address, word, patience = sys.argv
try:
    with socket.create_connection((address, 6379), float(patience)) as s:
        s.sendall(f"PUBLISH life {word}\\r\\n".encode())
        if s.recv(64).startswith(b":0"):
            print("refused: no program in the guest listens")
except ConnectionResetError:
    pass
except TimeoutError as error:
    print("" if str(error) == "timed out" and "s" in globals() else "refused: the guest is silent")
except OSError as error:
    print("refused:", error.strerror)
"""


class GuestOrder(Fault[Params]):
    """A message that the guest obeys; the base of several kinds."""

    targets = ("guest",)
    order: ClassVar[str]

    def begin(self) -> Injected:
        """Send the message; raises `NothingToHit` where the guest does not take it."""
        at_s = time.monotonic()
        argv = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _SEND,
            layout.GUEST,
            self.order,
            str(ANSWER_WAIT_S),
        ]
        output = self.pair.lab.run(argv, deadline_s=10 * ANSWER_WAIT_S, check=False).stdout
        _, refused, why = output.strip().partition("refused: ")
        if refused:
            raise NothingToHit(f"the guest did not take the message: {why}")
        return Injected(at_s)


@fault("guest-reboot")
class GuestReboot(GuestOrder):
    """A reboot of the guest in order."""

    order = "reboot"


@fault("guest-reset")
class GuestReset(GuestOrder):
    """A reset of the guest at once."""

    order = "reset"


@fault("guest-poweroff")
class GuestPoweroff(GuestOrder):
    """A guest that powers itself off."""

    order = "poweroff"


@fault("guest-panic")
class GuestPanic(GuestOrder):
    """A panic of the guest's kernel."""

    order = "panic"


#: Makes redis write lines to the guest's console, for as long as its standard input is open; prints
#: how many bytes those were. Half of a line is read again by the next connection.
_FLOOD = """
import select, socket, sys
address, line, many = sys.argv[1], "x" * 1000, 8
script = "for i = 1, %d do redis.log(redis.LOG_WARNING, ARGV[1]) end return 1" % many
parts = ["EVAL", script, "0", line]
asked = "*%d\\r\\n" % len(parts) + "".join("$%d\\r\\n%s\\r\\n" % (len(p), p) for p in parts)
written = 0
with socket.create_connection((address, 6379), 10) as s:
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            s.sendall(asked.encode())
            while not s.recv(64).endswith(b"\\r\\n"):
                pass
        except OSError:
            break
        written += many * len(line)
print(written)
"""


@fault("console-flood")
class ConsoleFlood(ActedByChild[Params]):
    """A guest that writes to its console as fast as it may, until it is healed."""

    targets = ("guest",)
    wait_s = 30.0
    missing = "the guest did not answer"

    def begin(self) -> Injected:
        """Start the flood from the clients' machine."""
        argv = [sys.executable, "-I", "-S", "-c", _FLOOD, layout.GUEST]
        return Injected(self.start(self.pair.lab.popen, argv))

    def result(self) -> str:
        """Return how much was written."""
        return "" if self.output is None else f"{int(self.output.strip() or 0) // 1000} kB"
