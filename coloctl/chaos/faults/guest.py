"""What a guest does to itself: it starts anew or powers off, it panics, it floods its console."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from coloctl.chaos.faults.child import Child
from coloctl.chaos.faults.fault import Ask, Blow, FaultKind, Ground, Strike
from coloctl.chaos.scenario.values import Planned
from coloctl.lab import layout

#: One that dies at once may not have answered; nobody waits longer for it.
PATIENCE_S = 3.0

#: Says "refused" where nobody took the word; a guest that dies of it need not answer.
_TELL = """
import socket, sys
_, address, word, patience = sys.argv
try:
    with socket.create_connection((address, 6379), float(patience)) as s:
        s.sendall(f"PUBLISH life {word}\\r\\n".encode())
        if s.recv(64).startswith(b":0"):
            print("refused: nobody in the guest listens")
except ConnectionResetError:
    pass
except TimeoutError as error:
    print("" if str(error) == "timed out" and "s" in globals() else "refused: the guest is silent")
except OSError as error:
    print("refused:", error.strerror)
"""


def _told(word: str) -> Strike:
    def strike(ground: Ground, _fault: Planned, _ask: Ask) -> Blow:
        at_s = time.monotonic()
        argv = [sys.executable, "-I", "-S", "-c", _TELL, layout.GUEST, word, str(PATIENCE_S)]
        said = ground.lab.run(argv, deadline_s=10 * PATIENCE_S, check=False).stdout
        _, refused, why = said.strip().partition("refused: ")
        return Blow(at_s, missed=f"the guest was not told: {why}" if refused else "")

    return strike


#: Has redis write lines to the guest's console, for as long as its standard input is open; says how
#: many bytes those were. Half of a line is read again by the next connection.
_FLOOD = """
import select, socket, sys
address, line, many = sys.argv[1], "x" * 1000, 8
script = "for i = 1, %d do redis.log(redis.LOG_WARNING, ARGV[1]) end return 1" % many
words = ["EVAL", script, "0", line]
asked = "*%d\\r\\n" % len(words) + "".join("$%d\\r\\n%s\\r\\n" % (len(w), w) for w in words)
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


def flood(ground: Ground, _fault: Planned, _ask: Ask) -> Blow:
    """Have the guest write to its console as fast as it may, until it is healed."""
    argv = [sys.executable, "-I", "-S", "-c", _FLOOD, layout.GUEST]
    child = Child.begin(ground.lab, "client", argv)
    if child is None:
        return Blow(time.monotonic(), missed="the guest did not answer")

    def outcome() -> str:
        return "" if child.said is None else f"{int(child.said.strip() or 0) // 1000} kB"

    return Blow(time.monotonic(), lambda: child.end(10 * PATIENCE_S), outcome=outcome)


FAULTS: Mapping[str, FaultKind] = {
    "guest-reboot": FaultKind("The guest reboots in order.", _told("reboot"), ("guest",)),
    "guest-reset": FaultKind("The guest is reset at once.", _told("reset"), ("guest",)),
    "guest-poweroff": FaultKind("The guest powers itself off.", _told("poweroff"), ("guest",)),
    "console-flood": FaultKind(
        "The guest writes to its console as fast as it may, until it is healed.",
        flood,
        ("guest",),
        lasting=True,
    ),
    "guest-panic": FaultKind("The guest's kernel panics.", _told("panic"), ("guest",)),
}
