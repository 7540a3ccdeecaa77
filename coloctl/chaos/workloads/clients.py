"""Start the clients of a bench: the workload of numbered records as a process in the lab.

Called by `bench/` and by `chaos.workloads` for ``redis-appends``; runs in the client's namespace of
`lab.layout`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from coloctl.chaos.workloads.program import ClientProgram
from coloctl.lab import layout

if TYPE_CHECKING:  # a lab's imports would cost each client a second of its start
    from coloctl.lab.network import Lab

#: Between two records of one client, milliseconds: a load, but not a flood.
PAUSE_MS = 2


class Clients(ClientProgram):
    """``count`` clients, numbered from ``first``, that append records until `finish`; ended by
    `kill` at the latest.
    """

    def __init__(
        self,
        lab: Lab,
        count: int,
        pause_ms: float = PAUSE_MS,
        *,
        first: int = 0,
        burst_s: float = 0.0,
        idle_s: float = 0.0,
        arrive_s: float = 0.0,
    ) -> None:
        """Start the clients; with ``idle_s`` they append for ``burst_s`` and are silent for so
        long.
        """
        super().__init__(
            lab,
            [
                *(sys.executable, "-m", "coloctl.chaos.workloads.redis_appends"),
                *("--host", layout.GUEST, "--clients", str(count), "--first", str(first)),
            ],
            [
                *("--pause-ms", str(pause_ms)),
                *("--burst-s", str(burst_s), "--idle-s", str(idle_s)),
                *("--arrive-s", str(arrive_s)),
            ],
            decode=records,
        )


def records(lines: str) -> dict[int, list[int]]:
    """Parse what the guest holds, per client, from the lines that the workload prints of it."""
    rows = (line.split() for line in lines.splitlines())
    return {int(row[0]): [int(n) for n in row[1:]] for row in rows}
