"""What a guest does to itself: it starts anew, in order or at once, or it panics."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from coloctl.chaos.nemesis.fault import Ask, Blow, FaultKind, Ground, Strike
from coloctl.chaos.scenario import Planned
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


FAULTS: Mapping[str, FaultKind] = {
    "guest-reboot": FaultKind("The guest reboots in order.", _told("reboot"), ("guest",)),
    "guest-reset": FaultKind("The guest is reset at once.", _told("reset"), ("guest",)),
    "guest-panic": FaultKind("The guest's kernel panics.", _told("panic"), ("guest",)),
}
