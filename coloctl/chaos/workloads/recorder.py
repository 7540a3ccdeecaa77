"""Write the histories of clients, and define how long a client waits for a reply.

Called by `chaos.workloads.client` and `chaos.workloads.redis_appends`.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

from coloctl.chaos.workloads.history import Op, OpStatus

#: No reply for so long means that the connection hangs, seconds. Linux gives up a connection only
#: after minutes; a client of a protected guest should never wait longer than a failover.
REPLY_DEADLINE_S = 20.0
#: The guest may still be booting when the clients come, seconds.
CONNECT_DEADLINE_S = 60.0


class Recorder:
    """Writes history lines of many threads to one stream, whole lines only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, client: int, outcome: OpStatus, n: int, note: str = "", **more: Any) -> None:
        """Write one line; ``more`` are further fields of `Op`."""
        line = Op(time.monotonic(), client, outcome, n, note, **more).line()
        with self._lock:
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
