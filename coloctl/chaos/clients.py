"""The clients of a story: the workload as a process in the lab, its history read as it comes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Mapping

from coloctl.chaos.history import Op, Outcome, parse
from coloctl.errors import DeadlineMissed
from coloctl.lab import layout
from coloctl.lab.network import Lab

#: From the end of the load to the last reply; a client gives up a reply long before (workload.py).
CLIENTS_END_S = 90.0
#: Between two records of one client, milliseconds: a load, but not a flood.
PAUSE_MS = 2


class Clients:
    """``count`` clients that append records until `finish`; ended by `kill` at the latest."""

    def __init__(self, lab: Lab, count: int, pause_ms: float = PAUSE_MS) -> None:
        self.history: list[Op] = []
        self._lab, self._count = lab, count
        self._process = lab.popen(
            [*_workload(count), "--pause-ms", str(pause_ms)],
            "client",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for op in parse(self._process.stdout):
            self.history.append(op)

    def acknowledged(self) -> int:
        """Records that clients saw acknowledged so far."""
        return sum(op.outcome is Outcome.OK for op in list(self.history))

    def finish(self) -> list[Op]:
        """Every client has ended by itself; answers the whole history."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLIENTS_END_S)
        except subprocess.TimeoutExpired as error:
            raise DeadlineMissed(
                f"The clients did not end within {CLIENTS_END_S:.0f} s: a reply never came."
            ) from error
        self._reader.join(5)
        return self.history

    def read_back(self) -> Mapping[int, list[int]]:
        """What the guest holds now, per client, asked over a new connection."""
        done = self._lab.run([*_workload(self._count), "--read-back"], "client")
        rows = (line.split() for line in done.stdout.splitlines())
        return {int(row[0]): [int(n) for n in row[1:]] for row in rows}

    def kill(self) -> None:
        """The process is gone."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


def _workload(count: int) -> list[str]:
    return [
        *(sys.executable, "-m", "coloctl.chaos.workload"),
        *("--host", layout.GUEST, "--clients", str(count)),
    ]
