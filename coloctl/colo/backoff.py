"""How long the next attempt to protect a guest waits; pure."""

from __future__ import annotations

#: After the first failed attempt, the second, ...; the last one holds for all that follow. What
#: keeps a node from serving is over in a second (a port, a lock that its dead QEMU still held), or
#: takes as long as a person needs; each attempt costs the guest a little. Seconds.
WAITS_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


def wait_s(failed: int) -> float:
    """Seconds until the attempt that follows ``failed`` failed ones in a row; 0 for the first."""
    return 0.0 if failed <= 0 else WAITS_S[min(failed, len(WAITS_S)) - 1]
