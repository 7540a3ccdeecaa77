"""Measure what a process costs, from /proc: processor time and resident memory.

Called by `bench.soak`, `bench.stretches` and `bench.supervisors` for supervisors.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coloctl.errors import Unreachable

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Meter:
    """Resources that a process had used at one moment; processor time in seconds, memory in MiB."""

    pid: int | None
    at_s: float
    cpu_s: float
    rss_mib: float

    @classmethod
    def read(cls, pid: int | None) -> Meter:
        """Read what the process has used; raises `Unreachable` when there is no such process."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            raise Unreachable(f"Process {pid} is gone.") from None
        # The name in brackets may hold anything; fields 14 and 15 are utime and stime.
        fields = stat.rpartition(")")[2].split()
        resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return cls(
            pid,
            time.monotonic(),
            (int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
            int(resident[0]) / 1024 if resident else 0.0,
        )


def spent(before: Meter) -> dict[str, Any]:
    """Return the cost of the process since ``before``.

    ``cpu_percent`` is the share of one core, ``rss_mib`` the resident memory now.
    """
    now = Meter.read(before.pid)
    share = (now.cpu_s - before.cpu_s) / max(now.at_s - before.at_s, 1e-9)
    return {"cpu_percent": round(100 * share, 2), "rss_mib": round(now.rss_mib, 1)}
