"""Run a program in the lab that works like a client, and read its history as it comes.

Called by `chaos.workloads` and `bench.dirtied`; starts it in a namespace of `lab.network`. The
program writes its history to standard output and ends by itself when its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from coloctl.chaos.workloads.history import Op, OpStatus, parse
from coloctl.errors import DeadlineMissed, LabError

if TYPE_CHECKING:  # a lab's imports would cost each client a second of its start
    from coloctl.lab.network import Lab

#: From the end of the load to the last reply; a client gives up a reply long before (client.py).
CLIENTS_END_WAIT_S = 90.0


class ClientProgram:
    """One program at work in the client's namespace until `finish`; ended by `kill` at the latest.

    ``who`` is the program with its arguments. With ``--read-back`` after them it prints what the
    guest holds, as JSON.
    """

    def __init__(self, lab: Lab, who: Sequence[str]) -> None:
        self.history: list[Op] = []
        self._lab, self._who = lab, tuple(who)
        self._process = lab.popen(
            self._who,
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
        for line in self._process.stdout:
            if line.endswith("\n"):  # a program that is killed may leave a piece of one
                self.history.extend(parse([line]))

    def acknowledged(self) -> int:
        """Count the operations that clients saw acknowledged so far."""
        return sum(op.outcome is OpStatus.OK for op in list(self.history))

    def finish(self) -> list[Op]:
        """Wait until every client has ended by itself; return the whole history.

        Raises `DeadlineMissed` when one waits for ever.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLIENTS_END_WAIT_S)
        except subprocess.TimeoutExpired as error:
            raise DeadlineMissed(
                f"The clients did not end within {CLIENTS_END_WAIT_S:.0f} s: a reply never came."
            ) from error
        self._reader.join(5)
        return self.history

    def read_back(self) -> Any:
        """Return what the guest holds now, asked over new connections.

        Clients and records are numbers in it. Raises `LabError` when there is no answer, or none
        that can be read.
        """
        said = self._lab.run([*self._who, "--read-back"], "client").stdout
        try:
            return json.loads(said, object_hook=numbered)
        except ValueError as error:
            raise LabError(f"The guest's answer cannot be read: {said[:80]!r}.") from error

    def kill(self) -> None:
        """End the process, and stop reading from it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._reader.join(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def numbered(held: Mapping[str, Any]) -> dict[Any, Any]:
    """Convert keys that are numbers to numbers: JSON has text for keys only."""
    return {int(key) if key.isdecimal() else key: value for key, value in held.items()}
